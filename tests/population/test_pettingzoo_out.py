"""Populations as PettingZoo environments: PettingZoo's own tests, the two orders of moves, names, seeds and errors."""

from __future__ import annotations

import importlib
import inspect
import itertools
import subprocess
import sys
import types
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from pettingzoo.utils.conversions import aec_to_parallel, parallel_to_aec
from torch import Tensor

from mfmarl import random, registry
from mfmarl.errors import ConfigError, EnvironmentFault, NumericFault
from mfmarl.population.aec import PopulationAECEnv
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.parallel import PopulationParallelEnv
from mfmarl.population.pettingzoo_out import faces, pettingzoo_id, register_with_pettingzoo
from mfmarl.population.simulation import Simulation
from mfmarl.population.spec import Spec
from mfmarl.random import Key

with warnings.catch_warnings():  # its example environments are imported by a deprecated way
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import (
        api_test,
        max_cycles_test,
        parallel_api_test,
        parallel_seed_test,
        render_test,
        seed_test,
        state_test,
    )

# --------------------------------------------------------------------------------- small environments


class Spin(NamedTuple):
    spin: Tensor


@dataclass(frozen=True)
class Ring(PopulationEnv):
    """Spins on a ring: an action is a spin, and agreeing with the two neighbours is paid."""

    num_agents: int = 5
    horizon: int | None = None

    aec_order = "sequential"

    def spec(self) -> Spec:
        return Spec(self.num_agents, Box(-2, 2, (1,), np.float32), Discrete(2), horizon=self.horizon)

    def reset(self, ids: Tensor, key: Key) -> Spin:
        return Spin(random.integers(key, ids, 2))

    def standing(self, state: Spin) -> Tensor:
        return state.spin

    def around(self, spin: Tensor) -> Tensor:
        signs = 2.0 * spin - 1
        return signs.roll(1, 1) + signs.roll(-1, 1)

    def observe(self, state: Spin) -> Tensor:
        return self.around(state.spin).unsqueeze(-1)

    def step(self, state: Spin, action: Tensor, ids: Tensor, key: Key) -> tuple[Spin, Tensor]:
        return Spin(action), (2.0 * action - 1) * self.around(action)

    def render(self, state: Spin, copy: int = 0) -> Tensor:
        return (255 * state.spin[copy]).to(torch.uint8).view(1, -1, 1).expand(4, -1, 3)


@dataclass(frozen=True)
class SynchronousRing(Ring):
    """The same spins, which all turn at once in agent-by-agent order too."""

    aec_order = "simultaneous"  # type: ignore[assignment]


class Crowd(NamedTuple):
    alive: Tensor
    age: Tensor


@dataclass(frozen=True)
class Mortal(PopulationEnv):
    """Two teams. Who plays 0 is lost with probability `danger`; the last one standing ends the game."""

    size: int = 3
    danger: float = 0.5
    horizon: int | None = 12

    def spec(self) -> Spec:
        box = Box(0, 100, (2, 2), np.float32)
        sizes = (self.size, self.size)
        return Spec(2 * self.size, box, Discrete(3), self.horizon, groups=("red", "blue"), group_sizes=sizes)

    def reset(self, ids: Tensor, key: Key) -> Crowd:
        return Crowd(torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))

    def alive(self, state: Crowd) -> Tensor:
        return state.alive

    def done(self, state: Crowd) -> Tensor:
        return state.alive.sum(-1) <= 1

    def observe(self, state: Crowd) -> Tensor:
        here = torch.stack([state.alive, state.age, state.age + 1, state.alive], -1).to(torch.float32)
        return here.view(*state.age.shape, 2, 2)

    def step(self, state: Crowd, action: Tensor, ids: Tensor, key: Key) -> tuple[Crowd, Tensor]:
        lost = (action == 0) & (random.uniform(key, ids) < self.danger)
        return Crowd(state.alive & ~lost, state.age + 1), 1.0 + action.to(torch.float32)


class Count(NamedTuple):
    place: Tensor


@dataclass(frozen=True)
class Walkers(PopulationEnv):
    """On places 0..4, seen as a class number; steps off the end are illegal (and go nowhere)."""

    num_agents: int = 4
    horizon: int | None = 10

    def spec(self) -> Spec:
        return Spec(self.num_agents, Discrete(5), Discrete(3), self.horizon)

    def reset(self, ids: Tensor, key: Key) -> Count:
        return Count(random.integers(key, ids, 5))

    def legal(self, state: Count) -> Tensor:
        return torch.stack([state.place > 0, torch.ones_like(state.place, dtype=torch.bool), state.place < 4], -1)

    def observe(self, state: Count) -> Tensor:
        return state.place

    def step(self, state: Count, action: Tensor, ids: Tensor, key: Key) -> tuple[Count, Tensor]:
        place = (state.place + action - 1).clamp(0, 4)
        return Count(place), place.to(torch.float32)


class Place(NamedTuple):
    at: Tensor


