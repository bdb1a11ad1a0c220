r"""Potts variables with pair interactions on any graph.

$$ H(k) = -\sum_{\langle ij \rangle} J_{ij}\, \delta(k_i, k_j) - \sum_i h_i(k_i), \qquad k_i \in \{0, \dots, q - 1\} $$

(Potts 1952; Wu 1982, Rev. Mod. Phys. 54, 235.) Two states are Ising spins with half the coupling: ss' = 2 delta - 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.spins import Ising


@dataclass(frozen=True, eq=False)
class Potts:
    """States [*b, n] int64 in 0..q-1. See the module's docstring for H."""

    pairs: Tensor
    """[M, 2] int64, each pair once."""
    couplings: Tensor
    """J [*d, M]."""
    fields: Tensor
    """h [*d, n, q]."""

    def __post_init__(self) -> None:
        if self.num_states < 2:
            raise ConfigError(f"A Potts model needs at least 2 states, not {self.num_states}.")
        _ = self._graph  # the same checks as for spins

    @property
    def num_sites(self) -> int:
        return self.fields.shape[-2]

    @property
    def num_states(self) -> int:
        return self.fields.shape[-1]

    @cached_property
    def _graph(self) -> Ising:
        return Ising(self.pairs, self.couplings, self.fields[..., 0])

    @property
    def colours(self) -> Tensor:
        """int64 [n]: sites of a colour do not interact."""
        return self._graph.colours

    @property
    def neighbours(self) -> Tensor:
        """[n, K]; missing ones name the site itself, with coupling 0."""
        return self._graph.neighbours

    @property
    def neighbour_couplings(self) -> Tensor:
        """J [*d, n, K]."""
        return self._graph.neighbour_couplings

    def check_states(self, k: Tensor) -> None:
        """Raises ConfigError unless `k` [*b, n] are states of this system."""
        if k.shape[-1:] != (self.num_sites,):
            raise ConfigError(f"States must have shape [..., {self.num_sites}], not {list(k.shape)}.")
        if k.dtype != torch.int64 or not bool(((k >= 0) & (k < self.num_states)).all()):
            raise ConfigError(f"Potts states are int64 in 0..{self.num_states - 1}.")

    def __call__(self, k: Tensor) -> Tensor:
        """H [*b] of states [*b, n]."""
        same = (k[..., self.pairs[:, 0]] == k[..., self.pairs[:, 1]]).to(self.couplings.dtype)
        shape = torch.broadcast_shapes(k.shape, self.fields.shape[:-1])
        fields = self.fields.expand(*shape, self.num_states).gather(-1, k.expand(shape).unsqueeze(-1))
        return -((same * self.couplings).sum(-1) + fields.squeeze(-1).sum(-1))

    def state_energies(self, k: Tensor) -> Tensor:
        """The energy of every state of every site given the others, [*b, n, q]: what a heat bath draws from."""
        near = torch.nn.functional.one_hot(k[..., self.neighbours], self.num_states).to(self.couplings.dtype)
        return -(near * self.neighbour_couplings.unsqueeze(-1)).sum(-2) - self.fields

    def random_states(self, shape: tuple[int, ...], key: Key) -> Tensor:
        """Independent uniform states [*shape, n]: equilibrium at beta = 0 without fields."""
        ids = torch.arange(math.prod(shape) * self.num_sites).reshape(*shape, self.num_sites)
        return random.integers(key, ids, self.num_states)


def potts(pairs: Tensor, num_sites: int, num_states: int, coupling: float | Tensor = 1.0) -> Potts:
    """The same or given couplings on a graph without fields, float64. Square lattice: T_c = J/log(1 + sqrt q)."""
    couplings = torch.as_tensor(coupling, dtype=torch.float64)
    check.finite(couplings, "Couplings")
    return Potts(
        pairs,
        couplings.expand(len(pairs)).clone() if couplings.ndim == 0 else couplings,
        torch.zeros(num_sites, num_states, dtype=torch.float64),
    )
