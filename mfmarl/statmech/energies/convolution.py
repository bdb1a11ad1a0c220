r"""A convolution as an energy: spins on a torus whose couplings depend on their distance only.

$$ H(s) = -\tfrac12 \sum_x s_x (k * s)_x - h \sum_x s_x, \qquad (k * s)_x = \sum_r k_r\, s_{x + r}, \quad k_r = k_{-r}, \ k_0 = 0 $$

It is the dense Ising energy with tied couplings, J_xy = k_(y - x), in as many numbers as the kernel has: what a
convolutional network assumes of translation. By the Fourier transform k * s costs n log n; waves are the eigenvectors
of J, and its eigenvalues the transform of k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check
from mfmarl.statmech.energies import spins
from mfmarl.statmech.energies.spins import Ising


@dataclass(frozen=True, eq=False)
class Convolution:
    """Spins [*b, n] on a torus, row by row. See the module's docstring for H."""

    kernel: Tensor
    """k, with odd sides, its middle at distance 0 (and 0 there): [3, 3] couples the eight nearest on a square lattice."""
    shape: tuple[int, ...]
    """Sides of the torus, none below the kernel's: n is their product."""
    field: float = 0.0

    def __post_init__(self) -> None:
        check.finite(self.kernel.detach(), "A kernel")
        sides = tuple(self.kernel.shape)
        if len(sides) != len(self.shape) or any(side % 2 == 0 for side in sides):
            raise ConfigError(
                f"A kernel on a torus of {len(self.shape)} dimensions has as many odd sides, not {list(sides)}."
            )
        if any(side > length for side, length in zip(sides, self.shape, strict=True)):
            raise ConfigError(f"A kernel of {list(sides)} would reach round a torus of {list(self.shape)} to itself.")
        if not torch.allclose(self.kernel, self.kernel.flip(tuple(range(len(sides))))):
            raise ConfigError("A kernel must be the same in opposite directions, k(r) = k(-r): a pair interacts once.")
        if float(self.kernel[tuple(side // 2 for side in sides)]) != 0:
            raise ConfigError("The middle of a kernel must be 0: s^2 = 1 is only a constant.")

    @property
    def num_spins(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def whole(self) -> Tensor:
        """The kernel on all of the torus, distance 0 first."""
        full = self.kernel.new_zeros(self.shape)
        full[tuple(slice(0, side) for side in self.kernel.shape)] = self.kernel
        return full.roll([-(side // 2) for side in self.kernel.shape], tuple(range(len(self.shape))))

    @cached_property
    def spectrum(self) -> Tensor:
        """The eigenvalues of J, real, in the shape of the torus: of the wave with each wave vector."""
        return torch.fft.fftn(self.whole).real

    def local_field(self, s: Tensor) -> Tensor:
        """h + k*s, [*b, n]: minus dH/ds."""
        axes = tuple(range(-len(self.shape), 0))
        waves = torch.fft.fftn(s.reshape(*s.shape[:-1], *self.shape).to(self.kernel.dtype), dim=axes)
        pulled = torch.fft.ifftn(waves * self.spectrum, dim=axes).real
        return pulled.reshape(s.shape) + self.field

    def __call__(self, s: Tensor) -> Tensor:
        """H [*b] of spins [*b, n]."""
        return -(s * (self.local_field(s) + self.field)).sum(-1) / 2

    def gradient(self, s: Tensor) -> Tensor:
        """dH/ds, minus the local field."""
        return -self.local_field(s)

    def ising(self) -> Ising:
        """The same energy with every coupling written out: for the samplers of graphs, and for enumeration."""
        n = self.num_spins
        site = torch.arange(n).reshape(self.shape)
        matrix = self.kernel.new_zeros(n, n)
        axes = tuple(range(len(self.shape)))
        for place in self.kernel.nonzero().tolist():
            distance = [p - side // 2 for p, side in zip(place, self.kernel.shape, strict=True)]
            neighbour = site.roll([-d for d in distance], axes).flatten()
            matrix[site.flatten(), neighbour] += self.kernel[tuple(place)]
        return spins.from_matrix(matrix, self.field)
