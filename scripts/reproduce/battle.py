"""Battle (MAgent2, 12 against 12 on a map of 20 x 20): MF-Q against a scripted rusher, and against IQL.

python scripts/reproduce/battle.py                # three seeds; three CPU-minutes for each of its twelve runs
python scripts/reproduce/battle.py --quick        # a minute: does everything once, learns nothing

1. Red learns, by MF-Q or by IQL (the same learner without a field), against the rusher; then plays `--games` fresh
   battles against it.
2. MF-Q and IQL learn against each other, on both sides; then every trained MF-Q plays every trained IQL.

A battle is won by the side with more soldiers left; an equal number is half a win. An interval over battles (Wilson's)
says how well one trained team is known, one over seeds how another training would turn out: the run is the unit.
What Yang et al. 2018 (arXiv 1802.05438) report of 64 against 64 is a bar chart; there is no number to match.

Leaves in `--out`: battle.json, battle.gif and battle.png, report.html, and every run. Interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfmarl.cli.carry_out import carry_out
from mfmarl.cli.progress import Progress
from mfmarl.errors import MfmarlError, RunsFailed
from mfmarl.evaluation.comparison import PlannedRun, plan, write_plan
from mfmarl.evaluation.films import film, film_comparison, write_gif, write_png
from mfmarl.evaluation.report import write_report
from mfmarl.evaluation.results import read_comparison
from mfmarl.evaluation.statistics import half_width
from mfmarl.evaluation.tournament import Entrant, load_entrant, play
from mfmarl.learning.build import build, versions
from mfmarl.learning.players import Player
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.random import Key

PLACE = "battle"
SETTINGS: dict[str, Any] = {
    # A blow is worth 0.1 and a kill 5: at the usual temperature of 1 all play is random.
    "temperature": "geometric(0.05, 0.003)",
    "gamma": 0.9,  # a kill is a few blows away: with 0.95 twice as long in learning, and less steadily
    "channels": [],  # 845 numbers straight into the hidden layers: as good here as convolutions, a tenth of the time
    "hidden": [128, 64],
    "learning_rate": 3e-4,
    "capacity": 60_000,
}
MFQ, IQL, RUSHER = Choice("mfq", SETTINGS), Choice("iql", SETTINGS), Choice("rusher")
TEAMS = {
    "red=mfq+blue=rusher": {"red": MFQ, "blue": RUSHER},
    "red=iql+blue=rusher": {"red": IQL, "blue": RUSHER},
    "red=mfq+blue=iql": {"red": MFQ, "blue": IQL},
    "red=iql+blue=mfq": {"red": IQL, "blue": MFQ},
}
Score = dict[str, Any]


def wilson(points: float, games: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a chance (Wilson 1927), ties counted half."""
    p = points / games
    middle = (p + z * z / (2 * games)) / (1 + z * z / games)
    half = z / (1 + z * z / games) * sqrt(p * (1 - p) / games + z * z / (4 * games * games))
    return max(0.0, middle - half), min(1.0, middle + half)


def score(results: list[tuple[float, float]]) -> Score:
    """Battles (survivors of the side in question, of the other) as a win rate with its interval."""
    wins, draws = sum(a > b for a, b in results), sum(a == b for a, b in results)
    points = wins + draws / 2
    left = [sum(side) / len(results) for side in zip(*results, strict=True)]
    return {
        "wins": wins,
        "draws": draws,
        "losses": len(results) - wins - draws,
        "win_rate": points / len(results),
        "wilson_95": wilson(points, len(results)),
        "survivors": left,
    }


def over_seeds(rates: np.ndarray, draws: int = 2000) -> Score:
    """Mean of win rates over runs, with a 95 % bootstrap interval (Student's width); each axis is one side's seeds."""
    noise = np.random.Generator(np.random.Philox(key=0))
    runs = min(rates.shape)
    mean = float(rates.mean())
    if runs < 2:
        return {"mean": mean, "interval_95": None, "runs": runs}
    picks = [[noise.integers(n, size=n) for n in rates.shape] for _ in range(draws)]
    half = float(half_width(np.array([rates[np.ix_(*pick)].mean() for pick in picks]), runs))
    return {"mean": mean, "interval_95": (max(0.0, mean - half), min(1.0, mean + half)), "runs": runs}


class Stage:
    """Copies of the battle to evaluate on, and the trained teams, each loaded once."""

    def __init__(self, environment: Choice, copies: int, seed: int, horizon: int) -> None:
        run = RunOptions(copies=copies, seed=seed, evaluation_copies=0)
        self.config = RunConfig(environment, {"all": Choice("random")}, run)
        self.built = build(self.config)
        self.key, self.horizon = Key.of(seed), horizon
        self.teams: dict[Path, dict[str, Player]] = {}

    def team(self, path: Path, side: str) -> Player:
        if path not in self.teams:
            self.teams[path] = load_entrant(Entrant(path.parent.name, 0, path), self.config)
            for player in self.teams[path].values():
                player.memory = None  # its experience is as large as everything else together
        return self.teams[path][side]

    def battles(self, red: Player, blue: Player, games: int, *name: int) -> list[tuple[float, float]]:
        """(survivors of red, of blue) of each battle."""
        return play(self.built.env, [red, blue], games, self.key.fold("battles", *name), self.horizon)


def train(runs: list[PlannedRun], jobs: int, quiet: bool) -> None:
    """Carry out the runs. Raises RunsFailed."""
    failed = carry_out(runs, jobs, quiet)
    if failed:
        raise RunsFailed(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0][1]}")


