"""Cases 39 to 65, each brought about; and that they can be missed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfmarl.selftest.case import Case
from mfmarl.selftest.catalogue import environments
from mfmarl.selftest.every_case import attempt_case


def test_the_part_has_every_number_from_39_to_65_once() -> None:
    assert [case.number for case in environments.CASES] == list(range(39, 66))


@pytest.mark.parametrize("case", environments.CASES, ids=lambda case: str(case.number))
def test_a_fault_is_met_as_promised(case: Case, tmp_path: Path) -> None:
    missed = attempt_case(case, tmp_path / "case")
    assert not missed, missed
