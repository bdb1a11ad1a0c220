"""Uniformly random play: what every learner must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from gymnasium.spaces import Box
from torch import Tensor

from mfmarl import random
from mfmarl.learning.agent import Agent, AgentConfig
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register


@dataclass(frozen=True)
class UniformConfig(AgentConfig):
    """Options of random play: it feels nothing, and no temperature changes it."""

    field: str = "nothing"
    """What is felt of the others: no matter what, it plays the same."""


@register("random")
class Uniform(Agent):
    """Uniform over the legal actions, or over the Box (standard normal where it has no bounds)."""

    Config = UniformConfig
    divides = True
    low: Tensor
    high: Tensor

    def __init__(self, config: UniformConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        super().__init__(config, spec, slots, minds, key)
        if not spec.discrete:
            box = cast(Box, spec.action_space)
            self.register_buffer("low", torch.as_tensor(box.low).flatten().float(), persistent=False)
            self.register_buffer("high", torch.as_tensor(box.high).flatten().float(), persistent=False)

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        """Every action's energy is 0: [M, B, A]."""
        return torch.zeros((*field.shape[:2], self.spec.num_actions), device=field.device)

    def choose(self, obs: Tensor, field: Tensor, legal: Tensor | None, ids: Tensor, key: Key) -> Tensor:
        if self.spec.discrete:
            return super().choose(obs, field, legal, ids, key)
        level = random.uniform(key, ids, self.spec.num_actions)
        within = torch.isfinite(self.low) & torch.isfinite(self.high)
        # A bound of infinity times 0 would be NaN in the branch not taken.
        low, high = self.low.nan_to_num(posinf=0, neginf=0), self.high.nan_to_num(posinf=0, neginf=0)
        bell = torch.minimum(torch.maximum(torch.special.ndtri(level), self.low), self.high)
        return torch.where(within, low + (high - low) * level, bell)
