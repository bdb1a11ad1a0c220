r"""What every optimiser with a temperature shares: its noise, its options, and how both are saved.

The noise of a step is one draw of a generator made from the optimiser's key, never of the global one. The generator's
state lies in `state_dict()["state"]` as bytes (a tensor of the first parameter's state, so that whatever saves tensors
saves it), and a run resumed from it is bitwise the run that was never stopped. Of parameters [replicas, ...] each
replica is a chain with noise of its own; which numbers it gets depends on the shapes of all (chains whose noise is their
own by id are in `sampling`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.annealing.schedule import Schedule

Closure = Callable[[], Tensor]
_BYTES = "noise"


def at_least(name: str, value: float, low: float = 0.0, *, above: bool = False) -> None:
    """Raises ConfigError unless `value` is a finite number of at least (or above) `low`."""
    if not math.isfinite(value) or not (value > low if above else value >= low):
        raise ConfigError(f"{name} must be finite and {'above' if above else 'at least'} {low:g}, not {value:g}.")


class ThermalOptimizer(torch.optim.Optimizer):
    """An optimiser whose groups each have a `temperature`, in units of the loss, that may be set at any time.

    A `Schedule` instead of a number starts at its beginning; `advance(progress)` moves it. Options are checked
    whenever a group is added.
    """

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], key: Key, temperature: float | Schedule = 1.0
    ) -> None:
        self.schedule = temperature if isinstance(temperature, Schedule) else None
        if self.schedule is not None and self.schedule.kind == "entropy":
            raise ConfigError("Weights have no entropy that could be measured and kept: give a temperature's schedule.")
        start = temperature.at(0.0) if isinstance(temperature, Schedule) else temperature
        super().__init__(params, {**defaults, "temperature": start})
        places = {p.device for p in self.parameters()}
        if len(places) > 1:
            raise ConfigError(f"One optimiser's noise lies on one device; its parameters lie on {len(places)}.")
        self.generator = random.generator(key, next(iter(places)))

    @abstractmethod
    def check_options(self, group: dict[str, Any]) -> None:
        """Raises ConfigError for an option of a group that cannot be used."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name, value in self.defaults.items():
            param_group.setdefault(name, value)
        if isinstance(param_group["temperature"], Schedule):
            raise ConfigError("A schedule is one for all parameter groups: give it as the optimiser's temperature.")
        check.temperature(param_group["temperature"])
        self.check_options(param_group)
        super().add_param_group(param_group)

    def parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def advance(self, progress: float) -> float:
        """Sets every group's temperature to the schedule's at that share of the run, and returns it."""
        if self.schedule is None:
            raise ConfigError("This optimiser was given a number as its temperature: there is no schedule to advance.")
        temperature = self.schedule.at(progress)
        self.set_temperature(temperature)
        return temperature

    def set_temperature(self, temperature: float) -> None:
        check.temperature(temperature)
        for group in self.param_groups:
            group["temperature"] = temperature

    def descents(self) -> Iterator[tuple[dict[str, Any], list[Tensor], list[Tensor], float]]:
        """Each group that has gradients: its options, parameters, the slopes of its energy (prior of a weight decay
        included), and its temperature.
        """
        for group in self.param_groups:
            params, slopes = with_gradients(group)
            temperature = float(group["temperature"])
            check.temperature(temperature)
            if params and group.get("weight_decay"):
                slopes = list(torch._foreach_add(slopes, params, alpha=float(group["weight_decay"])))
            if params:
                yield group, params, slopes, temperature

    def gaussian(self, params: list[Tensor]) -> list[Tensor]:
        """Standard normal noise in the shapes of the parameters: one draw for all of them."""
        dtypes = {p.dtype for p in params}
        if len(dtypes) != 1:
            return [torch.randn(p.shape, dtype=p.dtype, device=p.device, generator=self.generator) for p in params]
        if len(params) == 1:
            return [
                torch.empty_like(params[0], memory_format=torch.contiguous_format).normal_(generator=self.generator)
            ]
        sizes = [p.numel() for p in params]
        flat = params[0].new_empty(sum(sizes)).normal_(generator=self.generator)
        return [part.view(p.shape) for part, p in zip(flat.split(sizes), params, strict=True)]

    def uniform(self, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """Uniform noise, float32."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device)

    def state_dict(self) -> dict[str, Any]:
        self.state[self.parameters()[0]][_BYTES] = self.generator.get_state()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        saved = self.state[self.parameters()[0]].pop(_BYTES, None)
        if saved is None:
            raise ConfigError("A saved state without its generator cannot go on: it must hold 'noise' as bytes.")
        # torch casts what it loads to the parameter's dtype: whole numbers up to 255 survive that.
        self.generator.set_state(saved.to("cpu", torch.uint8))


def with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of a group that have a gradient, and the gradients. Raises ConfigError for sparse ones."""
    params = [p for p in group["params"] if p.grad is not None]
    slopes = [p.grad for p in params]
    if any(g.is_sparse for g in slopes):
        raise ConfigError("Sparse gradients are not supported by optimisers with noise: make the embedding dense.")
    return params, slopes


def evaluate(closure: Closure | None) -> Tensor | None:
    """The closure's loss, with gradients enabled; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def demanded(closure: Closure | None, who: str) -> Closure:
    """Raises ConfigError for a method that cannot do without a closure."""
    if closure is None:
        raise ConfigError(f"{who}.step needs a closure that evaluates the loss: step(closure).")
    return closure


def energies_of(closure: Closure, shape: tuple[int, ...] | torch.Size | None, who: str) -> Tensor:
    """The closure's energies without gradients. Raises NumericFault for a NaN, ConfigError for another shape."""
    energy = closure().detach()
    if shape is not None and energy.shape != torch.Size(shape):
        raise ConfigError(f"{who}: the closure gave energies {list(energy.shape)}, then {list(shape)} were expected.")
    if bool(torch.isnan(energy).any()):
        raise NumericFault(f"{who}: the closure gave an energy that is not a number.")
    return energy
