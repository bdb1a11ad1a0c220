r"""Mean-field variational inference by coordinate ascent: one factor at a time, each at its own optimum.

$$ q_i(x_i) \propto \exp\left(-\langle H \rangle_{q_{\setminus i}}/T\right) $$

(Bishop 2006, eq. 10.9; Blei, Kucukelbir and McAuliffe 2017, algorithm 1.) The free energy never rises. It is an upper
bound whose optimum may break a symmetry that the truth has: two coupled spins order at J/T > 1, which no two spins do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.statmech import check, information
from mfmarl.statmech.energies import continuous
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.variational import free_energy


class SpinField(NamedTuple):
    magnetisation: Tensor
    """m [*b, n]."""
    free_energy: Tensor
    """F after every sweep, [sweeps, *b]: it never rises."""


def spins(
    system: Ising, temperature: float, start: Tensor, *, tolerance: float = 1e-12, sweeps: int = 10_000
) -> SpinField:
    """m_i = tanh((h_i + sum_j J_ij m_j)/T), a colour at a time, from averages [*b, n] until no m moves by `tolerance`.

    Several optima: the start decides. Raises NumericFault if `sweeps` are not enough.
    """
    check.temperature(temperature)
    m, trace = start.clone(), []
    groups = [(system.colours == c).nonzero().squeeze(-1) for c in range(int(system.colours.max()) + 1)]
    for _ in range(sweeps):
        before = m.clone()
        for group in groups:
            local = system.local_field(m)[..., group]
            m[..., group] = torch.tanh(local / temperature) if temperature > 0 else torch.sign(local)
        trace.append(free_energy.of_spins(system, m, temperature))
        if float((m - before).abs().max()) <= tolerance:
            return SpinField(m, torch.stack(trace))
    raise NumericFault(f"Coordinate ascent has not settled to {tolerance:g} after {sweeps} sweeps: allow more.")


class GaussianField(NamedTuple):
    mean: Tensor
    """[n]: exact."""
    variance: Tensor
    """T/P_ii [n]: never above the true marginal variance."""
    free_energy: Tensor
    """[]."""


def gaussian(
    energy: continuous.Gaussian, temperature: float = 1.0, *, tolerance: float = 1e-13, sweeps: int = 100_000
) -> GaussianField:
    """Independent Gaussians for a quadratic energy: variances T/P_ii, means by Gauss-Seidel (Bishop, section 10.1.2)."""
    check.temperature(temperature, positive=True)
    p, mean = energy.precision, torch.zeros_like(energy.mean)
    pull, diagonal = p @ energy.mean, p.diagonal()
    lower = p.tril()
    for _ in range(sweeps):
        # One pass over all factors in turn solves the lower triangle.
        after = torch.linalg.solve_triangular(lower, (pull - p.triu(1) @ mean).unsqueeze(-1), upper=False).squeeze(-1)
        moved, mean = float((after - mean).abs().max()), after
        if moved <= tolerance * (1 + float(mean.abs().max())):
            variance = temperature / diagonal
            value = free_energy.of_gaussian(energy, mean, torch.diag(variance), temperature)
            return GaussianField(mean, variance, value)
    raise NumericFault(f"Coordinate ascent has not settled to {tolerance:g} after {sweeps} sweeps: allow more.")


class MixtureField(NamedTuple):
    mean: Tensor
    """Centres' posterior means [*b, K, d]."""
    variance: Tensor
    """Their posterior variance, the same in every direction [*b, K]."""
    assignment: Tensor
    """Responsibilities [*b, n, K]."""
    free_energy: Tensor
    """F after every sweep, [sweeps, *b]: it never rises, and is at least minus the log evidence."""


def mixture(
    data: Tensor,
    centres: Tensor,
    *,
    noise_variance: float = 1.0,
    prior_variance: float = 10.0,
    tolerance: float = 1e-10,
    sweeps: int = 10_000,
) -> MixtureField:
    """A Bayesian mixture of K Gaussians [n, d] of known variance and equal weights, from centres [*b, K, d].

    c_k ~ N(0, prior_variance), each point from a centre at random (Blei et al. 2017, section 2.1 and algorithm 2).
    """
    for name, value in (("noise's", noise_variance), ("prior's", prior_variance)):
        if not 0 < value < math.inf:
            raise ConfigError(f"The {name} variance must be finite and above 0, not {value:g}.")
    if data.ndim != 2 or centres.shape[-1:] != data.shape[1:]:
        raise ConfigError(
            f"A mixture needs data [n, d] and centres [..., K, d], not {list(data.shape)}, {list(centres.shape)}."
        )
    n, d = data.shape
    k = centres.shape[-2]
    mean, variance = centres, torch.zeros_like(centres[..., 0])
    trace: list[Tensor] = []
    for _ in range(sweeps):
        log_r = -_squared(data, mean, variance) / (2 * noise_variance)
        r = torch.softmax(log_r, -1)
        count = r.sum(-2)
        variance = 1 / (1 / prior_variance + count / noise_variance)
        mean = variance.unsqueeze(-1) * (r.mT @ data) / noise_variance
        fit = (r * _squared(data, mean, variance)).sum((-2, -1)) / (2 * noise_variance)
        fit = fit + n * d / 2 * math.log(2 * math.pi * noise_variance) + n * math.log(k)
        prior = (mean.square().sum(-1) + d * variance) / prior_variance - d - d * (variance / prior_variance).log()
        trace.append(fit - information.entropy(r).sum(-1) + prior.sum(-1) / 2)
        if len(trace) > 1 and float((trace[-2] - trace[-1]).max()) <= tolerance:
            return MixtureField(mean, variance, r, torch.stack(trace))
    raise NumericFault(f"Coordinate ascent has not settled to {tolerance:g} after {sweeps} sweeps: allow more.")


def _squared(data: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """<|x_i - c_k|^2> [*b, n, K]."""
    away = (data.unsqueeze(-2) - mean.unsqueeze(-3)).square().sum(-1)
    return away + data.shape[1] * variance.unsqueeze(-2)
