r"""Has the distribution moved? A test of counts before and after, by the divergence of their shares.

$$ G = 2 \sum_{g, a} n_{ga} \log \frac{n_{ga}}{n_g\, \bar p_a} = 2 n\, I(\text{window}; \text{state}), \qquad
   G \sim \chi^2_{(W - 1)(A - 1)} \text{ if nothing moved} $$

the mutual information of window and state, which is the Jensen-Shannon divergence of the windows (Wilks 1938). Counts
must be of independent draws: thin chains by their autocorrelation time first. Whatever assumes one distribution
(replay, fluctuation and response, ergodic averages) breaks where this alarms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import information


class Drift(NamedTuple):
    """How far windows differ, [*b] each."""

    divergence: Tensor
    """Their Jensen-Shannon divergence, nats: biased up by (W - 1)(A - 1)/(2 n)."""
    p_value: Tensor
    """The chance of as much, were nothing moving."""


def drift(counts: Tensor) -> Drift:
    """Of counts [*b, W, A] of A states in W windows. States never seen do not count.

    Raises ConfigError for fewer than two windows, negative counts, or an empty window.
    """
    if counts.ndim < 2 or counts.shape[-2] < 2:
        raise ConfigError(f"Drift is between windows: counts [..., W, A] with W at least 2, not {list(counts.shape)}.")
    counts = counts.double()
    if not bool((counts >= 0).all()) or not bool((counts.sum(-1) > 0).all()):
        raise ConfigError("Counts must be at least 0, and no window may be empty.")
    total = counts.sum((-2, -1))
    divergence = information.information_gain(counts.mT)
    seen = (counts.sum(-2) > 0).sum(-1)
    freedom = (counts.shape[-2] - 1) * (seen - 1).clamp(min=0).double()
    # chi^2's upper tail is Q(freedom/2, G/2).
    tail = torch.special.gammaincc(freedom.clamp(min=1) / 2, total * divergence)
    return Drift(divergence, torch.where(freedom > 0, tail, torch.ones_like(tail)))
