"""Goals tried one after the other, each outcome kept as soon as it is known: the same folder goes on where it was left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfmarl import __version__
from mfmarl.errors import ConfigError
from mfmarl.learning.durable import read_limited, write_atomic
from mfmarl.selftest.goal import Goal, Order, Outcome, attempt

NUMBERS = "selftest.json"


def carry_out(
    goals: Iterable[Goal],
    folder: Path,
    order: Order,
    on_event: Callable[[str, Goal, Outcome | None], None],
    again: bool = False,
) -> dict[str, Outcome]:
    """Try the goals, those that are done in that folder excepted (with `again`: all); returns all outcomes there.

    `on_event` is told "begin" and "done". Raises ConfigError for a folder of another version or share, ResourceFault.
    """
    about = {"mfmarl": __version__, "share": order.share, "seed": order.seed, "machine": machine()}
    kept = read(folder, about) if (folder / NUMBERS).is_file() else {}
    for goal in goals:
        if goal.name in kept and not again:
            continue
        on_event("begin", goal, None)
        place = folder / "scratch" / goal.name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        outcome = attempt(goal, replace(order, folder=place))
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        kept[goal.name] = outcome
        table = {**about, "goals": {name: found.to_table() for name, found in kept.items()}}
        write_atomic(folder / NUMBERS, (json.dumps(table, indent=1) + "\n").encode())
        on_event("done", goal, outcome)
    return kept


def read(folder: Path, about: dict[str, Any] | None = None) -> dict[str, Outcome]:
    """The outcomes in a folder. Raises ConfigError where they cannot be read, or are not of what `about` says."""
    path = folder / NUMBERS
    try:
        table = json.loads(read_limited(path, 2**24, ConfigError))
        outcomes = {name: Outcome.from_table(found) for name, found in table["goals"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not of a self-test ({type(error).__name__}: {error}); use another --name."
        ) from error
    told = [
        f"{name} {table.get(name)!r}, now {value!r}"
        for name, value in (about or {}).items()
        if table.get(name) != value
    ]
    if told:
        raise ConfigError(f"{folder} was tried with another {'; '.join(told)}: use another --name, or --again.")
    return outcomes


def machine() -> dict[str, str]:
    """What the outcomes are of."""
    import os
    import platform

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count() or 1),
    }
