"""An environment and an agent that break in every way, at a chosen step, for tests of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

import mfmarl
from mfmarl.learning.agent import Agent, AgentConfig
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key


class State(NamedTuple):
    step: Tensor  # [E, N]


@dataclass(frozen=True)
class Breaking(PopulationEnv):
    """Breaks where it is told to."""

    fault: str = ""
    """Where."""
    at: int = 45
    """When, in calls of `step` in both populations."""
    steps: ClassVar[int] = 0
    resets: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.fault == "made":
            raise RuntimeError("no ground to build on")

    def spec(self) -> Spec:
        if self.fault == "spec":
            raise KeyError("spaces")
        return Spec(3, Box(-1, 1, (2,)), Discrete(3), 12)

    def reset(self, ids: Tensor, key: Key) -> State:
        if self.fault == "first reset" or (self.fault == "later reset" and Breaking.resets > 3):
            raise RuntimeError("the map is missing")
        Breaking.resets += 1
        return State(torch.zeros_like(ids))

    def observe(self, state: State) -> Tensor:
        return torch.zeros(*state.step.shape, 2)

    def measure(self, state: State) -> dict[str, Tensor]:
        Breaking.steps += 1
        if self.fault == "measure" and Breaking.steps > self.at:
            raise IndexError("nothing to measure")
        return {}

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> Any:
        Breaking.steps += 1
        reward: Any = (action == 1).float()
        if Breaking.steps > self.at:
            if self.fault == "nan":
                reward[1, 2] = float("nan")
            if self.fault == "huge":
                reward = reward + 1e30
            if self.fault == "words":
                reward = ["a", "b"]
            if self.fault == "nothing":
                return None
            if self.fault == "memory":
                raise MemoryError
            if self.fault == "lines":
                raise ValueError("first line\\nsecond line\\nthird")
            if self.fault == "silent":
                raise AssertionError
            if self.fault == "grown":
                return State(torch.zeros(2, 9, dtype=torch.int64)), reward
        return State(state.step + 1), reward


@mfmarl.register("wild")
class Wild(Agent):
    """Does what nobody can."""

    Config = AgentConfig

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        return torch.zeros(*obs.shape[:2], self.spec.num_actions)

    def act(self, timestep: Timestep, field: Tensor, ids: Tensor, key: Key) -> Tensor:
        Breaking.steps += 1
        action = torch.zeros_like(ids)
        return action + 7 if Breaking.steps > 90 else action
