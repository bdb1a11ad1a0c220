r"""What samples are worth: autocorrelation time, effective sample size, R-hat, the error of a mean, stuck chains.

$$ \tau = 1 + 2 \sum_{t \ge 1} \rho(t), \qquad \mathrm{ESS} = \frac{C S}{\tau}, \qquad
   \mathrm{Var}\,\bar x = \frac{\mathrm{Var}\,x}{\mathrm{ESS}}, \qquad \hat R = \sqrt{\widehat{\mathrm{var}}^+ / W} $$

Observations are [S steps, *chains]; with `observables=k` the last k axes are different observables, and the answers
have their shape. All is computed in float64.

Sokal 1997 (Monte Carlo methods in statistical mechanics, eq. 3.19); Geyer 1992 (Statist. Sci. 7, 473); Vehtari,
Gelman, Simpson, Carpenter and Buerkner 2021 (Bayesian Analysis 16, 667: rank-normalised, split, folded).
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check

_MANY_CHAINS = 32  # from so many on, their spread alone tells the error of a mean to 13 %


class Estimate(NamedTuple):
    """A number and its standard error (one sigma)."""

    value: Tensor
    error: Tensor


class NonErgodic(UserWarning):
    """The chains have not seen the whole of the distribution: their averages and errors are not to be trusted."""


class Mixing(NamedTuple):
    """What `check_mixing` found."""

    r_hat: float
    ess: float
    """Bulk effective sample size of all chains together."""
    jumps: int
    """Passages between the two sides of the overall median, all chains together."""
    mixed: bool


def _chains(x: Tensor, observables: int, least: int = 4) -> Tensor:
    """float64 [steps, chains, *observables]; complains of what cannot be judged."""
    if not 0 <= observables < max(x.ndim, 1) or x.ndim < 1:
        raise ConfigError(f"Observations of shape {list(x.shape)} cannot end in {observables} axes of observables.")
    tail = x.shape[x.ndim - observables :]
    if x.shape[0] < least or x.numel() == 0:
        raise ConfigError(f"Observations [steps, *chains] need at least {least} steps here, not shape {list(x.shape)}.")
    check.finite(x, "Observations")
    return x.double().reshape(x.shape[0], -1, *tail)


def _autocovariance(x: Tensor) -> Tensor:
    """By FFT along the first axis, about each chain's own mean, divided by S at every lag: the shape of x."""
    steps = x.shape[0]
    away = x - x.mean(0)
    spectrum = torch.fft.rfft(away, n=1 << (2 * steps - 1).bit_length(), dim=0)
    return torch.fft.irfft(spectrum.abs().square(), n=1 << (2 * steps - 1).bit_length(), dim=0)[:steps] / steps


def autocorrelation(x: Tensor) -> Tensor:
    """rho(t) of each chain, [steps, *chains]; rho(0) = 1. A chain that never moved has rho = 0 beyond t = 0."""
    covariance = _autocovariance(_chains(x, 0, 2)).reshape(x.shape)
    variance = covariance[:1]
    moved = variance > 1e-14 * x.double().square().mean(0).clamp(min=1e-280)
    rho = torch.where(moved, covariance / torch.where(moved, variance, 1.0), 0.0)
    rho[0] = 1
    return rho


def autocorrelation_time(x: Tensor, window: float = 5.0) -> Tensor:
    """Integrated autocorrelation time tau of each chain in steps, [*chains]; 1 for independent draws.

    Sokal's window: the sum ends at the first lag M >= `window` max(tau(M), 1). The estimate is trustworthy only for chains
    of several hundred tau. (Other texts halve it; here ESS = S/tau.) A chain that never moved gets 1.
    """
    tau = 2 * autocorrelation(x).cumsum(0) - 1
    lags = torch.arange(x.shape[0], device=x.device).reshape(-1, *[1] * (x.ndim - 1))
    ends = lags >= window * tau.clamp(min=1)
    ends[-1] = True
    return tau.gather(0, ends.to(torch.uint8).argmax(0, keepdim=True)).squeeze(0)


