"""Runs that are interrupted, locked, moved, and named in every way."""

from __future__ import annotations

import errno
import functools
import hashlib
import ntpath
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

from mfmarl.errors import ConfigError
from mfmarl.learning import checkpoint, run_folder
from mfmarl.learning.run_folder import RunFolder, as_name, check_name, read_metrics, read_status
from mfmarl.selftest.case import Case, Missed, case, expect
from mfmarl.selftest.command import Answer, forked, start
from mfmarl.selftest.resume import differences

_TRAIN = [
    *("train", "congestion", "--agent", "mfq", "--num-agents", "9", "--warm-up", "8", "--steps", "40"),
    *("--report-every", "10", "--copies", "2", "--evaluation-copies", "1", "--checkpoint-seconds", "0"),
]
Prepare = Callable[[], None]


def _nothing() -> None:
    """No fault."""


def _train(folder: Path, name: str, *more: str, prepare: Prepare = _nothing, steps: int = 40) -> Answer:
    return forked([*_TRAIN, "--name", name, "--quiet", "--steps", str(steps), *more], folder, prepare)


def _resume(folder: Path, name: str, *more: str, prepare: Prepare = _nothing) -> Answer:
    return forked(["train", "--resume", f"runs/{name}", "--quiet", *more], folder, prepare)


def _is_whole(folder: Path, name: str) -> None:
    """Resumed if need be, the run is bitwise one that nothing happened to."""
    if read_status(folder / "runs" / name)["state"] != "done":
        _resume(folder, name).expect(0)
    _train(folder, "undisturbed").expect(0)
    told = differences(folder / "runs" / name, folder / "runs" / "undisturbed")
    expect(not told, f"the run is not the one that was never disturbed: {'; '.join(told[:5])}")


def _after_rows(count: int, happens: Callable[[RunFolder], object]) -> Prepare:
    """Let something happen when that many rows are written."""

    def prepare() -> None:
        append, rows = RunFolder.append, [0]

        def counting(self: RunFolder, row: Any) -> None:
            append(self, row)
            rows[0] += 1
            if rows[0] == count:
                happens(self)

        RunFolder.append = counting  # type: ignore[method-assign]

    return prepare


def _in_step(number: int, *signals: int) -> Prepare:
    """Send signals to oneself in the middle of a step."""

    def prepare() -> None:
        from mfmarl.learning.training import Training

        learn, done = Training._learn, [0]

        def signalled(self: Training, *which: Any) -> None:
            done[0] += 1
            if done[0] == number:
                for one in signals:
                    os.kill(os.getpid(), one)
            learn(self, *which)

        Training._learn = signalled  # type: ignore[method-assign, assignment]

    return prepare


def _status_is(run: Path, state: str, exit_code: int) -> dict[str, Any]:
    status = read_status(run)
    expect(
        (status["state"], status["exit_code"]) == (state, exit_code),
        f"status.json of {run.name} says {status['state']}, {status['exit_code']}; expected {state}, {exit_code}",
    )
    return status


# ------------------------------------------------------------------------------------------- disks and signals


