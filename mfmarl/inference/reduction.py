r"""Comparing models by the evidence for them: simpler priors without learning anew, many models, many minds.

A posterior Dirichlet(A) from a prior Dirichlet(a) has seen n = A - a. What the evidence would have been had the prior
been a' follows from these alone (Friston and Penny 2011, "Post hoc Bayesian model selection", NeuroImage 56, 2089;
Friston, Parr and Zeidman 2018, "Bayesian model reduction", arXiv:1805.07092, on Dirichlet priors):

$$ \ln \frac{p(o \mid a')}{p(o \mid a)} = \ln B(A + a' - a) - \ln B(a') - \ln B(A) + \ln B(a) $$

which is positive where the simpler prior a' is the better explanation; its posterior is A + a' - a. Whole models are
compared by accumulated log evidence, -F of exact filters added up over time: for one mind or all of one kind
(`probabilities`), or where minds may differ in kind (`frequencies`: Stephan et al. 2009, "Bayesian model selection for
group studies", NeuroImage 46, 1004). Columns lie on `axis`, other axes are a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.inference import dirichlet
from mfmarl.inference.counts import Counts
from mfmarl.inference.model import GenerativeModel

_TOLERANCE = 1e-9  # of a count: what is less was not seen, it is rounding


class Reduction(NamedTuple):
    """A simpler prior, and what it would have made of what was seen."""

    log_evidence: Tensor
    """Of the simpler against the full prior, nats, by column."""
    prior: Tensor
    posterior: Tensor


def log_evidence(prior: Tensor, posterior: Tensor, reduced: Tensor, axis: int = -1) -> Tensor:
    """ln p(seen | reduced) - ln p(seen | prior) of every column, nats: positive where the reduced prior is better.

    Minus infinity where something was seen that the reduced prior, by a count of 0, holds impossible.
    """
    after = reduced_posterior(prior, posterior, reduced)
    gain = dirichlet.log_evidence(reduced, after, axis) - dirichlet.log_evidence(prior, posterior, axis)
    refuted = ((reduced <= 0) & _seen(prior, posterior)).any(axis)
    return torch.where(refuted, -math.inf, gain)


def reduced_posterior(prior: Tensor, posterior: Tensor, reduced: Tensor) -> Tensor:
    """A + a' - a: what would be believed had one begun with the reduced prior; 0 where that is."""
    return torch.where(reduced > 0, posterior + reduced - prior, 0.0)


def _seen(prior: Tensor, posterior: Tensor) -> Tensor:
    return posterior - prior > _TOLERANCE * posterior.clamp(min=1.0)


def prune(prior: Tensor, posterior: Tensor, axis: int = -1, remnant: float = 0.0, threshold: float = 3.0) -> Reduction:
    """Take out of every column the outcomes that it does better without: those seen least, as many as are worth most.

    An outcome that is taken out keeps `remnant` of its prior count, which must be more than 0 where beliefs about states
    were soft and everything has been seen a little. A column stays as it is unless that gains `threshold` nats (3: odds
    of 20). Per column the best of O nested models is found; with equal prior counts that is the best of all 2^O.
    """
    if not 0 <= remnant < 1:
        raise ConfigError(f"What is pruned keeps a part of its prior count: 0 or more and less than 1, not {remnant}.")
    a, b = prior.movedim(axis, -1), posterior.movedim(axis, -1)
    # The place of each outcome among those of its column, the least seen first.
    rank = torch.sort(b - a, dim=-1, stable=True).indices.argsort(-1)
    best = torch.zeros_like(a[..., 0])
    cut = torch.zeros_like(rank[..., 0])
    for k in range(1, a.shape[-1]):
        gain = log_evidence(a, b, torch.where(rank < k, remnant * a, a))
        better = gain > best
        best, cut = torch.where(better, gain, best), torch.where(better, k, cut)
    cut = torch.where(best > threshold, cut, 0)
    simpler = torch.where(rank < cut.unsqueeze(-1), remnant * a, a)
    gain = torch.where(cut > 0, best, 0.0)
    after = reduced_posterior(a, b, simpler)
    return Reduction(gain, simpler.movedim(-1, axis), after.movedim(-1, axis))


