r"""Errors of correlated samples from blocks: Flyvbjerg-Petersen blocking, batch means, jackknife, bootstrap.

$$ \sigma^2(\bar x) = \frac{\langle x'^2 \rangle - \langle x' \rangle^2}{n' - 1}, \qquad
   x'_i = \tfrac12 (x_{2i-1} + x_{2i}) \text{ until it no longer grows} $$

Observations are [steps, *chains, *observables]; chains are independent. Blocks longer than a few autocorrelation
times are independent as well, and a function of averages (a cumulant, a ratio) gets its error from leaving out or
redrawing blocks. Flyvbjerg and Petersen 1989 (J. Chem. Phys. 91, 461); the automatic level of Lee et al. 2011
(Phys. Rev. E 83, 066706); Efron 1982.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.sampling.diagnostics import Estimate


class Blocking(NamedTuple):
    """The error of the mean at each level of blocking."""

    sizes: list[int]
    """[L]: 1, 2, 4, ... steps to a block."""
    errors: Tensor
    """[L, *observables] float64."""
    uncertainty: Tensor
    """[L, *observables]: the standard error of `errors`, for independent Gaussian blocks."""
    chosen: Tensor
    """int64 [*observables]: the first level with B^3 > 2 n (errors/errors[0])^4, the last if there is none."""

    @property
    def error(self) -> Tensor:
        """The error at the chosen level, [*observables]."""
        return self.errors.gather(0, self.chosen.unsqueeze(0)).squeeze(0)


def _series(x: Tensor, observables: int) -> Tensor:
    if not 0 <= observables < x.ndim or x.numel() == 0:
        raise ConfigError(f"Observations of shape {list(x.shape)} cannot end in {observables} axes of observables.")
    return x.double().reshape(x.shape[0], -1, *x.shape[x.ndim - observables :])


def blocking(x: Tensor, observables: int = 0) -> Blocking:
    """Errors of the mean over steps and chains with pairs of blocks merged again and again.

    Raises ConfigError for fewer than 16 steps.
    """
    series = _series(x, observables)
    if len(series) < 16:
        raise ConfigError(f"Blocking needs at least 16 steps, not {len(series)}.")
    # About the common mean: chains that stay apart then make an error that never stops growing, as it should.
    away, chains = series - series.mean((0, 1)), series.shape[1]
    sizes: list[int] = []
    errors, uncertain = [], []
    while len(away) >= 4:
        blocks = len(away) * chains
        error = (away.square().mean((0, 1)) / (blocks - 1)).sqrt()
        sizes.append(1 << len(sizes))
        errors.append(error)
        uncertain.append(error / math.sqrt(2 * (blocks - 1)))
        half = len(away) // 2
        away = (away[: 2 * half : 2] + away[1 : 2 * half : 2]) / 2
    table = torch.stack(errors)
    size = torch.tensor(sizes, dtype=table.dtype).reshape(-1, *[1] * (table.ndim - 1))
    growth = (table / table[0].clamp(min=1e-300)) ** 4
    enough = size**3 > 2 * len(series) * growth
    enough[-1] = True
    return Blocking(sizes, table, torch.stack(uncertain), enough.to(torch.uint8).argmax(0))


def blocks(x: Tensor, count: int, observables: int = 0) -> Tensor:
    """The samples in `count` groups that are as independent as can be, [count, samples, *observables].

    Whole chains to a group if there are at least `count` of them, else a stretch of time of all chains. What does not
    divide evenly is left out at the start (where chains remember their beginning).
    """
    series = _series(x, observables)
    steps, chains = series.shape[:2]
    if count < 2 or max(steps, chains) < count:
        raise ConfigError(
            f"{steps} steps of {chains} chains cannot be cut into {count} blocks of at least one (2 or more)."
        )
    if chains >= count:
        length = chains // count
        return series[:, chains - count * length :].movedim(1, 0).reshape(count, length * steps, *series.shape[2:])
    length = steps // count
    return series[steps - count * length :].reshape(count, length * chains, *series.shape[2:])


def batch_means(x: Tensor, count: int = 32, observables: int = 0) -> Estimate:
    """The mean, and its error from the spread of the means of `count` blocks, [*observables] each."""
    means = blocks(x, count, observables).mean(1)
    return Estimate(means.mean(0), means.std(0) / math.sqrt(count))


def jackknife(x: Tensor, function: Callable[[Tensor], Tensor], count: int = 32, observables: int = 0) -> Estimate:
    """A function of samples [n, *observables] -> [*b], less its bias of order 1/n, and its error.

    One block in turn is left out of `count` (see `blocks`).
    """
    cut = blocks(x, count, observables)
    whole = function(cut.flatten(0, 1))
    keep = torch.arange(count - 1)
    without = torch.stack([function(cut[keep + (keep >= i)].flatten(0, 1)) for i in range(count)])
    mean = without.mean(0)
    error = ((count - 1) / count * (without - mean).square().sum(0)).sqrt()
    return Estimate(count * whole - (count - 1) * mean, error)


def bootstrap(
    x: Tensor,
    function: Callable[[Tensor], Tensor],
    key: Key,
    replicas: int = 200,
    count: int = 32,
    observables: int = 0,
) -> Estimate:
    """A function of samples [n, *observables] -> [*b], and its error from blocks drawn with replacement."""
    if replicas < 2:
        raise ConfigError(f"A bootstrap needs at least 2 replicas, not {replicas}.")
    cut = blocks(x, count, observables)
    drawn = random.integers(key, torch.arange(replicas), count, count)
    again = torch.stack([function(cut[row].flatten(0, 1)) for row in drawn])
    # Blocks drawn from `count` spread by (count - 1)/count too little.
    return Estimate(function(cut.flatten(0, 1)), again.std(0) * math.sqrt(count / (count - 1)))
