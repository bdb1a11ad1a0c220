r"""Training restricted Boltzmann machines: minibatches, momentum, and a choice of negative phase.

$$ u \leftarrow \mu u + \eta\, (\nabla \log p - \lambda W), \qquad \theta \leftarrow \theta + u $$

Hinton 2010, "A practical guide to training restricted Boltzmann machines" (UTML TR 2010-003). A generator that yields
a row after every epoch: who iterates decides what to print, to keep and when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.energies.restricted import RBM
from mfmarl.statmech.energy_learning import contrastive, likelihood
from mfmarl.statmech.energy_learning.contrastive import Gradient, Phases
from mfmarl.statmech.sampling import block

_WATCHED = 100  # rows of each epoch whose pseudo-likelihood is estimated

METHODS = ("cd", "persistent", "tempered", "exact")


@dataclass(frozen=True)
class Training:
    """How a machine is trained; the defaults suit data of hundreds to thousands of rows."""

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.05
    final_share: float = 1.0
    """The learning rate sinks evenly to this share of itself: persistent chains need a small one at the end."""
    momentum: float = 0.5
    weight_decay: float = 0.0
    """Pulls the weights (not the biases) to 0."""
    method: Literal["cd", "persistent", "tempered", "exact"] = "persistent"
    """The negative phase: contrastive divergence, persistent chains, parallel tempering, or all states."""
    steps: int = 1
    """Sweeps of block Gibbs per update."""
    chains: int = 64
    """Persistent chains, or ladders of tempered ones."""
    rungs: int = 8
    """Temperatures of a ladder, beta even from 0 to 1."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"The negative phase is one of {', '.join(METHODS)}, not {self.method!r}.")
        for name in ("epochs", "batch_size", "steps", "chains"):
            if getattr(self, name) < 1:
                raise ConfigError(f"The option {name} of a training must be at least 1, not {getattr(self, name)}.")
        if not self.learning_rate > 0 or not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ConfigError(
                "A training needs a learning rate above 0, a momentum of 0 to below 1 and a weight decay of at least "
                f"0, not {self.learning_rate:g}, {self.momentum:g} and {self.weight_decay:g}."
            )
        if not 0 < self.final_share <= 1 or self.rungs < 2:
            raise ConfigError("A training needs a final share of the rate in (0, 1] and 2 rungs at least.")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0 on."""
        return self.learning_rate * (1 - (1 - self.final_share) * epoch / max(self.epochs - 1, 1))


class Epoch(NamedTuple):
    """After an epoch: the machine, and an unbiased estimate of its mean pseudo-log-likelihood, on 100 rows at most."""

    epoch: int
    rbm: RBM
    pseudo_log_likelihood: float


def train_rbm(rbm: RBM, data: Tensor, key: Key, options: Training | None = None) -> Iterator[Epoch]:
    """The machine after each epoch over data [n, V] of 0 and 1 (or probabilities, which serve as means).

    The machine given is left as it is. Raises NumericFault if the parameters become infinite, ConfigError for data
    that do not fit.
    """
    options = Training() if options is None else options
    refuse_bad_data(data, len(rbm.visible))
    data = data.to(rbm.weights.dtype)
    parameters = [value.clone() for value in (rbm.weights, rbm.visible, rbm.hidden)]
    velocity = [torch.zeros_like(value) for value in parameters]
    current = RBM(*parameters)  # holds the very tensors that the updates write
    betas = torch.linspace(0, 1, options.rungs, dtype=torch.float64)
    chains = torch.arange(options.chains, device=data.device)
    held = _beginning(current, data, options, key)
    rows = data.new_empty(min(options.batch_size, len(data)), data.shape[1])  # every batch in its turn
    for epoch in range(options.epochs):
        rate = options.rate(epoch)
        order = torch.randperm(len(data), generator=random.generator(key.fold("order", epoch))).to(data.device)
        for start in range(0, len(data), options.batch_size):
            index = order[start : start + options.batch_size]
            batch, step = rows[: len(index)], key.fold("step", epoch, start)
            torch.index_select(data, 0, index, out=batch)
            if options.method == "cd":
                phases = contrastive.from_data(current, batch, index, step, options.steps)
                _follow_phases(parameters, velocity, phases, rate, options)
            elif options.method == "persistent":
                phases, held = contrastive.from_chains(current, batch, held, chains, step, options.steps)
                _follow_phases(parameters, velocity, phases, rate, options)
            elif options.method == "tempered":
                slopes, held = contrastive.tempered(current, batch, held, betas, chains, step, options.steps)
                _follow(parameters, velocity, slopes, rate, options)
            else:
                _follow(parameters, velocity, contrastive.exact(current, batch), rate, options)
        finite = [bool(value.isfinite().all()) for value in parameters]
        if not all(finite):
            raise NumericFault(f"The parameters became infinite in epoch {epoch + 1}: the learning rate is too large.")
        shown = RBM(*(value.clone() for value in parameters))
        index = order[:_WATCHED]
        bits = block.bernoulli(data[index], index, key.fold("bits", epoch))  # 0 and 1 stay what they are
        found = likelihood.sampled_pseudo_log_likelihood(shown, bits, index, key.fold("pseudo", epoch))
        yield Epoch(epoch + 1, shown, float(found.mean()))


def _follow(parameters: list[Tensor], velocity: list[Tensor], slopes: Gradient, rate: float, options: Training) -> None:
    """One step uphill, in place."""
    for slope, speed in zip(slopes, velocity, strict=True):
        speed.mul_(options.momentum).add_(slope, alpha=rate)
    _move(parameters, velocity, rate, options)


def _follow_phases(
    parameters: list[Tensor], velocity: list[Tensor], phases: Phases, rate: float, options: Training
) -> None:
    """The same from the two phases: their products go straight into the velocity, and no gradient is stored."""
    data, positive, model, negative = phases
    up, down = rate / len(data), -rate / len(model)
    velocity[0].addmm_(data.mT, positive, beta=options.momentum, alpha=up).addmm_(model.mT, negative, alpha=down)
    for speed, first, second in zip(velocity[1:], (data, positive), (model, negative), strict=True):
        speed.mul_(options.momentum).add_(first.sum(0), alpha=up).add_(second.sum(0), alpha=down)
    _move(parameters, velocity, rate, options)


def _move(parameters: list[Tensor], velocity: list[Tensor], rate: float, options: Training) -> None:
    if options.weight_decay:
        velocity[0].add_(parameters[0], alpha=-rate * options.weight_decay)
    for value, speed in zip(parameters, velocity, strict=True):
        value.add_(speed)


def refuse_bad_data(data: Tensor, num_visible: int) -> None:
    """Raises ConfigError unless data are [n, num_visible] numbers from 0 to 1."""
    if data.ndim != 2 or data.shape[1] != num_visible or not len(data):
        raise ConfigError(f"Data must have shape [n, {num_visible}], a row each, not {list(data.shape)}.")
    low, high = data.aminmax()
    if not (float(low) >= 0 and float(high) <= 1):  # as well for NaN
        raise ConfigError("Data of a Boltzmann machine lie between 0 and 1; scale them, or cut them at a threshold.")


def _beginning(rbm: RBM, data: Tensor, options: Training, key: Key) -> Tensor:
    """Where the chains that go on begin: at hidden states given data, or for ladders anywhere."""
    if options.method == "tempered":
        return rbm.machine.random_states((options.rungs, options.chains), key.fold("ladders"))
    ids = torch.arange(options.chains, device=data.device)
    rows = data[random.integers(key.fold("chains"), ids, len(data))]
    return block.bernoulli(rbm.hidden_given(rows), ids, key.fold("start"))


def initial_rbm(data: Tensor, num_hidden: int, key: Key, scale: float = 0.01) -> RBM:
    """Small weights N(0, scale^2), and visible biases that give each unit its mean in data [n, V]."""
    if not math.isfinite(scale):
        raise ConfigError(f"The scale of initial weights must be finite, not {scale}.")
    num_visible = data.shape[1]
    weights = random.normal(key.fold("weights"), torch.arange(num_visible), num_hidden) * scale
    return RBM(weights.to(data.dtype), likelihood.base_biases(data), torch.zeros(num_hidden, dtype=data.dtype))
