"""The Gaussian squeeze with and without a field: MF-Q against IQL, ten runs each, in four forms.

python scripts/reproduce/squeeze.py            # about five CPU-minutes
python scripts/reproduce/squeeze.py --quick    # about one: three runs each

N = 100 agents share one reward G for their total. Published (Yang et al. 2018): mu = 400, sigma = 200 of the sum, at best
423.03, and uniform play already has 413.48; normalised: (2, 1) of the mean, at best 2.1151, uniform play .0180. Either
one mind serves all, or each has its own. MF-Q (a table) feels the others' mean action; IQL is the same without it.

A score is the mean reward of the last tenth of a run, the temperature having sunk to where it stays; the interval is
`mfmarl.evaluation.statistics`' of the interquartile mean over runs, and a verdict is Holm-corrected over the forms.
In a game whose crowd is at rest a field adds nothing that could be known: no difference is what theory expects, but for
how often a mind freezes on its way down. Leaves squeeze.json, .png and .svg in `--out`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mfmarl.cli.progress import Progress
from mfmarl.envs.gaussian_squeeze import GaussianSqueeze
from mfmarl.errors import MfmarlError
from mfmarl.evaluation import statistics
from mfmarl.evaluation.averages import averages_while_learning
from mfmarl.evaluation.drawing import INK, SOFT, agent_rows, canvas, draw_interval, save, styles, subtitle, themed
from mfmarl.evaluation.results import write_text
from mfmarl.learning.build import build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAMES: dict[str, dict[str, Any]] = {
    "normalised": {"mu": 2.0, "sigma": 1.0, "normalised": True, "horizon": "none"},
    "published": {"mu": 400.0, "sigma": 200.0, "normalised": False, "horizon": "none"},
}
# In units of a game's reward: what one agent changes by one step of its action is some thousandths of it.
COOLING = {"normalised": "geometric(0.03, 0.001, 0.6)", "published": "geometric(2, 0.05, 0.6)"}
MINDS = {"one mind": "group", "a mind each": "none"}
AGENTS: dict[str, dict[str, Any]] = {"mfq": {"field": "moments(1) over everyone"}, "iql": {}}
Scores = dict[str, dict[str, list[float]]]


def form_name(game: str, minds: str) -> str:
    return f"{game}, {minds}"


def rules(game: str) -> GaussianSqueeze:
    return GaussianSqueeze.published(horizon=None) if game == "published" else GaussianSqueeze(horizon=None)


def score(game: str, minds: str, agent: str, given: argparse.Namespace, seed: int) -> float:
    """The mean reward of the last tenth of a run."""
    options = {"values": "table", "learning_rate": 0.02, "temperature": COOLING[game], **AGENTS[agent]}
    sharing: Any = MINDS[minds]
    copies = given.copies if sharing == "group" else 4
    run = RunOptions(steps=given.steps, copies=copies, seed=seed, sharing=sharing, evaluation_copies=0)
    config = RunConfig(Choice("gaussian_squeeze", GAMES[game]), {"all": Choice(agent, options)}, run)
    return averages_while_learning(build(config).training, round(0.9 * given.steps))["reward"].value


@themed
def draw(scores: Scores) -> Figure:
    style = styles(list(AGENTS), {"mfq": "iql"})
    figure, grid = canvas(10.4, 4.8, 2, 2)
    figure.subplots_adjust(left=0.06, right=0.98, top=0.88, bottom=0.1, wspace=0.12, hspace=0.75)
    for axes, (form, found) in zip(grid.flatten(), scores.items(), strict=True):
        game = form.split(",")[0]
        best = rules(game).optimum()[1]
        uniform = rules(game).expected_reward(np.full(10, 0.1))
        for row, (agent, runs) in enumerate(found.items()):
            draw_interval(axes, row, statistics.estimate([runs]), style[agent])
            axes.plot(
                runs, [row + 0.27] * len(runs), "o", color=style[agent].colour, alpha=0.45, markersize=4, markeredgewidth=0
            )  # fmt: skip
        agent_rows(axes, list(found), style)
        low = min(uniform, *(min(runs) for runs in found.values()))
        axes.set_xlim(low - 0.04 * (best - low), best + 0.03 * (best - low))
        for value, look in ((best, INK), (uniform, SOFT)):
            axes.axvline(value, color=look, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
        axes.set_title(form, pad=18)
        subtitle(axes, f"dashed: uniform play {uniform:.4g} and the optimum {best:.5g}")
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind (default: 10)")
    parser.add_argument("--steps", type=int, default=1500, help="rounds of each run (default: 1500)")
    parser.add_argument("--copies", type=int, default=16, help="crowds that one mind learns from (default: 16)")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce-squeeze"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="three runs of each kind")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    if given.quick:
        given.seeds = min(given.seeds, 3)
    if given.seeds < 2 or given.steps < 100 or given.copies < 1:
        parser.error("--seeds must be at least 2, --steps at least 100 and --copies at least 1.")
    return given


def main() -> int:
    given = arguments()
    scores: Scores = {}
    try:
        with Progress(given.quiet) as progress:
            progress.add("runs", len(GAMES) * len(MINDS) * len(AGENTS) * given.seeds)
            done = 0
            for game in GAMES:
                for minds in MINDS:
                    runs = scores.setdefault(form_name(game, minds), {agent: [] for agent in AGENTS})
                    for seed in range(given.seeds):
                        for agent in AGENTS:
                            runs[agent].append(score(game, minds, agent, given, seed))
                            done += 1
                            progress.update("runs", done, f"{form_name(game, minds)}: {agent} {seed}")
        gaps = {form: statistics.difference([f["mfq"]], [f["iql"]]) for form, f in scores.items()}
        adjusted = dict(zip(gaps, statistics.holm([gap.p for gap in gaps.values()]), strict=True))
        rows: list[dict[str, Any]] = []
        for form, found in scores.items():
            best = rules(form.split(",")[0]).optimum()[1]
            row: dict[str, Any] = {"form": form, "optimum": best, "runs": found}
            row |= {agent: statistics.estimate([runs])._asdict() for agent, runs in found.items()}
            row["difference"] = gaps[form]._asdict()
            row["verdict"] = statistics.verdict(gaps[form], adjusted[form])
            rows.append(row)
        stem = given.out / "squeeze"
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        write_text(Path(f"{stem}.json"), json.dumps({"settings": settings, "rows": rows}, indent=1))
        _, png = save(draw(scores), stem)
    except MfmarlError as error:
        print(f"squeeze: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        print(f"{row['form']} (optimum {row['optimum']:.4f})")
        for agent in AGENTS:
            e, values, best = row[agent], row["runs"][agent], row["optimum"]
            near = sum(value > (0.99 if best > 10 else 0.97) * best for value in values)
            print(f"    {agent}: {e['value']:.4f} ({e['low']:.4f} to {e['high']:.4f}), {e['value'] / best:.2%} of it; "
                  f"{near} of {len(values)} runs within {1 if best > 10 else 3} %; worst {min(values):.4f}")  # fmt: skip
        d = row["difference"]
        interval = f"{d['low']:.4f} to {d['high']:.4f}" if math.isfinite(d["low"]) else "no interval"
        print(f"    mfq - iql: {d['value']:+.4f} ({interval}): mfq is {row['verdict']}")
    print(f"figure: {png}\nnumbers: {stem}.json")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
