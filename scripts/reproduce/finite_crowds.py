r"""How the gaps and values of N agents go to those of infinitely many: 1/N, or 1/sqrt(N) for who sees the crowd.

python scripts/reproduce/finite_crowds.py            # about a CPU-minute
python scripts/reproduce/finite_crowds.py --quick    # a few seconds

1. The limit's equilibrium, kept by N agents: what an informed deviator gains (it sees all counts), what one gains that
   sees its own state and the time alone, and how far the value is from the limit's. All by enumeration, on
   the epidemic without end (closed-form equilibrium), a beach of three places, and left-right.
2. Left-right's own equilibrium of N players, (2N - 1) / (3 (N - 1)), against the limit's 2/3: exactly 1 / (3 (N - 1)) off.
3. A policy of mirror descent on the epidemic over 51 decisions whose gap in the limit is .383: 4.22 at N = 20.

Where the equilibrium is indifferent between actions, fluctuations of order 1/sqrt(N) make one of them better, and an
informed deviator takes it; one's own weight in the crowd, and the mean of rewards over fluctuations, count 1/N.
Leaves report.html, numbers.json and figures/ in `--out`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.drawing import COLOURS, INK, canvas, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.games import finite
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.reference import nash
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]
MEASURES = {"informed": "gain, sees the crowd", "uninformed": "gain, sees itself", "value": "value less the limit's"}


def epidemic() -> tuple[MeanFieldGame, Tensor]:
    """Without end, with its equilibrium in closed form: the infected go out, the susceptible with probability .60012."""
    game = SusceptibleInfected(horizon=None, discount=0.99)
    infected = 0.5 * (1 - 0.99 * 0.7) / (0.99 * 0.81 * 0.5)
    out = 0.3 / (0.81 * (1 - infected))
    policy = uniform(game)
    policy[0, 0] = torch.tensor([[out, 1 - out], [1.0, 0.0]], dtype=torch.float64)
    return game, policy


def beach() -> tuple[MeanFieldGame, Tensor]:
    game = BeachBar(places=3, bar=0, calm=0.9)
    return game, nash(game).policy


def sides() -> tuple[MeanFieldGame, Tensor]:
    game = LeftRight()
    policy = uniform(game)
    policy[:, :, 0] = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    return game, policy


CASES = {"epidemic without end": epidemic, "beach of three places": beach, "left-right": sides}
CROWDS = {
    "epidemic without end": (40, 80, 160, 320, 640, 1000),
    "beach of three places": (10, 20, 40, 60, 80, 120),
    "left-right": (10, 20, 40, 80, 120),
}


def gaps(game: MeanFieldGame, policy: Tensor, agents: int) -> Row:
    """What deviators gain among so many, and by how much the value is off."""
    found = finite.gap(game, policy, agents, budget=3e9)
    row = {
        "agents": float(agents),
        "informed": found.exploitability,
        "value": abs(found.value - found.limit_value),
    }
    if not game.crowd_moves and game.horizon is not None:
        row["uninformed"] = finite.uninformed(game, policy, agents).exploitability
    return row


def slope(rows: list[Row], measure: str) -> float:
    """Of log(measure) over log(N), by least squares over the larger half of the crowds; NaN where it is not measured."""
    late = [(r["agents"], r[measure]) for r in rows[len(rows) // 2 :] if r.get(measure, 0.0) > 1e-13]
    if len(late) < 2:
        return float("nan")
    n, y = np.log(np.array(late)).T
    return float(np.polyfit(n, y, 1)[0])


@themed
def draw(found: dict[str, list[Row]]) -> Figure:
    from matplotlib.ticker import LogLocator, NullLocator

    figure, grid = canvas(10.4, 3.9, 1, len(found))
    figure.subplots_adjust(left=0.06, right=0.985, top=0.82, bottom=0.15, wspace=0.22)
    for axes, (name, rows) in zip(grid.flat, found.items(), strict=True):
        for colour, (measure, text) in zip(COLOURS, MEASURES.items(), strict=False):
            points = [(r["agents"], r[measure]) for r in rows if r.get(measure, 0.0) > 1e-13]
            if points:
                n, y = np.array(points).T
                told = f"{text}: slope {slope(rows, measure):.2f}"
                axes.loglog(n, y, "o-", color=colour, markersize=4.5, linewidth=1.4, label=told)
                exponent = -0.5 if slope(rows, measure) > -0.75 else -1.0
                axes.loglog(n, y[-1] * (n / n[-1]) ** exponent, color=INK, linewidth=0.8, linestyle=(0, (5, 3)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("number of agents")
        axes.set_title(name, pad=20)
        subtitle(axes, "dashed: slopes of -1/2 and -1")
        axes.set_ylim(top=4 * axes.get_ylim()[1])
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def anchor(crowds: tuple[int, ...]) -> tuple[float, list[Row]]:
    """The policy of mirror descent whose gap in the limit is .383, and its gaps."""
    game = SusceptibleInfected(horizon=51)
    policy = solve(game, MirrorDescent(rate=0.1), 100, every=100).last
    rows = [{"agents": float(n), "informed": finite.gap(game, policy, n).exploitability} for n in crowds]
    return float(exploitability(game, policy)), rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce-finite-crowds"), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="without the largest crowds")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    try:
        found: dict[str, list[Row]] = {}
        for name, make in CASES.items():
            game, policy = make()
            crowds = CROWDS[name][:-2] if given.quick else CROWDS[name]
            found[name] = [gaps(game, policy, n) for n in crowds]
        limit, rows = anchor((20, 100, 200) if given.quick else (20, 50, 100, 200, 500))
        own = [{"agents": float(n), "off": (2 * n - 1) / (3 * (n - 1)) - LeftRight().left(), "gap": own_gap(n)}
               for n in (4, 10, 40)]  # fmt: skip
        page = write_experiment(
            given.out, "N agents and infinitely many",
            "The equilibrium of the limit, kept by N agents: what one of them gains by leaving it, exactly.",
            sections(found, limit, rows, own), {"cases": found, "anchor": {"limit": limit, "rows": rows}, "own": own},
        )  # fmt: skip
    except MfmarlError as error:
        print(f"finite_crowds: {error}", file=sys.stderr)
        return error.exit_code
    for name, lines in found.items():
        print(name)
        for line in lines:
            print(
                "  N = {:<6.0f}".format(line["agents"])
                + "".join(f"{m} {line[m]:<14.6g}" for m in MEASURES if m in line)
            )
        print("  slopes    " + "".join(f"{m} {slope(lines, m):<14.3f}" for m in MEASURES if m in lines[0]))
    print(f"mirror descent on the epidemic: {limit:.4g} in the limit, " + ", ".join(
        f"{r['informed']:.4g} at N = {r['agents']:.0f}" for r in rows))  # fmt: skip
    print(f"report: {page}")
    return 0


def own_gap(agents: int) -> float:
    """What is left to gain from left-right's own equilibrium of N players: nothing."""
    game = LeftRight(num_agents=agents)
    left = game.left(agents=agents)
    policy = uniform(game)
    policy[:, :, 0] = torch.tensor([left, 1 - left], dtype=torch.float64)
    return finite.gap(game, policy).exploitability


