r"""The mean field: what an agent feels of the others, = average of a feature of each.

$$ m^j = \frac{1}{|N(j)|} \sum_{k \in N(j),\, k \neq j,\, k\ \mathrm{alive}} \phi(k) $$

with the feature phi (the one-hot action of Yang et al. 2018, arXiv 1802.05438, eq. 4; states; moments;
any function) and N(j) everyone, the neighbours on a graph, those within a radius, or a random sample.
Sums are O(N): nobody's row is built from everybody's. The agent itself and the dead are left out, and
an agent without living neighbours feels zeros. Sums of actions are of whole numbers, hence exact.

Fields have a text form, used on the command line and in config files: `actions over neighbours`,
`typed(actions) over everyone`, `moments(2) over sampled(16)`, `joint(actions, states) over nearby(0.2)`,
`nothing`, `smoothed(actions over everyone, 0.9)`.
"""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, nearest
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key

# ------------------------------------------------------------------------------------------ features


class Feature(ABC):
    """What is averaged: a number of columns per agent, and their values [E, N, F]."""

    @abstractmethod
    def size(self, spec: Spec) -> int: ...

    @abstractmethod
    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        """[E, N, F], of any dtype; the dead are zeroed by the average."""


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
        index = torch.arange(spec.num_actions, device=timestep.action.device)
        # int16 holds counts of neighbours only; sums over everyone widen (see Everyone).
        return (timestep.action.unsqueeze(-1) == index).to(torch.uint8)

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
            return (timestep.obs.unsqueeze(-1) == torch.arange(int(n), device=timestep.obs.device)).to(torch.uint8)
        return timestep.obs.reshape(*timestep.alive.shape, -1)

    def __str__(self) -> str:
        return "states"


@dataclass(frozen=True)
class Moments(Feature):
    """Powers 1..k of the action (each dimension of a Box; the number of a discrete one scaled to [0, 1])."""

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"moments({self.k}): the order must be at least 1.")

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

    def size(self, spec: Spec) -> int:
        return sum(part.size(spec) for part in self.parts)

    def values(self, timestep: Timestep, spec: Spec) -> Tensor:
        return torch.cat([part.values(timestep, spec).to(torch.float32) for part in self.parts], dim=-1)

    def __str__(self) -> str:
        return f"joint({', '.join(map(str, self.parts))})"


# ------------------------------------------------------------------------------------------ averages


class Average(ABC):
    """Over whom: turns values [E, N, F] of the living into each agent's mean over its others."""

    @abstractmethod
    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key) -> Tensor:
        """Sum of `values` (already zero for the dead) over each agent's others, the agent left out.

        The last column of `values` counts the living, so that the mean is sum / count. Integer values
        give integer sums.
        """


@dataclass(frozen=True)
class Everyone(Average):
    """All others of the copy; `same` keeps to the agent's own group."""

    same: bool = False

    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key) -> Tensor:
        wide = torch.float64 if values.is_floating_point() else torch.int64
        slices = spec.group_slices.values() if self.same else [slice(0, spec.num_agents)]
        out = torch.empty(values.shape, dtype=torch.float32, device=values.device)
        for part in slices:
            total = values[:, part].sum(1, keepdim=True, dtype=wide)
            # Whole numbers above 2^24 would round in float32: subtract first, in the wide type, then narrow.
            out[:, part] = (total - values[:, part]).to(torch.float32)
        return out

    def __str__(self) -> str:
        return "team" if self.same else "everyone"


@dataclass(frozen=True)
class Neighbours(Average):
    """The neighbours on the environment's graph."""

    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key) -> Tensor:
        if spec.graph is None:
            raise ConfigError("A field over neighbours needs an environment with a graph; try 'over everyone'.")
        if values.dtype == torch.uint8 and int(spec.graph.degree.max()) > 255:
            values = values.to(torch.int32)
        return spec.graph.neighbour_sum(values)

    def __str__(self) -> str:
        return "neighbours"


