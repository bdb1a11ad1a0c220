r"""Training a general Boltzmann machine of spins on any graph, hidden spins included: dense or sparse.

$$ \frac{\partial \langle \log p \rangle}{\partial J_{ij}} =
   \langle s_i s_j \rangle_{\text{data held}} - \langle s_i s_j \rangle_{\text{free}}, \qquad
   \frac{\partial \langle \log p \rangle}{\partial h_i} = \langle s_i \rangle_{\text{data held}} - \langle s_i \rangle_{\text{free}} $$

Both averages come from chains that go on from update to update, sampled colour by colour: on a sparse graph a sweep
costs as much as the graph has links. Ackley, Hinton and Sejnowski 1985, Cognitive Science 9; sparse Ising machines:
Niazi et al. 2024, Nature Electronics 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies import spins
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.energy_learning.training import Training
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.sampling import single_spin


class Gradient(NamedTuple):
    """Of the mean log-likelihood: add it to the couplings [M] and the fields [n]."""

    couplings: Tensor
    fields: Tensor


class Epoch(NamedTuple):
    """The machine after an epoch."""

    epoch: int
    system: Ising


def statistics(pairs: Tensor, s: Tensor) -> Gradient:
    """<s_i s_j> [M] and <s_i> [n] over states [m, n]."""
    return Gradient((s[..., pairs[:, 0]] * s[..., pairs[:, 1]]).mean(0), s.mean(0))


def log_likelihood(system: Ising, visible: Tensor, data: Tensor) -> Tensor:
    """log p [m] of data [m, V] on the spins `visible` int64 [V], exactly: hidden spins, and all of them, enumerated."""
    log_z = enumeration.log_partition(system, 1.0)
    if len(visible) == system.num_spins:
        full = torch.empty_like(data)
        full[:, visible] = data
        return -system(full) - log_z
    rest, constant = spins.clamped(system, visible, data)
    return enumeration.log_partition(rest, 1.0) - constant - log_z


def exact(system: Ising, visible: Tensor, data: Tensor) -> Gradient:
    """The gradient of the mean log-likelihood of data [m, V], through `log_likelihood`: for small systems."""
    with torch.enable_grad():
        couplings = system.couplings.detach().requires_grad_(True)
        fields = system.fields.detach().requires_grad_(True)
        value = log_likelihood(Ising(system.pairs, couplings, fields), visible, data).mean()
        return Gradient(*torch.autograd.grad(value, [couplings, fields]))


def hidden_first(system: Ising, visible: Tensor) -> Tensor:
    """A colouring int64 [n] in which every hidden spin comes before every visible one."""
    colours = system.colours.clone()
    colours[visible] += int(colours.max()) + 1
    return colours


def train(system: Ising, visible: Tensor, data: Tensor, key: Key, options: Training | None = None) -> Iterator[Epoch]:
    """The machine after each epoch over data [m, V] of spins on the sites `visible` int64 [V]; its graph stays.

    The one given is left as it is. Of the options, `method` must be "persistent" (`steps` sweeps of either phase per
    update); `weight_decay` pulls the couplings. Raises NumericFault if couplings become infinite.
    """
    options = Training(chains=128) if options is None else options
    if options.method != "persistent":
        raise ConfigError(f"A general machine's negative phase is 'persistent', not {options.method!r}.")
    check.spins(data, len(visible))
    if system.couplings.ndim != 1:
        raise ConfigError("One machine is trained at a time: couplings must be [M], without a batch.")
    data = data.to(system.couplings.dtype)
    couplings, fields, pairs = system.couplings.clone(), system.fields.clone(), system.pairs
    speeds = [torch.zeros_like(couplings), torch.zeros_like(fields)]
    order_of_spins = hidden_first(system, visible)
    free_ids = torch.arange(options.chains)
    free = system.random_states((options.chains,), key.fold("free"))
    held = system.random_states((len(data),), key.fold("held"))  # a chain for each row
    held[:, visible] = data
    for epoch in range(options.epochs):
        rate = options.rate(epoch)
        order = torch.randperm(len(data), generator=random.generator(key.fold("order", epoch)))
        for start in range(0, len(data), options.batch_size):
            index, here = order[start : start + options.batch_size], key.fold("step", epoch, start)
            sweep = single_spin.heat_bath(Ising(pairs, couplings, fields), order_of_spins)
            batch = held[index]
            for step in range(options.steps):
                free = sweep(free, 1.0, free_ids, here.fold("free", step))
                # Visible spins move after all hidden ones, and are put back: the hidden saw the data only.
                batch = sweep(batch, 1.0, index, here.fold("held", step))
                batch[:, visible] = data[index]
            held[index] = batch
            positive, negative = statistics(pairs, batch), statistics(pairs, free)
            for up, down, speed in zip(positive, negative, speeds, strict=True):
                speed.mul_(options.momentum).add_(up - down, alpha=rate)
            speeds[0].add_(couplings, alpha=-rate * options.weight_decay)
            couplings, fields = couplings + speeds[0], fields + speeds[1]
        yield Epoch(epoch + 1, Ising(pairs, couplings.clone(), fields.clone()))
