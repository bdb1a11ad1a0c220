r"""Two camps, and a little less pay in the fuller one: best responses at a temperature contract at a known rate.

$$ r(s; \mu) = h\, 1_{s = 0} - c\, \mu(s), \qquad P(s' = a) = 1 - \epsilon $$

Everyone chooses the next camp and slips with probability epsilon, wherever it stands; so V(0) - V(1) = r(0) - r(1), and
with x = mu(0) - mu(1) one round of "answer the crowd at temperature T, let the crowd follow" is

$$ x' = (1 - 2 \epsilon) \tanh \frac{\gamma (1 - 2 \epsilon) (h - c\, x)}{2 T}, \qquad
   |x'_k - x^\ast| \sim \lambda^k, \quad \lambda = \frac{\gamma (1 - 2 \epsilon)^2 c}{2 T} \Big( 1 - \frac{x^{\ast 2}}{(1 - 2 \epsilon)^2} \Big) $$

It contracts everywhere for gamma (1 - 2 epsilon)^2 c < 2 T, the bound of entropy-regularised mean-field games (Anahtarci,
Kariksiz and Saldi 2023, Dynamic Games and Applications 13, 89; Cui and Koeppl 2021, arXiv 2102.01585); where lambda > 1
the rounds end in a cycle of two, though the equilibrium is unique. In equilibrium this is the mean-field equation of an
antiferromagnet. Without temperature x = h/c, within what slips allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from scipy.optimize import brentq
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.options import Bounds, Count, Share
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("contraction")
@dataclass(frozen=True)
class Contraction(MeanFieldGame):
    """Two camps that pay less the fuller they are; its fixed-point iteration converges at a rate known in advance."""

    horizon: Count | None = None
    """Number of decisions; none: without end, discounted, in its stationary state."""
    discount: Share = 0.9
    """Discount per step."""
    crowding: Annotated[float, Bounds(0, 1e6)] = 1.0
    """c, what the others cost in one's camp."""
    prize: Annotated[float, Bounds(-1e6, 1e6)] = 0.2
    """h, what camp 0 pays more."""
    slip: Annotated[float, Bounds(0, 0.5)] = 0.1
    """epsilon, the probability to end in the other camp."""

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return 2

    @property
    def num_actions(self) -> int:
        return 2

    def initial(self) -> Tensor:
        return torch.tensor([0.5, 0.5], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        there = torch.tensor([[0, 1], [1, 0]], device=crowd.mu.device).expand(2, 2, 2)
        chance = torch.tensor([1 - self.slip, self.slip], dtype=crowd.mu.dtype, device=crowd.mu.device)
        return Outcomes(there, chance.expand(2, 2, 2))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        extra = torch.tensor([self.prize, 0.0], dtype=crowd.mu.dtype, device=crowd.mu.device)
        return (extra - self.crowding * crowd.mu).unsqueeze(-1)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        return self.prize * crowd.mu[..., 0, 0] - self.crowding / 2 * crowd.mu.square().sum((-2, -1))

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """`lead`: x, by how much of all camp 0 is the fuller."""
        return {"lead": mu[..., 0, 0] - mu[..., 0, 1]}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """How many are in either camp."""
        return picture.crowd(state.state[copy].cpu(), picture.palette(2))

    # ----------------------------------------------------------------------------------- what theory knows

    @property
    def _steady(self) -> float:
        return 1 - 2 * self.slip

    def round(self, lead: float, temperature: float) -> float:
        """The lead after all have answered a lead at a temperature, and the crowd has followed."""
        drive = self.discount * self._steady * (self.prize - self.crowding * lead) / (2 * temperature)
        return self._steady * math.tanh(drive)

    def lead(self, temperature: float = 0.0) -> float:
        """x* in the stationary equilibrium at this temperature; 0: Nash."""
        if temperature == 0:
            if self.crowding == 0:
                return math.copysign(self._steady, self.prize) if self.prize else 0.0
            return min(max(self.prize / self.crowding, -self._steady), self._steady)
        edge = self._steady + 1.0  # beyond any lead, so that the sign changes
        return float(brentq(lambda x: x - self.round(x, temperature), -edge, edge, xtol=1e-15, rtol=1e-14))

    def rate(self, temperature: float) -> float:
        """lambda: by what factor a round brings the crowd nearer to its equilibrium; above 1 it leads away."""
        if self._steady == 0:
            return 0.0
        slope = 1 - (self.lead(temperature) / self._steady) ** 2
        return self.discount * self._steady**2 * self.crowding / (2 * temperature) * slope

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """In the stationary state; with a horizon the first step and the last are other."""
        if self.horizon is not None:
            return {}
        x = self.lead(temperature)
        reward = self.prize * (1 + x) / 2 - self.crowding * (1 + x * x) / 2
        source = f"stationary equilibrium of infinitely many at temperature {temperature:g}, in closed form"
        return {"lead": Known(x, source, "equilibrium"), "reward": Known(reward, source, "equilibrium")}


parallel_env, env = faces(Contraction)
