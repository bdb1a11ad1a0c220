"""Simulated annealing: against the exact distribution at its end, for spins and for a double well."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.annealing.schedule import parse_schedule
from mfmarl.statmech.annealing.simulated import anneal, betas_of
from mfmarl.statmech.energies.continuous import DoubleWell
from mfmarl.statmech.energies.spins import sherrington_kirkpatrick
from mfmarl.statmech.exact import dynamics, enumeration
from mfmarl.statmech.sampling.langevin import ula
from mfmarl.statmech.sampling.single_spin import heat_bath
from tests.statistical import beyond, statistical


@statistical(alpha=beyond(5, 10), bugs=("hot-heat-bath", "uniforms-lean"))
def test_the_share_that_ends_in_the_ground_state_is_the_exact_one():
    glass = sherrington_kirkpatrick(8, Key.of(3))
    betas, chains = torch.linspace(0.2, 3, 6, dtype=torch.float64), 40_000
    levels = enumeration.energies(glass)
    order = torch.argsort(glass.colours, stable=True)
    exact = dynamics.annealed(levels, betas, order=order)
    found = anneal(heat_bath(glass), glass, glass.random_states((chains,), Key.of(4)), betas, Key.of(5))
    # Every energy level's share, within five standard errors of independent chains.
    for level in levels.unique()[:10]:
        p = float(exact[(levels - level).abs() < 1e-9].sum())
        seen = float(((found.energy - level).abs() < 1e-9).double().mean())
        assert abs(seen - p) < 5 * math.sqrt(p * (1 - p) / chains) + 1e-12
    assert 0.05 < float(exact[levels == levels.min()].sum()) < 0.95


def test_the_best_state_is_the_lowest_of_the_trace():
    glass = sherrington_kirkpatrick(20, Key.of(6))
    start = glass.random_states((30,), Key.of(7))
    found = anneal(heat_bath(glass), glass, start, torch.linspace(0.1, 2, 20), Key.of(8), sweeps=2)
    assert found.trace.shape == (40, 30)
    both = torch.cat([glass(start).unsqueeze(0), found.trace])
    assert torch.equal(found.best_energy, both.amin(0))
    assert torch.allclose(glass(found.best_state), found.best_energy)
    assert torch.equal(found.energy, found.trace[-1]) and torch.allclose(glass(found.state), found.energy)


def test_a_chain_does_not_know_how_many_others_there_are():
    glass = sherrington_kirkpatrick(10, Key.of(6))
    start, betas = glass.random_states((9,), Key.of(7)), torch.linspace(0.1, 2, 5)
    together = anneal(heat_bath(glass), glass, start, betas, Key.of(8))
    ids = torch.tensor([4])
    alone = anneal(heat_bath(glass), glass, start[4:5], betas, Key.of(8), ids=ids)
    assert torch.equal(alone.state, together.state[4:5])


def test_chains_may_have_temperatures_of_their_own():
    glass = sherrington_kirkpatrick(30, Key.of(9))
    start = glass.random_states((200,), Key.of(1))
    betas = torch.cat([torch.zeros(20, 100), torch.linspace(0.1, 3, 20).unsqueeze(-1).expand(20, 100)], 1)
    found = anneal(heat_bath(glass), glass, start, betas, Key.of(2))
    assert float(found.energy[:100].mean()) > float(found.energy[100:].mean()) + 10


def test_cooled_langevin_leaves_the_wrong_well_more_often_than_descent():
    well = DoubleWell()
    start = torch.full((1000, 1), 2.0)
    hot = anneal(ula(well, 0.01), well, start, betas_of(parse_schedule("geometric(3, 0.1)"), 1000), Key.of(1))
    cold = anneal(ula(well, 0.01), well, start, torch.full((1000,), 1e6), Key.of(1))
    assert float((cold.state < 0).double().mean()) == 0
    assert float((hot.state < 0).double().mean()) > 0.6
    assert float(hot.best_energy.min()) == pytest.approx(-5.4442, abs=2e-3)


def test_schedules_of_temperatures_become_betas():
    assert betas_of(parse_schedule("linear(2, 0)"), 4).tolist() == pytest.approx([1 / 1.75, 1 / 1.25, 1 / 0.75, 4.0])
    assert betas_of(parse_schedule("0"), 2).tolist() == [math.inf, math.inf]
    with pytest.raises(ConfigError, match="entropy"):
        betas_of(parse_schedule("entropy(0.5)"), 4)
    with pytest.raises(ConfigError, match="row of betas"):
        anneal(lambda x, *_: x, lambda x: x.sum(-1), torch.zeros(2, 2), torch.tensor(1.0), Key.of(0))
