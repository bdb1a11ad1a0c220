"""Building evacuation: stairs only in their corners, and the potential of a crowd that avoids itself."""

from __future__ import annotations

import itertools

import torch

from mfmarl.envs.building_evacuation import DOWN, UP, BuildingEvacuation
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from tests.envs.by_hand import assert_rewards_are_the_slope_of_the_potential


def test_every_move_leads_where_walls_and_stairs_allow() -> None:
    game = BuildingEvacuation(floors=3, length=2, width=4)
    to = game.outcomes(0, Crowd(game.start())).successor[..., 0]
    for f in range(3):
        for x in range(2):
            for y in range(4):
                here = (f * 2 + x) * 4 + y
                wanted = [(f, x + 1, y), (f, x - 1, y), (f, x, y - 1), (f, x, y + 1)]
                ends = [(i, min(max(j, 0), 1), min(max(k, 0), 3)) for i, j, k in wanted]
                ends.append((f - 1 if f > 0 and (x, y) == (0, 0) else f, x, y))
                ends.append((f + 1 if f < 2 and (x, y) == (1, 3) else f, x, y))
                assert to[here].tolist() == [(i * 2 + j) * 4 + k for i, j, k in ends]
    assert (DOWN, UP) == (4, 5)


def test_the_potential_is_the_integral_of_the_rewards() -> None:
    assert_rewards_are_the_slope_of_the_potential(BuildingEvacuation(floors=2, length=2, width=3, aversion=0.7))


def test_the_potential_goes_on_smoothly_where_shares_fall_below_the_floor() -> None:
    game = BuildingEvacuation(floors=1, length=1, width=2, floor=0.1, safety=0.0)

    def at(x: float) -> float:
        mu = torch.tensor([[x, 0.5]], dtype=torch.float64)
        return float(game.potential(0, Crowd(mu)))

    assert abs(at(0.1 + 1e-9) - at(0.1 - 1e-9)) < 1e-8
    slope = -torch.tensor(0.1, dtype=torch.float64).log()
    assert abs((at(0.06) - at(0.04)) / 0.02 - float(slope)) < 1e-9


def test_mirror_descent_brings_people_down_and_raises_the_potential_at_every_step() -> None:
    game = BuildingEvacuation(floors=3, length=3, width=3, horizon=12)
    found = solve(game, MirrorDescent(rate=0.1), 60, every=1)
    potential = [row["potential"] for row in found.rows]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(potential))
    assert found.rows[-1]["exploitability"] < 0.1 * found.rows[0]["exploitability"]
