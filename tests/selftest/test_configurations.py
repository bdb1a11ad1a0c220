"""G4 can fail: a bound that is not checked, an error of another class and a value that does not read back are found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mfmarl import options
from mfmarl.options import Bounds, unbounded
from mfmarl.selftest import configurations
from mfmarl.selftest.configurations import every_class, fuzz, judged
from mfmarl.selftest.goal import Order, Outcome


@pytest.fixture(autouse=True)
def _without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "_beside", dict)


def tried(folder: Path, share: float = 0.01) -> Outcome:
    return fuzz(Order(folder, share, 7))


def test_every_number_of_every_option_is_bounded_on_both_sides() -> None:
    assert {name: loose for name, cls in every_class().items() if (loose := unbounded(cls))} == {}


def test_there_is_a_class_of_options_for_every_name() -> None:
    names = set(every_class())
    assert {"run", "solve", "environment ising", "environment t_maze", "agent mfq", "agent sb3", "solver omd"} <= names
    assert len(names) > 60


def test_nonsense_is_refused_by_one_class_of_error(tmp_path: Path) -> None:
    watched: list[int] = []
    found = fuzz(Order(tmp_path, 0.1, 3, lambda done, of: watched.append(done)))
    assert found.met, "\n".join(found.failures[:5])
    assert found.trials == 10_000 == watched[-1]
    # Neither refuses all, nor accepts all.
    assert all(0 < found.figures[f"accepted {kind}s"] < 6000 for kind in ("table", "file", "command line"))


def _never_refuses(bounds: Bounds, value: float) -> bool:
    return True


def _raises_another(*_: Any) -> str:
    raise KeyError("nothing was expected here")


@pytest.mark.parametrize(
    ("target", "name", "bug", "told"),
    [
        (Bounds, "allow", _never_refuses, "was accepted, beyond"),
        (options, "_text_problem", _raises_another, "KeyError"),
        (options, "nearest", _raises_another, "KeyError"),
        (options, "_read_literal", lambda choices, value, label, problems: choices[0], "reads back"),
    ],
)
def test_a_planted_bug_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, bug: Any, told: str
) -> None:
    every_class()
    if told == "reads back":
        # What is printed is another table than what was read.
        monkeypatch.setattr(configurations, "to_table", lambda value: {})
    else:
        monkeypatch.setattr(target, name, bug)
    found = tried(tmp_path)
    assert found.met is False
    assert any(told in failure for failure in found.failures), found.failures[:3]
    assert all("seed 7, trial " in failure for failure in found.failures)


def test_the_judge_shares_nothing_with_what_it_judges() -> None:
    cls = every_class()["agent mfq"]
    assert judged(cls()) == ""
    for name, value in (
        ("gamma", math.nan),
        ("gamma", 1.5),
        ("learning_rate", -1.0),
        ("hidden", (0,)),
        ("bins", 2**64),
        ("gamma", 1),
    ):
        wrong = cls()
        object.__setattr__(wrong, name, value)
        assert name in judged(wrong), (name, value)