@dataclass(frozen=True)
class Drift(PopulationEnv):
    """Agents in the plane move by a Box of two numbers and are paid for staying near the centre."""

    num_agents: int = 3
    horizon: int | None = 8

    def spec(self) -> Spec:
        return Spec(self.num_agents, Box(-1, 1, (2,), np.float32), Box(-1, np.array([1, 2], np.float32)), self.horizon)

    def reset(self, ids: Tensor, key: Key) -> Place:
        return Place(random.uniform(key, ids, 2) - 0.5)

    def observe(self, state: Place) -> Tensor:
        return state.at

    def step(self, state: Place, action: Tensor, ids: Tensor, key: Key) -> tuple[Place, Tensor]:
        at = (state.at + action / 4).clamp(-1, 1)
        return Place(at), -at.norm(dim=-1)


class Turn(NamedTuple):
    total: Tensor
    turn: Tensor


@dataclass(frozen=True)
class InTurn(PopulationEnv):
    """One agent after the other adds its action to its own total; now and then nobody is asked."""

    num_agents: int = 3
    pause: bool = False
    horizon: int | None = None

    def spec(self) -> Spec:
        return Spec(self.num_agents, Box(0, 1000, (2,), np.float32), Discrete(4), self.horizon)

    def reset(self, ids: Tensor, key: Key) -> Turn:
        return Turn(torch.zeros_like(ids), torch.zeros_like(ids[:, 0]))

    def acting(self, state: Turn) -> Tensor:
        slots = self.num_agents + self.pause
        return torch.arange(self.num_agents) == (state.turn % slots).unsqueeze(-1)

    def observe(self, state: Turn) -> Tensor:
        return torch.stack([state.total, state.turn.unsqueeze(-1).expand_as(state.total)], -1).to(torch.float32)

    def step(self, state: Turn, action: Tensor, ids: Tensor, key: Key) -> tuple[Turn, Tensor]:
        gain = torch.where(self.acting(state), action, 0)
        return Turn(state.total + gain, state.turn + 1), gain.to(torch.float32)


SMALL = [Ring, SynchronousRing, Mortal, Walkers, Drift, InTurn, partial(InTurn, pause=True)]
SMALL += [partial(Ring, num_agents=1), partial(Ring, num_agents=2), partial(Walkers, num_agents=1)]
OWN = [entry.name for entry in registry.entries("environment").values() if entry.origin == "mfmarl"]

# What PettingZoo's tests say of environments that are as they should be: a Discrete observation is no array,
# one number may be an observation, zeros may be observed.
FINE: tuple[str, ...] = (
    "Observation is not a NumPy array",
    "Observation is a single number",
    "Observation numpy array is all zeros",
)
FINE += (
    "There is no display",
    "maximum observation space value is infinity",
    "minimum observation space value is -inf",
)
FINE += ("State is a single number", "State numpy array is all zeros", "Action mask is a single number")
FINE += ("space values are equal",)  # a constant observation
FINE += ("maximum state space value is infinity", "minimum state space value is -infinity")  # of states without bounds


def label(rules: Any) -> str:
    if isinstance(rules, partial):
        return f"{rules.func.__name__}-{'-'.join(f'{k}={v}' for k, v in rules.keywords.items())}"
    return getattr(rules, "__name__", str(rules))


@pytest.fixture(params=[*SMALL, *OWN], ids=label)
def made(request: pytest.FixtureRequest) -> Any:
    """A module-like thing with `parallel_env` and `env`, for every small environment and every registered one."""
    rules = request.param
    if isinstance(rules, str):
        cls = registry.lookup("environment", rules).load()
        options: dict[str, Any] = {}
        # Their default populations are large, and PettingZoo's tests walk through every agent.
        if "num_agents" in inspect.signature(cls).parameters:
            options["num_agents"] = 16
    else:
        cls = rules.func if isinstance(rules, partial) else rules
        options = rules.keywords if isinstance(rules, partial) else {}
    both = faces(cls)
    return types.SimpleNamespace(
        parallel_env=partial(both.parallel_env, **options), env=partial(both.env, **options), rules=cls(**options)
    )


