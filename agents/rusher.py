"""A scripted fighter for MAgent2's battle: strike whom it can reach, else go for the nearest enemy.

Random play kills almost nobody, so it shows nothing; this is the least that a learner must beat. The energy
of a blow is below that of any move, least against the weakest enemy; the energy of a move is the
distance to the nearest enemy that is left after it. With nobody in sight it heads for the middle of the
living enemies, or, where positions are unknown, for the side they began on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.learning.agent import Agent, AgentConfig, forbid
from mfmarl.options import Bounds
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech import gibbs

# The engine's actions: 13 squares within two steps, row by row, then the 8 neighbours to strike, row by row.
MOVES = tuple((dx, dy) for dy in range(-2, 3) for dx in range(-2, 3) if abs(dx) + abs(dy) <= 2)
BLOWS = tuple((dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dx, dy) != (0, 0))
_FAR = 1e4  # the energy of what cannot be done: a blow at nobody, a move onto somebody


def rush_energy(view: Tensor, heading: Tensor) -> Tensor:
    """The energy of every action: [*b, 13, 13, C] and where to go when nobody is in sight [*b, 2] (x, y) -> [*b, 21].

    The view's first axis is y and its second x, the agent in the middle; its channels are obstacles, own
    team, own health, (minimap,) enemies, their health.
    """
    height, width, channels = view.shape[-3:]
    # With a minimap there are two more channels within the view and two behind it; extra features are 32 more.
    enemy = 4 if channels in (9, 41) else 3
    middle_y, middle_x = height // 2, width // 2
    foe, health = view[..., enemy] > 0, view[..., enemy + 1]
    taken = (view[..., 0] > 0) | (view[..., 1] > 0) | foe

    blows = []
    for dx, dy in BLOWS:
        y, x = middle_y + dy, middle_x + dx
        blows.append(torch.where(foe[..., y, x], health[..., y, x] - 1000.0, torch.full_like(health[..., y, x], _FAR)))

    rows = torch.arange(height, device=view.device, dtype=view.dtype)
    columns = torch.arange(width, device=view.device, dtype=view.dtype)
    seen = foe.flatten(-2).any(-1)
    length = heading.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    forward = heading / length
    moves = []
    for dx, dy in MOVES:
        y, x = middle_y + dy, middle_x + dx
        distance = ((rows - y).square().unsqueeze(-1) + (columns - x).square()).sqrt()
        nearest = torch.where(foe, distance, torch.full_like(distance, _FAR)).flatten(-2).amin(-1)
        onward = -(forward[..., 0] * dx + forward[..., 1] * dy)
        energy = torch.where(seen, nearest, onward)
        if (dx, dy) != (0, 0):
            energy = torch.where(taken[..., y, x], torch.full_like(energy, _FAR), energy)
        moves.append(energy)
    return torch.stack(moves + blows, dim=-1)


@dataclass(frozen=True)
class RusherConfig(AgentConfig):
    """Options of the scripted rusher."""

    field: str = "nothing"
    """It feels nobody."""
    temperature: str = "0"
    """Of its choice among actions: 0 is the surest rush, higher ones blunder."""
    reluctance: Annotated[float, Bounds(0.0, 1.0)] = 0.0
    """The chance of standing still in a step: a weaker opponent."""


@register("rusher")
class Rusher(Agent):
    """A scripted fighter for MAgent2's battles: strikes whom it can reach, else goes for the nearest enemy."""

    Config = RusherConfig
    needs_discrete = True
    memory = "none"
    divides = True
    side: Tensor

    def __init__(self, config: RusherConfig, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        shape = spec.observation_shape
        if len(shape) != 3 or shape[:2] != (13, 13) or spec.num_actions != len(MOVES) + len(BLOWS):
            raise ConfigError("rusher can only play magent2/battle_v4 and magent2/battlefield_v5.")
        super().__init__(config, spec, slots, minds, key)
        # The first team begins on the left, the second on the right.
        side = torch.where(spec.group[slots] == 0, 1.0, -1.0)
        self.register_buffer("side", torch.stack([side, torch.zeros_like(side)], dim=-1), persistent=False)

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        copies = obs.shape[0] * obs.shape[1] // self.num_slots
        side = self.side if self.minds > 1 else self.side.repeat(copies, 1)
        heading = side.unsqueeze(1).expand(-1, obs.shape[1], -1) if self.minds > 1 else side.unsqueeze(0)
        return rush_energy(obs, heading)

    def act(self, timestep: Timestep, field: Tensor, ids: Tensor, key: Key) -> Tensor:
        legal = None if timestep.legal is None else timestep.legal[:, self.slots]
        energy = forbid(rush_energy(timestep.obs[:, self.slots], self.heading(timestep)), legal)
        action = gibbs.sample(energy, self.temperature, ids, key)
        if self.config.reluctance:
            idle = random.uniform(key.fold("reluctance"), ids) < self.config.reluctance
            action = torch.where(idle, MOVES.index((0, 0)), action)
        return action

    def heading(self, timestep: Timestep) -> Tensor:
        """From each agent to the middle of its living enemies, [E, n, 2]; to their side where nobody's place is known."""
        copies = timestep.alive.shape[0]
        fixed = self.side.unsqueeze(0).expand(copies, -1, -1)
        if timestep.position is None:
            return fixed
        group = self.spec.group.to(timestep.alive.device)
        heading = fixed.clone()
        mine = group[self.slots]
        for team in mine.unique():
            living = (timestep.alive & (group != team)).unsqueeze(-1)
            count = living.sum(1, keepdim=True)
            middle = (timestep.position * living).sum(1, keepdim=True) / count.clamp(min=1)
            toward = middle - timestep.position[:, self.slots]
            heading = torch.where((mine == team).unsqueeze(-1) & (count > 0), toward, heading)
        return heading
