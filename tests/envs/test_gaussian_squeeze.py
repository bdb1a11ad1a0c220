"""The Gaussian squeeze: its published numbers, and expectations against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfmarl import random
from mfmarl.envs import gaussian_squeeze
from mfmarl.envs.gaussian_squeeze import GaussianSqueeze
from mfmarl.errors import ConfigError
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical

UNIFORM = np.full(10, 0.1)


def test_the_published_game_has_its_known_optimum():
    total, best = GaussianSqueeze.published().optimum()
    assert total == 445
    assert best == pytest.approx(423.033, abs=6e-4)
    exact = (400 + math.sqrt(400**2 + 2 * 200**2)) / 2
    assert exact == pytest.approx(444.949, abs=6e-4)
    assert GaussianSqueeze.published().objective(exact) == pytest.approx(423.0326, abs=6e-5)


@pytest.mark.parametrize(
    ("mu", "sigma", "total", "best"),
    [(175, 175, 239, 209.080), (200, 100, 222, 211.511), (400, 200, 445, 423.033)],
)
def test_other_published_bells_have_their_known_optima(mu, sigma, total, best):
    found = GaussianSqueeze(mu=mu, sigma=sigma, normalised=False).optimum()
    assert found == (total, pytest.approx(best, abs=6e-4))


@pytest.mark.parametrize(
    ("mu", "sigma", "mean", "best"),
    [(2, 1, 2.2247, 2.1152), (7, 1, 7.0707, 7.0354), (3, 1.5, 3.3371, 3.1727), (4, 2, 4.4495, 4.2303)],
)
def test_normalised_bells_have_their_known_optima(mu, sigma, mean, best):
    game = GaussianSqueeze(num_agents=10_000, mu=mu, sigma=sigma)
    total, value = game.optimum()
    assert total / 10_000 == pytest.approx(mean, abs=1e-4)
    assert value == pytest.approx(best, abs=6e-5)


def test_uniform_play_is_nearly_optimal_as_published_and_hopeless_at_more_agents():
    assert GaussianSqueeze.published(100).expected_reward(UNIFORM) == pytest.approx(413.48, abs=6e-3)
    assert GaussianSqueeze.published(500).expected_reward(UNIFORM) == pytest.approx(2.6e-28, rel=0.01)
    assert GaussianSqueeze.published(1_000).expected_reward(UNIFORM) == pytest.approx(3.8e-127, rel=0.01)


def test_uniform_play_of_the_default_is_worth_almost_nothing():
    assert GaussianSqueeze(num_agents=100_000).expected_reward(UNIFORM) == pytest.approx(0.0087, abs=6e-5)
    assert GaussianSqueeze().expected_reward(UNIFORM) == pytest.approx(0.0180, abs=6e-5)


@pytest.mark.parametrize(
    ("agents", "mean", "value"), [(100, 4.45, 422.745), (500, 0.891, 422.465), (1_000, 0.445, 420.185)]
)
def test_the_best_policies_on_two_actions_have_their_known_worth(agents, mean, value):
    p = np.zeros(10)
    low = int(mean)
    p[low], p[low + 1] = 1 - (mean - low), mean - low
    assert GaussianSqueeze.published(agents).expected_reward(p) == pytest.approx(value, abs=6e-3)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(2, 4), st.booleans(), st.integers(0, 2**31))
def test_expectations_agree_with_the_sum_over_all_joint_actions(agents, actions, normalised, seed):
    game = GaussianSqueeze(agents, actions=actions, mu=1.3, sigma=0.8, normalised=normalised)
    p = np.random.default_rng(seed).dirichlet(np.ones(actions))
    every = list(itertools.product(range(actions), repeat=agents))
    ids = agent_ids(len(every), agents)
    _, reward = game.step(game.reset(ids, Key.of(0)), torch.tensor(every), ids, Key.of(1))
    assert bool((reward == reward[:, :1]).all())
    weight = np.array([np.prod(p[list(joint)]) for joint in every])
    assert game.expected_reward(p) == pytest.approx(float(weight @ reward[:, 0].double().numpy()), abs=1e-6)
    first = np.array([joint[0] for joint in every])
    for own in range(actions):
        value = float(weight[first == own] @ reward[first == own, 0].double().numpy()) / p[own]
        assert game.action_values(p)[own] == pytest.approx(value, abs=1e-6)


def test_one_transform_gives_the_action_values_of_many_convolutions():
    game = GaussianSqueeze(num_agents=300)
    p = np.random.default_rng(1).dirichlet(np.ones(10))
    law = game.total_distribution(p, 299)
    values = game.objective(np.arange(len(law) + 9))
    assert game.action_values(p) == pytest.approx([law @ values[a : a + len(law)] for a in range(10)], abs=1e-12)


def test_convolutions_by_fft_agree_with_those_term_by_term(monkeypatch):
    game = GaussianSqueeze(num_agents=700)
    p = np.random.default_rng(2).dirichlet(np.ones(10))
    exact = game.total_distribution(p)
    assert exact.sum() == pytest.approx(1, abs=1e-12)
    assert exact @ np.arange(len(exact)) == pytest.approx(700 * (p @ np.arange(10)), abs=1e-8)
    monkeypatch.setattr(gaussian_squeeze, "_DIRECT", 0)
    assert game.total_distribution(p) == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize(
    ("temperature", "value", "mean"), [(0.1, 418.52, 4.4504), (1, 414.35, 4.4533), (10, 413.77, 4.4685)]
)
def test_the_published_logit_equilibria_have_their_known_digits(temperature, value, mean):
    game = GaussianSqueeze.published()
    p = game.logit_equilibrium(temperature)
    assert game.expected_reward(p) == pytest.approx(value, abs=6e-3)
    assert p @ np.arange(10) == pytest.approx(mean, abs=6e-5)
    reply = np.exp((game.action_values(p) - game.action_values(p).max()) / temperature)
    assert p == pytest.approx(reply / reply.sum(), abs=1e-7)


def test_five_hundred_agents_have_a_useless_and_a_good_equilibrium_until_noise_kills_the_good_one():
    game = GaussianSqueeze.published(500)
    good_start = 0.5 ** np.arange(10) / (0.5 ** np.arange(10)).sum()
    assert game.expected_reward(game.logit_equilibrium(1.0)) < 1e-20
    good = game.logit_equilibrium(1.0, good_start)
    assert 500 * (good @ np.arange(10)) == pytest.approx(477.9, abs=0.06)
    assert game.expected_reward(good) == pytest.approx(401.9, abs=0.06)
    hot = game.logit_equilibrium(10.0, good_start)
    assert hot == pytest.approx(UNIFORM, abs=1e-6)


@statistical(alpha=beyond(5, 4), bugs=("uniforms-lean", "pairs-share-noise"))
def test_a_crowd_measures_the_reward_that_the_convolution_expects():
    game, copies = GaussianSqueeze(num_agents=50), 4_000
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(1))
    p = game.logit_equilibrium(0.01)
    edges = torch.tensor(np.cumsum(p)).float()[:-1]
    action = torch.bucketize(random.uniform(Key.of(2), simulation.ids), edges)
    reward = simulation.step(action).reward
    assert torch.equal(simulation.measure()["objective"], reward[:, 0])
    known = game.reference(0.01)
    for name, seen in {"reward": reward[:, 0], **simulation.measure()}.items():
        error = seen.double().std() / copies**0.5
        assert abs(seen.double().mean() - known[name].value) < 5 * error, name


def test_the_reference_is_the_optimum_when_cold_and_a_bound_where_no_equilibrium_is_given():
    cold = GaussianSqueeze().reference()
    assert (cold["mean_action"].value, cold["reward"].kind) == (2.22, "optimum")
    assert cold["reward"].value == pytest.approx(2.115, abs=6e-4)
    for game, temperature in ((GaussianSqueeze(100_000), 0.1), (GaussianSqueeze(), 1e-6)):
        assert game.reference(temperature)["reward"].kind == "bound"
    assert GaussianSqueeze().reference(0.01)["reward"].kind == "equilibrium"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_agents": 0}, "num_agents must be at least 1"),
        ({"actions": 1}, "actions must be from 2 to 256"),
        ({"actions": 257}, "actions must be from 2 to 256"),
        ({"sigma": 0.0}, "sigma positive"),
        ({"mu": math.inf}, "mu must be finite"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GaussianSqueeze(**options)


def test_probabilities_that_are_none_are_refused():
    for wrong in ([0.5, 0.5], [0.2] * 10, [1.1, -0.1, *[0.0] * 8]):
        with pytest.raises(ConfigError, match="probabilities must be 10 numbers"):
            GaussianSqueeze().expected_reward(wrong)
