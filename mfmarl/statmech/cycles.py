r"""Thermodynamic cycles: a system driven through energies and temperatures, with its work, heat and entropy accounted.

A stroke changes the energy and the bath at a frozen state, which is work, and then lets the state relax, which is heat:

$$ W_k = H_k(x_{k-1}) - H_{k-1}(x_{k-1}), \qquad Q_k = H_k(x_k) - H_k(x_{k-1}), \qquad \Delta U = \sum_k (W_k + Q_k) $$

$$ w = \sum_k \beta_k H_k(x_{k-1}) - \beta_{k-1} H_{k-1}(x_{k-1}), \qquad
   \langle e^{-w} \rangle = Z_K / Z_0, \qquad \langle w \rangle \ge \log Z_0 - \log Z_K $$

from equilibrium at the first stroke (Jarzynski 1997; Crooks 1999; with temperatures that change, Neal 2001). Round a
closed cycle Z_K = Z_0: <e^{-w}> = 1 and <w> >= 0 is what was lost for good, the area of the hysteresis loop. A sequence
of learning tasks is such a drive, with losses as energies of the weights: W is the surprise that a new task is to the
weights, Q what learning takes away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.sampling.chains import Sweep, chain_ids
from mfmarl.statmech.sampling.diagnostics import Estimate


class Stroke(NamedTuple):
    """Where the system is taken, and for how long it may relax there; 0 sweeps: it is not (an adiabatic stroke)."""

    energy: Energy
    beta: float
    sweeps: int


class Account(NamedTuple):
    """What each stroke after the first cost: [K, *chains]; energies [K + 1, *chains] at the end of every stroke."""

    work: Tensor
    """W_k: into the system, through its energy."""
    heat: Tensor
    """Q_k: into the system, from the bath at beta_k."""
    energy: Tensor
    """H_k(x_k)."""
    exponent: Tensor
    """The terms of w."""
    betas: Tensor
    """[K + 1]."""

    @property
    def reduced_work(self) -> Tensor:
        """w [*chains]: at one temperature beta times the work."""
        return self.exponent.sum(0)

    @property
    def entropy_to_baths(self) -> Tensor:
        """-sum_k beta_k Q_k [*chains]: the entropy given to the baths."""
        betas = self.betas[1:].reshape(-1, *[1] * (self.heat.ndim - 1))
        return -(betas * self.heat).sum(0)


def drive(
    strokes: Sequence[Stroke],
    sweep_of: Callable[[Energy], Sweep],
    x: Tensor,
    key: Key,
    *,
    ids: Tensor | None = None,
) -> tuple[Tensor, Account]:
    """Take chains [*chains, n] through the strokes; returns their last states and the account.

    The first stroke only relaxes: give it sweeps enough for equilibrium, or states that are there. `sweep_of` makes
    the sampler of an energy (such as `single_spin.heat_bath`). Every stroke is a bath of its own, so that work, heat
    and energy balance to rounding, chain by chain. Raises ConfigError for fewer than two strokes.
    """
    if len(strokes) < 2:
        raise ConfigError(f"A drive goes from one stroke to another: give at least 2, not {len(strokes)}.")
    ids = chain_ids(x.shape[:-1], x.device) if ids is None else ids
    work: list[Tensor] = []
    heat: list[Tensor] = []
    energies: list[Tensor] = []
    exponent: list[Tensor] = []
    before: Stroke | None = None
    for number, stroke in enumerate(strokes):
        check.inverse_temperature(stroke.beta)
        arrived = stroke.energy(x)
        if before is not None:
            left = energies[-1]
            work.append(arrived - left)
            exponent.append(stroke.beta * arrived - before.beta * left)
        sweep = sweep_of(stroke.energy)
        for step in range(stroke.sweeps):
            x = sweep(x, stroke.beta, ids, key.fold("stroke", number, step))
        settled = stroke.energy(x) if stroke.sweeps else arrived
        if before is not None:
            heat.append(settled - arrived)
        energies.append(settled)
        before = stroke
    betas = torch.tensor([stroke.beta for stroke in strokes], dtype=torch.float64, device=x.device)
    return x, Account(torch.stack(work), torch.stack(heat), torch.stack(energies), torch.stack(exponent), betas)


def isothermal(energies: Sequence[Energy], beta: float, sweeps: int) -> list[Stroke]:
    """Strokes through these energies at one temperature."""
    return [Stroke(energy, beta, sweeps) for energy in energies]


def dissipated(account: Account, log_partition_change: float | Tensor = 0.0) -> Estimate:
    """<w> + log(Z_K/Z_0), at least 0: what no way back returns; in nats, with its error over independent chains.

    The change is 0 for a cycle that ends where it began.
    """
    w = account.reduced_work.flatten().double()
    if w.numel() < 2:
        raise ConfigError("An average over chains needs at least 2 of them.")
    return Estimate(w.mean() + log_partition_change, w.std() / math.sqrt(w.numel()))


def efficiency(account: Account) -> Estimate:
    """Work given out over heat taken in from the hottest bath, of a cycle; its error by the delta method.

    Raises ConfigError where the hottest bath gives no heat: it is then no engine.
    """
    hottest = account.betas[1:] == account.betas[1:].min()
    taken = account.heat[hottest].sum(0).flatten().double()
    given = -account.work.sum(0).flatten().double()
    if not float(taken.mean()) > 0:
        raise ConfigError(f"The hottest bath takes up heat ({float(-taken.mean()):.3g}): this cycle is no engine.")
    eta = given.mean() / taken.mean()
    spread = (given - eta * taken).std() / math.sqrt(taken.numel())
    return Estimate(eta, spread / taken.mean())


def loop_area(order: Tensor, field: Sequence[float]) -> Tensor:
    """The closed integral of m dh, [*chains], of what was seen [K, *chains] at fields [K] that return to where they began.

    With H - h M it is the work of the loop per spin: 0 of a quasi-static one. Raises ConfigError for an open path.
    """
    if len(field) != len(order) or field[0] != field[-1]:
        raise ConfigError(f"A loop of {len(field)} fields for {len(order)} states must end at the field it began with.")
    steps = torch.tensor(field, dtype=order.dtype, device=order.device).diff().reshape(-1, *[1] * (order.ndim - 1))
    # At each change of the field the state is still that of the field before.
    return -(order[:-1] * steps).sum(0)
