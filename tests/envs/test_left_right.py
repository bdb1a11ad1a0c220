"""Left or right: two thirds in the limit, and (2N - 1) / (3 (N - 1)) of N agents who count themselves."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.envs.left_right import LeftRight
from mfmarl.games.exploitability import exploitability
from mfmarl.games.solve import solve
from mfmarl.games.solvers.proximal_point import ProximalPoint
from tests.envs.by_hand import expected


def _policy(p: float, horizon: int = 1) -> torch.Tensor:
    return torch.tensor([p, 1 - p], dtype=torch.float64).expand(horizon, 1, 3, 2)


def test_two_thirds_go_left_in_the_limit_whatever_the_horizon() -> None:
    for horizon in (1, 4):
        assert float(exploitability(LeftRight(horizon=horizon), _policy(2 / 3, horizon))) == pytest.approx(0, abs=1e-15)
    stationary = LeftRight(horizon=None, discount=0.9)
    assert float(exploitability(stationary, _policy(2 / 3))) == pytest.approx(0, abs=1e-12)
    found = solve(LeftRight(), ProximalPoint(), 60)
    assert float(found.policy[0, 0, 0, 0]) == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("agents", [3, 4, 7, 10])
def test_an_agent_among_n_is_indifferent_at_its_closed_form_by_the_rules_that_n_agents_play(agents: int) -> None:
    game = LeftRight(num_agents=agents)
    p = (2 * agents - 1) / (3 * (agents - 1))
    left, right = expected(game, [p, 1 - p]).tolist()
    assert left == pytest.approx(right, abs=1e-6)
    assert game.left(agents=agents) == pytest.approx(p, abs=1e-12)
    known = game.reference()
    assert known["left"].value == pytest.approx(p, abs=1e-12)
    assert known["reward"].value == pytest.approx(-2 * (agents + 1) / (3 * agents), abs=1e-12)
    assert known["reward"].value == pytest.approx(left, abs=1e-6)


def test_two_agents_both_go_left_and_one_alone_too() -> None:
    left, right = expected(LeftRight(num_agents=2), [1.0, 0.0]).tolist()
    assert left >= right
    assert LeftRight(num_agents=2).reference()["left"].value == pytest.approx(1)
    assert LeftRight(num_agents=1).reference()["reward"].value == pytest.approx(-1)


@pytest.mark.parametrize("agents", [2, 5])
def test_agents_at_a_temperature_are_logit_of_what_they_expect(agents: int) -> None:
    game = LeftRight(num_agents=agents)
    p = game.left(0.3, agents)
    left, right = expected(game, [p, 1 - p]).tolist()
    assert p == pytest.approx(1 / (1 + math.exp((right - left) / 0.3)), abs=1e-6)
    assert game.reference(0.3)["reward"].value == pytest.approx(p * left + (1 - p) * right, abs=1e-6)


def test_every_decision_is_paid_once() -> None:
    known = LeftRight(num_agents=100).reference()["reward"].value
    assert LeftRight(num_agents=100, horizon=7).reference()["reward"].value == known
