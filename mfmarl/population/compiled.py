r"""Means and counts over others as compiled loops: ten times faster than in torch, on the CPU, with numba.

$$ m^j_c = \frac{|\{k \in N(j) : c_k = c\}|}{|N(j)|} $$

of classes c (actions, states) over the neighbours on a graph or over everyone, from which the agent itself and the dead
are left out (`mfmarl.population.field`). The torch path gives the same bits, on every device: it is the reference.

Chosen by itself where it pays: on the CPU, with numba installed (the extra `fast`), for crowds of `WORTH` agents, all
copies together, and more. Compiling takes about a second for each kind of loop, once in a process and never on disk.
The environment variable MFMARL_COMPILED says otherwise: `never`, or `always` (small crowds too).
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.population.division import DividedGraph
from mfmarl.population.graph import Graph

WORTH = 1 << 17  # elements from which on a second of compiling is soon earned back
_CODES = 255  # of a byte, less that of the dead
_WORDS = ("auto", "never", "always")


def chosen(elements: int, device: torch.device) -> bool:
    """Whether loops over so many elements on this device are compiled ones.

    Raises ConfigError for a MFMARL_COMPILED that says neither `auto`, `never` nor `always`, or `always` without numba.
    """
    word = os.environ.get("MFMARL_COMPILED", "auto")
    if word not in _WORDS:
        raise ConfigError(f"MFMARL_COMPILED cannot be {word!r}.{nearest(word, _WORDS)}")
    if word == "never" or device.type != "cpu" or (word == "auto" and elements < WORTH):
        return False
    if not _numba():
        if word == "always":
            raise ConfigError("MFMARL_COMPILED=always needs numba: pip install 'mfmarl[fast]'.")
        return False
    return True


@lru_cache
def _numba() -> bool:
    return find_spec("numba") is not None


def _kernels() -> ModuleType:
    from mfmarl.population import kernels

    return kernels


class Codes:
    """Everybody's class, group and life in one byte each, [E, N]: what all means are counted from.

    `ends` are where the groups end that are kept apart; a class that is none of 0 .. count - 1 is nobody's.
    """

    def __init__(self, classes: Tensor, alive: Tensor | None, count: int, ends: list[int]) -> None:
        self.count, self.groups, self.everyone = count, len(ends), alive is None
        self.bytes = np.empty(tuple(classes.shape), np.uint8)
        living = np.ones((1, 1), np.bool_) if alive is None else alive.contiguous().numpy()
        _kernels().encode(classes.contiguous().numpy(), living, alive is None, np.array(ends), count, self.bytes)

    @staticmethod
    def hold(codes: int) -> bool:
        """Whether a byte is enough for so many."""
        return codes <= _CODES

    def counts(self) -> Tensor:
        """How many have each code: int64 [E, groups, count + 1], those of no class last."""
        out = np.empty((len(self.bytes), 256), np.int64)
        _kernels().histogram(self.bytes, out)
        lanes = self.groups * (self.count + 1)
        return torch.from_numpy(out)[:, :lanes].unflatten(1, (self.groups, self.count + 1))

    def look_up(self, rows: Tensor, first: int, last: int) -> Tensor:
        """[E, last - first, F] of what each code is given in rows [E, codes, F]; zeros for the dead."""
        table = rows.new_zeros(len(rows), 256, rows.shape[-1])
        table[:, : rows.shape[1]] = rows
        out = _empty(len(rows), last - first, rows.shape[-1])
        _kernels().look_up(self.bytes, first, table.numpy(), out)
        return torch.from_numpy(out)

    def neighbour_means(self, graph: Graph, first: int, last: int) -> Tensor:
        """The share of each class among the living neighbours, for each group, float32 [E, last - first, groups x count]."""
        out = _empty(len(self.bytes), last - first, self.groups * self.count)
        kernels, shape = _kernels(), (self.groups, self.count)
        code, near, start = _with_halo(self.bytes, graph, first)
        everyone = self.everyone and (code is self.bytes or not bool((code == kernels.DEAD).any()))
        if near.torus is not None and near.max_degree <= 255:
            shares = _shares(near.max_degree)
            kernels.torus_means(code, *near.lines, *shape, shares, everyone, start, out)
        elif self.groups * (self.count + 1) <= 8 and near.max_degree <= 255:
            shares = _shares(near.max_degree)
            kernels.few_lanes_means(code, *near.stretches, *shape, shares, everyone, start, out)
        else:
            kernels.many_lanes_means(code, *near.stretches, *shape, start, out)
        return torch.from_numpy(out)


def _empty(*shape: int) -> NDArray[np.float32]:
    # numpy asks for huge pages, torch does not: large rows are then first touched four times as fast.
    return np.empty(shape, np.float32)


@lru_cache
def _shares(most: int) -> NDArray[np.float32]:
    """k / max(n, 1) of n, k = 0 .. most, as torch divides."""
    number = torch.arange(most + 1, dtype=torch.float32)
    return (number / number.clamp(min=1).unsqueeze(-1)).numpy()


def alike(state: Tensor, graph: Graph) -> Tensor:
    """How many neighbours are in the agent's own state, whole numbers [E, N], of int8 states [E, N]."""
    kernels = _kernels()
    states, near, start = _with_halo(state.contiguous().numpy().view(np.uint8), graph, 0)
    if near.torus is not None and near.max_degree <= 255:
        out = torch.empty(states.shape, dtype=torch.uint8)
        kernels.torus_alike(states, *near.lines, out.numpy())
    else:
        out = torch.empty(states.shape, dtype=torch.int32)
        kernels.linked_alike(states, *near.stretches, out.numpy())
    return out[:, start : start + graph.num_agents]


def _with_halo(x: NDArray[np.uint8], graph: Graph, first: int) -> tuple[NDArray[np.uint8], Graph, int]:
    """Bytes [E, n] with those of neighbours on other ranks, the graph over all of them, and agent `first`'s place in it."""
    if not isinstance(graph, DividedGraph):
        return x, graph, first
    assert graph.inner is not None
    return graph.with_halo(torch.from_numpy(x)).numpy(), graph.inner, first + graph.inside[0]
