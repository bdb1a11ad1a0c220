r"""A loss as a Hamiltonian over the weights of a network: every sampler of energies then runs on networks.

$$ H(\theta) = \sum_i \ell(f_\theta(x_i), y_i) + \tfrac{\lambda}{2} |\theta|^2, \qquad p_T(\theta) \propto e^{-H(\theta)/T} $$

With l minus a log-likelihood and lambda the precision of a Gaussian prior, T = 1 is the Bayesian posterior, T = 0 the
MAP estimate, and H up to a constant minus the log joint (MacKay 1992; Welling and Teh 2011). The weight penalty is the
prior's *energy*, not an entropy. Without it the partition function of a squared loss diverges along every direction
that the data leave free, and that of a bounded loss always: a prior is asked for wherever Z is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [n, ...], targets [n, ...]) -> the loss [], *summed* over rows: `cross_entropy`, `half_squares`, yours."""


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """sum (f - y)^2/2: minus the log-likelihood of unit Gaussian noise, up to a constant."""
    return 0.5 * (outputs - targets).square().sum()


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the log-likelihood of classes int64 [n] under logits [n, C], summed."""
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


def demand_determinism(model: nn.Module) -> None:
    """Raises ConfigError for layers whose training mode draws noise or couples rows: no function of the weights."""
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if layer.training and ("Dropout" in kind or "BatchNorm" in kind):
            raise ConfigError(f"{kind} ({name}) makes the loss no function of the weights: call model.eval() first.")


@dataclass(frozen=True, eq=False)
class LossEnergy:
    """H of flat weights [*b, d] -> [*b]; d counts the model's parameters in their order. Buffers stay as they are."""

    model: nn.Module
    loss: Loss
    inputs: Tensor
    """[n, ...]."""
    targets: Tensor
    """[n, ...]."""
    prior_precision: float | Tensor
    """lambda >= 0, one for all or [d]; 0 is no prior: fine for descent, not for a partition function."""
    data_weight: float = 1.0
    """What the sum over rows is multiplied by: n/B on a minibatch (see `minibatch`)."""

    def __post_init__(self) -> None:
        if not self.size:
            raise ConfigError("The model has no parameters: its loss is no energy over weights.")
        demand_determinism(self.model)
        if len(self.inputs) != len(self.targets) or not len(self.inputs):
            raise ConfigError(f"{len(self.inputs)} inputs need as many targets, at least one, not {len(self.targets)}.")
        prior = torch.as_tensor(self.prior_precision)
        if not bool((prior >= 0).all()) or not bool(torch.isfinite(prior).all()):
            raise ConfigError("A prior's precision must be finite and at least 0.")
        if prior.ndim and prior.shape != (self.size,):
            raise ConfigError(f"A prior's precision must be one number or [{self.size}], not {list(prior.shape)}.")

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """The name and shape of every parameter, in the order of the flat weights."""
        return {name: p.shape for name, p in self.model.named_parameters()}

    @cached_property
    def size(self) -> int:
        """d."""
        return sum(shape.numel() for shape in self.shapes.values())

    def unflatten(self, weights: Tensor) -> dict[str, Tensor]:
        """Flat weights [*b, d] as parameters by name [*b, ...]."""
        self._check(weights)
        parts = weights.split([shape.numel() for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(*weights.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `unflatten`: [*b, d]."""
        name, shape = next(iter(self.shapes.items()))
        batch = parameters[name].shape[: parameters[name].ndim - len(shape)]
        return torch.cat([parameters[name].reshape(*batch, -1) for name in self.shapes], -1)

    @property
    def weights(self) -> Tensor:
        """The model's own parameters, a copy [d]."""
        return self.flatten({name: p.detach() for name, p in self.model.named_parameters()}).clone()

    @torch.no_grad()
    def write(self, weights: Tensor) -> None:
        """Makes `weights` [d] the model's own."""
        for name, value in self.unflatten(weights).items():
            self.model.get_parameter(name).copy_(value)

    def outputs(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """What networks of weights [*b, d] say of the same inputs [n, ...]: [*b, n, ...]."""
        if weights.ndim == 1:
            return self._call(weights, inputs)
        flat = torch.func.vmap(self._call, (0, None))(weights.reshape(-1, self.size), inputs)
        return flat.reshape(*weights.shape[:-1], *flat.shape[1:])

    def minibatch(self, rows: Tensor) -> LossEnergy:
        """The energy estimated, without bias for random rows int64 [B], from these rows alone."""
        if not len(rows):
            raise ConfigError("A minibatch needs at least one row.")
        weight = self.data_weight * len(self.inputs) / len(rows)
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows], data_weight=weight)

    def __call__(self, weights: Tensor) -> Tensor:
        self._check(weights)
        if weights.ndim == 1:
            return self._energy(weights)
        flat = torch.func.vmap(self._energy)(weights.reshape(-1, self.size))
        return flat.reshape(weights.shape[:-1])

    def gradient(self, weights: Tensor) -> Tensor:
        """dH/dtheta [*b, d]."""
        return self.value_and_gradient(weights)[1]

    def value_and_gradient(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """H [*b] and dH/dtheta [*b, d], in one pass."""
        self._check(weights)
        flat = weights.detach().reshape(-1, self.size)
        slope, value = torch.func.vmap(torch.func.grad_and_value(self._energy))(flat)
        return value.reshape(weights.shape[:-1]), slope.reshape(weights.shape)

    def hessian(self, weights: Tensor) -> Tensor:
        """[d, d] at weights [d]."""
        return torch.func.hessian(self._energy)(weights)

    def random_states(self, shape: tuple[int, ...], key: Key) -> Tensor:
        """Independent draws from the prior [*shape, d]. Raises ConfigError where it has no prior."""
        prior = torch.as_tensor(self.prior_precision, dtype=torch.float32)
        if not bool((prior > 0).all()):
            raise ConfigError("Without a prior (prior_precision above 0) there is nothing to draw weights from.")
        ids = torch.arange(math.prod(shape)).reshape(shape)
        return (random.normal(key, ids, self.size) / prior.sqrt()).to(next(self.model.parameters()))

    def laplace_log_partition(self, minimum: Tensor, beta: float = 1.0) -> Tensor:
        """log Z in the saddle point at `minimum` [d]: -beta H + d/2 log(2 pi/beta) - log det H''/2; exact if quadratic.

        Raises ConfigError where a direction is flat (or not a minimum): Z then diverges for want of a prior.
        """
        check.inverse_temperature(beta)
        stiffness = torch.linalg.eigvalsh(self.hessian(minimum))
        flat = int((stiffness <= 1e-6 * stiffness.max().clamp(min=1e-30)).sum())
        if flat:
            raise ConfigError(
                f"The loss is flat (or falls) along {flat} of {self.size} directions, so its partition function "
                "diverges: give a prior_precision above 0."
            )
        return -beta * self(minimum) + self.size / 2 * math.log(2 * math.pi / beta) - stiffness.log().sum() / 2

    def _check(self, weights: Tensor) -> None:
        if weights.shape[-1:] != (self.size,):
            raise ConfigError(f"Weights must have shape [..., {self.size}], not {list(weights.shape)}.")

    def _call(self, weights: Tensor, inputs: Tensor) -> Tensor:
        return torch.func.functional_call(self.model, self.unflatten(weights), (inputs,))

    def _energy(self, weights: Tensor) -> Tensor:
        data = self.loss(self._call(weights, self.inputs), self.targets)
        return self.data_weight * data + 0.5 * (self.prior_precision * weights.square()).sum()
