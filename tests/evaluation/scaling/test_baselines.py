"""The plain loop is a fair peer: it learns, by the same mathematics, from episodes that end and agents that leave."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from pettingzoo import ParallelEnv

from mfmarl.errors import ConfigError
from mfmarl.evaluation.scaling import baselines
from mfmarl.evaluation.scaling.measure import TooSlow, prepare, timed
from mfmarl.evaluation.scaling.points import Plan, Point
from mfmarl.learning.memory import advantages
from mfmarl.learning.run_config import Choice

PLAN = Plan(Choice("ising"), {"mfq": {"all": Choice("mfq")}}, (16,), baselines=("loop",))


@pytest.fixture(autouse=True)
def _draws_of_its_own() -> Any:
    state = torch.get_rng_state()
    torch.set_rng_state(torch.Generator().manual_seed(3).get_state())
    yield
    torch.set_rng_state(state)


class Bandits(ParallelEnv[str, Any, Any]):
    """Agent i is paid for choosing i modulo 3. Every episode has three steps; `b` dies after the first."""

    def __init__(self, mask: bool = False) -> None:
        self.possible_agents = ["a", "b", "c"]
        self.agents: list[str] = []
        self.mask, self.chosen, self.episodes = mask, list[dict[str, int]](), 0

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return gymnasium.spaces.Discrete(3)

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return gymnasium.spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.step_in, self.episodes = list(self.possible_agents), 0, self.episodes + 1
        return dict.fromkeys(self.agents, 0), self.infos()

    def infos(self) -> dict[str, Any]:
        return {k: {"action_mask": np.array([1, 0, 1], np.int8)} if self.mask else {} for k in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        assert list(actions) == self.agents
        self.chosen.append(actions)
        self.step_in += 1
        last = self.step_in == 3
        gone = {k: k == "b" for k in self.agents}
        reward = {k: float(actions[k] == "abc".index(k)) for k in self.agents}
        seen, infos = dict.fromkeys(self.agents, self.step_in % 3), self.infos()
        result = seen, reward, gone, dict.fromkeys(self.agents, last), infos
        self.agents = [] if last else [k for k in self.agents if k != "b"]
        return result


@pytest.mark.parametrize(("learner", "steps"), [("ppo", 640), ("dqn", 500)])
def test_every_agent_learns_what_pays_it(learner: str, steps: int) -> None:
    env = Bandits()
    loop = baselines.Loop([env], learner)
    loop.advance(steps)
    late = env.chosen[-120:]
    for name, pays in (("a", 0), ("c", 2)):
        share = np.mean([actions[name] == pays for actions in late])
        assert share > 0.8, (name, share)
    assert np.mean([actions["b"] == 1 for actions in late if "b" in actions]) > 0.7
    assert env.episodes == 1 + steps // 3


@pytest.mark.parametrize("learner", ["ppo", "dqn"])
def test_illegal_actions_are_never_chosen(learner: str) -> None:
    env = Bandits(mask=True)
    baselines.Loop([env], learner).advance(64)
    assert {a for actions in env.chosen for a in actions.values()} == {0, 2}


def test_copies_are_stories_of_their_own() -> None:
    envs = [Bandits(), Bandits()]
    loop = baselines.Loop(envs, "ppo")
    loop.advance(15)
    assert [len(env.chosen) for env in envs] == [15, 15]
    learner: Any = loop.learners["a"]
    assert [len(path) for path in learner.paths] == [15, 15]
    loop.advance(1)
    assert [len(path) for path in learner.paths] == [0, 0]


def test_its_advantages_are_the_known_ones() -> None:
    space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    learner = baselines.PPO(space, gymnasium.spaces.Discrete(2), 1, 0)
    draw = np.random.default_rng(5)
    ends = {3: "terminated", 6: "truncated"}
    for t in range(9):
        learner.act(draw.normal(size=2).astype(np.float32), None, 0)
        over = t in ends
        learner.remember(
            float(draw.normal()), draw.normal(size=2).astype(np.float32), ends.get(t) == "terminated", over, 0
        )
    path = learner.paths[0]
    # What follows a step is what is seen next, but the next step begins anew where an episode has ended.
    for t in range(8):
        if t not in ends:
            path[t + 1]["obs"] = torch.from_numpy(path[t]["next_obs"])
            path[t + 1]["value"] = learner.critic(path[t + 1]["obs"]).detach()
    value = torch.stack([s["value"][0] for s in path])
    ended = torch.tensor([s["over"] for s in path])
    after = torch.stack([learner.critic(torch.from_numpy(s["next_obs"]))[0].detach() for s in path])
    bootstrap = torch.where(torch.tensor([s["terminated"] for s in path]), torch.zeros(9), after)
    reward = torch.tensor([s["reward"] for s in path])
    expected, _ = advantages(
        reward, value, after[-1], torch.ones(9, dtype=torch.bool), ended, bootstrap, baselines.GAMMA, baselines.LAMBDA
    )
    assert learner.advantages(path) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_box_of_actions_is_kept_to() -> None:
    space = gymnasium.spaces.Box(-0.1, 0.1, (3,), np.float32)
    learner = baselines.PPO(space, space, 1, 0)
    actions = []
    for _ in range(20):
        actions.append(learner.act(np.zeros(3, np.float32), None, 0))
        learner.remember(1.0, np.zeros(3, np.float32), False, False, 0)
    learner.learn()
    assert all(space.contains(a.astype(np.float32)) for a in actions)
    assert learner.num_weights == 2 * (3 * 64 + 64 + 64 * 64 + 64) + 3 * 64 + 3 + 64 + 1 + 3
    with pytest.raises(ConfigError, match="discrete"):
        baselines.DQN(space, space, 1, 0)


@pytest.mark.parametrize(("agent", "unit"), [("ppo", 16), ("dqn", 1)])
def test_the_loop_is_measured_at_the_points_size(agent: str, unit: int) -> None:
    point = Point(agent, "loop", 9, copies=2)
    prepare(point, PLAN)
    runner = baselines.loop(point, PLAN)
    runner.warm()
    before = runner.played()
    assert before % unit == 0
    steps, wall, cpu = timed(runner, 2, 1.0)
    assert runner.played() == before + steps
    assert steps == max(2, unit)
    assert runner.num_agents == 9
    assert cpu > 0
    assert math.isfinite(wall)
    runner.close()


def test_a_loop_too_long_is_given_up_in_the_middle() -> None:
    with pytest.raises(TooSlow, match="making 16 learners"):
        baselines.loop(Point("ppo", "loop", 16), PLAN, deadline=0.0)
    loop = baselines.Loop([Bandits()], "dqn")
    loop.deadline = 0.0
    with pytest.raises(TooSlow, match="In a loop over agents"):
        loop.advance(5)
