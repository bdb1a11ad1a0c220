"""Games small enough to be solved by hand, for tests of learning; and a run in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.learning.players import make_players
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.training import Training
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.graph import Graph
from mfmarl.population.simulation import Simulation
from mfmarl.population.spec import Spec
from mfmarl.random import Key

ONE = gymnasium.spaces.Box(1.0, 1.0, (1,))


class Nothing(NamedTuple):
    tick: Tensor  # [E]


@dataclass(frozen=True)
class Arms(PopulationEnv):
    """A game without state: arm a pays `pay[a] + crowd (share of all on a)`."""

    num_agents: int = 8
    pay: tuple[float, ...] = (0.0, 1.0)
    crowd: float = 0.0
    horizon: int | None = 20
    groups: tuple[str, ...] = ("agent",)

    def spec(self) -> Spec:
        sizes = tuple(self.num_agents // len(self.groups) for _ in self.groups)
        return Spec(self.num_agents, ONE, gymnasium.spaces.Discrete(len(self.pay)), self.horizon, self.groups, sizes)

    def reset(self, ids: Tensor, key: Key) -> Nothing:
        return Nothing(torch.zeros_like(ids))

    def observe(self, state: Nothing) -> Tensor:
        return torch.ones((*state.tick.shape, 1))

    def step(self, state: Nothing, action: Tensor, ids: Tensor, key: Key) -> tuple[Nothing, Tensor]:
        share = torch.nn.functional.one_hot(action, len(self.pay)).float().mean(1)
        return Nothing(state.tick + 1), torch.tensor(self.pay)[action] + self.crowd * share.gather(1, action)


class Places(NamedTuple):
    cell: Tensor  # [E, N] int64
    alive: Tensor  # [E, N] bool


@dataclass(frozen=True)
class Corridor(PopulationEnv):
    """Three cells: 0 waits (and costs), 1 goes on; who leaves the last cell is paid and is gone."""

    num_agents: int = 16
    prize: float = 1.0
    wait: float = -0.1
    horizon: int | None = None

    def spec(self) -> Spec:
        return Spec(self.num_agents, gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(2), self.horizon)

    def reset(self, ids: Tensor, key: Key) -> Places:
        return Places(torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))

    def observe(self, state: Places) -> Tensor:
        return state.cell.clamp(max=2)

    def alive(self, state: Places) -> Tensor:
        return state.alive

    def step(self, state: Places, action: Tensor, ids: Tensor, key: Key) -> tuple[Places, Tensor]:
        cell = state.cell + action
        reward = torch.where(action == 0, self.wait, 0.0) + torch.where(cell == 3, self.prize, 0.0)
        return Places(cell, state.alive & (cell < 3)), reward


class Spins(NamedTuple):
    spin: Tensor  # [E, N]
    sweep: Tensor  # [E]
    alive: Tensor  # [E, N]


@dataclass(frozen=True)
class Lattice(PopulationEnv):
    """A torus of spins whose two colours move in turn; `risk` is the chance that one dies in a step."""

    side: int = 4
    risk: float = 0.0
    horizon: int | None = None
    turns: bool = True
    groups: tuple[str, ...] = ("agent",)
    graph: Graph = field(default=None, init=False, compare=False, repr=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "graph", Graph.torus_of((self.side, self.side)))

    def spec(self) -> Spec:
        n = self.side**2
        sizes = tuple(n // len(self.groups) for _ in self.groups)
        box = gymnasium.spaces.Box(-1.0, 1.0, (2,))
        return Spec(
            n, box, gymnasium.spaces.Discrete(2), self.horizon, groups=self.groups, group_sizes=sizes, graph=self.graph
        )

    def reset(self, ids: Tensor, key: Key) -> Spins:
        alive = torch.ones_like(ids, dtype=torch.bool)
        return Spins((random.uniform(key, ids) < 0.5).long(), torch.zeros(len(ids), dtype=torch.long), alive)

    def observe(self, state: Spins) -> Tensor:
        colour = self.graph.colouring().expand_as(state.spin)
        return torch.stack([2.0 * state.spin - 1, 2.0 * colour - 1], -1)

    def alive(self, state: Spins) -> Tensor:
        return state.alive

    def acting(self, state: Spins) -> Tensor | None:
        if not self.turns:
            return None
        return self.graph.colouring() == (state.sweep % 2).unsqueeze(-1)

    def standing(self, state: Spins) -> Tensor:
        return state.spin

    def step(self, state: Spins, action: Tensor, ids: Tensor, key: Key) -> tuple[Spins, Tensor]:
        x = 2 * action - 1
        reward = 0.5 * (x * self.graph.neighbour_sum(x)).float()
        alive = state.alive & (random.uniform(key.fold("risk"), ids) >= self.risk)
        return Spins(action, state.sweep + 1, alive), reward


@dataclass(frozen=True)
class Aim(PopulationEnv):
    """Continuous: pays -(a - target)^2 in each dimension; the target follows from what is seen."""

    num_agents: int = 16
    dims: int = 1
    reach: float = 3.0
    horizon: int | None = 10

    def spec(self) -> Spec:
        seen = gymnasium.spaces.Box(-1.0, 1.0, (1,))
        return Spec(self.num_agents, seen, gymnasium.spaces.Box(-self.reach, self.reach, (self.dims,)), self.horizon)

    def reset(self, ids: Tensor, key: Key) -> Places:
        side = (random.uniform(key.fold("side"), ids) < 0.5).long()
        return Places(side, torch.ones_like(ids, dtype=torch.bool))

    def observe(self, state: Places) -> Tensor:
        return (2.0 * state.cell - 1).unsqueeze(-1)

    def step(self, state: Places, action: Tensor, ids: Tensor, key: Key) -> tuple[Places, Tensor]:
        target = self.observe(state)
        side = (random.uniform(key.fold("side"), ids) < 0.5).long()
        return Places(side, state.alive), -(action - target).square().sum(-1)


def train(
    rules: PopulationEnv,
    agent: str | dict[str, Choice],
    options: dict[str, Any] | None = None,
    evaluate: bool = True,
    **run: Any,
) -> Training:
    """A run that is ready to go: iterate its `rows()`."""
    settings = RunOptions(**{"copies": 2, **run})
    agents = {"all": Choice(agent, options or {})} if isinstance(agent, str) else agent
    env = Simulation(rules, settings.copies)
    players = make_players(RunConfig(Choice("mini"), agents, settings), env.spec, Key.of(settings.seed), env.device)
    return Training(env, players, settings, Simulation(rules, 2) if evaluate else None)


def finish(training: Training) -> list[dict[str, Any]]:
    """Every row, without the clocks."""
    return [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in training.rows()]
