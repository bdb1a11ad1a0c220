"""Treasure hunters: disagreement counted by hand, and agreement as an equilibrium."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.conservative_treasure_hunting import ConservativeTreasureHunting
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability
from mfmarl.games.game import Crowd

JOINT = torch.tensor([[0.1, 0.2, 0.0], [0.05, 0.3, 0.05], [0.0, 0.1, 0.2]], dtype=torch.float64)


def _crowd() -> Crowd:
    return Crowd(JOINT.sum(-1).unsqueeze(0), counted=JOINT.unsqueeze(0))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_rewards_and_drift_are_those_of_the_distance_to_agreement_entry_by_entry(place: int) -> None:
    game = ConservativeTreasureHunting(treasure=(1.0, 2.0, 0.5), drift=(1.0, 0.25))
    agreed = torch.zeros(3, 3, dtype=torch.float64)
    agreed[place, place] = 1
    apart = sum(float(x) ** 2 for x in (JOINT - agreed).flatten())
    rewards = game.rewards(2, _crowd())[0]
    assert float(rewards[place, place]) == pytest.approx(game.treasure[place] * (1 - apart / 2))
    assert float(rewards.sum() - rewards.diagonal().sum()) == 0
    for t, drift in ((1, 1.0), (2, 0.25), (5, 0.25)):
        rows = game.outcomes(t, _crowd()).dense()[0, place]
        for action in range(3):
            for after in range(3):
                p = (drift * apart + (after == action)) / (1 + 3 * drift * apart)
                assert float(rows[action, after]) == pytest.approx(p, abs=1e-14)


def test_the_first_step_goes_where_it_wants_and_is_not_paid() -> None:
    game = ConservativeTreasureHunting()
    assert float(game.rewards(0, _crowd()).abs().sum()) == 0
    assert torch.equal(game.outcomes(0, _crowd()).dense(), torch.eye(3).double().expand(3, 3, 3))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_to_dig_where_all_dig_is_an_equilibrium_at_every_place(place: int) -> None:
    game = ConservativeTreasureHunting(treasure=(1.0, 2.0, 0.5))
    policy = torch.zeros(6, 1, 3, 3, dtype=torch.float64)
    policy[..., place] = 1
    assert float(exploitability(game, policy)) == pytest.approx(0, abs=1e-14)


def test_one_place_and_a_negative_drift_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 places"):
        ConservativeTreasureHunting(treasure=(1.0,))
    with pytest.raises(ConfigError, match="none below 0"):
        ConservativeTreasureHunting(drift=(-1.0,))
