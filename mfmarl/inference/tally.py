r"""How beliefs are added up to the tables that they teach: everyone to one, each mind's to its own, or each to its own.

Beliefs lead with axes [*b], a table with axes [*p] that broadcast against them; what the table does not have is summed.
Nothing as large as [*b, outcomes, states] is ever kept in memory: rows are added to the outcome that was seen, moves are
one matrix product for each setting, and a large crowd goes through in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfmarl.errors import ConfigError

_NUMBERS = 1 << 22  # of an outer product that are in memory at once


def outer(beliefs: Sequence[Tensor]) -> Tensor:
    """[*b, S_1 ... S_n]: the product of independent beliefs, the last fastest."""
    joint = beliefs[0]
    for q in beliefs[1:]:
        joint = (joint.unsqueeze(-1) * q.unsqueeze(-2)).flatten(-2)
    return joint


@dataclass(frozen=True)
class Pool:
    """How beliefs [*b] fall to tables [*p]: K tables, P beliefs each."""

    batch: tuple[int, ...]
    order: tuple[int, ...]
    kept: int
    tables: int

    @classmethod
    def of(cls, table: Tensor, core: int, batches: Sequence[Sequence[int]]) -> Pool:
        own = tuple(table.shape[: table.ndim - core])
        try:
            batch = tuple(torch.broadcast_shapes(own, *batches))
        except RuntimeError as error:
            told = ", ".join(str(list(b)) for b in batches)
            raise ConfigError(f"Counts of leading axes {list(own)} do not fit beliefs of {told}.") from error
        own = (1,) * (len(batch) - len(own)) + own
        kept = [i for i, n in enumerate(own) if n != 1]
        pooled = [i for i, n in enumerate(own) if n == 1]
        return cls(batch, (*kept, *pooled), len(kept), math.prod(batch[i] for i in kept))

    def __call__(self, x: Tensor, tail: int) -> Tensor:
        """[*b, *tail] -> [K, P, *tail]."""
        rest = x.shape[x.ndim - tail :]
        x = x.expand(*self.batch, *rest)
        n = len(self.batch)
        x = x.permute(*self.order, *range(n, n + tail))
        return x.reshape(self.tables, -1 if x.numel() else 0, *rest)

    @property
    def beliefs(self) -> int:
        return math.prod(self.batch) // max(1, self.tables)


def _pieces(length: int, width: int) -> list[slice]:
    step = max(1, _NUMBERS // max(1, width))
    return [slice(i, i + step) for i in range(0, length, step)]


def _weight(pool: Pool, weight: Tensor | None, like: Tensor, rate: float) -> Tensor:
    """[K, P]"""
    if weight is None:
        return torch.full((), rate, dtype=like.dtype, device=like.device).expand(pool.tables, pool.beliefs)
    return pool(weight.to(like), 0) * rate


def _onto(table: Tensor, pool: Pool) -> Tensor:
    """What is added to: a copy of the table where each belief has its own, else zeros.

    Added one by one to a large count, a crowd's small ones would be lost: float32 has 24 bits.
    """
    if pool.beliefs == 1:
        return table.clone(memory_format=torch.contiguous_format)
    return torch.zeros(table.shape, dtype=table.dtype, device=table.device)


def _with(table: Tensor, out: Tensor, pool: Pool) -> Tensor:
    return out if pool.beliefs == 1 else table + out


def _add_rows(out: Tensor, where: Tensor, rows: Tensor) -> None:
    """out [K, R, X] += rows [K, P, X] at the places int64 [K, P], in an order that does not change from run to run."""
    if _in_order(out):
        first = torch.arange(len(out), device=out.device).unsqueeze(-1) * out.shape[1]
        out.view(-1, out.shape[-1]).index_add_(0, (first + where).reshape(-1), rows.reshape(-1, out.shape[-1]))
    else:
        out += torch.nn.functional.one_hot(where, out.shape[1]).to(out).transpose(-1, -2) @ rows


def _in_order(out: Tensor) -> bool:
    """Whether index_add_ goes row by row: on accelerators its sums of floats depend on chance."""
    return out.device.type == "cpu"


def add_outcomes(
    table: Tensor,
    core: int,
    pool: Pool,
    outcome: Tensor,
    parents: Sequence[Tensor],
    weight: Tensor | None,
    rate: float,
) -> Tensor:
    """Table [*p, O, S_pa, ...] with every belief's parents at its outcome, int64 [*b] (-1: none) or soft [*b, O]."""
    size = table.shape[table.ndim - core]
    out = _onto(table.reshape(pool.tables, size, -1), pool)
    states = [pool(q.to(table.dtype), 1) for q in parents]
    told = _weight(pool, weight, table, rate)
    soft = outcome.is_floating_point()
    seen = pool(outcome.to(table.dtype), 1) if soft else pool(outcome, 0)
    for piece in _pieces(pool.beliefs, max(out.shape[-1], size) * pool.tables):
        w = told[:, piece]
        joint = outer([q[:, piece] for q in states]) if states else torch.ones_like(w).unsqueeze(-1)
        if soft:
            out += (seen[:, piece] * w.unsqueeze(-1)).transpose(-1, -2) @ joint
        else:
            known = torch.where(seen[:, piece] >= 0, w, torch.zeros_like(w))
            _add_rows(out, seen[:, piece].clamp(min=0), joint * known.unsqueeze(-1))
    return _with(table, out.reshape(table.shape), pool)


