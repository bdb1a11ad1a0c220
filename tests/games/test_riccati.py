"""Linear-quadratic games: published and computed digits, an independent N-player regulator, brute-force dynamic
programming, limits, and costs that simulations pay."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games import riccati
from mfmarl.games.riccati import LinearQuadratic, Rule, rule

ONE = np.eye(1)


def follow(s: float, **options) -> LinearQuadratic:
    """x' = x + a + w, cost (x - s m)^2 + a^2, discount .95: the model behind the anchors."""
    given = {"mean": np.ones(1), "discount": 0.95, **options}
    return LinearQuadratic(own=ONE, control=ONE, cost=np.array([[1, -s], [-s, s * s]]), effort=ONE, **given)


def herd(horizon: int | None = None, seed: int = 0) -> LinearQuadratic:
    """A game of two states and one action with every coupling there is."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(4, 4))
    return LinearQuadratic(
        own=0.5 * rng.normal(size=(2, 2)),
        crowd=0.2 * rng.normal(size=(2, 2)),
        control=rng.normal(size=(2, 1)),
        cost=root @ root.T / 4,
        cross=0.1 * rng.normal(size=(1, 4)),
        effort=np.array([[1.3]]),
        terminal=np.eye(4),
        noise=np.diag([0.3, 0.1]),
        common=np.array([[0.1, 0.05], [0.05, 0.2]]),
        mean=np.array([1.0, -0.5]),
        spread=np.diag([0.4, 0.2]),
        discount=0.9,
        horizon=horizon,
    )


@pytest.mark.parametrize(
    ("s", "game", "control"),
    [(0.5, 0.517138, 0.628921), (0.9, 0.751010, 0.926527), (-1, 0.278939, 0.179220), (0, 0.396268, 0.396268)],
)
def test_the_mean_falls_by_the_known_factors_in_equilibrium_and_under_the_planner(s, game, control):
    nash, best = riccati.nash(follow(s)), riccati.planner(follow(s))
    assert 1 - (nash.own + nash.crowd).item() == pytest.approx(game, abs=6e-7)
    assert 1 - (best.own + best.crowd).item() == pytest.approx(control, abs=6e-7)
    # On a deviation both act alike: 1 - K = .396268, P = 1.603732.
    assert nash.own.item() == pytest.approx(0.603732, abs=6e-7)
    assert best.own.item() == pytest.approx(0.603732, abs=6e-7)


def test_anarchy_costs_what_is_known():
    nash, best = riccati.nash(follow(0.5)), riccati.planner(follow(0.5))
    costs = riccati.cost(follow(0.5), nash), riccati.cost(follow(0.5), best)
    assert costs == pytest.approx((0.647714, 0.621079), abs=6e-7)
    assert costs[0] / costs[1] == pytest.approx(1.0429, abs=6e-5)


def test_brute_force_dynamic_programming_answers_the_equilibrium_with_itself():
    # One agent on a grid of (x, m), others at the equilibrium: value iteration that knows nothing of Riccati.
    game, nash = follow(0.5), riccati.nash(follow(0.5))
    decay = 1 - (nash.own + nash.crowd).item()
    x = np.linspace(-1.5, 1.5, 121)
    a = np.linspace(-1.2, 1.2, 481)
    means = decay ** np.arange(60)
    value = np.zeros_like(x)
    for m in means[::-1]:
        after = x[:, None] + a
        ahead = np.interp(after, x, value)
        ahead[abs(after) > 1.5] = np.inf
        total = (x[:, None] - 0.5 * m) ** 2 + a**2 + game.discount * ahead
        value, choice = total.min(1), a[total.argmin(1)]
    at = int(abs(x - 1).argmin())
    assert x[at] + choice[at] == pytest.approx(decay, abs=0.011)
    assert value[at] == pytest.approx(riccati.cost(game, nash), abs=2e-3)


@pytest.mark.parametrize("agents", [2, 10, math.inf])
def test_answers_to_answers_lead_to_the_equilibrium_and_not_to_the_planner(agents):
    # Best-response iteration from doing nothing much: an algorithm that knows no coupled Riccati equation.
    game, chosen = follow(0.5), rule(0.5, 0.0)
    for _ in range(60):
        _, gain = riccati.best(game, chosen, agents)
        chosen = Rule(gain[..., :1], gain[..., 1:])
    nash = riccati.nash(game, agents)
    assert (chosen.own.item(), chosen.crowd.item()) == pytest.approx((nash.own.item(), nash.crowd.item()), abs=1e-9)
    if agents == math.inf:
        assert 1 - (chosen.own + chosen.crowd).item() == pytest.approx(0.5171383, abs=6e-8)


def full_regulator(game: LinearQuadratic, others: Rule, n: int) -> np.ndarray:
    """The best gains of agent 1 on everybody's states [l, n d], from the whole game of n d dimensions."""
    d, l = game.control.shape  # noqa: E741
    k, h = others.own[0], others.crowd[0]
    average = np.kron(np.full((1, n), 1 / n), np.eye(d))
    mine = np.hstack([np.eye(d), np.zeros((d, (n - 1) * d))])
    drift = np.kron(np.eye(n), game.own) + np.kron(np.ones((n, 1)), game.crowd @ average)
    for j in range(1, n):
        theirs = np.zeros((d, n * d))
        theirs[:, j * d : (j + 1) * d] = np.eye(d)
        drift[j * d : (j + 1) * d] -= game.control @ (k @ theirs + h @ average)
    control = np.vstack([game.control, np.zeros(((n - 1) * d, l))])
    z = np.vstack([mine, average])
    gamma = game.discount
    p = scipy.linalg.solve_discrete_are(
        gamma**0.5 * drift, gamma**0.5 * control, z.T @ game.cost @ z, game.effort, s=(game.cross @ z).T
    )
    gain = np.linalg.solve(
        game.effort + gamma * control.T @ p @ control, game.cross @ z + gamma * control.T @ p @ drift
    )
    return gain - (k @ mine + h @ average)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_in_the_whole_game_of_n_players_nobody_gains_by_leaving_the_equilibrium(n):
    game = herd()
    assert abs(full_regulator(game, riccati.nash(game, n), n)).max() < 1e-9
    # The limit's rule is another one, and is left.
    assert abs(full_regulator(game, riccati.nash(game), n)).max() > 1e-3


