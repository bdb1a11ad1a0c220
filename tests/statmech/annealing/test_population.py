"""Population annealing: partition functions against enumeration and Gaussians, families, equilibrium at the end."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import weighted_sampling
from mfmarl.statmech.annealing import population
from mfmarl.statmech.energies.continuous import Gaussian
from mfmarl.statmech.energies.spins import sherrington_kirkpatrick
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.sampling.langevin import mala
from mfmarl.statmech.sampling.single_spin import heat_bath
from tests.statistical import beyond, statistical


@statistical(alpha=beyond(5, 4, samples=400), bugs=("hot-heat-bath", "cold-partition"))
def test_the_ratio_of_partition_functions_is_unbiased_and_the_copies_end_in_equilibrium():
    glass = sherrington_kirkpatrick(10, Key.of(1))
    betas = torch.linspace(0, 2, 11, dtype=torch.float64)
    populations = 400
    start = glass.random_states((populations, 50), Key.of(2))
    found = population.anneal_population(heat_bath(glass), glass, start, betas, Key.of(3))
    for step in (1, 5, 10):
        exact = float(enumeration.log_partition(glass, float(betas[step]))) - 10 * math.log(2)
        ratio = (found.log_ratio[step] - exact).exp()
        error = float(ratio.std()) / math.sqrt(populations)
        assert abs(float(ratio.mean()) - 1) < 5 * error and error < 0.05, step
    # The estimate weights each population's average by its own ratio: unbiased too.
    weight = (found.log_ratio[-1] - found.log_ratio[-1].mean()).exp()
    mean = (weight * found.energies.mean(-1)).sum() / weight.sum()
    exact = float(enumeration.thermodynamics(glass, 2.0).energy)
    away = weight * (found.energies.mean(-1) - mean) / weight.mean()
    assert abs(float(mean) - exact) < 5 * float(away.std()) / math.sqrt(populations)
    low = enumeration.ground_states(glass).energy
    assert (
        bool((found.best_energy >= low - 1e-9).all()) and float((found.best_energy < low + 1e-9).double().mean()) > 0.9
    )
    assert torch.allclose(glass(found.best_state), found.best_energy)


def test_the_variance_of_log_z_is_bounded_by_the_families():
    glass = sherrington_kirkpatrick(12, Key.of(5))
    start = glass.random_states((300, 60), Key.of(6))
    found = population.anneal_population(
        heat_bath(glass), glass, start, torch.linspace(0, 3, 21, dtype=torch.float64), Key.of(7)
    )
    rho = found.mean_square_family
    assert bool((rho >= 1).all()) and bool((rho <= 60).all())
    assert bool((found.entropic_family <= rho + 1e-9).all())  # entropy is never below that of order 2
    variance = float(found.log_ratio[-1].var())
    assert variance < 2 * float(rho.mean()) / 60
    assert bool((found.family >= 0).all()) and bool((found.family < 60).all())


@statistical(alpha=beyond(5, 1, samples=50), bugs=("hot-heat-bath", "cold-partition"))
def test_an_adaptive_ladder_keeps_enough_copies_and_is_right():
    glass = sherrington_kirkpatrick(10, Key.of(1))
    start = glass.random_states((50, 400), Key.of(8))
    found = population.anneal_population_adaptively(heat_bath(glass), glass, start, 0.0, 2.0, Key.of(9))
    assert float(found.betas[0]) == 0 and float(found.betas[-1]) == 2 and 5 < len(found.betas) < 60
    exact = float(enumeration.log_partition(glass, 2.0)) - 10 * math.log(2)
    log_z = found.log_ratio[-1]
    # The logarithm is low by half its variance, of order 1/R.
    bias = float(log_z.var()) / 2
    assert abs(float(log_z.mean()) - exact) < 5 * float(log_z.std()) / math.sqrt(50) + bias


@statistical(alpha=beyond(5), bugs=("wide-sampler-noise", "uniforms-lean"))
def test_continuous_systems_are_annealed_by_their_own_sweeps():
    gauss = Gaussian(torch.tensor([1.0, -0.5]).double(), torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double())
    # Equilibrium at beta = .5 to begin with.
    root = torch.linalg.cholesky(gauss.covariance / 0.5)
    ids = torch.arange(100 * 60).reshape(100, 60)
    start = gauss.mean + random.normal(Key.of(1), ids, 2).double() @ root.T
    betas = torch.linspace(0.5, 4, 12, dtype=torch.float64)
    found = population.anneal_population(mala(gauss, 0.2, 3), gauss, start, betas, Key.of(2))
    exact = float(gauss.log_partition(4.0) - gauss.log_partition(0.5))
    ratio = (found.log_ratio[-1] - exact).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 10


@statistical(alpha=beyond(5, 5), bugs=("resampled-flat", "bits-lean"))
def test_copies_are_redrawn_in_proportion_to_their_weights():
    weights = torch.tensor([0.05, 0.3, 0.0, 0.45, 0.2]).log()
    source = weighted_sampling.resample(weights.expand(4000, 5), torch.arange(4000), Key.of(1))
    counts = torch.zeros(4000, 5).scatter_add(1, source, torch.ones(4000, 5))
    expected = 5 * weights.exp()
    assert bool((counts >= expected.floor() - 1e-6).all()) and bool((counts <= (expected + 1e-6).ceil()).all())
    spread = ((expected - expected.floor()) * (expected.ceil() - expected) / 4000).sqrt()
    assert bool(((counts.mean(0) - expected).abs() <= 5 * spread + 1e-3).all())


def test_a_population_does_not_know_of_others():
    glass = sherrington_kirkpatrick(8, Key.of(1))
    start, betas = glass.random_states((5, 20), Key.of(2)), torch.linspace(0, 1, 5, dtype=torch.float64)
    together = population.anneal_population(heat_bath(glass), glass, start, betas, Key.of(3))
    alone = population.anneal_population(heat_bath(glass), glass, start[3:4], betas, Key.of(3), ids=torch.tensor([3]))
    assert torch.equal(alone.states[0], together.states[3])
    assert torch.equal(alone.log_ratio[:, 0], together.log_ratio[:, 3])


def test_schedules_that_go_down_and_single_copies_are_refused():
    glass = sherrington_kirkpatrick(4, Key.of(1))
    start = glass.random_states((2,), Key.of(2))
    with pytest.raises(ConfigError, match="go up"):
        population.anneal_population(heat_bath(glass), glass, start, torch.tensor([1.0, 0.5]), Key.of(3))
    with pytest.raises(ConfigError, match="at least 2 copies"):
        population.anneal_population(heat_bath(glass), glass, start[:1], torch.tensor([0.5, 1.0]), Key.of(3))
