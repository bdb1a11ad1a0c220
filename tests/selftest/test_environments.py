"""G6's trial passes as things are, and fails where a check or a guard is taken away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mfmarl.selftest import environments
from mfmarl.selftest.environments import LOST, STOPPED, Trial, apart, beside, seeded_faults, trained
from mfmarl.selftest.goal import Order
from mfmarl.testing.faults import FAULTS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="faults are let loose in forked processes")

FEW = ("nan-reward", "nan-observation", "short-observation")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of faults and one environment: the whole is for `mfmarl selftest`."""
    kept = {name: FAULTS[name] for name in FEW}
    monkeypatch.setattr(environments, "FAULTS", kept)
    monkeypatch.setattr(environments, "PLACES", ((3, 0),))
    monkeypatch.setattr(environments, "stock", lambda: ["minority_game"])
    monkeypatch.setattr(environments, "checked", lambda name: [("warning", "seed-without-effect")])
    monkeypatch.setattr(environments, "beside", lambda tested, watch: {})


def test_the_goal_is_met_as_things_are(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    outcome = seeded_faults(Order(tmp_path, watch=lambda done, of: seen.append((done, of))))
    assert outcome.met, outcome.failures
    assert outcome.figures["found"] == 1
    assert outcome.figures["stopped in training"] == 1
    assert outcome.figures["stock"] == 1
    assert seen[-1][0] <= seen[-1][1] == outcome.trials


@pytest.mark.verify
def test_a_check_that_looks_at_no_values_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mfmarl.testing.inspection

    monkeypatch.setattr(mfmarl.testing.inspection, "breach", lambda space, value, path="": None)
    outcome = seeded_faults(Order(tmp_path))
    assert outcome.met is False
    assert any("short-observation" in failure and "check_env(FaultyEnv" in failure for failure in outcome.failures)


def test_training_that_takes_nan_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfmarl.population import single
    from mfmarl.population.adapter import Adapter

    def cured(self: Any, rows: Any) -> None:
        rows.obs[rows.obs != rows.obs] = 0.0

    monkeypatch.setattr(Adapter, "_check", cured)
    monkeypatch.setattr(single, "isfinite", lambda x: True, raising=False)
    assert trained("nan-observation", tmp_path) == "done"
    outcome = seeded_faults(Order(tmp_path / "again"))
    assert outcome.met is False
    assert "training went on: FaultyEnv with nan-observation" in outcome.failures


def test_a_false_error_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "checked", lambda name: [("error", "no-end")])
    outcome = seeded_faults(Order(tmp_path))
    assert outcome.met is False
    assert outcome.failures == ("a false error on minority_game: no-end",)


def test_numbers_that_are_none_stop_training(tmp_path: Path) -> None:
    numbers = [fault for fault in environments.FAULTS.values() if fault.case in environments.NUMBERS]
    assert numbers
    assert {trained(fault.name, tmp_path) for fault in numbers} == {"stopped"}
    assert trained(None, tmp_path) == "done"
    assert "done" not in STOPPED


def test_numbers_that_are_none_are_always_trained_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However small the share, what the goal promises is looked at."""
    monkeypatch.setattr(environments, "FAULTS", FAULTS)
    monkeypatch.setattr(environments, "found", lambda fault, *place: [("error", "x")] if fault else [])
    seen: list[str] = []

    def noted(fault: str | None, folder: Path) -> str:
        seen.extend([fault] if fault else [])
        return "stopped" if fault else "done"

    monkeypatch.setattr(environments, "trained", noted)
    for seed in range(3):
        seen.clear()
        outcome = seeded_faults(Order(tmp_path, share=0.01, seed=seed))
        assert {fault.name for fault in FAULTS.values() if fault.case in environments.NUMBERS} <= set(seen)
        assert len(seen) == 10
        assert "stopped on 9 of 9 numbers" in outcome.found


def test_pettingzoos_tests_are_counted_beside() -> None:
    some = [Trial(FAULTS[name], "parallel", 3, 0) for name in ("four-values", "inf-reward", "ghost-reward")]
    found = beside(some, lambda: None)
    assert found["pettingzoo parallel_api_test"].startswith("raises on 1 of 3, raises or warns on 2")
    assert found["pettingzoo all four together"] == "raises on 2 of 3, raises or warns on 2"


def test_a_child_that_dies_or_sleeps_is_lost_and_takes_its_children_along() -> None:
    import os
    import subprocess
    import time

    assert apart(lambda: [1, "two"], 10) == [1, "two"]
    assert apart(lambda: os._exit(3), 10) is LOST
    assert apart(lambda: time.sleep(60), 0.2) is LOST
    number = apart(lambda: subprocess.Popen(["sleep", "60"]).pid, 10)
    until = time.monotonic() + 10
    while _alive(number) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _alive(number)


def _alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
