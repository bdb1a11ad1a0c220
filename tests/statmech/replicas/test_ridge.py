"""The risk of ridge regression in high dimensions: limits, its best penalty, and simulated students."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.replicas import ridge
from tests.statistical import beyond, statistical


@pytest.mark.parametrize(("load", "penalty"), [(0.5, 0.1), (1.0, 0.3), (2.5, 0.05)])
@statistical(alpha=beyond(5, 3, samples=160), bugs=("uniforms-lean", "wide-normals"))
def test_simulated_students_have_the_risk(load, penalty):
    n, tasks = 160, 60
    d = int(load * n)
    key = Key.of(1).fold(d)
    x = random.normal(key.fold("x"), torch.arange(tasks), n * d).double().reshape(tasks, n, d)
    w = random.normal(key.fold("w"), torch.arange(tasks), d).double() / math.sqrt(d)
    noise = math.sqrt(0.5) * random.normal(key.fold("noise"), torch.arange(tasks), n).double()
    y = (x @ w.unsqueeze(-1)).squeeze(-1) + noise
    gram = x.mT @ x / n + penalty * torch.eye(d, dtype=torch.float64)
    found = torch.linalg.solve(gram, x.mT @ y.unsqueeze(-1) / n).squeeze(-1)
    seen = (found - w).square().sum(-1)  # x is isotropic: this is the excess risk
    error = float(seen.std()) / math.sqrt(tasks)
    exact = ridge.risk(load, penalty, 0.5)
    assert abs(float(seen.mean()) - exact.total) < 5 * error + exact.total / n
    assert exact.total == pytest.approx(exact.bias + exact.variance)


def test_the_best_penalty_is_the_bayesians():
    for load in (0.3, 1.0, 3.0):
        best = ridge.best_ridge(load, 0.5, 2.0)
        at = ridge.risk(load, best, 0.5, 2.0).total
        assert at < ridge.risk(load, 1.02 * best, 0.5, 2.0).total
        assert at < ridge.risk(load, 0.98 * best, 0.5, 2.0).total


def test_without_a_penalty_the_risk_diverges_where_weights_equal_examples():
    for load in (0.5, 0.9, 1.2, 4.0):
        limit = ridge.risk(load, 1e-9).total
        assert ridge.risk(load, 0.0).total == pytest.approx(limit, rel=1e-5)
    assert ridge.risk(1.0, 0.0).total == math.inf
    assert ridge.risk(0.99, 0.0).total > 50 > ridge.risk(3.0, 0.0).total
    assert ridge.risk(2.0, 1e9).total == pytest.approx(1, abs=1e-6)  # all weights 0: the whole signal is missed


def test_negative_penalties_are_refused():
    with pytest.raises(ConfigError, match="at least 0"):
        ridge.risk(1.0, -0.1)
