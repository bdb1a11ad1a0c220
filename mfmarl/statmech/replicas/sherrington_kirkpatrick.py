r"""The Sherrington-Kirkpatrick glass by replicas: symmetric, its instability, and K steps of symmetry breaking.

$$ q = \int Dz \tanh^2 \beta (\sqrt q z + h), \qquad
   \text{stable while}\ \beta^2 \int Dz\, \operatorname{sech}^4 \beta (\sqrt q z + h) < 1 $$
$$ -F/N = \min_\gamma\ \Phi(0, h) - \tfrac12 \int_0^1 t\, \gamma(t)\, dt, \qquad
   \partial_t \Phi = -\tfrac12 (\Phi'' + \gamma \Phi'^2), \quad \Phi(1, x) = T \log 2 \cosh \beta x $$

gamma = beta x(q) is Parisi's order parameter over T, a rising step function: none (replica symmetry), one, K steps. At
T = 0 it stays finite, with Phi(1, x) = |x| (Auffinger and Chen 2017, Ann. Probab. 45, 4617). Couplings N(0, 1/N), T_c
= 1. Sherrington and Kirkpatrick 1975; de Almeida and Thouless 1978 (J. Phys. A 11, 983); Parisi 1979, 1980 (J. Phys. A
13, L115); Guerra 2003 and Talagrand 2006: it is true, and every gamma bounds F from below. Ground state: -.798
(symmetric), -.76526 (K = 1), -.763608 (K = 2), -.763167 (Crisanti and Rizzo 2002, Phys. Rev. E 65, 046137).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech import check
from mfmarl.statmech.exact.quadrature import gaussian_average

GROUND_STATE_ENERGY = -0.763166726
"""Full symmetry breaking; Schmidt 2008 (thesis, Wuerzburg) has -0.76316672656647."""

_REACH, _SPACING = 7.0, 0.04
_COLDEST = 0.02


class ReplicaSymmetric(NamedTuple):
    """One overlap for all pairs of replicas; per spin."""

    overlap: float
    magnetisation: float
    free_energy: float
    energy: float
    entropy: float
    """Negative at low temperatures (-1/(2 pi) at 0): the sign that the symmetry must break."""
    replicon: float
    """1 - beta^2 <sech^4>: below 0 the symmetric solution is unstable."""


class Broken(NamedTuple):
    """K steps; per spin."""

    free_energy: float
    overlaps: list[float]
    """Where gamma steps up from 0, rising; at T > 0 the last is where it reaches 1/T."""
    gammas: list[float]
    """gamma [K] after each of the first K; T gamma is the share of pairs of replicas with no larger overlap."""


def replica_symmetric(temperature: float, field: float = 0.0) -> ReplicaSymmetric:
    """The symmetric solution at 0 < T."""
    check.temperature(temperature, positive=True)
    beta = 1 / temperature

    def overlap(q: float) -> float:
        return float(gaussian_average(lambda z: torch.tanh(beta * (math.sqrt(q) * z + field)) ** 2))

    # q -> <tanh^2> is above the line below its one stable root (Guerra 2001; Latala).
    low, high = (0.0, 1.0) if field or temperature < 1 else (0.0, 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle < overlap(middle) else (low, middle)
    q = (low + high) / 2

    def inside(z: Tensor) -> Tensor:
        return beta * (math.sqrt(q) * z + field)

    log_cosh = float(gaussian_average(lambda z: inside(z).abs() + torch.log1p(torch.exp(-2 * inside(z).abs()))))
    m = float(gaussian_average(lambda z: torch.tanh(inside(z))))
    free = -beta / 4 * (1 - q) ** 2 - temperature * log_cosh
    energy = -beta / 2 * (1 - q * q) - field * m
    stiff = beta * beta * float(gaussian_average(lambda z: torch.cosh(inside(z).clamp(-300, 300)) ** -4.0))
    return ReplicaSymmetric(q, m, free, energy, beta * (energy - free), 1 - stiff)


def instability_field(temperature: float) -> float:
    """h of the line of de Almeida and Thouless: below it the symmetric solution is unstable. 0 from T = 1 on."""
    check.temperature(temperature, positive=True)
    if temperature >= 1:
        return 0.0
    low, high = 0.0, 1.0
    while replica_symmetric(temperature, high).replicon < 0:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if replica_symmetric(temperature, middle).replicon < 0 else (low, middle)
    return (low + high) / 2


def broken(steps: int, temperature: float = 0.0, field: float = 0.0) -> Broken:
    """The best F with `steps` of symmetry breaking: T = 0, or T from 0.02 on. Rises with the steps towards the truth.

    gamma = 0 below the first overlap. Raises NumericFault if the maximum is not found.
    """
    check.temperature(temperature)
    if steps < 1 or 0 < temperature < _COLDEST:
        raise ConfigError(
            f"Symmetry breaks in 1 step or more, at T = 0 or from {_COLDEST:g} on: not {steps}, {temperature:g}."
        )
    inner = steps + (temperature > 0)
    best = None
    for scale in (0.5, 1.0, 2.0):
        gammas = [scale * (k + 1) / steps for k in range(steps)]
        start = np.log(np.diff([0.0, *gammas]))
        guess = np.concatenate([start, np.zeros(inner)])

        def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
            point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            with torch.enable_grad():
                value = parisi(*_decoded(point, steps, temperature), temperature, field)
                value.backward()
            assert point.grad is not None
            return float(value.detach()), point.grad.numpy()

        found = optimize.minimize(
            objective, guess, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-15, "gtol": 1e-9}
        )
        if math.isfinite(found.fun) and (best is None or found.fun < best.fun):
            best = found
    if best is None:
        raise NumericFault(f"No symmetry breaking was found at T = {temperature:g}.")
    edges, values = _decoded(torch.tensor(best.x, dtype=torch.float64), steps, temperature)
    return Broken(-float(best.fun), [float(q) for q in edges], [float(g) for g in values[1:]])


def parisi(overlaps: Sequence[Tensor], gammas: Sequence[Tensor], temperature: float, field: float = 0.0) -> Tensor:
    """Parisi's functional, an upper bound of -F/N: gamma = gammas[k] between overlaps[k - 1] (0 at first) and
    overlaps[k].

    At T > 0 gamma = 1/T above the last overlap; at T = 0 the last gamma holds up to 1. Overlaps rise, gammas rise.
    """
    ends = [*overlaps, torch.ones((), dtype=torch.float64)] if temperature == 0 else [*overlaps]
    if len(ends) != len(gammas) or len(gammas) < 2:
        raise ConfigError(
            f"{len(gammas)} gammas (2 or more) need {len(gammas) - (temperature == 0)} overlaps, not {len(overlaps)}."
        )
    starts = [torch.zeros((), dtype=torch.float64), *ends[:-1]]
    reach = _REACH + abs(field)
    x = torch.linspace(-reach, reach, int(2 * reach / _SPACING) + 1, dtype=torch.float64)
    top, gamma = ends[-1], gammas[-1]
    step = (ends[-1] - starts[-1]).clamp(min=1e-12)
    if temperature > 0:
        scaled = (x / temperature).abs()
        phi = temperature * (scaled + torch.log1p(torch.exp(-2 * scaled))) + (1 - top) / (2 * temperature)
        cost = (1 - top * top) / (4 * temperature)
        remaining = list(zip(starts, ends, gammas, strict=True))
    else:
        # From |x| in closed form: it has a corner.
        root = step.sqrt()
        grow = torch.special.log_ndtr((x.abs() + gamma * step) / root) + gamma * x.abs()
        shrink = torch.special.log_ndtr((gamma * step - x.abs()) / root) - gamma * x.abs()
        phi = gamma * step / 2 + torch.logaddexp(grow, shrink) / gamma
        cost = gamma * (1 - starts[-1] ** 2) / 4
        remaining = list(zip(starts, ends, gammas, strict=True))[:-1]
    for number, (low, high, g) in enumerate(reversed(remaining)):
        last = number == len(remaining) - 1
        phi = _diffused(x, phi, (high - low).clamp(min=1e-12), g, torch.tensor([field]).double() if last else x)
        cost = cost + g * (high * high - low * low) / 4
    return phi[0] - cost


def _diffused(x: Tensor, phi: Tensor, variance: Tensor, gamma: Tensor, at: Tensor) -> Tensor:
    """log <exp gamma phi(y + sqrt(variance) z)>/gamma for y in `at`; the mean of phi for gamma = 0.

    By the trapezoidal rule in z on nodes of its own, with phi between the grid's points by a cubic (Catmull-Rom), and
    of slope 1 beyond.
    """
    z = torch.linspace(-7.5, 7.5, 151, dtype=torch.float64)
    log_weight = -z * z / 2 - torch.logsumexp(-z * z / 2, -1)
    place = at.unsqueeze(-1) + variance.sqrt() * z
    spacing, end = x[1] - x[0], x[-1]
    inside = place.clamp(-float(end), float(end))
    index = ((inside.detach() - x[0]) / spacing).floor().long().clamp(1, len(x) - 3)
    t = (inside - x[index]) / spacing
    a, b, c, d = phi[index - 1], phi[index], phi[index + 1], phi[index + 2]
    cubic = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    value = cubic + (place.abs() - end).clamp(min=0)
    if float(gamma.detach()) < 1e-9:
        return (value * log_weight.exp()).sum(-1)
    return torch.logsumexp(gamma * value + log_weight, -1) / gamma


def _decoded(x: Tensor, steps: int, temperature: float) -> tuple[list[Tensor], list[Tensor]]:
    """Unconstrained numbers as overlaps that rise below 1, and gammas that rise from 0 (below 1/T)."""
    gammas = x[:steps].exp().cumsum(0)
    if temperature > 0:
        gammas = gammas / (1 + gammas * temperature)
    edges = torch.softmax(torch.cat([x[steps:], x.new_zeros(1)]), -1).cumsum(0)[:-1]
    return list(edges), [x.new_zeros(()), *gammas]
