"""`FaultyEnv` is right without a fault, and wrong in the way that is named with one."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, seed_test
from pettingzoo.utils.conversions import parallel_to_aec

import mfmarl.testing
from mfmarl.errors import ConfigError
from mfmarl.testing.faults import FAULTS, of_form
from mfmarl.testing.faulty_env import FaultyAECEnv, FaultyEnv, faulty, maker
from mfmarl.testing.small_game import CHOICES, LIFE, MASKS, OBSERVATIONS

GAMES: list[dict[str, Any]] = [
    {"observation": observation, "actions": actions, "mask": mask, "deaths": deaths}
    for observation, actions, mask, deaths in itertools.product(OBSERVATIONS, CHOICES, MASKS, (True, False))
    if not (actions == "box" and mask != "none")
]


@pytest.mark.parametrize("game", GAMES, ids=["-".join(map(str, game.values())) for game in GAMES])
def test_without_a_fault_it_passes_all_of_pettingzoos_tests(game: dict[str, Any]) -> None:
    parallel, turns = maker(None, "parallel", **game), maker(None, "aec", **game)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        parallel_api_test(parallel(), 30)
        parallel_seed_test(parallel, 30)
        api_test(parallel_to_aec(parallel()), 30)
        seed_test(lambda: parallel_to_aec(parallel()), 30)
        api_test(turns(), 30)
        seed_test(turns, 30)
    # They would rather have no dictionaries, and no Box without bounds, both of which are allowed.
    doubts = ("not a NumPy array", "should be gymnasium.spaces.box", "space value is")
    assert not [str(one.message) for one in told if not any(doubt in str(one.message) for doubt in doubts)]


def _moves(env: Any) -> dict[str, Any]:
    return {name: np.int64(i % 3) for i, name in enumerate(env.agents)}


def _played(env: FaultyEnv, steps: int = 12, seed: int = 0) -> list[Any]:
    """(reset's answer, each step's answer), as they were returned, until nobody is left."""
    answers = [env.reset(seed)]
    for _ in range(steps):
        if not env.agents:
            break
        answers.append(env.step(_moves(env)))
    return answers


def test_the_right_game_ends_as_it_says() -> None:
    env = FaultyEnv()
    answers = _played(env)
    assert len(answers) == 13
    assert env.agents == []
    assert answers[LIFE][2] == {"walker_0": False, "walker_1": False, "walker_2": True}
    assert set(answers[LIFE + 1][0]) == {"walker_0", "walker_1"}
    assert answers[12][3] == {"walker_0": True, "walker_1": True}
    assert answers[12][2] == {"walker_0": False, "walker_1": False}


def test_both_forms_play_the_same_game() -> None:
    parallel, turns = FaultyEnv(), FaultyAECEnv()
    answers = _played(parallel, seed=5)
    turns.reset(5)
    for answer in answers[1:]:
        live = [name for name in turns.agents if not (turns.terminations[name] or turns.truncations[name])]
        for i, name in enumerate(live):
            assert turns.agent_selection == name
            turns.step(np.int64(i % 3))
        for name in live:
            assert turns.rewards[name] == answer[1][name]
            assert (turns.terminations[name], turns.truncations[name]) == (answer[2][name], answer[3][name])
            assert np.array_equal(turns.observe(name), answer[0][name])
        while turns.agents and (turns.terminations[turns.agent_selection] or turns.truncations[turns.agent_selection]):
            turns.step(None)
    assert turns.agents == []


def test_there_are_far_more_than_sixty_faults_and_each_is_told_in_a_sentence() -> None:
    assert len(FAULTS) >= 160
    assert len(of_form("parallel")) >= 60
    assert len(of_form("aec")) >= 60
    for name, fault in FAULTS.items():
        assert fault.name == name
        assert fault.does.endswith(".")
        assert fault.forms
    assert {fault.case for fault in FAULTS.values()} >= {*range(39, 52), *range(55, 61)} - {52, 53, 54}
    assert mfmarl.testing.FAULTS is FAULTS
    assert mfmarl.testing.FaultyEnv is FaultyEnv


@pytest.mark.parametrize("at", [1, 4])
def test_a_fault_strikes_at_its_step_and_not_before(at: int) -> None:
    answers = _played(FaultyEnv("nan-reward", at=at))
    assert [t for t, answer in enumerate(answers) if t and math.isnan(answer[1]["walker_0"])] == [at]


# What some of the faults come to, seen from outside.
SEEN = {
    "inf-in-an-unbounded-box": lambda a: np.isinf(a[3][0]["walker_0"]).any(),
    "string-reward": lambda a: isinstance(a[3][1]["walker_0"], str),
    "float64-observation": lambda a: a[3][0]["walker_0"].dtype == np.float64,
    "missing-reward": lambda a: "walker_0" not in a[3][1],
    "observation-buffer-reused": lambda a: a[1][0]["walker_0"] is a[2][0]["walker_0"],
    "observation-shared": lambda a: a[1][0]["walker_0"] is a[1][0]["walker_1"],
    "int-flags": lambda a: type(a[1][2]["walker_0"]) is int,
    "both-flags": lambda a: a[-1][2]["walker_0"] and a[-1][3]["walker_0"],
    "revival": lambda a: "walker_2" not in a[LIFE + 1][0] and "walker_2" in a[LIFE + 2][0],
    "vanishing": lambda a: "walker_0" not in a[4][0] and not a[3][2]["walker_0"] and not a[3][3]["walker_0"],
    "one-step-episodes": lambda a: len(a) == 2,
    "ends-at-reset": lambda a: len(a) == 1,
    "mask-of-zeros": lambda a: not a[3][4]["walker_0"]["action_mask"].any(),
    "four-values": lambda a: len(a[1]) == 4,
    "none-info": lambda a: a[3][4]["walker_0"] is None,
}


@pytest.mark.parametrize("name", SEEN)
def test_a_fault_is_what_its_name_says(name: str) -> None:
    assert SEEN[name](_played(FaultyEnv(name)))
    if name != "four-values":
        options = dict(FAULTS[name].needs)
        assert len(_played(FaultyEnv(**options))) == 13
        assert not _safely(SEEN[name], _played(FaultyEnv(**options)))


def _safely(look: Any, answers: list[Any]) -> bool:
    try:
        return bool(look(answers))
    except (KeyError, IndexError):
        return False


@pytest.mark.parametrize(
    ("name", "same"),
    [
        (None, True),
        ("unseeded", False),
        ("unseeded-later", False),
        ("state-of-the-class", False),
        ("seed-ignored", True),
    ],
)
def test_randomness_is_of_the_seed_unless_the_fault_says_otherwise(name: str | None, same: bool) -> None:
    one, other = (_played(FaultyEnv(name), seed=3)[-1][1] for _ in range(2))
    assert (one == other) == same
    another = _played(FaultyEnv(name), seed=4)[-1][1]
    assert (one == another) == (name == "seed-ignored")


def test_actions_outside_the_space_and_calls_out_of_turn_are_refused() -> None:
    env = FaultyEnv()
    with pytest.raises(RuntimeError, match="before reset"):
        env.step({})
    env.reset(0)
    with pytest.raises(ValueError, match="outside"):
        env.step(dict.fromkeys(env.agents, 3))
    with pytest.raises(ValueError, match="walker_0 has not chosen"):
        FaultyEnv.step(env, {})


def test_unknown_faults_and_options_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nan-reward"):
        FaultyEnv("nan-rewards")
    with pytest.raises(ConfigError, match="not of parallel ones"):
        FaultyEnv("selection-stuck")
    with pytest.raises(ConfigError, match="discrete"):
        FaultyEnv(observation="discreet")
    assert isinstance(faulty("selection-stuck", "aec"), FaultyAECEnv)
