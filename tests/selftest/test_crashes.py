"""The trial of deaths finds none that loses a state, and would find it if one did."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfmarl.learning import checkpoint, durable
from mfmarl.selftest import crashes
from mfmarl.selftest.crashes import Arena, Dead, by_bytes, by_calls, by_kills, by_moments, by_runs, crash_points
from mfmarl.selftest.goal import Order


def _failures(lives: Iterator[str]) -> list[str]:
    return [failure for failure in lives if failure]


def _found(lives: Iterator[str]) -> bool:
    """Whether one is a failure; those after it are not tried."""
    return any(lives)


def test_no_death_among_a_thousand_loses_a_state(tmp_path: Path) -> None:
    """Ends after every byte of both files, before and after every call."""
    draw = random.Random(1)
    arena = Arena(tmp_path / "bytes")
    assert arena.sizes() > 700
    assert _failures(by_bytes(arena, draw, 750)) == []
    assert _failures(by_calls(Arena(tmp_path / "calls"), draw, 300)) == []


def test_every_call_of_a_save_is_died_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visited, real = [], crashes.dying

    def seen(end: Any, call: int = 0, byte: int = -1, after: bool = False, waits: bool = True) -> Any:
        visited.append((call, after))
        return real(end, call, byte, after, waits)

    monkeypatch.setattr(crashes, "dying", seen)
    assert _failures(by_calls(Arena(tmp_path / "calls"), random.Random(1), 60)) == []
    last = max(call for call, _ in visited)
    assert last == crashes._SAVE_CALLS
    assert set(visited) >= {(call, after) for call in range(1, last + 1) for after in (False, True)}


def test_who_is_to_be_killed_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, real = [], crashes.in_child

    def told(action: Any) -> int:
        codes.append(real(action))
        return codes[-1]

    monkeypatch.setattr(crashes, "in_child", told)
    assert _failures(by_kills(Arena(tmp_path / "kills"), random.Random(1), 12)) == []
    assert _failures(by_runs(tmp_path, random.Random(1), 3)) == []
    assert set(codes) <= {-signal.SIGKILL, -signal.SIGXFSZ}
    assert len(codes) == 15


def test_no_killed_process_loses_a_state(tmp_path: Path) -> None:
    outcome = crash_points(Order(tmp_path, share=0.008, seed=3))
    assert outcome.met and not outcome.failures, outcome.failures
    assert outcome.trials >= 80 and outcome.figures["kills"] == 12


@pytest.mark.verify
def test_ten_thousand_deaths_lose_nothing(tmp_path: Path) -> None:
    outcome = crash_points(Order(tmp_path, seed=7))
    assert outcome.met and outcome.trials >= 10_000, outcome.failures
    assert outcome.beside["torch.save"].startswith("60 of 60") and outcome.beside["json.dump"].startswith("60 of 60")


def _in_place(path: Path, content: bytes) -> None:
    """As most libraries write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        durable.write_all(descriptor, content)
    finally:
        os.close(descriptor)


def _pruned_first(real: Any) -> Any:
    def prune(folder: Path, *_: Any) -> None:
        for path in checkpoint.list_checkpoints(folder):
            path.unlink()

    def write(path: Path, content: bytes) -> None:
        if path.suffix == ".safetensors":
            prune(path.parent)
        real(path, content)

    return write


def _named_first(real: Any) -> Any:
    """latest.json before the file that it names."""

    def write(path: Path, content: bytes) -> None:
        if path.suffix == ".safetensors":
            real(path.with_name(checkpoint.LATEST), b'{"file": "%s", "sha256": "", "bytes": 0}' % path.name.encode())
        real(path, content)

    return write


def test_a_file_written_in_place_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(tmp_path)
    monkeypatch.setattr(checkpoint, "write_atomic", _in_place)
    assert _found(by_bytes(arena, random.Random(0), 1500))


@pytest.mark.parametrize("planted", [_pruned_first, _named_first])
def test_a_commit_in_the_wrong_order_is_found(planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(tmp_path)
    monkeypatch.setattr(checkpoint, "write_atomic", planted(checkpoint.write_atomic))
    assert _found(by_calls(arena, random.Random(0), 60))
    assert _found(by_kills(arena, random.Random(0), 12))


def test_a_save_that_is_told_before_it_is_made_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(tmp_path)
    monkeypatch.setattr(crashes, "save_at", lambda folder, step: None)
    assert _failures(by_calls(arena, random.Random(0), 3))


def test_leftovers_of_the_dead_that_stay_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(tmp_path)
    (tmp_path / "step-000000000001-00000000.safetensors.tmp").write_bytes(b"torn")
    monkeypatch.setattr(checkpoint, "clean", lambda folder: [])
    assert any("was left" in failure for failure in by_calls(arena, random.Random(0), 20))


def test_whoever_is_dead_makes_no_further_call(tmp_path: Path) -> None:
    with pytest.raises(Dead), crashes.dying(crashes.die_in_place, call=1):
        try:
            os.mkdir(tmp_path / "a")
        finally:
            os.mkdir(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_moments_and_runs_end_well(tmp_path: Path) -> None:
    assert _failures(by_moments(Arena(tmp_path / "moments"), random.Random(2), 4)) == []
    assert _failures(by_runs(tmp_path, random.Random(2), 3)) == []
