"""What judges the tests is tested on small projects: good ones are found good, and each weakness is found."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mfmarl.selftest import checkout, mutation
from mfmarl.selftest.goal import Order

ROOT = Path(__file__).parents[2]
CLAMP = '''
def clamp(x: int, low: int = 0) -> int:
    """At least `low`."""
    if x < low:
        return low
    return x
'''
GOOD = "from mfmarl.clamp import clamp\n\ndef test_clamp():\n    assert [clamp(x) for x in (-1, 0, 1, 2)] == [0, 0, 1, 2]\n"
WEAK = "from mfmarl.clamp import clamp\n\ndef test_clamp():\n    assert clamp(5) is not None\n"
WORTH = {"clamp": "good", "loose": "weak", "broken": "broken"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout of one module."""
    root = tmp_path / "project"
    (root / "mfmarl").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "scripts" / "quality").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "quality" / "try_mutants.py", root / "scripts" / "quality")
    (root / "mfmarl" / "__init__.py").write_text("")
    (root / "mfmarl" / "clamp.py").write_text(CLAMP)
    (root / "tests" / "test_good.py").write_text(GOOD)
    (root / "tests" / "test_weak.py").write_text(WEAK)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["verify: slow"]\n')
    return root


def test_mutants_change_one_thing_that_can_be_noticed() -> None:
    found = [(m.line, m.before, m.after) for m in mutation.mutants(CLAMP)]
    assert found == [
        (2, "0", "1"),
        (4, "x < low", "(x <= low)"),
        (5, "return low", "return None"),
        (6, "return x", "return None"),
    ]
    spared = "def f(x: 'int' = 'a') -> dict[str, 1]:\n    raise ValueError(f'{x + 1} is ' + 'bad', 3)\n"
    assert [m.after for m in mutation.mutants(spared)] == ["pass"]
    both = mutation.mutants("def f(a, b):\n    log(a)\n    return not a and b + 1.5 >= 2 or True\n")
    assert {m.after for m in both} == {
        "pass",
        "return None",
        "((not a and b + 1.5 >= 2) and True)",
        "(not a or b + 1.5 >= 2)",
        "(a)",
        "(b + 1.5 > 2)",
        "(b - 1.5)",
        "4.0",
        "3",
        "False",
    }


def test_good_tests_find_the_mutants_that_weak_ones_miss(project: Path, tmp_path: Path) -> None:
    (project / "mfmarl" / "loose.py").write_text(CLAMP)
    (project / "mfmarl" / "broken.py").write_text(CLAMP)
    (project / "tests" / "test_weak.py").write_text(WEAK.replace("mfmarl.clamp", "mfmarl.loose"))
    (project / "tests" / "test_broken.py").write_text("def test_fails():\n    assert False\n")
    modules = {f"mfmarl/{name}.py": (f"tests/test_{test}.py",) for name, test in WORTH.items()}
    found, survived, troubles = checkout.mutants_found(project, modules, 99, 0, tmp_path / "scratch")
    # x <= low is the same function.
    assert [m.after for name, m in survived if "clamp" in name] == ["(x <= low)"]
    assert len([m for name, m in found if "clamp" in name]) == 3
    assert [m.after for name, m in found if "loose" in name] == ["return None"]
    assert len([m for name, m in survived if "loose" in name]) == 3
    assert len(troubles) == 1
    assert "test_broken.py fail without any change" in troubles[0]
    assert (project / "mfmarl" / "clamp.py").read_text() == CLAMP


def covered(lines: tuple[int, ...] = (), arms: tuple[tuple[int, int], ...] = (), share: float = 1.0) -> dict[str, Any]:
    """What coverage would write: one of the modules misses these lines and branches."""
    files: dict[str, dict[str, Any]] = {
        name: {"summary": {"covered_lines": 10, "num_statements": 10}, "missing_lines": [], "missing_branches": []}
        for name in checkout.WHOLE
    }
    first = next(iter(checkout.WHOLE))
    files[first] = {
        "summary": {"covered_lines": 10 - len(lines), "num_statements": 10},
        "missing_lines": list(lines),
        "missing_branches": [list(arm) for arm in arms],
    }
    totals = {"covered_lines": 1000 * share, "num_statements": 1000, "covered_branches": 95, "num_branches": 100}
    return {"files": files, "totals": totals}


