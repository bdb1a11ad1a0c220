r"""Importance weights: averages over p from samples of q, how many samples they are worth, and when they lie.

$$ \langle f \rangle_p = \frac{\sum_i w_i f(x_i)}{\sum_i w_i}, \quad w = p/q, \qquad
   \mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}, \qquad
   \frac{\mathrm{ESS}}{n} \to e^{-D_2(p \| q)}, \quad D_2 = \log E_q[w^2] $$

Weights come as logarithms [*b, n], samples last; -inf is a weight of 0. The effective sample size is itself an
estimate from q's samples: a q that misses p altogether shows an excellent one. The Pareto shape k of the largest
weights (Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling", JMLR 25:72) tells a
variance that does not exist (k >= 1/2) and an estimate that cannot be trusted (k > .7).
Kong 1992 (ESS); Owen 2013, "Monte Carlo theory, methods and examples", chapter 9.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault

ALARM = 0.7
"""Pareto shapes above this: no reasonable number of samples gives a usable average."""
LEAST_SHARE = 0.05
"""Effective sample sizes below this share of the samples are warned of."""


class ProposalWarning(UserWarning):
    """The samples hardly overlap with what is to be averaged: names the effective sample size and the Pareto shape."""


class Estimate(NamedTuple):
    """An average over p and what it rests on, each [*b]."""

    value: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    pareto_shape: Tensor


class Overlap(NamedTuple):
    """How well samples of q serve p, each [*b]."""

    effective_sample_size: Tensor
    pareto_shape: Tensor


class Ratios(NamedTuple):
    """Off-policy ratios of N agents, joint and each for itself, [*b]: shares of the samples that count, and log-variances."""

    joint_share: Tensor
    agent_share: Tensor
    joint_log_variance: Tensor
    agent_log_variance: Tensor


def refuse_bad_weights(log_weights: Tensor) -> None:
    """Raises NumericFault for NaN, +inf or a row in which every weight is 0; ConfigError for no samples."""
    if log_weights.ndim < 1 or log_weights.shape[-1] < 1:
        raise ConfigError(f"Log weights must have samples along the last axis, not shape {list(log_weights.shape)}.")
    if bool((log_weights.isnan() | (log_weights == math.inf)).any()):
        raise NumericFault("Log weights hold a NaN or +inf: a proposal density is 0, or not a number, at a sample.")
    if bool((log_weights.amax(-1) == -math.inf).any()):
        raise NumericFault("Every importance weight is 0: no sample of the proposal lies where the target has mass.")


def log_normalised(log_weights: Tensor) -> Tensor:
    """log of the weights [*b, n] that sum to 1 over the samples. Raises NumericFault (see `refuse_bad_weights`)."""
    refuse_bad_weights(log_weights)
    return torch.log_softmax(log_weights, -1)


def normalised(log_weights: Tensor) -> Tensor:
    """Weights [*b, n] that sum to 1 over the samples."""
    return log_normalised(log_weights).exp()


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2/sum w^2, [*b], from 1 to n; never overflows. Does not look for bad weights: for use in training loops."""
    return (2 * torch.logsumexp(log_weights, -1) - torch.logsumexp(2 * log_weights, -1)).exp()


def renyi_divergence(log_weights: Tensor) -> Tensor:
    """The D_2(p||q) [*b] that the samples show: log(n/ESS), nats."""
    return math.log(log_weights.shape[-1]) - effective_sample_size(log_weights).log()


def categorical_renyi_divergence(p: Tensor, q: Tensor) -> Tensor:
    """D_2(p||q) = log sum_a p_a^2/q_a of two policies [*b, A], exactly; inf where q forbids what p does."""
    return torch.where(p > 0, p * p / q, torch.zeros_like(p)).sum(-1).log()


def gaussian_renyi_divergence(shift: Tensor, scale: Tensor) -> Tensor:
    r"""D_2 of N(0, 1)^d against a proposal N(shift, scale^2) per coordinate [*b, d]: [*b]; inf if scale^2 <= 1/2.

    $$ \log E_q[w^2] = \sum_i \frac{m_i^2}{2 s_i^2 - 1} + \log \frac{s_i^2}{\sqrt{2 s_i^2 - 1}} $$

    With scale 1 and shift delta in each of d dimensions it is d delta^2: the curse of dimension.
    """
    room = 2 * scale * scale - 1
    finite = shift * shift / room + 2 * scale.log() - room.clamp(min=0).log() / 2
    return torch.where(room > 0, finite, torch.full_like(finite, math.inf)).sum(-1)


