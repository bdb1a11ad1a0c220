"""Third-party environments as batched tensors: shapes, deaths, teams, turns, faults, workers, resuming."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from mfmarl import registry
from mfmarl.errors import CheckpointError, ConfigError, EnvironmentFault, MfmarlError, NumericFault
from mfmarl.population import third_party
from mfmarl.population.adapter import Adapter
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.open import open_env
from mfmarl.population.simulation import Env, Simulation
from mfmarl.population.spec import Spec
from mfmarl.population.third_party import maker_of
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key, seed_for, uniform
from tests.population import scripted

NAMES = ("red_0", "red_1", "red_2", "blue_0", "blue_1", "blue_2")  # slots: teams lie one after the other
OWN = torch.tensor([scripted.ALL.index(name) for name in NAMES])  # the number each knows itself by


def adapter(target: Any, options: dict[str, Any] | None = None, **kinds: Any) -> Adapter:
    return Adapter(maker_of(target, options), **kinds)


def chosen(env: Env, timestep: Timestep, key: Key) -> Tensor:
    """A legal action for everyone, from keyed noise."""
    if not env.spec.discrete:
        box = env.spec.action_space
        assert isinstance(box, spaces.Box)
        low, high = torch.as_tensor(box.low), torch.as_tensor(box.high)
        return low + (high - low) * uniform(key, env.ids, env.spec.num_actions)
    level = uniform(key, env.ids, env.spec.num_actions)
    if timestep.legal is not None:
        level = torch.where(timestep.legal, level, -torch.ones(()))
    return level.argmax(-1)


def roll(env: Env, steps: int, first: Timestep | None = None, start: int = 0, key: int = 0) -> list[Timestep]:
    """Everything that is seen in so many steps, restarts included."""
    timestep = env.reset(Key.of(key)) if first is None else first
    seen = [] if first is not None else [timestep]
    for t in range(start, start + steps):
        timestep = env.step(chosen(env, timestep, Key.of(99).fold(t)))
        seen.append(timestep)
        timestep = env.restart(timestep)
        seen.append(timestep)
    return seen


def same(a: list[Timestep], b: list[Timestep], copies: slice = slice(None)) -> bool:
    """Bitwise equality of everything, in the copies `copies` of `a` and all of `b`."""
    if len(a) != len(b):
        return False
    for x, y in zip(a, b, strict=True):
        for u, v in zip(x, y, strict=True):
            if (u is None) != (v is None):
                return False
            if u is not None and v is not None and not torch.equal(u[copies].nan_to_num(7.5), v.nan_to_num(7.5)):
                return False
    return True


# ------------------------------------------------------------------------------------------ shapes and spaces


def box(*shape: int, low: float = 0, high: float = 255, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def look(observations: dict[str, Any], values: dict[str, Any], actions: dict[str, Any] | None = None) -> Adapter:
    actions = actions or dict.fromkeys(observations, spaces.Discrete(2))
    env = adapter(scripted.Mixed, {"observations": observations, "actions": actions, "values": values})
    env.reset(Key.of(0))
    return env


def test_an_image_keeps_its_shape_and_values() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    env = look({"a_0": box(5, 4, 3, dtype=np.uint8)}, {"a_0": picture})
    assert env.timestep is not None
    assert env.spec.observation_shape == (5, 4, 3)
    assert env.timestep.obs.dtype == torch.float32
    assert np.array_equal(env.timestep.obs[0, 0].numpy(), picture)


def test_different_shapes_are_padded_with_zeros_at_the_far_end() -> None:
    env = look(
        {"a_0": box(2, 3, low=1), "b_0": box(4, 2, low=1)},
        {"a_0": np.full((2, 3), 7.0, np.float32), "b_0": np.full((4, 2), 9.0, np.float32)},
    )
    assert env.timestep is not None and env.spec.observation_shape == (4, 3)
    expected = torch.zeros(2, 4, 3)
    expected[0, :2, :3], expected[1, :4, :2] = 7, 9
    assert torch.equal(env.timestep.obs[0], expected)
    assert env.spec.observation_space.contains(env.timestep.obs[0, 0].numpy())


def test_different_ranks_are_flattened_then_padded() -> None:
    env = look(
        {"a_0": box(2, 2), "b_0": box(5)},
        {"a_0": np.arange(1, 5, dtype=np.float32).reshape(2, 2), "b_0": np.arange(10, 15, dtype=np.float32)},
    )
    assert env.timestep is not None
    assert env.timestep.obs[0].tolist() == [[1, 2, 3, 4, 0], [10, 11, 12, 13, 14]]


def test_discrete_observations_are_class_numbers() -> None:
    env = look({"a_0": spaces.Discrete(4), "b_0": spaces.Discrete(7, start=3)}, {"a_0": 2, "b_0": np.int64(9)})
    assert env.timestep is not None and env.timestep.obs.dtype == torch.int64
    assert env.timestep.obs.tolist() == [[2, 6]] and env.spec.observation_space == spaces.Discrete(7)


def test_a_discrete_observation_among_boxes_is_one_hot() -> None:
    env = look({"a_0": spaces.Discrete(3, start=1), "b_0": box(4)}, {"a_0": 3, "b_0": np.arange(4)})
    assert env.timestep is not None
    assert env.timestep.obs[0].tolist() == [[0, 0, 1, 0], [0, 1, 2, 3]]


def test_a_scalar_observation_is_a_number_per_agent() -> None:
    env = look({"a_0": box(), "a_1": box()}, {"a_0": np.float32(3), "a_1": np.float32(4)})
    assert env.timestep is not None and env.timestep.obs.tolist() == [[3, 4]]


def test_padded_actions_are_illegal_and_numbers_start_where_the_space_does() -> None:
    spaces_of = {"a_0": box(1), "b_0": box(1)}
    env = look(spaces_of, {}, {"a_0": spaces.Discrete(2), "b_0": spaces.Discrete(4, start=10)})
    assert env.timestep is not None and env.timestep.legal is not None
    assert env.timestep.legal[0].tolist() == [[True, True, False, False], [True] * 4]
    env.step(torch.tensor([[1, 3]]))
    single = env._place.singles[0]  # type: ignore[attr-defined]
    assert single.env.given == [{"a_0": 1, "b_0": 13}]
    with pytest.raises(ConfigError, match=r"action 2 of agent a_0 in copy 0 at step 2 is outside Discrete\(2\)"):
        env.step(torch.tensor([[2, 0]]))


def test_everything_legal_is_no_mask() -> None:
    assert adapter(scripted.Counting).reset(Key.of(0)).legal is None


REFUSED = {
    "MultiDiscrete actions": (
        {"a_0": box(1)},
        {"a_0": spaces.MultiDiscrete([2, 2])},
        "action space of agent a_0 is MultiD",
    ),
    "whole Box actions": ({"a_0": box(1)}, {"a_0": box(2, dtype=np.int64)}, "agent a_0 is Box of int64"),
    "mixed actions": (
        {"a_0": box(1), "a_1": box(1)},
        {"a_0": spaces.Discrete(2), "a_1": box(2)},
        "agent a_1 has a Box",
    ),
    "no action space": ({"a_0": box(1)}, {"a_0": None}, "action space of agent a_0 is NoneType"),
    "Tuple observation": ({"a_0": spaces.Tuple([box(1)])}, {"a_0": spaces.Discrete(2)}, "space of agent a_0 is Tuple"),
    "Text observation": ({"b_1": spaces.Text(3)}, {"b_1": spaces.Discrete(2)}, "space of agent b_1 is Text"),
    "Dict observation": (
        {"a_0": spaces.Dict({"left": box(1), "right": box(1)})},
        {"a_0": spaces.Discrete(2)},
        "agent a_0 is a Dict of 'left', 'right'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_spaces_that_cannot_be_had_are_refused_by_name(case: str) -> None:
    observations, actions, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words) as caught:
        adapter(scripted.Mixed, {"observations": observations, "actions": actions})
    assert "\n" not in str(caught.value) and "Mixed" in str(caught.value)


def test_a_gymnasium_environment_is_a_population_of_one() -> None:
    assert Adapter(lambda: gymnasium.make("CartPole-v1"), copies=2).reset(Key.of(0)).obs.shape == (2, 1, 4)


def test_boxes_of_different_size_and_bounds_arrive_as_each_agents_own() -> None:
    env = adapter(scripted.Steering)
    env.reset(Key.of(0))
    box_space = env.spec.action_space
    assert isinstance(box_space, spaces.Box)
    assert box_space.low.tolist() == [-3, -3, -3] and box_space.high.tolist() == [3, 3, 3]
    # The car's own bounds are narrower: -2 is clipped to -1; its third dimension is not there.
    after = env.step(torch.tensor([[[-2.0, 1.5, 3.0], [-3.0, 0.5, 3.0]]]))
    assert after.obs[0].tolist() == [[-1.0, 1.5, 0.0], [-3.0, 0.5, 3.0]]
    assert after.reward.tolist() == [[0.5, 0.5]]
    assert after.action[0, 1].tolist() == [-3.0, 0.5, 3.0]


@pytest.mark.parametrize("value", [3.1, float("nan"), float("inf")])
def test_a_box_action_outside_the_space_is_refused(value: float) -> None:
    env = adapter(scripted.Steering)
    env.reset(Key.of(0))
    words = r"agent ship_0 in copy 0 at step 1 is .* in dimension 1, outside \[-3, 3\]"
    kind: type[Exception] = ConfigError
    if value != value:
        kind, words = NumericFault, r"agent ship_0 chose \[0.0, nan, 0.0\] in copy 0 at step 1"
    with pytest.raises(kind, match=words):
        env.step(torch.tensor([[[0.0, 0.0, 0.0], [0.0, value, 0.0]]]))


# ------------------------------------------------------------------------------------------ a population's life


def test_teams_lie_one_after_the_other() -> None:
    env = adapter(scripted.Counting)
    assert env.spec.names == NAMES and env.spec.group_slices == {"red": slice(0, 3), "blue": slice(3, 6)}
    timestep = env.reset(Key.of(0))
    assert torch.equal(timestep.obs[0, :, 0].long(), OWN)
    after = env.step(torch.tensor([[0, 1, 2, 3, 4, 0]]))
    assert torch.equal(after.obs[0, :, 2], torch.tensor([0.0, 1, 2, 3, 4, 0]))
    assert torch.equal(after.reward[0], 10.0 * OWN + torch.tensor([0.0, 1, 2, 3, 4, 0]))


@pytest.mark.parametrize("as_function", [True, False])
def test_a_grouping_of_ones_own(as_function: bool) -> None:
    def number(agent: str) -> str:
        return f"number{agent[-1]}"

    grouping: Any = number if as_function else {name: number(name) for name in NAMES}
    env = adapter(scripted.Counting, grouping=grouping)
    assert env.spec.groups == ("number0", "number1", "number2") and env.spec.names[:2] == ("red_0", "blue_0")


def test_the_dead_leave_an_empty_slot() -> None:
    env = adapter(scripted.Counting, {"deaths": {"red_1": 2}, "cuts": {"blue_0": 3}})
    env.reset(Key.of(0))
    act = torch.ones_like(env.ids)
    one = env.step(act)
    assert one.alive.all() and one.acting.all()
    two = env.step(act)
    dead, cut = NAMES.index("red_1"), NAMES.index("blue_0")
    assert two.terminated[0].tolist() == [i == dead for i in range(6)] and not two.truncated.any()
    assert not two.alive[0, dead] and not two.acting[0, dead]
    assert two.reward[0, dead] == 21 and two.obs[0, dead, 1] == 2  # its last reward and view are kept
    three = env.step(act)
    assert three.obs[0, dead].eq(0).all() and three.reward[0, dead] == 0 and not three.terminated.any()
    # Cut off is not dead: it counts in its last moment, and does not act.
    assert three.truncated[0].tolist() == [i == cut for i in range(6)]
    assert three.alive[0, cut] and not three.acting[0, cut]
    four = env.step(act)
    assert not four.alive[0, cut] and four.alive.sum() == 4 and not four.ended.any()


def test_an_agent_may_be_born() -> None:
    env = adapter(scripted.Counting, {"births": {"blue_2": 2}})
    first = env.reset(Key.of(0))
    late = NAMES.index("blue_2")
    assert not first.alive[0, late] and first.obs[0, late].eq(0).all() and first.alive.sum() == 5
    act = torch.full_like(env.ids, 3)
    env.step(act)
    born = env.step(act)
    assert born.alive.all() and born.acting[0, late] and born.obs[0, late, 0] == 5 and born.reward[0, late] == 0
    assert env.step(act).reward[0, late] == 53


def test_the_last_step_may_mix_terminated_and_truncated() -> None:
    # red_0 is both: terminated it is. The others are cut off by the same step.
    env = adapter(scripted.Counting, {"length": 2, "deaths": {"red_0": 2, "blue_1": 2}})
    env.reset(Key.of(0))
    env.step(torch.zeros_like(env.ids))
    last = env.step(torch.zeros_like(env.ids))
    assert last.terminated[0].tolist() == [name in ("red_0", "blue_1") for name in NAMES]
    assert torch.equal(last.truncated, ~last.terminated)
    assert last.ended.all() and not last.acting.any()


def test_copies_restart_by_themselves() -> None:
    env = adapter(scripted.Counting, {"length": 3}, copies=2)
    env.reset(Key.of(0))
    seen = roll(env, 7)
    steps = [t.step.tolist() for t in seen[2::2]]
    assert steps == [[1, 1], [2, 2], [0, 0], [1, 1], [2, 2], [0, 0], [1, 1]]
    begun = seen[6]
    assert begun.action.eq(-1).all() and begun.reward.eq(0).all() and not begun.truncated.any() and begun.alive.all()


def test_restart_leaves_the_others_alone() -> None:
    env = adapter(scripted.Auction, {"bidders": 2}, copies=2)
    timestep = env.reset(Key.of(0))
    timestep = env.step(torch.tensor([[0, 0], [2, 0]]))  # copy 0: bidder_0 leaves, bidder_1 has won
    assert timestep.ended.tolist() == [True, False]
    assert timestep.reward[0].tolist() == [0, 100]
    begun = env.restart(timestep)
    assert begun.step.tolist() == [0, 1] and begun.ended.tolist() == [False, False]
    for old, new in zip(timestep, begun, strict=True):
        if old is not None and new is not None:
            assert torch.equal(old[1], new[1])
    assert begun.acting.tolist() == [[True, False], [False, True]]
    assert begun.reward[0].eq(0).all() and not begun.terminated[0].any()


def test_a_copy_that_has_ended_must_be_restarted() -> None:
    env = adapter(scripted.Counting, {"length": 1})
    env.reset(Key.of(0))
    env.step(torch.zeros_like(env.ids))
    with pytest.raises(EnvironmentFault, match="call restart"):
        env.step(torch.zeros_like(env.ids))


def test_max_steps_cuts_an_episode_off() -> None:
    env = adapter(scripted.Counting, max_steps=2)
    env.reset(Key.of(0))
    assert not env.step(torch.zeros_like(env.ids)).ended.any()
    last = env.step(torch.zeros_like(env.ids))
    assert last.ended.all() and last.truncated.all() and last.alive.all() and not last.terminated.any()
    assert env.spec.horizon == 2
    assert env.restart(last).step.tolist() == [0]


def test_episodes_are_seeded_by_key_copy_and_number_alone() -> None:
    env = adapter(scripted.Counting, {"length": 1}, copies=2)
    first = env.reset(Key.of(5))
    second = env.restart(env.step(torch.zeros_like(env.ids)))
    for copy, (timestep, n) in enumerate([(first, 0), (second, 1)]):
        seed = seed_for(Key.of(5).fold("episode", copy, n))
        noise = np.random.default_rng(seed)
        expected = torch.tensor(scripted.Counting().reset(seed)[0]["red_0"][3], dtype=torch.float32)
        assert timestep.obs[copy, 0, 3] == expected == np.float32(noise.random())
    assert len({float(x) for t in (first, second) for x in t.obs[:, 0, 3]}) == 4


def test_a_copy_does_not_know_how_many_copies_there_are() -> None:
    whole = roll(adapter(scripted.Counting, copies=3), 15)
    for copy in range(3):
        one = roll(adapter(scripted.Counting, copies=1, first_copy=copy), 15)
        assert same(whole, one, slice(copy, copy + 1))


# --------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("where", ["info", "observation"])
def test_masks_are_honoured_wherever_they_come_from(where: str) -> None:
    env = adapter(scripted.Masked, {"where": where}, copies=2)
    seen = roll(env, 12)
    assert seen[0].legal is not None
    assert seen[0].legal[0].tolist() == [[False, True, True], [True, False, True]]
    assert seen[2].legal is not None and seen[2].legal[1].tolist() == [[True, False, True], [True, True, False]]
    assert seen[0].obs.shape == (2, 2, 2)
    env.reset(Key.of(0))
    with pytest.raises(ConfigError, match="action 0 of agent p_0 in copy 0 at step 1 is illegal by its action mask"):
        env.step(torch.zeros_like(env.ids))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros(3, np.int8), "forbids every action"),
        (np.ones(4, np.int8), r"shape \(4,\), expected \(3,\)"),
        (np.array([0.5, 1, 1]), "not made of whole numbers 0 and 1"),
        (np.array(["yes", "no", "no"]), "not made of whole numbers 0 and 1"),
    ],
)
def test_a_bad_mask_is_a_fault(bad: np.ndarray, words: str) -> None:
    env = adapter(scripted.Masked, {"where": "observation", "bad": bad}, copies=2)
    with pytest.raises(EnvironmentFault, match=f"agent p_1 .*{words}.* in copy 0 at step 2"):
        roll(env, 4)


# --------------------------------------------------------------------------------------------------- turns


def test_in_an_aec_environment_one_agent_acts_at_a_time() -> None:
    env = adapter(scripted.Auction, {"bidders": 3, "rounds": 2})
    timestep = env.reset(Key.of(0))
    order = []
    for _ in range(6):
        assert timestep.acting.sum() == 1 and timestep.alive.all()
        order.append(int(timestep.acting[0].long().argmax()))
        timestep = env.step(torch.ones_like(env.ids))
    assert order == [0, 1, 2, 0, 1, 2]
    # After the last round everyone is truncated, seen a last time, and paid: 1 by each of the two others' bids.
    assert timestep.ended.all() and timestep.truncated.all() and timestep.alive.all() and not timestep.acting.any()
    assert timestep.obs[0].tolist() == [[2, 6], [2, 6], [2, 6]]


def test_turn_takers_are_paid_what_they_got_since_they_last_acted() -> None:
    bids = [3, 1, 2, 2, 0, 1, 3, 1, 0]
    env = adapter(scripted.Auction, {"bidders": 3, "rounds": 9})
    timestep = env.reset(Key.of(0))
    paid = torch.zeros(3)
    for bid in bids:
        timestep = env.step(torch.full_like(env.ids, bid))
        paid += timestep.reward[0]
    raw = scripted.Auction(3, 9)
    raw.reset()
    got = dict.fromkeys(raw.possible_agents, 0.0)
    bids_left = iter(bids)
    for agent in raw.agent_iter():
        _, reward, termination, truncation, _ = raw.last()
        got[agent] += reward
        raw.step(None if termination or truncation else next(bids_left, None))
        if not raw.agents:
            break
    assert timestep.ended.all() and paid.tolist() == list(got.values())
    assert paid.sum() > 100


def test_who_leaves_an_aec_game_is_buried_within_the_step() -> None:
    env = adapter(scripted.Auction, {"bidders": 3, "rounds": 9})
    env.reset(Key.of(0))
    env.step(torch.full_like(env.ids, 2))  # bidder_0 pays 2 to the others
    left = env.step(torch.zeros_like(env.ids))  # bidder_1 leaves
    assert left.terminated[0].tolist() == [False, True, False] and left.alive[0].tolist() == [True, False, True]
    assert left.acting[0].tolist() == [False, False, True]
    assert left.obs[0, 1].tolist() == [1, 2]  # its last view
    after = env.step(torch.ones_like(env.ids))
    assert (
        after.obs[0, 1].eq(0).all() and not after.terminated.any() and after.acting[0].tolist() == [True, False, False]
    )


def test_a_turn_taker_that_is_cut_off_lives_in_its_last_moment_only() -> None:
    env = adapter(scripted.Auction, {"rounds": 9, "leavers_are_cut": True})
    env.reset(Key.of(0))
    cut = env.step(torch.zeros_like(env.ids))
    assert cut.truncated[0].tolist() == [True, False, False] and cut.alive.all() and not cut.terminated.any()
    after = env.step(torch.ones_like(env.ids))
    assert after.alive[0].tolist() == [False, True, True] and not after.truncated.any()


def test_only_the_selected_agents_action_comes_into_force() -> None:
    env = adapter(scripted.Auction, {"bidders": 3})
    env.reset(Key.of(0))
    assert env.step(torch.tensor([[3, 1, 1]])).action.tolist() == [[3, -1, -1]]
    # What is given for those that are not asked is not even looked at.
    assert env.step(torch.tensor([[99, 2, -5]])).action.tolist() == [[3, 2, -1]]


def test_an_aec_episode_is_cut_off_with_what_is_owed() -> None:
    env = adapter(scripted.Auction, {"bidders": 3, "rounds": 9}, max_steps=2)
    env.reset(Key.of(0))
    first = env.step(torch.full_like(env.ids, 3))
    assert first.reward.tolist() == [[0, 3, 0]]
    last = env.step(torch.full_like(env.ids, 2))
    assert last.truncated.all() and last.ended.all()
    assert last.reward.tolist() == [[2, 0, 5]]  # bidder_2 was owed 3 and is owed 2
    assert last.obs[0].tolist() == [[1, 5], [1, 5], [0, 5]]


def test_masks_of_turn_takers() -> None:
    env = adapter(scripted.Auction, {"masks": True, "rounds": 9})
    timestep = env.reset(Key.of(0))
    assert timestep.legal is not None and timestep.legal[0, 0].tolist() == [True] * 4
    timestep = env.step(torch.full_like(env.ids, 3))
    assert timestep.legal is not None and timestep.legal[0, 1].tolist() == [True, True, True, False]
    with pytest.raises(ConfigError, match="action 3 of agent bidder_1 in copy 0 at step 2 is illegal"):
        env.step(torch.full_like(env.ids, 3))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stranger", "agent nobody_7 is not in possible_agents in copy 0 at step 3"),
        ("raises", r"step\(\) of agent bidder_2 raised KeyError: 'hammer' in copy 0 at step 3"),
        ("vanishes", "agent bidder_1 left env.agents without being terminated or truncated in copy 0 at step 3"),
        ("nan", "reward of agent bidder_0 is nan in copy 0 at step 3"),
    ],
)
def test_faults_of_turn_takers_name_agent_copy_and_step(fault: str, words: str) -> None:
    env = adapter(scripted.BadAuction, {"fault": fault})
    env.reset(Key.of(0))
    with pytest.raises((EnvironmentFault, NumericFault), match=words):
        for _ in range(4):
            env.step(torch.ones_like(env.ids))


# --------------------------------------------------------------------------------------------------- faults

FAULTS: dict[str, tuple[type[MfmarlError], str]] = {
    "raises": (EnvironmentFault, r"step\(\) raised ValueError: division by cucumber in copy 0 at step 3"),
    "four values": (EnvironmentFault, r"step\(\) returned a tuple of 4, expected .* in copy 0 at step 3"),
    "reward nan": (
        NumericFault,
        "reward of agent red_1 is nan in copy 0 at step 3, after its action 2: rewards must be finite",
    ),
    "reward inf": (NumericFault, "reward of agent red_1 is -inf in copy 0 at step 3"),
    "reward huge": (NumericFault, "reward of agent red_1 is beyond float32 in copy 0 at step 3"),
    "reward word": (EnvironmentFault, r"reward of agent red_1 is '1\.0' \(str\), not a number, in copy 0 at step 3"),
    "reward none": (EnvironmentFault, r"reward of agent red_1 is None \(NoneType\), not a number"),
    "no reward": (EnvironmentFault, "agent red_1 has no reward in copy 0 at step 3"),
    "no observation": (EnvironmentFault, "agent red_1 has no observation in copy 0 at step 3"),
    "observation nan": (NumericFault, "observation of agent red_1 has a nan in copy 0 at step 3"),
    "observation shape": (
        EnvironmentFault,
        r"agent red_1 has shape \(3,\) but its space declares \(4,\) in copy 0 at step 3",
    ),
    "observation words": (
        EnvironmentFault,
        "observation of agent red_1 is of <U1, not of numbers, in copy 0 at step 3",
    ),
    "observation none": (EnvironmentFault, r"observation of agent red_1 has shape \(\) but"),
    "int flag": (EnvironmentFault, r"termination of agent red_1 is 0 \(int\), not a bool, in copy 0 at step 3"),
    "vanishes": (
        EnvironmentFault,
        "agent red_1 left env.agents without being terminated or truncated in copy 0 at step 3",
    ),
    "ghost": (EnvironmentFault, "agent red_1 is over but still in env.agents in copy 0 at step 3"),
    "stranger": (EnvironmentFault, "agent green_0 is not in possible_agents in copy 0 at step 3"),
    "late mask": (
        EnvironmentFault,
        "agent red_1 has an action mask in its info but none had at reset in copy 0 at step 3",
    ),
    "infos none": (EnvironmentFault, "infos are a NoneType, expected a dictionary, in copy 0 at step 3"),
    "reset raises": (EnvironmentFault, r"reset\(\) raised RuntimeError: the map is missing in copy 0 at step 0"),
    "reset returns only observations": (EnvironmentFault, r"reset\(\) returned dict, expected \(observations, infos\)"),
    "nobody after reset": (EnvironmentFault, r"there are no agents after reset\(\) in copy 0 at step 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_that_names_agent_copy_and_step(fault: str) -> None:
    kind, words = FAULTS[fault]
    env = adapter(scripted.Faulty, {"fault": fault}, copies=2)
    with pytest.raises(kind, match=words) as caught:
        roll(env, 5)
    assert str(caught.value).startswith("Faulty: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_without_a_fault_the_same_environment_plays() -> None:
    assert len(roll(adapter(scripted.Faulty, copies=2), 20)) == 41


def test_the_original_error_is_chained() -> None:
    with pytest.raises(EnvironmentFault) as caught:
        roll(adapter(scripted.Faulty, {"fault": "raises"}), 5)
    assert isinstance(caught.value.__cause__, ValueError)


def test_the_dead_do_not_come_back() -> None:
    with pytest.raises(EnvironmentFault, match="agent red_1 came back after its end in copy 0 at step 4"):
        roll(adapter(scripted.Revived), 5)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (
            torch.full((1, 6), 5),
            r"action 5 of agent red_0 in copy 0 at step 1 is outside Discrete\(5\): expected 0\.\.4",
        ),
        (torch.full((1, 6), -1), "action -1 of agent red_0"),
        (torch.zeros(1, 5, dtype=torch.int64), r"shape \(1, 5\); expected \(1, 6\)"),
        (torch.zeros(1, 6), "float32; a Discrete space takes int64"),
    ],
)
def test_an_action_outside_the_space_is_refused(action: Tensor, words: str) -> None:
    env = adapter(scripted.Counting)
    env.reset(Key.of(0))
    with pytest.raises(ConfigError, match=words):
        env.step(action)


def test_a_factory_that_makes_one_environment_twice_is_refused() -> None:
    one = scripted.Counting()
    with pytest.raises(ConfigError, match="made the same environment twice"):
        Adapter(lambda: one, copies=2)


def test_copies_that_differ_are_refused() -> None:
    sizes = iter([ALL6, ALL6, ALL6[:4]])
    with pytest.raises(EnvironmentFault, match="copy 1 with other agents or spaces"):
        Adapter(lambda: scripted.Counting(agents=next(sizes)), copies=2)


ALL6 = scripted.ALL

# --------------------------------------------------------------------------- threads, processes, generators


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (scripted.Counting, {"deaths": {"red_1": 2}, "births": {"blue_2": 3}}),
        (scripted.Steering, {}),
        (scripted.Masked, {"where": "observation"}),
        (scripted.Auction, {"masks": True}),
        (scripted.counting, {"length": 4}),
    ],
)
def test_where_copies_run_changes_nothing(target: Any, options: dict[str, Any]) -> None:
    here = roll(adapter(target, options, copies=3), 12)
    for workers in ("threads", 2):
        there = adapter(target, options, copies=3, workers=workers)
        try:
            assert same(here, roll(there, 12)), workers
        finally:
            there.close()


def test_global_generators_belong_to_the_environment_while_it_runs() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.default_generator.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())  # type: ignore[index]
    here = adapter(scripted.GlobalNoise, copies=3)
    first = roll(here, 8)
    after = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist())  # type: ignore[index]
    assert before == after
    random.seed(2)
    np.random.seed(2)
    assert same(first, roll(here, 8))
    apart = adapter(scripted.GlobalNoise, copies=3, workers=2)
    assert same(first, roll(apart, 8))
    apart.close()
    assert same(first, roll(adapter(scripted.GlobalNoise, first_copy=2), 8), slice(2, 3))
    assert first[0].obs[0, 0, 0] != first[0].obs[1, 0, 0]


def test_threads_refuse_an_environment_that_draws_from_global_generators() -> None:
    env = adapter(scripted.GlobalNoise, copies=2, workers="threads")
    with pytest.raises(EnvironmentFault, match="draws from the global random generators"):
        env.reset(Key.of(0))
    env.close()


def test_what_an_environment_prints_does_not_disturb_its_process() -> None:
    env = adapter(scripted.Chatty, copies=2, workers=1)
    assert same(roll(adapter(scripted.Counting, copies=2), 5), roll(env, 5))
    env.close()


def children(env: Adapter) -> list[Any]:
    return env._place.children  # type: ignore[attr-defined]


def test_a_fault_in_a_process_is_told_as_here() -> None:
    env = adapter(scripted.Faulty, {"fault": "raises"}, copies=3, workers=2)
    with pytest.raises(EnvironmentFault, match=FAULTS["raises"][1]) as caught:
        roll(env, 5)
    assert "division by cucumber" in str(caught.value.__cause__) and "Traceback" in str(caught.value.__cause__)
    assert all(child.process.poll() is not None for child in children(env))


@pytest.mark.parametrize(("fault", "words"), [("exits", "ended with exit code 3"), ("killed", "ended by signal 9")])
def test_a_dying_process_is_noticed_at_once(fault: str, words: str) -> None:
    env = adapter(scripted.Faulty, {"fault": fault}, copies=2, workers=2)
    timestep = env.reset(Key.of(0))
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match=f"Faulty: the process of copy 0 .*{words}"):
        for _ in range(5):
            timestep = env.step(chosen(env, timestep, Key.of(0)))
    assert time.monotonic() - start < 30  # at once, and not when its time is up
    assert all(child.process.poll() is not None for child in children(env))


def test_a_hanging_process_is_killed_in_time() -> None:
    env = adapter(scripted.Faulty, {"fault": "hangs"}, copies=1, workers=1, timeout=5.0)
    env._place.timeout = 0.3  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentFault, match="did not answer within .* seconds and was killed"):
        roll(env, 5)
    assert children(env)[0].process.poll() is not None


def test_closing_leaves_no_process() -> None:
    env = adapter(scripted.Counting, copies=2, workers=2)
    env.reset(Key.of(0))
    pids = [child.process.pid for child in children(env)]
    env.close()
    env.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_ends_with_its_parent_even_when_it_hangs() -> None:
    program = (
        "import os, threading, torch\n"
        "from mfmarl.population.adapter import Adapter\n"
        "from mfmarl.population.third_party import maker_of\n"
        "from mfmarl.random import Key\n"
        "from tests.population import scripted\n"
        "env = Adapter(maker_of(scripted.Faulty, {'fault': 'hangs', 'at': 1}), workers=1)\n"
        "env.reset(Key.of(0))\n"
        "print(env._place.children[0].process.pid, flush=True)\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()\n"
        "env.step(torch.zeros_like(env.ids))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=60)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_what_another_process_cannot_make_is_refused() -> None:
    with pytest.raises(ConfigError, match="another process cannot import"):
        Adapter(lambda: scripted.Counting(), workers=1)
    with pytest.raises(ConfigError, match="one instance can be one copy here"):
        Adapter(maker_of(scripted.Counting()), copies=2)


# ---------------------------------------------------------------------------------------- resuming, pictures


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (scripted.Counting, {"deaths": {"red_1": 2}, "births": {"blue_2": 3}}),
        (scripted.Steering, {}),
        (scripted.Auction, {"masks": True}),
        (scripted.GlobalNoise, {}),
    ],
)
@pytest.mark.parametrize("stop", [0, 3, 8])
def test_a_resumed_run_is_the_one_that_never_stopped(target: Any, options: dict[str, Any], stop: int) -> None:
    through = roll(adapter(target, options, copies=2), 20)
    first = adapter(target, options, copies=2)
    head = roll(first, stop)
    state = first.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    again = adapter(target, options, copies=2)
    again.reset(Key.of(77))
    timestep = again.load_state_dict(state)
    assert same([timestep], [head[-1]])
    tail = roll(again, 20 - stop, timestep, stop)
    assert same(through, head + tail)


def test_a_run_is_resumed_in_other_processes() -> None:
    through = roll(adapter(scripted.Counting, copies=3), 15)
    first = adapter(scripted.Counting, copies=3)
    head = roll(first, 8)
    apart = adapter(scripted.Counting, copies=3, workers=2)
    tail = roll(apart, 7, apart.load_state_dict(first.state_dict()), 8)
    apart.close()
    assert same(through, head + tail)


def test_an_environment_that_is_not_a_function_of_its_seed_cannot_be_resumed() -> None:
    env = adapter(scripted.Forgetful)
    roll(env, 2)
    with pytest.raises(CheckpointError, match="Forgetful: .* is not a function of its seed"):
        adapter(scripted.Forgetful).load_state_dict(env.state_dict())


def test_a_foreign_checkpoint_is_refused() -> None:
    env = adapter(scripted.Counting, copies=2)
    roll(env, 2)
    state = env.state_dict()
    with pytest.raises(CheckpointError, match="holds 2 copies .* expected 1"):
        adapter(scripted.Counting).load_state_dict(state)
    with pytest.raises(CheckpointError, match="lacks or garbles 'digest'"):
        adapter(scripted.Counting, copies=2).load_state_dict({k: v for k, v in state.items() if k != "digest"})
    longer = {**state, "log.0": torch.cat([state["log.0"]] * 9)}
    with pytest.raises(CheckpointError):
        adapter(scripted.Counting, copies=2).load_state_dict(longer)


def test_drawing_changes_nothing() -> None:
    plain = roll(adapter(scripted.Counting, copies=2), 15)
    env = adapter(scripted.Counting, copies=2)
    timestep = env.reset(Key.of(0))
    seen = [timestep]
    for t in range(15):
        for copy in ([1], [0, 1], [1])[t % 3]:
            picture = env.render(copy)
            assert picture is not None and picture.dtype == torch.uint8 and picture.shape == (256, 320, 3)
            assert picture.eq(int(timestep.step[copy])).all()
        timestep = env.step(chosen(env, timestep, Key.of(99).fold(t)))
        seen.append(timestep)
        timestep = env.restart(timestep)
        seen.append(timestep)
    assert same(plain, seen)


def test_an_environment_without_pictures_has_none() -> None:
    env = adapter(scripted.Steering)
    env.reset(Key.of(0))
    assert env.render() is None


def test_a_copy_that_is_not_there_cannot_be_drawn() -> None:
    env = adapter(scripted.Counting)
    env.reset(Key.of(0))
    with pytest.raises(ConfigError, match="no copy 1"):
        env.render(1)


# ------------------------------------------------------------------------------------------------- one door


@dataclass(frozen=True)
class Toy(PopulationEnv):
    """An environment of this package's own kind."""

    n: int = 4

    def spec(self) -> Spec:
        return Spec(self.n, box(1), spaces.Discrete(2), horizon=10)

    def reset(self, ids: Tensor, key: Key) -> Any:
        return (torch.zeros(ids.shape),)

    def observe(self, state: Any) -> Tensor:
        return state[0].unsqueeze(-1)

    def step(self, state: Any, action: Tensor, ids: Tensor, key: Key) -> tuple[Any, Tensor]:
        return state, action.float()


