r"""Strips of the square lattice, exactly: any couplings and fields, any length, widths of a dozen spins.

$$ Z = \sum_{\sigma_1 \dots \sigma_L} \prod_l A_l(\sigma_l)\, B_l(\sigma_l, \sigma_{l+1}), \qquad
   f = -\lim_{L \to \infty} \frac{\log \lambda_0^L}{\beta L W}, \qquad \xi = 1 / \ln(\lambda_0/\lambda_1) $$

with sigma_l the W spins of row l, A the links within a row and the fields, B the links between rows, which are added
spin by spin: O(L W 2^W) for open ends, O(L W 4^W) where the last row meets the first. At zero temperature sums become
minima, and the same sweep finds the ground energy of a planar or toroidal spin glass (Morgenstern and Binder 1980,
Phys. Rev. B 22, 288). Z of the finite torus: Kaufman 1949 (`exact.ising`) has it for equal couplings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.exact import enumeration

WIDEST = 14
"""Spins of a row at most, where the ends are open; 12 where they meet."""
_WIDEST_SPECTRUM = 11


def lattice_log_partition(system: Ising, shape: tuple[int, int], beta: float | Tensor) -> Tensor:
    """log Z [*d] of spins on a lattice of `shape` (length, width), numbered row by row, with open or periodic sides.

    The system may have any couplings [*d, M] between nearest neighbours and any fields. `beta` is a number or [*d].
    Raises ConfigError for pairs that are no nearest neighbours, and for rows that are too wide.
    """
    check.inverse_temperature(beta)
    scale = torch.as_tensor(beta, dtype=torch.float64)
    if bool(torch.isinf(scale).any()):
        raise ConfigError("log Z is infinite at beta = inf: ask for the ground energy.")
    return _sweep(system, shape, scale)


def lattice_ground_energy(system: Ising, shape: tuple[int, int]) -> Tensor:
    """The least energy [*d] of the same systems, exactly: 10 x 10 with periodic sides takes a quarter of a second."""
    return -_sweep(system, shape, None)


def strip_spectrum(
    width: int, beta: float, coupling: float = 1.0, field: float = 0.0, *, periodic: bool = True
) -> tuple[Tensor, Tensor]:
    """(log |l| [2^W], their signs) of the row-to-row transfer matrix of equal spins, the largest first.

    Signs are -1 only for antiferromagnets. Rows of up to 11 spins.
    """
    if not 1 <= width <= _WIDEST_SPECTRUM:
        raise ConfigError(f"A spectrum is of rows of 1 to {_WIDEST_SPECTRUM} spins, not {width}.")
    if not 0 < beta < math.inf:
        raise ConfigError(f"A transfer matrix needs a beta above 0 and finite, not {beta:g}.")
    states = enumeration.spins(width).states()
    within = field * states.sum(-1) + coupling * (states[:, :-1] * states[:, 1:]).sum(-1)
    if periodic and width > 2:
        within = within + coupling * states[:, 0] * states[:, -1]
    log_matrix = beta * (coupling * (states @ states.T) + (within[:, None] + within[None, :]) / 2)
    top = log_matrix.max()
    values = torch.linalg.eigvalsh((log_matrix - top).exp())
    values = values[values.abs().argsort(descending=True)]
    return values.abs().log() + top, values.sign()


def strip_log_partition(
    length: int, width: int, beta: float, coupling: float = 1.0, field: float = 0.0, *, periodic: bool = True
) -> float:
    """log Z of `length` rows of equal spins whose last meets the first; `periodic` says whether rows are rings too.

    A length of 2 has two links between its rows, as in the formula's trace.
    """
    logs, signs = strip_spectrum(width, beta, coupling, field, periodic=periodic)
    powers = length * (logs - logs[0])
    return float(length * logs[0] + (signs**length * powers.exp()).sum().log())


def strip_free_energy_density(
    width: int, beta: float, coupling: float = 1.0, field: float = 0.0, *, periodic: bool = True
) -> float:
    """f = -ln l_0/(beta W) of an endless strip; -> Onsager's as pi c/(6 W^2), c = 1/2, at T_c for rings."""
    return -float(strip_spectrum(width, beta, coupling, field, periodic=periodic)[0][0]) / (beta * width)


