r"""The mean field: what an agent feels of the others, = average of a feature of each.

$$ m^j = \frac{1}{|N(j)|} \sum_{k \in N(j),\, k \neq j,\, k\ \mathrm{alive}} \phi(k) $$

with the feature phi (the one-hot action of Yang et al. 2018, arXiv 1802.05438, eq. 4; states; moments;
any function) and N(j) everyone, the neighbours on a graph, those within a radius, or a random sample.
Sums are O(N): nobody's row is built from everybody's. The agent itself and the dead are left out, and
an agent without living neighbours feels zeros. Sums of actions are of whole numbers, hence exact.

Fields have a text form, used on the command line and in config files: `actions over neighbours`,
`typed(actions) over everyone`, `grid(8) over everyone`, `moments(2) over sampled(16)`, `joint(actions, states) over nearby(0.2)`,
`nothing`, `smoothed(actions over everyone, 0.9)`.
"""

from __future__ import annotations

import ast
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from gymnasium.spaces import Box
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault, nearest
from mfmarl.population import compiled, counted
from mfmarl.population.graph import Lanes
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _is_number(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool)


# ------------------------------------------------------------------------------------------ features


class Feature(ABC):
    """What is averaged: a number of columns per agent, and their values [E, N, F]."""

    @abstractmethod
    def size(self, spec: Spec) -> int: ...

    @abstractmethod
    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        """[E, N, F]: bool for what is or is not (counted exactly), else numbers (float32 is made of them).

        Values of the dead may be anything.
        """

    def classes(self, timestep: Timestep, spec: Spec) -> Tensor | None:
        """Whole numbers [E, N] of which `values` are the one-hot, in `size` columns; None: they are something else."""
        return None


def _one_hot(number: Tensor, classes: int) -> Tensor:
    """Bool [E, N, classes] of whole numbers [E, N]; a number outside, such as -1, has no class."""
    # One plane per class, seen as the last axis: comparisons and sums run over whole planes, 3x faster.
    return (number == torch.arange(classes, device=number.device).view(-1, 1, 1)).permute(1, 2, 0)


@dataclass(frozen=True)
class Nothing(Feature):
    """No feature: an independent learner."""

    def size(self, spec: Spec) -> int:
        return 0

    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        return torch.zeros((*timestep.alive.shape, 0), device=timestep.alive.device)

    def __str__(self) -> str:
        return "nothing"


@dataclass(frozen=True)
class Actions(Feature):
    """The action in force: one-hot for discrete actions, the vector itself for a Box; zeros before the first."""

    def size(self, spec: Spec) -> int:
        return spec.num_actions

    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        if not spec.discrete:
            return timestep.action.nan_to_num(nan=0.0)
        return _one_hot(timestep.action, spec.num_actions)

    def classes(self, timestep: Timestep, spec: Spec) -> Tensor | None:
        return timestep.action if spec.discrete else None

    def __str__(self) -> str:
        return "actions"


@dataclass(frozen=True)
class States(Feature):
    """The observation, flattened; one-hot for a Discrete observation space."""

    def size(self, spec: Spec) -> int:
        if spec.observation_shape:
            return int(torch.Size(spec.observation_shape).numel())
        n = getattr(spec.observation_space, "n", None)
        return 1 if n is None else int(n)

    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        n = getattr(spec.observation_space, "n", None)
        if n is not None:
            return _one_hot(timestep.obs, int(n))
        return timestep.obs.reshape(*timestep.alive.shape, -1)

    def classes(self, timestep: Timestep, spec: Spec) -> Tensor | None:
        return None if getattr(spec.observation_space, "n", None) is None else timestep.obs

    def __str__(self) -> str:
        return "states"


_CELLS = 4096  # of a grid, at most: each is a column of the field


