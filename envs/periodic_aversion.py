r"""A crowd on a circle, in continuous time cut into steps, that climbs a hill and avoids itself: m(x) is known.

$$ dX = v\, dt + dW, \qquad r = -\tfrac12 v^2 - \log m(x)
   + 2 \pi^2 \sin 2 \pi x - 2 \pi^2 \cos^2 2 \pi x + 2 \sin 2 \pi x $$

The ergodic equilibrium is v = 2 pi cos 2 pi x, m(x) = exp(2 sin 2 pi x) / I_0(2), and its value per unit of time is
log I_0(2), with the relative value sin 2 pi x (Almulla, Ferreira and Gomes 2017, Dyn. Games Appl. 7, 657, section 5;
Elie et al. 2020, arXiv 1907.02633). Here x = s / S on a circle of length 1, a step takes `dt`, the action moves a whole
number of cells, and the Gaussian push is rounded to cells. With `ends = value` the last state is paid sin 2 pi x and the
crowd starts at m, and the equilibrium stays there up to what steps and cells do.
(`python_mfg_periodic_aversion` of OpenSpiel puts S cells 1/(S - 1) apart, so that its circle is longer than 1.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Kernel, Moves, Outcomes
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_MATRIX = 1 << 21  # entries of a matrix [S, A, S] up to which one product is fastest
_REACH = 8.0  # standard deviations beyond which no push is counted: 1e-15


@register("periodic_aversion")
@dataclass(frozen=True)
class PeriodicAversion(MeanFieldGame):
    """A crowd on a circle, drawn to one side and away from each other."""

    horizon: Count | None = 20
    """Number of steps."""
    places: Annotated[int, Bounds(3, 1 << 16)] = 21
    """Cells of the circle."""
    dt: Annotated[float, Bounds(1e-6, 1)] = 0.01
    """Length of a step of time."""
    reach: Annotated[int, Bounds(1, 1 << 14)] = 10
    """The most cells that one moves in a step, either way."""
    aversion: Annotated[float, Bounds(0, 1e6)] = 1.0
    """Weight of -log m."""
    ends: Literal["open", "value"] = "open"
    """open: from everywhere alike, nothing after the last step; value: from m, and sin 2 pi x is paid at the end."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-15
    """Added to the density before the logarithm."""

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return self.places

    @property
    def num_actions(self) -> int:
        return 2 * self.reach + 1

    @property
    def _angle(self) -> Tensor:
        return torch.arange(self.places, dtype=torch.float64) * (2 * math.pi / self.places)

    def density(self) -> Tensor:
        """m, the closed form's share of each cell, float64 [S]."""
        weight = (2 * self._angle.sin()).exp()
        return weight / weight.sum()

    def initial(self) -> Tensor:
        if self.ends == "value":
            return self.density()
        return torch.full((self.places,), 1 / self.places, dtype=torch.float64)

    def push(self) -> Tensor:
        """Probability of being pushed 0, 1, ... cells on, round the circle: float64 [S]."""
        deviation = math.sqrt(self.dt)
        most = max(1, math.ceil(_REACH * deviation * self.places))
        cells = torch.arange(-most, most + 1, dtype=torch.float64)
        edges = torch.cat([cells - 0.5, cells[-1:] + 0.5]) / (self.places * deviation)
        chance = torch.special.ndtr(edges).diff()
        round_ = torch.zeros(self.places, dtype=torch.float64)
        return round_.index_add(0, cells.long() % self.places, chance / chance.sum())

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        here = torch.arange(self.places, device=crowd.mu.device)
        moves = torch.arange(-self.reach, self.reach + 1, device=crowd.mu.device)
        target = (here.unsqueeze(-1) + moves) % self.places
        shoved = (here.unsqueeze(-1) + here) % self.places
        push = self.push().to(crowd.mu)
        if self.places**2 * self.num_actions > _MATRIX:
            return Moves(target, shoved, push)
        return Outcomes(shoved[target], push.expand(*target.shape, -1))

    def hill(self) -> Tensor:
        """What a place pays per unit of time, float64 [S]."""
        sine, cosine = self._angle.sin(), self._angle.cos()
        return 2 * math.pi**2 * (sine - cosine**2) + 2 * sine

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        crowded = (crowd.mu * self.places + self.floor).log()
        return self.dt * (self.hill().to(crowd.mu) - self.aversion * crowded).unsqueeze(-1)

    def effort(self) -> Tensor:
        speed = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64) / (self.places * self.dt)
        return (self.dt * speed**2 / 2).expand(self.places, -1)

    def terminal(self, crowd: Crowd) -> Tensor | None:
        if self.ends == "open":
            return None
        return self._angle.sin().to(crowd.mu).expand(crowd.mu.shape)

    def coordinates(self) -> Tensor:
        return torch.stack([self._angle.cos(), self._angle.sin()], -1)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """`spread`; `sine`: the mean of sin 2 pi x, I_1(2) / I_0(2) = 0.6978 at the closed form."""
        return {"spread": super().measures(mu)["spread"], "sine": (mu[..., 0, :] * self._angle.sin().to(mu)).sum(-1)}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Every cell's share, one bar each; the fullest reaches the top."""
        share = self.crowd(GameState(*(x[copy : copy + 1] for x in state))).mu[0, 0]
        return picture.bars(share / share.max(), picture.palette(1))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        if temperature > 0 or self.ends == "open":
            return equilibrium(self, temperature)
        source = "closed form of the ergodic game (Almulla, Ferreira and Gomes 2017), small steps and cells"
        ratio = float(torch.special.i1(torch.tensor(2.0, dtype=torch.float64)) / torch.special.i0(torch.tensor(2.0)))
        return {"sine": Known(ratio, source, "equilibrium")}


parallel_env, env = faces(PeriodicAversion)
