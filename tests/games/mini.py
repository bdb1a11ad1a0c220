"""Games of random tables, small enough that everything about them can be counted by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.games.flow import times
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key


def table(seed: int, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def simplex(seed: int, *shape: int) -> Tensor:
    """Probabilities along the last axis, none of them 0."""
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), size=shape[:-1]))


@dataclass(frozen=True)
class Tiny(MeanFieldGame):
    """r(s, a) = r0(s, a) - coupling (C mu)(s), C positive semidefinite: a monotone potential game where `pull` is 0.

    With `pull` everybody is drawn to where the crowd is: P = (1 - pull) P0 + pull mu.
    """

    horizon: int | None = 3
    seed: int = 0
    states: int = 3
    actions: int = 2
    coupling: float = 1.0
    pull: float = 0.0
    banned: bool = False
    last: float = 0.0
    toil: float = 0.0

    @property
    def num_states(self) -> int:
        return self.states

    @property
    def num_actions(self) -> int:
        return self.actions

    @cached_property
    def paid_alone(self) -> Tensor:
        """r0 [G, S, A]."""
        return table(self.seed, self.num_groups, self.states, self.actions)

    @cached_property
    def mutual(self) -> Tensor:
        """C [G S, G S]."""
        root = table(self.seed + 1, self.num_groups * self.states, self.num_groups * self.states)
        return self.coupling * root @ root.T / len(root)

    @cached_property
    def alone(self) -> Tensor:
        """P0 [G, S, A, S]."""
        return simplex(self.seed + 2, self.num_groups, self.states, self.actions, self.states)

    def initial(self) -> Tensor:
        return simplex(self.seed + 3, self.num_groups, self.states)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        own = self.alone.to(crowd.mu)
        if self.time_dependent:
            own = own.roll(t, -1)
        return Dense((1 - self.pull) * own + self.pull * crowd.mu.unsqueeze(-2).unsqueeze(-2))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        met = (crowd.mu.flatten(-2) @ self.mutual.to(crowd.mu)).unflatten(-1, crowd.mu.shape[-2:])
        return (1 + t / 2) * (self.paid_alone.to(crowd.mu) - met.unsqueeze(-1))

    def potential(self, t: int, crowd: Crowd) -> Tensor | None:
        met = (crowd.mu.flatten(-2) @ self.mutual.to(crowd.mu)).unflatten(-1, crowd.mu.shape[-2:])
        return (1 + t / 2) * (
            (self.paid_alone.to(crowd.mu) * crowd.joint).sum((-3, -2, -1)) - (met * crowd.mu).sum((-2, -1)) / 2
        )

    def effort(self) -> Tensor | None:
        return self.toil * table(self.seed + 4, self.num_groups, self.states, self.actions) if self.toil else None

    def terminal(self, crowd: Crowd) -> Tensor | None:
        return self.last * (table(self.seed + 5, self.num_groups, self.states).to(crowd.mu) - crowd.mu)

    def allowed(self) -> Tensor | None:
        # State 0 has its first action alone.
        mask = torch.ones(self.states, self.actions, dtype=torch.bool)
        mask[0, 1:] = False
        return mask if self.banned else None


@dataclass(frozen=True)
class Seasonal(Tiny):
    """Rewards grow and dynamics turn with the time."""

    time_dependent = True


@dataclass(frozen=True)
class Teams(Tiny):
    """Two populations, each with tables of its own, that meet in the rewards."""

    groups = ("red", "blue")


@dataclass(frozen=True)
class Market(Tiny):
    """An extended game: an action pays less the more choose it."""

    extended = True

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return super().rewards(t, crowd) - crowd.actions.unsqueeze(-2)

    def potential(self, t: int, crowd: Crowd) -> Tensor | None:
        alone = super().potential(t, crowd)
        assert alone is not None
        return alone - (crowd.actions**2).sum((-2, -1)) / 2


@dataclass(frozen=True)
class Fair(Market):
    """A market that says that its dynamics do not depend on the crowd."""

    crowd_moves = False


def some_policy(game: MeanFieldGame, seed: int, *batch: int) -> Tensor:
    """A random policy [T, *batch, G, S, A]; only what is legal."""
    shape = (times(game), *batch, game.num_groups, game.num_states, game.num_actions)
    policy = simplex(seed, *shape)
    legal = game.legal_mask()
    if legal is not None:
        policy = policy * legal
        policy = policy / policy.sum(-1, keepdim=True)
    return policy


def played(game: MeanFieldGame, policy: Tensor, copies: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """N agents play a policy [T, G, S, A]: counted shares [T + 1, E, G, S], and group means of rewards [T, E, G]."""
    key = Key.of(seed)
    ids = agent_ids(copies, game.num_agents)
    group = torch.repeat_interleave(torch.arange(game.num_groups), torch.tensor(game.group_sizes))
    state: Any = game.reset(ids, key.fold("reset"))
    shares, rewards = [game.crowd(state).mu], []
    for t, chosen in enumerate(policy):
        cumulative = chosen[group, state.state].cumsum(-1)
        level = random.uniform(key.fold("act", t), ids).double()
        action = (level.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)
        state, reward = game.step(state, action, ids, key.fold("step", t))
        shares.append(game.crowd(state).mu)
        by_group = [reward[:, group == g].double().mean(-1) for g in range(game.num_groups)]
        rewards.append(torch.stack(by_group, -1))
    return torch.stack(shares), torch.stack(rewards)
