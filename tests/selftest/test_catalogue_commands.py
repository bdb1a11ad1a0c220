"""Every case of the catalogue's part on commands, and a planted bug for each of a few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mfmarl import options
from mfmarl.selftest.case import Case
from mfmarl.selftest.catalogue.commands import CASES
from mfmarl.selftest.every_case import attempt_case


@pytest.mark.parametrize("case", CASES, ids=[str(case.number) for case in CASES])
def test_the_fault_is_met_as_promised(case: Case, tmp_path: Path) -> None:
    assert attempt_case(case, tmp_path / "case") == ""


def _no_hint(name: str, known: Any) -> str:
    return ""


def _takes_anything(value: object) -> int:
    return int(abs(float(str(value).replace("True", "1"))))


@pytest.mark.verify
@pytest.mark.parametrize(
    ("number", "target", "name", "bug"),
    [
        (66, options, "nearest", _no_hint),
        (68, "mfmarl.learning.config_file", "demand_typed", lambda name, where: None),
        (69, "mfmarl.registry", "_wants", lambda distribution: ""),
        (70, "mfmarl.population.one_copy", "seed_of", _takes_anything),
        (71, "mfmarl.learning.build", "choose_device", lambda name: __import__("torch").device("cpu")),
    ],
)
def test_a_planted_bug_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, target: Any, name: str, bug: Any
) -> None:
    monkeypatch.setattr(
        f"{target}.{name}" if isinstance(target, str) else target, *((bug,) if isinstance(target, str) else (name, bug))
    )
    case = next(case for case in CASES if case.number == number)
    assert attempt_case(case, tmp_path / "case") != ""
