r"""Entropy-SGD: descent on the local free energy of the weights, which prefers wide valleys.

$$ \Phi(\theta; \gamma) = -T \log \int e^{-[L(\theta') + \gamma |\theta' - \theta|^2/2]/T} d\theta', \qquad
   \nabla \Phi = \gamma (\theta - \langle \theta' \rangle) $$

(Chaudhari et al. 2017, eq. 3-7 with T = 1; minus Phi is the local entropy.) The average is that of an inner chain of
Langevin steps. For L = k theta^2/2 exactly grad Phi = gamma k/(gamma + k) theta, whatever the temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.optimisers.noise import Closure, ThermalOptimizer, at_least, demanded, evaluate, with_gradients


class EntropySGD(ThermalOptimizer):
    """`step(closure)` calls the closure `inner_steps` times; the closure must zero the gradients and call `backward()`.

    `scope` is gamma, which may grow over a run; `inner_lr` the step of the inner chain; `average` the weight that the
    running mean of the chain keeps per step (0.75 in the paper; 0 is the last point alone); the first `burn_in` inner
    steps do not enter it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        temperature: float | Schedule = 1e-4,
        *,
        key: Key,
        scope: float = 1.0,
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        average: float = 0.75,
        burn_in: int = 0,
    ) -> None:
        defaults = {
            "lr": lr, "scope": scope, "inner_steps": inner_steps, "inner_lr": inner_lr,
            "average": average, "burn_in": burn_in,
        }  # fmt: skip
        super().__init__(params, defaults, key, temperature)

    def check_options(self, group: dict[str, Any]) -> None:
        at_least("A learning rate", group["lr"], above=True)
        at_least("An inner learning rate", group["inner_lr"], above=True)
        at_least("A scope", group["scope"], above=True)
        at_least("The number of inner steps", group["inner_steps"], 1)
        at_least("A burn-in", group["burn_in"])
        at_least("The inner steps after the burn-in", group["inner_steps"] - group["burn_in"], 1)
        at_least("An average's memory", group["average"])
        at_least("One minus an average's memory", 1 - group["average"], above=True)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Returns the loss at the start, where the outer parameters lay."""
        closure = demanded(closure, "EntropySGD")
        outer = [[p.clone() for p in group["params"]] for group in self.param_groups]
        mean = [[p.clone() for p in params] for params in outer]
        first: Tensor | None = None
        for inner in range(max(group["inner_steps"] for group in self.param_groups)):
            loss = evaluate(closure)
            first = loss if first is None else first
            for group, centre, average in zip(self.param_groups, outer, mean, strict=True):
                if inner >= group["inner_steps"]:
                    continue
                params, slopes = with_gradients(group)
                if not params:
                    continue
                centre = [c for c, p in zip(centre, group["params"], strict=True) if p.grad is not None]
                average = [a for a, p in zip(average, group["params"], strict=True) if p.grad is not None]
                lr, temperature = float(group["inner_lr"]), float(group["temperature"])
                check.temperature(temperature)
                pull = torch._foreach_sub(params, centre)
                torch._foreach_add_(params, slopes, alpha=-lr)
                torch._foreach_add_(params, pull, alpha=-lr * float(group["scope"]))
                if temperature > 0:
                    torch._foreach_add_(params, self.gaussian(params), alpha=math.sqrt(2 * lr * temperature))
                if inner >= group["burn_in"]:
                    torch._foreach_lerp_(average, params, 1 - float(group["average"]))
        for group, centre, average in zip(self.param_groups, outer, mean, strict=True):
            for p, c, a in zip(group["params"], centre, average, strict=True):
                p.copy_(c - float(group["lr"]) * float(group["scope"]) * (c - a))
        assert first is not None
        return first