@pytest.fixture
def no_warnings() -> Any:
    """PettingZoo warns of what it does not fail: here that fails too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    unexpected = [str(w.message) for w in caught if not any(fine in str(w.message) for fine in FINE)]
    assert not unexpected, unexpected


# ------------------------------------------------------------------------------- PettingZoo's own tests


@pytest.mark.usefixtures("no_warnings")
def test_pettingzoo_accepts_the_parallel_face(made):
    parallel_api_test(made.parallel_env(), num_cycles=40)
    parallel_seed_test(made.parallel_env, num_cycles=20)


@pytest.mark.usefixtures("no_warnings")
def test_pettingzoo_accepts_the_agent_by_agent_face(made):
    api_test(made.env(max_cycles=6), num_cycles=10)
    api_test(made.env(), num_cycles=5)
    seed_test(made.env, num_cycles=10)


@pytest.mark.usefixtures("no_warnings")
def test_pettingzoo_accepts_the_state(made):
    state_test(made.env(max_cycles=3), made.parallel_env(max_cycles=3), num_cycles=3)


@pytest.mark.usefixtures("no_warnings")
def test_pettingzoo_accepts_the_pictures(made):
    if type(made.rules).render is PopulationEnv.render:
        with pytest.raises(ConfigError, match="no picture"):
            made.env(render_mode="rgb_array")
        return
    render_test(made.env)
    env = made.parallel_env(render_mode="rgb_array")
    env.reset(seed=0)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    env.close()


@pytest.mark.parametrize("rules", [Ring, SynchronousRing, Drift, InTurn, *OWN], ids=label)
def test_pettingzoo_counts_max_cycles(rules):
    cls = registry.lookup("environment", rules).load() if isinstance(rules, str) else rules
    many: dict[str, Any] = {"num_agents": 16} if "num_agents" in inspect.signature(cls).parameters else {}
    many |= long_enough(cls)
    both = faces(cls)
    max_cycles_test(
        types.SimpleNamespace(parallel_env=partial(both.parallel_env, **many), env=partial(both.env, **many))
    )


@pytest.mark.parametrize("name", OWN)
def test_a_module_is_what_pettingzoos_users_expect(name):
    module = importlib.import_module(registry.entries("environment")[name].where.partition(":")[0])
    longer = long_enough(registry.lookup("environment", name).load())
    max_cycles_test(
        types.SimpleNamespace(parallel_env=partial(module.parallel_env, **longer), env=partial(module.env, **longer))
        if longer
        else module
    )


def long_enough(rules: Any) -> dict[str, Any]:
    """A horizon beyond PettingZoo's four cycles for a game that is over sooner: no max_cycles prolongs that."""
    made = rules() if isinstance(rules, type) else rules
    spec = made.spec()
    longer: dict[str, Any] = {"horizon": 10} if spec.ends and (spec.horizon or 0) < 10 else {}
    # Where one agent moves at a time, in any order, cycles are not turns of everybody: what PettingZoo's test counts.
    return longer | ({"order": "synchronous"} if getattr(made, "order", "synchronous") == "sequential" else {})


# --------------------------------------------------------------------------------- the parallel face


def actions_for(env: Any, rng: np.random.Generator) -> dict[str, Any]:
    space = env.action_space(env.agents[0])
    if isinstance(space, Discrete):
        return dict(zip(env.agents, rng.integers(int(space.n), size=len(env.agents)).tolist(), strict=True))
    return {agent: rng.uniform(space.low, space.high).astype(np.float32) for agent in env.agents}


@pytest.mark.parametrize("rules", [Ring(), Mortal(), Walkers(), Drift(), InTurn(pause=True), Ring(10_000)], ids=str)
def test_the_parallel_face_plays_copy_zero_of_the_simulation(rules):
    env, simulation, rng = (
        PopulationParallelEnv(rules, max_cycles=6),
        Simulation(rules, 2, check=False),
        np.random.default_rng(1),
    )
    names, seen = simulation.spec.names, simulation.reset(Key.of(7))
    place = {name: i for i, name in enumerate(names)}

    def rows_of(agents: Any) -> list[int]:
        return [place[agent] for agent in agents]

    observations, _ = env.reset(seed=7)
    for step in range(6):
        rows = rows_of(observations)
        assert np.array_equal(np.stack(list(observations.values())), seen.obs[0, rows].numpy())
        if not env.agents:
            break
        chosen = actions_for(env, rng)
        zero = np.zeros((), np.int64) if simulation.spec.discrete else np.zeros(2, np.float32)
        whole = torch.from_numpy(np.stack([np.asarray(chosen.get(name, zero)) for name in names]))
        seen = simulation.step(torch.stack([whole, whole]))
        playing = list(env.agents)
        rows = rows_of(playing)
        observations, rewards, terminations, truncations, infos = env.step(chosen)
        for part in (observations, rewards, terminations, truncations, infos):
            assert list(part) == playing
        assert list(rewards.values()) == seen.reward[0, rows].tolist()
        assert list(terminations.values()) == seen.terminated[0, rows].tolist()
        late = (seen.truncated[0, rows] | (~seen.terminated[0, rows] & (step == 5))).tolist()
        assert list(truncations.values()) == late
        assert all(type(over) is bool for over in terminations.values())
        assert env.agents == [n for n in playing if not (terminations[n] or truncations[n])]
    assert not env.agents


def test_the_dead_leave_and_stay_away():
    env, rng = PopulationParallelEnv(Mortal(20, danger=0.3, horizon=None)), np.random.default_rng(0)
    env.reset(seed=3)
    gone: set[str] = set()
    deaths = 0
    while env.agents:
        assert not gone & set(env.agents)
        _, _, terminations, truncations, _ = env.step(actions_for(env, rng))
        assert not any(truncations.values())
        left = {name for name, over in terminations.items() if over}
        deaths += 0 < len(left) < len(terminations)
        gone |= left
    assert deaths > 1
    assert gone == set(env.possible_agents)


def test_who_is_cut_off_is_truncated_and_who_died_is_terminated():
    env = PopulationParallelEnv(Mortal(3, danger=1.0, horizon=1))
    env.reset(seed=0)
    _, _, terminations, truncations, _ = env.step({a: 0 if a == "red_1" else 2 for a in env.agents})
    assert [a for a, over in terminations.items() if over] == ["red_1"]
    assert [a for a, over in truncations.items() if not over] == ["red_1"]


def test_every_agent_has_spaces_of_its_own():
    env = PopulationParallelEnv(Drift(3))
    one, other = env.action_space("agent_0"), env.action_space("agent_1")
    assert one == other
    assert one is env.action_space("agent_0")
    one.seed(5)
    alone = [one.sample() for _ in range(3)]
    one.seed(5)
    other.seed(5)
    mixed = [(one.sample(), other.sample())[0] for _ in range(3)]
    assert np.array_equal(alone, mixed)


