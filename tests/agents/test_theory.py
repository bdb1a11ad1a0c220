"""Every learner against games that are solved by hand: they all mean the same by temperature."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mfmarl.agents.mfq import Table
from mfmarl.envs.congestion import Congestion
from mfmarl.evaluation.averages import averages_while_learning
from mfmarl.statmech import gibbs
from tests.learning.mini import Aim, Arms, Corridor, finish, train

STAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "table": ("mfq", {"values": "table", "learning_rate": 0.1, "bins": 2}),
    "mfq": ("mfq", {"hidden": (16,)}),
    "mfac": ("mfac", {"hidden": (16,)}),
    "mfppo": ("mfppo", {"hidden": (16,)}),
}


# What the kinds of values share is tried on two of them with every change, and on all by `make verify`.
SOME = ["table", "mfppo", *(pytest.param(name, marks=pytest.mark.verify) for name in ("mfq", "mfac"))]


def policy(training: Any, cell: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over what is met of the probabilities of acting, [A]; or those in a cell."""
    agent, episode = training.players[0].agent, training.episode
    with torch.no_grad():
        energy = agent.energy(agent.by_mind(episode.timestep.obs), agent.by_mind(episode.felt[0]))
        return gibbs.probabilities(energy, agent.temperature).mean((0, 1))


@pytest.mark.parametrize("learner", STAGE)
@pytest.mark.parametrize("field", ["nothing", "auto"])
def test_a_crowd_arrives_at_the_logit_equilibrium(learner: str, field: str) -> None:
    """p = softmax(r(p)/T): pay (0, 1), minus the share of all on the arm; unique, by bisection."""
    agents, temperature = 50, 0.5
    low, high = 0.5, 1.0
    for _ in range(60):
        p = (low + high) / 2
        gain = 1.0 - (2 * p - 1) * (agents - 1) / agents
        low, high = (p, high) if 1 / (1 + math.exp(-gain / temperature)) > p else (low, p)
    name, options = STAGE[learner]
    options = {**options, "field": field, "gamma": 0.0, "temperature": str(temperature)}
    training = train(Arms(agents, crowd=-1.0), name, options, evaluate=False, steps=1000, copies=4)
    finish(training)
    assert policy(training)[1].item() == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("learner", SOME)
def test_the_temperature_is_in_units_of_reward(learner: str) -> None:
    """Ten times the pay at ten times the temperature is the same policy; at the same temperature it is not."""
    name, options = STAGE[learner]
    expected = 1 / (1 + math.exp(-1.0))
    for pay in (0.1, 10.0):
        given = {**options, "gamma": 0.0, "field": "nothing", "temperature": str(pay)}
        training = train(Arms(50, pay=(0.0, pay)), name, given, evaluate=False, steps=800, copies=4)
        finish(training)
        assert policy(training)[1].item() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("learner", ["mfq", "mfac", "mfppo"])
def test_steps_shrink_as_a_crowd_cools_and_before_it_stops(learner: str) -> None:
    """By the square root of T / T_0, and linearly to nothing over the last quarter; they never grow, nor end at 0."""
    options = {"hidden": (4,), "temperature": "geometric(1, 0.01)"}
    training = train(Arms(4), learner, options, evaluate=False, steps=150)
    agent: Any = training.players[0].agent
    for progress, share in ((0.0, 1.0), (0.5, 0.1**0.5), (0.875, 0.5 * 0.01**0.4375), (1.0, 1e-3)):
        agent.progress = progress
        assert agent.pace() == pytest.approx(share)
    agent.progress = 0.0
    finish(training)
    rates = [group["lr"] for o in agent.optimisers().values() for group in o.param_groups]
    assert rates
    assert all(0 < rate < 0.1 * 1e-3 for rate in rates)
    warm = train(Arms(4), learner, {**options, "anneal": False}, evaluate=False, steps=150)
    finish(warm)
    kept: Any = warm.players[0].agent
    assert all(group["lr"] == pytest.approx(1e-3) for o in kept.optimisers().values() for group in o.param_groups)
    hot: Any = train(Arms(4), learner, {**options, "temperature": "linear(0.1, 1)"}, evaluate=False).players[0].agent
    hot.progress = 0.5
    assert hot.pace() == 1.0


@pytest.mark.verify
def test_a_cold_crowd_of_networks_does_not_run_to_and_fro() -> None:
    """Drivers of one mind cooled to T = 0.02: with shrinking steps they stay at the equilibrium, without they leave it."""
    cost = {}
    for anneal in (True, False):
        options = {"temperature": "geometric(1, 0.02)", "anneal": anneal}
        training = train(Congestion(100, horizon=None), "mfq", options, evaluate=False, steps=2000, copies=4)
        cost[anneal] = averages_while_learning(training, 1900)["cost"]
    known = Congestion(100).reference(0.02)["cost"].value
    slack = 5 * cost[True].error + 0.01  # the schedule is still on its way
    assert abs(cost[True].value - known) < slack
    assert cost[False].value > known + slack


