"""Random games: how they are drawn, that the drawing is keyed, and that their equilibrium is one."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.garnet import Garnet
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import potential
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from tests.statistical import beyond, statistical


def _outcomes(game: Garnet) -> torch.Tensor:
    return game.outcomes(0, Crowd(game.start())).probability


@statistical(alpha=beyond(5, 40), bugs=("uniforms-narrow", "draws-repeat"))
def test_every_action_has_so_many_successors_whose_probabilities_sum_to_one() -> None:
    game = Garnet(states=200, branching=4)
    p = _outcomes(game)
    assert p.shape == (200, 3, 4)
    assert torch.allclose(p.sum(-1), torch.ones(200, 3, dtype=torch.float64))
    # The gaps of three uniform points: each has mean 1/4 and variance 3/80.
    n = p[..., 0].numel()
    for k in range(4):
        assert abs(p[..., k].mean().item() - 1 / 4) < 5 * (3 / 80 / n) ** 0.5
    assert Garnet(branching=1).outcomes(0, Crowd(game.start())).probability.eq(1).all()


@statistical(alpha=1e-3, bugs=("last-number-never", "draws-repeat"))
def test_successors_are_drawn_evenly() -> None:
    game = Garnet(states=20, actions=50, branching=10)
    counts = torch.bincount(game.outcomes(0, Crowd(game.start())).successor.flatten(), minlength=20).double()
    assert float(((counts - 500) ** 2 / 500).sum()) < 19 + 5 * 38**0.5  # chi square, 19 degrees of freedom


@statistical(alpha=beyond(5, 2), bugs=("uniforms-lean", "purposes-share-noise"))
def test_pay_is_there_as_often_as_asked() -> None:
    game = Garnet(states=400, actions=25, filled=0.3)
    share = (game.pay > 0).double().mean().item()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 10_000) ** 0.5
    assert game.pay[game.pay > 0].mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 3000) ** 0.5)
    assert bool((Garnet(filled=1.0).pay > 0).all())
    assert not bool(Garnet(filled=0.0).pay.any())


def test_the_same_number_is_the_same_game_and_another_another() -> None:
    assert torch.equal(_outcomes(Garnet(table_seed=5)), _outcomes(Garnet(table_seed=5)))
    assert torch.equal(Garnet(table_seed=5).pay, Garnet(table_seed=5).pay)
    assert not torch.equal(_outcomes(Garnet(table_seed=5)), _outcomes(Garnet(table_seed=6)))
    assert not torch.equal(Garnet(table_seed=5).pay, Garnet(table_seed=6).pay)


@pytest.mark.parametrize("table_seed", [0, 1, 2])
def test_two_solvers_come_to_one_crowd(table_seed: int) -> None:
    game = Garnet(table_seed=table_seed)
    descent = solve(game, MirrorDescent(rate=3.0), 300, 1e-9)
    play = solve(game, FictitiousPlay(), 300)
    assert float(descent.exploitability) < 1e-3
    assert torch.allclose(flow(game, descent.policy).mu, flow(game, play.policy).mu, atol=0.02)


def test_the_potential_is_highest_at_the_equilibrium() -> None:
    game = Garnet()
    found = solve(game, MirrorDescent(rate=3.0), 300, 1e-9)
    best = float(potential(game, flow(game, found.policy)))  # type: ignore[arg-type]
    assert best > float(potential(game, flow(game, uniform(game))))  # type: ignore[arg-type]
    noise = torch.Generator().manual_seed(0)
    for _ in range(10):
        other = torch.rand(found.policy.shape, generator=noise, dtype=torch.float64)
        mixed = 0.9 * found.policy + 0.1 * other / other.sum(-1, keepdim=True)
        assert float(potential(game, flow(game, mixed))) < best  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"states": 1}, "states must be int"),
        ({"branching": 0}, "branching must be int"),
        ({"filled": 2.0}, "filled must be float"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Garnet(**options)  # type: ignore[arg-type]
