"""The crowd as a factor: counts and points, likelihoods, exchangeable beliefs, sums over others, and what crowds do."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import crowd, filtering
from mfmarl.inference.expected_free_energy import of_beliefs
from mfmarl.inference.objective import Objective
from mfmarl.population.environment import agent_ids
from mfmarl.population.field import parse_field
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.statmech import gibbs
from tests.statistical import beyond, statistical

F64 = torch.float64


# ------------------------------------------------------------------------------------- points and outcomes


@pytest.mark.parametrize(("total", "parts"), [(0, 3), (6, 1), (5, 2), (4, 3), (3, 5)])
def test_counts_are_all_there_once_and_know_their_own_number(total, parts):
    rows = crowd.compositions(total, parts)
    brute = {c for c in itertools.product(range(total + 1), repeat=parts) if sum(c) == total}
    assert len(rows) == len(brute) == math.comb(total + parts - 1, parts - 1)
    assert set(map(tuple, rows.tolist())) == brute
    assert torch.equal(crowd.number_of(rows), torch.arange(len(rows)))


def test_of_two_actions_the_outcome_is_how_many_took_the_second():
    assert torch.equal(crowd.compositions(7, 2)[:, 1], torch.arange(8))


@pytest.mark.parametrize(
    ("actions", "points", "found"), [(2, 5, 5), (3, 10, 10), (3, 14, 10), (4, 2, 4), (1, 7, 1), (3, 1, 1)]
)
def test_points_are_shares_evenly_spread_and_none_is_impossible(actions, points, found):
    theta = crowd.simplex(actions, points)
    assert theta.shape == (found, actions)
    torch.testing.assert_close(theta.sum(-1), torch.ones(found, dtype=F64), rtol=0, atol=1e-15)
    assert float(theta.min()) > 0
    # Symmetric: the mean of all points is the even crowd.
    torch.testing.assert_close(theta.mean(0), torch.full((actions,), 1 / actions, dtype=F64), rtol=0, atol=1e-15)


def test_points_of_two_actions_are_the_middles_of_equal_intervals():
    torch.testing.assert_close(crowd.simplex(2, 5)[:, 1], torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64))


def test_the_likelihood_of_counts_is_that_of_all_orders_of_peers():
    theta = crowd.simplex(3, 6)
    table = crowd.likelihood(theta, 4)
    brute = torch.zeros_like(table)
    for draws in itertools.product(range(3), repeat=4):
        counts = torch.bincount(torch.tensor(draws), minlength=3)
        brute[int(crowd.number_of(counts))] += theta[:, list(draws)].prod(-1)
    torch.testing.assert_close(table, brute, rtol=0, atol=1e-14)


def test_a_crowd_stays_or_moves_near():
    theta = crowd.simplex(3, 15)
    for width in (None, 1e-3, 0.1):
        B = crowd.persistence(theta, 0.8, width)
        torch.testing.assert_close(B.sum(0), torch.ones(len(theta), dtype=F64))
        torch.testing.assert_close(B.diagonal(), torch.full((len(theta),), 0.8, dtype=F64))
    narrow = crowd.persistence(crowd.simplex(2, 4), 0.9, 0.02)
    assert float(narrow[1, 0]) == pytest.approx(0.1)
    assert float(narrow[1, 2]) == pytest.approx(0.05)
    assert torch.equal(crowd.persistence(crowd.simplex(2, 1)), torch.ones(1, 1, dtype=F64))


# ---------------------------------------------------------------------------------- in a generative model


def payoff() -> torch.Tensor:
    return random.normal(Key.of(3), torch.arange(2), 4).double()


def test_utility_of_a_stage_game_is_its_expected_payoff():
    """sum_m q(m) sum_n Bin(n; k, theta_m) u(a, n), by enumeration of every peer."""
    theta, k = crowd.simplex(2, 5), 3
    model = crowd.stage_game(payoff(), theta, k)
    q = torch.softmax(torch.arange(5, dtype=F64) * 0.7, 0)
    for a in range(2):
        own = torch.nn.functional.one_hot(torch.tensor(a), 2).double()
        found = of_beliefs(model, (own, q), objective=Objective("none", normalise=False)).pragmatic
        brute = 0.0
        for m in range(5):
            for peers in itertools.product((0, 1), repeat=k):
                chance = math.prod(float(theta[m, z]) for z in peers)
                brute += float(q[m]) * chance * float(payoff()[a, sum(peers)])
        assert float(found) == pytest.approx(brute, abs=1e-14)


def test_beliefs_about_the_crowd_are_bayes_of_the_peers_that_were_met():
    theta, k = crowd.simplex(2, 7), 6
    model = crowd.stage_game(torch.zeros(2, k + 1, dtype=F64), theta, k)
    outcome = torch.tensor([1 * (k + 1) + 5])  # I did 1, and 5 of 6 did it too
    step = filtering.update(model, model.D, outcome)
    brute = theta[:, 1] ** 5 * theta[:, 0]
    torch.testing.assert_close(step.factors[1], brute / brute.sum(), rtol=0, atol=1e-14)
    assert float(step.factors[0][1]) == 1
    # The belief of frequencies is the same, without a table of counts.
    weighed = torch.softmax(crowd.log_likelihood(theta, k * torch.tensor([1 / 6, 5 / 6], dtype=F64)), -1)
    torch.testing.assert_close(step.factors[1], weighed, rtol=0, atol=1e-14)


def test_a_crowd_beside_an_agents_own_model_changes_nothing_in_it():
    own = crowd.chooser(3)
    theta = crowd.simplex(3, 6)
    model = crowd.with_crowd(own, theta, 4, preferences=torch.arange(15, dtype=F64))
    assert model.outcomes == (3, 15)
    assert model.modalities == ("own", "crowd")
    assert model.factors == ("choice", "population")
    assert torch.equal(model.A[0], own.A[0])
    assert torch.equal(model.B[0], own.B[0])
    assert model.num_actions == own.num_actions
    step = filtering.update(model, model.D, torch.tensor([2, -1]))
    torch.testing.assert_close(step.factors[1], model.D[1])


def test_a_crowd_is_put_beside_models_of_several_minds():
    own = crowd.chooser(2)
    many = own.map(lambda x: x.expand(5, 1, *x.shape))
    model = crowd.with_crowd(many, crowd.simplex(2, 4), 2, preferences=torch.ones(2, 3, dtype=F64), beside=0)
    one = crowd.with_crowd(own, crowd.simplex(2, 4), 2, preferences=torch.ones(2, 3, dtype=F64), beside=0)
    assert model.A[0].shape == (5, 1, 6, 2, 4)
    assert torch.equal(model.A[0][3, 0], one.A[0])


# ------------------------------------------------------------------------------------ exchangeable beliefs


ALPHA = torch.tensor([0.7, 2.0, 1.3], dtype=F64)


def test_exchangeable_predictions_are_polyas_urn():
    counts = crowd.compositions(4, 3)
    brute = torch.zeros(len(counts), dtype=F64)
    for draws in itertools.product(range(3), repeat=4):
        alpha, chance = ALPHA.clone(), 1.0
        for z in draws:
            chance *= float(alpha[z] / alpha.sum())
            alpha[z] += 1
        brute[int(crowd.number_of(torch.bincount(torch.tensor(draws), minlength=3)))] += chance
    torch.testing.assert_close(crowd.log_predictive(ALPHA, counts.double()).exp(), brute, rtol=0, atol=1e-14)


def test_information_of_several_peers_adds_up_peer_by_peer():
    """I(n_k) = sum_j E[I(next | the first j)], and of one it is w of the note's section 3.5."""
    a0 = ALPHA.sum()
    w = a0.log() - ALPHA.log() + torch.digamma(ALPHA + 1) - torch.digamma(a0 + 1)
    assert float(crowd.information(ALPHA)) == pytest.approx(float((ALPHA / a0 * w).sum()), abs=1e-14)
    total = 0.0
    for j in range(4):
        counts = crowd.compositions(j, 3).double()
        chance = crowd.log_predictive(ALPHA, counts).exp()
        total += float((chance * crowd.information(ALPHA + counts)).sum())
    assert float(crowd.information(ALPHA, 4)) == pytest.approx(total, abs=1e-13)


