r"""Schedules of constant thermodynamic speed: slow where the system has much to rearrange, fast where it has not.

$$ \lambda(\beta) = \int^\beta \sqrt{\operatorname{Var}_b H\ \tau(b)}\; db, \qquad
   \frac{d\lambda}{dt} = \text{const}; \qquad
   \sum_k \mathrm{KL}(p_{\beta_{k+1}} \| p_{\beta_k}) \to \frac{\lambda^2}{2 K} $$

Var H = C/beta^2 is the Fisher information of beta: lambda is the thermodynamic length, and of all schedules of K steps
the one of even length wastes the least work. With the relaxation time tau (in sweeps) as well it is optimal for slow
driving (Salamon and Berry 1983, Phys. Rev. Lett. 51, 1127; Salamon et al. 1988, Comput. Phys. Commun. 49, 423; Sivak
and Crooks 2012, Phys. Rev. Lett. 108, 190602). It waits at phase transitions, and it is the schedule to give parallel
tempering, population annealing and annealed importance sampling alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.sampling.chains import Sweep, chain_ids


def constant_speed(betas: Tensor, deviations: Tensor, steps: int, relaxation: Tensor | None = None) -> Tensor:
    """Betas [steps] from the first to the last of the grid `betas` [G] at even thermodynamic distances.

    `deviations` [G] are the standard deviations of the energy there, `relaxation` [G] the autocorrelation times
    (default: equal). Trapezoids between the points of the grid: choose it fine.
    """
    betas = betas.double()
    if betas.ndim != 1 or len(betas) < 2 or not bool((betas.diff() > 0).all()) or not bool(betas.isfinite().all()):
        raise ConfigError("A grid is at least 2 finite betas that go up.")
    if deviations.shape != betas.shape or steps < 2:
        raise ConfigError(f"{len(betas)} betas need as many deviations, and a schedule at least 2 steps.")
    check.inverse_temperature(betas)
    check.finite(deviations, "The standard deviation of the energy")
    speed = deviations.double() * (1.0 if relaxation is None else relaxation.double().sqrt())
    length = torch.cat([betas.new_zeros(1), ((speed[1:] + speed[:-1]) / 2 * betas.diff()).cumsum(0)])
    if not float(length[-1]) > 0:
        raise ConfigError("An energy that does not vary at any beta has no thermodynamic length.")
    wanted = torch.linspace(0, float(length[-1]), steps, dtype=torch.float64)
    right = torch.searchsorted(length, wanted).clamp(1, len(length) - 1)
    share = (wanted - length[right - 1]) / (length[right] - length[right - 1]).clamp(min=1e-300)
    chosen = betas[right - 1] + share.clamp(0, 1) * (betas[right] - betas[right - 1])
    chosen[0], chosen[-1] = betas[0], betas[-1]
    return chosen


def thermodynamic_length(betas: Tensor, deviations: Tensor) -> float:
    """lambda between the ends of the grid: K even steps of it waste about lambda^2/(2 K)."""
    return float(torch.trapezoid(deviations.double(), betas.double()))


def measured_deviations(sweep: Sweep, energy: Energy, x: Tensor, betas: Tensor, key: Key, sweeps: int = 20) -> Tensor:
    """Standard deviations [G] of the energy over the chains x [C, n] of a pilot run through `betas` [G], hot to cold.

    Half of the `sweeps` at every beta are left to relax. Over chains, not within: a chain that is stuck varies little.
    """
    if x.ndim < 2 or x[..., 0].numel() < 8 or sweeps < 2:
        raise ConfigError("A pilot run needs at least 8 chains [C, n] and 2 sweeps at each beta.")
    ids, found = chain_ids(x.shape[:-1], x.device), []
    for step, beta in enumerate(betas.tolist()):
        seen = []
        for part in range(sweeps):
            x = sweep(x, beta, ids, key.fold("sweep", step, part))
            if part >= sweeps // 2:
                seen.append(energy(x).double())
        found.append(torch.stack(seen).var(tuple(range(1, x.ndim)), correction=1).mean().sqrt())
    return torch.stack(found)