def add_moves(
    table: Tensor,
    core: int,
    settings: int,
    pool: Pool,
    own: Tensor,
    after: Tensor,
    parents: Sequence[Tensor],
    weight: Tensor,
    rate: float,
) -> Tensor:
    """Table [*p, S_f, S_pa, ..., U_g, ...] with every belief's q_f(s') q_pa(s) at its setting `own` [*b] of the controls."""
    ahead = pool(after.to(table.dtype), 1)
    states = [pool(q.to(table.dtype), 1) for q in parents]
    told, by = _weight(pool, weight, table, rate), pool(own, 0)
    if pool.beliefs == 1:
        # Each to its own: the table is as large as all that is added to it, and is gone through once.
        flat = table.reshape(pool.tables, -1, settings).clone(memory_format=torch.contiguous_format)
        moved = (ahead[:, 0] * told).unsqueeze(-1) * outer([q[:, 0] for q in states]).unsqueeze(-2)
        moved = moved.reshape(pool.tables, -1, 1)
        return flat.scatter_add_(-1, by.unsqueeze(-1).expand(moved.shape), moved).reshape(table.shape)
    size = table.shape[table.ndim - core]
    out = _onto(table.reshape(pool.tables, size, -1, settings).movedim(-1, 1), pool)
    for piece in _pieces(pool.beliefs, out.shape[-1] * pool.tables):
        left = ahead[:, piece] * told[:, piece].unsqueeze(-1)
        joint = outer([q[:, piece] for q in states])
        for u in range(settings):
            here = by[:, piece] == u
            if pool.tables == 1:
                chosen = here[0].nonzero().squeeze(-1)
                out[0, u] += left[0, chosen].T @ joint[0, chosen]
            else:
                out[:, u] += (left * here.unsqueeze(-1)).transpose(-1, -2) @ joint
    return _with(table, out.movedim(1, -1).reshape(table.shape), pool)


def add_pairs(
    table: Tensor, settings: int, pool: Pool, own: Tensor, pair: Tensor, weight: Tensor, rate: float
) -> Tensor:
    """As `add_moves`, of beliefs over both at once, [*b, S_f S_pa]."""
    width = pair.shape[-1]
    out = _onto(table.reshape(pool.tables, width, settings).movedim(-1, 1), pool)
    told, by, both = _weight(pool, weight, table, rate), pool(own, 0), pool(pair.to(table.dtype), 1)
    for piece in _pieces(pool.beliefs, max(width, settings) * pool.tables):
        _add_rows(out, by[:, piece], both[:, piece] * told[:, piece].unsqueeze(-1))
    return _with(table, out.movedim(1, -1).reshape(table.shape), pool)


def add_soft(table: Tensor, x: Tensor, weight: Tensor | None, rate: float) -> Tensor:
    """Table [*p, X] with the sum of x [*b, X]."""
    pool = Pool.of(table, 1, [x.shape[:-1]])
    told = _weight(pool, weight, table, rate)
    add = (pool(x.to(table.dtype), 1) * told.unsqueeze(-1)).sum(1)
    return table + add.reshape(table.shape)
