"""The proximal point: every step is the implicit one, by either linear algebra, and it goes where explicit ones do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.conservative_treasure_hunting import ConservativeTreasureHunting
from mfmarl.envs.equilibrium_price import EquilibriumPrice
from mfmarl.envs.linear_quadratic_grid import LinearQuadraticGrid
from mfmarl.envs.random_linear import RandomLinear
from mfmarl.envs.rock_paper_scissors import RockPaperScissors
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.games import values
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.proximal_point import ProximalPoint, _advantage, _direct
from tests.games.mini import Seasonal, Teams, Tiny, some_policy

EPIDEMIC = SusceptibleInfected(horizon=51)  # mfglib's susceptible_infected(T=50)
BEST_OF_THE_PEERS = 0.126  # exploitability there after 200 iterations of any method of OpenSpiel or mfglib


@pytest.mark.parametrize("game", [SusceptibleInfected(horizon=6), RockPaperScissors(), BeachBar(horizon=5)])
def test_a_step_is_mirror_descent_paid_at_its_end(game: MeanFieldGame) -> None:
    solver = ProximalPoint(rate=0.7, growth=1.0)
    state = solver.begin(game, uniform(game))
    seen = 0
    for k in range(1, 40):
        after = solver.step(game, state, k)
        if not torch.equal(after.anchor, state.anchor):
            policy = solver.policy(game, after)
            found = values.of_policy(game, flow(game, policy))
            expected = (state.anchor + after.rate * (found.q - found.v.unsqueeze(-1))).log_softmax(-1)
            played = policy > 1e-6
            assert float((after.anchor - expected)[played].abs().max()) < 0.02
            seen += 1
        state = after
    assert seen >= 5


@pytest.mark.parametrize("game", [SusceptibleInfected(horizon=5), LinearQuadraticGrid(reach=2, speed=1), Teams()])
def test_the_matrix_and_gmres_solve_the_same_linear_system(game: MeanFieldGame) -> None:
    logits = torch.stack([some_policy(game, seed).log() for seed in (0, 1)], 1)
    gain = _advantage(game, logits)
    rate = torch.tensor([0.5, 3.0], dtype=torch.float64)
    goal = torch.stack([some_policy(game, seed) for seed in (2, 3)], 1) - 0.4
    by_matrix = _direct(game, logits, gain, rate, goal)
    by_gmres = ProximalPoint(krylov=60)._krylov(game, logits, gain, rate, goal)
    assert float((by_matrix - by_gmres).abs().max()) < 1e-5
    # And it is that system: the slope of A by a central difference along the solution.
    ahead, behind = _advantage(game, logits + 1e-5 * by_matrix), _advantage(game, logits - 1e-5 * by_matrix)
    slope = (ahead - behind) / 2e-5
    assert float((by_matrix - rate.view(2, 1, 1, 1) * slope - goal).abs().max()) < 1e-5


@pytest.mark.parametrize("dense", [10_000, 0])
def test_a_batch_of_rates_is_each_of_them_alone(dense: int) -> None:
    game = SusceptibleInfected(horizon=5)
    rates = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    many = solve(game, ProximalPoint(rate=rates, dense=dense), 10, tolerance=0, every=1, batch=(3,))  # type: ignore[arg-type]
    for i, rate in enumerate(rates.tolist()):
        alone = solve(game, ProximalPoint(rate=rate, dense=dense), 10, tolerance=0, every=1)
        assert torch.allclose(many.last[:, i], alone.last, atol=1e-5)


@pytest.mark.parametrize(
    ("game", "iterations"),
    [
        (RockPaperScissors(), 20),
        (BeachBar(places=10, bar=3, horizon=8), 70),
        (EquilibriumPrice(elasticity=1.5, costs=(0.1, 0.05, 0.2, 0.1, 0.05)), 40),
        (ConservativeTreasureHunting(treasure=(1.0, 0.8, 1.3)), 60),
        (LinearQuadraticGrid(), 40),
        (RandomLinear(), 120),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, MeanFieldGame) else "",
)
def test_it_comes_within_a_thousandth_of_an_equilibrium_of_the_shared_games(
    game: MeanFieldGame, iterations: int
) -> None:
    assert float(solve(game, ProximalPoint(), iterations, 1e-3, every=1).exploitability) <= 1e-3


def test_the_epidemic_is_solved_below_a_tenth_in_two_hundred_iterations_which_no_peer_does() -> None:
    found = solve(EPIDEMIC, ProximalPoint(), 40, tolerance=0.1, every=1)
    assert found.stopped == "tolerance"
    assert float(exploitability(EPIDEMIC, found.policy)) < 0.1 < BEST_OF_THE_PEERS


@pytest.mark.verify
def test_mirror_descent_and_fictitious_play_do_not_get_there() -> None:
    rates = torch.logspace(-3, 1, 9, dtype=torch.float64)
    for momentum in (0.0, 0.9):
        found = solve(EPIDEMIC, MirrorDescent(rate=rates, momentum=momentum), 200, every=1, batch=(9,))  # type: ignore[arg-type]
        assert float(found.exploitability.min()) > 0.1
    assert float(solve(EPIDEMIC, FictitiousPlay(), 200, every=1).exploitability) > 0.1


@pytest.mark.parametrize("kind", [Teams, Seasonal])
@pytest.mark.parametrize("dense", [10_000, 0])
def test_groups_seasons_and_forbidden_actions_are_no_hindrance(kind: type[MeanFieldGame], dense: int) -> None:
    game = kind(horizon=4, banned=True)  # type: ignore[call-arg]
    found = solve(game, ProximalPoint(dense=dense), 60, 1e-4, every=1)
    legal = game.legal_mask()
    assert legal is not None
    assert not bool(legal.all())
    assert float(found.policy.masked_select(~legal).sum()) == 0
    assert float(found.exploitability) < 0.02 * found.rows[0]["exploitability"]


class _Tempting(Tiny):
    """What is forbidden would pay most."""

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        forbidden = torch.zeros(self.states, self.actions, dtype=crowd.mu.dtype)
        forbidden[0, 1:] = 1000.0
        return super().rewards(t, crowd) + forbidden


def test_what_a_forbidden_action_would_pay_does_not_matter() -> None:
    curves = []
    for kind in (Tiny, _Tempting):
        found = solve(kind(banned=True, horizon=4), ProximalPoint(), 15, tolerance=0, every=1)
        curves.append([row["exploitability"] for row in found.rows])
    assert curves[0] == pytest.approx(curves[1], abs=1e-8)


def test_a_stationary_game_comes_to_its_closed_form() -> None:
    game = SusceptibleInfected(horizon=None, discount=0.8)
    found = solve(game, ProximalPoint(), 60, 1e-7, every=1)
    assert float(found.exploitability) < 1e-5
    ill, out = game.stationary()
    assert float(found.policy[0, 0, 0, 0]) == pytest.approx(out, abs=1e-3)
    assert float(flow(game, found.policy).mu[0, 0, 1]) == pytest.approx(ill, abs=1e-3)
