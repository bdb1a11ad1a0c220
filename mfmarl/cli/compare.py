"""`mfmarl compare`: environments x agents x seeds on the cores of this machine or on Ray, with statistics and a report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from mfmarl.cli.choices import (
    add_import_option,
    add_run_options,
    add_statistics_options,
    assign,
    import_all,
    pairs_of,
    parse_agents,
    parse_environments,
    run_options,
)
from mfmarl.cli.engines import add_engine_options, engine_of
from mfmarl.errors import ClaimRefuted, ConfigError, RunsFailed, printable

EXAMPLES = """  mfmarl compare ising --agents mfq,mfac,iql,iac --num-agents 400 --seeds 5
  mfmarl compare ising,congestion --agents mfq,iql --seeds 10 --assert "ising: mfq > iql"
  mfmarl compare mpe2/simple_spread_v3 --agents mfppo,ippo --steps 20000
  mfmarl compare magent2/battle_v4 --agents red=mfq+blue=rusher,red=iql+blue=rusher --map-size 20
  mfmarl compare congestion --agents mfq:temperature=0.2,mfq:temperature=0.05
  mfmarl compare ising,ising:coupling=-1 --agents mfq,iql
  mfmarl compare my_env.py:MyEnv --agents mfq,iql
  mfmarl compare ising --agents mfq,iql --engine ray --address auto --cpus-per-run 2"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "environments",
        help="names from `mfmarl list` or path/to/file.py:Class, separated by commas; variants as ising:coupling=-1",
    )
    parser.add_argument(
        "--agents",
        default="mfq,iql",
        help="agents to compare; teams as red=mfq+blue=iql; variants as mfq:bins=9 (default: mfq,iql)",
    )
    parser.add_argument("--seeds", default="5", help="how many seeds (5), or which (3,7,11) (default: 5)")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time (default: one for each core)")
    parser.add_argument(
        "--name", help="the comparison is kept in RUNS/NAME; an old one goes on (default: environments-time)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    add_import_option(parser)
    add_statistics_options(parser)
    parser.add_argument(
        "--assert",
        dest="claims",
        action="append",
        default=[],
        metavar="CLAIM",
        help="exit with 9 unless this holds, e.g. 'mfq > iql'",
    )
    parser.add_argument(
        "--export",
        choices=("marl-eval", "csv"),
        action="append",
        default=[],
        help="also write marl_eval.json or runs.csv",
    )
    parser.add_argument(
        "--keep-failed",
        action="store_true",
        help="leave runs alone that failed before (default: they are tried again)",
    )
    parser.add_argument("--no-film", dest="film", action="store_false", help="no animated picture of the populations")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_run_options(parser, skip=("seed",))
    add_engine_options(parser)


def seeds_of(text: str) -> list[int]:
    """`5` -> 0..4; `3,7,11` -> those."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds takes how many (5) or which (3,7,11), not {text!r}.") from None
    if "," not in text:
        if not 1 <= numbers[0] <= 100_000:
            raise ConfigError(f"--seeds must be at least 1, not {numbers[0]}.")
        return list(range(numbers[0]))
    if min(numbers) < 0:
        raise ConfigError(f"Seeds are whole numbers from 0, not {min(numbers)}.")
    return numbers


def run(known: argparse.Namespace, rest: list[str]) -> int:
    import_all(known.imports)
    from mfmarl.cli.carry_out import carry_out
    from mfmarl.evaluation.claims import parse_claim
    from mfmarl.evaluation.comparison import plan, refuse_changed, write_plan
    from mfmarl.evaluation.results import folder_name, note_failures
    from mfmarl.learning.run_folder import exclusive, inside

    for claim in known.claims:
        parse_claim(claim)  # refused before hours of work, not after
    if not 0 <= known.burn_in < 1:
        raise ConfigError(f"--burn-in is a share of each run, at least 0 and below 1, not {known.burn_in:g}.")
    if known.jobs < 0:
        raise ConfigError(f"--jobs must be at least 1, not {known.jobs}.")
    engine = engine_of(known)
    environments, agents = assign(pairs_of(rest), parse_environments(known.environments), parse_agents(known.agents))
    options = run_options(known)
    name = known.name or f"{folder_name('-'.join(environments))[:80]}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = inside(known.runs, name)
    seeds = seeds_of(known.seeds)
    runs = plan(environments, agents, seeds, options, folder)
    refuse_changed(runs)
    write_plan(folder, environments, agents, seeds, "mfmarl " + shlex.join(sys.argv[1:]))
    kept = _failed_before(folder) if known.keep_failed else {}
    todo = [r for r in runs if (r.environment, r.agent, r.seed) not in kept]
    failed = carry_out(todo, known.jobs, known.quiet, known.imports, engine)
    # Another process may be carrying out the same comparison, and conclude it now.
    with exclusive(folder, patience=600.0):
        note_failures(
            folder,
            {(r.environment, r.agent, r.seed): error for r, error in failed},
            tried=[(r.environment, r.agent, r.seed) for r in todo],
        )
        failed += [(r, kept[key]) for r in runs if (key := (r.environment, r.agent, r.seed)) in kept]
        return _conclude(known, folder, runs, failed)


def _failed_before(folder: Path) -> dict[tuple[str, str, int], str]:
    from mfmarl.evaluation.cells import cells

    return {(c.environment, c.agent, c.seed): c.reason for c in cells(folder) if c.state == "failed"}


def _conclude(known: argparse.Namespace, folder: Path, runs: list[Any], failed: list[tuple[Any, str]]) -> int:
    from mfmarl.evaluation.claims import evaluate, parse_claim
    from mfmarl.evaluation.films import film_comparison
    from mfmarl.evaluation.report import write_report
    from mfmarl.evaluation.results import read_comparison
    from mfmarl.evaluation.summary import print_table, summary

    if len(failed) == len(runs):
        raise RunsFailed(f"All {len(runs)} runs failed; the first: {failed[0][1]}")
    choices: dict[str, Any] = {
        "column": known.metric,
        "burn_in": known.burn_in,
        "allow_unequal": known.allow_unequal,
        "without_diverged": known.without_diverged,
    }
    comparison = read_comparison(folder, **choices)
    if known.film:
        film_comparison(comparison)
    table = summary(comparison)
    page = write_report(folder, **choices)
    if known.export:
        from mfmarl.evaluation.export import write_csv, write_marl_eval

        for kind in known.export:
            (write_csv if kind == "csv" else write_marl_eval)(comparison)
    verdicts = [(claim, *evaluate(parse_claim(claim), comparison)) for claim in known.claims]
    error = ""
    if failed:
        error = f"{len(failed)} of {len(runs)} runs failed ({len(runs) - len(failed)} done); the first: {failed[0][1]}"
    if known.json:
        claims = [{"claim": c, "holds": holds, "sentence": sentence} for c, holds, sentence in verdicts]
        errors = [{"environment": r.environment, "agent": r.agent, "seed": r.seed, "error": e} for r, e in failed]
        ended = {"error": error, "exit_code": RunsFailed.exit_code, "code": RunsFailed.code} if failed else {}
        told = {**table, "report": str(page), "folder": str(folder), "claims": claims, "failed": errors, **ended}
        print(json.dumps(told))
    else:
        from rich.console import Console

        print_table(table, Console())
        for claim, holds, sentence in verdicts:
            print(printable(f"{'holds' if holds else 'DOES NOT HOLD'}: {claim}: {sentence}"))
        print(f"report: {page}")
    if failed:
        print(f"mfmarl: {printable(error)} [{RunsFailed.code}]", file=sys.stderr)
        return RunsFailed.exit_code
    if any(not holds for _, holds, _ in verdicts):
        return ClaimRefuted.exit_code
    return 0
