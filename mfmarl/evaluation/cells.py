"""A comparison as a set of cells, environments x agents x seeds, each with how it stands: derived, never written down.

    done          the run has made all its steps
    diverged      it has, and its own health alarms say that it fell apart; its score counts all the same
    failed        it stopped with a reason, or its process died
    interrupted   it was asked to stop, or killed: it goes on when the comparison is given again
    running       a process holds its lock now: which, and on which machine
    never run     the plan names it, and there is no such run

The plan is `comparison.json`; the rest is read from the run folders, their locks, and `failures.json`, where reasons are
kept that a run could not write itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mfmarl.errors import ConfigError, printable
from mfmarl.evaluation import results

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["done", "diverged", "failed", "interrupted", "running", "never run"]
STATES: tuple[State, ...] = ("done", "diverged", "failed", "interrupted", "running", "never run")
_SHOWN = 20


@dataclass(frozen=True)
class Cell:
    """One run of a comparison, whether it was begun or not."""

    environment: str
    agent: str
    seed: int
    state: State
    step: int = 0
    """Environment steps that it has rows for."""
    reason: str = ""
    """Why it failed, or who is carrying it out."""
    path: str = ""


def cells(folder: Path) -> tuple[Cell, ...]:
    """Every cell of a comparison's folder, in the order of the plan. Raises ConfigError where there is no plan or run.

    Rows are not read: a folder of a thousand runs takes less than a second.
    """
    folder = Path(folder)
    plan = results.read_plan(folder)
    noted = results.read_failures(folder)
    found = {}
    for place in results.run_folders(folder):
        environment, agent, seed = results.cell_of(place, plan)
        found[environment, agent, seed] = _cell(place, environment, agent, seed, noted)
    for environment, agent, seed in results.planned(plan):
        where = folder / results.place_of(environment, agent, seed)
        found.setdefault((environment, agent, seed), _cell(where, environment, agent, seed, noted, there=False))
    if not found:
        raise ConfigError(f"{folder} holds no comparison: it has neither comparison.json nor runs.", "no-run")
    order = {key: i for i, key in enumerate(results.planned(plan))}
    return tuple(found[key] for key in sorted(found, key=lambda k: (order.get(k, len(order)), k)))


def _cell(path: Path, environment: str, agent: str, seed: int, noted: dict[str, Any], there: bool = True) -> Cell:
    from mfmarl.learning.run_folder import holder, is_running, read_status

    why = str(noted.get(str(results.place_of(environment, agent, seed)), ""))
    if not there:
        return Cell(environment, agent, seed, "failed" if why else "never run", 0, why, str(path))
    status = read_status(path)
    told, step = str(status["state"]), int(status.get("step") or 0)
    state: State
    if told == "done":
        state, why = ("diverged", str(status["diverged"])) if status.get("diverged") else ("done", "")
    elif is_running(path):
        state, why = "running", holder(path)
    elif told == "failed":
        state, why = "failed", str(status["error"])
    elif why:
        state = "failed"
    else:
        # A run that says that it is running, and whose lock is free, was killed.
        state = "interrupted"
        why = str(status["error"]) if told == "interrupted" else "its process was killed"
    return Cell(environment, agent, seed, state, step, why, str(path))


def counts(found: Iterable[Cell]) -> dict[str, int]:
    """How many cells stand how: every state, the empty ones included."""
    counted = Counter(cell.state for cell in found)
    return {state: counted[state] for state in STATES}


def sentence(told: dict[str, Any]) -> str:
    """Of `table`: "1000 runs: 950 done, 48 failed, 2 never run."."""
    runs = sum(told["counts"].values())
    stated = ", ".join(f"{n} {state}" for state, n in told["counts"].items() if n)
    return f"{runs} run{'s' if runs != 1 else ''}: {stated}."


def table(found: Sequence[Cell]) -> dict[str, Any]:
    """As `--json` prints it: the counts, and every cell that is not simply done."""
    return {"counts": counts(found), "cells": [asdict(cell) for cell in found if cell.state != "done"]}


def print_cells(told: dict[str, Any], console: Console, most: int = _SHOWN) -> None:
    """Of `table`: the cells with their reasons, and the counts. Names are shown as they are, never as markup."""
    from rich.table import Table
    from rich.text import Text

    odd = told["cells"]
    if odd:
        shown = Table(box=None, header_style="dim")
        for heading in ("run", "state", "step", "why"):
            shown.add_column(heading, justify="right" if heading == "step" else "left", overflow="fold")
        for cell in odd[:most]:
            name = f"{cell['environment']} {cell['agent']} seed {cell['seed']}"
            colour = "red" if cell["state"] in ("failed", "diverged") else "yellow"
            reason = cell["reason"] if len(cell["reason"]) <= 200 else cell["reason"][:197] + "..."
            shown.add_row(
                Text(printable(name)), Text(cell["state"], style=colour), f"{cell['step']:,}", Text(printable(reason))
            )
        console.print(shown)
        if len(odd) > most:
            console.print(Text(f"and {len(odd) - most} more; all of them with --json", style="dim"))
    console.print(Text(sentence(told)))