def test_masks_show_what_is_legal_where_the_agent_stands():
    env, rng = PopulationParallelEnv(Walkers(50)), np.random.default_rng(2)
    observations, infos = env.reset(seed=1)
    for _ in range(5):
        for name, place in observations.items():
            mask = infos[name]["action_mask"]
            assert mask.dtype == np.int8
            assert mask.tolist() == [int(place > 0), 1, int(place < 4)]
            assert env.action_space(name).sample(mask) in np.flatnonzero(mask)
        observations, _, _, _, infos = env.step(actions_for(env, rng))


def test_who_is_not_asked_is_told_so_and_not_heard():
    env = PopulationParallelEnv(InTurn(3))
    _, infos = env.reset(seed=0)
    for turn in range(6):
        assert [infos[a]["acting"] for a in env.agents] == [i == turn % 3 for i in range(3)]
        mover = env.agents[turn % 3]
        # Left out, given, or nonsense: it is ignored all the same.
        variants: list[dict[str, Any]] = [{}, dict.fromkeys(env.agents, 3), dict.fromkeys(env.agents)]
        _, rewards, _, _, infos = env.step({**variants[turn % 3], mover: 2})
        assert rewards == {a: 2.0 * (a == mover) for a in env.agents}
    with pytest.raises(ConfigError, match="no action for 'agent_0'"):
        env.step({"agent_1": 1})


def test_what_a_caller_keeps_or_overwrites_is_his_own():
    for rules in (Ring(4), Drift(4), Walkers(4)):
        spoiled, clean = PopulationParallelEnv(rules), PopulationParallelEnv(rules)
        rng = np.random.default_rng(0)
        kept, infos = spoiled.reset(seed=1)
        clean.reset(seed=1)
        for _ in range(4):
            before = {a: np.array(o) for a, o in kept.items()}
            chosen = actions_for(clean, rng)
            following, _, _, _, infos_after = spoiled.step(chosen)
            assert all(np.array_equal(before[a], kept[a]) for a in kept)
            for info in infos.values():
                info["note"] = 1
            assert not any("note" in info for info in infos_after.values())
            assert all(np.array_equal(o, following[a]) for a, o in clean.step(chosen)[0].items())
            for observation in following.values():
                if isinstance(observation, np.ndarray):
                    observation.fill(1)
            for action in chosen.values():
                if isinstance(action, np.ndarray):
                    action.fill(0)
            kept, infos = following, infos_after
        if rules.spec().observation_shape:
            state = spoiled.state()
            state.fill(0.5)
            assert not np.array_equal(spoiled.state(), state)


def test_ten_thousand_agents_play():
    env = PopulationParallelEnv(Ring(10_000), max_cycles=3)
    observations, _ = env.reset(seed=0)
    assert len(observations) == len(env.agents) == 10_000
    while env.agents:
        observations, rewards, _, truncations, _ = env.step(dict.fromkeys(env.agents, 1))
        assert set(rewards.values()) == {2.0}
    assert all(truncations.values())
    one_by_one = PopulationAECEnv(SynchronousRing(10_000), max_cycles=1)
    one_by_one.reset(seed=0)
    count: Counter[str] = Counter()
    for agent in one_by_one.agent_iter():
        count[agent] += 1
        one_by_one.step(None if one_by_one.truncations[agent] else 1)
    assert set(count.values()) == {2}
    assert len(count) == 10_000


# ------------------------------------------------------------------------------------------- seeds


def played(env: Any, seeds: list[int | None]) -> list[Any]:
    rng = np.random.default_rng(0)
    story: list[Any] = []
    for seed in seeds:
        observations, _ = env.reset(seed=seed)
        story.append([np.array(o).tolist() for o in observations.values()])
        while env.agents:
            observations, rewards, *_ = env.step(actions_for(env, rng))
            story.append(([np.array(o).tolist() for o in observations.values()], list(rewards.values())))
    return story


def test_a_seed_fixes_this_episode_and_those_that_follow():
    new = partial(PopulationParallelEnv, Mortal(4), 5)
    assert played(new(), [3, None, None]) == played(new(), [3, None, None])
    starts = [PopulationParallelEnv(Ring(40)).reset(seed=seed)[0] for seed in (1, 2)]
    assert not all(np.array_equal(starts[0][a], starts[1][a]) for a in starts[0])
    env = PopulationParallelEnv(Ring(40))
    episodes = [np.concatenate(list(env.reset(seed=s)[0].values())).tolist() for s in (5, None, None, 5, None)]
    assert episodes[0] == episodes[3]
    assert episodes[1] == episodes[4]
    assert len({tuple(e) for e in episodes[:3]}) == 3


def test_environments_that_nobody_seeded_differ():
    one, other = (PopulationParallelEnv(Ring(64)).reset()[0] for _ in range(2))
    assert not all(np.array_equal(one[a], other[a]) for a in one)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        PopulationParallelEnv(Ring()).reset(seed=seed)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("bad", [2, -1, 0.5, None, "up", np.array([0, 1]), 2**70, float("nan")], ids=str)
