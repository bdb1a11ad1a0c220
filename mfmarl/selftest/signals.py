"""G3: signals at random moments of every kind of command that trains, and what was finished by then.

After SIGINT, SIGTERM or SIGHUP nothing that was finished is lost: the checkpoint is of the step at which the command stopped,
and the exit code is 128 + the signal. After kill -9 at most one interval between checkpoints is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mfmarl.learning import checkpoint
from mfmarl.learning.run_folder import find_runs, is_run, is_running, read_metrics, read_status
from mfmarl.selftest.command import Answer, forked, start
from mfmarl.selftest.goal import Order, Outcome
from mfmarl.selftest.resume import differences

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STEPS = 60
_EVERY = 12
_TRAIN = [
    *(
        "train",
        "congestion",
        "--agent",
        "mfq",
        "--num-agents",
        "6",
        "--warm-up",
        "4",
        "--batch-size",
        "8",
        "--copies",
        "2",
    ),
    *(
        "--evaluation-copies",
        "1",
        "--evaluation-steps",
        "2",
        "--steps",
        str(_STEPS),
        "--report-every",
        str(_EVERY),
        "--quiet",
    ),
    *("--name", "run", "--checkpoint-seconds", "0"),
]
# Those that start processes of their own are asked from outside, and end in their own time.
_MORE = {
    "compare": (
        *("compare", "congestion", "--agents", "mfq,iql", "--num-agents", "6", "--seeds", "2", "--steps", "100000"),
        *("--report-every", "50", "--copies", "2", "--jobs", "2", "--quiet", "--name", "run"),
    ),
    "ranks": (
        *("train", "ising", "--agent", "mfq", "--num-agents", "16", "--steps", "100000", "--report-every", "50"),
        *("--ranks", "2", "--quiet", "--name", "run"),
    ),
    "solve": ("solve", "beach_bar", "--solver", "omd", "--iterations", "100000000", "--tolerance", "1e-300", "--quiet",
              "--name", "run"),
}  # fmt: skip
_FOUND_IN = 60.0


@dataclass(frozen=True)
class Moment:
    """A signal after so many calls of what a run does: steps, learning, rows, files."""

    place: str
    number: int
    signal: int
    twice: bool = False

    def __str__(self) -> str:
        return f"{signal.Signals(self.signal).name}{' twice' if self.twice else ''} in {self.place} {self.number}"


_PLACES = ("step", "learning", "row", "write", "rename")


def _watched(folder: Path, moment: Moment | None) -> Callable[[], None]:
    """Count what the child does; strike at the moment; and note in a file which step was the last that was finished."""

    def prepare() -> None:
        from mfmarl.learning.run_folder import RunFolder
        from mfmarl.learning.training import Training
        from mfmarl.population.simulation import Simulation

        counts = dict.fromkeys(_PLACES, 0)

        def counted(owner: Any, name: str, place: str) -> None:
            real = getattr(owner, name)

            def call(*given: Any, **more: Any) -> Any:
                counts[place] += 1
                os.pwrite(note, json.dumps(counts).encode().ljust(200), 12)
                if moment is not None and (moment.place, moment.number) == (place, counts[place]):
                    for _ in range(1 + moment.twice):
                        os.kill(os.getpid(), moment.signal)
                return real(*given, **more)

            setattr(owner, name, call)

        # By the system's own call: what is counted is not what notes.
        note = os.open(folder / "finished", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.pwrite(note, b"%12d" % 0, 0)
        counted(Simulation, "step", "step")
        counted(Training, "_learn", "learning")
        counted(RunFolder, "append", "row")
        counted(os, "write", "write")
        counted(os, "replace", "rename")
        step = Training.step

        def noted(self: Training) -> None:
            step(self)
            os.pwrite(note, b"%12d" % self.tick, 0)

        Training.step = noted  # type: ignore[method-assign]

    return prepare


def _finished(folder: Path) -> tuple[int, dict[str, int]]:
    with contextlib.suppress(OSError, ValueError):
        content = (folder / "finished").read_bytes()
        return int(content[:12]), json.loads(content[12:])
    return 0, {}


def _struck(folder: Path, moment: Moment) -> str:
    """Why the promise is not kept at that moment, or nothing."""
    answer = forked(_TRAIN, folder, _watched(folder, moment))
    finished, _ = _finished(folder)
    run = folder / "runs" / "run"
    state = read_status(run)["state"]
    kept = checkpoint.load(run, strict=True).step if checkpoint.list_checkpoints(run / "checkpoints") else 0
    if answer.exit_code == 0 and state == "done":
        return "" if kept == _STEPS else f"done, and the checkpoint is of step {kept}"
    lost = finished - kept
    if moment.signal == signal.SIGKILL:
        wrong = answer.exit_code != -signal.SIGKILL or lost > _EVERY
    else:
        # Who is told twice while the folder is being made leaves at once too: nothing was begun.
        left = state in ("interrupted", "done") or (moment.twice and finished == 0)
        wrong = answer.exit_code != 128 + moment.signal or "Traceback" in answer.err or not left
        wrong = wrong or lost > (_EVERY if moment.twice else 0)
    if wrong:
        return (
            f"exit code {answer.exit_code}, status {state}, step {finished} was finished and {kept} is kept: "
            f"{answer.err.strip()[-200:]!r}"
        )
    return ""


def _goes_on(folder: Path, whole: Path) -> str:
    """Why the run that was struck is not the undisturbed one in the end, or nothing."""
    run = folder / "runs" / "run"
    begun = is_run(run)  # else struck while its folder was made: the same command begins it
    answer = forked(["train", "--resume", "runs/run", "--quiet"] if begun else _TRAIN, folder)
    if answer.exit_code:
        return f"it does not go on: {answer.exit_code}: {answer.err.strip()[-200:]!r}"
    told = differences(run, whole)
    return f"gone on with, it is another: {'; '.join(told[:3])}" if told else ""


def _from_outside(folder: Path, command: str, number: int, chance: np.random.Generator) -> str:
    """A command with processes of its own, asked to stop when all of them are at work."""
    process = start(_MORE[command], folder, start_new_session=True)
    try:
        until = time.monotonic() + _FOUND_IN
        while time.monotonic() < until and process.poll() is None:
            runs = find_runs(folder / "runs")
            if any(len(read_metrics(run)) >= 2 for run in runs) or (command == "solve" and runs):
                break
            time.sleep(0.05)
        time.sleep(float(chance.uniform(0.0, 0.5)))
        if process.poll() is not None:
            return f"{command} ended with {process.returncode} before it was asked: {(process.communicate()[1] or '')[-300:]!r}"
        process.send_signal(number)
        _, err = process.communicate(timeout=_FOUND_IN)
    except Exception as error:  # noqa: BLE001 - told with the command
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"{command}, {signal.Signals(number).name}: {type(error).__name__}: {error}"
    told = f"{command}, {signal.Signals(number).name}: "
    if process.returncode != 128 + number or "Traceback" in err:
        return f"{told}exit code {process.returncode}: {err.strip()[-300:]!r}"
    for run in find_runs(folder / "runs"):
        if is_running(run):
            return f"{told}{run.name} is still being written"
        rows, state = read_metrics(run), read_status(run)["state"]
        if state not in ("interrupted", "done"):
            return f"{told}{run.name} is left {state}"
        if command != "solve" and rows and checkpoint.load(run, strict=True).step < rows[-1]["step"]:
            return f"{told}of {run.name}, rows up to step {rows[-1]['step']} and an older checkpoint are kept"
    return ""


def lost_work(order: Order) -> Outcome:
    """1,000 signals at random moments within a run, and 12 to each command that starts others; each run goes on."""
    if not hasattr(os, "fork"):
        return Outcome(None, "processes cannot be forked on this system")
    chance = np.random.default_rng(order.seed)
    inside, outside = order.trials(1000, 12), order.trials(12, 0) if order.share < 0.01 else order.trials(12, 1)
    total = inside + outside * len(_MORE)
    whole = order.folder / "undisturbed"
    whole.mkdir()
    answer: Answer = forked(_TRAIN, whole, _watched(whole, None))
    _, counts = _finished(whole)
    if answer.exit_code:
        return Outcome(False, f"undisturbed, the run ends with {answer.exit_code}: {answer.err[-300:]}")
    failures: list[str] = []
    lost: list[int] = []
    for k in range(inside):
        moment = _drawn(k, counts, chance)
        place = order.folder / "struck"
        place.mkdir()
        told = _struck(place, moment)
        if moment.signal == signal.SIGKILL and (place / "runs" / "run").exists():
            lost.append(_lost(place))
        told = told or _goes_on(place, whole / "runs" / "run")
        failures += [f"{moment}: {told}"] if told else []
        shutil.rmtree(place)
        order.watch(k + 1, total)
    done = inside
    for k in range(outside):
        for command in _MORE:
            if sys.platform == "win32":
                continue
            place = order.folder / "struck"
            place.mkdir()
            told = _from_outside(place, command, (signal.SIGTERM, signal.SIGINT)[k % 2], chance)
            failures += [told] if told else []
            shutil.rmtree(place, ignore_errors=True)
            done += 1
            order.watch(done, total)
    return Outcome(
        met=not failures,
        found=f"{done - len(failures)} of {done} signals lost no finished work; kill -9 cost at most {max(lost, default=0)} "
        f"steps, where checkpoints lie {_EVERY} apart",
        trials=done,
        failures=tuple(failures),
        figures={"signals": done, "lost": len(failures), "most steps lost by kill -9": max(lost, default=0), "interval": _EVERY},
    )  # fmt: skip


def _lost(place: Path) -> int:
    run = place / "runs" / "run"
    kept = checkpoint.load(run).step if checkpoint.list_checkpoints(run / "checkpoints") else 0
    return max(0, _finished(place)[0] - kept)


def _drawn(k: int, counts: dict[str, int], chance: np.random.Generator) -> Moment:
    place = str(chance.choice(_PLACES, p=[0.4, 0.2, 0.1, 0.15, 0.15]))
    number = 1 + int(chance.integers(max(1, counts[place])))
    which = (*_SIGNALS, signal.SIGKILL)[k % 4]
    return Moment(place, number, which, twice=which != signal.SIGKILL and k % 12 >= 8)
