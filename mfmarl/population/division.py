"""A population divided over ranks: each plays a stretch of every team, or some of the copies.

Agents act upon what is near and upon sums over everybody; sums travel as counts (`Ranks.sum`), what is near as the
borders of each rank's part (`DividedGraph`). Agents and copies keep their numbers, and with them their noise: a divided
population does, bit for bit, what the whole one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.population.graph import Graph
from mfmarl.population.ranks import ALONE, Ranks, parts
from mfmarl.population.spec import Spec

ALL = "all"  # everybody, whatever the teams


@dataclass(frozen=True)
class Division:
    """Who is on which rank. `spec` is that of the whole population."""

    spec: Spec
    copies: int
    """Of all ranks together."""
    ranks: Ranks = ALONE
    by_agents: bool = True
    """Whether each rank has a part of every copy; else it has some copies, whole."""

    def __post_init__(self) -> None:
        what, many = ("agents", self.spec.num_agents) if self.by_agents else ("copies", self.copies)
        if self.ranks.count > many:
            raise ConfigError(
                f"{self.ranks.count} ranks cannot share {many} {what}: give at most {many} ranks, or more {what}."
            )

    @property
    def whole(self) -> bool:
        return self.ranks.count == 1

    @cached_property
    def stretches(self) -> list[list[tuple[int, int]]]:
        """Of each rank, where its part of each team begins and ends, in the numbers of all agents."""
        count = self.ranks.count if self.by_agents else 1
        taken = [0] * count
        found: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        graph = self.spec.graph
        # A torus is cut between its rows, if it has enough of them, so that only rows have to travel.
        grain = self.spec.num_agents // graph.torus[0] if graph is not None and graph.torus else 1
        if grain > 1 and (graph is None or graph.torus is None or graph.torus[0] < count or len(self.spec.groups) > 1):
            grain = 1
        for team in self.spec.group_slices.values():
            for r, (low, high) in enumerate(parts(team.stop - team.start, count, taken, grain)):
                found[r].append((team.start + low, team.start + high))
                taken[r] += high - low
        return found

    @cached_property
    def copy_stretches(self) -> list[tuple[int, int]]:
        """Of each rank, its first copy and the one after its last."""
        if self.by_agents:
            return [(0, self.copies)] * self.ranks.count
        return parts(self.copies, self.ranks.count)

    @property
    def first_copy(self) -> int:
        return self.copy_stretches[self.ranks.rank][0]

    @property
    def copies_here(self) -> int:
        first, last = self.copy_stretches[self.ranks.rank]
        return last - first

    @cached_property
    def here(self) -> Tensor:
        """The numbers of the agents on this rank, increasing: [n]."""
        return _numbers(self.stretches[self.ranks.rank if self.by_agents else 0])

    @cached_property
    def local_spec(self) -> Spec:
        """The spec of those on this rank; it knows the whole one."""
        if self.whole or not self.by_agents:
            return self.spec
        mine = self.stretches[self.ranks.rank]
        graph = None if self.spec.graph is None else divide_graph(self.spec.graph, self.stretches, self.ranks)
        names = self.spec.agent_names
        return replace(
            self.spec,
            num_agents=len(self.here),
            group_sizes=tuple(high - low for low, high in mine),
            graph=graph,
            agent_names=tuple(names[i] for i in self.here.tolist()) if names else (),
            whole=self.spec,
            ranks=self.ranks,
        )

    # ----------------------------------------------------------------------------- rows that are learned from

    def slots(self, team: str = ALL) -> slice:
        """The slots of a team in the whole population."""
        return slice(0, self.spec.num_agents) if team == ALL else self.spec.group_slices[team]

    def slots_here(self, team: str = ALL) -> slice:
        """Those of them on this rank, by their place here."""
        return slice(0, self.local_spec.num_agents) if team == ALL else self.local_spec.group_slices[team]

    def rows(self, team: str = ALL) -> int:
        """How many agents of copies there are in the whole population, of a team."""
        there = self.slots(team)
        return self.copies * (there.stop - there.start)

    def row_numbers(self, team: str = ALL) -> Tensor:
        """The numbers in the whole population of a team's rows [E, n] here, copy by copy, flat: increasing."""
        there = self.slots(team)
        agents = self.here[self.slots_here(team)] - there.start
        copies = torch.arange(self.copies_here) + self.first_copy
        return (copies.unsqueeze(-1) * (there.stop - there.start) + agents).flatten()

    def find(self, rows: Tensor, team: str = ALL) -> tuple[Tensor, Tensor]:
        """Which of these rows of the whole team are here [B] bool, and where those lie among the team's rows here."""
        there = self.slots(team)
        width = there.stop - there.start
        copy, agent = rows // width - self.first_copy, rows % width + there.start
        inside = (copy >= 0) & (copy < self.copies_here)
        place = torch.full_like(rows, -1)
        at = 0
        for low, high in self._within(there):
            place = torch.where((agent >= low) & (agent < high), at + agent - low, place)
            at += high - low
        inside &= place >= 0
        return inside, (copy * at + place)[inside]

    def _within(self, there: slice, rank: int | None = None) -> list[tuple[int, int]]:
        """A rank's stretches of these slots of the whole population."""
        number = (self.ranks.rank if rank is None else rank) if self.by_agents else 0
        return [(low, high) for low, high in self.stretches[number] if there.start <= low < high <= there.stop]

    # --------------------------------------------------------------------------------- the whole and its parts

    def gather(self, x: Tensor, per_agent: bool, team: str = ALL) -> Tensor:
        """The whole of `x` on the first rank, from everybody's part; elsewhere `x` itself.

        `x` leads with the copies, [E, ...]; where it is `per_agent`, [E, n, ...], with the agents of a team after them.
        """
        if self.whole or (self.by_agents and not per_agent):
            return x
        if not self.by_agents:
            found = self.ranks.to_first(x)
            return torch.cat(found) if found else x
        found = self.ranks.to_first(x.transpose(0, 1))
        if not found:
            return x
        there = self.slots(team)
        out = torch.empty((there.stop - there.start, *found[0].shape[1:]), dtype=x.dtype, device=x.device)
        for rank, values in enumerate(found):
            at = 0
            for low, high in self._within(there, rank):
                out[low - there.start : high - there.start] = values[at : at + high - low]
                at += high - low
        return out.transpose(0, 1).contiguous()

    def part(self, x: Tensor, per_agent: bool, team: str = ALL) -> Tensor:
        """This rank's part of the whole `x`: the inverse of `gather`."""
        if self.whole or (self.by_agents and not per_agent):
            return x
        if not self.by_agents:
            return x[self.first_copy : self.first_copy + self.copies_here]
        here = self.here[self.slots_here(team)] - self.slots(team).start
        return x.index_select(1, here.to(x.device))


