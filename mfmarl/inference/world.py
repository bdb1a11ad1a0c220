r"""A generative model as the world itself: agents who each live in one of their own, drawn from the tables.

$$ s^f_{t+1} \sim B^f(\cdot \mid s_t, u_t), \qquad o^m_t \sim A^m(\cdot \mid s_t), \qquad r_t = \sum_m C^m(o^m_t) $$

The generative process that the model describes, so that an agent which is given the model knows the rules exactly. The
reward is what is preferred: a learner of rewards and an agent that infers want the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import senses
from mfmarl.inference.model import GenerativeModel
from mfmarl.options import Count
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.spec import Spec
from mfmarl.random import Key

_NUMBERED = 5000
"""Joint outcomes up to which observations are numbers; one-hot vectors above."""


class State(NamedTuple):
    states: Tensor  # [E, N, F] int64
    seen: Tensor  # [E, N, M] int64


def observation_space(model: GenerativeModel) -> gymnasium.Space[Any]:
    """The space in which an environment shows the outcomes of this model."""
    count = math.prod(model.outcomes)
    if count <= _NUMBERED:
        return gymnasium.spaces.Discrete(count)
    return gymnasium.spaces.Box(0.0, 1.0, (sum(model.outcomes),))


def shown(model: GenerativeModel, seen: Tensor) -> Tensor:
    """Outcomes int64 [*b, M] as an observation of that space: int64 [*b], or float32 [*b, sum O_m]."""
    if math.prod(model.outcomes) <= _NUMBERED:
        return senses.number(model, seen)
    parts = [torch.nn.functional.one_hot(seen[..., m], size) for m, size in enumerate(model.outcomes)]
    return torch.cat(parts, -1).to(torch.float32)


@dataclass(frozen=True, eq=False)
class World(PopulationEnv):
    """N worlds of one player each, drawn from a generative model without leading axes."""

    model: GenerativeModel
    """What is drawn from."""
    num_agents: Count = 1
    """Agents, each in a world of its own."""
    horizon: Count | None = 100
    """Steps of an episode; none: it never ends."""
    groups: tuple[str, ...] = ("agent",)
    """Names of groups, of as many agents each."""

    def __post_init__(self) -> None:
        if self.model.D[0].ndim != 1:
            raise ConfigError("A world is drawn from one model: its tables must have no leading axes.")

    def spec(self) -> Spec:
        actions = gymnasium.spaces.Discrete(self.model.num_actions)
        sizes = (self.num_agents // len(self.groups),) * len(self.groups)
        return Spec(self.num_agents, observation_space(self.model), actions, self.horizon, self.groups, sizes)

    def generative_model(self, group: int = 0) -> GenerativeModel:
        return self.model

    def reset(self, ids: Tensor, key: Key) -> State:
        states = [
            _drawn(d.expand(*ids.shape, -1), random.uniform(key.fold("first", f), ids))
            for f, d in enumerate(self._tables(ids.device).D)
        ]
        return self._seen(torch.stack(states, -1), ids, key)

    def observe(self, state: State) -> Tensor:
        return shown(self.model, state.seen)

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        model = self._tables(ids.device)
        settings = model.settings().to(ids.device)[action]
        states = []
        for f, table in enumerate(model.B):
            where = [state.states[..., g] for g in model.B_factors[f]] + [settings[..., g] for g in model.B_controls[f]]
            p = table.movedim(0, -1)[tuple(where)]
            states.append(_drawn(p, random.uniform(key.fold("move", f), ids)))
        after = self._seen(torch.stack(states, -1), ids, key)
        return after, self.reward(after)

    def reward(self, state: State) -> Tensor:
        """What is preferred of what is seen, [E, N]."""
        wanted = self._tables(state.seen.device).preferences()
        return torch.stack([c[state.seen[..., m]] for m, c in enumerate(wanted)]).sum(0).to(torch.float32)

    def _seen(self, states: Tensor, ids: Tensor, key: Key) -> State:
        model, seen = self._tables(ids.device), []
        for m, table in enumerate(model.A):
            p = table.movedim(0, -1)[tuple(states[..., f] for f in model.A_factors[m])]
            seen.append(_drawn(p, random.uniform(key.fold("see", m), ids)))
        return State(states, torch.stack(seen, -1))

    @cached_property
    def _moved(self) -> dict[torch.device, GenerativeModel]:
        return {}

    def _tables(self, device: torch.device) -> GenerativeModel:
        if device not in self._moved:
            self._moved[device] = self.model.to(device)
        return self._moved[device]


def _drawn(p: Tensor, u: Tensor) -> Tensor:
    """The outcome int64 [*b] of distributions [*b, K] at uniform numbers [*b] in [0, 1)."""
    # What has no probability is never drawn: the number is the first whose cumulative sum exceeds u.
    found = (p.cumsum(-1) <= u.to(p.dtype).unsqueeze(-1)).sum(-1)
    last = p.shape[-1] - 1 - (p.flip(-1) > 0).to(torch.int8).argmax(-1)
    return torch.minimum(found, last)
