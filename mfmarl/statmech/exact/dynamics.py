r"""Heat-bath dynamics of a small system, exactly: the whole distribution is carried along, not samples of it.

$$ p_{t+1}(s) = \sum_{s_i'} p_t(s_i', s_{\setminus i})\ \frac{e^{-\beta H(s)}}{\sum_{s_i''} e^{-\beta H(s_i'', s_{\setminus i})}}, \qquad
   F[p] = \langle H \rangle_p - T\, S[p] \ge F $$

for one spin i after the other. F[p_t] never rises at constant beta (the H-theorem of a reversible step), and after
a schedule of betas p_t(E_0) is the exact success probability of simulated annealing. Distributions are [*d, 2^n],
numbered as `exact.enumeration` does; a sweep costs O(n 2^n).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check


def heat_bath_spin(p: Tensor, energies: Tensor, beta: float | Tensor, spin: int) -> Tensor:
    """p [*d, 2^n] after one spin is drawn anew given the others; energies [*d, 2^n]."""
    check.inverse_temperature(beta)
    n = p.shape[-1].bit_length() - 1
    if p.shape[-1] != 2**n or energies.shape[-1] != 2**n or not 0 <= spin < n:
        raise ConfigError(f"{p.shape[-1]} probabilities and {energies.shape[-1]} energies know no spin {spin}.")
    # Axis -2 is the spin: index 0 down, 1 up.
    shape = (2**spin, 2, 2 ** (n - 1 - spin))
    level = energies.unflatten(-1, shape)
    gap = level[..., 0, :] - level[..., 1, :]
    beta = beta[..., None, None] if isinstance(beta, Tensor) and beta.ndim else beta
    up = torch.sigmoid((beta * gap).nan_to_num(0.0, math.inf, -math.inf))
    mass = p.unflatten(-1, shape).sum(-2)
    return torch.stack([mass * (1 - up), mass * up], -2).flatten(-3)


def heat_bath_sweep(p: Tensor, energies: Tensor, beta: float | Tensor, order: Tensor | None = None) -> Tensor:
    """p [*d, 2^n] after every spin in turn (0, 1, ...; or in the given `order` int64 [n])."""
    n = p.shape[-1].bit_length() - 1
    for spin in range(n) if order is None else order.tolist():
        p = heat_bath_spin(p, energies, beta, spin)
    return p


def annealed(energies: Tensor, betas: Tensor, start: Tensor | None = None, order: Tensor | None = None) -> Tensor:
    """p [*d, 2^n] after one sweep at each of `betas` [K], from `start` (default: uniform).

    `order` is that of the sampler it is compared with: `heat_bath` of a system takes the spins colour by colour,
    `torch.argsort(system.colours, stable=True)`.
    """
    p = torch.full_like(energies, 1 / energies.shape[-1]) if start is None else start
    for beta in betas.tolist():
        p = heat_bath_sweep(p, energies, beta, order)
    return p


def free_energy_of(p: Tensor, energies: Tensor, beta: float) -> Tensor:
    """F[p] = <H> - T S[p], [*d]: least, -log Z/beta, for the Gibbs distribution."""
    check.temperature(1 / beta if beta else math.inf, positive=True)
    return (p * energies).sum(-1) + torch.special.xlogy(p, p).sum(-1) / beta
