r"""A building of several floors that empties: to the ground floor by stairs in opposite corners, without a crush.

$$ r_t(s, a; \mu) = R\, [\text{floor} = 0] - \eta \log \max(\mu_t(s), \epsilon) $$

One walks along the floor in four directions, downstairs from corner (0, 0) and upstairs from the opposite corner;
all moves succeed, and walls stop. Perolat et al. 2021 (arXiv 2103.00623, section 5) in the form of mfglib 0.3. A
monotone potential game: the crowd enters by -log mu alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame, table
from mfmarl.games.kernels import Outcomes, grid_moves
from mfmarl.games.reference import equilibrium
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

DOWN, UP = 4, 5
_STEPS = ((0, 1, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (-1, 0, 0), (1, 0, 0))


@register("building_evacuation")
@dataclass(frozen=True)
class BuildingEvacuation(MeanFieldGame):
    """People who leave a building; a state is (floor, row, column), the column running fastest."""

    horizon: Count | None = 4
    """Number of decisions."""
    floors: Annotated[int, Bounds(1, 1 << 10)] = 5
    """Number of floors."""
    length: Annotated[int, Bounds(1, 1 << 12)] = 10
    """Rows of a floor."""
    width: Annotated[int, Bounds(1, 1 << 12)] = 10
    """Columns of a floor."""
    safety: Amount = 10.0
    """R: what a step on the ground floor is worth."""
    aversion: Annotated[float, Bounds(0, 1e6)] = 1.0
    """eta: how much a crush is disliked."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-20
    """Shares are taken to be at least this in the logarithm."""

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return self.floors * self.length * self.width

    @property
    def num_actions(self) -> int:
        return 6

    def initial(self) -> Tensor:
        return torch.full((self.num_states,), 1 / self.num_states, dtype=torch.float64)

    @cached_property
    def _doors(self) -> Outcomes:
        there = grid_moves((self.floors, self.length, self.width), torch.tensor(_STEPS))
        here = torch.arange(self.num_states)
        tile, corner = here % (self.length * self.width), self.length * self.width - 1
        there[:, DOWN] = torch.where(tile == 0, there[:, DOWN], here)
        there[:, UP] = torch.where(tile == corner, there[:, UP], here)
        return Outcomes(there.unsqueeze(-1), torch.ones(self.num_states, 6, 1, dtype=torch.float64))

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        return Outcomes(self._doors.successor.to(crowd.mu.device), self._doors.probability.to(crowd.mu))

    def _safe(self, like: Tensor) -> Tensor:
        return self.safety * (torch.arange(self.num_states) < self.length * self.width).to(like)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return (self._safe(crowd.mu) - self.aversion * crowd.mu.clamp(min=self.floor).log()).unsqueeze(-1)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        mu = crowd.mu
        # The integral of log max(mu, e) from 0: e log e up to e, then mu log mu - mu.
        above = torch.special.xlogy(mu, mu) - mu + self.floor
        dense = torch.where(mu > self.floor, above, mu * table([self.floor], mu).log())
        return (self._safe(mu) * mu - self.aversion * dense).sum((-2, -1))

    def coordinates(self) -> Tensor:
        return _centred((self.floors, self.length, self.width))

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        floors = mu[..., 0, :].unflatten(-1, (self.floors, -1)).sum(-1)
        height = torch.arange(self.floors).to(mu)
        return {"evacuated": floors[..., 0], "height": floors @ height}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """The floors side by side, the ground floor on the left; darker where more people are."""
        mu = self.crowd(state).mu[copy, 0].view(self.floors, self.length, self.width)
        gap = mu.new_zeros(self.length, 1)
        plan = torch.cat([x for floor in mu for x in (floor, gap)][:-1], 1)
        grey = (255 - 255 * (plan / mu.max()).sqrt()).to(torch.uint8)
        coloured = torch.stack([grey, grey, torch.full_like(grey, 250)], -1)
        coloured[:, self.width :: self.width + 1] = 60
        return picture.enlarged(coloured)

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


def _centred(shape: tuple[int, ...]) -> Tensor:
    """Every cell's coordinates in [-1, 1], [S, D]."""
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))


parallel_env, env = faces(BuildingEvacuation)
