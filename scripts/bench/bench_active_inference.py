"""Active inference: whole agent-steps beside pymdp's rollouts, in CPU-seconds of one core.

    python scripts/bench/bench_active_inference.py [t_maze|grid|crowd ...] [--rounds 3] [--json]

An agent-step is the world's, the belief update, the plan of all policies and the act. Both sides run in single
precision on one thread of one core, the least of the rounds on each side; pymdp (jitted, JAX) answers from an
interpreter of its own (`make peers`, or MFMARL_PEERS names one), with and without its compilation. Without it only our
own numbers are printed. `crowd`: how time and memory grow to 131,072 agents.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peer_process import Peer  # type: ignore[import-not-found]

from mfmarl.inference import filtering
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.planning import open_loop
from mfmarl.inference.world import World
from mfmarl.random import Key
from mfmarl.statmech import gibbs

GAMMA = 4.0
# World, depth, agents and steps of ours, agents and steps of pymdp's.
WORLDS = {"t_maze": (2, 1024, 50, 1024, 50), "grid": (3, 1024, 20, 256, 10)}


def of_tables(tables: dict[str, Any]) -> GenerativeModel:
    """A model from lists, in single precision; a factor of one setting has no control."""
    kinds = {name: tuple(torch.tensor(x, dtype=torch.float32) for x in tables[name]) for name in "ABCD"}
    moved = [b.shape[-1] > 1 for b in kinds["B"]]
    return GenerativeModel(
        A=kinds["A"],
        B=tuple(b if moves else b.squeeze(-1) for b, moves in zip(kinds["B"], moved, strict=True)),
        C=kinds["C"],
        D=kinds["D"],
        A_factors=tuple(map(tuple, tables["A_factors"])),
        B_factors=tuple(map(tuple, tables["B_factors"])),
        B_controls=tuple((0,) if moves else () for moves in moved),
    )


def t_maze() -> dict[str, Any]:
    """pymdp's T-maze of five places, as it gives its tables: what is timed where pymdp is not at hand."""
    doors = {(0, 3), (3, 0), (0, 4), (4, 0), (4, 1), (1, 4), (4, 2), (2, 4)}
    B = torch.zeros(5, 5, 5)
    for place in range(5):
        for action in range(5):
            B[action if (place, action) in doors else place, place, action] = 1
    reward, cue = torch.zeros(3, 5, 2), torch.zeros(3, 5, 2)
    reward[0, [0, 3, 4]], cue[0, [0, 1, 2, 4]] = 1, 1
    for side in range(2):
        reward[1, 1 + side, side] = reward[2, 2 - side, side] = 0.98
        reward[0, 1:3, side] = 0.02
        cue[1 + side, 3, side], cue[2 - side, 3, side] = 0.95, 0.05
    return {
        "A": [torch.eye(5), reward, cue],
        "B": [B, torch.eye(2).unsqueeze(-1)],
        "C": [torch.zeros(5), torch.tensor([0.0, 2.0, -4.0]), torch.zeros(3)],
        "D": [torch.eye(5)[0], torch.full((2,), 0.5)],
        "A_factors": [[0], [0, 1], [0, 1]],
        "B_factors": [[0], [1]],
    }


def grid() -> dict[str, Any]:
    """pymdp's grid of 7 x 7 places: four moves, which succeed nine times in ten, and staying."""
    B = torch.zeros(49, 49, 5)
    for place in range(49):
        row, column = divmod(place, 7)
        for action, (down, right) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))):
            inside = 0 <= row + down < 7 and 0 <= column + right < 7 and action < 4
            B[place + 7 * down + right if inside else place, place, action] += 0.9 if inside else 1.0
            B[place, place, action] += 0.1 if inside else 0.0
    C = torch.zeros(49)
    C[48] = 3
    return {
        "A": [torch.eye(49)], "B": [B], "C": [C], "D": [torch.eye(49)[0]], "A_factors": [[0]], "B_factors": [[0]]
    }  # fmt: skip


def ours(tables: dict[str, Any]) -> GenerativeModel:
    return of_tables({k: [torch.as_tensor(x).tolist() for x in v] if k in "ABCD" else v for k, v in tables.items()})