@case(
    6,
    "disk full while rows are written",
    "S2",
    "training goes on for 60 s with its rows in memory and one warning; then exit 8 with a checkpoint; nothing is lost",
)
def full_disk(folder: Path) -> None:
    """Two rows find no room; then there is room again, or there never is."""

    def full(first: int, last: int, patience: float) -> Prepare:
        def prepare() -> None:
            write, tries = run_folder.write_all, [0]

            def filling(descriptor: int, content: bytes) -> None:
                tries[0] += content.startswith(b'{"step"')
                if content.startswith(b'{"step"') and first <= tries[0] <= last:
                    write(descriptor, content[: len(content) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                write(descriptor, content)

            run_folder.write_all = filling
            run_folder.FULL_PATIENCE = patience

        return prepare

    told = _train(folder, "freed", prepare=full(2, 3, 60.0)).expect(0, "", "metrics.jsonl", "free some space")
    expect(told.err.count("free some space") == 1, f"expected one warning: {told.err!r}")
    _is_whole(folder, "freed")
    _train(folder, "full", prepare=full(2, 10**9, 0.05)).expect(8, "", "metrics.jsonl", "No space left")
    run = folder / "runs" / "full"
    _status_is(run, "failed", 8)
    expect(checkpoint.load(run).step > 10, "the steps whose rows found no room were not saved")
    shutil.rmtree(folder / "runs" / "undisturbed")
    _is_whole(folder, "full")


@case(
    8,
    "SIGINT once, twice",
    "S1",
    "once: finish the step, save, exit 130; twice: leave at once, the old checkpoint stands",
)
def ctrl_c(folder: Path) -> None:
    """In the middle of a step between two reports."""
    _train(folder, "once", prepare=_in_step(25, signal.SIGINT)).expect(130, "interrupted", "--resume runs/once")
    status = _status_is(folder / "runs" / "once", "interrupted", 130)
    expect(status["step"] == 25, f"stopped at step {status['step']}: the step in hand was the 25th")
    expect(checkpoint.load(folder / "runs" / "once").step == 25, "the last step was not saved")
    _is_whole(folder, "once")
    twice = _train(folder, "twice", prepare=_in_step(25, signal.SIGINT, signal.SIGINT))
    twice.expect(130, "interrupted", "--resume runs/twice")
    expect(checkpoint.load(folder / "runs" / "twice").step == 20, "the checkpoint of the last report does not stand")
    shutil.rmtree(folder / "runs" / "undisturbed")
    _is_whole(folder, "twice")


@case(
    9,
    "SIGTERM (SLURM, Kubernetes), SIGHUP",
    "S1",
    "as the first SIGINT, exit 143 and 129; before the first step: at once",
)
def terminated(folder: Path) -> None:
    """In the middle of a step, and while the environment is being made."""
    for name, number in (("term", signal.SIGTERM), ("hup", signal.SIGHUP)):
        _train(folder, name, prepare=_in_step(25, number)).expect(128 + number, "interrupted", f"--resume runs/{name}")
        _status_is(folder / "runs" / name, "interrupted", 128 + number)
        expect(checkpoint.load(folder / "runs" / name).step == 25, "the last step was not saved")
    _is_whole(folder, "term")

    def while_built() -> None:
        from mfmarl.learning import run

        build = run.build

        def slow(*given: Any, **more: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return build(*given, **more)

        run.build = slow

    _train(folder, "early", prepare=while_built).expect(143, "interrupted", "before its first step")
    expect(not (folder / "runs" / "early").exists(), "a run that was not begun left a folder")


@case(10, "a signal while a checkpoint is written", "S1", "the file is completed or discarded, never torn")
def signal_in_save(folder: Path) -> None:
    """From within the rename of the second checkpoint."""

    def while_saving(*signals: int) -> Prepare:
        def prepare() -> None:
            replace, saves = os.replace, [0]

            def signalled(source: Any, target: Any, **more: Any) -> None:
                saves[0] += str(target).endswith(".safetensors")
                if saves[0] == 2 and str(target).endswith(".safetensors"):
                    for one in signals:
                        os.kill(os.getpid(), one)
                replace(source, target, **more)

            os.replace = signalled  # type: ignore[assignment]

        return prepare

    _train(folder, "once", prepare=while_saving(signal.SIGTERM)).expect(143, "interrupted")
    expect(checkpoint.load(folder / "runs" / "once").step == 20, "the checkpoint in hand was not completed")
    _is_whole(folder, "once")
    _train(folder, "twice", prepare=while_saving(signal.SIGTERM, signal.SIGTERM)).expect(143, "interrupted")
    left = checkpoint.load(folder / "runs" / "twice", strict=True).step
    expect(left == 10, f"the checkpoint of step {left} stands, not that of step 10")
    expect(not list((folder / "runs" / "twice").rglob("*.tmp")), "a torn file was left")
    shutil.rmtree(folder / "runs" / "undisturbed")
    _is_whole(folder, "twice")


@case(
    11, "terminal closed, pipe broken", "S4", "no traceback from `mfmarl list | head -1`; training goes on to its end"
)
def broken_pipe(folder: Path) -> None:
    """A reader that leaves after one line; a training run whose two outputs lead nowhere."""
    process = start(["list"], folder)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    code = process.wait(60)
    expect(code == 0 and not err, f"`mfmarl list | head -1` left with {code} and said {err[-300:]!r}")

    def deaf() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        for number in (1, 2):
            os.dup2(writer, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))

    loud = [word for word in _TRAIN if word != "--quiet"]
    for name, more, code in (("plain", [], 0), ("json", ["--json"], 0)):
        answer = forked([*loud, "--name", name, *more], folder, deaf)
        expect(answer.exit_code == code, f"training whose reader is gone left with {answer.exit_code}")
        _status_is(folder / "runs" / name, "done", 0)

    def deaf_and_hung_up() -> None:
        _in_step(25, signal.SIGHUP)()
        deaf()

    answer = forked([*loud, "--name", "closed"], folder, deaf_and_hung_up)
    expect(answer.exit_code == 129, f"a closed terminal ended the run with {answer.exit_code}")
    _status_is(folder / "runs" / "closed", "interrupted", 129)
    _is_whole(folder, "closed")


# ------------------------------------------------------------------------------------------------ the folder


def _print_of(folder: Path) -> dict[str, str]:
    """A digest of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@case(12, "a folder that cannot be written", "S3", "exit 8 before the first step, nothing is made")
def unwritable(folder: Path) -> None:
    """A file where the folder of runs should be; and, but for root, a folder without the right to write."""
    (folder / "file").write_text("mine")
    answer = _train(folder, "a", "--runs", "file")
    answer.expect(8, "", "file")
    expect((folder / "file").read_text() == "mine", "the file was changed")
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (folder / "closed").mkdir(mode=0o555)
        _train(folder, "a", "--runs", "closed").expect(8, "", "closed")
        expect(not any((folder / "closed").iterdir()), "something was made")

    def read_only() -> None:
        mkdir = os.mkdir

        def refused(path: Any, *mode: Any, **more: Any) -> None:
            if "readonly" in str(path):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            mkdir(path, *mode, **more)

        os.mkdir = refused

    _train(folder, "a", "--runs", "readonly", prepare=read_only).expect(8, "", "readonly", "may write to")
    expect(not (folder / "readonly").exists(), "something was made")


@case(
    13,
    "a run that is there already",
    "S1",
    "exit 2, `--resume` is offered, nothing is overwritten; twice resumed is done",
)
def existing(folder: Path) -> None:
    """The same command twice."""
    _train(folder, "a").expect(0)
    before = _print_of(folder / "runs")
    _train(folder, "a", "--seed", "7").expect(2, "run-exists", "--resume runs/a")
    _resume(folder, "a", "--seed", "7").expect(2, "config-changed", "run.seed: 0 -> 7", "--fork")
    (folder / "runs" / "thesis").mkdir()
    (folder / "runs" / "thesis" / "chapter.tex").write_text("x")
    _train(folder, "thesis").expect(2, "not-a-run")
    (folder / "runs" / "thesis" / "chapter.tex").unlink()
    expect(_print_of(folder / "runs") == before, "files were changed")
    _resume(folder, "a").expect(0)
    expect(len(read_metrics(folder / "runs" / "a")) == 4, "a run that was done was trained again")


@case(
    14,
    "two processes, one run",
    "S1",
    "the second: exit 7 at once, with process and host of the first; a kill frees the lock",
)
def locked(folder: Path) -> None:
    """This process holds the run; then one that is killed did."""
    _train(folder, "a", prepare=_in_step(25, signal.SIGINT)).expect(130)
    with run_folder.reopen(folder / "runs" / "a"):
        begun = time.monotonic()
        _resume(folder, "a").expect(7, "locked", f"process {os.getpid()} on {socket.gethostname()}")
        del begun
    killed = _resume(folder, "a", prepare=_in_step(5, signal.SIGKILL))
    expect(killed.exit_code == -signal.SIGKILL, f"the second was to be killed and left with {killed.exit_code}")
    _is_whole(folder, "a")


@case(16, "a file system that cannot lock, sync or rename (NFS, FUSE)", "S1", "exit 8 at the start, not at hour nine")
def poor_file_system(folder: Path) -> None:
    """Each call answers that it does not exist here."""

    def unable(module: Any, name: str, reason: int) -> Prepare:
        def call(*_: Any, **__: Any) -> None:
            raise OSError(reason, os.strerror(reason))

        return functools.partial(setattr, module, name, call)

    import fcntl

    faults = {
        "lock": unable(fcntl, "flock", errno.ENOLCK),
        "sync": unable(os, "fsync", errno.ENOSYS),
        "rename": unable(os, "replace", errno.EXDEV),
    }
    for name, prepare in faults.items():
        _train(folder, name, prepare=prepare).expect(8, "filesystem", "local disk")
        expect(not run_folder.is_run(folder / "runs" / name), "a run was begun that could not be saved")


@case(
    17,
    "a row torn by a kill",
    "S2",
    "readers skip it; who goes on cuts it off, and the numbers are those of the whole run",
)
def torn_row(folder: Path) -> None:
    """Half a row at the end, as a kill leaves it, and rows after the checkpoint."""
    _train(folder, "a", prepare=_in_step(25, signal.SIGINT)).expect(130)
    metrics = folder / "runs" / "a" / "metrics.jsonl"
    content = metrics.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    for tail in (last[: len(last) // 2], last + last[:-1], b"\0" * 64):
        metrics.write_bytes(content + tail)
        steps = [row["step"] for row in read_metrics(folder / "runs" / "a")]
        expect(steps[:2] == [10, 20] and len(steps) <= 3, f"a torn tail is read as {steps}")
    metrics.write_bytes(content + last + last[: len(last) // 2])
    forked(["report", "runs/a"], folder).expect(0)
    _is_whole(folder, "a")


@case(
    19,
    "the run's folder is deleted or moved in training",
    "S3",
    "exit 8; the last state is kept beside it and can go on",
)
def deleted(folder: Path) -> None:
    """After the second row."""
    _train(folder, "a", prepare=_after_rows(2, lambda run: shutil.rmtree(run.path))).expect(
        8, "run-deleted", "--resume runs/a-rescued"
    )
    expect(checkpoint.load(folder / "runs" / "a-rescued").step == 20, "the last step was not rescued")
    _is_whole(folder, "a-rescued")
    _train(folder, "b", prepare=_after_rows(3, lambda run: run.path.rename(run.path.with_name("moved")))).expect(
        8, "run-deleted", "--resume runs/b-rescued"
    )
    expect(checkpoint.load(folder / "runs" / "b-rescued").step == 30, "the last step was not rescued")
    expect(checkpoint.load(folder / "runs" / "moved").step == 20, "what was moved away was damaged")


@case(
    20,
    "the clock jumps",
    "S4",
    "nothing is decided by the time of day; the latest checkpoint is that of the latest step",
)
def clock(folder: Path) -> None:
    """A year back and forth at every look; the files' times the wrong way round."""

    def jumping() -> None:
        now, looks = time.time, [0]

        def look() -> float:
            looks[0] += 1
            return now() + (-1) ** looks[0] * 366 * 86400.0

        time.time = look

    _train(folder, "a", prepare=jumping).expect(0)
    _is_whole(folder, "a")
    _train(folder, "b", prepare=_in_step(25, signal.SIGINT)).expect(130)
    files = checkpoint.list_checkpoints(folder / "runs" / "b" / "checkpoints")
    expect(len(files) == 2, f"{len(files)} checkpoints are kept, expected 2")
    for age, path in enumerate(files):  # the newest step gets the oldest time
        os.utime(path, (10**9 - age, 10**9 - 10**8 * (2 - age)))
    (folder / "runs" / "b" / "checkpoints" / "latest.json").unlink()
    _resume(folder, "b", prepare=jumping).expect(0, "", "newest that is whole")
    told = differences(folder / "runs" / "b", folder / "runs" / "undisturbed")
    expect(not told, f"not the run that was never disturbed: {'; '.join(told[:5])}")


# ---------------------------------------------------------------------------------------------------- names

_QUICK = ["train", "congestion", "--agent", "random", "--num-agents", "4", "--steps", "2", "--copies", "1", "--quiet"]
_QUICK += ["--evaluation-copies", "0"]


@case(
    21,
    "unicode, emoji, blanks, line breaks, long names",
    "S3",
    "what can be a folder's name everywhere works, the rest is refused",
)
def odd_names(folder: Path) -> None:
    """As the name of a run, and as the folder of runs."""
    for name, runs in (("größe 漢字", "r"), ("🙂 run", "with blanks ünd 漢字"), ("x" * 200, "line\nbreak")):
        forked([*_QUICK, "--name", name, "--runs", runs], folder).expect(0)
        _status_is(folder / runs / name, "done", 0)
    for name in ("line\nbreak", "x" * 255, "tab\there", "nul\0"[:3] + "\x7f", "ends.", " blank", "\u2028"):
        forked([*_QUICK, "--name", name], folder).expect(2, "bad-name", "cannot name a run")
    expect(not (folder / "runs").exists(), "a refused name made a folder")


_NOT_PORTABLE = [
    *(
        "CON",
        "con",
        "NUL",
        "nul.txt",
        "COM1",
        "LPT9.log",
        "aux",
        "PRN",
        "com¹",
        "a:b",
        "C:",
        "C:\\x",
        "a\\b",
        "\\\\host\\share",
    ),
    *("a/b", "a?", "a*", 'a"b', "a<b", "a>b", "a|b", "ends.", "ends ", "", ".", "..", "x" * 300),
]


@case(22, "names that Windows does not know", "S3", "refused on every system, with a name near by that travels")
def windows_names(folder: Path) -> None:
    """Devices, drives, separators, blanks at the end, more than 260 letters."""
    for name in _NOT_PORTABLE:
        try:
            check_name(name)
        except ConfigError as error:
            near = str(error).rpartition("For example: ")[2]
            expect(error.code == "bad-name" and check_name(near) == as_name(name), f"{name!r} is refused with {near!r}")
        else:
            raise Missed(f"{name!r} is taken for the name of a run")
    for name in ("größe", "a b", "v1.2", "con1", "🙂"):
        expect(check_name(name) == name, f"{name!r} is refused")
        expect(PureWindowsPath(name).name == name and not ntpath.isabs(name), f"{name!r} means another on Windows")
    forked([*_QUICK, "--name", "a:b"], folder).expect(2, "bad-name", "a_b")
    forked([*_QUICK, "--name", "CON"], folder).expect(2, "bad-name", "run_CON")
    expect(not (folder / "runs").exists(), "a refused name made a folder")


_LEADING_OUT = [
    *(
        "..",
        "../x",
        "../../etc/x",
        "a/../../x",
        "/",
        "/var/x",
        "/etc/passwd",
        "./..",
        "x/..",
        "..\\x",
        "..\\..\\x",
        "C:\\x",
    ),
    *(
        "\\\\host\\x",
        "~/x/..",
        "a/b",
        "a//b",
        "./a",
        "a/",
        "...",
        "..x/../y",
        "%2e%2e/x",
        "..%2fx/..",
        "\0",
        "a\0b",
        "-rf",
        "--name",
    ),
    *("\n../x", "../x\n", "‥/x", "x/../../../../../../../../etc/cron.d/x"),
]


@case(23, "../, absolute paths and links in names", "S1", "refused, and nothing is made or read outside")
def leading_out(folder: Path) -> None:
    """Thirty names; links in place of a run, of its folder, of a checkpoint."""
    for name in _LEADING_OUT:
        try:
            run_folder.inside(folder / "runs", name)
        except ConfigError as error:
            expect(error.code == "bad-name", f"{name!r} is refused as [{error.code}]")
        else:
            raise Missed(f"{name!r} is taken for the name of a run")
    before = set(os.listdir(folder.parent))
    for name in ("../out", str(folder / "out"), "a/b"):
        forked([*_QUICK, "--name", name], folder).expect(2, "bad-name")
    _train(folder, "a", prepare=_in_step(25, signal.SIGINT)).expect(130)
    forked(["train", "--resume", "runs/a", "--fork", "../out"], folder).expect(2, "bad-name")
    expect(set(os.listdir(folder.parent)) == before and not (folder / "out").exists(), "something was made outside")
    runs = folder / "runs"
    (runs / "alias").symlink_to(runs / "a")
    _resume(folder, "alias").expect(2, "link")
    (folder / "elsewhere").mkdir()
    (runs / "door").symlink_to(folder / "elsewhere")
    forked([*_QUICK, "--name", "door"], folder).expect(2, "link")
    expect(not any((folder / "elsewhere").iterdir()), "a run was written through a link")
    latest = checkpoint.list_checkpoints(runs / "a" / "checkpoints")[0]
    latest.rename(folder / latest.name)
    latest.symlink_to(folder / latest.name)
    _resume(folder, "a").expect(4, "", "symbolic link")


# ---------------------------------------------------------------------------------------------------- leaks


EPISODES = 10_000


@case(24, "10,000 episodes", "S3", "files, threads and processes as many as before, memory within 5 %")
def many_episodes(folder: Path) -> None:
    """Of rules of ours and of a PettingZoo environment, in one process."""
    from mfmarl.selftest.endurance import episodes

    for name, (before, after) in episodes(folder, EPISODES).items():
        expect(after.files <= before.files, f"{name}: {before.files} open files became {after.files}")
        expect(after.threads <= before.threads, f"{name}: {before.threads} threads became {after.threads}")
        expect(after.children <= before.children, f"{name}: {before.children} child processes became {after.children}")
        grown = after.memory / before.memory - 1
        expect(grown <= 0.05, f"{name}: memory grew by {grown:.1%}, from {before.memory / 2**20:.0f} MiB")


CASES: list[Case] = [
    full_disk,
    ctrl_c,
    terminated,
    signal_in_save,
    broken_pipe,
    unwritable,
    existing,
    locked,
    poor_file_system,
    torn_row,
    deleted,
    clock,
    odd_names,
    windows_names,
    leading_out,
    many_episodes,
]
