r"""Simulated annealing: any sampler, cooled down along any schedule, and the best state it met on the way.

$$ x_{k+1} \sim K_{\beta_k}(x_k, \cdot), \qquad \beta_0 \le \beta_1 \le \dots $$

Kirkpatrick, Gelatt and Vecchi 1983 (Science 220, 671). A `Sweep` over spins makes it the classical one; Langevin or
Hamiltonian steps make it annealed Langevin dynamics on a continuous energy. Cooling like T = c/log(t) is sure to end
in a ground state (Hajek 1988, Math. Oper. Res. 13, 311), with c the depth of the deepest local minimum; any affordable
schedule freezes before, in a state of low *free energy* at the temperature where the walk fell out of equilibrium.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.sampling.chains import Sweep, chain_ids


class Annealed(NamedTuple):
    """What cooling left behind, of every chain [*b]."""

    state: Tensor
    """The last states [*b, n]."""
    energy: Tensor
    """Their energies [*b]."""
    best_state: Tensor
    """The lowest states met [*b, n]."""
    best_energy: Tensor
    """[*b]."""
    trace: Tensor
    """Energies after every sweep [K, *b]."""


def anneal(
    sweep: Sweep,
    energy: Energy,
    x: Tensor,
    betas: Tensor,
    key: Key,
    *,
    sweeps: int = 1,
    ids: Tensor | None = None,
) -> Annealed:
    """`sweeps` of states x [*b, n] at each of `betas` [K, *b] or [K], in their order. `ids` [*b] name the chains."""
    check.inverse_temperature(betas)
    if betas.ndim < 1 or len(betas) < 1 or sweeps < 1:
        raise ConfigError("Annealing needs a row of betas [K] and at least 1 sweep at each.")
    ids = chain_ids(x.shape[:-1], x.device) if ids is None else ids
    best, best_energy, trace = x.clone(), energy(x), []
    for step, beta in enumerate(betas):
        for part in range(sweeps):
            x = sweep(x, beta if beta.ndim else float(beta), ids, key.fold("sweep", step, part))
            found = energy(x)
            trace.append(found)
            lower = found < best_energy
            best = torch.where(lower.unsqueeze(-1), x, best)
            best_energy = torch.where(lower, found, best_energy)
    return Annealed(x, found, best, best_energy, torch.stack(trace))


def betas_of(schedule: Schedule, steps: int) -> Tensor:
    """1/T [K] of a schedule of temperatures, at the middles of `steps` equal parts of the run; inf where T = 0."""
    if steps < 1:
        raise ConfigError(f"A schedule of {steps} steps is none.")
    if schedule.kind == "entropy":
        raise ConfigError("A schedule that keeps an entropy has no betas in advance: it needs the energies.")
    temperatures = [schedule.at((step + 0.5) / steps) for step in range(steps)]
    return 1 / torch.tensor(temperatures, dtype=torch.float64)
