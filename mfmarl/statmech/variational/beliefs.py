r"""Updating beliefs over hidden states of several factors: the exact posterior, and the mean-field one.

$$ F[q] = \sum_f KL(q_f \| p_f) - \langle \log p(o | s) \rangle_q \ge -\log p(o), \qquad
   q_f(s_f) \propto p_f(s_f) \exp \langle \log p(o | s) \rangle_{q_{\setminus f}} $$

(Friston et al. 2017, "Active inference: a process theory", eq. 4-6; Bishop 2006, eq. 10.9.) Beliefs about what is
seen are one table of log-likelihoods [*b, S_1, ..., S_F], which `log_likelihood` looks up in likelihood tensors;
several modalities add. Everything is batched over [*b]: one belief per agent, say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech.variational.free_energy import expectation

_IMPOSSIBLE = -1e4
"""Stands for log 0 in averages, where 0 times -inf would be NaN: e^-10000 is 0 in every float."""


class Exact(NamedTuple):
    joint: Tensor
    """p(s | o) [*b, S_1, ..., S_F]."""
    marginals: tuple[Tensor, ...]
    """p(s_f | o) [*b, S_f]."""
    log_evidence: Tensor
    """log p(o) [*b]; -inf where what was seen is impossible, and the joint is then NaN."""


class Beliefs(NamedTuple):
    factors: tuple[Tensor, ...]
    """q_f [*b, S_f]."""
    free_energy: Tensor
    """F of q, [*b]: at least -log p(o)."""
    sweeps: int
    """After which no belief moved by the tolerance."""


def log_likelihood(likelihoods: Sequence[Tensor], observations: Tensor) -> Tensor:
    """log p(o | s) [*b, S_1, ..., S_F] of observations int64 [*b, modalities].

    `likelihoods[m]` is p(o_m | s) [O_m, S_1, ..., S_F], each column of which sums to 1.
    """
    if observations.shape[-1] != len(likelihoods):
        raise ConfigError(f"{len(likelihoods)} modalities need as many observations, not {observations.shape[-1]}.")
    total: Tensor | None = None
    for m, table in enumerate(likelihoods):
        if bool((table < 0).any()) or bool(((table.sum(0) - 1).abs() > 1e-4).any()):
            raise ConfigError(f"Likelihood {m} must be a distribution over its outcomes for every state.")
        seen = observations[..., m]
        if seen.numel() and not (int(seen.min()) >= 0 and int(seen.max()) < len(table)):
            raise ConfigError(f"An observation of modality {m} lies outside 0..{len(table) - 1}.")
        term = table.log()[seen]
        total = term if total is None else total + term
    if total is None:
        raise ConfigError("Belief updating needs at least one likelihood.")
    return total


def exact(log_like: Tensor, priors: Sequence[Tensor]) -> Exact:
    """Bayes' rule over all joint states, for priors [*b, S_f] (or [S_f], shared)."""
    joint = log_like
    for f, prior in enumerate(_checked(log_like, priors)):
        joint = joint + _along(prior.log(), f, len(priors))
    axes = tuple(range(-len(priors), 0))
    log_evidence = torch.logsumexp(joint, axes)
    p = (joint - log_evidence.reshape(*log_evidence.shape, *(1,) * len(priors))).exp()
    marginals = tuple(
        p.sum(tuple(a for a in axes if a != f - len(priors))) if len(priors) > 1 else p for f in range(len(priors))
    )
    return Exact(p, marginals, log_evidence)


def mean_field(
    log_like: Tensor,
    priors: Sequence[Tensor],
    *,
    start: Sequence[Tensor] | None = None,
    tolerance: float = 1e-8,
    sweeps: int = 1000,
) -> Beliefs:
    """Independent beliefs by coordinate ascent, one factor after the other, from the priors or from `start`.

    F falls with every update. Raises NumericFault where `sweeps` are not enough.
    """
    known = _checked(log_like, priors)
    batch = log_like.shape[: log_like.ndim - len(priors)]
    soft = log_like.clamp(min=_IMPOSSIBLE)
    log_priors = [p.log().clamp(min=_IMPOSSIBLE).expand(*batch, p.shape[-1]) for p in known]
    q = [(p if start is None else start[f]).expand(*batch, p.shape[-1]).clone() for f, p in enumerate(known)]
    for sweep in range(1, sweeps + 1):
        moved = 0.0
        for f, log_prior in enumerate(log_priors):
            after = torch.softmax(log_prior + expectation(soft, q, keep=f), -1)
            moved = max(moved, float((after - q[f]).abs().max())) if after.numel() else 0.0
            q[f] = after
        if moved <= tolerance or len(q) == 1:
            return Beliefs(tuple(q), variational_free_energy(log_like, priors, q), sweep)
    raise NumericFault(f"Beliefs have not settled to {tolerance:g} after {sweeps} sweeps: allow more.")


def variational_free_energy(log_like: Tensor, priors: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    """F[q] = sum_f KL(q_f || p_f) - <log p(o | s)>_q, [*b]: complexity minus accuracy."""
    complexity = sum(
        (q * (q.clamp(min=1e-300 if q.dtype == torch.float64 else 1e-38).log() - p.log().clamp(min=_IMPOSSIBLE))).sum(
            -1
        )
        for q, p in zip(factors, _checked(log_like, priors), strict=True)
    )
    accuracy = expectation(log_like.clamp(min=_IMPOSSIBLE), factors)
    return complexity - accuracy


def _checked(log_like: Tensor, priors: Sequence[Tensor]) -> list[Tensor]:
    sizes = [p.shape[-1] for p in priors]
    if not priors or list(log_like.shape[-len(sizes) :]) != sizes:
        raise ConfigError(f"Priors over {sizes} states need log-likelihoods that end in these: {list(log_like.shape)}.")
    for f, p in enumerate(priors):
        if bool((p < 0).any()) or bool(((p.sum(-1) - 1).abs() > 1e-4).any()):
            raise ConfigError(f"Prior {f} must be a distribution: not negative, with sum 1.")
    return list(priors)


def _along(values: Tensor, axis: int, axes: int) -> Tensor:
    """[*b, S] as [*b, 1, ..., S, ..., 1], its states on that one of so many axes."""
    return values.reshape(*values.shape[:-1], *(1,) * axis, values.shape[-1], *(1,) * (axes - 1 - axis))
