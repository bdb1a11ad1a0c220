r"""A game drawn at random whose rewards and transitions are affine in the crowd.

$$ r(s, a; L) = (R_1 L + R_2)_{sa}, \qquad
   P(\cdot \mid s, a; L) = \mathrm{softmax}_{s'} \big( (P_1(s') L + P_2(s'))_{sa} \big) $$

with n states, n actions and entries uniform on (-m, m) (after mfglib 0.3). An extended game, monotone only by chance.
The tables are keyed noise of `table_seed`: the same on every machine, whatever else is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Dense
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count, Seed
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.random import Key
from mfmarl.registry import register


class Tables(NamedTuple):
    slope: Tensor  # R_1, [S, S]
    offset: Tensor  # R_2, [S, A]
    move_slope: Tensor  # P_1, [S', S, S]
    move_offset: Tensor  # P_2, [S', S, A]


@register("random_linear")
@dataclass(frozen=True)
class RandomLinear(MeanFieldGame):
    """A random game, affine in the shares of states and actions."""

    horizon: Count | None = 4
    """Number of decisions."""
    states: Annotated[int, Bounds(2, 128)] = 5
    """n: number of states, and of actions."""
    scale: Annotated[float, Bounds(0, 1e6)] = 10.0
    """m: entries of the tables lie between -m and m."""
    table_seed: Seed = 0
    """Which game."""

    extended = True

    @property
    def num_states(self) -> int:
        return self.states

    @property
    def num_actions(self) -> int:
        return self.states

    def initial(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)

    @cached_property
    def tables(self) -> Tables:
        n = self.states
        sizes = ((n, n), (n, n), (n, n, n), (n, n, n))
        key = Key.of(self.table_seed)
        drawn = []
        for name, size in zip(Tables._fields, sizes, strict=True):
            cells = torch.arange(torch.Size(size).numel())
            level = random.uniform(key.fold(name), cells).to(torch.float64)
            drawn.append(((2 * level - 1) * self.scale).view(size))
        return Tables(*drawn)

    def outcomes(self, t: int, crowd: Crowd) -> Dense:
        joint = crowd.joint
        # [..., S', S, A] -> [..., S, A, S'].
        logits = self.tables.move_slope.to(joint) @ joint.unsqueeze(-3) + self.tables.move_offset.to(joint)
        return Dense(logits.softmax(-3).movedim(-3, -1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return self.tables.slope.to(crowd.mu) @ crowd.joint + self.tables.offset.to(crowd.mu)

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        return picture.bars(self.crowd(state).mu[copy, 0], picture.palette(self.states))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(RandomLinear)
