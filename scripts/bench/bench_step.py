"""How fast the environments step, without learning: agent-steps per CPU-second of one core, eager torch.

    python scripts/bench/bench_step.py [--rounds 5] [--json]

Ising on a torus of 100 x 100, 16 copies, in every order of moves; congestion and Gaussian squeeze with as many
agents; then the cost per agent as the crowd grows, and the memory of a million agents. `slots` counts every
agent of every copy, `moves` only those who were asked to act (the same, when all move at once). `checked` is
what training runs: every action, reward and observation is looked at; `bare` does without. Actions are drawn
beforehand; the best of the rounds, which the load of others disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from mfmarl.population.open import open_env
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key

SIDE, COPIES = 100, 16
ORDERS = ("synchronous", "checkerboard", "partial", "sequential")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"ising, {order}": ("ising", {"num_agents": SIDE**2, "order": order}) for order in ORDERS},
    "congestion": ("congestion", {"num_agents": SIDE**2}),
    "gaussian_squeeze": ("gaussian_squeeze", {"num_agents": SIDE**2}),
}


class Player:
    """One simulation on actions drawn beforehand."""

    def __init__(self, name: str, options: dict[str, Any], copies: int, check: bool) -> None:
        env = open_env(name, options, copies, "cpu")
        assert isinstance(env, Simulation)
        env.check = check
        self.env, self.timestep = env, env.reset(Key.of(0))
        generator = torch.Generator().manual_seed(0)
        shape = (2 if env.ids.numel() > 1 << 19 else 8, *env.ids.shape)
        self.actions = torch.randint(0, env.spec.num_actions, shape, generator=generator)

    def seconds(self, steps: int) -> float:
        """CPU seconds per step."""
        start = time.process_time()
        for t in range(steps):
            self.timestep = self.env.restart(self.env.step(self.actions[t % len(self.actions)]))
        return (time.process_time() - start) / steps

    def moves(self, steps: int = 20) -> float:
        """Agents asked to act, a step."""
        total = 0
        for t in range(steps):
            total += int(self.timestep.acting.sum())
            self.timestep = self.env.restart(self.env.step(self.actions[t % len(self.actions)]))
        return total / steps


def compare(rounds: int) -> dict[str, dict[str, float]]:
    """Every case, checked and bare, in turns."""
    players = {
        (case, check): Player(name, options, COPIES, check)
        for case, (name, options) in CASES.items()
        for check in (True, False)
    }
    best = dict.fromkeys(players, float("inf"))
    for player in players.values():
        player.seconds(5)
    for _ in range(rounds):
        for which, player in players.items():
            best[which] = min(best[which], player.seconds(20))
    rows = {}
    for case in CASES:
        slots, moves = SIDE**2 * COPIES, players[case, True].moves()
        rows[case] = {
            "slots, checked": slots / best[case, True],
            "slots, bare": slots / best[case, False],
            "moves, checked": moves / best[case, True],
        }
    return rows


def growth(rounds: int) -> dict[str, dict[str, float]]:
    """ns of CPU per agent-step, at 10^3 to 10^6 agents; the small crowds have copies, so that the work is alike."""
    rows: dict[str, dict[str, float]] = {}
    for case, (name, options) in CASES.items():
        if case == "ising, sequential":  # one move a step, whatever N
            continue
        players = {}
        for power in (3, 4, 5, 6):
            agents = 10**power
            players[agents] = Player(name, {**options, "num_agents": agents}, max(1, 10**5 // agents), True)
        best = dict.fromkeys(players, float("inf"))
        for turn in range(rounds + 1):
            for agents, player in players.items():
                took = player.seconds(2 if agents == 10**6 else 10)
                best[agents] = min(best[agents], took) if turn else float("inf")
        rows[case] = {str(n): 1e9 * best[n] / players[n].env.ids.numel() for n in players}
    return rows


def memory(case: str) -> float:
    """Bytes per agent that a million agents add to a process at its peak, while they step."""
    name, options = CASES[case]
    small, agents = {**options, "num_agents": 1024}, 10**6
    Player(name, small, 1, True).seconds(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    env = open_env(name, {**options, "num_agents": agents}, 1, "cpu")
    env.reset(Key.of(0))
    action = torch.zeros(env.ids.shape, dtype=torch.int64)
    for _ in range(3):
        env.restart(env.step(action))
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / agents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times each is played (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    parser.add_argument("--memory", default="", metavar="CASE", help="only the bytes per agent of one case")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory:
        print(memory(given.memory))
        return
    # A peak is of a whole process: each case has one of its own. They come first, as a child inherits its parent's.
    peaks = {
        case: float(
            subprocess.run([sys.executable, __file__, "--memory", case], capture_output=True, check=True).stdout
        )
        for case in CASES
    }
    speeds, costs = compare(given.rounds), growth(min(given.rounds, 3))
    if given.json:
        print(json.dumps({"agent_steps_per_cpu_second": speeds, "ns_per_agent_step": costs, "bytes_per_agent": peaks}))
        return
    columns = ("slots, checked", "slots, bare", "moves, checked")
    print(f"{f'million a CPU-second, {SIDE} x {SIDE}, {COPIES} copies':44}" + "".join(f"{c:>16}" for c in columns))
    for case, row in speeds.items():
        print(f"{case:44}" + "".join(f"{row[c] / 1e6:16.2f}" for c in columns))
    sizes = list(next(iter(costs.values())))
    print(f"\n{'ns of CPU per agent-step':44}" + "".join(f"{int(n):>12,}" for n in sizes) + f"{'bytes/agent':>14}")
    for case, row in costs.items():
        print(f"{case:44}" + "".join(f"{row[n]:12.2f}" for n in sizes) + f"{peaks[case]:14.0f}")


if __name__ == "__main__":
    main()
