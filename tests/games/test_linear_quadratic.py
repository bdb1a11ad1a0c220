"""Populations of linear-quadratic games pay what Riccati equations say, at small N, with and without a horizon."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.flocking import Flocking
from mfmarl.envs.systemic_risk import SystemicRisk
from mfmarl.errors import ConfigError
from mfmarl.games import riccati
from mfmarl.games.linear_quadratic import LinearQuadraticGame, State, mean_of
from mfmarl.games.riccati import Rule
from mfmarl.population.environment import agent_ids
from mfmarl.random import Key
from tests.statistical import beyond, statistical

SMALL = [
    SystemicRisk(num_agents=3, shared=0.4, variance=0.5, horizon=10, incentive=0.5, discount=0.8),
    Flocking(num_agents=4, horizon=6),
]


def play(
    game: LinearQuadraticGame, rule: Rule, copies: int, steps: int, shake=None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards [T, E, N] and measures [T, E] of a run by the rules, everyone keeping `rule`."""
    ids, key = agent_ids(copies, game.num_agents), Key.of(0)
    state, rewards, seen = game.reset(ids, key), [], []
    for t in range(steps):
        action = game.policy(rule, state)
        if shake is not None:
            root = torch.from_numpy(np.linalg.cholesky(shake[min(t, len(shake) - 1)])).float()
            action = action + random.normal(key.fold("shake", t), ids, action.shape[-1]) @ root.mT
        state, reward = game.step(state, action, ids, key.fold("step", t))
        rewards.append(reward.double())
        seen.append(game.measure(state))
    return torch.stack(rewards), {name: torch.stack([row[name] for row in seen]).double() for name in seen[0]}


def near(samples: Tensor, value: float) -> None:
    """Five standard errors; the copies are independent."""
    assert abs(float(samples.mean()) - value) < 5 * float(samples.std()) / len(samples) ** 0.5 + 1e-9


@pytest.mark.parametrize("game", SMALL, ids=["systemic_risk", "flocking"])
def test_a_crowd_is_paid_and_measures_what_its_reference_says(game):
    rewards, seen = play(game, game.nash(), 20_000, game.horizon)
    known = game.reference()
    near(rewards.mean((0, 2)), known["reward"].value)
    for name, values in seen.items():
        near(values.mean(0), known[name].value)


@pytest.mark.parametrize("game", SMALL, ids=["systemic_risk", "flocking"])
def test_a_trembling_crowd_is_paid_what_its_reference_says(game):
    nash = game.nash()
    shake = riccati.trembling(game.problem(), nash, 0.7, game.num_agents)
    rewards, seen = play(game, nash, 20_000, game.horizon, shake)
    known = game.reference(0.7)
    assert known["reward"].value < game.reference()["reward"].value
    near(rewards.mean((0, 2)), known["reward"].value)
    for name, values in seen.items():
        near(values.mean(0), known[name].value)


@pytest.mark.parametrize("game", SMALL, ids=["systemic_risk", "flocking"])
def test_an_agents_discounted_sum_is_its_value_and_a_deviators_is_better_by_the_exploitability(game):
    nash, weight = game.nash(), game.discount ** torch.arange(game.horizon).double()
    off = Rule(nash.own * 0.5, nash.crowd * 0.5)
    kept, _ = play(game, off, 20_000, game.horizon)
    near((weight.view(-1, 1, 1) * kept).sum(0)[:, 0], game.value(off))
    # Agent 0 alone leaves, by the gains of `best`.
    _, gains = riccati.best(game.problem(), off, game.num_agents)
    ids, key = agent_ids(20_000, game.num_agents), Key.of(0)
    state, left = game.reset(ids, key), []
    for t in range(game.horizon):
        action = game.policy(off, state)
        z = torch.cat([state.x[:, 0], mean_of(state.x)], -1)
        action[:, 0] = (-z @ torch.from_numpy(gains[t]).mT).float()
        state, reward = game.step(state, action, ids, key.fold("step", t))
        left.append(reward[:, 0].double())
    gain = (weight.unsqueeze(-1) * (torch.stack(left) - kept[:, :, 0])).sum(0)
    near(gain, game.exploitability(off))
    assert game.exploitability(off) > 1e-3
    assert game.exploitability(nash) == pytest.approx(0, abs=1e-10)


def test_without_a_horizon_the_stationary_crowd_is_its_reference():
    game = Flocking(num_agents=3, horizon=None, wind=0.0, gusts=0.5, interval=0.5)
    rewards, seen = play(game, game.nash(), 4_000, 60)
    known = game.reference()
    near(rewards[40:].mean((0, 2)), known["reward"].value)
    for name, values in seen.items():
        near(values[40:].mean(0), known[name].value)


def test_the_planner_slows_a_flock_less_than_its_equilibrium_does():
    game = Flocking(cohesion=0.0, horizon=None)
    decay = [1 - (rule.own + rule.crowd)[0, 0, 2] for rule in (game.nash(limit=True), game.planner())]
    assert decay == pytest.approx([0.517138, 0.628921], abs=6e-7)
    assert Flocking().optimum()["reward"].value > Flocking().reference()["reward"].value
    assert Flocking().exploitability(Flocking().planner(), limit=True) > 1e-3
    # Where nobody minds the others there is nothing to plan.
    same = Flocking(alignment=0.0, cohesion=0.0)
    assert same.optimum()["reward"].value == pytest.approx(same.reference()["reward"].value, rel=1e-9)


