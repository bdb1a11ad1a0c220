r"""Search for long horizons: a tree over beliefs that grows where it matters, one for every agent, all at once.

$$ g(u \mid q) = g_1(u \mid q) + \sum_o Q(o \mid u, q)\, V(q_{u,o}), \qquad
   u = \arg\max_u \hat g(u) + c \sqrt{\ln(1 + n) / (1 + n_u)}, \qquad o \sim Q(o \mid u, q) $$

Each simulation walks down from the root, acting where the upper confidence bound is highest and seeing what is drawn from
what is expected, to a belief that is new; this is added, and everything above it backed up by the same rule as in
`sophisticated`: with the known probabilities of outcomes, and not by sample means (Kocsis and Szepesvari 2006, UCT; Keller
and Helmert 2013, "Trial-based heuristic tree search", DP-UCT; POMCP of Silver and Veness 2010 samples states where this
keeps beliefs). A belief that is not in the tree is worth what it would be if its state became known
(`dynamic_programming`, one table for all agents), so that the far end of a long horizon is there from the start. With
enough simulations the tree is whole, and its values those of sophisticated inference.

Noise is keyed by `ids`; without them by the belief itself, so that equal beliefs plan alike and once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, nearest
from mfmarl.inference import expected_free_energy
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective, Plan
from mfmarl.inference.planning import dynamic_programming
from mfmarl.inference.planning.layout import Layout, arrange, habits, lifted
from mfmarl.inference.planning.sophisticated import (
    Backup,
    back_up,
    check_backup,
    fingerprints,
    gathered,
    possible_outcomes,
)
from mfmarl.random import Key

BUDGET = 1 << 28
"""Bytes that trees may take at a time; more agents than fit are planned for one part after the other."""

Leaf = Literal["known_state", "nothing"]


def plan(
    model: GenerativeModel,
    believed: Sequence[Tensor],
    depth: int,
    gamma: float | Tensor = 1.0,
    objective: Objective = Objective(),  # noqa: B008
    backup: Backup = "free_energy",
    counts: object = None,
    t: int = 0,
    budget: int = BUDGET,
    *,
    key: Key,
    ids: Tensor | None = None,
    simulations: int = 64,
    exploration: float = 0.3,
    leaf: Leaf = "known_state",
) -> Plan:
    """What every first action is worth, [*b, U], looking `depth` actions ahead from beliefs [*b, S_f].

    Beliefs of several factors are kept jointly. `ids` int64 [*b] name the agents for noise. `exploration` is c, for values
    scaled to [0, 1] by the range that a tree has seen: 0 is enough under `max` and expected utility, where leaves are
    optimistic; `leaf`: what a belief outside the tree is worth, if its state
    became known, or nothing at all.

    Raises ConfigError where one agent's tree exceeds the budget, and for options that do not exist.
    """
    _check(depth, simulations, exploration, leaf)
    check_backup(backup)
    if counts is not None and objective.parameter_information != "none":
        raise ConfigError(
            "A search knows nothing of counts: use parameter_information='none', or planning.sophisticated."
        )
    dynamic_programming.check_learned(objective)
    q = (expected_free_energy.outer([x.expand(_batch(believed, x)) for x in believed]),)
    whole = arrange(model.joint(), q, gamma)
    back = None
    if ids is None:
        kept = torch.ones(whole.believed[0].shape[:2], dtype=torch.bool, device=model.device)
        some, back = gathered(whole.believed, kept, True)
        whole_rows = Layout(whole.model, some, whole.gamma, None, tuple(some[0].shape[:2]))
        names = fingerprints(some)
    else:
        whole_rows = whole
        names = ids.expand(whole.batch).reshape(whole.minds, whole.rows)
    found = _Trees.search(whole_rows, names, depth, objective, backup, t, budget, key, simulations, exploration, leaf)
    if back is not None:
        found = found.gather(1, back.unsqueeze(-1).expand(*back.shape, found.shape[-1]))
    log_habit = habits(whole.model)
    if log_habit is not None:
        found = found + (log_habit.unsqueeze(1) if log_habit.ndim > 1 else log_habit) / whole.precision(2)
    return Plan(whole.back(found))


def _batch(believed: Sequence[Tensor], x: Tensor) -> tuple[int, ...]:
    return (*torch.broadcast_shapes(*[q.shape[:-1] for q in believed]), x.shape[-1])


def _check(depth: int, simulations: int, exploration: float, leaf: str) -> None:
    if depth < 1:
        raise ConfigError(f"Planning needs a depth of at least 1 action, not {depth}.")
    if simulations < 1:
        raise ConfigError(f"A search needs at least 1 simulation, not {simulations}.")
    if not 0 <= exploration < math.inf:
        raise ConfigError(f"exploration must be finite and not negative, not {exploration}.")
    if leaf not in ("known_state", "nothing"):
        raise ConfigError(f"There is no leaf {leaf!r}.{nearest(str(leaf), ['known_state', 'nothing'])}")


class _Trees:
    """X = M R trees of up to N nodes, as tensors. Node 0 is the root."""

    def __init__(
        self,
        rows: Layout,
        depth: int,
        objective: Objective,
        backup: Backup,
        t: int,
        nodes: int,
        likelihood: Tensor,
        ahead: Tensor,
    ) -> None:
        self.rows, self.depth, self.objective, self.backup, self.t = rows, depth, objective, backup, t
        model = rows.model
        self.model, self.likelihood, self.ahead = model, likelihood, ahead
        self.moves = model.of_action(0)  # [*p, U, S', S]
        self.wide = lifted(model, 2)
        self.log_habit = habits(model)
        self.ways: dict[int, tuple[expected_free_energy.Showing, ...]] = {}
        count, U, K = rows.minds * rows.rows, model.num_actions, likelihood.shape[-2]
        like = rows.believed[0]
        self.count, self.range = count, torch.arange(count, device=like.device)
        self.belief = like.new_zeros(count, nodes, model.num_states)
        self.near = like.new_zeros(count, nodes, U)  # g_1
        self.far = like.new_zeros(count, nodes, U)  # what is expected to follow
        self.chance = like.new_zeros(count, nodes, U, K)
        self.value = like.new_zeros(count, nodes)
        self.child = torch.full((count, nodes, U, K), -1, dtype=torch.int32, device=like.device)
        self.visits = torch.zeros(count, nodes, U, device=like.device)
        self.size = torch.ones(count, dtype=torch.int64, device=like.device)
        flat = like.reshape(count, -1)
        self._add(torch.zeros_like(self.size), flat, torch.zeros_like(self.size), torch.ones_like(self.size).bool())
        worth = self.near[:, 0] + self.far[:, 0]
        self.low, self.high = worth.amin(-1), worth.amax(-1)

    @classmethod
    def search(
        cls,
        rows: Layout,
        names: Tensor,
        depth: int,
        objective: Objective,
        backup: Backup,
        t: int,
        budget: int,
        key: Key,
        simulations: int,
        exploration: float,
        leaf: Leaf,
    ) -> Tensor:
        """g [M, R, U] of the roots."""
        model = rows.model
        _, likelihood = possible_outcomes(model)
        if leaf == "known_state":
            known = dynamic_programming.tables(model, depth, rows.gamma, objective, backup, t).state
            ahead = torch.cat([known, torch.zeros_like(known[:1])])
        else:
            ahead = likelihood.new_zeros(depth + 1, model.num_states)
        nodes = simulations + 1 if depth > 1 else 1
        U, K, S = model.num_actions, likelihood.shape[-2], model.num_states
        item = rows.believed[0].element_size()
        one = nodes * (S * item + U * (2 * item + 4) + U * K * (item + 4)) + 4 * U * S * K * item
        at_once = int(budget // (one * rows.minds))
        if at_once < 1:
            raise ConfigError(
                f"{simulations} simulations with {U} actions, {K} outcomes and {S} states need {one * rows.minds / 2**20:,.3g} "
                f"MiB for one agent of {rows.minds} model(s), and the budget is {budget / 2**20:,.3g} MiB: simulate less, or "
                "raise the budget."
            )
        parts = []
        for start in range(0, rows.rows, at_once):
            some = rows.take(slice(start, start + at_once))
            trees = cls(some, depth, objective, backup, t, nodes, likelihood, ahead)
            ids = names[:, start : start + at_once].flatten()
            for simulation in range(simulations if depth > 1 else 0):
                trees.simulate(ids, key.fold("simulation", simulation), exploration)
            parts.append((trees.near[:, 0] + trees.far[:, 0]).view(rows.minds, -1, U))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def simulate(self, ids: Tensor, key: Key, exploration: float) -> None:
        """One walk down every tree, a new node where it ends, and its value carried up."""
        x = self.range
        node = torch.zeros_like(self.size)
        walking = torch.ones_like(node).bool()
        level_of_new = torch.zeros_like(node)
        levels = random.uniform(key, ids, self.depth - 1).to(self.value.dtype)
        path: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for level in range(self.depth - 1):
            action = self._choose(node, exploration)
            chance = self.chance[x, node, action]
            total = chance.cumsum(-1)
            # The first branch whose cumulative probability exceeds the draw: one without probability cannot be it.
            seen = ((total > levels[:, level : level + 1] * total[:, -1:]) & (chance > 0)).to(torch.uint8).argmax(-1)
            path.append((node, action, seen, walking))
            self.visits[x, node, action] += walking.to(self.visits.dtype)
            child = self.child[x, node, action, seen].long()
            ends = walking & (child < 0)
            level_of_new = torch.where(ends, level + 1, level_of_new)
            walking = walking & (child >= 0)
            node = torch.where(walking, child, node)
            if not bool(walking.any()):
                break
        new = level_of_new > 0
        parent, action, seen = self._last_steps(path)
        believed = self._posterior(self.belief[x, parent], action, seen)
        place = self.size
        guess = self._ahead_of(believed, level_of_new)
        self._add(place, believed, level_of_new, new)
        fresh = place.clamp(max=self.belief.shape[1] - 1)
        slot = (x[new], parent[new], action[new], seen[new])
        self.child[slot] = fresh[new].to(torch.int32)
        self.size = self.size + new
        change = torch.where(new, self.value[x, fresh] - guess, torch.zeros_like(guess))
        self._carry_up(path, change)

    def _last_steps(self, path: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """The last (node, action, branch) of every tree's own path."""
        node, action, seen, _ = path[0]
        for later_node, later_action, later_seen, walking in path[1:]:
            node = torch.where(walking, later_node, node)
            action = torch.where(walking, later_action, action)
            seen = torch.where(walking, later_seen, seen)
        return node, action, seen

    def _carry_up(self, path: list[tuple[Tensor, Tensor, Tensor, Tensor]], change: Tensor) -> None:
        """Values along the paths, from the last step up, where what follows it has changed."""
        x = self.range
        for node, action, seen, walking in reversed(path):
            step = torch.where(walking, self.chance[x, node, action, seen] * change, torch.zeros_like(change))
            self.far[x, node, action] += step
            worth = self.near[x, node] + self.far[x, node]
            value = self._backed_up(worth)
            moved = value - self.value[x, node]
            change = torch.where(walking, moved, change)
            self.value[x, node] = torch.where(walking, value, self.value[x, node])
            self.low = torch.minimum(self.low, worth.amin(-1))
            self.high = torch.maximum(self.high, worth.amax(-1))

    def _choose(self, node: Tensor, exploration: float) -> Tensor:
        x = self.range
        worth = self.near[x, node] + self.far[x, node]
        span = (self.high - self.low).clamp(min=torch.finfo(worth.dtype).tiny).unsqueeze(-1)
        tried = self.visits[x, node]
        bonus = exploration * ((1 + tried.sum(-1, keepdim=True)).log() / (1 + tried)).sqrt()
        score = (worth - self.low.unsqueeze(-1)) / span + bonus
        if self.log_habit is not None:
            score = score.masked_fill(self._led(self.log_habit) == -math.inf, -math.inf)
        return score.argmax(-1)

    def _led(self, x: Tensor) -> Tensor:
        """[*p, U] as [X, U]."""
        return x.repeat_interleave(self.rows.rows, 0) if x.ndim > 1 else x

    def _backed_up(self, worth: Tensor) -> Tensor:
        gamma = self.rows.gamma
        each = gamma.repeat_interleave(self.rows.rows) if isinstance(gamma, Tensor) else gamma
        return back_up(worth, each, self.backup, None if self.log_habit is None else self._led(self.log_habit))

    def _by_mind(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.rows.minds, self.rows.rows))

    def _predicted(self, believed: Tensor) -> Tensor:
        """q' [X, U, S] after every action."""
        flat = self.moves.flatten(-3, -2).mT  # [*p, S, U S']
        return (self._by_mind(believed) @ flat).flatten(0, 1).unflatten(-1, (-1, believed.shape[-1]))

    def _posterior(self, believed: Tensor, action: Tensor, seen: Tensor) -> Tensor:
        """Beliefs [X, S] after an action and an outcome."""
        ahead = self._predicted(believed)[self.range, action]
        if self.likelihood.ndim == 2:
            told = self.likelihood[seen]
        else:
            mind = self.range // self.rows.rows
            told = self.likelihood[mind, seen]
        both = ahead * told
        return both / both.sum(-1, keepdim=True).clamp(min=torch.finfo(both.dtype).tiny)

    def _ahead_of(self, believed: Tensor, level: Tensor) -> Tensor:
        """What beliefs [X, S] (or [X, U, S]) are worth at a level, if their state became known."""
        table = self.ahead[level.clamp(max=self.depth)] if self.ahead.ndim == 2 else None
        if table is None:
            table = self.ahead[level.clamp(max=self.depth), self.range // self.rows.rows]
        return (believed * (table if believed.ndim == 2 else table.unsqueeze(1))).sum(-1)

    def _one_step(self, ahead: Tensor, level: Tensor) -> Tensor:
        """g_1 [X, U] of predicted beliefs at the level of each tree."""
        if not self.model.timed:
            return self._worth(ahead, 0)
        found = torch.zeros_like(ahead[..., 0])
        for when in level.unique().tolist():
            found = torch.where((level == when).unsqueeze(-1), self._worth(ahead, self.t + when), found)
        return found

    def _worth(self, ahead: Tensor, t: int) -> Tensor:
        if t not in self.ways:
            self.ways[t] = expected_free_energy.ways_of_showing(self.wide, self.objective, t)
        worth = expected_free_energy.worth_of_showing(
            self.ways[t], (self._by_mind(ahead),), self.objective.state_weight
        )
        return worth.flatten(0, 1)

    def _add(self, place: Tensor, believed: Tensor, level: Tensor, new: Tensor) -> None:
        """A node of belief [X, S] at each tree's own place and level, where it is `new`."""
        ahead = self._predicted(believed)
        near = self._one_step(ahead, level)
        table = self.likelihood if self.likelihood.ndim == 2 else self.likelihood.unsqueeze(1)
        chance = (self._by_mind(ahead) @ table.mT).flatten(0, 1)
        far = self._ahead_of(ahead, level + 1)
        rows, where = self.range[new], place[new]
        self.belief[rows, where] = believed[new]
        self.near[rows, where] = near[new]
        self.far[rows, where] = far[new]
        self.chance[rows, where] = chance[new]
        self.value[rows, where] = self._backed_up(near + far)[new]
