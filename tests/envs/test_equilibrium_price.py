"""Equilibrium price: the market by hand, and its potential."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.equilibrium_price import EquilibriumPrice
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.proximal_point import ProximalPoint
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key
from tests.envs.by_hand import assert_rewards_are_the_slope_of_the_potential


@pytest.mark.parametrize("elasticity", [0.5, 1.0, 2.0])
def test_the_potential_is_the_integral_of_the_price(elasticity: float) -> None:
    assert_rewards_are_the_slope_of_the_potential(EquilibriumPrice(elasticity=elasticity, demand=2.0, supply=0.7))


def test_firms_are_paid_and_stocked_as_the_rules_say_one_by_one() -> None:
    game = EquilibriumPrice(num_agents=36, elasticity=2.0, demand=1.5, costs=(0.1, 0.2, 0.3, 0.4, 0.5))
    ids = agent_ids(1, 36)
    stored, action = torch.arange(36) // 9, torch.arange(36) % 9
    state = game.reset(ids, Key.of(0))._replace(state=stored.unsqueeze(0))
    after, reward = game.step(state, action.unsqueeze(0), ids, Key.of(1))
    price = (1.5 / (sum(a // 3 for a in action.tolist()) / 36 + 1.0)) ** 0.5
    for i, (s, a) in enumerate(zip(stored.tolist(), action.tolist(), strict=True)):
        q, h = a // 3, a % 3
        paid = (price - 0.1) * q - 0.2 * q**2 - 0.3 * h - 0.7 * max(q - s, 0) - 0.5 * s
        assert float(reward[0, i]) == pytest.approx(paid, abs=1e-5)
        assert int(after.state[0, i]) == min(s - min(q, s) + h, 3)


def test_at_the_equilibrium_nothing_is_to_gain_and_a_higher_demand_makes_a_higher_price() -> None:
    prices = []
    for demand in (1.0, 2.0):
        game = EquilibriumPrice(demand=demand, costs=(0.1, 0.05, 0.1, 0.1, 0.05))
        found = solve(game, ProximalPoint(), 60, tolerance=1e-4)
        assert float(exploitability(game, found.policy)) <= 1e-3
        prices.append(float(game.price(Crowd(game.start(), found.policy[0]))))
    assert prices[0] < prices[1]


def test_a_market_without_demand_is_refused() -> None:
    with pytest.raises(ConfigError, match="demand must be float"):
        EquilibriumPrice(demand=0.0)
