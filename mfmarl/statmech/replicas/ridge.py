r"""Ridge regression in high dimension: what the replica method says of generalisation, peak at interpolation included.

With p features, n examples, gamma = p/n, isotropic Gaussian inputs, a teacher of squared length r^2 and noise of variance
sigma^2, the estimator (X'X/n + lambda)^-1 X'y/n has, as p and n grow together, the excess risk

$$ R = r^2 \lambda^2 m'(-\lambda) + \sigma^2 \gamma\, [m(-\lambda) - \lambda m'(-\lambda)], \qquad
   m(-\lambda) = \frac{-(1 - \gamma + \lambda) + \sqrt{(1 - \gamma + \lambda)^2 + 4 \gamma \lambda}}{2 \gamma \lambda} $$

(bias and variance; m the Stieltjes transform of the Marchenko-Pastur law). Krogh and Hertz 1992 (J. Phys. A 25, 1135) by
replicas; Hastie, Montanari, Rosset and Tibshirani 2022 (Ann. Statist. 50, 949, theorem 5) by random matrices. Without
a penalty R diverges at gamma = 1; at the best one, lambda = gamma sigma^2/r^2, it does not.
"""

from __future__ import annotations

import math

from mfmarl.errors import ConfigError


def risk(ratio: float, penalty: float, noise: float, signal: float = 1.0) -> tuple[float, float]:
    """(bias, variance) of the excess risk: gamma = `ratio` > 0, lambda = `penalty` > 0, sigma^2 = `noise`, r^2 = `signal`."""
    for name, value in (("ratio p/n", ratio), ("penalty", penalty)):
        if not 0 < value < math.inf:
            raise ConfigError(f"The {name} of a ridge regression must be above 0 and finite, not {value:g}.")
    if not (noise >= 0 and signal >= 0):
        raise ConfigError(f"Noise and signal are variances: at least 0, not {noise:g} and {signal:g}.")
    away = 1 - ratio + penalty
    root = math.sqrt(away * away + 4 * ratio * penalty)
    # (root - away)/(2 gamma lambda), without cancellation where away > 0.
    m = 2 / (root + away) if away > 0 else (root - away) / (2 * ratio * penalty)
    # m solves gamma lambda m^2 + (1 - gamma + lambda) m - 1 = 0; its derivative in -lambda:
    slope = (ratio * m * m + m) / (2 * ratio * penalty * m + away)
    return signal * penalty**2 * slope, noise * ratio * (m - penalty * slope)


def best_penalty(ratio: float, noise: float, signal: float = 1.0) -> float:
    """lambda = gamma sigma^2/r^2: the penalty of least risk, and the Bayesian's."""
    return ratio * noise / signal
