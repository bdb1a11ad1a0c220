"""Iterations whose fixed points are equilibria: where they contract, what damping mixes, and where they agree."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.games import values
from mfmarl.games.exploitability import exploitability, regularised
from mfmarl.games.flow import flow, uniform
from mfmarl.games.reference import quantal_response
from mfmarl.games.solve import solve
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.evolution import Evolution
from mfmarl.games.solvers.fictitious_play import FictitiousPlay, mixed
from mfmarl.games.solvers.fixed_point import FixedPoint
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.policy_iteration import PolicyIteration
from mfmarl.games.solvers.policy_mirror import PolicyMirror
from mfmarl.games.solvers.prior_descent import PriorDescent
from mfmarl.games.solvers.smoothed_play import SmoothedPlay
from mfmarl.games.solvers.soft_fixed_point import SoftFixedPoint
from tests.games.mini import Market, Seasonal, Teams, Tiny, some_policy

Kind = Callable[..., Tiny]
KINDS: list[Kind] = [Tiny, Seasonal, Teams, Market]
STANDING: dict[str, Any] = {"horizon": None, "discount": 0.9}


def last(game: Tiny, solver: Solver, iterations: int) -> Tensor:
    return solve(game, solver, iterations, tolerance=-1, every=iterations).last


# --------------------------------------------------------------------------------------- who does not meet the others


@pytest.mark.parametrize("kind", [Tiny, Seasonal, Teams])
@pytest.mark.parametrize("options", [{}, {"last": 1.0, "discount": 0.9}, {"banned": True, "actions": 3}])
def test_one_best_response_is_optimal_where_nobody_meets_the_others(kind: Kind, options: dict[str, Any]) -> None:
    game = kind(coupling=0.0, **{**options, "last": 0.0})
    assert float(exploitability(game, last(game, FixedPoint(), 1))) == pytest.approx(0, abs=1e-13)
    # A greedy improvement for every time that is left is enough.
    assert float(exploitability(game, last(game, PolicyIteration(), 3))) == pytest.approx(0, abs=1e-13)


def test_policy_iteration_solves_a_discounted_decision_in_a_few_steps() -> None:
    game = Teams(coupling=0.0, states=6, actions=4, **STANDING)
    curve = [row["exploitability"] for row in solve(game, PolicyIteration(), 8, every=1).rows]
    assert curve[0] > 1 and curve[-1] == pytest.approx(0, abs=1e-11)
    gains = [row["value"] for row in solve(game, PolicyIteration(), 8, every=1).rows]
    assert gains[-1] > gains[0]


# -------------------------------------------------------------------------------------------------------- contraction


@pytest.mark.parametrize("options", [{}, {"pull": 0.1}, {"pull": 0.1, **STANDING}])
def test_at_a_high_temperature_every_step_comes_nearer_by_the_same_factor(options: dict[str, Any]) -> None:
    def ratios(temperature: float) -> list[float]:
        found = solve(Market(coupling=0.5, **options), SoftFixedPoint(temperature=temperature), 5, -1, every=1)
        curve = [row["regularised"] for row in found.rows][1:4]
        return [after / before for before, after in pairwise(curve)]

    warm, hot = ratios(3.0), ratios(6.0)
    assert warm[1] == pytest.approx(warm[0], rel=0.1) and hot[1] == pytest.approx(hot[0], rel=0.1)
    # The answer moves by 1/T of what the values do, and the gap is quadratic in the distance: a quarter at twice T.
    assert warm[1] < 0.1 and hot[1] == pytest.approx(warm[1] / 4, rel=0.2)


def test_at_no_temperature_it_goes_round_and_damping_cures_it() -> None:
    game = BeachBar()
    undamped = solve(game, FixedPoint(), 400)
    damped = solve(game, FixedPoint(weight=0.02), 400)
    assert undamped.rows[-1]["exploitability"] > 3
    assert damped.rows[-1]["exploitability"] < 0.02


# ------------------------------------------------------------------------------------------------------------ damping


@pytest.mark.parametrize("game", [Tiny(), Seasonal(), Teams(banned=True), Tiny(**STANDING)])
def test_damping_mixes_crowds(game: Tiny) -> None:
    """Where dynamics do not depend on the crowd, the mixed policy makes the mixture of both flows."""
    policy, answer = some_policy(game, 1), some_policy(game, 2)
    one, other = flow(game, policy), flow(game, answer)
    both = flow(game, mixed(game, one.mu, policy, answer, 0.3))
    torch.testing.assert_close(both.joint, 0.7 * one.joint + 0.3 * other.joint, rtol=1e-11, atol=1e-13)


def test_a_damped_step_goes_that_far_to_the_answer() -> None:
    game = Teams()
    policy = some_policy(game, 3)
    for solver, whole in [
        (FixedPoint(weight=0.2), FixedPoint()),
        (FixedPoint(weight=0.2, temperature=0.5), FixedPoint(temperature=0.5)),
        (SoftFixedPoint(weight=0.2), SoftFixedPoint()),
        (SmoothedPlay(weight=0.2), SoftFixedPoint()),
        (PolicyIteration(weight=0.2), PolicyIteration()),
        (FictitiousPlay(weight=0.2), FixedPoint()),
    ]:
        answer: Tensor = whole.step(game, whole.begin(game, policy), 1).policy  # type: ignore[attr-defined]
        after: Tensor = solver.step(game, solver.begin(game, policy), 1).policy  # type: ignore[attr-defined]
        expected = 0.8 * flow(game, policy).joint + 0.2 * flow(game, answer).joint
        torch.testing.assert_close(flow(game, after).joint, expected, rtol=1e-11, atol=1e-13)


def test_where_nobody_comes_the_answer_is_taken() -> None:
    game = LeftRight()
    policy = uniform(game)
    answer = torch.zeros_like(policy)
    answer[..., 1] = 1
    found = mixed(game, flow(game, policy).mu, policy, answer, 0.25)
    empty = flow(game, policy).mu[..., None].expand_as(found) == 0
    assert bool(empty.any())
    torch.testing.assert_close(found[empty], answer[empty])


# ------------------------------------------------------------------------- solvers that seek the same equilibrium


@pytest.mark.parametrize("game", [Tiny(coupling=0.7), Teams(coupling=0.7, banned=True, actions=3), Market(**STANDING)])
def test_all_who_are_paid_for_entropy_come_to_the_same_policy(game: Tiny) -> None:
    temperature = 1.3
    found = last(game, SoftFixedPoint(temperature=temperature, weight=0.5), 60)
    assert float(regularised(game, found, temperature)) == pytest.approx(0, abs=1e-12)
    q = values.soft(game, flow(game, found), temperature).q
    torch.testing.assert_close(found, values.boltzmann(game, q, temperature), rtol=1e-8, atol=1e-10)
    mirror = last(game, PolicyMirror(rate=0.5, temperature=temperature), 120)
    torch.testing.assert_close(mirror, found, rtol=1e-6, atol=1e-7)
    soon = last(game, PolicyMirror(rate=1e6, temperature=temperature), 40)  # soft policy iteration
    torch.testing.assert_close(soon, found, rtol=1e-4, atol=1e-5)
    smooth = last(game, SmoothedPlay(temperature=temperature), 100)
    torch.testing.assert_close(smooth, found, rtol=0, atol=8e-3)


def test_a_soft_prior_that_stays_uniform_is_the_entropy_bonus() -> None:
    game = Teams(coupling=0.5)
    found = last(game, SoftFixedPoint(temperature=2.0), 100)
    prior = last(game, PriorDescent(temperature=2.0, soft=True), 100)
    torch.testing.assert_close(prior, found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("game", [Tiny(coupling=0.7), Teams(coupling=0.7, banned=True, actions=3), Market(**STANDING)])
def test_all_who_act_by_their_own_values_come_to_the_quantal_response(game: Tiny) -> None:
    temperature = 2.0
    found = last(game, PolicyIteration(temperature=temperature, weight=0.5), 200)
    q = values.of_policy(game, flow(game, found)).q
    torch.testing.assert_close(found, values.boltzmann(game, q, temperature), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(quantal_response(game, temperature).policy, found, rtol=1e-5, atol=1e-6)
    omd = last(game, MirrorDescent(rate=0.2, leak=temperature), 200)
    torch.testing.assert_close(omd, found, rtol=1e-6, atol=1e-7)
    logit = last(game, Evolution("logit", time=0.5, temperature=temperature), 120)
    torch.testing.assert_close(logit, found, rtol=1e-5, atol=1e-6)


def test_the_answer_to_the_best_values_is_yet_another_equilibrium() -> None:
    game, temperature = Tiny(coupling=0.5), 1.0
    found = last(game, FixedPoint(temperature=temperature, weight=0.5), 200)
    q = values.best(game, flow(game, found)).q
    torch.testing.assert_close(found, values.boltzmann(game, q, temperature), rtol=1e-9, atol=1e-10)
    assert float(regularised(game, found, temperature)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_what_cools_goes_to_nash(kind: Kind) -> None:
    game = kind(coupling=2.0)
    first = float(exploitability(game, uniform(game)))
    assert float(exploitability(game, last(game, SmoothedPlay(cooling=0.7), 150))) < 0.06 * first
    assert float(exploitability(game, last(game, SmoothedPlay(), 150))) > 0.4 * first
    assert SmoothedPlay(cooling=0.7).entropy_bonus == 0


# ------------------------------------------------------------------------------------------------------ prior descent


def test_a_prior_renewed_at_every_step_sums_up_the_best_values() -> None:
    game = Teams(banned=True, actions=3)
    solver = PriorDescent(temperature=2.0, inner=1)
    state = solver.begin(game, uniform(game))
    total = torch.zeros_like(uniform(game))
    for k in range(1, 8):
        total = total + values.best(game, flow(game, solver.policy(game, state))).q / 2.0
        state = solver.step(game, state, k)
        torch.testing.assert_close(
            solver.policy(game, state), values.boltzmann(game, total, 1.0), rtol=1e-10, atol=1e-13
        )


def test_what_a_cold_prior_has_given_up_comes_back_when_it_pays() -> None:
    """Probabilities far below the smallest number, 1e-324, are remembered as logarithms."""
    game, solver = Market(horizon=1, coupling=0.0, actions=3), PriorDescent(temperature=1e-4, inner=1)
    state, total, back = solver.begin(game, uniform(game)), torch.zeros_like(uniform(game)), False
    for k in range(1, 60):
        before = solver.policy(game, state)
        total = total + values.best(game, flow(game, before)).q / 1e-4
        state = solver.step(game, state, k)
        after = solver.policy(game, state)
        torch.testing.assert_close(after, values.boltzmann(game, total, 1.0), rtol=1e-6, atol=1e-9)
        back = back or bool(((before == 0) & (after > 0.5)).any())
    assert back


@pytest.mark.parametrize("soft", [False, True])
def test_between_renewals_the_answer_is_relative_to_the_prior(soft: bool) -> None:
    game, first = Tiny(), some_policy(Tiny(), 5)
    solver = PriorDescent(temperature=0.8, inner=3, soft=soft)
    state, prior = solver.begin(game, first), first
    for k in range(1, 9):
        path = flow(game, solver.policy(game, state))
        q = values.soft(game, path, 0.8, prior).q if soft else values.best(game, path).q
        answer = prior * (q / 0.8).exp()
        answer = answer / answer.sum(-1, keepdim=True)
        state = solver.step(game, state, k)
        torch.testing.assert_close(solver.policy(game, state), answer, rtol=1e-10, atol=1e-13)
        if k in (2, 5, 8):
            prior = answer


def test_renewing_the_prior_leads_nearer_to_nash_than_keeping_it() -> None:
    game = Market(coupling=2.0)
    kept = solve(game, PriorDescent(temperature=5.0), 300, every=10)
    renewed = solve(game, PriorDescent(temperature=5.0, inner=2), 300, every=10)
    assert float(renewed.exploitability) < 0.05 * float(kept.exploitability)


def test_a_forbidden_action_stays_forbidden_for_ever() -> None:
    game = Teams(banned=True, actions=3)
    for solver in (PriorDescent(temperature=0.01, inner=1), PolicyMirror(rate=10.0), Evolution("replicator", time=3.0)):
        found = last(game, solver, 60)
        assert float(found[:, :, 0, 1:].abs().max()) == 0
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]).double())


# ------------------------------------------------------------------------------------------------------ policy mirror


def test_without_a_temperature_policy_mirror_is_mirror_descent() -> None:
    game = Teams(banned=True, actions=3)
    one = solve(game, PolicyMirror(rate=0.7), 20, every=1)
    other = solve(game, MirrorDescent(rate=0.7), 20, every=1)
    torch.testing.assert_close(one.last, other.last, rtol=1e-11, atol=1e-13)


def test_a_mirror_step_maximises_value_entropy_and_nearness() -> None:
    game, rate, temperature = Tiny(actions=4), 0.8, 0.6
    policy = some_policy(game, 7)
    solver = PolicyMirror(rate=rate, temperature=temperature)
    after = solver.policy(game, solver.step(game, solver.begin(game, policy), 1))
    path = flow(game, policy)
    entropy = -torch.special.xlogy(policy, policy).sum(-1, keepdim=True)
    q = values.of_policy(game, path._replace(rewards=path.rewards + temperature * entropy)).q

    def objective(p: Tensor) -> Tensor:
        nearness = (p * (p.log() - policy.log())).sum(-1) / rate
        return (p * q).sum(-1) - temperature * (p * p.log()).sum(-1) - nearness

    most = objective(after)
    for seed in range(40):
        other = some_policy(game, seed)
        assert bool((objective(other) < most).all())
        assert bool((objective(0.99 * after + 0.01 * other) < most).all())
