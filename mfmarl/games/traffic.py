r"""Traffic on a network: links that slow down with their flow, and the assignment in which nobody gains by another way.

$$ t_l(v) = t^0_l + b_l\, v^p, \qquad
   v^* = \arg\min_v \sum_l \int_0^{v_l} t_l(u)\, du \quad \text{over flows that carry the demand} $$

Wardrop's equilibrium (1952) as Beckmann's minimum (Beckmann, McGuire and Winsten 1956); with tolls v t'(v) it is the
system optimum. `assign` finds it by gradient projection on routes: quickest routes are added as they appear, and each
pair of places shifts flow to its quickest one by a Newton step (Jayakrishnan, Tsai, Prashker and Rajadhyaksha 1994;
Boyles, Lownes and Unnikrishnan, Transportation Network Analysis, section 6.3).

The network of Sioux Falls is that of LeBlanc, Morlok and Pierskalla 1975 (Transportation Research 9, 309): 24 places,
38 roads with two directions each, 360,600 trips between 528 pairs, times in minutes; their coefficients b are whole
multiples of 1e-18, which is where the capacities in circulation come from (t = t0 (1 + .15 (v/c)^4)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mfmarl.errors import ConfigError, NumericFault, nearest

Floats = NDArray[np.float64]
Route = tuple[int, ...]
"""Links in their order."""


@dataclass(frozen=True, eq=False)
class RoadNetwork:
    """Places 0..P-1, links, and the demand of pairs of places. Parallel links are allowed."""

    tail: NDArray[np.int64]  # [L], where each link begins
    head: NDArray[np.int64]  # [L]
    free: Floats  # [L], the time of an empty link
    slope: Floats  # [L], b
    power: float
    pairs: NDArray[np.int64]  # [S, 2], origin and destination
    demand: Floats  # [S]

    def __post_init__(self) -> None:
        numbers = (self.free, self.slope, self.demand, np.array([self.power]))
        if not all(np.isfinite(x).all() and (x >= 0).all() for x in numbers) or self.power <= 0:
            raise ConfigError("Times, slopes and demands are finite and at least 0, and the power is above 0.")
        if not len(self.tail) == len(self.head) == len(self.free) == len(self.slope):
            raise ConfigError("Every link has a tail, a head, a free time and a slope.")
        if len(self.pairs) != len(self.demand) or not (self.demand > 0).all():
            raise ConfigError("Every pair of places has a demand above 0.")
        if (self.pairs[:, 0] == self.pairs[:, 1]).any():
            raise ConfigError("A trip leads from one place to another.")

    @property
    def places(self) -> int:
        return int(max(self.tail.max(), self.head.max(), self.pairs.max())) + 1

    @cached_property
    def total(self) -> float:
        """All trips."""
        return float(self.demand.sum())

    def times(self, flow: Floats) -> Floats:
        """Of each link [L] at that flow."""
        return self.free + self.slope * flow**self.power

    def steepness(self, flow: Floats) -> Floats:
        """dt/dv [L]."""
        return self.power * self.slope * flow ** (self.power - 1)

    def beckmann(self, flow: Floats) -> float:
        """What the equilibrium minimises."""
        return float((self.free * flow + self.slope * flow ** (self.power + 1) / (self.power + 1)).sum())

    def travel_time(self, flow: Floats) -> float:
        """Of all trips together."""
        return float(flow @ self.times(flow))

    def tolled(self) -> RoadNetwork:
        """The network in which each link also costs v t'(v), what one more costs the others."""
        return replace(self, slope=self.slope * (1 + self.power))


class Assignment(NamedTuple):
    """An equilibrium: link flows are unique where times rise strictly, route flows need not be."""

    flow: Floats  # [L]
    routes: list[list[Route]]  # of each pair, all that were quickest at some stage
    carried: list[Floats]  # the flow on each of them
    excess: float  # relative gap: (travel time - travel time of quickest routes at these times) / travel time
    rounds: int


