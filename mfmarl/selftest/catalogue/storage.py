"""A disk that fails while a run is saved: kills at any byte and call, full and failing disks."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from mfmarl.errors import ResourceFault
from mfmarl.learning import checkpoint
from mfmarl.learning.checkpoint import LATEST, list_checkpoints, load
from mfmarl.learning.durable import write_atomic
from mfmarl.learning.run_folder import is_run, read_metrics, read_status
from mfmarl.selftest.case import Case, case, expect
from mfmarl.selftest.command import Answer, forked, fresh
from mfmarl.selftest.crashes import Arena, by_bytes, by_calls, die, dying, lost_or_mixed, save_at
from mfmarl.selftest.resume import differences

_TRAIN = [
    *(
        "train",
        "congestion",
        "--agent",
        "mfq",
        "--num-agents",
        "4",
        "--hidden",
        "4",
        "--capacity",
        "24",
        "--warm-up",
        "8",
    ),
    *(
        "--batch-size",
        "8",
        "--copies",
        "1",
        "--evaluation-copies",
        "0",
        "--report-every",
        "5",
        "--checkpoint-seconds",
        "0",
    ),
    *("--exploitability", "off", "--quiet"),
]
Prepare = Callable[[], object]


def _nothing() -> None:
    """No fault."""


def train(folder: Path, name: str, steps: int = 20, prepare: Prepare = _nothing) -> Answer:
    """A short run, saved at every report."""
    return forked([*_TRAIN, "--name", name, "--steps", str(steps)], folder, lambda: (prepare(), None)[1])


def resume(folder: Path, name: str, *more: str, prepare: Prepare = _nothing) -> Answer:
    if "--threads" in more:  # torch's threads do not outlive a fork: who asks for them there waits for ever
        return fresh(["train", "--resume", f"runs/{name}", "--quiet", *more], folder)
    return forked(["train", "--resume", f"runs/{name}", "--quiet", *more], folder, lambda: (prepare(), None)[1])


_HELD: list[Any] = []  # what is entered in a child lasts as long as the child


def _enter(manager: Any) -> None:
    _HELD.append(manager)
    manager.__enter__()


def _killed_again_and_again(folder: Path, faults: list[Prepare], told: str) -> None:
    """A run that is killed by each of the faults in turn, and then left alone, is the run that never was."""
    killed = 0
    for fault in faults:
        begun = is_run(folder / "runs" / "killed")
        answer = resume(folder, "killed", prepare=fault) if begun else train(folder, "killed", prepare=fault)
        expect(
            answer.exit_code in (0, -signal.SIGKILL), f"{told}: it left with {answer.exit_code}: {answer.err[-300:]}"
        )
        killed += answer.exit_code != 0
        there = list_checkpoints(folder / "runs" / "killed" / "checkpoints")
        if len(there) > 1:  # of the very first, latest.json may not be there yet
            load(folder / "runs" / "killed", strict=True)
    expect(killed > 0, f"{told}: none of {len(faults)} kills fell into the run")
    last = resume(folder, "killed") if is_run(folder / "runs" / "killed") else train(folder, "killed")
    last.expect(0)
    train(folder, "undisturbed").expect(0)
    unlike = differences(folder / "runs" / "killed", folder / "runs" / "undisturbed")
    expect(not unlike, f"{told}: the run is not the one that was never killed: {'; '.join(unlike[:5])}")
    left = [path.name for path in (folder / "runs" / "killed").rglob("*.tmp")]
    expect(not left, f"{told}: {left} were left")


@case(
    1, "kill -9 at a byte of a checkpoint", "S1", "the checkpoint before it loads; resumed, the run is bitwise the same"
)
def at_a_byte(folder: Path) -> None:
    lost = [failure for failure in by_bytes(Arena(folder / "arena"), random.Random(1), 120) if failure]  # noqa: S311
    expect(not lost, f"{len(lost)} of 120 bytes: {lost[:1]}")
    bytes_ = (9_000, 21_000, 14_000)
    _killed_again_and_again(folder, [lambda b=b: _enter(dying(die, byte=b)) for b in bytes_], "killed at a byte")  # type: ignore[misc]


@case(2, "kill -9 between any two calls that change the disk", "S1", "the old state or the new one, never a mixture")
def between_calls(folder: Path) -> None:
    lost = [failure for failure in by_calls(Arena(folder / "arena"), random.Random(2), 60) if failure]  # noqa: S311
    expect(not lost, f"{len(lost)} of 60 calls: {lost[:1]}")
    calls = (15, 33, 48)
    _killed_again_and_again(folder, [lambda n=n: _enter(dying(die, call=n)) for n in calls], "killed at a call")  # type: ignore[misc]


@case(3, "kill -9 at random moments of training", "S1", "resumed, the last state and the rows are bitwise the same")
def at_any_moment(folder: Path) -> None:
    draw = random.Random(3)  # noqa: S311

    def bomb(seconds: float) -> None:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()

    # The first is sure to fall into the run, however fast the machine.
    faults: list[Prepare] = [
        lambda: _enter(dying(die, call=20)),
        *(partial(bomb, 0.4 * draw.random()) for _ in range(3)),
    ]
    _killed_again_and_again(folder, faults, "killed at a moment")


@contextmanager
def _watched(log: list[str]) -> Iterator[None]:
    """Every open, fsync and rename, by name and in order."""
    names: dict[int, str] = {}
    real_open, real_fsync, real_replace = os.open, os.fsync, os.replace

    def opened(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor = real_open(path, *arguments, **options)
        names[descriptor] = Path(path).name
        return descriptor

    def synced(descriptor: int) -> None:
        log.append(f"fsync {names.get(descriptor, '?')}")
        real_fsync(descriptor)

    def replaced(old: Any, new: Any) -> None:
        log.append(f"rename {Path(old).name} {Path(new).name}")
        real_replace(old, new)

    with mock.patch.multiple(os, open=opened, fsync=synced, replace=replaced):
        yield


@case(4, "power loss", "S1", "data reach the disk before their name does, and the name before it counts")
def power_loss(folder: Path) -> None:
    home, log = folder / "checkpoints", []  # type: tuple[Path, list[str]]
    home.mkdir()
    with _watched(log):
        name = save_at(home, 1).name
        write_atomic(folder / "config.toml", b"x = 1\n")
    wanted = []
    for file, where in ((name, home), (LATEST, home), ("config.toml", folder)):
        wanted += [f"fsync {file}.tmp", f"rename {file}.tmp {file}", f"fsync {where.name}"]
    expect(log == wanted, f"the calls came as {log}, not as {wanted}")


@case(
    5,
    "disk full, quota, limit on files",
    "S1",
    "exit 8 and how much is missing; no leftover; the checkpoint before is whole",
)
def full_disk(folder: Path) -> None:
    import resource

    train(folder, "full", steps=10).expect(0)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    before = load(folder / "runs" / "full").step
    answer = resume(folder, "full", "--steps", "20", prepare=limit)
    answer.expect(8, "disk-full", "bytes", "Free some space")
    run = folder / "runs" / "full"
    expect(load(run, strict=True).step == before, "the checkpoint before is not what it was")
    expect(not list(run.rglob("*.tmp")), "a half-written file was left")
    resume(folder, "full", "--steps", "20").expect(0)
    expect(read_status(run)["state"] == "done" and load(run).step == 20, "with room again it did not end well")

    def no_room() -> None:
        usage = checkpoint.write_atomic.__globals__["shutil"].disk_usage(folder)
        _enter(mock.patch("shutil.disk_usage", return_value=usage._replace(free=1000)))

    resume(folder, "full", "--steps", "30", prepare=no_room).expect(8, "disk-full", "1,000 are free")


_ERRORS = (errno.EIO, errno.EPERM, errno.EXDEV, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


@case(7, "write, fsync or rename fails", "S1", "exit 8 with the reason; never called saved; old or new state whole")
def failing_calls(folder: Path) -> None:
    for number in _ERRORS:
        for name in ("open", "write", "fsync", "replace"):
            for nth in (1, 2, 3):
                home = folder / f"{number}-{name}-{nth}"
                home.mkdir()
                save_at(home, 1)
                told = ""
                try:
                    with _failing(name, number, nth):
                        save_at(home, 2)
                except ResourceFault as error:
                    told = str(error)
                wrong = lost_or_mixed(home, 1 if told else 2, 2)
                expect(not wrong, f"{name} number {nth} failed with {errno.errorcode[number]}: {wrong}")
                expect(not told or os.strerror(number) in told, f"{told!r} does not say {os.strerror(number)!r}")
                expect(bool(told) or nth == 3, f"{errno.errorcode[number]} of {name} number {nth} was called saved")
                expect(not list(home.glob("*.tmp")), "a half-written file was left")
    train(folder, "failing", steps=10).expect(0)
    answer = resume(
        folder, "failing", "--steps", "20", prepare=lambda: _enter(_failing("replace", errno.EXDEV, 3, all_later=True))
    )
    answer.expect(8, "disk-failed", os.strerror(errno.EXDEV))
    resume(folder, "failing", "--steps", "20").expect(0)


@contextmanager
def _failing(name: str, number: int, nth: int, all_later: bool = False) -> Iterator[None]:
    """The n-th call of that name fails, or all from it on."""
    calls, real = 0, getattr(os, name)

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth or (all_later and calls > nth):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    with mock.patch.object(os, name, call):
        yield


@case(18, "half-written files of a process that died", "S4", "gone with the next start; files of others stay")
def stale_files(folder: Path) -> None:
    train(folder, "stale", steps=10).expect(0)
    run = folder / "runs" / "stale"
    ours = [run / "checkpoints" / "step-000000000099-00000000.safetensors.tmp", run / "checkpoints" / "latest.json.tmp"]
    ours += [run / "status.json.tmp", run / "config.toml.tmp"]
    theirs = [run / "notes.tmp", run / "checkpoints" / "mine.tmp", run / "checkpoints" / "best.safetensors"]
    for path in (*ours, *theirs):
        path.write_bytes(b"torn")
    resume(folder, "stale", "--steps", "20").expect(0)
    expect(not [path.name for path in ours if path.exists()], "half-written files of ours stayed")
    expect(all(path.read_bytes() == b"torn" for path in theirs), "files of others were touched")
    expect(len(read_metrics(run)) == 4, "the rows are not those of the run")


CASES: list[Case] = [at_a_byte, between_calls, at_any_moment, power_loss, full_disk, failing_calls, stale_files]
