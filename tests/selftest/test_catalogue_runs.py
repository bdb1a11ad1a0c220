"""The faults of runs that the catalogue holds, and that a product which does not meet them is found out."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mfmarl.errors import ResourceFault
from mfmarl.learning import run, run_folder
from mfmarl.learning.training import Training
from mfmarl.selftest.case import Case
from mfmarl.selftest.catalogue import runs
from mfmarl.selftest.catalogue.runs import CASES
from mfmarl.selftest.every_case import attempt_case

pytestmark = pytest.mark.filterwarnings("ignore::mfmarl.learning.run_folder.RunWarning")

# The others take seconds each, as they train several runs to their ends.
_QUICK = (12, 14, 16, 22)
_BY_NUMBER = {case.number: case for case in CASES}


def _each() -> list[Any]:
    return [
        pytest.param(case, id=str(case.number), marks=() if case.number in _QUICK else pytest.mark.verify)
        for case in CASES
    ]


@pytest.mark.parametrize("case", _each())
def test_the_fault_is_met_as_promised(case: Case, tmp_path: Path) -> None:
    assert attempt_case(case, tmp_path / "case") == ""


def test_the_part_is_complete() -> None:
    assert [case.number for case in CASES] == [6, 8, 9, 10, 11, 12, 13, 14, 16, 17, 19, 20, 21, 22, 23, 24]


def _missed(number: int, folder: Path) -> str:
    told = attempt_case(_BY_NUMBER[number], folder / "case")
    assert told
    return told


def test_a_signal_that_is_not_heard_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run._Stop, "_ask", lambda self, number, frame: None)
    assert "130" in _missed(8, tmp_path)


@pytest.mark.verify
def test_a_signal_that_does_not_save_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: run._Stop, number: int, _frame: Any) -> None:
        self.signal = number
        raise KeyboardInterrupt

    monkeypatch.setattr(run._Stop, "_ask", at_once)
    _missed(8, tmp_path)


def test_a_lock_that_lets_two_in_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_try_lock", lambda descriptor, path: True)
    assert "expected exit code 7" in _missed(14, tmp_path)


def test_a_file_system_that_is_not_looked_at_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_probe", lambda path: None)
    _missed(16, tmp_path)


def test_a_name_that_leads_out_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "check_name", lambda name: name)
    assert "is taken" in _missed(22, tmp_path)


@pytest.mark.verify
def test_a_deleted_folder_that_is_not_noticed_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.RunFolder, "is_there", lambda self: True)
    _missed(19, tmp_path)


@pytest.mark.verify
def test_a_full_disk_that_costs_rows_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dropping(self: run_folder.RunFolder, error: OSError, size: int) -> None:
        self._waiting.clear()
        if self._full_since is None:
            self._full_since = 0.0
        elif run_folder.FULL_PATIENCE < 1:
            raise ResourceFault("No space left on metrics.jsonl")

    monkeypatch.setattr(run_folder.RunFolder, "_bear", dropping)
    _missed(6, tmp_path)


def test_a_run_that_leaks_files_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, leaked = Training.report, []

    def leaking(self: Training) -> dict[str, Any]:
        leaked.append(os.open(os.devnull, os.O_RDONLY))
        return report(self)

    monkeypatch.setattr(Training, "report", leaking)
    monkeypatch.setattr(runs, "EPISODES", 4000)
    try:
        assert "open files" in _missed(24, tmp_path)
    finally:
        for descriptor in leaked:
            os.close(descriptor)


def test_signals_are_given_back_to_who_had_them(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with run._Stop():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
