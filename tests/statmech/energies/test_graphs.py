"""Who meets whom: every link once, and colours that no link shares."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfmarl.statmech.energies import graphs


def links(pairs: torch.Tensor) -> set[frozenset[int]]:
    found = [frozenset(pair) for pair in pairs.tolist()]
    assert len(found) == len(set(found))  # each once
    return set(found)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 5), (2, 2), (3, 3, 4), (1, 6)])
@pytest.mark.parametrize("periodic", [True, False])
def test_lattices_are_networkxs(shape: tuple[int, ...], periodic: bool) -> None:
    made = graphs.torus(*shape) if periodic else graphs.grid(*shape)
    known = nx.grid_graph(list(reversed(shape)), periodic=periodic)
    known.remove_edges_from(nx.selfloop_edges(known))
    number = {node: i for i, node in enumerate(sorted(known.nodes, key=lambda n: n if isinstance(n, tuple) else (n,)))}
    assert links(made) == {frozenset((number[a], number[b])) for a, b in known.edges}


def test_everyone_meets_everyone_once() -> None:
    assert links(graphs.complete(6)) == {frozenset((i, j)) for i in range(6) for j in range(i)}


@settings(max_examples=30)
@given(n=st.integers(1, 12), density=st.floats(0, 1), seed=st.integers(0, 100))
def test_no_link_joins_two_of_a_colour(n: int, density: float, seed: int) -> None:
    graph = nx.gnp_random_graph(n, density, seed=seed)
    pairs = torch.tensor(list(graph.edges), dtype=torch.int64).reshape(-1, 2)
    colour = graphs.colouring(pairs, n)
    assert bool((colour >= 0).all())
    assert not bool((colour[pairs[:, 0]] == colour[pairs[:, 1]]).any())
    assert int(colour.max()) <= max((d for _, d in graph.degree), default=0)
    if nx.is_bipartite(graph):
        assert int(colour.max()) <= 1
