r"""An epidemic among people who choose whether to go out, and a government that chooses when to lock down.

$$ P(S \to I \mid \mathrm{out}) = \beta_z\, \mu(I), \quad P(S \to I \mid \mathrm{in}) = 0, \quad P(I \to S) = \rho $$

The government, a major agent, decides every `review` steps whether the next ones are open (z = 0, infection rate beta)
or locked down (z = 1, lockdown beta). It pays for every infected share and for every step of lockdown. Everybody sees
its state, and the crowd's answer depends on all that it has done: a game with a major agent in the sense of Huang
(2010, SIAM J. Control Optim. 48, 3318), solved on the tree of its histories. The people's part is the SIS game of
mfglib and Cui and Koeppl (2021, arXiv 2102.01585).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Dense
from mfmarl.games.reference import equilibrium
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_OUT, _IN = 0, 1
_SUSCEPTIBLE, _INFECTED = 0, 1


@register("lockdown")
@dataclass(frozen=True)
class Lockdown(MeanFieldGame):
    """An epidemic, its people, and a government that may lock down."""

    horizon: Count | None = 12
    """Number of decisions."""
    infection: Annotated[float, Bounds(0, 1)] = 0.81
    """beta: probability that one who goes out among infected only is infected."""
    locked: Annotated[float, Bounds(0, 1)] = 0.3
    """beta under lockdown."""
    recovery: Annotated[float, Bounds(0, 1)] = 0.3
    """rho."""
    sick: Amount = 1.0
    """What a step of being infected costs a person."""
    distance: Amount = 0.5
    """What a step of staying in costs a person."""
    infected: Annotated[float, Bounds(0, 1)] = 0.4
    """Share infected at the start."""
    review: Annotated[int, Bounds(1, 1 << 20)] = 3
    """Steps between two decisions of the government."""
    burden: Amount = 1.0
    """What a step with everybody infected costs the government."""
    economy: Amount = 0.2
    """What a step of lockdown costs the government."""

    groups = ("people", "government")
    major = "government"
    time_dependent = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon is None:
            raise ConfigError("lockdown needs a horizon: the government's histories are counted one by one.")

    @property
    def num_states(self) -> int:
        return 2

    @property
    def num_actions(self) -> int:
        return 2

    @property
    def common_states(self) -> int:
        return 2

    def initial(self) -> Tensor:
        return torch.tensor([[1 - self.infected, self.infected], [1.0, 0.0]], dtype=torch.float64)

    def _decides(self, t: int) -> bool:
        return (t + 1) % self.review == 0

    def common_moves(self, t: int, crowd: Crowd) -> Tensor:
        assert crowd.common is not None
        if self._decides(t):
            return torch.eye(2, dtype=crowd.mu.dtype, device=crowd.mu.device)
        return torch.nn.functional.one_hot(crowd.common[..., 0], 2).to(crowd.mu)

    def common_support(self, t: int) -> Tensor:
        return torch.ones(2, 2, dtype=torch.bool) if self._decides(t) else torch.eye(2, dtype=torch.bool)

    def outcomes(self, t: int, crowd: Crowd) -> Dense:
        mu = crowd.mu
        assert crowd.common is not None
        rate = torch.where(crowd.common[..., 0, 0] == 0, self.infection, self.locked).to(mu)
        caught = rate * mu[..., 0, _INFECTED]
        zero, stays = torch.zeros_like(caught), torch.ones_like(caught)
        well = torch.stack([torch.stack([1 - caught, caught], -1), torch.stack([stays, zero], -1)], -2)
        healed = torch.full_like(caught, self.recovery)
        ill = torch.stack([healed, 1 - healed], -1).unsqueeze(-2).expand(well.shape)
        people = torch.stack([well, ill], -3)  # [*b, S, A, S]
        nobody = torch.eye(2, dtype=mu.dtype, device=mu.device).unsqueeze(1).expand(people.shape)
        return Dense(torch.stack([people, nobody], -4))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        mu = crowd.mu
        assert crowd.common is not None
        paid = mu.new_tensor([[0.0, -self.distance], [-self.sick, -self.sick - self.distance]])
        locked = (crowd.common[..., 0, 0] == 1).to(mu)
        cost = -self.burden * mu[..., 0, _INFECTED] - self.economy * locked
        shape = (*mu.shape[:-2], 2, 2)
        return torch.stack([paid.expand(shape), cost.unsqueeze(-1).unsqueeze(-1).expand(shape)], -3)

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """Share of the infected."""
        return {"infected": mu[..., 0, _INFECTED]}

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Susceptible and infected; grey while locked down."""
        colours = picture.palette(2) if int(state.common[copy]) == 0 else picture.palette(2) // 2
        return picture.bars(self.crowd(state).mu[copy, 0], colours)


parallel_env, env = faces(Lockdown)
