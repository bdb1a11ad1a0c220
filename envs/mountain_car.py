r"""Mountain Car, each in a valley of its own: nothing is earned until the top is reached, and nobody says where it is.

$$ v' = \mathrm{clip}\big( v + p\, a - 0.0025 \cos 3x,\ \pm 0.07 \big), \qquad x' = \mathrm{clip}(x + v',\ -1.2,\ 0.6) $$

The engine is too weak for the slope: a car has to swing. Moore 1990 (PhD thesis, Cambridge); the numbers are
Gymnasium's, of MountainCarContinuous-v0 (p = .0015, the goal at .45, any push a from -1 to 1) and of MountainCar-v0 (p = .001, the goal at
.5, a = -1, 0, 1). With the sparse reward, +1 at the goal and 0 else, this is the test of exploration of Tschantz et al. 2020, arXiv 2002.12636.
Cars do not meet: N of them are N independent experiments, and with a mind each they are N seeds at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from mfmarl import random
from mfmarl.options import Bounds
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.picture import BACKGROUND, palette
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register

LEFT, RIGHT, FASTEST, GRAVITY = -1.2, 0.6, 0.07, 0.0025
ENGINE = {"continuous": 0.0015, "discrete": 0.001}
GOAL = {"continuous": 0.45, "discrete": 0.5}


class State(NamedTuple):
    position: Tensor  # [E, N], float32, or float64 where actions are discrete: as Gymnasium keeps them
    velocity: Tensor  # [E, N]
    arrived: Tensor  # [E, N] bool
    visited: Tensor  # [E, bins^2] bool, cells of (position, velocity) that somebody has been in


@register("mountain_car")
@dataclass(frozen=True)
class MountainCar(PopulationEnv):
    """Cars with weak engines in steep valleys, who are told only when they have come out."""

    num_agents: Annotated[int, Bounds(1, 1 << 30)] = 1
    """Cars, each in its own valley."""
    actions: Literal["continuous", "discrete"] = "continuous"
    """A push from -1 to 1 (Gymnasium's MountainCarContinuous-v0), or one of left, none, right (MountainCar-v0)."""
    reward: Literal["sparse", "gymnasium"] = "sparse"
    """sparse: 1 on arriving, else 0; gymnasium: 100 on arriving less .1 a^2 a step, or -1 a step where actions are discrete."""
    repeat: Annotated[int, Bounds(1, 100)] = 1
    """Steps of the physics that each action lasts."""
    horizon: Annotated[int, Bounds(1, 1 << 40)] | None = 500
    """Actions of an episode; none: until everyone has arrived."""
    bins: Annotated[int, Bounds(2, 200)] = 20
    """Cells along position and velocity, for the coverage."""

    def spec(self) -> Spec:
        low = np.array([LEFT, -FASTEST], np.float32)
        high = np.array([RIGHT, FASTEST], np.float32)
        one = np.ones(1, np.float32)
        return Spec(
            num_agents=self.num_agents,
            observation_space=Box(low, high, dtype=np.float32),
            action_space=Box(-one, one, dtype=np.float32) if self.actions == "continuous" else Discrete(3),
            horizon=self.horizon,
            discount=0.99,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        """At rest near the bottom, -.6 to -.4."""
        position = -0.6 + 0.2 * random.uniform(key.fold("position"), ids)
        position = position if self.actions == "continuous" else position.double()
        state = State(
            position=position,
            velocity=torch.zeros_like(position),
            arrived=torch.zeros_like(ids, dtype=torch.bool),
            visited=torch.zeros((len(ids), self.bins**2), dtype=torch.bool, device=ids.device),
        )
        return state._replace(visited=self._mark(state))

    def observe(self, state: State) -> Tensor:
        return torch.stack([state.position, state.velocity], -1).to(torch.float32)

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        push = action[..., 0].clamp(-1.0, 1.0) if self.actions == "continuous" else (action - 1).to(torch.float32)
        reward = torch.zeros_like(state.position, dtype=torch.float32)
        for _ in range(self.repeat):
            before = state.arrived
            state = self._move(state, push)
            first = state.arrived & ~before
            if self.reward == "sparse":
                paid = first.to(torch.float32)
            elif self.actions == "continuous":
                paid = 100.0 * first - 0.1 * action[..., 0].square()
            else:
                paid = torch.full_like(reward, -1.0)
            reward = reward + torch.where(before, 0.0, paid)
        return state, reward

    def _move(self, state: State, push: Tensor) -> State:
        x, v = state.position, state.velocity
        # The slope in double, as Gymnasium's: a cosine in float32 drifts from it within an episode.
        slope = GRAVITY * torch.cos(3 * x.double())
        v_next = (v + push.double() * ENGINE[self.actions] - slope).clamp(-FASTEST, FASTEST).to(x.dtype)
        x_next = (x + v_next).clamp(LEFT, RIGHT)
        v_next = torch.where((x_next <= LEFT) & (v_next < 0), 0.0, v_next)
        there = (x_next >= GOAL[self.actions]) & (v_next >= 0)
        moved = State(
            position=torch.where(state.arrived, x, x_next),
            velocity=torch.where(state.arrived, v, v_next),
            arrived=state.arrived | there,
            visited=state.visited,
        )
        return moved._replace(visited=self._mark(moved))

    def alive(self, state: State) -> Tensor:
        """Who has not yet arrived."""
        return ~state.arrived

    def done(self, state: State) -> Tensor:
        return state.arrived.all(-1)

    def cell(self, position: Tensor, velocity: Tensor) -> Tensor:
        """The cell of phase space [...] that each is in: position is the slower index."""
        column = ((position - LEFT) / (RIGHT - LEFT) * self.bins).long().clamp(0, self.bins - 1)
        row = ((velocity + FASTEST) / (2 * FASTEST) * self.bins).long().clamp(0, self.bins - 1)
        return column * self.bins + row

    def _mark(self, state: State) -> Tensor:
        # A scatter of ones only: the order of who writes does not matter.
        return state.visited.scatter(1, self.cell(state.position, state.velocity), True)

    def measure(self, state: State) -> dict[str, Tensor]:
        """The share of cars that have arrived, and the share of phase space that this episode's cars have been in."""
        return {
            "arrived": state.arrived.to(torch.float32).mean(-1),
            "coverage": state.visited.to(torch.float32).mean(-1),
            "height": _height(state.position).float().mean(-1),
        }

    def render(self, state: State, copy: int = 0) -> Tensor:
        """The valley, the flag's height at the goal, and where the cars are in it, all in one picture."""
        wide, high = 384, 256
        picture = torch.tensor(BACKGROUND, dtype=torch.uint8).repeat(high, wide, 1)
        colours = palette(6)
        columns = torch.arange(wide)
        x = LEFT + (RIGHT - LEFT) * (columns + 0.5) / wide
        ground = _row(x, high)
        rows = torch.arange(high).unsqueeze(-1)
        picture[rows >= ground] = torch.tensor((205, 205, 205), dtype=torch.uint8)
        flag = int((GOAL[self.actions] - LEFT) / (RIGHT - LEFT) * wide)
        top = int(ground[flag])
        picture[max(top - 28, 0) : top, flag : flag + 2] = colours[5]
        position = state.position[copy].cpu().float()
        place = ((position - LEFT) / (RIGHT - LEFT) * wide).long().clamp(3, wide - 4)
        level = _row(position, high) - 3
        for down in range(-3, 4):
            for right in range(-3, 4):
                if down * down + right * right <= 10:
                    picture[(level + down).clamp(0, high - 1), place + right] = colours[0]
        return picture


def _height(position: Tensor) -> Tensor:
    """The height of the valley's side, .1 to 1."""
    return torch.sin(3 * position) * 0.45 + 0.55


def _row(position: Tensor, high: int) -> Tensor:
    return (high * (1.08 - 0.95 * _height(position))).long().clamp(0, high - 1)


parallel_env, env = faces(MountainCar)
