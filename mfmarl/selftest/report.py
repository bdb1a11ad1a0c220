"""What a self-test found: a table on the terminal, and one page that shows every goal beside its target."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from html import escape
from pathlib import Path

from mfmarl.evaluation.report import html_page, html_table
from mfmarl.learning.durable import write_atomic
from mfmarl.selftest.carry_out import about, read
from mfmarl.selftest.goal import Goal, Outcome
from mfmarl.selftest.goals import GOALS

SIGNS = {True: "met", False: "not met", None: "not tried"}
_MARKS = {True: "✓", False: "✕", None: "–"}


def print_outcomes(outcomes: Mapping[str, Outcome]) -> None:
    """Every outcome as a row, and below them what failed, one by one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(), Table(box=None, pad_edge=False)
    for heading in ("goal", "", "found", "trials"):
        table.add_column(heading, justify="right" if heading == "trials" else "left")
    colours = {True: "green", False: "red", None: "dim"}
    for goal, found in _tried(outcomes):
        table.add_row(
            goal.name, Text(SIGNS[found.met], colours[found.met]), Text(_plain(found.found)), f"{found.trials:,}"
        )
    console.print(table)
    for goal, found in _tried(outcomes):
        for failure in found.failures:
            console.print(Text(f"{goal.name}: {_plain(failure)}", "red"), soft_wrap=True)


def write_report(folder: Path) -> Path:
    """`report.html` in that folder; returns it. Raises ConfigError, ResourceFault."""
    outcomes, told = read(folder), about(folder)
    tried = _tried(outcomes)
    met = sum(found.met is True for _, found in tried)
    missed = [goal.name for goal, found in tried if found.met is False]
    untried = [goal.name for goal, found in tried if found.met is None]
    untried += [goal.name for goal in GOALS if goal.name not in outcomes]
    parts = [
        "<h1>Self-test</h1>",
        f"<p class='lead'>{met} of {len(GOALS)} promises of reliability met on this machine"
        f"{', ' + ', '.join(missed) + ' not met' if missed else ''}"
        f"{', ' + ', '.join(untried) + ' not tried' if untried else ''}.</p>",
        "<ul class='verdicts'>",
        *(
            f"<li><span class='sign'>{_MARKS[found.met]}</span><b>{goal.name}</b> {escape(goal.title)}: "
            f"{escape(_plain(found.found))}.</li>"
            for goal, found in tried
        ),
        "</ul><section><h2>Every promise beside its target</h2>",
        html_table(
            ["goal", "", "target", "found here", "trials", "time", "other libraries"],
            [
                [goal.name, SIGNS[found.met], goal.target, _plain(found.found), f"{found.trials:,}",
                 str(timedelta(seconds=round(found.seconds))), goal.anchor]
                for goal, found in tried
            ],
            numbers=(4, 5),
        ),
        "<p class='note'>What other libraries do is as it was measured with torch 2.13, gymnasium 1.4, pettingzoo 1.27, "
        "stable-baselines3 2.9, safetensors 0.8 and ray 2.60; what was measured beside, here and now, stands below.</p>",
        "</section>",
        _beside(tried),
        _failures(tried),
        "<section><h2>How to repeat it</h2><pre><code>"
        + escape("\n".join(f"mfmarl selftest --goals {goal.name} --share {told['share']:g} --seed {told['seed']}"
                           for goal, _ in tried))
        + "</code></pre><p class='note'>"
        + escape(f"mfmarl {told['mfmarl']}, {told['share']:.3g} of the trials that the targets name; "
                 + ", ".join(f"{name} {value}" for name, value in told["machine"].items()))
        + ".</p></section>",
    ]  # fmt: skip
    page = folder / "report.html"
    write_atomic(page, html_page("Self-test", parts).encode())
    return page


def _tried(outcomes: Mapping[str, Outcome]) -> list[tuple[Goal, Outcome]]:
    return [(goal, outcomes[goal.name]) for goal in GOALS if goal.name in outcomes]


def _beside(tried: list[tuple[Goal, Outcome]]) -> str:
    rows = [[goal.name, name, text] for goal, found in tried for name, text in found.beside.items()]
    if not rows:
        return ""
    table = html_table(["goal", "who", "what came of the same trials"], rows)
    return f"<section><h2>Other libraries, in the same trials</h2>{table}</section>"


def _failures(tried: list[tuple[Goal, Outcome]]) -> str:
    rows = [[goal.name, _plain(text)] for goal, found in tried for text in found.failures]
    return f"<section><h2>What failed</h2>{html_table(['goal', 'what'], rows)}</section>" if rows else ""


def _plain(text: str) -> str:
    """One line without a terminal's control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split()).rstrip(".")