def test_what_is_forgotten_of_a_crowd_returns_to_the_prior():
    seen = torch.tensor([0.0, 5.0, 0.0], dtype=F64)
    assert torch.equal(crowd.observe(ALPHA, seen), ALPHA + seen)
    alpha = ALPHA
    for _ in range(2000):
        alpha = crowd.observe(alpha, seen, 0.05, prior=ALPHA)
    # Stationary extra mass: eta / omega = 5 / .05.
    torch.testing.assert_close(alpha, ALPHA + torch.tensor([0.0, 100.0, 0.0], dtype=F64))


# ------------------------------------------------------------------------------- what a sum over others pays


def probabilities(others: int) -> torch.Tensor:
    return random.uniform(Key.of(5), torch.arange(others)).double() * 0.8 + 0.1


def utility(x: torch.Tensor) -> torch.Tensor:
    return 3 * x - 4 * x * x


def test_the_poisson_binomial_law_is_that_of_all_outcomes():
    p = probabilities(8)
    brute = torch.zeros(9, dtype=F64)
    for z in itertools.product((0, 1), repeat=8):
        picked = torch.tensor(z)
        brute[int(picked.sum())] += torch.where(picked == 1, p, 1 - p).prod()
    torch.testing.assert_close(crowd.poisson_binomial(p), brute, rtol=0, atol=1e-15)


