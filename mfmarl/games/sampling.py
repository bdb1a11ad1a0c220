r"""Paths of single agents amid a crowd that is held: they meet infinitely many others, and do not move them.

What is met with is told by mind and row. A mind learns for one group of one entry of the batch, from D flows (one, or
several that differ in how they start); a row is one (flow, time, state) of its. Noise is keyed by flow, group and agent,
so that an entry of a batch does not know of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.games.flow import Flow, times
from mfmarl.games.game import MeanFieldGame
from mfmarl.random import Key


@dataclass(frozen=True)
class Layout:
    """How tables by time, [T, E, G, S, ...] with E = *b x D flows, become tables by mind, [M, D T S, ...], and back."""

    times: int
    batch: tuple[int, ...]
    starts: int
    groups: int
    states: int

    @property
    def flows(self) -> int:
        return math.prod(self.batch) * self.starts

    @property
    def minds(self) -> int:
        return math.prod(self.batch) * self.groups

    def by_mind(self, x: Tensor) -> Tensor:
        """[T', E, G, S, X] -> [M, D T' S, X], for any number T' of times; E may come as 1."""
        x = x.expand(-1, self.flows, -1, -1, -1)
        x = x.unflatten(1, (-1, self.starts))
        return x.permute(1, 3, 2, 0, 4, 5).reshape(self.minds, -1, x.shape[-1])

    def by_time(self, x: Tensor) -> Tensor:
        """[M, D T' S, X] -> [T', E, G, S, X]."""
        x = x.unflatten(0, (-1, self.groups)).unflatten(2, (self.starts, -1, self.states))
        return x.permute(3, 0, 2, 1, 4, 5).flatten(1, 2)

    def with_batch(self, x: Tensor) -> Tensor:
        """[T, E, ...] -> [T, *b, ...], of one start."""
        return x.unflatten(1, self.batch) if self.batch else x.squeeze(1)


def layout_of(game: MeanFieldGame, batch: Sequence[int], starts: int = 1) -> Layout:
    return Layout(times(game), tuple(batch), starts, game.num_groups, game.num_states)


class Paths(NamedTuple):
    """What `agents` of each flow met with, L steps long: N = D x agents to a mind."""

    row: Tensor  # [L, M, N] int64, what they saw
    action: Tensor  # [L, M, N] int64
    reward: Tensor  # [L, M, N] float32, a terminal reward included
    after: Tensor  # [L, M, N] int64, what they saw next; where nothing comes next, any row
    goes_on: Tensor  # [L] float32, 1 where something does

    def transitions(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Row, action, reward, row after, whether it goes on: [M, L N]."""
        on = self.goes_on.view(-1, 1, 1).expand(self.reward.shape)
        row, action, reward, after, on = (
            x.transpose(0, 1).flatten(1) for x in (self.row, self.action, self.reward, self.after, on)
        )
        return row, action, reward, after, on


def walk(
    game: MeanFieldGame,
    layout: Layout,
    path: Flow,
    behaviour: Tensor,
    agents: int,
    length: int,
    scatter: float,
    key: Key,
) -> Paths:
    """Paths of agents who follow `behaviour` [T, E, G, S, A] amid the crowd of `path`: T steps, or `length` without a
    horizon. At each step an agent finds itself, with probability `scatter`, in any state instead of the one it came to.
    """
    flows, groups, states, width = layout.flows, layout.groups, layout.states, game.num_actions
    device = behaviour.device
    ids = torch.arange(flows * groups * agents, device=device).view(flows, -1)
    group = torch.arange(groups, device=device).repeat_interleave(agents)
    steps = layout.times if game.horizon is not None else length
    state = drawn(path.mu[0], group, random.uniform(key.fold("start"), ids))
    found: list[tuple[Tensor, ...]] = []
    for step in range(steps):
        t = step if game.horizon is not None else 0
        if scatter:
            anywhere = random.integers(key.fold("where", step), ids, states)
            state = torch.where(random.uniform(key.fold("scatter", step), ids) < scatter, anywhere, state)
        cell = group * states + state
        chances = at_cells(behaviour[t].flatten(1, 2), cell)
        action = choice(chances, random.uniform(key.fold("act", step), ids))
        reward = path.rewards[t].reshape(flows, -1).gather(1, cell * width + action)
        level = random.uniform(key.fold("move", step), ids)
        after = path.kernels[t].draw(group, state, action, level)
        if game.horizon is not None and step == steps - 1 and path.terminal is not None:
            # What comes at the end is discounted once: the value of the step is r + gamma x terminal.
            reward = reward + game.discount * path.terminal.reshape(flows, -1).gather(1, group * states + after)
        following = t + 1 if game.horizon is not None and t + 1 < layout.times else t
        found.append((_row(layout, t, state), _of_mind(layout, action), _of_mind(layout, reward).float(),
                      _row(layout, following, after)))  # fmt: skip
        state = after
    on = torch.ones(steps, device=device)
    if game.horizon is not None:
        on[-1] = 0
    row, action, reward, after = (torch.stack(x) for x in zip(*found, strict=True))
    return Paths(row, action, reward, after, on)


def _of_mind(layout: Layout, x: Tensor) -> Tensor:
    """[E, G n] -> [M, D n]."""
    x = x.unflatten(1, (layout.groups, -1)).unflatten(0, (-1, layout.starts))
    return x.transpose(1, 2).reshape(layout.minds, -1)


def _row(layout: Layout, t: int, state: Tensor) -> Tensor:
    """The rows [M, D n] of agents in `state` [E, G n] at time t."""
    which = torch.arange(layout.flows, device=state.device).remainder(layout.starts).unsqueeze(1)
    return _of_mind(layout, (which * layout.times + t) * layout.states + state)


def drawn(mu: Tensor, group: Tensor, level: Tensor) -> Tensor:
    """States [E, N] of agents of those groups, from mu [E, G, S]."""
    state = torch.empty(level.shape, dtype=torch.int64, device=mu.device)
    cumulative = mu.cumsum(-1)
    for g in range(mu.shape[1]):
        mine = group == g
        edges = cumulative[:, g].contiguous()
        state[:, mine] = torch.searchsorted(
            edges, (level[:, mine].to(mu.dtype) * edges[:, -1:]).contiguous(), right=True
        )
    return state.clamp_(max=mu.shape[-1] - 1)


def at_cells(table: Tensor, cell: Tensor) -> Tensor:
    """[E, G S, A] at cell [E, N]: [E, N, A]."""
    return table.gather(1, cell.unsqueeze(-1).expand(-1, -1, table.shape[-1]))


def at_place(table: Tensor, place: Tensor) -> Tensor:
    """The rows [B, G, A] of a table [B, G, S, A] at place [B, G]: of one agent of each group."""
    return table.gather(2, place[..., None, None].expand(-1, -1, 1, table.shape[-1])).squeeze(2)


def choice(chances: Tensor, level: Tensor) -> Tensor:
    """Which action the level falls to: int64, never one of probability 0."""
    cumulative = chances.cumsum(-1)
    return (level.to(chances.dtype).unsqueeze(-1) * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)


def exploring(policy: Tensor, legal: Tensor | None, share: float) -> Tensor:
    """The policy [..., A] that takes any legal action alike with probability `share`."""
    if legal is None:
        return (1 - share) * policy + share / policy.shape[-1]
    weight = legal.to(policy.dtype)
    return (1 - share) * policy + share * weight / weight.sum(-1, keepdim=True)
