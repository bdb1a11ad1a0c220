r"""Dirichlet beliefs over the columns of a table: what they cost, what they tell, how well they foresaw what was counted.

$$ Dir(\theta; a) = B(a)^{-1} \prod_o \theta_o^{a_o - 1}, \qquad \ln B(a) = \sum_o \ln\Gamma(a_o) - \ln\Gamma(a_0),
   \qquad a_0 = \sum_o a_o $$

One more outcome o, whose count becomes a_o + 1, tells of theta, in nats,

$$ w_o = \ln a_0 - \ln a_o + \psi(a_o + 1) - \psi(a_0 + 1), \qquad
   \sum_o \frac{a_o}{a_0} w_o = \mathbb{E}_o\, KL[Dir(a + e_o) \,\|\, Dir(a)] = I(o; \theta) $$

and the probability of a sequence with counts n is Polya's urn, B(a + n) / B(a). (Da Costa et al. 2020, J. Math. Psych.
99, 102447, eq. D.17, whose w is that of large counts; Minka 2000, "Estimating a Dirichlet distribution".) A count of 0
is no part of a distribution: such an outcome is impossible. Columns lie on `axis`; other axes are a batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, nearest

How = Literal["exact", "pymdp", "spm"]
_HOW = ("exact", "pymdp", "spm")


def weights(a: Tensor, axis: int = -1, how: How = "exact") -> Tensor:
    """w_o of every count: what an outcome tells of its column, nats; 0 where a count is 0.

    "exact" and "pymdp" have the w above; "spm" half of 1 / a_o - 1 / a_0, its limit for large counts.
    """
    if how not in _HOW:
        raise ConfigError(f"Parameter information is one of {', '.join(_HOW)}, not {how!r}.{nearest(str(how), _HOW)}")
    total = a.sum(axis, keepdim=True)
    safe = torch.where(a > 0, a, 1.0)
    whole = torch.where(total > 0, total, 1.0)
    if how == "spm":
        w = 0.5 * (1 / safe - 1 / whole)
    else:
        w = whole.log() - safe.log() + torch.digamma(safe + 1) - torch.digamma(whole + 1)
    return torch.where(a > 0, w, 0.0)


def information(a: Tensor, axis: int = -1) -> Tensor:
    """I(o; theta), nats: what the next outcome of each column is expected to tell of it; 0 of a column without counts."""
    total = a.sum(axis, keepdim=True)
    return (a / torch.where(total > 0, total, 1.0) * weights(a, axis)).sum(axis)


def divergence(after: Tensor, before: Tensor, axis: int = -1) -> Tensor:
    """KL[Dir(after) || Dir(before)] of every column, nats; infinite where one holds possible what the other does not."""
    both = (after > 0) & (before > 0)
    q, p = torch.where(both, after, 1.0), torch.where(both, before, 1.0)
    q0, p0 = (torch.where(x > 0, x, 1.0) for x in (after.sum(axis, keepdim=True), before.sum(axis, keepdim=True)))
    each = torch.lgamma(p) - torch.lgamma(q) + (q - p) * (torch.digamma(q) - torch.digamma(q0))
    each = torch.where(both, each, 0.0)
    each = torch.where((after > 0) == (before > 0), each, math.inf)
    return each.sum(axis) + (torch.lgamma(q0) - torch.lgamma(p0)).squeeze(axis)


def log_beta(a: Tensor, axis: int = -1) -> Tensor:
    """ln B(a) of every column, over what has a count; 0 of a column without any."""
    total = a.sum(axis)
    each = torch.where(a > 0, torch.lgamma(torch.where(a > 0, a, 1.0)), 0.0)
    return each.sum(axis) - torch.lgamma(torch.where(total > 0, total, 1.0))


def log_evidence(prior: Tensor, posterior: Tensor, axis: int = -1) -> Tensor:
    """ln B(posterior) - ln B(prior) of every column, nats: how probable the counted sequence was.

    Minus infinity where something was counted that the prior holds impossible.
    """
    found = log_beta(posterior, axis) - log_beta(prior, axis)
    return torch.where(((prior <= 0) & (posterior > 0)).any(axis), -math.inf, found)
