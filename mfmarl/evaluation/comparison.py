"""Carry out a comparison: environments x agents x seeds, on as many cores as wished, each run in its own folder.

Runs that are done are not done again, interrupted ones go on, failed ones are shown as failed. What carries the runs
out is an `Engine`: processes of this machine ("local"), or Ray (mfmarl.evaluation.ray_engine).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Literal, Protocol

from mfmarl.errors import ConfigError
from mfmarl.evaluation.results import folder_name, read_json
from mfmarl.learning import worker
from mfmarl.learning.build import versions
from mfmarl.learning.durable import resource_fault, write_atomic
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import check_name

Event = dict[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison."""

    environment: str
    agent: str
    seed: int
    path: Path
    config: RunConfig


class Engine(Protocol):
    """What carries runs out, each in its own folder, with the same results bit for bit."""

    def carry_out(
        self,
        runs: Sequence[PlannedRun],
        jobs: int,
        on_event: Callable[[PlannedRun, Event], None],
        imports: Sequence[str] = (),
    ) -> list[tuple[PlannedRun, str]]:
        """At most `jobs` runs at a time (0: as many as there is room for); returns the failed ones with their reasons.

        Every event has an "event": "begin", "row" (with "row"), "restarted" and "waiting" (with "error", why), and at
        last "done", "failed" (with "error") or "interrupted".
        """
        ...


def plan(
    environments: dict[str, Choice],
    agents: dict[str, dict[str, Choice]],
    seeds: Sequence[int],
    options: RunOptions,
    folder: Path,
) -> list[PlannedRun]:
    """Every run, seed by seed, so that an interrupted comparison is as even as it can be.

    `environments` maps a label to an environment, `agents` a label to who plays each group. The same seed gives every agent the same environment noise.
    """
    folders = [folder_name(label) for label in environments] + [folder_name(label) for label in agents]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"A name is used twice: {', '.join([*environments, *agents])}.")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"A seed is given twice: {', '.join(map(str, seeds))}.")
    return [
        PlannedRun(
            place,
            label,
            seed,
            folder / folder_name(place) / folder_name(label) / f"seed-{seed}",
            RunConfig(environment, players, replace(options, seed=seed)),
        )
        for seed in seeds
        for place, environment in environments.items()
        for label, players in agents.items()
    ]


def write_plan(
    folder: Path,
    environments: dict[str, Choice],
    agents: dict[str, dict[str, Choice]],
    seeds: Sequence[int],
    command: str,
) -> None:
    """`comparison.json`: what is compared and how to repeat it; an old plan there is extended.

    Raises ConfigError where the old plan means something else by the same label, ResourceFault.
    """
    check_name(folder.name)
    table: dict[str, Any] = {
        "name": folder.name,
        "environments": [{"label": label, "name": c.name, "options": c.options} for label, c in environments.items()],
        "agents": [
            {"label": label, "teams": {group: {"name": c.name, **c.options} for group, c in team.items()}}
            for label, team in agents.items()
        ],
        "seeds": list(seeds),
        "command": command,
        "versions": versions(),
    }
    # Compared as JSON reads back: tuples are lists there.
    table = json.loads(json.dumps(table))
    path = folder / "comparison.json"
    if path.is_file():
        old = read_json(path)
        for key in ("environments", "agents"):
            there = {entry["label"]: entry for entry in old.get(key, [])}
            for entry in table[key]:
                if there.get(entry["label"], entry) != entry:
                    raise ConfigError(
                        f"{folder} compares {entry['label']} with other options; choose another name, or repeat its command."
                    )
            table[key] = list({**there, **{entry["label"]: entry for entry in table[key]}}.values())
        table["seeds"] = sorted({*old.get("seeds", []), *seeds})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise resource_fault(error, folder) from error
    write_atomic(path, (json.dumps(table, indent=1) + "\n").encode())


def execute(
    runs: Sequence[PlannedRun],
    jobs: int,
    on_event: Callable[[PlannedRun, Event], None],
    imports: Sequence[str] = (),
    engine: Engine | Literal["local"] = "local",
) -> list[tuple[PlannedRun, str]]:
    """Carry out the runs, `jobs` at a time; returns the failed ones with their reasons.

    The local engine has them carried out in worker processes, with one job too: a run that crashes its process is one
    failed run. Ctrl-C reaches the workers as well: each saves and leaves.
    """
    if engine != "local":
        return engine.carry_out(runs, jobs, on_event, imports)
    orders: Queue[PlannedRun] = Queue()
    for run in runs:
        orders.put(run)
    events: Queue[tuple[PlannedRun, Event] | None] = Queue()
    workers = [
        threading.Thread(target=_serve, args=(orders, events, tuple(imports)), daemon=True)
        for _ in range(max(1, min(jobs, len(runs))))
    ]
    failed: list[tuple[PlannedRun, str]] = []
    for thread in workers:
        thread.start()
    left = len(workers)
    try:
        while left:
            item = events.get()
            if item is None:
                left -= 1
                continue
            run, event = item
            if event["event"] == "failed":
                failed.append((run, str(event.get("error", ""))))
            on_event(run, event)
    except KeyboardInterrupt:
        # The workers got the same signal from the terminal; wait for them to save, then say so.
        with contextlib.suppress(Empty):
            while True:
                orders.get_nowait()
        for thread in workers:
            thread.join(timeout=60)
        raise
    return failed


def _serve(orders: Queue[PlannedRun], events: Queue[Any], imports: tuple[str, ...]) -> None:
    """One worker process and its conversation; a dead worker is replaced for the next run."""
    process: subprocess.Popen[str] | None = None
    try:
        while True:
            try:
                run = orders.get_nowait()
            except Empty:
                break
            if process is not None and process.poll() is not None:
                _dismiss(process)
                process = None
            process = process or worker.start()
            order = {"path": str(run.path), "config": run.config.to_table(), "imports": list(imports)}
            assert process.stdin is not None and process.stdout is not None
            finished = False
            try:
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                for line in process.stdout:
                    event = json.loads(line)
                    events.put((run, event))
                    if event["event"] in ("done", "failed", "interrupted"):
                        finished = True
                        break
            except (OSError, json.JSONDecodeError):
                pass
            if not finished:
                code = process.wait()
                reason = f"signal {-code}" if code < 0 else f"exit code {code}"
                events.put((run, {"event": "failed", "error": f"the process of this run died ({reason})"}))
    finally:
        if process is not None:
            _dismiss(process)
        events.put(None)


def _dismiss(process: subprocess.Popen[str]) -> None:
    """No more orders: the worker leaves by itself."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    process.wait()
