r"""Boltzmann machines in layers: restricted (two layers) and deep, units 0 and 1.

$$ H(x) = -\sum_l x_l^\top W_l\, x_{l+1} - \sum_l b_l \cdot x_l, \qquad x \in \{0, 1\}^n $$

Units of a layer do not interact, so a layer given its neighbours is independent: P(x = 1) = sigma(beta field); machines
of two layers have more, in `restricted`. `ising` turns a machine into spins s = 2x - 1 of `spins.Ising` (the general
Boltzmann machine: clamp it with `spins.clamped`), with the constant that the energies differ by; `sparse_ising` is a
machine on a random sparse graph.
Salakhutdinov and Hinton 2009, "Deep Boltzmann machines" (AISTATS); sparse Ising
machines: Niazi et al. 2024, Nature Electronics 7.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.spins import Ising

LARGEST = 25
"""As many units at most are enumerated for an exact partition function."""
_PIECE = 1 << 22  # numbers held at a time while enumerating


@dataclass(frozen=True, eq=False)
class Machine:
    """Layers of units [*b, n], the first of them visible. See the module's docstring for H."""

    weights: tuple[Tensor, ...]
    """W_l [n_l, n_(l+1)], one fewer than layers."""
    biases: tuple[Tensor, ...]
    """b_l [n_l]."""

    def __post_init__(self) -> None:
        if len(self.biases) < 2 or len(self.weights) != len(self.biases) - 1:
            raise ConfigError(
                f"A machine of L >= 2 layers has L biases and L - 1 weights, not {len(self.biases)} and "
                f"{len(self.weights)}."
            )
        for layer, weight in enumerate(self.weights):
            wanted = [len(self.biases[layer]), len(self.biases[layer + 1])]
            if list(weight.shape) != wanted:
                raise ConfigError(f"The weights above layer {layer} must be {wanted}, not {list(weight.shape)}.")
        for values, name in ((self.weights, "Weights"), (self.biases, "Biases")):
            for value in values:
                check.finite(value.detach(), name)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(bias) for bias in self.biases)

    @property
    def num_units(self) -> int:
        return sum(self.sizes)

    def split(self, x: Tensor) -> list[Tensor]:
        """The layers [*b, n_l] of states [*b, n]."""
        return list(x.split(self.sizes, -1))

    def field(self, layer: int, layers: Sequence[Tensor]) -> Tensor:
        """-dH/dx_l [*b, n_l], from the neighbouring layers."""
        field = self.biases[layer]
        if layer > 0:
            field = field + layers[layer - 1] @ self.weights[layer - 1]
        if layer < len(self.weights):
            field = field + layers[layer + 1] @ self.weights[layer].mT
        return field

    def __call__(self, x: Tensor) -> Tensor:
        """H [*b] of units [*b, n]."""
        layers = self.split(x)
        own = sum(((layer * bias).sum(-1) for layer, bias in zip(layers, self.biases, strict=True)), x.new_zeros(()))
        pull = sum(
            (
                ((below @ weight) * above).sum(-1)
                for (below, above), weight in zip(itertools.pairwise(layers), self.weights, strict=True)
            ),
            x.new_zeros(()),
        )
        return -(own + pull)

    def gradient(self, x: Tensor) -> Tensor:
        """dH/dx [*b, n]."""
        layers = self.split(x)
        return -torch.cat([self.field(layer, layers) for layer in range(len(layers))], -1)

    def log_partition(self, beta: float = 1.0, visible: Tensor | None = None) -> Tensor:
        """log Z (0-dim), or with the visible layer held at `visible` [*b, n_0]: log Z [*b] over the others.

        Every second layer is enumerated, whichever are the fewer units, and the layers between sum out exactly.
        Raises ConfigError if both kinds have more than 25 units. Differentiable in the parameters.
        """
        check.inverse_temperature(beta)
        count = len(self.biases)
        first = 0 if visible is None else 1
        kinds = [[layer for layer in range(first, count) if layer % 2 == parity] for parity in (0, 1)]
        held, summed = sorted(kinds, key=lambda kind: sum(self.sizes[layer] for layer in kind))
        units = [self.sizes[layer] for layer in held]
        if sum(units) > LARGEST:
            raise ConfigError(
                f"An exact partition function enumerates every second layer: {sum(units)} units are too many (at most "
                f"{LARGEST}). Use annealed importance sampling."
            )
        batch = () if visible is None else visible.shape[:-1]
        like = self.biases[0]
        length = max(1, _PIECE // (max(self.sizes) * max(1, math.prod(batch))))
        total = like.new_full(batch, -math.inf)
        for start in range(0, 1 << sum(units), length):
            number = torch.arange(start, min(start + length, 1 << sum(units)), device=like.device)
            bits = (number.unsqueeze(-1) >> torch.arange(sum(units), device=like.device)) & 1
            layers: list[Tensor] = [like.new_zeros(1, size) for size in self.sizes]
            for layer, part in zip(held, bits.to(like.dtype).split(units, -1), strict=True):
                layers[layer] = part
            if visible is not None:
                layers[0] = visible.unsqueeze(-2).to(like.dtype)
            weight = sum(
                (
                    beta * (layers[layer] @ self.biases[layer])
                    for layer in range(count)
                    if layer in held or layer < first
                ),
                like.new_zeros(1),
            )
            for layer in summed:
                weight = weight + softplus(beta * self.field(layer, layers)).sum(-1)
            if visible is not None and 1 in held:
                weight = weight + beta * ((layers[0] @ self.weights[0]) * layers[1]).sum(-1)
            total = torch.logaddexp(total, torch.logsumexp(weight, -1))
        return total

    def ising(self) -> tuple[Ising, Tensor]:
        """The same system of spins s = 2x - 1, and the constant to add to its energy to have H(x)."""
        offset = [0, *itertools.accumulate(self.sizes)]
        pairs, couplings = [], []
        fields = [bias / 2 for bias in self.biases]
        constant = -sum((bias.sum() for bias in self.biases), self.biases[0].new_zeros(())) / 2
        for layer, weight in enumerate(self.weights):
            below, above = weight.shape
            pairs.append(torch.cartesian_prod(torch.arange(below), torch.arange(above)))
            pairs[-1] = pairs[-1] + torch.tensor([offset[layer], offset[layer + 1]])
            couplings.append(weight.flatten() / 4)
            fields[layer] = fields[layer] + weight.sum(1) / 4
            fields[layer + 1] = fields[layer + 1] + weight.sum(0) / 4
            constant = constant - weight.sum() / 4
        return Ising(torch.cat(pairs), torch.cat(couplings), torch.cat(fields)), constant

    def random_states(self, shape: tuple[int, ...], key: Key) -> Tensor:
        """Independent fair units [*shape, n]: equilibrium at beta = 0."""
        ids = torch.arange(math.prod(shape), device=self.biases[0].device).reshape(shape)
        return (random.uniform(key, ids, self.num_units) < 0.5).to(self.biases[0].dtype)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Machine:
        return Machine(
            tuple(weight.to(dtype=dtype, device=device) for weight in self.weights),
            tuple(bias.to(dtype=dtype, device=device) for bias in self.biases),
        )


def to_spins(x: Tensor) -> Tensor:
    """Units 0, 1 as spins -1, +1."""
    return 2 * x - 1


def to_units(s: Tensor) -> Tensor:
    """Spins -1, +1 as units 0, 1."""
    return (s + 1) / 2


def from_spins(machine: Machine) -> tuple[Machine, Tensor]:
    """A machine whose numbers are meant for spins -1 and +1, for units 0 and 1; and the constant to add to its energy."""
    biases = [2 * bias for bias in machine.biases]
    constant = sum((bias.sum() for bias in machine.biases), machine.biases[0].new_zeros(()))
    for layer, weight in enumerate(machine.weights):
        biases[layer] = biases[layer] - 2 * weight.sum(1)
        biases[layer + 1] = biases[layer + 1] - 2 * weight.sum(0)
        constant = constant - weight.sum()
    return Machine(tuple(4 * weight for weight in machine.weights), tuple(biases)), constant


def random_machine(
    sizes: Sequence[int], key: Key, scale: float = 0.01, dtype: torch.dtype = torch.float64, *, spin: bool = False
) -> Machine:
    """Weights N(0, scale^2), no biases, keyed. With `spin` they are couplings of units -1 and +1, converted."""
    weights = tuple(
        (random.normal(key.fold("weights", layer), torch.arange(a), b) * scale).to(dtype)
        for layer, (a, b) in enumerate(itertools.pairwise(sizes))
    )
    machine = Machine(weights, tuple(torch.zeros(size, dtype=dtype) for size in sizes))
    return from_spins(machine)[0] if spin else machine


def sparse_ising(num_spins: int, degree: float, key: Key, scale: float = 1.0) -> Ising:
    """A general Boltzmann machine of spins on a random graph of about `degree` links a spin, couplings and fields normal.

    n degree/2 of all pairs, drawn without replacement. Sampling it takes as many colours as the graph needs.
    """
    possible = num_spins * (num_spins - 1) // 2
    links = round(num_spins * degree / 2)
    if not 0 <= links <= possible:
        raise ConfigError(f"{num_spins} spins cannot have {degree:g} links each.")
    chosen = random.bits(key.fold("links"), torch.arange(possible)).argsort(stable=True)[:links].sort().values
    pairs = torch.combinations(torch.arange(num_spins), 2)[chosen]
    couplings = random.normal(key.fold("couplings"), chosen).double() * scale
    fields = random.normal(key.fold("fields"), torch.arange(num_spins)).double() * scale
    return Ising(pairs, couplings, fields)
