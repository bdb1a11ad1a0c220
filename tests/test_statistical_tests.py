"""The statistical tests are tested: what they say of their false alarms, and the bugs that they must find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from mfmarl import random
from mfmarl.random import Key
from tests.planted_bugs import BUGS, planted
from tests.statistical import BUDGET, WORST, FailedByOneSeed, beyond, reseeded, statistical, told

ROOT = Path(__file__).parents[1]
EXACT: dict[str, str] = {}
"""Tests that look statistical and are not: why."""
SAMPLE = ("tests/test_random.py", "tests/statmech/test_gibbs.py", "tests/statmech/test_weighted_sampling.py")
"""Files whose declared tests are run under their bugs with every change: they are fast, and the most depends on them."""


def run_planted(rule: str, out: Path, tests: list[str]) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.planted_bugs"]
    command += ["--planted", str(out), "--planted-rule", rule, *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def names(*files: str) -> list[str]:
    return [test.name for test in told(ROOT) if test.declared and (not files or test.name.startswith(files))]


def assert_all_found(rows: list[dict[str, object]]) -> None:
    unseen = [
        (row["test"], row["bug"], row["outcome"], row["said"]) for row in rows if row["raised"] != "AssertionError"
    ]
    assert rows
    assert not unseen, unseen


def test_every_statistical_test_declares_itself_and_names_two_bugs() -> None:
    for test in told(ROOT):
        assert test.declared or not test.looks or test.name in EXACT, (
            f"{test.name} compares with a standard error: declare it (tests/statistical.py), or say in EXACT why not"
        )
        if test.declared:
            assert len(set(test.declared.bugs)) >= 2, test.name
            assert set(test.declared.bugs) <= BUGS.keys(), test.name
    assert not [name for name in EXACT if name not in {test.name for test in told(ROOT)}], "no longer there"


def test_false_alarms_of_the_whole_suite_are_within_its_budget() -> None:
    declared = [test for test in told(ROOT) if test.declared]
    assert len(declared) > 100
    assert sum(test.declared.false_alarms for test in declared) <= BUDGET
    assert all(0 < test.declared.alpha <= WORST for test in declared)


def test_the_most_basic_tests_find_their_bugs(tmp_path: Path) -> None:
    assert_all_found(run_planted("declared", tmp_path / "rows", names(*SAMPLE)))


@pytest.mark.verify
def test_every_test_finds_its_bugs(tmp_path: Path) -> None:
    assert_all_found(run_planted("declared", tmp_path / "rows", names()))


@pytest.mark.verify
def test_other_seeds_alarm_as_seldom_as_declared(tmp_path: Path) -> None:
    """250 other seeds for each of a dozen tests: no more failures than 99.9 % of such experiments have."""
    tests = [test for test in told(ROOT) if test.declared and test.name.startswith(SAMPLE)][:12]
    rows = run_planted("salt:250", tmp_path / "rows", [test.name for test in tests])
    assert len(rows) >= 250 * len(tests)
    for test in tests:
        own = [row for row in rows if row["test"] == test.name]
        alarms = sum(row["outcome"] != "passed" for row in own)
        assert alarms <= stats.binom.ppf(0.999, len(own), test.declared.false_alarms), test.name


# The declaration itself.


def _tries(fails: list[bool], stages: int = 2) -> list[tuple[int, float, float]]:
    """What each try of a declared test drew, when it fails as said."""
    drawn: list[tuple[int, float, float]] = []

    @statistical(alpha=0.01, bugs=("hot-draws", "uniforms-lean"), stages=stages)
    def test() -> None:
        theirs = torch.rand(1, generator=torch.Generator().manual_seed(1)).item()
        drawn.append((Key.of(1).value, theirs, float(np.random.default_rng(1).random())))
        assert not fails[len(drawn) - 1]

    test()
    return drawn


def test_a_test_that_passes_is_tried_once() -> None:
    assert len(_tries([False])) == 1


def test_a_test_that_fails_is_tried_again_with_noise_of_its_own_and_says_so() -> None:
    with pytest.warns(FailedByOneSeed):
        first, second = _tries([True, False])
    assert all(one != other for one, other in zip(first, second, strict=True))
    with pytest.warns(FailedByOneSeed):
        assert _tries([True, False]) == [first, second]  # and the same every time


def test_a_test_that_fails_twice_fails() -> None:
    with pytest.raises(AssertionError):
        _tries([True, True])
    with pytest.raises(AssertionError):
        _tries([True, False], stages=1)


def test_other_noise_is_gone_afterwards() -> None:
    before = Key.of(3), torch.Generator, np.random.default_rng, np.random.default_rng(3).random()
    with pytest.raises(ValueError, match="^gone$"), reseeded(7):
        assert Key.of(3) != before[0]
        raise ValueError("gone")
    assert (Key.of(3), torch.Generator, np.random.default_rng, np.random.default_rng(3).random()) == before


def test_the_chance_of_an_alarm_is_that_of_normal_tails() -> None:
    assert beyond(5) == pytest.approx(5.733e-7, rel=1e-3)
    assert beyond(5, 12) == pytest.approx(12 * 2 * stats.norm.sf(5))
    assert beyond(5, 3, samples=24) == pytest.approx(3 * 2 * stats.t.sf(5, 23))
    assert beyond(1, 100) == 1


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_planted_and_taken_out_again(name: str) -> None:
    module, _, path = BUGS[name].target.partition(":")
    held: object = sys.modules.get(module) or __import__(module, fromlist=["x"])
    for part in path.split("."):
        owner, held = held, getattr(held, part)
    with planted(name):
        assert getattr(owner, part) != held
    assert getattr(owner, part) == held


def test_a_bug_reaches_those_who_imported_the_function_by_name() -> None:
    from mfmarl.statmech.sampling import block

    ids = torch.arange(1000)
    with planted("uniforms-lean"):
        assert float(random.uniform(Key.of(0), ids).mean()) < 0.49
    with planted("leaning-coins"):
        leaning = block.bernoulli(torch.full((1000, 64), 0.5), ids, Key.of(0)).mean()
    assert float(leaning) < 0.47 < float(block.bernoulli(torch.full((1000, 64), 0.5), ids, Key.of(0)).mean())