@pytest.mark.parametrize("agents", [1, 2, 10, 1e3, math.inf])
@pytest.mark.parametrize("horizon", [None, 6])
def test_the_equilibrium_is_not_exploitable_and_other_rules_are(agents, horizon):
    game = herd(horizon)
    nash = riccati.nash(game, agents)
    assert riccati.exploitability(game, nash, agents) == pytest.approx(0, abs=1e-9)
    off = Rule(nash.own + 0.1, nash.crowd - 0.05)
    assert riccati.exploitability(game, off, agents) > 1e-3


def test_exploitability_is_the_gain_that_a_deviator_makes_in_a_long_sum():
    # Both costs added up over time by propagating moments of z = (x, m): no Lyapunov or Riccati equation.
    game, chosen, e = herd(), rule([[0.2, -0.1]], [[0.1, 0.3]]), 1 / 5
    _, gains = riccati.best(game, chosen, 5)
    found = []
    for gain in (np.hstack([chosen.own[0], chosen.crowd[0]]), gains[0]):
        k, h = chosen.own[0], chosen.crowd[0]
        a, b = game.own, game.control
        drift = np.block([[a, game.crowd], [e * b @ k, a + game.crowd - b @ (k + (1 - e) * h)]])
        closed = drift - np.vstack([b, e * b]) @ gain
        square = np.outer(game.mean, game.mean)
        moment = np.block([[square + game.spread, square + e * game.spread], [square + e * game.spread] * 2])
        shared = e * game.noise + game.common
        noise = np.block([[game.noise + game.common, shared], [shared, shared]])
        spent = game.cost - gain.T @ game.cross - game.cross.T @ gain + gain.T @ game.effort @ gain
        total = 0.0
        for t in range(400):
            total += game.discount**t * float(np.tensordot(spent, moment))
            moment = closed @ moment @ closed.T + noise
        found.append(total)
    assert riccati.cost(game, chosen, 5) == pytest.approx(found[0], rel=1e-9)
    assert riccati.exploitability(game, chosen, 5) == pytest.approx(found[0] - found[1], rel=1e-9)


def test_no_random_change_of_the_planners_rule_makes_all_better_off():
    game, n = herd(5), 4
    best = riccati.planner(game)
    least = riccati.cost(game, best, n)
    rng = np.random.default_rng(1)
    for _ in range(30):
        other = Rule(
            best.own + 0.1 * rng.normal(size=best.own.shape), best.crowd + 0.1 * rng.normal(size=best.own.shape)
        )
        assert riccati.cost(game, other, n) > least
    assert riccati.cost(game, riccati.nash(game, n), n) > least + 1e-4


@pytest.mark.parametrize("horizon", [None, 4])
def test_the_mean_cost_is_flat_at_the_planners_rule_in_every_direction(horizon):
    game, n = herd(horizon), 3
    best = riccati.planner(game)
    for which in range(2):
        for place in np.ndindex(best.own.shape):
            nudge = np.zeros_like(best.own)
            nudge[place] = 1e-4
            up, down = (
                riccati.cost(game, best._replace(**{name: getattr(best, name) + sign * nudge}), n)
                for name, sign in ((Rule._fields[which], 1), (Rule._fields[which], -1))
            )
            assert (up - down) / 2e-4 == pytest.approx(0, abs=1e-6)
            assert up + down > 2 * riccati.cost(game, best, n)


def test_the_mean_cost_of_all_is_that_of_one_and_of_the_two_forms():
    game, n, chosen = herd(7), 6, riccati.nash(herd(7), 6)
    path = riccati.moments(game, chosen, n, 7)
    d, total = 2, 0.0
    for t in range(7):
        forms = riccati.spending(game, chosen, t)
        total += 0.9**t * float(np.tensordot(path.deviation[t], forms[0]) + np.tensordot(path.mean[t], forms[1]))
    last = game.terminal
    whole = last[:d, :d] + last[:d, d:] + last[d:, :d] + last[d:, d:]
    total += 0.9**7 * float(np.tensordot(path.deviation[7], last[:d, :d]) + np.tensordot(path.mean[7], whole))
    assert total == pytest.approx(riccati.cost(game, chosen, n), rel=1e-12)


