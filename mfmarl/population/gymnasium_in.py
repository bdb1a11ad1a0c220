"""A Gymnasium environment as a population of one: `gymnasium/CartPole-v1`, a user's `gymnasium.Env`.

It is dressed as a PettingZoo ParallelEnv whose only agent is `agent_0`, so that copies, seeds, time limits (truncation),
pictures and resuming are `mfmarl.population.adapter`'s, as for every third party. Observations that are tuples,
dictionaries or several numbers are flattened as Gymnasium flattens them (one-hot where they count); several discrete actions
become one that counts them all, the last the fastest.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from mfmarl.errors import ConfigError

AGENT = "agent_0"
_MOST_ACTIONS = 4096


class OneAgent:
    """One environment, played by one agent.

    Raises ConfigError for an observation space that has no flat form, and for more combined actions than 4096.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        self.env = env
        self.metadata = env.metadata
        self.render_mode = env.render_mode
        self.possible_agents = [AGENT]
        self.agents: list[str] = []
        self._seen = env.observation_space
        self._flat = not isinstance(self._seen, spaces.Box | spaces.Discrete) and not _masked(self._seen)
        shown = self._seen
        if self._flat:
            flat = spaces.flatten_space(self._seen) if self._seen.is_np_flattenable else None
            if not isinstance(flat, spaces.Box):
                raise ConfigError(
                    f"{name}: the observation space {self._seen} has no fixed size; expected a Box, a Discrete, or a "
                    "Tuple or Dict of those."
                )
            shown = flat
        self._shown = shown
        own = env.action_space
        self._counts: tuple[int, ...] | None = None
        self._starts = np.zeros(0, np.int64)
        if isinstance(own, spaces.MultiDiscrete):
            self._counts, self._starts = tuple(own.nvec.flatten().tolist()), own.start.flatten()
        elif isinstance(own, spaces.MultiBinary):
            self._counts = (2,) * int(np.prod(own.shape))
            self._starts = np.zeros(len(self._counts), np.int64)
        if self._counts is not None:
            number = 1
            for count in self._counts:
                number *= count
            if number > _MOST_ACTIONS:
                raise ConfigError(
                    f"{name}: its actions {own} are {number} when counted together, more than {_MOST_ACTIONS}; expected "
                    "a Discrete or a Box of floats (a wrapper can make them so)."
                )
            self._action: spaces.Space[Any] = spaces.Discrete(number)
        else:
            self._action = own

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._shown

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._action

    def _observed(self, value: Any) -> Any:
        return spaces.flatten(self._seen, value) if self._flat else value

    def _played(self, action: Any) -> Any:
        if self._counts is None:
            return action
        digits = np.array(np.unravel_index(int(action), self._counts)) + self._starts
        own = self.env.action_space
        return digits.reshape(own.shape).astype(own.dtype)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode."""
        value, info = self.env.reset(seed=seed, options=options)
        self.agents = [AGENT]
        return {AGENT: self._observed(value)}, {AGENT: info}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """One step; the agent leaves when its episode is over."""
        value, reward, terminated, truncated, info = self.env.step(self._played(actions[AGENT]))
        if terminated or truncated:
            self.agents = []
        return (
            {AGENT: self._observed(value)},
            {AGENT: reward},
            {AGENT: terminated},
            {AGENT: truncated},
            {AGENT: info},
        )

    def render(self) -> Any:
        """The environment's picture; None where what draws it (pygame, say) is not installed: a run goes on without."""
        try:
            return self.env.render()
        except gymnasium.error.DependencyNotInstalled:
            return None

    def close(self) -> None:
        self.env.close()


def _masked(space: spaces.Space[Any]) -> bool:
    """A Dict of observation and action mask, which every third party may have."""
    return isinstance(space, spaces.Dict) and set(space.spaces) == {"observation", "action_mask"}
