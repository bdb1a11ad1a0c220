r"""What theory knows of a game's agents: rewards and order parameters at the equilibrium of infinitely many.

At temperature 0 a Nash equilibrium, by sequential responses or mirror descent. At T > 0 the quantal response
equilibrium of agents who act by exp(Q / T) with Q the value of that very policy:

$$ \pi_t(a \mid s) \propto e^{Q^\pi_t(s, a; \mu^\pi) / T} $$

(McKelvey and Palfrey 1998, Experimental Economics 1, 9; of mean-field games Eich et al. 2025, arXiv 2501.14868.)
N agents differ from it by O(1/N) where it is unique and stable.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import NumericFault
from mfmarl.games import values
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import Flow, flow, reach, times, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import looks
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.sequential_response import SequentialResponse
from mfmarl.population.known import Known

_RATES = (0.03, 0.3, 3.0, 30.0, 300.0)  # of mirror descent, in units of 1 over what there is to gain
_LEAST, _MOST, _WORK = 100, 1000, 3e7  # iterations, as many as make so many entries of policies
_COOLING = 0.7  # from one temperature to the next
_GOAL = 1e-5  # exploitability in the same units at which it is left
_CLOSE = 1e-3  # exploitability, in units of what a best response to the uniform crowd gains: closer is an equilibrium


class Equilibrium(NamedTuple):
    """Of infinitely many agents."""

    policy: Tensor  # [T, G, S, A]
    flow: Flow
    residual: float  # exploitability at T = 0, the largest change of a probability at T > 0


@lru_cache(64)
def nash(game: MeanFieldGame) -> Equilibrium:
    """The equilibrium that sequential responses or mirror descent from the uniform policy come to nearest.

    The first find pure equilibria within as many iterations as there are times, and go round elsewhere; the second, with
    several rates side by side, goes where payoffs are monotone. `residual` says how nearly. What is tried is a number
    of iterations that depends on the game's size alone, never on a clock.
    """
    scale = _scale(game)
    tried = []
    if game.horizon is not None and game.tree is None:
        tried.append(_follow(game, SequentialResponse(), 1, 2 * game.horizon, 1e-9 * scale))
    if not tried or tried[0].residual > 1e-9 * scale:
        rates = torch.tensor(_RATES, dtype=torch.float64) / scale
        solver = MirrorDescent(rate=rates)  # type: ignore[arg-type]
        tried.append(_follow(game, solver, len(_RATES), _steps(game, len(_RATES)), _GOAL * scale))
    return min(tried, key=lambda found: found.residual)


def _steps(game: MeanFieldGame, side_by_side: int) -> int:
    entries = times(game) * game.num_groups * game.num_states * game.num_actions
    return max(_LEAST, min(_MOST, int(_WORK / (entries * side_by_side))))


def _follow(game: MeanFieldGame, solver: Solver, batch: int, steps: int, goal: float) -> Equilibrium:
    """The least exploitable policy of the batch, at the looks of so many iterations; done when one reaches the goal."""
    with torch.no_grad():
        state = solver.begin(game, uniform(game, (batch,)))
        best, least, due = uniform(game), torch.inf, looks(steps, 0)
        look = next(due)
        for k in range(steps + 1):
            if k == look:
                policy = solver.policy(game, state)
                found = gap(game, policy, check=False).exploitability.nan_to_num(nan=torch.inf)
                if float(found.min()) < least:
                    least, best = float(found.min()), policy[:, int(found.argmin())]
                if least <= goal or k == steps:
                    break
                look = next(due)
            state = solver.step(game, state, k + 1)
        return Equilibrium(best, flow(game, best), least)


@lru_cache(64)
def quantal_response(game: MeanFieldGame, temperature: float) -> Equilibrium:
    """The fixed point at this temperature, by damped iteration of Q.

    From hot to cold, each time from where the last one ended: so the branch is followed that leaves uniform choice. The
    step is halved where it does not come closer; a thousandth of it is the least. `residual` says how near it came.
    """
    with torch.no_grad():
        q = values.of_policy(game, flow(game, uniform(game))).q
        weight, least = 0.5, 1e-3
        hot = max(temperature, _scale(game))
        count = max(1, math.ceil(math.log(hot / temperature) / -math.log(_COOLING)))
        for stage in range(1, count + 1):
            now = hot * (temperature / hot) ** (stage / count)
            last = stage == count
            closest = torch.inf
            for iteration in range((10 if last else 1) * _steps(game, 1) // 10):
                policy = values.boltzmann(game, q, now)
                path = flow(game, policy)
                target = values.of_policy(game, path).q
                change = float((values.boltzmann(game, target, now) - policy).abs().max())
                if change < (1e-9 if last else 1e-3):
                    break
                if iteration % 10 == 9:
                    weight = max(weight / 2, least) if change > 0.9 * closest else min(1.2 * weight, 1.0)
                    closest = min(closest, change)
                q = q + weight * (target - q)
        return Equilibrium(policy, path, change)


def equilibrium(game: MeanFieldGame, temperature: float = 0.0) -> dict[str, Known]:
    """Mean reward per agent and step, and the game's order parameters after each step, at the equilibrium.

    Empty where none was reached.
    """
    try:
        return _known(game, temperature)
    except NumericFault:
        return {}  # a crowd that never comes to rest, or values beyond all numbers: no equilibrium was reached


def _known(game: MeanFieldGame, temperature: float) -> dict[str, Known]:
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
