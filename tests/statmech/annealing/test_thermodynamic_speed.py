"""Even thermodynamic length: against the closed form of free spins, and the least waste."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.annealing import thermodynamic_speed
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.spins import free_spins, ising
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.sampling.single_spin import heat_bath
from tests.statistical import beyond, statistical


def test_free_spins_have_the_gudermannian_for_a_length():
    # Var H = n/cosh^2 beta: lambda = sqrt(n) gd(beta), gd = 2 atan tanh(beta/2).
    grid = torch.linspace(0, 4, 4001, dtype=torch.float64)
    deviations = 3 / torch.cosh(grid)
    betas = thermodynamic_speed.constant_speed(grid, deviations, 11)
    length = 2 * torch.atan(torch.tanh(betas / 2))
    assert length.diff().tolist() == pytest.approx([float(length[-1]) / 10] * 10, abs=1e-6)
    assert thermodynamic_speed.thermodynamic_length(grid, deviations) == pytest.approx(3 * float(length[-1]), abs=1e-6)
    assert float(betas[0]) == 0 and float(betas[-1]) == 4


def _waste(system, betas: torch.Tensor) -> float:
    """sum KL(p_{k+1} || p_k): the work lost by equilibrating after each jump, in units of T."""
    p = [enumeration.probabilities(system, float(b)) for b in betas]
    return sum(float((b * (b / a).log()).sum()) for a, b in itertools.pairwise(p))


def test_even_steps_waste_the_least_and_as_much_as_the_length_says():
    system = ising(graphs.torus(3, 3), 9)
    grid = torch.linspace(0, 1.2, 400, dtype=torch.float64)
    deviations = torch.stack([enumeration.thermodynamics(system, float(b)).heat_capacity.sqrt() / b for b in grid[1:]])
    deviations = torch.cat([torch.tensor([math.sqrt(18.0)]).double(), deviations])
    steps = 40
    even = thermodynamic_speed.constant_speed(grid, deviations, steps + 1)
    linear = torch.linspace(0, 1.2, steps + 1, dtype=torch.float64)
    geometric = torch.cat([torch.zeros(1), torch.logspace(-2, math.log10(1.2), steps)]).double()
    wasted = _waste(system, even)
    assert wasted < _waste(system, linear) and wasted < _waste(system, geometric)
    length = thermodynamic_speed.thermodynamic_length(grid, deviations)
    assert wasted == pytest.approx(length**2 / (2 * steps), rel=0.05)


def test_it_waits_where_relaxation_is_slow():
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    slow = torch.where(grid < 0.5, 1.0, 9.0)
    betas = thermodynamic_speed.constant_speed(grid, torch.ones(101), 5, slow)
    assert betas.tolist() == pytest.approx([0, 0.5, 0.5 + 1 / 6, 0.5 + 1 / 3, 1], abs=0.01)


@statistical(alpha=beyond(5, 4), bugs=("hot-heat-bath", "draws-repeat"))
def test_a_pilot_run_finds_the_deviations():
    system = free_spins(16, 1.0)
    betas = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    start = system.random_states((2000,), Key.of(1))
    found = thermodynamic_speed.measured_deviations(heat_bath(system), system, start, betas, Key.of(2), sweeps=4)
    exact = 4 / torch.cosh(betas)
    # 2 x 2000 independent draws: a standard deviation is known to 1/sqrt(2 x 4000).
    assert bool(((found / exact - 1).abs() < 5 * 1.5 / math.sqrt(8000)).all())


def test_grids_that_go_down_are_refused():
    with pytest.raises(ConfigError, match="go up"):
        thermodynamic_speed.constant_speed(torch.tensor([1.0, 0.5]), torch.ones(2), 3)
    with pytest.raises(ConfigError, match="no thermodynamic length"):
        thermodynamic_speed.constant_speed(torch.tensor([0.5, 1.0]), torch.zeros(2), 3)