def test_an_action_outside_a_discrete_space_is_refused_by_name(bad):
    env = PopulationParallelEnv(Ring(3))
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"'agent_1' chose .* not in its action space Discrete\(2\)"):
        env.step({"agent_0": 1, "agent_1": bad, "agent_2": 0})
    turns = PopulationAECEnv(Ring(3))
    turns.reset(seed=0)
    with pytest.raises(ConfigError, match="'agent_0' chose"):
        turns.step(bad)
    turns.step(1)  # a refused action leaves the turn where it was
    assert turns.agent_selection == "agent_1"


@pytest.mark.parametrize("good", [1, True, np.int8(1), np.uint64(1), np.array(1), np.bool_(True)], ids=repr)
def test_every_kind_of_whole_number_is_an_action(good):
    env = PopulationParallelEnv(Ring(3))
    env.reset(seed=0)
    for chosen in ({"agent_0": good, "agent_1": 1, "agent_2": 1}, dict.fromkeys(env.agents, good)):
        assert set(env.step(chosen)[1].values()) == {2.0}
    turns = PopulationAECEnv(Ring(3))
    turns.reset(seed=0)
    turns.step(good)


@pytest.mark.parametrize("bad", [[0.0], [0.0, 2.5], [np.nan, 0.0], [-np.inf, 0.0], 0.0, None, [[0.0, 0.0]]], ids=str)
def test_an_action_outside_a_box_is_refused_by_name(bad):
    env = PopulationParallelEnv(Drift(3))
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="'agent_1' chose"):
        env.step({"agent_0": [0.0, 2.0], "agent_1": bad, "agent_2": np.zeros(2)})
    with pytest.raises(ConfigError, match="'agent_0' chose"):
        env.step(dict.fromkeys(env.agents, bad))


def test_missing_unknown_and_departed_agents_are_named():
    env = PopulationParallelEnv(Mortal(2, danger=1.0, horizon=None))
    with pytest.raises(EnvironmentFault, match="before reset"):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="no action for 'red_1' and 2 more agents"):
        env.step({"red_0": 1})
    with pytest.raises(ConfigError, match=r"no agent 'rod_1'\. Did you mean 'red_1'"):
        env.step({**dict.fromkeys(env.agents, 1), "rod_1": 1})
    with pytest.raises(ConfigError, match=r"no agent 'rod_1'\. Did you mean 'red_1'"):
        env.action_space("rod_1")
    env.step({a: int(a != "red_0") for a in env.agents})
    with pytest.raises(ConfigError, match="'red_0' has left"):
        env.step(dict.fromkeys(env.possible_agents, 1))
    env.step(dict.fromkeys(env.agents, 0))
    assert not env.agents
    with pytest.raises(EnvironmentFault, match="episode is over"):
        env.step({})


def test_a_step_before_a_reset_is_refused_in_agent_by_agent_order():
    env = PopulationAECEnv(Ring(2), max_cycles=1)
    for call in (lambda: env.step(0), lambda: env.observe("agent_0"), env.state):
        with pytest.raises(EnvironmentFault, match="before reset"):
            call()
    env.reset(seed=0)
    for _ in range(2):
        env.step(0)
    with pytest.raises(ConfigError, match="only valid action is None"):
        env.step(0)
    for _ in range(2):
        env.step(None)
    with pytest.raises(EnvironmentFault, match="episode is over"):
        env.step(None)


@pytest.mark.parametrize("cycles", [0, -3, 1.5, "ten"])
def test_max_cycles_must_be_a_number(cycles):
    for face in (PopulationParallelEnv, PopulationAECEnv):
        with pytest.raises(ConfigError, match="max_cycles must be a whole number"):
            face(Ring(), max_cycles=cycles)


@dataclass(frozen=True)
class Broken(Ring):
    fault: str = "reward"

    def observe(self, state: Spin) -> Tensor:
        seen = super().observe(state)
        return seen.squeeze(-1) if self.fault == "shape" else seen * (torch.inf if self.fault == "seen" else 1)

    def step(self, state: Spin, action: Tensor, ids: Tensor, key: Key) -> tuple[Spin, Tensor]:
        state, reward = super().step(state, action, ids, key)
        if self.fault == "reward":
            reward[0, 2] = torch.nan
        if self.fault == "raise":
            raise ValueError("no such site")
        return state, reward


def test_an_environment_that_breaks_its_contract_is_named():
    def play(face: Any, fault: str) -> None:
        env = face(Broken(4, fault=fault))
        env.reset(seed=0)
        for _ in range(4):
            env.step(dict.fromkeys(env.agents, 1) if face is PopulationParallelEnv else 1)

    for face in (PopulationParallelEnv, PopulationAECEnv):
        with pytest.raises(NumericFault, match="Broken gave a reward of nan to agent agent_2"):
            play(face, "reward")
        with pytest.raises(NumericFault, match="Broken gave an observation of"):
            play(face, "seen")
        with pytest.raises(EnvironmentFault, match=r"observe returned shape \(1, 4\)"):
            play(face, "shape")
        with pytest.raises(EnvironmentFault, match="no such site"):
            play(face, "raise")


# ---------------------------------------------------------------------------- agent by agent, two games


