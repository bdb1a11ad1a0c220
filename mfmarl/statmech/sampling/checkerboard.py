r"""The square lattice in plain torch: two colours, held apart, so that neighbours are shifted arrays.

$$ H = -J \sum_{\langle ij \rangle} s_i s_j - h \sum_i s_i \quad \text{on a torus with even sides} $$

The same laws as `single_spin` on `graphs.torus`, some ten times faster, on any device. Instead of the chance, the
noise is transformed: s = +1 where logistic noise lies below 2 beta h_i, a flip where exponential noise is at least
its cost. Chances are met to 2e-7. One pass over the spins per colour: beside them, 1 byte and a float per spin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.sampling.chains import Sweep
from mfmarl.statmech.sampling.single_spin import Rule

_COLDEST = 1e30  # beta = inf: finite, so that noise on a spin in no field keeps its sign


def torus_sweep(shape: tuple[int, int], rule: Rule = "heat_bath", coupling: float = 1.0, field: float = 0.0) -> Sweep:
    """Every spin of [*b, rows * columns] once, the even sites first; int8 states are fastest.

    Row r of the chain with id i draws the noise of id i rows + r. Raises ConfigError for odd sides or sides below 4
    (where the two colours interact with themselves, or links coincide), and for a coupling of 0.
    """
    rows, columns = shape
    if rows < 4 or columns < 4 or rows % 2 or columns % 2:
        raise ConfigError(f"A checkerboard on a torus needs even sides of at least 4, not {rows} x {columns}.")
    if rule not in ("heat_bath", "metropolis"):
        raise ConfigError(f"The rule of an update is 'heat_bath' or 'metropolis', not {rule!r}.")
    check.finite(torch.tensor([coupling, field]), "The coupling or field")
    if coupling == 0:
        raise ConfigError("A checkerboard needs a coupling other than 0; free spins are drawn at once.")
    sign, bias = (1 if coupling > 0 else -1), field / abs(coupling)

    def sweep(s: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        check.spins(s, rows * columns)
        lattice = s.to(torch.int8).reshape(*s.shape[:-1], rows, columns)
        colours = list(_split(lattice))
        beta = torch.as_tensor(beta, dtype=torch.float32, device=s.device).clamp(max=_COLDEST)
        scale = (0.5 / abs(coupling) / beta).reshape(*beta.shape, 1, 1)
        line = ids.unsqueeze(-1) * rows + torch.arange(rows, device=s.device)
        for colour in range(2):
            around = _neighbours(colours[1 - colour], colour)
            if sign < 0:
                around.neg_()
            own = key.fold("colour", colour)
            if rule == "heat_bath":
                noise = torch.logit(random.uniform(own, line, columns // 2)).mul_(scale)
                if bias:
                    noise -= bias
                colours[colour] = (noise < around).to(torch.int8).mul_(2).sub_(1)
            else:
                noise = random.exponential(own, line, columns // 2).mul_(scale)
                cost = around.mul_(colours[colour])
                if bias:
                    noise -= bias * colours[colour]
                turned = (noise >= cost).to(torch.int8).mul_(-2).add_(1)
                colours[colour] = turned.mul_(colours[colour])
        return _merge(colours[0], colours[1]).reshape(s.shape).to(s.dtype)

    return sweep


def _split(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """The even and the odd sites of [*b, R, C], each [*b, R, C/2]."""
    even = torch.empty_like(lattice[..., : lattice.shape[-1] // 2])
    odd = torch.empty_like(even)
    even[..., 0::2, :], even[..., 1::2, :] = lattice[..., 0::2, 0::2], lattice[..., 1::2, 1::2]
    odd[..., 0::2, :], odd[..., 1::2, :] = lattice[..., 0::2, 1::2], lattice[..., 1::2, 0::2]
    return even, odd


def _merge(even: Tensor, odd: Tensor) -> Tensor:
    lattice = even.new_empty(*even.shape[:-1], 2 * even.shape[-1])
    lattice[..., 0::2, 0::2], lattice[..., 1::2, 1::2] = even[..., 0::2, :], even[..., 1::2, :]
    lattice[..., 0::2, 1::2], lattice[..., 1::2, 0::2] = odd[..., 0::2, :], odd[..., 1::2, :]
    return lattice


def _neighbours(other: Tensor, colour: int) -> Tensor:
    """The sum of the four neighbours of each site of a colour, from the sites of the other."""
    total = other.roll(1, -2).add_(other.roll(-1, -2)).add_(other)
    # In its row a site has one neighbour at its own place and one to the left where its column is even, else right.
    total[..., colour::2, :] += other[..., colour::2, :].roll(1, -1)
    total[..., 1 - colour :: 2, :] += other[..., 1 - colour :: 2, :].roll(-1, -1)
    return total
