"""Ride hailing: the shared equilibrium, matching, trips that carry drivers away, and what N drivers earn."""

from __future__ import annotations

import pytest
import torch

from mfmarl import random
from mfmarl.envs.ride_hailing import RideHailing
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical


@pytest.mark.parametrize("options", [{}, {"riders": 0.3, "zones": 5, "period": 7.0}, {"peak": 0.0}, {"fare": 3.0}])
def test_spread_as_riders_are_no_driver_gains_by_going_elsewhere(options):
    game = RideHailing(**options)
    at = gap(game, game.shared())
    assert float(at.exploitability) == pytest.approx(0, abs=1e-12)
    # Every zone pays the fair share from the first step on.
    paid = at.flow.rewards[1:, 0, :, 0]
    torch.testing.assert_close(paid, torch.full_like(paid, game.fare * game.riders))
    assert game.horizon is not None
    assert float(at.value) / game.horizon == pytest.approx(game.reference()["reward"].value)


def test_where_riders_are_many_every_driver_is_hired():
    game = RideHailing(riders=2.0, peak=0.0)
    assert float(gap(game, uniform(game)).value) == pytest.approx(game.horizon)
    assert game.reference()["reward"].value == pytest.approx(1.0)
    assert float(exploitability(game, uniform(game))) == pytest.approx(0, abs=1e-12)


def test_uniform_waiting_is_exploited_by_what_the_peak_pays_more():
    game = RideHailing(horizon=2)
    # At t = 1 the best zone pays min(1, Z d); at t = 0 nobody can choose yet.
    demand = game.demand(1) * game.zones
    mean = float(demand.clamp(max=1).mean())
    assert float(exploitability(game, uniform(game))) == pytest.approx(float(demand.clamp(max=1).max()) - mean)


def test_hired_drivers_are_carried_to_where_demand_is():
    game = RideHailing(trips=1.0, riders=6.0, peak=0.5, horizon=3)  # everyone is hired
    mu = flow(game, uniform(game)).mu[1, 0]
    torch.testing.assert_close(mu, game.demand(1) / game.demand(1).sum())
    idle = RideHailing(trips=0.4, riders=0.5, peak=0.0, horizon=3)
    away = torch.zeros(3, 1, 6, 6, dtype=torch.float64)
    away[..., 0] = 1
    # Half are hired, of these .4 are carried to a zone at random, the others drive to zone 0.
    mu = flow(idle, away).mu[1, 0]
    assert float(mu[0]) == pytest.approx(0.8 + 0.2 / 6)


def test_the_potential_gives_the_rewards_on_either_side_of_demand():
    game = RideHailing(fare=2.0)
    mu = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(game.potential(3, Crowd(mu)), mu)
    torch.testing.assert_close(slope, game.rewards(3, Crowd(mu.detach())).squeeze(-1))


def test_mirror_descent_finds_the_equilibrium_where_roads_cost():
    # Mid-price roads: nobody goes right across, and what is left to gain is small.
    game = RideHailing(road=0.2, horizon=6)
    found = solve(game, MirrorDescent(rate=1.0), 300)
    assert float(found.exploitability) < 0.02 * float(exploitability(game, uniform(game)))
    assert float(exploitability(game, game.shared())) > 10 * float(found.exploitability)


@statistical(alpha=beyond(5), bugs=("theory-off", "uniforms-narrow"))
def test_a_thousand_drivers_earn_the_limits_wage():
    game, copies = RideHailing(num_agents=1000), 60
    simulation, policy = Simulation(game, copies), game.shared().float()
    simulation.reset(Key.of(0))
    assert game.horizon is not None
    total = torch.zeros(copies, dtype=torch.float64)
    for t in range(game.horizon):
        edges = policy[t, 0, 0].cumsum(-1)[:-1]
        action = torch.bucketize(random.uniform(Key.of(1).fold("choice", t), simulation.ids), edges)
        total += simulation.step(action).reward.double().mean(1) / game.horizon
    # Zones hold 1.4 drivers per rider, so that uneven luck leaves no rider waiting: the wage is the limit's itself.
    assert abs(float(total.mean()) - game.reference()["reward"].value) < 5 * float(total.std()) / copies**0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"horizon": None, "discount": 0.9}, "needs a horizon"),
        ({"peak": 1.0}, r"\[0, 1\)"),
        ({"riders": 0.0}, "riders must be float"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        RideHailing(**options)
