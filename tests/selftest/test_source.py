"""G15 can fail: a forbidden call in the source and an object that is unpickled while a command runs are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mfmarl.selftest import source
from mfmarl.selftest.goal import Order
from mfmarl.selftest.source import COMMANDS, forbidden_calls, sources, watched


def test_the_package_and_what_it_ships_are_searched() -> None:
    names = set(sources())
    assert {"mfmarl/registry.py", "mfmarl/envs/ising.py", "mfmarl/agents/mfq.py", "mfmarl/selftest/source.py"} <= names
    assert len(names) > 250 and not any(name.startswith("mfmarl/envs/mfmarl") for name in names)


def test_nothing_is_found_in_the_source_and_while_a_run_is_trained(tmp_path: Path) -> None:
    found = forbidden_calls(Order(tmp_path), commands=(COMMANDS[0], COMMANDS[3]), others=False)
    assert found.met, found.failures
    assert found.figures["commands"] == 2 and found.figures["files"] > 250


def test_a_forbidden_call_in_the_source_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import torch\n\n\ndef load(path):\n    return torch.load(path)\n")
    monkeypatch.setattr(source, "sources", lambda: {"mfmarl/bad.py": bad})
    found = forbidden_calls(Order(tmp_path), commands=(), others=False)
    assert found.met is False
    assert found.failures == ("mfmarl/bad.py:5: torch.load",)


def test_a_command_that_unpickles_is_heard(tmp_path: Path) -> None:
    (tmp_path / "unpickles.py").write_text(
        "import collections, pickle\npickle.loads(pickle.dumps(collections.Counter('a')))\n"
    )
    told = watched(("list", "agents", "--import", "unpickles"), tmp_path)
    assert any("collections" in line for line in told), told
    (tmp_path / "shells.py").write_text("import os\nos.system('true')\n")
    told = watched(("list", "agents", "--import", "shells"), tmp_path)
    assert len(told) == 1 and "os.system" in told[0], told


def test_a_command_that_breaks_off_is_no_proof(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text("import os\nos._exit(77)\n")
    assert watched(("list", "--import", "breaks"), tmp_path) != []


def test_bandit_and_pip_audit_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    assert source._bandit([]) == ([], {"bandit": "not tried: pip install bandit"})
    assert "not tried" in source._pip_audit()["pip-audit"]


def test_bandit_finds_what_is_planted(tmp_path: Path) -> None:
    pytest.importorskip("bandit")
    (tmp_path / "bad.py").write_text("import subprocess\nsubprocess.run('ls', shell=True)\nexec('1')\n")
    told, beside = source._bandit([str(tmp_path / "bad.py")])
    assert any("B102" in line for line in told), told
    assert "findings" in beside["bandit"]


@pytest.mark.verify
def test_the_whole_trial_is_met(tmp_path: Path) -> None:
    found = forbidden_calls(Order(tmp_path))
    assert found.met, "\n".join(found.failures)
    assert found.figures["commands"] == len(COMMANDS)
    assert "bandit" in found.beside or "bandit" not in sys.modules