def test_equilibria_of_n_come_to_the_limit_as_one_over_n_and_its_rule_is_exploited_as_one_over_n_squared():
    game = follow(0.5, noise=0.04 * ONE, spread=0.3 * ONE)
    limit, sizes = riccati.nash(game), np.array([50, 100, 200, 400])
    error = [float(abs(riccati.nash(game, n).own - limit.own).max()) for n in sizes]
    gain = [riccati.exploitability(game, limit, n) for n in sizes]
    assert np.polyfit(np.log(sizes), np.log(error), 1)[0] == pytest.approx(-1, abs=0.02)
    # The rule is off by 1/N and the best response is flat at its top.
    assert np.polyfit(np.log(sizes), np.log(gain), 1)[0] == pytest.approx(-2, abs=0.03)


def test_a_long_horizon_begins_as_no_horizon_does():
    game = herd()
    long = riccati.nash(replace(game, horizon=200, terminal=np.zeros((4, 4))), 3)
    assert riccati.nash(game, 3).own[0] == pytest.approx(long.own[0], abs=1e-10)
    assert riccati.nash(game, 3).crowd[0] == pytest.approx(long.crowd[0], abs=1e-10)


def test_gibbs_agents_tremble_with_the_curvature_of_what_actions_cost():
    # Q(a) by hand, for one agent alone: a^2 (R + gamma P) and so a variance of T/2 / (R + gamma P).
    game = follow(0.5)
    shake = riccati.trembling(game, riccati.nash(game), 0.3)
    assert float(shake[0, 0, 0]) == pytest.approx(0.15 / (1 + 0.95 * 1.6037321), rel=1e-6)


def test_stationary_forms_do_not_mind_modes_that_they_do_not_see():
    # A position that wanders for ever beside a velocity that settles.
    walk = np.array([[1.0, 1.0], [0.0, 0.5]])
    game = LinearQuadratic(
        own=walk, control=np.array([[0.0], [1.0]]), cost=np.kron(np.eye(2), np.diag([0.0, 1.0])), effort=ONE,
        noise=np.diag([0.0, 1.0]), discount=0.9,
    )  # fmt: skip
    still = rule([[0.0, 0.0]], [[0.0, 0.0]])
    speed, place = np.diag([0.0, 1.0]), np.diag([1.0, 0.0])
    assert riccati.settled(game, still, 4, (speed, speed)) == pytest.approx(1 / (1 - 0.25), rel=1e-12)
    assert riccati.settled(game, still, 4, (place, place)) == math.inf


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"discount": 1.0}, "discount in"),
        ({"noise": np.ones((2, 2))}, r"noise .* shape \[1, 1\]"),
        ({"spread": np.full((1, 1), np.nan)}, "spread .* finite"),
    ],
)
def test_games_that_are_none_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        follow(0.5, **options)


def test_free_actions_and_asymmetric_costs_are_refused():
    with pytest.raises(ConfigError, match="cost nothing"):
        LinearQuadratic(own=ONE, control=ONE, cost=np.eye(2), effort=0 * ONE, discount=0.9)
    with pytest.raises(ConfigError, match="symmetric"):
        LinearQuadratic(own=ONE, control=ONE, cost=np.array([[1, 2], [0, 1.0]]), effort=ONE, discount=0.9)


def test_games_without_an_equilibrium_and_rules_without_a_worth_say_so():
    gain = LinearQuadratic(own=ONE, control=ONE, cost=-5 * np.eye(2), effort=ONE, discount=0.9)
    with pytest.raises(NumericFault, match="no minimum|without bound"):
        riccati.nash(gain, 2)
    with pytest.raises(NumericFault, match="grow faster"):
        riccati.cost(follow(0.5), rule(-1.0, 0.0))
    # A mean that doubles each step, which nobody can stop and everybody follows.
    with pytest.raises(NumericFault, match="finite cost"):
        riccati.best(follow(0.5), rule(0.0, -1.0))
    with pytest.raises(ConfigError, match="at least 1"):
        riccati.nash(follow(0.5), 0.5)


@pytest.mark.parametrize("horizon", [None, 4])
def test_a_rule_that_is_not_finite_or_does_not_fit_is_refused(horizon):
    game = follow(0.5, horizon=horizon)
    for bad in (math.nan, math.inf):
        with pytest.raises(NumericFault, match="crowd of the rule is not finite at time 0"):
            riccati.exploitability(game, rule(0.5, bad), 10)
    with pytest.raises(ConfigError, match=r"own of a rule .* not \[1, 1, 2\]"):
        riccati.exploitability(game, rule([[0.1, 0.2]], 0.0))
    with pytest.raises(ConfigError, match=r"not \[3, 1, 1\]"):
        riccati.moments(game, Rule(np.zeros((3, 1, 1)), np.zeros((3, 1, 1))), 5, 4)
