r"""Ising spins with pair interactions on any graph, and the named systems that are of this kind.

$$ H(s) = -\sum_{\langle ij \rangle} J_{ij} s_i s_j - \sum_i h_i s_i, \qquad s_i = \pm 1 $$

over pairs once; J > 0 is a ferromagnet. Couplings [*d, M] and fields [*d, n] may lead with a batch of realisations
of the disorder, which broadcasts against the batch of the states: 50 glasses with 8 chains each are couplings
[50, 1, M] and states [50, 8, n].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies import graphs

_DENSE = 0.25  # share of all pairs above which a matrix product beats gathering neighbours


@dataclass(frozen=True, eq=False)
class Ising:
    """Spins [*b, n] of -1 and +1 in the dtype of the couplings. See the module's docstring for H."""

    pairs: Tensor
    """[M, 2] int64, each pair once."""
    couplings: Tensor
    """J [*d, M]."""
    fields: Tensor
    """h [*d, n]."""

    def __post_init__(self) -> None:
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2 or self.pairs.dtype != torch.int64:
            raise ConfigError(f"Pairs must be int64 [M, 2], not {self.pairs.dtype} {list(self.pairs.shape)}.")
        n = self.num_spins
        if self.couplings.shape[-1] != len(self.pairs):
            raise ConfigError(f"{len(self.pairs)} pairs need as many couplings, not {self.couplings.shape[-1]}.")
        if len(self.pairs) and not (int(self.pairs.min()) >= 0 and int(self.pairs.max()) < n):
            raise ConfigError(f"A pair names a spin outside 0..{n - 1}: there are as many spins as fields.")
        low, high = self.pairs.amin(-1), self.pairs.amax(-1)
        if bool((low == high).any()) or len(torch.unique(low * n + high)) != len(self.pairs):
            raise ConfigError("Pairs must be of two different spins, and each pair may appear once.")
        check.finite(self.couplings, "Couplings")
        check.finite(self.fields, "Fields")

    @property
    def num_spins(self) -> int:
        return self.fields.shape[-1]

    @cached_property
    def dense(self) -> bool:
        """Whether a matrix of couplings serves better than lists of neighbours."""
        return len(self.pairs) > _DENSE * self.num_spins * (self.num_spins - 1) / 2

    @cached_property
    def matrix(self) -> Tensor:
        """J as a symmetric matrix [*d, n, n] with a zero diagonal."""
        n = self.num_spins
        j = self.couplings.new_zeros(*self.couplings.shape[:-1], n, n)
        j[..., self.pairs[:, 0], self.pairs[:, 1]] = self.couplings
        return j + j.mT

    @cached_property
    def neighbours(self) -> Tensor:
        """[n, K] int64: the neighbours of each spin; missing ones name the spin itself, with coupling 0."""
        return self._lists[0]

    @cached_property
    def neighbour_couplings(self) -> Tensor:
        """J [*d, n, K] to each of `neighbours`; 0 where missing."""
        padded = torch.cat([self.couplings, self.couplings.new_zeros(*self.couplings.shape[:-1], 1)], -1)
        return padded[..., self._lists[1]]

    @cached_property
    def _lists(self) -> tuple[Tensor, Tensor]:
        """Neighbours [n, K] and the pair that each is, M where missing."""
        n, m = self.num_spins, len(self.pairs)
        source = torch.cat([self.pairs[:, 0], self.pairs[:, 1]])
        target = torch.cat([self.pairs[:, 1], self.pairs[:, 0]])
        link = torch.arange(m, device=source.device).repeat(2)
        order = torch.argsort(source, stable=True)
        source, target, link = source[order], target[order], link[order]
        degree = torch.bincount(source, minlength=n)
        width = max(int(degree.max()) if n else 0, 1)
        place = torch.arange(2 * m, device=source.device) - (degree.cumsum(0) - degree)[source]
        near = torch.arange(n, device=source.device).unsqueeze(-1).repeat(1, width)
        which = torch.full((n, width), m, device=source.device)
        near[source, place], which[source, place] = target, link
        return near, which

    @cached_property
    def colours(self) -> Tensor:
        """int64 [n]: spins of a colour do not interact (see `graphs.colouring`)."""
        return graphs.colouring(self.pairs, self.num_spins)

    def __call__(self, s: Tensor) -> Tensor:
        """H [*b] of spins [*b, n]."""
        if self.dense:
            return -((s * self._pull(s)).sum(-1) / 2 + (s * self.fields).sum(-1))
        bonds = s[..., self.pairs[:, 0]] * s[..., self.pairs[:, 1]]
        return -((bonds * self.couplings).sum(-1) + (s * self.fields).sum(-1))

    def _pull(self, s: Tensor) -> Tensor:
        """sum_j J_ij s_j, [*b, n]."""
        if self.dense:
            j, s = self.matrix, s.to(self.couplings.dtype)
            return s @ j if j.ndim == 2 else (s.unsqueeze(-2) @ j).squeeze(-2)
        return (s[..., self.neighbours] * self.neighbour_couplings).sum(-1)

    def local_field(self, s: Tensor) -> Tensor:
        """h_i + sum_j J_ij s_j, [*b, n]: minus dH/ds_i. A flip of spin i costs 2 s_i times it."""
        return self._pull(s) + self.fields

    def gradient(self, s: Tensor) -> Tensor:
        """dH/ds, for spins or their averages: minus the local field."""
        return -self.local_field(s)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Ising:
        return Ising(
            self.pairs.to(device=device),
            self.couplings.to(dtype=dtype, device=device),
            self.fields.to(dtype=dtype, device=device),
        )

    def random_states(self, shape: tuple[int, ...], key: Key) -> Tensor:
        """Independent fair spins [*shape, n]: equilibrium at beta = 0."""
        n = self.num_spins
        ids = torch.arange(math.prod(shape) * n, device=self.fields.device).reshape(*shape, n)
        return (random.uniform(key, ids) < 0.5).to(self.fields.dtype).mul_(2).sub_(1)


