"""Run folders: one writer, no torn rows, nothing overwritten, nothing of others deleted."""

from __future__ import annotations

import errno
import json
import math
import ntpath
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfmarl.errors import CheckpointError, ConfigError, MfmarlError, ResourceFault, RunLocked
from mfmarl.learning import run_folder
from mfmarl.learning.run_folder import (
    MARKER,
    RunFolder,
    RunWarning,
    as_name,
    check_name,
    create,
    find_runs,
    inside,
    is_run,
    is_running,
    read_config,
    read_metrics,
    read_status,
    remove,
    reopen,
)

CONFIG: dict[str, Any] = {"run": {"name": "x", "steps": 100}, "environment": {"name": "ising", "size": [20, 20]}}


def _in_child(action: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Dead(BaseException):
    """The process is no more: no later call reaches the disk."""


def _die_before(number: int, patch: pytest.MonkeyPatch) -> None:
    """Before the call of that number that changes the disk; locks are freed, as the kernel does."""
    count = 0

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count >= number:
                raise _Dead
            return real(*args, **keywords)

        return call

    for name in ("open", "write", "fsync", "replace", "unlink", "mkdir", "ftruncate"):
        patch.setattr(os, name, mortal(getattr(os, name)))


# Creating


def test_a_new_run_has_what_repeats_it_and_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    with create(path, CONFIG) as run:
        assert run.config() == read_config(path) == CONFIG
        assert read_status(path)["state"] == "running"
        assert run.checkpoints.is_dir() and run.figures.is_dir()
        assert read_metrics(path) == []
        assert is_run(path) and is_running(path)
    assert not is_running(path)
    left = {MARKER, "config.toml", "status.json", "metrics.jsonl", "checkpoints", "figures"}
    assert set(os.listdir(path)) == left


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run"
    create(path, CONFIG).close()
    (path / "config.toml").touch()
    with pytest.raises(ConfigError, match=f"holds a run already.*--resume {path}"):
        create(path, {"run": {"steps": 5}})
    assert read_config(path) == CONFIG


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    with pytest.raises(ConfigError, match="is not a run"):
        create(tmp_path / "thesis", CONFIG)
    with pytest.raises(ResourceFault, match="is a file"):
        create(tmp_path / "file", CONFIG)
    with pytest.raises(ConfigError, match="symbolic link"):
        create(tmp_path / "link", CONFIG)
    assert os.listdir(tmp_path / "thesis") == ["chapter.tex"]
    (tmp_path / "empty").mkdir()
    create(tmp_path / "empty", CONFIG).close()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        create(tmp_path / "dangling", CONFIG)
    (tmp_path / "alias").symlink_to(tmp_path / "empty")
    with pytest.raises(ConfigError, match="symbolic link"):
        reopen(tmp_path / "alias")


def test_an_unwritable_place_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "run", Path("/proc/run"), Path("/dev/null/run"), Path("/sys/run")):
        with pytest.raises(ResourceFault, match="cannot be written"):
            create(path, CONFIG)


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = run_folder.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceFault, match="1,000 are free"):
        create(tmp_path / "run", CONFIG)
    assert not is_run(tmp_path / "run")


