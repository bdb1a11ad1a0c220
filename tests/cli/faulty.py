"""Environments that break their contract, for tests: what a user's own first attempt may look like."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

import mfmarl
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.spec import Spec
from mfmarl.random import Key


class State(NamedTuple):
    step: Tensor  # [E, N]


@mfmarl.register("faulty")
@dataclass(frozen=True)
class Faulty(PopulationEnv):
    """Counts steps, and breaks at one of them in a chosen way."""

    num_agents: int = 3
    at: int = 30
    fault: str = ""

    def __post_init__(self) -> None:
        if self.num_agents < 1:
            raise mfmarl.errors.ConfigError(f"num_agents must be at least 1, not {self.num_agents}.")

    def spec(self) -> Spec:
        return Spec(self.num_agents, Box(-1, 1, (2,), np.float32), Discrete(3))

    def reset(self, ids: Tensor, key: Key) -> State:
        return State(torch.zeros_like(ids))

    def observe(self, state: State) -> Tensor:
        broken = self.fault == "shape" and int(state.step[0, 0]) >= self.at
        obs = torch.zeros(*state.step.shape, 5 if broken else 2)
        if self.fault == "observation" and int(state.step[0, 0]) >= self.at:
            obs[0, 1, 0] = float("nan")
        return obs

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        reward = (action == 1).float()
        if int(state.step[0, 0]) + 1 >= self.at:
            if self.fault == "raise":
                raise ZeroDivisionError("the market crashed")
            if self.fault == "reward":
                reward[0, 2] = float("inf")
            if self.fault == "exit":
                import os

                os._exit(7)
        return State(state.step + 1), reward
