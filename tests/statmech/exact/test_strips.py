"""Strips of the square lattice: against sums over all states, Kaufman's torus and conformal invariance."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.spins import Ising, edwards_anderson, ising
from mfmarl.statmech.exact import enumeration, strips
from mfmarl.statmech.exact import ising as ising_exact

SHAPES = [(4, 4), (5, 3), (3, 5), (2, 4), (4, 2), (2, 2), (1, 6), (6, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lattice", [graphs.torus, graphs.grid])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_glasses_on_small_lattices_are_their_sums_over_states(shape, lattice, strength):
    pairs, n = lattice(*shape), math.prod(shape)
    noise = random.normal(Key.of(5), torch.arange(3 * (len(pairs) + n)).reshape(3, -1)).double()
    system = Ising(pairs, noise[:, : len(pairs)], strength * noise[:, len(pairs) :])
    found = strips.lattice_log_partition(system, shape, 0.8)
    assert torch.allclose(found, enumeration.log_partition(system, 0.8), atol=1e-10)
    ground = strips.lattice_ground_energy(system, shape)
    assert torch.allclose(ground, enumeration.ground_states(system).energy, atol=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 2.269185314, 5.0])
def test_a_torus_is_kaufmans_by_sweep_and_by_spectrum(temperature):
    for length, width in ((7, 5), (30, 6)):
        exact = ising_exact.torus_log_partition((length, width), temperature)
        system = ising(graphs.torus(length, width), length * width)
        swept = strips.lattice_log_partition(system, (length, width), 1 / temperature)
        assert float(swept) == pytest.approx(exact, abs=1e-6)  # Kaufman is evaluated 1e-9 beside T_c
        assert strips.strip_log_partition(length, width, 1 / temperature) == pytest.approx(exact, abs=1e-6)


def test_open_rows_and_antiferromagnets_have_the_spectrum_of_their_sums():
    for coupling in (1.0, -1.0):
        pairs = torch.cat([graphs.grid(3, 4), torch.tensor([[i, 8 + i] for i in range(4)])])
        exact = enumeration.log_partition(ising(pairs, 12, coupling, 0.3), 0.6)
        found = strips.strip_log_partition(3, 4, 0.6, coupling, 0.3, periodic=False)
        assert found == pytest.approx(float(exact), abs=1e-10)


def test_critical_strips_have_the_free_energy_and_the_correlation_length_of_conformal_invariance():
    beta = 1 / ising_exact.SQUARE_CRITICAL_TEMPERATURE
    limit = ising_exact.square_free_energy(1 / beta)
    for width in (6, 9):
        # beta f_W = beta f - pi c/(6 W^2), c = 1/2; corrections are of order W^-4 (Bloete, Cardy, Nightingale 1986).
        found = -(strips.strip_free_energy_density(width, beta) - limit) * beta * 6 * width**2 / math.pi
        assert found == pytest.approx(0.5, abs=1.5 / width**2)
        # xi = W/(pi eta), eta = 1/4 (Cardy 1984).
        assert strips.strip_correlation_length(width, beta) == pytest.approx(4 * width / math.pi, rel=1 / width**2)


def test_far_from_criticality_a_strip_is_the_infinite_lattice():
    for temperature in (1.2, 6.0):
        assert strips.strip_free_energy_density(9, 1 / temperature) == pytest.approx(
            ising_exact.square_free_energy(temperature), abs=2e-6
        )


def test_ground_energies_of_many_glasses_agree_with_every_orientation():
    glass = edwards_anderson((6, 5), Key.of(11), "binary", (4,))
    turned = torch.arange(30).reshape(6, 5).T.reshape(-1).argsort()
    other = Ising(turned[glass.pairs], glass.couplings, glass.fields)
    first, second = strips.lattice_ground_energy(glass, (6, 5)), strips.lattice_ground_energy(other, (5, 6))
    assert first.tolist() == second.tolist()
    assert all(float(e) % 2 == 0 for e in first)


def test_pairs_beyond_neighbours_and_rows_too_wide_are_refused():
    with pytest.raises(ConfigError, match="no neighbours"):
        strips.lattice_log_partition(ising(graphs.complete(6), 6), (3, 2), 1.0)
    with pytest.raises(ConfigError, match="too wide"):
        strips.lattice_ground_energy(ising(graphs.torus(13, 13), 169), (13, 13))
    with pytest.raises(ConfigError, match="has 12 spins, the system 9"):
        strips.lattice_log_partition(ising(graphs.torus(3, 3), 9), (3, 4), 1.0)
    with pytest.raises(ConfigError, match="1 to 11"):
        strips.strip_spectrum(12, 1.0)
