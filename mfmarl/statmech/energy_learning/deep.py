r"""Training deep Boltzmann machines: mean-field theory for the data, persistent chains for the model.

$$ \log p(v) \ge -H(v, \mu) + \sum_{l, i} S(\mu_{l, i}) - \log Z, \qquad
   \mu_l = \sigma(b_l + \mu_{l-1} W_{l-1} + \mu_{l+1} W_l^\top) $$

The bound is the negative of the variational free energy of independent hidden units, at its fixed point; with a
single hidden layer it is exact. Salakhutdinov and Hinton 2009, "Deep Boltzmann machines" (AISTATS), section 2.2 and
algorithm 1. They begin from greedily trained RBMs, which small data do not need.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.energies.machines import Machine
from mfmarl.statmech.energy_learning.likelihood import base_biases
from mfmarl.statmech.energy_learning.training import Training, refuse_bad_data
from mfmarl.statmech.sampling import block


class Epoch(NamedTuple):
    """After an epoch: the machine, and its mean variational bound on the data less the unknown log Z."""

    epoch: int
    machine: Machine
    bound: float


def mean_field(machine: Machine, v: Tensor, iterations: int = 50, tolerance: float = 1e-6) -> list[Tensor]:
    """The data and the means mu_l [*b, n_l] of every hidden layer given visible units v [*b, V].

    Odd layers and even ones take turns, each set to its fixed point given the others: the bound never falls. Starts
    from a pass up with doubled input, in which each layer stands in for the one above; stops when nothing moves.
    """
    count = len(machine.biases)
    layers = [v, *(v.new_zeros(*v.shape[:-1], size) for size in machine.sizes[1:])]
    for layer in range(1, count):
        up = layers[layer - 1] @ machine.weights[layer - 1]
        layers[layer] = torch.sigmoid(machine.biases[layer] + up * (2 if layer + 1 < count else 1))
    for _ in range(iterations):
        moved = 0.0
        for layer in [*range(1, count, 2), *range(2, count, 2)]:
            new = torch.sigmoid(machine.field(layer, layers))
            moved = max(moved, float((new - layers[layer]).abs().max()))
            layers[layer] = new
        if moved < tolerance:
            break
    return layers


def bound(machine: Machine, layers: list[Tensor], log_partition: Tensor | float = 0.0) -> Tensor:
    """-H(v, mu) + S(mu) - log Z [*b]: at most log p(v), for any means mu of independent hidden units."""
    energy = machine(torch.cat(layers, -1))
    entropy = sum(
        ((torch.special.entr(mu) + torch.special.entr(1 - mu)).sum(-1) for mu in layers[1:]), torch.zeros_like(energy)
    )
    return entropy - energy - log_partition


def log_likelihood(machine: Machine, v: Tensor) -> Tensor:
    """log p(v) [*b] exactly, by enumerating every second layer (see `Machine.log_partition`)."""
    return machine.log_partition(1.0, v) - machine.log_partition()


def initial_machine(data: Tensor, hidden: tuple[int, ...], key: Key, scale: float = 0.05) -> Machine:
    """Small weights, and visible biases that give each unit its mean in data [n, V]."""
    sizes = (data.shape[1], *hidden)
    weights = tuple(
        (random.normal(key.fold("weights", layer), torch.arange(below), above) * scale).to(data.dtype)
        for layer, (below, above) in enumerate(itertools.pairwise(sizes))
    )
    return Machine(weights, (base_biases(data), *(torch.zeros(size, dtype=data.dtype) for size in hidden)))


def train_deep(machine: Machine, data: Tensor, key: Key, options: Training | None = None) -> Iterator[Epoch]:
    """The machine after each epoch over data [n, V] of 0 and 1; the one given is left as it is.

    Of the options, `method` must be "persistent" (the only one here). Raises NumericFault if parameters become
    infinite.
    """
    options = Training(chains=128, learning_rate=0.02) if options is None else options
    if options.method != "persistent":
        raise ConfigError(f"A deep machine's negative phase is 'persistent', not {options.method!r}.")
    refuse_bad_data(data, machine.sizes[0])
    data = data.to(machine.biases[0].dtype)
    weights = [value.clone() for value in machine.weights]
    biases = [value.clone() for value in machine.biases]
    current = Machine(tuple(weights), tuple(biases))  # holds the very tensors that the updates write
    speeds = [torch.zeros_like(value) for value in (*weights, *biases)]
    sweep = block.layers(current)
    ids = torch.arange(options.chains, device=data.device)
    chains = current.random_states((options.chains,), key.fold("chains"))
    for epoch in range(options.epochs):
        rate = options.rate(epoch)
        order = torch.randperm(len(data), generator=random.generator(key.fold("order", epoch))).to(data.device)
        seen = 0.0
        for start in range(0, len(data), options.batch_size):
            means = mean_field(current, data[order[start : start + options.batch_size]], 20, 1e-4)
            seen += float(bound(current, means).sum())
            for step in range(options.steps):
                chains = sweep(chains, 1.0, ids, key.fold("sweep", epoch, start, step))
            states = current.split(chains)
            slopes = [
                means[k].mT @ means[k + 1] / len(means[0]) - states[k].mT @ states[k + 1] / len(chains)
                for k in range(len(weights))
            ]
            slopes += [mu.mean(0) - state.mean(0) for mu, state in zip(means, states, strict=True)]
            for place, (value, slope, speed) in enumerate(zip((*weights, *biases), slopes, speeds, strict=True)):
                speed.mul_(options.momentum).add_(slope, alpha=rate)
                if place < len(weights) and options.weight_decay:
                    speed.add_(value, alpha=-rate * options.weight_decay)
                value.add_(speed)
        if not all(bool(value.isfinite().all()) for value in (*weights, *biases)):
            raise NumericFault(f"The parameters became infinite in epoch {epoch + 1}: the learning rate is too large.")
        shown = Machine(tuple(w.clone() for w in weights), tuple(b.clone() for b in biases))
        yield Epoch(epoch + 1, shown, seen / len(data))
