r"""Equilibria of one crowd with costs that depend on its shares: logit at a temperature, Wardrop at zero.

$$ x_k \propto e^{-c_k(x)/T}, \qquad \text{that is}\quad g_k = c_k(x) + T \log x_k \ \text{equal for all}\ k; \qquad
   T = 0:\ c_k(x) = \min_j c_j(x)\ \text{wherever}\ x_k > 0 $$

Where costs have a potential, these are its stationary points less T times the entropy (Fisk 1980, Transp. Res. B 14,
243; Wardrop 1952); where it is convex, there is one. All numbers are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech.mean_field import self_consistent

Array = NDArray[np.float64]
_HALVINGS = 60  # of an interval of width 1: below the rounding of a share


def _temperature(temperature: float) -> None:
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ConfigError(f"A temperature must be finite and at least 0, not {temperature}.")


def split(cost: Callable[[Array], Array], links: int, temperature: float = 0.0) -> Array:
    """Shares [K] of parallel links: `cost` maps shares [K] to costs [K], each rising with its own share alone.

    A root in the common value of g_k, and within it a bisection for every share: exact to rounding.
    """
    _temperature(temperature)
    free, full = cost(np.zeros(links)), cost(np.ones(links))
    # With T > 0, at x = 1/K each g_k is at least free - T log K, and at most full.
    low = float(free.min()) - temperature * (math.log(links) + 1)
    high = float(full.max()) + 1e-12
    level = optimize.brentq(
        lambda g: _shares_at(cost, links, temperature, g).sum() - 1, low, high, xtol=1e-15, rtol=1e-15
    )
    margin = 4e-15 * max(1.0, abs(level))
    shares = _shares_at(cost, links, temperature, level + margin)
    at_low = _shares_at(cost, links, temperature, level - margin)
    # A link of constant cost takes any share at its level: the rest goes to those that jumped between the two.
    jump = shares - at_low
    if jump.sum() > 0:
        shares = at_low + jump * (1 - at_low.sum()) / jump.sum()
    return np.asarray(shares / shares.sum())


def _shares_at(cost: Callable[[Array], Array], links: int, temperature: float, level: float) -> Array:
    """The share of every link at which g_k reaches `level`: in [0, 1]."""
    low, high = np.zeros(links), np.ones(links)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        g = cost(middle) + (temperature * np.log(np.maximum(middle, 1e-300)) if temperature else 0.0)
        below = g < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2 if temperature else np.where(high < 1e-17, 0.0, high)


def equilibrium(
    cost: Callable[[Array], Array],
    routes: int,
    temperature: float = 0.0,
    start: ArrayLike | None = None,
    tolerance: float = 1e-10,
) -> Array:
    """Shares [K] where `cost` [K] -> [K] may couple the routes, as those of a network do.

    Moves crowd from the dearest used route to the cheapest by exact line search until all g_k are equal (path
    equilibration, Dafermos and Sparrow 1969, J. Res. NBS 73B, 91): the minimum where the potential is convex. Without
    a potential, or with several minima, what is reached from `start` (default: uniform).
    Raises NumericFault where it does not converge.
    """
    _temperature(temperature)
    x = np.full(routes, 1 / routes) if start is None else np.asarray(start, dtype=np.float64).copy()
    if temperature:
        x = np.maximum(x, 1e-12)
        x /= x.sum()

    def levels(x: Array) -> Array:
        return cost(x) + temperature * np.log(np.maximum(x, 1e-300)) if temperature else cost(x)

    for _ in range(1_000 * routes):
        g = levels(x)
        dear = int(np.where(x > 0, g, -np.inf).argmax())
        cheap = int(g.argmin())
        if g[dear] - g[cheap] <= tolerance * max(1.0, float(np.abs(g).max())):
            return x
        both = float(x[dear] + x[cheap])

        def shared(z: float, x: Array = x, dear: int = dear, cheap: int = cheap, both: float = both) -> Array:
            # In log(x_cheap/x_dear): shares of any smallness keep all their digits.
            moved = x.copy()
            moved[cheap], moved[dear] = both * special.expit(z), both * special.expit(-z)
            return moved

        alone = x.copy()
        alone[cheap], alone[dear] = both, 0.0
        if not temperature and cost(alone)[dear] >= cost(alone)[cheap]:
            x = alone
            continue
        low, high = -700.0, 700.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            gap = levels(shared(middle))
            low, high = (middle, high) if gap[dear] > gap[cheap] else (low, middle)
        x = shared((low + high) / 2)
    raise NumericFault(f"No equilibrium found at temperature {temperature:g}: the costs have no convex potential.")


def softmax_fixed_point(
    payoff: Callable[[Array], Array],
    temperature: float,
    start: ArrayLike,
    damping: float = 0.5,
    steps: int = 1_000,
    tolerance: float = 1e-11,
) -> Array:
    """p = softmax(payoff(p)/T) reached from `start` [A] by damped steps, smaller ones where these go round in circles.

    Stiff ones (low temperatures) are finished by Powell's hybrid method from where the steps have led. Of several
    solutions, the one in whose basin `start` lies. Raises NumericFault where none is reached.
    """
    _temperature(temperature)
    if temperature == 0:
        raise ConfigError("A softmax needs a temperature above 0.")

    def reply(p: Tensor) -> Tensor:
        return torch.from_numpy(special.softmax(payoff(p.numpy()) / temperature))

    first = torch.from_numpy(np.array(start, dtype=np.float64))
    reached = self_consistent.solve(reply, first, share=damping, steps=steps, tolerance=tolerance)
    p = reached.point.numpy()
    if bool(reached.converged):
        return np.asarray(special.softmax(payoff(p) / temperature))

    # In the payoffs instead of the probabilities: no bounds to keep, and of moderate size at every temperature.
    def residual(u: Array) -> Array:
        return u - payoff(special.softmax(u / temperature))

    found = optimize.root(residual, payoff(p), method="hybr", tol=1e-15)
    p = special.softmax(payoff(special.softmax(found.x / temperature)) / temperature)
    gap = float(np.abs(special.softmax(payoff(p) / temperature) - p).max())
    if gap < 1e-7:
        return np.asarray(p)
    raise NumericFault(
        f"No logit equilibrium reached at temperature {temperature:g}: the last step still moved by {gap:.1g}."
    )
