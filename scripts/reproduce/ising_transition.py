"""The phase transition of learned spins, which is Onsager's or the mean field's as the order of moves has it.

python scripts/reproduce/ising_transition.py            # about five CPU-minutes
python scripts/reproduce/ising_transition.py --quick    # about one

MF-Q (a table of 5 x 2 x 2 values that all spins share) learns on a torus at a row of temperatures tau, each run from
scratch, in checkerboard order and with all spins moving at once; so does IQL, which feels no neighbours. Drawn against
 - the heat bath: spins that know what a move is worth and answer at tau, simulated on the same torus (a grey band);
 - Yang 1952: m of the infinite lattice, m = (1 - sinh(1/tau)^-4)^(1/8), tau_c = 1/ln(1 + sqrt 2) = 1.1346 (Onsager 1944);
 - the mean field: m = tanh(2 m / tau), tau_c = 2, with <|m|> of as many independent spins above it.

Values start at zero, so the first choices are uniform and order has to grow, ever more slowly towards a transition:
near tau = 2 give it more `--steps`.
Averages are over the second half of each run while it goes on learning; errors are the larger of those of copies and of
blocks of time. Leaves ising_transition.json, .png and .svg in `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mfmarl import random
from mfmarl.cli.progress import Progress
from mfmarl.envs.ising import Ising
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.averages import Average, average, averages_while_learning
from mfmarl.evaluation.drawing import COLOURS, INK, NEUTRAL, PAPER, SOFT, canvas, save, subtitle, themed
from mfmarl.evaluation.results import write_text
from mfmarl.learning.build import build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.statmech.exact import ising as ising_exact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = {
    "mfq checkerboard": ("mfq", "checkerboard"),
    "iql checkerboard": ("iql", "checkerboard"),
    "mfq synchronous": ("mfq", "synchronous"),
}
TAUS = (0.8, 0.9, 1.0, 1.07, 1.1346, 1.2, 1.3, 1.4, 1.5, 1.65, 1.8, 1.9, 2.0, 2.2)
FEW = (0.9, 1.0, 1.1346, 1.3, 1.5, 1.6, 2.6)


def learned(agent: str, order: str, side: int, tau: float, steps: int, copies: int, seed: int) -> dict[str, Average]:
    """What a run settles at: |m|, energy and reward, averaged over its second half."""
    options = {"num_agents": side * side, "shape": [side, side], "order": order, "start": "ordered"}
    mind = Choice(agent, {"values": "table", "temperature": str(tau)})
    run = RunOptions(steps=steps, copies=copies, seed=seed, evaluation_copies=0)
    return averages_while_learning(build(RunConfig(Choice("ising", options), {"all": mind}, run)).training, steps // 2)


@torch.no_grad()
def heat_bath(side: int, tau: float, steps: int, copies: int, seed: int) -> Average:
    """<|m|> of spins that know their neighbours and answer them at tau, in checkerboard order."""
    rules = Ising(side * side, shape=(side, side), start="ordered")
    simulation = Simulation(rules, copies, check=False)
    timestep = simulation.reset(Key.of(seed))
    total = torch.zeros(copies, dtype=torch.float64)
    burn = steps // 4
    for step in range(burn + steps):
        spin = (2 * timestep.action - 1).to(torch.int8)
        assert rules.links is not None
        chance = torch.sigmoid(rules.links.neighbour_sum(spin).float() / tau)
        up = random.uniform(simulation.key.fold("policy", step), simulation.ids) < chance
        timestep = simulation.step(up.long())
        if step >= burn:
            total += simulation.measure()["magnetisation"] / steps
    return average(total)


@themed
def draw(found: dict[str, dict[float, Average]], side: int) -> Figure:
    figure, [[axes]] = canvas(8.2, 4.8)
    figure.subplots_adjust(left=0.08, right=0.97, top=0.87, bottom=0.12)
    bath = sorted(found["heat bath"].items())
    low, high = bath[0][0], bath[-1][0]
    fine = np.linspace(low - 0.03, high + 0.03, 600)
    yang = [ising_exact.square_magnetisation(2 * t) for t in fine]
    field = [ising_exact.curie_weiss(t, 0.0, 2.0) for t in fine]
    axes.plot(fine, yang, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
    axes.plot(fine, field, color=INK, linewidth=1.2, zorder=2)
    taus = [t for t, _ in bath]
    axes.fill_between(
        taus,
        [m.value - 2 * m.error - 0.006 for _, m in bath],
        [m.value + 2 * m.error + 0.006 for _, m in bath],
        color=NEUTRAL,
        alpha=0.35,
        linewidth=0,
        zorder=1,
    )
    looks = {
        "mfq checkerboard": (COLOURS[0], "o", True),
        "iql checkerboard": (COLOURS[0], "o", False),
        "mfq synchronous": (COLOURS[1], "s", True),
    }
    for name, (colour, marker, filled) in looks.items():
        row = sorted(found[name].items())
        shift = 0.008 if name == "iql checkerboard" else 0.0  # beside the squares that it would hide
        axes.errorbar(
            [t + shift for t, _ in row],
            [m.value for _, m in row],
            [2 * m.error for _, m in row],
            fmt=marker,
            color=colour,
            markerfacecolor=colour if filled else PAPER,
            markersize=5.5,
            markeredgewidth=1.3,
            elinewidth=1.3,
            zorder=4,
            label=name,
        )
    onsager = ising_exact.potts_critical_temperature(2)
    for place, text, y in ((onsager, "Onsager, 1.1346 ", 0.08), (2.0, "mean field, 2 ", 0.9)):
        axes.axvline(place, color=SOFT, linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(text, (place, y), ha="right", fontsize=9, color=SOFT)
    axes.annotate("Yang, infinite lattice ", (onsager - 0.01, 0.55), ha="right", color=INK, fontsize=9)
    axes.annotate(f"heat bath on {side} x {side}", (1.32, 0.27), color=SOFT, fontsize=9)
    axes.annotate("m = tanh(2m/tau)", (1.72, 0.66), color=INK, fontsize=9)
    axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.32), frameon=False, fontsize=9)
    axes.set_ylim(-0.02, 1.05)
    axes.set_xlim(fine[0], fine[-1])
    axes.set_xlabel("temperature tau of the agents")
    axes.set_ylabel("|magnetisation|")
    axes.set_title("Who moves when decides which transition is learned", pad=20)
    subtitle(axes, f"{side} x {side} torus; points: learned, with 95 % intervals; lines and band: theory")
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20, help="side of the torus, even (default: 20)")
    parser.add_argument("--steps", type=int, default=3000, help="environment steps of each run (default: 3000)")
    parser.add_argument("--copies", type=int, default=12, help="lattices learned from side by side (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce-ising-transition"), help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="seven temperatures, short runs")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.steps, known.copies = min(known.steps, 1200), min(known.copies, 6)
    if known.side < 4 or known.side % 2:
        parser.error(f"--side must be even and at least 4, not {known.side}.")
    if known.steps < 40 or known.copies < 2:
        parser.error("--steps must be at least 40 and --copies at least 2.")
    return known


def main() -> int:
    known = arguments()
    torch.set_num_threads(1)
    taus = FEW if known.quick else TAUS
    found: dict[str, dict[float, Average]] = {"heat bath": {}, **{name: {} for name in SERIES}}
    rows: list[dict[str, Any]] = []
    try:
        with Progress(known.quiet) as progress:
            progress.add("temperatures", len(taus) * (len(SERIES) + 1))
            done = 0
            for tau in taus:
                oracle = heat_bath(known.side, tau, known.steps, known.copies, known.seed)
                found["heat bath"][tau] = oracle
                rows.append({"series": "heat bath", "tau": tau, "magnetisation": oracle.value, "error": oracle.error})
                for name, (agent, order) in SERIES.items():
                    done += 1
                    progress.update("temperatures", done, f"tau = {tau:g}, {name}")
                    mine = learned(agent, order, known.side, tau, known.steps, known.copies, known.seed)
                    found[name][tau] = mine["magnetisation"]
                    rules = Ising(known.side**2, shape=(known.side, known.side), order=order)  # type: ignore[arg-type]
                    theory = rules.reference(tau) if agent == "mfq" else rules.reference_independent(tau)
                    row: dict[str, Any] = {"series": name, "tau": tau}
                    for measure in ("magnetisation", "energy", "reward"):
                        row[measure], row[f"{measure}/error"] = mine[measure]
                        if measure in theory:
                            row[f"{measure}/theory"] = theory[measure].value
                    rows.append(row)
                done += 1
                progress.update("temperatures", done)
        stem = known.out / "ising_transition"
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(known).items()}
        write_text(Path(f"{stem}.json"), json.dumps({"settings": settings, "rows": rows}, indent=1))
        _, png = save(draw(found, known.side), stem)
    except MfmarlError as error:
        print(f"ising_transition: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{'tau':>7} {'heat bath':>20} " + " ".join(f"{name:>20}" for name in SERIES) + f" {'tanh law':>9}")
    for tau in taus:
        law = ising_exact.curie_weiss(tau, 0.0, 2.0)
        print(f"{tau:7.4f} {found['heat bath'][tau]!s:>20} " + " ".join(f"{found[n][tau]!s:>20}" for n in SERIES) + f" {law:9.4f}")  # fmt: skip
    print(f"figure: {png}\nnumbers: {stem}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