def evaluate(runs: list[PlannedRun], seeds: list[int], stage: Stage, games: int, quiet: bool) -> dict[str, Any]:
    """Win rates against the rusher, and of MF-Q against IQL."""
    path = {(run.agent, run.seed): run.path for run in runs}
    labels = [label for label in TEAMS if (label, seeds[0]) in path]
    table: dict[str, Any] = {}
    share = -(-games // (2 * len(seeds)))  # every MF-Q meets every IQL on both sides: `games` battles for each
    crossed = "red=mfq+blue=iql" in labels
    alone = [label for label in labels if label.endswith("rusher")]
    with Progress(quiet) as progress:
        progress.add("evaluating", len(alone) * len(seeds) + crossed * len(seeds) ** 2)
        count = itertools.count(1)
        for label in alone:
            by_seed = {}
            for seed in seeds:
                pair = [stage.team(path[label, seed], side) for side in ("red", "blue")]
                by_seed[seed] = score(stage.battles(pair[0], pair[1], games, 0, seed))
                progress.update("evaluating", next(count), label)
            rates = np.array([found["win_rate"] for found in by_seed.values()])
            table[label] = {"seeds": by_seed, "over_seeds": over_seeds(rates)}
        if crossed:
            found = {}
            rates = np.zeros((len(seeds), len(seeds)))
            for (i, one), (j, other) in itertools.product(enumerate(seeds), enumerate(seeds)):
                red_mfq = stage.team(path["red=mfq+blue=iql", one], "red")
                blue_iql = stage.team(path["red=mfq+blue=iql", other], "blue")
                red_iql = stage.team(path["red=iql+blue=mfq", other], "red")
                blue_mfq = stage.team(path["red=iql+blue=mfq", one], "blue")
                left = stage.battles(red_mfq, blue_iql, share, 1, one, other)
                right = stage.battles(red_iql, blue_mfq, share, 2, one, other)
                cell = score(left + [(b, a) for a, b in right])
                found[f"mfq {one} - iql {other}"] = cell
                rates[i, j] = cell["win_rate"]
                progress.update("evaluating", next(count), f"mfq {one} - iql {other}")
            table["mfq - iql"] = {"pairs": found, "over_seeds": over_seeds(rates)}
    return table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12_000, help="environment steps of each run (default: 12000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--games", type=int, default=200, help="battles that a trained team plays (default: 200)")
    parser.add_argument("--map-size", type=int, default=20, help="side of the map (default: 20: 12 against 12)")
    parser.add_argument("--max-cycles", type=int, default=200, help="steps of a battle at most (default: 200)")
    parser.add_argument("--copies", type=int, default=8, help="battles learned from side by side (default: 8)")
    parser.add_argument(
        "--only",
        choices=("all", "rusher", "mfq-rusher", "cross"),
        default="all",
        help="part 1, its MF-Q alone, or part 2",
    )
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time (default: one for each core)")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce-battle"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, few battles: does it work?")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.steps, known.seeds, known.games = min(known.steps, 100), 1, 8
    for name in ("steps", "seeds", "games", "copies"):
        if getattr(known, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(known, name)}.")
    return known


def main() -> int:
    known = arguments()
    torch.set_num_threads(1)
    kept = {"all": list(TEAMS), "rusher": list(TEAMS)[:2], "mfq-rusher": list(TEAMS)[:1], "cross": list(TEAMS)[2:]}[
        known.only
    ]
    environment = Choice("magent2/battle_v4", {"map_size": known.map_size, "max_cycles": known.max_cycles})
    options = RunOptions(
        steps=known.steps,
        copies=known.copies,
        evaluation_steps=100,
        report_every=max(1, known.steps // 20),
        checkpoint_seconds=300.0,
    )
    seeds = list(range(known.seeds))
    teams = {label: TEAMS[label] for label in kept}
    try:
        runs = plan({PLACE: environment}, teams, seeds, options, known.out)
        write_plan(known.out, {PLACE: environment}, teams, seeds, "python " + shlex.join(sys.argv))
        train(runs, known.jobs, known.quiet)
        stage = Stage(environment, min(known.games, 25), 1_000_003, known.max_cycles)
        try:
            table = evaluate(runs, seeds, stage, known.games, known.quiet)
        finally:
            stage.built.close()
        frames = film(runs[0].path, known.max_cycles, seed=1)
        write_gif(frames, known.out / "battle.gif", 4.0)
        write_png(frames[len(frames) // 2], known.out / "battle.png")
        column = "eval/reward/red"
        film_comparison(read_comparison(known.out, column=column))
        page = write_report(known.out, column=column)
    except MfmarlError as error:
        print(f"battle.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("battle.py: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    about = {
        "command": "python " + shlex.join(sys.argv),
        "environment": {"name": environment.name, **environment.options},
        "settings": SETTINGS,
        "steps": known.steps,
        "copies": known.copies,
        "games": known.games,
        "versions": versions(),
    }
    (known.out / "battle.json").write_text(json.dumps({**about, "results": table}, indent=1) + "\n")
    for label, found in table.items():
        rate, interval = found["over_seeds"]["mean"], found["over_seeds"]["interval_95"]
        told = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "one run: no interval"
        print(f"{label:<22} win rate {rate:.3f}  ({told}; {found['over_seeds']['runs']} seeds)")
        for name, one in (found.get("seeds") or found["pairs"]).items():
            low, high = one["wilson_95"]
            won = f"{one['wins']} won, {one['draws']} drawn, {one['losses']} lost"
            print(f"    {name!s:<18} {one['win_rate']:.3f}  ({low:.3f} to {high:.3f} over battles)  {won}")
    print(f"report: {page}\n  film: {known.out / 'battle.gif'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
