"""Rock, paper, scissors: (26, 20, 31) / 77 at every number of agents."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.rock_paper_scissors import NASH, RockPaperScissors
from mfmarl.games.exploitability import exploitability
from mfmarl.games.solve import solve
from mfmarl.games.solvers.proximal_point import ProximalPoint
from tests.envs.by_hand import expected


def test_the_limit_has_its_known_equilibrium() -> None:
    policy = torch.tensor(NASH, dtype=torch.float64).expand(1, 1, 4, 3)
    assert float(exploitability(RockPaperScissors(), policy)) == pytest.approx(0, abs=1e-15)
    found = solve(RockPaperScissors(), ProximalPoint(), 60)
    assert found.policy[0, 0, 0].tolist() == pytest.approx(list(NASH), abs=1e-6)


@pytest.mark.parametrize("agents", [2, 3, 5])
def test_n_agents_are_indifferent_at_the_same_shares(agents: int) -> None:
    game = RockPaperScissors(num_agents=agents)
    paid = expected(game, list(NASH)).tolist()
    assert paid == pytest.approx([6 / 11 * (agents - 1) / agents] * 3, abs=1e-6)
    known = game.reference()
    assert known["reward"].value == pytest.approx(paid[0], abs=1e-6)
    assert [known[name].value for name in ("rock", "paper", "scissors")] == list(NASH)


@pytest.mark.parametrize("agents", [2, 4])
def test_agents_at_a_temperature_are_logit_of_what_they_expect(agents: int) -> None:
    game = RockPaperScissors(num_agents=agents)
    known = game.reference(0.5)
    shares = [known[name].value for name in ("rock", "paper", "scissors")]
    paid = expected(game, shares)
    assert (paid / 0.5).softmax(-1).tolist() == pytest.approx(shares, abs=1e-6)
    assert known["reward"].value == pytest.approx(float(paid @ paid.new_tensor(shares)), abs=1e-6)


def test_who_plays_alone_gets_nothing() -> None:
    assert expected(RockPaperScissors(num_agents=1), list(NASH)).tolist() == [0, 0, 0]
    assert RockPaperScissors(num_agents=1).reference()["reward"].value == 0
