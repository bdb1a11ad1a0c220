r"""Teacher and student in high dimensions: how a linear learner generalises, exactly, and where it fails.

$$ R(\lambda) = \underbrace{r^2 \lambda^2 m'}_{\text{bias}} + \underbrace{\sigma^2 \gamma\, (m - \lambda m')}_{\text{variance}}, \qquad
   m = \int \frac{\rho(x)\, dx}{x + \lambda} = \frac{-(1 - \gamma + \lambda) + \sqrt{(1 - \gamma + \lambda)^2 + 4 \gamma \lambda}}{2 \gamma \lambda}, \qquad
   m' = \int \frac{\rho(x)\, dx}{(x + \lambda)^2} $$

A student of d weights learns from n examples y = w.x + noise, with x and noise normal, |w|^2 = r^2, gamma = d/n, by
ridge regression (X^T X/n + lambda). rho is the law of Marchenko and Pastur. The excess risk is self-averaging, and the
same by replicas (Krogh and Hertz 1992, J. Phys. A 25, 1135) and random matrices (Dobriban and Wager 2018, Ann. Stat.
46, 247; Hastie et al. 2022). The best lambda is sigma^2 gamma/r^2, the Bayesian's; with none the error diverges where
d = n (double descent).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mfmarl.errors import ConfigError


class Risk(NamedTuple):
    """Excess over the noise that nobody can predict, of a new example."""

    total: float
    bias: float
    variance: float


def risk(load: float, ridge: float, noise: float = 1.0, signal: float = 1.0) -> Risk:
    """At gamma = `load` weights per example, with sigma^2 = `noise` and r^2 = `signal`; ridge 0 is least squares, of
    least norm.
    """
    if not load > 0 or not ridge >= 0 or not noise >= 0 or not signal >= 0:
        raise ConfigError("Ridge regression needs a load above 0, and a ridge, a noise and a signal of at least 0.")
    if ridge == 0:
        if load == 1:
            return Risk(math.inf if noise else 0.0, 0.0, math.inf if noise else 0.0)
        bias = signal * max(1 - 1 / load, 0.0)
        variance = noise * (load / (1 - load) if load < 1 else 1 / (load - 1))
        return Risk(bias + variance, bias, variance)
    root = math.hypot(1 - load + ridge, 2 * math.sqrt(load * ridge))
    # m = 2/(b + root), b = 1 - gamma + lambda: without the cancellation of the usual form where b > 0.
    b = 1 - load + ridge
    m = 2 / (b + root) if b > 0 else (root - b) / (2 * load * ridge)
    # From gamma lambda m^2 + b m - 1 = 0: -dm/dlambda.
    slope = m * (1 + load * m) / root
    bias, variance = signal * ridge * ridge * slope, noise * load * (m - ridge * slope)
    return Risk(bias + variance, bias, variance)


def best_ridge(load: float, noise: float = 1.0, signal: float = 1.0) -> float:
    """lambda = sigma^2 gamma/r^2: what Bayes' rule says with the teacher's law for a prior."""
    if not signal > 0:
        raise ConfigError("Without a signal the best ridge is infinite.")
    return noise * load / signal
