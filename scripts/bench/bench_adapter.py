"""What it costs to turn somebody else's dictionaries into tensors: agent-steps per CPU-second.

    python scripts/bench/bench_adapter.py [--rounds 5] [--json]

Each row plays one environment four ways, in turn, in one process, on random actions drawn beforehand:
`raw`, PettingZoo's own loop that throws everything away; `stacked`, the same loop with observations, rewards
and flags stacked into arrays, which is the least that a learner needs; `adapter`, through the dictionaries;
and, for MAgent2, `arrays`, through the engine. Medians over the rounds; an agent-step is a living agent's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mfmarl.population import third_party
from mfmarl.population.adapter import Adapter
from mfmarl.random import Key

# Name, options, steps, copies (the raw loops play one).
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "battle 64v64": ("magent2/battle_v4", {"map_size": 40}, 40, 4),
    "battle 64v64, 1 copy": ("magent2/battle_v4", {"map_size": 40}, 80, 1),
    "battle 256v256": ("magent2/battle_v4", {"map_size": 80}, 12, 2),
    "spread 3": ("mpe2/simple_spread_v3", {}, 50, 8),
    "spread 10": ("mpe2/simple_spread_v3", {"N": 10}, 15, 8),
    "tic-tac-toe": ("pettingzoo/classic/tictactoe-v3", {}, 60, 8),
}


def raw_loop(maker: third_party.Maker, steps: int, stack: bool) -> Callable[[], float]:
    """PettingZoo's own parallel loop: agent-steps per CPU-second of one call."""
    env = maker()
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 5, (steps, len(env.possible_agents))).tolist()

    def play() -> float:
        env.reset(seed=0)
        start, played, sink = time.process_time(), 0, 0.0
        for row in actions:
            if not env.agents:
                env.reset(seed=0)
            played += len(env.agents)
            obs, reward, terminated, truncated, _ = env.step(dict(zip(env.agents, row, strict=False)))
            if stack:
                view = np.stack(list(obs.values()))
                flags = np.array(list(terminated.values())) | np.array(list(truncated.values()))
                sink += float(view[0].sum() + np.array(list(reward.values()), np.float32).sum() + flags.sum())
        return played / (time.process_time() - start)

    return play


def turn_loop(maker: third_party.Maker, steps: int) -> Callable[[], float]:
    """PettingZoo's own AEC loop, first legal action."""
    env = maker()

    def play() -> float:
        env.reset(seed=0)
        start, played = time.process_time(), 0
        while played < steps:
            observation, _, terminated, truncated, _ = env.last()
            if terminated or truncated:
                env.step(None)
                if not env.agents:
                    env.reset(seed=0)
                continue
            env.step(int(np.argmax(observation["action_mask"])))
            played += 1
        return played / (time.process_time() - start)

    return play


def adapter_loop(maker: third_party.Maker, steps: int, copies: int) -> Callable[[], float]:
    """The same through an Adapter."""
    env = Adapter(maker, copies)
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(0, 5, (steps, *env.ids.shape), generator=generator)

    def play() -> float:
        timestep = env.reset(Key.of(0))
        start, played = time.process_time(), 0
        for t in range(steps):
            played += int(timestep.acting.sum())
            action = actions[t] if timestep.legal is None else timestep.legal.to(torch.uint8).argmax(-1)
            timestep = env.restart(env.step(action))
        return played / (time.process_time() - start)

    return play


def measure(name: str, options: dict[str, Any], steps: int, copies: int, rounds: int) -> dict[str, float]:
    """Agent-steps per CPU-second of each way, the median of the rounds."""
    maker = third_party.maker(name, options)
    plain = dataclasses.replace(maker, arrays=False)
    ways: dict[str, Callable[[], float]] = {}
    if "tictactoe" in name:
        ways["raw"] = turn_loop(maker, steps * copies)
    else:
        ways |= {"raw": raw_loop(plain, steps * copies, False), "stacked": raw_loop(plain, steps * copies, True)}
    ways["adapter"] = adapter_loop(plain, steps, copies)
    if maker.arrays:
        ways["arrays"] = adapter_loop(maker, steps, copies)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for play in ways.values():
        play()  # warm
    for _ in range(rounds):
        for way, play in ways.items():
            found[way].append(play())
    return {way: statistics.median(values) for way, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times each way is played (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for case, (name, options, steps, copies) in CASES.items():
        print(f"{case} ...", file=sys.stderr)
        rows[case] = measure(name, options, steps, copies, given.rounds)
    if given.json:
        print(json.dumps({"agent_steps_per_cpu_second": rows}))
        return
    print(
        f"{'agent-steps per CPU-second':28}" + "".join(f"{way:>12}" for way in ("raw", "stacked", "adapter", "arrays"))
    )
    for case, row in rows.items():
        cells = "".join(
            f"{row[way]:12,.0f}" if way in row else " " * 12 for way in ("raw", "stacked", "adapter", "arrays")
        )
        print(f"{case:28}{cells}")


if __name__ == "__main__":
    main()
