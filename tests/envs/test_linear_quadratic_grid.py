"""Linear-quadratic on a grid: the mean is kept between places, and the equation is that of the paper."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.envs.linear_quadratic_grid import LinearQuadraticGrid
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.proximal_point import ProximalPoint

MU = torch.tensor([[0.0, 0.0, 0.1, 0.2, 0.1, 0.0, 0.15, 0.25, 0.2, 0.0, 0.0]], dtype=torch.float64)


def test_between_two_places_the_mean_of_a_step_is_that_of_the_equation() -> None:
    game = LinearQuadraticGrid(noise=0.6)
    m = float(game.mean(MU)[0])
    dense = game.outcomes(0, Crowd(MU)).dense()[0]
    assert float((dense.sum(-1) - 1).abs().max()) < 1e-14
    place = torch.arange(-5, 6, dtype=torch.float64)
    for s in (-2, 0, 2):  # far enough from the ends: 3 * .6^2 * sqrt(.1) = .34
        for a in (-2, 1):
            ahead = float(dense[s + 5, a + 2] @ place)
            assert ahead == pytest.approx(s + (m - s + a) * 0.1, abs=1e-12)


def test_noise_has_the_weights_of_the_paper_and_ends_at_the_wall() -> None:
    game = LinearQuadraticGrid(noise=1.0, rounding="nearest", pull=0.0, step_length=1.0)
    dense = game.outcomes(0, Crowd(MU)).dense()[0]
    weight = [math.exp(-(z**2) / 2) for z in range(-3, 4)]
    total = sum(weight)
    assert dense[5, 2, 2:9].tolist() == pytest.approx([w / total for w in weight])
    assert float(dense[10, 4, 10]) == pytest.approx(sum(weight[1:]) / total)  # +2, then -3 .. 3, from the last place


def test_rewards_and_the_last_reward_are_those_of_the_equation() -> None:
    game = LinearQuadraticGrid()
    m = float(game.mean(MU)[0])
    paid = game.paid(0, Crowd(MU))[0]
    last = game.terminal(Crowd(MU))[0]
    for s in range(-5, 6):
        for a in range(-2, 3):
            expected = 0.1 * (-(a**2) / 2 + 0.01 * a * (m - s) - 0.25 * (m - s) ** 2)
            assert float(paid[s + 5, a + 2]) == pytest.approx(expected, abs=1e-14)
        assert float(last[s + 5]) == pytest.approx(-0.5 * (m - s) ** 2, abs=1e-13)


def test_the_equilibrium_is_symmetric_and_nobody_moves_away_from_the_mean() -> None:
    game = LinearQuadraticGrid()
    found = solve(game, ProximalPoint(), 60, tolerance=1e-5)
    assert float(exploitability(game, found.policy)) <= 1e-5
    chosen = (found.policy[:, 0] * torch.arange(-2, 3)).sum(-1)
    assert torch.allclose(chosen, -chosen.flip(-1), atol=1e-4)
    assert bool((chosen[:, :5] >= -1e-4).all())


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="step_length must be float"):
        LinearQuadraticGrid(step_length=0.0)
    with pytest.raises(ConfigError, match="reach must be int"):
        LinearQuadraticGrid(reach=0)