@dataclass(frozen=True)
class Nearby(Average):
    """Those within a radius of the agent's position (Euclidean). Cells of the radius's size bound the work.

    O(N x agents in the 3^D cells around): linear in N at a fixed density.
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.radius < float("inf"):
            raise ConfigError(f"nearby({self.radius}): the radius must be positive and finite.")

    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key) -> Tensor:
        if timestep.position is None:
            raise ConfigError("A field over nearby agents needs an environment with positions; try 'over everyone'.")
        return _radius_sum(values.to(torch.float32), timestep.position, timestep.alive, self.radius)

    def __str__(self) -> str:
        return f"nearby({self.radius:g})"


@dataclass(frozen=True)
class Sampled(Average):
    """k others drawn anew each step, with replacement, among all slots (the dead drawn count for nothing)."""

    k: int = 16

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"sampled({self.k}): at least one other must be drawn.")

    def sums(self, values: Tensor, timestep: Timestep, spec: Spec, ids: Tensor, key: Key) -> Tensor:
        n = spec.num_agents
        total = torch.zeros(values.shape, device=values.device)
        if n == 1:
            return total
        agent = torch.arange(n, device=values.device)
        columns = values.shape[-1]
        for draw in range(self.k):
            # 1..n-1 places further round: uniform over the others, never the agent itself.
            other = (agent + 1 + random.integers(key.fold("sampled", draw), ids, n - 1)) % n
            total += values.gather(1, other.unsqueeze(-1).expand(-1, -1, columns))
        return total

    def __str__(self) -> str:
        return f"sampled({self.k})"


def _radius_sum(values: Tensor, position: Tensor, alive: Tensor, radius: float) -> Tensor:
    """Sum of `values` [E, N, F] over the other living agents within `radius` of each."""
    copies, n, columns = values.shape
    out = torch.zeros_like(values)
    dims = position.shape[-1]
    offsets = torch.cartesian_prod(*[torch.tensor([-1, 0, 1], device=values.device)] * dims).reshape(-1, dims)
    for copy in range(copies):
        who = alive[copy].nonzero().squeeze(-1)
        if len(who) < 2:
            continue
        place, value = position[copy, who], values[copy, who]
        cell = torch.floor((place - place.min(0).values) / radius).long() + 1
        span = cell.max(0).values + 2
        stride = torch.cumprod(torch.cat([span.new_ones(1), span[:-1]]), 0)
        number = (cell * stride).sum(-1)
        order = torch.argsort(number)
        number, place, value = number[order], place[order], value[order]
        total = torch.zeros_like(value)
        for offset in offsets:
            wanted = number + (offset * stride).sum()
            first = torch.searchsorted(number, wanted)
            last = torch.searchsorted(number, wanted, right=True)
            # The k-th member of the neighbouring cell, for all agents at once: as many passes as the
            # fullest cell has members.
            for k in range(int((last - first).max())):
                other = first + k
                real = other < last
                mine = real.nonzero().squeeze(-1)
                other = other[mine]
                distance = (place[mine] - place[other]).square().sum(-1)
                close = ((distance <= radius * radius) & (other != mine)).to(value.dtype)
                total[mine] += value[other] * close.unsqueeze(-1)
        out[copy, who[order]] = total
    return out


# -------------------------------------------------------------------------------------------- the field


@dataclass(frozen=True)
class Field:
    """What an agent feels: the mean of a feature `of` each over its others.

    `typed` keeps the groups apart: one mean per group, side by side (MTMFRL, arXiv 2002.02513).
    `decay` > 0 smooths over time: m <- decay m + (1 - decay) m_now (kept by the training loop).
    """

    of: Feature = Actions()  # noqa: RUF009 - frozen
    over: Average = Everyone()  # noqa: RUF009 - frozen
    typed: bool = False
    decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"smoothed(..., {self.decay:g}): the decay must be in [0, 1).")

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
            rows = ids if agents is None else ids[:, agents]
            return torch.zeros((*rows.shape, 0), device=ids.device)
        alive = timestep.alive
        values = self.of.values(timestep, spec)
        if values.ndim != 3:
            values = values.unsqueeze(-1)
        if self.typed:
            group = spec.group.to(values.device)
            kinds = (group.unsqueeze(-1) == torch.arange(len(spec.groups), device=values.device)).to(values.dtype)
            living = kinds.expand(alive.shape[0], -1, -1) * alive.unsqueeze(-1)
            values = (values.unsqueeze(-2) * kinds.unsqueeze(-1)).flatten(-2)
        else:
            living = alive.unsqueeze(-1).to(values.dtype)
        values = torch.where(alive.unsqueeze(-1), values, torch.zeros((), dtype=values.dtype, device=values.device))
        both = torch.cat([values, living], dim=-1)
        total = self.over.sums(both, timestep, spec, ids, key)
        if agents is not None:
            total, alive = total[:, agents], alive[:, agents]
        kinds_count = len(spec.groups) if self.typed else 1
        count = total[..., -kinds_count:].to(torch.float32).clamp(min=1)
        mean = total[..., :-kinds_count].to(torch.float32)
        if self.typed:
            mean = (mean.unflatten(-1, (kinds_count, -1)) / count.unsqueeze(-1)).flatten(-2)
        else:
            mean = mean / count
        return mean * alive.unsqueeze(-1)

    def __str__(self) -> str:
        if self.is_nothing:
            return "nothing"
        text = f"typed({self.of})" if self.typed else str(self.of)
        text = f"{text} over {self.over}"
        return f"smoothed({text}, {self.decay:g})" if self.decay else text


_FEATURES: dict[str, type[Feature]] = {
    "actions": Actions,
    "states": States,
    "moments": Moments,
    "joint": Joint,
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
    """The field of a text such as `actions over neighbours` (see the module's docstring)."""
    text = text.strip()
    try:
        if text.startswith("smoothed(") and text.endswith(")"):
            inner, _, decay = text[len("smoothed(") : -1].rpartition(",")
            field = parse_field(inner)
            return Field(field.of, field.over, field.typed, float(decay))
        of, _, over = text.partition(" over ")
        typed = of.strip().startswith("typed(") and of.strip().endswith(")")
        feature = _term(of.strip()[len("typed(") : -1] if typed else of)
        if not isinstance(feature, Feature):
            raise ConfigError(f"{of!r} is not a feature.{nearest(of, _FEATURES)}")
        if isinstance(feature, Nothing):
            return Field.nothing()
        average = _term(over or "everyone")
        if not isinstance(average, Average):
            raise ConfigError(f"{over!r} says not over whom.{nearest(over, _AVERAGES)}")
        return Field(feature, average, typed)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ConfigError(
            f"Cannot read the field {text!r}; write for example 'actions over neighbours' or 'nothing'."
        ) from error


def _term(text: str) -> Feature | Average:
    node = ast.parse(text.strip(), mode="eval").body
    return _build(node)


def _build(node: ast.expr) -> Feature | Average:
    if isinstance(node, ast.Name):
        name, arguments = node.id, []
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name, arguments = node.func.id, node.args
    else:
        raise ValueError
    values = [a.value if isinstance(a, ast.Constant) else _build(a) for a in arguments]
    if name == "joint":
        return Joint(tuple(v for v in values if isinstance(v, Feature)))
    if name in _FEATURES:
        return _FEATURES[name](*values)
    if name in _AVERAGES:
        return _AVERAGES[name](*values)
    raise ConfigError(f"Unknown word {name!r} in a field.{nearest(name, [*_FEATURES, *_AVERAGES])}")


def default_field(spec: Spec) -> Field:
    """Yang et al.'s mean action: of the neighbours where there is a graph, else of the own team (everyone, if one)."""
    if spec.graph is not None:
        return Field(Actions(), Neighbours())
    return Field(Actions() if spec.discrete else Moments(2), Everyone(same=len(spec.groups) > 1))
