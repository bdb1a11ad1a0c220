"""Hamiltonian Monte Carlo: closed forms of one step, stationarity, calibration, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import DoubleWell, Gaussian
from mfmarl.statmech.exact import double_well
from mfmarl.statmech.sampling import chains, hamiltonian, noise
from mfmarl.statmech.sampling.hamiltonian import Metric, Tuned
from tests.statistical import beyond, statistical


def gaussian(n: int, seed: int = 0) -> Gaussian:
    root = noise.normal(Key.of(seed), torch.arange(n), n, torch.float64)
    return Gaussian(torch.arange(n).double(), root @ root.T / n + 0.3 * torch.eye(n, dtype=torch.float64))


def draws(energy: Gaussian, count: int, beta: float) -> torch.Tensor:
    """Independent draws, [count, n]."""
    factor = torch.linalg.cholesky(energy.covariance / beta)
    return energy.mean + noise.normal(Key.of(77), torch.arange(count), len(factor), torch.float64) @ factor.T


@pytest.mark.parametrize(("step", "published"), [(0.5, 0.990053625), (1.0, 0.920833152), (1.5, 0.745848168)])
@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "uniforms-narrow"))
def test_one_step_in_a_gaussian_is_accepted_as_the_closed_form_says(step, published):
    """The step maps the plane with singular values s, 1/s, s - 1/s = eps^3/4; so 2 P(gain) = 1 - (2/pi) atan(eps^3/8)."""
    assert 1 - 2 / math.pi * math.atan(step**3 / 8) == pytest.approx(published, abs=4e-9)
    count = 100_000
    x = noise.normal(Key.of(1), torch.arange(count), 1, torch.float64)
    unit = Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    moved = hamiltonian.transition(
        unit, Metric(torch.ones(1).double()), step, 1, x, 1.0, torch.arange(count), Key.of(2)
    )
    found = moved.acceptance
    assert abs(float(found.mean()) - published) < 5 * float(found.std()) / math.sqrt(count)
    share = float((moved.x != x).double().mean())
    assert abs(share - published) < 5 * math.sqrt(published * (1 - published) / count)
    # Mass 4 at twice the step, or a well four times as steep at half of it, is the same motion.
    heavy = hamiltonian.transition(
        unit, Metric(torch.full((1,), 0.25).double()), 2 * step, 1, x, 1.0, torch.arange(count), Key.of(2)
    )
    assert torch.allclose(heavy.acceptance, found, atol=1e-12)


@pytest.mark.parametrize("mass", ["unit", "diagonal", "dense"])
@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "numbers-lean"))
def test_a_gaussian_is_left_alone_whatever_the_masses(mass):
    n, beta, count = 4, 1.7, 40_000
    energy = gaussian(n)
    inverse = {
        "unit": torch.ones(n).double(),
        "diagonal": torch.tensor([0.5, 2.0, 1.0, 0.2]).double(),
        "dense": energy.covariance / beta,
    }[mass]
    start, ids = draws(energy, count, beta), torch.arange(count)
    moved = Tuned(0.5, 6, inverse).move(energy)(start, beta, ids, Key.of(3))
    assert 0.4 < float(moved.acceptance.mean()) < 0.999
    away = moved.x - energy.mean
    assert bool((away.mean(0).abs() < 5 * away.std(0) / math.sqrt(count)).all())
    sigma = energy.covariance / beta
    spread = ((sigma.diag().outer(sigma.diag()) + sigma**2) / count).sqrt()
    assert bool(((away.T @ away / count - sigma).abs() < 5 * spread).all())
    # It moved: an old and a new state have little in common.
    assert float(((start - energy.mean) * away).mean(0).div(sigma.diag()).max()) < 0.9


def test_the_double_well_is_left_alone_at_a_coarse_step():
    temperature, count = 1.5, 60_000
    x, p = double_well._weights(temperature, 1.0)
    cumulative = np.concatenate([[0.0], (p.cumsum() - p / 2)[1:]])
    start = torch.from_numpy(np.interp(np.random.default_rng(0).random(count), cumulative, x)).unsqueeze(-1)
    new = hamiltonian.hmc(DoubleWell(), 0.3, 5)(start, 1 / temperature, torch.arange(count), Key.of(2))
    exact = double_well.moments(temperature)
    for value, expected in ((new[:, 0], exact.mean), (DoubleWell()(new), exact.energy)):
        assert abs(float(value.mean()) - expected) < 5 * float(value.std()) / math.sqrt(count)


def test_a_trajectory_run_backwards_returns():
    energy, n = gaussian(3), 3
    metric = Metric(torch.tensor([0.5, 2.0, 1.0]).double())
    x, ids = draws(energy, 10, 1.0), torch.arange(10)
    there = hamiltonian.transition(energy, metric, 0.3, 7, x, 1.0, ids, Key.of(0))

    class Back(Metric):
        def draw(self, key: Key, ids: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            return -there.momentum

    back = hamiltonian.transition(energy, Back(metric.inverse_mass), 0.3, 7, there.proposal, 1.0, ids, Key.of(0))
    assert torch.allclose(back.proposal, x, atol=1e-12)
    assert x.shape[-1] == n and not torch.allclose(there.proposal, x, atol=0.1)


def test_dense_and_diagonal_masses_of_the_same_matrix_are_the_same():
    energy, inverse = gaussian(3), torch.tensor([0.5, 2.0, 1.0]).double()
    x, ids = draws(energy, 10, 1.0), torch.arange(10)
    one, other = (
        hamiltonian.transition(energy, Metric(m), 0.3, 5, x, 1.0, ids, Key.of(0)) for m in (inverse, inverse.diag())
    )
    assert torch.allclose(one.proposal, other.proposal, atol=1e-12)
    assert torch.allclose(one.acceptance, other.acceptance, atol=1e-12)


def test_a_chain_does_not_know_how_many_chains_there_are_and_a_sample_is_a_run():
    energy = gaussian(5)
    tuned = Tuned(0.4, 5, torch.ones(5).double())
    x, beta = draws(energy, 12, 1.0), torch.linspace(0.5, 2, 12).double()
    last, seen, report = hamiltonian.sample(energy, tuned, x, beta, Key.of(6), 9)
    other, observed = chains.run(tuned.sweep(energy), x, beta, Key.of(6), 9)
    assert torch.equal(last, other) and torch.equal(seen, observed)
    part, _ = chains.run(tuned.sweep(energy), x[4:6], beta[4:6], Key.of(6), 9, ids=torch.arange(4, 6))
    assert torch.allclose(part, last[4:6], rtol=1e-12)
    assert report.acceptance.shape == (12,) and not bool(report.divergences.any())


def test_a_sample_computes_one_gradient_per_leapfrog():
    count, energy = 0, gaussian(3)

    class Counted:
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return energy(x)

        def gradient(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += 1
            return energy.gradient(x)

    tuned = Tuned(0.9, 4, torch.ones(3).double(), jitter=False)  # coarse: many are refused
    x, _, report = hamiltonian.sample(Counted(), tuned, draws(energy, 50, 1.0), 1.0, Key.of(0), 10)
    assert count == 1 + 4 * 10 and float(report.acceptance.mean()) < 0.9
    moved = tuned.move(energy)(x, 1.0, torch.arange(50), Key.of(1))
    assert torch.allclose(moved.energy, energy(moved.x)) and torch.allclose(moved.slope, energy.gradient(moved.x))


def test_automatic_and_own_gradients_make_the_same_chains():
    energy, x = gaussian(3), torch.zeros(4, 3).double()
    own, _ = chains.run(hamiltonian.hmc(energy, 0.3, 4), x, 1.0, Key.of(1), 5)
    auto, _ = chains.run(hamiltonian.hmc(lambda y: energy(y), 0.3, 4), x, 1.0, Key.of(1), 5)
    assert torch.allclose(own, auto, atol=1e-10)


def test_lost_trajectories_are_refused_counted_and_warned_of():
    tuned = Tuned(3.0, 10, torch.ones(1).double(), jitter=False)
    start = torch.full((50, 1), 1.3).double()
    with pytest.warns(hamiltonian.Divergences, match="of 150 trajectories diverged"):
        last, _, report = hamiltonian.sample(DoubleWell(), tuned, start, 1.0, Key.of(0), 3)
    assert bool(torch.isfinite(last).all()) and int(report.divergences.sum()) > 100
    assert torch.equal(last[report.acceptance == 0], start[report.acceptance == 0])


def calibration(prior_scale: float) -> float:
    """p-value of the ranks of true weights among their posterior draws, for data made with a prior of scale 1."""
    replications, n, m, sigma, kept = 600, 3, 8, 0.7, 19
    ids = torch.arange(replications)
    design = noise.normal(Key.of(0), torch.arange(m), n, torch.float64)
    truth = noise.normal(Key.of(1), ids, n, torch.float64)
    y = truth @ design.T + sigma * noise.normal(Key.of(2), ids, m, torch.float64)

    def energy(w: torch.Tensor) -> torch.Tensor:
        return (y - w @ design.T).square().sum(-1) / (2 * sigma**2) + w.square().sum(-1) / (2 * prior_scale**2)

    sweep = hamiltonian.hmc(energy, 0.17, 16, jitter=True)
    start = noise.normal(Key.of(3), ids, n, torch.float64)
    _, seen = chains.run(sweep, start, 1.0, Key.of(4), kept * 4, warm_up=30, thin=4)
    ranks = (seen < truth).sum(0)
    # Weights of one data set are correlated, so each has a test of its own; the least p of three, Bonferroni.
    return min(3 * stats.chisquare(np.bincount(ranks[:, i].numpy(), minlength=kept + 1)).pvalue for i in range(n))


def test_posteriors_of_a_linear_regression_are_calibrated():
    """Simulation-based calibration (Talts et al. 2018): the rank of the truth among draws is uniform."""
    assert calibration(1.0) > 1e-3
    assert calibration(0.3) < 1e-6  # a wrong prior is seen


@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "steps-share-noise"))
def test_posteriors_of_a_linear_regression_are_the_conjugate_ones():
    design = noise.normal(Key.of(0), torch.arange(8), 3, torch.float64)
    y = noise.normal(Key.of(5), torch.arange(8), 1, torch.float64).squeeze(-1)
    precision = design.T @ design / 0.5 + torch.eye(3).double()
    mean = torch.linalg.solve(precision, design.T @ y / 0.5)

    def energy(w: torch.Tensor) -> torch.Tensor:
        return (y - w @ design.T).square().sum(-1) + w.square().sum(-1) / 2

    x, _ = chains.run(hamiltonian.hmc(energy, 0.2, 14, jitter=True), torch.zeros(8000, 3).double(), 1.0, Key.of(6), 25)
    covariance = torch.linalg.inv(precision)
    assert bool(((x.mean(0) - mean).abs() < 5 * (covariance.diag() / 8000).sqrt()).all())
    spread = ((covariance.diag().outer(covariance.diag()) + covariance**2) / 8000).sqrt()
    assert bool(((x.T.cov() - covariance).abs() < 5 * spread).all())


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="step size above 0"):
        hamiltonian.hmc(DoubleWell(), -0.1, 5)
    with pytest.raises(ConfigError, match="at least 1 step"):
        Tuned(0.1, 0, torch.ones(2))
    with pytest.raises(ConfigError, match="above 0, or a positive definite"):
        Metric(torch.tensor([1.0, 0.0]))
    with pytest.raises(ConfigError, match="positive definite"):
        Metric(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ConfigError, match="for states of 3"):
        Tuned(0.1, 2, torch.ones(2)).sweep(DoubleWell())(torch.zeros(4, 3), 1.0, torch.arange(4), Key.of(0))


@statistical(alpha=beyond(5, 200), bugs=("numbers-lean", "last-number-never"))
def test_jitter_draws_every_length_alike():
    lengths = [hamiltonian._length(Key.of(i), 5, True) for i in range(2000)]
    counts = np.bincount(lengths, minlength=6)
    assert counts[0] == 0 and stats.chisquare(counts[1:]).pvalue > 1e-4
    assert hamiltonian._length(Key.of(0), 5, False) == 5
    assert float(random.uniform(Key.of(0), torch.tensor(0))) < 1
