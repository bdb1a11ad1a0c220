"""Ridge in high dimension: the limit against regressions of 200 weights, and what it says at its ends."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.statmech.replicas import ridge


@pytest.mark.parametrize(("ratio", "penalty"), [(0.5, 0.1), (1.0, 0.3), (2.0, 0.05), (2.0, 1.0)])
def test_the_limit_is_what_regressions_find(ratio: float, penalty: float) -> None:
    p, noise, trials = 200, 0.5, 40
    n = round(p / ratio)
    g = torch.Generator().manual_seed(1)
    risks = []
    for _ in range(trials):
        teacher = torch.randn(p, generator=g, dtype=torch.float64)
        teacher /= teacher.norm()
        x = torch.randn(n, p, generator=g, dtype=torch.float64)
        y = x @ teacher + math.sqrt(noise) * torch.randn(n, generator=g, dtype=torch.float64)
        found = torch.linalg.solve(x.T @ x / n + penalty * torch.eye(p), x.T @ y / n)
        risks.append((found - teacher).square().sum())
    seen = torch.stack(risks)
    # Five standard errors, and the 1/p by which a finite system differs.
    assert (
        abs(float(seen.mean()) - sum(ridge.risk(ratio, penalty, noise))) <= 5 * float(seen.std()) / trials**0.5 + 2 / p
    )


def test_without_a_penalty_the_risk_has_its_peak_at_interpolation() -> None:
    # gamma < 1: variance sigma^2 gamma/(1 - gamma), no bias; above: r^2 (1 - 1/gamma), sigma^2/(gamma - 1).
    assert ridge.risk(0.5, 1e-9, 1.0) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert ridge.risk(2.0, 1e-9, 1.0) == pytest.approx((0.5, 1.0), abs=1e-6)
    assert sum(ridge.risk(1.0, 1e-9, 1.0)) > 1e3


def test_the_best_penalty_is_the_bayesians() -> None:
    best = ridge.best_penalty(1.5, 0.4)
    at = [sum(ridge.risk(1.5, best * factor, 0.4)) for factor in (0.9, 1.0, 1.1)]
    assert at[1] < min(at[0], at[2])
    # There bias and variance add up to sigma^2 gamma m(-lambda).
    away = 1 - 1.5 + best
    m = (-away + math.sqrt(away**2 + 4 * 1.5 * best)) / (2 * 1.5 * best)
    assert at[1] == pytest.approx(0.4 * 1.5 * m)


def test_what_is_no_regression_is_refused() -> None:
    with pytest.raises(ConfigError, match="penalty"):
        ridge.risk(1.0, 0.0, 1.0)
    with pytest.raises(ConfigError, match="variances"):
        ridge.risk(1.0, 1.0, -1.0)
