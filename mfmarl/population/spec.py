"""What an environment tells before it starts: how many agents, which spaces, which teams, who sees whom."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.population.graph import Graph
from mfmarl.population.ranks import ALONE, Ranks


@dataclass(frozen=True, eq=False)
class Spec:
    """The shape of a population. Groups (teams, types, species) lie one after the other, so a team is a slice."""

    num_agents: int
    observation_space: gymnasium.Space[Any]
    """One agent's: a Box of any shape, or a Discrete (observations are then class numbers [E, N])."""
    action_space: gymnasium.Space[Any]
    """One agent's: Discrete(A), or a Box of shape (D,)."""
    horizon: int | None = None
    """Steps until an episode is truncated; None: only the environment itself ends it."""
    groups: tuple[str, ...] = ("agent",)
    group_sizes: tuple[int, ...] = ()
    """Agents of each group; empty: one group of all."""
    graph: Graph | None = None
    discount: float = 0.95
    """The discount per step that the game is meant to be learned with; 0 for a stage game played again and again,
    whose known answers are those of agents that look no further than the step."""
    agent_names: tuple[str, ...] = field(default=(), repr=False)
    """PettingZoo names; empty: `<group>_<number in the group>`."""
    ends: bool = False
    """Whether the game is over at its horizon (everyone is terminated: nothing follows) or only cut off (truncated)."""
    rules: Any = field(default=None, repr=False)
    """The `PopulationEnv` itself, for agents that are given a model of their world instead of learning one; None where
    nobody knows the rules, as of a third-party environment."""
    whole: Spec | None = field(default=None, repr=False)
    """Of a part of a population, on one of several ranks: the spec of all. None: everybody is here."""
    ranks: Ranks = field(default=ALONE, repr=False)
    """Who plays the other parts."""

    def __post_init__(self) -> None:
        _whole("num_agents", self.num_agents)
        if self.num_agents > 1 << 32:
            raise ConfigError(f"A copy has at most 2^32 agents, whose numbers name their noise, not {self.num_agents}.")
        if not self.group_sizes:
            object.__setattr__(self, "group_sizes", (self.num_agents,))
        if (
            len(self.groups) != len(self.group_sizes)
            or sum(self.group_sizes) != self.num_agents
            or (min(self.group_sizes) < 1 and self.whole is None)
        ):
            raise ConfigError(
                f"Groups {self.groups} with sizes {self.group_sizes} do not make up {self.num_agents} agents."
            )
        if len(set(self.groups)) != len(self.groups):
            raise ConfigError(f"Groups need different names, not {self.groups}.")
        if self.horizon is not None:
            _whole("horizon", self.horizon)
        if self.ends and self.horizon is None:
            raise ConfigError("A game that ends needs a horizon: give the number of steps.")
        discrete, box = gymnasium.spaces.Discrete, gymnasium.spaces.Box
        for what, space in (("action", self.action_space), ("observation", self.observation_space)):
            if not isinstance(space, discrete | box):
                raise ConfigError(f"The {what} space must be Discrete or Box, not {space}.")
            if isinstance(space, discrete) and int(space.start) != 0:
                raise ConfigError(f"A Discrete {what} space must start at 0, not at {space.start}.")
        if isinstance(self.action_space, box) and len(self.action_space.shape) != 1:
            raise ConfigError(f"A Box action space must have shape (D,), not {self.action_space.shape}.")
        if self.graph is not None and self.graph.num_agents != self.num_agents:
            raise ConfigError(f"The graph has {self.graph.num_agents} agents; the spec has {self.num_agents}.")
        if self.agent_names and not (len(set(self.agent_names)) == len(self.agent_names) == self.num_agents):
            raise ConfigError(f"agent_names must be {self.num_agents} different names, one for each agent.")

    def limited(self, steps: int | None) -> Spec:
        """This spec, cut off after so many steps (None: never); a game that ends is never played past its end."""
        if self.ends and (steps is None or steps >= (self.horizon or 0)):
            return self
        return replace(self, horizon=steps, ends=False)

    @property
    def discrete(self) -> bool:
        return isinstance(self.action_space, gymnasium.spaces.Discrete)

    @property
    def num_actions(self) -> int:
        """A for discrete actions, the dimension D of the Box for continuous ones."""
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            return int(self.action_space.n)
        return int(np.prod(self.action_space.shape or ()))

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Empty for a Discrete observation space."""
        return tuple(self.observation_space.shape or ())

    @cached_property
    def group(self) -> Tensor:
        """Each agent's group number, [N] int64."""
        return torch.repeat_interleave(torch.arange(len(self.groups)), torch.tensor(self.group_sizes))

    @cached_property
    def group_slices(self) -> dict[str, slice]:
        ends = np.cumsum(self.group_sizes)
        return {
            name: slice(int(end - size), int(end))
            for name, size, end in zip(self.groups, self.group_sizes, ends, strict=True)
        }

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The agents' PettingZoo names, in order."""
        return self.agent_names or tuple(
            f"{name}_{i}" for name, size in zip(self.groups, self.group_sizes, strict=True) for i in range(size)
        )


def _whole(what: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise ConfigError(f"{what} must be a whole number, not {number!r}.")
    if number < 1:
        raise ConfigError(f"{what} must be at least 1, not {number}.")
