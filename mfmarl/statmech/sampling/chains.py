r"""Markov chains, many at once: the contract of a sweep, and the loop that runs one and observes it.

A sweep leaves p(x) proportional to exp(-beta H(x)) unchanged. It holds nothing: what is drawn is a function of the
key and of each chain's id, so a chain does not know how many others there are. `beta` is a number or a tensor that
broadcasts against the chains [*b]; 0 is infinite temperature, `inf` (discrete systems only) zero temperature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check

Sweep = Callable[[Tensor, float | Tensor, Tensor, Key], Tensor]
"""(states [*b, n], beta [*b] or number, ids of the chains int64 [*b], key of this sweep) -> states [*b, n]."""


def chain_ids(batch: tuple[int, ...] | torch.Size, device: torch.device | str = "cpu") -> Tensor:
    """0, 1, ... in the shape of the batch."""
    return torch.arange(torch.Size(batch).numel(), device=device).reshape(batch)


def trajectory(
    sweep: Sweep, x: Tensor, beta: float | Tensor, key: Key, ids: Tensor | None = None, start: int = 0
) -> Iterator[Tensor]:
    """The states [*b, n] after sweep `start`, `start + 1`, ... without end."""
    check.inverse_temperature(beta)
    ids = chain_ids(x.shape[:-1], x.device) if ids is None else ids
    while True:
        x = sweep(x, beta, ids, key.fold("sweep", start))
        start += 1
        yield x


def run(
    sweep: Sweep,
    x: Tensor,
    beta: float | Tensor,
    key: Key,
    steps: int,
    observe: Callable[[Tensor], Any] | None = None,
    *,
    warm_up: int = 0,
    thin: int = 1,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`warm_up + steps` sweeps: the last states [*b, n], and what was seen after every `thin`-th of the `steps`.

    `observe` maps states [*b, n] to [*b, ...] (default: the states themselves); observations are
    [steps // thin, *b, ...].
    """
    if steps < 1 or warm_up < 0 or not 1 <= thin <= steps:
        raise ConfigError(
            f"A chain of {steps} steps after {warm_up}, every {thin}-th kept, is none: steps >= thin >= 1."
        )
    chain = trajectory(sweep, x, beta, key, ids)
    for _ in range(warm_up):
        x = next(chain)
    seen = []
    for step in range(1, steps + 1):
        x = next(chain)
        if step % thin == 0:
            seen.append((x if observe is None else observe(x)).clone())
    return x, torch.stack(seen)
