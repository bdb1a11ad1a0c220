r"""Planning by the cross-entropy method: draw sequences of actions, keep the best, draw nearer to them.

$$ a^{(c)}_{1..H} \sim q_j, \qquad q_{j+1} = \arg\max_q \sum_{c \in \mathrm{elite}_j} \ln q(a^{(c)}), \qquad
   q = \prod_t N(m_t, v_t) \ \text{or}\ \prod_t \mathrm{Cat}(p_t) $$

Rubinstein 1999; in active inference Tschantz et al. 2020 (arXiv 2002.12636, algorithm 1), where q(pi) is refitted to the
elite of what maximises -G. Every row (an agent) has a plan of its own, and all of them are drawn, scored and refitted at
once. Noise is keyed by row: a plan does not depend on who else plans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.random import Key

Score = Callable[[Tensor], Tensor]


class Search(NamedTuple):
    """How to search."""

    candidates: int = 500
    elites: int = 50
    iterations: int = 5


class GaussianPlan(NamedTuple):
    """What was found in a Box: sequences' distribution, and the value of the best that was drawn."""

    mean: Tensor  # [*b, H, D]
    deviation: Tensor  # [*b, H, D]
    value: Tensor  # [*b]


class CategoricalPlan(NamedTuple):
    """What was found among discrete actions."""

    probabilities: Tensor  # [*b, H, A]
    value: Tensor  # [*b], of the best that was drawn


@torch.no_grad()
def continuous(
    score: Score, low: Tensor, high: Tensor, horizon: int, search: Search, ids: Tensor, key: Key
) -> GaussianPlan:
    """Plans within [low, high] [D] (an unbounded dimension begins as a standard normal) for rows `ids` [*b].

    `score` values sequences [*b, C, H, D] as [*b, C]; NaN is worst.
    """
    bounded = torch.isfinite(low) & torch.isfinite(high)
    middle, reach = torch.where(bounded, (low + high) / 2, 0.0), torch.where(bounded, (high - low) / 2, 1.0)
    shape = (*ids.shape, horizon, len(low))
    mean, deviation = middle.expand(shape), reach.expand(shape)
    value = torch.full(ids.shape, float("-inf"), device=ids.device, dtype=low.dtype)
    count = search.candidates * horizon * len(low)
    for iteration in range(search.iterations):
        noise = random.normal(key.fold(iteration), ids, count).view(*ids.shape, search.candidates, horizon, len(low))
        sequence = mean.unsqueeze(-3) + deviation.unsqueeze(-3) * noise
        sequence = torch.minimum(torch.maximum(sequence, low), high)
        found = _numbers(score(sequence))
        top, which = found.topk(search.elites, dim=-1)
        index = which[..., None, None].expand(*which.shape, horizon, len(low))
        elite = sequence.gather(-3, index)
        mean, deviation = elite.mean(-3), elite.std(-3, correction=0)
        value = torch.maximum(value, top[..., 0])
    return GaussianPlan(mean, deviation, value)


@torch.no_grad()
def discrete(
    score: Score, actions: int, horizon: int, search: Search, ids: Tensor, key: Key, floor: float = 0.05
) -> CategoricalPlan:
    """Plans of discrete actions for rows `ids` [*b]: `score` values sequences [*b, C, H] int64 as [*b, C].

    `floor` is the share of uniform draws that is kept, so that no action is lost for ever by a chance of the first draws.
    """
    p = torch.full((*ids.shape, horizon, actions), 1 / actions, device=ids.device)
    value = torch.full(ids.shape, float("-inf"), device=ids.device)
    for iteration in range(search.iterations):
        sequence = draw(p, search.candidates, ids, key.fold(iteration))
        found = _numbers(score(sequence))
        top, which = found.topk(search.elites, dim=-1)
        elite = sequence.gather(-2, which.unsqueeze(-1).expand(*which.shape, horizon))
        counts = torch.nn.functional.one_hot(elite, actions).sum(-3)
        p = (1 - floor) * counts / search.elites + floor / actions
        value = torch.maximum(value, top[..., 0])
    return CategoricalPlan(p, value)


def draw(p: Tensor, candidates: int, ids: Tensor, key: Key) -> Tensor:
    """Sequences [*b, C, H] int64 of independent draws from p [*b, H, A]."""
    horizon, actions = p.shape[-2:]
    noise = random.uniform(key, ids, candidates * horizon).view(*ids.shape, candidates, horizon, 1)
    below = p.cumsum(-1)[..., :-1].unsqueeze(-3)
    return (noise >= below).sum(-1).clamp(max=actions - 1)


def _numbers(value: Tensor) -> Tensor:
    return value.nan_to_num(nan=float("-inf"), neginf=float("-inf"))
