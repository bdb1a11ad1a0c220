from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.spins import ising
from mfmarl.statmech.exact.ising import square_magnetisation, torus_energy
from mfmarl.statmech.sampling import chains, single_spin
from mfmarl.statmech.sampling.checkerboard import torus_sweep
from tests.statistical import beyond, statistical

RULES = ["heat_bath", "metropolis"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("coupling", "field"), [(1.0, 0.0), (-0.7, 0.0), (0.9, 0.4), (-1.1, -0.3)])
@statistical(alpha=beyond(5, 80), bugs=("hot-heat-bath", "hot-metropolis"))
def test_each_spin_has_the_chance_that_its_neighbours_on_the_graph_give_it(
    rule: str, coupling: float, field: float
) -> None:
    rows, columns, beta = 6, 10, 0.45
    system = ising(graphs.torus(rows, columns), rows * columns, coupling, field)
    before = system.random_states((4000,), Key.of(1))
    after = torus_sweep((rows, columns), rule, coupling, field)(before, beta, torch.arange(4000), Key.of(2))
    odd = (torch.arange(60) // columns + torch.arange(60) % columns) % 2 == 1
    for sites, mixed in ((~odd, before), (odd, torch.where(odd, before, after))):
        local, old, new = system.local_field(mixed)[:, sites], before[:, sites], after[:, sites]
        if rule == "heat_bath":
            chance, happened = single_spin.up_probability(local, beta), new > 0
        else:
            chance, happened = single_spin.flip_probability(old, local, beta), new != old
        rounded = chance.round(decimals=9)
        for p in rounded.unique().tolist():
            trials, hits = int((rounded == p).sum()), int(happened[rounded == p].sum())
            assert abs(hits - trials * p) <= 5 * math.sqrt(trials * p * (1 - p)) + 1e-6 * trials


@pytest.mark.parametrize("rule", RULES)
@statistical(alpha=1e-3, bugs=("uniforms-lean", "long-exponentials"))
def test_energies_of_the_four_by_four_torus_follow_the_density_of_states(rule: str) -> None:
    system, n = ising(graphs.torus(4, 4), 16), 20_000
    states = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=16)), dtype=torch.float64)
    levels, which = system(states).round().long().unique(return_inverse=True)
    law = torch.zeros(len(levels), dtype=torch.float64)
    law.index_add_(0, which, torch.softmax(-0.4 * system(states), 0)).mul_(n)
    s = system.random_states((n,), Key.of(1)).to(torch.int8)
    s, _ = chains.run(torus_sweep((4, 4), rule), s, 0.4, Key.of(2), 40, lambda x: x[:, 0])
    counts = torch.bincount(torch.searchsorted(levels, system(s.double()).round().long()), minlength=len(levels))
    keep = law >= 5
    statistic = float(((counts - law)[keep] ** 2 / law[keep]).sum())
    assert statistic < chi2.isf(norm.sf(5), int(keep.sum()) - 1)


@pytest.mark.parametrize("rule", RULES)
@statistical(alpha=beyond(5, 8, samples=32), bugs=("uniforms-lean", "long-exponentials"))
def test_a_large_torus_has_the_exact_energy_and_magnetisation(rule: str) -> None:
    side, batch = 32, 64

    def seen(x: Tensor) -> Tensor:
        lattice = x.reshape(batch, side, side)
        bonds = (lattice * (lattice.roll(1, 1) + lattice.roll(1, 2))).double().mean((1, 2))
        return torch.stack([-bonds, lattice.double().mean((1, 2))], -1)

    s = torch.ones(batch, side**2, dtype=torch.int8)
    for beta, energy, m in ((0.4, torus_energy((side, side), 2.5), None), (0.5, None, square_magnetisation(2.0))):
        _, values = chains.run(torus_sweep((side, side), rule), s, beta, Key.of(2), 40, seen, warm_up=100)
        mean, error = values.mean(0).mean(0), 5 * values.mean(0).std(0) / math.sqrt(batch)
        assert energy is None or abs(float(mean[0]) - energy) < float(error[0])
        assert m is None or abs(float(mean[1]) - m) < float(error[1])


@pytest.mark.parametrize("rule", RULES)
def test_at_zero_temperature_no_energy_rises_and_ties_stay_open(rule: str) -> None:
    system = ising(graphs.torus(8, 8), 64)
    s = system.random_states((200,), Key.of(1))
    states = [s, *itertools.islice(chains.trajectory(torus_sweep((8, 8), rule), s, math.inf, Key.of(2)), 30)]
    energies = [system(x) for x in states]
    assert all(bool((b <= a).all()) for a, b in itertools.pairwise(energies))
    # Spins in no field still move: in some of 200 chains two sweeps that change nothing in H change s.
    assert any(bool(((a != b).any(-1) & (system(a) == system(b))).any()) for a, b in itertools.pairwise(states))


def test_at_infinite_temperature_spins_are_fair_coins_or_all_flip() -> None:
    s = torch.ones(50, 64)
    hot = torus_sweep((8, 8))(s, 0.0, torch.arange(50), Key.of(1))
    assert abs(float(hot.mean())) < 5 / math.sqrt(3200)
    assert torch.equal(torus_sweep((8, 8), "metropolis")(s, 0.0, torch.arange(50), Key.of(1)), -s)


@pytest.mark.parametrize("rule", RULES)
def test_a_chain_does_not_know_of_the_others(rule: str) -> None:
    sweep = torus_sweep((6, 4), rule, 1.0, 0.2)
    s = ising(graphs.torus(6, 4), 24).random_states((2, 3), Key.of(1)).to(torch.int8)
    betas, ids = torch.tensor([[0.1, 0.5, 1.0], [0.2, 2.0, math.inf]]), torch.arange(6).reshape(2, 3)
    together = sweep(s, betas, ids, Key.of(2))
    assert together.dtype == torch.int8
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(sweep(s[i, j], float(betas[i, j]), ids[i, j], Key.of(2)), together[i, j])
    assert torch.equal(sweep(s.double(), betas, ids, Key.of(2)), together.double())


def test_lattices_without_two_colours_are_refused() -> None:
    for shape in ((5, 4), (4, 7), (2, 4)):
        with pytest.raises(ConfigError, match="even sides of at least 4"):
            torus_sweep(shape)
    with pytest.raises(ConfigError, match="other than 0"):
        torus_sweep((4, 4), coupling=0.0)
    with pytest.raises(ConfigError, match="'kawasaki'"):
        torus_sweep((4, 4), "kawasaki")
    with pytest.raises(ConfigError, match="one spin each"):
        torus_sweep((4, 4))(torch.ones(15), 1.0, torch.tensor(0), Key.of(0))