@dataclass(frozen=True)
class Grid(Feature):
    """The cell of the observation on a grid of k intervals along each of its dimensions: a histogram of the crowd.

    Of a Box with finite bounds; dimensions that cannot vary are left out. The last interval includes the upper bound.
    """

    k: int = 8

    def __post_init__(self) -> None:
        if not _is_whole(self.k) or self.k < 2:
            raise ConfigError(f"grid({self.k}): the number of intervals must be a whole number of at least 2.")

    def _bounds(self, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        """Which dimensions vary, where they begin, and how long they are."""
        space = spec.observation_space
        if not isinstance(space, Box):
            raise ConfigError(f"{self} needs observations in a Box, not {space}; use 'states'.")
        low, high = torch.as_tensor(space.low).flatten().double(), torch.as_tensor(space.high).flatten().double()
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
            raise ConfigError(f"{self} needs observations with finite bounds, not {space}.")
        varies = (high > low).nonzero().squeeze(-1)
        return varies, low[varies], (high - low)[varies]

    def size(self, spec: Spec) -> int:
        dimensions = len(self._bounds(spec)[0])
        if self.k**dimensions > _CELLS:
            raise ConfigError(f"{self} has {self.k}^{dimensions} cells here; at most {_CELLS}: use a smaller number.")
        return int(self.k**dimensions)

    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        return _one_hot(self.classes(timestep, spec), self.size(spec))

    def classes(self, timestep: Timestep, spec: Spec) -> Tensor:
        varies, low, length = (x.to(timestep.obs.device) for x in self._bounds(spec))
        place = (timestep.obs.flatten(2).index_select(2, varies).double() - low) / length
        number = torch.zeros(timestep.alive.shape, dtype=torch.int64, device=timestep.obs.device)
        for along in (place * self.k).floor().long().clamp_(0, self.k - 1).unbind(-1):
            number = number * self.k + along
        return number

    def __str__(self) -> str:
        return f"grid({self.k})"


@dataclass(frozen=True)
class Moments(Feature):
    """Powers 1..k of the action (each dimension of a Box; the number of a discrete one scaled to [0, 1])."""

    k: int = 2

    def __post_init__(self) -> None:
        if not _is_whole(self.k) or self.k < 1:
            raise ConfigError(f"moments({self.k}): the order must be a whole number of at least 1.")

    def size(self, spec: Spec) -> int:
        return self.k * (1 if spec.discrete else spec.num_actions)

    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        if spec.discrete:
            base = timestep.action.clamp(min=0).to(torch.float32).unsqueeze(-1) / max(spec.num_actions - 1, 1)
        else:
            base = timestep.action.nan_to_num(nan=0.0)
        return torch.cat([base**power for power in range(1, self.k + 1)], dim=-1)

    def __str__(self) -> str:
        return f"moments({self.k})"


@dataclass(frozen=True)
class Function(Feature):
    """Any function of the timestep: `function(timestep, spec) -> [E, N, width]`. Python only: no text form."""

    function: Callable[[Timestep, Spec], Tensor]
    width: int

    def size(self, spec: Spec) -> int:
        return self.width

    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        values = self.function(timestep, spec)
        expected = (*timestep.alive.shape, self.width)
        if tuple(values.shape) != expected:
            raise ConfigError(f"A field's function returned shape {tuple(values.shape)}; expected {expected}.")
        return values

    def __str__(self) -> str:
        return getattr(self.function, "__name__", "function")


@dataclass(frozen=True)
class Joint(Feature):
    """Several features side by side."""

    parts: tuple[Feature, ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, Feature) for part in self.parts):
            raise ConfigError(f"{self}: a joint feature is made of features, such as joint(actions, states).")

    def size(self, spec: Spec) -> int:
        return sum(part.size(spec) for part in self.parts)

    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        values = [part.values(timestep, spec) for part in self.parts]
        if any(v.dtype != torch.bool for v in values):
            values = [v.to(torch.float32) for v in values]
        return torch.cat(values, dim=-1)

    def __str__(self) -> str:
        return f"joint({', '.join(map(str, self.parts))})"


# ------------------------------------------------------------------------------------------ averages


class Average(ABC):
    """Over whom: turns values [E, N, C] of the living into sums over each agent's others."""

    @abstractmethod
    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key, rows: slice) -> Tensor:
        """Sum of `values` over the others of each agent in `rows`, the agent left out: [E, rows, C].

        `values` are bool or float32, and false or zero for the dead. Bool values are counted: whole numbers.
        The field adds columns that count the living, so that the mean is sum / count.
        """


