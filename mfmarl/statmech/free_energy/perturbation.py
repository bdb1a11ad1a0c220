r"""Free energies from samples of two or more distributions: exponential averages, Bennett's ratio, MBAR.

With u_k = beta_k H_k the reduced energy of state k, and w = u_1 - u_0 the reduced work,

$$ \log \frac{Z_1}{Z_0} = \log \langle e^{-w} \rangle_0 = -\log \langle e^{w} \rangle_1, \qquad
   \sum_{i \in 0} f(M + w_i + \ell) = \sum_{j \in 1} f(-M - w_j - \ell), \quad f(y) = \frac{1}{1 + e^y} $$

with M = log(n_0/n_1), solved for l = log Z_1/Z_0; and for many states together the solution of

$$ e^{-f_k} = \sum_n \frac{e^{-u_k(x_n)}}{\sum_l N_l e^{f_l - u_l(x_n)}} . $$

Zwanzig 1954 (J. Chem. Phys. 22, 1420); Bennett 1976 (J. Comput. Phys. 22, 245); Shirts and Chodera 2008 (J. Chem.
Phys. 129, 124105: eqs. 11, and D6 for the covariance). All answers are log(Z ratio) in nats, float64; -T times it is a
difference of free energies. Samples lie on the last axis and count as independent; the errors of correlated ones are
sqrt(tau) times larger (`inefficiency`).
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech import importance

_LEAST_ESS = 50.0  # effective samples below which an asymptotic error says little


class PoorOverlap(UserWarning):
    """Too few of the samples of one distribution matter to the other: estimate and error are not to be trusted."""


class LogRatio(NamedTuple):
    """log(Z_1/Z_0) with its standard error, [*b] each."""

    value: Tensor
    error: Tensor
    ess: Tensor
    """Effective samples: (sum w)^2/(sum w^2); of two-sided estimates the lesser of the two."""

    @property
    def bias(self) -> Tensor:
        """The leading bias of an exponential average's logarithm, -Var/2: such estimates lie low (Jensen)."""
        return -0.5 * self.error.square()


def _judge(ess: Tensor, samples: int, what: str, least: float) -> None:
    worst = float(ess.min())
    least = min(least, 0.5 * samples)
    if not worst >= least:
        warnings.warn(
            f"{what} has an ESS of {worst:.3g} of {samples} samples (at least {least:g} are needed): the distributions "
            "hardly overlap. Put states between them.",
            PoorOverlap,
            stacklevel=3,
        )


def _samples(values: Tensor, name: str, least: int = 2) -> Tensor:
    if values.ndim < 1 or values.shape[-1] < least:
        raise ConfigError(f"{name} needs at least {least} samples on its last axis, not shape {list(values.shape)}.")
    if bool(torch.isnan(values).any()):
        raise NumericFault(f"{name} holds {int(torch.isnan(values).sum())} values that are NaN.")
    return values.double()


def log_mean_weight(log_weights: Tensor, *, inefficiency: float = 1.0, least_ess: float = _LEAST_ESS) -> LogRatio:
    """log of the mean of weights, from log weights [*b, n]; the error by the delta method, in float64.

    Log weights of -inf weigh nothing. Warns (PoorOverlap) where fewer than `least_ess` samples carry the mean.
    """
    log_w = _samples(log_weights, "A mean of weights")
    n = log_w.shape[-1]
    value, error = importance.log_mean_weight(log_w)
    error, ess = error * math.sqrt(inefficiency), importance.effective_sample_size(log_w)
    _judge(ess, n, "A mean of weights", least_ess)
    return LogRatio(value, error, ess)


def zwanzig(work: Tensor, *, inefficiency: float = 1.0, least_ess: float = _LEAST_ESS) -> LogRatio:
    """log Z_1/Z_0 = log <exp(-w)>_0 from reduced work w = u_1 - u_0 of samples of state 0, [*b, n].

    The other way round: with w' = u_0 - u_1 of samples of state 1 it is log Z_0/Z_1. Biased low, always.
    """
    return log_mean_weight(-work, inefficiency=inefficiency, least_ess=least_ess)


