r"""What theory knows of a game's agents: rewards and order parameters at the equilibrium of infinitely many.

At temperature 0 a Nash equilibrium, by mirror descent with several rates side by side. At T > 0 the quantal response
equilibrium of agents who act by exp(Q / T) with Q the value of that very policy:

$$ \pi_t(a \mid s) \propto e^{Q^\pi_t(s, a; \mu^\pi) / T} $$

(McKelvey and Palfrey 1998, Experimental Economics 1, 9; of mean-field games Eich et al. 2025, arXiv 2501.14868.)
N agents differ from it by O(1/N) where it is unique and stable.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.games import values
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import Flow, flow, reach, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.population.known import Known

_RATES = (0.003, 0.03, 0.3, 3.0, 30.0)
_ITERATIONS = 2000
_CLOSE = 1e-3  # exploitability, in units of what a best response to the uniform crowd gains: closer is an equilibrium


class Equilibrium(NamedTuple):
    """Of infinitely many agents."""

    policy: Tensor  # [T, G, S, A]
    flow: Flow
    residual: float  # exploitability at T = 0, the largest change of a probability at T > 0


@lru_cache(64)
def nash(game: MeanFieldGame, seconds: float = 20.0) -> Equilibrium:
    """The equilibrium that mirror descent from the uniform policy comes to; `residual` says how nearly."""
    rates = torch.tensor(_RATES, dtype=torch.float64)
    scale = _scale(game)
    solver = MirrorDescent(rate=rates / scale)  # type: ignore[arg-type]
    found = solve(game, solver, _ITERATIONS, 1e-9 * scale, batch=(len(_RATES),), seconds=seconds)
    which = int(found.exploitability.argmin())
    policy = found.policy[:, which]
    return Equilibrium(policy, flow(game, policy), float(found.exploitability[which]))


@lru_cache(64)
def quantal_response(game: MeanFieldGame, temperature: float, iterations: int = 5000) -> Equilibrium:
    """The fixed point at this temperature, by damped iteration of Q; the step is halved where it does not come closer."""
    policy = uniform(game)
    q = values.of_policy(game, flow(game, policy)).q
    weight, least, change = 0.5, torch.inf, torch.inf
    for iteration in range(iterations):
        policy = values.boltzmann(game, q, temperature)
        path = flow(game, policy)
        target = values.of_policy(game, path).q
        change = float((values.boltzmann(game, target, temperature) - policy).abs().max())
        if change < 1e-9:
            break
        if iteration % 10 == 9:
            weight = max(weight / 2, 1e-4) if change > 0.9 * least else min(1.2 * weight, 1.0)
            least = min(least, change)
        q = q + weight * (target - q)
    return Equilibrium(policy, path, change)


def equilibrium(game: MeanFieldGame, temperature: float = 0.0) -> dict[str, Known]:
    """Mean reward per agent and step, and the game's order parameters after each step, at the equilibrium.

    Empty where none was reached.
    """
    if temperature > 0:
        found = quantal_response(game, float(temperature))
        name = f"quantal response equilibrium at temperature {temperature:g}"
        reached = found.residual < 1e-5
    else:
        found = nash(game)
        name = f"Nash equilibrium (exploitability {found.residual:.1g})"
        reached = found.residual < _CLOSE * _scale(game)
    if not reached:
        return {}
    source = f"{name} of infinitely many agents; N differ by O(1/N)"
    return {key: Known(value, source, "equilibrium") for key, value in means(game, found.flow).items()}


def means(game: MeanFieldGame, path: Flow) -> dict[str, float]:
    """`reward` per agent and step, and `measures` averaged over the states after each step, along a flow [T, G, ...]."""
    sizes = torch.tensor(game.group_sizes, dtype=path.mu.dtype)
    chance = reach(game, path).unsqueeze(-1)
    each = (chance * (path.joint * path.rewards).sum((-2, -1))).sum(0)  # [G]
    if game.horizon is None:
        return {"reward": float((each * sizes).sum() / sizes.sum()), **_plain(game.measures(path.mu[0]))}
    last = path.kernels[-1].carry(path.joint[-1:] if game.tree is None else path.joint[game.tree.levels[-1]])
    ends = chance[-len(last) :]
    if path.terminal is not None:
        each = each + (ends * (last * path.terminal).sum(-1)).sum(0)
    # After each step: all but the first states, and the last ones.
    begins = 1 if game.tree is None else len(game.tree.common[0])
    after = torch.cat([path.mu[begins:], last])
    weight = torch.cat([chance[begins:], ends]).squeeze(-1) / game.horizon
    measured = {name: float((weight * x).sum()) for name, x in game.measures(after).items()}
    return {"reward": float((each * sizes).sum() / sizes.sum()) / game.horizon, **measured}


def _plain(measured: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in measured.items()}


def _scale(game: MeanFieldGame) -> float:
    """What there is to gain: the exploitability of uniform choice, or 1 where that is an equilibrium."""
    found = float(gap(game, uniform(game)).exploitability)
    return found if found > 1e-9 else 1.0
