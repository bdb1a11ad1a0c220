r"""Response from fluctuations: susceptibilities, heat capacities, correlations in time, and direct perturbation.

With a field f that enters as H - f B, in equilibrium at beta,

$$ \frac{\partial \langle A \rangle}{\partial f} = \beta \big(\langle A B \rangle - \langle A \rangle \langle B \rangle\big),
   \qquad \chi = \beta N\, \mathrm{Var}\, m, \qquad C = \beta^2\, \mathrm{Var}\, E, $$
$$ R(t) = -\beta \frac{d}{dt} \langle A(t) B(0) \rangle, \qquad
   \chi(t) = \int_0^t R = \beta \big(C(0) - C(t)\big) $$

the last for a field switched on at t = 0: the fluctuation-dissipation theorem (Callen and Welton 1951; Kubo 1966,
Rep. Prog. Phys. 29, 255). Where it fails, time is not in equilibrium: the ratio of both sides is the violation factor X
(Cugliandolo and Kurchan 1993). Observations are [steps, *chains]; errors know of autocorrelation. Weights of a network
sampled at temperature 1/beta obey the same: B is an output, or minus the loss of one datum (its influence).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check
from mfmarl.statmech.sampling.diagnostics import Estimate, autocorrelation_time, mean_and_error
from mfmarl.statmech.sampling.resampling import jackknife

_BLOCKS = 32
_MEMORIES = 5  # autocorrelation times to a block


def covariance(a: Tensor, b: Tensor) -> Estimate:
    """<AB> - <A><B> of observations [steps, *chains] each, by the jackknife over chains or stretches of time."""
    if a.shape != b.shape:
        raise ConfigError(f"Two observables need equally many observations, not {list(a.shape)} and {list(b.shape)}.")
    check.finite(a, "Observations")
    check.finite(b, "Observations")
    # About a fixed point near the means: products of large numbers would lose what is sought.
    pair = torch.stack([a.double() - a.double().mean(), b.double() - b.double().mean()], -1)

    def connected(samples: Tensor) -> Tensor:
        return samples.prod(-1).mean(0) - samples.mean(0).prod()

    return jackknife(pair, connected, _count(pair[..., 0]), observables=1)


def _count(x: Tensor) -> int:
    """Of blocks that are independent: chains where there are many, else stretches of time of a few memories each."""
    steps, chains = x.shape[0], math.prod(x.shape[1:])
    most = max(steps, chains)
    if most < 4:
        raise ConfigError(f"{steps} steps of {chains} chains are too few for an error: give at least 4 of either.")
    if chains >= _BLOCKS or steps < 8:
        return min(_BLOCKS, most)
    memory = float(autocorrelation_time(x).mean())
    stretches = int(steps / (_MEMORIES * memory))
    return min(_BLOCKS, max(stretches, chains if chains >= 4 else 4))


def response(a: Tensor, b: Tensor, beta: float) -> Estimate:
    """d<A>/df for H - f B, from observations [steps, *chains] of A and B without the field's change: beta cov(A, B)."""
    check.inverse_temperature(beta)
    value, error = covariance(a, b)
    return Estimate(beta * value, beta * error)


def susceptibility(m: Tensor, beta: float, size: int, *, absolute: bool = False) -> Estimate:
    """chi = beta N Var m: d<m>/dh of the mean m = M/N [steps, *chains] in a field that enters as -h M.

    `absolute` takes |m|, for the ordered phase of a finite system whose sign wanders.
    """
    m = m.abs() if absolute else m
    value, error = response(m, m, beta)
    return Estimate(size * value, size * error)


def heat_capacity(energy: Tensor, beta: float) -> Estimate:
    """C = d<E>/dT = beta^2 Var E of energies [steps, *chains], of the whole system."""
    value, error = response(energy, energy, beta)
    return Estimate(beta * value, beta * error)


def response_matrix(observables: Tensor, beta: float) -> Estimate:
    """chi_ij = beta cov(A_i, A_j) of observations [steps, *chains, k]: [k, k] with errors."""
    check.inverse_temperature(beta)
    check.finite(observables, "Observations")
    k = observables.shape[-1]
    away = observables.double() - observables.double().reshape(-1, k).mean(0)

    def connected(samples: Tensor) -> Tensor:
        mean = samples.mean(0)
        return samples.mT @ samples / len(samples) - mean.outer(mean)

    count = min(_count(one) for one in away.unbind(-1))
    value, error = jackknife(away, connected, count, observables=1)
    return Estimate(beta * value, beta * error)


