"""Who was trained among N agents, played among N': trained small and deployed large, and the reverse.

The crowd of N' begins where the run of that size left its evaluation, so that it is settled; then its minds are
replaced by those trained at N, without learning. Every row of the table meets the same noise, its own stream of it, and the
diagonal is played like the rest. A mind with one set of weights for all agents of a group does not know how many
there are; where something it is made of does depend on N (what is seen, felt, or chosen), that is said instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mfmarl.evaluation.scaling.fluctuations import play_on
from mfmarl.learning.build import Built
from mfmarl.learning.players import Player

PLAYED = 1e7
"""Steps of agents that all of one column plays, about, for each agent."""
DEAREST = 2e8
"""And at most: a column whose least would take more is left out."""
FEWEST, MOST = 8, 64
"""Steps that each pair plays at least, or not at all; and at most."""
BURN_IN = 0.25
"""Share of further steps before them in which the crowd gets used to its new minds."""


class Mind(NamedTuple):
    """What is carried over of a trained player."""

    name: str
    weights: dict[str, Tensor]
    progress: float
    shape: dict[str, Any]
    """What the weights are made for, by name."""


def minds(built: Built) -> list[Mind]:
    """The minds of a trained run, apart from their population."""
    return [_mind(p) for p in built.players]


def _mind(player: Player) -> Mind:
    agent = player.agent
    spec = agent.spec
    shape = {
        "kind of agent": type(agent).__name__,
        "minds": agent.minds,
        "observation space": spec.observation_space,
        "action space": spec.action_space,
        "field's size": agent.field_size,
    }
    weights = {name: value.detach().clone() for name, value in agent.state_dict().items()}
    return Mind(player.name, weights, agent.progress, shape)


def unfit(there: Sequence[Mind], built: Built) -> str:
    """Why these minds cannot play that population; empty where they can."""
    groups, own = [m.name for m in there], [p.name for p in built.players]
    if groups != own:
        return f"the players are {', '.join(groups)} there and {', '.join(own)} here"
    for mind, player in zip(there, built.players, strict=True):
        if player.agent.memory == "self":
            return f"{type(player.agent).__name__} is trained by its own library"
        here = _mind(player).shape
        if mind.shape["minds"] != here["minds"] or here["minds"] > 1:
            return "every agent has a mind of its own, and their numbers differ"
        for what, size in mind.shape.items():
            if size != here[what]:
                return f"the {what} is {size} there and {here[what]} here"
        state = player.agent.state_dict()
        if set(state) != set(mind.weights):
            return f"{type(player.agent).__name__} is made of other parts there and here"
        for name, value in state.items():
            if value.shape != mind.weights[name].shape:
                return f"{name} is {list(mind.weights[name].shape)} there and {list(value.shape)} here"
    return ""


def length(num_agents: int, copies: int, pairs: int, runs: int, horizon: int | None = None) -> tuple[int, int]:
    """(steps that each of so many pairs plays in a run, how many of the runs do); (0, 0) where the least is too dear.

    Whole episodes where they have a common length.
    """
    each = num_agents * copies * pairs * (1 + BURN_IN)
    least = FEWEST if horizon is None else horizon * math.ceil(FEWEST / horizon)
    runs = min(runs, int(DEAREST / (each * least)))
    if runs < 1:
        return 0, 0
    steps = int(min(MOST, max(least, PLAYED / (each * runs))))
    return (steps if horizon is None else max(least, steps // horizon * horizon)), runs


def play_column(there: Mapping[int, Sequence[Mind]], built: Built, steps: int) -> dict[int, Tensor | str]:
    """By where they were trained: mean reward per agent that acted, [steps, E], of each one's minds in the population of
    another run's evaluation; or why they cannot play it.

    Each begins where the population is, on one stream of noise that is the same for all; a quarter as many steps before
    (whole episodes where they have a common length) are not counted. The built run is spent afterwards.
    """
    episode = built.training.evaluation or built.training.episode
    horizon = episode.env.spec.horizon if episode.env.lockstep else None
    burn_in = math.ceil(BURN_IN * steps) if horizon is None else horizon * math.ceil(BURN_IN * steps / horizon)
    start = {name: value.clone() for name, value in episode.state_dict().items()}
    episode.key = built.training.key.fold("transfer")
    found: dict[int, Tensor | str] = {}
    for size, trained in there.items():
        reason = unfit(trained, built)
        if reason:
            found[size] = reason
            continue
        episode.load_state_dict(start)
        for mind, player in zip(trained, built.players, strict=True):
            player.agent.load_state_dict(mind.weights)
            player.agent.progress = mind.progress
        found[size] = play_on(episode, burn_in + steps)["reward"][burn_in:]
    return found
