"""The rules of a game, as pure functions on tensors: what the author of an environment writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import fields
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, EnvironmentFault
from mfmarl.population.graph import Graph
from mfmarl.population.known import Known
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.spec import Spec
from mfmarl.random import Key


class PopulationEnv(ABC):
    """Rules without memory: everything that changes lives in the state, a NamedTuple of tensors [E, ...].

    Write an environment as a frozen dataclass: its fields are its options, on the command line too.
    `ids` [E, N] names every agent of every copy for keyed noise (`mfmarl.random`): draw from
    `key` and `ids` alone, and a copy will not know how many copies there are.
    """

    aec_order: ClassVar[Literal["simultaneous", "sequential"]] = "simultaneous"
    """The game that PettingZoo's agent-by-agent order plays. `simultaneous`: choices are collected and played
    as one step once everyone asked has chosen, which is the parallel game. `sequential`: each choice is a step of
    its own, in which all others hold their action in force, and it pays only the one that moved: another game, with
    another stationary law. Rules that say `sequential` have `standing`, and `step` heeds the whole action it is given."""

    ranks: Ranks = ALONE
    """Who plays the agents that are not here: sums over all agents are `self.ranks.sum` of the sums over those here."""
    here: Tensor | None = None
    """The numbers of the agents here, where a population is divided over ranks; None: all are."""
    near: Graph | None = None
    """Their part of the spec's graph, which asks other ranks for what lies beyond."""

    @abstractmethod
    def spec(self) -> Spec:
        """Agents, spaces, groups, graph, horizon. Called once per simulation."""

    @abstractmethod
    def reset(self, ids: Tensor, key: Key) -> Any:
        """The first state of every copy: E and the device are those of `ids`."""

    @abstractmethod
    def observe(self, state: Any) -> Tensor:
        """What every agent sees: [E, N, *O] float32, or [E, N] int64 for a Discrete space."""

    @abstractmethod
    def step(self, state: Any, action: Tensor, ids: Tensor, key: Key) -> tuple[Any, Tensor]:
        """The next state and each agent's reward [E, N] float32.

        `action` is [E, N] int64 (or [E, N, D] float32): for agents that were not asked to act, the
        action in force. The simulation pays nothing to the dead, whatever is returned for them.
        """

    def own_state(self) -> tuple[str, ...] | None:
        """The fields of the state that each agent has its own of, [E, N, ...], where the rules can be played for some of
        the agents alone: they then know of the others by `self.ranks` only. None, the default: they cannot.
        """
        return None

    def divided(self, ranks: Ranks, here: Tensor, near: Graph | None) -> Self:
        """These rules, played for the agents `here` alone."""
        if self.own_state() is None:
            raise ConfigError(
                f"{type(self).__name__} cannot be divided by agents: its rules need all of them in one place; "
                "divide the copies instead (--divide copies)."
            )
        rules = copy(self)
        # The options alone: what has been worked out from them was about all agents.
        options = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        rules.__dict__.clear()
        rules.__dict__.update(options, ranks=ranks, here=here, near=near)
        return rules

    def mine(self, x: Tensor) -> Tensor:
        """Of something about every agent [N, ...], what is about those here."""
        return x if self.here is None else x.index_select(0, self.here.to(x.device))

    # Optional rules. Each has the meaning of `Timestep`'s field; the default is the usual case.

    def alive(self, state: Any) -> Tensor | None:
        """Who lives, [E, N] bool; None: everyone, for ever. The dead stay dead until the next reset."""
        return None

    def acting(self, state: Any) -> Tensor | None:
        """Who is asked to act, [E, N] bool; None: all that live."""
        return None

    def legal(self, state: Any) -> Tensor | None:
        """Which actions are legal, [E, N, A] bool; None: all."""
        return None

    def done(self, state: Any) -> Tensor | None:
        """Which copies the rules have ended, [E] bool; None: only the horizon ends one."""
        return None

    def position(self, state: Any) -> Tensor | None:
        """Where the agents are, [E, N, D] float32; None: nowhere."""
        return None

    def standing(self, state: Any) -> Tensor | None:
        """The action in force after a reset, [E, N] (a spin's value); None: none yet."""
        return None

    def measure(self, state: Any) -> dict[str, Tensor]:
        """Order parameters of the population, [E] each: what reports plot and hold against `reference()`."""
        return {}

    def render(self, state: Any, copy: int = 0) -> Tensor:
        """A picture of one copy, uint8 [H, W, 3]. Optional: an environment without one is not drawn."""
        raise EnvironmentFault(f"{type(self).__name__} has no picture: give it a render(state, copy).")

    def generative_model(self, group: int = 0) -> Any:
        """One agent's model of its world, a `mfmarl.inference.model.GenerativeModel` in float64; None: it has none.

        What an agent sees are then the model's outcomes: a Discrete observation space numbers all modalities' outcomes
        together (the last modality fastest), a Box holds them as one-hot vectors, one modality after the other.
        """
        return None

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """Known answers for agents that act at this temperature (0: greedy), by the name of the measured number.

        Names are those of `measure`, and `reward` for the mean reward per agent and step.
        """
        return {}

    def reference_independent(self, temperature: float = 0.0) -> dict[str, Known]:
        """Known answers for agents that feel no field, where theirs is another law; the default: the same."""
        return self.reference(temperature)

    def fluctuations(self, temperature: float, independent: bool = False) -> dict[str, Known]:
        """Exact standard deviations over copies of what is measured at one moment, at this N, where they are known.

        `independent`: of agents that feel no field.
        """
        return {}


def agent_ids(copies: int, agents: int | Tensor, device: torch.device | str = "cpu", first_copy: int = 0) -> Tensor:
    """Ids [E, N] for keyed noise: the copy's number in the high 32 bits, the agent's in the low ones.

    `agents` is how many there are, or the numbers [N] of those wanted.
    """
    copy = torch.arange(first_copy, first_copy + copies, device=device, dtype=torch.int64)
    numbers = agents.to(device) if isinstance(agents, Tensor) else torch.arange(agents, device=device)
    return (copy << 32).unsqueeze(-1) + numbers


def copy_ids(ids: Tensor) -> Tensor:
    """Ids [E] of the copies, for noise that all agents of one share: that of agent 0, wherever it lives."""
    return ids[:, 0] >> 32 << 32