def toy(n: int = 4) -> Toy:
    return Toy(n)


def test_every_kind_of_environment_opens() -> None:
    for what, options in [(Toy, {"n": 3}), (Toy(3), {}), (toy, {"n": 3})]:
        env = open_env(what, options, copies=2, max_steps=5)
        assert isinstance(env, Simulation) and env.spec.num_agents == 3 and env.copies == 2 and env.spec.horizon == 5
    for what, options in [
        (scripted.Counting, {"length": 2}),
        (scripted.counting, {"length": 2}),
        (scripted.Auction, {}),
    ]:
        third = open_env(what, options, copies=2)
        assert isinstance(third, Adapter) and third.copies == 2
    one = open_env(scripted.Counting(2))
    assert isinstance(one, Adapter)
    assert len(roll(one, 5)) == 11


def test_a_users_file_opens_by_path_and_runs_in_processes(tmp_path: Path) -> None:
    source = "from tests.population.scripted import Counting\nclass Mine(Counting):\n    '''My own.'''\n"
    path = tmp_path / "my_env.py"
    path.write_text(source)
    name = f"{path}:Mine"
    env = open_env(name, {"length": 3}, copies=2, workers=2)
    there = roll(env, 5)
    env.close()
    assert same(roll(open_env(name, {"length": 3}, copies=2), 5), there)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("counting", {"lenght": 3}, "Counting has no option 'lenght'. Did you mean 'length'. It has: agents, births"),
        ("counting", {"length": 2.5}, "the option length must be a whole number, as its default 6, not 2.5"),
        ("counting", {"length": True}, "the option length must be a whole number"),
        ("counting", {"length": "many"}, "the option length must be a whole number, as its default 6, not 'many'"),
        (
            "mpe2/simple_sprad_v3",
            {},
            "Unknown environment 'mpe2/simple_sprad_v3'. Did you mean 'mpe2/simple_spread_v3'",
        ),
        ("mpe2/simple_spread_v3", {"n": 2}, "has no option 'n'. Did you mean 'N'"),
        ("mpe2/simple_spread_v3", {"max_cycles": "25.5"}, "max_cycles must be a whole number"),
        ("mpe2/simple_spread_v3", {"N": -3}, r"mpe2/simple_spread_v3 .*N=-3"),
        ("magent2/battle_v5", {}, "Did you mean 'magent2/battle_v4'"),
        (
            "magent2/battle_v4",
            {"map_size": 5},
            r"refuses its options \(map_size=5\): .*size of map must be at least 12",
        ),
        ("magent2/battle_v4", {"step_rewards": 0.1}, "Did you mean 'step_reward'"),
        ("magent2/gather_v5", {"map_size": 20}, "magent2/gather_v5 has no option 'map_size'"),
        ("pettingzoo/sisl/persuit-v5", {}, "Did you mean 'pettingzoo/sisl/pursuit-v5'"),
        ("pettingzoo/classic/rps-v2", {"num_actons": 3}, "Did you mean 'num_actions'"),
    ],
)
def test_a_wrong_name_or_option_is_answered_in_one_sentence(name: str, options: dict[str, Any], words: str) -> None:
    package = name.partition("/")[0]
    if "/" in name:
        pytest.importorskip(package)
    with pytest.raises(MfmarlError, match=words) as caught:
        open_env(scripted.Counting if name == "counting" else name, options)
    assert "\n" not in str(caught.value) and isinstance(caught.value, ConfigError | EnvironmentFault)


