r"""Drivers who choose a route and pay for its crowding: parallel links, Pigou's two and Braess's network.

$$ r_i = - \sum_{l \in \mathrm{route}(i)} c_l(x_l), \qquad c_l(x) = a_l + b_l\, x^{p}, \qquad x_l = n_l / N $$

A Rosenthal potential game, the same every step. As N grows, greedy drivers settle at Wardrop's equilibrium (all used
routes cost the same, none less), those who choose by exp(r/tau) at the logit equilibrium, and with tolls x c'(x) the
greedy ones at the social optimum (Pigou 1920; Beckmann, McGuire and Winsten 1956; Roughgarden and Tardos 2002, price
of anarchy at most 4/3 with affine costs). At finite N a driver who counts himself expects of a route
E[c((1 + B)/N)], B ~ Binomial(N - 1, x): the logit equilibrium of that is exact for whole powers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, nearest
from mfmarl.options import Amount, Bounds, Count
from mfmarl.population import picture
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech.mean_field import logit

Array = NDArray[np.float64]

_NETWORKS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "parallel": ((0.0, 0.2, 0.5, 1.0), (1.0, 0.8, 0.5, 0.25)),
    "pigou": ((1.0, 0.0), (0.0, 1.0)),
    # Links: start-up, start-down, up-end, down-end, up-down (the shortcut).
    "braess": ((0.0, 1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 1.0, 0.0)),
}
# Which links a route uses: by the upper town, by the lower, by the shortcut.
_BRAESS = ((1, 0, 1, 0, 0), (0, 1, 0, 1, 0), (1, 0, 0, 1, 1))


class State(NamedTuple):
    route: Tensor  # [E, N] uint8, everyone's last choice (before the first: a uniform draw)


@register("congestion")
@dataclass(frozen=True)
class Congestion(PopulationEnv):
    """Drivers who choose among routes that slow down with their load, every day anew."""

    num_agents: Count = 100
    """Number of drivers."""
    network: Literal["parallel", "pigou", "braess"] = "parallel"
    """Parallel links; Pigou's two (1 and x); Braess's network."""
    intercepts: tuple[Amount, ...] = ()
    """a, each link's cost when empty; empty: 0, .2, .5, 1 (parallel), 1, 0 (pigou), 0, 1, 1, 0, 0 (braess)."""
    slopes: tuple[Amount, ...] = ()
    """b; empty: 1, .8, .5, .25 (parallel), 0, 1 (pigou), 1, 0, 0, 1, 0 (braess)."""
    power: Annotated[float, Bounds(0, 100, open_low=True)] = 1.0
    """p of the load: 1 is affine, 4 that of the Bureau of Public Roads."""
    shortcut: bool = True
    """Whether Braess's middle link is open: without it everyone is better off."""
    toll: bool = False
    """Whether drivers also pay for what they cost the others, x c'(x): selfish choice is then the social optimum."""
    horizon: Count | None = 100
    """Days of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        if self.num_agents < 1:
            raise ConfigError(f"num_agents must be at least 1, not {self.num_agents}.")
        if self.network not in _NETWORKS:
            raise ConfigError(f"There is no network {self.network!r}.{nearest(str(self.network), _NETWORKS)}")
        a, b = self.a, self.b
        if len(a) != len(b) or not len(a):
            raise ConfigError(f"Every link has one intercept and one slope, but there are {len(a)} and {len(b)}.")
        if self.network == "braess" and len(a) != 5:
            raise ConfigError(f"Braess's network has 5 links, not {len(a)}.")
        if len(a) > 255:
            raise ConfigError(f"There can be at most 255 links, not {len(a)}.")
        if not (np.isfinite(a).all() and np.isfinite(b).all() and a.min() >= 0 and b.min() >= 0):
            raise ConfigError(
                "intercepts and slopes must be finite and at least 0: a road never gets faster with traffic."
            )
        if (self.incidence @ (a + b) == 0).any():
            raise ConfigError(
                "A route that is free at any load leaves nothing to choose: give it an intercept or a slope."
            )
        if not (math.isfinite(self.power) and self.power > 0):
            raise ConfigError(f"power must be positive and finite, not {self.power:g}.")

    @cached_property
    def a(self) -> Array:
        """Intercepts [L]."""
        return np.array(self.intercepts or _NETWORKS[self.network][0], dtype=np.float64)

    @cached_property
    def b(self) -> Array:
        """Slopes [L]."""
        return np.array(self.slopes or _NETWORKS[self.network][1], dtype=np.float64)

    @cached_property
    def incidence(self) -> Array:
        """Which links [L] a route [R] uses: [R, L] of 0 and 1."""
        if self.network == "braess":
            return np.array(_BRAESS if self.shortcut else _BRAESS[:2], dtype=np.float64)
        return np.eye(len(self.a))

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        return Spec(
            num_agents=self.num_agents,
            observation_space=Box(0.0, 1.0, (1,), np.float32),
            action_space=Discrete(len(self.incidence)),
            horizon=self.horizon,
            discount=0.0,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        return State(random.integers(key.fold("route"), ids, len(self.incidence)).to(torch.uint8))

    def own_state(self) -> tuple[str, ...]:
        return ("route",)

    def standing(self, state: State) -> Tensor:
        return state.route.long()

    def observe(self, state: State) -> Tensor:
        return torch.ones((*state.route.shape, 1), device=state.route.device)

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        paid = self._paid(self._loads(self._counts(action))) @ self._table("incidence", action.device).T
        return State(action.to(torch.uint8)), -paid.to(torch.float32).gather(1, action)

    def _table(self, name: str, device: torch.device) -> Tensor:
        return torch.as_tensor(getattr(self, name), device=device)

    def _counts(self, route: Tensor) -> Tensor:
        """Drivers on every route, [E, R] int64."""
        return self.ranks.sum(torch.stack([(route == k).sum(1) for k in range(len(self.incidence))], dim=1))

    def _loads(self, counts: Tensor) -> Tensor:
        """Share of all drivers on every link, [E, L] float64: whole numbers over N."""
        return counts.to(torch.float64) @ self._table("incidence", counts.device) / self.num_agents

    def _cost(self, load: Tensor) -> Tensor:
        return self._table("a", load.device) + self._table("b", load.device) * load**self.power

    def _paid(self, load: Tensor) -> Tensor:
        # x d/dx (a + b x^p) = p b x^p.
        tolls = self.power * self._table("b", load.device) * load**self.power if self.toll else 0.0
        return self._cost(load) + tolls

    def measure(self, state: State) -> dict[str, Tensor]:
        """Mean travel cost (tolls left out) and its ratio to the optimum's, every route's share, Beckmann's potential,
        and the exploitability: the most that one driver could save by changing alone, exactly, at this N."""
        counts = self._counts(state.route)
        load, share = self._loads(counts), counts.to(torch.float64) / self.num_agents
        cost = (load * self._cost(load)).sum(-1)
        a, b = self._table("a", load.device), self._table("b", load.device)
        found = {
            "cost": cost,
            "price_of_anarchy": cost / self.optimal_cost,
            "potential": (a * load + b * load ** (self.power + 1) / (self.power + 1)).sum(-1),
            "exploitability": self._exploitability(counts, load),
            **{f"share/{k}": share[:, k] for k in range(share.shape[1])},
        }
        return {name: value.to(torch.float32) for name, value in found.items()}

    def _exploitability(self, counts: Tensor, load: Tensor) -> Tensor:
        uses = self._table("incidence", load.device)
        now = self._paid(load) @ uses.T
        # If one driver leaves r for s, the links of s that r did not use carry one more: [E, R, S].
        joined = self._paid(load + 1 / self.num_agents)
        kept = torch.einsum("el,rl,sl->ers", self._paid(load), uses, uses)
        saved = now.unsqueeze(-1) - kept - torch.einsum("el,rl,sl->ers", joined, 1 - uses, uses)
        saved = torch.where((counts > 0).unsqueeze(-1), saved, 0.0)
        return saved.flatten(1).amax(-1).clamp(min=0)

    def render(self, state: State, copy: int = 0) -> Tensor:
        """Every route's share, one bar each."""
        share = self._counts(state.route[copy : copy + 1])[0] / self.num_agents
        return picture.bars(share, picture.palette(len(share)))

    # ----------------------------------------------------------------------------------- what theory knows

    def _link_costs(self, load: Array, drivers: int | None, marginal: bool) -> Array:
        """What a driver expects to pay on every link [L], when each other one uses it with probability `load`."""
        factor = 1 + self.power if marginal else 1.0
        if drivers is None or self.power != int(self.power):
            return self.a + factor * self.b * load**self.power
        return self.a + factor * self.b * _own_moment(load, drivers, int(self.power))

    def equilibrium(self, temperature: float = 0.0, drivers: int | None = None, marginal: bool | None = None) -> Array:
        """Shares of the routes [R] at the logit (Wardrop, at 0) equilibrium; of a crowd without end unless `drivers` is given.

        `marginal`: of costs with tolls (default: if this game has them). At temperature 0 always the limit.
        """
        tolls = self.toll if marginal is None else marginal
        drivers = drivers if temperature else None
        uses = self.incidence
        if len(uses) == uses.shape[1]:
            return logit.split(lambda x: self._link_costs(x, drivers, tolls), len(uses), temperature)
        return logit.equilibrium(lambda x: uses @ self._link_costs(x @ uses, drivers, tolls), len(uses), temperature)

    def social_optimum(self) -> Array:
        """Shares of the routes [R] at the least mean cost: the Wardrop equilibrium of marginal costs."""
        return self.equilibrium(0.0, marginal=True)

    def cost(self, shares: Array, drivers: int | None = None) -> float:
        """Mean travel cost, tolls left out, when drivers choose independently with these probabilities [R]."""
        load = shares @ self.incidence
        return float(load @ self._link_costs(load, drivers, False))

    @cached_property
    def optimal_cost(self) -> float:
        """Least mean cost of a crowd without end."""
        return self.cost(self.social_optimum())

    def price_of_anarchy(self, temperature: float = 0.0) -> float:
        """Cost at the equilibrium over the optimum's."""
        return self.cost(self.equilibrium(temperature)) / self.optimal_cost

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """The equilibrium at the drivers' temperature, for this N (Wardrop's, at 0: the limit, off by O(1/N)).

        With tolls it is the social optimum's (kind `optimum`, at temperature 0).
        """
        drivers = self.num_agents if temperature and self.power == int(self.power) else None
        shares = self.equilibrium(temperature, drivers)
        load = shares @ self.incidence
        cost = self.cost(shares, drivers)
        kind: Literal["optimum", "equilibrium"] = "optimum" if self.toll and not temperature else "equilibrium"
        name = "social optimum" if kind == "optimum" else "logit equilibrium" if temperature else "Wardrop equilibrium"
        source = f"{name}, {'a crowd without end' if drivers is None else f'exact for {drivers} drivers'}"
        values = {
            "cost": cost,
            "price_of_anarchy": cost / self.optimal_cost,
            "reward": -float(load @ self._link_costs(load, drivers, self.toll)),
            **{f"share/{k}": float(share) for k, share in enumerate(shares)},
        }
        if not temperature:
            values["exploitability"] = 0.0
            values["potential"] = float(self.a @ load + self.b @ load ** (self.power + 1) / (self.power + 1))
        return {name: Known(value, source, kind) for name, value in values.items()}


def _own_moment(load: Array, drivers: int, power: int) -> Array:
    """E[((1 + B)/N)^p], B ~ Binomial(N - 1, load), by factorial moments: E[B (B-1) ... (B-j+1)] = (N-1)_j load^j."""
    # (1 + B)^p = sum_j S(p + 1, j + 1) (B)_j with Stirling numbers of the second kind.
    stirling = [[1.0]]
    for n in range(1, power + 2):
        row = stirling[-1] + [0.0]
        stirling.append([0.0] + [row[j - 1] + j * row[j] for j in range(1, n + 1)])
    total, falling = np.zeros_like(load), 1.0 / drivers**power
    for j in range(power + 1):
        total = total + stirling[power + 1][j + 1] * falling * load**j
        falling *= drivers - 1 - j
    return total


parallel_env, env = faces(Congestion)
