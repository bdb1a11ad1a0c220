r"""A crowd on a ring that wants to be at one place and not in a crowd.

$$ r_t(s, a; \mu) = 1 - \frac{|s - c|}{c} - \frac{|a|}{S} - \log(\mu_t(s) + \epsilon), \qquad
   s_{t+1} = s_t + a_t + e_t \bmod S $$

with c the middle and e one of -1, 0, 1 alike (Perrin et al. 2020, arXiv 2007.03458, section 5.2; `mfg_crowd_modelling`
of OpenSpiel). A move is paid for when it is made, by who makes it, the last one too. The crowd enters by -log mu
alone: a potential game with one equilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Kernel, Moves, Outcomes, grid_moves
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_SMALL = 256  # places up to which a step is one product with the matrix


@register("crowd_modelling")
@dataclass(frozen=True)
class CrowdModelling(MeanFieldGame):
    """A crowd on a ring, drawn to one place and away from each other."""

    horizon: Count | None = 10
    """Number of decisions."""
    places: Annotated[int, Bounds(3, 1 << 24)] = 10
    """Places of the ring."""
    aversion: Annotated[float, Bounds(0, 1e6)] = 1.0
    """Weight of -log mu."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-25
    """Added to shares before the logarithm."""

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return self.places

    @property
    def num_actions(self) -> int:
        return 3

    def initial(self) -> Tensor:
        return torch.full((self.places,), 1 / self.places, dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        beside = grid_moves((self.places,), torch.arange(-1, 2).unsqueeze(-1), torus=True).to(crowd.mu.device)
        chance = torch.full((3,), 1 / 3, dtype=torch.float64, device=crowd.mu.device)
        if self.places > _SMALL:
            return Moves(beside, beside, chance.to(crowd.mu))
        return Outcomes(beside[beside], chance.expand(self.places, 3, 3).to(crowd.mu))

    @property
    def nearness(self) -> Tensor:
        """What a place itself is worth, float64 [S]."""
        middle = self.places // 2
        return 1 - (torch.arange(self.places, dtype=torch.float64) - middle).abs() / middle

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        crowded = (crowd.mu + self.floor).log()
        return (self.nearness.to(crowd.mu) - self.aversion * crowded).unsqueeze(-1)

    def effort(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).expand(self.places, 3) / self.places

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        mu = crowd.mu
        # d/dmu [(mu + e) log(mu + e) - mu] = log(mu + e).
        crowded = (mu + self.floor) * (mu + self.floor).log() - mu
        return (self.nearness.to(mu) * mu - self.aversion * crowded).sum((-2, -1))

    def coordinates(self) -> Tensor:
        angle = torch.arange(self.places) * (2 * torch.pi / self.places)
        return torch.stack([angle.cos(), angle.sin()], -1)

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Every place's share, one bar each; the fullest reaches the top."""
        share = self.crowd(GameState(*(x[copy : copy + 1] for x in state))).mu[0, 0]
        return picture.bars(share / share.max(), picture.palette(1))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(CrowdModelling)
