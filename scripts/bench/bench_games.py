"""Mean-field games: iterations of mirror descent beside mfglib's and OpenSpiel's, large grids, batches, time to 1e-3.

    python scripts/bench/bench_games.py [iterations|large|batch|reach ...] [--rounds 3] [--seconds 20] [--json]

CPU-seconds of one core. The peers answer from an interpreter of their own (`make peers`, or MFMARL_PEERS names one),
ours and theirs by turns, the least of the rounds on each side; without them only our own numbers are printed.
`reach` counts the CPU-seconds of iterations until the exploitability is below 1e-3, for the best of each package's
algorithms and a few rates of each; evaluations are given for nothing, on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peer_process import Peer  # type: ignore[import-not-found]
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.building_evacuation import BuildingEvacuation
from mfmarl.envs.conservative_treasure_hunting import ConservativeTreasureHunting
from mfmarl.envs.crowd_modelling_2d import CrowdModelling2d
from mfmarl.envs.crowd_motion import CrowdMotion
from mfmarl.envs.equilibrium_price import EquilibriumPrice
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.linear_quadratic_grid import LinearQuadraticGrid
from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.envs.random_linear import RandomLinear
from mfmarl.envs.rock_paper_scissors import RockPaperScissors
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import MfmarlError
from mfmarl.games.batch import side_by_side
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Kernel, Torus
from mfmarl.games.large import LargeGrid
from mfmarl.games.solver import Solver, solver_class
from mfmarl.games.solvers.mirror_descent import MirrorDescent

LEVEL = 1e-3
T = TypeVar("T")
# Our game, whose it also is, its name there.
SHARED: dict[str, tuple[MeanFieldGame, str, str]] = {
    "left-right": (LeftRight(), "mfglib", "left_right"),
    "rock-paper-scissors": (RockPaperScissors(), "mfglib", "rock_paper_scissors"),
    "beach bar, 10 places": (BeachBar(places=10, bar=3, horizon=8), "mfglib", "beach_bar"),
    "SIS, 51 times": (SusceptibleInfected(horizon=51), "mfglib", "susceptible_infected"),
    "treasure hunting": (ConservativeTreasureHunting(), "mfglib", "conservative_treasure_hunting"),
    "equilibrium price": (EquilibriumPrice(), "mfglib", "equilibrium_price"),
    "random linear": (RandomLinear(), "mfglib", "random_linear"),
    "building evacuation": (BuildingEvacuation(), "mfglib", "building_evacuation"),
    "crowd motion, 20 x 20": (CrowdMotion(), "mfglib", "crowd_motion"),
    "linear-quadratic 51 x 11 x 16": (
        LinearQuadraticGrid(horizon=15, reach=25, speed=5, rounding="nearest"), "mfglib", "linear_quadratic"
    ),
    "four rooms, 40 times": (CrowdModelling2d(), "openspiel", "four_rooms"),
    "predator-prey 5 x 5 x 3": (PredatorPrey(), "openspiel", "predator_prey"),
}  # fmt: skip


def spent(run: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """CPU-seconds, and what came of it."""
    started = time.process_time()
    found = run(*arguments)
    return time.process_time() - started, found


def iterating(game: MeanFieldGame, solver: Solver, policy: Tensor | None = None) -> Iterator[tuple[float, Tensor]]:
    """CPU-seconds of each iteration, and the policy after it."""
    state = solver.begin(game, uniform(game) if policy is None else policy)
    k = 0
    while True:
        k += 1
        seconds, state = spent(solver.step, game, state, k)
        yield seconds, solver.policy(game, state)


def iterations(peer: Peer, rounds: int) -> Iterator[dict[str, Any]]:
    for name, (game, whose, theirs) in SHARED.items():
        mine: dict[str, float] = {"iteration": float("inf"), "evaluation": float("inf")}
        their = dict(mine)
        slow = whose == "openspiel" or "linear" in name
        for _ in range(rounds):
            steps = iterating(game, MirrorDescent(rate=0.1))
            for _ in range(30):
                seconds, policy = next(steps)
                mine["iteration"] = min(mine["iteration"], seconds)
                looking, _ = spent(gap, game, policy, False)
                mine["evaluation"] = min(mine["evaluation"], looking)
            answer = peer.ask(peer=whose, game=theirs, iterations=1 if slow else 10)
            if answer:
                their = {key: min(their[key], answer[key]) for key in their}
        yield {"game": name, "peer": whose if answer else "", "ours": mine, "theirs": their if answer else None}


@dataclass(frozen=True)
class Walk(MeanFieldGame):
    """Walkers on a square torus who avoid each other: five moves, five shoves."""

    horizon: int | None = 10
    side: int = 100
    crowd_moves = False

    @property
    def num_states(self) -> int:
        return self.side**2

    @property
    def num_actions(self) -> int:
        return 5

    def initial(self) -> Tensor:
        weight = torch.arange(self.num_states, dtype=torch.float64) % 7 + 1
        return weight / weight.sum()

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        around = torch.tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
        chance = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1], dtype=crowd.mu.dtype)
        return Torus((self.side, self.side), around, around, chance)

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        place = torch.arange(self.num_states)
        away = (place // self.side - self.side // 2).abs() + (place % self.side - self.side // 2).abs()
        return (-away.to(crowd.mu) / self.side - (crowd.mu * self.num_states + 1e-3).log()).unsqueeze(-1)

    def effort(self) -> Tensor:
        return torch.tensor([0.0, 1, 1, 1, 1], dtype=torch.float64).expand(self.num_states, 5) / 10


def large(rounds: int) -> Iterator[dict[str, Any]]:
    for side in (100, 1000, 2000):
        game = Walk(side=side)
        grid = LargeGrid(game)
        at, least = grid.begin(), float("inf")
        with torch.no_grad():
            for _ in range(rounds + 1):
                seconds, at = spent(grid.step, at, 0.01)
                least = min(least, seconds)
            look, _ = spent(grid.exploitability, at, 0.01)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        yield {"state-times": side * side * 10, "iteration": least, "evaluation": look, "memory_gb": memory}


def batches(rounds: int) -> Iterator[dict[str, Any]]:
    """What a loop over the games, or rates, costs beside one call for all."""

    def least(game: MeanFieldGame, batch: tuple[int, ...] = ()) -> float:
        steps = iterating(game, MirrorDescent(rate=0.1), uniform(game, batch))
        return min(next(steps)[0] for _ in range(5 * rounds))

    sis, beach = SusceptibleInfected(horizon=51), BeachBar(places=20, bar=10, horizon=10)
    for count in (32, 128):
        sick = side_by_side([SusceptibleInfected(horizon=51, infection=0.3 + 0.5 * i / count) for i in range(count)])
        windy = side_by_side([BeachBar(places=20, bar=10, horizon=10, calm=0.9 * i / count) for i in range(count)])
        yield {"batch": f"{count} infection rates of SIS", "ratio": count * least(sis) / least(sick)}
        yield {"batch": f"{count} winds of a beach bar", "ratio": count * least(beach) / least(windy)}
        yield {"batch": f"{count} seeds or step sizes of SIS", "ratio": count * least(sis) / least(sis, (count,))}


def our_solvers() -> Iterator[tuple[str, Solver]]:
    yield "sequential", solver_class("sequential")()
    for rate in (0.1, 1.0, 10.0, 0.01):
        yield f"omd {rate}", MirrorDescent(rate=rate)
    for rate in (0.25, 1.0):
        yield f"omd {rate}, momentum 0.8", MirrorDescent(rate=rate, momentum=0.8)
    for name in ("fp", "policy_iteration", "proximal", "omi"):
        yield name, solver_class(name)()


def reach(peer: Peer, seconds: float) -> Iterator[dict[str, Any]]:
    for name, (game, whose, theirs) in SHARED.items():
        best: dict[str, Any] = {"seconds": None, "solver": "none", "least": float("inf")}
        for label, solver in our_solvers():
            total, k, look = 0.0, 0, 1
            limit = seconds if best["seconds"] is None else min(seconds, best["seconds"])
            started = time.process_time()
            try:
                for step_seconds, policy in iterating(game, solver):
                    total += step_seconds
                    k += 1
                    if total >= limit or time.process_time() - started > 3 * seconds:
                        break
                    if k < look:
                        continue
                    look = max(look + 1, int(1.1 * look))
                    found = float(gap(game, policy, check=False).exploitability)
                    best["least"] = min(best["least"], found)
                    if found <= LEVEL:
                        best |= {"seconds": total, "solver": label, "iterations": k}
                        break
            except MfmarlError as error:  # a solver that refuses this game is passed over
                print(f"  {name}: {label}: {error}", file=sys.stderr)
        yield {"game": name, "ours": best, "peer": whose,
               "theirs": peer.ask(peer=whose, game=theirs, reach=LEVEL, seconds=seconds)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("iterations", "large", "batch", "reach")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)} (default: all but reach)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="shared games with this in their name")
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU-seconds that a solver may take to reach 1e-3")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in [name for name in SHARED if options.only not in name]:
        del SHARED[name]
    wrong = set(options.parts) - set(parts)
    if wrong:
        parser.error(f"unknown part {wrong.pop()!r}; there are {', '.join(parts)}")
    torch.set_num_threads(1)
    chosen = options.parts or parts[:3]
    peer = Peer("peer_games.py") if {"iterations", "reach"} & set(chosen) else None
    found: dict[str, list[dict[str, Any]]] = {}
    with torch.no_grad():
        for part in chosen:
            assert peer is not None or part in ("large", "batch")
            rows = {
                "iterations": lambda: iterations(peer, options.rounds),
                "large": lambda: large(options.rounds),
                "batch": lambda: batches(options.rounds),
                "reach": lambda: reach(peer, options.seconds),
            }[part]()
            found[part] = []
            for row in rows:
                found[part].append(row)
                if not options.json:
                    print(told(part, row), flush=True)
    if options.json:
        print(json.dumps(found, indent=1))


def told(part: str, row: dict[str, Any]) -> str:
    if part == "iterations":
        mine, their = row["ours"], row["theirs"]
        text = f"{row['game']:32} {1e3 * mine['iteration']:8.2f} ms an iteration, {1e3 * mine['evaluation']:8.2f} ms a look"
        if their:
            text += (
                f"; {row['peer']} {1e3 * their['iteration']:8.2f} and {1e3 * their['evaluation']:8.2f} ms: "
                f"{their['iteration'] / mine['iteration']:.1f}x and {their['evaluation'] / mine['evaluation']:.1f}x"
            )
        return text
    if part == "large":
        return (
            f"{row['state-times']:>12,} state-times: {row['iteration']:.2f} s an iteration, {row['evaluation']:.2f} s a look, "
            f"{row['memory_gb']:.2f} GB at most"
        )
    if part == "batch":
        return f"{row['batch']:32} {row['ratio']:6.1f}x a loop"
    mine, their = row["ours"], row["theirs"]

    def reached(found: dict[str, Any] | None) -> str:
        if found is None:
            return "not here"
        if found["seconds"] is None:
            return f"not in time (least {found['least']:.3g})"
        return f"{found['seconds']:.3f} s by {found['solver']} in {found['iterations']}"

    return f"{row['game']:32} {reached(mine)}; {row['peer']} {reached(their)}"


if __name__ == "__main__":
    main()