def tie(prior: Tensor, posterior: Tensor, axis: int, along: int, tied: Tensor | None = None) -> Reduction:
    """That columns are the same all along another axis: that a table does not depend on one of its parents, or action.

    The one column has the prior `tied` (of size 1 along that axis; None: the mean of theirs), and all that was seen of
    them. The evidence has neither axis; prior and posterior are of size 1 along `along`.
    """
    axis, along = axis % prior.ndim, along % prior.ndim
    if axis == along:
        raise ConfigError(f"Columns lie on axis {axis}: they cannot be tied along it.")
    one = prior.mean(along, keepdim=True) if tied is None else tied
    seen = (posterior - prior).sum(along, keepdim=True)
    after = one + seen
    together = dirichlet.log_evidence(one, after, axis)
    apart = dirichlet.log_evidence(prior, posterior, axis)
    lost = along - (along > axis)  # the axis of columns is gone by then
    return Reduction(together.squeeze(lost) - apart.sum(lost), one, after)


def prune_counts(
    model: GenerativeModel, counts: Counts, start: Counts, remnant: float = 0.0, threshold: float = 3.0
) -> tuple[Counts, Counts, Tensor]:
    """All columns of A and B pruned: the reduced counts, what they would have begun with, and the evidence gained [*p]."""
    gained = torch.zeros((), dtype=model.dtype, device=model.device)
    after, before = counts, counts.join(start, lambda b, a: a.expand_as(b))
    for letter, parents in (("A", model.A_factors), ("B", tuple(map(_inputs, model.B_factors, model.B_controls)))):
        pairs = list(zip(getattr(before, letter) or (), getattr(counts, letter) or (), strict=True))
        found = [
            None if a is None or b is None else prune(a, b, -1 - len(own), remnant, threshold)
            for (a, b), own in zip(pairs, parents, strict=False)
        ]
        for reduced, own in zip(found, parents, strict=False):
            if reduced is not None:
                each = reduced.log_evidence
                gained = gained + each.flatten(each.ndim - len(own)).sum(-1)
        if pairs:
            done: dict[str, Any] = {letter: tuple(x and x.posterior for x in found)}
            began: dict[str, Any] = {letter: tuple(x and x.prior for x in found)}
            after, before = replace(after, **done), replace(before, **began)
    return after, before, gained


def _inputs(factors: tuple[int, ...], controls: tuple[int, ...]) -> tuple[int, ...]:
    return factors + controls


def pool(counts: Counts, start: Counts, axes: int | Sequence[int]) -> Counts:
    """What minds that began alike have seen, as if one had seen it all: start + sum (counts - start), over leading axes.

    This is exact: a posterior of what all of them saw (Bayesian parameter averaging). The axes stay, of size 1.
    """
    axes = (axes,) if isinstance(axes, int) else tuple(axes)

    def together(a: Tensor, a0: Tensor) -> Tensor:
        whole = a0.expand_as(a)
        first = whole
        for axis in axes:
            first = first.narrow(axis, 0, 1)
        return first + (a - whole).sum(axes, keepdim=True)

    return counts.join(start, together)


# -------------------------------------------------------------------------------------------- whole models


def probabilities(log_evidence: Tensor, prior: Tensor | None = None) -> Tensor:
    """p(model | seen) [*b, K] of log evidences [*b, K] of K models: -F summed over time, and over minds of one kind.

    `prior` [K]; None: all alike. Raises NumericFault where no model can explain what was seen.
    """
    total = log_evidence if prior is None else log_evidence + (prior / prior.sum(-1, keepdim=True)).log()
    if not bool((total > -math.inf).any(-1).all()) or bool(total.isnan().any()):
        raise NumericFault("No model has any evidence: what was seen is impossible in each, or evidences are NaN.")
    return torch.softmax(total, -1)


class Frequencies(NamedTuple):
    """How common each of K models is among minds of different kinds."""

    concentration: Tensor
    """Dirichlet counts of the posterior over frequencies [K]."""
    mean: Tensor
    """Expected frequency [K]."""
    exceedance: Tensor
    """The probability that a model is the most common one [K]."""
    of_each: Tensor
    """The probability of each model for each mind [N, K]."""


