"""A population's beliefs as rows of minds: the one layout in which planning's trees grow.

Beliefs [*b, S_f] become [M, R, S_f]: M models that differ, R rows that share each. A model that everybody shares is
M = 1, whose tables need no axis of their own; with one model for each mind the tables are [M, ...]. So one product
serves all, and rows of the same mind that believe the same may share what follows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows of minds, and the way back."""

    model: GenerativeModel
    """Its tables lead with [M], or with nothing where all share it."""
    believed: tuple[Tensor, ...]
    """q_f [M, R, S_f]."""
    gamma: float | Tensor
    """A number, or [M] where minds differ in it."""
    counts: Any
    """Dirichlet counts, their tables led as the model's; None: none."""
    batch: tuple[int, ...]
    """b, of which the first `own` axes number the minds."""

    @property
    def minds(self) -> int:
        return self.believed[0].shape[0]

    @property
    def rows(self) -> int:
        return self.believed[0].shape[1]

    def back(self, x: Tensor) -> Tensor:
        """[M, R, ...] as [*b, ...]."""
        return x.reshape(*self.batch, *x.shape[2:])

    def take(self, rows: slice | Tensor) -> Layout:
        """The same minds with some of their rows."""
        some = tuple(q[:, rows] for q in self.believed)
        return Layout(self.model, some, self.gamma, self.counts, (self.minds, some[0].shape[1]))

    def precision(self, axes: int) -> float | Tensor:
        """gamma against tensors that have so many axes after M."""
        return self.gamma.reshape(-1, *(1,) * axes) if isinstance(self.gamma, Tensor) else self.gamma


def arrange(
    model: GenerativeModel, believed: Sequence[Tensor], gamma: float | Tensor = 1.0, counts: Any = None
) -> Layout:
    """Beliefs [*b, S_f] as rows of minds.

    Raises ConfigError for beliefs that are no distributions of the model's factors, or a gamma that is not positive.
    """
    check_beliefs(model, believed)
    check_precision(gamma)
    own = _leads(model)
    lead: tuple[int, ...]
    if isinstance(gamma, Tensor) and gamma.numel() == 1:
        gamma = float(gamma)
    varied = [*own, *counts_leads(model, counts), *([tuple(gamma.shape)] if isinstance(gamma, Tensor) else [])]
    try:
        lead = (*torch.broadcast_shapes(*varied),)
        batch = (*torch.broadcast_shapes(lead, *[q.shape[:-1] for q in believed]),)
    except RuntimeError as error:
        shapes = ", ".join(str(list(q.shape[:-1])) for q in believed)
        raise ConfigError(
            f"Beliefs lead with axes {shapes} and tables of the model with {sorted(set(varied))}: they must broadcast."
        ) from error
    lead = (1,) * (len(batch) - len(lead)) + lead
    # The minds are the axes up to the last one along which tables differ.
    cut = max((i + 1 for i, size in enumerate(lead) if size > 1), default=0)
    prefix = batch[:cut]
    minds = math.prod(prefix)
    rows = tuple(q.expand(*batch, q.shape[-1]).reshape(minds, -1, q.shape[-1]) for q in believed)
    shift = len(batch) - cut

    def led(x: Tensor, core: int) -> Tensor:
        """[*p, core axes] -> [M, core axes], or without M where it is shared."""
        head, tail = tuple(x.shape[: x.ndim - core]), tuple(x.shape[x.ndim - core :])
        if math.prod(head) == 1:
            return x.reshape(tail)
        head = (1,) * (len(batch) - len(head)) + head
        return x.reshape(*head[: len(batch) - shift], *tail).expand(*prefix, *tail).reshape(minds, *tail)

    settled = model.trusted(
        A=tuple(led(a, 1 + len(pa)) for a, pa in zip(model.A, model.A_factors, strict=True)),
        B=tuple(
            led(b, 1 + len(pa) + len(u)) for b, pa, u in zip(model.B, model.B_factors, model.B_controls, strict=True)
        ),
        C=tuple(led(c, 2 if model.timed else 1) for c in model.C),
        D=tuple(led(d, 1) for d in model.D),
        E=None if model.E is None else led(model.E, 1),
    )
    chosen: float | Tensor = led(gamma, 0) if isinstance(gamma, Tensor) else float(gamma)
    found = None if counts is None else map_counts(model, counts, led)
    return Layout(settled, rows, chosen, found, batch)


