"""G10: long runs and long comparisons. What grows is told by a robust line through what the system says of this process."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfmarl.learning.build import Built, build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import METRICS, find_runs, read_status
from mfmarl.selftest.command import fresh
from mfmarl.selftest.goal import Order, Outcome


class Use(NamedTuple):
    """What a process holds."""

    files: int
    threads: int
    children: int
    memory: int
    """Resident bytes."""


def use_now() -> Use:
    """Of this process. Raises OSError where the system does not say."""
    import psutil

    gc.collect()
    me = psutil.Process()
    files = me.num_fds() if hasattr(me, "num_fds") else 0  # Windows counts otherwise
    return Use(
        files, max(me.num_threads(), threading.active_count()), len(me.children(recursive=True)), me.memory_info().rss
    )


def _rules() -> RunConfig:
    return RunConfig(
        Choice("congestion", {"num_agents": 8, "horizon": 5}),
        {"all": Choice("mfq", {"warm_up": 8, "batch_size": 8, "hidden": (8,), "capacity": 256})},
        RunOptions(
            steps=1 << 40, copies=500, report_every=20, evaluation_copies=2, evaluation_steps=5, exploitability="off"
        ),
    )


def _adapted(folder: Path) -> RunConfig:
    file = folder / "others.py"
    file.write_text("from mfmarl.testing.faulty_env import FaultyEnv\n")
    return RunConfig(
        Choice(f"{file}:FaultyEnv", {"max_cycles": 2}),
        {"all": Choice("mfppo", {"rollout": 8, "hidden": (8,), "epochs": 1})},
        RunOptions(steps=1 << 40, copies=8, report_every=200, evaluation_copies=1, evaluation_steps=2),
    )


def episodes(folder: Path, count: int) -> dict[str, tuple[Use, Use]]:
    """What this process holds before and after so many episodes, of rules of ours and of a PettingZoo environment.

    Of the slower, other library's a twentieth. The first tenth of each is to warm up, and is not counted. Raises what training raises.
    """
    found = {}
    for name, config, length in (("rules", _rules(), 5), ("pettingzoo", _adapted(folder), 2 / 20)):
        built = build(config)
        try:
            steps = int(count * length / config.run.copies)
            _train(built, steps // 10 + 1)
            before = use_now()
            _train(built, steps)
            found[name] = (before, use_now())
        finally:
            built.close()
    return found


def _train(built: Built, steps: int) -> None:
    """So many steps more, with their reports."""
    training, until = built.training, built.training.tick + steps
    every = training.options.report_interval
    while training.tick < until:
        training.step()
        if training.tick % every == 0:
            training.report()


# ------------------------------------------------------------------------------------------------------- the soak


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes through all pairs (Theil 1950, Sen 1968): a few jumps of an allocator do not move it."""
    x, y = np.asarray(times, float), np.asarray(values, float)
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[j] - y[i]) / (x[j] - x[i])))