def test_the_mean_of_the_crowd_is_wrong_by_one_over_n_and_its_variance_mends_that():
    """(exact - mean) N is the same at every N for a quadratic payoff; u'' Var / 2 closes it to rounding (note, 4.2)."""
    errors = []
    for others in (10, 40, 160, 640):
        p = torch.full((others,), 0.3, dtype=F64)
        exact = crowd.expected_utility(utility, p)
        errors.append(float(exact - crowd.expected_utility(utility, p, "mean")) * others)
        mended = crowd.expected_utility(utility, p, "second_order", curvature=-8.0)
        assert float(mended) == pytest.approx(float(exact), abs=1e-13)
    assert errors == pytest.approx([-4 * 0.21] * 4, abs=1e-10)
    # Whose probabilities differ, too.
    p = probabilities(50)
    mended = crowd.expected_utility(utility, p, "second_order", curvature=-8.0)
    assert float(mended) == pytest.approx(float(crowd.expected_utility(utility, p)), abs=1e-14)


# ---------------------------------------------------------------------------------- what the crowd itself does


@pytest.mark.parametrize(("peers", "known"), [(3, 0.4753), (5, 0.2450), (9, 0.1241), (15, 0.0712), (51, 0.0200)])
def test_crowds_order_at_the_known_precision(peers, known):
    """Numbers of the note's section 4.2; the naive 1/k is too small."""
    w = crowd.critical_precision(peers)
    assert w == pytest.approx(known, abs=5e-5)
    assert w > 1 / peers
    assert crowd.slope(w, peers) == pytest.approx(1, abs=1e-12)
    assert crowd.ordered_magnetisation(0.98 * w, peers) == 0
    assert crowd.ordered_magnetisation(1.02 * w, peers) > 0.1


def test_with_one_or_two_peers_a_crowd_never_orders():
    for peers in (1, 2):
        assert crowd.critical_precision(peers) == math.inf
        assert crowd.slope(50.0, peers) <= 1 + 1e-12
        assert crowd.ordered_magnetisation(50.0, peers) == 0


def test_the_slope_is_the_derivative_of_the_map():
    for peers, w in ((3, 0.6), (8, 0.11), (None, 1.3)):
        h = 1e-6
        up, down = (crowd.magnetisation_map(torch.tensor(x, dtype=F64), w, peers) for x in (h, -h))
        expected = w if peers is None else crowd.slope(w, peers)
        assert float(up - down) / (2 * h) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    ("precision", "peers", "known"),
    [(0.3, 5, 0.7578), (0.45, 5, 0.9692), (0.08, 15, 0.574), (1.2, None, 0.6586), (1.6, None, 0.8906)],
)
def test_ordered_crowds_have_the_known_mean(precision, peers, known):
    """The maps' fixed points of the note's section 4.2."""
    assert crowd.ordered_magnetisation(precision, peers) == pytest.approx(known, abs=5e-4)