def ising(pairs: Tensor, num_spins: int, coupling: float | Tensor = 1.0, field: float | Tensor = 0.0) -> Ising:
    """The same or given couplings and fields on a graph (see `graphs`), in float64."""
    couplings = torch.as_tensor(coupling, dtype=torch.float64)
    fields = torch.as_tensor(field, dtype=torch.float64)
    return Ising(
        pairs,
        couplings.expand(len(pairs)).clone() if couplings.ndim == 0 else couplings,
        fields.expand(num_spins).clone() if fields.ndim == 0 else fields,
    )


def free_spins(num_spins: int, field: float | Tensor = 1.0) -> Ising:
    """H = -h sum s_i: no interactions. The tutorial's eight spins, H = +B sum x_i, have h = -B."""
    return ising(torch.empty(0, 2, dtype=torch.int64), num_spins, torch.empty(0), field)


def from_matrix(couplings: Tensor, fields: Tensor | float = 0.0) -> Ising:
    """From a symmetric matrix J [*d, n, n] of which zeros are no interaction. Raises ConfigError if not symmetric.

    The diagonal (s_i^2 = 1: a constant) must be 0.
    """
    check.symmetric(couplings, "A matrix of couplings")
    if bool((couplings.diagonal(dim1=-2, dim2=-1) != 0).any()):
        raise ConfigError("A matrix of couplings must have a zero diagonal: s_i^2 = 1 is only a constant.")
    n = couplings.shape[-1]
    present = (couplings != 0).reshape(-1, n, n).any(0).triu(1)
    pairs = present.nonzero()
    values = couplings[..., pairs[:, 0], pairs[:, 1]]
    fields = torch.as_tensor(fields, dtype=couplings.dtype, device=couplings.device)
    return Ising(pairs, values, fields.expand(n).clone() if fields.ndim == 0 else fields)


def curie_weiss(num_spins: int, coupling: float = 1.0, field: float = 0.0) -> Ising:
    """Everyone with everyone at J/N: H = -J M^2/(2N) - h M, less the constant -J/2. T_c = J as N grows."""
    return ising(graphs.complete(num_spins), num_spins, coupling / num_spins, field)


def sherrington_kirkpatrick(num_spins: int, key: Key, instances: tuple[int, ...] = ()) -> Ising:
    """J_ij ~ N(0, 1/N) between all (Sherrington and Kirkpatrick 1975): couplings [*instances, M]. T_c = 1."""
    pairs = graphs.complete(num_spins)
    noise = _normal(key, (*instances, len(pairs)))
    return Ising(pairs, noise / math.sqrt(num_spins), torch.zeros(num_spins, dtype=torch.float64))


def edwards_anderson(
    shape: tuple[int, ...],
    key: Key,
    disorder: Literal["binary", "gaussian"] = "gaussian",
    instances: tuple[int, ...] = (),
) -> Ising:
    """A torus with couplings +-1 or N(0, 1) (Edwards and Anderson 1975): couplings [*instances, M]."""
    pairs = graphs.torus(*shape)
    noise = _normal(key, (*instances, len(pairs)))
    if disorder not in ("binary", "gaussian"):
        raise ConfigError(f"Disorder is 'binary' or 'gaussian', not {disorder!r}.")
    couplings = torch.where(noise > 0, 1.0, -1.0).double() if disorder == "binary" else noise
    return Ising(pairs, couplings, torch.zeros(math.prod(shape), dtype=torch.float64))


def hopfield(patterns: Tensor) -> Ising:
    """J_ij = (1/N) sum_p x_i^p x_j^p of patterns [P, n] of +-1 (Hopfield 1982): they are minima for P < .138 N."""
    check.spins(patterns, patterns.shape[-1])
    n = patterns.shape[-1]
    pairs = graphs.complete(n)
    patterns = patterns.double()
    products = patterns[..., pairs[:, 0]] * patterns[..., pairs[:, 1]]
    return Ising(pairs, products.sum(-2) / n, torch.zeros(n, dtype=torch.float64))


def clamped(system: Ising, spins: Tensor, values: Tensor) -> tuple[Ising, Tensor]:
    """A Boltzmann machine with some spins held: the system of the others, and the constant to add to its energy.

    `spins` int64 [C] are held at `values` [*b, C] of +-1; the free ones keep their order. The fields get the
    values' batch: [*b, n - C]; the constant is [*b].
    """
    check.spins(values, len(spins))
    n = system.num_spins
    held = torch.zeros(n, dtype=torch.bool)
    held[spins] = True
    free = (~held).nonzero().squeeze(-1)
    full = system.fields.new_zeros(*values.shape[:-1], n)
    full[..., spins] = values.to(full.dtype)
    fields = system.local_field(full)[..., free]
    inside = (~held[system.pairs]).all(-1)
    new = torch.full((n,), -1, dtype=torch.int64)
    new[free] = torch.arange(len(free))
    return Ising(new[system.pairs[inside]], system.couplings[..., inside], fields), system(full)


def _normal(key: Key, shape: tuple[int, ...]) -> Tensor:
    return random.normal(key, torch.arange(math.prod(shape)).reshape(shape)).double()