@pytest.mark.parametrize("call", ["mkdir", "open", "write", "fsync", "replace"])
def test_a_failing_disk_while_creating_makes_no_run_and_keeps_no_lock(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = len(os.listdir("/proc/self/fd"))
    for nth in range(1, 20):
        path = tmp_path / str(nth)
        calls = 0
        real = getattr(os, call)

        def fail(*args: Any, nth: int = nth, real: Callable[..., Any] = real, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **keywords)

        failed = False
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                create(path, CONFIG).close()
            except ResourceFault:
                failed = True
        assert len(os.listdir("/proc/self/fd")) == files
        if not failed:
            break
        (reopen if is_run(path) else partial(create, config=CONFIG))(path).close()
        assert read_config(path) == CONFIG
    assert not failed and nth > 1


def test_a_kill_while_creating_leaves_no_run_or_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = 0
    for number in range(1, 100):
        path = tmp_path / str(number)
        run = None
        with monkeypatch.context() as patch:
            _die_before(number, patch)
            try:
                run = create(path, CONFIG)
            except _Dead:
                pass
        if run is not None:
            run.close()
            break
        if is_run(path):
            whole += 1
            reopen(path).close()
        else:
            create(path, CONFIG).close()
        assert read_config(path) == CONFIG
        assert not list(path.glob("*.tmp"))
    assert number > 10 and whole >= 1


def test_a_configuration_that_cannot_be_written_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        create(tmp_path / "run", {"a": math.nan})
    assert not (tmp_path / "run").exists()


def test_going_on_needs_a_run_and_names_those_that_there_are(tmp_path: Path) -> None:
    create(tmp_path / "first", CONFIG).close()
    with pytest.raises(ConfigError, match=r"There is no run in .*frist.*Runs there: first"):
        reopen(tmp_path / "frist")
    with pytest.raises(ConfigError):
        reopen(tmp_path / "nowhere" / "at all")


# One process at a time

HOLD = """
import sys, time
from pathlib import Path
from mfmarl.learning.run_folder import create
run = create(Path(sys.argv[1]), {"run": {"steps": 1}})
run.append({"step": 1})
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_told_who_has_the_run_and_a_kill_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            assert is_running(path)
            for action in (reopen, remove):
                with pytest.raises(RunLocked, match=f"process {holder.pid} on {os.uname().nodename}"):
                    action(path)
            with pytest.raises(ConfigError, match="holds a run already"):
                create(path, CONFIG)
        finally:
            holder.kill()
    assert not is_running(path)
    with reopen(path) as run:
        assert read_metrics(path) == [{"step": 1}]
        with pytest.raises(RunLocked, match=f"process {os.getpid()} "):
            reopen(path)
        run.append({"step": 2})


def test_of_many_processes_exactly_one_makes_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    go, start = os.pipe()
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            code = 9
            try:
                signal.alarm(60)
                os.close(start)
                os.read(go, 1)
                create(path, {"run": {"number": number}})
                code = 0  # and keeps the lock to its end
            except MfmarlError as error:
                code = error.exit_code
            finally:
                os._exit(code)
        children.append(child)
    os.close(go)
    os.close(start)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes.count(0) == 1
    assert set(codes) <= {0, ConfigError.exit_code, RunLocked.exit_code}
    assert read_config(path)["run"]["number"] == codes.index(0)


def test_a_file_system_without_locks_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceFault, match="has no locks"):
        create(tmp_path / "run", CONFIG)


def test_looking_whether_a_run_is_running_changes_nothing(tmp_path: Path) -> None:
    assert not is_running(tmp_path / "nowhere")
    create(tmp_path / "run", CONFIG).close()
    (tmp_path / "run" / MARKER).write_bytes(b"someone else's")
    assert not is_running(tmp_path / "run") and not is_running(tmp_path)
    assert (tmp_path / "run" / MARKER).read_bytes() == b"someone else's"
    assert not (tmp_path / MARKER).exists()


# Rows


@pytest.fixture
def run(tmp_path: Path) -> Any:
    with create(tmp_path / "run", CONFIG) as folder:
        yield folder


def test_rows_come_back_as_they_were(run: RunFolder) -> None:
    rows = [
        {"step": 2**53 + 1, "train/reward": 0.1 + 0.2, "note": 'ü\n"x"', "ok": True},
        {"step": -1, "x": 5e-324, "y": -0.0, "empty": ""},
        {},
    ]
    for row in rows:
        run.append(row)
    found = read_metrics(run.path)
    assert found == rows
    assert type(found[0]["step"]) is int and type(found[0]["ok"]) is bool


def test_what_is_not_a_number_is_null_in_the_file_and_nan_when_read(run: RunFolder) -> None:
    run.append({"a": math.nan, "b": math.inf, "c": np.float32(-np.inf), "d": torch.tensor(math.nan), "e": None})
    run.append({"a": np.float64(0.5), "b": np.int64(3), "c": torch.tensor(2), "d": np.bool_(True)})
    text = (run.path / "metrics.jsonl").read_text()
    assert text == ('{"a": null, "b": null, "c": null, "d": null, "e": null}\n{"a": 0.5, "b": 3, "c": 2, "d": true}\n')
    first, second = read_metrics(run.path / "metrics.jsonl")
    assert all(math.isnan(value) for value in first.values()) and len(first) == 5
    assert second == {"a": 0.5, "b": 3, "c": 2, "d": True}


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, object(), b"x"])
def test_a_row_holds_numbers_and_words_only(value: Any, run: RunFolder) -> None:
    with pytest.raises(TypeError, match="'loss'"):
        run.append({"step": 1, "loss": value})
    assert read_metrics(run.path) == []


def test_a_row_torn_at_any_byte_is_left_out_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with create(path, CONFIG) as run:
        run.append({"step": 1, "x": 0.25})
        run.append({"step": 2, "x": 0.5})
    content = (path / "metrics.jsonl").read_bytes()
    first = content.index(b"\n") + 1
    for size in range(len(content) + 1):
        (path / "metrics.jsonl").write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        assert [row["step"] for row in read_metrics(path)] == [1, 2][:whole]
        with reopen(path) as run:
            assert run.committed == (0, first, len(content))[whole]
            run.append({"step": 9})
        assert [row["step"] for row in read_metrics(path)] == [*[1, 2][:whole], 9]


def test_a_tail_of_zeros_after_a_power_cut_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with create(path, CONFIG) as run:
        run.append({"step": 1})
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 200_000)
    assert read_metrics(path) == [{"step": 1}]
    with reopen(path) as run:
        assert run.committed == len('{"step": 1}\n')


def test_a_damaged_row_in_the_middle_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for line in (b"{", b"[1]", b"\xff", b"", b"1", b"[" * 100_000, b'{"a": 1}{"b": 2}', b"\0"):
        path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl line 2 is damaged") as caught:
            read_metrics(path)
        assert "\n" not in str(caught.value)


def test_a_resumed_run_drops_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with create(path, CONFIG) as run:
        for step in range(5):
            run.append({"step": step})
            if step == 2:
                offset = run.committed
    with reopen(path) as run:
        assert run.truncate_to(offset) == 2 * len('{"step": 0}\n')
        assert run.truncate_to(offset) == 0
        run.append({"step": 3, "again": True})
        assert run.committed == os.path.getsize(path / "metrics.jsonl")
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3]
    with reopen(path) as run:
        assert run.truncate_to(0) > 0
    assert read_metrics(path) == []


def test_rows_that_were_lost_are_warned_of_and_a_changed_file_is_refused(run: RunFolder) -> None:
    run.append({"step": 1})
    size = run.committed
    with pytest.warns(RunWarning, match="rows between are lost"):
        assert run.truncate_to(size + 10) == 0
    for offset in (size - 1, 1):
        with pytest.raises(CheckpointError, match="no row ends at byte"):
            run.truncate_to(offset)
    for wrong in (-1, 1.0, "5", None, True):
        with pytest.raises(CheckpointError, match="whole number"):
            run.truncate_to(wrong)  # type: ignore[arg-type]
    assert read_metrics(run.path) == [{"step": 1}]


def _full_after(monkeypatch: pytest.MonkeyPatch, room: int, reason: int = errno.ENOSPC) -> None:
    real, left = os.write, [room]

    def write(descriptor: int, content: bytes) -> int:
        if left[0] <= 0:
            raise OSError(reason, os.strerror(reason))
        done = real(descriptor, content[: left[0]])
        left[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_in_a_row_leaves_no_half_row_and_loses_none(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    run.append({"step": 1})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", RunWarning)
        for room in range(12):
            with monkeypatch.context() as patch:
                _full_after(patch, room, reason)
                run.append({"step": 2 + room})
            assert run.committed == len('{"step": 1}\n')
    assert len(told) == 1 and "free some space" in str(told[0].message)
    assert [json.loads(line)["step"] for line in run.waiting] == list(range(2, 14))
    run.append({"step": 14})
    assert not run.waiting
    assert [row["step"] for row in read_metrics(run.path)] == list(range(1, 15))


def test_a_disk_that_stays_full_ends_the_run_when_patience_ends(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now[0])
    with monkeypatch.context() as patch:
        _full_after(patch, 0)
        with pytest.warns(RunWarning, match="60 s"):
            run.append({"step": 1})
        now[0] += 59.9
        run.append({"step": 2})
        now[0] += 0.1
        with pytest.raises(ResourceFault, match="No space left"):
            run.append({"step": 3})
    # A checkpoint keeps what waits; who goes on from it has every row once.
    waiting, committed = run.waiting, run.committed
    run.close()
    with reopen(run.path) as again:
        again.truncate_to(committed)
        again.take_up(waiting)
    assert [row["step"] for row in read_metrics(run.path)] == [1, 2, 3]


def test_the_last_row_is_waited_for(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [0]
    real = os.write

    def write(descriptor: int, content: bytes) -> int:
        tries[0] += 1
        if tries[0] < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(run_folder.time, "sleep", lambda seconds: None)
    with pytest.warns(RunWarning):
        run.append({"step": 1})
    run.write_all_rows()
    assert read_metrics(run.path) == [{"step": 1}] and not run.waiting


def test_a_disk_that_fails_is_not_waited_for(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _full_after(patch, 0, errno.EIO)
        with pytest.raises(ResourceFault):
            run.append({"step": 1})
    assert [json.loads(line) for line in run.waiting] == [{"step": 1}]


@pytest.mark.parametrize(
    ("call", "reason"), [("fsync", errno.ENOSYS), ("replace", errno.EXDEV), ("replace", errno.EPERM)]
)
def test_a_file_system_that_cannot_sync_or_rename_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, reason: int
) -> None:
    create(tmp_path / "old", CONFIG).close()

    def unable(*_: Any) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, call, unable)
    for begin in (lambda: create(tmp_path / "new", CONFIG), lambda: reopen(tmp_path / "old")):
        with pytest.raises(ResourceFault, match="local disk") as told:
            begin()
        assert told.value.code == "filesystem"
    assert not is_run(tmp_path / "new") and not is_running(tmp_path / "old")


def test_a_folder_that_is_deleted_moved_or_replaced_is_noticed_and_its_rows_are_still_there(tmp_path: Path) -> None:
    for gone in (lambda path: shutil.rmtree(path), lambda path: path.rename(tmp_path / "elsewhere")):
        with create(tmp_path / "run", CONFIG) as run:
            run.append({"step": 1})
            assert run.is_there()
            gone(tmp_path / "run")
            assert not run.is_there()
            create(tmp_path / "run", CONFIG).close()
            assert not run.is_there()
            assert run.rows_as_written() == b'{"step": 1}\n'
            shutil.rmtree(tmp_path / "run")


def test_remarks_stay_in_the_status(tmp_path: Path) -> None:
    with create(tmp_path / "run", CONFIG) as run:
        run.write_status("running")
        assert "remarks" not in read_status(run.path)
        run.remarks.append("from step 3 on not bitwise")
        run.write_status("interrupted")
    with reopen(tmp_path / "run") as run:
        run.write_status("done")
    assert read_status(tmp_path / "run")["remarks"] == ["from step 3 on not bitwise"]


def test_rows_written_before_a_kill_are_there(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def write_and_die() -> None:
        run = create(path, CONFIG)
        for step in range(100):
            run.append({"step": step})
        os.kill(os.getpid(), signal.SIGKILL)

    assert _in_child(write_and_die) == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(path)] == list(range(100))
    assert read_status(path)["state"] == "running" and not is_running(path)


def test_no_file_means_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == read_metrics(tmp_path / "metrics.jsonl") == []


# Status


def test_the_status_is_what_was_written_last(run: RunFolder) -> None:
    run.write_status("failed", error="a\nb ü", exit_code=5, step=2**60, wall=1.5, cpu=0.25, agent_steps=2**62)
    assert json.loads((run.path / "status.json").read_text()) == read_status(run.path)
    assert read_status(run.path) == {
        "state": "failed",
        "error": "a\nb ü",
        "exit_code": 5,
        "step": 2**60,
        "wall": 1.5,
        "cpu": 0.25,
        "agent_steps": 2**62,
    }
    with pytest.raises(ValueError, match="state"):
        run.write_status("finished")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"state": "happy"}', b"\xff", b"[" * 100_000, b'{"state": []}']
)
def test_a_status_that_cannot_be_read_is_unknown(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path)["state"] == "unknown"
    assert set(read_status(tmp_path / "nowhere")) == {
        "state",
        "error",
        "exit_code",
        "step",
        "wall",
        "cpu",
        "agent_steps",
    }


def test_a_folder_deleted_under_a_run_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with create(path, CONFIG) as run:
        remaining = sorted(path.rglob("*"), reverse=True)
        for item in remaining:
            item.rmdir() if item.is_dir() else item.unlink()
        path.rmdir()
        with pytest.raises(ResourceFault, match="its folder is gone"):
            run.write_status("running")
    assert not path.exists()


# Finding and removing


def test_runs_are_found_at_any_depth_and_links_are_not_followed(tmp_path: Path) -> None:
    names = ["b", "compare/ising/mfq/seed-0", "compare/ising/mfq/seed-1", "a"]
    for name in names:
        create(tmp_path / name, CONFIG).close()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("")
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == sorted(names)
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]
    assert find_runs(tmp_path / "nowhere") == []
    (tmp_path / "a" / MARKER).unlink()  # a copy that left hidden files behind
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_only_a_run_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").write_text("")
    create(tmp_path / "run", CONFIG).close()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for path in (tmp_path / "mine", tmp_path, tmp_path / "nowhere", tmp_path / "link"):
        with pytest.raises(ConfigError, match="is not deleted"):
            remove(path)
    assert is_run(tmp_path / "run") and (tmp_path / "mine" / "config.toml").exists()
    remove(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_leftovers_of_a_kill_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run"
    create(path, CONFIG).close()
    for name in ("status.json.tmp", "config.toml.tmp", "report.html.tmp", "mine.tmp", "notes.txt"):
        (path / name).write_text("x")
    reopen(path).close()
    assert {name for name in os.listdir(path) if "tmp" in name or "txt" in name} == {"mine.tmp", "notes.txt"}


# Names

BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/a",
    "a\\b",
    "C:",
    "C:x",
    "a:b",
    "con",
    "NUL",
    "nul.txt",
    "Com1",
    "LPT9.x",
    "aux",
]
BAD_NAMES += [
    "a.",
    "a ",
    " a",
    "-a",
    "a\nb",
    "a\0",
    "a\x7f",
    "a*",
    "a?",
    "<a>",
    "a|b",
    'a"',
    "x" * 201,
    "ü" * 101,
    "\udc80",
]
BAD_NAMES += ["com\u00b9", "\u2028", "...", "a\x85"]
GOOD_NAMES = [
    "a",
    "seed-0",
    "magent2_battle_v4",
    "Grüße",
    "🐝",
    "run 1",
    ".hidden",
    "console",
    "a..b",
    "x" * 200,
    "com0x",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_do_not_travel_are_refused_with_one_that_does(name: str) -> None:
    with pytest.raises(ConfigError, match="For example: ") as caught:
        check_name(name)
    offered = str(caught.value).split("For example: ")[1]
    assert check_name(offered) == offered


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_travel_make_runs(name: str, tmp_path: Path) -> None:
    create(tmp_path / name, CONFIG).close()
    assert find_runs(tmp_path) == [tmp_path / name]


def test_a_run_cannot_have_a_name_that_does_not_travel(tmp_path: Path) -> None:
    for name in ("a:b", "nul", "a\nb", "..", "x" * 201):
        with pytest.raises(ConfigError):
            create(tmp_path / name, CONFIG)
    assert os.listdir(tmp_path) == []


@settings(max_examples=200)
@given(st.text(max_size=300) | st.sampled_from(BAD_NAMES))
def test_any_text_becomes_a_name_that_travels(text: str) -> None:
    name = as_name(text)
    assert check_name(name) == name == as_name(name)
    assert os.path.basename(name) == ntpath.basename(name) == name
    assert ntpath.splitdrive(name)[0] == "" and len(name.encode()) <= 200


def test_names_of_environments_become_folders() -> None:
    assert as_name("magent2/battle_v4") == "magent2_battle_v4"
    assert as_name("/home/me/my env.py:MyEnv") == "home_me_my env.py_MyEnv"
    assert as_name("ising") == "ising"


def test_nothing_leads_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "other")
    assert inside(root, "a", "b") == root / "a" / "b"
    assert inside(root, "in") == root / "in"
    with pytest.raises(ConfigError, match="leads out"):
        inside(root, "out", "x")
    for name in ("..", "a/b", "/etc"):
        with pytest.raises(ConfigError):
            inside(root, name)