def bar(forward: Tensor, backward: Tensor, *, inefficiency: float = 1.0, least_ess: float = _LEAST_ESS) -> LogRatio:
    """log Z_1/Z_0 by Bennett's acceptance ratio, [*b], the least variance that both sets of work allow.

    `forward` [*b, n_0] is u_1 - u_0 of samples of state 0, or the reduced work of driving 0 -> 1 (Crooks 1999);
    `backward` [*b, n_1] is u_0 - u_1 of samples of state 1, or that of driving 1 -> 0 by the reversed protocol.
    """
    ahead, back = _samples(forward, "Forward work"), _samples(backward, "Backward work")
    n0, n1 = ahead.shape[-1], back.shape[-1]
    shift = math.log(n0 / n1)

    def sides(ratio: Tensor) -> tuple[Tensor, Tensor]:
        level = ratio.unsqueeze(-1)
        return torch.sigmoid(-(shift + ahead + level)), torch.sigmoid(-(-shift + back - level))

    def finite(work: Tensor) -> Tensor:
        return work.nan_to_num(0.0, 0.0, 0.0).abs().amax(-1)

    # The gap falls in l from n_0 to -n_1; beyond these ends one side is nothing.
    high = torch.maximum(finite(ahead), finite(back)) + abs(shift) + math.log(n0 + n1) + 50
    low = -high
    for _ in range(200):
        middle = (low + high) / 2
        left, right = sides(middle)
        above = left.sum(-1) > right.sum(-1)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        if bool((high - low <= 1e-13 * (1 + middle.abs())).all()):
            break
    value = (low + high) / 2
    inverse_ess = []
    for fermi in sides(value):
        top = fermi.amax(-1, keepdim=True).clamp(min=1e-300)
        scaled = fermi / top
        inverse_ess.append(scaled.square().sum(-1) / scaled.sum(-1).square())
    variance = (inverse_ess[0] - 1 / n0).clamp(min=0) + (inverse_ess[1] - 1 / n1).clamp(min=0)
    ess = 1 / torch.maximum(*inverse_ess)
    _judge(ess, min(n0, n1), "Bennett's ratio", least_ess)
    return LogRatio(value, (variance * inefficiency).sqrt(), ess)


class States(NamedTuple):
    """What MBAR says of K states."""

    log_partition: Tensor
    """[K]: log Z_k/Z_0."""
    covariance: Tensor
    """[K, K] of `log_partition` up to a common constant: use `error`."""
    log_weights: Tensor
    """[K, N]: of every sample in every state; their exponentials sum to 1 over the samples."""
    overlap: Tensor
    """[K, K]: the share that samples of state l have in state k's answer; rows sum to 1."""
    counts: Tensor

    def error(self, i: int, j: int = 0) -> Tensor:
        """The standard error of log Z_i/Z_j."""
        c = self.covariance
        return (c[i, i] + c[j, j] - 2 * c[i, j]).clamp(min=0).sqrt()

    @property
    def ess(self) -> Tensor:
        """Effective samples in each state, [K]."""
        return torch.exp(-torch.logsumexp(2 * self.log_weights, -1))

    def mean(self, values: Tensor, state: int) -> tuple[Tensor, Tensor]:
        """The average of an observable (its value of every sample, [N]) in a state, and its standard error."""
        values = values.double()
        weight = self.log_weights[state].exp()
        average = (weight * values).sum()
        # An extra state with weights W A/<A> (Shirts and Chodera, eq. 14), the sign and offset of A taken out.
        lifted = values - values.min() + 1e-3 * (values.max() - values.min()) + 1e-300
        mean = (weight * lifted).sum()
        columns = torch.cat([self.log_weights.exp(), (weight * lifted / mean).unsqueeze(0)])
        theta = _covariance(columns, torch.cat([self.counts, self.counts.new_zeros(1)]))
        k = len(self.counts)
        variance = theta[k, k] + theta[state, state] - 2 * theta[k, state]
        return average, mean * variance.clamp(min=0).sqrt()