def frequencies(
    log_evidence: Tensor, prior: float = 1.0, tolerance: float = 1e-10, iterations: int = 10_000
) -> Frequencies:
    """Of log evidences [N, K] of K models by N minds, each of which may be of another kind.

    Variational Bayes with a Dirichlet prior of `prior` for each model: responsibilities g ∝ p(o_n | k) exp psi(alpha_k),
    alpha_k = prior + sum_n g_nk. Raises NumericFault if it does not settle.
    """
    log_evidence = log_evidence.double()
    probabilities(log_evidence)  # refuses what cannot be compared
    if not prior > 0:
        raise ConfigError(f"The prior count of every model must be positive, not {prior}.")
    alpha = torch.full((log_evidence.shape[-1],), float(prior), dtype=torch.float64, device=log_evidence.device)
    alpha = alpha + log_evidence.shape[0] / log_evidence.shape[-1]
    for _ in range(iterations):
        each = torch.softmax(log_evidence + torch.digamma(alpha) - torch.digamma(alpha.sum()), -1)
        after = prior + each.sum(0)
        moved = float((after - alpha).abs().max())
        alpha = after
        if moved <= tolerance * max(1, len(log_evidence)):
            return Frequencies(alpha, alpha / alpha.sum(), exceedance(alpha), each)
    raise NumericFault(f"Frequencies of models have not settled after {iterations} iterations: allow more.")


def exceedance(concentration: Tensor, nodes: int = 400) -> Tensor:
    """P(r_k > all others) [K] for r ~ Dir(concentration [K]), by quadrature.

    r is a normalised row of independent gamma variables: the integral of prod_j F_j(x) over x by F_k.
    """
    import numpy as np
    from scipy.special import gammainc, gammaincinv

    alpha = concentration.double().cpu().numpy()
    # sin^2 brings nodes to both ends of [0, 1], where the integrand may be steep.
    x, w = np.polynomial.legendre.leggauss(nodes)
    angle = (x + 1) * np.pi / 4
    level, weight = np.sin(angle) ** 2, w * np.pi / 4 * np.sin(2 * angle)
    found = np.empty(len(alpha))
    for k, a in enumerate(alpha):
        at = gammaincinv(a, level)
        found[k] = (weight * np.prod([gammainc(b, at) for j, b in enumerate(alpha) if j != k], axis=0)).sum()
    return torch.as_tensor(found / found.sum(), device=concentration.device)


def average(models: Sequence[GenerativeModel], weights: Tensor) -> GenerativeModel:
    """The model that weighs the tables of several alike ones by their probabilities [*p, K] (Bayesian model averaging).

    Preferences are averaged as distributions. Raises ConfigError for models that are not of the same layout.
    """
    first = models[0]
    if weights.shape[-1] != len(models):
        raise ConfigError(f"{len(models)} models need as many weights [*p, K], not {list(weights.shape)}.")
    layout = [(m.sizes, m.outcomes, m.controls, m.A_factors, m.B_factors, m.B_controls, m.timed) for m in models]
    if any(other != layout[0] for other in layout[1:]):
        raise ConfigError("Models that are averaged must have the same factors, modalities, controls and dependencies.")
    weights = weights / weights.sum(-1, keepdim=True)

    def mixed(tables: Sequence[Tensor], axes: int) -> Tensor:
        total: Tensor | None = None
        for table, w in zip(tables, weights.unbind(-1), strict=True):
            part = w.to(table).reshape(*w.shape, *(1,) * axes) * table
            total = part if total is None else total + part
        assert total is not None
        return total

    def all_of(letter: str, i: int) -> list[Tensor]:
        return [getattr(m, letter)[i] for m in models]

    preferences = [[torch.softmax(c, -1) for c in all_of("C", m)] for m in range(len(first.A))]
    habits = [m.E for m in models if m.E is not None]
    if habits and len(habits) != len(models):
        raise ConfigError("Models that are averaged must all have habits, or none.")
    return first.trusted(
        A=[mixed(all_of("A", m), 1 + len(own)) for m, own in enumerate(first.A_factors)],
        B=[mixed(all_of("B", f), 1 + len(first.B_factors[f]) + len(first.B_controls[f])) for f in range(len(first.B))],
        C=[mixed(p, 1 + first.timed).clamp(min=torch.finfo(first.dtype).tiny).log() for p in preferences],
        D=[mixed(all_of("D", f), 1) for f in range(len(first.D))],
        E=mixed([e / e.sum(-1, keepdim=True) for e in habits], 1) if habits else None,
    )
