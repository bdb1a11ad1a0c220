"""Simple spread (MPE2): mean-field and independent learners against random play.

python scripts/reproduce/simple_spread.py           # five seeds of five agents: about 15 CPU-seconds for each run
python scripts/reproduce/simple_spread.py --quick

Three agents are to cover three landmarks and not collide; an episode lasts 25 steps. What is compared is the reward per
agent-step of the frozen policies after training, on episodes of their own, the same for all agents of a seed.
With three agents that act on positions the mean action of the others says little: a tie of mean-field and independent
learners is what to expect, and is reported as such.

Leaves in `--out`: simple_spread.json, report.html, and every run. Interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from mfmarl.cli.carry_out import carry_out
from mfmarl.errors import MfmarlError, RunsFailed
from mfmarl.evaluation.comparison import PlannedRun, plan, write_plan
from mfmarl.evaluation.films import film_comparison
from mfmarl.evaluation.report import write_report
from mfmarl.evaluation.results import read_comparison, scores
from mfmarl.evaluation.statistics import Difference, Estimate, difference, estimate
from mfmarl.learning.build import versions
from mfmarl.learning.run_config import Choice, RunOptions

PLACE = "simple_spread"
ENVIRONMENT = Choice("mpe2/simple_spread_v3")
ACTOR = {"temperature": "0.02", "gamma": 0.95, "rollout": 25}
VALUES = {"temperature": "geometric(0.5, 0.05)", "gamma": 0.95, "learning_rate": 5e-4}
AGENTS = {
    "mfppo": Choice("mfppo", ACTOR),
    "ippo": Choice("ippo", ACTOR),
    "mfq": Choice("mfq", VALUES),
    "iql": Choice("iql", VALUES),
    "random": Choice("random"),
}
AGAINST = (*((name, "random") for name in AGENTS if name != "random"), ("mfppo", "ippo"), ("mfq", "iql"))


def train(runs: list[PlannedRun], jobs: int, quiet: bool) -> None:
    """Carry out the runs. Raises RunsFailed."""
    failed = carry_out(runs, jobs, quiet)
    if failed:
        raise RunsFailed(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0][1]}")


def plain(found: Estimate | Difference) -> dict[str, Any]:
    """As JSON can say it: what one run cannot tell is null."""
    return {k: None if isinstance(v, float) and v != v else v for k, v in found._asdict().items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="environment steps of each run (default: 1500)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each agent (default: 5)")
    parser.add_argument("--copies", type=int, default=16, help="copies learned from side by side (default: 16)")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time (default: one for each core)")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce-simple-spread"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two seeds, few steps: does it work?")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.steps, known.seeds, known.copies = min(known.steps, 50), 2, min(known.copies, 2)
    for name in ("steps", "seeds", "copies"):
        if getattr(known, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(known, name)}.")
    return known


def main() -> int:
    known = arguments()
    options = RunOptions(
        steps=known.steps,
        copies=known.copies,
        evaluation_copies=known.copies,
        evaluation_steps=25 if known.quick else 100,
        report_every=max(1, known.steps // 15),
        checkpoint_seconds=300.0,
    )
    seeds = list(range(known.seeds))
    command = "python " + shlex.join(sys.argv)
    teams = {name: {"all": choice} for name, choice in AGENTS.items()}
    burn_in = 0.8  # the last fifth of a run: three evaluations of 4 episodes in every copy
    try:
        runs = plan({PLACE: ENVIRONMENT}, teams, seeds, options, known.out)
        write_plan(known.out, {PLACE: ENVIRONMENT}, teams, seeds, command)
        train(runs, known.jobs, known.quiet)
        comparison = read_comparison(known.out, burn_in=burn_in)
        film_comparison(comparison)
        page = write_report(known.out, burn_in=burn_in)
    except MfmarlError as error:
        print(f"simple_spread.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("simple_spread.py: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    found = {name: scores(comparison, PLACE, name).values for name in AGENTS}
    table: dict[str, dict[str, Any]] = {name: {"runs": [float(v) for v in values]} for name, values in found.items()}
    print(f"{'agent':<16} reward per agent-step, interquartile mean and 95 % interval over {known.seeds} seeds")
    for name, values in found.items():
        score = estimate([values])
        table[name] |= plain(score)
        print(f"{name:<16} {score.value:.4f}  ({score.low:.4f} to {score.high:.4f})")
    pairs = {}
    for first, second in AGAINST:
        gap = difference([found[first]], [found[second]])
        pairs[f"{first} - {second}"] = plain(gap)
        print(f"{first + ' - ' + second:<16} {gap.value:+.4f}  ({gap.low:+.4f} to {gap.high:+.4f})")
    about = {"command": command, "environment": ENVIRONMENT.name, "steps": known.steps, "copies": known.copies}
    text = json.dumps({**about, "versions": versions(), "agents": table, "differences": pairs}, indent=1)
    (known.out / "simple_spread.json").write_text(text + "\n")
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
