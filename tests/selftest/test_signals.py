"""Signals to commands that train: a few of them; and that work which is lost is found out."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfmarl.learning import run
from mfmarl.selftest.goal import Order
from mfmarl.selftest.signals import Moment, _from_outside, _struck, lost_work


@pytest.mark.parametrize("moment", [Moment("learning", 30, signal.SIGTERM), Moment("row", 2, signal.SIGKILL)], ids=str)
def test_a_signal_loses_no_finished_work(moment: Moment, tmp_path: Path) -> None:
    assert _struck(tmp_path, moment) == ""


def test_signals_reach_the_last_file_of_a_run(tmp_path: Path) -> None:
    """What is counted is the whole run, so that moments are drawn from all of it."""
    from mfmarl.selftest import signals

    (tmp_path / "whole").mkdir()
    signals.forked(signals._TRAIN, tmp_path / "whole", signals._watched(tmp_path / "whole", None)).expect(0)
    step, counts = signals._finished(tmp_path / "whole")
    assert step == 60 and counts["step"] >= 60 and counts["row"] == 5
    (tmp_path / "struck").mkdir()
    last = Moment("rename", counts["rename"], signal.SIGKILL)
    answer = signals.forked(signals._TRAIN, tmp_path / "struck", signals._watched(tmp_path / "struck", last))
    assert answer.exit_code == -signal.SIGKILL


def test_a_run_that_does_not_save_when_it_is_asked_to_stop_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(self: run._Stop, number: int, _frame: Any) -> None:
        self.signal = number
        raise KeyboardInterrupt

    monkeypatch.setattr(run._Stop, "_ask", at_once)
    assert "step 29 was finished and 24 is kept" in _struck(tmp_path, Moment("learning", 30, signal.SIGINT))


def test_checkpoints_that_lie_too_far_apart_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = run.checkpoint.save

    def seldom(folder: Path, step: int, *given: Any, **more: Any) -> Any:
        return save(folder, step, *given, **more) if step == 12 else folder

    monkeypatch.setattr(run.checkpoint, "save", seldom)
    assert "is kept" in _struck(tmp_path, Moment("step", 55, signal.SIGKILL))


@pytest.mark.verify
@pytest.mark.parametrize("command", ["compare", "ranks", "solve"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_with_processes_of_its_own_saves_when_it_is_asked_to_stop(
    command: str, number: int, tmp_path: Path
) -> None:
    assert _from_outside(tmp_path, command, number, np.random.default_rng(0)) == ""


@pytest.mark.verify
def test_the_goal_is_met_by_a_share_of_its_trials(tmp_path: Path) -> None:
    outcome = lost_work(Order(tmp_path, 0.001))
    assert outcome.met, outcome.failures
    assert outcome.trials >= 12
