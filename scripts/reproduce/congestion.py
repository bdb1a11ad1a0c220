"""Drivers on four links learn the logit equilibrium at any temperature, and as they cool down Wardrop's, or the optimum.

python scripts/reproduce/congestion.py            # about ten CPU-minutes
python scripts/reproduce/congestion.py --quick    # about one

Links cost a + b x: a = (0, .2, .5, 1), b = (1, .8, .5, .25).
1. At a row of temperatures one mind for all learns by MF-Q (a table); shares and cost against the logit equilibrium,
   exact for this number of drivers, with and without tolls x b.
2. At T = .2 (beta = 5) every learner with its usual options; against .434, .348, .193, .025 of a crowd without end.
3. Cooling down from 1 to .001, each driver with a mind of its own, and policy optimisation with one for all: Wardrop's
   equilibrium (cost .5294), with tolls the social optimum (.4838).

Noise improves welfare: warm drivers without tolls pay less than greedy ones. Errors are the larger of those of copies
and of blocks of time, while learning goes on. Leaves congestion.json, .png and .svg in `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mfmarl.cli.progress import Progress
from mfmarl.envs.congestion import Congestion
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.averages import averages_while_learning
from mfmarl.evaluation.drawing import COLOURS, INK, SOFT, canvas, save, subtitle, themed
from mfmarl.evaluation.results import write_text
from mfmarl.learning.build import build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPERATURES = (0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mfq (table)": ("mfq", {"values": "table"}),
    "iql (table)": ("iql", {"values": "table"}),
    **{name: (name, {}) for name in ("mfq", "iql", "mfac", "iac", "mfppo", "ippo")},
}
COOLING = "geometric(1, 0.001, 0.8)"
SHARES = [f"share/{k}" for k in range(4)]
Row = dict[str, Any]


def learned(
    agent: str, options: dict[str, Any], temperature: str, given: argparse.Namespace, toll: bool = False,
    sharing: Any = "group", burn_in: float = 0.5, agents: int = 0,
) -> Row:  # fmt: skip
    """What a run settles at, each measure with its error."""
    steps = max(given.steps, 1500) if temperature == COOLING else given.steps  # faster, and they freeze on the way
    place = {"num_agents": agents or given.agents, "toll": toll, "horizon": "none"}
    run = RunOptions(
        steps=steps, copies=given.copies, seed=given.seed, sharing=sharing, evaluation_copies=0
    )  # fmt: skip
    config = RunConfig(
        Choice("congestion", place), {"all": Choice(agent, {**options, "temperature": temperature})}, run
    )
    found = averages_while_learning(build(config).training, round(burn_in * steps))
    return {name: list(found[name]) for name in [*SHARES, "cost", "reward"]}


@themed
def draw(rows: list[Row], cooled: list[Row], drivers: int) -> Figure:
    figure, [[left, right]] = canvas(10.4, 4.6, 1, 2)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.86, bottom=0.13, wspace=0.17)
    fine = np.geomspace(0.015, 2.6, 120)
    games = {toll: Congestion(drivers, toll=toll) for toll in (False, True)}
    shares = np.array([games[False].equilibrium(float(t), drivers) for t in fine])
    for link in range(4):
        left.plot(fine, shares[:, link], color=COLOURS[link], linewidth=1.3)
        seen = np.array([(row["temperature"], *row[f"share/{link}"]) for row in rows if not row["toll"]])
        left.errorbar(seen[:, 0], seen[:, 1], 2 * seen[:, 2], fmt="o", markersize=5, color=COLOURS[link], zorder=3)
        left.annotate(f"link {link}", (0.0155, shares[0, link] + 0.012), color=COLOURS[link], fontsize=9)
    for toll, colour, name in ((False, COLOURS[0], "no toll"), (True, COLOURS[2], "toll")):
        costs = [games[toll].cost(games[toll].equilibrium(float(t), drivers), drivers) for t in fine]
        right.plot(fine, costs, color=colour, linewidth=1.3)
        paid = np.array([(row["temperature"], *row["cost"]) for row in rows if row["toll"] == toll])
        right.errorbar(
            paid[:, 0], paid[:, 1], 2 * paid[:, 2], fmt="o", markersize=5, color=colour, zorder=3, label=name
        )
        ends = [row for row in cooled if row["toll"] == toll]
        for place, row in enumerate(ends):
            cost, spread = row["cost"]
            marker = "sD"[place % 2]
            right.errorbar(
                0.011 * 0.88**place, cost, 2 * spread, fmt=marker, markersize=6, color=colour, markerfacecolor="none", zorder=3
            )  # fmt: skip
    for level, text in ((0.529412, "Wardrop .5294"), (0.483824, "optimum .4838")):
        right.axhline(level, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        right.annotate(text, (0.045, level), xytext=(0, 3), textcoords="offset points", fontsize=9, color=INK)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks([0.02, 0.1, 0.5, 2], ["0.02", "0.1", "0.5", "2"])
        axes.minorticks_off()
        axes.set_xlabel("temperature of the drivers")
    left.set_title("Share of each link", pad=20)
    subtitle(left, f"lines: logit equilibrium of {drivers} drivers; points: learned by MF-Q, 95 % intervals")
    right.set_title("Mean cost", pad=20)
    subtitle(right, "hollow: cooled to .001 (square: a mind each; diamond: PPO)")
    right.legend(loc="upper left", frameon=False, fontsize=9, bbox_to_anchor=(0.12, 1.0), labelcolor=SOFT)
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=100, help="drivers in parts 1 and 2 (default: 100)")
    parser.add_argument("--steps", type=int, default=3000, help="days of each run (default: 3000)")
    parser.add_argument("--copies", type=int, default=4, help="crowds learned from side by side (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce-congestion"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="short runs, four temperatures")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.steps = min(known.steps, 800)
    if known.agents < 2 or known.copies < 2 or known.steps < 100:
        parser.error("--agents and --copies must be at least 2, --steps at least 100.")
    return known


def main() -> int:
    given = arguments()
    temperatures = TEMPERATURES[1::2] if given.quick else TEMPERATURES
    cooling: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("iql", {"values": "table"}, "none"),
        ("mfppo", {}, "group"),
    )
    rows: list[Row] = []
    every: list[Row] = []
    cooled: list[Row] = []
    try:
        with Progress(given.quiet) as progress:
            progress.add("runs", 2 * len(temperatures) + len(LEARNERS) + 2 * len(cooling))
            done = 0
            for temperature in temperatures:
                for toll in (False, True):
                    progress.update("runs", done, f"T = {temperature:g}")
                    # A colder crowd answers more steeply: with larger steps it would overshoot and waver.
                    table = {"values": "table", "learning_rate": min(0.05, temperature / 4)}
                    found = learned("mfq", table, str(temperature), given, toll)
                    rows.append({"temperature": temperature, "toll": toll, **found})
                    done += 1
            for name, (agent, options) in LEARNERS.items():
                progress.update("runs", done, f"{name} at T = 0.2")
                burn_in = 0.8 if agent in ("mfppo", "ippo") else 0.5  # whose rate sinks over the second half
                every.append({"learner": name, **learned(agent, options, "0.2", given, burn_in=burn_in)})
                done += 1
            for (agent, options, sharing), toll in ((c, t) for c in cooling for t in (False, True)):
                progress.update("runs", done, f"{agent}, cooling down")
                found = learned(agent, options, COOLING, given, toll, sharing, burn_in=0.85, agents=400)
                cooled.append({"learner": agent, "sharing": sharing, "toll": toll, **found})
                done += 1
            progress.update("runs", done)
        stem = given.out / "congestion"
        known = Congestion(given.agents).reference(0.2)
        theory = {name: known[name].value for name in [*SHARES, "cost"]}
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        numbers = {
            "settings": settings,
            "by_temperature": rows,
            "at_0.2": every,
            "theory_at_0.2": theory,
            "cooled": cooled,
        }
        write_text(Path(f"{stem}.json"), json.dumps(numbers, indent=1))
        _, png = save(draw(rows, cooled, given.agents), stem)
    except MfmarlError as error:
        print(f"congestion: {error}", file=sys.stderr)
        return error.exit_code
    print("At T = 0.2" + "".join(f"{name:>19}" for name in [*SHARES, "cost"]))
    print(f"{'theory':<14}" + "".join(f"{value:<19.4f}" for value in theory.values()))
    for row in every:
        print(f"{row['learner']:<14}" + "".join("{:.4f} +- {:.4f}   ".format(*row[name]) for name in theory))
    print("Cooled down to T = 0.001")
    for row in cooled:
        wanted = 0.483824 if row["toll"] else 0.529412
        print(f"{row['learner']:<8} sharing={row['sharing']:<6} {'toll' if row['toll'] else 'no toll':<8} "
              "cost {:.4f} +- {:.4f}".format(*row["cost"]) + f"   theory {wanted:.4f}")  # fmt: skip
    print(f"figure: {png}\nnumbers: {stem}.json")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
