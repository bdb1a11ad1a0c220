r"""Langevin dynamics with momentum, one gradient a step: SGHMC, and the BAOAB scheme as an optimiser.

SGHMC (Chen, Fox and Guestrin 2014, eq. 15) in the units of SGD with momentum mu = 1 - friction:

$$ v \leftarrow \mu v - \eta \nabla L + \sqrt{2 (1 - \mu) \eta T - \eta^2 B}\, \xi, \qquad \theta \leftarrow \theta + v $$

with B the known variance of a minibatch gradient (0: none is subtracted). For L = k theta^2/2 its variance is
T/(k (1 - eta k/(2 (1 + mu)))).

`Underdamped` is BAOAB (Leimkuhler and Matthews 2013) read from kick to kick, so that it needs the gradient where the
parameters lie:

$$ v \leftarrow v - h \nabla L, \quad \theta \leftarrow \theta + \tfrac h2 v, \quad
   v \leftarrow c v + \sqrt{(1 - c^2) T}\, \xi, \quad \theta \leftarrow \theta + \tfrac h2 v, \qquad c = e^{-\gamma h} $$

Its positions have exactly the variance T/k in a harmonic well, at every stable step h < 2/sqrt(k).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.optimisers.noise import Closure, ThermalOptimizer, at_least, evaluate


class SGHMC(ThermalOptimizer):
    """Stochastic-gradient HMC: SGD with momentum 1 - `friction` and the noise that goes with it.

    `gradient_variance` is B, the variance of each coordinate's minibatch gradient, which already heats.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        temperature: float | Schedule = 1.0,
        *,
        key: Key,
        friction: float = 0.1,
        gradient_variance: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "friction": friction, "gradient_variance": gradient_variance, "weight_decay": weight_decay
        }  # fmt: skip
        super().__init__(params, defaults, key, temperature)

    def check_options(self, group: dict[str, Any]) -> None:
        at_least("A learning rate", group["lr"], above=True)
        at_least("A friction", group["friction"], above=True)
        at_least("One minus the friction", 1 - group["friction"])
        at_least("A gradient's variance", group["gradient_variance"])
        at_least("A weight decay", group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = evaluate(closure)
        for group, params, slopes, temperature in self.descents():
            lr, friction = float(group["lr"]), float(group["friction"])
            speeds = _speeds(self, params)
            torch._foreach_mul_(speeds, 1 - friction)
            torch._foreach_add_(speeds, slopes, alpha=-lr)
            variance = 2 * friction * lr * temperature - lr * lr * float(group["gradient_variance"])
            if variance < 0:
                raise ConfigError(
                    f"The gradient's own noise is hotter than T = {temperature:g}: friction must be at least "
                    f"{lr * group['gradient_variance'] / (2 * temperature) if temperature else math.inf:.3g}."
                )
            if variance > 0:
                torch._foreach_add_(speeds, self.gaussian(params), alpha=math.sqrt(variance))
            torch._foreach_add_(params, speeds)
        return loss


class Underdamped(ThermalOptimizer):
    """BAOAB: `lr` is the time step h, `friction` the rate gamma; velocities have variance T (unit mass)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        temperature: float | Schedule = 1.0,
        *,
        key: Key,
        friction: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "friction": friction, "weight_decay": weight_decay}, key, temperature)

    def check_options(self, group: dict[str, Any]) -> None:
        at_least("A time step lr", group["lr"], above=True)
        at_least("A friction", group["friction"])
        at_least("A weight decay", group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = evaluate(closure)
        for group, params, slopes, temperature in self.descents():
            lr = float(group["lr"])
            speeds = _speeds(self, params)
            torch._foreach_add_(speeds, slopes, alpha=-lr)
            torch._foreach_add_(params, speeds, alpha=lr / 2)
            kept = math.exp(-float(group["friction"]) * lr)
            torch._foreach_mul_(speeds, kept)
            if temperature > 0 and kept < 1:
                torch._foreach_add_(speeds, self.gaussian(params), alpha=math.sqrt((1 - kept * kept) * temperature))
            torch._foreach_add_(params, speeds, alpha=lr / 2)
        return loss


def _speeds(optimizer: ThermalOptimizer, params: list[Tensor]) -> list[Tensor]:
    """The velocities, 0 at first."""
    for p in params:
        if "velocity" not in optimizer.state[p]:
            optimizer.state[p]["velocity"] = torch.zeros_like(p)
    return [optimizer.state[p]["velocity"] for p in params]
