"""A trained population's susceptibility peaks at the Ising transition, by fluctuations and by incentives alike.

    python scripts/reproduce/susceptibility.py            # about six CPU-minutes
    python scripts/reproduce/susceptibility.py --quick    # about one

At each of a row of temperatures, spins on a torus learn by MF-Q; then their policies are frozen and `diagnose` measures
chi = N Var(m)/T and dm/dh. Beside them heat-bath spins that follow the rules themselves, on as many tori for as long,
with the same estimator. The agents' temperature is tau = 2 T of the physicist, whose pairs are counted once:
T_c = 2/ln(1 + sqrt 2) becomes tau_c = 1.1346.
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
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.drawing import COLOURS, INK, canvas, save, subtitle, themed
from mfmarl.evaluation.results import write_text
from mfmarl.learning.build import build, open_population
from mfmarl.learning.diagnosis import diagnose, fluctuation
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.exact.ising import SQUARE_CRITICAL_TEMPERATURE
from mfmarl.statmech.sampling import chains, single_spin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPERATURES = (0.8, 0.95, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.6, 2.0)
CRITICAL = SQUARE_CRITICAL_TEMPERATURE / 2
Row = dict[str, Any]


def learned(temperature: float, given: argparse.Namespace) -> Row:
    place = {"num_agents": given.side**2, "start": "ordered"}
    options = {"temperature": str(temperature)}
    run = RunOptions(steps=given.steps, copies=4, seed=given.seed, evaluation_copies=0)
    config = RunConfig(Choice("ising", place), {"all": Choice("mfq", options)}, run)
    built = build(config)
    for _ in built.training.rows():
        continue
    env = open_population(config, given.copies, built.env.device)
    key = Key.of(given.seed).fold("diagnose", str(temperature))
    return diagnose(env, built.players, key, given.measured, given.measured // 5)["all"].to_table()


def by_the_rules(temperature: float, given: argparse.Namespace) -> Row:
    """Heat bath of H = -(1/2) sum of pairs at that temperature: what the agents are paid. Sweeps of two colours."""
    system = spins.ising(graphs.torus(given.side, given.side), given.side**2, 0.5).to(torch.float32)
    start = torch.ones(given.copies, system.num_spins)
    key = Key.of(given.seed).fold("heat bath", str(temperature))
    # A step of the environment moves one colour: half a sweep.
    _, m = chains.run(
        single_spin.heat_bath(system), start, 1 / temperature, key, given.measured // 2,
        lambda s: s.mean(-1).double(), warm_up=given.measured // 10,
    )  # fmt: skip
    return fluctuation(m, temperature, system.num_spins)[0]._asdict()


@themed
def draw(rows: list[Row], side: int) -> Figure:
    figure, [[axes]] = canvas(7.6, 4.6)
    figure.subplots_adjust(left=0.09, right=0.97, top=0.86, bottom=0.12)
    t = np.array([row["temperature"] for row in rows])

    def column(name: str) -> np.ndarray:
        return np.array([(row[name]["value"], row[name]["error"]) for row in rows])

    law, chi, answer = column("heat_bath"), column("susceptibility"), column("response")
    axes.fill_between(
        t, law[:, 0] - 2 * law[:, 1], law[:, 0] + 2 * law[:, 1], color=COLOURS[0], alpha=0.18, linewidth=0
    )
    axes.plot(t, law[:, 0], color=COLOURS[0], linewidth=1.3, label="heat bath by the rules")
    axes.errorbar(t, chi[:, 0], 2 * chi[:, 1], fmt="o", markersize=5, color=COLOURS[1], label="learned: N Var(m)/T")
    # Where copies change sides under the incentive, the answer is not that of one phase: too wide to be drawn.
    seen = answer[:, 1] < 0.5 * np.abs(answer[:, 0])
    axes.errorbar(
        t[seen] * 1.008, answer[seen, 0], 2 * answer[seen, 1], fmt="s", markersize=5, markerfacecolor="none",
        color=COLOURS[2], label="learned: dm/dh",
    )  # fmt: skip
    axes.axvline(CRITICAL, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate("critical 1.1346 (infinite)", (CRITICAL, 1), xycoords=("data", "axes fraction"), xytext=(-4, -10),
                  textcoords="offset points", ha="right", fontsize=9, color=INK)  # fmt: skip
    axes.set_yscale("log")
    axes.set_yticks([0.1, 0.3, 1, 3, 10, 30, 100], ["0.1", "0.3", "1", "3", "10", "30", "100"])
    axes.minorticks_off()
    axes.set_xlabel("temperature of acting")
    axes.set_title("Susceptibility of a population of learned spins", pad=20)
    subtitle(axes, f"{side} x {side} agents, MF-Q, policies frozen; 95 % intervals")
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=20, help="of the torus (default: 20)")
    parser.add_argument("--steps", type=int, default=1500, help="of learning (default: 1500)")
    parser.add_argument("--measured", type=int, default=3000, help="steps measured (default: 3000)")
    parser.add_argument("--copies", type=int, default=32, help="tori measured side by side (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce-susceptibility"), help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="short runs, five temperatures")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args()
    if known.quick:
        known.measured, known.steps = min(known.measured, 1000), min(known.steps, 800)
    if known.side < 3 or known.copies < 2 or known.measured < 100:
        parser.error("--side must be at least 3, --copies 2, --measured 100.")
    return known


def main() -> int:
    given = arguments()
    temperatures = TEMPERATURES[1::2] if given.quick else TEMPERATURES
    rows: list[Row] = []
    try:
        with Progress(given.quiet) as progress:
            progress.add("temperatures", len(temperatures))
            for number, temperature in enumerate(temperatures):
                progress.update("temperatures", number, f"T = {temperature:g}")
                found = {"temperature": temperature, "heat_bath": by_the_rules(temperature, given)}
                rows.append({**found, **learned(temperature, given), "temperature": temperature})
            progress.update("temperatures", len(temperatures))
        stem = given.out / "susceptibility"
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        write_text(Path(f"{stem}.json"), json.dumps({"settings": settings, "rows": rows}, indent=1))
        _, png = save(draw(rows, given.side), stem)
    except MfmarlError as error:
        print(f"susceptibility: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{'T':<8}{'heat bath':<20}{'N Var(m)/T':<20}{'dm/dh':<20}{'|m|':<20}memory, steps")
    for row in rows:
        cells = ["{value:.4g} +- {error:.2g}".format(**row[name]) for name in ("heat_bath", "susceptibility", "response", "order")]  # fmt: skip
        print(
            f"{row['temperature']:<8g}"
            + "".join(f"{cell:<20}" for cell in cells)
            + f"{row['autocorrelation_time']:.3g}"
        )
    peak = max(rows, key=lambda row: row["susceptibility"]["value"])
    print(f"peak at T = {peak['temperature']:g}; infinite lattice: {CRITICAL:.4f}\nfigure: {png}\nnumbers: {stem}.json")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
