"""What a self-test found: a table on the terminal, and one page that shows every goal beside its target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mfmarl.evaluation.report import html_page, html_table
from mfmarl.learning.durable import write_atomic
from mfmarl.selftest.carry_out import read
from mfmarl.selftest.goal import Outcome
from mfmarl.selftest.goals import GOALS

_SIGNS = {True: "met", False: "not met", None: "not tried"}


def print_outcomes(outcomes: Mapping[str, Outcome]) -> None:
    """Every outcome as a row, the failures below it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("goal", "", "found", "trials"):
        table.add_column(heading, justify="right" if heading == "trials" else "left")
    for goal in GOALS:
        if goal.name in outcomes:
            found = outcomes[goal.name]
            table.add_row(goal.name, _SIGNS[found.met], found.found, f"{found.trials:,}")
    Console().print(table)


def write_report(folder: Path) -> Path:
    """`report.html` in that folder; returns it. Raises ConfigError, ResourceFault."""
    outcomes = read(folder)
    rows = [
        [
            goal.name,
            goal.title,
            goal.target,
            _SIGNS[found.met],
            found.found,
            f"{found.trials:,}",
            "; ".join([goal.anchor, *(f"{name}: {text}" for name, text in found.beside.items())]),
        ]
        for goal in GOALS
        if (found := outcomes.get(goal.name)) is not None
    ]
    headings = ["goal", "promise", "target", "", "found here", "trials", "other libraries"]
    page = folder / "report.html"
    write_atomic(page, html_page("Self-test", [html_table(headings, rows, numbers=(5,))]).encode())
    return page
