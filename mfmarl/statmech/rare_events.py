r"""Probabilities too small to count: exponential tilting and the cross-entropy method.

$$ p_\theta(x) = e^{\theta x - K(\theta)} p(x), \qquad w = e^{K(\theta) - \theta x}, \qquad K'(\theta^*) = \text{threshold} $$

The tilt that makes the threshold typical is optimal to exponential order (Siegmund 1976; Owen 2013, chapter 9).
P(x > 4) = 3.167e-5 of a standard normal: 1,000 tilted samples know it to 7 %, plain counting would need 7 million.
Cross-entropy method: Rubinstein and Kroese 2004, "The cross-entropy method", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech import importance
from mfmarl.statmech.importance import Estimate


class Proposal(NamedTuple):
    """What the cross-entropy method found: a Gaussian per coordinate [d], and the levels it climbed."""

    mean: Tensor
    deviation: Tensor
    levels: list[float]


def tilt(cumulant: Callable[[Tensor], Tensor], threshold: float, low: float = -50.0, high: float = 50.0) -> float:
    """theta with K'(theta) = threshold, by bisection: K is convex. Raises ConfigError if it lies outside [low, high].

    `cumulant` maps theta (0-dim float64) to K = log E exp(theta x), by differentiable operations.
    """

    def slope(theta: float) -> float:
        at = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        (value,) = torch.autograd.grad(cumulant(at), at)
        return float(value)

    if not slope(low) <= threshold <= slope(high):
        raise ConfigError(f"No tilt between {low:g} and {high:g} makes {threshold:g} the mean: it is out of reach.")
    for _ in range(200):
        middle = (low + high) / 2
        if slope(middle) < threshold:
            low = middle
        else:
            high = middle
        if high - low < 1e-14 * max(1.0, abs(high)):
            break
    return (low + high) / 2


def gaussian_tail(threshold: float, samples: int, key: Key, theta: float | None = None) -> Estimate:
    """P(x > threshold) of a standard normal from N(theta, 1) (default: the threshold itself), unbiased."""
    theta = threshold if theta is None else theta
    x = random.normal(key, torch.arange(samples)).double() + theta
    return importance.estimate(
        (x > threshold).double(), theta * theta / 2 - theta * x, self_normalised=False, warn=False
    )


def cross_entropy_proposal(
    score: Callable[[Tensor], Tensor],
    dimension: int,
    level: float,
    key: Key,
    *,
    samples: int = 2000,
    elite: float = 0.1,
    rounds: int = 50,
    adapt_deviation: bool = False,
) -> Proposal:
    """A Gaussian proposal for the event score(x) >= level under x ~ N(0, 1)^d.

    Each round raises a level to the best `elite` share of the samples (at most to the one asked for) and moves the
    proposal to the weighted mean (and deviation, if asked: it then may become too narrow, never below .8 here) of
    those above. `score` maps [n, d] to [n]. Raises NumericFault if the level is not reached within `rounds`.
    """
    if not 0 < elite < 1 or samples * elite < 2:
        raise ConfigError(f"The elite share must be between 0 and 1 and of 2 samples at least, not {elite:g}.")
    mean, deviation = torch.zeros(2, dimension, dtype=torch.float64)
    deviation = deviation + 1
    levels: list[float] = []
    for turn in range(rounds):
        x = mean + deviation * random.normal(key.fold("climb", turn), torch.arange(samples), dimension).double()
        value = score(x)
        reached = min(level, float(torch.quantile(value, 1 - elite)))
        above = value >= reached
        weight = importance.normalised(torch.where(above, gaussian_log_weights(x, mean, deviation), -math.inf))
        mean = (weight.unsqueeze(-1) * x).sum(0)
        if adapt_deviation:
            # Below sqrt(1/2) the weights have no variance.
            deviation = (weight.unsqueeze(-1) * (x - mean).square()).sum(0).sqrt().clamp(min=0.8)
        levels.append(reached)
        if reached >= level:
            return Proposal(mean, deviation, levels)
    raise NumericFault(
        f"The cross-entropy method reached level {levels[-1]:.4g} of {level:.4g} in {rounds} rounds; "
        "give it more samples or a larger elite share."
    )


def cross_entropy_tail(
    score: Callable[[Tensor], Tensor],
    dimension: int,
    level: float,
    key: Key,
    *,
    samples: int = 10000,
    elite: float = 0.1,
) -> Estimate:
    """P(score(x) >= level) for x ~ N(0, 1)^d: fresh samples of the proposal found by the cross-entropy method."""
    found = cross_entropy_proposal(score, dimension, level, key, samples=samples, elite=elite)
    x = found.mean + found.deviation * random.normal(key.fold("estimate"), torch.arange(samples), dimension).double()
    log_weights = gaussian_log_weights(x, found.mean, found.deviation)
    return importance.estimate((score(x) >= level).double(), log_weights, self_normalised=False, warn=False)


def gaussian_log_weights(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """log N(x; 0, 1) - log N(x; mean, deviation^2), [*b] of x [*b, d]."""
    away = (x - mean) / deviation
    return ((away * away - x * x) / 2 + deviation.log()).sum(-1)
