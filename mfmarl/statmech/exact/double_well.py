r"""Exact answers for one particle in the double well V = x^4 - 4 x^2 + tilt x, by quadrature (k_B = 1, float64).

Overdamped motion dx = -V' dt + sqrt(2 T) dW has the stationary density exp(-V/T)/Z and

$$ \partial_t p = \partial_x (V' p) + T \partial_x^2 p, \qquad
   k_{\mathrm{Kramers}} = \frac{\sqrt{V''(a) |V''(b)|}}{2\pi} e^{-(V(b) - V(a))/T}, \qquad
   \tau(a \to c) = \frac1T \int_a^c e^{V(y)/T} \int_{-\infty}^y e^{-V(z)/T}\, dz\, dy $$

Kramers 1940 (Physica 7, 284); Gardiner, Handbook of Stochastic Methods, sections 5.2.7 and 5.10 (first passage). Noisy
gradient descent x' = x - lr V'(x) + s xi is a chain in discrete time with the kernel N(x - lr V', s^2): its law after
any number of steps is computed here without sampling. Its temperature is s^2/(2 lr) as lr -> 0.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, special

from mfmarl.errors import ConfigError
from mfmarl.statmech import check
from mfmarl.statmech.energies.continuous import DoubleWell

Array = NDArray[np.float64]
Well = Literal["left", "right"]

_LEGENDRE = np.polynomial.legendre.leggauss(32)
_COLDEST = 0.02  # below it exp(V/T) spans more than a float64 holds


class Moments(NamedTuple):
    """Averages of the Gibbs distribution of the double well."""

    mean: float
    variance: float
    energy: float
    heat_capacity: float
    """Var(V)/T^2."""


def _potential(x: Array, tilt: float) -> Array:
    return x * x * (x * x - 4) + tilt * x


def _slope(x: Array, tilt: float) -> Array:
    return 4 * x * (x * x - 2) + tilt


def _curvature(x: float) -> float:
    return 12 * x * x - 8


def _reach(height: float, tilt: float) -> float:
    """Beyond plus and minus this, V exceeds `height`."""
    reach = 2.0
    while reach**4 - 4 * reach**2 - abs(tilt) * reach < height:
        reach *= 1.02
    return reach


def _grid(temperature: float, tilt: float, points: int = 4001) -> tuple[Array, Array]:
    """Where exp(-V/T) is not nothing, and (V - V_min)/T there. The trapezoid rule on it is exact to rounding."""
    check.temperature(temperature, positive=True)
    if temperature < _COLDEST:
        raise ConfigError(
            f"Quadrature of the double well needs a temperature of at least {_COLDEST}, not {temperature:g}."
        )
    reach = _reach(740 * temperature, tilt)
    x = np.linspace(-reach, reach, points)
    v = _potential(x, tilt)
    return x, (v - v.min()) / temperature


def _weights(temperature: float, tilt: float) -> tuple[Array, Array]:
    """Points, and probabilities of the Gibbs distribution on them."""
    x, reduced = _grid(temperature, tilt)
    weight = np.exp(-reduced)
    return x, weight / weight.sum()


def log_partition(temperature: float, tilt: float = 1.0) -> float:
    """log of the integral of exp(-V/T) over x."""
    x, reduced = _grid(temperature, tilt)
    return float(special.logsumexp(-reduced) + math.log(x[1] - x[0]) - _potential(x, tilt).min() / temperature)


def moments(temperature: float, tilt: float = 1.0) -> Moments:
    x, p = _weights(temperature, tilt)
    v = _potential(x, tilt)
    mean, energy = p @ x, p @ v
    return Moments(
        float(mean), float(p @ (x - mean) ** 2), float(energy), float(p @ (v - energy) ** 2 / temperature**2)
    )


def occupation(temperature: float, tilt: float = 1.0) -> float:
    """The probability of being left of the barrier."""
    barrier = DoubleWell(tilt).stationary_points[1]
    _grid(temperature, tilt)
    bottom = float(_potential(np.array(DoubleWell(tilt).stationary_points), tilt).min())
    reach = _reach(100 * temperature, tilt)

    def mass(low: float, high: float) -> float:
        nodes, weights = _legendre(low, high)
        return float(weights @ np.exp(-(_potential(nodes, tilt) - bottom) / temperature))

    left, right = mass(-reach, barrier), mass(barrier, reach)
    return left / (left + right)


def _legendre(low: float, high: float, pieces: int = 64) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights, 32 to a piece."""
    nodes, weights = _LEGENDRE
    edges = np.linspace(low, high, pieces + 1)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (nodes + 1)).ravel(), (half * weights).ravel()


def kramers_rate(temperature: float, start: Well = "right", tilt: float = 1.0) -> float:
    """The rate at which particles leave a well, for barriers of many T: the leading order of 1/(2 tau to the top)."""
    check.temperature(temperature, positive=True)
    left, barrier, right = DoubleWell(tilt).stationary_points
    well = {"left": left, "right": right}[start]
    height = float(_potential(np.array(barrier), tilt) - _potential(np.array(well), tilt))
    return math.sqrt(_curvature(well) * -_curvature(barrier)) / (2 * math.pi) * math.exp(-height / temperature)


