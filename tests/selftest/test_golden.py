"""What released versions wrote is read for ever; a release that cannot be read is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mfmarl.errors import CheckpointError, ConfigError
from mfmarl.learning import checkpoint, migration
from mfmarl.selftest import golden
from mfmarl.selftest.goal import Order
from mfmarl.selftest.golden import ANSWERS, LARGEST, folders, releases, try_release

ROLLOUT = next(path for path in folders() if path.name == "rollout")


# Their populations take seconds to make.
_SLOW = ("three_teams", "beliefs")


def _each() -> list[Any]:
    return [
        pytest.param(path, id=f"{path.parent.name}-{path.name}", marks=pytest.mark.verify if path.name in _SLOW else ())
        for path in folders()
    ]


@pytest.mark.parametrize("source", _each())
def test_a_run_of_a_release_loads_answers_alike_and_goes_on(source: Path, tmp_path: Path) -> None:
    try_release(source, tmp_path / "run")


def test_every_recipe_is_kept_of_the_first_release_and_small() -> None:
    assert {path.name for path in folders() if path.parent.name == "0.1.0"} == set(golden.RECIPES)
    assert all(file.stat().st_size <= LARGEST for path in folders() for file in path.rglob("*") if file.is_file())


def test_a_missing_migration_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "STEPS", {})
    monkeypatch.setattr(golden, "folders", lambda: [ROLLOUT])
    outcome = releases(Order(tmp_path))
    assert outcome.met is False and "rollout" in outcome.failures[0]


def test_a_policy_that_answers_otherwise_is_found(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROLLOUT, source)
    told = json.loads((source / ANSWERS).read_text())
    told["all"][0] += 0.5
    (source / ANSWERS).write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="answers otherwise"):
        try_release(source, tmp_path / "run")


def test_a_release_is_never_written_again(tmp_path: Path) -> None:
    (tmp_path / "0.1.0").mkdir()
    with pytest.raises(ConfigError):
        golden.write("0.1.0", tmp_path)
    assert golden.main(["--write", "9.9.9", "--folder", str(tmp_path)]) == 2


def test_releases_are_of_the_first_schema_and_come_forward() -> None:
    found = checkpoint.load(ROLLOUT)
    assert b'\\"schema\\":1' in found.path.read_bytes() and found.of == {}