@dataclass(frozen=True)
class Everyone(Average):
    """All others of the copy; `same` keeps to the agent's own group."""

    same: bool = False

    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key, rows: slice) -> Tensor:
        first, last, _ = rows.indices(spec.num_agents)
        planes = values.permute(2, 0, 1)
        out = torch.empty((*planes.shape[:2], last - first), device=values.device)
        for part in spec.group_slices.values() if self.same else [slice(0, spec.num_agents)]:
            low, high = max(part.start, first), min(part.stop, last)
            if low >= high and spec.whole is None:
                continue
            everybody = planes[..., part]
            if values.dtype == torch.bool:
                # One plane at a time: the wide copy that a sum makes stays small.
                total = spec.ranks.sum(torch.stack([plane.sum(1, dtype=torch.int32) for plane in everybody]))
            else:
                total = torch.stack([_sum(plane, spec) for plane in everybody])
            # The agent's own is taken off in the wide type: what is left is exact, however large the crowd.
            for block in _blocks(low, high, len(ids)):
                own = planes[..., block].to(total.dtype)
                out[..., block.start - first : block.stop - first] = total.unsqueeze(-1) - own
        return out.permute(1, 2, 0)

    def __str__(self) -> str:
        return "team" if self.same else "everyone"


def _blocks(first: int, last: int, copies: int) -> Iterator[slice]:
    """Stretches of agents that stay in the cache together, all copies of them."""
    length = max(1, (1 << 15) // copies)
    for start in range(first, last, length):
        yield slice(start, min(start + length, last))


def _sum(x: Tensor, spec: Spec) -> Tensor:
    """Sum of x [E, N] over N in float64, of bits that do not depend on the order of the agents, nor on who is where.

    Numbers are taken as whole multiples of a power of two, the finest of which that many still add up in 63 bits: 2^-40
    of the largest, or finer, for up to four million agents.
    """
    largest = spec.ranks.largest(x.abs().amax(1) if x.shape[1] else x.new_zeros(len(x)))
    finite = torch.isfinite(largest)
    exponent = torch.frexp(torch.where(finite, largest, 1.0).double()).exponent
    finest = min(52, 62 - (spec.whole or spec).num_agents.bit_length()) - exponent
    total = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for block in _blocks(0, x.shape[1], len(x)):
        total += torch.ldexp(x[:, block].double(), finest.unsqueeze(-1)).round_().long().sum(1)
    return torch.where(finite, torch.ldexp(spec.ranks.sum(total).double(), -finest), torch.nan)


@dataclass(frozen=True)
class Neighbours(Average):
    """The neighbours on the environment's graph."""

    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key, rows: slice) -> Tensor:
        if spec.graph is None:
            raise ConfigError("A field over neighbours needs an environment with a graph; try 'over everyone'.")
        return spec.graph.neighbour_sum(values)[:, rows]

    def __str__(self) -> str:
        return "neighbours"