def _split(x: Tensor) -> Tensor:
    """Each chain cut in halves (the middle step of an odd number is dropped): [S//2, 2 C, ...]."""
    half = x.shape[0] // 2
    return torch.cat([x[:half], x[-half:]], 1)


def _rank_normal(x: Tensor) -> Tensor:
    """Normal scores of the ranks among all chains and steps (ties share theirs), per observable."""
    flat = x.reshape(x.shape[0] * x.shape[1], -1).T.contiguous()
    order = flat.sort(-1).values
    rank = (torch.searchsorted(order, flat) + torch.searchsorted(order, flat, right=True) + 1).double() / 2
    return torch.special.ndtri((rank - 0.375) / (flat.shape[-1] + 0.25)).T.reshape(x.shape)


def _variances(x: Tensor) -> tuple[Tensor, Tensor]:
    """W, and var+ that holds the spread between the chains as well, [*observables]."""
    steps, chains = x.shape[:2]
    within = x.var(0).mean(0)
    total = within * (steps - 1) / steps
    return within, total + x.mean(0).var(0) if chains > 1 else total


def _geyer(x: Tensor) -> Tensor:
    """ESS [*observables] of chains [steps, chains, *observables]: the initial monotone sequence of all chains."""
    steps, chains = x.shape[:2]
    within, total = _variances(x)
    still = total <= 1e-28 * (1 + x.square().mean((0, 1)))
    rho = 1 - (within - _autocovariance(x).mean(1)) / torch.where(still, 1.0, total)
    rho[0] = 1
    even = steps // 2 * 2
    pairs = rho[:even].reshape(even // 2, 2, *rho.shape[1:])
    sums = pairs.sum(1)
    kept = (sums > 0).to(torch.int8).cumprod(0).bool()
    tau = 2 * torch.where(kept, sums.cummin(0).values, 0.0).sum(0) - 1
    last = torch.cat([pairs[:, 0], torch.zeros_like(pairs[:1, 0])]).gather(0, kept.sum(0, keepdim=True)).squeeze(0)
    samples = float(steps * chains)
    # Antithetic chains may beat independent draws, but no estimate from so few steps can say by how much.
    tau = (tau + last.clamp(min=0)).clamp(min=1 / max(math.log10(samples), 1.0))
    return torch.where(still, samples, samples / tau)


def effective_sample_size(x: Tensor, kind: Literal["bulk", "tail", "mean"] = "bulk", observables: int = 0) -> Tensor:
    """How many independent draws all chains together are worth, [*observables] (Vehtari et al. 2021).

    "mean": for the average of x itself; "bulk": of its normal scores, so that heavy tails do not matter; "tail":
    the lesser of those of the 5 % and 95 % quantiles. Constant observations count as independent.
    """
    chains = _chains(x, observables, 8)
    if kind == "mean":
        return _geyer(_split(chains))
    if kind == "bulk":
        return _geyer(_rank_normal(_split(chains)))
    if kind != "tail":
        raise ConfigError(f"An effective sample size is 'bulk', 'tail' or 'mean', not {kind!r}.")
    flat = chains.flatten(0, 1)
    levels = torch.quantile(flat, flat.new_tensor([0.05, 0.95]), dim=0) if flat.numel() < 1 << 24 else _quantiles(flat)
    return torch.minimum(*[_geyer(_split((chains <= level).double())) for level in levels])


def _quantiles(flat: Tensor) -> Tensor:
    """5 % and 95 % of more numbers than torch.quantile takes."""
    n = len(flat)
    return torch.stack([flat.kthvalue(max(1, round(q * n)), dim=0).values for q in (0.05, 0.95)])


def split_r_hat(x: Tensor, observables: int = 0) -> Tensor:
    """R-hat [*observables]: 1 where halves of chains agree; above 1.01 they have not mixed.

    The larger of the rank-normalised and the folded one (which sees chains of one centre and different widths). Chains
    that each stand still at different values have R-hat = inf.
    """
    halves = _split(_chains(x, observables))
    middle = halves.flatten(0, 1).median(0).values
    answers = []
    for scores in (_rank_normal(halves), _rank_normal((halves - middle).abs())):
        within, total = _variances(scores)
        answers.append(torch.where(total > 0, (total / within).sqrt(), 1.0))
    return torch.maximum(*answers)


def mean_and_error(x: Tensor, observables: int = 0) -> Estimate:
    """The mean over steps and chains, and its standard error with autocorrelation in it, [*observables] each.

    Of 32 or more independent chains the spread of their means; of fewer, sqrt(var+/ESS) with Geyer's sequence.
    """
    chains = _chains(x, observables, 1)
    steps, count = chains.shape[:2]
    mean = chains.mean((0, 1))
    if count >= _MANY_CHAINS:
        return Estimate(mean, chains.mean(0).std(0) / math.sqrt(count))
    if steps < 8:
        raise ConfigError(
            f"{count} chains of {steps} steps cannot tell an error: give 8 steps or {_MANY_CHAINS} chains."
        )
    return Estimate(mean, (_variances(chains)[1] / _geyer(chains)).sqrt())


def binder_cumulant(m: Tensor, dim: int = 0) -> Tensor:
    """U = 1 - <m^4>/(3 <m^2>^2) along `dim`: 0 for a Gaussian (disorder), 2/3 for +-m (order) (Binder 1981).

    For its error, `resampling.jackknife(m, binder_cumulant)`. Raises ConfigError if m is 0 throughout.
    """
    square = m.double().square()
    second = square.mean(dim)
    if bool((second == 0).any()):
        raise ConfigError("A Binder cumulant needs an order parameter that is not 0 in every sample.")
    return 1 - square.square().mean(dim) / (3 * second.square())


def mode_jumps(x: Tensor, low: float, high: float) -> Tensor:
    """How often each chain [steps, *chains] went from below `low` to above `high` or back, int64 [*chains].

    Between the two it still counts to the side it came from: rattling on the barrier is no jump.
    """
    if not low <= high:
        raise ConfigError(f"Two modes lie below {low:g} and above {high:g}: low must not exceed high.")
    side = (x >= high).to(torch.int64) - (x <= low).to(torch.int64)
    steps = torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1)).expand_as(side)
    latest = torch.where(side != 0, steps, -1).cummax(0).values
    side = side.gather(0, latest.clamp(min=0)).masked_fill_(latest < 0, 0)
    return ((side[1:] * side[:-1]) < 0).sum(0)


