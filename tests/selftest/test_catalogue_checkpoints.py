"""Each fault of a checkpoint is met as the catalogue promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfmarl.selftest.case import Case
from mfmarl.selftest.catalogue.checkpoints import CASES
from mfmarl.selftest.every_case import attempt_case


@pytest.mark.parametrize("one", CASES, ids=[str(case.number) for case in CASES])
def test_a_bad_checkpoint_is_met_as_promised(one: Case, tmp_path: Path) -> None:
    assert attempt_case(one, tmp_path / "case") == ""


def test_every_case_of_checkpoints_is_there() -> None:
    assert [case.number for case in CASES] == list(range(25, 39))
