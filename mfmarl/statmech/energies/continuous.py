r"""Energies of continuous variables with known answers: Gaussians and the tilted double well.

$$ H(x) = \tfrac12 (x - \mu)^\top P (x - \mu), \qquad V(x) = x^4 - 4 x^2 + x $$
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check


@dataclass(frozen=True, eq=False)
class Gaussian:
    """H = (x - mean)^T P (x - mean)/2 of states [*b, n]: at beta the covariance is P^-1/beta."""

    mean: Tensor
    """[n]."""
    precision: Tensor
    """P [n, n], symmetric and positive definite."""

    def __post_init__(self) -> None:
        check.symmetric(self.precision, "A precision")
        if self.precision.shape[-1] != self.mean.shape[-1]:
            raise ConfigError(f"A mean of {self.mean.shape[-1]} numbers needs a precision of as many rows.")
        if not bool((torch.linalg.eigvalsh(self.precision) > 0).all()):
            raise ConfigError("A precision must be positive definite, or the Gaussian has no partition function.")

    def __call__(self, x: Tensor) -> Tensor:
        away = x - self.mean
        return 0.5 * (away * (away @ self.precision)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.precision

    @cached_property
    def covariance(self) -> Tensor:
        """P^-1 [n, n]: at beta = 1."""
        return torch.linalg.inv(self.precision)

    def log_partition(self, beta: float | Tensor = 1.0) -> Tensor:
        """log of the integral of exp(-beta H), [*beta]: n/2 log(2 pi/beta) - log det P/2."""
        beta = torch.as_tensor(beta, dtype=self.precision.dtype)
        n = self.mean.shape[-1]
        return n / 2 * (2 * torch.pi / beta).log() - torch.linalg.slogdet(self.precision).logabsdet / 2


@dataclass(frozen=True)
class DoubleWell:
    """V = sum_i (x_i^4 - 4 x_i^2 + tilt x_i) of states [*b, n]: independent wells.

    With tilt 1: minima at -1.472998 (global, V = -5.4442) and 1.346997 (V = -2.6186), the barrier at .126000.
    """

    tilt: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        square = x * x
        return (square * (square - 4) + self.tilt * x).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return 4 * x * (x * x - 2) + self.tilt

    @cached_property
    def stationary_points(self) -> tuple[float, float, float]:
        """Left minimum, barrier, right minimum of one variable. Raises ConfigError if the tilt leaves one well."""
        roots = torch.linalg.eigvals(
            torch.tensor([[0, 2, -self.tilt / 4], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
        )  # 4 x^3 - 8 x + tilt, by its companion matrix
        if float(roots.imag.abs().max()) > 1e-9:
            raise ConfigError(f"A tilt of {self.tilt:g} leaves one well; two need |tilt| below 4.3546.")
        left, middle, right = sorted(roots.real.tolist())
        return left, middle, right