def quickest(network: RoadNetwork, times: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Times [O, P] from each origin of a pair to each place, and the link by which one comes [O, P] (-1: none)."""
    origins = np.unique(network.pairs[:, 0])
    away = np.full((len(origins), network.places), np.inf)
    away[np.arange(len(origins)), origins] = 0
    by = np.full(away.shape, -1, dtype=np.int64)
    for _ in range(network.places):  # Bellman and Ford; networks of thousands of links want a heap
        before = away.copy()
        for link, (a, b) in enumerate(zip(network.tail, network.head, strict=True)):
            through = away[:, a] + times[link]
            better = through < away[:, b]
            away[better, b] = through[better]
            by[better, b] = link
        if np.array_equal(before, away):
            break
    return away, by


def _route(network: RoadNetwork, by: NDArray[np.int64], origin: int, destination: int) -> Route:
    links: list[int] = []
    place = destination
    while place != origin:
        link = int(by[place])
        if link < 0:
            raise ConfigError(f"No way leads from place {origin + 1} to place {destination + 1}.")
        links.append(link)
        place = int(network.tail[link])
    return tuple(links[::-1])


class _Traffic:
    """Flows, times and their slopes as plain numbers: links change one by one, which arrays are slow at."""

    def __init__(self, network: RoadNetwork) -> None:
        self.free, self.slope, self.power = network.free.tolist(), network.slope.tolist(), network.power
        self.load(np.zeros(len(network.free)))

    def load(self, flow: Floats) -> None:
        self.flow: list[float] = flow.tolist()
        self.times, self.steep = [0.0] * len(self.flow), [0.0] * len(self.flow)
        for link in range(len(self.flow)):
            self.add(link, 0.0)

    def add(self, link: int, amount: float) -> None:
        flow = self.flow[link] = max(0.0, self.flow[link] + amount)
        rising = self.slope[link] * flow ** (self.power - 1)
        self.times[link] = self.free[link] + rising * flow
        self.steep[link] = self.power * rising


def assign(network: RoadNetwork, excess: float = 1e-10, rounds: int = 500) -> Assignment:
    """Wardrop's equilibrium to a relative gap `excess`.

    Raises NumericFault where that many rounds do not reach it.
    """
    origins = np.unique(network.pairs[:, 0])
    row = np.searchsorted(origins, network.pairs[:, 0])
    traffic = _Traffic(network)
    routes: list[list[Route]] = [[] for _ in network.pairs]
    carried: list[list[float]] = [[] for _ in network.pairs]
    gap = np.inf
    for done in range(rounds):
        # Summed afresh, so that rounding does not add up.
        flow = _loads(network, routes, carried)
        traffic.load(flow)
        times = network.times(flow)
        away, by = quickest(network, times)
        spent = float(flow @ times)
        if done:
            gap = (spent - float(network.demand @ away[row, network.pairs[:, 1]])) / spent if spent else 0.0
        if gap <= excess:
            return Assignment(flow, routes, [np.array(f) for f in carried], max(gap, 0.0), done)
        for s, (origin, destination) in enumerate(network.pairs.tolist()):
            found = _route(network, by[row[s]], origin, destination)
            if found not in routes[s]:
                routes[s].append(found)
                carried[s].append(0.0 if done else float(network.demand[s]))
                for link in found if not done else ():
                    traffic.add(link, carried[s][0])
        # Shifts among known routes are cheap beside the search for new ones.
        for _ in range(10):
            moved = sum(_shift(traffic, routes[s], carried[s]) for s in range(len(routes)) if len(routes[s]) > 1)
            if moved <= 1e-3 * gap * network.total:
                break
    raise NumericFault(f"The assignment still has a relative gap of {gap:.2g} after {rounds} rounds: ask for less.")


def _shift(traffic: _Traffic, routes: list[Route], carried: list[float]) -> float:
    """One Newton step of one pair, in place: to its quickest route from each other; how much moved."""
    times, steep = traffic.times, traffic.steep
    cost = [sum([times[link] for link in route]) for route in routes]
    best = cost.index(min(cost))
    moved = 0.0
    for r, route in enumerate(routes):
        if r == best or not carried[r] or cost[r] <= cost[best]:
            continue
        left, joined = set(route).difference(routes[best]), set(routes[best]).difference(route)
        rise = sum([steep[link] for link in left]) + sum([steep[link] for link in joined])
        amount = min(carried[r], (cost[r] - cost[best]) / rise) if rise > 0 else carried[r]
        carried[r] -= amount
        carried[best] += amount
        for link in left:
            traffic.add(link, -amount)
        for link in joined:
            traffic.add(link, amount)
        moved += amount
    return moved


def _loads(network: RoadNetwork, routes: list[list[Route]], carried: list[list[float]]) -> Floats:
    """The flow of each link."""
    flow = [0.0] * len(network.free)
    for ways, flows in zip(routes, carried, strict=True):
        for route, amount in zip(ways, flows, strict=True):
            for link in route:
                flow[link] += amount
    return np.array(flow)


# ------------------------------------------------------------------------------------------------------ networks


def road_network(name: str, shortcut: bool = True) -> RoadNetwork:
    """`pigou`, `braess` (with or without its shortcut) or `sioux_falls`.

    Raises ConfigError for another name.
    """
    if name == "pigou":
        # From 0 to 1: a road that takes 1, and one that takes the share that is on it.
        return _network([(0, 1, 1.0, 0.0), (0, 1, 0.0, 1.0)], 1.0, [(0, 1, 1.0)])
    if name == "braess":
        # The numbers of Braess 1968: 6 drivers, 83 each without the shortcut, 92 with it.
        links = [(0, 1, 0.0, 10.0), (0, 2, 50.0, 1.0), (1, 3, 50.0, 1.0), (2, 3, 0.0, 10.0)]
        return _network([*links, *([(1, 2, 10.0, 1.0)] if shortcut else [])], 1.0, [(0, 3, 6.0)])
    if name == "sioux_falls":
        links = [
            (a - 1, b - 1, float(free), slope * 1e-18)
            for one, other, free, slope in _SIOUX_FALLS
            for a, b in ((one, other), (other, one))
        ]
        trips = [
            (origin, destination, 100.0 * int(count))
            for origin, counts in enumerate(_SIOUX_FALLS_TRIPS)
            for destination, count in enumerate(counts.split())
            if int(count)
        ]
        return _network(sorted(links), 4.0, trips)
    raise ConfigError(f"There is no network {name!r}.{nearest(name, ['pigou', 'braess', 'sioux_falls'])}")


def _network(
    links: list[tuple[int, int, float, float]], power: float, trips: list[tuple[int, int, float]]
) -> RoadNetwork:
    return RoadNetwork(
        tail=np.array([a for a, _, _, _ in links]),
        head=np.array([b for _, b, _, _ in links]),
        free=np.array([free for _, _, free, _ in links]),
        slope=np.array([slope for _, _, _, slope in links]),
        power=power,
        pairs=np.array([(a, b) for a, b, _ in trips]),
        demand=np.array([count for _, _, count in trips]),
    )


# Both places (from 1), the empty road's time in minutes, and b in 1e-18: the same in both directions.
_SIOUX_FALLS = (
    (1, 2, 6, 2), (1, 3, 4, 2), (2, 6, 5, 1241), (3, 4, 4, 7), (3, 12, 4, 2), (4, 5, 2, 3), (4, 11, 6, 1550),
    (5, 6, 4, 1001), (5, 9, 5, 75), (6, 8, 2, 521), (7, 8, 3, 119), (7, 18, 2, 1), (8, 9, 10, 2306), (8, 16, 5, 1157),
    (9, 10, 3, 12), (10, 11, 5, 75), (10, 15, 6, 27), (10, 16, 4, 1080), (10, 17, 8, 1930), (11, 12, 6, 1550),
    (11, 14, 4, 1061), (12, 13, 3, 1), (13, 24, 4, 893), (14, 15, 5, 1085), (14, 23, 4, 1020), (15, 19, 3, 10),
    (15, 22, 3, 53), (16, 17, 2, 401), (16, 18, 3, 3), (17, 19, 2, 554), (18, 20, 4, 2), (19, 20, 4, 958),
    (20, 21, 6, 1373), (20, 22, 5, 1130), (21, 22, 2, 401), (21, 24, 3, 790), (22, 23, 4, 960), (23, 24, 2, 451),
)  # fmt: skip
# Hundreds of trips a day from each place (a row) to each (a column).
_SIOUX_FALLS_TRIPS = (
    "0 1 1 5 2 3 5 8 5 13 5 2 5 3 5 5 4 1 3 3 1 4 3 1",
    "1 0 1 2 1 4 2 4 2 6 2 1 3 1 1 4 2 0 1 1 0 1 0 0",
    "1 1 0 2 1 3 1 2 1 3 3 2 1 1 1 2 1 0 0 0 0 1 1 0",
    "5 2 2 0 5 4 4 7 7 12 14 6 6 5 5 8 5 1 2 3 2 4 5 2",
    "2 1 1 5 0 2 2 5 8 10 5 2 2 1 2 5 2 0 1 1 1 2 1 0",
    "3 4 3 4 2 0 4 8 4 8 4 2 2 1 2 9 5 1 2 3 1 2 1 1",
    "5 2 1 4 2 4 0 10 6 19 5 7 4 2 5 14 10 2 4 5 2 5 2 1",
    "8 4 2 7 5 8 10 0 8 16 8 6 6 4 6 22 14 3 7 9 4 5 3 2",
    "5 2 1 7 8 4 6 8 0 28 14 6 6 6 9 14 9 2 4 6 3 7 5 2",
    "13 6 3 12 10 8 19 16 28 0 40 20 19 21 40 44 39 7 18 25 12 26 18 8",
    "5 2 3 15 5 4 5 8 14 39 0 14 10 16 14 14 10 1 4 6 4 11 13 6",
    "2 1 2 6 2 2 7 6 6 20 14 0 13 7 7 7 6 2 3 4 3 7 7 5",
    "5 3 1 6 2 2 4 6 6 19 10 13 0 6 7 6 5 1 3 6 6 13 8 8",
    "3 1 1 5 1 1 2 4 6 21 16 7 6 0 13 7 7 1 3 5 4 12 11 4",
    "5 1 1 5 2 2 5 6 10 40 14 7 7 13 0 12 15 2 8 11 8 26 10 4",
    "5 4 2 8 5 9 14 22 14 44 14 7 6 7 12 0 28 5 13 16 6 12 5 3",
    "4 2 1 5 2 5 10 14 9 39 10 6 5 7 15 28 0 6 17 17 6 17 6 3",
    "1 0 0 1 0 1 2 3 2 7 2 2 1 1 2 5 6 0 3 4 1 3 1 0",
    "3 1 0 2 1 2 4 7 4 18 4 3 3 3 8 13 17 3 0 12 4 12 3 1",
    "3 1 0 3 1 3 5 9 6 25 6 5 6 5 11 16 17 4 12 0 12 24 7 4",
    "1 0 0 2 1 1 2 4 3 12 4 3 6 4 8 6 6 1 4 12 0 18 7 5",
    "4 1 1 4 2 2 5 5 7 26 11 7 13 12 26 12 17 3 12 24 18 0 21 11",
    "3 0 1 5 1 1 2 3 5 18 13 7 8 11 10 5 6 1 3 7 7 21 0 7",
    "1 0 0 2 0 1 1 2 2 8 6 5 7 4 4 3 3 0 1 4 5 11 7 0",
)
