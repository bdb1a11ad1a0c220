r"""Solvers that learn from samples beside the exact ones they approximate, and a policy for crowds it never saw.

python scripts/reproduce/deep_equilibria.py            # about five CPU-minutes
python scripts/reproduce/deep_equilibria.py --quick    # about one: two seeds, half the iterations

1. Exploitability by iteration on a beach, left-right and an epidemic over 50 decisions: Munchausen mirror descent with a
   network against mirror descent at the same rate, average-policy fictitious play with networks against fictitious play
   (equal iterations), and mean-field PPO, all seeds of a method side by side. Lauriere et al. 2022 (arXiv 2203.11973);
   Algumaei et al. 2023 (arXiv 2304.01547).
2. One network that sees the crowd, taught by 16 distributions at the start of a beach, asked about 8 new ones; against
   one that was taught the even distribution. Perrin et al. 2022 (arXiv 2109.09717).

Exploitability is exact in all cases: a network's policy is tabulated on every state and time.
Leaves report.html, numbers.json and figures/ in `--out`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mfmarl.cli.progress import Progress
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.drawing import COLOURS, INK, SOFT, canvas, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.games.exploitability import exploitability, of_flow
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.deep_fictitious_play import DeepFictitiousPlay
from mfmarl.games.solvers.deep_mirror_descent import DeepMirrorDescent
from mfmarl.games.solvers.deep_ppo import DeepPPO
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.random import Key, exponential

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GAMES: dict[str, tuple[MeanFieldGame, float]] = {
    "beach": (BeachBar(), 1.0),
    "left-right": (LeftRight(), 1.0),
    "epidemic": (SusceptibleInfected(), 10.0),
}
"""With the temperature tau of mirror descent, in units of its values."""
PAIRS = {"deep_omd": "omd", "deep_fp": "fp", "deep_ppo": ""}
Curves = dict[str, dict[str, list[tuple[int, list[float]]]]]


def solver(name: str, tau: float, seed: int) -> Solver:
    makers: dict[str, Solver] = {
        "deep_omd": DeepMirrorDescent(temperature=tau, seed=seed),
        "deep_fp": DeepFictitiousPlay(seed=seed),
        "deep_ppo": DeepPPO(seed=seed),
        "omd": MirrorDescent(rate=1 / tau),
        "fp": FictitiousPlay(),
    }
    return makers[name]


def curve(game: MeanFieldGame, method: Solver, given: argparse.Namespace, seeds: int) -> list[tuple[int, list[float]]]:
    """(iteration, exploitability of each seed)."""
    found = solve(game, method, given.iterations, tolerance=0, every=2, batch=(seeds,))
    return [(row["iteration"], row["exploitability"]) for row in found.rows]


def plain_numbers(axis: Axis) -> None:
    """Of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


@themed
def draw(curves: Curves) -> Figure:
    figure, grid = canvas(10.4, 4.0, 1, len(curves))
    figure.subplots_adjust(left=0.07, right=0.985, top=0.82, bottom=0.15, wspace=0.26)
    for axes, (name, methods) in zip(grid.flat, curves.items(), strict=True):
        for colour, (deep, exact) in zip(COLOURS, PAIRS.items(), strict=False):
            for method, dashes in ((deep, "-"), (exact, (0, (5, 3)))):
                if method:
                    k, each = zip(*methods[method], strict=True)
                    rows = np.maximum(np.array(each), 1e-6)
                    axes.semilogy(k, rows.mean(1), color=colour, linewidth=1.5, linestyle=dashes, label=method)
                    axes.fill_between(k, rows.min(1), rows.max(1), color=colour, alpha=0.15, linewidth=0)
        plain_numbers(axes.yaxis)
        axes.set_xlabel("iteration")
        axes.set_title(name, pad=20)
        subtitle(axes, "mean and range of seeds; dashed: exact")
    grid.flat[0].legend(frameon=False, fontsize=8, loc="lower left")
    grid.flat[0].set_ylabel("exploitability")
    return figure


# ------------------------------------------------------------------------------------------ crowds never seen


def crowds(count: int, places: int, key: Key) -> Tensor:
    """Distributions drawn evenly from the simplex, [count, 1, places]."""
    drawn = exponential(key, torch.arange(count), places).to(torch.float64)
    return (drawn / drawn.sum(-1, keepdim=True)).unsqueeze(1)


def gap_from(game: MeanFieldGame, policy: Tensor, start: Tensor) -> float:
    return float(of_flow(game, flow(game, policy, start)).exploitability)


