r"""Occupation-measure inclusion: the projection is exact, and its steps go to equilibria that are known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.errors import ConfigError
from mfmarl.games import values
from mfmarl.games.batch import side_by_side
from mfmarl.games.flow import along, flow
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.games.solve import solve
from mfmarl.games.solvers.occupation_inclusion import OccupationInclusion, Polytope
from tests.games.peers import ask
from tests.games.small_games import Epidemic, LeftRight, Matrix, Pigou, Pursuit, Towels, random_policy


@dataclass(frozen=True)
class Ending(Towels):
    """A beach with a last evening, to be spent apart, and a wind that turns."""

    discount: float = 0.9
    time_dependent = True

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        blown = super().outcomes(t, crowd)
        return Outcomes((blown.successor + t % 2).clamp(max=self.places - 1), blown.probability)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return super().rewards(t, crowd) * (1 + t)

    def terminal(self, crowd: Crowd) -> Tensor:
        return -5 * crowd.mu


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("game", [Pursuit(), Ending(places=6, horizon=6), LeftRight()], ids=repr)
def test_no_flow_is_nearer_than_the_projection(game: MeanFieldGame, scale: float) -> None:
    joint = flow(game, random_policy(game, (3,))).joint
    noise = torch.randn(joint.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    point = joint + scale * noise
    found, _ = Polytope.of(game, joint).project(point)
    # It is a flow.
    assert float(found.min()) >= 0
    mu = found.sum(-1)
    torch.testing.assert_close(mu[0], game.start().expand(mu[0].shape), rtol=0, atol=1e-11)
    for t in range(len(found) - 1):
        carried = game.kernel(t, Crowd(mu[t])).carry(found[t])
        torch.testing.assert_close(mu[t + 1], carried, rtol=0, atol=1e-11 * (1 + scale))
    # And <point - found, other - found> <= 0 for every other flow: the best is found by backward induction.
    gain = point - found
    undiscounted = replace(game, discount=1.0)
    path = along(undiscounted, mu, torch.ones_like(found) / found.shape[-1])
    path = path._replace(rewards=gain, terminal=None)
    best = (mu[0] * values.best(undiscounted, path).v[0]).sum((-2, -1))
    assert float((best - (gain * found).sum((0, -3, -2, -1))).max()) < 1e-10 * (1 + scale)


def test_a_flow_is_its_own_projection_and_a_good_guess_changes_nothing() -> None:
    game = Pursuit()
    joint = flow(game, random_policy(game)).joint
    polytope = Polytope.of(game, joint)
    torch.testing.assert_close(polytope.project(joint)[0], joint, rtol=0, atol=1e-12)
    far = joint + torch.linspace(0, 1, joint.numel(), dtype=torch.float64).reshape(joint.shape)
    found, value = polytope.project(far)
    torch.testing.assert_close(polytope.project(far, value + 3)[0], found, rtol=0, atol=1e-11)


def test_it_finds_equilibria_that_are_known() -> None:
    two_thirds = solve(LeftRight(), OccupationInclusion(), 300, 1e-10).policy
    torch.testing.assert_close(
        two_thirds[0, 0, 0], torch.tensor([2 / 3, 1 / 3], dtype=torch.float64), rtol=0, atol=1e-9
    )
    uneven = Matrix(matrix=((0.0, -1.0, 2.0), (4.0, 0.0, -2.0), (-3.0, 6.0, 0.0)))
    found = solve(uneven, OccupationInclusion(), 3000, 1e-9, policy=random_policy(uneven))
    known = torch.tensor([26, 20, 31], dtype=torch.float64) / 77
    torch.testing.assert_close(found.policy[0, 0, 0], known, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "game", [Pursuit(), Towels(places=6), Ending(places=5, horizon=4), Pigou(power=3), BeachBar(places=4)], ids=repr
)
def test_monotone_games_are_solved(game: MeanFieldGame) -> None:
    found = solve(game, OccupationInclusion(rate=0.5), 400, 1e-6, policy=random_policy(game, (2,)))
    assert found.stopped == "tolerance"


def test_in_a_zero_sum_game_two_looks_come_to_rest_and_one_does_not() -> None:
    game = Matrix()
    first = random_policy(game)
    once = solve(game, OccupationInclusion(rate=0.1, twice=False), 300, policy=first)
    twice = solve(game, OccupationInclusion(rate=0.1), 300, policy=first)
    assert float(twice.exploitability) < 1e-7
    assert once.rows[-1]["exploitability"] > 0.1


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_the_perturbation_moves_the_equilibrium_as_far_as_it_must(eta: float) -> None:
    # 1 + eta (1 - x) = x + eta x.
    game = Pigou()
    solver = OccupationInclusion(rate=0.2, perturbation=eta, twice=False)
    state = solver.begin(game, random_policy(game))
    for k in range(1, 400):
        state = solver.step(game, state, k)
    assert float(state.joint[0, 0, 0, 1]) == pytest.approx((1 + eta) / (1 + 2 * eta), abs=1e-12)


def test_entries_of_a_batch_go_their_own_way() -> None:
    game = Pursuit()
    first = random_policy(game, (3,))
    rates = torch.tensor([0.05, 0.1, 0.4], dtype=torch.float64)
    all_three = solve(game, OccupationInclusion(rate=rates), 12, policy=first)  # type: ignore[arg-type]
    for i, rate in enumerate(rates.tolist()):
        alone = solve(game, OccupationInclusion(rate=rate), 12, policy=first[:, i])
        torch.testing.assert_close(all_three.last[:, i], alone.last, rtol=0, atol=1e-9)


def test_games_side_by_side_are_each_of_them() -> None:
    games = [Pursuit(crowding=crowding) for crowding in (0.5, 2.0)]
    together = solve(side_by_side(games), OccupationInclusion(), 10)
    for b, game in enumerate(games):
        torch.testing.assert_close(together.last[:, b], solve(game, OccupationInclusion(), 10).last, rtol=0, atol=1e-9)


def test_only_legal_actions_are_taken() -> None:
    game = Pursuit()
    assert float(solve(game, OccupationInclusion(), 20).last[:, :, 1, 0].max()) == 0


@pytest.mark.parametrize(
    ("game", "told"),
    [
        (Epidemic(), "crowd moves"),
        (Pigou(horizon=None, discount=0.9), "horizon"),
        (BeachBar(closing=0.3), "common noise"),
    ],
    ids=repr,
)
def test_what_it_cannot_solve_it_refuses(game: MeanFieldGame, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        solve(game, OccupationInclusion(), 1)


_PEER = """
from mfglib.alg import OccupationMeasureInclusion
from mfglib.env import Environment
env = Environment.left_right() if given["game"] == "left_right" else Environment.beach_bar()
alg = OccupationMeasureInclusion(alpha=given["rate"], eta=given["eta"], osqp_atol=1e-10, osqp_rtol=1e-10)
pis, scores, _ = alg.solve(env, max_iter=given["steps"], atol=None, rtol=None)
answer = {"scores": scores, "policy": pis[-1].tolist()}
"""


@pytest.mark.verify
@pytest.mark.parametrize("name", ["left_right", "beach_bar"])
def test_mfglib_takes_the_same_steps(name: str) -> None:
    game = LeftRight() if name == "left_right" else BeachBar()
    solver = OccupationInclusion(rate=0.1, perturbation=0.05, twice=False)
    ours = solve(game, solver, 20, 0.0, every=1)
    theirs = ask(_PEER, {"game": name, "rate": 0.1, "eta": 0.05, "steps": 20}, needs=("mfglib", "osqp"))
    said = torch.tensor([row["exploitability"] for row in ours.rows], dtype=torch.float64)
    # They keep L in single precision, and project to 1e-10.
    torch.testing.assert_close(said, torch.tensor(theirs["scores"], dtype=torch.float64), rtol=0, atol=2e-5)
