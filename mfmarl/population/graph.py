r"""Who is whose neighbour, and sums over neighbours in O(number of links).

Near-regular graphs are an index [N, K] padded with the number N (a spare slot that holds zeros);
graphs with hubs are kept as links, since K of the largest hub times N would be O(N^2).
A torus additionally knows its shape, so that sums are shifts of the array and need no index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed graph over N agents: agent `i` feels `target[link]` for every link with `source[link] == i`.

    Exactly one representation is set: `index` [N, K] (padded with N), or `source`, `target` [L].
    `torus` is the lattice's shape when the graph is a torus with neighbours at +-1 along each axis.
    """

    num_agents: int
    index: Tensor | None = None
    source: Tensor | None = None
    target: Tensor | None = None
    degree: Tensor = field(default_factory=lambda: torch.empty(0))
    torus: tuple[int, ...] | None = None

    @classmethod
    def from_links(cls, num_agents: int, source: Tensor, target: Tensor) -> Graph:
        """From links [L]; padded where that costs at most three times the links, else kept as links."""
        if source.numel() and (
            int(torch.minimum(source, target).min()) < 0 or int(torch.maximum(source, target).max()) >= num_agents
        ):
            raise ConfigError(f"A link names an agent outside 0..{num_agents - 1}.")
        order = torch.argsort(source, stable=True)
        source, target = source[order].long(), target[order].long()
        degree = torch.bincount(source, minlength=num_agents)
        widest = int(degree.max()) if source.numel() else 0
        if widest * num_agents <= 3 * source.numel() + 64:
            index = torch.full((num_agents, max(widest, 1)), num_agents, dtype=torch.long)
            first = torch.cumsum(degree, 0) - degree
            index[source, torch.arange(source.numel()) - first[source]] = target
            return cls(num_agents, index=index, degree=degree)
        return cls(num_agents, source=source, target=target, degree=degree)

    @classmethod
    def from_networkx(cls, graph: Any) -> Graph:
        """From an undirected or directed networkx graph whose nodes are 0..N-1 (any labels, in their order)."""
        number = {node: i for i, node in enumerate(graph.nodes)}
        pairs = [(number[u], number[v]) for u, v in graph.edges if u != v]
        links = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
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
        return cls(index.shape[0], index=index, degree=degree, torus=shape)

    def to(self, device: torch.device | str) -> Graph:
        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return Graph(
            self.num_agents, move(self.index), move(self.source), move(self.target), self.degree.to(device), self.torus
        )

    def neighbour_sum(self, x: Tensor) -> Tensor:
        """Sum of `x` [E, N, *f] over each agent's neighbours: same shape and dtype."""
        if self.torus is not None:
            grid = x.view(x.shape[0], *self.torus, *x.shape[2:])
            total = torch.zeros_like(grid)
            for axis in range(1, 1 + len(self.torus)):
                # Slices instead of torch.roll: no wrapped copy, and the sum stays in x's (small) dtype.
                n = self.torus[axis - 1]
                total.narrow(axis, 1, n - 1).add_(grid.narrow(axis, 0, n - 1))
                total.narrow(axis, 0, 1).add_(grid.narrow(axis, n - 1, 1))
                total.narrow(axis, 0, n - 1).add_(grid.narrow(axis, 1, n - 1))
                total.narrow(axis, n - 1, 1).add_(grid.narrow(axis, 0, 1))
            return total.view(x.shape)
        if self.index is not None:
            padded = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
            total = padded[:, self.index[:, 0]].clone()
            for k in range(1, self.index.shape[1]):
                total += padded[:, self.index[:, k]]
            return total
        assert self.source is not None and self.target is not None
        return torch.zeros_like(x).index_add_(1, self.source, x[:, self.target])

    def colouring(self) -> Tensor:
        """A proper colouring [N] (neighbours differ): the parity of an even torus, else greedy by degree."""
        if self.torus is not None and all(n % 2 == 0 for n in self.torus):
            parity = torch.zeros(self.torus, dtype=torch.long)
            for axis, n in enumerate(self.torus):
                shape = [1] * len(self.torus)
                shape[axis] = n
                parity += torch.arange(n).view(shape)
            return (parity % 2).reshape(-1)
        import networkx

        links = networkx.Graph()
        links.add_nodes_from(range(self.num_agents))
        links.add_edges_from(self.links().tolist())
        colours = networkx.greedy_color(links, strategy="largest_first")
        return torch.tensor([colours[i] for i in range(self.num_agents)])

    def links(self) -> Tensor:
        """Every link as a row (source, target): [L, 2]."""
        if self.index is not None:
            source = torch.arange(self.num_agents, device=self.index.device).unsqueeze(-1).expand_as(self.index)
            real = self.index < self.num_agents
            return torch.stack([source[real], self.index[real]], dim=-1)
        assert self.source is not None and self.target is not None
        return torch.stack([self.source, self.target], dim=-1)
