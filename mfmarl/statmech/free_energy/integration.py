r"""Thermodynamic integration: log Z from mean energies along a ladder of beta.

$$ \log Z(\beta_1) - \log Z(\beta_0) = -\int_{\beta_0}^{\beta_1} \langle H \rangle_\beta \, d\beta $$

and for a path of energies H_l, -beta times the integral of <dH_l/dl>. The rules are linear in the means, so that the
statistical error is exact; the error of the rule itself is told apart from it. With variances (d<H>/dbeta = -Var H)
the corrected trapezoid is of fourth order from the same samples. The integrand of an evidence is steep near beta = 0:
use beta = (k/K)^5 (Friel and Pettitt 2008, J. R. Statist. Soc. B 70, 589; Friel, Hurn and Wyse 2014).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import interpolate
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.sampling import chains
from mfmarl.statmech.sampling.chains import Sweep
from mfmarl.statmech.sampling.diagnostics import mean_and_error

Rule = Literal["trapezoid", "simpson", "spline"]


class Integral(NamedTuple):
    """log Z(beta_1)/Z(beta_0), [*b] float64."""

    value: Tensor
    error: Tensor
    """Statistical, one sigma."""
    discretisation: Tensor
    """The change against a rule of lower order (of the trapezoid: against every other point): a bound, usually."""


def ladder(rungs: int, power: float = 5.0, start: float = 0.0, end: float = 1.0) -> Tensor:
    """beta_k = start + (end - start) (k/K)^power, K = `rungs`: [K + 1] float64, dense at the start."""
    if rungs < 1 or not power > 0:
        raise ConfigError(f"A ladder needs at least 1 rung and a power above 0, not {rungs} and {power:g}.")
    return start + (end - start) * (torch.arange(rungs + 1, dtype=torch.float64) / rungs) ** power


def weights(betas: Tensor, rule: Rule) -> Tensor:
    """Of the values at `betas` [K + 1] in the integral over them, [K + 1]: uneven spacing is no matter.

    "simpson": parabolas through three neighbours, averaged where two overlap; "spline": a cubic spline, not-a-knot.
    """
    b = betas.double()
    k = len(b)
    if b.ndim != 1 or k < 2 or not bool((b.diff() > 0).all() or (b.diff() < 0).all()):
        raise ConfigError("Betas must be at least two, all rising or all falling.")
    if rule == "trapezoid" or k == 2:
        gaps = b.diff()
        return (torch.cat([gaps, gaps.new_zeros(1)]) + torch.cat([gaps.new_zeros(1), gaps])) / 2
    if rule not in ("simpson", "spline"):
        raise ConfigError(f"A rule is 'trapezoid', 'simpson' or 'spline', not {rule!r}.")
    if bool(b[0] > b[-1]):
        return -weights(b.flip(0), rule).flip(0)
    x, unit = b.numpy(), np.eye(k)
    if rule == "spline" and k > 3:
        return torch.from_numpy(interpolate.CubicSpline(x, unit).integrate(x[0], x[-1]))
    total = np.zeros(k)
    for i in range(k - 1):
        # The stretch from i to i + 1 lies under one or two parabolas.
        starts = [j for j in (i - 1, i) if 0 <= j <= k - 3]
        for j in starts:
            basis = interpolate.lagrange
            for m in range(3):
                primitive = np.polyint(basis(x[j : j + 3] - x[i], np.eye(3)[m]).coef)
                total[j + m] += np.polyval(primitive, x[i + 1] - x[i]) / len(starts)
    return torch.from_numpy(total)


def integrate(betas: Tensor, means: Tensor, errors: Tensor, rule: Rule = "spline") -> Integral:
    """-integral of <H> over beta from means and their independent errors, [*b, K + 1] each."""
    check.finite(means, "Mean energies")
    if means.shape[-1:] != betas.shape or errors.shape != means.shape:
        raise ConfigError(
            f"{len(betas)} betas need as many means and errors, not {list(means.shape)} and {list(errors.shape)}."
        )
    w, means = weights(betas, rule), means.double()
    value = -(means * w).sum(-1)
    return Integral(value, (errors.double() * w).square().sum(-1).sqrt(), (value - _lower(betas, means, rule)).abs())


def _lower(betas: Tensor, means: Tensor, rule: Rule) -> Tensor:
    if rule != "trapezoid":
        return -(means * weights(betas, "simpson" if rule == "spline" else "trapezoid")).sum(-1)
    kept = torch.arange(0, len(betas), 2)
    if kept[-1] != len(betas) - 1:
        kept = torch.cat([kept, torch.tensor([len(betas) - 1])])
    return -(means[..., kept] * weights(betas[kept], rule)).sum(-1)


def corrected(betas: Tensor, means: Tensor, errors: Tensor, variances: Tensor, variance_errors: Tensor) -> Integral:
    """The trapezoid with its leading error taken out by Var H [*b, K + 1], as d<H>/dbeta = -Var H.

    Each stretch of length h adds h^2 (Var_b - Var_a)/12 (Hermite's cubic). Means and variances count as
    independent, which they are for symmetric distributions of the energy, and nearly for many particles.
    """
    plain = integrate(betas, means, errors, "trapezoid")
    square = betas.double().diff().square() * betas.double().diff().sign()
    zero = square.new_zeros(1)
    w = (torch.cat([square, zero]) - torch.cat([zero, square])) / 12
    change = -(variances.double() * w).sum(-1)
    error = (plain.error.square() + (variance_errors.double() * w).square().sum(-1)).sqrt()
    return Integral(plain.value - change, error, change.abs())


def log_partition(
    energy: Energy,
    sweep: Sweep,
    x: Tensor,
    betas: Tensor,
    key: Key,
    steps: int,
    *,
    warm_up: int,
    rule: Rule = "spline",
    energy_of_path: Energy | None = None,
) -> tuple[Tensor, Integral]:
    """Samples all rungs side by side: states x [K + 1, C chains, n], one rung of `betas` [K + 1] each.

    The last states, and log Z(betas[-1])/Z(betas[0]) with errors that know of autocorrelation. `energy_of_path`: what
    is averaged, if the sweep's beta multiplies only a part of the energy (the misfit of a posterior; default H).
    """
    check.inverse_temperature(betas)
    if x.ndim != 3 or x.shape[0] != len(betas):
        raise ConfigError(f"States must be [{len(betas)} rungs, chains, n], not {list(x.shape)}.")
    observe = energy if energy_of_path is None else energy_of_path
    cold = betas.to(x.dtype).unsqueeze(-1).expand(x.shape[:2])
    x, seen = chains.run(sweep, x, cold, key, steps, observe, warm_up=warm_up)
    mean, error = mean_and_error(seen.transpose(1, 2), observables=1)
    return x, integrate(betas, mean, error, rule)
