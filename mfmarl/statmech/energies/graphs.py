"""Who interacts with whom, as pairs [M, 2] of site numbers, each pair once."""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl.errors import ConfigError


def torus(*shape: int) -> Tensor:
    """Nearest neighbours on a periodic lattice; sites are numbered row by row. Sides of 2 have one link, not two."""
    if not shape or min(shape) < 1:
        raise ConfigError(f"A lattice needs sides of at least 1, not {shape}.")
    site = torch.arange(torch.Size(shape).numel()).reshape(shape)
    pairs = []
    for axis, side in enumerate(shape):
        if side == 1:
            continue
        near, far = site, site.roll(-1, axis)
        if side == 2:
            near, far = near.select(axis, 0), far.select(axis, 0)
        pairs.append(torch.stack([near.flatten(), far.flatten()], -1))
    return torch.cat(pairs) if pairs else torch.empty(0, 2, dtype=torch.int64)


def grid(*shape: int) -> Tensor:
    """Nearest neighbours on a lattice with open ends; `grid(n)` is a chain."""
    if not shape or min(shape) < 1:
        raise ConfigError(f"A lattice needs sides of at least 1, not {shape}.")
    site = torch.arange(torch.Size(shape).numel()).reshape(shape)
    pairs = [
        torch.stack([site.narrow(a, 0, n - 1).flatten(), site.narrow(a, 1, n - 1).flatten()], -1)
        for a, n in enumerate(shape)
        if n > 1
    ]
    return torch.cat(pairs) if pairs else torch.empty(0, 2, dtype=torch.int64)


def complete(num_sites: int) -> Tensor:
    """Everyone with everyone: n (n - 1)/2 pairs."""
    return torch.combinations(torch.arange(num_sites), 2)


def colouring(pairs: Tensor, num_sites: int) -> Tensor:
    """A colour per site, int64 [n], such that no pair shares one: sites of a colour may be updated at once.

    Greedy, in breadth-first order: two colours on any bipartite graph, at most the largest degree + 1 on any.
    """
    links: list[list[int]] = [[] for _ in range(num_sites)]
    for i, j in pairs.tolist():
        links[i].append(j)
        links[j].append(i)
    colour, seen = [-1] * num_sites, [False] * num_sites
    for root in range(num_sites):
        if seen[root]:
            continue
        seen[root], queue = True, [root]
        for site in queue:
            taken = {colour[other] for other in links[site]}
            colour[site] = next(c for c in range(len(links[site]) + 1) if c not in taken)
            for other in links[site]:
                if not seen[other]:
                    seen[other] = True
                    queue.append(other)
    return torch.tensor(colour, dtype=torch.int64)
