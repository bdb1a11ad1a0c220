"""Graphs by name, for environments that are played on one: torus, complete, random regular, small world."""

from __future__ import annotations

import math
from typing import Literal

from mfmarl.errors import ConfigError, nearest
from mfmarl.population.graph import Graph

GraphName = Literal["torus", "complete", "random_regular", "small_world"]
_NAMES = ("torus", "complete", "random_regular", "small_world")


def named_graph(
    name: str, num_agents: int, sides: tuple[int, ...] = (), degree: int = 4, rewiring: float = 0.1, seed: int = 0
) -> Graph | None:
    """The graph of that name; None for the complete one, whose N^2 links nobody should store.

    `sides` is the torus's shape; `degree` and `seed` belong to the random graphs, `rewiring` to the small world of
    Watts and Strogatz 1998. Raises ConfigError where there is no such graph.
    """
    if name not in _NAMES:
        raise ConfigError(f"There is no graph {name!r}.{nearest(name, _NAMES)}")
    if name == "complete":
        return None
    if name == "torus":
        return Graph.torus_of(sides)
    import networkx

    if name == "random_regular":
        if not 0 < degree < num_agents or num_agents * degree % 2:
            raise ConfigError(
                f"No graph of {num_agents} nodes has degree {degree} everywhere: the degree must be at least 1, "
                "less than num_agents, and even if num_agents is odd."
            )
        return Graph.from_networkx(networkx.random_regular_graph(degree, num_agents, seed=seed))
    if degree % 2 or not 2 <= degree < num_agents:
        raise ConfigError(
            f"A small world of {num_agents} nodes needs an even degree from 2 to {num_agents - 1}, not {degree}."
        )
    if not 0 <= rewiring <= 1:
        raise ConfigError(f"rewiring must be in [0, 1], not {rewiring:g}.")
    return Graph.from_networkx(networkx.watts_strogatz_graph(num_agents, degree, rewiring, seed=seed))


def torus_sides(num_agents: int, dimension: int = 2, shape: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The shape of a torus of that many sites: `shape` if given, else the most nearly square, at most twice as long as wide.

    Raises ConfigError where there is none, with a number that would do.
    """
    if shape:
        text, sites = "x".join(map(str, shape)), math.prod(shape)
        if min(shape) < 3:
            raise ConfigError(f"A torus needs at least 3 sites along each axis, not {text}.")
        if sites != num_agents:
            raise ConfigError(f"A torus of shape {text} has {sites} sites: give num_agents={sites}, not {num_agents}.")
        return shape
    if dimension < 1:
        raise ConfigError(f"dimension must be at least 1, not {dimension}.")
    sides = _nearly_equal(num_agents, dimension)
    if not sides:
        side = max(3, round(num_agents ** (1 / dimension)))
        raise ConfigError(
            f"{num_agents} agents do not fill a nearly square torus of dimension {dimension} with 3 sites or more along "
            f"each axis: take num_agents={side**dimension}, give its shape, or take graph='complete'."
        )
    return sides


def _nearly_equal(sites: int, axes: int) -> tuple[int, ...]:
    """Ascending factors of at least 3, the last at most twice the first, the first as large as can be; or ()."""
    if axes == 1:
        return (sites,) if sites >= 3 else ()
    first = math.isqrt(sites) if axes == 2 else int(round(sites ** (1 / axes), 9))
    while first >= 3:
        if sites % first == 0:
            rest = _nearly_equal(sites // first, axes - 1)
            if rest and rest[0] >= first and rest[-1] <= 2 * first:
                return (first, *rest)
        first -= 1
    return ()
