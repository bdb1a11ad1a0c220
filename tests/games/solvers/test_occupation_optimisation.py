r"""Occupation-measure optimisation: zero at equilibria alone, and Adam's way down to them."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.errors import ConfigError
from mfmarl.games import values
from mfmarl.games.batch import side_by_side
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.occupation_optimisation import OccupationOptimisation, Point, on_simplex
from tests.games.peers import ask
from tests.games.small_games import Epidemic, LeftRight, Matrix, Meeting, Pigou, Pursuit, Towels, random_policy

GAMES = [
    LeftRight(),
    Pigou(power=2),
    Towels(places=5, discount=0.9),
    Pursuit(),
    Epidemic(horizon=4, final=2.0),
    Epidemic(horizon=None, discount=0.9),
]


@pytest.mark.parametrize("form", ["projected", "softmax"])
@pytest.mark.parametrize("game", GAMES, ids=repr)
def test_a_flow_with_its_best_responses_values_violates_by_its_exploitability(game: MeanFieldGame, form: str) -> None:
    # The first two terms are 0, and <z, L> telescopes to what a deviator gains; discounts weigh it by time.
    solver = OccupationOptimisation(form=form)  # type: ignore[arg-type]
    policy = random_policy(game, (2,))
    state = solver.begin(game, policy)
    path = flow(game, policy)
    best = values.best(game, path)
    short = (best.v.unsqueeze(-1) - best.q) * path.joint
    legal = game.legal_mask()
    short = short if legal is None else torch.where(legal, short, 0.0)
    violation = solver.violation(game, state.point)
    torch.testing.assert_close(violation, short.sum((0, -3, -2, -1)), rtol=1e-9, atol=1e-9)
    if game.discount == 1:
        torch.testing.assert_close(violation, exploitability(game, policy), rtol=1e-9, atol=1e-9)


def test_the_violation_counts_each_term_as_it_is_weighed() -> None:
    # Pigou with everybody on the wide road, V and z wrong by hand: r = (-1, 0).
    solver = OccupationOptimisation(flow_weight=2.0, value_weight=3.0, gap_weight=5.0)
    joint = torch.tensor([0.75, 0.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    value = torch.tensor([0.5], dtype=torch.float64).reshape(1, 1, 1)
    slack = torch.tensor([0.25, 1.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    found = solver.violation(Pigou(), Point(joint, value, slack))
    expected = 2 * 0.25**2 + 3 * ((-1 - 0.5 + 0.25) ** 2 + (0 - 0.5 + 1) ** 2) + 5 * 0.25 * 0.75
    assert float(found) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("game", [*GAMES[:4], GAMES[5]], ids=repr)
def test_the_violation_is_zero_at_an_equilibrium_and_nowhere_else(game: MeanFieldGame) -> None:
    solver = OccupationOptimisation()
    found = solve(game, solver, 1000, 1e-4)
    # V and z of the policy found, afresh: no trace of how it was found.
    again = solver.violation(game, solver.begin(game, found.policy).point)
    assert float(again) < 1e-3
    assert float(found.exploitability) < 1e-3
    other = random_policy(game, seed=3)
    assert float(solver.violation(game, solver.begin(game, other).point)) > 0.01


def test_each_of_three_equilibria_is_found_from_its_own_side() -> None:
    # Half and half too, which best responses and mirror descent run away from.
    game = Meeting()
    share = torch.tensor([0.95, 0.55, 0.05], dtype=torch.float64).reshape(3, 1, 1)
    first = torch.stack([share, 1 - share], -1).expand(3, 3, 1, 2, 2).clone()
    found = solve(game, OccupationOptimisation(), 600, 1e-9, policy=first)
    assert float(found.exploitability.max()) < 1e-8
    after = flow(game, found.policy).mu[-1, :, 0, 0]
    torch.testing.assert_close(after, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), rtol=0, atol=1e-6)
    descended = solve(game, MirrorDescent(rate=1.0), 200, 1e-9, policy=first)
    after = flow(game, descended.policy).mu[-1, :, 0, 0]
    torch.testing.assert_close(after, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_an_epidemics_equilibrium_is_found_though_the_crowd_moves_the_dynamics() -> None:
    game = Epidemic(horizon=3, infection=0.9, final=1.0)
    found = solve(game, OccupationOptimisation(), 600, 0.0)
    assert float(found.exploitability) < 0.01 * float(exploitability(game, uniform(game)))


def test_the_steps_are_adams() -> None:
    game = Matrix()
    solver = OccupationOptimisation(rate=0.05, form="softmax", settle=0.0)
    state = solver.begin(game, random_policy(game))
    theirs = [x.clone().requires_grad_() for x in state.point]
    adam = torch.optim.Adam(theirs, lr=0.05)
    for k in range(1, 30):
        state = solver.step(game, state, k)
        adam.zero_grad()
        solver.violation(game, Point(*theirs)).sum().backward()
        adam.step()
        with torch.no_grad():
            theirs[2].clamp_(min=0)
    for ours, other in zip(state.point, theirs, strict=True):
        torch.testing.assert_close(ours, other.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["projected", "softmax"])
def test_entries_of_a_batch_go_their_own_way(form: str) -> None:
    game = Pursuit()
    first = random_policy(game, (3,))
    rates = torch.tensor([0.01, 0.03, 0.1], dtype=torch.float64)
    solver = OccupationOptimisation(rate=rates, form=form)  # type: ignore[arg-type]
    together = solve(game, solver, 15, policy=first)
    for i, rate in enumerate(rates.tolist()):
        alone = solve(game, OccupationOptimisation(rate=rate, form=form), 15, policy=first[:, i])  # type: ignore[arg-type]
        torch.testing.assert_close(together.last[:, i], alone.last, rtol=0, atol=1e-7)


@pytest.mark.parametrize("form", ["projected", "softmax"])
def test_only_legal_actions_are_taken(form: str) -> None:
    found = solve(Pursuit(), OccupationOptimisation(form=form), 20).last  # type: ignore[arg-type]
    assert float(found[:, :, 1, 0].max()) == 0


def test_games_side_by_side_are_each_of_them() -> None:
    games = [Pursuit(crowding=crowding) for crowding in (0.5, 2.0)]
    together = solve(side_by_side(games), OccupationOptimisation(), 10)
    for b, game in enumerate(games):
        alone = solve(game, OccupationOptimisation(), 10)
        torch.testing.assert_close(together.last[:, b], alone.last, rtol=0, atol=1e-7)


def test_common_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="common noise"):
        solve(BeachBar(closing=0.3), OccupationOptimisation(), 1)


def test_the_projection_on_the_simplex_is_nearest() -> None:
    noise = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(50, 6, generator=noise, dtype=torch.float64)
    x[:, 2] = -torch.inf
    p = on_simplex(x)
    assert float(p.min()) >= 0
    assert bool((p[:, 2] == 0).all())
    torch.testing.assert_close(p.sum(-1), torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-14)
    # <x - p, e_i - p> <= 0 for every corner but the forbidden one.
    away = torch.where(torch.isinf(x), 0.0, x - p)
    worst = (away - (away * p).sum(-1, keepdim=True))[:, [0, 1, 3, 4, 5]].max()
    assert float(worst) < 1e-12


_PEER = """
from mfglib.alg import MFOMO
from mfglib.env import Environment
made = {"beach_bar": Environment.beach_bar, "left_right": Environment.left_right,
        "susceptible_infected": lambda: Environment.susceptible_infected(T=5)}
alg = MFOMO(c1=0.5, c2=2.0, c3=1.0, loss="l1_l2", optimizer={"name": "Adam", "config": {"lr": 0.02}})
_, scores, _ = alg.solve(made[given]() , max_iter=25, atol=None, rtol=None)
answer = scores
"""


@pytest.mark.verify
@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("left_right", LeftRight()),
        ("beach_bar", BeachBar()),
        ("susceptible_infected", Epidemic(horizon=6, infected=0.6)),
    ],
)
def test_mfglib_takes_the_same_steps(name: str, game: MeanFieldGame) -> None:
    solver = OccupationOptimisation(rate=0.02, settle=0.0, flow_weight=0.5, value_weight=2.0)
    # They begin with as many in each state, whether that is a flow or not.
    state = solver.beginning(game, uniform(game) / game.num_states)
    ours = []
    for k in range(1, 26):
        state = solver.step(game, state, k)
        ours.append(float(exploitability(game, solver.policy(game, state))))
    theirs = ask(_PEER, name)[1:]
    # Where a gradient is 0 but for rounding, Adam divides one rounding by another.
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-7)
