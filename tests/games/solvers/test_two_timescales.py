"""Unified Q-learning: the same learner finds the equilibrium or the optimum, by which timescale is the slower."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel
from mfmarl.games.solve import solve
from mfmarl.games.solvers.two_timescales import ControlQLearning, GameQLearning, TwoTimescales

GRAZE = 1


@dataclass(frozen=True)
class Commons(MeanFieldGame):
    """One goes where one likes and slips with probability .1; grazing pays 1, and everybody loses twice the grazing share.

    Whatever the others do, to graze is worth 1 more than not to: all do, and each step pays .9 (1 - 2 x .9) - .1 x 1.8 =
    -.9. If nobody wants to, each step pays .1 - .2 = -.1.
    """

    horizon: int | None = None
    discount: float = 0.5
    num_states = 2
    num_actions = 2
    crowd_moves = False

    def initial(self) -> Tensor:
        return torch.tensor([0.5, 0.5], dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return Dense(torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=crowd.mu.dtype).expand(2, 2, 2))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return (crowd.mu.new_tensor([0.0, 1.0]) - 2 * crowd.mu[..., GRAZE:]).unsqueeze(-1)


def grazing(solver: TwoTimescales, game: Commons, steps: int, seeds: int = 10) -> Tensor:
    """Probability of wanting to graze [T, seeds, S] after some steps."""
    return solve(game, solver, steps, every=steps, batch=(seeds,), tolerance=0).last[..., 0, :, GRAZE]


@pytest.mark.verify
def test_the_game_grazes_and_control_does_not() -> None:
    """6,000 steps of one path, ten seeds. The slow crowd: everybody grazes but for what is tried out, half of .1. The fast:
    at least nine of ten decisions are not to."""
    game = Commons()
    slow = grazing(GameQLearning(length=200), game, 30)
    assert bool((slow > 0.88).all()) and abs(float(slow.mean()) - 0.95) < 0.02
    fast = grazing(ControlQLearning(length=200), game, 30)
    assert float(fast.mean()) <= 0.1


def test_the_rates_alone_decide() -> None:
    """The learner of control with the game's exponents grazes."""
    game = Commons()
    swapped = replace(ControlQLearning(length=200), value_decay=0.55, crowd_decay=0.85)
    assert float(grazing(swapped, game, 15).mean()) == 1.0


def test_with_a_horizon_the_game_is_learned_and_control_is_refused() -> None:
    """2,000 episodes of four steps; the last decision, which nothing follows, does not matter."""
    game = Commons(horizon=4, discount=1.0)
    assert float(grazing(GameQLearning(), game, 40)[:-1].mean()) > 0.85
    with pytest.raises(ConfigError, match="horizon=none"):
        ControlQLearning().begin(game, uniform(game))


def test_the_values_of_game_and_control_are_known() -> None:
    """-.9 and -.1 a step, over 1 - gamma."""
    game = Commons()
    for choice, value in ((1.0, -1.8), (0.0, -0.2)):
        policy = torch.tensor([1 - choice, choice], dtype=torch.float64).expand(1, 1, 2, 2)
        assert float(gap(game, policy).value) == pytest.approx(value)
        assert float(exploitability(game, policy)) == pytest.approx(0 if choice else 0.8, abs=1e-9)


def test_the_average_of_what_was_done_is_a_mixed_equilibrium() -> None:
    """1000 episodes, eight seeds. Measured over 24: left-right .0264, deviation .0233 (any pure policy: 1 or more), so at
    most .0264 + 5 x .0233 / sqrt(8) = .068; beach bar .154, deviation .048 (uniform 1.2213): at most .239."""
    sides = solve(LeftRight(), GameQLearning(), 20, every=20, batch=(8,)).rows[-1]["exploitability"]
    assert sum(sides) / 8 < 0.068
    beach = solve(BeachBar(), GameQLearning(), 20, every=20, batch=(8,)).rows[-1]["exploitability"]
    assert sum(beach) / 8 < 0.239
