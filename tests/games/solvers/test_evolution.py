"""Evolutionary dynamics: what they conserve, what they climb, where they rest, and how fast their error falls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from mfmarl.games.exploitability import exploitability, potential
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Kernel, Outcomes
from mfmarl.games.solve import solve
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.evolution import Evolution
from mfmarl.games.solvers.fixed_point import FixedPoint
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from tests.games.mini import Market, Seasonal, Teams, Tiny, some_policy

DYNAMICS: tuple[Any, ...] = get_args(get_type_hints(Evolution)["dynamics"])
every_rule = pytest.mark.parametrize("rule", DYNAMICS)


@dataclass(frozen=True)
class Ring(MeanFieldGame):
    """Rock, paper, scissors against a random other: r = M x; zero-sum where a win pays what a loss costs."""

    horizon: int | None = 1
    win: float = 1.0
    num_states = 1
    num_actions = 3
    extended = True
    crowd_moves = False

    def initial(self) -> Tensor:
        return torch.ones(1, dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return Outcomes(torch.zeros(1, 3, 1, dtype=torch.int64), torch.ones(1, 3, 1, dtype=crowd.mu.dtype))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        x, w = crowd.actions, self.win
        beaten = torch.stack([x[..., 2], x[..., 0], x[..., 1]], -1)
        beating = torch.stack([x[..., 1], x[..., 2], x[..., 0]], -1)
        return (w * beaten - beating).unsqueeze(-2)


def shares(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 3)


def advance(game: MeanFieldGame, solver: Solver, policy: Tensor, steps: int) -> Tensor:
    state = solver.begin(game, policy)
    for k in range(1, steps + 1):
        state = solver.step(game, state, k)
    return solver.policy(game, state)


# --------------------------------------------------------------------------------------------------------- replicator


def test_the_replicator_conserves_the_product_of_shares_in_a_zero_sum_game() -> None:
    """x1 x2 x3 stands still over nine turns, where mirror descent spirals out to the edge."""
    game, start = Ring(), shares(0.5, 0.3, 0.2)
    turned = advance(game, Evolution("replicator", time=0.25), start, 400)
    assert float(turned.log().sum()) == pytest.approx(float(start.log().sum()), abs=1e-5)
    assert float((turned - start).abs().max()) > 0.01
    out = advance(game, MirrorDescent(rate=0.25), start, 400)
    assert float(out.log().sum()) < float(start.log().sum()) - 3


@pytest.mark.parametrize(("win", "inwards"), [(1.5, True), (0.5, False)])
def test_it_spirals_in_where_winning_pays_more_than_losing_costs_and_out_where_less(win: float, inwards: bool) -> None:
    """Hofbauer and Sigmund 1998, Evolutionary Games and Population Dynamics, theorem 7.7.2."""
    game, start = Ring(win=win), shares(0.4, 0.3, 0.3)
    turned = advance(game, Evolution("replicator", time=0.2), start, 200)
    assert (float(turned.log().sum()) > float(start.log().sum())) == inwards
    assert float(exploitability(game, turned)) < 0.01 if inwards else float(exploitability(game, turned)) > 0.2


def test_near_the_centre_a_turn_takes_two_pi_root_three() -> None:
    game = Ring()
    start = shares(1 / 3 + 1e-4, 1 / 3 - 1e-4, 1 / 3)
    steps = 80
    turn = advance(game, Evolution("replicator", time=2 * math.pi * math.sqrt(3) / steps), start, steps)
    torch.testing.assert_close(turn, start, rtol=0, atol=1e-7)
    half = advance(game, Evolution("replicator", time=math.pi * math.sqrt(3) / steps), start, steps)
    torch.testing.assert_close(half - 1 / 3, 1 / 3 - start, rtol=0, atol=1e-7)


def test_who_is_not_there_does_not_come_by_imitation_alone() -> None:
    game, start = Ring(), shares(0.5, 0.5, 0.0)
    assert float(advance(game, Evolution("replicator", time=1.0), start, 50)[..., 2]) == 0
    assert float(advance(game, Evolution("smith", time=0.1), start, 50)[..., 2]) > 0.01


@pytest.mark.parametrize(("rule", "order"), [("replicator", 4), ("logit", 2), ("bnn", 2)])
def test_the_error_falls_as_the_order_says(rule: Literal["replicator", "logit", "bnn"], order: int) -> None:
    game = Tiny(coupling=0.5, horizon=2)
    policy = some_policy(game, 1)

    def at_time_one(steps: int) -> Tensor:
        return advance(game, Evolution(rule, time=1 / steps), policy, steps)

    true = at_time_one(128)
    coarse, fine = (float((at_time_one(steps) - true).abs().max()) for steps in (8, 16))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.4)


# ------------------------------------------------------------------------------------------------------ what is climbed


@pytest.mark.parametrize("rule", ["replicator", "smith", "bnn", "best_response"])
@pytest.mark.parametrize("kind", [Tiny, Seasonal, Teams, Market])
def test_every_step_climbs_the_potential(rule: Any, kind: Callable[..., Tiny]) -> None:
    """Positive correlation: in a potential game with fixed dynamics d Phi/dt = sum mu Q dpi/dt >= 0."""
    game = kind(coupling=2.0, toil=0.3)
    solver = Evolution(rule, time=0.02)
    state = solver.begin(game, uniform(game))
    heights = []
    for k in range(60):
        found = potential(game, flow(game, solver.policy(game, state)))
        assert found is not None
        heights.append(float(found))
        state = solver.step(game, state, k + 1)
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(heights))
    assert heights[-1] > heights[0] + 0.05


def test_the_logit_dynamics_climb_potential_and_entropy_in_a_game_of_one_choice() -> None:
    """Hofbauer and Sandholm 2007, J. Econ. Theory 132, 47."""
    game, temperature = Market(horizon=1, coupling=2.0, actions=4), 0.4
    solver = Evolution("logit", time=0.1, temperature=temperature)
    state = solver.begin(game, some_policy(game, 2))
    heights = []
    for k in range(60):
        path = flow(game, solver.policy(game, state))
        found = potential(game, path)
        assert found is not None
        entropy = -(path.mu.unsqueeze(-1) * torch.special.xlogy(path.policy, path.policy)).sum()
        heights.append(float(found + temperature * entropy))
        state = solver.step(game, state, k + 1)
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(heights))
    assert heights[-1] > heights[0] + 0.05


@pytest.mark.parametrize("rule", ["replicator", "smith", "bnn", "best_response"])
def test_all_but_the_perturbed_go_to_nash_in_a_monotone_game(rule: Any) -> None:
    game = Teams(coupling=1.0)
    found = solve(game, Evolution(rule, time=0.2), 150, every=50)
    # Brown, von Neumann and Nash's excess is slowest: quadratic near rest.
    assert float(found.exploitability) < (0.15 if rule == "bnn" else 0.02) * found.rows[0]["exploitability"]


# ------------------------------------------------------------------------------------------------------------- rest


@pytest.mark.parametrize("rule", ["smith", "bnn", "best_response", "replicator"])
def test_at_a_strict_equilibrium_nothing_moves(rule: Any) -> None:
    game = Seasonal(coupling=0.0, actions=3)
    nash = advance(game, FixedPoint(), uniform(game), 1)
    assert float(exploitability(game, nash)) == pytest.approx(0, abs=1e-13)
    torch.testing.assert_close(advance(game, Evolution(rule, time=0.5), nash, 5), nash, rtol=0, atol=1e-12)


def test_at_a_mixed_equilibrium_nothing_moves_either() -> None:
    for rule in ("smith", "bnn", "replicator"):
        after = advance(Ring(), Evolution(rule, time=0.5), shares(1 / 3, 1 / 3, 1 / 3), 5)  # type: ignore[arg-type]
        torch.testing.assert_close(after, shares(1 / 3, 1 / 3, 1 / 3), rtol=0, atol=1e-14)


def test_the_replicator_rests_at_a_pure_policy_that_is_no_equilibrium_and_smith_does_not() -> None:
    rock = shares(1.0, 0.0, 0.0)
    assert float(exploitability(Ring(), rock)) == 1
    assert torch.equal(advance(Ring(), Evolution("replicator"), rock, 20), rock)
    assert float(advance(Ring(), Evolution("smith"), rock, 20)[..., 1]) > 0.3


@every_rule
@pytest.mark.parametrize("time", [1e-3, 1.0, 1e3])
def test_however_long_the_step_it_gives_probabilities_of_what_is_legal(rule: Any, time: float) -> None:
    game = Teams(banned=True, actions=3, coupling=3.0)
    policy = advance(game, Evolution(rule, time=time), some_policy(game, 3, 2), 10)
    assert bool((policy >= 0).all())
    torch.testing.assert_close(policy.sum(-1), torch.ones(policy.shape[:-1], dtype=policy.dtype))
    assert float(policy[..., 0, 1:].abs().max()) == 0
    assert float(exploitability(game, policy)[0]) >= 0


@pytest.mark.parametrize("rule", ["smith", "bnn", "logit", "best_response"])
def test_a_step_that_is_too_long_is_shortened_and_keeps_its_direction(rule: Any) -> None:
    game, policy = Teams(actions=3), some_policy(Teams(actions=3), 4)
    solver = Evolution(rule)
    short = (solver._advanced(game, policy, 1e-7) - policy) / 1e-7
    long = solver._advanced(game, policy, 1e6) - policy
    scale = (long * short).sum(-1, keepdim=True) / (short * short).sum(-1, keepdim=True)
    torch.testing.assert_close(long, scale * short, rtol=1e-5, atol=1e-5)
    assert bool((scale > 0).all())


def test_smiths_rule_is_its_definition() -> None:
    """One small step against loops over pairs of actions."""
    game, policy, time = Ring(win=2.0), shares(0.5, 0.3, 0.2), 1e-6
    q = game.rewards(0, Crowd(torch.ones(1, 1, dtype=torch.float64), policy[0])).flatten().tolist()
    x = policy.flatten().tolist()
    moved = (advance(game, Evolution("smith", time=time), policy, 1) - policy).flatten() / time
    for a in range(3):
        comes = sum(x[b] * max(q[a] - q[b], 0) for b in range(3))
        goes = x[a] * sum(max(q[b] - q[a], 0) for b in range(3))
        assert float(moved[a]) == pytest.approx(comes - goes, abs=1e-5)
    mean = sum(p * value for p, value in zip(x, q, strict=True))
    excess = [max(value - mean, 0) for value in q]
    moved = (advance(game, Evolution("bnn", time=time), policy, 1) - policy).flatten() / time
    assert moved.tolist() == pytest.approx([e - p * sum(excess) for e, p in zip(excess, x, strict=True)], abs=1e-5)
    moved = (advance(game, Evolution("replicator", time=time), policy, 1) - policy).flatten() / time
    assert moved.tolist() == pytest.approx([p * (value - mean) for p, value in zip(x, q, strict=True)], abs=1e-5)
