"""Heat-bath dynamics of whole distributions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.spins import ising, sherrington_kirkpatrick
from mfmarl.statmech.exact import dynamics, enumeration


def test_the_gibbs_distribution_stays_under_every_spin():
    glass = sherrington_kirkpatrick(7, Key.of(1), (2,))
    levels = enumeration.energies(glass)
    for beta in (0.0, 0.7, 5.0):
        p = enumeration.probabilities(glass, beta)
        for spin in range(7):
            assert torch.allclose(dynamics.heat_bath_spin(p, levels, beta, spin), p, atol=1e-14)


def test_the_free_energy_of_a_distribution_only_falls_and_ends_at_the_true_one():
    glass = sherrington_kirkpatrick(8, Key.of(2))
    levels, beta = enumeration.energies(glass), 0.9
    p = torch.zeros(256, dtype=torch.float64)
    p[77] = 1
    free = [float(dynamics.free_energy_of(p, levels, beta))]
    for _ in range(60):
        for spin in range(8):
            p = dynamics.heat_bath_spin(p, levels, beta, spin)
            free.append(float(dynamics.free_energy_of(p, levels, beta)))
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(free))
    assert free[-1] == pytest.approx(float(enumeration.thermodynamics(glass, beta).free_energy), abs=1e-6)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)


def test_one_spin_is_drawn_from_its_conditional():
    pair = ising(graphs.grid(2), 2, 1.0, 0.3)
    start = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)  # up, down
    after = dynamics.heat_bath_spin(start, enumeration.energies(pair), 0.8, 1)
    up = 1 / (1 + math.exp(-2 * 0.8 * 1.3))
    assert after.tolist() == pytest.approx([0, 0, 1 - up, up], abs=1e-14)


def test_slower_cooling_ends_in_ground_states_more_often_than_quenches():
    # Over many glasses: on one of them a quench may win. (On a ring it always does: walls diffuse at T = 0.)
    levels = enumeration.energies(sherrington_kirkpatrick(10, Key.of(5), (60,)))
    ground = levels < levels.amin(-1, keepdim=True) + 1e-9

    def chance(betas: torch.Tensor) -> float:
        return float((dynamics.annealed(levels, betas.double()) * ground).sum(-1).mean())

    slower = [chance(torch.logspace(-0.5, 1.5, k)) for k in (2, 8, 32, 128)]
    assert slower == sorted(slower)
    assert slower[-1] > chance(torch.full((128,), math.inf)) + 0.1


def test_a_spin_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="know no spin 3"):
        dynamics.heat_bath_spin(torch.ones(8) / 8, torch.zeros(8), 1.0, 3)
