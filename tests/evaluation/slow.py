"""An environment that takes its time without taking the processor's: runs in which something can be killed."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

import mfmarl
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.spec import Spec
from mfmarl.random import Key, uniform


class State(NamedTuple):
    side: Tensor  # [E, N]


@mfmarl.register("slow")
@dataclass(frozen=True)
class Slow(PopulationEnv):
    """Guess the side that the noise will show; every step sleeps."""

    num_agents: int = 4
    sleep: float = 0.01

    def spec(self) -> Spec:
        return Spec(self.num_agents, Box(-1, 1, (1,), np.float32), Discrete(2))

    def reset(self, ids: Tensor, key: Key) -> State:
        return State(torch.zeros_like(ids))

    def observe(self, state: State) -> Tensor:
        return state.side.float().unsqueeze(-1)

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        time.sleep(self.sleep)
        side = (uniform(key, ids) < 0.3 + 0.4 * state.side).long()
        return State(side), (action == side).float()