def play(precision: float, peers: int | None, agents: int, steps: int, start: float = 1.0) -> list[float]:
    """Means of a crowd of agents who feel others through the package's field and act by the package's Gibbs draw."""
    from mfmarl.envs.ising import Ising

    simulation = Simulation(Ising(num_agents=agents, graph="complete", order="synchronous"))
    felt = parse_field("actions over everyone" if peers is None else f"actions over sampled({peers})")
    ids = agent_ids(1, agents)
    timestep = simulation.reset(Key.of(0))
    timestep = timestep._replace(action=(random.uniform(Key.of(9), ids) < (1 + start) / 2).long())
    means = []
    for step in range(steps):
        shares = felt(timestep, simulation.spec, ids, Key.of(1).fold(step))
        odds = crowd.log_odds(shares * (peers or 1), precision)
        energy = torch.stack([torch.zeros_like(odds), -odds], -1)
        action = gibbs.sample(energy, 1.0, ids, Key.of(2).fold(step))
        timestep = timestep._replace(action=action)
        means.append(float(2 * action.double().mean() - 1))
    return means


@pytest.mark.parametrize(("precision", "peers"), [(0.3, 5), (0.2, 5), (1.2, None)])
@statistical(alpha=beyond(5, 15), bugs=("hot-draws", "negated-draws"))
def test_a_crowd_follows_the_map_step_by_step(precision, peers):
    """From each mean to the next: five standard errors of 20,000 draws (and of the others' sample, counted in)."""
    agents = 20_000
    means = play(precision, peers, agents, 6, start=0.6)
    for now, then in itertools.pairwise(means):
        expected = float(crowd.magnetisation_map(torch.tensor(now, dtype=F64), precision, peers))
        assert abs(then - expected) < 5 / agents**0.5


@pytest.mark.verify
@pytest.mark.parametrize(
    ("precision", "peers"), [(0.3, 5), (0.45, 5), (0.2, 5), (0.08, 15), (0.55, 3), (1.2, None), (1.6, None)]
)
@statistical(alpha=beyond(5, 200), bugs=("hot-draws", "negated-draws"))
def test_two_hundred_thousand_agents_settle_where_the_map_does(precision, peers):
    """Magnetisation at N = 200,000 within five standard errors of the map's fixed point.

    The mean of a crowd near the fixed point is a linear process with slope s and noise (1 - m^2)/N a step, whose
    stationary variance is (1 - m^2) / (N (1 - s^2)); of an average over T steps about (1 - m^2) / (N T (1 - s)^2).
    """
    agents, burn, steps = 200_000, 60, 40
    settled = crowd.ordered_magnetisation(precision, peers)
    means = play(precision, peers, agents, burn + steps)[burn:]
    near = torch.tensor([settled - 1e-5, settled + 1e-5], dtype=F64).clamp(-1, 1)
    low, high = crowd.magnetisation_map(near, precision, peers)
    slope = float((high - low) / (near[1] - near[0]))
    error = math.sqrt((1 - settled**2) / (agents * steps)) / (1 - slope)
    assert abs(sum(means) / steps - settled) < 5 * error + 1e-6


def test_who_sees_too_little_or_too_much_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="sample fewer peers"):
        crowd.compositions(200, 12)
    with pytest.raises(ConfigError, match=r"preferences \[5\]"):
        crowd.with_crowd(crowd.chooser(2), crowd.simplex(2, 3), 4, preferences=torch.zeros(4))
    with pytest.raises(ConfigError, match=r"own outcomes by counts"):
        crowd.with_crowd(crowd.chooser(2), crowd.simplex(2, 3), 4, preferences=torch.zeros(5), beside=0)
    with pytest.raises(ConfigError, match="modalities 0..0"):
        crowd.with_crowd(crowd.chooser(2), crowd.simplex(2, 3), 4, preferences=torch.zeros(2, 5), beside=1)
    with pytest.raises(ConfigError, match="1 to 1000"):
        crowd.critical_precision(0)
    with pytest.raises(ConfigError, match="'exact', 'mean' or 'second_order'"):
        crowd.expected_utility(utility, probabilities(3), "median")
