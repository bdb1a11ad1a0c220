"""Belief propagation: exact on trees, Bethe's numbers on the square lattice, close on loopy graphs."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.potts import Potts, potts
from mfmarl.statmech.energies.spins import Ising, free_spins, ising, sherrington_kirkpatrick
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.exact import ising as ising_exact
from mfmarl.statmech.mean_field import belief_propagation, pairwise


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return random.normal(Key.of(seed), torch.arange(math.prod(shape)).reshape(shape)).double()


def _tree(seed: int, n: int) -> torch.Tensor:
    """Every site joined to an earlier one."""
    parents = [int(random.integers(Key.of(seed).fold(i), torch.tensor([0]), i)) for i in range(1, n)]
    return torch.tensor([[p, i] for i, p in enumerate(parents, 1)])


@given(st.integers(0, 10**6), st.integers(2, 8), st.floats(0.0, 4.0))
@settings(max_examples=25)
def test_beliefs_on_trees_are_exact(seed, n, beta):
    system = Ising(_tree(seed, n), _noise(seed, 2, n - 1), _noise(seed + 1, 2, n))
    found = belief_propagation.propagate(system, beta)
    assert bool(found.converged.all())
    assert torch.allclose(found.log_partition, enumeration.log_partition(system, beta), atol=1e-9)
    mean, pair = enumeration.moments(system, beta)
    assert torch.allclose(belief_propagation.magnetisation(found), mean, atol=1e-9)
    same = found.pair[..., 0, 0] + found.pair[..., 1, 1] - found.pair[..., 0, 1] - found.pair[..., 1, 0]
    assert torch.allclose(same, pair[:, system.pairs[:, 0], system.pairs[:, 1]], atol=1e-9)


def test_potts_beliefs_on_trees_are_exact():
    system = Potts(_tree(4, 6), _noise(4, 5), _noise(5, 6, 3))
    found = belief_propagation.propagate(system, 0.9)
    share, joint = enumeration.moments(system, 0.9)
    assert torch.allclose(found.site, share, atol=1e-10)
    assert torch.allclose(found.pair, joint[system.pairs[:, 0], system.pairs[:, 1]], atol=1e-10)
    assert float(found.log_partition) == pytest.approx(float(enumeration.log_partition(system, 0.9)), abs=1e-10)


def test_the_square_lattice_has_bethes_numbers():
    lattice = ising(graphs.torus(6, 6), 36)
    found = belief_propagation.propagate(lattice, 0.5)
    free = -float(found.log_partition) * 2 / 36
    assert free == pytest.approx(-2.049606, abs=5e-7)
    assert free == pytest.approx(ising_exact.bethe_free_energy(4, 2.0), abs=1e-9)
    naive = float(pairwise.best(pairwise.naive(lattice, 0.5)).free_energy) / 36
    assert naive == pytest.approx(-2.039342, abs=5e-7)
    assert ising_exact.square_free_energy(2.0) < free < naive
    m = belief_propagation.magnetisation(found)
    assert float(m.mean()) == pytest.approx(ising_exact.bethe(4, 2.0).absolute, abs=1e-9)


def test_critical_temperatures_are_those_of_the_bethe_lattice():
    assert belief_propagation.critical_temperature(ising(graphs.torus(4, 4), 16)) == pytest.approx(
        2 / math.log(2), abs=1e-9
    )
    assert 1 / belief_propagation.critical_temperature(ising(graphs.torus(4, 4), 16)) == pytest.approx(
        0.346574, abs=1e-6
    )
    assert belief_propagation.critical_temperature(ising(graphs.torus(3, 3, 3), 27)) == pytest.approx(
        ising_exact.bethe_critical_temperature(6), abs=1e-9
    )
    lattice = ising(graphs.torus(4, 4), 16)
    below, above = (
        belief_propagation.magnetisation(belief_propagation.propagate(lattice, 1 / t, steps=20_000)).mean()
        for t in (2.8, 2.97)
    )
    assert float(below) == pytest.approx(ising_exact.bethe(4, 2.8).absolute, abs=1e-6)
    assert float(above) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="no transition"):
        belief_propagation.critical_temperature(ising(graphs.grid(6), 6))  # a chain never orders


def test_bethe_beats_tap_beats_naive_on_glasses_with_loops():
    glass = sherrington_kirkpatrick(14, Key.of(2), (20,))
    system = Ising(glass.pairs, glass.couplings, 0.5 * _noise(3, 20, 14))
    exact, _ = enumeration.moments(system, 0.6)
    bethe = belief_propagation.magnetisation(belief_propagation.propagate(system, 0.6))
    tap = pairwise.best(pairwise.tap(system, 0.6)).magnetisation
    naive = pairwise.best(pairwise.naive(system, 0.6)).magnetisation
    errors = [float((m - exact).square().mean()) for m in (bethe, tap, naive)]
    assert errors[0] < errors[1] < errors[2] / 10


def test_a_plaquette_of_potts_states_is_close_but_not_exact():
    system = potts(graphs.torus(4), 4, 3, 1.0)
    found = belief_propagation.propagate(system, 0.7)
    gap = abs(float(found.log_partition) - float(enumeration.log_partition(system, 0.7)))
    assert 1e-3 < gap < 0.05
    assert torch.allclose(found.site, torch.full((4, 3), 1 / 3, dtype=torch.float64), atol=1e-9)


def test_sites_without_links_are_their_own_gibbs_distribution():
    found = belief_propagation.propagate(free_spins(8, -1.0), 1.0)
    assert float(found.log_partition) == pytest.approx(math.log(8229.0354566819), abs=1e-12)
    assert torch.allclose(belief_propagation.magnetisation(found), torch.full((8,), -math.tanh(1), dtype=torch.float64))


def test_a_beta_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="finite beta"):
        belief_propagation.propagate(free_spins(2), math.inf)
    with pytest.raises(ConfigError, match="at least 0"):
        belief_propagation.propagate(free_spins(2), -1.0)
