r"""How strongly a network answers to small noise on its inputs or its weights: fluctuation against direct response.

$$ \mathrm{Var}_\xi\, f(x + s \xi) / s^2 \to |\nabla f(x)|^2 \quad (s \to 0), \qquad
   \mathrm{Var}_{\theta \sim e^{-\beta L}} f = \frac1\beta \frac{\partial \langle f \rangle}{\partial h}
   \text{ of } L - h f $$

The first is here, for any point of inputs or weights; the second is `response.response` of outputs that were sampled
over the weights' Gibbs distribution, as against sampling with the perturbed loss (MacKay 1992; Koh and Liang 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech.sampling.diagnostics import Estimate
from mfmarl.statmech.sampling.resampling import jackknife

_BLOCKS = 32


class Sensitivity(NamedTuple):
    """How strongly outputs answer to small noise on what goes in."""

    fluctuation: Estimate
    """Var f/s^2 over the noise of width s, [*outputs]."""
    linear: Tensor
    """|df/dx|^2, [*outputs]: its limit as s -> 0."""


def sensitivity(function: Callable[[Tensor], Tensor], x: Tensor, width: float, kicks: Tensor) -> Sensitivity:
    """Of a function [*b, n] -> [*b, *outputs] at the point x [n]: inputs of a network, or its weights.

    `kicks` [draws, n] are standard normals. Where fluctuation and limit part, the function is not linear over `width`.
    For weights, take theta -> f_theta(x) (`LossEnergy.outputs`).
    """
    if x.ndim != 1 or kicks.shape[1:] != x.shape or not width > 0 or len(kicks) < 4:
        raise ConfigError(
            f"A sensitivity needs a point [n], at least 4 kicks [draws, n] and a width above 0, not {list(x.shape)}, "
            f"{list(kicks.shape)} and {width:g}."
        )
    with torch.no_grad():
        out = function(x + width * kicks).double()
    flat = out.reshape(len(out), -1)
    away = flat - flat.mean(0)
    value = jackknife(away.unsqueeze(1), lambda s: s.var(0), min(_BLOCKS, len(out)), observables=1)
    slope = torch.autograd.functional.jacobian(function, x).double()
    shape = out.shape[1:]
    scaled = Estimate((value.value / width**2).reshape(shape), (value.error / width**2).reshape(shape))
    return Sensitivity(scaled, slope.reshape(*shape, -1).square().sum(-1))
