"""Mean-field Q-learning of XuanCe on the game of bench_training.py: agent-steps per CPU-second.

    python peer_xuance.py [agents] [--steps 60]

Needs XuanCe (1.4, which wants numpy < 2) but not mfmarl, so it is run by a Python of its own
(`bench_training.py mfq --xuance /path/to/python`). One copy of the environment, one shared network of 64-64, an
update after each step, as mfmarl's is measured. XuanCe's batches are steps of everybody: the smallest, one
step, is the default here, which is `agents` rows to an update; as shipped it takes 256 steps, every 25 steps
(`--batch 256 --every 25`). The last line on standard output is a JSON object: `speed` with learning, `acting` without.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from argparse import Namespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from xuance.environment import REGISTRY_MULTI_AGENT_ENV, RawMultiAgentEnv, make_envs
from xuance.torch.agents import MFQ_Agents

SHIFT = np.array([0.137 * (k + 1) for k in range(8)], np.float32)


class Signals(RawMultiAgentEnv):
    """Eight signals that wander over [-1, 1]; the first four are what the four actions pay."""

    def __init__(self, config: Namespace) -> None:
        super().__init__()
        self.agents = [f"agent_{i}" for i in range(config.agents)]
        self.num_agents, self.env_id = config.agents, "signals"
        self.metadata: dict[str, Any] = {}
        self.state_space = Box(-1.0, 1.0, (8,), np.float32)
        seen, choice = Box(-1.0, 1.0, (8,), np.float32), Discrete(4)
        self.observation_space = dict.fromkeys(self.agents, seen)
        self.action_space = dict.fromkeys(self.agents, choice)
        self.agent_groups = [self.agents]
        self.max_episode_steps, self.rows = 1_000_000, np.arange(config.agents)
        self.paid = dict.fromkeys(self.agents, 0.0)

    def reset(self) -> tuple[dict, dict]:
        self.x = np.random.default_rng(0).uniform(-1, 1, (self.num_agents, 8)).astype(np.float32)
        return self._seen(), {"infos": {}, "individual_episode_rewards": self.paid}

    def _seen(self) -> dict[str, np.ndarray]:
        return dict(zip(self.agents, self.x, strict=True))

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, bool, dict]:
        pay = self.x[self.rows, np.array([actions[a] for a in self.agents])]
        moved = self.x * np.float32(1.7) + SHIFT
        self.x = np.asarray(moved - 2 * np.round(moved / 2), np.float32)
        rewards = dict(zip(self.agents, pay.tolist(), strict=True))
        told = {"infos": {}, "individual_episode_rewards": self.paid}
        return self._seen(), rewards, dict.fromkeys(self.agents, False), False, told

    def state(self) -> np.ndarray:
        return self.x[0]

    def agent_mask(self) -> dict[str, bool]:
        return dict.fromkeys(self.agents, True)

    def avail_actions(self) -> dict[str, np.ndarray]:
        return dict.fromkeys(self.agents, np.ones(4, np.bool_))

    def render(self, *arguments: Any) -> None: ...
    def close(self) -> None: ...


def settings(agents: int, steps: int, batch: int, every: int, folder: str) -> Namespace:
    """XuanCe's `configs/mfq/mpe`, with our network, one copy and an update each step."""
    return Namespace(
        dl_toolbox="torch", device="cpu", agent="MFQ", env_name="signals", env_id="signals", env_seed=1,
        agents=agents, learner="MFQ_Learner", policy="MF_Q_network", representation="Basic_Identical",
        vectorize="DummyVecMultiAgentEnv", runner="MARL", use_rnn=False, rnn="GRU", N_recurrent_layers=1,
        fc_hidden_sizes=[64], recurrent_hidden_size=64, dropout=0, representation_hidden_size=[],
        action_embedding_hidden_size=[16], q_hidden_size=[64, 64], activation="relu", seed=1, parallels=1,
        buffer_size=256, batch_size=max(batch, 1), learning_rate=0.001, gamma=0.95, policy_type="Boltzmann", temperature=1.0,
        start_greedy=0.0, end_greedy=0.0, decay_step_greedy=1.0, start_training=1 if batch else 10**9,
        running_steps=steps, training_frequency=every, sync_frequency=100, use_grad_clip=True, grad_clip_norm=10.0,
        use_parameter_sharing=True, use_actions_mask=False, use_global_state=False, eval_interval=10**9,
        test_episode=1, n_epochs=1, log_dir=folder, model_dir=folder, logger="tensorboard", render=False, fps=10,
        render_mode=None, distributed_training=False, continuous_action=False, test_mode=False, master_port="0",
    )  # fmt: skip


def speed(agents: int, steps: int, batch: int, every: int) -> float:
    """Agent-steps per CPU-second, the best of three rounds; `batch` 0: acting alone."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings(agents, steps, batch, every, folder)
        envs = make_envs(config)
        envs.reset()
        learner = MFQ_Agents(config, envs)
        learner.log_infos = lambda *arguments, **options: None  # its log is not what is measured
        best = float("inf")
        for turn in range(4):
            start = time.process_time()
            learner.train(steps)
            best = min(best, time.process_time() - start) if turn else best
        learner.finish()
    return agents * steps / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", type=int, nargs="?", default=1000)
    parser.add_argument("--steps", type=int, default=20, help="environment steps a round, of four (default 20)")
    parser.add_argument("--batch", type=int, default=1, help="steps of everybody to an update (default 1)")
    parser.add_argument("--every", type=int, default=1, help="steps between updates (default 1)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    REGISTRY_MULTI_AGENT_ENV["signals"] = Signals
    with contextlib.redirect_stdout(sys.stderr):
        learning = speed(given.agents, given.steps, given.batch, given.every)
        found = {"speed": learning, "acting": speed(given.agents, given.steps, 0, 1)}
    print(json.dumps({"agents": given.agents, **found}))


if __name__ == "__main__":
    main()
