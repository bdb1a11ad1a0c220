"""Route choice: its equilibria are Wardrop's, found by the solvers of games and by traffic assignment alike."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.route_choice import RouteChoice, mean_time
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability, gap, potential
from mfmarl.games.flow import flow, uniform
from mfmarl.games.solve import solve
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key


@pytest.mark.parametrize(
    ("options", "time"),
    [
        ({"network": "pigou"}, 1.0),
        ({"network": "pigou", "toll": True}, 0.75),
        ({"network": "braess"}, 92.0),
        ({"network": "braess", "shortcut": False}, 83.0),
        ({"network": "braess", "toll": True}, 83.0),
    ],
)
def test_mirror_descent_takes_everyone_the_time_of_wardrop(options: dict[str, object], time: float) -> None:
    """Pigou 1920; Braess 1968: 92 with the shortcut, 83 without; tolls make selfish drivers the planner's."""
    game = RouteChoice(**options)  # type: ignore[arg-type]
    found = solve(game, MirrorDescent(rate=0.1 if "braess" in options.values() else 30.0), 300)
    assert float(found.exploitability) < 1e-2
    assert float(mean_time(game, flow(game, found.policy).joint[0])) == pytest.approx(time, rel=1e-3)


def test_nobody_gains_by_leaving_the_assignment_of_sioux_falls() -> None:
    game = RouteChoice()
    found = gap(game, game.equilibrium_policy())
    assert float(found.exploitability) < 1e-6  # minutes, of 20.7 that a trip takes
    assert float(mean_time(game, found.flow.joint[0])) * 360_600 == pytest.approx(7_480_225, rel=1e-6)
    assert -float(potential(game, found.flow)) * 360_600 == pytest.approx(4_231_335.28710744, rel=1e-9)  # type: ignore[arg-type]


def test_solvers_of_games_assign_the_traffic_of_sioux_falls() -> None:
    game = RouteChoice()
    descent = solve(game, MirrorDescent(rate=0.03), 400)
    play = solve(game, FictitiousPlay(), 100)
    assert float(exploitability(game, uniform(game))) > 90
    assert float(descent.exploitability) < 2e-3
    assert float(play.exploitability) < 0.5
    path = flow(game, descent.policy)
    assert float(mean_time(game, path.joint[0])) * 360_600 == pytest.approx(7_480_225, rel=2e-3)
    assert -float(potential(game, path)) * 360_600 == pytest.approx(4_231_335.287, rel=1e-4)  # type: ignore[arg-type]


def test_tolls_make_the_equilibrium_the_system_optimum() -> None:
    game = RouteChoice(toll=True)
    found = gap(game, game.equilibrium_policy())
    assert float(found.exploitability) < 1e-5
    assert float(mean_time(game, found.flow.joint[0])) * 360_600 == pytest.approx(7_194_256, rel=1e-6)
    # Free of tolls, somebody leaves it.
    assert float(exploitability(RouteChoice(), game.equilibrium_policy())) > 0.5


def test_the_potential_is_beckmanns() -> None:
    """Its derivative by the share that takes a route is what that route pays."""
    game = RouteChoice(network="braess")
    policy = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).view(1, 1, 1, 3).requires_grad_()
    path = flow(game, policy)
    value = potential(game, path)
    assert value is not None
    (slope,) = torch.autograd.grad(value, policy)
    assert torch.allclose(slope, path.rewards.detach(), atol=1e-9)


def test_routes_lead_from_their_origin_to_their_destination() -> None:
    game = RouteChoice()
    for (origin, destination), routes in zip(game.roads.pairs, game.ways, strict=True):
        assert len(set(routes)) == len(routes)
        for route in routes:
            places = [int(origin), *[int(game.roads.head[link]) for link in route]]
            assert [int(game.roads.tail[link]) for link in route] == places[:-1]
            assert places[-1] == destination
            assert len(set(places)) == len(places), "nobody drives in circles"


def test_drivers_keep_their_trip_and_pay_for_the_counted_traffic() -> None:
    game = RouteChoice(num_agents=6, network="braess", horizon=3)
    simulation = Simulation(game, 1)
    simulation.reset(Key.of(0))
    # Routes in the order of `ways`: find which is which, and drive two on each.
    named = [tuple(int(game.roads.head[link]) for link in route) for route in game.ways[0]]
    assert sorted(named) == [(1, 2, 3), (1, 3), (2, 3)]
    timestep = simulation.step(torch.tensor([[0, 0, 1, 1, 2, 2]]))
    assert timestep.reward.tolist() == [[-92.0] * 6]
    alone = simulation.step(torch.full((1, 6), named.index((1, 2, 3))))
    assert alone.reward.tolist() == [[-(60.0 + 16.0 + 60.0)] * 6]


@pytest.mark.parametrize(
    ("options", "told"), [({"network": "sioux"}, "sioux_falls"), ({"routes": 1}, "routes must be int")]
)
def test_bad_options_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RouteChoice(**options)  # type: ignore[arg-type]
