"""Unequal classes: weights that balance, and Bayes' intercept."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import imbalance
from tests.statistical import beyond, statistical

LABELS = torch.tensor([0] * 90 + [1] * 9 + [2])


def test_shares_weights_and_probabilities_balance_the_classes() -> None:
    shares = imbalance.class_shares(LABELS, 3)
    assert torch.allclose(shares, torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64))
    weights = imbalance.class_weights(shares)
    assert torch.allclose(weights * shares, torch.full((3,), 1 / 3).double())
    assert torch.equal(imbalance.class_weights(shares, power=0.0), torch.ones(3).double())
    probability = imbalance.sample_probabilities(LABELS, 3)
    assert math.isclose(float(probability.sum()), 1, rel_tol=1e-12)
    for label in range(3):
        assert math.isclose(float(probability[label == LABELS].sum()), 1 / 3, rel_tol=1e-12)


def test_bayes_intercept_at_one_per_cent() -> None:
    assert math.isclose(imbalance.intercept(0.01), -4.59511985, abs_tol=5e-9)
    balanced = torch.zeros(2).double()
    moved = imbalance.prior_shift(
        balanced, torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.99, 0.01], dtype=torch.float64)
    )
    assert math.isclose(float(moved[1] - moved[0]), -4.59511985, abs_tol=5e-9)


def test_the_shifted_posterior_of_two_gaussians_is_bayes() -> None:
    x = torch.linspace(-3, 3, 13).double()
    logits = torch.stack([-((x + 1) ** 2) / 2, -((x - 1) ** 2) / 2], -1)  # equal shares
    target = torch.tensor([0.8, 0.2], dtype=torch.float64)
    found = imbalance.prior_shift(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), target).softmax(-1)
    joint = target * logits.exp()
    assert torch.allclose(found, joint / joint.sum(-1, keepdim=True))


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "shifted-normals"))
def test_logistic_regression_on_balanced_draws_misses_exactly_the_intercept() -> None:
    """Weighted to equal classes, the optimum has intercept 0 (to the sampling error); unweighted it has log-odds."""
    share, n = 0.1, 40_000
    ids = torch.arange(n)
    y = (random.uniform(Key.of(5), ids) < share).double()
    x = random.normal(Key.of(6), ids).double() + 2 * y - 1
    shares = imbalance.class_shares(y.long(), 2)
    for weights, wanted in (
        (imbalance.class_weights(shares)[y.long()], 0.0),
        (torch.ones(n), imbalance.intercept(share)),
    ):
        theta = torch.zeros(2).double()
        features = torch.stack([torch.ones(n).double(), x], -1)
        for _ in range(25):  # Newton
            p = torch.sigmoid(features @ theta)
            slope = features.mT @ (weights * (y - p))
            curvature = features.mT @ (features * (weights * p * (1 - p)).unsqueeze(-1))
            theta = theta + torch.linalg.solve(curvature, slope)
        # Sandwich error of the intercept.
        score = features * (weights * (y - p)).unsqueeze(-1)
        inverse = torch.linalg.inv(curvature)
        error = float((inverse @ (score.mT @ score) @ inverse)[0, 0].sqrt())
        assert abs(float(theta[0]) - wanted) < 5 * error
        assert abs(float(theta[1]) - 2) < 0.2


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "shifted-normals"))
def test_unknown_shares_are_found_from_unlabelled_data() -> None:
    n, target = 50_000, torch.tensor([0.8, 0.2], dtype=torch.float64)
    ids = torch.arange(n)
    y = (random.uniform(Key.of(7), ids) < 0.2).double()
    x = random.normal(Key.of(8), ids).double() + 2 * y - 1
    posterior = torch.stack([-x, x], -1).softmax(-1)  # exact for equal shares
    even = torch.tensor([0.5, 0.5], dtype=torch.float64)
    found = imbalance.estimated_shares(posterior, even)
    # The error of a maximum-likelihood mixture weight: 1/sqrt(n I).
    density = target * posterior / even
    score = (posterior[:, 1] / 0.5 - posterior[:, 0] / 0.5) / density.sum(-1)
    error = 1 / math.sqrt(float(score.square().sum()))
    assert abs(float(found[1]) - 0.2) < 5 * error


def test_missing_classes_and_impossible_shares_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"missing: \[3\]"):
        imbalance.class_shares(LABELS, 4)
    with pytest.raises(ConfigError, match="'target'"):
        imbalance.prior_shift(torch.zeros(2), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        imbalance.intercept(1.0)
