r"""What predictive probabilities are worth: log loss, Brier score, calibration error, and where the doubt comes from.

An ensemble (posterior draws, members) gives logits [S, *n, C]; its prediction is the average of the probabilities.

$$ \underbrace{H[\bar p]}_{total} = \underbrace{\langle H[p_s] \rangle}_{aleatoric} +
   \underbrace{H[\bar p] - \langle H[p_s] \rangle}_{epistemic\ =\ I(y; \theta)\ (BALD)} $$

(Houlsby et al. 2011; Depeweg et al. 2018.) Temperature scaling: Guo et al. 2017, section 4.2. All in nats.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault


def predictive(logits: Tensor) -> Tensor:
    """log of the average probabilities [*n, C] of an ensemble's logits [S, *n, C]."""
    return torch.logsumexp(torch.log_softmax(logits, -1), 0) - math.log(len(logits))


class Doubt(NamedTuple):
    total: Tensor
    """Entropy of the prediction, [*n]."""
    aleatoric: Tensor
    """Mean entropy of the members' predictions, [*n]: what no more data would take away."""
    epistemic: Tensor
    """Their difference, the mutual information of label and weights, [*n], >= 0: what to ask about next."""


def doubt(logits: Tensor) -> Doubt:
    """The entropies of an ensemble's predictions, logits [S, *n, C]."""
    total = torch.special.entr(predictive(logits).exp()).sum(-1)
    aleatoric = torch.special.entr(torch.softmax(logits, -1)).sum(-1).mean(0)
    return Doubt(total, aleatoric, (total - aleatoric).clamp(min=0))


def log_loss(log_p: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log p(label), []: of log-probabilities [n, C] and labels int64 [n]."""
    _check(log_p, labels)
    return -log_p.gather(-1, labels.unsqueeze(-1)).mean()


def brier(log_p: Tensor, labels: Tensor) -> Tensor:
    """Mean of sum_c (p_c - [c = label])^2, []: 0 to 2 (Brier 1950)."""
    _check(log_p, labels)
    hit = torch.nn.functional.one_hot(labels, log_p.shape[-1])
    return (log_p.exp() - hit).square().sum(-1).mean()


def accuracy(log_p: Tensor, labels: Tensor) -> Tensor:
    """Share of labels that are the likeliest class, []."""
    _check(log_p, labels)
    return (log_p.argmax(-1) == labels).to(log_p.dtype).mean()


class Reliability(NamedTuple):
    """Per bin of confidence; empty bins have no points and NaN averages."""

    confidence: Tensor
    accuracy: Tensor
    points: Tensor


def reliability(log_p: Tensor, labels: Tensor, bins: int = 15, kind: Literal["width", "mass"] = "width") -> Reliability:
    """Confidence of the likeliest class against how often it is right, in bins of equal width or of equal mass."""
    _check(log_p, labels)
    if bins < 1:
        raise ConfigError(f"Calibration needs at least one bin, not {bins}.")
    if kind not in ("width", "mass"):
        raise ConfigError(f"Bins have equal 'width' or equal 'mass', not {kind!r}.")
    top, guess = log_p.exp().max(-1)
    if kind == "width":
        place = (top * bins).ceil().long().clamp(1, bins) - 1  # (k/B, (k+1)/B], as Guo et al.
    else:
        place = torch.empty_like(labels)
        place[top.argsort(stable=True)] = torch.arange(len(top), device=top.device) * bins // max(len(top), 1)
    zeros = top.new_zeros(bins)
    count = zeros.index_add(0, place, torch.ones_like(top))
    confidence = zeros.index_add(0, place, top) / count
    right = zeros.index_add(0, place, (guess == labels).to(top)) / count
    return Reliability(confidence, right, count.long())


def calibration_error(
    log_p: Tensor, labels: Tensor, bins: int = 15, kind: Literal["width", "mass"] = "width"
) -> Tensor:
    """Expected calibration error, []: the mean over bins, by their counts, of |accuracy - confidence|.

    Biased upwards on small samples (by about sqrt(bins/n)), more so with more bins: state both with it.
    """
    found = reliability(log_p, labels, bins, kind)
    gap = (found.accuracy - found.confidence).abs().nan_to_num(0.0)
    return (gap * found.points).sum() / found.points.sum()


def best_temperature(logits: Tensor, labels: Tensor, low: float = 1e-3, high: float = 1e3) -> float:
    """The temperature of softmax(logits/T) of least log loss, for held-out logits [n, C]; in [low, high].

    The loss is convex in 1/T: bisection on its slope <E> over the labels minus <E> over the Gibbs distribution.
    """
    _check(logits, labels)
    if not bool(torch.isfinite(logits).all()):
        raise NumericFault("Temperature scaling needs finite logits.")
    logits = logits.double()
    own = logits.gather(-1, labels.unsqueeze(-1)).mean()
    a, b = math.log(1 / high), math.log(1 / low)
    for _ in range(100):
        middle = 0.5 * (a + b)
        slope = (torch.softmax(logits * math.exp(middle), -1) * logits).sum(-1).mean() - own
        a, b = (a, middle) if float(slope) > 0 else (middle, b)
    return math.exp(-0.5 * (a + b))


def _check(log_p: Tensor, labels: Tensor) -> None:
    if log_p.ndim != 2 or labels.shape != log_p.shape[:1] or labels.dtype != torch.int64 or not len(labels):
        raise ConfigError(
            f"Scores need log-probabilities [n, C] and labels int64 [n], n >= 1, not {list(log_p.shape)} and "
            f"{labels.dtype} {list(labels.shape)}."
        )
    if not (int(labels.min()) >= 0 and int(labels.max()) < log_p.shape[-1]):
        raise ConfigError(f"A label lies outside the classes 0..{log_p.shape[-1] - 1}.")