def agent_steps(
    model: GenerativeModel,
    depth: int,
    agents: int,
    steps: int,
    how: open_loop.How,
    joint: bool = True,
    merge: bool = False,
) -> float:
    """CPU-seconds of so many steps of so many agents, of the world among them."""
    world, ids, key = World(model, agents), torch.arange(agents).unsqueeze(0), Key.of(3)
    own = model.joint() if joint else model
    started = time.process_time()
    state = world.reset(ids, key)
    expected = tuple(d.expand(1, agents, -1) for d in own.D)
    for step in range(steps):
        believed = filtering.update(own, expected, state.seen, "exact", check=False, terms=False).factors
        value = open_loop.plan(own, believed, depth, GAMMA, details=False, how=how, merge=merge).value
        action = gibbs.sample(-value, 1 / GAMMA, ids, key.fold("act", step))
        expected = filtering.predict(own, believed, action, check=False)
        state, _ = world.step(state, action, ids, key.fold("world", step))
    return time.process_time() - started


def compare(name: str, peer: Peer, rounds: int) -> list[dict[str, Any]]:
    depth, agents, steps, their_agents, their_steps = WORLDS[name]
    tables = peer.ask(world=name)
    model = ours({"t_maze": t_maze, "grid": grid}[name]())
    if tables is not None:
        theirs = of_tables(tables)
        for one, other in zip([*model.A, *model.B, *model.C], [*theirs.A, *theirs.B, *theirs.C], strict=True):
            assert torch.allclose(one, other, atol=1e-6), "pymdp's world is another one than ours"
    rows: list[dict[str, Any]] = []

    def row(who: str, spent: float, count: int) -> None:
        rows.append({"world": name, "who": who, "agent_steps_per_cpu_second": count / spent})

    for sweeps in (16, 1):
        found = peer.ask(world=name, agents=their_agents, steps=their_steps, depth=depth, sweeps=sweeps, rounds=rounds)
        if found is not None:
            row(f"pymdp, {sweeps} sweeps, warm", found["warm"], their_agents * their_steps)
            row(f"pymdp, {sweeps} sweeps, with compilation", found["first"], their_agents * their_steps)
    ways: list[tuple[str, open_loop.How, bool, bool]] = [
        ("closed form", "closed_form", True, False),
        ("closed form, equal beliefs once", "closed_form", True, True),
        ("tree", "tree", True, False),
    ]
    if len(model.sizes) > 1:
        ways.append(("tree of factors", "tree", False, False))
    for said, how, joint, merge in ways:
        # A model that was never seen, or the closed form would be at hand.
        fresh = [model.map(torch.clone) for _ in range(2)]
        spent = [agent_steps(fresh[0], depth, agents, steps, how, joint, merge) for _ in range(1 + rounds)]
        row(f"mfmarl, {said}, warm", min(spent[1:]), agents * steps)
        row(
            f"mfmarl, {said}, with its making",
            agent_steps(fresh[1], depth, agents, steps, how, joint, merge),
            agents * steps,
        )
    return rows


def crowd(rounds: int) -> list[dict[str, Any]]:
    """Time and memory as the crowd grows: each size by the growth of the peak, smallest first."""
    rows = []
    for name in WORLDS:
        model = ours({"t_maze": t_maze, "grid": grid}[name]())
        depth = WORLDS[name][0]
        hows: tuple[open_loop.How, ...] = ("closed_form", "tree")
        for how in hows:
            agent_steps(model, depth, 64, 2, how)
            for agents in (1024, 8192, 131_072):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                spent = min(agent_steps(model, depth, agents, 2, how) for _ in range(rounds))
                grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                rows.append(
                    {
                        "world": name,
                        "who": f"mfmarl, {how}, {agents} agents (+{grown / 1024:.0f} MB)",
                        "agent_steps_per_cpu_second": 2 * agents / spent,
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[*WORLDS, "crowd"], help="t_maze, grid, crowd")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the peer inherits it
    peer = Peer("peer_active_inference.py")
    rows: list[dict[str, Any]] = []
    for what in given.what:
        rows += crowd(given.rounds) if what == "crowd" else compare(what, peer, given.rounds)
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['world']:8} {row['who']:52} {row['agent_steps_per_cpu_second']:12,.0f} agent-steps/CPU-s")


if __name__ == "__main__":
    main()
