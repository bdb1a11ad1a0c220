r"""Populations that chase one another round: each is drawn to the one before it and flees the one after it.

$$ r^i_t(s; \mu) = -c \log(\mu^i_t(s) + \epsilon) + \mu^{i-1}_t(s) - \mu^{i+1}_t(s) $$

with i counted round. One moves on a square that ends at its edges, or on a torus, and is then pushed one cell with
probability `noise` (Perolat et al. 2021, arXiv 2103.00623, section 5.4; `python_mfg_predator_prey` of OpenSpiel). What
the chases pay sums to zero over the populations, so the game is monotone: mirror descent and fictitious play go to its
equilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Kernel, Moves, Outcomes, grid_moves
from mfmarl.games.reference import equilibrium
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_MATRIX = 1 << 17  # entries of a matrix [S, A, S] up to which one product is fastest
_STEPS = torch.tensor([[0, 0], [0, 1], [1, 0], [-1, 0], [0, -1]])  # stay, right, down, up, left
_CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))  # rows and columns where populations start


@register("predator_prey")
@dataclass(frozen=True)
class PredatorPrey(MeanFieldGame):
    """Three populations that chase each other round."""

    num_agents: Count = 300
    """Number of agents, of all populations."""
    horizon: Count | None = 10
    """Number of decisions."""
    size: Annotated[int, Bounds(2, 1 << 14)] = 5
    """Cells along each side."""
    torus: bool = False
    """Whether what leaves on one side comes in on the other."""
    noise: Annotated[float, Bounds(0, 1)] = 0.8
    """Probability of a push, in each of the four directions alike."""
    aversion: Annotated[float, Bounds(0, 1e6)] = 1.0
    """c, weight of -log mu of one's own population."""
    chase: Amount = 1.0
    """What being where the prey is pays, and being where the predator is costs."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-25
    """Added to shares before the logarithm."""

    crowd_moves = False
    groups = ("first", "second", "third")

    @property
    def num_states(self) -> int:
        return self.size**2

    @property
    def num_actions(self) -> int:
        return len(_STEPS)

    def initial(self) -> Tensor:
        mu = torch.zeros(self.num_groups, self.size, self.size, dtype=torch.float64)
        for g in range(self.num_groups):
            mu[(g, *_CORNERS[g])] = 1
        return mu.flatten(1)

    @cached_property
    def _neighbours(self) -> Tensor:
        return grid_moves((self.size, self.size), _STEPS, self.torus)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        there = self._neighbours.to(crowd.mu.device)
        push = torch.tensor([1 - self.noise, *[self.noise / 4] * 4], dtype=torch.float64, device=there.device)
        if self.num_states**2 * self.num_actions > _MATRIX:
            return Moves(there, there, push.to(crowd.mu))
        return Outcomes(there[there], push.to(crowd.mu).expand(*there.shape, 5))

    @cached_property
    def drawn(self) -> Tensor:
        """R: what i gains where j is, float64 [G, G]; antisymmetric."""
        here = torch.eye(self.num_groups, dtype=torch.float64)
        return self.chase * (here.roll(-1, 1) - here.roll(1, 1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        mu = crowd.mu
        return (self.drawn.to(mu) @ mu - self.aversion * (mu + self.floor).log()).unsqueeze(-1)

    def coordinates(self) -> Tensor:
        cells = torch.arange(self.size**2)
        place = torch.stack([cells // self.size, cells % self.size], -1)
        return place / (self.size - 1) * 2 - 1

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """`meeting`: how often a predator and its prey, drawn at random, stand in one cell; `spread` of each population."""
        found = {name: value for name, value in super().measures(mu).items() if name.startswith("spread")}
        return {"meeting": (mu * mu.roll(1, -2)).sum(-1).mean(-1), **found}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Each population in its colour, the more of it the stronger."""
        mu = self.crowd(GameState(*(x[copy : copy + 1] for x in state))).mu[0].cpu()
        depth = (mu / mu.amax(-1, keepdim=True)).sqrt()  # [G, S]
        ink = 1 - picture.palette(self.num_groups).double() / 255
        cells = (1 - (depth.unsqueeze(-1) * ink.unsqueeze(1)).sum(0)).clamp(0, 1)
        return picture.enlarged((cells * 255).round().to(torch.uint8).view(self.size, self.size, 3))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(PredatorPrey)