def check_mixing(x: Tensor, name: str = "x", *, symmetric: bool = False, least_ess: float = 100.0) -> Mixing:
    """Whether chains [steps, *chains] have seen the whole distribution; if not, a NonErgodic warning that says why.

    They have if R-hat < 1.01 (1.05 below 400 effective samples, where its own noise is as large) and ESS >=
    `least_ess`. `symmetric`: x and -x are known to be equally likely (a magnetisation without a field), so a mean
    that is not 0, or chains that all stay on one side, are signs of broken ergodicity that R-hat cannot see.
    """
    chains = _chains(x, 0, 8)
    r_hat = float(split_r_hat(chains))
    ess = float(effective_sample_size(chains))
    away = chains if symmetric else chains - chains.median()
    jumps = int(mode_jumps(away, 0.0, 0.0).sum())
    reasons = []
    if not r_hat < (1.01 if ess >= 400 else 1.05):
        reasons.append(f"R-hat is {r_hat:.3g}: the chains disagree")
    if not ess >= least_ess:
        reasons.append(f"the effective sample size is {ess:.3g}, below {least_ess:g}")
    if symmetric:
        mean, error = mean_and_error(chains)
        if bool(mean.abs() > 5 * error) or (jumps == 0 and bool((chains != 0).any())):
            reasons.append(f"its mean is {float(mean):.3g} +- {float(error):.2g}, where symmetry asks for 0")
    if reasons:
        warnings.warn(f"Sampling of {name} is not ergodic: {'; '.join(reasons)}.", NonErgodic, stacklevel=2)
    return Mixing(r_hat, ess, jumps, not reasons)
