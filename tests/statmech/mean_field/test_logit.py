"""Logit and Wardrop splits: against each other, against scipy's optimiser, and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech.exact import ising as ising_exact
from mfmarl.statmech.mean_field import logit, potts, self_consistent

A, B = np.array([0.0, 0.2, 0.5, 1.0]), np.array([1.0, 0.8, 0.5, 0.25])


def test_constant_costs_split_by_the_gibbs_distribution():
    cost = np.array([0.3, 1.0, 0.7])
    expected = np.exp(-cost / 0.4) / np.exp(-cost / 0.4).sum()
    assert logit.split(lambda x: cost + 0 * x, 3, 0.4) == pytest.approx(expected, abs=1e-12)
    assert logit.equilibrium(lambda x: cost, 3, 0.4) == pytest.approx(expected, abs=1e-9)


def test_equal_constant_costs_may_be_shared_in_any_way_that_adds_up():
    shares = logit.split(lambda x: np.array([0.5, 0.5, 0.9]) + 0 * x, 3)
    assert shares.sum() == pytest.approx(1)
    assert shares[2] == 0


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.floats(0, 2), st.sampled_from([0.5, 1.0, 2.0, 4.0])), min_size=1, max_size=6
    ),
    st.sampled_from([0.0, 0.01, 0.1, 1.0, 30.0]),
)
def test_a_split_equalises_what_it_should(links, temperature):
    a, b, p = (np.array(column) for column in zip(*links, strict=True))

    def cost(x: np.ndarray) -> np.ndarray:
        return a + b * x**p

    x = logit.split(cost, len(a), temperature)
    assert x.min() >= 0
    assert x.sum() == pytest.approx(1, abs=1e-12)
    level = cost(x) + (temperature * np.log(x) if temperature else 0)
    used = x > 1e-9
    assert np.ptp(level[used]) < 1e-6
    if not temperature:  # a road whose cost rises like a root is steep at 0: a share of 1e-9 may cost 6e-5 there
        assert level[~used].min(initial=math.inf) >= level[used].max() - 1e-4


@pytest.mark.parametrize("temperature", [0.0, 0.02, 0.2, 1.0])
def test_the_two_solvers_and_scipys_minimiser_agree(temperature):
    def potential(x: np.ndarray) -> float:
        entropy = -np.sum(x * np.log(np.maximum(x, 1e-300)))
        return float(A @ x + B @ x**2 / 2 - temperature * entropy)

    found = optimize.minimize(
        potential, np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
        method="SLSQP", options={"ftol": 1e-14, "maxiter": 1000},
    )  # fmt: skip
    one = logit.split(lambda x: A + B * x, 4, temperature)
    other = logit.equilibrium(lambda x: A + B * x, 4, temperature)
    assert one == pytest.approx(other, abs=1e-8)
    assert one == pytest.approx(found.x, abs=2e-5)
    assert potential(one) <= found.fun + 1e-12


def test_a_coupled_network_reaches_the_minimum_of_its_potential():
    rng = np.random.default_rng(3)
    for _ in range(5):
        uses = (rng.random((5, 7)) < 0.5) * 1.0
        a, b = rng.random(7), rng.random(7)
        for temperature in (0.0, 0.1):

            def cost(x: np.ndarray, uses: np.ndarray = uses, a: np.ndarray = a, b: np.ndarray = b) -> np.ndarray:
                return np.asarray(uses @ (a + b * (x @ uses)))

            x = logit.equilibrium(cost, 5, temperature)
            level = cost(x) + (temperature * np.log(x) if temperature else 0)
            assert x.sum() == pytest.approx(1)
            assert level[x > 0].max() - level.min() < 1e-8


def test_costs_without_an_equilibrium_in_reach_are_told():
    # Rock, paper, scissors at temperature 0: best replies chase each other.
    payoff = np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    with pytest.raises(NumericFault, match="no convex potential"):
        logit.equilibrium(lambda x: payoff @ x, 3, 0.0, start=[0.6, 0.3, 0.1])


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.7])
def test_the_fixed_point_of_two_choices_is_curie_weiss(temperature):
    def payoff(p: np.ndarray) -> np.ndarray:
        return np.array([-1.0, 1.0]) * (p[1] - p[0])

    p = logit.softmax_fixed_point(payoff, temperature, [0.2, 0.8])
    assert p[1] - p[0] == pytest.approx(ising_exact.curie_weiss(temperature), abs=1e-7)


def test_a_cycling_best_reply_is_damped_until_it_settles():
    # Anti-coordination: undamped replies alternate for ever.
    p = logit.softmax_fixed_point(lambda p: -50 * p, 1.0, [0.9, 0.1], damping=1.0)
    assert p == pytest.approx([0.5, 0.5], abs=1e-7)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    for solve in (logit.split, logit.equilibrium):
        with pytest.raises(ConfigError, match="temperature must be finite and at least 0"):
            solve(lambda x: x, 2, temperature)
    with pytest.raises(ConfigError, match="temperature"):
        logit.softmax_fixed_point(lambda p: p, 0.0, [0.5, 0.5])


def test_a_boltzmann_equilibrium_is_the_self_consistency_solvers_with_its_transition():
    # Three choices, each worth its share: between the spinodals there are two equilibria; both solvers agree.
    low, _, high = potts.transition(3)
    temperature = 2 / (low + high)
    ordered, uniform = [0.8, 0.1, 0.1], [0.34, 0.33, 0.33]
    reached = [logit.softmax_fixed_point(lambda p: p, temperature, start) for start in (ordered, uniform)]
    for start, p in zip((ordered, uniform), reached, strict=True):
        found = self_consistent.softmax_equilibrium(lambda p: -p, temperature, torch.tensor(start, dtype=torch.float64))
        assert found.shares.tolist() == pytest.approx(p.tolist(), abs=1e-9) and float(found.growth) < 1
    assert reached[0][0] > 0.6 and reached[1] == pytest.approx([1 / 3] * 3, abs=1e-8)
