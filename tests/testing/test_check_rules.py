"""`check_rules` finds every fault of rules that is planted, and none where none is."""

from __future__ import annotations

import random as python_random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.population.environment import PopulationEnv
from mfmarl.registry import entries, lookup
from mfmarl.testing import check_games
from mfmarl.testing.check_rules import check_rules, same
from mfmarl.testing.faulty_rules import GAME_FAULTS, RULE_FAULTS, FaultyGame, FaultyRules
from mfmarl.testing.notes import REMEDIES

NAMES = [name for name, entry in entries("environment").items() if entry.origin == "mfmarl"]
FEW = ("ising", "left_right", "foraging", "t_maze")
SMALL: dict[str, dict[str, Any]] = {
    "ising": {"num_agents": 5, "graph": "complete", "order": "sequential", "horizon": 4},
    "predator_prey": {"num_agents": 3, "size": 3},
    "foraging": {"num_agents": 2},
    "aliased_grid": {"map": "rooms", "slip": 0.2, "misread": 0.1, "horizon": 7},
    "frozen_lake_swap": {"map": "8x8", "swap_at": (2, 5), "success_rate": 0.8},
    "t_maze": {"layout": "corridor", "absorbing": False, "horizon": 6},
    "crowd_modelling_2d": {"map": "torus", "goal": True, "size": 5, "horizon": 4},
}

# What each planted fault must be called (other codes may stand beside it).
NAMED = {
    "spec-changes": "spec-changes",
    "no-spec": "no-spec",
    "reset-raises": "rule-raises",
    "step-raises": "rule-raises",
    "state-a-tuple": "not-a-named-tuple",
    "state-holds-a-number": "state-not-tensors",
    "state-without-copies": "state-shape",
    "state-grows": "state-changes-shape",
    "state-changes-type": "state-changes-shape",
    "writes-state": "writes-state",
    "observe-writes-state": "writes-state",
    "writes-action": "writes-action",
    "global-torch": "draws-global-noise",
    "global-numpy": "draws-global-noise",
    "global-python": "draws-global-noise",
    "own-generator": "not-a-function",
    "clock": "not-a-function",
    "memory": "remembers",
    "slow-memory": "remembers",
    "noise-by-position": "copies-mix",
    "copies-averaged": "copies-mix",
    "copies-normalised": "copies-mix",
    "reward-nan": "reward-not-finite",
    "reward-float64": "reward-type",
    "reward-per-copy": "reward-shape",
    "reward-nested": "reward-shape",
    "reward-buffer": "value-changes-later",
    "step-alone": "not-a-pair",
    "observation-outside": "observation-outside-space",
    "observation-nan": "observation-not-finite",
    "observation-float64": "observation-type",
    "observation-short": "observation-shape",
    "legal-shape": "legal-shape",
    "legal-float": "legal-type",
    "nothing-legal": "no-legal-action",
    "revival": "revival",
    "alive-int": "alive-type",
    "dead-asked": "dead-asked",
    "done-per-agent": "done-shape",
    "done-int": "done-type",
    "measure-per-agent": "measure-shape",
    "measure-number": "measure-shape",
    "measure-nan": "measure-not-finite",
    "measure-float64": "measure-type",
    "measures-change": "measures-change",
    "position-float64": "position-type",
    "standing-outside": "standing-outside-space",
    "own-state-wrong": "own-state-not-per-agent",
    "picture-float": "picture-type",
    "picture-flat": "picture-shape",
    "picture-writes-state": "writes-state",
    "reference-bare": "reference-type",
    "reference-unsourced": "reference-without-source",
    "reference-unmeasured": "reference-not-measured",
    "reference-nan": "reference-not-finite",
}
NAMED_GAMES = {
    "initial-sum": "initial-distribution",
    "initial-negative": "initial-distribution",
    "outcomes-sum": "kernel-not-a-distribution",
    "outcomes-negative": "kernel-not-a-distribution",
    "successor-outside": "successor-outside",
    "rewards-infinite": "rewards-not-finite",
    "rewards-shape": "rewards-shape",
    "nothing-allowed": "no-legal-action",
    "moves-otherwise": "crowd-differs",
    "moves-impossibly": "successor-impossible",
    "moves-slightly-otherwise": "crowd-differs",
}


def _codes(rules: PopulationEnv, **how: Any) -> list[str]:
    return [finding.code for finding in check_rules(rules, **how)]