def first_passage(temperature: float, start: float, end: float, tilt: float = 1.0) -> float:
    """Mean first passage time from `start` to `end` of overdamped motion, by the double integral of the head."""
    x, _ = _grid(temperature, tilt)
    if start == end:
        return 0.0
    # To the left is to the right in the mirror.
    if end < start:
        return first_passage(temperature, -start, -end, -tilt)
    reach = _reach(100 * temperature, tilt)
    nodes, weights = _legendre(start, end)
    pieces = np.concatenate([[-max(reach, -start)], nodes])
    v = _potential(nodes, tilt) / temperature
    # Against the bottom: exp(-V/T) alone would overflow. The inner integral grows stretch by stretch.
    bottom = float(_potential(x, tilt).min()) / temperature
    middle, half = (pieces[1:, None] + pieces[:-1, None]) / 2, np.diff(pieces)[:, None] / 2
    stretches = (np.exp(bottom - _potential(middle + half * _LEGENDRE[0], tilt) / temperature) * half) @ _LEGENDRE[1]
    z, w = _legendre(pieces[0], pieces[1])
    stretches[0] = w @ np.exp(bottom - _potential(z, tilt) / temperature)
    inner = np.cumsum(stretches)
    return float(weights @ (np.exp(v - bottom) * inner)) / temperature


def relaxation_rate(temperature: float, tilt: float = 1.0, points: int = 500) -> float:
    r"""lambda_1: the smallest non-zero eigenvalue of the Fokker-Planck operator, to about 1e-10 absolute.

    By the similar Schroedinger operator -T d^2/dx^2 + V'^2/(4 T) - V''/2 on sinc functions (Colbert and Miller 1992,
    J. Chem. Phys. 96, 1982), whose error falls exponentially with the number of points.
    """
    _grid(temperature, tilt)
    reach = _reach(160 * temperature, tilt)
    x = np.linspace(-reach, reach, points)
    gap = np.subtract.outer(np.arange(points), np.arange(points))
    signs = np.where(gap % 2 == 0, 1.0, -1.0)
    with np.errstate(divide="ignore"):
        kinetic = np.where(gap == 0, math.pi**2 / 3, 2 * signs / np.where(gap == 0, 1, gap) ** 2)
    well = _slope(x, tilt) ** 2 / (4 * temperature) - (12 * x * x - 8) / 2
    values = linalg.eigh(
        temperature * kinetic / (x[1] - x[0]) ** 2 + np.diag(well), eigvals_only=True, subset_by_index=[0, 1]
    )
    return float(values[1] - values[0])


class NoisyDescent(NamedTuple):
    """The law of noisy gradient descent after some steps."""

    left: float
    """Probability of being left of the barrier."""
    mean: float
    variance: float


def _descent(lr: float, noise: float, tilt: float) -> tuple[Array, Array, float]:
    """Grid, transition density K[i, j] from x_j to x_i times the spacing, and the barrier."""
    if not (lr > 0 and noise > 0):
        raise ConfigError(f"Noisy descent needs a learning rate and a noise above 0, not {lr:g} and {noise:g}.")
    temperature = noise**2 / (2 * lr)
    reach = _reach(40 * temperature, tilt)
    if lr * float(np.abs(_slope(np.array([-reach, reach]), tilt)).max()) + 6 * noise > 2 * reach:
        raise ConfigError(
            f"Noisy descent with a learning rate of {lr:g} and a noise of {noise:g} runs away to infinity."
        )
    spacing = noise / 3.5  # the trapezoid rule on a Gaussian errs by exp(-2 pi^2 3.5^2) = 1e-105
    points = 2 * math.ceil(reach / spacing) + 1
    if points > 6000:
        raise ConfigError(f"A noise of {noise:g} needs a grid of {points} points; the most is 6000.")
    x: Array = (np.arange(points) - points // 2).astype(np.float64) * spacing
    away = (x[:, None] - (x - lr * _slope(x, tilt))) / noise
    kernel = np.exp(-(away**2) / 2) * (spacing / (noise * math.sqrt(2 * math.pi)))
    return x, kernel, DoubleWell(tilt).stationary_points[1]


def noisy_descent(steps: int, lr: float, noise: float, start: float, tilt: float = 1.0) -> NoisyDescent:
    """The exact law of x' = x - lr V'(x) + noise xi after `steps` steps from `start` (1 or more).

    Its density goes through the kernel on a grid fine enough that only rounding is lost; the last step, and the share
    left of the barrier, are integrals of the kernel itself. Raises ConfigError where the chain runs away.
    """
    if steps < 1:
        raise ConfigError(f"Noisy descent needs at least one step, not {steps}.")
    x, kernel, barrier = _descent(lr, noise, tilt)
    if abs(start) > x[-1]:
        raise ConfigError(f"A start at {start:g} lies beyond +-{x[-1]:.3g}, the reach of this noise.")
    forward = x - lr * _slope(x, tilt)
    if steps == 1:
        centre, mass = np.array([start - lr * float(_slope(np.array(start), tilt))]), np.ones(1)
    else:
        first = start - lr * float(_slope(np.array(start), tilt))
        mass = np.exp(-(((x - first) / noise) ** 2) / 2)
        mass /= mass.sum()
        for _ in range(steps - 2):
            mass = kernel @ mass
        centre = forward
        mass /= mass.sum()
    mean = float(mass @ centre)
    left = float(mass @ special.ndtr((barrier - centre) / noise))
    return NoisyDescent(left, mean, float(mass @ (centre - mean) ** 2) + noise**2)


def noisy_descent_stationary(lr: float, noise: float, tilt: float = 1.0) -> tuple[NoisyDescent, float]:
    """The stationary law of noisy descent, and its relaxation time in steps, -1/log of the second eigenvalue."""
    x, kernel, barrier = _descent(lr, noise, tilt)
    values, vectors = linalg.eig(kernel)
    order = np.argsort(-values.real)
    mass = vectors[:, order[0]].real
    mass /= mass.sum()
    forward = x - lr * _slope(x, tilt)
    mean = float(mass @ forward)
    law = NoisyDescent(
        float(mass @ special.ndtr((barrier - forward) / noise)),
        mean,
        float(mass @ (forward - mean) ** 2) + noise**2,
    )
    return law, float(-1 / math.log(values[order[1]].real))
