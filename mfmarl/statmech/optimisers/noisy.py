r"""SGD with Gaussian noise of a fixed scale, and what temperature a noise amounts to.

$$ \theta \leftarrow \theta - \eta \nabla L + \nu\, \xi \quad\Leftrightarrow\quad T = \nu^2 / (2 \eta) $$

The popular double-well demonstration (eta = .01, nu = .1) so runs at T = .5. Lowering the rate at a fixed nu *heats*;
with a noise in the gradient itself (variance C per example, batches of B) T = eta C/(2 B): there lowering the rate
cools. In L = k theta^2/2 the variance is nu^2/(eta k (2 - eta k)).
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
from mfmarl.statmech.optimisers.noise import Closure, ThermalOptimizer, at_least, evaluate, with_gradients


def effective_temperature(lr: float, noise: float) -> float:
    """T = noise^2/(2 lr) of a fixed noise per step."""
    at_least("A learning rate", lr, above=True)
    return noise * noise / (2 * lr)


def noise_for(lr: float, temperature: float) -> float:
    """The noise per step sqrt(2 lr T) that makes a temperature."""
    at_least("A learning rate", lr, above=True)
    at_least("A temperature", temperature)
    return math.sqrt(2 * lr * temperature)


def minibatch_temperature(lr: float, variance: float, batch: int) -> float:
    """T = lr C/(2 B) of the noise of minibatches of B, where one example's gradient has variance C."""
    at_least("A learning rate", lr, above=True)
    at_least("A gradient's variance", variance)
    at_least("A batch", batch, 1)
    return lr * variance / (2 * batch)


class NoisySGD(ThermalOptimizer):
    """SGD, with or without momentum, plus noise. Give `noise` (its scale per step) or a `temperature`, not both.

    Given a temperature (or its schedule) the noise follows it: tempered SGD. Given a noise, each group's `temperature`
    is what that noise amounts to, and is rewritten at every step as the rate changes. With momentum mu the noise joins
    the velocity and the temperature is nu^2/(2 eta (1 - mu)).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        key: Key,
        noise: float | None = None,
        temperature: float | Schedule = 0.0,
        momentum: float = 0.0,
    ) -> None:
        self.fixed = noise is not None
        if noise is not None:
            at_least("A noise", noise)
            if isinstance(temperature, Schedule) or temperature:
                raise ConfigError("NoisySGD takes a noise or a temperature, not both: T = noise^2/(2 lr) follows.")
        super().__init__(params, {"lr": lr, "noise": noise or 0.0, "momentum": momentum}, key, temperature)

    def check_options(self, group: dict[str, Any]) -> None:
        at_least("A learning rate", group["lr"], above=True)
        at_least("A noise", group["noise"])
        at_least("A momentum", group["momentum"])
        at_least("One minus the momentum", 1 - group["momentum"], above=True)
        if self.fixed:
            group["temperature"] = effective_temperature(group["lr"], group["noise"]) / (1 - group["momentum"])

    def set_temperature(self, temperature: float) -> None:
        if self.fixed:
            raise ConfigError(
                "This NoisySGD has a fixed noise, from which its temperature follows: set `noise` or `lr`."
            )
        super().set_temperature(temperature)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = evaluate(closure)
        for group in self.param_groups:
            lr, momentum = float(group["lr"]), float(group["momentum"])
            if self.fixed:
                group["temperature"] = effective_temperature(lr, group["noise"]) / (1 - momentum)
            else:
                group["noise"] = noise_for(lr * (1 - momentum), float(group["temperature"]))
            params, slopes = with_gradients(group)
            if not params:
                continue
            noise = float(group["noise"])
            if momentum:
                for p in params:
                    if "velocity" not in self.state[p]:
                        self.state[p]["velocity"] = torch.zeros_like(p)
                moves = [self.state[p]["velocity"] for p in params]
                torch._foreach_mul_(moves, momentum)
                torch._foreach_add_(moves, slopes, alpha=-lr)
                if noise:
                    torch._foreach_add_(moves, self.gaussian(params), alpha=noise)
                torch._foreach_add_(params, moves)
                continue
            torch._foreach_add_(params, slopes, alpha=-lr)
            if noise:
                torch._foreach_add_(params, self.gaussian(params), alpha=noise)
        return loss