def corridor_values(rules: Corridor, gamma: float, temperature: float) -> torch.Tensor:
    """Q [3, 2] with v = <Q> at the Gibbs distribution of Q: not the largest, not the free energy."""
    q = torch.zeros(3, 2, dtype=torch.float64)
    for _ in range(2000):
        v = (torch.softmax(q / temperature, -1) * q).sum(-1)
        q[:, 0] = rules.wait + gamma * v
        q[:, 1] = torch.tensor([gamma * v[1], gamma * v[2], rules.prize])
    return q


def corridor_policy(training: Any) -> torch.Tensor:
    agent = training.players[0].agent
    cells = torch.arange(3).unsqueeze(0)
    with torch.no_grad():
        return gibbs.probabilities(agent.energy(cells, torch.zeros(1, 3, agent.field_size)), agent.temperature)[0]


def test_a_table_arrives_at_the_mean_field_values_of_a_chain() -> None:
    """The last step, after which nothing follows, is learned from: else no value would ever leave 0."""
    rules, temperature = Corridor(), 0.3
    options = {
        "values": "table",
        "learning_rate": 0.3,
        "gamma": 0.9,
        "temperature": str(temperature),
        "field": "nothing",
    }
    training = train(rules, "mfq", options, evaluate=False, steps=600)
    finish(training)
    agent: Any = training.players[0].agent
    torch.testing.assert_close(
        agent.values.value[0].double(), corridor_values(rules, 0.9, temperature), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("learner", ["mfq", pytest.param("mfac", marks=pytest.mark.verify), "mfppo"])
def test_learners_arrive_at_the_policy_of_a_chain(learner: str) -> None:
    rules, temperature = Corridor(), 0.3
    expected = torch.softmax(corridor_values(rules, 0.9, temperature) / temperature, -1)
    name, options = STAGE[learner]
    options = {**options, "gamma": 0.9, "temperature": str(temperature), "field": "nothing"}
    training = train(rules, name, options, evaluate=False, steps=2000)
    finish(training)
    torch.testing.assert_close(corridor_policy(training).double(), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("learner", SOME)
def test_a_target_entropy_is_found(learner: str) -> None:
    name, options = STAGE[learner]
    options = {**options, "gamma": 0.0, "field": "nothing", "temperature": "entropy(0.4)"}
    training = train(Arms(50), name, options, evaluate=False, steps=1500, copies=4)
    finish(training)
    p = policy(training)
    assert -(p * p.log()).sum().item() == pytest.approx(0.4, abs=0.03)
    # H = 0.4 nats is p = 0.1376 for the worse arm, whose pay is 1 less: T = 1 / log(p/(1 - p)).
    assert float(training.players[0].agent.temperature) == pytest.approx(1 / math.log(0.8624 / 0.1376), rel=0.1)


@pytest.mark.parametrize("agent", [pytest.param("mfac", marks=pytest.mark.verify), "mfppo"])
def test_continuous_actors_arrive_at_the_gibbs_density(agent: str) -> None:
    """Of pay -(a - c)^2 at T: a normal of mean c = what is seen and variance T/2, well within the Box."""
    temperature = 0.18
    options = {"gamma": 0.0, "temperature": str(temperature)}
    training = train(Aim(32), agent, options, evaluate=False, steps=1500, copies=4)
    finish(training)
    episode = training.episode
    actions, sides = [], []
    for _ in range(40):
        before, action, after, now = episode.play()
        actions.append(action.flatten())
        sides.append(before.obs.flatten())
        episode.go_on(after, now)
    action, side = torch.cat(actions), torch.cat(sides)
    for value in (-1.0, 1.0):
        part = action[side == value]
        assert part.mean().item() == pytest.approx(value, abs=0.1)
        assert part.std().item() == pytest.approx((temperature / 2) ** 0.5, rel=0.15)


def test_a_large_table_learns_what_a_small_one_would() -> None:
    """Only visited entries are touched, each by the mean of its own mind's targets; the others stay, bit by bit."""
    spec = Corridor().spec()
    cells = torch.tensor([[0, 2, 2, 1], [1, 1, 0, 2]])
    actions = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 1]])
    targets = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 3.0, 5.0, 7.0]])
    weight = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])  # the last row of the first mind never was
    for columns in (0, 6):  # 12 entries, and 187,500
        table = Table(spec, columns, 5, 2)
        table.value.fill_(0.5)
        expected = table.value.clone()
        for entry, target in {(0, 0, 1): 1.0, (0, 2, 0): 3.0, (1, 1, 0): 2.0, (1, 0, 1): 5.0, (1, 2, 1): 7.0}.items():
            expected[entry] += 0.1 * (target - expected[entry])
        table.pull(cells, actions, targets, weight, 0.1)
        torch.testing.assert_close(table.value, expected)
        touched = expected != 0.5
        assert torch.equal(table.value[~touched], expected[~touched])