def _numbers(stretches: list[tuple[int, int]]) -> Tensor:
    return torch.cat([torch.arange(low, high) for low, high in stretches])


@dataclass(frozen=True, eq=False)
class DividedGraph(Graph):
    """This rank's part of a graph. The neighbours that live elsewhere are sent for in every sum: the halo."""

    inner: Graph | None = None
    """Over those here and their halo, in that order (of a torus: between the halo's two rows)."""
    inside: tuple[int, int] = (0, 0)
    """Where those here begin and end in it."""
    ranks: Ranks = ALONE
    send: Tensor | None = None
    """Which of those here are sent, rank after rank; of `give[r]` to rank r."""
    give: tuple[int, ...] = ()
    take: tuple[int, ...] = ()
    order: Tensor | None = None
    """Where each neighbour that came belongs in `inner`, counting without those here."""

    def to(self, device: torch.device | str) -> DividedGraph:
        assert self.inner is not None and self.send is not None and self.order is not None
        return replace(
            self, degree=self.degree.to(device), inner=self.inner.to(device),
            send=self.send.to(device), order=self.order.to(device),
        )  # fmt: skip

    def neighbour_sum(self, x: Tensor) -> Tensor:
        assert self.inner is not None
        return self.inner.neighbour_sum(self.with_halo(x))[:, slice(*self.inside)]

    def with_halo(self, x: Tensor) -> Tensor:
        """`x` [E, n, ...] of those here, and of their neighbours elsewhere: as `inner` numbers them."""
        assert self.send is not None and self.order is not None
        rows = x.transpose(0, 1)
        came = self.ranks.exchange(rows.index_select(0, self.send), self.give, self.take)
        halo = torch.empty_like(came)
        halo[self.order] = came
        before = self.inside[0]
        return torch.cat([halo[:before], rows, halo[before:]]).transpose(0, 1).contiguous()

    def links(self) -> Tensor:
        raise ConfigError("A divided graph has only its own part of the links: ask the whole one.")