def test_coverage_is_met_only_in_whole() -> None:
    assert checkout.judge_coverage(covered(), True, 0, []).met is True
    missing = checkout.judge_coverage(covered(lines=(3, 4, 5, 9)), False, 0, [])
    assert missing.met is False
    assert "lines 3-5, 9" in missing.failures[0]
    branch = checkout.judge_coverage(covered(arms=((3, 7),)), False, 0, [])
    assert branch.met is False
    assert "3->7" in branch.failures[0]
    assert checkout.judge_coverage(covered(share=0.94), True, 0, []).met is False
    assert checkout.judge_coverage(covered(share=0.94), False, 0, []).met is True
    assert checkout.judge_coverage(covered(), True, 1, ["tests/test_a.py::test_b"]).met is False
    table = covered()
    del table["files"][next(iter(checkout.WHOLE))]
    assert checkout.judge_coverage(table, False, 0, []).met is False


def planted(outcome: str = "failed", raised: str = "AssertionError", alarms: float = 1e-9) -> dict[str, Any]:
    return {
        "test": "tests/test_x.py::test_a",
        "bug": "hot-draws",
        "outcome": outcome,
        "raised": raised,
        "said": "",
        "false_alarms": alarms,
    }


def test_a_planted_bug_must_be_found_by_an_assertion() -> None:
    assert checkout.judge_planted([planted()]).met is True
    assert checkout.judge_planted([planted(), planted("passed", "")]).met is False
    assert checkout.judge_planted([planted("failed", "TypeError")]).met is False
    assert checkout.judge_planted([planted(alarms=1e-3)]).met is False
    assert checkout.judge_planted([planted()], ["tests/test_x.py::test_b"]).met is False


def test_tests_that_need_their_order_are_found(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "_root", lambda: project)
    monkeypatch.setattr(checkout, "_workers", lambda: ["-p", "no:xdist"])
    monkeypatch.setattr(checkout, "BUSY", 0)
    monkeypatch.setattr(checkout, "REPEATS", 1)
    (project / "tests" / "test_weak.py").unlink()
    fine = checkout.busy_machine(Order(tmp_path / "a", share=0.01))
    assert (fine.met, fine.trials) == (True, 1), fine
    needy = "seen = []\n" + "".join(
        f"\ndef test_{n}():\n    assert len(seen) == {n}\n    seen.append({n})\n" for n in range(6)
    )
    (project / "tests" / "test_needy.py").write_text(needy)
    found = checkout.busy_machine(Order(tmp_path / "b", share=0.01))
    assert found.met is False
    assert "test_needy.py::test_" in found.failures[0]


def test_asserted_times_are_found(project: Path) -> None:
    assert checkout.timed_asserts(project) == []
    (project / "tests" / "test_weak.py").write_text(
        "import time\n\ndef test_fast():\n    begun = time.monotonic()\n    assert time.monotonic() - begun < 1\n"
    )
    assert checkout.timed_asserts(project) == ["tests/test_weak.py:5"]


@pytest.mark.parametrize("trial", ["coverage", "mutants", "statistical_tests", "busy_machine"])
def test_without_a_checkout_nothing_is_said(trial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages" / "mfmarl" / "selftest" / "checkout.py"
    monkeypatch.setattr(checkout, "__file__", str(installed))
    outcome = getattr(checkout, trial)(Order(tmp_path))
    assert outcome.met is None
    assert "source checkout" in outcome.found


def test_busy_processes_end_with_what_they_were_started_for() -> None:
    import psutil

    with checkout.busy(2):
        loops = [child for child in psutil.Process().children() if "getppid" in " ".join(child.cmdline())]
        assert len(loops) == 2
    assert not any(loop.is_running() for loop in loops)


def test_no_test_of_ours_asserts_a_time() -> None:
    assert checkout.timed_asserts(ROOT) == []
