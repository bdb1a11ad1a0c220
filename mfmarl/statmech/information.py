r"""Entropy and information of known distributions, in nats.

$$ H(p) = -\sum_a p_a \log p_a, \quad H(p, q) = -\sum_a p_a \log q_a, \quad
   \mathrm{KL}(p \| q) = H(p, q) - H(p), \quad I(X; Y) = H(X) + H(Y) - H(X, Y) $$

Probabilities lie on the last axis (joint ones on the last two); leading axes are a batch. 0 log 0 = 0. Multiply by
`BITS` for bits. A Gibbs distribution that is known by its energies has its entropy in `gibbs`; what is known by
samples only has estimators, with their bias, in `information_estimators`.
Shannon 1948; Cover and Thomas 2006, "Elements of information theory"; information gain: Quinlan 1986, Machine
Learning 1; information as disagreement (BALD): Houlsby, Huszar, Ghahramani and Lengyel 2011, arXiv 1112.5745.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl.errors import ConfigError

BITS = 1 / math.log(2)
"""Bits per nat."""


def entropy(p: Tensor) -> Tensor:
    """H [*b] of p [*b, A]; -inf if a probability is negative."""
    return torch.special.entr(p).sum(-1)


def spin_entropy(m: Tensor) -> Tensor:
    """The entropy of a spin +-1 whose average is m, elementwise: that of (1 + m)/2 and (1 - m)/2."""
    return torch.special.entr((1 + m) / 2) + torch.special.entr((1 - m) / 2)


def cross_entropy(p: Tensor, q: Tensor) -> Tensor:
    """H(p, q) [*b]: what a code made for q costs on p. inf where q forbids what p does."""
    return -torch.special.xlogy(p, q).sum(-1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p||q) [*b], not below 0; inf where q forbids what p does."""
    return torch.where(p > 0, p * (p / q).log(), torch.zeros_like(p)).sum(-1)


def jensen_shannon(p: Tensor, weights: Tensor | None = None) -> Tensor:
    """H(mean) - mean(H) [*b] of M distributions [*b, M, A], weighted alike or by `weights` [*b, M] that sum to 1.

    The information that knowing which distribution it was gives about the outcome: at most log M. Of the predictions
    of an ensemble it is their disagreement, the uncertainty that data could remove.
    """
    if weights is None:
        return entropy(p.mean(-2)) - entropy(p).mean(-1)
    return entropy((weights.unsqueeze(-1) * p).sum(-2)) - (weights * entropy(p)).sum(-1)


def perplexity(p: Tensor) -> Tensor:
    """exp(H) [*b]: the number of equally likely outcomes that would be as uncertain."""
    return entropy(p).exp()


def mutual_information(joint: Tensor) -> Tensor:
    """I(X; Y) [*b] of joint probabilities [*b, X, Y]; between 0 and min(H(X), H(Y))."""
    independent = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
    return kl_divergence(joint.flatten(-2), independent.flatten(-2))


def conditional_entropy(joint: Tensor) -> Tensor:
    """H(Y|X) [*b] of joint probabilities [*b, X, Y]: what remains uncertain of Y once X is known."""
    return entropy(joint.flatten(-2)) - entropy(joint.sum(-1))


def conditional_mutual_information(joint: Tensor) -> Tensor:
    """I(X; Y|Z) [*b] of joint probabilities [*b, X, Y, Z]."""
    xz, yz, z = joint.sum(-2), joint.sum(-3), joint.sum((-3, -2))
    return entropy(xz.flatten(-2)) + entropy(yz.flatten(-2)) - entropy(joint.flatten(-3)) - entropy(z)


def information_gain(counts: Tensor) -> Tensor:
    """What a split tells of the class [*b], from counts [*b, V, C] of examples per value of the feature and class.

    Quinlan's gain: the entropy of the classes, less its average within the values; the mutual information of the
    counts' shares. Raises ConfigError for negative counts or none at all.
    """
    counts = counts.double()
    total = counts.sum((-2, -1), keepdim=True)
    if not bool((counts >= 0).all()) or not bool((total > 0).all()):
        raise ConfigError("Counts of examples must be at least 0, and not all 0.")
    return mutual_information(counts / total)


def gaussian_entropy(covariance: Tensor) -> Tensor:
    """Differential entropy [*b] of a Gaussian with covariance [*b, d, d]: log det(2 pi e C)/2. It may be negative."""
    d = covariance.shape[-1]
    return (d * (1 + math.log(2 * math.pi)) + _log_determinant(covariance)) / 2


def gaussian_kl(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    r"""KL(N(m, C)||N(m', C')) [*b] of means [*b, d] and covariances [*b, d, d].

    $$ \tfrac12 \big( \mathrm{tr}\, C'^{-1} C + (m - m')^\top C'^{-1} (m - m') - d + \log\det C' - \log\det C \big) $$
    """
    d = mean.shape[-1]
    factor = torch.linalg.cholesky(other_covariance)
    spread = torch.cholesky_solve(covariance, factor).diagonal(dim1=-2, dim2=-1).sum(-1)
    away = torch.linalg.solve_triangular(factor, (mean - other_mean).unsqueeze(-1), upper=False)
    distance = away.square().sum((-2, -1))
    return (spread + distance - d + _log_determinant(other_covariance) - _log_determinant(covariance)) / 2


def gaussian_mutual_information(covariance: Tensor, first: int) -> Tensor:
    """I [*b] between the `first` coordinates of a Gaussian and the rest: for two with correlation r, -log(1 - r^2)/2."""
    if not 0 < first < covariance.shape[-1]:
        raise ConfigError(f"A split of {covariance.shape[-1]} coordinates must leave some on each side, not {first}.")
    parts = _log_determinant(covariance[..., :first, :first]) + _log_determinant(covariance[..., first:, first:])
    return (parts - _log_determinant(covariance)) / 2


def _log_determinant(covariance: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool((failed > 0).any()):
        raise ConfigError("A covariance must be positive definite, or the Gaussian has no density.")
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
