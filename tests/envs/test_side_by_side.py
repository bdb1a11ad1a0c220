"""Every number among the options of the shared games may differ between games that are solved in one call."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mfmarl.envs.building_evacuation import BuildingEvacuation
from mfmarl.envs.conservative_treasure_hunting import ConservativeTreasureHunting
from mfmarl.envs.crowd_motion import CrowdMotion
from mfmarl.envs.equilibrium_price import EquilibriumPrice
from mfmarl.envs.linear_quadratic_grid import LinearQuadraticGrid
from mfmarl.envs.random_linear import RandomLinear
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.envs.susceptible_infected_recovered import SusceptibleInfectedRecovered
from mfmarl.games.batch import side_by_side
from mfmarl.games.exploitability import potential
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent

GAMES: list[MeanFieldGame] = [
    SusceptibleInfected(horizon=5),
    SusceptibleInfectedRecovered(horizon=5),
    ConservativeTreasureHunting(),
    EquilibriumPrice(),
    BuildingEvacuation(floors=2, length=2, width=3),
    LinearQuadraticGrid(reach=3, speed=1),
    CrowdMotion(length=3, width=3),
    RandomLinear(states=3),
]
OPTIONS = [
    (game, field.name)
    for game in GAMES
    for field in dataclasses.fields(game)
    if isinstance(getattr(game, field.name), float) and field.name != "discount"
]


@pytest.mark.parametrize(("game", "option"), OPTIONS, ids=[f"{type(g).__name__}-{o}" for g, o in OPTIONS])
def test_games_that_differ_in_one_number_are_each_of_them_alone(game: MeanFieldGame, option: str) -> None:
    other = dataclasses.replace(game, **{option: 0.75 * getattr(game, option) + 0.05})
    together = side_by_side([game, other])
    found = solve(together, MirrorDescent(rate=0.2), 5, tolerance=0, every=5)
    phi = potential(together, flow(together, uniform(together)))
    for b, each in enumerate((game, other)):
        alone = solve(each, MirrorDescent(rate=0.2), 5, tolerance=0, every=5)
        torch.testing.assert_close(found.last[:, b], alone.last, rtol=0, atol=1e-10)
        assert found.rows[-1]["exploitability"][b] == pytest.approx(alone.rows[-1]["exploitability"], abs=1e-10)
        if phi is not None:
            own = potential(each, flow(each, uniform(each)))
            assert own is not None
            assert float(phi[b]) == pytest.approx(float(own), abs=1e-10)
