"""Machines learn what they are shown: exact likelihoods rise, and come near the entropy of the data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.energies import machines
from mfmarl.statmech.energies.continuous import DoubleWell
from mfmarl.statmech.energy_learning import deep, likelihood, networks, training
from mfmarl.statmech.energy_learning.training import Training
from mfmarl.statmech.sampling import langevin

KEY = Key.of(65)


def every_state(units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def bars(side: int = 3) -> Tensor:
    """Bars and stripes [2^(side + 1), side^2]: every row on or off, or every column; all on and all off twice."""
    rows = every_state(side).unsqueeze(-1).expand(-1, side, side).reshape(-1, side * side)
    columns = every_state(side).unsqueeze(1).expand(-1, side, side).reshape(-1, side * side)
    return torch.cat([rows, columns])


ENTROPY = -(12 / 16 * math.log(1 / 16) + 2 * 2 / 16 * math.log(2 / 16))
"""Of bars and stripes of side 3: 12 pictures once in 16, two of them twice."""


@pytest.mark.parametrize("method", ["cd", "persistent", "tempered", "exact"])
def test_the_exact_likelihood_of_bars_and_stripes_rises(method: str) -> None:
    data = bars().repeat(4, 1)
    options = Training(
        epochs=700, batch_size=64, learning_rate=0.1, momentum=0.8, chains=100,
        method=method, final_share=0.2, rungs=5, steps=2,
    )  # fmt: skip
    start = training.initial_rbm(data, 8, KEY, 0.1)
    before = float(likelihood.log_likelihood(start, data).mean())
    seen = [float(likelihood.log_likelihood(e.rbm, data).mean()) for e in training.train_rbm(start, data, KEY, options)]
    assert math.isclose(before, -9 * math.log(2), rel_tol=0.01)  # every pixel half on
    assert seen[-1] > before + 1.5
    assert seen[-1] <= -ENTROPY + 1e-9  # nothing is likelier than the data's own law
    thirds = [sum(seen[k * 200 : (k + 1) * 200]) for k in range(3)]
    assert thirds == sorted(thirds)


def test_exact_descent_never_loses_likelihood() -> None:
    data = bars()
    options = Training(epochs=60, batch_size=16, learning_rate=0.1, momentum=0.0, method="exact")
    start = training.initial_rbm(data, 6, KEY)
    seen = [float(likelihood.log_likelihood(e.rbm, data).mean()) for e in training.train_rbm(start, data, KEY, options)]
    assert all(later > earlier for earlier, later in itertools.pairwise(seen))


def test_training_is_repeatable_and_leaves_its_beginning_alone() -> None:
    data = bars()
    start = training.initial_rbm(data, 6, KEY)
    kept = start.weights.clone()
    runs = [list(training.train_rbm(start, data, KEY, Training(epochs=3, batch_size=5))) for _ in range(2)]
    assert torch.equal(start.weights, kept)
    assert all(torch.equal(a.rbm.weights, b.rbm.weights) for a, b in zip(*runs, strict=True))
    assert runs[0][0].pseudo_log_likelihood == runs[1][0].pseudo_log_likelihood
    assert not torch.equal(runs[0][0].rbm.weights, runs[0][2].rbm.weights)


def test_weight_decay_holds_the_weights_down() -> None:
    data = bars()
    start = training.initial_rbm(data, 6, KEY)
    norms = []
    for decay in (0.0, 0.1):
        options = Training(epochs=100, method="exact", batch_size=16, weight_decay=decay)
        *_, last = training.train_rbm(start, data, KEY, options)
        norms.append(float(last.rbm.weights.norm()))
    assert norms[1] < 0.7 * norms[0]


@pytest.mark.parametrize("sizes", [(5, 4, 3), (4, 3, 2, 3), (6, 4)])
def test_the_variational_bound_is_a_bound_and_exact_with_one_hidden_layer(sizes: tuple[int, ...]) -> None:
    machine = machines.random_machine(sizes, KEY, 1.0)
    v = every_state(sizes[0])
    exact, log_z = deep.log_likelihood(machine, v), machine.log_partition()
    assert math.isclose(float(exact.exp().sum()), 1, rel_tol=1e-10)
    layers = deep.mean_field(machine, v, 200, 1e-12)
    gap = exact - deep.bound(machine, layers, log_z)
    assert bool((gap >= -1e-10).all())
    for k in range(1, len(sizes)):  # a fixed point
        assert torch.allclose(layers[k], torch.sigmoid(machine.field(k, layers)), atol=1e-9)
    if len(sizes) == 2:
        assert float(gap.abs().max()) < 1e-10
    else:
        assert float(gap.max()) > 1e-3
    # The fixed point is a maximum over independent units: moving the means lowers the bound.
    for shift in (-0.02, 0.02):
        moved = [layers[0], *((mu + shift).clamp(1e-6, 1 - 1e-6) for mu in layers[1:])]
        assert bool((deep.bound(machine, moved, log_z) <= deep.bound(machine, layers, log_z) + 1e-10).all())


def test_a_deep_machine_learns_bars_and_stripes() -> None:
    data = bars().repeat(4, 1)
    start = deep.initial_machine(data, (8, 4), KEY, 0.3)
    options = Training(epochs=400, batch_size=64, learning_rate=0.1, momentum=0.8, chains=100, final_share=0.2, steps=2)
    before = float(deep.log_likelihood(start, data).mean())
    *_, last = deep.train_deep(start, data, KEY, options)
    after = float(deep.log_likelihood(last.machine, data).mean())
    assert before < -6 and after > before + 1.2 and after <= -ENTROPY + 1e-9
    means = deep.mean_field(last.machine, data)
    known = float(deep.bound(last.machine, means, last.machine.log_partition()).mean())
    assert after - 0.5 < known < after


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
        for place, value in enumerate(self.body.parameters()):
            ids = torch.arange(value.numel()).reshape(value.shape)
            value.data.copy_(random.normal(KEY.fold("network", place), ids) / value.shape[-1] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(-1) + x.square().sum(-1) / 2  # confined


def test_a_network_learns_a_double_well_by_contrast() -> None:
    grid = torch.linspace(-3, 3, 601).unsqueeze(-1)
    law = torch.softmax(-DoubleWell(0.3)(grid), 0)
    data = grid[torch.searchsorted(law.cumsum(0), random.uniform(KEY, torch.arange(4000))).clamp(max=600)]
    energy = Network()

    def divergence() -> float:
        with torch.no_grad():
            return float((law * (law.log() - torch.log_softmax(-energy(grid), 0))).sum())

    before = divergence()
    optimiser = torch.optim.Adam(energy.parameters(), lr=3e-3, betas=(0.0, 0.999))
    sweep = langevin.mala(energy, 0.1, 6)
    options = networks.Contrast(steps=300, batch_size=256, chains=512, sweeps=1, restart=0.2)
    rows = list(networks.train_energy(energy, data, sweep, optimiser, KEY, options))
    assert [row.step for row in rows] == [100, 200, 300]
    assert before > 1 and divergence() < 0.3  # .02 to .08 for other keys


def test_steps_too_large_and_data_that_do_not_fit_are_refused() -> None:
    data = bars()
    start = training.initial_rbm(data, 4, KEY)
    with pytest.raises(NumericFault, match="learning rate is too large"):
        list(training.train_rbm(start, data, KEY, Training(learning_rate=1e308, momentum=0.9)))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        list(training.train_rbm(start, 2 * data, KEY))
    with pytest.raises(ConfigError, match=r"\[n, 9\]"):
        list(training.train_rbm(start, data[:, :5], KEY))
    with pytest.raises(ConfigError, match="negative phase"):
        Training(method="gibbs")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size"):
        Training(batch_size=0)
    with pytest.raises(ConfigError, match="persistent"):
        list(deep.train_deep(deep.initial_machine(data, (3,), KEY), data, KEY, Training(method="cd")))
    with pytest.raises(ConfigError, match="sweeps"):
        networks.Contrast(sweeps=0)
    energy = Network()
    with pytest.raises(NumericFault, match="no longer finite"):
        list(
            networks.train_energy(
                energy, data[:, :1].float(), langevin.ula(energy, 10.0, 50),
                torch.optim.SGD(energy.parameters(), 1e30), KEY, networks.Contrast(steps=3, report_every=3, sweeps=1),
            )
        )  # fmt: skip
