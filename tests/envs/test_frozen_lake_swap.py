"""The frozen lake that swaps: its rules are its model and Gymnasium's, and the optimum is counted by hand where one can."""

from __future__ import annotations

import itertools

import gymnasium
import pytest
import torch
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from mfmarl.envs.frozen_lake_swap import MAPS, FrozenLakeSwap
from mfmarl.errors import ConfigError
from mfmarl.inference import reachable
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.envs.by_model import assert_rules_are_the_model

LEFT, DOWN, RIGHT, UP = range(4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"success_rate": 0.9, "swap": 0.5, "preference": 3.0, "hole": 7},
        {"rows": ("SH", "FG"), "success_rate": 1.0, "swap": 1.0},
    ],
)
def test_the_rules_are_the_model(options):
    env = FrozenLakeSwap(50, **options)
    seen = assert_rules_are_the_model(env, steps=30)
    assert seen == env.generative_model().num_states * 4


@pytest.mark.parametrize("name", ["4x4", "8x8"])
@pytest.mark.parametrize("success_rate", [1 / 3, 0.8, 1.0])
def test_the_ice_is_gymnasiums(name: str, success_rate: float) -> None:
    peer = gymnasium.make("FrozenLake-v1", map_name=name, is_slippery=True, success_rate=success_rate).unwrapped
    assert isinstance(peer, FrozenLakeEnv)
    env = FrozenLakeSwap(map=name, success_rate=success_rate)  # type: ignore[arg-type]
    assert tuple("".join(row.astype(str)) for row in peer.desc) == MAPS[name]  # type: ignore[union-attr,attr-defined]
    table = env.generative_model().B[0]
    for cell, sign in enumerate(env.cells):
        for action in range(4):
            wanted = torch.zeros(len(env.cells), dtype=torch.float64)
            if sign in "GH":
                wanted[0] = 1  # there the trial is over; here the next one begins
            else:
                for chance, to, _, _ in peer.P[cell][action]:
                    wanted[to] += chance
            torch.testing.assert_close(table[:, cell, action], wanted, rtol=0, atol=1e-12)


def test_the_hole_that_swaps_is_the_last_rows_first_or_the_one_named():
    assert FrozenLakeSwap().goals == (15, 12)
    assert FrozenLakeSwap(map="8x8").goals == (63, 59)
    assert FrozenLakeSwap(hole=5).goals == (15, 5)
    assert FrozenLakeSwap(rows=("SHF", "HFF", "FFG")).goals == (8, 3)


def test_without_slipping_the_optimum_is_the_one_counted_by_hand():
    # Three steps down to cell 12 or six to cell 15, then one more back. Contexts never swap: the first landing tells.
    # Look at the near one: with a half it is the goal, and again every 4 steps; else from then on every 7 steps.
    horizon = 200
    env = FrozenLakeSwap(1, success_rate=1.0, swap=0.0, horizon=horizon)
    near = (horizon + 1) // 4
    far = (horizon - 4 + 1) // 7
    assert env.reference()["reward"].value == pytest.approx((near + far) / 2 / horizon, abs=1e-12)


def test_when_every_trial_swaps_one_goes_to_and_fro():
    # Found once, the goal is at the other place every other trial: 4 + 7 steps bring two rewards.
    horizon = 1100
    env = FrozenLakeSwap(1, success_rate=1.0, swap=1.0, horizon=horizon)
    assert env.reference()["reward"].value == pytest.approx(2 / 11, abs=4 / horizon)


def test_the_less_is_known_of_swaps_the_less_is_earned():
    found = [
        FrozenLakeSwap(1, success_rate=1.0, swap=w, horizon=300).reference()["reward"].value for w in (0, 0.1, 0.5)
    ]
    seeing = reachable.with_known_states(FrozenLakeSwap(success_rate=1.0, swap=0.5).generative_model(), 300) / 300
    assert found[0] > found[1] > found[2]
    assert seeing > found[2]


def test_context_changes_only_after_a_landing():
    env = FrozenLakeSwap(2000, swap=1.0)
    ids, key = agent_ids(2, 2000), Key.of(0)
    state = env.reset(ids, key)
    changed = 0
    for t in range(40):
        landed = env.observe(state) % 3 != 0
        after, _ = env.step(state, (ids + t) % 4, ids, key.fold(t))
        assert torch.equal(after.swapped != state.swapped, landed)
        assert bool((after.cell[landed] == 0).all())
        changed += int(landed.sum())
        state = after
    assert changed > 1000


def test_all_lakes_swap_at_the_steps_named_and_the_model_does_not_know():
    env = FrozenLakeSwap(100, swap=0.0, swap_at=(3, 5), success_rate=1.0)
    simulation = Simulation(env, 2)
    simulation.reset(Key.of(0))
    seen = [simulation.state.swapped]
    for _ in range(6):
        simulation.step(torch.full_like(simulation.ids, UP))
        seen.append(simulation.state.swapped)
    changed = [bool((b != a).all()) for a, b in itertools.pairwise(seen)]
    same = [bool((b == a).all()) for a, b in itertools.pairwise(seen)]
    assert changed == [False, False, True, False, True, False]
    assert same == [True, True, False, True, False, True]
    assert torch.equal(env.generative_model().B[1], FrozenLakeSwap(swap=0.0).generative_model().B[1])
    assert env.reference() == {}


def test_an_agent_may_be_told_another_chance_of_swaps_and_the_optimum_stays():
    told, true = FrozenLakeSwap(swap=0.1, believed_swap=0.4), FrozenLakeSwap(swap=0.1)
    table = told.generative_model().B[1]
    assert table[1, 15, 0] == table[0, 15, 1] == 0.4
    assert table[1, 0, 0] == 0
    assert true.generative_model().B[1][1, 15, 0] == 0.1
    assert told.reference()["reward"].value == true.reference()["reward"].value


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"map": "3x3"}, "no map '3x3'"),
        ({"hole": 3}, r"hole = 3 is no hole .* \[5, 7, 11, 12\]"),
        ({"rows": ("SF", "FG")}, "holes H"),
        ({"rows": ("SFX", "FHG")}, "one S, one G"),
        ({"swap_at": (0,)}, "counts steps from 1"),
        ({"swap": 1.5}, "swap"),
    ],
)
def test_lakes_that_cannot_be_played_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        FrozenLakeSwap(**wrong)
