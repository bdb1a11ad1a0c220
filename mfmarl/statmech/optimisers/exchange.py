r"""Replica-exchange stochastic gradient Langevin dynamics: hot replicas explore, cold ones settle, and they swap.

Replica r follows Langevin dynamics at T_r; neighbours exchange their parameters with probability

$$ \min\left(1, \exp\left[ (\beta_1 - \beta_2) (\tilde L_1 - \tilde L_2) - (\beta_1 - \beta_2)^2 \sigma^2 \right]\right) $$

(Deng, Feng, Gao, Liang and Lin 2020, eq. 6-8) where sigma^2 is the variance of the noise of one replica's loss. The
correction makes noisy energies right: with Gaussian noise of known variance it is the penalty method of Ceperley and
Dewing (1999, eq. 10), for which detailed balance holds exactly. Without it noisy swaps are too frequent.
Every step tries the pairs (0,1), (2,3) ... or (1,2), (3,4) ... in turn. In d dimensions a gap in temperature is crossed
with a probability that falls with sqrt(d): more dimensions need more replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.optimisers.noise import (
    Closure,
    ThermalOptimizer,
    at_least,
    demanded,
    energies_of,
    with_gradients,
)


class ReplicaExchangeSGLD(ThermalOptimizer):
    """Parameters [R, ...], one replica for each of `temperatures` (ascending, or any order); replica r stays at T_r.

    `step(closure)`: the closure returns energies [R], or [R, *ladders] for many independent ladders whose parameters
    are [R, *ladders, ...], and has called `backward()` on their sum. `lr` may be one for each replica: hot ones
    may stride. `loss_variance` is sigma^2 (a number, or a tensor that broadcasts against [*ladders]).
    `attempted` and `accepted` [R - 1] count swaps over all ladders.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Sequence[float],
        temperatures: Sequence[float],
        *,
        key: Key,
        swap_every: int = 1,
        loss_variance: float | Tensor = 0.0,
    ) -> None:
        self.temperatures = tuple(float(t) for t in temperatures)
        if len(self.temperatures) < 2:
            raise ConfigError("Replica exchange needs at least two temperatures.")
        for temperature in self.temperatures:
            check.temperature(temperature, positive=True)
        self.rates = tuple(float(r) for r in lr) if isinstance(lr, Sequence) else (float(lr),) * len(self.temperatures)
        if len(self.rates) != len(self.temperatures):
            raise ConfigError(f"{len(self.temperatures)} replicas need one lr or as many, not {len(self.rates)}.")
        for rate in self.rates:
            at_least("A learning rate", rate, above=True)
        at_least("swap_every", swap_every, 1)
        if float(torch.as_tensor(loss_variance).min()) < 0:
            raise ConfigError("The variance of a loss cannot be negative.")
        self.swap_every, self.loss_variance = swap_every, loss_variance
        super().__init__(params, {}, key, self.temperatures[0])
        replicas = len(self.temperatures)
        for p in self.parameters():
            if p.ndim < 1 or p.shape[0] != replicas:
                raise ConfigError(f"A parameter of {replicas} replicas must lead with them, not {list(p.shape)}.")
        counts = self.state[self.parameters()[0]]
        counts["step"] = torch.zeros((), dtype=torch.float32)
        counts["attempted"] = torch.zeros(replicas - 1)
        counts["accepted"] = torch.zeros(replicas - 1)

    def check_options(self, group: dict[str, Any]) -> None:
        """There are none besides the constructor's."""

    def set_temperature(self, temperature: float) -> None:
        raise ConfigError("Replica exchange has one temperature for each replica, and they stay.")

    @property
    def attempted(self) -> Tensor:
        return self.state[self.parameters()[0]]["attempted"]

    @property
    def accepted(self) -> Tensor:
        return self.state[self.parameters()[0]]["accepted"]

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Swaps where the energies allow, then one Langevin move of every replica; returns the energies as evaluated."""
        with torch.enable_grad():
            energy = energies_of(demanded(closure, "ReplicaExchangeSGLD"), None, "ReplicaExchangeSGLD")
        if energy.ndim < 1 or energy.shape[0] != len(self.temperatures):
            raise ConfigError(
                f"The closure must give one energy for each of {len(self.temperatures)} replicas, "
                f"not {list(energy.shape)}."
            )
        count = self.state[self.parameters()[0]]["step"]
        now = int(count)
        count += 1
        if now % self.swap_every == 0:
            self._swap(energy, (now // self.swap_every) % 2 if len(self.temperatures) > 2 else 0)
        for group in self.param_groups:
            params, slopes = with_gradients(group)
            if not params:
                continue
            like = params[0]
            rate = torch.tensor(self.rates, dtype=like.dtype, device=like.device)
            scale = (2 * rate * torch.tensor(self.temperatures, dtype=like.dtype, device=like.device)).sqrt()
            if len(set(self.rates)) == 1:
                torch._foreach_add_(params, slopes, alpha=-self.rates[0])
            else:
                torch._foreach_addcmul_(params, slopes, [_across(rate, p) for p in params], value=-1)
            torch._foreach_addcmul_(params, self.gaussian(params), [_across(scale, p) for p in params])
        return energy

    def _swap(self, energy: Tensor, first: int) -> None:
        pairs = (len(self.temperatures) - first) // 2
        if not pairs:
            return
        low, high = slice(first, first + 2 * pairs, 2), slice(first + 1, first + 1 + 2 * pairs, 2)
        beta = 1 / torch.tensor(self.temperatures, dtype=energy.dtype, device=energy.device)
        gap = _across(beta[low] - beta[high], energy)
        log_ratio = gap * (energy[low] - energy[high]) - gap * gap * self.loss_variance
        swap = self.uniform(log_ratio.shape).to(energy.device).log() < log_ratio
        many = max(swap[0].numel(), 1)
        self.attempted[low] += many
        self.accepted[low] += swap.reshape(pairs, -1).sum(-1).to(self.accepted)
        for p in self.parameters():
            for x in (p, p.grad):
                if x is None:
                    continue
                if x.shape[1 : swap.ndim] != swap.shape[1:]:
                    raise ConfigError(
                        f"Energies {list(energy.shape)} are not the first axes of a parameter {list(x.shape)}."
                    )
                chosen = swap.view(swap.shape + (1,) * (x.ndim - swap.ndim))
                colder = torch.where(chosen, x[high], x[low])
                x[high] = torch.where(chosen, x[low], x[high])
                x[low] = colder


def _across(values: Tensor, like: Tensor) -> Tensor:
    """Values [R] as [R, 1, ...] against a tensor that leads with replicas."""
    return values.view(-1, *(1,) * (like.ndim - 1))