def sections(found: dict[str, list[Row]], limit: float, rows: list[Row], own: list[Row]) -> list[Section]:
    cells: list[Any] = []
    for name, lines in found.items():
        for line in lines:
            cells.append([name, f"{line['agents']:.0f}", *(f"{line[m]:.4g}" if m in line else "–" for m in MEASURES)])
        cells.append([name, "slope", *(f"{slope(lines, m):.2f}" if m in lines[0] else "–" for m in MEASURES)])
    apart = [["left-right", f"{r['agents']:.0f}", f"{r['off']:.6g}", f"{abs(r['gap']):.1g}"] for r in own]
    return [
        Section(
            "How gaps fall with N",
            "Values and uninformed gains are off by 1/N; who sees the crowd gains 1/sqrt(N) wherever the equilibrium is "
            "indifferent between actions, because fluctuations decide between them.",
            Table(["game", "N", *MEASURES.values()], cells), draw(found), "slopes", "Logarithmic scales on both axes.",
        ),
        Section(
            "The equilibrium of N players", "Of left-right it is known: (2N - 1) / (3 (N - 1)) go left, and nobody gains.",
            Table(["game", "N", "share left less 2/3", "gap"], apart),
        ),
        Section(
            "A small gap in the limit",
            f"Mirror descent (rate .1, 100 iterations) on the epidemic over 51 decisions leaves {limit:.4g} in the limit.",
            Table(["N", "gap of an informed deviator"], [[f"{r['agents']:.0f}", f"{r['informed']:.4g}"] for r in rows]),
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
