"""One population on two processes, against one: wall time per training step at N = 10^6, in alternation.

    python scripts/bench/bench_ranks.py                       MF-Q and MF-PPO on the Ising torus and on a beach
    python scripts/bench/bench_ranks.py --num-agents 100000 --ranks 2 --rounds 3

Wants a quiet machine with as many cores as ranks. Every round begins the processes anew, one thread each, and times
whole rollouts with their learning; the ratio of a round is that of processes that ran one after the other. Beside it
stands what this machine allows: as many processes that know nothing of each other, each with its part of the agents
(cores that are two faces of one, or share what memory can give, are not twice as fast, whoever uses them). And
CPU-seconds of all ranks together against those of one, and the bytes that a rank hands over in a step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

CASES = ("ising", "beach_bar")


def play(order: dict[str, Any]) -> None:
    """What a rank does; the first prints what it took."""
    from mfmarl.learning.build import build
    from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
    from mfmarl.population.ranks import join

    ranks = join()
    options = RunOptions(
        steps=10**9, report_every=10**8, copies=1, evaluation_copies=0, exploitability="off", ranks=ranks.count
    )
    environment = Choice(order["game"], {"num_agents": order["agents"]})
    training = build(RunConfig(environment, {"all": Choice(order["agent"])}, options), ranks).training
    training.tally.clear()
    for _ in range(16):
        training.step()
    ranks.agree(True)
    sent, wall, cpu = sum(ranks.sent.values()), time.perf_counter(), time.process_time()
    for _ in range(order["steps"]):
        training.step()
    ranks.agree(True)
    found = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    ranks.close()
    print(json.dumps({**found, "bytes": (sum(ranks.sent.values()) - sent) / order["steps"]}))


def run(order: dict[str, Any], count: int, together: bool = True) -> dict[str, float]:
    """Seconds of `count` ranks side by side, and their CPU-seconds together; or of as many who are alone."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(count):
            place = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)} if together else {}
            environment = {**os.environ, **place, "MFMARL_STORE": f"{folder}/meeting"}
            command = [sys.executable, __file__, "--play", json.dumps(order)]
            ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        found = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    return {"wall": max(f["wall"] for f in found), "cpu": sum(f["cpu"] for f in found), "bytes": found[0]["bytes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-agents", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=32, help="timed in each round (default: 32)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--games", default=",".join(CASES))
    parser.add_argument("--agents", default="mfq,mfppo")
    parser.add_argument("--play", help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.play:
        play(json.loads(known.play))
        return
    print(f"N = {known.num_agents}: {known.ranks} ranks against one, one thread each; median of {known.rounds} rounds")
    for game in known.games.split(","):
        for agent in known.agents.split(","):
            order = {"game": game, "agent": agent, "agents": known.num_agents, "steps": known.steps}
            part = {**order, "agents": known.num_agents // known.ranks}
            ratios, bounds, shares, last = [], [], [], {}
            for _ in range(known.rounds):
                one, many, apart = run(order, 1), run(order, known.ranks), run(part, known.ranks, together=False)
                ratios.append(one["wall"] / many["wall"])
                bounds.append(one["wall"] / apart["wall"])
                shares.append(many["cpu"] / one["cpu"])
                last = many
            print(
                f"  {agent:<6} {game:<10} {statistics.median(ratios):5.2f} x as fast ({min(ratios):.2f} to "
                f"{max(ratios):.2f}); apart {statistics.median(bounds):.2f} x ({min(bounds):.2f} to {max(bounds):.2f}); "
                f"{statistics.median(shares):.2f} x the CPU; {last['bytes']:.0f} bytes a step",
                flush=True,
            )


if __name__ == "__main__":
    main()