def test_every_fault_of_rules_has_a_name_to_be_found_by() -> None:
    assert NAMED.keys() == RULE_FAULTS.keys()
    assert NAMED_GAMES.keys() == GAME_FAULTS.keys()
    assert {*NAMED.values(), *NAMED_GAMES.values()} <= REMEDIES.keys()


@pytest.mark.parametrize("fault", RULE_FAULTS)
def test_a_planted_fault_of_rules_is_found_and_named(fault: str) -> None:
    found = check_rules(FaultyRules(fault=fault))
    assert NAMED[fault] in [finding.code for finding in found]
    for finding in found:
        assert finding.message.startswith("FaultyRules: ")
        assert finding.remedy.endswith(".")
        assert finding.level == ("warning" if finding.code == "dead-asked" else "error")


@pytest.mark.parametrize("fault", GAME_FAULTS)
def test_a_planted_fault_of_a_mean_field_game_is_found_and_named(fault: str) -> None:
    assert NAMED_GAMES[fault] in _codes(FaultyGame(fault=fault))


@pytest.mark.parametrize("rules", [FaultyRules(), FaultyGame(), FaultyGame(num_agents=30), FaultyRules(num_agents=2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_right_rules_are_not_accused(rules: PopulationEnv, seed: int) -> None:
    assert _codes(rules, seed=seed) == []


@pytest.mark.parametrize("name", FEW)
def test_rules_of_this_package_are_right(name: str) -> None:
    make = lookup("environment", name).load()
    assert _codes(make(), references=False, steps=8) == []


@pytest.mark.verify
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_all_rules_of_this_package_are_right(name: str, seed: int) -> None:
    make = lookup("environment", name).load()
    assert _codes(make(), references=seed == 0, steps=25, seed=seed) == []
    small = dict(SMALL.get(name, {}))
    if not small and "num_agents" in {field.name for field in fields(make)}:
        small = {"num_agents": max(4, len(make().spec().groups))}
    try:
        rules = make(**small)
    except ConfigError:
        return  # too few for its own options
    assert _codes(rules, references=False, steps=25, seed=seed) == []


def test_a_check_leaves_the_global_generators_as_they_were() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()  # type: ignore[index,union-attr]
    check_rules(FaultyRules(fault="global-torch"))
    check_rules(FaultyRules(fault="global-numpy"))
    check_rules(FaultyRules(fault="global-python"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert bool((before[1] == np.random.get_state()[1]).all())  # type: ignore[index]
    assert before[2] == python_random.getstate()


def test_the_first_place_of_a_fault_is_named() -> None:
    (finding,) = (f for f in check_rules(FaultyRules(fault="reward-nan")) if f.code == "reward-not-finite")
    assert "step 3" in finding.message
    assert "[0, 0]" in finding.message
    (finding,) = (f for f in check_rules(FaultyRules(fault="step-raises")) if f.code == "rule-raises")
    assert "ValueError" in finding.message
    assert "the floor gave way" in finding.message


def test_equal_to_the_last_bit_minds_type_shape_and_nan() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert same(nan, nan.clone())
    assert not same(nan, torch.tensor([1.0, 7.125]))
    assert not same(nan, nan.double())
    assert not same(torch.zeros(2), torch.zeros(2, 1))
    assert not same(None, torch.zeros(1))
    assert same(None, None)


def test_agents_are_held_against_a_law_that_accuses_the_right_ones_next_to_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The bound is Bernstein's: over these seeds the least likely count of right rules stays far above the alarm, and
    # of slightly wrong ones far below.
    monkeypatch.setattr(check_games, "ALARM", 1e-4)
    assert not [seed for seed in range(10) if "crowd-differs" in _codes(FaultyGame(), seed=seed, steps=1)]
    monkeypatch.setattr(check_games, "ALARM", 1e-9)
    wrong = FaultyGame(fault="moves-slightly-otherwise")
    assert all("crowd-differs" in _codes(wrong, seed=seed, steps=1) for seed in range(3))


def test_rules_say_what_is_asked_of_them_so_that_a_slow_reference_is_no_hang() -> None:
    said: list[str] = []
    assert check_rules(FaultyRules(), told=said.append) == []
    assert {"reset() of the rules on tensors", "reference() of the rules on tensors"} <= set(said)
