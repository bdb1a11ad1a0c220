"""The crowd on a circle: its closed form, approached as steps and cells become small, at the order that theory says."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import i0, i1
from torch import Tensor

from mfmarl.envs.periodic_aversion import PeriodicAversion
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import Gap, gap
from mfmarl.games.flow import flow
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent

TIME = 0.2


def _closed(game: PeriodicAversion) -> Tensor:
    """v = 2 pi cos 2 pi x in whole cells, so mixed that the mean is right: [T, 1, S, A]."""
    x = torch.arange(game.places, dtype=torch.float64) / game.places
    cells = 2 * math.pi * (2 * math.pi * x).cos() * game.dt * game.places + game.reach
    low = cells.floor().long().clamp(max=game.num_actions - 2).unsqueeze(-1)
    high = cells.unsqueeze(-1) - low
    policy = torch.zeros(game.places, game.num_actions, dtype=torch.float64)
    policy.scatter_(1, low, 1 - high).scatter_add_(1, low + 1, high)
    assert game.horizon is not None
    return policy.expand(game.horizon, 1, -1, -1)


def _refined(level: int) -> tuple[PeriodicAversion, Gap]:
    """Steps halve; cells shrink as dt^(3/2), so that what is lost to whole cells is of the order of dt too."""
    dt = 0.02 / 2**level
    places = round(60 * 2 ** (1.5 * level))
    game = PeriodicAversion(
        places=places, dt=dt, horizon=round(TIME / dt), reach=int(7 * places * dt) + 1, ends="value"
    )
    return game, gap(game, _closed(game))


def test_the_closed_form_is_an_equilibrium_as_steps_become_small() -> None:
    """What is to gain falls as dt^2, how far the crowd moves from m as dt, and the value per time is log I_0(2)."""
    gains, moved, missed = [], [], []
    for level in range(3):
        game, found = _refined(level)
        gains.append(float(found.exploitability) / TIME)
        moved.append(float((found.flow.mu[:, 0] - game.density()).abs().sum(-1).max()))
        ahead = float((game.density() * game._angle.sin()).sum())
        missed.append(abs((float(found.value) - ahead) / TIME - math.log(i0(2))))
    for curve, order in ((gains, 2), (moved, 1), (missed, 1)):
        measured = math.log2(curve[-2] / curve[-1])
        assert abs(measured - order) < 0.15, (curve, order)
    assert gains[-1] < 0.15
    assert moved[-1] < 0.06


def test_another_speed_is_no_equilibrium_however_small_the_steps() -> None:
    game, right = _refined(1)
    stand = torch.zeros_like(_closed(game))
    stand[..., game.reach] = 1
    assert float(gap(game, stand).exploitability) > 10 * float(right.exploitability)


def test_the_density_is_the_closed_form() -> None:
    game = PeriodicAversion(places=200)
    x = torch.arange(200, dtype=torch.float64) / 200
    assert torch.allclose(game.density() * 200, (2 * (2 * math.pi * x).sin()).exp() / i0(2), rtol=1e-12)
    assert float(game.measures(game.density().unsqueeze(0))["sine"]) == pytest.approx(i1(2) / i0(2))
    known = PeriodicAversion(ends="value").reference()["sine"]
    assert known.value == pytest.approx(i1(2) / i0(2))


def test_the_solved_crowd_nears_the_density() -> None:
    away = []
    for places, dt in ((40, 0.02), (60, 0.01)):
        game = PeriodicAversion(places=places, dt=dt, horizon=round(0.1 / dt), reach=int(7 * places * dt), ends="value")
        found = solve(game, MirrorDescent(rate=10.0), 150)
        assert float(found.exploitability) < 1e-3
        away.append(float((flow(game, found.policy).mu[-1, 0] - game.density()).abs().sum()))
    assert away[1] < 0.75 * away[0] < 0.3


def test_pushes_are_gaussian_and_go_round() -> None:
    game = PeriodicAversion(places=50, dt=0.01)
    push = game.push()
    assert push.sum().item() == pytest.approx(1)
    assert torch.allclose(push[1:], push[1:].flip(0))
    offset = torch.arange(50) - 50 * (torch.arange(50) > 25)
    assert (push * (offset / 50.0) ** 2).sum().item() == pytest.approx(0.01, rel=0.01)
    wide = PeriodicAversion(places=7, dt=1.0).push()  # further than once round
    assert torch.allclose(wide, torch.full((7,), 1 / 7, dtype=torch.float64), atol=1e-6)


def test_many_cells_move_by_the_same_law_as_few() -> None:
    game = PeriodicAversion(places=400, reach=8)
    kernel = game.outcomes(0, Crowd(game.start()))
    assert type(kernel).__name__ == "Moves"
    row = kernel.dense()[3, 0]
    assert torch.allclose(row.roll(-3 + 8), game.push())


def test_speed_costs_half_its_square() -> None:
    game = PeriodicAversion(places=20, dt=0.05, reach=2)
    assert game.effort()[0].tolist() == pytest.approx([0.05 * v**2 / 2 for v in (-2, -1, 0, 1, 2)])


@pytest.mark.parametrize(
    ("options", "told"), [({"places": 2}, "places must be int"), ({"dt": 0.0}, "dt"), ({"reach": 0}, "reach")]
)
def test_bad_options_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PeriodicAversion(**options)  # type: ignore[arg-type]
