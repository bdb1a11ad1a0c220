"""Files that are whole or not there: each promise of one function, on a real disk or with one call that fails.

Kills and power cuts between the calls: tests/selftest/test_crashes.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfmarl.errors import CheckpointError, ResourceFault
from mfmarl.learning import durable
from mfmarl.learning.durable import (
    demand_room,
    read_limited,
    remove_stale,
    resource_fault,
    sync_folder,
    write_all,
    write_atomic,
)


def failing(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    (tmp_path / "a.json.tmp").write_bytes(b"left by a kill")
    write_atomic(path, b"new" * 100_000)
    assert path.read_bytes() == b"new" * 100_000 and os.listdir(tmp_path) == ["a.json"]
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    write_atomic(path, b"")
    assert path.read_bytes() == b"" and synced == [tmp_path]


def test_a_file_may_be_read_by_whom_the_mask_allows(tmp_path: Path) -> None:
    for mask, mode in ((0o027, 0o640), (0, 0o666)):
        before = os.umask(mask)
        try:
            write_atomic(tmp_path / "a", b"x")
        finally:
            os.umask(before)
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_link_laid_at_the_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed where it lies before; and where it is laid in between, the file is refused."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "a.tmp").symlink_to(victim)
    write_atomic(tmp_path / "a", b"x")
    assert victim.read_text() == "mine" and not (tmp_path / "a").is_symlink()
    real = os.open

    def slow(path: Any, *more: Any, **named: Any) -> int:
        if str(path).endswith("b.tmp"):
            Path(path).symlink_to(victim)
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", slow)
    with pytest.raises(ResourceFault):
        write_atomic(tmp_path / "b", b"x")
    assert victim.read_text() == "mine" and not (tmp_path / "b").exists()


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_whatever_fails_the_old_file_stays_and_every_descriptor_is_closed(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a", b"old")
    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(errno.EIO))
        with pytest.raises(ResourceFault, match=r"a cannot be written: Input/output error\.$") as caught:
            write_atomic(tmp_path / "a", b"new")
    assert caught.value.code == "disk-failed"
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_write_that_stops_half_way_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = os.write, []

    def little(descriptor: int, content: Any) -> int:
        sizes.append(len(content))
        return real(descriptor, bytes(content[:7]))

    monkeypatch.setattr(os, "write", little)
    write_atomic(tmp_path / "a", bytes(range(20)))
    assert (tmp_path / "a").read_bytes() == bytes(range(20)) and sizes == [20, 13, 6]
    with (tmp_path / "b").open("wb", buffering=0) as file:
        write_all(file.fileno(), b"")
    assert len(sizes) == 3


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_whose_folders_cannot_be_synced_is_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fsync", failing(number))
    sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(NotADirectoryError):
        (tmp_path / "file").write_text("")
        sync_folder(tmp_path / "file")


def test_room_is_what_is_written_and_64_kib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = durable.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    demand_room(tmp_path, 100_000 - 65_536)
    with pytest.raises(ResourceFault, match=r"is full: 34,465 bytes are to be written and 100,000 are free") as caught:
        demand_room(tmp_path, 100_000 - 65_535)
    assert caught.value.code == "disk-full"
    with pytest.raises(ResourceFault, match="is full"):
        write_atomic(tmp_path / "a", b"x" * 40_000)
    monkeypatch.undo()
    with pytest.raises(ResourceFault) as caught:
        demand_room(tmp_path / "gone", 1)
    assert caught.value.code == "folder-gone"


@pytest.mark.parametrize(
    ("number", "size", "code", "words"),
    [
        (
            errno.ENOSPC,
            1234,
            "disk-full",
            "p of 1,234 bytes cannot be written: No space left on device. Free some space",
        ),
        (errno.EDQUOT, 0, "disk-full", "p cannot be written: Disk quota exceeded. Free some space, or use another"),
        (errno.EFBIG, 5, "disk-full", "p of 5 bytes cannot be written: File too large"),
        (errno.ENOENT, 5, "folder-gone", "p cannot be written: its folder is gone or is not a folder (No such file"),
        (errno.ENOTDIR, 0, "folder-gone", "is not a folder (Not a directory)."),
        (
            errno.EACCES,
            0,
            "not-writable",
            "p cannot be written: Permission denied. Use a folder that you may write to.",
        ),
        (errno.EPERM, 0, "not-writable", "Operation not permitted. Use a folder"),
        (errno.EROFS, 0, "not-writable", "Read-only file system. Use a folder"),
        (errno.EIO, 9, "disk-failed", "p cannot be written: Input/output error."),
    ],
)
def test_each_refusal_of_the_system_has_its_code_and_its_way_out(number: int, size: int, code: str, words: str) -> None:
    fault = resource_fault(OSError(number, os.strerror(number)), Path("p"), size)
    assert fault.code == code and words in str(fault)


def test_an_error_without_words_is_told_by_what_it_says() -> None:
    fault = resource_fault(OSError("strange"), Path("p"))
    assert (str(fault), fault.code) == ("p cannot be written: strange.", "disk-failed")
    full = resource_fault(OSError(errno.ENOSPC, "full"), Path("p"))
    assert str(full).startswith("p cannot be written: full.")  # of how many bytes is not known


def test_a_file_is_read_to_its_limit_and_not_beyond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_limited(path, 5, CheckpointError) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sub").mkdir()
    for place, limit, words in (
        (path, 4, "a has 5 bytes, more than the 4 that it may have."),
        (tmp_path / "gone", 5, f"There is no file {tmp_path / 'gone'}."),
        (path / "below", 5, f"There is no file {path / 'below'}."),
        (tmp_path / "pipe", 5, "pipe is not a file."),
        (tmp_path / "sub", 10**9, "sub is not a file."),
        (tmp_path / "a\0b", 5, "cannot be read: embedded null byte."),
    ):
        with pytest.raises(CheckpointError) as caught:
            read_limited(place, limit, CheckpointError)
        assert str(caught.value).endswith(words)
    monkeypatch.setattr(Path, "open", failing(errno.EACCES))
    with pytest.raises(CheckpointError, match=r"a cannot be read: Permission denied\.$"):
        read_limited(path, 5, CheckpointError)


def test_only_files_of_these_endings_are_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.json.tmp", "b.toml.tmp", "c.txt.tmp", "d.json", "e.json.tmp.old", ".json.tmp"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.json.tmp").mkdir()
    (tmp_path / "link.json.tmp").symlink_to(tmp_path / "nowhere")
    went = remove_stale(tmp_path, (".json", ".toml"))
    assert [path.name for path in went] == [".json.tmp", "a.json.tmp", "b.toml.tmp", "link.json.tmp"]
    assert sorted(os.listdir(tmp_path)) == ["c.txt.tmp", "d.json", "e.json.tmp.old", "folder.json.tmp"]
    (tmp_path / "z.json.tmp").write_text("x")
    monkeypatch.setattr(Path, "unlink", failing(errno.EACCES))
    assert remove_stale(tmp_path, (".json",)) == []
