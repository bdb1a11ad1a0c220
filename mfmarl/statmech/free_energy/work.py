r"""Free energies from work: annealed importance sampling, Jarzynski's equality, Crooks's theorem.

A path of energies H_0, ..., H_K; between two changes of the energy a sweep that leaves the present distribution alone:

$$ w = \beta \sum_k \big(H_{k+1}(x_k) - H_k(x_k)\big), \qquad
   \langle e^{-w} \rangle = \frac{Z_K}{Z_0} = e^{-\beta \Delta F}, \qquad
   \frac{P_F(w)}{P_R(-w)} = e^{w - \beta \Delta F} $$

whatever the speed; <w> - beta dF >= 0 is the dissipated work. The logarithm of the average lies low by about half the
variance of the weights over n, and by more when few weights carry it: read the ESS.

Jarzynski 1997 (Phys. Rev. Lett. 78, 2690); Crooks 1999 (Phys. Rev. E 60, 2721); Neal 2001 (Statistics and Computing
11, 125). The identity holds step by step for the discrete chains here: there is no error of discretisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.free_energy.perturbation import LogRatio, bar, log_mean_weight
from mfmarl.statmech.sampling.chains import Sweep, chain_ids


class Driven(NamedTuple):
    """Chains that were driven from one distribution to another."""

    x: Tensor
    """[*b, n]: where they ended. With `log_weights` they represent the last distribution."""
    work: Tensor
    """Reduced work w = beta W [*b], float64: -w is the log importance weight."""

    @property
    def log_weights(self) -> Tensor:
        return -self.work

    def average(self, values: Tensor) -> Tensor:
        """The weighted average of an observable [*b] in the last distribution."""
        return (torch.softmax(-self.work.flatten(), 0) * values.flatten()).sum()


def anneal(
    energy: Energy,
    sweep: Sweep,
    x: Tensor,
    betas: Tensor,
    key: Key,
    *,
    sweeps: int = 1,
    ids: Tensor | None = None,
) -> Driven:
    """Chains x [*b, n], drawn at betas[0], taken along `betas` [K + 1] in either direction, `sweeps` at each.

    w = sum_k (beta_{k+1} - beta_k) H(x_k): log <exp(-w)> is log Z(betas[-1])/Z(betas[0]). At beta = 0 spins are fair
    coins (`random_states`) and log Z = n log 2. For Neal's AIS from a base other than that, see `drive`.
    """
    _path(betas)
    check.inverse_temperature(betas)
    check.finite(betas, "An annealing path of betas")
    levels = betas.tolist()
    return _driven(
        x, lambda k, y: (levels[k + 1] - levels[k]) * energy(y).double(), lambda k: (sweep, levels[k + 1]), len(betas),
        key, sweeps, ids,
    )  # fmt: skip


def drive(
    energy_at: Callable[[float], Energy],
    sweep_at: Callable[[float], Sweep],
    x: Tensor,
    protocol: Tensor,
    key: Key,
    beta: float = 1.0,
    *,
    sweeps: int = 1,
    ids: Tensor | None = None,
) -> Driven:
    """Chains x [*b, n], drawn from exp(-beta H_{protocol[0]}), while a parameter goes along `protocol` [K + 1].

    `energy_at` and `sweep_at` give the energy and a sweep that keeps its distribution at a value of the parameter.
    A path from a prior to a posterior (Neal's AIS) is energy_at(l) = prior + l * misfit; see `between`.
    """
    _path(protocol)
    check.inverse_temperature(beta)
    levels = protocol.tolist()
    energies = [energy_at(level) for level in levels]
    return _driven(
        x, lambda k, y: beta * (energies[k + 1](y).double() - energies[k](y).double()),
        lambda k: (sweep_at(levels[k + 1]), beta), len(levels), key, sweeps, ids,
    )  # fmt: skip


def between(start: Energy, end: Energy) -> Callable[[float], Energy]:
    """The straight path (1 - l) H_start + l H_end, l from 0 to 1, for `drive`."""

    def at(level: float) -> Energy:
        if level == 0:
            return start
        if level == 1:
            return end
        return lambda x: (1 - level) * start(x) + level * end(x)

    return at


def _path(protocol: Tensor) -> None:
    if protocol.ndim != 1 or len(protocol) < 2:
        raise ConfigError(f"A path needs at least its two ends, [K + 1], not shape {list(protocol.shape)}.")


def _driven(
    x: Tensor,
    change: Callable[[int, Tensor], Tensor],
    sweep_to: Callable[[int], tuple[Sweep, float]],
    levels: int,
    key: Key,
    sweeps: int,
    ids: Tensor | None,
) -> Driven:
    if sweeps < 1:
        raise ConfigError(f"A path needs at least one sweep at each level, not {sweeps}.")
    ids = chain_ids(x.shape[:-1], x.device) if ids is None else ids
    work = torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)
    for k in range(levels - 1):
        work += change(k, x)
        # After the last change too: x then lies in the last distribution as well as one sweep brings it.
        sweep, beta = sweep_to(k)
        for i in range(sweeps):
            x = sweep(x, beta, ids, key.fold("level", k, i))
    check.finite(work, "Work along the path")
    return Driven(x, work)


def jarzynski(work: Tensor, *, least_ess: float = 50.0) -> LogRatio:
    """log Z_K/Z_0 = log <exp(-w)> of reduced work [*b, n]: error and ESS of independent chains, bias -error^2/2.

    Warns (PoorOverlap) if few chains carry the average.
    """
    return log_mean_weight(-work, least_ess=least_ess)


def crooks(forward: Tensor, backward: Tensor, *, least_ess: float = 50.0) -> LogRatio:
    """log Z_K/Z_0 from reduced work of driving forth and back [*b, n_F], [*b, n_R]: Bennett's ratio of the two.

    The way back starts in equilibrium at the end and takes the reversed path. Crooks's theorem asks for sweeps that
    obey detailed balance (MALA, HMC, Metropolis of random sites; an ordered sweep only together with its reverse).
    """
    return bar(forward, backward, least_ess=least_ess)


def dissipated(work: Tensor, log_ratio: Tensor | float) -> Tensor:
    """<w> + log Z_K/Z_0 = beta (<W> - dF) >= 0: nats of entropy made by driving at a finite speed, [*b]."""
    return work.double().mean(-1) + log_ratio
