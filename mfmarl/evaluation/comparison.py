"""Carry out a comparison: environments x agents x seeds, on as many cores as wished, each run in its own folder.

Runs that are done are not done again, interrupted ones go on, failed ones are shown as failed. What carries the runs
out is an `Engine`: processes of this machine (mfmarl.evaluation.local_engine), or Ray (mfmarl.evaluation.ray_engine).
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from mfmarl.errors import ConfigError
from mfmarl.evaluation.local_engine import LocalEngine
from mfmarl.evaluation.results import folder_name, read_json
from mfmarl.learning.build import versions
from mfmarl.learning.durable import write_atomic
from mfmarl.learning.run import Interrupted, is_done
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import check_name, exclusive

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

    Raises ConfigError where the old plan means something else by the same label, ResourceFault, RunLocked.
    """
    check_name(folder.name)
    with exclusive(folder, patience=30.0):  # two commands may extend one plan
        _write_plan(folder, environments, agents, seeds, command)


def _write_plan(
    folder: Path,
    environments: dict[str, Choice],
    agents: dict[str, dict[str, Choice]],
    seeds: Sequence[int],
    command: str,
) -> None:
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
    write_atomic(path, (json.dumps(table, indent=1) + "\n").encode())


def refuse_changed(runs: Sequence[PlannedRun]) -> None:
    """Raises ConfigError where a run is there that was begun with other options: it would fail, and so would its peers."""
    for run in runs:
        is_done(run.config, run.path)


def execute(
    runs: Sequence[PlannedRun],
    jobs: int,
    on_event: Callable[[PlannedRun, Event], None],
    imports: Sequence[str] = (),
    engine: Engine | Literal["local"] = "local",
) -> list[tuple[PlannedRun, str]]:
    """Carry out the runs, `jobs` at a time; returns the failed ones with their reasons.

    The local engine has them carried out in worker processes, with one job too: a run that crashes its process is one
    failed run. Raises Interrupted on SIGINT and SIGTERM, when the runs in hand are saved.
    """
    if engine == "local":
        engine = LocalEngine()
    if isinstance(engine, LocalEngine):
        return engine.carry_out(runs, jobs, on_event, imports)
    with terminable():
        return engine.carry_out(runs, jobs, on_event, imports)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """What is inside ends on SIGTERM as it does on Ctrl-C; either is told as Interrupted, with its own exit code."""
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    old = signal.signal(signal.SIGTERM, ask) if main else None
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        stopped = Interrupted("Stopped; what is done is kept, and goes on when the same command is given again.")
        if isinstance(error, Interrupted):
            stopped = error
        stopped.exit_code = 128 + (asked[0] if asked else stopped.exit_code - 128)
        raise stopped from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, old)
