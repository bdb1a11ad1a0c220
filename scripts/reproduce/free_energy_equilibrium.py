r"""Mean-field equilibria of expected free energy: what is left to gain, whether undamped iteration reaches them, N agents.

python scripts/reproduce/free_energy_equilibrium.py            # about three CPU-minutes
python scripts/reproduce/free_energy_equilibrium.py --quick    # some ten seconds

1. Games by precisions gamma: the gap of agents who pay 1/gamma for each nat from their habit, which is 0 at the
   equilibrium; what one gains who pays nothing; the spectral radius of the undamped iteration; and how far N agents of
   that policy are from the limit, E |mu_N - mu|_1, over 24 independent populations: its slope in N, -1/2 in theory.
2. Four arms with g = c - 3 mu, c = .2, .4, .6, .8: undamped iteration settles below gamma = 1.1754 and goes round with
   period two above; with weight .1 it settles at 8.
3. A look at one's own state: the same beach for bathers who see where they are with an accuracy, with and without
   information worth itself.

Equilibria of high gamma are followed from those of lower ones. Leaves report.html, numbers.json and figures/ in `--out`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.contraction import Contraction
from mfmarl.envs.crowd_modelling import CrowdModelling
from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.envs.rock_paper_scissors import RockPaperScissors
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import MfmarlError
from mfmarl.evaluation.drawing import COLOURS, INK, canvas, subtitle, themed
from mfmarl.evaluation.experiment import Section, Table, write_experiment
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel
from mfmarl.inference import equilibrium
from mfmarl.inference.believed_game import believed
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = 24
CRITICAL = 1.17538  # of the four arms
Row = dict[str, Any]


@dataclass(frozen=True)
class Arms(MeanFieldGame):
    """One choice among four arms, each the worse the more choose it."""

    horizon: int | None = 1
    num_states = 1
    num_actions = 4
    crowd_moves = False
    extended = True

    def initial(self) -> Tensor:
        return torch.ones(1, dtype=torch.float64)

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        return Dense(torch.ones(1, 4, 1, dtype=crowd.mu.dtype))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return (torch.tensor([0.2, 0.4, 0.6, 0.8]).to(crowd.mu) - 3 * crowd.actions).unsqueeze(-2)

    def potential(self, t: int, crowd: Crowd) -> Tensor:
        share = crowd.actions
        return (torch.tensor([0.2, 0.4, 0.6, 0.8]).to(share) * share - 1.5 * share.square()).sum((-2, -1))


GAMES: dict[str, type[MeanFieldGame]] = {
    "beach bar": BeachBar,
    "crowd modelling": CrowdModelling,
    "predators and prey": PredatorPrey,
    "rock, paper, scissors": RockPaperScissors,
    "epidemic": SusceptibleInfected,
    "contraction (no horizon)": Contraction,
}


# ------------------------------------------------------------------------------------------------- populations


def deviations(game: MeanFieldGame, found: equilibrium.Equilibrium, seeds: int, first: int = 30) -> Tensor:
    """|mu_N - mu|_1 over all groups, the mean over an episode, of independent populations: [seeds]."""
    world = Simulation(game, seeds)
    world.reset(Key.of(1).fold(game.num_agents))
    group = torch.repeat_interleave(torch.arange(game.num_groups), torch.tensor(game.group_sizes))
    away = []
    # Of a game without end a burn-in, and then as many steps.
    for step in range(game.horizon or 2 * first):
        t = 0 if game.horizon is None else step
        if step > 0 and (game.horizon is not None or step >= first):
            away.append((game.crowd(world.state).mu - found.flow.mu[t]).abs().sum((-2, -1)))
        p = found.policy[t, group, world.state.state]
        level = random.uniform(Key.of(2).fold(game.num_agents, step), world.ids).double().unsqueeze(-1)
        action = (p.cumsum(-1) < level * p.sum(-1, keepdim=True)).sum(-1).clamp(max=game.num_actions - 1)
        world.step(action)
    if game.horizon == 1:
        away.append(
            (game.crowd(world.state).mu - found.flow.kernels[-1].carry(found.flow.joint[-1])).abs().sum((-2, -1))
        )
    return torch.stack(away).mean(0)


def slope(crowds: list[int], each: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Of the log of the mean deviation over log N, [crowds, seeds], with a 95 % interval by drawing seeds again."""
    rng = np.random.default_rng(0)
    n = np.log(np.array(crowds, dtype=float))

    def fit(columns: Any) -> float:
        return float(
            np.polyfit(n, np.log(np.stack([row[c] for row, c in zip(each, columns, strict=True)]).mean(-1)), 1)[0]
        )

    whole = fit([np.arange(each.shape[1])] * len(crowds))
    drawn = [fit(rng.integers(0, each.shape[1], each.shape)) for _ in range(1000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return whole, float(low), float(high)


def equilibria(gammas: list[float], crowds: list[int], iterations: int) -> list[Row]:
    rows = []
    for name, make in GAMES.items():
        policy = None
        for gamma in gammas:
            found = equilibrium.solve(make(), gamma, iterations=iterations, tolerance=1e-9, policy=policy)
            policy = found.policy
            row: Row = {
                "game": name, "gamma": gamma, "settled": found.settled, "iterations": found.rows[-1]["iteration"],
                "regularised": float(found.gap), "exploitability": float(found.exploitability),
                "residual": float(found.residual), "radius": float(found.spectral_radius),
                "free_energy": None if found.free_energy is None else float(found.free_energy),
            }  # fmt: skip
            # In a game of one state there is nothing for shares of states to deviate in.
            each = [deviations(make(num_agents=n), found, SEEDS).numpy() for n in crowds]
            if min(x.mean() for x in each) > 1e-9:
                row["crowds"], row["deviation"] = crowds, [float(x.mean()) for x in each]
                row["slope"] = slope(crowds, np.stack(each))
                row["constant"] = float(each[-1].mean() * crowds[-1] ** 0.5)
            rows.append(row)
            print(told(row), flush=True)
    return rows


def told(row: Row) -> str:
    end = f"slope {row['slope'][0]:.3f} [{row['slope'][1]:.3f}, {row['slope'][2]:.3f}]" if "slope" in row else ""
    return (
        f"{row['game']:<26} gamma {row['gamma']:<5g} {row['iterations']:>4} iterations, gap {row['regularised']:.1e}, plain "
        f"{row['exploitability']:.4g}, radius {row['radius']:.3g} {end}"
    )


# ----------------------------------------------------------------------------------------------- the four arms


def arms() -> list[Row]:
    rows = []
    for gamma in (0.8, 1.1, 1.17, 1.18, 1.5, 8.0):
        best = equilibrium.solve(Arms(), gamma, iterations=2000, tolerance=1e-12)
        row: Row = {"gamma": gamma, "radius": float(best.spectral_radius)}
        for weight in (1.0, 0.5, 0.1):
            found = equilibrium.solve(Arms(), gamma, weight=weight, iterations=2000, tolerance=6e-14)
            row[f"{weight:g}"] = float(found.residual)
        rows.append(row)
    return rows


# -------------------------------------------------------------------------------------------- what is looked for


def sight(accuracies: tuple[float, ...]) -> list[Row]:
    """A beach of three places, told apart with an accuracy; reward and doubt at the equilibrium of gamma = 4."""
    rows = []
    game = BeachBar(places=3, bar=1, horizon=4)
    for accuracy in accuracies:
        a = torch.full((3, 3), (1 - accuracy) / 2, dtype=torch.float64).fill_diagonal_(accuracy)
        for information in (0.0, 1.0):
            mine = believed(game, a, 6, information)
            found = equilibrium.solve(mine, 4.0, iterations=600, tolerance=1e-7)
            path = found.flow
            own = path.rewards - information * torch.stack([mine.sought(0, Crowd(m)) for m in path.mu])
            doubt = mine.measures(path.mu[-1])["doubt"]
            rows.append(
                {
                    "accuracy": accuracy, "information": information, "settled": found.settled,
                    "reward": float((path.joint * own).sum()) / 4, "doubt": float(doubt),
                    "exploitability": float(found.exploitability), "radius": float(found.spectral_radius),
                }
            )  # fmt: skip
    return rows


# --------------------------------------------------------------------------------------------------- the report


@themed
def draw(rows: list[Row]) -> Figure:
    figure, grid = canvas(10.4, 3.9, 1, 2)
    figure.subplots_adjust(left=0.08, right=0.985, top=0.82, bottom=0.15, wspace=0.25)
    left, right = grid.flat
    for colour, name in zip(COLOURS * 2, GAMES, strict=False):
        own = [r for r in rows if r["game"] == name]
        left.loglog([r["gamma"] for r in own], [max(r["exploitability"], 1e-6) for r in own], "o-", color=colour,
                    markersize=4.5, linewidth=1.4, label=name)  # fmt: skip
        last = own[-1]
        if "slope" in last:
            right.loglog(last["crowds"], last["deviation"], "o-", color=colour, markersize=4.5, linewidth=1.4,
                         label=f"{name}: {last['slope'][0]:.2f}")  # fmt: skip
            n = np.array(last["crowds"], dtype=float)
            right.loglog(
                n, last["deviation"][-1] * (n / n[-1]) ** -0.5, color=INK, linewidth=0.8, linestyle=(0, (5, 3))
            )
    left.set_title("What one gains who pays nothing", pad=20)
    subtitle(left, "exploitability at the equilibrium")
    left.set_xlabel("precision gamma")
    right.set_title("N agents of the limit's policy", pad=20)
    subtitle(right, "E |mu_N - mu|_1 at the highest gamma; dashed: slope -1/2")
    right.set_xlabel("number of agents")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    return figure


def sections(rows: list[Row], four: list[Row], looks: list[Row]) -> list[Section]:
    cells = [
        [
            r["game"], f"{r['gamma']:g}", f"{r['iterations']}{'' if r['settled'] else ' (not settled)'}",
            f"{r['regularised']:.1e}", f"{r['exploitability']:.4g}", f"{r['radius']:.3g}",
            "–" if r["free_energy"] is None else f"{r['free_energy']:.5g}",
            f"{r['slope'][0]:.3f} [{r['slope'][1]:.3f}, {r['slope'][2]:.3f}]" if "slope" in r else "–",
        ]
        for r in rows
    ]  # fmt: skip
    return [
        Section(
            "Equilibria by precision",
            "The regularised gap is 0 up to rounding wherever the damped iteration settles; what one gains who pays nothing "
            "for leaving the habit falls with gamma. A spectral radius above 1 says that undamped iteration leaves the "
            f"equilibrium. Slopes are of the deviation of N agents, {SEEDS} populations each, with 95 % intervals.",
            Table(["game", "gamma", "iterations", "regularised gap", "exploitability", "radius", "free energy", "slope"], cells),
            draw(rows), "precision", "Logarithmic scales on both axes.",
        ),
        Section(
            "Four arms", f"Undamped (weight 1) it settles below gamma = {CRITICAL:g} alone; smaller weights reach farther.",
            Table(["gamma", "radius", "residual, weight 1", "weight .5", "weight .1"],
                  [[f"{r['gamma']:g}", f"{r['radius']:.4f}", *(f"{r[w]:.1e}" for w in ("1", "0.5", "0.1"))] for r in four]),
        ),
        Section(
            "Who sees its place in part",
            "Beliefs are the states of the game; information is worth itself (1) or what it earns (0), at gamma = 4.",
            Table(["accuracy", "information", "reward a step", "doubt at the end, nats", "settled"],
                  [[f"{r['accuracy']:g}", f"{r['information']:g}", f"{r['reward']:.4f}", f"{r['doubt']:.4f}",
                    "yes" if r["settled"] else "no"] for r in looks]),
        ),
    ]  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce-free-energy-equilibrium"), help="(default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer precisions and smaller crowds")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    try:
        gammas, crowds = (
            ([1.0, 4.0], [30, 300]) if given.quick else ([0.5, 1.0, 2.0, 4.0, 8.0, 16.0], [30, 300, 3000, 30_000])
        )
        rows = equilibria(gammas, crowds, 100 if given.quick else 600)
        four = arms()
        looks = sight((0.5,) if given.quick else (0.34, 0.5, 0.7, 0.9, 1.0))
        page = write_experiment(
            given.out, "Equilibria of expected free energy",
            "Crowds whose preferences and habits reproduce their own way, at several precisions.",
            sections(rows, four, looks), {"equilibria": rows, "arms": four, "sight": looks},
        )  # fmt: skip
    except MfmarlError as error:
        print(f"free_energy_equilibrium: {error}", file=sys.stderr)
        return error.exit_code
    for row in four:
        print("four arms", {k: float(f"{v:.4g}") for k, v in row.items()})
    for row in looks:
        print("sight", {k: v if isinstance(v, bool) else float(f"{v:.4g}") for k, v in row.items()})
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