def turn_by_turn(env: Any, steps: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    story: list[Any] = []
    for agent in env.agent_iter(steps):
        observation, reward, terminated, truncated, info = env.last()
        space = env.action_space(agent)
        action = rng.integers(int(space.n)) if isinstance(space, Discrete) else rng.uniform(space.low, space.high)
        story.append((agent, np.array(observation).tolist(), reward, terminated, truncated, sorted(info)))
        env.step(None if terminated or truncated else action)
        story.append((dict(env.rewards), list(env.agents)))
    return story


@pytest.mark.parametrize("rules", [SynchronousRing(5), Walkers(3), Drift(4), Mortal(3, horizon=7)], ids=str)
def test_simultaneous_moves_are_pettingzoos_own_conversion_of_the_parallel_game(rules):
    ours, theirs = PopulationAECEnv(rules, max_cycles=6), parallel_to_aec(PopulationParallelEnv(rules, max_cycles=6))
    ours.reset(seed=4)
    theirs.reset(seed=4)
    mine, other = turn_by_turn(ours, 100, 8), turn_by_turn(theirs, 100, 8)
    # Between rounds its converter leaves old rewards standing; who leaves, it sorts by name.
    assert [x for x in mine[::2] if not (x[3] or x[4])] == [x for x in other[::2] if not (x[3] or x[4])]
    assert sorted(x for x in mine[::2] if x[3] or x[4]) == sorted(x for x in other[::2] if x[3] or x[4])
    assert any(x[3] or x[4] for x in mine[::2])


def test_a_choice_changes_nothing_before_the_round_is_played():
    env = PopulationAECEnv(SynchronousRing(4), render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(4):
        env.step(1)
    for _ in range(3):
        env.step(0)
        assert env.render().min() == 255  # type: ignore[union-attr]
    env.step(0)
    assert env.render().max() == 0  # type: ignore[union-attr]


def test_only_those_asked_are_selected_and_a_cycle_is_a_turn_each():
    for pause in (False, True):
        env = PopulationAECEnv(InTurn(3, pause=pause), max_cycles=4)
        env.reset(seed=0)
        turns = []
        for agent in env.agent_iter():
            if env.truncations[agent]:
                env.step(None)
                continue
            turns.append(agent)
            assert int(env.last()[0][1]) % (3 + pause) == env.possible_agents.index(agent)
            env.step(3)
            assert env.rewards == {a: 3.0 * (a == agent) for a in env.agents}
        assert turns == ["agent_0", "agent_1", "agent_2"] * 4


def test_the_rules_horizon_counts_steps_at_once_and_cycles_one_by_one():
    for rules, turns in ((InTurn(3, horizon=7), 7), (SynchronousRing(3, horizon=7), 21), (Ring(3, horizon=7), 21)):
        env = PopulationAECEnv(rules)
        env.reset(seed=0)
        assert sum(not over for over in stepping(env)) == turns


def stepping(env: Any) -> Any:
    """Play 1 to the end; at each step, whether the agent only left."""
    for agent in env.agent_iter():
        over = env.truncations[agent] or env.terminations[agent]
        yield over
        env.step(None if over else 1)


def test_rules_that_never_ask_anybody_are_named(monkeypatch):
    monkeypatch.setattr("mfmarl.population.aec.PATIENCE", 50)

    @dataclass(frozen=True)
    class Silent(InTurn):
        def acting(self, state: Turn) -> Tensor:
            return torch.zeros_like(state.total, dtype=torch.bool)

    with pytest.raises(EnvironmentFault, match="asked nobody"):
        PopulationAECEnv(Silent()).reset(seed=0)


def test_in_sequence_each_sees_those_before_and_the_mover_alone_is_paid():
    env, rng = PopulationAECEnv(Ring(5)), np.random.default_rng(3)
    env.reset(seed=2)
    start = Simulation(Ring(5)).reset(Key.of(2)).action[0]
    spins = (2 * start - 1).tolist()
    for turn, agent in zip(range(30), env.agent_iter(), strict=False):
        i = turn % 5
        assert agent == f"agent_{i}"
        around = spins[i - 1] + spins[(i + 1) % 5]
        assert env.last()[0].tolist() == [around]
        action = int(rng.integers(2))
        spins[i] = 2 * action - 1
        env.step(action)
        assert env.rewards == {a: spins[i] * around * (a == agent) for a in env.agents}
        assert env.state().tolist() == [spins[k - 1] + spins[(k + 1) % 5] for k in range(5)]


def test_sequential_rules_hold_the_actions_of_those_who_wait():
    @dataclass(frozen=True)
    class Forgetful(Ring):
        def standing(self, state: Spin) -> None:  # type: ignore[override]
            return None

    with pytest.raises(EnvironmentFault, match="no standing"):
        PopulationAECEnv(Forgetful()).reset(seed=0)

    @dataclass(frozen=True)
    class Misspelt(Ring):
        aec_order = "one by one"  # type: ignore[assignment]

    with pytest.raises(EnvironmentFault, match="expected 'simultaneous' or 'sequential'"):
        PopulationAECEnv(Misspelt())


def test_a_sequential_game_is_not_offered_as_a_parallel_one():
    with pytest.raises(AssertionError, match="not generally safe"):
        aec_to_parallel(PopulationAECEnv(Ring()))
    aec_to_parallel(PopulationAECEnv(SynchronousRing())).reset(seed=0)


@dataclass(frozen=True)
class Fragile(Mortal):
    """Mortals who move one after the other: who plays 0 is lost, and takes the next along."""

    aec_order = "sequential"

    def standing(self, state: Crowd) -> Tensor:
        return torch.ones_like(state.age)

    def step(self, state: Crowd, action: Tensor, ids: Tensor, key: Key) -> tuple[Crowd, Tensor]:
        lost = action == 0
        return Crowd(state.alive & ~lost & ~lost.roll(1, 1), state.age + 1), torch.ones(ids.shape)


def test_who_dies_before_its_turn_leaves_without_one():
    env = PopulationAECEnv(Fragile(3, horizon=None), max_cycles=5)
    env.reset(seed=0)
    story: list[Any] = []
    for agent in env.agent_iter():
        over = env.terminations[agent] or env.truncations[agent]
        story.append((agent, over))
        env.step(None if over else int(agent != "red_1"))
    names = ["red_0", "red_1", "red_2", "blue_0", "blue_1", "blue_2"]
    living = [n for n in names if n not in ("red_1", "red_2")]
    first = [("red_0", False), ("red_1", False), ("red_1", True), ("red_2", True)]
    first += [(n, False) for n in living[1:]]
    assert story == first + [(n, False) for _ in range(4) for n in living] + [(n, True) for n in living]
    assert not env.agents


# ------------------------------------------------------------- the two orders have different stationary laws

SITES, TEMPERATURE = 5, 1.5
STATES = np.array(list(itertools.product([-1, 1], repeat=SITES)))


def fields(spins: np.ndarray) -> np.ndarray:
    return np.roll(spins, 1, -1) + np.roll(spins, -1, -1)


def laws() -> dict[str, np.ndarray]:
    """Gibbs' law of the ring, and Peretto's of the same spins turned all at once, by enumeration."""
    energy = -0.5 * (STATES * fields(STATES)).sum(-1)
    sequential = np.exp(-energy / TEMPERATURE)
    synchronous = (2 * np.cosh(fields(STATES) / TEMPERATURE)).prod(-1)
    return {"sequential": sequential / sequential.sum(), "synchronous": synchronous / synchronous.sum()}


def up(field: np.ndarray | float) -> Any:
    return 1 / (1 + np.exp(-2 * np.asarray(field) / TEMPERATURE))


def test_the_laws_are_those_of_the_two_chains():
    chance = np.where(STATES == 1, up(fields(STATES))[:, None, :], 1 - up(fields(STATES))[:, None, :])
    assert chance.shape[0] == len(STATES)
    all_at_once = np.where(STATES[None] == 1, up(fields(STATES))[:, None], 1 - up(fields(STATES))[:, None]).prod(-1)
    sweep = np.eye(len(STATES))
    for i in range(SITES):
        move = np.zeros((len(STATES), len(STATES)))
        for k, spins in enumerate(STATES):
            for value in (-1, 1):
                to = spins.copy()
                to[i] = value
                p = up(fields(spins)[i])
                move[k, int((to == 1) @ (1 << np.arange(SITES)[::-1]))] += p if value == 1 else 1 - p
        sweep = sweep @ move
    law = laws()
    assert np.allclose(law["synchronous"] @ all_at_once, law["synchronous"], atol=1e-14)
    assert np.allclose(law["sequential"] @ sweep, law["sequential"], atol=1e-14)
    assert np.abs(law["synchronous"] - law["sequential"]).sum() > 0.2


def heat_bath(env: Any, sweeps: int) -> np.ndarray:
    """Agents that answer what they see by a draw from the Gibbs distribution; the spins after every cycle."""
    rng = np.random.default_rng(11)
    draws = rng.random((sweeps, SITES))
    found = np.empty((sweeps, SITES))
    if isinstance(env, PopulationParallelEnv):
        observations, _ = env.reset(seed=0)
        for t in range(sweeps):
            chosen = {a: int(draws[t, i] < up(observations[a][0])) for i, a in enumerate(env.agents)}
            observations, *_ = env.step(chosen)
            found[t] = [2 * c - 1 for c in chosen.values()]
        return found
    env.reset(seed=0)
    turns = iter(env.agent_iter())
    for t in range(sweeps):
        for i in range(SITES):
            agent = next(turns)
            action = int(draws[t, i] < up(env.observe(agent)[0]))
            env.step(action)
            found[t, i] = 2 * action - 1
    return found


@pytest.mark.parametrize(
    ("order", "make"),
    [
        ("synchronous", lambda: PopulationParallelEnv(Ring(SITES))),
        ("synchronous", lambda: PopulationAECEnv(SynchronousRing(SITES))),
        ("sequential", lambda: PopulationAECEnv(Ring(SITES))),
    ],
    ids=["parallel", "aec-simultaneous", "aec-sequential"],
)
def test_all_at_once_obeys_perettos_law_and_one_by_one_gibbs(order, make):
    spins = heat_bath(make(), 4100)[100:]
    measured = {
        "neighbours": (spins * np.roll(spins, 1, -1)).mean(-1),
        "next neighbours": (spins * np.roll(spins, 2, -1)).mean(-1),
        "square of the mean": spins.mean(-1) ** 2,
    }
    exact = {
        "neighbours": (STATES * np.roll(STATES, 1, -1)).mean(-1),
        "next neighbours": (STATES * np.roll(STATES, 2, -1)).mean(-1),
        "square of the mean": STATES.mean(-1) ** 2,
    }
    other = "sequential" if order == "synchronous" else "synchronous"
    told_apart = 0
    for name, values in measured.items():
        batches = values.reshape(40, -1).mean(-1)
        error = batches.std(ddof=1) / np.sqrt(len(batches))
        assert abs(values.mean() - laws()[order] @ exact[name]) < 5 * error, name
        told_apart += abs(values.mean() - laws()[other] @ exact[name]) > 10 * error
    assert told_apart


# ------------------------------------------------------------------------------------- doors and names


def test_options_are_keyword_arguments_and_the_nearest_is_suggested():
    parallel_env, env = faces(Ring)
    assert parallel_env(num_agents=7, max_cycles=2).num_agents == 0
    assert len(env(num_agents=np.int64(7)).possible_agents) == 7
    assert list(inspect.signature(env).parameters) == ["num_agents", "horizon", "max_cycles", "render_mode"]
    assert "agent by agent" in (env.__doc__ or "")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_agent": 3}, "Ring has no option 'num_agent'. Did you mean 'num_agents'"),
        ({"max_cycle": 3}, "Did you mean 'max_cycles'"),
        ({"num_agents": "many"}, "num_agents"),
        ({"num_agents": 0}, "num_agents must be at least 1"),
        ({"render_mode": "rgb"}, "render_mode 'rgb'. Did you mean 'rgb_array'"),
    ]
    for wrong, message in cases:
        for face in (parallel_env, env):
            with pytest.raises(ConfigError, match=message):
                face(**wrong)


def test_what_only_python_can_give_passes_and_what_is_needed_is_asked_for():
    @dataclass(frozen=True)
    class Given(Ring):
        weights: Any = None

    given = faces(Given).parallel_env(weights=np.ones(3), num_agents=3)
    assert given.rules.weights.tolist() == [1, 1, 1]  # type: ignore[attr-defined]

    class Needy(Ring):
        def __init__(self, sites: int) -> None:
            super().__init__(sites)

    with pytest.raises(ConfigError, match="needs the option 'sites'"):
        faces(Needy).env()
    assert len(faces(Needy).env(sites=3).possible_agents) == 3

    @dataclass(frozen=True)
    class Clash(Ring):
        max_cycles: int = 3

    with pytest.raises(ConfigError, match="another meaning"):
        faces(Clash)


def test_pettingzoo_makes_every_registered_environment():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = register_with_pettingzoo()
        assert register_with_pettingzoo() == ids  # and no warning of overriding
        assert len(set(ids)) == len(ids)
    assert {pettingzoo_id(name) for name in OWN} <= set(ids)
    for name in OWN:
        assert isinstance(pettingzoo.make("parallel", pettingzoo_id(name), max_cycles=3), PopulationParallelEnv)
        assert isinstance(pettingzoo.make("aec", f"mfmarl/{name}"), PopulationAECEnv)


def test_a_users_own_environment_is_made_by_name(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    for kind in ("aec_registry", "parallel_registry"):
        kept = getattr(pettingzoo, kind)
        before = dict(kept)
        monkeypatch.setattr(pettingzoo, kind, kept)
        for key in set(kept) - set(before):
            del kept[key]
    registry.register("acme/ring_v2")(Ring)
    registry.register("acme/wild")(partial(PopulationParallelEnv, Mortal(2)))
    assert {"mfmarl/acme.ring_v2", "mfmarl/acme.wild-v0"} <= set(register_with_pettingzoo())
    env = pettingzoo.make("aec", "mfmarl/acme.ring_v2", num_agents=9)
    assert len(env.possible_agents) == 9
    with pytest.raises(ConfigError, match="Did you mean 'num_agents'"):
        pettingzoo.make("aec", "mfmarl/acme.ring-v2", num_agent=9)
    assert isinstance(pettingzoo.make("parallel", "mfmarl/acme.wild"), PopulationParallelEnv)
    turns = pettingzoo.make("aec", "mfmarl/acme.wild")
    turns.reset(seed=0)
    assert turns.agent_selection == "red_0"
    for kept in (pettingzoo.aec_registry, pettingzoo.parallel_registry):
        for key in [k for k in kept if "/acme." in k]:
            del kept[key]


def test_one_import_registers_and_imports_no_environment():
    code = (
        "import sys, pettingzoo, mfmarl.pettingzoo; "
        "print(sorted(k for k in pettingzoo.parallel_registry if k.startswith('mfmarl/'))); "
        "print([m for m in sys.modules if m.startswith('mfmarl.envs.') or m == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    names, loaded = done.stdout.strip().splitlines()
    assert names == str(sorted(pettingzoo_id(name) for name in OWN))
    assert loaded == "[]"


def test_a_step_can_name_who_moves_in_it():
    simulation = Simulation(Ring(4), copies=2)
    before = simulation.reset(Key.of(0)).action
    one = torch.zeros(2, 4, dtype=torch.bool)
    one[:, 2] = True
    after = simulation.step(1 - before, acting=one).action
    assert torch.equal(after, torch.where(one, 1 - before, before))
