r"""How near to equilibrium learners come, with a thousand agents: exploitability of infinitely many, and at N.

python scripts/reproduce/learned_equilibria.py            # about two CPU-hours
python scripts/reproduce/learned_equilibria.py --quick    # short runs, two seeds: about ten CPU-minutes

MF-Q, an independent Q-learner, mean-field PPO and stable-baselines3's PPO on the beach bar, the epidemic over 50
decisions and Pigou's two roads. Those with a temperature cool down to .01, so that what they should come to is a Nash
equilibrium; each run is reported with its seed, and losses are reported as they are. Leaves a comparison folder with
its report under `--out`; `mfmarl report` makes it anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mfmarl.cli.progress import Progress
from mfmarl.errors import MfmarlError
from mfmarl.evaluation import comparison, report, summary
from mfmarl.evaluation.results import read_comparison
from mfmarl.learning.run_config import Choice, RunOptions

COOLING = "geometric(1, 0.01, 0.8)"
GAMES: dict[str, dict[str, Any]] = {
    "beach_bar": {},
    "susceptible_infected": {},
    "route_choice": {"network": "pigou"},
}
AGENTS: dict[str, dict[str, Any]] = {
    "mfq": {"temperature": COOLING},
    "iql": {"temperature": COOLING},
    "mfppo": {"temperature": COOLING},
    "sb3": {"gamma": 1.0},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000, help="agents of each game (default: 1000)")
    parser.add_argument("--steps", type=int, default=4000, help="environment steps of each run (default: 4000)")
    parser.add_argument("--copies", type=int, default=4, help="crowds learned from side by side (default: 4)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each learner (default: 5)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/learned-equilibria"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="at most 400 steps, two seeds and two copies")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.steps, known.seeds, known.copies = min(known.steps, 400), min(known.seeds, 2), min(known.copies, 2)
    return known


def main() -> int:
    given = arguments()
    places = {name: Choice(name, {**options, "num_agents": given.agents}) for name, options in GAMES.items()}
    learners = {name: {"all": Choice(name, options)} for name, options in AGENTS.items()}
    options = RunOptions(steps=given.steps, copies=given.copies, evaluation_copies=1)
    seeds = list(range(given.seeds))
    try:
        comparison.write_plan(given.out, places, learners, seeds, " ".join(["python", *sys.argv]))
        runs = comparison.plan(places, learners, seeds, options, given.out)
        with Progress(given.quiet) as progress:
            progress.add("runs", len(runs))
            done: set[str] = set()

            def on_event(run: comparison.PlannedRun, event: comparison.Event) -> None:
                if event["event"] in ("done", "failed"):
                    done.add(str(run.path))
                progress.update("runs", len(done), f"{run.agent} on {run.environment}, seed {run.seed}")

            failed = comparison.execute(runs, given.jobs, on_event)
        for run, why in failed:
            print(f"{run.environment}, {run.agent}, seed {run.seed} failed: {why}", file=sys.stderr)
        page = report.write_report(given.out)
        table = summary.summary(read_comparison(given.out))
    except MfmarlError as error:
        print(f"learned_equilibria: {error}", file=sys.stderr)
        return error.exit_code
    for name, about in table["environments"].items():
        print(f"{name}: exploitability at the end of a run, {given.agents} agents")
        for agent, cells in summary.gap_rows(about):
            print(f"  {agent:<8}" + "   ".join(f"{t}: {c}" for t, c in zip(summary.GAPS.values(), cells, strict=True)))
    print(f"report: {page}")
    return 6 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
