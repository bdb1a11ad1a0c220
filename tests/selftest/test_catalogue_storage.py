"""Each fault of a disk is met as the catalogue promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mfmarl.selftest.case import Case
from mfmarl.selftest.catalogue.storage import CASES
from mfmarl.selftest.every_case import attempt_case

# These train several runs to their ends, or make every agent there is.
_SLOW = (2, 3)


def _each() -> list[Any]:
    return [
        pytest.param(case, id=str(case.number), marks=pytest.mark.verify if case.number in _SLOW else ())
        for case in CASES
    ]


@pytest.mark.parametrize("one", _each())
def test_a_failing_disk_is_met_as_promised(one: Case, tmp_path: Path) -> None:
    assert attempt_case(one, tmp_path / "case") == ""


def test_every_case_of_storage_is_there() -> None:
    assert [case.number for case in CASES] == [1, 2, 3, 4, 5, 7, 18]


def test_a_save_without_fsync_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfmarl.learning import durable

    monkeypatch.setattr(durable, "sync_folder", lambda folder: None)
    power_loss = next(case for case in CASES if case.number == 4)
    assert "the calls came as" in attempt_case(power_loss, tmp_path / "case")


def test_an_error_that_is_swallowed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfmarl.errors import ResourceFault
    from mfmarl.learning import checkpoint

    real = checkpoint.write_atomic

    def swallowing(path: Path, content: bytes) -> None:
        try:
            real(path, content)
        except ResourceFault:
            return

    monkeypatch.setattr(checkpoint, "write_atomic", swallowing)
    failing = next(case for case in CASES if case.number == 7)
    assert attempt_case(failing, tmp_path / "case")
