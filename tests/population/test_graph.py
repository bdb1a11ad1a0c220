"""Graphs: sums over neighbours in every representation against the adjacency matrix, and proper colourings."""

from __future__ import annotations

import itertools
import time

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.population.graph import Graph, Lanes


def matrix(n: int, pairs: Tensor) -> Tensor:
    """The adjacency matrix that links mean: a set, and nobody's own neighbour."""
    a = torch.zeros(n, n, dtype=torch.int64)
    a[pairs[:, 0], pairs[:, 1]] = 1
    return a.fill_diagonal_(0)


@st.composite
def links(draw: st.DrawFn) -> tuple[int, Tensor]:
    n = draw(st.integers(1, 12))
    pairs = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=4 * n))
    if draw(st.booleans()):  # a hub, so that the padded form does not pay
        n += 60
        pairs += [(0, j) for j in range(n)]
    return n, torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def both_forms(n: int, pairs: Tensor) -> list[Graph]:
    """The same graph padded and as links, whatever from_links would choose."""
    graph = Graph.from_links(n, pairs[:, 0], pairs[:, 1])
    rows = graph.links()
    width = max(1, graph.max_degree)
    index = torch.full((n, width), n)
    for i in range(n):
        mine = rows[rows[:, 0] == i, 1]
        index[i, : len(mine)] = mine
    as_links = Graph(n, source=rows[:, 0], target=rows[:, 1], degree=graph.degree)
    return [graph, Graph(n, index=index, degree=graph.degree), as_links]


@given(links(), st.integers(1, 3), st.sampled_from([(), (1,), (3,), (2, 2), (9,)]))
@settings(max_examples=80, deadline=None)
def test_sums_over_neighbours_are_products_with_the_matrix(
    of: tuple[int, Tensor], copies: int, shape: tuple[int, ...]
) -> None:
    n, pairs = of
    wanted_matrix = matrix(n, pairs)
    x = torch.randint(-9, 9, (copies, n, *shape), generator=torch.Generator().manual_seed(n))
    wanted = torch.einsum("ij,ej...->ei...", wanted_matrix.double(), x.double()).long()
    for graph in both_forms(n, pairs):
        assert torch.equal(graph.degree, wanted_matrix.sum(1))
        assert torch.equal(graph.neighbour_sum(x), wanted)
        for dtype in (torch.float32, torch.float64, torch.int32, torch.int16):
            summed = graph.neighbour_sum(x.to(dtype))
            assert summed.dtype == dtype
            assert torch.equal(summed, wanted.to(dtype))
        if x.ndim == 3:  # any layout in memory
            turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
            assert torch.equal(graph.neighbour_sum(turned), wanted)
        counted = graph.neighbour_sum(x > 0)
        assert torch.equal(
            counted.long(), torch.einsum("ij,ej...->ei...", wanted_matrix.double(), (x > 0).double()).long()
        )
        assert not counted.dtype.is_floating_point


@pytest.mark.parametrize("shape", [(3,), (4,), (3, 5), (4, 6), (100, 3), (3, 4, 5), (3, 3, 3, 4)])
def test_a_torus_sums_by_shifts_what_its_index_says(shape: tuple[int, ...]) -> None:
    graph = Graph.torus_of(shape)
    by_index = Graph(graph.num_agents, index=graph.index, degree=graph.degree)
    assert (graph.degree == 2 * len(shape)).all()
    lattice = networkx.grid_graph(shape[::-1], periodic=True)
    wanted = {frozenset((_site(u, shape), _site(v, shape))) for u, v in lattice.edges}
    assert {frozenset(pair) for pair in graph.links().tolist()} == wanted
    for x in (
        torch.randint(-5, 5, (2, graph.num_agents), dtype=torch.int8),
        torch.randint(-5, 5, (2, graph.num_agents, 3)),
        torch.randint(0, 9, (3, 2, graph.num_agents)).permute(1, 2, 0).float(),
        torch.randint(0, 2, (2, graph.num_agents, 2, 2)).bool(),
        torch.randint(0, 2, (1, graph.num_agents)).expand(4, -1),
    ):
        assert torch.equal(graph.neighbour_sum(x), by_index.neighbour_sum(x))


def _site(u: int | tuple[int, ...], shape: tuple[int, ...]) -> int:
    number = 0
    for place, side in zip(u if isinstance(u, tuple) else (u,), shape, strict=True):
        number = number * side + place
    return number


def test_loops_and_repeated_links_count_for_nothing() -> None:
    graph = Graph.from_links(3, torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 1, 0, 0]))
    assert graph.links().tolist() == [[0, 1], [2, 0]]
    assert graph.degree.tolist() == [1, 0, 1]
    assert graph.neighbour_sum(torch.tensor([[1, 10, 100]])).tolist() == [[10, 0, 1]]


def test_the_representation_follows_the_hubs() -> None:
    n = 2000
    hub, leaf = torch.zeros(n - 1, dtype=torch.long), torch.arange(1, n)
    star = Graph.from_links(n, torch.cat([hub, leaf]), torch.cat([leaf, hub]))
    assert star.index is None  # padded, a star would be n x n
    ring = Graph.from_links(n, torch.arange(n), (torch.arange(n) + 1) % n)
    assert ring.index is not None
    assert ring.index.shape == (n, 1)
    none = Graph.from_links(4, hub[:0], hub[:0])
    assert none.neighbour_sum(torch.ones(2, 4, 3)).tolist() == torch.zeros(2, 4, 3).tolist()
    assert none.max_degree == 0