@pytest.mark.parametrize(
    ("agents", "eta", "gain"),
    [(2, 0.683040, 0.441520), (10, 0.618514, 0.656663), (100, 0.616174, 0.710013), (math.inf, 0.616151, 0.716151)],
)
def test_banks_borrow_by_the_papers_gains(agents, eta, gain):
    game = SystemicRisk()
    assert game.eta(0, agents) == pytest.approx(eta, abs=6e-7)
    assert game.gain(0, agents) == pytest.approx(gain, abs=6e-7)
    assert game.eta(1.0, agents) == pytest.approx(1.0, abs=1e-12)
    # The stepped game comes to it as its steps get smaller: Richardson's extrapolation of two.
    coarse, fine = (riccati.nash(replace(game, horizon=steps).problem(), agents).own[0].item() for steps in (200, 400))
    assert abs(fine - gain) < 0.51 * abs(coarse - gain)
    assert 2 * fine - coarse == pytest.approx(gain, abs=2e-6)


@pytest.mark.parametrize(("variance", "cost", "last"), [(0.0, 0.37501, 0.42182), (1.0, 0.68308, 0.57137)])
def test_lending_costs_and_leaves_the_known_variance(variance, cost, last):
    found = []
    for steps in (400, 800):
        game = SystemicRisk(horizon=steps, variance=variance)
        rule = game.nash(limit=True)
        path = riccati.moments(game.problem(), rule, 10**12, steps)
        found.append(np.array([-game.value(rule, limit=True), path.deviation[-1].item()]))
    assert 2 * found[1] - found[0] == pytest.approx([cost, last], abs=1.1e-5)


@statistical(alpha=beyond(5, 200), bugs=("uniforms-lean", "wide-normals"))
def test_the_mean_of_all_banks_is_a_martingale_that_fails_by_reflection():
    game = SystemicRisk(num_agents=4, horizon=400, shared=0.3)
    assert game.reference()["mean_square"].value == pytest.approx((0.09 + 0.91 / 4) * 401 / 800, rel=1e-9)
    ids, key, nash = agent_ids(4_000, 4), Key.of(3), game.nash()
    state = game.reset(ids, key)
    low = torch.zeros(4_000, dtype=torch.float64)
    for t in range(400):
        state, _ = game.step(state, game.policy(nash, state), ids, key.fold(t))
        low = torch.minimum(low, mean_of(state.x)[:, 0])
    # Broadie, Glasserman and Kou 1997: seen at steps, a level lies .5826 sigma sqrt(dt) further.
    shift = 0.5826 * math.sqrt((0.09 + 0.91 / 4) / 400)
    near((low <= -0.5).double(), game.failure(-0.5 - shift))


@pytest.mark.parametrize(
    "game", [*SMALL, Flocking(num_agents=4, horizon=None)], ids=["banks", "flock", "endless flock"]
)
def test_a_learner_is_exposed_as_the_planner_or_the_equilibrium_by_the_rule_fitted_to_it(game):
    # Agents who tremble around the planner's rule: the fit is the rule, and its exploitability the planner's.
    planner, ids, key = game.planner(), agent_ids(2_000, game.num_agents), Key.of(5)
    state, states, actions = game.reset(ids, key), [], []
    for t in range(game.horizon or 5):
        noise = random.normal(key.fold("shake", t), ids, game.problem().control.shape[1])
        states.append(state)
        actions.append(game.policy(planner, state) + 0.002 * noise)
        state, _ = game.step(state, actions[-1], ids, key.fold("step", t))
    rule, unexplained = game.fitted(states, actions)
    assert rule.own == pytest.approx(planner.own, abs=2e-3)
    assert rule.crowd == pytest.approx(planner.crowd, abs=5e-3)
    assert unexplained < 0.01
    assert game.exploitability(rule) == pytest.approx(game.exploitability(planner), abs=1e-3)
    # What is no rule at all is said not to be one.
    assert game.fitted(states, [a.sign() * a**2 for a in actions])[1] > 0.02
    assert (
        game.fitted(states, [random.normal(key.fold("none", t), ids, a.shape[-1]) for t, a in enumerate(actions)])[1]
        > 0.9
    )
    with pytest.raises(ConfigError, match="fitted to states of the times 0 to"):
        game.fitted(states[1:], actions)


def test_the_mean_of_a_large_crowd_does_not_depend_on_the_other_copies():
    x = torch.randn(3, 20_001, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mean_of(x)[:1], mean_of(x[:1]))
    torch.testing.assert_close(mean_of(x), x.mean(1))


def test_everyone_sees_itself_the_mean_and_the_time():
    game = SystemicRisk(num_agents=2, horizon=4)
    state = State(torch.tensor([[[1.0], [3.0]]], dtype=torch.float64), torch.tensor([3]))
    assert game.observe(state).tolist() == [[[1.0, 2.0, 0.75], [3.0, 2.0, 0.75]]]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SystemicRisk(horizon=None), "ends with its time"),
        (lambda: SystemicRisk(incentive=1.0, penalty=0.5), "at least incentive"),
        (lambda: SystemicRisk(shared=1.5), "shared must lie"),
        (lambda: SystemicRisk().failure(0.1), "below 0"),
        (lambda: Flocking(horizon=0), "horizon must be at least 1"),
        (lambda: Flocking(horizon=None, discount=1.0), "below 1"),
        (lambda: Flocking(effort=0.0), "effort must be positive"),
        (lambda: Flocking(interval=0.0), "interval must be positive"),
        (lambda: Flocking(reach=0.0), "reach must be positive"),
    ],
)
def test_options_that_cannot_be_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
