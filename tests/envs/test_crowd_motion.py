"""Crowd motion: step and push end at the wall once, the bar goes its way, and there is a potential."""

from __future__ import annotations

import itertools

import pytest
import torch

from mfmarl.envs.crowd_motion import CrowdMotion
from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from tests.envs.by_hand import assert_rewards_are_the_slope_of_the_potential

WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))


def test_step_and_push_add_up_before_the_wall_stops_them() -> None:
    game = CrowdMotion(length=3, width=4, calm=0.6)
    dense = game.outcomes(0, Crowd(game.start())).dense()
    expected = torch.zeros(12, 5, 12, dtype=torch.float64)
    for x in range(3):
        for y in range(4):
            for a, (i, j) in enumerate(WAYS):
                for (k, m), p in zip(WAYS, (0.1, 0.1, 0.1, 0.1, 0.6), strict=True):
                    after = min(max(x + i + k, 0), 2), min(max(y + j + m, 0), 3)
                    expected[4 * x + y, a, 4 * after[0] + after[1]] += p
    torch.testing.assert_close(dense, expected)


def test_the_bar_moves_diagonally_when_it_is_time_and_stays_inside() -> None:
    game = CrowdMotion(length=5, width=6, bar_moves_every=3, horizon=90)
    path = [game.bar(t) for t in range(90)]
    assert path[0] == (2, 3)
    for t, (before, after) in enumerate(itertools.pairwise(path), 1):
        moved = (abs(after[0] - before[0]), abs(after[1] - before[1]))
        assert moved in ([(1, 1), (0, 0)] if t % 3 == 0 else [(0, 0)])
        assert 0 <= after[0] < 5
        assert 0 <= after[1] < 6
    assert len(set(path)) > 5
    assert path != [CrowdMotion(length=5, width=6, bar_moves_every=3, bar_seed=1).bar(t) for t in range(90)]


def test_a_given_way_of_the_bar_is_gone_and_the_last_place_stays() -> None:
    game = CrowdMotion(length=4, width=5, bars=(0, 7))
    assert [game.bar(t) for t in range(4)] == [(0, 0), (1, 2), (1, 2), (1, 2)]
    crowd = Crowd(game.start())
    best = [int(game.rewards(t, crowd)[0, :, 0].argmax()) for t in range(3)]
    assert best == [0, 7, 7]
    paid = float(game.rewards(1, crowd)[0, 19, 0])
    assert paid == pytest.approx(10 * (1 - (2 + 2) / 9) - float(torch.tensor(0.05 + 1e-10).double().log()), abs=1e-6)


@pytest.mark.parametrize("t", [0, 3])
def test_the_potential_is_the_integral_of_the_rewards(t: int) -> None:
    assert_rewards_are_the_slope_of_the_potential(CrowdMotion(length=3, width=4, floor=1e-3), t)


def test_mirror_descent_raises_the_potential_at_every_step() -> None:
    game = CrowdMotion(length=5, width=5, horizon=8)
    found = solve(game, MirrorDescent(rate=0.05), 80, every=1)
    potential = [row["potential"] for row in found.rows]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(potential))
    assert found.rows[-1]["exploitability"] < 0.15 * found.rows[0]["exploitability"]


def test_a_bar_outside_is_refused() -> None:
    with pytest.raises(ConfigError, match="cells from 0 to 399, not 400"):
        CrowdMotion(bars=(0, 400))
