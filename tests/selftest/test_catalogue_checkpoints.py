"""Each fault of a checkpoint is met as the catalogue promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mfmarl.selftest.case import Case
from mfmarl.selftest.catalogue.checkpoints import CASES
from mfmarl.selftest.every_case import attempt_case

# These train several runs to their ends, or make every agent there is.
_SLOW = (28, 31, 34, 38)


def _each() -> list[Any]:
    return [
        pytest.param(case, id=str(case.number), marks=pytest.mark.verify if case.number in _SLOW else ())
        for case in CASES
    ]


@pytest.mark.parametrize("one", _each())
def test_a_bad_checkpoint_is_met_as_promised(one: Case, tmp_path: Path) -> None:
    assert attempt_case(one, tmp_path / "case") == ""


def test_every_case_of_checkpoints_is_there() -> None:
    assert [case.number for case in CASES] == list(range(25, 39))
