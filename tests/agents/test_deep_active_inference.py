"""Deep active inference in games that can be solved by hand, and what it does to find out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from mfmarl.agents.deep_active_inference import DeepActiveInference, DeepActiveInferenceConfig
from mfmarl.envs.mountain_car import MountainCar
from mfmarl.errors import ConfigError
from mfmarl.inference.deep.cross_entropy import Search
from mfmarl.inference.deep.imagination import worth
from mfmarl.learning import checkpoint
from mfmarl.learning.players import make_players
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.training import Training
from mfmarl.population.open import open_env
from mfmarl.random import Key
from mfmarl.statmech import gibbs
from tests.learning.mini import Aim, Arms, Corridor, train

NAME = "deep_active_inference"
SMALL: dict[str, Any] = {
    "hidden": (16,), "members": 3, "candidates": 16, "elites": 4, "iterations": 2, "horizon": 3, "warm_up": 32,
    "batch_size": 32, "updates": 4, "field": "nothing",
}  # fmt: skip


CELLS = torch.arange(3).unsqueeze(0)


def ran(rules: Any, options: dict[str, Any], steps: int, **run: Any) -> Training:
    settings = {"steps": steps, "report_every": steps, **run}
    training = train(rules, NAME, {**SMALL, **options}, evaluate=False, **settings)
    list(training.rows())
    return training


def agent_of(training: Training) -> DeepActiveInference:
    agent = training.players[0].agent
    assert isinstance(agent, DeepActiveInference)
    return agent


def seen(training: Training) -> tuple[Tensor, Tensor]:
    agent = agent_of(training)
    return agent.by_mind(training.episode.timestep.obs), agent.by_mind(training.episode.felt[0])


def test_a_stage_game_ends_at_the_gibbs_distribution_of_its_pay() -> None:
    """Without information and beyond the step nothing, p = exp(r/T)/Z: with pay 0, 1, .4 and T = .5, to .05."""
    pay, temperature = (0.0, 1.0, 0.4), 0.5
    options = {"gamma": 0.0, "information": 0.0, "temperature": str(temperature), "learning_rate": 3e-3}
    training = ran(Arms(8, pay), options, 120)
    agent = agent_of(training)
    assert agent.horizon == 1
    p = gibbs.probabilities(agent.energy(*seen(training)).detach(), temperature).mean((0, 1))
    exact = torch.softmax(torch.tensor(pay) / temperature, 0)
    assert float((p - exact).abs().max()) < 0.05


def test_planning_at_every_step_is_the_same_law_without_a_habit() -> None:
    """acts = plan: the energy is a function of what is seen, equal for equal observations, and -v of the arms."""
    pay = (0.0, 1.0, 0.4)
    options = {"gamma": 0.0, "information": 0.0, "acts": "plan", "learning_rate": 3e-3, "temperature": "0.5"}
    training = ran(Arms(8, pay), options, 80)
    agent = agent_of(training)
    assert not hasattr(agent, "habit")
    energy = agent.energy(*seen(training))
    assert torch.equal(energy, agent.energy(*seen(training)))
    assert torch.equal(energy, energy[:, :1].expand_as(energy))
    torch.testing.assert_close(-energy[0, 0], torch.tensor(pay), atol=0.05, rtol=0)


@pytest.mark.parametrize("acts", ["habit", "plan"])
def test_it_goes_where_pay_is_three_steps_away(acts: str) -> None:
    """Three cells; waiting costs .3, leaving the last pays 1: a plan of three steps sees it, and the end after it."""
    options = {"acts": acts, "temperature": "0.05", "information": 0.0, "learning_rate": 1e-2}
    training = ran(Corridor(16, wait=-0.3, horizon=12), options, 80 if acts == "habit" else 60)
    agent = agent_of(training)
    p = gibbs.probabilities(agent.energy(CELLS, torch.zeros(1, 3, 0)).detach(), agent.temperature)
    assert float(p[0, :, 1].min()) > 0.85


def test_one_step_plans_do_not_see_what_is_three_steps_away() -> None:
    """The control of the test above: at horizon 1 the first cells have nothing to go on for."""
    options = {"temperature": "0.5", "information": 0.0, "learning_rate": 1e-2, "horizon": 1, "acts": "plan"}
    agent = agent_of(ran(Corridor(16, wait=0.0, horizon=12), {**options, "hidden": (32,)}, 120))
    p = gibbs.probabilities(agent.energy(CELLS, torch.zeros(1, 3, 0)).detach(), agent.temperature)
    # exp(1/T)/(1 + exp(1/T)) = .881 where it pays.
    assert abs(float(p[0, 2, 1]) - 0.881) < 0.08
    assert abs(float(p[0, 0, 1]) - 0.5) < 0.12


@pytest.mark.parametrize("acts", ["plan", "habit"])
def test_in_a_box_it_finds_the_action_that_pays(acts: str) -> None:
    """r = -(a - target)^2 with the target seen, -3 to 3: uniform play gets -4, and the optimum is 0."""
    options = {"acts": acts, "information": 0.1, "learning_rate": 1e-2, "horizon": 1, "candidates": 32, "warm_up": 400}
    training = ran(Aim(4), options, 150)
    rewards = []
    for _ in range(10):
        _, _, after, now = training.episode.play()
        rewards.append(float(after.reward.mean()))
        training.episode.go_on(after, now)
    assert sum(rewards) / 10 > (-0.2 if acts == "plan" else -0.7)


def test_a_preferred_state_takes_the_place_of_reward() -> None:
    """Told to be at -.36, where the engine just holds against the slope, cars hold there, which nobody pays them for."""
    goal = {"goal": (-0.36, 0.0), "width": (0.05, 0.0), "information": 0.0, "horizon": 8, "candidates": 32}
    training = ran(MountainCar(4, repeat=3, horizon=60), {**goal, "learning_rate": 1e-2}, 80, copies=1)
    where = []
    for _ in range(40):
        _, _, after, now = training.episode.play()
        where.append(after.obs[..., 0].mean())
        training.episode.go_on(after, now)
    assert float(torch.stack(where[10:]).mean()) > -0.43, "the bottom is at -.524"


def test_information_is_worth_going_for() -> None:
    """Preferring to stay at the bottom, it does; the more information weighs, the more is learned along its plan."""
    training = ran(MountainCar(6, repeat=3, horizon=40), {"horizon": 6}, 40, copies=1)
    agent = agent_of(training)
    agent.search = Search(200, 20, 5)
    state, ids, key = agent.state(*seen(training)), training.episode.env.ids, Key.of(3)
    told = []
    for weight in (0.0, 10.0):
        agent.config = replace(agent.config, information=weight, goal=(-0.52, 0.0), width=(0.05, 0.01))
        unit = ((agent.plan(state, ids, key).mean - agent.middle) / agent.reach).unsqueeze(2)
        both, met = (
            worth(agent.ensemble, state, unit, replace(agent.aim, information=w), ids, key) for w in (1.0, 0.0)
        )
        told.append(float((both - met).mean()))
    assert 0 < 1.3 * told[0] < told[1]


def test_crowds_act_by_habit_and_a_few_in_a_box_by_planning() -> None:
    def by_habit(rules: Any, **options: Any) -> bool:
        return agent_of(train(rules, NAME, {**SMALL, **options}, evaluate=False, steps=1)).by_habit

    assert not by_habit(Aim(4)) and by_habit(Aim(40)) and by_habit(Arms(4))
    assert by_habit(Aim(4), acts="habit") and not by_habit(Arms(40), acts="plan")


def test_until_it_has_learned_it_acts_at_random() -> None:
    training = train(Aim(16, dims=2), NAME, SMALL | {"warm_up": 10_000}, evaluate=False, steps=40, copies=40)
    actions = torch.stack([training.episode.act().flatten(0, 1)])[0]
    assert float(actions.min()) >= -3 and float(actions.max()) <= 3
    # Uniform on [-3, 3]: mean 0, deviation sqrt(3), of 1,280 draws.
    assert abs(float(actions.mean())) < 5 * 3**0.5 / 1280**0.5
    assert abs(float(actions.var()) - 3) < 5 * 3 * 0.9 / 1280**0.5 * 3


@pytest.mark.parametrize("options", [{"acts": "habit"}, {"acts": "plan", "how": "neighbours", "members": 5}])
def test_it_resumes_bitwise_in_a_box_by_habit_and_by_neighbours(options: dict[str, Any], tmp_path: Path) -> None:
    given = {**SMALL, "warm_up": 8, "capacity": 40, "batch_size": 8, "updates": 1, **options}

    def begin() -> Training:
        return train(Aim(5, dims=2, horizon=7), NAME, given, evaluate=False, steps=20, report_every=5)

    one = begin()
    rows = [row["train/reward"] for row in one.rows()]
    first, again = begin(), begin()
    step = first.step

    def counted() -> None:
        step()
        first.stopping = first.tick >= 13

    first.step = counted  # type: ignore[method-assign]
    seen = [row["train/reward"] for row in first.rows()]
    tensors, plain = first.state_dict()
    checkpoint.save(tmp_path, 13, tensors, plain, config_digest="0" * 64, nonfinite=("train.env.timestep.action",))
    found = checkpoint.load(tmp_path)
    again.load_state_dict(found.tensors, found.state)
    assert seen + [row["train/reward"] for row in again.rows()] == rows
    a, b = one.state_dict()[0], again.state_dict()[0]
    assert set(a) == set(b)
    assert all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)


def test_a_crowd_is_imagined_with_its_field() -> None:
    """A felt field is part of the state: the ensemble predicts what the others will do."""
    training = ran(Arms(8, (0.0, 1.0), crowd=1.0), {"field": "actions over everyone", "horizon": 2}, 20)
    agent = agent_of(training)
    assert agent.ensemble.columns == 1 + 2
    state = agent.state(*seen(training))
    assert torch.equal(state[..., 1:], seen(training)[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"elites": 65}, "as many plans to choose from"),
        ({"goal": (1.0,)}, "goal has 1 numbers and width 0"),
        ({"goal": (1.0,), "width": (-1.0,)}, "widths of at least 0"),
        ({"how": "neighbours", "members": 3}, "needs more than 3 members"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        DeepActiveInferenceConfig(**options)
    assert "\n" not in str(caught.value)


def test_a_goal_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="goal has 1 numbers, and the state 2 columns"):
        train(MountainCar(), NAME, {"goal": (1.0,), "width": (1.0,), "field": "nothing"}, steps=1)


@pytest.mark.verify
def test_it_learns_gymnasiums_cart_pole() -> None:
    """Random play lasts 22 steps: 8 copies of it fall 73 times in 200 steps, +- 9. Who imagines the end avoids it."""
    env = open_env("gymnasium/CartPole-v1", copies=8)
    run = RunOptions(steps=400, report_every=400, copies=8, evaluation_copies=0)
    options = {"acts": "plan", "information": 0.0, "temperature": "0.05", "horizon": 12, "updates": 4}
    options |= {"learning_rate": 2e-3}
    players = make_players(RunConfig(Choice("x"), {"all": Choice(NAME, options)}, run), env.spec, Key.of(0), env.device)
    training = Training(env, players, run)
    falls = 0
    play = training.episode.play

    def watched(action: Any = None) -> Any:
        nonlocal falls
        found = play(action)
        if training.tick > 200:
            falls += int(found[2].ended.sum())
        return found

    training.episode.play = watched  # type: ignore[method-assign]
    list(training.rows())
    assert falls < 73 - 5 * 73**0.5


@pytest.mark.verify
def test_information_explores_mountain_car() -> None:
    """Ten cars with a mind each, 700 actions of three steps: more of phase space is seen than by uniform play.

    By Welch's test of the difference of means, one-sided at 1 %.
    """
    seen = {}
    for name, options in ((NAME, {"horizon": 15}), ("random", {})):
        training = train(MountainCar(10, repeat=3, horizon=167), name, options, evaluate=False, steps=700, report_every=700,
                         sharing="none", copies=1)  # fmt: skip
        visited = torch.zeros(10, 400, dtype=torch.bool)
        rules = MountainCar()
        for _ in range(700):
            training.step()
            obs = training.episode.timestep.obs[0]
            visited[torch.arange(10), rules.cell(obs[:, 0], obs[:, 1])] = True
        seen[name] = visited.double().mean(-1)
    found = stats.ttest_ind(seen[NAME], seen["random"], equal_var=False, alternative="greater")
    assert found.pvalue < 0.01
