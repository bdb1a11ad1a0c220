"""Driven systems: the first law to rounding, the second with Jarzynski's equality, engines and loops of known size."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import cycles
from mfmarl.statmech.cycles import Stroke
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.sampling.single_spin import heat_bath
from tests.statistical import beyond, statistical

BETA = 0.7
CHAINS = 4000


def in_field(field: float) -> spins.Ising:
    return spins.ising(graphs.torus(8), 8, 1.0, field)


def equilibrium(system: spins.Ising, beta: float, chains: int) -> torch.Tensor:
    """Exact draws, by enumeration."""
    p = enumeration.probabilities(system, beta)
    index = torch.multinomial(p, chains, replacement=True, generator=torch.Generator().manual_seed(5))
    return enumeration.spins(system.num_spins).states()[index]


def path(fields: list[float], sweeps: int = 1) -> list[Stroke]:
    return cycles.isothermal([in_field(h) for h in fields], BETA, sweeps)


def test_work_and_heat_make_up_the_change_of_energy_chain_by_chain() -> None:
    strokes = [Stroke(in_field(0.3), 0.5, 2), Stroke(in_field(-0.4), 0.9, 3), Stroke(in_field(0.1), 0.2, 0)]
    x, account = cycles.drive(strokes, heat_bath, equilibrium(in_field(0.3), 0.5, 50), Key.of(0))
    total = (account.work + account.heat).sum(0)
    assert torch.allclose(total, account.energy[-1] - account.energy[0], atol=1e-12)
    assert torch.allclose(account.energy[-1], in_field(0.1)(x))
    assert bool((account.heat[-1] == 0).all())  # no sweeps, no heat


@statistical(alpha=beyond(5, 200), bugs=("hot-heat-bath", "cold-partition"))
def test_the_exponential_average_of_work_is_the_ratio_of_partition_functions() -> None:
    """Jarzynski and its inequality, fast and slow, with temperature and field changing together."""
    exact = enumeration.log_partition(in_field(0.8), 1.0) - enumeration.log_partition(in_field(-0.5), 0.3)
    lost = []
    for sweeps, steps in ((1, 4), (1, 40)):
        strokes = [
            Stroke(in_field(-0.5 + 1.3 * k / steps), 0.3 + 0.7 * k / steps, 0 if k == 0 else sweeps)
            for k in range(steps + 1)
        ]
        _, account = cycles.drive(strokes, heat_bath, equilibrium(in_field(-0.5), 0.3, CHAINS), Key.of(1))
        weight = (-account.reduced_work - exact).exp()
        assert abs(float(weight.mean()) - 1) <= 5 * float(weight.std()) / math.sqrt(CHAINS)
        found = cycles.dissipated(account, exact)
        assert float(found.value) > 5 * float(found.error)
        lost.append(float(found.value))
    assert lost[1] < lost[0] / 4  # slow driving is reversible


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "steps-share-noise"))
def test_a_closed_cycle_costs_and_its_loop_has_the_area_of_the_work() -> None:
    fields = [0.0, 0.5, 1.0, 0.5, 0.0, -0.5, -1.0, -0.5, 0.0]
    x = equilibrium(in_field(0.0), BETA, CHAINS)
    _, account = cycles.drive(path(fields), heat_bath, x, Key.of(2))
    weight = (-account.reduced_work).exp()
    assert abs(float(weight.mean()) - 1) <= 5 * float(weight.std()) / math.sqrt(CHAINS)
    found = cycles.dissipated(account)
    assert float(found.value) > 5 * float(found.error)
    # The same drive, watched: W = -loop of M dh, chain by chain.
    order, state = [], x
    for number, h in enumerate(fields):
        state = heat_bath(in_field(h))(state, BETA, torch.arange(CHAINS), Key.of(2).fold("stroke", number, 0))
        order.append(state.sum(-1))
    area = cycles.loop_area(torch.stack(order), fields)
    assert torch.allclose(area, account.work.sum(0), atol=1e-9)


def test_an_otto_engine_of_spins_has_the_efficiency_of_its_fields() -> None:
    """Isolated spins keep their populations while the field changes: eta = 1 - h_c/h_h, exactly in each stroke."""
    hot, cold = spins.free_spins(16, 2.0), spins.free_spins(16, 1.2)
    strokes = [
        Stroke(cold, 2.0, 1),
        Stroke(hot, 2.0, 0),
        Stroke(hot, 0.4, 1),
        Stroke(cold, 0.4, 0),
        Stroke(cold, 2.0, 1),
    ]
    _, account = cycles.drive(strokes, heat_bath, torch.ones(CHAINS, 16).double(), Key.of(3))
    found = cycles.efficiency(account)
    assert float(found.value) == pytest.approx(1 - 1.2 / 2.0, abs=1e-12)
    # Below Carnot's, and entropy is made.
    assert float(found.value) < 1 - 0.4 / 2.0
    made = account.entropy_to_baths
    assert float(made.mean()) > 5 * float(made.std()) / math.sqrt(CHAINS)


def test_what_is_no_cycle_and_no_engine_is_refused() -> None:
    x = torch.ones(4, 8).double()
    with pytest.raises(ConfigError, match="at least 2, not 1"):
        cycles.drive(path([0.0]), heat_bath, x, Key.of(0))
    with pytest.raises(ConfigError, match="inverse temperature beta"):
        cycles.drive([Stroke(in_field(0), -1.0, 1)] * 2, heat_bath, x, Key.of(0))
    with pytest.raises(ConfigError, match="end at the field it began with"):
        cycles.loop_area(torch.zeros(3, 2), [0.0, 1.0, 0.5])
    _, account = cycles.drive([Stroke(in_field(0), 0.1, 5), Stroke(in_field(0), 3.0, 5)], heat_bath, x, Key.of(0))
    with pytest.raises(ConfigError, match="no engine"):
        cycles.efficiency(account)
