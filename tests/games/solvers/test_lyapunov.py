r"""In a potential game with fixed dynamics solvers have a Lyapunov function: the potential, or the free energy.

Perrin et al. 2020 (arXiv 2007.03458) of fictitious play; of mirror descent the potential is concave in L, and its
gradient the rewards. At a temperature T it is F = -potential - T entropy, least at the regularised equilibrium.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.games.exploitability import free_energy, potential
from mfmarl.games.flow import Flow, flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.occupation_inclusion import OccupationInclusion
from mfmarl.games.solvers.policy_mirror import PolicyMirror
from mfmarl.games.welfare import marginal, total
from tests.games.small_games import Matrix, Pigou, Towels, random_policy

GAMES = [BeachBar(places=6, horizon=5), Towels(places=5), Pigou(power=3)]
ROUNDING = 1e-12


def along(
    game: MeanFieldGame,
    solver: Solver,
    measure: Callable[[MeanFieldGame, Flow], Tensor | None],
    steps: int = 80,
    first: Tensor | None = None,
) -> Tensor:
    """What a solver's policies measure, [steps, 2], from two first policies."""
    state = solver.begin(game, random_policy(game, (2,)) if first is None else first)
    seen = []
    for k in range(1, steps + 1):
        found = measure(game, flow(game, solver.policy(game, state)))
        assert found is not None
        seen.append(found)
        state = solver.step(game, state, k)
    return torch.stack(seen)


@pytest.mark.parametrize("game", GAMES, ids=repr)
@pytest.mark.parametrize(
    "solver",
    [MirrorDescent(rate=0.02), MirrorDescent(rate=0.2), FictitiousPlay(), FictitiousPlay(weight=0.01)],
    ids=repr,
)
def test_the_potential_never_falls(game: MeanFieldGame, solver: Solver) -> None:
    curve = along(game, solver, potential)
    assert float(curve.diff(dim=0).min()) > -ROUNDING
    assert float((curve[-1] - curve[0]).max()) > 0.05


@pytest.mark.parametrize("game", GAMES[1:], ids=repr)
def test_a_projected_gradient_step_raises_the_potential_too(game: MeanFieldGame) -> None:
    curve = along(game, OccupationInclusion(rate=0.05, twice=False), potential)
    assert float(curve.diff(dim=0).min()) > -ROUNDING
    assert float((curve[-1] - curve[0]).max()) > 0.05


def test_too_large_a_step_breaks_it() -> None:
    assert float(along(Towels(places=5), MirrorDescent(rate=100.0), potential).diff(dim=0).min()) < -1e-3
    assert float(along(BeachBar(places=6, horizon=5), FictitiousPlay(weight=0.1), potential).diff(dim=0).min()) < -1e-3


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("game", GAMES, ids=repr)
def test_the_free_energy_falls_to_its_minimum_at_the_regularised_equilibrium(
    game: MeanFieldGame, temperature: float
) -> None:
    def measure(g: MeanFieldGame, path: Flow) -> Tensor | None:
        return free_energy(g, path, temperature)

    curve = along(game, PolicyMirror(rate=0.2, temperature=temperature), measure, 300)
    assert float(curve.diff(dim=0).max()) < ROUNDING
    # From both first policies to the same least value: F is convex in L.
    least = curve[-1].min()
    assert float((curve[-1] - least).max()) < 1e-3
    # And no policy nearby, or anywhere tried, has less.
    for seed in range(20):
        tried = measure(game, flow(game, random_policy(game, seed=seed)))
        assert tried is not None
        assert float(tried) > float(least)


def test_with_a_leak_the_free_energy_falls_where_one_choice_is_made() -> None:
    # With one decision there are no later choices whose entropy could count: the two equilibria are one.
    def measure(g: MeanFieldGame, path: Flow) -> Tensor | None:
        return free_energy(g, path, 0.3)

    game = Pigou(power=3)
    leak = along(game, MirrorDescent(rate=0.1, leak=0.3), measure, 300)
    mirror = along(game, PolicyMirror(rate=0.1, temperature=0.3), measure, 300)
    assert float(leak.diff(dim=0).max()) < ROUNDING
    torch.testing.assert_close(leak[-1], mirror[-1], rtol=0, atol=1e-9)


def test_with_a_leak_and_later_choices_it_ends_above_the_minimum() -> None:
    # The quantal response equilibrium is another point: close, and not the least.
    def measure(g: MeanFieldGame, path: Flow) -> Tensor | None:
        return free_energy(g, path, 1.0)

    game = BeachBar(places=6, horizon=5)
    leak = along(game, MirrorDescent(rate=0.1, leak=1.0), measure, 300)
    mirror = along(game, PolicyMirror(rate=0.1, temperature=1.0), measure, 300)
    assert float(leak[-1].min() - mirror[-1].max()) > 1e-4
    # It comes nearer first, and leaves again.
    assert float((leak[-1] - leak.min(0).values).min()) > 1e-9


def test_the_potential_of_a_tolled_game_is_what_all_get_together() -> None:
    game = Towels(places=5)
    tolled = marginal(game)
    policy = random_policy(game, (2,))
    together = total(game, flow(game, policy))
    torch.testing.assert_close(potential(tolled, flow(tolled, policy)), together, rtol=1e-13, atol=1e-13)
    curve = along(tolled, MirrorDescent(rate=0.05), potential)
    assert float(curve.diff(dim=0).min()) > -ROUNDING


def test_a_game_of_rock_paper_scissors_has_none() -> None:
    game = Matrix()
    assert potential(game, flow(game, random_policy(game))) is None
