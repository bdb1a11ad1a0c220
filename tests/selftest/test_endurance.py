"""What grows in a long run is told by a line that jumps do not move; leaks and lost runs are found out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mfmarl.selftest import endurance
from mfmarl.selftest.endurance import Use, long_runs, slope
from mfmarl.selftest.goal import Order


def test_the_slope_is_that_of_the_line_and_jumps_do_not_move_it() -> None:
    x = np.arange(60.0)
    assert slope(x, 3 * x + 5) == pytest.approx(3)
    flat = np.full(60, 7.0)
    flat[20:] += 1000  # an allocator that took a page once, early or late
    flat[[3, 9]] = -1e6
    assert slope(x, flat) == 0


def _looks(use: Callable[[int], Use]) -> Callable[..., object]:
    return lambda order, updates: ([(step, use(step)) for step in range(0, updates, updates // 60)], updates)


@pytest.mark.parametrize(
    ("use", "told"),
    [
        (lambda step: Use(5, 1, 0, (100 << 20) + 700 * step), "memory grows by 700.0 bytes"),
        (lambda step: Use(5 + step // 300, 1, 0, 100 << 20), "files"),
        (lambda step: Use(5, 1 + (step > 500), 0, 100 << 20), "threads"),
        (lambda step: Use(5, 1, int(step > 500), 100 << 20), "children"),
        (lambda step: Use(5, 1, 0, (100 << 20) + (step > 300) * 4096), ""),
    ],
    ids=["memory", "files", "threads", "children", "nothing"],
)
def test_a_leak_is_found_out(
    use: Callable[[int], Use], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endurance, "_soak", _looks(use))
    monkeypatch.setattr(endurance, "_sweep", lambda order, count: [])
    outcome = long_runs(Order(tmp_path, 1e-6))
    assert outcome.met is (told == "")
    assert told in "".join(outcome.failures)


def test_a_sweep_that_loses_runs_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endurance, "_soak", _looks(lambda step: Use(5, 1, 0, 1 << 20)))
    monkeypatch.setattr(endurance, "_sweep", lambda order, count: ["449 runs are done, expected 450"])
    outcome = long_runs(Order(tmp_path, 1e-6))
    assert outcome.met is False
    assert "449" in outcome.failures[0]


@pytest.mark.verify
def test_the_goal_is_met_by_a_share_of_its_trials(tmp_path: Path) -> None:
    outcome = long_runs(Order(tmp_path, 1e-6))
    assert outcome.met, outcome.failures
