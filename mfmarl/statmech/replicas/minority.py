r"""The minority game: N agents who read the past with two strategies each, in the limit of many, by replicas.

$$ A^\mu = \sum_i a^\mu_{i, s_i}, \qquad
   H = \overline{\langle A^\mu \rangle^2}, \qquad \sigma^2 = \overline{\langle (A^\mu)^2 \rangle}, \qquad \alpha = P / N $$

Each of N agents has two strategies, drawn at random: an action of +-1 for each of P histories mu; the minority wins, and
agents learn which of their strategies has done better. They come to the minimum of the predictability H over mixtures m_i
of their strategies, a spin glass whose replica-symmetric solution is exact (Challet, Marsili and Zecchina 2000, PRL 84,
1824; Marsili, Challet and Zecchina 2000, Physica A 280, 522). With zeta the root of alpha = (1 + Q) zeta^2,

$$ Q = 1 - \sqrt{\tfrac2\pi}\, \frac{e^{-\zeta^2/2}}{\zeta} - \Big(1 - \frac1{\zeta^2}\Big) \operatorname{erf} \frac{\zeta}{\sqrt2},
   \qquad \frac{H}{N} = \frac{1 + Q}{2} \Big( 1 - \frac{\operatorname{erf}(\zeta/\sqrt2)}{\alpha} \Big)^2, \qquad
   \frac{\sigma^2}{N} = \frac{H}{N} + \frac{1 - Q}{2} $$

H vanishes at alpha_c = .3374, where alpha = erf(zeta / sqrt 2): below it the past tells nothing, the minimum is a whole
subspace, and how volatile the game is depends on how it began. Coin-tossers have sigma^2 = N; agents who learn do better, and best
near alpha_c.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from scipy.optimize import brentq

from mfmarl.errors import ConfigError

_SMALLEST = 0.4  # zeta; at the critical alpha it is .4359


class Minority(NamedTuple):
    """The game at one alpha, per agent."""

    overlap: float  # Q: mean of m_i^2
    predictability: float  # H / N
    volatility: float  # sigma^2 / N
    frozen: float  # share of agents who use one of their strategies only


def minority(alpha: float) -> Minority:
    """The stationary state for alpha = P/N of at least the critical one.

    Raises ConfigError below it: there only H = 0 is known (`predictability`).
    """
    if not critical_alpha() <= alpha < math.inf:
        raise ConfigError(
            f"alpha must be at least {critical_alpha():.4f}, where one state is reached from everywhere, not {alpha:g}."
        )
    zeta = brentq(lambda z: (1 + _overlap(z)) * z * z - alpha, _SMALLEST, max(10.0, 2 * math.sqrt(alpha)), xtol=1e-15)
    q, inner = _overlap(zeta), math.erf(zeta / math.sqrt(2))
    predictable = (1 + q) / 2 * (1 - inner / alpha) ** 2
    return Minority(q, predictable, predictable + (1 - q) / 2, 1 - inner)


def predictability(alpha: float) -> float:
    """H / N at any alpha > 0: what the past tells of the next minority; 0 up to the critical alpha."""
    if not alpha > 0:
        raise ConfigError(f"alpha must be positive, not {alpha:g}.")
    return 0.0 if alpha <= critical_alpha() else minority(alpha).predictability


@cache
def critical_alpha() -> float:
    """alpha_c = .3374: the least number of histories per agent at which the past tells anything."""
    zeta = brentq(lambda z: (1 + _overlap(z)) * z * z - math.erf(z / math.sqrt(2)), _SMALLEST, 2.0, xtol=1e-15)
    return math.erf(zeta / math.sqrt(2))


def _overlap(zeta: float) -> float:
    square = zeta * zeta
    inner = math.erf(zeta / math.sqrt(2))
    return 1 - math.sqrt(2 / math.pi) * math.exp(-square / 2) / zeta - (1 - 1 / square) * inner
