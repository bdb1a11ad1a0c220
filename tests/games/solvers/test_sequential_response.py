"""Sequential best responses: one time an iteration, the first that is open; SIS is solved exactly."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.conservative_treasure_hunting import ConservativeTreasureHunting
from mfmarl.envs.linear_quadratic_grid import LinearQuadraticGrid
from mfmarl.envs.rock_paper_scissors import RockPaperScissors
from mfmarl.envs.susceptible_infected import HOME, OUT, SusceptibleInfected
from mfmarl.games import values
from mfmarl.games.batch import side_by_side
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solvers.fixed_point import FixedPoint
from mfmarl.games.solvers.sequential_response import SequentialResponse
from tests.games.mini import Tiny, some_policy

EPIDEMIC = SusceptibleInfected(horizon=51)  # mfglib's susceptible_infected(T=50)


def test_the_epidemic_is_solved_exactly_in_as_many_iterations_as_it_has_times() -> None:
    # No method of OpenSpiel or mfglib came below .126 within 200 iterations.
    found = solve(EPIDEMIC, SequentialResponse(), 200, tolerance=1e-12, every=1)
    assert found.stopped == "tolerance"
    assert found.iterations <= 51
    assert float(exploitability(EPIDEMIC, found.policy)) < 1e-12


def test_its_equilibrium_is_pure_and_has_a_rhythm_of_five_steps() -> None:
    found = solve(EPIDEMIC, SequentialResponse(), 60, tolerance=1e-12, every=1)
    chosen = found.policy[:, 0].argmax(-1)
    assert bool((found.policy.amax(-1) == 1).all())
    assert bool((chosen[:, 1] == OUT).all()), "the infected have nothing to fear"
    susceptible = chosen[:, 0].tolist()
    assert susceptible[:7] == [HOME, HOME, OUT, HOME, OUT, OUT, HOME]
    assert all(susceptible[t] == susceptible[t + 5] for t in range(2, 42))
    assert susceptible[-4:] == [OUT] * 4
    # It is strict: nobody is indifferent before the last step, where only the cost of staying at home is left.
    q = values.best(EPIDEMIC, flow(EPIDEMIC, found.policy)).q[:, 0, 0]
    assert float((q[:, OUT] - q[:, HOME]).abs().min()) > 0.009


def test_every_epidemic_of_a_grid_is_solved_exactly_in_one_call() -> None:
    games = [
        SusceptibleInfected(horizon=25, infection=beta, distance=cost, infected=first)
        for beta in (0.5, 0.81, 0.95)
        for cost in (0.2, 0.5, 0.7)
        for first in (0.1, 0.6)
    ]
    found = solve(side_by_side(games), SequentialResponse(), 40, tolerance=1e-10, every=1)
    assert float(found.exploitability.max()) < 1e-10
    for b in (0, 7, 17):
        assert (
            float(exploitability(games[b], found.policy[:, :, b] if found.policy.ndim == 6 else found.policy[:, b]))
            < 1e-10
        )


@pytest.mark.parametrize("game", [ConservativeTreasureHunting(treasure=(1.0, 0.8, 1.3)), LinearQuadraticGrid()])
def test_other_games_with_pure_equilibria_are_solved_in_one_pass(game: MeanFieldGame) -> None:
    assert game.horizon is not None
    found = solve(game, SequentialResponse(), 2 * game.horizon, tolerance=1e-12, every=1)
    assert float(found.exploitability) < 1e-12


def test_an_iteration_answers_at_the_first_open_time_and_nowhere_else() -> None:
    solver = SequentialResponse()
    state = solver.begin(EPIDEMIC, some_policy(EPIDEMIC, 3))
    for k in range(1, 8):
        path = flow(EPIDEMIC, state.policy)
        q, v = values.best(EPIDEMIC, path)
        gain = (path.mu * (v - (state.policy * q).sum(-1))).sum((-2, -1))
        first = int((gain > 1e-8).nonzero()[0])
        after = solver.step(EPIDEMIC, state, k)
        changed = (after.policy != state.policy).flatten(1).any(-1).nonzero().flatten().tolist()
        assert changed == [first]
        assert torch.equal(after.policy[first].argmax(-1), q[first].argmax(-1))
        state = after


def test_at_an_equilibrium_it_stays() -> None:
    solver = SequentialResponse()
    found = solve(EPIDEMIC, solver, 60, tolerance=1e-12, every=1).policy
    assert torch.equal(solver.step(EPIDEMIC, solver.begin(EPIDEMIC, found), 1).policy, found)


def test_a_batch_of_beginnings_is_each_of_them_alone_and_only_legal_actions_are_taken() -> None:
    game = Tiny(horizon=4, banned=True)
    begun = torch.stack([some_policy(game, seed) for seed in (0, 1, 2)], 1)
    many = solve(game, SequentialResponse(weight=0.5), 6, tolerance=0, policy=begun, every=6).last
    for b in range(3):
        alone = solve(game, SequentialResponse(weight=0.5), 6, tolerance=0, policy=begun[:, b], every=6).last
        torch.testing.assert_close(many[:, b], alone, rtol=0, atol=1e-12)
    legal = game.legal_mask()
    assert legal is not None
    assert float(many.masked_select(~legal).abs().sum()) == 0


def test_answers_at_all_times_at_once_go_round() -> None:
    found = solve(EPIDEMIC, FixedPoint(), 60, tolerance=1e-12, every=1)
    assert float(found.exploitability) > 0.1


def test_with_answers_that_count_ever_less_mixed_equilibria_are_come_to() -> None:
    found = solve(RockPaperScissors(), SequentialResponse(weight=None), 300, every=100)
    assert float(found.exploitability) < 0.02
    assert float(solve(RockPaperScissors(), SequentialResponse(), 300, every=100).exploitability) > 0.1
