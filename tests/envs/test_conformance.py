"""What every environment of this package promises, generated from the registry: register one, and it is tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.population.environment import PopulationEnv, agent_ids
from mfmarl.population.known import Known
from mfmarl.population.simulation import Simulation
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from mfmarl.registry import entries, lookup

NAMES = [name for name, entry in entries("environment").items() if entry.origin == "mfmarl"]
# More than one game goes by some names.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ising": [
        {"order": "sequential", "horizon": 7},
        {"order": "synchronous", "states": 3, "sight": "neighbours", "horizon": 7},
        {"order": "partial", "graph": "complete", "horizon": 7},
    ],
    "t_maze": [{"layout": "corridor", "absorbing": False, "horizon": 6}],
    "cue_chain": [{"rows": 12, "columns": 12, "cue_reliability": 0.8, "absorbing": False}],
    "aliased_grid": [{"map": "rooms", "slip": 0.2, "misread": 0.1, "horizon": 7}],
    "frozen_lake_swap": [{"map": "8x8", "swap_at": (2, 5), "success_rate": 0.8}],
    "congestion": [{"network": "braess", "toll": True}],
    "gaussian_squeeze": [{"normalised": False, "mu": 400.0, "sigma": 200.0}],
    "crowd_modelling_2d": [{"map": "torus", "goal": True, "size": 5, "horizon": 4}],
    "periodic_aversion": [{"ends": "value"}],
    "route_choice": [{"network": "braess", "toll": True}],
    "routing": [{"network": "pigou", "rounding": "down", "horizon": 20}],
}
GAMES = [(name, options) for name in NAMES for options in [{}, *VARIANTS.get(name, [])]]
every_game = pytest.mark.parametrize(
    ("name", "options"), GAMES, ids=[f"{n}-{'-'.join(map(str, o.values()))}" for n, o in GAMES]
)
STEPS = 9


def _make(name: str, options: dict[str, Any], num_agents: int | None = None) -> PopulationEnv:
    """The environment with that many agents; one that cannot lie on its own graph is put on the complete one."""
    make = lookup("environment", name).load()
    known = {field.name for field in fields(make)}
    if num_agents is None or "num_agents" not in known:
        return make(**options)
    try:
        return make(**{**options, "num_agents": num_agents})
    except ConfigError:
        if "graph" not in known:
            raise
        return make(**{**options, "num_agents": num_agents, "graph": "complete"})


def _actions(simulation: Simulation, timestep: Timestep, key: Key) -> Tensor:
    """Legal actions drawn from keyed noise."""
    spec, ids = simulation.spec, simulation.ids
    if spec.discrete:
        noise = random.uniform(key, ids, spec.num_actions)
        if timestep.legal is not None:
            noise = torch.where(timestep.legal, noise, -1.0)
        return noise.argmax(-1)
    space = spec.action_space
    assert isinstance(space, Box)
    low, high = torch.as_tensor(space.low).clamp(min=-3), torch.as_tensor(space.high).clamp(max=3)
    return low + (high - low) * random.uniform(key, ids, spec.num_actions)


def _play(
    simulation: Simulation, key: Key, steps: int = STEPS, visit: Callable[[Timestep], None] | None = None
) -> list[Timestep]:
    """A run with restarts, every timestep of it (before the restart, where there was one)."""
    timestep = simulation.reset(key)
    return [timestep, *_go_on(simulation, timestep, key, 0, steps, visit)]


def _go_on(
    simulation: Simulation,
    timestep: Timestep,
    key: Key,
    first: int,
    steps: int,
    visit: Callable[[Timestep], None] | None = None,
) -> list[Timestep]:
    seen = []
    for step in range(first, first + steps):
        timestep = simulation.restart(timestep)
        if visit is not None:
            visit(timestep)
        timestep = simulation.step(_actions(simulation, timestep, key.fold("choices", step)))
        seen.append(timestep)
    return seen


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
    )


def _assert_same_runs(one: list[Timestep], other: list[Timestep], rows: slice = slice(None)) -> None:
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        for field in Timestep._fields:
            x, y = getattr(a, field), getattr(b, field)
            assert _same(None if x is None else x[rows], y), f"{field} differs at step {step}"


@every_game
def test_shapes_and_types_are_those_of_the_spec(name: str, options: dict[str, Any]) -> None:
    simulation = Simulation(_make(name, options), 3)
    spec, n = simulation.spec, simulation.spec.num_agents
    for timestep in _play(simulation, Key.of(0)):
        assert timestep.obs.shape == (3, n, *spec.observation_shape)
        assert timestep.obs.dtype == (torch.float32 if spec.observation_shape else torch.int64)
        assert timestep.reward.shape == (3, n)
        assert timestep.reward.dtype == torch.float32
        assert bool(torch.isfinite(timestep.reward).all())
        for mask in (timestep.alive, timestep.acting, timestep.terminated, timestep.truncated):
            assert mask.shape == (3, n)
            assert mask.dtype == torch.bool
        if timestep.legal is not None:
            assert timestep.legal.shape == (3, n, spec.num_actions)
            assert bool(timestep.legal.any(-1)[timestep.acting].all()), "everyone who acts has something legal to do"
        for row in timestep.obs[0, :: max(1, n // 5)]:
            assert spec.observation_space.contains(row.numpy() if spec.observation_shape else int(row))


@every_game
def test_a_copy_does_not_know_how_many_copies_there_are(name: str, options: dict[str, Any]) -> None:
    env = _make(name, options)
    whole, alone = _play(Simulation(env, 5), Key.of(1)), _play(Simulation(env, 1), Key.of(1))
    _assert_same_runs(whole, alone, slice(0, 1))


@every_game
def test_copies_split_over_processes_are_those_of_the_whole(name: str, options: dict[str, Any]) -> None:
    env = _make(name, options)
    whole = _play(Simulation(env, 5), Key.of(2))
    _assert_same_runs(whole, _play(Simulation(env, 2, first_copy=3), Key.of(2)), slice(3, 5))


@every_game
def test_the_same_key_is_the_same_run_and_another_key_another(name: str, options: dict[str, Any]) -> None:
    env = _make(name, options)
    one, other = _play(Simulation(env, 2), Key.of(3)), _play(Simulation(env, 2), Key.of(3))
    _assert_same_runs(one, other)
    third = _play(Simulation(env, 2), Key.of(4))
    # On a road nobody is paid yet, but the places differ.
    assert not all(_same(a.reward, b.reward) and _same(a.obs, b.obs) for a, b in zip(one, third, strict=True))


@every_game
def test_what_happened_before_a_reset_does_not_matter(name: str, options: dict[str, Any]) -> None:
    simulation = Simulation(_make(name, options), 2)
    first = _play(simulation, Key.of(5))
    _play(simulation, Key.of(6))
    _assert_same_runs(first, _play(simulation, Key.of(5)))


@every_game
def test_stopping_and_resuming_is_bitwise_never_having_stopped(name: str, options: dict[str, Any]) -> None:
    env = _make(name, options)
    key = Key.of(7)
    through = Simulation(env, 2)
    _play(through, key, 4)
    stored = through.state_dict()
    rest = _go_on(through, through.timestep, key, 4, STEPS)  # type: ignore[arg-type]
    resumed = Simulation(_make(name, options), 2)
    resumed.reset(Key.of(99))
    timestep = resumed.load_state_dict(stored)
    _assert_same_runs(rest, _go_on(resumed, timestep, key, 4, STEPS))
    measures = through.measure(), resumed.measure()
    assert measures[0].keys() == measures[1].keys()
    assert all(_same(measures[0][k], measures[1][k]) for k in measures[0])


@every_game
def test_the_dead_stay_dead_and_are_neither_asked_nor_paid(name: str, options: dict[str, Any]) -> None:
    simulation = Simulation(_make(name, options), 3)
    begun: list[Timestep] = []
    run = _play(simulation, Key.of(8), 30, begun.append)
    for before, after in zip(begun, run[1:], strict=True):
        assert not bool((after.alive & ~before.alive).any())
        assert not bool((after.acting & ~after.alive).any())
        assert bool((after.reward[~before.alive] == 0).all())
        assert not bool((after.terminated & after.truncated).any())


@every_game
def test_the_future_is_a_function_of_state_and_action_and_neither_is_written(
    name: str, options: dict[str, Any]
) -> None:
    env = _make(name, options)
    simulation = Simulation(env, 2)
    timestep = simulation.reset(Key.of(9))
    action = _actions(simulation, timestep, Key.of(10))
    copy = type(simulation.state)(*(t.clone() for t in simulation.state))
    kept = action.clone()
    first, paid = env.step(simulation.state, action, simulation.ids, Key.of(11))
    env.observe(first), env.measure(first)
    second, again = env.step(simulation.state, action, simulation.ids, Key.of(11))
    assert all(_same(a, b) for a, b in zip(simulation.state, copy, strict=True))
    assert torch.equal(action, kept)
    assert torch.equal(paid, again)
    assert all(_same(a, b) for a, b in zip(first, second, strict=True))


@every_game
def test_relabelling_agents_relabels_rewards(name: str, options: dict[str, Any]) -> None:
    # Without a graph any order within a group will do, on a torus a shift; other graphs tell agents apart.
    env = _make(name, options)
    simulation = Simulation(env, 2)
    spec, n = simulation.spec, simulation.spec.num_agents
    if spec.graph is not None and spec.graph.torus is not None:
        sites = torch.arange(n).view(spec.graph.torus)
        # Two sites along each axis: a shift that keeps the colours of a checkerboard.
        order = sites.roll((2,) * len(spec.graph.torus), tuple(range(len(spec.graph.torus)))).reshape(-1)
    elif spec.graph is None:
        noise = random.uniform(Key.of(0), torch.arange(n))
        order = torch.argsort(spec.group + noise)  # shuffled within each group
    else:
        pytest.skip("agents on this graph are not exchangeable")
    timestep = simulation.reset(Key.of(12))
    action = _actions(simulation, timestep, Key.of(13))
    asked = env.acting(simulation.state)
    standing = env.standing(simulation.state)
    if asked is not None and standing is not None:
        action = torch.where(asked, action, standing)
    state, ids = simulation.state, simulation.ids

    def relabelled(t: Tensor) -> Tensor:
        return t[:, order] if t.ndim >= 2 and t.shape[1] == n else t

    turned = type(state)(*(relabelled(t) for t in state))
    if asked is not None and not _same(env.acting(turned), asked[:, order]):
        pytest.skip("whose turn it is, the state says by an agent's number")
    _, reward = env.step(state, action, ids, Key.of(14))
    _, reward_turned = env.step(turned, action[:, order], ids[:, order], Key.of(14))
    torch.testing.assert_close(reward_turned, reward[:, order], rtol=1e-5, atol=1e-6)


@every_game
@pytest.mark.parametrize("num_agents", [1, 2, 100_000])
def test_any_number_of_agents_plays(name: str, options: dict[str, Any], num_agents: int) -> None:
    # Two, or one of each group, are a population in every game; fewer may be refused, in a sentence.
    if num_agents < max(2, len(_make(name, options).spec().groups)):
        try:
            _make(name, options, num_agents)
        except ConfigError:
            pytest.skip(f"refuses to be played by {num_agents}")
    env = _make(name, options, num_agents)
    spec = env.spec()
    if "num_agents" in {field.name for field in fields(env)}:  # type: ignore[arg-type]
        assert spec.num_agents == num_agents
    run = _play(Simulation(env, 1), Key.of(15), 2)
    assert bool(torch.isfinite(run[-1].reward).all())
    assert all(
        bool(torch.isfinite(value).all())
        for value in env.measure(env.reset(agent_ids(1, spec.num_agents), Key.of(0))).values()
    )


@every_game
def test_measures_are_one_finite_number_per_copy_always_of_the_same_names(name: str, options: dict[str, Any]) -> None:
    simulation = Simulation(_make(name, options), 3)
    names: set[frozenset[str]] = set()

    def look(_: Timestep) -> None:
        measured = simulation.measure()
        names.add(frozenset(measured))
        for value in measured.values():
            assert value.shape == (3,)
            assert value.dtype == torch.float32
            assert bool(torch.isfinite(value).all())

    _play(simulation, Key.of(16), visit=look)
    assert len(names) == 1


@every_game
@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0])
def test_references_have_sources_and_are_about_what_is_measured(
    name: str, options: dict[str, Any], temperature: float
) -> None:
    env = _make(name, options)
    measured = {"reward", *env.measure(env.reset(agent_ids(1, env.spec().num_agents), Key.of(0)))}
    for number, known in env.reference(temperature).items():
        assert isinstance(known, Known)
        assert number in measured, f"{number} is not measured"
        assert known.value == known.value
        assert abs(known.value) != float("inf")
        assert len(known.source) > 5
        assert known.kind in ("equilibrium", "optimum", "law", "bound")


@every_game
def test_a_picture_is_of_bytes_and_shows_its_own_copy(name: str, options: dict[str, Any]) -> None:
    simulation = Simulation(_make(name, options), 2)
    _play(simulation, Key.of(17), 1)
    if type(simulation.env).render is PopulationEnv.render:
        pytest.skip("an environment may go without a picture")
    one, other = simulation.render(0), simulation.render(1)
    assert one is not None
    assert other is not None
    assert one.dtype == torch.uint8
    assert one.ndim == 3
    assert one.shape[-1] == 3
    assert min(one.shape[:2]) >= 16
    assert one.shape == other.shape
    assert torch.equal(one, simulation.render(0))  # type: ignore[arg-type]


@every_game
def test_options_are_documented_one_by_one(name: str, options: dict[str, Any]) -> None:
    from mfmarl.options import options_of

    make = lookup("environment", name).load()
    undocumented = [option.name for option in options_of(make) if not option.help]
    assert not undocumented
    assert make.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_agents_less_than_one_are_refused_in_a_sentence(name: str) -> None:
    make = lookup("environment", name).load()
    if "num_agents" not in {field.name for field in fields(make)}:
        pytest.skip("its number of agents follows from other options")
    for wrong in (0, -3):
        with pytest.raises(ConfigError, match=str(wrong)):
            make(num_agents=wrong).spec()
