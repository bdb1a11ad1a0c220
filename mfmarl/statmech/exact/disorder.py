r"""Averages over disorder: quenched against annealed, and how far one large sample speaks for all.

$$ f_{\mathrm{quenched}} = -\frac{T}{N}\, \overline{\log Z}
   \ \ge\ f_{\mathrm{annealed}} = -\frac{T}{N} \log \overline{Z}, \qquad
   \operatorname{Var} f \to 0 \ \text{(self-averaging)} $$

The quenched average is what a typical sample has; the annealed one lets the disorder take part in the thermal average
and is a bound (Jensen). Two cases in closed form: the open chain of Gaussian couplings, log Z = N_s log 2 +
sum log cosh(beta J), and Sherrington-Kirkpatrick above T_c = 1, where the two agree to order 1/N and log Z has a
variance that stays finite (Aizenman, Lebowitz and Ruelle 1987, Commun. Math. Phys. 112, 3).
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
from mfmarl.statmech import check
from mfmarl.statmech.exact.quadrature import gaussian_average


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float


class SelfAveraging(NamedTuple):
    """A quantity over instances of the disorder."""

    mean: Estimate
    variance: Estimate
    relative: float
    """Variance over squared mean: falls as 1/N where the quantity is self-averaging, and not at all where it is not."""


class ChainDisorder(NamedTuple):
    """The open chain of couplings N(mean, deviation^2), per bond; nats."""

    quenched: float
    """The mean of log Z per bond, beyond the log 2 of a spin: <log cosh beta J>."""
    annealed: float
    """log <cosh beta J>."""
    variance: float
    """Of log cosh beta J: Var f = variance/(N beta^2) of N bonds."""


def quenched(log_partitions: Tensor) -> Estimate:
    """The mean of log Z [I] over instances, with its standard error."""
    values = _instances(log_partitions)
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def annealed(log_partitions: Tensor) -> Estimate:
    """log of the mean of Z [I]; its jackknifed error. Rare instances dominate: an error above 0.3 or so is not to be
    trusted, and the value is then too low.
    """
    values = _instances(log_partitions)
    count = len(values)
    whole = torch.logsumexp(values, 0)
    # log(sum - own) without overflow; an instance that is the whole sum leaves nothing.
    without = whole + torch.log1p(-torch.exp(values - whole).clamp(max=1 - 1e-15)) - math.log(count - 1)
    error = math.sqrt((count - 1) / count * float((without - without.mean()).square().sum()))
    return Estimate(float(whole) - math.log(count), error)


def self_averaging(values: Tensor) -> SelfAveraging:
    """Mean and variance of `values` [I] over instances, with errors (the variance's from the fourth moment)."""
    values = _instances(values)
    count, mean = len(values), values.mean()
    away = (values - mean).square()
    variance = away.sum() / (count - 1)
    fourth = away.square().mean()
    error = ((fourth - variance**2 * (count - 3) / (count - 1)).clamp(min=0) / count).sqrt()
    return SelfAveraging(
        Estimate(float(mean), float((variance / count).sqrt())),
        Estimate(float(variance), float(error)),
        float(variance / mean**2) if mean != 0 else math.inf,
    )


def disorder_average(
    log_partition: Callable[[Key, int], Tensor], num_spins: int, beta: float, key: Key, instances: int, batch: int = 64
) -> SelfAveraging:
    """f = -log Z/(beta N) over `instances`: `log_partition(key, count)` -> [count] draws the disorder and solves it."""
    if not 0 < beta < math.inf:
        raise ConfigError(f"A free energy over disorder needs a beta above 0 and finite, not {beta:g}.")
    found = [
        log_partition(key.fold("disorder", start), min(batch, instances - start))
        for start in range(0, instances, batch)
    ]
    return self_averaging(-torch.cat(found) / (beta * num_spins))


def gaussian_chain(beta: float, mean: float = 0.0, deviation: float = 1.0) -> ChainDisorder:
    """The chain in closed form; beta = 1, standard couplings: annealed - quenched = .1254327925, variance
    .18976744917.
    """
    check.inverse_temperature(beta)

    def log_cosh(z: Tensor) -> Tensor:
        x = (beta * (mean + deviation * z)).abs()
        return x + torch.log1p(torch.exp(-2 * x)) - math.log(2)

    typical = float(gaussian_average(log_cosh))
    square = float(gaussian_average(lambda z: (log_cosh(z) - typical) ** 2))
    b = beta * abs(mean)
    bond = (beta * deviation) ** 2 / 2 + b + math.log1p(math.exp(-2 * b)) - math.log(2)
    return ChainDisorder(typical, bond, square)


def gaussian_couplings(key: Key, count: int, bonds: int) -> Tensor:
    """Standard normal couplings [count, bonds], float64."""
    return random.normal(key, torch.arange(count), bonds).double()


def sherrington_kirkpatrick_annealed(num_spins: int, beta: float) -> float:
    """log E[Z] = N log 2 + beta^2 (N - 1)/4, exactly, at h = 0."""
    return num_spins * math.log(2) + beta * beta * (num_spins - 1) / 4


def sherrington_kirkpatrick_fluctuations(beta: float) -> tuple[float, float]:
    """(E[log Z] - log E[Z], Var log Z) as N grows, for beta < 1: log Z/E[Z] is normal with variance v and mean -v/2,
    v = (-log(1 - beta^2) - beta^2)/2.
    """
    if not 0 <= beta < 1:
        raise ConfigError(f"The high-temperature limit of the glass holds for beta in [0, 1), not {beta:g}.")
    variance = (-math.log1p(-beta * beta) - beta * beta) / 2
    return -variance / 2, variance


def _instances(values: Tensor) -> Tensor:
    if values.ndim != 1 or len(values) < 2:
        raise ConfigError(f"An average over disorder needs 2 instances [I] or more, not {list(values.shape)}.")
    check.finite(values, "A value of an instance")
    return values.double()
