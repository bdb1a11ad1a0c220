"""The contract of an energy H(x), and the forces that follow from it.

An energy is a callable from states [*b, n] to energies [*b], in units of k_B = 1: any leading shape is a batch of
chains. A loss is one (its states are the weights), a torch module that maps [*b, n] to [*b] is one, minus a log
density is one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]
"""H: states [*b, n] -> [*b]."""


def gradient(energy: Energy, x: Tensor) -> Tensor:
    """dH/dx, [*b, n]: the energy's own `gradient(x)` where it has one, else by automatic differentiation."""
    own = getattr(energy, "gradient", None)
    if own is not None:
        return own(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(energy(x).sum(), x)
    return slope