def lifted(model: GenerativeModel, axes: int) -> GenerativeModel:
    """Of a model whose tables lead with [*p]: with so many axes of size 1 after these, to broadcast against [*p, ...]."""

    def wide(x: Tensor, core: int) -> Tensor:
        return _wide(x, core, axes)

    return model.trusted(
        A=tuple(wide(a, 1 + len(pa)) for a, pa in zip(model.A, model.A_factors, strict=True)),
        B=tuple(
            wide(b, 1 + len(pa) + len(u)) for b, pa, u in zip(model.B, model.B_factors, model.B_controls, strict=True)
        ),
        C=tuple(wide(c, 2 if model.timed else 1) for c in model.C),
        D=tuple(wide(d, 1) for d in model.D),
        E=None if model.E is None else wide(model.E, 1),
    )


def lifted_counts(model: GenerativeModel, counts: Any, axes: int) -> Any:
    """The same for Dirichlet counts."""
    return None if counts is None else map_counts(model, counts, lambda x, core: _wide(x, core, axes))


def _wide(x: Tensor, core: int, axes: int) -> Tensor:
    lead = x.ndim - core
    return x.reshape(*x.shape[:lead], *(1,) * axes, *x.shape[lead:]) if lead else x


def map_counts(model: GenerativeModel, counts: Any, change: Any) -> Any:
    """Dirichlet counts with every table changed by `change(table, axes of its own)`."""
    other = copy.copy(counts)
    if hasattr(counts, "_memo"):
        object.__setattr__(other, "_memo", {})  # what was found for tables of one shape does not serve another
    for name, cores in _cores(model).items():
        tables = getattr(counts, name, None)
        if tables is None:
            continue
        if isinstance(tables, Tensor):
            object.__setattr__(other, name, change(tables, 1))
        else:
            parts = [None if x is None else change(x, core) for x, core in zip(tables, cores, strict=True)]
            object.__setattr__(other, name, tuple(parts))
    return other


def counts_leads(model: GenerativeModel, counts: Any) -> list[tuple[int, ...]]:
    """The leading axes of every table of counts."""
    found: list[tuple[int, ...]] = []

    def note(x: Tensor, core: int) -> Tensor:
        found.append(tuple(x.shape[: x.ndim - core]))
        return x

    if counts is not None:
        map_counts(model, counts, note)
    return found


def _cores(model: GenerativeModel) -> dict[str, list[int]]:
    """Axes of its own that each table has."""
    transitions = [1 + len(pa) + len(u) for pa, u in zip(model.B_factors, model.B_controls, strict=True)]
    return {
        "A": [1 + len(pa) for pa in model.A_factors],
        "B": transitions,
        "C": [2 if model.timed else 1] * len(model.C),
        "D": [1] * len(model.D),
        "E": [1],
    }


def _leads(model: GenerativeModel) -> list[tuple[int, ...]]:
    found = []
    for name, cores in _cores(model).items():
        tables = getattr(model, name)
        if tables is None:
            continue
        for x, core in zip(tables if isinstance(tables, tuple) else (tables,), cores, strict=True):
            found.append(tuple(x.shape[: x.ndim - core]))
    return found


def check_beliefs(model: GenerativeModel, believed: Sequence[Tensor]) -> None:
    """Raises ConfigError unless there is a distribution [*b, S_f] for every factor."""
    sizes = [q.shape[-1] if q.ndim else 0 for q in believed]
    if sizes != list(model.sizes):
        raise ConfigError(
            f"Beliefs must be one distribution for each factor, over {list(model.sizes)} states, not over {sizes}."
        )
    for name, q in zip(model.factors, believed, strict=True):
        if q.dtype != model.dtype:
            raise ConfigError(f"Beliefs of factor {name!r} are {q.dtype} and the model is {model.dtype}: use one.")
        if q.numel() and not bool(((q.sum(-1) - 1).abs() <= 1e-3).all() & (q >= 0).all()):
            raise ConfigError(f"Beliefs of factor {name!r} must be distributions: not negative, with sum 1.")


def check_precision(gamma: float | Tensor) -> None:
    """Raises ConfigError unless gamma is positive, and finite where it is a tensor."""
    good = bool(((gamma > 0) & gamma.isfinite()).all()) if isinstance(gamma, Tensor) else gamma > 0
    if not good:
        raise ConfigError(f"gamma, the precision of policies, must be positive (infinity: as a float), not {gamma}.")


def habits(model: GenerativeModel) -> Tensor | None:
    """ln E [*p, U] of habits over actions, or None. Raises ConfigError for habits over policies of several steps."""
    if model.E is None:
        return None
    if model.E.shape[-1] != model.num_actions:
        raise ConfigError(
            f"Habits E are over {model.E.shape[-1]} policies: planning by a tree of outcomes has habits over the "
            f"{model.num_actions} actions, at every step."
        )
    return model.E.log()
