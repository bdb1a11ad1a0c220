"""A small game without a fault, which `FaultyEnv` plays and breaks in one place.

Walkers on the line [0, 1] like each other's company: a walker is paid 1 - |x - mean of the living|. The last one dies
early, the others are cut off at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

ACTIONS = 3
"""Left, stay, right."""
SIZE = 4
"""What a walker sees: its place, the mean place, the share of the episode that is over, noise."""
LIFE = 4
"""The step in which the last walker dies, where `deaths`."""
OBSERVATIONS = ("box", "unbounded", "discrete", "dict")
CHOICES = ("discrete", "box")
MASKS = ("none", "info", "observation")


@dataclass
class Answer:
    """What one step (or a reset) came to; `observations` and the rest are of those who lived before it."""

    observations: Any
    rewards: Any
    terminations: Any
    truncations: Any
    infos: Any
    agents: list[str]
    """Who lives on."""


@dataclass
class Game:
    """The rules and their state. `noise` stands in for the game's own generator where it is given."""

    names: tuple[str, ...]
    max_cycles: int
    observation: str = "box"
    actions: str = "discrete"
    mask: str = "none"
    deaths: bool = True
    noise: Callable[[Game], float] | None = None
    t: int = 0
    x: dict[str, float] = field(default_factory=dict)
    alive: list[str] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    @property
    def first(self) -> str:
        """The walker that faults strike: it lives to the end."""
        return self.names[0]

    def observation_space(self) -> gymnasium.Space[Any]:
        box = gymnasium.spaces.Box(0.0, 1.0, (SIZE,), np.float32)
        mask = gymnasium.spaces.Box(0, 1, (ACTIONS,), np.int8)
        if self.mask == "observation":
            return gymnasium.spaces.Dict({"observation": box, "action_mask": mask})
        if self.observation == "unbounded":
            return gymnasium.spaces.Box(-np.inf, np.inf, (SIZE,), np.float32)
        if self.observation == "discrete":
            return gymnasium.spaces.Discrete(10)
        if self.observation == "dict":
            near = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
            return gymnasium.spaces.Dict({"self": near, "crowd": near})
        return box

    def action_space(self) -> gymnasium.Space[Any]:
        if self.actions == "box":
            return gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        return gymnasium.spaces.Discrete(ACTIONS)

    def begin(self, seed: int | None) -> Answer:
        """Raises nothing: every seed is a game."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t, self.alive = 0, list(self.names)
        self.x = {name: float(self.rng.random()) for name in self.names}
        return self.answer(self.alive)

    def move(self, actions: dict[str, Any]) -> Answer:
        """Raises ValueError for an action that is missing or outside the space."""
        moved = list(self.alive)
        self.chosen = actions
        for name in moved:
            if name not in actions:
                raise ValueError(f"{name} has not chosen")
            self.x[name] = self.moved(self.x[name], actions[name])
        self.t += 1
        ended = self.t >= self.max_cycles
        dead = [n for n in moved if self.deaths and not ended and n == self.names[-1] and self.t >= LIFE]
        self.alive = [] if ended else [name for name in moved if name not in dead]
        answer = self.answer(moved)
        answer.terminations = {name: name in dead for name in moved}
        answer.truncations = dict.fromkeys(moved, ended)
        return answer

    def moved(self, x: float, action: Any) -> float:
        """Where that action leads from there. Raises ValueError for an action outside the space."""
        if not self.action_space().contains(action):
            raise ValueError(f"the action {action!r} is outside {self.action_space()}")
        speed = float(action[0]) if self.actions == "box" else int(action) - 1.0
        return min(1.0, max(0.0, x + 0.1 * speed + 0.05 * (self.draw() - 0.5)))

    def draw(self) -> float:
        """Uniform on [0, 1)."""
        return float(self.rng.random()) if self.noise is None else float(self.noise(self))

    def answer(self, agents: list[str]) -> Answer:
        """What these walkers see and are paid now."""
        crowd = sum(self.x[name] for name in agents) / max(1, len(agents))
        return Answer(
            {name: self.seen(name, crowd) for name in agents},
            {name: 1.0 - abs(self.x[name] - crowd) for name in agents},
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, False),
            {name: {"action_mask": self.legal(name)} if self.mask == "info" else {} for name in agents},
            list(self.alive),
        )

    def seen(self, name: str, crowd: float) -> Any:
        clock = min(1.0, self.t / self.max_cycles)
        told = np.array([self.x[name], crowd, clock, self.draw()], np.float32)
        if self.mask == "observation":
            return {"observation": told, "action_mask": self.legal(name)}
        if self.observation == "discrete":
            return np.int64(9.999 * self.x[name])
        if self.observation == "dict":
            return {"self": told[:2], "crowd": told[2:]}
        return told

    def legal(self, name: str) -> np.ndarray:
        """Whoever stands at a wall cannot walk into it."""
        return np.array([self.x[name] > 0.05, True, self.x[name] < 0.95], np.int8)