def test_words_from_the_command_line_are_read() -> None:
    env = open_env(scripted.Counting, {"length": "3"})
    assert isinstance(env, Adapter) and env.maker.options == {"length": 3}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("magent2/battle_v4", r"needs magent2, which is not installed: pip install 'mfmarl\[magent\]'"),
        ("mpe2/simple_v3", "needs mpe2, which is not installed: pip install mpe2"),
    ],
)
def test_what_is_not_installed_is_named_with_the_command(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = third_party.importlib.util.find_spec
    monkeypatch.setattr(
        third_party.importlib.util, "find_spec", lambda n, *a: None if n in ("magent2", "mpe2") else find(n, *a)
    )
    with pytest.raises(ConfigError, match=words):
        open_env(name)
    assert not any(n.startswith(("magent2", "mpe2")) for n in third_party.names())


def test_a_missing_dependency_of_an_environment_is_named() -> None:
    pytest.importorskip("pygame")
    if third_party.importlib.util.find_spec("rlcard") is not None:
        pytest.skip("rlcard is installed")
    with pytest.raises(
        ConfigError, match=r"needs the package 'rlcard', which is not installed: pip install 'pettingzoo\[cl"
    ):
        open_env("pettingzoo/classic/leduc_holdem-v4")


def test_names_are_listed_without_importing_them() -> None:
    program = (
        "import sys; from mfmarl.population import third_party; print(*third_party.names()); "
        "assert not {'torch', 'numpy', 'gymnasium', 'pettingzoo', 'magent2', 'mpe2', 'pygame'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in done.stdout.split():
        assert registry.lookup("environment", name).name == name


# ------------------------------------------------------------------------------------------ real environments


@pytest.mark.parametrize("continuous", [False, True])
def test_spread_is_the_game_that_its_own_loop_plays(continuous: bool) -> None:
    mpe2 = pytest.importorskip("mpe2.simple_spread_v3")
    env = open_env("mpe2/simple_spread_v3", {"continuous_actions": continuous}, copies=2)
    raw = mpe2.parallel_env(continuous_actions=continuous)
    timestep = env.reset(Key.of(3))
    obs, _ = raw.reset(seed=seed_for(Key.of(3).fold("episode", 1, 0)))
    for t in range(25):
        assert torch.equal(timestep.obs[1], torch.tensor(np.stack(list(obs.values()))))
        action = chosen(env, timestep, Key.of(99).fold(t))
        timestep = env.step(action)
        own = action[1].tolist() if env.spec.discrete else list(action[1].numpy())
        obs, reward, _, truncated, _ = raw.step(dict(zip(raw.agents, own, strict=True)))
        assert torch.equal(timestep.reward[1], torch.tensor(list(reward.values()), dtype=torch.float32))
    assert all(truncated.values()) and timestep.truncated.all() and timestep.ended.all()


@pytest.mark.parametrize(
    ("name", "groups", "shape", "actions"),
    [
        ("mpe2/simple_tag_v3", {"adversary": 3, "agent": 1}, (16,), 5),
        ("mpe2/simple_world_comm_v3", {"leadadversary": 1, "adversary": 3, "agent": 2}, (34,), 20),
        ("pettingzoo/classic/rps-v2", {"player": 2}, (), 3),
        ("pettingzoo/classic/tictactoe-v3", {"player": 2}, (3, 3, 2), 9),
        ("pettingzoo/classic/connect_four-v3", {"player": 2}, (6, 7, 2), 7),
        ("pettingzoo/sisl/pursuit-v5", {"pursuer": 8}, (7, 7, 3), 5),
    ],
)
def test_real_environments_play_and_resume(
    name: str, groups: dict[str, int], shape: tuple[int, ...], actions: int
) -> None:
    try:
        env = open_env(name, copies=2, max_steps=30)
    except ConfigError as error:
        pytest.skip(str(error))
    spec = env.spec
    assert dict(zip(spec.groups, spec.group_sizes, strict=True)) == groups
    assert spec.observation_shape == shape and spec.num_actions == actions
    seen = roll(env, 40)
    again = open_env(name, copies=2, max_steps=30)
    tail = roll(again, 5, again.load_state_dict(env.state_dict()), 40)
    assert same(roll(env, 5, seen[-1], 40), tail)
    assert any(t.ended.any() for t in seen)


def test_tic_tac_toe_ends_with_a_winner_and_a_loser() -> None:
    try:
        env = open_env("pettingzoo/classic/tictactoe-v3")
    except ConfigError as error:
        pytest.skip(str(error))
    timestep = env.reset(Key.of(0))
    paid = torch.zeros(2)
    for move in (0, 3, 1, 4, 2):  # the first player fills a column
        assert timestep.acting.sum() == 1
        timestep = env.step(torch.full_like(env.ids, move))
        paid += timestep.reward[0]
    assert timestep.ended.all() and timestep.terminated.all() and paid.tolist() == [1, -1]


def test_one_who_had_a_mask_and_has_none_is_warned_of_once() -> None:
    class Forgetful(scripted.Masked):
        def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
            *answer, infos = super().step(actions)
            return *answer, {agent: {} for agent in infos}  # type: ignore[return-value]

    env = adapter(Forgetful, {"where": "info"})
    t = env.reset(Key.of(0))
    assert t.legal is not None and not bool(t.legal.all())
    first = t.legal.long().argmax(-1)
    with pytest.warns(UserWarning, match="had an action mask and has none"):
        t = env.step(first)
    assert t.legal is not None and bool(t.legal.all())
    env.step(torch.zeros_like(first))  # told once: another warning would be an error here


def test_memory_that_an_environment_lacks_is_told_as_what_it_raised() -> None:
    class Greedy(scripted.Masked):
        def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
            raise MemoryError

    env = adapter(Greedy, {"where": "info"})
    t = env.reset(Key.of(0))
    assert t.legal is not None
    with pytest.raises(
        EnvironmentFault, match=r"step\(\) raised MemoryError in copy 0 at step 1 \(test_adapter.py, line"
    ):
        env.step(t.legal.long().argmax(-1))
