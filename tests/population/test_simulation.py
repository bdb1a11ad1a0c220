"""The batched simulation: what a timestep promises, under scripted deaths, ends, masks and faults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfmarl.errors import CheckpointError, ConfigError, EnvironmentFault, NumericFault
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.simulation import Simulation
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key, integers, normal, uniform


class LotteryState(NamedTuple):
    alive: Tensor  # [E, N] bool
    wealth: Tensor  # [E, N] float32
    over: Tensor  # [E] bool
    turn: Tensor  # [E] int64


@dataclass(frozen=True)
class Lottery(PopulationEnv):
    """Random deaths, ends and rewards, all from keyed noise; the dead are paid too, which nobody may see."""

    num_agents: int = 5
    horizon: int | None = 6
    death: float = 0.15
    end: float = 0.08
    turns: bool = False
    masked: bool = False
    box: bool = False
    born_dead: float = 0.0

    def spec(self) -> Spec:
        action = Box(-2.0, 3.0, (2,)) if self.box else Discrete(3)
        return Spec(self.num_agents, Box(-math.inf, math.inf, (2,)), action, horizon=self.horizon)

    def reset(self, ids: Tensor, key: Key) -> LotteryState:
        alive = uniform(key.fold("alive"), ids) >= self.born_dead
        over = torch.zeros_like(ids[:, 0], dtype=torch.bool)
        return LotteryState(alive, normal(key.fold("wealth"), ids), over, integers(key.fold("turn"), ids[:, 0], 7))

    def observe(self, state: LotteryState) -> Tensor:
        return torch.stack([state.wealth, state.turn.unsqueeze(-1).expand_as(state.wealth).float()], dim=-1)

    def step(self, state: LotteryState, action: Tensor, ids: Tensor, key: Key) -> tuple[LotteryState, Tensor]:
        effect = action.sum(-1) if self.box else action.float()
        gain = normal(key.fold("gain"), ids) + effect
        alive = state.alive & (uniform(key.fold("death"), ids) >= self.death)
        over = uniform(key.fold("end"), ids[:, 0]) < self.end
        return LotteryState(alive, state.wealth + gain, over, state.turn + 1), gain + 100

    def alive(self, state: LotteryState) -> Tensor:
        return state.alive

    def done(self, state: LotteryState) -> Tensor:
        return state.over

    def acting(self, state: LotteryState) -> Tensor | None:
        if not self.turns:
            return None
        return torch.arange(self.num_agents) == (state.turn % self.num_agents).unsqueeze(-1)

    def legal(self, state: LotteryState) -> Tensor | None:
        if not self.masked or self.box:
            return None
        return torch.arange(3) != (state.turn % 3).view(-1, 1, 1).expand(-1, self.num_agents, 1)


class SpinState(NamedTuple):
    spin: Tensor


@dataclass(frozen=True)
class Spins(PopulationEnv):
    """Rules without deaths and ends: all copies in step."""

    num_agents: int = 4
    horizon: int | None = 3
    half: bool = False

    def spec(self) -> Spec:
        return Spec(self.num_agents, Discrete(2), Discrete(2), horizon=self.horizon)

    def reset(self, ids: Tensor, key: Key) -> SpinState:
        return SpinState(integers(key, ids, 2))

    def observe(self, state: SpinState) -> Tensor:
        return state.spin

    def step(self, state: SpinState, action: Tensor, ids: Tensor, key: Key) -> tuple[SpinState, Tensor]:
        return SpinState(action), uniform(key, ids)

    def acting(self, state: SpinState) -> Tensor | None:
        return (torch.arange(self.num_agents) % 2 == 0).expand_as(state.spin) if self.half else None

    def standing(self, state: SpinState) -> Tensor | None:
        return state.spin if self.half else None


def play(sim: Simulation, timestep: Timestep, key: Key) -> Tensor:
    """A legal action for whoever acts; the step's number and the copy's own ids name it."""
    ids = sim.ids
    if not sim.spec.discrete:
        return uniform(key, ids, sim.spec.num_actions) * 5 - 2
    score = uniform(key, ids, sim.spec.num_actions)
    return (score if timestep.legal is None else score * timestep.legal).argmax(-1)


def trajectory(
    sim: Simulation, steps: int, key: Key, timestep: Timestep | None = None, start: int = 0
) -> list[Timestep]:
    """Every timestep: after each step, and after each restart."""
    timestep = sim.reset(key) if timestep is None else timestep
    seen = [timestep]
    for t in range(start, start + steps):
        timestep = sim.restart(timestep)
        seen.append(timestep)
        timestep = sim.step(play(sim, timestep, key.fold("play", t)))
        seen.append(timestep)
    return seen


def same(a: Timestep, b: Timestep, rows: Any = slice(None)) -> bool:
    """Bitwise, NaN equal to NaN; `rows` picks copies of `a`."""

    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        if x is None or y is None:
            return x is y
        x = x[rows]
        if x.is_floating_point():
            return torch.equal(x.nan_to_num(nan=9e9), y.nan_to_num(nan=9e9)) and x.dtype == y.dtype
        return torch.equal(x, y) and x.dtype == y.dtype

    return all(equal(x, y) for x, y in zip(a, b, strict=True))


LOTTERIES = st.builds(
    Lottery,
    num_agents=st.integers(1, 6),
    horizon=st.none() | st.integers(1, 6),
    death=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    end=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    turns=st.booleans(),
    masked=st.booleans(),
    box=st.booleans(),
)

# ------------------------------------------------------------------------------ what a timestep promises


@given(LOTTERIES, st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=120, deadline=None)
def test_the_promises_of_a_timestep_hold_whatever_dies_and_ends(env: Lottery, copies: int, seed: int) -> None:
    sim, key = Simulation(env, copies), Key.of(seed)
    before = sim.reset(key)
    assert not before.reward.any()
    assert not before.step.any()
    for t in range(10):
        before = sim.restart(before)
        assert not before.ended.any()
        assert not (before.terminated | before.truncated)[before.step == 0].any()
        after = sim.step(play(sim, before, key.fold("play", t)))
        # Who acts lives, and is asked; nobody acts in a copy that has ended, somebody could in the others.
        assert not (after.acting & ~after.alive).any()
        assert not (after.acting & after.ended.unsqueeze(-1)).any()
        if not env.turns:
            assert torch.equal(after.acting.any(-1), ~after.ended)
            assert torch.equal(after.acting, after.alive & ~after.ended.unsqueeze(-1))
        # The dead stay dead and are paid nothing; the step that kills is paid.
        assert not (after.alive & ~before.alive).any()
        assert not after.reward[~before.alive].any()
        assert (after.reward[before.alive] != 0).all()
        # Each ending is of one kind, happens to the living, and once.
        assert not (after.terminated & after.truncated).any()
        assert not ((after.terminated | after.truncated) & ~before.alive).any()
        over = env.done(sim.state).unsqueeze(-1)
        assert torch.equal(after.terminated, before.alive & (~after.alive | over))
        late = torch.zeros_like(after.ended) if env.horizon is None else after.step >= env.horizon
        finished = env.done(sim.state) | ~after.alive.any(-1)
        assert torch.equal(after.truncated, after.alive & (late & ~finished).unsqueeze(-1))
        # A copy ends by its rules, by its last death or by its horizon; then every agent's episode has ended.
        assert torch.equal(after.ended, finished | late)
        closed = after.terminated | after.truncated | ~before.alive
        assert closed[after.ended].all()
        assert torch.equal(after.step, before.step + 1)
        before = after


def test_lockstep_copies_are_truncated_together_at_the_horizon() -> None:
    sim = Simulation(Spins(horizon=3), 2)
    t = sim.reset(Key.of(0))
    for step in (1, 2, 3):
        t = sim.step(torch.ones_like(sim.ids))
        assert t.step.tolist() == [step] * 2
        assert bool(t.truncated.all()) == bool(t.ended.all()) == (step == 3)
        assert bool(t.acting.all()) == (step < 3)
        assert not t.terminated.any()
    begun = sim.restart(t)
    assert not begun.reward.any()
    assert begun.acting.all()
    assert begun.step.tolist() == [0, 0]
    assert (begun.action == -1).all()
    assert sim.restart(begun) is begun
    assert t.ended.all()  # what was handed out does not change afterwards
    assert t.step.tolist() == [3, 3]


def test_a_game_without_end_goes_on() -> None:
    sim = Simulation(Spins(horizon=None), 2)
    t = sim.reset(Key.of(0))
    for _ in range(20):
        t = sim.restart(sim.step(torch.ones_like(sim.ids)))
    assert t.step.tolist() == [20, 20]
    assert not t.ended.any()


def test_one_dying_at_the_horizon_is_terminated_and_the_others_truncated() -> None:
    class OneDies(Lottery):
        def step(self, state: LotteryState, action: Tensor, ids: Tensor, key: Key) -> tuple[LotteryState, Tensor]:
            return state._replace(alive=state.alive & (torch.arange(3) != 1)), torch.ones(ids.shape)

    sim = Simulation(OneDies(num_agents=3, horizon=1, death=0, end=0))
    sim.reset(Key.of(0))
    t = sim.step(torch.zeros_like(sim.ids))
    assert t.terminated.tolist() == [[False, True, False]]
    assert t.truncated.tolist() == [[True, False, True]]
    assert t.reward.tolist() == [[1, 1, 1]]
    assert t.ended.tolist() == [True]


# ------------------------------------------------------------------------------------ whose action counts


@given(st.booleans(), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_who_is_not_asked_keeps_the_action_in_force(box: bool, seed: int) -> None:
    env = Lottery(num_agents=4, horizon=None, death=0.05, end=0, turns=True, box=box)
    sim, key = Simulation(env, 3), Key.of(seed)
    t = sim.reset(key)
    for step in range(8):
        if t.ended.any():
            break
        action = play(sim, t, key.fold("play", step))
        mine = t.acting if not box else t.acting.unsqueeze(-1)
        wanted = torch.where(mine, action, t.action)
        t = sim.step(action)
        assert torch.equal(t.action.nan_to_num(nan=9), wanted.nan_to_num(nan=9))


def test_before_the_first_action_there_is_none_and_the_rules_get_a_playable_one() -> None:
    got = []

    class Listening(Lottery):
        def step(self, state: LotteryState, action: Tensor, ids: Tensor, key: Key) -> tuple[LotteryState, Tensor]:
            got.append(action)
            return super().step(state, action, ids, key)

    for box in (False, True):
        got.clear()
        sim = Simulation(Listening(num_agents=3, death=0, end=0, turns=True, box=box))
        t = sim.reset(Key.of(0))
        assert t.action.isnan().all() if box else (t.action == -1).all()
        t = sim.step(torch.ones(1, 3, 2) if box else torch.ones_like(sim.ids))
        none = t.action.isnan().all(-1) if box else t.action == -1
        assert int(none.sum()) == 2
        assert torch.isfinite(got[0]).all()
        assert not got[0][none].any()


def test_a_standing_action_is_in_force_from_the_start() -> None:
    sim = Simulation(Spins(num_agents=4, half=True), 2)
    t = sim.reset(Key.of(3))
    assert torch.equal(t.action, t.obs)
    after = sim.step(1 - t.obs)
    assert torch.equal(after.action[:, ::2], 1 - t.obs[:, ::2])
    assert torch.equal(after.action[:, 1::2], t.obs[:, 1::2])
    assert torch.equal(after.obs, after.action)


# ---------------------------------------------------------------------------- copies, keys and restarts


@given(LOTTERIES, st.integers(0, 10**6), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_copy_does_not_know_how_many_copies_there_are(env: Lottery, seed: int, first: int) -> None:
    """Copies first..first+1 alone are bitwise those copies of five: sharding equals the whole."""
    key = Key.of(seed)
    whole = trajectory(Simulation(env, 5), 9, key)
    part = trajectory(Simulation(env, 2, first_copy=first), 9, key)
    assert all(same(a, b, slice(first, first + 2)) for a, b in zip(whole, part, strict=True))


def test_the_same_key_is_the_same_run_and_another_key_another() -> None:
    runs = [trajectory(Simulation(Lottery(), 3), 8, Key.of(seed)) for seed in (1, 1, 2)]
    assert all(same(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not any(same(a, b) for a, b in zip(runs[0], runs[2], strict=True))
    sim = Simulation(Lottery(), 3)
    trajectory(sim, 5, Key.of(4))
    assert all(same(a, b) for a, b in zip(runs[0], trajectory(sim, 8, Key.of(1)), strict=True))


def test_restarting_touches_only_the_copies_that_have_ended() -> None:
    sim = Simulation(Lottery(num_agents=4, death=0.3, end=0.3, horizon=5, turns=True), 6)
    t = sim.reset(Key.of(7))
    mixed = 0
    for step in range(30):
        begun = sim.restart(t)
        going = ~t.ended
        assert same(t, Timestep(*(None if x is None else x[going] for x in begun)), going)
        assert not begun.reward[t.ended].any()
        assert not (begun.terminated | begun.truncated)[t.ended].any()
        assert begun.alive[t.ended].all()
        assert (begun.action[t.ended] == -1).all()
        assert not begun.step[t.ended].any()
        mixed += int(going.any() and t.ended.any())
        t = sim.step(play(sim, begun, Key.of(7).fold(step)))
    assert mixed > 10
    assert (sim.clock <= 5).all()


@pytest.mark.parametrize("env", [Spins(num_agents=64, horizon=1), Lottery(num_agents=64, horizon=1, death=0, end=0)])
def test_each_episode_and_each_step_has_noise_of_its_own(env: PopulationEnv) -> None:
    sim = Simulation(env, 2)
    t = sim.reset(Key.of(0))
    starts, rewards = [t.obs], []
    for _ in range(4):
        t = sim.step(torch.zeros_like(sim.ids))
        rewards.append(t.reward)
        t = sim.restart(t)
        starts.append(t.obs)
    for rows in (torch.cat(starts).flatten(1), torch.cat(rewards)):
        assert len(torch.unique(rows, dim=0)) == len(rows)
        assert len(torch.unique(rows[:, :8], dim=0)) == len(rows)


# ---------------------------------------------------------------------------------------------- resuming


@given(
    st.one_of(LOTTERIES, st.builds(Spins, half=st.booleans())), st.integers(0, 12), st.booleans(), st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_stop_and_resume_is_never_having_stopped(env: PopulationEnv, stop: int, begun: bool, seed: int) -> None:
    """At every moment: also after a step in which copies ended and before their restart."""
    key = Key.of(seed)
    first = Simulation(env, 3)
    before = trajectory(first, stop, key)[-1]
    if begun:
        before = first.restart(before)
    stored = first.state_dict()
    goes_on = trajectory(first, 8, key, before, stop)
    second = Simulation(env, 3)
    loaded = second.load_state_dict(stored)
    assert same(before, loaded)
    resumed = trajectory(second, 8, key, loaded, stop)
    assert all(same(a, b) for a, b in zip(goes_on, resumed, strict=True))
    third = Simulation(env, 3)
    third.load_state_dict(stored)  # what was stored is not written to by whoever loads it
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(third.state_dict().values(), stored.values(), strict=True)
    )


def test_a_store_that_does_not_fit_is_refused() -> None:
    sim = Simulation(Lottery(), 2)
    with pytest.raises(EnvironmentFault, match="before reset"):
        sim.state_dict()
    sim.reset(Key.of(0))
    stored = sim.state_dict()
    with pytest.raises(CheckpointError, match=r"state.alive is \[2, 5\].*3 copies"):
        Simulation(Lottery(), 3).load_state_dict(stored)
    with pytest.raises(CheckpointError, match=r"lacks 'state\.spin'"):
        Simulation(Spins(), 2).load_state_dict(stored)
    with pytest.raises(CheckpointError, match="lacks 'clock'"):
        Simulation(Lottery(), 2).load_state_dict({k: v for k, v in stored.items() if k != "clock"})


# --------------------------------------------------------------------------------------- refusing clearly


def test_calls_out_of_turn_are_refused() -> None:
    with pytest.raises(ConfigError, match="copies must be at least 1"):
        Simulation(Spins(), 0)
    for env in (Spins(horizon=1), Lottery(horizon=1)):
        sim = Simulation(env, 2)
        with pytest.raises(EnvironmentFault, match="before reset"):
            sim.step(torch.zeros_like(sim.ids))
        sim.reset(Key.of(0))
        t = sim.step(torch.zeros_like(sim.ids))
        with pytest.raises(EnvironmentFault, match="call restart"):
            sim.step(torch.zeros_like(sim.ids))
        sim.restart(t)
        sim.step(torch.zeros_like(sim.ids))


@pytest.mark.parametrize(
    ("box", "action", "words"),
    [
        (False, torch.zeros(2, 4, dtype=torch.int64), r"shape \(2, 4\); expected \(2, 5\)"),
        (False, torch.zeros(2, 5), "needs whole numbers"),
        (
            False,
            torch.tensor([[0, 1, 2, 0, 1], [0, 0, 3, 0, 0]]),
            r"Action 3 of agent agent_2 of copy 1 .*expected 0..2",
        ),
        (False, torch.tensor([[0, -1, 2, 0, 1], [0, 0, 0, 0, 0]]), "Action -1 of agent agent_1 of copy 0"),
        (True, torch.zeros(2, 5), r"expected \(2, 5, 2\)"),
        (True, torch.full((2, 5, 2), 3.001), r"\[3.00.*agent_0 of copy 0 is outside Box.*\[3.0, 3.0\]"),
        (True, torch.full((2, 5, 2), math.nan), r"agent_0 of copy 0 chose \[nan, nan\] in Lottery at step 0"),
        (True, torch.full((2, 5, 2), -math.inf), "inf.*outside"),
    ],
)
def test_actions_outside_the_space_are_refused_and_nothing_is_lost(box: bool, action: Tensor, words: str) -> None:
    sim = Simulation(Lottery(box=box, death=0, end=0), 2)
    t = sim.reset(Key.of(0))
    stored = sim.state_dict()
    with pytest.raises(NumericFault if bool(torch.isnan(action).any()) else ConfigError, match=words):
        sim.step(action)
    assert sim.timestep is t
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(stored.values(), sim.state_dict().values(), strict=True)
    )


def test_who_is_not_asked_may_hold_anything() -> None:
    sim = Simulation(Lottery(death=0, end=0, turns=True), 2)
    t = sim.reset(Key.of(0))
    sim.step(torch.where(t.acting, 1, -7))
    sim = Simulation(Lottery(death=0, end=0, turns=True, box=True), 2)
    t = sim.reset(Key.of(0))
    assert torch.isfinite(sim.step(torch.where(t.acting.unsqueeze(-1), torch.ones(2, 5, 2), math.nan)).reward).all()


def test_an_unbounded_box_still_refuses_infinity() -> None:
    class Free(Lottery):
        def spec(self) -> Spec:
            return Spec(5, Box(-math.inf, math.inf, (2,)), Box(-math.inf, math.inf, (2,)))

    sim = Simulation(Free(box=True))
    sim.reset(Key.of(0))
    with pytest.raises(ConfigError, match=r"inf.*outside"):
        sim.step(torch.full((1, 5, 2), math.inf))
    sim.step(torch.full((1, 5, 2), 1e17))


def test_small_whole_number_actions_are_taken() -> None:
    sim = Simulation(Spins(), 2)
    sim.reset(Key.of(0))
    assert sim.step(torch.ones((2, 4), dtype=torch.uint8)).action.dtype == torch.int64


def test_an_illegal_action_is_refused_with_the_legal_ones() -> None:
    sim = Simulation(Lottery(masked=True, death=0, end=0), 2)
    t = sim.reset(Key.of(0))
    assert t.legal is not None
    with pytest.raises(
        ConfigError, match=r"Action 2 of agent agent_0 of copy \d is illegal.*expected one of \[0, 1\]|is illegal"
    ):
        sim.step(t.legal.int().argmin(-1))
    sim.step(t.legal.int().argmax(-1))


def broken(method: str, value: Any, **options: Any) -> Simulation:
    """A lottery of which one rule returns `value(what it would have returned)`."""

    class Broken(Lottery):
        pass

    def replaced(self: Lottery, *arguments: Any) -> Any:
        return value(getattr(Lottery, method)(self, *arguments))

    setattr(Broken, method, replaced)
    return Simulation(Broken(**{"death": 0, "end": 0, **options}), 2, first_copy=4)


def spoil(values: Tensor, value: float) -> Tensor:
    values = values.clone()
    values[1, 3] = value
    return values


@pytest.mark.parametrize(
    ("method", "value", "error", "words"),
    [
        (
            "step",
            lambda r: (r[0], spoil(r[1], math.nan)),
            NumericFault,
            "reward of nan to agent agent_3 of copy 5 at step 1",
        ),
        ("step", lambda r: (r[0], spoil(r[1], math.inf)), NumericFault, "reward of inf to agent agent_3 of copy 5"),
        ("step", lambda r: (r[0], r[1][:, :2]), EnvironmentFault, r"reward has shape \(2, 2\)"),
        ("step", lambda r: (r[0], r[1].double()), EnvironmentFault, "reward has type torch.float64"),
        ("step", lambda r: (r[0]._replace(turn=r[0].turn.float()), r[1]), EnvironmentFault, "changed the state's turn"),
        ("step", lambda r: (r[0]._replace(turn=r[0].turn[:1]), r[1]), EnvironmentFault, "turn is .1.; expected"),
        ("step", lambda r: 1 / 0, EnvironmentFault, "Broken.step failed after step 0: ZeroDivisionError"),
        (
            "observe",
            lambda o: spoil(o, math.nan),
            NumericFault,
            "observation of nan to agent agent_3 of copy 5 at step 0",
        ),
        ("observe", lambda o: o[..., :1], EnvironmentFault, r"observe has shape \(2, 5, 1\).*expected \(2, 5, 2\)"),
        ("observe", lambda o: 1 / 0, EnvironmentFault, "Broken.observe failed"),
        ("reset", lambda s: tuple(s), EnvironmentFault, "must return a NamedTuple"),
        ("reset", lambda s: s._replace(wealth=s.wealth.sum()), EnvironmentFault, "wealth is .. ?; expected|wealth is"),
        ("reset", lambda s: s._replace(turn=3), EnvironmentFault, "turn is int"),
        ("reset", lambda s: 1 / 0, EnvironmentFault, "Broken.reset failed"),
        ("alive", lambda a: a.float(), EnvironmentFault, "alive has type"),
        ("alive", lambda a: a[:1], EnvironmentFault, "alive has shape"),
        ("done", lambda d: d.unsqueeze(-1), EnvironmentFault, "done has shape"),
        ("acting", lambda a: torch.ones(5, dtype=torch.bool), EnvironmentFault, "acting has shape"),
        ("legal", lambda m: torch.ones(2, 5, 4, dtype=torch.bool), EnvironmentFault, "legal has shape"),
    ],
)
def test_an_environment_that_breaks_its_contract_is_named(method: str, value: Any, error: type, words: str) -> None:
    sim = broken(method, value)
    with pytest.raises(error, match=words):
        trajectory(sim, 1, Key.of(0))


def test_a_fault_in_a_step_leaves_the_simulation_where_it_was() -> None:
    for method, value in (
        ("step", lambda r: 1 / 0),
        ("step", lambda r: (r[0], spoil(r[1], math.nan))),
        ("observe", lambda o: spoil(o, math.nan) if float(o[0, 0, 1]) >= 7 else o),
    ):
        sim = broken(method, value)
        t = sim.reset(Key.of(0))
        faults = 0
        while faults == 0:
            kept = sim.state_dict()
            try:
                t = sim.step(torch.zeros_like(sim.ids))
            except (EnvironmentFault, NumericFault):
                faults += 1
            assert sim.tick < 9
        assert sim.timestep is t
        now = sim.state_dict()
        assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_the_reward_of_a_dead_agent_may_be_anything() -> None:
    sim = broken("step", lambda r: (r[0], torch.where(r[0].alive, r[1], math.nan)), born_dead=0.5)
    t = sim.reset(Key.of(1))
    assert (~t.alive).any()
    assert not t.terminated.any()
    t = sim.step(torch.zeros_like(sim.ids))
    assert not t.reward[~t.alive].any()


def test_the_dead_cannot_be_brought_back() -> None:
    class Waking(Lottery):
        def step(self, state: LotteryState, action: Tensor, ids: Tensor, key: Key) -> tuple[LotteryState, Tensor]:
            alive = state.alive.clone()
            alive[0, 2] = ~alive[0, 2]
            return state._replace(alive=alive), torch.ones(ids.shape)

    sim = Simulation(Waking(), 2)
    sim.reset(Key.of(0))
    sim.step(torch.zeros_like(sim.ids))
    with pytest.raises(EnvironmentFault, match="agent_2 of copy 0 back to life at step 2"):
        sim.step(torch.zeros_like(sim.ids))


def test_an_agent_without_a_legal_action_is_the_environments_fault() -> None:
    sim = broken("legal", lambda m: m & False, masked=True)
    sim.reset(Key.of(0))
    with pytest.raises(EnvironmentFault, match="leaves agent agent_0 of copy 4 no action"):
        sim.step(torch.zeros_like(sim.ids))


def test_without_checks_nothing_is_looked_at() -> None:
    class Faulty(Spins):
        def step(self, state: SpinState, action: Tensor, ids: Tensor, key: Key) -> tuple[SpinState, Tensor]:
            return state, torch.full(ids.shape, math.nan)

    sim = Simulation(Faulty(), 1, check=False)
    sim.reset(Key.of(0))
    assert sim.step(torch.full_like(sim.ids, 99)).reward.isnan().all()


def test_sums_that_overflow_are_no_fault() -> None:
    sim = broken("step", lambda r: (r[0], torch.full_like(r[1], 3e38)))
    sim.reward_limit = 3.3e38
    sim.reset(Key.of(0))
    assert torch.isfinite(sim.step(torch.zeros_like(sim.ids)).reward).all()
    sim = broken("observe", lambda obs: torch.full_like(obs, 3e38))
    assert torch.isfinite(sim.reset(Key.of(0)).obs).all()


@pytest.mark.parametrize("limit", [1e4, 1e18, 1e25])
def test_a_reward_beyond_the_limit_is_a_fault_and_one_at_it_is_none(limit: float) -> None:
    def pays(reward: float) -> Simulation:
        def paid(result: Any) -> Any:
            result[1][1, 2] = -reward
            return result

        sim = broken("step", paid)
        sim.reward_limit = limit
        sim.reset(Key.of(0))
        return sim

    sim = pays(0.99 * limit)
    sim.step(torch.full_like(sim.ids, 2))
    sim = pays(1.01 * limit)
    words = r"reward of -.* to agent agent_2 of copy 5 at step 1, after its action 2, beyond reward_limit"
    with pytest.raises(NumericFault, match=words) as told:
        sim.step(torch.full_like(sim.ids, 2))
    assert told.value.code == "reward-bound"


def test_an_environment_without_a_picture_is_not_drawn() -> None:
    sim = Simulation(Spins())
    sim.reset(Key.of(0))
    assert sim.render() is None
    assert sim.measure() == {}
