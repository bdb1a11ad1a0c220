"""PPO of stable-baselines3 through SuperSuit and PettingZoo's dictionaries: what one would use without mfmarl.

    python peer_supersuit.py [agents] [--rounds 6]

Needs stable-baselines3, SuperSuit and PettingZoo, but not mfmarl: SuperSuit may want older versions than mfmarl's,
so it is run by a Python of its own (`bench_training.py ppo --supersuit /path/to/python`). The game and the settings
are those of bench_training.py. The last line on standard output is a JSON object: `speed`, the agent-steps per
CPU-second of the best round, and `pay`, the mean reward of the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import supersuit
import torch
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv
from stable_baselines3 import PPO

STEPS = 16
SHIFT = np.array([0.137 * (k + 1) for k in range(8)], np.float32)


class Signals(ParallelEnv):
    """Eight signals that wander over [-1, 1]; the first four are what the four actions pay."""

    metadata = {"name": "signals_v0", "render_modes": []}  # noqa: RUF012

    def __init__(self, agents: int) -> None:
        self.possible_agents = [f"agent_{i}" for i in range(agents)]
        self.agents = self.possible_agents[:]
        self.seen, self.choice = Box(-1.0, 1.0, (8,), np.float32), Discrete(4)
        self.rows, self.render_mode = np.arange(agents), None

    def observation_space(self, agent: str) -> Box:
        return self.seen

    def action_space(self, agent: str) -> Discrete:
        return self.choice

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        self.x = np.random.default_rng(0).uniform(-1, 1, (len(self.agents), 8)).astype(np.float32)
        return dict(zip(self.agents, self.x, strict=True)), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        agents = self.agents
        pay = self.x[self.rows, np.array([actions[a] for a in agents])]
        moved = self.x * np.float32(1.7) + SHIFT
        self.x = np.asarray(moved - 2 * np.round(moved / 2), np.float32)
        no = dict.fromkeys(agents, False)
        return (
            dict(zip(agents, self.x, strict=True)),
            dict(zip(agents, pay.tolist(), strict=True)),
            no,
            dict(no),
            {a: {} for a in agents},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", type=int, nargs="?", default=1000)
    parser.add_argument("--rounds", type=int, default=6, help="rollouts measured (default 6)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    env = supersuit.concat_vec_envs_v1(
        supersuit.pettingzoo_env_to_vec_env_v1(Signals(given.agents)), 1, num_cpus=0, base_class="stable_baselines3"
    )
    torch.manual_seed(0)  # noqa: TID251 - a peer; SuperSuit's environment has no seed()
    model = PPO(
        "MlpPolicy", env, n_steps=STEPS, batch_size=STEPS * given.agents // 4, n_epochs=4, learning_rate=1e-3,
        gamma=0.95, policy_kwargs={"net_arch": [64, 64]}, device="cpu",
    )  # fmt: skip
    best, pay = float("inf"), 0.0
    for turn in range(2 + given.rounds):
        start = time.process_time()
        model.learn(STEPS * given.agents, reset_num_timesteps=False)
        if turn >= 2:
            best = min(best, time.process_time() - start)
        pay = float(model.rollout_buffer.rewards.mean())
    print(json.dumps({"agents": given.agents, "speed": STEPS * given.agents / best, "pay": pay}))


if __name__ == "__main__":
    main()