def _soak(order: Order, updates: int) -> tuple[list[tuple[int, Use]], int]:
    """What this process held, at 60 moments of a run in its folder that saves and reports as it goes on."""
    from mfmarl.learning.run import run_in_folder

    every = max(1, updates // 60)
    config = _rules()
    options = replace(
        config.run, steps=updates, copies=2, report_every=every, evaluation_copies=1, checkpoint_seconds=0.0
    )  # a tenth of these are warm-up
    looks: list[tuple[int, Use]] = []

    def look(row: Mapping[str, Any]) -> None:
        looks.append((int(row["step"]), use_now()))
        order.watch(int(row["step"]), updates)

    run_in_folder(replace(config, run=options), order.folder / "soak", on_row=look)
    return looks, updates


_UPDATES = 1_000_000
_RUNS = 500
_BREAKING = '''
import os
from dataclasses import dataclass
from mfmarl.envs.congestion import Congestion

@dataclass(frozen=True)
class Breaking(Congestion):
    """Congestion; while a folder is there, every tenth beginning breaks, whichever process it is in."""
    broken: str = ""

    def reset(self, ids, key):
        number = 0
        while os.path.isdir(self.broken):
            try:
                os.close(os.open(f"{self.broken}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                break
            except FileExistsError:
                number += 1
        if number % 10 == 9:
            os.mkdir(f"{self.broken}/raised-{number}")
            raise RuntimeError("broken on purpose")
        return super().reset(ids, key)
'''


def _sweep(order: Order, count: int) -> list[str]:
    """A comparison of so many runs of which a tenth fail; then, mended, the same command again. What went wrong."""
    place = order.folder / "sweep"
    place.mkdir()
    file, broken = place / "breaking.py", place / "is-broken"
    file.write_text(_BREAKING)
    broken.mkdir()
    command = [
        *("compare", f"{file}:Breaking:num_agents=4:broken={broken}", "--agents", "random", "--seeds", str(count)),
        *(
            "--steps",
            "4",
            "--copies",
            "1",
            "--report-every",
            "4",
            "--evaluation-copies",
            "0",
            "--exploitability",
            "off",
        ),
        *("--jobs", "2", "--quiet", "--name", "sweep", "--import", str(file)),
    ]
    first = fresh(command, place, patience=3600.0)
    failing = len(list(broken.glob("raised-*")))
    told = [] if failing >= count // 10 else [f"only {failing} runs were broken"]
    told += [] if first.exit_code == 6 else [f"with failures it left with {first.exit_code}: {first.err[-300:]!r}"]
    runs = find_runs(place / "runs")
    good = [run for run in runs if read_status(run)["state"] == "done"]
    if len(good) != count - failing:
        told.append(f"{len(good)} runs are done, expected {count - failing}")
    stamps = {run: (run / METRICS).stat().st_mtime_ns for run in good}
    shutil.rmtree(broken)
    again = fresh(command, place, patience=3600.0)
    if again.exit_code:
        told.append(f"mended, it left with {again.exit_code}: {again.err[-300:]!r}")
    done = [run for run in find_runs(place / "runs") if read_status(run)["state"] == "done"]
    if len(done) != count:
        told.append(f"mended, {len(done)} runs are done, expected {count}")
    touched = [run.name for run, stamp in stamps.items() if (run / METRICS).stat().st_mtime_ns != stamp]
    if touched:
        told.append(f"{len(touched)} runs that were done were trained again")
    return told


_ROWS = 4 << 10
"""Bytes that a report may leave in memory: the run's own list of what was looked at here is among them."""


def long_runs(order: Order) -> Outcome:
    """10^6 updates in one process, then 500 runs with 50 failures."""
    updates, count = order.trials(_UPDATES, 600), order.trials(_RUNS, 10)
    looks, _ = _soak(order, updates)
    kept = looks[len(looks) // 10 :]
    steps, memory = [step for step, _ in kept], [use.memory for _, use in kept]
    grown = slope(steps, memory)
    first, last = kept[0][1], kept[-1][1]
    failures = []
    # A leak in every update or report shows in any share; the target's hour is about 10^6 of these updates.
    allowed = max(2**20 / _UPDATES, _ROWS * 60 / updates)
    if grown > allowed:
        failures.append(f"memory grows by {grown:.1f} bytes an update, from {first.memory >> 20} MiB")
    for name in ("files", "threads", "children"):
        if getattr(last, name) > getattr(first, name):
            failures.append(f"{getattr(first, name)} {name} became {getattr(last, name)}")
    soaked = len(failures)
    failures += [f"the sweep of {count} runs: {told}" for told in _sweep(order, count)]
    swept = "came out as they should" if len(failures) == soaked else "did not"
    return Outcome(
        met=not failures,
        found=f"over {updates:,} updates memory grew by {grown * _UPDATES / 2**20:.2f} MB a million, open files by "
        f"{last.files - first.files}; {count} runs with a tenth broken {swept}",
        trials=updates + 2 * count,
        failures=tuple(failures),
        figures={"updates": updates, "bytes an update": grown, "runs": count, "resident MiB": last.memory / 2**20},
    )
