r"""Sophisticated inference by iterative deepening: what will hardly be done, or seen, is dropped on the way.

The tree of `sophisticated` grows by one step at a time. After each, values are backed up as expectations,

$$ g(u) = g_1(u) + \sum_{o : Q(o) > \epsilon_o} Q(o)\, V(q_{u,o}), \qquad Q = \mathrm{softmax}(\gamma g), \qquad V = \sum_u Q\, g, $$

at every node, and an action with Q(u) below its threshold is dropped for good: it is worth minus a penalty from then on.
An agent whose first action is decided, of little entropy, plans no further. Unlikely outcomes are worth nothing, which is
not the mean of the likely ones: with negative values pruning flatters. These are the rules of pymdp 1.0.4 (and
its numbers); `sophisticated` with `Pruning` is the search that neither flatters nor forgets.

It is for trees that are too deep to be whole and whose agents are precise: at gamma = 1 everything is likely.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference import filtering
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective, Plan
from mfmarl.inference.planning.layout import Layout, arrange
from mfmarl.inference.planning.sophisticated import BUDGET, Branching, Growth, TooLarge, gathered
from mfmarl.options import Bounds, check_numbers


@dataclass(frozen=True)
class Thresholds:
    """What is dropped. The defaults are pymdp's."""

    action: Annotated[float, Bounds(0.0, 1.0)] = 1 / 16
    """Actions that are no likelier than this, or become less likely, are dropped."""
    outcome: Annotated[float, Bounds(0.0, 1.0)] = 1 / 16
    """Outcomes that are no likelier than this are not followed."""
    entropy: Annotated[float, Bounds(-1.0, 1e6)] = 0.5
    """Of the first action, nats: who has no more plans no further."""
    penalty: Annotated[float, Bounds(0.0, 1e9)] = 512.0
    """What a dropped action costs."""

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass
class _Level:
    """Nodes of one depth, [M, R] of them: those that are still in the tree, and their parts in it."""

    believed: tuple[Tensor, ...]
    root: Tensor  # int64 [M, R]
    alive: Tensor  # bool [M, R]
    near: Tensor | None = None  # g_1 [M, R, U]; None: not grown from yet
    child: Tensor | None = None  # int64 [M, R, U, K], -1: not followed
    chance: Tensor | None = None  # [M, R, U, K]
    kept: Tensor | None = None  # bool [M, R, U]
    value: Tensor | None = None  # V [M, R]


