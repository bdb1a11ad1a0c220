r"""Particles on a line that want to be where their mean is, at the price of their effort: linear-quadratic, on a grid.

$$ s' = s + (K (m_t - s) + a)\, \Delta + \sigma \varepsilon \sqrt{\Delta}, \qquad
   r_t = \Delta \left( -\tfrac{a^2}{2} + q\, a\, (m_t - s) - \tfrac{\kappa}{2} (m_t - s)^2 \right), \qquad
   r_T = -\tfrac{c}{2} (m_T - s)^2 $$

with m_t the mean of mu_t and epsilon = sigma z, z in {-3, ..., 3}, of weight exp(-epsilon^2 / 2): sigma enters twice,
as in mfglib 0.3. Perrin et al. 2020 (arXiv 2007.03458, section 5); Carmona, Fouque and Sun 2015. Off the ends one
stops. Where s' falls between two places one goes to either, so that the mean is right and the game depends on mu
without a jump; rounding to the nearest is a knife edge (at m = 0 a step of .9 s + .1 a often ends on an exact half:
a change of m by 1e-5 changes the exploitability of uniform choice from 2.138 to 1.599).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.games.reference import equilibrium
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_SHOVES = 3  # z goes from -3 to 3


@register("linear_quadratic_grid")
@dataclass(frozen=True)
class LinearQuadraticGrid(MeanFieldGame):
    """Particles drawn to their mean, on the whole numbers from -reach to reach."""

    horizon: Count | None = 3
    """Number of decisions."""
    reach: Annotated[int, Bounds(1, 1 << 16)] = 5
    """Places go from -reach to reach."""
    speed: Annotated[int, Bounds(1, 1 << 10)] = 2
    """Actions go from -speed to speed."""
    noise: Annotated[float, Bounds(0, 1e3)] = 3.0
    """sigma."""
    step_length: Annotated[float, Bounds(0, 1e3, open_low=True)] = 0.1
    """Delta, the time of a step."""
    pull: Amount = 1.0
    """K: how strongly the mean draws by itself."""
    reward_of_approach: Amount = 0.01
    """q: what a step towards the mean is paid."""
    distance: Annotated[float, Bounds(0, 1e6)] = 0.5
    """kappa: what distance from the mean costs."""
    last_distance: Annotated[float, Bounds(0, 1e6)] = 1.0
    """c: what it costs at the end."""
    rounding: Literal["between", "nearest"] = "between"
    """Who ends between two places goes to either with the mean kept, or to the nearest (halves to the even one)."""

    @property
    def num_states(self) -> int:
        return 2 * self.reach + 1

    @property
    def num_actions(self) -> int:
        return 2 * self.speed + 1

    def initial(self) -> Tensor:
        return torch.full((self.num_states,), 1 / self.num_states, dtype=torch.float64)

    @cached_property
    def _places(self) -> Tensor:
        return torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)

    @cached_property
    def _speeds(self) -> Tensor:
        return torch.arange(-self.speed, self.speed + 1, dtype=torch.float64)

    def _noise(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """epsilon [K] and its probabilities."""
        shove = torch.arange(-_SHOVES, _SHOVES + 1).to(like) * self.noise
        weight = torch.exp(-(shove**2) / 2)
        return shove, weight / weight.sum()

    def mean(self, mu: Tensor) -> Tensor:
        """m, [...], of mu [..., S]."""
        return mu @ self._places.to(mu)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        mu = crowd.mu
        shove, weight = self._noise(mu)
        place, speed = self._places.to(mu), self._speeds.to(mu)
        drawn = self.pull * (self.mean(mu).unsqueeze(-1) - place)  # [..., S]
        ahead = place.view(-1, 1) + (drawn.unsqueeze(-1) + speed) * self.step_length  # [..., S, A]
        ahead = ahead.unsqueeze(-1) + self.noise * shove * self.step_length**0.5  # [..., S, A, K]
        if self.rounding == "nearest":
            there = ahead.round().clamp(-self.reach, self.reach) + self.reach
            return Outcomes(there.long(), weight.expand(there.shape))
        ahead = ahead.clamp(-self.reach, self.reach) + self.reach
        low = ahead.detach().floor().clamp(max=2 * self.reach - 1)
        share = ahead - low
        successor = torch.cat([low, low + 1], -1).long()
        return Outcomes(successor, torch.cat([weight * (1 - share), weight * share], -1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        away = (self.mean(crowd.mu).unsqueeze(-1) - self._places.to(crowd.mu)).unsqueeze(-1)
        towards = self.reward_of_approach * self._speeds.to(crowd.mu) * away
        return self.step_length * (towards - self.distance / 2 * away**2)

    def effort(self) -> Tensor:
        return (self.step_length * self._speeds**2 / 2).expand(self.num_states, -1)

    def terminal(self, crowd: Crowd) -> Tensor:
        return -self.last_distance / 2 * (self.mean(crowd.mu).unsqueeze(-1) - self._places.to(crowd.mu)) ** 2

    def coordinates(self) -> Tensor:
        return (self._places / self.reach).unsqueeze(-1)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        mean = self.mean(mu[..., 0, :])
        return {"mean": mean, "variance": mu[..., 0, :] @ self._places.to(mu) ** 2 - mean**2}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        mu = self.crowd(state).mu[copy, 0]
        return picture.bars(mu / mu.max(), picture.palette(1), width=max(320, 4 * self.num_states))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(LinearQuadraticGrid)
