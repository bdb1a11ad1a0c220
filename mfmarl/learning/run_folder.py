"""A run folder: everything a run leaves behind, written so that a kill at any moment leaves it usable.

    config.toml      all that repeats the run       metrics.jsonl   one JSON row per report, append-only
    status.json      how it goes                    checkpoints/    see mfmarl.learning.checkpoint
    .mfmarl-run      our marker, and the lock: one process writes a folder, and a kill frees it

Rows that a full disk does not take are kept in memory for FULL_PATIENCE seconds, and in the checkpoints meanwhile.

A folder is a run once it has a config.toml, which is written last when it is created.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shlex
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mfmarl.errors import CheckpointError, ConfigError, ResourceFault, RunLocked
from mfmarl.learning import config as config_file
from mfmarl.learning.durable import demand_room, read_limited, remove_stale, resource_fault, write_all, write_atomic
from mfmarl.learning.migration import config_brought_forward

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
STATUS = "status.json"
MARKER = ".mfmarl-run"
SWEEP = ".mfmarl-sweep"
"""The lock of a folder that holds many runs."""
STATES = ("running", "done", "interrupted", "failed")
MAX_NAME = 200
FULL_PATIENCE = 60.0
"""Seconds for which a run goes on while the disk takes none of its rows."""
MAX_METRICS = 8 * 2**30
_PATIENCE = 0.5
_ROOM = 2**20


class RunWarning(UserWarning):
    """Something of a run folder was lost or mended, and the run goes on."""


class RunFolder:
    """An open, locked run folder; close it, or use it in a `with` statement. Made by `create` and `reopen`."""

    def __init__(self, path: Path, lock: int, metrics: int, size: int) -> None:
        self.path = path
        self._lock = lock
        self._metrics = metrics
        self._size = size
        self._waiting: list[bytes] = []
        self._full_since: float | None = None
        self.remarks: list[str] = []
        """What a reader of the numbers must know, kept in status.json: from which step on the run is not bitwise."""

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the lock; a second time does nothing."""
        for descriptor in (self._metrics, self._lock):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._metrics = self._lock = -1

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def config(self) -> dict[str, Any]:
        """The table in config.toml. Raises ConfigError."""
        return read_config(self.path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row of numbers, words and None to metrics.jsonl; it is with the operating system on return.

        NaN and infinity are written as null, which readers turn into NaN. While the disk is full, rows wait in memory
        (a RunWarning says so once), and no half row is left. Raises ResourceFault when it has been full for
        FULL_PATIENCE seconds, or fails otherwise; the row is among `waiting` then.
        """
        line = json.dumps({key: _cell(key, value) for key, value in row.items()}, allow_nan=False) + "\n"
        self._waiting.append(line.encode())
        self._write_waiting()

    @property
    def waiting(self) -> list[str]:
        """The rows that the disk has not taken yet, as lines: a checkpoint keeps them."""
        return [line.decode() for line in self._waiting]

    def take_up(self, lines: Sequence[str]) -> None:
        """Write the rows that were `waiting` when a checkpoint was made, after those that it counts. As `append`."""
        self._waiting.extend(line.encode() for line in lines)
        self._write_waiting()

    def write_all_rows(self) -> None:
        """Return when no row waits any more. Raises ResourceFault when the disk stays full too long."""
        while self._waiting:
            self._write_waiting()
            if self._waiting:
                time.sleep(0.2)

    def _write_waiting(self) -> None:
        while self._waiting:
            line = self._waiting[0]
            try:
                write_all(self._metrics, line)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._metrics, self._size)
                self._bear(error, len(line))
                return
            self._size += len(self._waiting.pop(0))
        self._full_since = None

    def _bear(self, error: OSError, size: int) -> None:
        """Wait for a disk that is full, but not for ever. Raises ResourceFault."""
        path, now = self.path / METRICS, time.monotonic()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise resource_fault(error, path, size) from error
        if self._full_since is None:
            self._full_since = now
            if FULL_PATIENCE > 0:
                warnings.warn(
                    f"{path} cannot be written: {error.strerror}. The run goes on for {FULL_PATIENCE:g} s with its rows in "
                    "memory: free some space.",
                    RunWarning,
                    stacklevel=4,
                )
        if now - self._full_since >= FULL_PATIENCE:
            raise resource_fault(error, path, size) from error

    def is_there(self) -> bool:
        """Whether the folder is still where it was: not deleted, moved or replaced."""
        try:
            return self._lock < 0 or os.path.samestat(os.fstat(self._lock), os.stat(self.path / MARKER))
        except OSError:
            return False

    def rows_as_written(self) -> bytes:
        """All of metrics.jsonl, also when its folder is gone. Raises ResourceFault."""
        try:
            return b"".join(
                _read_at(self._metrics, start, min(2**20, self._size - start)) for start in range(0, self._size, 2**20)
            )
        except OSError as error:
            raise resource_fault(error, self.path / METRICS) from error

    def begin_with(self, rows: bytes) -> None:
        """Let a new folder's metrics begin with another's rows. Raises ResourceFault."""
        try:
            write_all(self._metrics, rows)
        except OSError as error:
            raise resource_fault(error, self.path / METRICS, len(rows)) from error
        self._size += len(rows)

    @property
    def committed(self) -> int:
        """How many bytes of metrics.jsonl are safely on disk: a checkpoint keeps this number. Raises ResourceFault."""
        try:
            os.fsync(self._metrics)
        except OSError as error:
            raise resource_fault(error, self.path / METRICS) from error
        return self._size

    def truncate_to(self, offset: int) -> int:
        """Drop the rows after a checkpoint's `committed`; returns how many bytes went.

        Rows that are missing are warned of (RunWarning). Raises CheckpointError where no row begins at `offset`.
        """
        path = self.path / METRICS
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise CheckpointError(
                f"The checkpoint says that {path} had {offset!r} bytes; expected a whole number.", "damaged-metrics"
            )
        if offset > self._size:
            warnings.warn(
                f"{path} has {self._size:,} bytes and had {offset:,} when the checkpoint was written: the rows between "
                "are lost. The run itself is not affected.",
                RunWarning,
                stacklevel=2,
            )
            return 0
        try:
            if offset and _read_at(self._metrics, offset - 1, 1) != b"\n":
                raise CheckpointError(
                    f"{path} was changed: no row ends at byte {offset:,}, where the checkpoint's does.",
                    "damaged-metrics",
                )
            os.ftruncate(self._metrics, offset)
            os.fsync(self._metrics)
        except OSError as error:
            raise resource_fault(error, path) from error
        dropped, self._size = self._size - offset, offset
        return dropped

    def write_status(
        self,
        state: str,
        *,
        error: str = "",
        exit_code: int = 0,
        step: int = 0,
        wall: float = 0.0,
        cpu: float = 0.0,
        agent_steps: int = 0,
        diverged: str = "",
    ) -> None:
        """Say how the run goes; `state` is one of STATES, `wall` and `cpu` are seconds; `diverged` is when and how learning
        was seen to diverge, if it was. Raises ResourceFault."""
        if state not in STATES:
            raise ValueError(f"a run's state is one of {STATES}, not {state!r}")
        status = {
            "state": state,
            "error": error,
            "exit_code": exit_code,
            "step": step,
            "wall": wall,
            "cpu": cpu,
            "agent_steps": agent_steps,
        }
        more = {"diverged": diverged, "remarks": self.remarks}
        self.write_json(STATUS, status | {name: value for name, value in more.items() if value})

    def write_json(self, name: str, value: Any) -> Path:
        """A small JSON file in the folder, whole or not at all. Raises ResourceFault."""
        path = self.path / check_name(name)
        write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
        return path


def create(path: Path, config: Mapping[str, Any]) -> RunFolder:
    """Make a new run folder with that configuration, and lock it.

    Raises ConfigError where a run or anything else is there already, or the name would not travel to other
    systems; RunLocked where another process is making it; ResourceFault where it cannot be written.
    """
    path = Path(path)
    check_name(path.name)
    text = config_file.to_text(config)
    if path.is_symlink():
        raise ConfigError(f"{path} is a symbolic link; give the folder that it points to, or another name.", "link")
    if is_run(path):
        raise exists(path)
    if path.exists() and not path.is_dir():
        raise ResourceFault(f"{path} is a file; the run needs a folder there: choose another name.", "not-a-run")
    try:
        if path.is_dir() and not (path / MARKER).exists() and any(path.iterdir()):
            raise ConfigError(
                f"{path} exists and is not a run of mfmarl; choose another name. Nothing was changed.", "not-a-run"
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise resource_fault(error, path) from error
    demand_room(path, _ROOM)
    folder = _open(path)
    try:
        if is_run(path):  # made by another process since we looked
            raise exists(path)
        _probe(path)
        folder.write_status("running")
        write_atomic(path / CONFIG, text.encode())
    except BaseException:
        folder.close()
        raise
    return folder


def exists(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} holds a run already. Go on with it (mfmarl train --resume {shlex.quote(str(path))}), or choose another name.",
        "run-exists",
    )


def reopen(path: Path) -> RunFolder:
    """Lock a run folder to go on with it; what a kill left half-written is cleared away.

    Raises ConfigError where there is no run, RunLocked where another process has it, ResourceFault.
    """
    path = Path(path)
    if path.is_symlink():
        raise ConfigError(f"{path} is a symbolic link; give the folder that it points to.", "link")
    demand_run(path)
    folder = _open(path)
    try:
        remarks = read_status(path).get("remarks", [])
        folder.remarks = [str(remark) for remark in remarks] if isinstance(remarks, list) else []
        _probe(path)
    except BaseException:
        folder.close()
        raise
    return folder


def _open(path: Path) -> RunFolder:
    """Lock the folder, clear away what a kill left, and open its metrics."""
    lock, metrics = _lock(path), -1
    try:
        for name in ("checkpoints", "figures"):
            (path / name).mkdir(exist_ok=True)
        clean(path)
        metrics = os.open(path / METRICS, _APPEND, 0o666)
        return RunFolder(path, lock, metrics, _cut_torn_tail(metrics))
    except BaseException as error:
        for descriptor in (metrics, lock):
            if descriptor >= 0:
                os.close(descriptor)
        if isinstance(error, OSError):
            raise resource_fault(error, path) from error
        raise


def _probe(path: Path) -> None:
    """Raises ResourceFault where files cannot be synced and renamed: said before the first step, not at hour nine."""
    probe = path / ".probe.json"
    try:
        write_atomic(probe, b"{}\n")
        probe.unlink(missing_ok=True)
    except ResourceFault as fault:
        error = fault.__cause__
        if isinstance(error, OSError) and error.errno in _UNABLE:
            raise ResourceFault(
                f"The file system of {path} cannot sync and rename files ({error.strerror}), so a kill could destroy a "
                "checkpoint; put the runs on a local disk: --runs FOLDER.",
                "filesystem",
            ) from error
        raise
    except OSError as error:
        raise resource_fault(error, probe) from error


_UNABLE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EPERM, errno.EINVAL)


def remove(path: Path) -> None:
    """Delete a run folder and all in it; only one that carries our marker, and that nobody is writing.

    Raises ConfigError for any other folder, RunLocked, ResourceFault.
    """
    path = Path(path)
    if path.is_symlink() or not (path / MARKER).is_file():
        raise ConfigError(f"{path} is not deleted: it is not a run folder of mfmarl (it has no {MARKER}).", "not-a-run")
    lock = _lock(path)
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise resource_fault(error, path) from error
    finally:
        os.close(lock)


def is_run(path: Path) -> bool:
    """Whether there is a run in that folder."""
    return (path / CONFIG).is_file()


@contextlib.contextmanager
def exclusive(path: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold a folder of many runs (a comparison, a sweep) for one process, as a run's own lock holds that.

    Raises RunLocked where another process still has it after `patience` seconds, ResourceFault.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise resource_fault(error, path) from error
    lock = _lock(path, patience, name=SWEEP)
    try:
        yield
    finally:
        os.close(lock)


def holder(path: Path) -> str:
    """Who is writing that run folder, or did so last: "process 4711 on somewhere"."""
    return _holder(path / MARKER)


def is_running(path: Path) -> bool:
    """Whether some process is writing that run folder now."""
    try:
        os.close(_lock(path, patience=0.0, sign=False))
    except RunLocked:
        return True
    except (ResourceFault, ConfigError):
        return False
    return False


def demand_run(path: Path) -> None:
    """Raises ConfigError, naming the runs beside it, where there is no run in that folder."""
    if is_run(path):
        return
    beside = [run.name for run in _runs_in(path.parent)]
    known = f" Runs there: {', '.join(beside[:10])}." if beside else ""
    raise ConfigError(f"There is no run in {path}: it has no {CONFIG}.{known}", "no-run")


def _runs_in(folder: Path) -> list[Path]:
    """The runs that lie directly in a folder: a look that is quick whatever else lies there."""
    try:
        return sorted(path for path in folder.iterdir() if is_run(path))
    except OSError:
        return []


def find_runs(folder: Path) -> list[Path]:
    """Every run folder in a folder, itself included, at any depth, sorted; links are not followed."""
    found = []
    for where, folders, files in os.walk(folder):
        if CONFIG in files and (MARKER in files or METRICS in files):
            found.append(Path(where))
            folders.clear()
        folders.sort()
    return sorted(found)


def clean(path: Path) -> list[Path]:
    """Remove what a killed writer left half-written in the folder itself. Returns what went."""
    return remove_stale(path, (".toml", ".json", ".html", ".csv"))


# Reading


def read_config(path: Path) -> dict[str, Any]:
    """The table in a run folder's config.toml. Raises ConfigError."""
    return config_brought_forward(config_file.read_toml(path / CONFIG))


def read_status(path: Path) -> dict[str, Any]:
    """How the run in that folder goes; `state` is "unknown" where there is no status that can be read."""
    status = {"state": "unknown", "error": "", "exit_code": 0, "step": 0, "wall": 0.0, "cpu": 0.0, "agent_steps": 0}
    try:
        found = json.loads(read_limited(path / STATUS, 2**20, ResourceFault))
    except (ResourceFault, ValueError, RecursionError):
        return status
    return {**status, **found} if isinstance(found, dict) and found.get("state") in STATES else status


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run folder, or of a metrics.jsonl file; null becomes NaN.

    A last row that is not whole (a kill, or a run that is writing now) is left out; no file, no rows.
    Raises CheckpointError for damage anywhere else, with the line.
    """
    path = Path(path)
    file = path / METRICS if path.is_dir() else path
    if not file.exists():
        return []
    content = read_limited(file, MAX_METRICS, CheckpointError)
    lines = content.split(b"\n")[:-1]  # the last is torn, or empty
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not a table")
        except (ValueError, RecursionError) as error:
            reason = str(error)[:80] or type(error).__name__
            raise CheckpointError(
                f"{file} line {number} is damaged ({reason}); expected one JSON table a line.", "damaged-metrics"
            ) from error
        rows.append({key: math.nan if value is None else value for key, value in row.items()})
    return rows


# Names


_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])(\..*)?", re.I)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def check_name(name: str) -> str:
    """The name itself, where it can name a file on Linux, macOS and Windows. Raises ConfigError otherwise."""
    wrong = ""
    if name in ("", ".", ".."):
        wrong = "it names no folder of its own"
    elif _FORBIDDEN.search(name):
        wrong = "it has a character that file names of some systems may not have"
    elif name[-1] in ". " or name[0] in " -":
        wrong = "it ends in a point or a space, or begins with a space or a minus sign"
    elif _RESERVED.fullmatch(name):
        wrong = "it is the name of a device on Windows"
    elif len(name.encode()) > MAX_NAME:
        wrong = f"it is longer than {MAX_NAME} bytes"
    if wrong:
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise ConfigError(f"{shown!r} cannot name a run: {wrong}. For example: {as_name(name)}", "bad-name")
    return name


def as_name(text: str) -> str:
    """A name near to `text` that `check_name` accepts: `magent2/battle_v4` is `magent2_battle_v4`."""
    name = _FORBIDDEN.sub("_", text).strip("_-. ").encode()[: MAX_NAME - 4].decode(errors="ignore").rstrip("_-. ")
    return f"run_{name}" if _RESERVED.fullmatch(name) else name or "run"


def inside(root: Path, *names: str) -> Path:
    """`root/name/name...`, each name checked, and no link in it leading out of `root`. Raises ConfigError."""
    path = root.joinpath(*map(check_name, names))
    if not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"{path} leads out of {root} through a symbolic link.", "link")
    return path


# One process at a time


def _lock(path: Path, patience: float = _PATIENCE, sign: bool = True, name: str = MARKER) -> int:
    """A descriptor that holds the folder's lock until it is closed or the process ends, however it ends."""
    file = path / name
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | (os.O_CREAT if sign else 0)
    try:
        descriptor = os.open(file, flags, 0o666)
    except OSError as error:
        raise resource_fault(error, file) from error
    until = time.monotonic() + patience
    try:
        while not _try_lock(descriptor, path):
            if time.monotonic() >= until:
                raise RunLocked(
                    f"{path} is being written by {_holder(file)}. Wait for it, end it, or use another name."
                )
            time.sleep(0.02)
        if not os.path.samestat(os.fstat(descriptor), os.stat(file)):
            raise ResourceFault(f"{path} was deleted or replaced while it was being opened; try again.", "run-deleted")
        if sign:
            _sign(descriptor)
    except OSError as error:
        os.close(descriptor)
        raise resource_fault(error, file) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 2**20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise ResourceFault(
            f"The file system of {path} has no locks ({error.strerror}), so two processes could write one run; "
            "put the runs on a local disk: --runs FOLDER.",
            "filesystem",
        ) from error
    return True


def _sign(descriptor: int) -> None:
    who = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    write_all(descriptor, who)


def _holder(file: Path) -> str:
    try:
        who = json.loads(read_limited(file, 4096, ResourceFault))
        return f"process {int(who['pid'])} on {str(who['host'])[:100]}"
    except (ResourceFault, ValueError, TypeError, KeyError, RecursionError):
        return "another process"


# metrics.jsonl


_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def _read_at(descriptor: int, start: int, size: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size)


def _cut_torn_tail(descriptor: int) -> int:
    """Drop the bytes after the last newline, which a kill left; returns the size then."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        at = _read_at(descriptor, start, end - start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _cell(key: str, value: Any) -> Any:
    if callable(getattr(value, "item", None)):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"a row of metrics holds numbers and words, and {key!r} is {type(value).__name__}")
