r"""Drivers choose where to wait, and share the riders of a zone: ride hailing, or any resource that is divided.

$$ r_t(s, a; \mu) = f \min\!\Big(1, \frac{d_t(s)}{\mu_t(s)}\Big) - c\, |s - a|, \qquad
   d_t(s) = \bar d\, \frac{1 + \alpha \cos 2 \pi (s/Z - t/P)}{Z} $$

Z zones lie round a ring road (distance |s - a| the short way, in units of half the ring), d riders per driver appear in
each, and demand goes round with period P. A driver who is hired (with probability min(1, d/mu)) is carried, with
probability `trips`, to where riders go, which is where demand is; else he drives where he likes. Where riders are
scarce (sum d < 1), roads free (c = 0) and nobody is carried away, drivers are spread as riders are from the first step
on, mu_t(s) = d_t(s) / sum d, and each earns f sum d (the fair share of a common resource; Wardrop 1952). Ride hailing
as a mean-field game: Shou, Di, Ye et al. 2020 (Transportation Research C 117, 102738).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Dense
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register


@register("ride_hailing")
@dataclass(frozen=True)
class RideHailing(MeanFieldGame):
    """Drivers who wait where riders are, and where other drivers are not."""

    horizon: Count | None = 12
    """Number of decisions."""
    zones: Annotated[int, Bounds(2, 256)] = 6
    """Zones round the ring road."""
    riders: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.7
    """Riders per driver, in all zones together."""
    peak: Annotated[float, Bounds(0, 1, open_high=True)] = 0.6
    """alpha, how much demand differs between zones."""
    period: Annotated[float, Bounds(0, 1e6, open_low=True)] = 12.0
    """Steps in which the peak goes round."""
    fare: Annotated[float, Bounds(0, 1e6)] = 1.0
    """f, what a rider pays."""
    road: Annotated[float, Bounds(0, 1e6)] = 0.0
    """c, what driving to the other side of the ring costs."""
    trips: Annotated[float, Bounds(0, 1)] = 0.0
    """Probability that a hired driver ends where his rider goes."""

    time_dependent = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.horizon is None:
            raise ConfigError("Demand changes with time: the ride-hailing game needs a horizon.")

    @property
    def num_states(self) -> int:
        return self.zones

    @property
    def num_actions(self) -> int:
        return self.zones

    def initial(self) -> Tensor:
        return torch.full((self.zones,), 1 / self.zones, dtype=torch.float64)

    def demand(self, t: int) -> Tensor:
        """Riders per driver in each zone, [Z]."""
        zone = torch.arange(self.zones, dtype=torch.float64)
        return (
            self.riders / self.zones * (1 + self.peak * torch.cos(2 * math.pi * (zone / self.zones - t / self.period)))
        )

    def hired(self, t: int, crowd: Crowd) -> Tensor:
        """The share of waiting drivers who find a rider, [*b, 1, S]."""
        demand = self.demand(t).to(crowd.mu)
        # d / max(mu, d) is min(1, d / mu), and no zone is too empty for it.
        return demand / torch.maximum(crowd.mu, demand)

    def outcomes(self, t: int, crowd: Crowd) -> Dense:
        own = torch.eye(self.zones).to(crowd.mu).expand(self.zones, -1, -1)  # [S, A, S]: to the chosen zone
        if self.trips == 0:
            return Dense(own)
        carried = (self.trips * self.hired(t, crowd)).unsqueeze(-1).unsqueeze(-1)
        to = self.demand(t + 1).to(crowd.mu)
        return Dense(carried * (to / to.sum()) + (1 - carried) * own)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return (self.fare * self.hired(t, crowd)).unsqueeze(-1)

    def effort(self) -> Tensor:
        zone = torch.arange(self.zones)
        away = (zone - zone.unsqueeze(-1)) % self.zones
        return self.road * torch.minimum(away, self.zones - away).double() / (self.zones / 2)

    def potential(self, t: int, crowd: Crowd) -> Tensor | None:
        if self.trips > 0:
            return None  # the crowd moves drivers too
        demand = self.demand(t).to(crowd.mu)
        # The integral of min(1, d / mu) over mu.
        over = torch.maximum(crowd.mu, demand)
        return self.fare * (torch.minimum(crowd.mu, demand) + demand * (over / demand).log()).sum((-2, -1))

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """How many drivers wait in each zone."""
        counts = torch.bincount(state.state[copy].cpu(), minlength=self.zones)
        return picture.bars(counts / counts.max(), picture.palette(self.zones))

    # ----------------------------------------------------------------------------------- what theory knows

    def shared(self) -> Tensor:
        """The policy [T, 1, S, A] that spreads drivers as riders will be: the equilibrium where roads are free."""
        ahead = torch.stack([self.demand(t + 1) for t in range(self.horizon or 1)])
        policy = ahead / ahead.sum(-1, keepdim=True)
        return policy.view(-1, 1, 1, self.zones).expand(-1, 1, self.zones, -1).clone()

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        if temperature > 0 or self.road > 0 or self.trips > 0:
            return equilibrium(self, temperature)
        first = float(torch.minimum(self.initial(), self.demand(0)).sum())
        later = sum(min(1.0, float(self.demand(t).sum())) for t in range(1, self.horizon or 1))
        source = "drivers spread as riders are, from the first step on (Wardrop 1952); infinitely many of them"
        return {"reward": Known(self.fare * (first + later) / (self.horizon or 1), source, "equilibrium")}


parallel_env, env = faces(RideHailing)
