r"""Who is whose neighbour, and sums over neighbours in O(number of links).

Near-regular graphs are an index [N, K] padded with the number N (a spare slot that holds zeros);
graphs with hubs are kept as links, since K of the largest hub times N would be O(N^2).
A torus additionally knows its shape, so that sums are shifts of the array and need no index.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.options import Count


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed graph over N agents: agent `i` feels `target[link]` for every link with `source[link] == i`.

    Exactly one representation is set: `index` [N, K] (padded with N), or `source`, `target` [L].
    `torus` is the lattice's shape when the graph is a torus with neighbours at +-1 along each axis.
    Neighbours are a set: no agent is its own neighbour, and none is one twice.
    """

    num_agents: Count
    index: Tensor | None = None
    source: Tensor | None = None
    target: Tensor | None = None
    degree: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    torus: tuple[Count, ...] | None = None

    @classmethod
    def from_links(cls, num_agents: int, source: Tensor, target: Tensor) -> Graph:
        """From links [L], of which loops and repetitions are dropped.

        Padded where that costs at most three times the links, else kept as links.
        """
        if num_agents < 1:
            raise ConfigError(f"A graph needs at least 1 agent, not {num_agents}.")
        if source.ndim != 1 or source.shape != target.shape:
            raise ConfigError(
                f"Links need as many sources as targets, not {list(source.shape)} and {list(target.shape)}."
            )
        if source.numel() and (source.is_floating_point() or target.is_floating_point()):
            raise ConfigError(f"Links are numbers of agents, not {source.dtype} and {target.dtype}.")
        source, target = source.long(), target.long()
        if source.numel():
            low, high = torch.aminmax(torch.stack([source, target]))
            if int(low) < 0 or int(high) >= num_agents:
                wrong = int(low) if int(low) < 0 else int(high)
                raise ConfigError(f"A link names agent {wrong}; expected 0..{num_agents - 1}.")
        different = source != target
        links = torch.unique(source[different] * num_agents + target[different])
        source, target = links // num_agents, links % num_agents
        degree = torch.bincount(source, minlength=num_agents)
        widest = int(degree.max())
        if widest * num_agents <= 3 * source.numel() + 64:
            index = torch.full((num_agents, max(widest, 1)), num_agents, dtype=torch.long, device=source.device)
            first = torch.cumsum(degree, 0) - degree
            index[source, torch.arange(source.numel(), device=source.device) - first[source]] = target
            return cls(num_agents, index=index, degree=degree)
        return cls(num_agents, source=source, target=target, degree=degree)

    @classmethod
    def from_networkx(cls, graph: Any) -> Graph:
        """From an undirected or directed networkx graph; its nodes, of any labels, are the agents in their order."""
        number = {node: i for i, node in enumerate(graph.nodes)}
        ends = (number[end] for edge in graph.edges for end in edge[:2])
        links = torch.from_numpy(np.fromiter(ends, np.int64, 2 * graph.number_of_edges())).reshape(-1, 2)
        if not graph.is_directed():
            links = torch.cat([links, links.flip(1)])
        return cls.from_links(len(number), links[:, 0], links[:, 1])

    @classmethod
    def torus_of(cls, shape: tuple[int, ...]) -> Graph:
        """The periodic lattice of that shape (any dimension): 2 neighbours along each axis."""
        if not shape or min(shape) < 3:
            raise ConfigError(f"A torus needs at least 3 sites along each axis, not {'x'.join(map(str, shape))}.")
        site = torch.arange(torch.Size(shape).numel()).reshape(shape)
        index = torch.stack([site.roll(s, d).reshape(-1) for d in range(len(shape)) for s in (1, -1)], dim=-1)
        degree = torch.full((index.shape[0],), index.shape[1])
        return cls(index.shape[0], index=index, degree=degree, torus=tuple(shape))

    def to(self, device: torch.device | str) -> Graph:
        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return Graph(
            self.num_agents, move(self.index), move(self.source), move(self.target), self.degree.to(device), self.torus
        )

    @cached_property
    def max_degree(self) -> int:
        return int(self.degree.max()) if self.degree.numel() else 0

    @cached_property
    def _ranks(self) -> Tensor:
        """The index as [K, N]: everybody's first neighbour, everybody's second, ..."""
        assert self.index is not None
        return self.index.t().contiguous()

    @cached_property
    def lines(self) -> tuple[NDArray[np.int64], int]:
        """A torus as lines along its last axis: the lines before and after each along the other axes, and their length."""
        assert self.torus is not None
        *others, side = self.torus
        line = np.arange(int(np.prod(others, dtype=np.int64)), dtype=np.int64).reshape(others)
        near = [np.roll(line, step, axis).reshape(-1) for axis in range(len(others)) for step in (1, -1)]
        return np.stack(near, -1) if near else np.empty((1, 0), np.int64), side

    @cached_property
    def stretches(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Links as stretches: agent i feels target[begins[i] : begins[i + 1]], on the CPU."""
        links = self.links().cpu()
        source, order = torch.sort(links[:, 0], stable=True)
        counts = torch.bincount(source, minlength=self.num_agents)
        begins = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return begins.numpy(), links[:, 1].index_select(0, order).to(torch.int32).numpy()

    def neighbour_sum(self, x: Tensor) -> Tensor:
        """Sum of `x` [E, N, *f] over each agent's neighbours: same shape and dtype.

        The dtype must hold the sum: int8 spins do up to degree 127. Of a bool `x` it is the count of the true
        ones, uint8 up to degree 255 and int32 beyond.
        """
        if x.dtype == torch.bool:
            return self._count(x)
        if self.torus is not None:
            return self._torus_sum(x)
        # Rows [f x E, N]: a gather along the last axis is several times faster than one along a middle axis.
        rows = x.flatten(2).permute(2, 0, 1) if x.ndim > 2 else x
        rows = self._row_sum(rows.reshape(-1, self.num_agents)).view(rows.shape)
        return rows.permute(1, 2, 0).reshape(x.shape) if x.ndim > 2 else rows

    def _count(self, x: Tensor) -> Tensor:
        if self.torus is not None and self.max_degree <= 255:
            return self._torus_sum(x.view(torch.uint8))
        shape = x.shape
        x = x.reshape(*shape[:2], -1)
        lanes = Lanes.for_counts_up_to(self.max_degree)
        counted = lanes.unpack(self.neighbour_sum(lanes.pack(x)), x.shape[-1])
        return counted.to(torch.uint8 if self.max_degree <= 255 else torch.int32).reshape(shape)

    def _torus_sum(self, x: Tensor) -> Tensor:
        assert self.torus is not None
        grid = x.unflatten(1, self.torus)
        total = torch.zeros_like(grid)
        for axis, n in enumerate(self.torus, start=1):
            # Slices instead of torch.roll: no wrapped copy, and the sum stays in x's (small) dtype.
            total.narrow(axis, 1, n - 1).add_(grid.narrow(axis, 0, n - 1))
            total.narrow(axis, 0, 1).add_(grid.narrow(axis, n - 1, 1))
            total.narrow(axis, 0, n - 1).add_(grid.narrow(axis, 1, n - 1))
            total.narrow(axis, n - 1, 1).add_(grid.narrow(axis, 0, 1))
        return total.flatten(1, len(self.torus))

    def _row_sum(self, rows: Tensor) -> Tensor:
        """Sums of `rows` [R, N]."""
        count = len(rows)
        if self.index is not None:
            if self.index.shape[1] * self.num_agents != int(self._num_links):
                rows = torch.cat([rows, torch.zeros_like(rows[:, :1])], dim=1)
            total = rows.gather(1, self._ranks[0].expand(count, -1))
            for rank in self._ranks[1:]:
                total += rows.gather(1, rank.expand(count, -1))
            return total
        assert self.source is not None
        assert self.target is not None
        total = torch.zeros_like(rows)
        # So many rows at a time that what is gathered stays below 2^22 numbers (or one row).
        many = max(1, (1 << 22) // max(1, len(self.source)))
        for start in range(0, count, many):
            part = rows[start : start + many]
            felt = part.gather(1, self.target.expand(len(part), -1))
            total[start : start + many].scatter_add_(1, self.source.expand(len(part), -1), felt)
        return total

    @cached_property
    def _num_links(self) -> int:
        return int(self.degree.sum())

    def links(self) -> Tensor:
        """Every link as a row (source, target): [L, 2]."""
        if self.index is not None:
            source = torch.arange(self.num_agents, device=self.index.device).unsqueeze(-1).expand_as(self.index)
            real = self.index < self.num_agents
            return torch.stack([source[real], self.index[real]], dim=-1)
        assert self.source is not None
        assert self.target is not None
        return torch.stack([self.source, self.target], dim=-1)

    def colouring(self) -> Tensor:
        """A proper colouring [N] int64 on the CPU: agents that feel each other, either way, differ.

        Two colours wherever two are enough; a torus with an odd side gets three, any other graph greedy
        colours (the agents of most links first), at most its largest degree plus one.
        """
        if self.torus is not None:
            sides = [torch.arange(n) % 2 for n in self.torus]
            odd = any(n % 2 for n in self.torus)
            for side, n in zip(sides, self.torus, strict=True):
                # A ring of odd length is 0 1 0 1 ... 2; rings' colours add up modulo the number of colours.
                side[-1] = 2 if n % 2 else 1
            total = torch.zeros((), dtype=torch.long)
            for side in sides:
                total = total.unsqueeze(-1) + side
            return (total % (3 if odd else 2)).reshape(-1)
        neighbours = self._undirected()
        two = _two_colours(neighbours)
        return torch.tensor(_greedy_colours(neighbours) if two is None else two)

    def _undirected(self) -> list[list[int]]:
        links = self.links().cpu()
        both = torch.unique(torch.cat([links, links.flip(1)]) @ torch.tensor([self.num_agents, 1]))
        counts = torch.bincount(both // self.num_agents, minlength=self.num_agents).tolist()
        ends = iter((both % self.num_agents).tolist())
        return [[next(ends) for _ in range(count)] for count in counts]


def _two_colours(neighbours: list[list[int]]) -> list[int] | None:
    colour = [-1] * len(neighbours)
    for start in range(len(neighbours)):
        if colour[start] >= 0:
            continue
        colour[start] = 0
        reached = deque([start])
        while reached:
            agent = reached.popleft()
            other = 1 - colour[agent]
            for neighbour in neighbours[agent]:
                if colour[neighbour] < 0:
                    colour[neighbour] = other
                    reached.append(neighbour)
                elif colour[neighbour] != other:
                    return None
    return colour


def _greedy_colours(neighbours: list[list[int]]) -> list[int]:
    colour = [-1] * len(neighbours)
    for agent in sorted(range(len(neighbours)), key=lambda i: -len(neighbours[i])):
        taken = {colour[neighbour] for neighbour in neighbours[agent]}
        free = 0
        while free in taken:
            free += 1
        colour[agent] = free
    return colour


@dataclass(frozen=True)
class Lanes:
    """Several small counters side by side in one int64, so that a single addition adds them all.

    `bits` is each counter's width: a counter that could pass 2^bits - 1 would run into its neighbour.
    """

    bits: int

    @classmethod
    def for_counts_up_to(cls, most: int) -> Lanes:
        return cls(8 if most <= 255 else 16 if most <= 65_535 else 32)

    def pack(self, x: Tensor) -> Tensor:
        """Bool [E, N, C] as int64 [E, N, W]: column c lies in word c // (64 / bits)."""
        per = 64 // self.bits
        words = []
        for start in range(0, x.shape[-1], per):
            word = x[..., start].to(torch.int64)
            for lane in range(1, min(per, x.shape[-1] - start)):
                word |= x[..., start + lane].to(torch.int64) << (lane * self.bits)
            words.append(word)
        return torch.stack(words).permute(1, 2, 0)

    def unpack(self, words: Tensor, columns: int) -> Tensor:
        """The counters of int64 [E, N, W] as int32 [E, N, C] (uint8 where that is their width)."""
        per, mask = 64 // self.bits, (1 << self.bits) - 1
        dtype = torch.uint8 if self.bits == 8 else torch.int32
        out = torch.empty((columns, *words.shape[:2]), dtype=dtype, device=words.device)
        for column in range(columns):
            word = words[..., column // per]
            out[column] = (word >> (column % per * self.bits)) & mask
        return out.permute(1, 2, 0)
