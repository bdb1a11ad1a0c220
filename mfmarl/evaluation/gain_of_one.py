"""What one of N agents gains by leaving a policy, as a page tells it: counted, counted for fewer, or a lower bound."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games import finite, sampled
from mfmarl.games.game import MeanFieldGame

_TERMS = 8e7  # that are summed over for N agents: a second or three
_WAYS = 3e7
_SAMPLES = 3e7  # of a best response that is learned: about as long
_FEWEST = 16  # copies that anything can be learned from


def finite_gain(game: MeanFieldGame, policy: Tensor) -> dict[str, Any]:
    """What one of N agents gains by leaving the policy: counted exactly for the largest N up to the game's own that can
    be, and where that is not the game's, a lower bound at its own from a best response that is learned.

    `agents` (the game's); `at`, `gain` and `sees` of the exact gain ("crowd": the deviator sees where the others are;
    "itself": only its own state); `learned` and its standard `error`; `told`, why there is neither.
    """
    found: dict[str, Any] = {"agents": game.num_agents, "at": 0, "gain": None, "sees": ""}
    counted = _counted(game, policy)
    if counted is not None:
        found |= dict(zip(("at", "gain", "sees"), counted, strict=True))
    if found["at"] == game.num_agents:
        return found
    copies = min(256, int(_SAMPLES / _sample(game)))
    if game.horizon is None or copies < _FEWEST:
        told = "a game without a horizon is not played to its end" if game.horizon is None else "the game is too large"
        return found | {"learned": None, "told": told}
    bound = sampled.gap(game, policy, copies=copies)
    return found | {"learned": bound.exploitability, "error": bound.standard_error}


def _counted(game: MeanFieldGame, policy: Tensor) -> tuple[int, float, str] | None:
    """(agents, gain, what the deviator sees), where agents can be counted."""
    if game.num_groups > 1 or game.tree is not None:
        return None
    cells = game.num_states * (game.num_actions if game.extended else 1)
    for sees, count in (("crowd", finite.gap), ("itself", finite.uninformed)):
        if sees == "itself" and (game.crowd_moves or game.horizon is None):
            continue
        for agents in _ladder(game.num_agents):
            # Vectors of counts are made from all choices of so many cells: what is too many is not begun.
            if (agents + cells) ** min(cells, 64) > _WAYS or (sees == "crowd" and _cost(game, agents) > _TERMS):
                continue
            try:
                return agents, count(game, policy, agents, _TERMS).exploitability, sees
            except ConfigError:
                continue
    return None


def _sample(game: MeanFieldGame) -> float:
    """What one copy costs that a best response is learned from: crowds as seen from every state, and agents' steps."""
    seen = (game.num_groups * game.num_states) ** 2
    return float((game.horizon or 1) * (seen + game.num_agents))


def _ladder(agents: int) -> list[int]:
    """Numbers of agents from the game's own down to 2."""
    rungs = [m * 10**k for k in range(6, -1, -1) for m in (5, 2, 1)]
    return [agents, *(n for n in rungs if 2 <= n < agents)]


def _cost(game: MeanFieldGame, agents: int) -> float:
    try:
        return finite.cost(game, agents)
    except OverflowError:
        return math.inf
