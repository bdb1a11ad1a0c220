"""Goals tried one after the other, each outcome kept as soon as it is known: the same folder goes on where it was left."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mfmarl import __version__
from mfmarl.errors import ConfigError
from mfmarl.learning.durable import read_limited, write_atomic
from mfmarl.selftest.goal import Goal, Order, Outcome, attempt

T = TypeVar("T")
NUMBERS = "selftest.json"
SCRATCH = ".mfmarl-selftest"
"""How the folder begins in which a goal is tried, and which goes with it."""


def carry_out(
    goals: Iterable[Goal],
    folder: Path,
    order: Order,
    on_event: Callable[[str, Goal, Outcome | None], None],
    again: bool = False,
) -> dict[str, Outcome]:
    """Try the goals, those that are done in that folder excepted; returns all outcomes there (with `again`: the new ones).

    `on_event` is told "begin" and "done". Raises ConfigError for a folder of another version, machine, share or seed;
    ResourceFault.
    """
    told = {"mfmarl": __version__, "share": order.share, "seed": order.seed, "machine": machine()}
    kept = read(folder) if (folder / NUMBERS).is_file() else {}
    differs = (
        [f"{name} {old!r}, now {told[name]!r}" for name, old in about(folder).items() if old != told[name]]
        if kept
        else []
    )
    if differs and not again:
        raise ConfigError(f"{folder} holds a self-test with {'; '.join(differs)}: use another --name, or --again.")
    kept = {} if again else kept
    for goal in goals:
        if goal.name in kept:
            continue
        on_event("begin", goal, None)
        place = folder / f"{SCRATCH}-{goal.name}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            kept[goal.name] = attempt(goal, replace(order, folder=place.resolve()))
        finally:
            shutil.rmtree(place, ignore_errors=True)
        table = {**told, "goals": {name: found.to_table() for name, found in kept.items()}}
        write_atomic(folder / NUMBERS, (json.dumps(table, indent=1) + "\n").encode())
        on_event("done", goal, kept[goal.name])
    return kept


def read(folder: Path) -> dict[str, Outcome]:
    """The outcomes in a folder, by the goals' names. Raises ConfigError where they cannot be read."""
    return {
        name: _of(folder, Outcome.from_table, found)
        for name, found in _of(folder, dict, _table(folder)["goals"]).items()
    }


def about(folder: Path) -> dict[str, Any]:
    """What the outcomes in a folder are of: version, share, seed, machine. Raises ConfigError."""
    table = _table(folder)
    return {name: table[name] for name in ("mfmarl", "share", "seed", "machine")}


def _table(folder: Path) -> dict[str, Any]:
    path = folder / NUMBERS
    try:
        table = json.loads(read_limited(path, 2**24, ConfigError))
    except (ValueError, RecursionError) as error:
        raise _refused(folder, str(error)) from error
    missing = {"mfmarl", "share", "seed", "machine", "goals"} - set(table if isinstance(table, dict) else {})
    if missing:
        raise _refused(folder, f"it lacks {', '.join(sorted(missing))}")
    return dict(table)


def _of(folder: Path, make: Callable[[Any], T], found: Any) -> T:
    try:
        return make(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused(folder, f"{type(error).__name__}: {error}") from error


def _refused(folder: Path, reason: str) -> ConfigError:
    return ConfigError(f"{folder / NUMBERS} is not of a self-test ({reason}); use another --name.")


def machine() -> dict[str, str]:
    """What the outcomes are of."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count() or 1),
    }
