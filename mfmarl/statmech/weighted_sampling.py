r"""Drawing by weight: indices in proportion to weights, prioritised replay, and the weights that undo the priorities.

$$ P_i = \frac{p_i^\alpha}{\sum_j p_j^\alpha}, \qquad w_i = \frac{(N P_i)^{-\beta}}{\max_j (N P_j)^{-\beta}} $$

Schaul, Quan, Antonoglou and Silver 2016, "Prioritized experience replay" (ICLR, arXiv 1511.05952), eqs. 1 and
section 3.4; systematic resampling: Kitagawa 1996, J. Comp. Graph. Stat. 5(1).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.importance import normalised


def replay_probabilities(priority: Tensor, alpha: float) -> Tensor:
    """P [*b, n] of priorities p >= 0; alpha = 0 is uniform. Raises ConfigError for negative ones, NaN, or all zeros."""
    if not alpha >= 0:
        raise ConfigError(f"The exponent alpha of prioritised replay must be at least 0, not {alpha:g}.")
    if not bool((priority >= 0).all()) or not bool(torch.isfinite(priority).all()):
        raise ConfigError("Priorities must be finite numbers of at least 0.")
    if not bool((priority.amax(-1) > 0).all()):
        raise ConfigError("Every priority is 0: nothing can be drawn.")
    power = (priority / priority.amax(-1, keepdim=True)).pow(alpha)
    return power / power.sum(-1, keepdim=True)


def replay_weights(probability: Tensor, beta: float, among: Tensor | None = None) -> Tensor:
    """(N P)^-beta over the largest one: of `probability` [n], or of the rows `among` [*b] that were drawn from it.

    beta = 1 undoes the priorities: the mean over P of w f is in proportion to the plain mean of f. What was never
    drawable (P = 0) weighs nothing and does not count for the largest.
    """
    if not beta >= 0:
        raise ConfigError(f"The exponent beta of prioritised replay must be at least 0, not {beta:g}.")
    smallest = torch.where(probability > 0, probability, torch.ones_like(probability)).amin(-1, keepdim=True)
    weights = torch.where(probability > 0, (smallest / probability).pow(beta), torch.zeros_like(probability))
    return weights if among is None else weights[among]


def draw(probability: Tensor, ids: Tensor, key: Key) -> Tensor:
    """Indices int64 of the shape of `ids`, independently in proportion to `probability` [n] (any scale, in float64).

    Several distributions at once: probability [*m, n] and ids [*m, k].
    """
    cumulative = probability.double().cumsum(-1)
    level = _fine(key, ids) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, level, right=True).clamp_(max=probability.shape[-1] - 1)


def resample(
    log_weights: Tensor, ids: Tensor, key: Key, method: Literal["systematic", "multinomial"] = "systematic"
) -> Tensor:
    """As many indices [*b, n] as there are samples, in proportion to the weights; ascending.

    `ids` int64 [*b] name the batches. Systematic: one uniform per batch, and sample i is taken floor or ceil of n w_i
    times. Multinomial: independent draws, with more noise. Raises NumericFault if all weights are 0.
    """
    if method not in ("systematic", "multinomial"):
        raise ConfigError(f"Resampling is 'systematic' or 'multinomial', not {method!r}.")
    n = log_weights.shape[-1]
    cumulative = normalised(log_weights.double()).cumsum(-1)
    cumulative = cumulative / cumulative[..., -1:]
    if method == "systematic":
        level = (torch.arange(n, device=ids.device) + _fine(key, ids).unsqueeze(-1)) / n
    else:
        level = random.uniform(key, ids, n).double().sort(-1).values
    return torch.searchsorted(cumulative, level, right=True).clamp_(max=n - 1)


def _fine(key: Key, ids: Tensor) -> Tensor:
    """Uniform on [0, 1) in steps of 2^-53: among a million items float32's steps of 2^-23 would show."""
    return ((random.bits(key, ids) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