def plan(
    model: GenerativeModel,
    believed: Sequence[Tensor],
    depth: int,
    gamma: float | Tensor = 1.0,
    objective: Objective = Objective(),  # noqa: B008
    counts: object = None,
    t: int = 0,
    budget: int = BUDGET,
    *,
    thresholds: Thresholds = Thresholds(),
    branching: Branching = "independent_outcomes",
    method: filtering.Method = "exact",
) -> Plan:
    """What every first action is worth, [*b, U], to agents that believe q_f [*b, S_f] and plan at most `depth` actions.

    Habits do not count. Raises ConfigError for habits, and where one agent's tree exceeds the budget.
    """
    if depth < 1:
        raise ConfigError(f"Planning needs a depth of at least 1 action, not {depth}.")
    if model.E is not None:
        raise ConfigError("Iterative deepening knows no habits: use planning.sophisticated, or a model without E.")
    if isinstance(gamma, float) and gamma == math.inf:
        raise ConfigError("Thresholds of probabilities need a finite gamma: use planning.sophisticated with 'max'.")
    whole = arrange(model, believed, gamma, counts)
    growth = Growth(whole.model, objective, counts=whole.counts, t=t, branching=branching, method=method)
    found: list[Tensor] = []
    start, step = 0, whole.rows
    while start < whole.rows:
        part = whole.take(slice(start, start + step))
        try:
            found.append(_deepened(growth, part, depth, thresholds, budget))
        except TooLarge as error:
            if part.rows == 1:
                raise ConfigError(
                    f"A tree of depth {depth} needs {error.size / 2**20:,.3g} MiB at depth {error.level + 1} for one agent of "
                    f"{whole.minds} model(s), and the budget is {budget / 2**20:,.3g} MiB: plan less deep, drop more, or "
                    "raise the budget."
                ) from error
            step = -(-min(step, part.rows) // 2)
            continue
        start += part.rows
    return Plan(whole.back(torch.cat(found, 1)), None, growth.first_terms(whole))


def _deepened(growth: Growth, rows: Layout, depth: int, drop: Thresholds, budget: int) -> Tensor:
    """g [M, R, U] of the first actions."""
    minds, count = rows.minds, rows.rows
    device = rows.model.device
    precision = rows.precision(1)  # against [M, R]
    roots = torch.arange(count, device=device).expand(minds, count)
    running = torch.ones(minds, count, dtype=torch.bool, device=device)
    levels = [_Level(rows.believed, roots, running)]
    found = rows.believed[0].new_zeros(minds, count, rows.model.num_actions)
    used = 0.0
    for level in range(depth):
        following = _grow(growth, levels[-1], level, precision, drop, budget - used, running)
        levels.append(following)
        used += sum(q.numel() * q.element_size() for q in following.believed)
        used += 16.0 * (levels[-2].child.numel() if levels[-2].child is not None else 0)
        if used > budget:
            raise TooLarge(level, used)
        for k in range(level, -1, -1):
            values, likely = _back_up(levels[k], levels[k + 1], precision, drop, running)
        found = torch.where(running.unsqueeze(-1), values, found)
        entropy = torch.special.entr(likely).sum(-1)
        running = running & (entropy > drop.entropy)
        if not bool(running.any()):
            break
        _fade(levels)
    return found


def _grow(
    growth: Growth,
    now: _Level,
    level: int,
    precision: float | Tensor,
    drop: Thresholds,
    budget: float,
    running: Tensor,
) -> _Level:
    """The nodes that follow the last ones, and their places among the children of these."""
    minds, count = now.root.shape
    size = growth.size_of(minds * count)
    if size > budget:
        raise TooLarge(level, size)
    ahead = growth.predicted(now.believed)
    near = growth.worth(now.believed, ahead, growth.t + level)
    likely = torch.softmax(_wide(precision) * near, -1)
    chance, posterior = growth.follow(ahead)
    now.near, now.chance, now.kept = near, chance, likely > drop.action
    grows = now.alive & running.gather(1, now.root)
    followed = (chance > drop.outcome) & now.kept.unsqueeze(-1) & grows.unsqueeze(-1).unsqueeze(-1)
    flat = tuple(q.reshape(minds, -1, q.shape[-1]) for q in posterior)
    some, child = gathered(flat, followed.flatten(1), False)
    now.child = child.view(chance.shape)
    root = now.root.new_zeros(some[0].shape[:2])
    alive = torch.zeros_like(root, dtype=torch.bool)
    mind, place = (child >= 0).nonzero(as_tuple=True)
    branches = chance.shape[-1] * chance.shape[-2]
    root[mind, child[mind, place]] = now.root[mind, place // branches]
    alive[mind, child[mind, place]] = True
    return _Level(some, root, alive)


def _back_up(
    now: _Level, after: _Level, precision: float | Tensor, drop: Thresholds, running: Tensor
) -> tuple[Tensor, Tensor]:
    """Values g [M, R, U] of a level's actions and their probabilities; V is noted, and what has become unlikely dropped."""
    assert now.near is not None and now.child is not None and now.chance is not None and now.kept is not None
    worth = torch.zeros_like(after.root, dtype=now.near.dtype) if after.value is None else after.value
    follows = worth.gather(1, now.child.clamp(min=0).flatten(1)).view(now.child.shape)
    there = now.child >= 0
    ahead = torch.where(there, now.chance * follows, torch.zeros_like(follows)).sum(-1)
    counts = now.kept & there.any(-1)
    value = torch.where(counts, now.near + ahead, torch.full_like(ahead, -drop.penalty))
    likely = torch.softmax(_wide(precision) * value, -1)
    now.value = (likely * value).sum(-1)
    mine = running.gather(1, now.root).unsqueeze(-1)
    now.kept = torch.where(mine, now.kept & (likely >= drop.action), now.kept)
    return value, likely


def _fade(levels: Sequence[_Level]) -> None:
    """What follows only dropped actions is no longer in the tree."""
    for now, after in itertools.pairwise(levels):
        assert now.child is not None and now.kept is not None
        followed = (now.child >= 0) & now.kept.unsqueeze(-1) & now.alive.unsqueeze(-1).unsqueeze(-1)
        alive = torch.zeros_like(after.alive)
        mind, place = followed.flatten(1).nonzero(as_tuple=True)
        alive[mind, now.child.flatten(1)[mind, place]] = True
        after.alive = alive


def _wide(precision: float | Tensor) -> float | Tensor:
    return precision.unsqueeze(-1) if isinstance(precision, Tensor) else precision
