"""A small correct ParallelEnv, and ways to break it: what an author's first environment may look like."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Toy(ParallelEnv[str, Any, Any]):
    """Three walkers; the last dies at step 10, the others are cut off at `length`."""

    metadata = {"name": "toy_v0", "render_modes": []}
    render_mode = None

    def __init__(self, length: int = 14) -> None:
        self.possible_agents = [f"walker_{i}" for i in range(3)]
        self.agents: list[str] = []
        self.length = length
        self._seen, self._done = spaces.Box(-10, 10, (3,), np.float32), spaces.Discrete(4)

    def observation_space(self, agent: str) -> Any:
        return self._seen

    def action_space(self, agent: str) -> Any:
        return self._done

    def _observed(self) -> dict[str, Any]:
        rows = zip(self.possible_agents, self.x, strict=True)
        return {a: np.clip(x, -10, 10).astype(np.float32) for a, x in rows if a in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        self.agents, self.t = list(self.possible_agents), 0
        self.x = self.rng.normal(size=(3, 3))
        return self._observed(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        if not self.agents:
            raise RuntimeError("call reset() first")
        for action in actions.values():
            if not self._done.contains(action):
                raise ValueError(f"{action} is no action")
        self.t += 1
        for i, agent in enumerate(self.possible_agents):
            self.x[i, 0] += 0.1 * int(actions.get(agent, 0))
        self.x += 0.01 * self.rng.normal(size=(3, 3))
        over = self.t >= self.length
        dead = {a: self.t == 10 and a == "walker_2" for a in self.agents}
        seen = self._observed()
        rewards = {a: float(self.x[int(a[-1]), 0]) for a in self.agents}
        cut = dict.fromkeys(self.agents, over)
        infos: dict[str, dict[str, Any]] = {a: {} for a in self.agents}
        self.agents = [a for a in self.agents if not dead[a] and not over]
        return seen, rewards, dead, cut, infos
