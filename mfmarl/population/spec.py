"""What an environment tells before it starts: how many agents, which spaces, which teams, who sees whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import gymnasium
import numpy as np
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.population.graph import Graph


@dataclass(frozen=True, eq=False)
class Spec:
    """The shape of a population. Groups (teams, types, species) lie one after the other, so a team is a slice."""

    num_agents: int
    observation_space: gymnasium.Space
    """One agent's: a Box of any shape, or a Discrete (observations are then class numbers [E, N])."""
    action_space: gymnasium.Space
    """One agent's: Discrete(A), or a Box of shape (D,)."""
    horizon: int | None = None
    """Steps until an episode is truncated; None: only the environment itself ends it."""
    groups: tuple[str, ...] = ("agent",)
    group_sizes: tuple[int, ...] = ()
    """Agents of each group; empty: one group of all."""
    graph: Graph | None = None
    neighbourhood: str = ""
    """For documentation: what a neighbour is."""
    agent_names: tuple[str, ...] = field(default=(), repr=False)
    """PettingZoo names; empty: `<group>_<number in the group>`."""

    def __post_init__(self) -> None:
        if self.num_agents < 1:
            raise ConfigError(f"num_agents must be at least 1, not {self.num_agents}.")
        if not self.group_sizes:
            object.__setattr__(self, "group_sizes", (self.num_agents,))
        if len(self.groups) != len(self.group_sizes) or sum(self.group_sizes) != self.num_agents:
            raise ConfigError(
                f"Groups {self.groups} with sizes {self.group_sizes} do not make up {self.num_agents} agents."
            )
        if self.horizon is not None and self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1, not {self.horizon}.")
        if not isinstance(self.action_space, gymnasium.spaces.Discrete | gymnasium.spaces.Box):
            raise ConfigError(f"The action space must be Discrete or Box, not {self.action_space}.")
        if isinstance(self.action_space, gymnasium.spaces.Discrete) and int(self.action_space.start) != 0:
            raise ConfigError(f"A Discrete action space must start at 0, not at {self.action_space.start}.")
        if not isinstance(self.observation_space, gymnasium.spaces.Discrete | gymnasium.spaces.Box):
            raise ConfigError(f"The observation space must be Discrete or Box, not {self.observation_space}.")

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
