"""Faults of many runs at once, each brought about; and what each case says when the answer is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfmarl.selftest.catalogue.sweeps import CASES

SLOW = (72, 73, 177)  # stopped workers and commands of their own take seconds


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=str(c.number), marks=[pytest.mark.verify] if c.number in SLOW else []) for c in CASES],
)
def test_the_fault_is_met_as_promised(case, tmp_path: Path) -> None:
    case.run(tmp_path)
