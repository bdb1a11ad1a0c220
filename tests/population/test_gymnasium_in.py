"""Gymnasium environments as populations of one agent, against Gymnasium itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from mfmarl.errors import ConfigError, EnvironmentFault
from mfmarl.population import third_party
from mfmarl.population.adapter import Adapter
from mfmarl.population.open import open_env
from mfmarl.random import Key


class Lock(gymnasium.Env[Any, Any]):
    """Three wheels of 2, 3 and 4 positions; sees what was dialled, as a tuple and a number."""

    observation_space = spaces.Dict({"wheels": spaces.MultiDiscrete([2, 3, 4]), "tries": spaces.Box(0, 99, (1,))})
    action_space = spaces.MultiDiscrete([2, 3, 4], start=[0, 1, 0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.wheels, self.tries = np.zeros(3, np.int64), 0
        return self._seen(), {}

    def _seen(self) -> Any:
        return {"wheels": self.wheels, "tries": np.array([self.tries], np.float32)}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.wheels, self.tries = action - np.array([0, 1, 0]), self.tries + 1
        opened = self.wheels.tolist() == [1, 2, 3]
        return self._seen(), float(opened), opened, False, {}


class Switches(Lock):
    observation_space = spaces.Box(0, 1, (2, 2))  # type: ignore[assignment]
    action_space = spaces.MultiBinary((2, 2))  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros((2, 2), np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return action.astype(np.float32), 0.0, False, False, {}


class Endless(Lock):
    observation_space = spaces.Sequence(spaces.Discrete(2))  # type: ignore[assignment]


class Board(Lock):
    action_space = spaces.MultiDiscrete([19] * 8)


class Pair(Lock):
    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))  # type: ignore[assignment]


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCarContinuous-v0", "FrozenLake-v1", "Blackjack-v1"])
def test_it_is_played_as_gymnasium_plays_it(name: str) -> None:
    """The same seeds and actions give the same observations, rewards and ends, in each of three copies, with restarts."""
    env = open_env(f"gymnasium/{name}", copies=3)
    assert isinstance(env, Adapter)
    assert env.spec.num_agents == 1
    theirs = [gymnasium.make(name) for _ in range(3)]
    timestep = env.reset(Key.of(3))
    for copy, seed in enumerate(env._seeds()):
        theirs[copy].reset(seed=seed)
    noise, ends = np.random.default_rng(0), 0
    for _ in range(60):
        if env.spec.discrete:
            action = noise.integers(0, env.spec.num_actions, (3, 1))
        else:
            action = noise.uniform(-1, 1, (3, 1, env.spec.num_actions)).astype(np.float32)
        timestep = env.step(torch.from_numpy(action))
        for copy, other in enumerate(theirs):
            seen, reward, over, cut, _ = other.step(action[copy, 0] if not env.spec.discrete else int(action[copy, 0]))
            flat = spaces.flatten(other.observation_space, seen) if name.startswith("Blackjack") else np.asarray(seen)
            np.testing.assert_array_equal(timestep.obs[copy, 0].numpy(), flat.astype(timestep.obs.numpy().dtype))
            assert float(timestep.reward[copy, 0]) == np.float32(reward)
            assert bool(timestep.terminated[copy, 0]) == over
            assert bool(timestep.truncated[copy, 0]) == (cut and not over)
        ended = timestep.ended.numpy()
        timestep = env.restart(timestep)
        for copy in np.flatnonzero(ended).tolist():
            ends += 1
            theirs[copy].reset(seed=env._seeds()[copy])
    assert ends > 0 or name.startswith("Mountain")


def test_a_time_limit_is_a_truncation() -> None:
    env = open_env("gymnasium/MountainCarContinuous-v0", {"max_episode_steps": 5}, copies=2)
    timestep = env.reset(Key.of(0))
    for t in range(5):
        assert not bool(timestep.ended.any()), t
        timestep = env.step(torch.zeros(2, 1, 1))
    assert timestep.truncated.all() and not timestep.terminated.any() and timestep.ended.all()
    again = open_env("gymnasium/CartPole-v1", copies=1, max_steps=3)
    timestep = again.reset(Key.of(0))
    for t in range(3):
        timestep = again.step(torch.tensor([[t % 2]]))
    assert bool(timestep.truncated.all())


def test_copies_in_other_processes_are_the_same() -> None:
    here, there = (open_env("gymnasium/CartPole-v1", copies=2, workers=w) for w in (0, 2))
    try:
        a, b = here.reset(Key.of(1)), there.reset(Key.of(1))
        for t in range(12):
            assert torch.equal(a.obs, b.obs)
            action = torch.tensor([[t % 2], [1]])
            a, b = here.restart(here.step(action)), there.restart(there.step(action))
    finally:
        there.close()


def test_it_resumes_where_it_was() -> None:
    first, second = (open_env("gymnasium/FrozenLake-v1", copies=2) for _ in range(2))
    first.reset(Key.of(2))
    for t in range(9):
        timestep = first.restart(first.step(torch.tensor([[t % 4], [(t + 1) % 4]])))
    second.reset(Key.of(9))
    assert torch.equal(second.load_state_dict(first.state_dict()).obs, timestep.obs)
    for t in range(20):
        action = torch.tensor([[t % 4], [2]])
        a, b = first.restart(first.step(action)), second.restart(second.step(action))
        assert torch.equal(a.obs, b.obs)


def test_pictures_are_gymnasiums() -> None:
    pytest.importorskip("pygame")
    env = open_env("gymnasium/CartPole-v1", copies=2)
    env.reset(Key.of(0))
    env.step(torch.tensor([[0], [1]]))
    picture = env.render(1)
    assert picture is not None
    assert picture.dtype == torch.uint8 and picture.shape[2] == 3
    assert int((picture != 255).sum()) > 100
    assert env.render(1) is not None


def test_several_discrete_actions_are_counted_as_one() -> None:
    """Every combination once, the last number the fastest; the observation as Gymnasium flattens it."""
    env = open_env(Lock, copies=24)
    assert env.spec.action_space == spaces.Discrete(24)
    env.reset(Key.of(0))
    timestep = env.step(torch.arange(24).view(24, 1))
    wheels = timestep.obs[:, 0, 1:].view(24, -1)
    assert env.spec.observation_shape == (1 + 2 + 3 + 4,)
    dialled = torch.stack([part.argmax(-1) for part in wheels.split((2, 3, 4), -1)], -1)
    assert dialled.tolist() == [list(np.unravel_index(i, (2, 3, 4))) for i in range(24)]
    assert timestep.reward.flatten().tolist() == [0.0] * 23 + [1.0]
    switches = open_env(Switches, copies=16)
    switches.reset(Key.of(0))
    seen = switches.step(torch.arange(16).view(16, 1)).obs
    assert len({str(x) for x in seen.int().tolist()}) == 16


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gymnasium/CartPol-v1", {}, r"Did you mean 'gymnasium/CartPole-v1'\?"),
        ("gymnasium/CartPole-v1", {"sutton": True}, r"has no option 'sutton'.*sutton_barto_reward"),
        ("gymnasium/CartPole-v1", {"max_episode_steps": "soon"}, "must be a whole number"),
        ("gymnasium/FrozenLake-v1", {"map_name": "9x9"}, r"refuses its options \(map_name='9x9'\)"),
        (Endless, {}, "has no fixed size"),
        (Board, {}, "more than 4096"),
        (Pair, {}, "the action space of agent agent_0 is Tuple"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_sentence(name: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, EnvironmentFault), match=words) as caught:
        open_env(name, options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("LunarLander-v3", "Box2D", "box2d"),
        ("Ant-v5", "mujoco", "mujoco"),
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("phys2d/CartPole-v1", "jax", "jax"),
    ],
)
def test_a_missing_extra_is_named(name: str, package: str, extra: str) -> None:
    if third_party.importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=rf"needs the package '{package}'.*pip install 'gymnasium\[{extra}\]'"):
        open_env(f"gymnasium/{name}")
    assert f"gymnasium/{name}" not in third_party.names()


def test_what_is_listed_can_be_opened() -> None:
    """In a process of its own, so that nothing imported before helps."""
    listed = [name for name in third_party.names() if name.startswith("gymnasium/")]
    assert {"gymnasium/CartPole-v1", "gymnasium/MountainCar-v0", "gymnasium/Pendulum-v1"} <= set(listed)
    program = (
        "import sys; from mfmarl.population.open import open_env\n"
        "for name in sys.argv[1:]: print(name, open_env(name).spec.num_agents)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, *listed], capture_output=True, text=True, cwd=root, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} 1" for name in listed]


def test_a_class_of_ones_own_is_taken_as_it_is() -> None:
    env = open_env(Lock, copies=2)
    assert env.spec.names == ("agent_0",)
    ready = open_env(Lock())
    assert ready.reset(Key.of(0)).obs.shape == (1, 1, 10)
    with pytest.raises(ConfigError, match="one instance can be one copy"):
        open_env(Lock(), copies=2)


def test_a_run_goes_on_without_what_draws_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Any) -> Any:
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed")

    env = open_env("gymnasium/CartPole-v1", copies=1)
    env.reset(Key.of(0))
    assert env.render(0) is not None
    monkeypatch.setattr(type(gymnasium.make("CartPole-v1").unwrapped), "render", missing)
    bare = open_env("gymnasium/CartPole-v1", copies=1)
    bare.reset(Key.of(0))
    assert bare.render(0) is None