def test_a_star_of_a_million_leaves_is_summed_in_the_time_of_its_links() -> None:
    n = 1_000_001
    hub, leaf = torch.zeros(n - 1, dtype=torch.long), torch.arange(1, n)
    star = Graph.from_links(n, torch.cat([hub, leaf]), torch.cat([leaf, hub]))
    x = torch.ones(2, n, dtype=torch.bool)
    begin = time.process_time()
    counts = star.neighbour_sum(x)
    assert time.process_time() - begin < 2  # measured: 0.06 s
    assert counts[:, 0].tolist() == [n - 1] * 2
    assert (counts[:, 1:] == 1).all()


@pytest.mark.parametrize(
    ("n", "source", "target", "words"),
    [
        (3, [0, 3], [1, 0], r"agent 3; expected 0\.\.2"),
        (3, [0, 1], [1, -1], "agent -1"),
        (3, [0, 1], [1], "as many sources as targets"),
        (3, [0.0, 1.0], [1.0, 2.0], "numbers of agents"),
        (0, [], [], "at least 1 agent"),
    ],
)
def test_links_that_lead_nowhere_are_refused(n: int, source: list[int], target: list[int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Graph.from_links(n, torch.tensor(source), torch.tensor(target))


@pytest.mark.parametrize("shape", [(), (2,), (5, 2), (4, 0)])
def test_a_torus_too_thin_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least 3 sites"):
        Graph.torus_of(shape)


def test_networkx_graphs_enter_with_any_labels_directed_or_not() -> None:
    named = networkx.Graph([("b", "a"), ("a", "c"), ("c", "c")])
    graph = Graph.from_networkx(named)  # agents 0, 1, 2 are b, a, c
    assert graph.links().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    directed = networkx.DiGraph([(0, 1), (1, 2)])
    assert Graph.from_networkx(directed).links().tolist() == [[0, 1], [1, 2]]
    double: networkx.MultiGraph[int] = networkx.MultiGraph([(0, 1), (0, 1), (1, 2)])
    assert Graph.from_networkx(double).degree.tolist() == [1, 2, 1]
    assert Graph.from_networkx(networkx.empty_graph(3)).degree.tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="at least 1 agent"):
        Graph.from_networkx(networkx.Graph())
    regular = networkx.random_regular_graph(4, 50, seed=1)
    assert torch.equal(
        matrix(50, Graph.from_networkx(regular).links()), torch.from_numpy(networkx.to_numpy_array(regular)).long()
    )


def test_moving_a_graph_keeps_it() -> None:
    for graph in (Graph.torus_of((3, 4)), *both_forms(5, torch.tensor([[0, 1], [1, 2], [3, 4]]))):
        moved = graph.to("cpu")
        assert torch.equal(moved.links(), graph.links())
        assert torch.equal(moved.degree, graph.degree)
        assert moved.torus == graph.torus
        assert graph.to("meta").degree.device.type == "meta"


# -------------------------------------------------------------------------------------------- colourings


def assert_proper(graph: Graph) -> int:
    colour = graph.colouring()
    ends = graph.links()
    assert colour.shape == (graph.num_agents,)
    assert colour.dtype == torch.int64
    assert int(colour.min()) >= 0
    assert (colour[ends[:, 0]] != colour[ends[:, 1]]).all()
    return int(colour.max()) + 1


@given(links())
@settings(max_examples=80, deadline=None)
def test_neighbours_have_different_colours_and_two_where_two_are_enough(of: tuple[int, Tensor]) -> None:
    n, pairs = of
    graph = Graph.from_links(n, pairs[:, 0], pairs[:, 1])
    used = assert_proper(graph)
    undirected = networkx.Graph([(u, v) for u, v in pairs.tolist() if u != v])
    undirected.add_nodes_from(range(n))
    most = max(degree for _, degree in undirected.degree)
    assert used <= most + 1
    if networkx.is_bipartite(undirected):
        assert used <= 2


@pytest.mark.parametrize("shape", [(3,), (4,), (5,), (7, 7), (4, 6), (4, 5), (3, 3, 3), (3, 4, 5), (5, 5, 4, 3)])
def test_a_torus_takes_two_colours_or_three(shape: tuple[int, ...]) -> None:
    graph = Graph.torus_of(shape)
    assert assert_proper(graph) == (3 if any(n % 2 for n in shape) else 2)
    if not any(n % 2 for n in shape):
        site = torch.tensor(list(itertools.product(*map(range, shape))))
        assert torch.equal(graph.colouring(), site.sum(1) % 2)


def test_a_large_graph_is_coloured_in_seconds() -> None:
    n, generator = 100_000, torch.Generator().manual_seed(0)
    graph = Graph.from_links(n, *torch.randint(0, n, (2, 4 * n), generator=generator))
    begin = time.process_time()
    assert assert_proper(graph) <= 9
    assert time.process_time() - begin < 6  # measured: 0.6 s


# ------------------------------------------------------------------------------------------------- lanes


@pytest.mark.parametrize(("most", "bits"), [(1, 8), (255, 8), (256, 16), (65_535, 16), (65_536, 32)])
@pytest.mark.parametrize("columns", [1, 2, 5, 8, 9, 20])
def test_counters_side_by_side_do_not_touch(most: int, bits: int, columns: int) -> None:
    lanes = Lanes.for_counts_up_to(most)
    assert lanes.bits == bits
    x = torch.randint(0, 2, (2, 3, columns), generator=torch.Generator().manual_seed(columns)).bool()
    words = lanes.pack(x)
    assert words.shape == (2, 3, -(-columns * bits // 64))
    assert torch.equal(lanes.unpack(words, columns).long(), x.long())
    assert torch.equal(lanes.unpack(words * most, columns).long(), x.long() * most)  # every counter full
