"""Older schemas are brought forward one after the other; the next save writes the present one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.errors import CheckpointError
from mfmarl.learning import checkpoint, migration
from mfmarl.learning.migration import KINDS, STEPS, brought_forward, config_brought_forward

DATA = Path(__file__).parent / "data"


def test_every_schema_has_its_kinds_and_a_step_to_the_next() -> None:
    assert set(KINDS) == set(range(1, checkpoint.SCHEMA + 1))
    assert set(STEPS) == set(range(1, checkpoint.SCHEMA))


def test_schema_1_gets_what_came_with_schema_2(tmp_path: Path) -> None:
    found = checkpoint.load(DATA / "checkpoint-schema-1.safetensors")
    assert found.of == {}
    again = checkpoint.save(tmp_path, found.step, found.tensors, found.state)
    assert json.loads((tmp_path / "latest.json").read_text())["schema"] == checkpoint.SCHEMA
    assert checkpoint.load(again).state == found.state


def test_a_third_party_state_of_schema_1_gets_its_counts() -> None:
    _, tensors = brought_forward({"schema": 1}, {"train.env.digest": torch.zeros(32).byte()}, 2)
    assert torch.equal(tensors["train.env.counts"], torch.zeros(2, dtype=torch.int64))


def test_steps_are_taken_in_order_after_the_digests_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema made up on top of the present one: two steps from the oldest file to it."""

    def halve(document: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        seen.append(document["schema"])
        return document, {f"new.{name}": tensor for name, tensor in tensors.items()}

    seen: list[int] = []
    now = checkpoint.SCHEMA
    monkeypatch.setattr(checkpoint, "SCHEMA", now + 1)
    monkeypatch.setattr(migration, "KINDS", {**KINDS, now + 1: KINDS[now]})
    monkeypatch.setattr(migration, "STEPS", {**STEPS, now: halve})
    old = (DATA / "checkpoint-schema-1.safetensors").read_bytes()
    assert "new.policy.weight" in checkpoint.load(DATA / "checkpoint-schema-1.safetensors").tensors
    assert seen == [now]
    (tmp_path / "damaged.safetensors").write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "damaged.safetensors")
    assert seen == [now]


def test_a_newer_schema_names_the_version_that_is_needed(tmp_path: Path) -> None:
    found = checkpoint.load(DATA / "checkpoint-schema-1.safetensors")
    document = {"schema": checkpoint.SCHEMA + 1, "step": 1, "mfmarl": "7.7.7", "of": {}, "state": {}}
    (tmp_path / "x.safetensors").write_bytes(checkpoint.serialise(document, found.tensors))
    with pytest.raises(CheckpointError, match=r"newer schema 3, written by mfmarl 7\.7\.7") as caught:
        checkpoint.load(tmp_path / "x.safetensors")
    assert caught.value.code == "newer-checkpoint"


def test_options_that_were_renamed_are_found_under_their_old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "RENAMED", {("run", "old"): "new"})
    assert config_brought_forward({"run": {"old": 1}, "agents": {}}) == {"run": {"new": 1}, "agents": {}}
    assert config_brought_forward({"run": {"old": 1, "new": 2}})["run"] == {"new": 2}
    for untouched in ({"run": {"other": 1}}, {"run": 3}, {}):
        given = dict(untouched)
        assert config_brought_forward(given) == untouched and given == untouched
