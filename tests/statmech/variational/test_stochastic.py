"""Stochastic variational inference finds the Gaussian of least free energy, and is calibrated where it is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import DoubleWell, Gaussian
from mfmarl.statmech.exact.regression import LinearRegression
from mfmarl.statmech.variational import free_energy, stochastic


def _normal(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    return random.normal(Key.of(seed), ids, shape[-1]).double()


ENERGY = Gaussian(
    torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64),
    torch.tensor([[2.0, 0.8, 0.0], [0.8, 1.5, -0.4], [0.0, -0.4, 1.0]], dtype=torch.float64),
)


def test_a_full_gaussian_finds_a_gaussian_exactly_for_the_gradients_noise_dies_out():
    temperature = 0.7
    found = stochastic.fit(
        ENERGY, torch.zeros(3).double(), key=Key.of(1), covariance="full", temperature=temperature, steps=1500
    )
    torch.testing.assert_close(found.mean, ENERGY.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.covariance, ENERGY.covariance * temperature, rtol=0, atol=1e-6)
    f, error = found.free_energy(ENERGY, temperature, Key.of(2))
    assert float(f) == pytest.approx(-temperature * float(ENERGY.log_partition(1 / temperature)), abs=1e-6)
    assert float(error) < 1e-6


def test_independent_gaussians_find_the_variances_of_mean_field():
    found = stochastic.fit(ENERGY, torch.zeros(32, 3).double(), key=Key.of(3), steps=1500)
    for values, exact in ((found.mean, ENERGY.mean), (found.scale.log(), -ENERGY.precision.diagonal().log() / 2)):
        error = values.std(0) / math.sqrt(32)
        # Antithetic draws take all noise from the mean: the rest is where Adam stops.
        assert bool(((values.mean(0) - exact).abs() < 5 * error + 1e-6).all())
        assert float(error.max()) < 0.01
    exact_f = free_energy.of_gaussian(ENERGY, ENERGY.mean, torch.diag(1 / ENERGY.precision.diagonal()))
    f, error = found.free_energy(ENERGY, 1.0, Key.of(4), 20_000)
    assert abs(float(f.mean() - exact_f)) < 5 * float(error.mean()) / math.sqrt(32) + 1e-3
    assert bool((f > -ENERGY.log_partition() - 5 * error).all())


def test_minibatches_find_what_all_the_data_say():
    x = _normal(5, 60, 2)
    model = LinearRegression(x, x @ torch.tensor([1.0, -1.0]).double() + _normal(6, 60, 1)[:, 0], 1.0, 1.0)

    fits = 32

    def minibatch(key: Key) -> stochastic.Energy:
        rows = random.integers(key, torch.arange(fits), 60, 20)  # every fit its own twenty
        inputs, targets = model.inputs[rows], model.targets[rows]

        def estimate(w: Tensor) -> Tensor:
            rest = (inputs @ w.unsqueeze(-1)).squeeze(-1) - targets
            return 3 * rest.square().sum(-1) / 2 + w.square().sum(-1) / 2

        return estimate

    start = torch.zeros(fits, 2).double()
    found = stochastic.fit(
        lambda w: -model.log_joint(w), start, key=Key.of(7), minibatch=minibatch, steps=1000, lr=0.02
    )
    mean, _ = model.posterior()
    for values, wanted in ((found.mean, mean), (found.scale.log(), -model.precision().diagonal().log() / 2)):
        error = values.std(0) / math.sqrt(fits)
        assert bool(((values.mean(0) - wanted).abs() < 5 * error).all())
        assert float(error.max()) < 0.01
    whole = stochastic.fit(lambda w: -model.log_joint(w), torch.zeros(2).double(), key=Key.of(8), covariance="full")
    f, _ = whole.free_energy(lambda w: -model.log_joint(w), 1.0, Key.of(9))
    assert float(f) == pytest.approx(-float(model.log_evidence()), abs=1e-5)


def test_a_gaussian_sits_in_one_well_of_two_and_its_free_energy_is_above_the_truth():
    well = DoubleWell()
    start = torch.tensor([[-1.5], [1.5]], dtype=torch.float64)
    found = stochastic.fit(well, start, key=Key.of(10), temperature=0.5, steps=1000)
    left, _, right = well.stationary_points
    assert float((found.mean[:, 0] - torch.tensor([left, right])).abs().max()) < 0.15
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    log_z = torch.logsumexp(-well(x.unsqueeze(-1)) / 0.5, 0) + math.log(12 / 20_000)
    f, error = found.free_energy(well, 0.5, Key.of(11), 20_000)
    assert bool((f - 5 * error > -0.5 * log_z).all())
    assert float(f[0]) < float(f[1])


def _ranks(covariance: str, fits: int = 400) -> Tensor:
    """Simulation-based calibration (Talts et al. 2018): ranks of the true weight among 19 draws of q."""
    x = _normal(12, 6, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.44]]).double()  # correlated weights
    truth = _normal(13, fits, 2)
    y = truth @ x.mT + 0.5 * _normal(14, fits, 6)

    def energy(w: Tensor) -> Tensor:
        return (w @ x.mT - y).square().sum(-1) / (2 * 0.25) + w.square().sum(-1) / 2

    found = stochastic.fit(energy, torch.zeros(fits, 2).double(), key=Key.of(15), covariance=covariance, steps=800)
    return (found.sample(Key.of(16), 19)[..., 0] < truth[:, 0]).sum(0)


def test_the_full_posterior_is_calibrated_and_the_factorised_one_is_too_sure():
    def chi_squared(ranks: Tensor) -> float:
        seen = torch.bincount(ranks // 4, minlength=5).double()
        expected = len(ranks) / 5
        return float(((seen - expected) ** 2 / expected).sum())

    # 4 degrees of freedom: 5 sigma of a normal is 37.3 here (p = 5.7e-7 two-sided gives chi^2 = 34.6).
    assert chi_squared(_ranks("full")) < 34.6
    ranks = _ranks("diagonal")
    assert chi_squared(ranks) > 34.6
    assert float((((ranks == 0) | (ranks == 19)).double()).mean()) > 0.15  # 0.1 if calibrated: too narrow


def test_a_fit_does_not_know_of_the_others_and_is_repeated_by_its_key():
    whole = stochastic.fit(ENERGY, torch.zeros(4, 3).double(), key=Key.of(1), steps=30)
    part = stochastic.fit(ENERGY, torch.zeros(2, 3).double(), key=Key.of(1), steps=30, ids=torch.tensor([2, 3]))
    torch.testing.assert_close(whole.mean[2:], part.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.scale[2:], part.scale, rtol=0, atol=1e-12)


def test_the_density_and_the_entropy_of_a_fit_are_a_gaussians():
    scale = torch.tensor([[0.5, 0.0], [0.3, 2.0]], dtype=torch.float64)
    full = stochastic.GaussianFit(torch.tensor([1.0, 2.0], dtype=torch.float64), scale)
    thin = stochastic.GaussianFit(full.mean, torch.tensor([0.5, 2.0], dtype=torch.float64))
    x = _normal(17, 5, 2)
    for fit in (full, thin):
        law = torch.distributions.MultivariateNormal(fit.mean, fit.covariance)
        torch.testing.assert_close(fit.log_density(x), law.log_prob(x))
        torch.testing.assert_close(fit.entropy(), law.entropy())
        draws = fit.sample(Key.of(18), 40_000)
        error = (fit.covariance.diagonal() / 40_000).sqrt()
        assert bool(((draws.mean(0) - fit.mean).abs() < 5 * error).all())


def test_options_that_cannot_be_used_are_refused():
    start = torch.zeros(2)
    for wrong in ({"draws": 3}, {"covariance": "banded"}, {"temperature": 0.0}, {"scale": 0.0}, {"steps": 0}):
        with pytest.raises(ConfigError):
            stochastic.fit(DoubleWell(), start, key=Key.of(1), **wrong)