def strip_correlation_length(
    width: int, beta: float, coupling: float = 1.0, field: float = 0.0, *, periodic: bool = True
) -> float:
    """xi = 1/ln(l_0/|l_1|) along an endless strip; 4 W/pi at T_c for rings (Cardy 1984, J. Phys. A 17, L385)."""
    logs, _ = strip_spectrum(width, beta, coupling, field, periodic=periodic)
    gap = float(logs[0] - logs[1])
    return 1 / gap if gap > 0 else math.inf


def _terms(system: Ising, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Couplings along rows and between rows, and fields, each [*d, L, W]: zero where there is none."""
    length, width = shape
    n = length * width
    if n != system.num_spins or min(shape) < 1:
        raise ConfigError(f"A lattice of {length} x {width} has {n} spins, the system {system.num_spins}.")
    site = torch.arange(n).reshape(length, width)
    low, high = system.pairs.amin(-1), system.pairs.amax(-1)
    number, order = (low * n + high).sort()
    # One more, zero: what a missing link points to.
    couplings = torch.cat(
        [system.couplings[..., order], system.couplings.new_zeros(*system.couplings.shape[:-1], 1)], -1
    )
    found, terms = 0, []
    for axis, side in ((1, width), (0, length)):
        other = site.roll(-1, axis)
        wanted = torch.minimum(site, other) * n + torch.maximum(site, other)
        at = torch.searchsorted(number, wanted).clamp(max=max(len(number) - 1, 0))
        there = number[at] == wanted if len(number) else torch.zeros_like(wanted, dtype=torch.bool)
        if side == 2:
            there = there & (torch.arange(2) == 0).reshape((1, 2) if axis else (2, 1))
        found += int(there.sum())
        terms.append(couplings[..., torch.where(there, at, len(number))].double())
    if found != len(number):
        raise ConfigError(
            f"{len(number) - found} of {len(number)} pairs are no neighbours on a lattice of {length} x {width}."
        )
    return terms[0], terms[1], system.fields.double().unflatten(-1, shape)


def _sweep(system: Ising, shape: tuple[int, int], beta: Tensor | None) -> Tensor:
    """log Z [*d], or for beta None minus the ground energy."""
    rows, columns, fields = _terms(system, shape)
    length, width = shape
    closed = bool((columns[..., -1, :] != 0).any())
    if width > (WIDEST if not closed else WIDEST - 2):
        raise ConfigError(f"Rows of {width} spins are too wide (at most {WIDEST}, {WIDEST - 2} with periodic columns).")
    if beta is not None:
        rows, columns, fields = (part * beta[..., None, None] for part in (rows, columns, fields))
    states = enumeration.spins(width).states()
    bonds = states * states.roll(-1, -1)
    # A row's own term [*d, L, 2^W].
    within = (rows.unsqueeze(-2) * bonds).sum(-1) + (fields.unsqueeze(-2) * states).sum(-1)
    size = len(states)
    if closed:
        # One vector for every state of the first row; without fields half of them say all.
        first = size // 2 if not bool((fields != 0).any()) else size
        vector = torch.full((first, size), -torch.inf, dtype=torch.float64)
        vector[torch.arange(first), torch.arange(first)] = 0.0
        vector = vector + within[..., 0, None, :]
    else:
        first = 0
        vector = within[..., 0, :]
    for row in range(1, length):
        vector = _across(vector, columns[..., row - 1, :], width, bool(first), beta is None)
        vector = vector + (within[..., row, None, :] if closed else within[..., row, :])
    if closed:
        last = columns[..., -1, :]
        vector = (vector + (last.unsqueeze(-2) * states[:first]) @ states.T).flatten(-2)
    if beta is None:
        return vector.amax(-1)
    return torch.logsumexp(vector, -1) + (math.log(2) if closed and first < size else 0.0)


def _across(vector: Tensor, links: Tensor, width: int, closed: bool, cold: bool) -> Tensor:
    """Every spin of a row [*d, (first,) 2^W] replaced by its neighbour in the next, one after the other."""
    lead = vector.shape[:-1]
    for spin in range(width):
        j = links[..., spin]
        j = j[..., None, None, None] if closed else j[..., None, None]
        down, up = vector.reshape(*lead, 2**spin, 2, -1).unbind(-2)
        if cold:
            new = torch.maximum(down + j, up - j), torch.maximum(down - j, up + j)
        else:
            new = torch.logaddexp(down + j, up - j), torch.logaddexp(down - j, up + j)
        vector = torch.stack(new, -2).reshape(*lead, -1)
    return vector
