"""What PettingZoo's dictionaries cost: mfmarl's parallel face against a hand-written environment of the same rules.

    python scripts/bench/bench_pettingzoo.py [--rounds 15] [--json]

The rules: Ising spins on a torus. An action is a spin, the observation the sum of the four neighbours'
spins (a Box of one number), the reward half the spin times that sum. The comparator is what one writes
after PettingZoo's tutorial when one cares for speed: numpy for the lattice, dictionaries at the door.
Both are played in turn, in one process, on the same actions; the number is the ratio of their CPU
seconds, the median over the rounds. Beside them the batched step of the same rules (`Simulation`, one copy), which is
what mfmarl's own training pays: `over` is what names, five dictionaries and their reading add to it, per agent-step, and
`lazy` the same with `lazy=True`, whose answers are views of arrays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv
from torch import Tensor

from mfmarl import random
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.parallel import PopulationParallelEnv
from mfmarl.population.simulation import Simulation
from mfmarl.population.spec import Spec
from mfmarl.random import Key


class HandWritten(ParallelEnv[str, Any, Any]):
    """The comparator: numpy inside, dictionaries outside, no library."""

    metadata = {"name": "hand_written_v0", "render_modes": []}  # noqa: RUF012

    def __init__(self, side: int, max_cycles: int = 1_000_000) -> None:
        self.side, self.max_cycles = side, max_cycles
        self.possible_agents = [f"agent_{i}" for i in range(side * side)]
        self._observation_space = Box(-4.0, 4.0, (1,), np.float32)
        self._action_space = Discrete(2)

    def observation_space(self, agent: str) -> gymnasium.Space:
        return self._observation_space

    def action_space(self, agent: str) -> gymnasium.Space:
        return self._action_space

    def _field(self) -> np.ndarray:
        s = self.spins
        return np.roll(s, 1, 0) + np.roll(s, -1, 0) + np.roll(s, 1, 1) + np.roll(s, -1, 1)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        self.steps = 0
        self.spins = np.random.default_rng(seed).choice(np.array([-1.0, 1.0], np.float32), (self.side, self.side))
        rows = self._field().reshape(-1, 1)
        return {a: rows[i] for i, a in enumerate(self.agents)}, {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        agents = self.agents
        chosen = np.array([actions[a] for a in agents])
        if chosen.min() < 0 or chosen.max() > 1:
            raise ValueError("an action is outside Discrete(2)")
        self.spins = (2.0 * chosen - 1.0).astype(np.float32).reshape(self.side, self.side)
        self.steps += 1
        field = self._field()
        reward = (0.5 * self.spins * field).ravel().tolist()
        rows = field.reshape(-1, 1)
        late = self.steps >= self.max_cycles
        observations = {a: rows[i] for i, a in enumerate(agents)}
        rewards = dict(zip(agents, reward, strict=True))
        terminations = dict.fromkeys(agents, False)
        truncations = dict.fromkeys(agents, late)
        infos: dict[str, dict] = {a: {} for a in agents}
        if late:
            self.agents = []
        return observations, rewards, terminations, truncations, infos


class Spins(NamedTuple):
    spin: Tensor
    around: Tensor


@dataclass(frozen=True)
class TorusIsing(PopulationEnv):
    """The same rules for mfmarl."""

    side: int = 10

    def spec(self) -> Spec:
        return Spec(self.side**2, Box(-4.0, 4.0, (1,), np.float32), Discrete(2), horizon=1_000_000)

    def _state(self, spin: Tensor) -> Spins:
        s = (2.0 * spin - 1.0).view(-1, self.side, self.side)
        around = s.roll(1, 1) + s.roll(-1, 1) + s.roll(1, 2) + s.roll(-1, 2)
        return Spins(s.view(spin.shape), around.view(spin.shape))

    def reset(self, ids: Tensor, key: Key) -> Spins:
        return self._state(random.integers(key, ids, 2))

    def observe(self, state: Spins) -> Tensor:
        return state.around.unsqueeze(-1)

    def step(self, state: Spins, action: Tensor, ids: Tensor, key: Key) -> tuple[Spins, Tensor]:
        new = self._state(action)
        return new, 0.5 * new.spin * new.around


def seconds(play: Callable[[], Any], steps: int) -> float:
    """CPU seconds per step."""
    begin = time.process_time()
    for _ in range(steps):
        play()
    return (time.process_time() - begin) / steps


def compare(side: int, rounds: int) -> dict[str, float]:
    """Median CPU microseconds per step of all four, and the medians of the paired ratios and differences."""
    ours, theirs = PopulationParallelEnv(TorusIsing(side)), HandWritten(side)
    lazy, batched = PopulationParallelEnv(TorusIsing(side), lazy=True), Simulation(TorusIsing(side), check=False)
    for env in (ours, theirs, lazy):
        env.reset(seed=0)
    batched.reset(Key.of(0))
    rng, agents = np.random.default_rng(0), side * side
    plans = [dict(zip(ours.agents, rng.integers(2, size=agents).tolist(), strict=True)) for _ in range(8)]
    columns = [torch.tensor([list(plan.values())]) for plan in plans]
    for plan, column in zip(plans, columns, strict=True):  # the same game, or the ratio means nothing
        mine, other, view = ours.step(plan), theirs.step(plan), lazy.step(plan)
        assert mine[1] == other[1] == dict(view[1])
        assert all(np.array_equal(mine[0][a], other[0][a]) for a in ours.agents)
        assert batched.step(column).reward[0].tolist() == list(mine[1].values())
    steps = max(3, 40_000 // agents)
    turn = iter(range(10**9))
    rows = []
    for _ in range(rounds):
        rows.append(
            (
                seconds(lambda: ours.step(plans[next(turn) % 8]), steps),
                seconds(lambda: theirs.step(plans[next(turn) % 8]), steps),
                seconds(lambda: lazy.step(plans[next(turn) % 8]), steps),
                seconds(lambda: batched.step(columns[next(turn) % 8]), steps),
            )
        )
    return {
        "agents": agents,
        "mfmarl_us": 1e6 * statistics.median(a for a, _, _, _ in rows),
        "hand_written_us": 1e6 * statistics.median(b for _, b, _, _ in rows),
        "batched_us": 1e6 * statistics.median(d for _, _, _, d in rows),
        "ratio": statistics.median(a / b for a, b, _, _ in rows),
        "over_us_per_agent": 1e6 * statistics.median((a - d) / agents for a, _, _, d in rows),
        "lazy_over_us_per_agent": 1e6 * statistics.median((c - d) / agents for _, _, c, d in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [compare(side, options.rounds) for side in (10, 32, 100, 317)]
    if options.json:
        json.dump({"pettingzoo": rows}, sys.stdout)
        return
    print("CPU microseconds: of a step; and of an agent-step, over the batched step")
    print(f"{'agents':>8}{'mfmarl':>12}{'hand-written':>14}{'ratio':>7}{'batched':>11}{'over':>8}{'lazy':>8}")
    for row in rows:
        print(
            f"{row['agents']:>8.0f}{row['mfmarl_us']:>12.1f}{row['hand_written_us']:>14.1f}{row['ratio']:>7.2f}"
            f"{row['batched_us']:>11.1f}{row['over_us_per_agent']:>8.3f}{row['lazy_over_us_per_agent']:>8.3f}"
        )


if __name__ == "__main__":
    main()
