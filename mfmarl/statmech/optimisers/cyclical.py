r"""The cyclical step size of stochastic-gradient MCMC (Zhang, Li, Zhang, Chen and Wilson 2020, eq. 1).

$$ \epsilon_t = \frac{\epsilon_0}{2} \left( \cos\frac{\pi \,\mathrm{mod}(t, \lceil K/M \rceil)}{\lceil K/M \rceil} + 1 \right) $$

K steps in M cycles: each begins with large steps that find another mode, and ends with small ones that sample it.
"""

from __future__ import annotations

import math

from mfmarl.errors import ConfigError


def cosine_cycle(step: int, steps: int, cycles: int, exploration: float = 0.5) -> tuple[float, bool]:
    """The share of the initial step size at `step` of `steps`, and whether that part of the cycle samples.

    The first `exploration` share of a cycle descends without noise (temperature 0); the rest samples.
    """
    if not 1 <= cycles <= steps or not 0 <= step < steps or not 0 <= exploration < 1:
        raise ConfigError(
            f"Step {step} of {steps} in {cycles} cycles exploring {exploration:g} of each is none: "
            "0 <= step < steps, 1 <= cycles <= steps, 0 <= exploration < 1."
        )
    length = math.ceil(steps / cycles)
    place = (step % length) / length
    return 0.5 * (math.cos(math.pi * place) + 1), place >= exploration
