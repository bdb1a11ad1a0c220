r"""Stochastic gradient Langevin dynamics at a temperature, plain and preconditioned.

$$ \theta \leftarrow \theta - \epsilon\, \nabla L + \sqrt{2 \epsilon T}\, \xi $$

samples exp(-L/T) as epsilon -> 0 (Welling and Teh 2011, eq. 4 with step epsilon/2 and T = 1). At a finite step it is
biased: for L = k theta^2/2 the variance is T/(k (1 - epsilon k/2)). The noise of minibatches adds to it, uncorrected.

Preconditioned (Li, Chen, Carlson and Carin 2016, eq. 4-5, RMSprop's diagonal G):

$$ V \leftarrow \alpha V + (1 - \alpha) (\nabla L)^2, \quad G = 1/(\lambda + \sqrt V), \quad
   \theta \leftarrow \theta - \epsilon G \nabla L + \sqrt{2 \epsilon T G}\, \xi $$

**Biased**: the term Gamma_i = sum_j dG_ij/dtheta_j is dropped, as the paper does, so that not even epsilon -> 0 gives
exp(-L/T) unless G has settled (alpha -> 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mfmarl.random import Key
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.optimisers.noise import Closure, ThermalOptimizer, at_least, evaluate


class SGLD(ThermalOptimizer):
    """Langevin descent. The loss is the energy itself: for a posterior the *sum* over all data plus the prior.

    `weight_decay` lambda adds the prior energy lambda |theta|^2/2 of a Gaussian of precision lambda (not an entropy).
    Parameters [replicas, ...] are as many independent chains.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        temperature: float | Schedule = 1.0,
        *,
        key: Key,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, key, temperature)

    def check_options(self, group: dict[str, Any]) -> None:
        at_least("A learning rate", group["lr"], above=True)
        at_least("A weight decay", group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = evaluate(closure)
        for group, params, slopes, temperature in self.descents():
            lr = float(group["lr"])
            torch._foreach_add_(params, slopes, alpha=-lr)
            if temperature > 0:
                torch._foreach_add_(params, self.gaussian(params), alpha=math.sqrt(2 * lr * temperature))
        return loss


class PreconditionedSGLD(ThermalOptimizer):
    """SGLD with RMSprop's diagonal metric. Biased: see the module's docstring."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        temperature: float | Schedule = 1.0,
        *,
        key: Key,
        decay: float = 0.99,
        damping: float = 1e-5,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "decay": decay, "damping": damping, "weight_decay": weight_decay}
        super().__init__(params, defaults, key, temperature)

    def check_options(self, group: dict[str, Any]) -> None:
        at_least("A learning rate", group["lr"], above=True)
        at_least("A damping", group["damping"], above=True)
        at_least("A weight decay", group["weight_decay"])
        at_least("One minus the decay", 1 - group["decay"])
        at_least("A decay", group["decay"])

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = evaluate(closure)
        for group, params, slopes, temperature in self.descents():
            lr, decay = float(group["lr"]), float(group["decay"])
            for p, g in zip(params, slopes, strict=True):
                if "square" not in self.state[p]:
                    self.state[p]["square"] = g * g  # from the first gradient on: zeros would give a huge first step
            squares = [self.state[p]["square"] for p in params]
            torch._foreach_mul_(squares, decay)
            torch._foreach_addcmul_(squares, slopes, slopes, value=1 - decay)
            metric = torch._foreach_sqrt(squares)
            torch._foreach_add_(metric, float(group["damping"]))
            torch._foreach_reciprocal_(metric)
            torch._foreach_addcmul_(params, metric, slopes, value=-lr)
            if temperature > 0:
                torch._foreach_sqrt_(metric)
                torch._foreach_addcmul_(params, metric, self.gaussian(params), value=math.sqrt(2 * lr * temperature))
        return loss
