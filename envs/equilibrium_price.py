r"""Firms that buy raw material, produce, and sell at the price that all of them make.

$$ p_t = \left( \frac{d}{\mathbb{E}_{L_t}[q] + e_0} \right)^{1 / \sigma}, \qquad
   r = (p_t - c_0)\, q - c_1 q^2 - c_2 h - (c_2 + c_3) \max(q - s, 0) - c_4 s $$

A firm with s units in store produces q and orders h: s' = min(s - min(q, s) + h, S_max); what it lacks it buys dearly
at once. Guo, Hu and Zhang 2022 (arXiv 2206.09608, section 6). The crowd enters by its mean production alone and the
price falls with it, so this is a monotone potential game with Phi = the integral of the price up to E[q].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.games.game import Crowd, GameState, MeanFieldGame, table
from mfmarl.games.kernels import Outcomes
from mfmarl.games.reference import equilibrium
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("equilibrium_price")
@dataclass(frozen=True)
class EquilibriumPrice(MeanFieldGame):
    """Producers under perfect competition; an action is (produce, order), the order running fastest."""

    horizon: Count | None = 5
    """Number of decisions."""
    store: Annotated[int, Bounds(0, 1 << 12)] = 3
    """S_max: what a firm can store."""
    produce: Annotated[int, Bounds(1, 1 << 10)] = 2
    """The most that a firm can produce in a step."""
    order: Annotated[int, Bounds(0, 1 << 10)] = 2
    """The most that a firm can order in a step."""
    demand: Annotated[float, Bounds(0, 1e9, open_low=True)] = 1.0
    """d: higher demand, higher price."""
    supply: Annotated[float, Bounds(0, 1e9, open_low=True)] = 1.0
    """e_0: what comes to the market from elsewhere."""
    elasticity: Annotated[float, Bounds(0, 1e3, open_low=True)] = 1.0
    """sigma: how much demand yields to the price."""
    costs: tuple[Amount, Amount, Amount, Amount, Amount] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """c_0 and c_1 of production (linear, quadratic), c_2 of an ordered unit, c_3 more for a missing one, c_4 of storage."""

    crowd_moves = False
    extended = True

    @property
    def num_states(self) -> int:
        return self.store + 1

    @property
    def num_actions(self) -> int:
        return (self.produce + 1) * (self.order + 1)

    def initial(self) -> Tensor:
        return torch.full((self.num_states,), 1 / self.num_states, dtype=torch.float64)

    @cached_property
    def _plans(self) -> tuple[Tensor, Tensor, Tensor]:
        """Stored [S, 1], produced [A] and ordered [A] units."""
        action = torch.arange(self.num_actions)
        return torch.arange(self.num_states).unsqueeze(-1), action // (self.order + 1), action % (self.order + 1)

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        stored, produced, ordered = self._plans
        after = (stored - torch.minimum(produced, stored) + ordered).clamp(max=self.store).unsqueeze(-1)
        return Outcomes(after.to(crowd.mu.device), crowd.mu.new_ones(after.shape))

    def production(self, crowd: Crowd) -> Tensor:
        """E[q], [*b, G]."""
        return (crowd.actions * self._plans[1].to(crowd.mu)).sum(-1)

    def price(self, crowd: Crowd) -> Tensor:
        """p_t, [*b, G]."""
        return torch.pow(self.demand / (self.production(crowd) + self.supply), 1 / self.elasticity)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return self.price(crowd).unsqueeze(-1).unsqueeze(-1) * self._plans[1].to(crowd.mu)

    def effort(self) -> Tensor:
        stored, q, h = (x.to(torch.float64) for x in self._plans)
        c0, c1, c2, c3, c4 = self.costs
        return c0 * q + c1 * q**2 + c2 * h + (c2 + c3) * (q - stored).clamp(min=0) + c4 * stored

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        total = (self.production(crowd) + self.supply) / self.demand
        # (x^p - 1) / p, which is log x at p = 0.
        power = table([1 - 1 / self.elasticity], total)
        even = power.abs() < 1e-12
        integral = torch.where(even, total.log(), torch.expm1(power * total.log()) / torch.where(even, 1.0, power))
        return self.demand * integral.sum(-1)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        return {"stored": mu[..., 0, :] @ self._plans[0].squeeze(-1).to(mu)}

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """How many firms store how much."""
        return picture.bars(self.crowd(state).mu[copy, 0], picture.palette(self.num_states))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(EquilibriumPrice)