def master(given: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """Exploitability from each new distribution, of who sees the crowd, of who does not, and of uniform choice."""
    plain = BeachBar(places=6, bar=3, horizon=4, floor=1e-3)
    watching = replace(plain, sight="crowd")
    taught, asked = crowds(16, 6, Key.of(seed).fold("taught")), crowds(8, 6, Key.of(seed).fold("asked"))
    many = DeepMirrorDescent(temperature=1.0, agents=20, starts=taught, seed=seed)
    one = DeepMirrorDescent(temperature=1.0, seed=seed)
    with torch.no_grad():
        knows, fixed = many.begin(watching, uniform(watching)), one.begin(plain, uniform(plain))
        for k in range(1, given.iterations + 1):
            knows, fixed = many.step(watching, knows, k), one.step(plain, fixed, k)
        return {
            "sees the crowd": [gap_from(watching, many.policy_from(watching, knows, mu), mu) for mu in asked],
            "does not": [gap_from(plain, one.policy(plain, fixed), mu) for mu in asked],
            "uniform": [gap_from(plain, uniform(plain), mu) for mu in asked],
        }


@themed
def draw_master(found: list[dict[str, list[float]]]) -> Figure:
    figure, grid = canvas(5.6, 4.0)
    figure.subplots_adjust(left=0.13, right=0.97, top=0.84, bottom=0.14)
    axes = grid.flat[0]
    mine = [x for run in found for x in run["sees the crowd"]]
    other = [x for run in found for x in run["does not"]]
    axes.loglog(other, mine, "o", color=COLOURS[0], markersize=5, alpha=0.7, markeredgewidth=0)
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    edge = [0.5 * min(mine + other), 2 * max(mine + other)]
    axes.plot(edge, edge, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
    axes.set_xlabel("taught the even distribution alone", color=SOFT)
    axes.set_ylabel("sees the crowd, taught 16 others")
    axes.set_title("Exploitability from starts never seen", pad=20)
    subtitle(axes, "each point a distribution at the start; below the line seeing is better")
    return figure


# --------------------------------------------------------------------------------------------------- the page


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each method, side by side (default: 5)")
    parser.add_argument("--iterations", type=int, default=40, help="of each method (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of all noise (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce-deep-equilibria"), help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="two seeds and 20 iterations")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    given = parser.parse_args()
    if given.quick:
        given.seeds, given.iterations = min(given.seeds, 2), min(given.iterations, 20)
    if given.seeds < 2 or given.iterations < 2:
        parser.error("--seeds and --iterations must be at least 2.")
    return given


def sections(curves: Curves, found: list[dict[str, list[float]]]) -> list[Section]:
    rows = []
    for game, methods in curves.items():
        for name, points in methods.items():
            last = np.array(points[-1][1])
            error = f"{last.std(ddof=1) / len(last) ** 0.5:.2g}" if name in PAIRS else "–"
            rows.append([game, name, f"{points[0][1][0]:.4g}", f"{last.mean():.4g}", error])
    asked = [[kind, *(f"{f([x for run in found for x in run[kind]]):.3g}" for f in (np.mean, np.median, np.max))]
             for kind in found[0]]  # fmt: skip
    return [
        Section(
            "By iteration",
            "Each deep method follows the exact one whose steps it samples. Mirror descent and fictitious play are at equal "
            "iterations; an iteration of PPO has four rounds of sampling amid one crowd.",
            Table(["game", "method", "uniform", "at the end", "standard error"], rows), draw(curves), "curves",
            "Logarithmic scale; values below 1e-6 are drawn there.",
        ),
        Section(
            "Crowds never seen",
            "A policy that is a function of the crowd answers new distributions at the start; one that knows its state and "
            "the time alone is right for the distribution it was taught.",
            Table(["policy", "mean", "median", "worst"], asked), draw_master(found), "never-seen",
        ),
    ]  # fmt: skip


def main() -> int:
    given = arguments()
    curves: Curves = {}
    found = []
    try:
        with Progress(given.quiet) as progress:
            progress.add("methods", len(GAMES) * 5 + given.seeds)
            done = 0
            for name, (game, tau) in GAMES.items():
                curves[name] = {}
                for method in (method for pair in PAIRS.items() for method in pair if method):
                    seeds = given.seeds if method in PAIRS else 1
                    curves[name][method] = curve(game, solver(method, tau, given.seed), given, seeds)
                    done += 1
                    progress.update("methods", done, f"{name}: {method}")
            for seed in range(given.seed, given.seed + given.seeds):
                found.append(master(given, seed))
                done += 1
                progress.update("methods", done, f"crowds never seen, seed {seed}")
        page = write_experiment(
            given.out, "Equilibria from samples",
            "Networks and sampled paths beside exact solvers of mean-field games, judged by exact exploitability.",
            sections(curves, found),
            {"curves": curves, "never_seen": found, "seeds": given.seeds, "iterations": given.iterations},
        )  # fmt: skip
    except MfmarlError as error:
        print(f"deep_equilibria: {error}", file=sys.stderr)
        return error.exit_code
    for name, methods in curves.items():
        game = GAMES[name][0]
        print(f"{name} (uniform {float(exploitability(game, uniform(game))):.4f})")
        for method, points in methods.items():
            last = np.array(points[-1][1])
            spread = f" +- {last.std(ddof=1) / len(last) ** 0.5:.4f}" if len(last) > 1 else ""
            print(f"    {method:<9} {last.mean():.4f}{spread}")
    for kind in found[0]:
        print(f"starts never seen: {kind:<15} {np.mean([x for run in found for x in run[kind]]):.4f}")
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
