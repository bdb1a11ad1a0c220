"""Who plays what: agents by name, given slots of a population and one mind or many."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch

from mfmarl.errors import ConfigError, nearest
from mfmarl.learning.agent import Agent
from mfmarl.learning.memory import Crowd, Replay, Rollout
from mfmarl.learning.run_config import Choice, RunConfig
from mfmarl.options import from_table
from mfmarl.population.division import Division
from mfmarl.population.ranks import ALONE
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import lookup


@dataclass
class Player:
    """An agent, the slots it plays, and what it learns from."""

    name: str
    agent: Agent
    slots: slice
    memory: Replay | Rollout | Any
    """None: it does not learn. Of an agent that another library trains: whatever that has gathered."""

    @property
    def remember(self) -> int | None:
        return getattr(self.agent.config, "remember", None)


def make_agent(choice: Choice, spec: Spec, slots: slice, minds: int, key: Key, device: torch.device) -> Agent:
    """The registered agent of that name, with its options checked.

    Raises ConfigError for an unknown name or option, or an environment the agent cannot play.
    """
    entry = lookup("agent", choice.name)
    kind: Any = entry.load()
    if not (isinstance(kind, type) and issubclass(kind, Agent)):
        raise ConfigError(f"{choice.name!r} is not an agent: it must derive mfmarl.learning.agent.Agent.")
    options = {**dict(entry.overrides), **choice.options}
    clash = [k for k, v in entry.overrides if choice.options.get(k, v) != v]
    if clash:
        raise ConfigError(
            f"{choice.name} is {entry.twin} with {clash[0]} = {dict(entry.overrides)[clash[0]]!r}; use {entry.twin} to change it."
        )
    config = from_table(kind.Config, options, f"agent {choice.name}")
    return kind(config, spec, slots, minds, key).to(device)


def make_players(config: RunConfig, spec: Spec, key: Key, device: torch.device) -> list[Player]:
    """One player per group, or one for all where minds are shared by all and nobody chose otherwise."""
    players = []
    for name, slots in teams_of(config, spec).items():
        choice = config.agents.get(name) or config.agents["all"]
        minds = slots.stop - slots.start if config.run.sharing == "none" else 1
        agent = make_agent(choice, spec, slots, minds, key.fold("agent", name), device)
        players.append(Player(name, agent, slots, make_memory(agent)))
    return players


def teams_of(config: RunConfig, spec: Spec) -> dict[str, slice]:
    """The slots of each player, by its name. Raises ConfigError for a group that is not there, or that nobody plays."""
    chosen = dict(config.agents)
    unknown = [group for group in chosen if group != "all" and group not in spec.groups]
    if unknown:
        raise ConfigError(
            f"There is no group {unknown[0]!r} in {config.environment.name}.{nearest(unknown[0], spec.groups)}"
        )
    missing = [group for group in spec.groups if group not in chosen]
    if "all" not in chosen and missing:
        raise ConfigError(f"Nobody plays {missing[0]!r}; write for example --agents {missing[0]}=mfq.")
    if set(chosen) == {"all"} and (config.run.sharing == "all" or len(spec.groups) == 1):
        return {"all": slice(0, spec.num_agents)}
    return dict(spec.group_slices)


def divide(players: Sequence[Player], division: Division) -> None:
    """Tell players and their memories whose rows they have of a population that is divided over ranks.

    Raises ConfigError for one that cannot learn from a part of its crowd.
    """
    for player in players:
        player.agent.ranks = division.ranks
        if division.whole:
            continue
        reason = player.agent.why_whole()
        if reason:
            raise ConfigError(
                f"{player.name}: cannot learn in a population that is divided over ranks: {reason}; use one rank."
            )
        if isinstance(player.memory, Replay | Rollout):
            player.memory.crowd = Crowd(division, player.name)


def as_whole(players: Sequence[Player], division: Division) -> list[Player]:
    """The players, with the same weights, as those of a population that is in one place."""
    if division.whole:
        return list(players)
    found = []
    for player in players:
        agent, slots = copy(player.agent), division.slots(player.name)
        agent.spec, agent.slots, agent.num_slots, agent.ranks = division.spec, slots, slots.stop - slots.start, ALONE
        found.append(Player(player.name, agent, slots, None))
    return found


def make_memory(agent: Agent) -> Replay | Rollout | Any:
    """The memory an agent asks for."""
    if agent.memory == "replay":
        return Replay(agent.minds, agent.config.capacity, getattr(agent.config, "priority", 0.0))
    if agent.memory == "rollout":
        return Rollout(agent.config.rollout)
    if agent.memory == "self":
        return getattr(agent, "past", None)
    return None
