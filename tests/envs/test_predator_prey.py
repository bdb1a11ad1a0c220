"""Populations that chase each other: what each feels, their symmetry, and refusals."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.errors import ConfigError
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key


def test_each_is_drawn_to_the_one_before_it_and_flees_the_one_after_it() -> None:
    """R = [[0, -1, 1], [1, 0, -1], [-1, 1, 0]] of Perolat et al. 2021, section 5.4."""
    game = PredatorPrey(aversion=0.0)
    assert game.drawn.tolist() == [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
    here = torch.zeros(3, 25, dtype=torch.float64)
    here[0, 7], here[1, 8], here[2, 9] = 1, 1, 1
    paid = game.rewards(0, Crowd(here))[..., 0]
    assert paid[0, [7, 8, 9]].tolist() == [0, -1, 1]
    assert paid[1, [7, 8, 9]].tolist() == [1, 0, -1]
    assert paid[2, [7, 8, 9]].tolist() == [-1, 1, 0]


def test_populations_start_in_their_corners_and_are_avoided_by_their_own_only() -> None:
    game = PredatorPrey()
    assert game.start().argmax(-1).tolist() == [0, 4, 20]
    mu = torch.full((3, 25), 1 / 25, dtype=torch.float64)
    mu[1] = 0
    mu[1, 3] = 1
    paid = game.rewards(0, Crowd(mu))[..., 0]
    assert paid[0, 3].item() == pytest.approx(torch.log(torch.tensor(25.0)).item() - 1 + 1 / 25, abs=1e-6)
    assert paid[1, 3].item() == pytest.approx(1 / 25 - 1 / 25, abs=1e-12)


@pytest.mark.parametrize("torus", [False, True])
def test_what_leaves_the_square_stops_at_its_edge_or_comes_round(torus: bool) -> None:
    game = PredatorPrey(torus=torus, noise=0.0)
    dense = game.outcomes(0, Crowd(game.start())).dense()
    assert dense[0].argmax(-1).tolist() == ([0, 1, 5, 20, 4] if torus else [0, 1, 5, 0, 0])
    windy = PredatorPrey(torus=torus, noise=0.8).outcomes(0, Crowd(game.start())).dense()
    assert windy[12, 0, [12, 13, 17, 7, 11]].tolist() == pytest.approx([0.2] * 5)


def test_chases_pay_nothing_all_together() -> None:
    game = PredatorPrey(aversion=0.0)
    path = flow(game, uniform(game))
    assert float((path.joint * path.rewards).sum()) == pytest.approx(0.0, abs=1e-12)


def test_mirror_descent_leaves_nobody_much_to_gain() -> None:
    game = PredatorPrey()
    rates = torch.tensor([0.3, 1.0], dtype=torch.float64)
    found = solve(game, MirrorDescent(rate=rates), 300, 1e-4, batch=(2,))  # type: ignore[arg-type]
    assert float(found.exploitability.min()) < 0.05  # of 36.97 for uniform choice


def test_without_a_chase_the_populations_mirror_each_other() -> None:
    """The second starts where the first does in the mirror: left and right change places."""
    game = PredatorPrey(chase=0.0)
    found = solve(game, MirrorDescent(rate=0.3), 60)
    mu = flow(game, found.policy).mu.view(10, 3, 5, 5)
    assert torch.allclose(mu[:, 0], mu[:, 1].flip(-1), atol=1e-10)
    assert torch.allclose(mu[:, 0], mu[:, 2].flip(-2), atol=1e-10)


def test_a_meeting_is_counted_where_predator_and_prey_share_a_cell() -> None:
    game = PredatorPrey()
    mu = torch.zeros(3, 25, dtype=torch.float64)
    mu[:, 6] = 1
    assert float(game.measures(mu)["meeting"]) == 1
    assert float(game.measures(game.start())["meeting"]) == 0
    assert game.render(game.reset(agent_ids(1, 300), Key.of(0))).shape[-1] == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [({"num_agents": 2}, "at least 3"), ({"size": 1}, "size must be int"), ({"noise": -0.1}, "noise must be float")],
)
def test_bad_options_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PredatorPrey(**options)  # type: ignore[arg-type]
