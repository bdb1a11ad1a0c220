r"""How much a network can store: the volume of weights that solve a random task, by replicas.

$$ \alpha_c(\kappa) = \Big[ \int_{-\kappa}^{\infty} Dt\, (t + \kappa)^2 \Big]^{-1}, \qquad
   \alpha_c^{\pm 1}:\ s(\alpha) = 0, \qquad
   \alpha_c^{\mathrm{Hopfield}} = \max_y \tfrac12 \Big( \frac{\operatorname{erf} y}{y} - \frac{2}{\sqrt\pi} e^{-y^2} \Big)^2 $$

alpha is the number of random patterns per weight: 2 for a perceptron without a margin (Cover 1965; Gardner 1988, J.
Phys. A 21, 257); .8330785997 where weights are +-1 (Krauth and Mezard 1989, J. Phys. France 50, 3057: the
replica-symmetric entropy vanishes); .137905566495 for Hopfield's memory at T = 0 (Amit, Gutfreund and Sompolinsky
1985; 1987).
"""

from __future__ import annotations

import math

import torch
from scipy import optimize

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech.exact.quadrature import gaussian_average, normal_tail


def perceptron(margin: float = 0.0) -> float:
    """Gardner's alpha_c(kappa): patterns per weight that can be classified at a distance kappa from the plane."""
    density = math.exp(-margin * margin / 2) / math.sqrt(2 * math.pi)
    return 1 / ((1 + margin * margin) * normal_tail(-margin) + margin * density)


def separable_share(patterns: int, weights: int) -> float:
    """Cover 1965: the probability that `patterns` random points in general position with random labels can be
    separated.

    2^(1 - P) sum_{k < N} C(P - 1, k): one half at P = 2 N, for every N.
    """
    if patterns < 1 or weights < 1:
        raise ConfigError("A perceptron has at least 1 weight and 1 pattern.")
    return math.fsum(math.comb(patterns - 1, k) for k in range(min(weights, patterns))) / 2 ** (patterns - 1)


def binary_perceptron_entropy(load: float) -> float:
    """s(alpha) = log(number of solutions)/N of weights +-1, replica-symmetric: exact while it is positive."""
    if not 0 <= load < 1.2:
        raise ConfigError(f"The entropy of the binary perceptron is computed for loads in [0, 1.2), not {load:g}.")

    def hat(q: float) -> float:
        root = math.sqrt(q / (1 - q))
        return load / (1 - q) * float(gaussian_average(lambda t: _mills(root * t) ** 2))

    def overlap(conjugate: float) -> float:
        return float(gaussian_average(lambda z: torch.tanh(math.sqrt(conjugate) * z) ** 2))

    q = 0.5
    for _ in range(3_000):
        new = overlap(hat(q))
        if abs(new - q) < 1e-14:
            break
        q = new
    else:
        raise NumericFault(f"The overlap of the binary perceptron did not settle at load {load:g}.")
    conjugate, root = hat(q), math.sqrt(q / (1 - q))
    volume = float(gaussian_average(lambda z: _log_2cosh(math.sqrt(conjugate) * z)))
    fits = float(gaussian_average(lambda t: torch.special.log_ndtr(-root * t)))
    return -conjugate * (1 - q) / 2 + volume + load * fits


def binary_perceptron() -> float:
    """The load at which that entropy vanishes."""
    return float(optimize.brentq(binary_perceptron_entropy, 0.7, 0.95, xtol=1e-12))


def hopfield() -> float:
    """Patterns per spin beyond which Hopfield's memory forgets them all."""
    found = optimize.minimize_scalar(
        lambda y: -_hopfield_load(y), bounds=(0.5, 4.0), method="bounded", options={"xatol": 1e-12}
    )
    return -float(found.fun)


def hopfield_retrieval(load: float) -> float:
    """The overlap m with a stored pattern at T = 0 of the stable retrieval state; 0 beyond the capacity."""
    if load < 0:
        raise ConfigError(f"A load is at least 0, not {load:g}.")
    if load == 0:
        return 1.0
    peak = optimize.minimize_scalar(
        lambda y: -_hopfield_load(y), bounds=(0.5, 4.0), method="bounded", options={"xatol": 1e-12}
    ).x
    if load > _hopfield_load(peak):
        return 0.0
    high = peak
    while _hopfield_load(high) > load:
        high *= 2
    return math.erf(optimize.brentq(lambda y: _hopfield_load(y) - load, peak, high, xtol=1e-13))


def _hopfield_load(y: float) -> float:
    return (math.erf(y) / y - 2 / math.sqrt(math.pi) * math.exp(-y * y)) ** 2 / 2


def _mills(u: torch.Tensor) -> torch.Tensor:
    """phi(u)/H(u)."""
    return torch.exp(-u * u / 2 - math.log(2 * math.pi) / 2 - torch.special.log_ndtr(-u))


def _log_2cosh(x: torch.Tensor) -> torch.Tensor:
    return x.abs() + torch.log1p(torch.exp(-2 * x.abs()))
