r"""Drivers who each choose a whole route beforehand, on the roads of Pigou, of Braess or of Sioux Falls.

$$ r(s, a; L) = -\sum_{l \in a} t_l(v_l), \qquad v_l = D \sum_{s, a \ni l} L(s, a), \qquad t_l(v) = t^0_l + b_l\, v^p $$

A state is a pair of places, drawn by its demand and kept; an action is one of its routes. A potential game: what its
equilibria maximise is minus Beckmann's integral over D, so they are Wardrop's (1952): of each pair all routes in use
take the same time and no other less. With tolls v t'(v) the equilibrium is the system optimum. Routes are those that
are quickest at some stage of the assignment, with and without tolls (`mfmarl.games.traffic`), the most used first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.games import traffic
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_NAMES = ("pigou", "braess", "sioux_falls")
_EXCESS = 1e-9


@lru_cache(8)
def _solved(name: str, shortcut: bool) -> tuple[traffic.RoadNetwork, traffic.Assignment, traffic.Assignment]:
    """The network, its equilibrium and its system optimum."""
    network = traffic.road_network(name, shortcut)
    return network, traffic.assign(network, _EXCESS), traffic.assign(network.tolled(), _EXCESS)


@register("route_choice")
@dataclass(frozen=True)
class RouteChoice(MeanFieldGame):
    """Drivers who choose a route and slow each other down."""

    num_agents: Count = 1000
    """Number of drivers; each stands for as many trips."""
    horizon: Count | None = 1
    """Number of days; every day is the same."""
    network: Literal["pigou", "braess", "sioux_falls"] = "sioux_falls"
    """The roads."""
    shortcut: bool = True
    """Whether the middle link of Braess is open: without it everyone is quicker."""
    toll: bool = False
    """Whether drivers also pay for what they cost the others, v t'(v)."""
    routes: Annotated[int, Bounds(2, 64)] = 8
    """The most routes of a pair of places."""

    crowd_moves: ClassVar[bool] = False
    extended: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network not in _NAMES:
            raise ConfigError(f"There is no network {self.network!r}.{nearest(str(self.network), _NAMES)}")

    @property
    def roads(self) -> traffic.RoadNetwork:
        return _solved(self.network, self.shortcut)[0]

    @property
    def solved(self) -> traffic.Assignment:
        """The equilibrium of infinitely many drivers, by traffic assignment: with tolls, the system optimum."""
        _, free, tolled = _solved(self.network, self.shortcut)
        return tolled if self.toll else free

    @cached_property
    def ways(self) -> tuple[tuple[traffic.Route, ...], ...]:
        """Of each pair its routes, as link numbers."""
        _, free, tolled = _solved(self.network, self.shortcut)
        ways = []
        for s in range(len(free.routes)):
            used: dict[traffic.Route, float] = {}
            for found in (free, tolled):
                for route, flow in zip(found.routes[s], found.carried[s], strict=True):
                    used[route] = used.get(route, 0.0) + float(flow)
            ways.append(tuple(sorted(used, key=lambda route: -used[route])[: self.routes]))
        return tuple(ways)

    @cached_property
    def _uses(self) -> Tensor:
        """Whether a route uses a link, float64 [S A, L]; what is no route uses none."""
        uses = torch.zeros(self.num_states, self.num_actions, len(self.roads.free), dtype=torch.float64)
        for s, routes in enumerate(self.ways):
            for a, route in enumerate(routes):
                uses[s, a, list(route)] = 1
        return uses.flatten(0, 1)

    @property
    def num_states(self) -> int:
        return len(self.roads.pairs)

    @cached_property
    def num_actions(self) -> int:
        return max(2, *(len(routes) for routes in self.ways))

    def initial(self) -> Tensor:
        return torch.as_tensor(self.roads.demand / self.roads.total)

    def allowed(self) -> Tensor | None:
        count = torch.tensor([len(routes) for routes in self.ways])
        legal = torch.arange(self.num_actions) < count.unsqueeze(-1)
        return None if bool(legal.all()) else legal

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        same = torch.arange(self.num_states, device=crowd.mu.device).view(-1, 1, 1).expand(-1, self.num_actions, 1)
        return Outcomes(same, torch.ones(same.shape, dtype=crowd.mu.dtype, device=crowd.mu.device))

    def flows(self, joint: Tensor) -> Tensor:
        """Trips on each link [*b, G, L], of what drivers do [*b, G, S, A]."""
        return self.roads.total * (joint.flatten(-2) @ self._uses.to(joint))

    def times(self, flow: Tensor) -> Tensor:
        """Of each link [*b, G, L] at those flows, tolls included where there are any."""
        slope = torch.as_tensor(self.roads.slope).to(flow) * (1 + self.roads.power * self.toll)
        return torch.as_tensor(self.roads.free).to(flow) + slope * flow**self.roads.power

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        taken = self.times(self.flows(crowd.joint)) @ self._uses.to(crowd.mu).mT
        return -taken.unflatten(-1, (self.num_states, self.num_actions))

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        flow = self.flows(crowd.joint)
        power = self.roads.power
        slope = torch.as_tensor(self.roads.slope).to(flow) * (1 + power * self.toll)
        integral = torch.as_tensor(self.roads.free).to(flow) * flow + slope * flow ** (power + 1) / (power + 1)
        return -integral.sum((-2, -1)) / self.roads.total

    def coordinates(self) -> Tensor:
        pairs = torch.as_tensor(self.roads.pairs)
        return torch.nn.functional.one_hot(pairs, self.roads.places).flatten(1).float()

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Trips between all places: an origin is a row, a destination a column."""
        share = self.crowd(GameState(*(x[copy : copy + 1] for x in state))).mu[0, 0].cpu()
        shades = 64
        cells = torch.zeros(self.roads.places, self.roads.places, dtype=torch.int64)
        pairs = torch.as_tensor(self.roads.pairs)
        cells[pairs[:, 0], pairs[:, 1]] = ((share / share.max()).sqrt() * (shades - 1)).round().long()
        mix = torch.linspace(0, 1, shades).unsqueeze(-1)
        blue, white = picture.palette(1).float(), torch.tensor([picture.BACKGROUND]).float()
        return picture.mosaic(cells, (white + mix * (blue - white)).round().to(torch.uint8))

    def equilibrium_policy(self) -> Tensor:
        """The assignment's own, [T, 1, S, A]: routes by the flow they carry."""
        policy = torch.zeros(self.num_states, self.num_actions, dtype=torch.float64)
        for s, routes in enumerate(self.ways):
            flow = dict(zip(self.solved.routes[s], self.solved.carried[s], strict=True))
            policy[s, : len(routes)] = torch.tensor([float(flow.get(route, 0.0)) for route in routes])
        policy = policy / policy.sum(-1, keepdim=True)
        return policy.expand(self.horizon or 1, 1, -1, -1)

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        if temperature > 0:
            return equilibrium(self, temperature)
        flow = self.solved.flow
        slope = self.roads.slope * (1 + self.roads.power * self.toll)
        paid = float(flow @ (self.roads.free + slope * flow**self.roads.power)) / self.roads.total
        name = "system optimum, tolls included" if self.toll else "Wardrop equilibrium"
        source = f"{name}, by traffic assignment (relative gap {self.solved.excess:.1g}); infinitely many drivers"
        return {"reward": Known(-paid, source, "equilibrium")}


def mean_time(game: RouteChoice, joint: Tensor) -> Tensor:
    """Mean travel time of a trip [*b], tolls left out, of what drivers do [*b, G, S, A]."""
    flow = game.flows(joint)
    roads = game.roads
    slope, free = torch.as_tensor(roads.slope).to(flow), torch.as_tensor(roads.free).to(flow)
    return (flow * (free + slope * flow**roads.power)).sum((-2, -1)) / roads.total


parallel_env, env = faces(RouteChoice)
