r"""The exact work of dragging a harmonic trap: the simplest system driven out of equilibrium.

$$ H_\lambda(x) = \tfrac{k}{2} (x - \lambda)^2, \quad \lambda: 0 \to L, \qquad
   \langle W \rangle = \frac{L^2}{\tau^2} \Big(\tau - \frac{1 - e^{-k \tau}}{k}\Big), \qquad
   \mathrm{Var}\, W = 2 T \langle W \rangle $$

for overdamped motion (friction 1) at a constant speed L/tau. W is Gaussian, and the free energy does not change, so
all work is dissipated and Jarzynski's equality holds as <W> = Var W/(2 T). Mazonka and Jarzynski 1999
(cond-mat/9912121); van Zon and Cohen 2003 (Phys. Rev. E 67, 046102).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.sampling import noise
from mfmarl.statmech.sampling.chains import Sweep


class Work(NamedTuple):
    """A Gaussian."""

    mean: float
    variance: float


def _valid(stiffness: float, temperature: float, steps: int = 1) -> None:
    check.temperature(temperature)
    if not stiffness > 0 or steps < 1:
        raise ConfigError(f"A trap needs a stiffness above 0 and at least 1 step, not {stiffness:g} and {steps}.")


def continuous(stiffness: float, distance: float, time: float, temperature: float) -> Work:
    """Of a trap that moves all the time."""
    _valid(stiffness, temperature)
    lag = stiffness * time
    # (lag - 1 + e^-lag)/lag^2 -> 1/2 as lag -> 0, where the difference would cancel.
    shape = 0.5 - lag / 6 if abs(lag) < 1e-5 else (lag + math.expm1(-lag)) / lag**2
    mean = stiffness * distance**2 * shape
    return Work(mean, 2 * temperature * mean)


def stepwise(stiffness: float, distance: float, time: float, temperature: float, steps: int) -> Work:
    """Of a trap that jumps `steps` times by distance/steps, and rests time/steps after each jump."""
    _valid(stiffness, temperature, steps)
    jump, keep = distance / steps, math.exp(-stiffness * time / steps)
    # Behind the trap's centre by d before a jump, the mean work of it is k (jump^2/2 + jump d).
    behind = mean = 0.0
    for _ in range(steps):
        mean += stiffness * (jump * jump / 2 + jump * behind)
        behind = (behind + jump) * keep
    # All are linear in x with a stationary correlation keep^|i-j| T/k.
    lags = sum(2 * (steps - lag) * keep**lag for lag in range(1, steps))
    return Work(mean, stiffness * temperature * jump**2 * (steps + lags))


def relaxation(stiffness: float, centre: float, time: float) -> Sweep:
    """The exact Ornstein-Uhlenbeck motion in the trap for a time, as a sweep."""
    _valid(stiffness, 0.0)
    keep = math.exp(-stiffness * time)

    def sweep(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        variance = torch.as_tensor(-math.expm1(-2 * stiffness * time) / (stiffness * beta), dtype=x.dtype)
        spread = variance.sqrt().unsqueeze(-1)
        return centre + (x - centre) * keep + spread * noise.normal(key, ids, x.shape[-1], x.dtype)

    return sweep
