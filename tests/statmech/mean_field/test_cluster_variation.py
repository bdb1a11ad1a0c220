"""Kikuchi's plaquette approximation: its critical point, and its place between Bethe and the truth."""

from __future__ import annotations

import pytest
import torch

from mfmarl.statmech.energies.spins import free_spins
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.exact import ising as ising_exact
from mfmarl.statmech.mean_field import cluster_variation


def test_the_critical_temperature_is_kikuchis():
    # 2.4257 J: Kikuchi 1951; Pelizzola 2005 (J. Phys. A 38, R309).
    assert cluster_variation.critical_temperature() == pytest.approx(2.4257, abs=5e-5)
    assert cluster_variation.square_lattice(2.42).magnetisation > 0.1
    assert abs(float(cluster_variation.square_lattice(2.44).magnetisation)) < 1e-4


@pytest.mark.parametrize("temperature", [1.8, 2.0, 3.0, 4.0])
def test_plaquettes_are_nearer_to_the_truth_than_pairs(temperature):
    found = cluster_variation.square_lattice(temperature)
    assert bool(found.converged)
    exact = ising_exact.square_free_energy(temperature)
    bethe = ising_exact.bethe_free_energy(4, temperature)
    assert abs(float(found.free_energy) - exact) < abs(bethe - exact) / 4
    assert float(found.energy) == pytest.approx(ising_exact.square_energy(temperature), abs=0.02)


def test_the_energy_is_the_derivative_of_the_free_energy():
    t, step = 2.1, 1e-4
    # U = F + T S and S = -dF/dT: the state is stationary, so only the explicit temperature counts.
    up, here, down = (float(cluster_variation.square_lattice(x, 1.0, 0.1).free_energy) for x in (t + step, t, t - step))
    slope = (up - down) / (2 * step)
    assert here - t * slope == pytest.approx(float(cluster_variation.square_lattice(t, 1.0, 0.1).energy), abs=1e-6)


def test_without_coupling_spins_are_free():
    found = cluster_variation.square_lattice(1.0, 0.0, 0.7)
    free = enumeration.thermodynamics(free_spins(1, 0.7), 1.0)
    assert float(found.free_energy) == pytest.approx(float(free.free_energy), abs=1e-10)
    assert float(found.magnetisation) == pytest.approx(float(torch.tanh(torch.tensor(0.7))), abs=1e-6)
