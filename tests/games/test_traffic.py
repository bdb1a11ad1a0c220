"""Traffic assignment against what is published of three networks, and against Wardrop's own words."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games.traffic import Assignment, RoadNetwork, assign, quickest, road_network


@cache
def _sioux_falls() -> tuple[RoadNetwork, Assignment]:
    network = road_network("sioux_falls")
    return network, assign(network, 1e-10)


def test_the_table_of_sioux_falls_is_the_published_one() -> None:
    """24 places, 76 links, 360,600 trips between 528 pairs (LeBlanc, Morlok and Pierskalla 1975)."""
    network = road_network("sioux_falls")
    assert network.places == 24
    assert len(network.free) == 76
    assert len(network.pairs) == 528
    assert network.total == 360_600
    # The capacities that go round, t = t0 (1 + .15 (v / c)^4), follow from whole coefficients.
    capacity = (0.15 * network.free / network.slope) ** 0.25
    links = {(int(a) + 1, int(b) + 1): c for a, b, c in zip(network.tail, network.head, capacity, strict=True)}
    assert links[1, 2] == pytest.approx(25900.20064, abs=1e-4)
    assert links[10, 9] == pytest.approx(13915.78842, abs=1e-4)
    assert links[17, 19] == pytest.approx(4823.950831, abs=1e-5)
    assert links[22, 23] == pytest.approx(5000)


def test_sioux_falls_comes_to_the_best_known_solution() -> None:
    """Transportation Networks for Research: objective 42.31335287107440 (in 1e5), total travel time 7,480,225."""
    network, found = _sioux_falls()
    assert network.beckmann(found.flow) == pytest.approx(4_231_335.287107440, rel=1e-10)
    assert network.travel_time(found.flow) == pytest.approx(7_480_225, rel=1e-6)
    links = {(int(a) + 1, int(b) + 1): v for a, b, v in zip(network.tail, network.head, found.flow, strict=True)}
    # The first rows of its table of flows: the demand is not symmetric, so that directions differ.
    assert links[1, 2] == pytest.approx(4494.6576464564, abs=0.05)
    assert links[1, 3] == pytest.approx(8119.0799480478, abs=0.05)
    assert links[2, 1] == pytest.approx(4519.0799480478, abs=0.05)


def test_the_system_optimum_of_sioux_falls_is_four_hundredths_better() -> None:
    """7,194,256 against 7,480,225: a price of anarchy of 1.0397."""
    network, found = _sioux_falls()
    best = assign(network.tolled(), 1e-8)
    assert network.travel_time(best.flow) == pytest.approx(7_194_256, rel=1e-6)
    assert network.travel_time(found.flow) / network.travel_time(best.flow) == pytest.approx(1.03975, abs=1e-5)


def test_all_routes_in_use_take_the_same_time_and_no_other_less() -> None:
    network, found = _sioux_falls()
    times = network.times(found.flow)
    away, _ = quickest(network, times)
    origins = np.unique(network.pairs[:, 0]).tolist()
    shared = 0
    for (origin, destination), routes, carried, demand in zip(
        network.pairs, found.routes, found.carried, network.demand, strict=True
    ):
        least = away[origins.index(origin), destination]
        used = [times[list(route)].sum() for route, flow in zip(routes, carried, strict=True) if flow > 1e-3 * demand]
        assert np.allclose(used, least, rtol=1e-6)
        assert carried.sum() == pytest.approx(demand)
        assert (carried >= 0).all()
        shared += len(used) > 1
    assert shared > 50, "a network on which nobody hesitates would prove nothing"


def test_flow_is_kept_at_every_place() -> None:
    network, found = _sioux_falls()
    balance = np.zeros(network.places)
    np.add.at(balance, network.tail, found.flow)
    np.add.at(balance, network.head, -found.flow)
    np.add.at(balance, network.pairs[:, 0], -network.demand)
    np.add.at(balance, network.pairs[:, 1], network.demand)
    assert np.abs(balance).max() < 1e-6


@pytest.mark.parametrize(
    ("shortcut", "tolls", "time", "flow"),
    [
        (True, False, 552, [4, 2, 2, 4, 2]),  # 92 each
        (True, True, 498, [3, 3, 3, 3, 0]),  # 83 each: nobody takes the shortcut
        (False, False, 498, [3, 3, 3, 3]),
    ],
)
def test_a_road_more_costs_everyone_time(shortcut: bool, tolls: bool, time: float, flow: list[float]) -> None:
    """Braess 1968: six drivers, 83 each without the shortcut and 92 with it."""
    network = road_network("braess", shortcut)
    found = assign(network.tolled() if tolls else network, 1e-12)
    assert found.flow == pytest.approx(flow, abs=1e-4)
    assert network.travel_time(found.flow) == pytest.approx(time, abs=1e-6)


def test_pigous_drivers_all_take_the_road_that_fills_up() -> None:
    """Pigou 1920: time 1 each at the equilibrium, 3/4 at the optimum."""
    network = road_network("pigou")
    assert assign(network).flow.tolist() == [0, 1]
    assert network.travel_time(assign(network.tolled(), 1e-12).flow) == pytest.approx(0.75)


def test_what_cannot_be_driven_is_refused_in_a_sentence() -> None:
    network = road_network("braess")
    with pytest.raises(ConfigError, match=r"braess.*nearest|no network 'braes'"):
        road_network("braes")
    away = RoadNetwork(
        network.tail, network.head, network.free, network.slope, 1.0, np.array([[3, 0]]), np.array([1.0])
    )
    with pytest.raises(ConfigError, match="No way leads from place 4 to place 1"):
        assign(away)
    with pytest.raises(NumericFault, match="after 1 rounds"):
        assign(network, rounds=1)
    with pytest.raises(ConfigError, match="demand above 0"):
        RoadNetwork(network.tail, network.head, network.free, network.slope, 1.0, network.pairs, np.array([0.0]))
    with pytest.raises(ConfigError, match="from one place to another"):
        RoadNetwork(network.tail, network.head, network.free, network.slope, 1.0, np.array([[1, 1]]), network.demand)
    with pytest.raises(ConfigError, match="finite"):
        RoadNetwork(network.tail, network.head, -network.free, network.slope, 1.0, network.pairs, network.demand)
