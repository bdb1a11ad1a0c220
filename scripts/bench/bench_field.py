"""What a field costs: ns of CPU per agent from a thousand agents to a million, and its memory at its peak.

    python scripts/bench/bench_field.py [--rounds 3] [--json] [--ways]

Every average, of the actions (four of them) of a population on a torus, a random graph of degree 8, or points in
the plane at a fixed density (six others within the radius). All sizes have a million rows in one call: a
thousand crowds of a thousand, ..., one of a million, so that only the crowd grows. The best of the rounds. `bytes` is
what a call over one crowd of a million adds to the peak of its process, result included, per agent.

`--ways` compares instead, in turns in one process, the ways to the same bits over one crowd of a million: a plane for
each action, counts in torch, and the compiled loops (MFMARL_COMPILED); `first` is the first compiled call, compiling
included.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from mfmarl import random
from mfmarl.population import counted
from mfmarl.population.environment import agent_ids
from mfmarl.population.field import Field, parse_field
from mfmarl.population.graph import Graph
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key

ROWS, ACTIONS = 1_000_000, 4
SIZES = (1_000, 10_000, 100_000, 1_000_000)
# The field, and where the agents are.
CASES = {
    "everyone": ("actions over everyone", "nowhere"),
    "everyone, numbers": ("moments(2) over everyone", "nowhere"),
    "torus": ("actions over neighbours", "torus"),
    "torus, numbers": ("moments(2) over neighbours", "torus"),
    "random graph, degree 8": ("actions over neighbours", "random"),
    "radius, 6 others": ("actions over nearby(1)", "plane"),
    "a sample of 8": ("actions over sampled(8)", "nowhere"),
    "torus, by four teams": ("typed(actions) over neighbours", "teams"),
}


def random_graph(agents: int, degree: int = 8) -> Graph:
    """Everybody's neighbours along `degree` / 2 random cycles, both ways."""
    key, site, links = Key.of(1), torch.arange(agents), []
    for cycle in range(degree // 2):
        order = torch.argsort(random.bits(key.fold(cycle), site))
        links += [torch.stack([order, order.roll(1)]), torch.stack([order, order.roll(-1)])]
    source, target = torch.cat(links, 1)
    return Graph.from_links(agents, source, target)


def population(where: str, agents: int, copies: int, actions: int = ACTIONS) -> tuple[Spec, Timestep, torch.Tensor]:
    """Agents who have acted at random."""
    graph = None
    if where in ("torus", "teams"):
        side = next(s for s in range(int(agents**0.5), 2, -1) if agents % s == 0)
        graph = Graph.torus_of((side, agents // side))
    elif where == "random":
        graph = random_graph(agents)
    teams = tuple(f"team{i}" for i in range(4)) if where == "teams" else ("agent",)
    sizes = (agents // 4,) * 4 if where == "teams" else ()
    seen = Box(-1.0, 1.0, (1,), np.float32)
    spec = Spec(agents, seen, Discrete(actions), groups=teams, group_sizes=sizes, graph=graph)
    ids = agent_ids(copies, agents)
    zeros, no, yes = (
        torch.zeros(ids.shape),
        torch.zeros(ids.shape, dtype=torch.bool),
        torch.ones(ids.shape, dtype=torch.bool),
    )
    side_length = (agents * np.pi / 6) ** 0.5
    position = random.uniform(Key.of(2), ids, 2) * side_length if where == "plane" else None
    action = random.integers(Key.of(3), ids, actions)
    timestep = Timestep(
        obs=zeros.unsqueeze(-1), reward=zeros, alive=yes, acting=yes, legal=None, action=action, terminated=no,
        truncated=no, position=position, step=torch.zeros(copies, dtype=torch.int64), ended=no[:, 0],
    )  # fmt: skip
    return spec, timestep, ids


def measure(case: str, rounds: int) -> dict[str, float]:
    """ns of CPU per agent at each size."""
    field, where = parse_field(CASES[case][0]), CASES[case][1]
    found = {}
    for agents in SIZES:
        spec, timestep, ids = population(where, agents, ROWS // agents)
        best = float("inf")
        for turn in range(rounds + 1):
            start = time.process_time()
            field(timestep, spec, ids, Key.of(turn))
            best = min(best, time.process_time() - start) if turn else best
        found[str(agents)] = 1e9 * best / ROWS
    return found


WAYS = {
    "torus, 2 actions": ("actions over neighbours", "torus", 2),
    "torus, 4 actions": ("actions over neighbours", "torus", 4),
    "random graph, degree 8, 4 actions": ("actions over neighbours", "random", 4),
    "everyone, 2 actions": ("actions over everyone", "nowhere", 2),
    "everyone, 4 actions": ("actions over everyone", "nowhere", 4),
    "everyone, 40 actions": ("actions over everyone", "nowhere", 40),
    "everyone, 4 actions, by four teams": ("typed(actions) over everyone", "teams", 4),
}


def ways(rounds: int) -> dict[str, dict[str, float]]:
    """Millions of agents per CPU-second by each way, and the CPU-seconds of the first compiled call."""
    fits, found = counted.fits, {}
    for case, (text, where, actions) in WAYS.items():
        spec, timestep, ids = population(where, ROWS, 1, actions)
        field, row, results = parse_field(text), {"first": float("nan")}, []
        for turn in range(rounds + 1):
            for way in ("planes", "counted", "compiled"):
                counted.fits = fits if way != "planes" else lambda *_: False
                os.environ["MFMARL_COMPILED"] = "always" if way == "compiled" else "never"
                start = time.process_time()
                mean = field(timestep, spec, ids, Key.of(0))
                seconds = time.process_time() - start
                if turn:
                    row[way] = max(row.get(way, 0.0), ROWS / seconds / 1e6)
                else:
                    results.append(mean)
                    row["first"] = seconds
                del mean
            if not turn and not all(torch.equal(mean, results[0]) for mean in results):
                raise SystemExit(f"{case}: the ways differ.")
            results.clear()
        found[case] = row
    return found


def memory(case: str) -> float:
    """Bytes per agent that one call over a million adds to this process at its peak."""
    field: Field = parse_field(CASES[case][0])
    spec, timestep, ids = population(CASES[case][1], 1000, 1)
    field(timestep, spec, ids, Key.of(0))  # torch's own first allocations
    spec, timestep, ids = population(CASES[case][1], ROWS, 1)
    if spec.graph is not None:
        spec.graph.neighbour_sum(torch.zeros(1, ROWS, 1, dtype=torch.bool))  # what a graph keeps of itself is kept once
    clear_peak()
    before = resident()
    field(timestep, spec, ids, Key.of(0))
    return (peak() - before) / ROWS


def _status(line: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * next(int(row.split()[1]) for row in text.splitlines() if row.startswith(line))


def clear_peak() -> None:
    """Give back what is free, so that it is not used again unseen, and forget the peak so far (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident() -> int:
    return _status("VmRSS")


def peak() -> int:
    return _status("VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="calls measured (default 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    parser.add_argument("--memory", default="", metavar="CASE", help="only the bytes per agent of one case")
    parser.add_argument("--ways", action="store_true", help="only compare the ways to the same bits")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.ways:
        table = ways(given.rounds)
        if given.json:
            print(json.dumps({"million_agents_per_cpu_second": table}))
            return
        print(
            f"{'million agents per CPU-second':36}{'planes':>10}{'counted':>10}{'compiled':>10}{'ratio':>8}{'first, s':>10}"
        )
        for case, row in table.items():
            cells = "".join(f"{row[way]:10.1f}" for way in ("planes", "counted", "compiled"))
            print(f"{case:36}{cells}{row['compiled'] / row['planes']:8.1f}{row['first']:10.2f}")
        return
    if given.memory:
        print(memory(given.memory))
        return
    rows: dict[str, dict[str, float]] = {}
    for case in CASES:
        rows[case] = measure(case, given.rounds)
        if sys.platform == "linux":
            command = [sys.executable, __file__, "--memory", case]
            rows[case]["bytes"] = float(subprocess.run(command, capture_output=True, check=True).stdout)
    if given.json:
        print(json.dumps({"ns_per_agent": rows}))
        return
    print(f"{'ns of CPU per agent, at N =':28}" + "".join(f"{n:>12,}" for n in SIZES) + f"{'bytes/agent':>14}")
    for case, row in rows.items():
        cells = "".join(f"{row[str(n)]:12.1f}" for n in SIZES)
        print(f"{case:28}{cells}{row.get('bytes', float('nan')):14.0f}")


if __name__ == "__main__":
    main()