def log_mean_weight(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight [*b], hence log(Z_p/Z_q) for unnormalised densities, and its standard error.

    The error is of first order (relative error of the mean); the logarithm is biased low by half its square.
    """
    refuse_bad_weights(log_weights)
    n = log_weights.shape[-1]
    relative = (1 / effective_sample_size(log_weights) - 1 / n).clamp(min=0) * n / max(n - 1, 1)
    return torch.logsumexp(log_weights, -1) - math.log(n), relative.sqrt()


def estimate(values: Tensor, log_weights: Tensor, *, self_normalised: bool = True, warn: bool = True) -> Estimate:
    """The average over p of `values` [*b, n], with its standard error.

    Self-normalised: error sqrt(sum w_i^2 (f_i - mean)^2) with weights that sum to 1 (first order in 1/n), bias of
    order 1/n. Else the weights must be ratios of normalised densities, and the mean of w f is unbiased.
    Warns with ProposalWarning (see `overlap`) unless told not to. Raises NumericFault on bad weights.
    """
    refuse_bad_weights(log_weights)
    seen = overlap(log_weights, warn=warn)
    if self_normalised:
        w = normalised(log_weights)
        mean = (w * values).sum(-1)
        error = (w * (values - mean.unsqueeze(-1))).square().sum(-1).sqrt()
    else:
        terms = log_weights.exp() * values
        mean = terms.mean(-1)
        error = terms.std(-1) / math.sqrt(values.shape[-1])
    return Estimate(mean, error, *seen)


def overlap(log_weights: Tensor, *, least_share: float = LEAST_SHARE, warn: bool = True) -> Overlap:
    """Effective sample size and Pareto shape [*b]; a ProposalWarning if one is below `least_share` of n, or above .7."""
    refuse_bad_weights(log_weights)
    n = log_weights.shape[-1]
    seen = Overlap(effective_sample_size(log_weights), pareto_shape(log_weights))
    if warn:
        size, shape = float(seen.effective_sample_size.min()), float(seen.pareto_shape.max())
        if size < least_share * n or shape > ALARM:
            warnings.warn(
                f"Importance weights are unreliable: effective sample size {size:.3g} of {n} samples (expected at least "
                f"{least_share * n:.3g}), Pareto shape k = {shape:.2f} (expected at most {ALARM}); bring the proposal "
                "nearer to the target.",
                ProposalWarning,
                stacklevel=3,
            )
    return seen


def pareto_shape(log_weights: Tensor) -> Tensor:
    """k [*b] of a generalised Pareto law fitted to the largest weights; -inf where they are all alike or n < 25.

    Moments of order below 1/k of the weights exist. The fit is Zhang and Stephens's (2009, Technometrics 51(3)),
    drawn to 1/2 by the weight of ten observations, over min(n/5, 3 sqrt(n)) weights.
    """
    return _tail(log_weights)[0]


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Log weights [*b, n] with the largest replaced by quantiles of the fitted law (never above the largest), and k."""
    refuse_bad_weights(log_weights)
    shape, scale, cut, order, size = _tail(log_weights)
    if not size:
        return log_weights, shape
    top = log_weights.amax(-1, keepdim=True)
    level = (torch.arange(size, dtype=torch.float64, device=log_weights.device) + 0.5) / size
    k = shape.unsqueeze(-1)
    # (1 - level)^-k - 1, over k: -log(1 - level) at k = 0.
    quantile = torch.where(k.abs() < 1e-8, -torch.log1p(-level), torch.expm1(-k * torch.log1p(-level)) / k)
    smooth = (cut.unsqueeze(-1) + scale.unsqueeze(-1) * quantile).log().to(log_weights.dtype).clamp(max=0) + top
    tail = order[..., -size:]
    fitted = torch.isfinite(k)
    return log_weights.scatter(-1, tail, torch.where(fitted, smooth, log_weights.gather(-1, tail))), shape


def _tail(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """k and scale [*b] of the excesses over the cut, the cut (largest weight 1), the order of the weights, tail's size."""
    n = log_weights.shape[-1]
    size = math.ceil(min(n / 5, 3 * math.sqrt(n)))
    order = log_weights.argsort(dim=-1, stable=True)
    batch = log_weights.new_zeros(log_weights.shape[:-1], dtype=torch.float64)
    nothing = batch - math.inf
    if size < 5:
        return nothing, batch, batch, order, 0
    weights = (log_weights - log_weights.amax(-1, keepdim=True)).double().gather(-1, order).exp()
    cut = weights[..., -size - 1]
    excess = weights[..., -size:] - cut.unsqueeze(-1)
    largest, quarter = excess[..., -1:], excess[..., int(size / 4 + 0.5) - 1].unsqueeze(-1)
    quarter = torch.where(quarter > 0, quarter, largest)
    number = 30 + int(math.sqrt(size))
    grid = 1 - (number / (torch.arange(1, number + 1, dtype=torch.float64, device=weights.device) - 0.5)).sqrt()
    b = grid / (3 * quarter) + 1 / largest
    k = torch.log1p(-b.unsqueeze(-1) * excess.unsqueeze(-2)).mean(-1)
    likelihood = size * ((-b / k).log() - k - 1)
    b = (b * torch.softmax(likelihood, -1)).sum(-1, keepdim=True)
    k = torch.log1p(-b * excess).mean(-1)
    scale = -k / b.squeeze(-1)
    k = (size * k + 5) / (size + 10)
    alike = largest.squeeze(-1) <= 1e-12
    return torch.where(alike, nothing, k), torch.where(alike, batch, scale), cut, order, size


def ratios(log_ratio: Tensor) -> Ratios:
    """What off-policy ratios log pi_new - log pi_old [*b, n, N] of N agents are worth, jointly and one by one.

    Joint ratios multiply, so that their log-variance grows with N while the share of samples that count falls
    exponentially: a population must be re-weighted agent by agent. Shares are ESS/n; the agents' are averaged.
    """
    joint, single = log_ratio.sum(-1), log_ratio.mT
    n = log_ratio.shape[-2]
    return Ratios(
        effective_sample_size(joint) / n,
        effective_sample_size(single).mean(-1) / n,
        joint.var(-1),
        single.var(-1).mean(-1),
    )