def finite_difference(above: Tensor, below: Tensor, step: float) -> Estimate:
    """(<A>_{f + step} - <A>_{f - step})/(2 step) from observations [steps, *chains] in the two fields.

    Chains that share their noise (the same key and ids) are compared one by one, which takes most of it away; from
    different keys the error is that of independent chains all the same.
    """
    if not step > 0 or above.shape != below.shape:
        raise ConfigError(
            f"A difference needs a step above 0 and as many observations on both sides, not {step:g}, "
            f"{list(above.shape)} and {list(below.shape)}."
        )
    value, error = mean_and_error(above.double() - below.double())
    return Estimate(value / (2 * step), error / (2 * step))


def agree(one: Estimate, other: Estimate) -> Tensor:
    """z = (a - b)/sqrt(error_a^2 + error_b^2): beyond 5 the theorem, or the equilibrium, is broken."""
    return (one.value - other.value) / (one.error.square() + other.error.square()).sqrt()


class TimeResponse(NamedTuple):
    """A curve over lags 0, 1, ..., [lags], with errors."""

    value: Tensor
    error: Tensor


def _by_chain(a: Tensor, b: Tensor, lags: int) -> Tensor:
    """C(t) of each chain about the means of all, [lags, chains]."""
    if a.shape != b.shape or a.ndim < 2 or not 1 <= lags <= len(a) or a[0].numel() < 4:
        raise ConfigError(
            f"Correlations over {lags} lags need as many steps of at least 4 chains, not {list(a.shape)} and {list(b.shape)}."
        )
    x, y = (z.double().reshape(len(z), -1) for z in (a, b))
    x, y = x - x.mean(), y - y.mean()
    length = 1 << (2 * len(x) - 1).bit_length()
    spectrum = torch.fft.rfft(x, n=length, dim=0) * torch.fft.rfft(y, n=length, dim=0).conj()
    pairs = torch.arange(len(x), len(x) - lags, -1, dtype=torch.float64, device=x.device).unsqueeze(-1)
    return torch.fft.irfft(spectrum, n=length, dim=0)[:lags] / pairs


def _spread(each: Tensor) -> TimeResponse:
    return TimeResponse(each.mean(1), each.std(1) / math.sqrt(each.shape[1]))


def correlation(a: Tensor, b: Tensor, lags: int) -> TimeResponse:
    """C(t) = <A(t) B(0)> - <A><B> for t = 0 .. lags - 1 of stationary chains [steps, *chains], of at least 4 chains."""
    return _spread(_by_chain(a, b, lags))


def integrated_from_correlation(a: Tensor, b: Tensor, lags: int, beta: float) -> TimeResponse:
    """chi(t) = beta (C(0) - C(t)), [lags]: what a field on B switched on at t = 0 does to <A>, from equilibrium."""
    check.inverse_temperature(beta)
    each = _by_chain(a, b, lags)
    return _spread(beta * (each[:1] - each))  # chain by chain: C(0) and C(t) share most of their noise


def impulse_from_correlation(c: Tensor, beta: float, interval: float = 1.0) -> Tensor:
    """R(t) = -beta dC/dt by central differences of a correlation [lags] at the given interval."""
    return -beta * torch.gradient(c.double(), spacing=interval)[0]


def integrated_response(perturbed: Tensor, unperturbed: Tensor, field: float) -> TimeResponse:
    """chi(t) = (<A>_f(t) - <A>_0(t))/f of chains [steps, *chains] with the same noise, f switched on at the start."""
    if field == 0 or perturbed.shape != unperturbed.shape or perturbed.ndim < 2:
        raise ConfigError(
            "An integrated response needs a field other than 0 and chains [steps, *chains] with and without."
        )
    return _spread(((perturbed.double() - unperturbed.double()) / field).reshape(len(perturbed), -1))


def violation(chi: Tensor, c: Tensor, beta: float) -> Tensor:
    """X = -T dchi/dC along curves chi(t), C(t) [lags], by least squares: 1 in equilibrium, below 1 in what ages."""
    away, fall = chi.double() - chi.double().mean(), c.double() - c.double().mean()
    if not bool((fall != 0).any()):
        raise ConfigError("A correlation that does not fall has no violation factor.")
    return -(away * fall).sum() / fall.square().sum() / beta
