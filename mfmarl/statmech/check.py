"""What every part of the statistical mechanics refuses, in one sentence each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault


def temperature(value: float | Tensor, *, positive: bool = False) -> None:
    """Raises ConfigError unless `value` is a temperature: not negative (or above 0), not NaN, not infinite."""
    low = float(value.detach().min()) if isinstance(value, Tensor) else float(value)
    high = float(value.detach().max()) if isinstance(value, Tensor) else float(value)
    if not (low > 0 if positive else low >= 0) or not math.isfinite(high):
        wanted = "above 0" if positive else "at least 0"
        raise ConfigError(f"A temperature must be finite and {wanted}, not {low if not low >= 0 else high:g}.")


def inverse_temperature(value: float | Tensor) -> None:
    """Raises ConfigError unless `value` is a beta: 0 (infinite temperature) to inf (zero temperature), not NaN."""
    low = float(value.detach().min()) if isinstance(value, Tensor) else float(value)
    if not low >= 0:
        raise ConfigError(f"An inverse temperature beta must be at least 0, not {low:g}.")


def spins(states: Tensor, num_spins: int) -> None:
    """Raises ConfigError unless `states` [*b, n] are spins -1 and +1 of a system of `num_spins`."""
    if states.ndim < 1 or states.shape[-1] != num_spins:
        raise ConfigError(f"States must have shape [..., {num_spins}], one spin each, not {list(states.shape)}.")
    if not bool((states.abs() == 1).all()):
        wrong = states[states.abs() != 1].flatten()[0].item()
        raise ConfigError(f"Spins are -1 or +1; a state holds {wrong:g}.")


def finite(values: Tensor, name: str) -> None:
    """Raises NumericFault naming the quantity if `values` hold a NaN or an infinity."""
    if not bool(torch.isfinite(values).all()):
        raise NumericFault(f"{name} holds {int((~torch.isfinite(values)).sum())} values that are NaN or infinite.")


def symmetric(matrix: Tensor, name: str) -> None:
    """Raises ConfigError unless `matrix` [..., n, n] is square and symmetric."""
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ConfigError(f"{name} must be a square matrix, not of shape {list(matrix.shape)}.")
    gap = (matrix - matrix.mT).abs()
    if bool((gap > 1e-6 * (1 + matrix.abs())).any()):
        where = int(gap.flatten().argmax()) % (matrix.shape[-1] ** 2)
        i, j = divmod(where, matrix.shape[-1])
        raise ConfigError(
            f"{name} must be symmetric: entries ({i}, {j}) and ({j}, {i}) differ by {float(gap.max()):.3g}. "
            "A pair interacts once; symmetrise as (J + J^T)/2."
        )
