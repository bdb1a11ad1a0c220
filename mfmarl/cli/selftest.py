"""`mfmarl selftest`: the promises of reliability, tried on this machine, beside what other libraries do."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from mfmarl.errors import ClaimRefuted, ConfigError, nearest

EXAMPLES = """  mfmarl selftest                       # a hundredth of every goal: minutes
  mfmarl selftest --goals G1,G5 --share 1   # two goals, as many trials as their targets name
  mfmarl selftest --cases 14,66         # single faults of the catalogue
  mfmarl selftest --share 1 --report    # everything, and a page that shows it: hours
  mfmarl selftest --list                # the goals and the catalogue"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--goals", default="", help="which: G1,G5 (default: all that need no checkout of the source)")
    parser.add_argument("--cases", default="", help="single cases of the catalogue: 14,66")
    parser.add_argument(
        "--share", type=float, default=0.01, help="of the trials that the targets name (default: 0.01; 1: all of them)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed tries other kills and mutations (default: 0)")
    parser.add_argument("--report", action="store_true", help="also write a page: report.html")
    parser.add_argument("--again", action="store_true", help="try again what was tried in that folder")
    parser.add_argument("--list", dest="listed", action="store_true", help="show the goals and cases; nothing is tried")
    parser.add_argument("--name", help="kept in RUNS/NAME; the same name goes on (default: selftest-time)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(known: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise ConfigError(f"Unknown option {rest[0]!r}. See `mfmarl selftest --help`.", "unknown-option")
    if not 0 < known.share <= 100:
        raise ConfigError(f"--share must be above 0 and at most 100, not {known.share:g}.", "bounds")
    if not 0 <= known.seed < 2**63:
        raise ConfigError(f"--seed must be a whole number from 0 to 2^63 - 1, not {known.seed}.", "bounds")
    goals, cases = _goals(known.goals, bool(known.cases)), _cases(known.cases)
    if known.listed:
        return _list(known)
    from mfmarl.learning.run_folder import inside

    folder = inside(known.runs, known.name or f"selftest-{time.strftime('%Y%m%d-%H%M%S')}")
    if cases:
        return _try_cases(known, cases, folder)
    return _try_goals(known, goals, folder)


def _goals(text: str, cases: bool) -> list[Any]:
    from mfmarl.selftest.goals import GOALS

    names = {goal.name: goal for goal in GOALS}
    if not text:
        return [] if cases else [goal for goal in GOALS if ".checkout:" not in goal.trial]
    if cases:
        raise ConfigError("Give either --goals or --cases.")
    words = [word.strip().upper() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in names:
            raise ConfigError(f"There is no goal {word!r}.{nearest(word, names)}", "unknown-name")
    return [names[word] for word in dict.fromkeys(words)]


def _cases(text: str) -> list[Any]:
    if not text:
        return []
    from mfmarl.selftest.catalogue import cases

    known = {case.number: case for case in cases()}
    found = []
    for word in text.split(","):
        if not re.fullmatch(r"\s*[0-9]{1,4}\s*", word) or int(word) not in known:
            raise ConfigError(
                f"There is no case {word!r}: give numbers from 1 to {max(known, default=0)}.", "unknown-name"
            )
        found.append(known[int(word)])
    return found


def _list(known: argparse.Namespace) -> int:
    from mfmarl.selftest.catalogue import cases
    from mfmarl.selftest.goals import GOALS

    if known.json:
        told = [{"number": c.number, "fault": c.fault, "severity": c.severity, "expected": c.expected} for c in cases()]
        print(json.dumps({"goals": [vars(goal) for goal in GOALS], "cases": told}))
        return 0
    for goal in GOALS:
        print(f"{goal.name:>4}  {goal.title}\n      {goal.target}  (about {goal.minutes:g} min at --share 1)")
    for case in cases():
        print(f"{case.number:>4}  {case.severity}  {case.fault}: {case.expected}")
    return 0


def _try_cases(known: argparse.Namespace, cases: list[Any], folder: Path) -> int:
    from mfmarl.selftest.every_case import attempt_case

    missed = {}
    for case in cases:
        missed[case.number] = attempt_case(case, folder / f"case-{case.number}")
        if not known.json:
            print(
                f"{'MISSED' if missed[case.number] else 'met':>6}  {case.number}  {case.fault}  {missed[case.number]}"
            )
    folder.rmdir()
    if known.json:
        print(json.dumps({"cases": {str(number): text or "met" for number, text in missed.items()}}))
    return ClaimRefuted.exit_code if any(missed.values()) else 0


def _try_goals(known: argparse.Namespace, goals: list[Any], folder: Path) -> int:
    from mfmarl.cli.progress import Progress
    from mfmarl.learning.durable import resource_fault
    from mfmarl.selftest.carry_out import carry_out
    from mfmarl.selftest.goal import Goal, Order, Outcome
    from mfmarl.selftest.report import print_outcomes, write_report

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise resource_fault(error, folder) from error
    with Progress(known.quiet) as progress:
        current: list[str] = []

        def watch(done: int, of: int) -> None:
            progress.totals[current[-1]] = of
            if progress.live is not None:
                progress.live.update(progress.tasks[current[-1]], total=of)
            progress.update(current[-1], done)

        def on_event(event: str, goal: Goal, outcome: Outcome | None) -> None:
            if event == "begin":
                current.append(goal.name)
                progress.add(goal.name, 1)
            elif outcome is not None:
                progress.remove(goal.name)
                sign = {True: "met", False: "NOT MET", None: "not tried"}[outcome.met]
                progress.say(f"{goal.name:>4}  {sign:<9}  {goal.title}: {outcome.found} ({outcome.seconds:.0f} s)")

        order = Order(folder, known.share, known.seed, watch)
        outcomes = carry_out(goals, folder, order, on_event, known.again)
    page = write_report(folder) if known.report else None
    if known.json:
        table = {name: outcome.to_table() for name, outcome in outcomes.items()}
        print(json.dumps({"folder": str(folder), "report": str(page or ""), "goals": table}))
    else:
        print_outcomes(outcomes)
        print(f"numbers: {folder / 'selftest.json'}" + (f"\nreport: {page}" if page else ""))
    missed = [name for name in (goal.name for goal in goals) if outcomes[name].met is False]
    if missed:
        refuted = ClaimRefuted(f"{', '.join(missed)} of the goals not met: {outcomes[missed[0]].found}.")
        print(f"mfmarl: {refuted} [{refuted.code}]", file=sys.stderr)
        return refuted.exit_code
    return 0
