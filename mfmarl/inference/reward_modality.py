r"""Reward as something that is seen: outcomes are levels of reward, and preferred by what they are worth.

$$ p(r \mid x, a, m) = \bar\alpha_{xam}, \qquad C(r) = r, \qquad
   E_Q \ln \tilde p(r) = \sum_m q(m)\, \langle r \rangle_{xam} + \text{const} $$

So an agent that knows no payoffs learns them like any other likelihood, by Dirichlet counts of (level | context x, action
a, crowd m), and expected log-preference is expected reward. A reward between two levels counts for both, in proportion
(Bellemare, Dabney and Munos 2017, arXiv 1707.06887, eq. 7): means are exact. Levels span what has been paid so far; where
more is paid they spread, and what was counted is passed on to the new ones, its mean kept.

Evidence is [M, X, A, R, K]: of minds, contexts, actions, levels, states of the crowd; and `span` [M, 2] the least and the
highest level, infinite before anything was paid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.inference import dirichlet

_LARGEST = 1 << 21  # numbers that are gathered at once: they stay in the cache


class Rewards(NamedTuple):
    """What has been counted. `prior`: the count of a column before that, spread over its levels."""

    evidence: Tensor
    span: Tensor
    prior: float

    @property
    def known(self) -> Tensor:
        """Whether anything was paid, bool [M]."""
        return _told(self.span)

    def levels(self) -> Tensor:
        """What each level is worth, [M, R]; 0 before anything was paid."""
        low, high = torch.where(self.known.unsqueeze(-1), self.span, 0.0).unbind(-1)
        steps = torch.linspace(0, 1, self.evidence.shape[3], device=low.device, dtype=low.dtype)
        return low.unsqueeze(-1) + (high - low).unsqueeze(-1) * steps

    def counts(self) -> Tensor:
        """Dirichlet counts alpha [M, X, A, R, K]."""
        return self.evidence + self.prior / self.evidence.shape[3]


def begin(minds: int, contexts: int, actions: int, levels: int, crowds: int, prior: float = 1.0) -> Rewards:
    """Nothing counted yet."""
    # A highest reward below the least: finite numbers, as a checkpoint holds no others.
    largest = torch.finfo(torch.float32).max
    span = torch.tensor([largest, -largest]).repeat(minds, 1)
    return Rewards(torch.zeros(minds, contexts, actions, levels, crowds), span, prior)


def placed(rewards: Rewards, paid: Tensor) -> tuple[Tensor, Tensor]:
    """The level below rewards [M, B] (the last but one at most), int64, and the part that belongs to the one above it."""
    return _between(rewards.span, paid, rewards.evidence.shape[3])


def _told(span: Tensor) -> Tensor:
    return span[:, 0] <= span[:, 1]


def _between(span: Tensor, paid: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    low, high = torch.where(_told(span).unsqueeze(-1), span, 0.0).unbind(-1)
    width = (high - low).clamp(min=torch.finfo(span.dtype).tiny).unsqueeze(-1)
    place = ((paid - low.unsqueeze(-1)) / width).clamp(0, 1) * (levels - 1)
    below = place.floor().clamp(max=levels - 2)
    return below.long(), place - below


def widened(rewards: Rewards, paid: Tensor, weight: Tensor) -> Rewards:
    """Levels that span these rewards [M, B] too, where their weight is positive, and what was counted passed on to them."""
    some = weight > 0
    low = torch.where(some, paid, torch.inf).amin(1)
    high = torch.where(some, paid, -torch.inf).amax(1)
    low, high = torch.minimum(low, rewards.span[:, 0]), torch.maximum(high, rewards.span[:, 1])
    # The same was always paid: levels of no width could not be told apart.
    paid_any = some.any(1) | rewards.known
    flat = paid_any & (high <= low)
    wide = torch.where(flat, 1e-3 + 1e-3 * low.abs(), 0.0)
    span = torch.stack([low - wide, high + wide], -1)
    grown = (span != rewards.span).any(-1) & paid_any
    if not bool(grown.any()):
        return rewards
    # By doublings: levels that moved with every new extreme would blur what was counted each time.
    old, known = rewards.span, rewards.known
    size = torch.where(known, old[:, 1] - old[:, 0], span[:, 1] - span[:, 0])
    down = torch.where(known & (span[:, 0] < old[:, 0]), torch.minimum(span[:, 0], old[:, 0] - size), span[:, 0])
    up = torch.where(known & (span[:, 1] > old[:, 1]), torch.maximum(span[:, 1], old[:, 1] + size), span[:, 1])
    span = torch.where(grown.unsqueeze(-1), torch.stack([down, up], -1), old)
    levels = rewards.evidence.shape[3]
    below, part = _between(span, rewards.levels(), levels)
    passed = torch.zeros(len(span), levels, levels, dtype=span.dtype, device=span.device)  # [M, old, new]
    passed.scatter_add_(2, below.unsqueeze(-1), (1 - part).unsqueeze(-1))
    passed.scatter_add_(2, below.unsqueeze(-1) + 1, part.unsqueeze(-1))
    evidence = torch.einsum("mxark,mrs->mxask", rewards.evidence, passed)
    return Rewards(evidence, span, rewards.prior)


def learned(
    rewards: Rewards, context: Tensor, action: Tensor, paid: Tensor, crowd: Tensor, weight: Tensor, forgetting: float
) -> Rewards:
    """After rewards [M, B] of actions in contexts, int64 [M, B], in crowds believed to be [M, B, K]; rows count `weight`."""
    rewards = widened(rewards, paid, weight)
    minds, contexts, actions, levels, crowds = rewards.evidence.shape
    below, part = placed(rewards, paid)
    mind = torch.arange(minds, device=paid.device).unsqueeze(1)
    row = (((mind * contexts + context) * actions + action) * levels + below).flatten()
    evidence = ((1 - forgetting) * rewards.evidence).reshape(-1, crowds)
    for up, share in ((0, 1 - part), (1, part)):
        evidence.index_add_(0, row + up, (crowd * (weight * share).unsqueeze(-1)).flatten(0, 1))
    return Rewards(evidence.view(rewards.evidence.shape), rewards.span, rewards.prior)


class Worth(NamedTuple):
    """Of actions [M, B, A]: expected reward, what it tells of the crowd, and what it tells of the payoffs (nats)."""

    reward: Tensor
    of_crowd: Tensor
    of_payoffs: Tensor


def worth(
    rewards: Rewards, context: Tensor, crowd: Tensor, of_crowd: bool, of_payoffs: bool, felt: Tensor | None = None
) -> Worth:
    """What each action is worth in contexts int64 [M, B] and crowds believed to be [M, B, K].

    `of_crowd`: I(reward; m | action). With `felt` [J, K], the chances of what will be felt of a crowd whatever one does,
    only what the reward tells beyond that counts: I(reward; m | action, felt). `of_payoffs`: I(level; payoffs | m, action)
    under the counts, exact. What does not count is 0.
    """
    alpha = rewards.counts()
    likelihood = alpha / alpha.sum(3, keepdim=True)
    mean = torch.einsum("mxark,mr->mxak", likelihood, rewards.levels())
    expected = _expected(mean, context, crowd)
    told = torch.zeros_like(expected)
    if of_crowd and crowd.shape[-1] > 1:
        entropy = -torch.special.xlogy(likelihood, likelihood).sum(3)
        if felt is None:
            shown = _entropy_of_levels(likelihood, context, crowd)
        else:
            shown = _entropy_after(likelihood, context, crowd, felt)
        told = shown - _expected(entropy, context, crowd)
    new = torch.zeros_like(expected)
    if of_payoffs:
        new = _expected(dirichlet.information(alpha, 3), context, crowd)
    return Worth(expected, told, new)


def _rows(table: Tensor, context: Tensor) -> Tensor:
    """[M, X, ...] at contexts [M, B]: [M, B, ...]."""
    mind = torch.arange(len(table), device=context.device).unsqueeze(1)
    return table.flatten(0, 1).index_select(0, (mind * table.shape[1] + context).flatten()).unflatten(0, context.shape)


def _expected(table: Tensor, context: Tensor, crowd: Tensor) -> Tensor:
    """sum_m q(m) table[x, a, m] [M, B, A]."""
    if table.shape[1] == 1:
        return crowd @ table[:, 0].transpose(-1, -2)
    return (_rows(table, context) @ crowd.unsqueeze(-1)).squeeze(-1)


def _entropy_of_levels(likelihood: Tensor, context: Tensor, crowd: Tensor) -> Tensor:
    """H of the levels that are expected, sum_m q(m) p(r | x, a, m), nats [M, B, A]."""
    _, contexts, actions, levels, crowds = likelihood.shape
    if contexts == 1:
        shown = (crowd @ likelihood[:, 0].flatten(1, 2).transpose(-1, -2)).unflatten(-1, (actions, levels))
        return -torch.special.xlogy(shown, shown).sum(-1)
    at_once = max(1, _LARGEST // (actions * levels * crowds * len(likelihood)))
    found = []
    for start in range(0, context.shape[1], at_once):
        rows = slice(start, start + at_once)
        table = _rows(likelihood, context[:, rows]).flatten(2, 3)
        shown = (table @ crowd[:, rows].unsqueeze(-1)).view(*table.shape[:2], actions, levels)
        found.append(-torch.special.xlogy(shown, shown).sum(-1))
    return torch.cat(found, 1)


def _entropy_after(likelihood: Tensor, context: Tensor, crowd: Tensor, felt: Tensor) -> Tensor:
    """H of the levels that are expected once the crowd was felt, on average over what will be felt: nats [M, B, A]."""
    _, contexts, actions, levels, crowds = likelihood.shape
    at_once = max(1, _LARGEST // (actions * levels * (crowds + len(felt)) * len(likelihood)))
    found = []
    for start in range(0, context.shape[1], at_once):
        rows = slice(start, start + at_once)
        joint = crowd[:, rows].unsqueeze(-2) * felt  # [M, B, J, K]
        chance = joint.sum(-1)
        after = joint / chance.clamp(min=1e-30).unsqueeze(-1)
        if contexts == 1:
            shown = after.flatten(1, 2) @ likelihood[:, 0].flatten(1, 2).transpose(-1, -2)
            shown = shown.unflatten(1, (-1, len(felt)))  # [M, B, J, A R]
        else:
            shown = after @ _rows(likelihood, context[:, rows]).flatten(2, 3).transpose(-1, -2)
        each = -torch.special.xlogy(shown, shown).unflatten(-1, (actions, levels)).sum(-1)
        found.append((chance.unsqueeze(-1) * each).sum(2))
    return torch.cat(found, 1)


def log_likelihood(rewards: Rewards, context: Tensor, action: Tensor, paid: Tensor) -> Tensor:
    """ln p(reward | m) [M, B, K] of what was paid [M, B] for actions in contexts, int64 [M, B]; between levels the average."""
    alpha = rewards.counts()
    likelihood = (alpha / alpha.sum(3, keepdim=True)).log()
    _, _, actions, levels, _ = likelihood.shape
    below, part = placed(rewards, paid)
    table = likelihood.flatten(1, 3)  # [M, X A R, K]
    row = (context * actions + action) * levels + below
    low, high = _rows(table, row), _rows(table, row + 1)
    return low + part.unsqueeze(-1) * (high - low)
