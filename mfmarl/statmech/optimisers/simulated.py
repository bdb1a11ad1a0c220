r"""Simulated annealing of weights: Metropolis moves of all parameters, no gradients.

$$ \theta' = \theta + s\, \xi \odot b, \qquad P(\text{accept}) = \min(1, e^{-(L(\theta') - L(\theta))/T}) $$

(Metropolis et al. 1953; Kirkpatrick, Gelatt and Vecchi 1983.) b keeps each coordinate with probability `share`. At a
fixed temperature the chain leaves exp(-L/T) exactly unchanged; at T = 0 only what is no worse is accepted. For
networks beyond some thousand weights it is hopeless beside gradients: here it is for small ones and for losses that
have no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.optimisers.noise import (
    Closure,
    ThermalOptimizer,
    at_least,
    demanded,
    energies_of,
)


class SimulatedAnnealing(ThermalOptimizer):
    """`step(closure)`: the closure returns the loss [], or losses [*R] of as many chains with parameters [*R, ...].

    `lr` is the scale s of a proposal. A loss is evaluated once per step: that of the present parameters is remembered.
    With `refresh` it is evaluated anew each time, which a loss on changing minibatches needs (and is then no longer
    exact). `forget()` must follow any change of the parameters from outside. The first group's temperature rules.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        temperature: float | Schedule = 1.0,
        *,
        key: Key,
        share: float = 1.0,
        refresh: bool = False,
    ) -> None:
        self.refresh = refresh
        self.energy: Tensor | None = None
        self.acceptance = torch.zeros(())
        """Share of the chains whose last proposal was accepted."""
        super().__init__(params, {"lr": lr, "share": share}, key, temperature)

    def check_options(self, group: dict[str, Any]) -> None:
        at_least("A proposal's scale lr", group["lr"], above=True)
        at_least("A share of the weights", group["share"], above=True)
        at_least("One minus a share of the weights", 1 - group["share"])

    def forget(self) -> None:
        """The energy of the present parameters is evaluated at the next step."""
        self.energy = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.forget()
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """One proposal for every chain; returns the energies [*R] after it."""
        closure = demanded(closure, "SimulatedAnnealing")
        if self.energy is None or self.refresh:
            self.energy = energies_of(closure, None, "SimulatedAnnealing").clone()
        params, temperature = self.parameters(), float(self.param_groups[0]["temperature"])
        check.temperature(temperature)
        before = [p.clone() for p in params]
        for group in self.param_groups:
            noise = self.gaussian(group["params"])
            if group["share"] < 1:
                noise = [z * (self.uniform(z.shape) < group["share"]).to(z) for z in noise]
            torch._foreach_add_(group["params"], noise, alpha=float(group["lr"]))
        proposed = energies_of(closure, self.energy.shape, "SimulatedAnnealing")
        worse = proposed - self.energy
        chance = self.uniform(worse.shape).to(worse)
        accept = worse <= 0 if temperature == 0 else chance.log() * -temperature > worse
        self.acceptance = accept.to(torch.float32).mean()
        self.energy = torch.where(accept, proposed, self.energy)
        for p, old in zip(params, before, strict=True):
            p.copy_(torch.where(accept.view(accept.shape + (1,) * (p.ndim - accept.ndim)), p, old))
        return self.energy
