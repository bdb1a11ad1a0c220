"""Games on a torus: shifts against tables, and mirror descent that holds one number per state and time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Kernel, Torus
from mfmarl.games.large import LargeGrid, mirror_descent
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.random import Key
from tests.statistical import beyond, statistical

STAY_AND_AROUND = torch.tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])


@dataclass(frozen=True)
class Walk(MeanFieldGame):
    """Walkers on a torus who avoid each other."""

    horizon: int | None = 6
    rows: int = 7
    columns: int = 5
    reach: int = 1
    discount: float = 0.9

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return self.rows * self.columns

    @property
    def num_actions(self) -> int:
        return 5

    def initial(self) -> Tensor:
        weight = torch.arange(self.num_states, dtype=torch.float64) % 7 + 1
        return weight / weight.sum()

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        chance = torch.tensor([0.6, 0.1, 0.05, 0.15, 0.1], dtype=crowd.mu.dtype)
        return Torus((self.rows, self.columns), self.reach * STAY_AND_AROUND, STAY_AND_AROUND, chance)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        place = torch.arange(self.num_states)
        away = (place // self.columns - 2).abs() + (place % self.columns - 3).abs()
        return (-away.to(crowd.mu) / 5 - (crowd.mu * self.num_states + 1e-3).log()).unsqueeze(-1)

    def effort(self) -> Tensor:
        return torch.tensor([0.0, 0.1, 0.1, 0.2, 0.2], dtype=torch.float64).expand(self.num_states, 5)


@dataclass(frozen=True)
class Line(Walk):
    columns: int = 1

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        chance = torch.tensor([0.5, 0.3, 0.2], dtype=crowd.mu.dtype)
        return Torus((self.rows,), torch.tensor([[0], [1], [-1], [2], [-2]]), torch.tensor([[0], [1], [-1]]), chance)


def table_of(kernel: Torus) -> Tensor:
    """[S, A, S], cell by cell in plain Python."""
    cells = list(itertools.product(*(range(n) for n in kernel.shape)))
    number = {cell: i for i, cell in enumerate(cells)}
    table = torch.zeros(len(cells), len(kernel.moves), len(cells), dtype=torch.float64)
    for cell, (a, move), (k, shove) in itertools.product(
        cells, enumerate(kernel.moves.tolist()), enumerate(kernel.shoves.tolist())
    ):
        there = tuple((c + m + s) % n for c, m, s, n in zip(cell, move, shove, kernel.shape, strict=True))
        table[number[cell], a, number[there]] += kernel.chance[k]
    return table


@pytest.fixture(params=[Walk(), Walk(rows=2, reach=2), Line()], ids=["torus", "narrow", "ring"])
def game(request: pytest.FixtureRequest) -> Walk:
    return request.param


def the_kernel(game: Walk) -> Torus:
    kernel = game.kernel(0, Crowd(game.start()))
    assert isinstance(kernel, Torus)
    return kernel


def test_shifts_are_the_table(game: Walk) -> None:
    kernel = the_kernel(game)
    table = table_of(kernel)
    torch.testing.assert_close(kernel.dense(), table)
    kernel.check("the walk")
    value = random.normal(Key.of(1), torch.arange(2 * game.num_states)).double().view(2, 1, -1)
    torch.testing.assert_close(kernel.expect(value), torch.einsum("sax,bgx->bgsa", table, value))
    joint = random.uniform(Key.of(2), torch.arange(2 * game.num_states * 5)).double().view(2, 1, -1, 5)
    torch.testing.assert_close(kernel.carry(joint), torch.einsum("bgsa,sax->bgx", joint, table))


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "uniforms-lean"))
def test_agents_move_by_the_table(game: Walk) -> None:
    kernel, draws = the_kernel(game), 40_000
    for state, action in ((0, 1), (game.num_states - 1, 4), (3, 0)):
        ids = torch.arange(draws).unsqueeze(0)
        full = torch.full_like(ids, 0)
        after = kernel.draw(
            torch.zeros(draws, dtype=torch.int64), full + state, full + action, random.uniform(Key.of(3), ids)
        )
        expected = table_of(kernel)[state, action]
        found = torch.bincount(after[0], minlength=game.num_states) / draws
        error = (expected * (1 - expected) / draws).sqrt()
        assert bool(((found - expected).abs() <= 5 * error).all())


def test_one_number_per_state_and_time_is_the_same_mirror_descent(game: Walk) -> None:
    grid, rate = LargeGrid(game, torch.float64), 0.2
    at, rows = mirror_descent(grid, rate, 20, every=5)
    solver = MirrorDescent(rate=rate)
    state = solver.begin(game, uniform(game))
    for k in range(21):
        policy = solver.policy(game, state)
        if k % 5 == 0:
            assert rows[k // 5]["exploitability"] == pytest.approx(float(gap(game, policy).exploitability), abs=1e-12)
        if k < 20:
            state = solver.step(game, state, k + 1)
    for t in range(6):
        torch.testing.assert_close(grid.policy(at, rate, t), policy[t, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(grid.flow(at, rate), flow(game, policy).mu[:, 0], rtol=0, atol=1e-12)


def test_blocks_do_not_show(game: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = mirror_descent(LargeGrid(game, torch.float64), 0.3, 3)
    monkeypatch.setattr("mfmarl.games.large._BLOCK", 2 * game.columns)
    parts, _ = mirror_descent(LargeGrid(game, torch.float64), 0.3, 3)
    # Vectorised exponentials differ from single ones in the last place.
    torch.testing.assert_close(whole.values, parts.values, rtol=1e-13, atol=1e-13)


def test_single_precision_comes_close(game: Walk) -> None:
    exact = mirror_descent(LargeGrid(game, torch.float64), 0.2, 10)[1][-1]["exploitability"]
    rounded = mirror_descent(LargeGrid(game), 0.2, 10)[1][-1]["exploitability"]
    assert rounded == pytest.approx(exact, abs=1e-5)


def test_games_of_another_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="Torus"):
        LargeGrid(BeachBar())
    with pytest.raises(ConfigError, match="horizon"):
        LargeGrid(Walk(horizon=None))