@dataclass(frozen=True)
class Nearby(Average):
    """Those within a radius of the agent's position (Euclidean). Cells of the radius's size bound the work.

    O(N x agents in the 3^D cells around): linear in N at a fixed density.
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        if not _is_number(self.radius) or not 0 < self.radius < float("inf"):
            raise ConfigError(f"nearby({self.radius}): the radius must be a positive, finite number.")

    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key, rows: slice) -> Tensor:
        if timestep.position is None:
            raise ConfigError("A field over nearby agents needs an environment with positions; try 'over everyone'.")
        if spec.whole is not None:
            raise ConfigError("A field over nearby agents cannot be divided by agents: use 'over everyone'.")
        if values.dtype != torch.bool:
            return _radius_sum(values, timestep.position, timestep.alive, self.radius, rows)
        lanes = Lanes.for_counts_up_to(spec.num_agents)
        total = _radius_sum(lanes.pack(values), timestep.position, timestep.alive, self.radius, rows)
        return lanes.unpack(total, values.shape[-1])

    def __str__(self) -> str:
        return f"nearby({float(self.radius)!r})"


@dataclass(frozen=True)
class Sampled(Average):
    """k others drawn anew each step, with replacement, among all slots (the dead drawn count for nothing)."""

    k: int = 16

    def __post_init__(self) -> None:
        if not _is_whole(self.k) or self.k < 1:
            raise ConfigError(f"sampled({self.k}): a whole number of others, at least 1, must be drawn.")

    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key, rows: slice) -> Tensor:
        if spec.whole is not None:
            raise ConfigError("A field over sampled agents cannot be divided by agents: use 'over everyone'.")
        n, columns = spec.num_agents, values.shape[-1]
        lanes = Lanes.for_counts_up_to(self.k) if values.dtype == torch.bool else None
        planes = (values if lanes is None else lanes.pack(values)).permute(2, 0, 1).contiguous()
        first, last, _ = rows.indices(n)
        total = torch.zeros((len(planes), len(ids), last - first), dtype=planes.dtype, device=values.device)
        for block in _blocks(first, last, len(ids)) if n > 1 else ():
            agent = torch.arange(block.start, block.stop, device=values.device)
            sums = total[..., block.start - first : block.stop - first]
            for draw in range(self.k):
                # 1..n-1 places further round: uniform over the others, never the agent itself.
                other = random.integers(key.fold("sampled", draw), ids[:, block], n - 1).add_(agent + 1)
                other -= n * (other >= n)
                for plane, into in zip(planes, sums, strict=True):
                    into += plane.gather(1, other)
        total = total.permute(1, 2, 0)
        return total if lanes is None else lanes.unpack(total, columns)

    def __str__(self) -> str:
        return f"sampled({self.k})"


_PAIRS = 1 << 18  # pairs looked at together: they stay in the cache


def _radius_sum(values: Tensor, position: Tensor, alive: Tensor, radius: float, rows: slice) -> Tensor:
    """Sum of `values` [E, N, C] over the other living agents within `radius` of each agent in `rows`.

    Each copy's agents are sorted by cell. The cells that hold an agent's neighbours along the first axis are
    one stretch of that order, so 3^(D-1) stretches hold all candidates.
    """
    planes = values.permute(2, 0, 1)
    out = torch.zeros_like(planes[:, :, rows], memory_format=torch.contiguous_format)
    copy, agent = alive.nonzero(as_tuple=True)
    if len(copy) == 0:
        return out.permute(1, 2, 0)
    place = position[copy, agent].to(torch.float32)
    if not bool(torch.isfinite(place.sum())) and not bool(torch.isfinite(place).all()):
        bad = int((~torch.isfinite(place)).any(-1).nonzero()[0])
        raise NumericFault(f"Agent {int(agent[bad])} of copy {int(copy[bad])} has position {place[bad].tolist()}.")
    # A cell is a hair wider than the radius, so that no rounding of a distance reaches beyond the next cell.
    cell = torch.floor(place.double() / (radius * 1.00001))
    cell -= cell.min(0).values - 1
    strides = [1]
    for span in [*(int(widest) + 2 for widest in cell.max(0).values.tolist()), values.shape[0]]:
        strides.append(strides[-1] * span)
    if strides[-1] >= 1 << 62:
        raise ConfigError(f"nearby({radius:g}): the agents' positions spread over too many such radii to count.")
    cell = cell.long()
    number = copy * strides[-2]
    for axis, stride in enumerate(strides[:-2]):
        number += cell[:, axis] * stride
    number, order = torch.sort(number, stable=True)
    # index_select throughout: twenty times faster than x[index] on a flat tensor.
    copy, agent = copy.index_select(0, order), agent.index_select(0, order)
    spots = [axis.index_select(0, order) for axis in place.t()]
    slot = copy * alive.shape[1] + agent
    value = [plane.reshape(-1).index_select(0, slot) for plane in planes]
    cells, cell_of, members = torch.unique_consecutive(number, return_inverse=True, return_counts=True)
    begins = torch.nn.functional.pad(torch.cumsum(members, 0), (1, 0))
    first, last, _ = rows.indices(alive.shape[1])
    asking = ((agent >= first) & (agent < last)).nonzero().squeeze(-1)
    asks_from = cell_of.index_select(0, asking)
    stretches = []
    for steps in itertools.product((-1, 0, 1), repeat=len(spots) - 1):
        shift = sum(step * stride for step, stride in zip(steps, strides[1:-2], strict=True))
        low = begins.index_select(0, torch.searchsorted(cells, cells + (shift - 1)))
        high = begins.index_select(0, torch.searchsorted(cells, cells + (shift + 1), right=True))
        stretches.append((low.index_select(0, asks_from), (high - low).index_select(0, asks_from)))
    pairs = torch.cumsum(torch.stack([length for _, length in stretches]).sum(0), 0)
    start = 0
    while start < len(asking):
        done = int(pairs[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(pairs, done + _PAIRS, right=True)))
        mine = asking[start:stop]
        total = torch.zeros((len(value), len(mine)), dtype=planes.dtype, device=mine.device)
        for low, length in stretches:
            low, length = low[start:stop], length[start:stop]
            row = torch.repeat_interleave(torch.arange(len(mine), device=mine.device), length)
            ahead = low - torch.cumsum(length, 0) + length
            other = torch.arange(len(row), device=mine.device) + ahead.index_select(0, row)
            asker = mine.index_select(0, row)
            distance = torch.zeros(len(row), device=mine.device)
            for spot in spots:
                distance += (spot.index_select(0, asker) - spot.index_select(0, other)).square_()
            close = ((distance <= radius * radius) & (asker != other)).nonzero().squeeze(-1)
            row, other = row.index_select(0, close), other.index_select(0, close)
            for column, sums in zip(value, total, strict=True):
                sums.index_add_(0, row, column.index_select(0, other))
        out[:, copy.index_select(0, mine), agent.index_select(0, mine) - first] = total
        start = stop
    return out.permute(1, 2, 0)


# -------------------------------------------------------------------------------------------- the field


@dataclass(frozen=True)
class Field:
    """What an agent feels: the mean of a feature `of` each over its others.

    `typed` keeps the groups apart: one mean per group, side by side (MTMFRL, arXiv 2002.02513).
    `decay` > 0 smooths over time: m <- decay m + (1 - decay) m_now (kept by the training loop).
    """

    of: Feature = Actions()
    over: Average = Everyone()
    typed: bool = False
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not _is_number(self.decay) or not 0 <= self.decay < 1:
            raise ConfigError(f"smoothed(..., {self.decay}): the decay must be a number in [0, 1).")
        if isinstance(self.of, Nothing):
            # One value for one thing: nothing over anybody is nothing.
            for name, value in (("over", Everyone()), ("typed", False), ("decay", 0.0)):
                object.__setattr__(self, name, value)

    @classmethod
    def nothing(cls) -> Field:
        return cls(of=Nothing())

    @property
    def is_nothing(self) -> bool:
        return isinstance(self.of, Nothing)

    def size(self, spec: Spec) -> int:
        """F, the number of columns."""
        return self.of.size(spec) * (len(spec.groups) if self.typed else 1)

    def __call__(self, timestep: Timestep, spec: Spec, ids: Tensor, key: Key, agents: slice | None = None) -> Tensor:
        """The field each agent feels at this timestep: [E, N, F] float32, or of the slots in `agents`.

        `key` is the step's, for sampled fields alone.
        """
        if self.is_nothing:
            felt = ids if agents is None else ids[:, agents]
            return torch.zeros((*felt.shape, 0), device=ids.device)
        alive = timestep.alive
        rows = slice(0, spec.num_agents) if agents is None else agents
        everyone = bool(alive.all())
        mean = self._counted(timestep, spec, None if everyone else alive, rows)
        if mean is not None:
            return mean
        values = self.of.values(timestep, spec)
        if values.ndim == 2:
            values = values.unsqueeze(-1)
        if values.dtype != torch.bool:
            values = values.to(torch.float32)
        # Columns as planes [C, E, N]: the feature, for each kind of others, and at the end who of them lives.
        kinds = list(spec.group_slices.values()) if self.typed else [slice(0, spec.num_agents)]
        width = values.shape[-1]
        planes = torch.zeros((len(kinds) * (width + 1), *alive.shape), dtype=values.dtype, device=values.device)
        for kind, part in enumerate(kinds):
            planes[kind * width : (kind + 1) * width, :, part] = values[:, part].permute(2, 0, 1)
            planes[kind - len(kinds), :, part] = True
        if not everyone:
            planes.masked_fill_(~alive, 0)
        total = self.over.sums(planes.permute(1, 2, 0), timestep, spec, ids, key, rows).permute(2, 0, 1)
        first, last, _ = rows.indices(spec.num_agents)
        mean = torch.empty((len(ids), last - first, len(kinds) * width), device=values.device)
        for block in _blocks(0, last - first, len(ids)):
            count = total[-len(kinds) :, :, block].to(torch.float32).clamp_(min=1)
            if not everyone:
                # The dead feel nothing: anything over infinity.
                count.masked_fill_(~alive[:, rows][:, block], float("inf"))
            sums = total[: -len(kinds), :, block].to(torch.float32)
            mean[:, block] = (
                (sums.unflatten(0, (len(kinds), width)) / count.unsqueeze(1)).flatten(0, 1).permute(1, 2, 0)
            )
        return mean

    def _counted(self, timestep: Timestep, spec: Spec, alive: Tensor | None, rows: slice) -> Tensor | None:
        """The same of classes that are few enough to be counted without a plane for each, where that is quicker."""
        classes = self.of.classes(timestep, spec)
        if classes is None:
            return None
        count, (first, last, _) = self.of.size(spec), rows.indices(spec.num_agents)
        if isinstance(self.over, Everyone) and counted.fits(spec, count, classes.device):
            return counted.everyone(classes, count, alive, spec, self.over.same, self.typed, first, last)
        if isinstance(self.over, Neighbours) and spec.graph is not None:
            # Ranks that share the copies choose alike: what they send each other depends on it.
            elements = len(classes) * (spec.whole or spec).num_agents
            ends = [part.stop for part in spec.group_slices.values()] if self.typed else [spec.num_agents]
            if compiled.Codes.hold(len(ends) * (count + 1)) and compiled.chosen(elements, classes.device):
                return compiled.Codes(classes, alive, count, ends).neighbour_means(spec.graph, first, last)
        return None

    def __str__(self) -> str:
        if self.is_nothing:
            return "nothing"
        text = f"typed({self.of})" if self.typed else str(self.of)
        text = f"{text} over {self.over}"
        return f"smoothed({text}, {float(self.decay)!r})" if self.decay else text


_FEATURES: dict[str, Callable[..., Feature]] = {
    "actions": Actions,
    "states": States,
    "grid": Grid,
    "moments": Moments,
    "nothing": Nothing,
}
_AVERAGES: dict[str, Callable[..., Average]] = {
    "everyone": Everyone,
    "team": lambda: Everyone(same=True),
    "neighbours": Neighbours,
    "nearby": Nearby,
    "sampled": Sampled,
}


def parse_field(text: str) -> Field:
    """The field of a text such as `actions over neighbours` (see the module's docstring).

    Raises ConfigError with the nearest known word.
    """
    try:
        return _field(text.strip())
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        shown = text if len(text) < 100 else text[:100] + "..."
        raise ConfigError(
            f"Cannot read the field {shown!r}; write for example 'actions over neighbours' or 'nothing'."
        ) from error


def _field(text: str) -> Field:
    if text.startswith("smoothed(") and text.endswith(")"):
        inner, _, decay = text[len("smoothed(") : -1].rpartition(",")
        field = _field(inner.strip())
        if field.decay:
            raise ConfigError(f"{text!r}: a field is smoothed once.")
        return replace(field, decay=float(decay))
    of, _, over = (part.strip() for part in text.partition(" over "))
    typed = of.startswith("typed(") and of.endswith(")")
    feature = _build(ast.parse(of[len("typed(") : -1].strip() if typed else of, mode="eval").body)
    if not isinstance(feature, Feature):
        raise ConfigError(f"{of!r} is not a feature: it comes after 'over'; write for example 'actions over {of}'.")
    average = _build(ast.parse(over or "everyone", mode="eval").body)
    if not isinstance(average, Average):
        raise ConfigError(f"{over!r} does not say over whom.{nearest(over, _AVERAGES)}")
    return Field(feature, average, typed)


def _build(node: ast.expr) -> Feature | Average:
    if isinstance(node, ast.Name):
        name, arguments = node.id, []
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name, arguments = node.func.id, node.args
    else:
        raise ValueError("neither a word nor a word with arguments")
    if name == "joint":
        parts: list[Feature] = []
        for part in map(_build, arguments):
            if not isinstance(part, Feature):
                raise ConfigError(f"joint(... {part} ...): '{part}' is not a feature.{nearest(str(part), _FEATURES)}")
            parts.append(part)
        return Joint(tuple(parts))
    numbers = [ast.literal_eval(argument) for argument in arguments]
    if name in _FEATURES:
        return _FEATURES[name](*numbers)
    if name in _AVERAGES:
        return _AVERAGES[name](*numbers)
    words = [*_FEATURES, *_AVERAGES, "joint", "typed", "smoothed"]
    raise ConfigError(f"Unknown word {name!r} in a field.{nearest(name, words)}")


def default_field(spec: Spec) -> Field:
    """Yang et al.'s mean action: of the neighbours where there is a graph, else of the own team (everyone, if one)."""
    if spec.graph is not None:
        return Field(Actions(), Neighbours())
    return Field(Actions() if spec.discrete else Moments(2), Everyone(same=len(spec.groups) > 1))
