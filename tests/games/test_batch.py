"""Games side by side are each of them, solved in one call."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mfmarl import random
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.lockdown import Lockdown
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import ConfigError
from mfmarl.games.batch import side_by_side
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.random import Key

EPIDEMICS = [
    SusceptibleInfected(horizon=12, infection=beta, distance=cost) for beta in (0.4, 0.81) for cost in (0.2, 0.5)
]
UNPAID = [SusceptibleInfected(horizon=12, infection=beta) for beta in (0.4, 0.81)]
BEACHES = [BeachBar(horizon=4, places=6, floor=floor, calm=calm) for floor, calm in ((1e-3, 0.5), (1e-20, 0.2))]
both = pytest.mark.parametrize(
    "games", [EPIDEMICS, BEACHES, UNPAID], ids=["crowd moves", "crowd does not move", "only dynamics differ"]
)


@both
def test_gaps_of_games_side_by_side_are_those_of_each(games: list[MeanFieldGame]) -> None:
    together = side_by_side(games)
    shape = uniform(together, (3,)).shape
    noise = random.normal(Key.of(0), torch.arange(uniform(together, (3,)).numel())).double()
    policy = torch.softmax(noise.view(shape), -1)
    found = gap(together, policy)
    assert found.exploitability.shape == (3, len(games))
    for b, game in enumerate(games):
        alone = gap(game, policy[:, :, b])
        torch.testing.assert_close(found.exploitability[:, b], alone.exploitability, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.value[:, b], alone.value, rtol=0, atol=1e-12)


@both
@pytest.mark.parametrize("solver", [MirrorDescent(rate=0.2), FictitiousPlay()], ids=["omd", "fp"])
def test_solved_together_or_alone_is_the_same(
    games: list[MeanFieldGame], solver: MirrorDescent | FictitiousPlay
) -> None:
    together = solve(side_by_side(games), solver, 20, tolerance=0, every=20)
    for b, game in enumerate(games):
        alone = solve(game, solver, 20, tolerance=0, every=20)
        torch.testing.assert_close(together.last[:, b], alone.last, rtol=0, atol=1e-10)
        assert together.rows[-1]["exploitability"][b] == pytest.approx(alone.rows[-1]["exploitability"], abs=1e-10)


def test_each_game_can_have_its_own_rate() -> None:
    rates = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    together = solve(side_by_side(EPIDEMICS), MirrorDescent(rate=rates), 10, tolerance=0, every=10)  # type: ignore[arg-type]
    alone = solve(EPIDEMICS[2], MirrorDescent(rate=0.3), 10, tolerance=0, every=10)
    torch.testing.assert_close(together.last[:, 2], alone.last, rtol=0, atol=1e-12)


def test_stationary_games_stand_side_by_side() -> None:
    games = [dataclasses.replace(game, horizon=None, discount=0.9) for game in EPIDEMICS]
    policy = uniform(side_by_side(games))
    found = gap(side_by_side(games), policy)
    for b, game in enumerate(games):
        alone = gap(game, policy[:, b])
        torch.testing.assert_close(found.exploitability[b], alone.exploitability, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("games", "told"),
    [
        ([], "no game"),
        ([BeachBar(), SusceptibleInfected()], "one class"),
        ([BeachBar(places=4), BeachBar(places=5)], "places"),
        ([SusceptibleInfected(discount=0.9), SusceptibleInfected(discount=0.8)], "discount"),
        ([Lockdown(), Lockdown(locked=0.1)], "common noise"),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(games: list[MeanFieldGame], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        side_by_side(games)
