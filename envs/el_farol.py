r"""A bar with room for some, and a choice every evening: go or stay at home (El Farol); with capacity 1/2, the minority game.

$$ r(\text{go}) = b\,(c - x), \qquad r(\text{stay}) = 0, \qquad x = \text{share of those who go} $$

Arthur 1994 (American Economic Review 84, 406); Challet and Zhang 1997 (Physica A 246, 407). In the limit x = c in
equilibrium, and all that is gained at the bar is lost in the crush. Of N agents who each go with probability p the
symmetric equilibrium is where going pays nothing, (1 + (N - 1) p)/N = c; at a temperature p = 1/(1 + exp(-r(go)/T)).
Agents who read the past with S strategies from P histories are another model, with a phase transition at
P/N = .3374: `mfmarl.statmech.replicas.minority`.
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
from mfmarl.options import Bounds
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_HOME, _BAR = 0, 1


@register("el_farol")
@dataclass(frozen=True)
class ElFarol(MeanFieldGame):
    """Guests of a bar that is fun unless more than so many come."""

    capacity: Annotated[float, Bounds(0, 1, open_low=True, open_high=True)] = 0.6
    """c, the share of all at which going is as good as staying; 0.5: the minority game."""
    stake: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """b, what room is worth."""

    crowd_moves = False
    extended = True

    @property
    def num_states(self) -> int:
        return 2  # where one was last evening

    @property
    def num_actions(self) -> int:
        return 2

    def initial(self) -> Tensor:
        return torch.tensor([1.0, 0.0], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        there = torch.arange(2, device=crowd.mu.device).view(1, 2, 1).expand(2, 2, 1)
        return Outcomes(there, crowd.mu.new_ones(1, 1, 1).expand(2, 2, 1))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        going = self.stake * (self.capacity - crowd.actions[..., _BAR : _BAR + 1])
        pays = torch.tensor([0.0, 1.0], dtype=crowd.mu.dtype, device=crowd.mu.device)
        return (going * pays).unsqueeze(-2).expand(*crowd.mu.shape, 2)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        x = crowd.actions[..., _BAR]
        return (self.stake * (self.capacity * x - x * x / 2)).sum(-1)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """`attendance`: who went, last evening."""
        return {"attendance": mu[..., 0, _BAR]}

    def measure(self, state: GameState) -> dict[str, Tensor]:
        """`attendance`, and `volatility`: 4 N (x - c)^2, which is 1 for coin-tossers in the minority game."""
        x = self.crowd(state).mu[:, 0, _BAR]
        volatility = 4 * self.num_agents * (x - self.capacity) ** 2
        return {"attendance": x.to(torch.float32), "volatility": volatility.to(torch.float32)}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Who is at the bar, out of all."""
        return picture.crowd(state.state[copy].cpu(), picture.palette(2))

    # ----------------------------------------------------------------------------------- what theory knows

    def going(self, p: float, limit: bool = False) -> float:
        """What going pays when the others go with probability p each."""
        if limit:
            return self.stake * (self.capacity - p)
        return self.stake * (self.capacity - (1 + (self.num_agents - 1) * p) / self.num_agents)

    def attendance(self, temperature: float = 0.0, limit: bool = False) -> float:
        """The symmetric equilibrium's probability to go, of these N agents or of infinitely many; exact."""
        if temperature == 0:
            if limit:
                return self.capacity
            if self.num_agents == 1:
                return 0.0
            return min(max((self.num_agents * self.capacity - 1) / (self.num_agents - 1), 0.0), 1.0)

        def off(p: float) -> float:
            pays = self.going(p, limit) / temperature
            return p - 1 / (1 + math.exp(-pays) if pays > -700 else math.inf)

        return float(brentq(off, 0.0, 1.0, xtol=1e-15))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        n, c, p = self.num_agents, self.capacity, self.attendance(temperature)
        source = f"symmetric {'logit ' if temperature else ''}equilibrium of N = {n}, (1 + (N-1) p)/N against c, exact"
        volatility = 4 * (p * (1 - p) + n * (p - c) ** 2)
        found = {"attendance": p, "reward": p * self.going(p), "volatility": volatility}
        return {name: Known(value, source, "equilibrium") for name, value in found.items()}


parallel_env, env = faces(ElFarol)