def divide_graph(graph: Graph, stretches: list[list[tuple[int, int]]], ranks: Ranks) -> DividedGraph:
    """This rank's part of the graph, and whom it sends to."""
    mine = stretches[ranks.rank]
    here = _numbers(mine)
    rows = graph.num_agents // graph.torus[0] if graph.torus else 0
    by_rows = rows > 0 and len(mine) == 1 and all(low % rows == 0 for part in stretches for low, _ in part)
    halos = list(_row_halos(graph, stretches, rows) if by_rows else _link_halos(graph, stretches))
    owner = torch.empty(graph.num_agents, dtype=torch.int64)
    place = torch.empty(graph.num_agents, dtype=torch.int64)
    for r, part in enumerate(stretches):
        numbers = _numbers(part)
        owner[numbers], place[numbers] = r, torch.arange(len(numbers))
    wanted = halos[ranks.rank]
    # What comes is sorted by who sends it, and by where it belongs here.
    order = torch.argsort(owner[wanted], stable=True)
    take = tuple(torch.bincount(owner[wanted], minlength=ranks.count).tolist())
    sent = [halo[owner[halo] == ranks.rank] for halo in halos]
    send = place[torch.cat(sent)]
    if by_rows:
        height = len(here) // rows
        inner = Graph.torus_of((height + 2, *graph.torus[1:]))  # type: ignore[index]
        inside = (rows, rows + len(here))
    else:
        inner = _inner(graph, here, wanted)
        inside = (0, len(here))
    return DividedGraph(
        len(here),
        degree=graph.degree[here],
        inner=inner,
        inside=inside,
        ranks=ranks,
        send=send,
        give=tuple(len(s) for s in sent),
        take=take,
        order=order,
    )


def _row_halos(graph: Graph, stretches: list[list[tuple[int, int]]], rows: int) -> Iterator[Tensor]:
    """Of each rank, the row before its own and the row after them."""
    for ((low, high),) in stretches:
        before, after = torch.arange(low - rows, low), torch.arange(high, high + rows)
        yield torch.cat([before, after]) % graph.num_agents


def _link_halos(graph: Graph, stretches: list[list[tuple[int, int]]]) -> Iterator[Tensor]:
    """Of each rank, the neighbours of its own that live elsewhere, in the order of their numbers."""
    links = graph.links()
    for part in stretches:
        mine = torch.zeros(graph.num_agents, dtype=torch.bool)
        mine[_numbers(part)] = True
        felt = links[mine[links[:, 0]], 1].unique()
        yield felt[~mine[felt]]


def _inner(graph: Graph, here: Tensor, halo: Tensor) -> Graph:
    """The graph over those here and their halo, whose own neighbours do not matter."""
    total = len(here) + len(halo)
    place = torch.full((graph.num_agents + 1,), total, dtype=torch.int64)
    place[here] = torch.arange(len(here))
    place[halo] = torch.arange(len(here), total)
    degree = torch.cat([graph.degree[here], torch.zeros(len(halo), dtype=graph.degree.dtype)])
    if graph.index is not None:
        index = torch.full((total, graph.index.shape[1]), total, dtype=torch.int64)
        index[: len(here)] = place[graph.index[here]]
        return Graph(total, index=index, degree=degree)
    assert graph.source is not None and graph.target is not None
    mine = torch.zeros(graph.num_agents, dtype=torch.bool)
    mine[here] = True
    kept = mine[graph.source]
    return Graph(total, source=place[graph.source[kept]], target=place[graph.target[kept]], degree=degree)
