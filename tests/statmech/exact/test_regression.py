"""Linear regression against quadrature, thermodynamic integration and the zero-temperature expansion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.exact import regression
from mfmarl.statmech.exact.regression import LinearRegression


def _data(n: int = 6, d: int = 3) -> tuple[Tensor, Tensor]:
    ids = torch.arange(n)
    x = random.normal(Key.of(1), ids, d).double()
    return x, x @ torch.linspace(-1, 1, d).double() + 0.5 * random.normal(Key.of(2), ids).double()


def test_evidence_and_posterior_are_those_of_quadrature():
    x, y = _data(5, 2)
    model = LinearRegression(x, y, 0.3, 0.8)
    axis = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    weight = (model.log_joint(grid)).exp() * float(axis[1] - axis[0]) ** 2
    assert float(weight.sum().log()) == pytest.approx(float(model.log_evidence()), abs=1e-10)
    mean = (weight.unsqueeze(-1) * grid).sum(0) / weight.sum()
    torch.testing.assert_close(mean, model.posterior()[0], rtol=0, atol=1e-10)
    away = grid - mean
    covariance = (weight.unsqueeze(-1) * away).mT @ away / weight.sum()
    torch.testing.assert_close(covariance, model.posterior()[1], rtol=0, atol=1e-10)


def test_the_evidence_is_the_density_of_the_targets_under_the_prior():
    x, y = _data()
    model = LinearRegression(x, y, 0.3, 0.8)
    covariance = 0.3 * torch.eye(6).double() + x @ x.mT / 0.8
    expected = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(y)
    assert float(model.log_evidence()) == pytest.approx(float(expected), abs=1e-11)


def test_thermodynamic_integration_over_powers_of_the_likelihood_gives_the_evidence():
    x, y = _data()
    model = LinearRegression(x, y, 0.1, 1.0)
    # beta = t^5 crowds the points where the integrand is steep.
    found, _ = integrate.quad(lambda t: float(model.mean_log_likelihood(t**5)) * 5 * t**4, 0, 1, epsabs=1e-11)
    assert found == pytest.approx(float(model.log_evidence()), abs=1e-9)
    assert float(model.log_evidence(0.0)) == pytest.approx(0, abs=1e-12)
    h = 1e-6
    slope = (model.log_evidence(0.4 + h) - model.log_evidence(0.4 - h)) / (2 * h)
    assert float(slope) == pytest.approx(float(model.mean_log_likelihood(0.4)), rel=1e-7)
    powers = [float(model.mean_log_likelihood(b)) for b in (0, 0.1, 0.5, 1)]
    assert powers == sorted(powers)  # d<log p>/d beta is a variance


def test_the_best_prior_is_where_the_evidence_is_greatest():
    x, y = _data()
    model = LinearRegression(x, y, 0.3)
    best = model.best_prior()
    assert float(model.evidence_slope(best)) == pytest.approx(0, abs=1e-9)
    evidence = lambda p: float(LinearRegression(x, y, 0.3, p).log_evidence())  # noqa: E731
    assert all(evidence(best) > evidence(best * f) for f in (0.5, 0.9, 1.1, 2.0))
    h = 1e-6
    slope = (evidence(0.7 * math.exp(h)) - evidence(0.7 * math.exp(-h))) / (2 * h)
    assert float(model.evidence_slope(0.7)) == pytest.approx(slope, rel=1e-6)
    # Targets that the inputs say nothing of: no weight is the best weight.
    assert LinearRegression(x, torch.zeros(6).double(), 0.3).best_prior(high=1e4) == pytest.approx(1e4)


def test_predictions_carry_the_noise_and_the_doubt():
    x, y = _data()
    model = LinearRegression(x, y, 0.3, 0.8)
    mean, variance = model.predict(torch.zeros(1, 3).double())
    assert float(mean) == 0 and float(variance) == pytest.approx(0.3)
    new, target = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64), 0.9
    mean, variance = model.predict(new)
    longer = LinearRegression(
        torch.cat([x, new]), torch.cat([y, torch.tensor([target], dtype=torch.float64)]), 0.3, 0.8
    )
    density = -0.5 * math.log(2 * math.pi * float(variance)) - (target - float(mean)) ** 2 / (2 * float(variance))
    assert float(longer.log_evidence() - model.log_evidence()) == pytest.approx(density, abs=1e-11)


@pytest.mark.parametrize("beta", [1.0, 10.0, 100.0, 1e4])
def test_the_free_energy_of_a_squared_loss_is_the_expansion_at_every_temperature(beta: float):
    x, y = _data(5, 1)
    found = float(regression.free_energy(x, y, beta))
    w0 = float(regression.ridge(x, y)[0])
    width = 12 / math.sqrt(2 * beta * float((x * x).sum()))
    w = torch.linspace(w0 - width, w0 + width, 20001, dtype=torch.float64)
    h = (x * w - y.unsqueeze(-1)).square().sum(0)
    log_z = torch.logsumexp(-beta * h, 0) + math.log(2 * width / 20000)
    assert found == pytest.approx(-float(log_z) / beta, rel=1e-10)
    # What only the leading term keeps is L_min: the correction is what the note's identity says, to the last digit.
    x, y = _data()
    gap = regression.free_energy(x, y, beta) - regression.least_loss(x, y)
    gap = gap - 3 / (2 * beta) * math.log(beta / math.pi) - torch.linalg.slogdet(x.mT @ x).logabsdet / (2 * beta)
    assert abs(float(gap)) < 1e-13


def test_cold_free_energy_is_the_least_loss_and_the_energy_is_equipartition():
    x, y = _data()
    for penalty in (0.0, 0.7):
        least = regression.least_loss(x, y, penalty)
        assert float(regression.free_energy(x, y, math.inf, penalty)) == float(least)
        beta, h = 2.0, 1e-5
        beta_f = [(b * regression.free_energy(x, y, b, penalty)) for b in (beta + h, beta - h)]
        u = float(beta_f[0] - beta_f[1]) / (2 * h)  # U = d(beta F)/d beta
        assert u == pytest.approx(float(regression.mean_energy(x, y, beta, penalty)), rel=1e-8)
        assert u == pytest.approx(float(least) + 3 / (2 * beta), rel=1e-8)


def test_ridge_is_the_mean_of_the_posterior():
    x, y = _data()
    s2, precision = 0.3, 0.8
    mean, _ = LinearRegression(x, y, s2, precision).posterior()
    torch.testing.assert_close(regression.ridge(x, y, s2 * precision), mean, rtol=0, atol=1e-12)
    expected, *_ = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)
    np.testing.assert_allclose(regression.ridge(x, y).numpy(), expected, atol=1e-12)


def test_flat_directions_without_a_prior_are_refused():
    x, y = _data(2, 3)
    for ask in (regression.ridge, regression.least_loss, lambda a, b: regression.free_energy(a, b, 1.0)):
        with pytest.raises(ConfigError, match=r"1 of 3 directions free.*prior"):
            ask(x, y)
    assert math.isfinite(float(regression.free_energy(x, y, 1.0, penalty=0.1)))
    with pytest.raises(ConfigError, match="variance"):
        LinearRegression(x, y, 0.0)
    with pytest.raises(ConfigError, match=r"\[n, d\]"):
        LinearRegression(x, y[:1])