def _covariance(weights: Tensor, counts: Tensor) -> Tensor:
    """W^T (I - W N W^T)^+ W of weights [K, N], by the eigenvectors of the small matrix W^T W."""
    values, vectors = torch.linalg.eigh(weights @ weights.mT)
    kept = values > 1e-13 * values[-1]
    root = vectors[:, kept] * values[kept].sqrt()  # V Sigma, [K, r]
    inner = torch.eye(int(kept.sum()), dtype=weights.dtype) - root.mT @ (counts.to(weights).unsqueeze(-1) * root)
    return root @ torch.linalg.pinv(inner, hermitian=True, rtol=1e-10) @ root.mT


def mbar(
    reduced: Tensor, counts: Tensor, *, inefficiency: float = 1.0, least_ess: float = _LEAST_ESS, iterations: int = 500
) -> States:
    """All states at once: `reduced` [K, N] is u_k of every sample, `counts` int64 [K] how many each state gave.

    Samples lie state after state; a state may have none (its answer is then a reweighting). Self-consistent steps
    until Newton's take over. Raises NumericFault if they do not converge, warns (PoorOverlap) of poor overlap.
    """
    if reduced.ndim != 2 or counts.shape != reduced.shape[:1] or int(counts.sum()) != reduced.shape[1]:
        raise ConfigError(
            f"MBAR needs reduced energies [K, N] and K counts that add up to N, not {list(reduced.shape)} and "
            f"{counts.tolist() if counts.numel() < 20 else list(counts.shape)}."
        )
    u = _samples(reduced, "Reduced energies")
    sampled = counts > 0
    n = counts.double()[sampled]
    us = u[sampled]
    f = us.new_zeros(len(us))

    def shares(f: Tensor) -> Tensor:
        """[K, N]: the probability that sample n came from state k; columns sum to 1."""
        return torch.softmax(n.log().unsqueeze(-1) + f.unsqueeze(-1) - us, 0)

    def step(f: Tensor) -> Tensor:
        log_all = torch.logsumexp(n.log().unsqueeze(-1) + f.unsqueeze(-1) - us, 0)
        new = -torch.logsumexp(-us - log_all, -1)
        return new - new[0]

    p = shares(f)
    for i in range(iterations):
        gap = n - p.sum(-1)
        if float((gap / n).abs().max()) < 1e-11:
            break
        plain = step(f)
        trial = plain
        if i >= 3 and len(n) > 1:
            slope = p.sum(-1).diag() - p @ p.mT
            newton = f.clone()
            newton[1:] += torch.linalg.lstsq(slope[1:, 1:], gap[1:].unsqueeze(-1)).solution.squeeze(-1)
            left = [float(((n - shares(g).sum(-1)) / n).abs().max()) for g in (plain, newton)]
            trial = newton if left[1] < left[0] else plain
        f, p = trial, shares(trial)
    else:
        if float(((n - p.sum(-1)) / n).abs().max()) > 1e-6:
            raise NumericFault(f"MBAR did not converge in {iterations} iterations: neighbouring states hardly overlap.")
    log_all = torch.logsumexp(n.log().unsqueeze(-1) + f.unsqueeze(-1) - us, 0)
    every = -torch.logsumexp(-u - log_all, -1)
    log_weights = every.unsqueeze(-1) - u - log_all
    weights = log_weights.exp()
    covariance = _covariance(weights, counts) * inefficiency
    # Z_k ~ exp(-f_k): log Z_k/Z_0 = f_0 - f_k.
    found = States(every[0] - every, covariance, log_weights, weights @ weights.mT * counts.double(), counts)
    # A state's own samples carry it whatever the others do: what ties states together is the gap of the overlap
    # matrix below its eigenvalue 1, which for two states is 1/n_0 + 1/n_1 of the samples in both.
    tied = torch.linalg.eigvals(found.overlap[sampled][:, sampled]).real.sort(descending=True).values
    ess = found.ess.min()
    if len(tied) > 1:
        ess = torch.minimum(ess, (1 - tied[1]) * u.shape[1])
    _judge(ess, u.shape[1], "MBAR's weakest link", min(least_ess, 0.5 * float(n.min())))
    return found
