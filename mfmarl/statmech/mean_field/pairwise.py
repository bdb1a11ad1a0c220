r"""Naive mean field and TAP for spins with any pair interactions.

$$ m_i = \tanh \beta \big(h_i + \sum_j J_{ij} m_j \ \underbrace{-\ \beta m_i \sum_j J_{ij}^2 (1 - m_j^2)}_{\text{TAP}}\big), \qquad
   F = -\sum_{\langle ij \rangle} J_{ij} m_i m_j - \sum_i h_i m_i - T \sum_i S(m_i)
   \ \underbrace{-\ \tfrac{\beta}{2} \sum_{\langle ij \rangle} J_{ij}^2 (1 - m_i^2)(1 - m_j^2)}_{\text{TAP}} $$

The naive F bounds the exact one from above (Gibbs, Bogoliubov, Feynman) at any m; TAP's (Thouless, Anderson and
Palmer 1977, Phil. Mag. 35, 593) is closer on dense graphs but is no bound: it may lie below. TAP's equations are
iterated with the reaction term one step late (Bolthausen 2014, Commun. Math. Phys. 325, 333), which converges
wherever the replica-symmetric state of SK is stable. Both fail near T_c and find order in one dimension, where there
is none.

Instances lead, [*d]; starts [S, n] are tried in each of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check, information
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.mean_field import self_consistent


class MeanField(NamedTuple):
    """Solutions from every start; see `best`."""

    magnetisation: Tensor
    """m [*d, S, n]."""
    free_energy: Tensor
    """F [*d, S]."""
    converged: Tensor
    """[*d, S] bool."""


class Best(NamedTuple):
    """The solution of least free energy among those that converged, of every instance."""

    magnetisation: Tensor
    """m [*d, n]."""
    free_energy: Tensor
    """F [*d]; inf where none converged."""


def naive(
    system: Ising, beta: float, starts: Tensor | None = None, *, share: float = 0.5, steps: int = 5_000
) -> MeanField:
    """m = tanh beta(h + J m), damped."""
    wide, starts = _prepare(system, beta, starts)

    def update(m: Tensor) -> Tensor:
        return torch.tanh(beta * wide.local_field(m))

    found = self_consistent.solve(update, starts, share=share, steps=steps, tolerance=1e-11)
    return MeanField(found.point, naive_free_energy(wide, found.point, beta), found.converged)


def tap(
    system: Ising, beta: float, starts: Tensor | None = None, *, share: float = 1.0, steps: int = 5_000
) -> MeanField:
    """The TAP equations by Bolthausen's iteration; smaller steps are taken where full ones do not settle."""
    wide, starts = _prepare(system, beta, starts)
    n = system.num_spins
    square = _squares(wide)

    def update(both: Tensor) -> Tensor:
        m, last = both[..., :n], both[..., n:]
        reaction = beta * last * square.local_field(1 - m * m)
        return torch.cat([torch.tanh(beta * (wide.local_field(m) - reaction)), m], -1)

    found = self_consistent.solve(update, torch.cat([starts, starts], -1), share=share, steps=steps, tolerance=1e-11)
    m = found.point[..., :n]
    return MeanField(m, tap_free_energy(wide, m, beta), found.converged)


def best(found: MeanField) -> Best:
    """See `Best`."""
    free = torch.where(found.converged, found.free_energy, torch.inf)
    low, which = free.min(-1)
    m = found.magnetisation.gather(-2, which[..., None, None].expand(*which.shape, 1, found.magnetisation.shape[-1]))
    return Best(m.squeeze(-2), low)


def naive_free_energy(system: Ising, m: Tensor, beta: float | Tensor) -> Tensor:
    """F of independent spins with averages m [*b, n], [*b]: never below the exact free energy."""
    energy = -(m * (system.local_field(m) + system.fields)).sum(-1) / 2
    return energy - information.spin_entropy(m).sum(-1) / beta


def tap_free_energy(system: Ising, m: Tensor, beta: float | Tensor) -> Tensor:
    """TAP's F at m [*b, n], [*b]."""
    spread = 1 - m * m
    return naive_free_energy(system, m, beta) - beta / 4 * (spread * _squares(system).local_field(spread)).sum(-1)


def naive_hessian(system: Ising, m: Tensor, beta: float | Tensor) -> Tensor:
    """d^2 F/dm dm [*b, n, n] = T/(1 - m_i^2) - J_ij: positive definite at a stable solution."""
    return torch.diag_embed(1 / (beta * (1 - m * m).clamp(min=1e-300))) - system.matrix


def tap_hessian(system: Ising, m: Tensor, beta: float | Tensor) -> Tensor:
    """d^2 F_TAP/dm dm [*b, n, n]."""
    square = _squares(system)
    own = 1 / (beta * (1 - m * m).clamp(min=1e-300)) + beta * square.local_field(1 - m * m)
    cross = system.matrix + 2 * beta * square.matrix * m.unsqueeze(-1) * m.unsqueeze(-2)
    return torch.diag_embed(own) - cross


def susceptibility(hessian: Tensor) -> Tensor:
    """dm_i/dh_j [*b, n, n], the inverse of the Hessian. Times T it estimates <s_i s_j> - <s_i><s_j> (linear response;
    Kappen and Rodriguez 1998, Neural Comput. 10, 1137), which the independent spins themselves do not have.
    """
    return torch.linalg.inv(hessian)


def stable(hessian: Tensor) -> Tensor:
    """Whether a solution is a minimum of its free energy, [*b] bool."""
    return torch.linalg.eigvalsh(hessian).amin(-1) > 0


def _squares(system: Ising) -> Ising:
    """The same graph with J^2 and no fields: its local field of x is sum_j J_ij^2 x_j."""
    return Ising(system.pairs, system.couplings**2, torch.zeros_like(system.fields))


def _prepare(system: Ising, beta: float, starts: Tensor | None) -> tuple[Ising, Tensor]:
    """The system with an axis for the starts, and these [*d, S, n]."""
    check.inverse_temperature(beta)
    if not math.isfinite(beta):
        raise ConfigError("Mean-field equations need a finite beta.")
    n = system.num_spins
    if starts is None:
        noise = random.uniform(Key.of(0), torch.arange(2 * n).reshape(2, n)).double() * 2 - 1
        starts = torch.cat([torch.full((1, n), 0.9), torch.full((1, n), -0.9), 0.5 * noise, 0.01 * noise])
    if starts.ndim < 2 or starts.shape[-1] != n or not bool((starts.abs() <= 1).all()):
        raise ConfigError(f"Starts are averages of {n} spins, [S, {n}] in [-1, 1], not {list(starts.shape)}.")
    wide = Ising(system.pairs, system.couplings.double().unsqueeze(-2), system.fields.double().unsqueeze(-2))
    lead = torch.broadcast_shapes(system.couplings.shape[:-1], system.fields.shape[:-1])
    return wide, starts.double().expand(*lead, *starts.shape[-2:]).clone()
