r"""The restricted Boltzmann machine: two layers, of which the hidden one sums out exactly.

$$ H(v, h) = -v^\top W h - b \cdot v - c \cdot h, \qquad
   F(v) = -b \cdot v - \frac1\beta \sum_j \log\big(1 + e^{\beta (c + v W)_j}\big), \qquad v, h \in \{0, 1\}^n $$

Smolensky 1986 ("harmonium"); Freund and Haussler 1991; Hinton 2002, Neural Computation 14.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from mfmarl.random import Key
from mfmarl.statmech.energies.machines import Machine, random_machine


@dataclass(frozen=True, eq=False)
class RBM:
    """A restricted Boltzmann machine: H = -v W h - b v - c h of states [*b, V + H]."""

    weights: Tensor
    """W [V, H]."""
    visible: Tensor
    """b [V]."""
    hidden: Tensor
    """c [H]."""

    def __post_init__(self) -> None:
        _ = self.machine

    @cached_property
    def machine(self) -> Machine:
        """The same as a machine of two layers: its log Z, its spins."""
        return Machine((self.weights,), (self.visible, self.hidden))

    def __call__(self, x: Tensor) -> Tensor:
        return self.machine(x)

    def free_energy(self, v: Tensor, beta: float | Tensor = 1.0) -> Tensor:
        """F(v) [*b] of visible units [*b, V]: p(v) = exp(-beta F(v))/Z. `beta` > 0 broadcasts against [*b]."""
        own, field = v @ self.visible, self.hidden + v @ self.weights
        if isinstance(beta, float) and beta == 1.0:
            return -own - softplus(field).sum(-1)
        beta = torch.as_tensor(beta, dtype=v.dtype, device=v.device)
        return -own - softplus(beta.unsqueeze(-1) * field).sum(-1) / beta

    def hidden_given(self, v: Tensor) -> Tensor:
        """P(h = 1 | v) [*b, H] at beta = 1."""
        return linear(v, self.weights.mT, self.hidden).sigmoid_()

    def visible_given(self, h: Tensor) -> Tensor:
        """P(v = 1 | h) [*b, V] at beta = 1."""
        return linear(h, self.weights, self.visible).sigmoid_()

    def log_partition(self, beta: float = 1.0) -> Tensor:
        """Exact log Z by enumerating the smaller layer (at most 25 units)."""
        return self.machine.log_partition(beta)


def random_rbm(
    num_visible: int, num_hidden: int, key: Key, scale: float = 0.01, dtype: torch.dtype = torch.float64
) -> RBM:
    """Weights N(0, scale^2), no biases."""
    machine = random_machine((num_visible, num_hidden), key, scale, dtype)
    return RBM(machine.weights[0], *machine.biases)
