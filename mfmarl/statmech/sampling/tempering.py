r"""Parallel tempering: the same system at many temperatures, whose neighbours now and then exchange their states.

$$ P(\text{swap } r, r+1) = \min\bigl(1, e^{(\beta_r - \beta_{r+1})(H_r - H_{r+1})}\bigr) $$

Swendsen and Wang 1986 (Phys. Rev. Lett. 57, 2607); Hukushima and Nemoto 1996 (J. Phys. Soc. Jpn. 65, 1604). Even and
odd pairs take turns, which carries states farther than drawing the pairs (Syed et al. 2022, J. R. Stat. Soc. B 84,
321). Any sweep and any energy serve, of discrete and continuous states alike. Rung 0 is the hottest.

For energies that are close to normal, rungs d apart in thermodynamic length accept erfc(d/2) of the swaps on average:

$$ \lambda(\beta) = \int^\beta \sigma_H(b)\, db, \qquad \langle P \rangle = \mathrm{erfc}(\Delta\lambda / 2) $$

(Predescu et al. 2004, J. Chem. Phys. 120, 4119; Kofke 2002), so a ladder of even acceptance has even steps in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy import special
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.sampling.chains import Sweep, chain_ids


class Tempered(NamedTuple):
    """What a run of R rungs leaves behind. A walker is a state on its way through the rungs."""

    states: Tensor
    """[R, *b, n] after the last swap."""
    seen: Tensor
    """What was observed, [steps // thin, R, *b, ...]."""
    acceptance: Tensor
    """[R - 1, *b]: the share of the swaps tried between rungs r and r + 1 that was accepted."""
    walkers: Tensor
    """int64 [R, *b]: where the walker that is now on each rung began."""
    round_trips: Tensor
    """int64 [*b]: journeys from the hottest rung to the coldest and back, of all walkers."""
    flow: Tensor
    """[R]: of the visitors that have met an end, the share that met the hottest last. 1 at the hot end, 0 at the
    cold; a straight line is the best ladder (Katzgraber et al. 2006, J. Stat. Mech. P03018); a cliff is a bottleneck."""


def swap_probability(energies: Tensor, betas: Tensor) -> Tensor:
    """The chance [R - 1, *b] that rungs r and r + 1 exchange states of energies [R, *b], at betas [R]."""
    step = (betas[:-1] - betas[1:]).reshape(-1, *[1] * (energies.ndim - 1))
    return torch.exp(step * (energies[:-1] - energies[1:])).clamp(max=1)


def swap(energies: Tensor, betas: Tensor, parity: int, ids: Tensor, key: Key) -> tuple[Tensor, Tensor]:
    """One round of swaps of the pairs (r, r + 1) with r = parity, parity + 2, ...

    Energies are [R, *b], ids [*b]. Returns int64 [R, *b], the rung whose state each rung now gets, and bool
    [R - 1, *b], which pairs were exchanged.
    """
    rungs = len(betas)
    noise = random.uniform(key, ids, rungs - 1).movedim(-1, 0)
    turn = (torch.arange(rungs - 1, device=ids.device) % 2 == parity % 2).reshape(-1, *[1] * ids.ndim)
    done = (noise < swap_probability(energies, betas)) & turn
    source = torch.arange(rungs, device=ids.device).reshape(-1, *[1] * ids.ndim).repeat(1, *ids.shape)
    source[:-1] += done
    source[1:] -= done.to(torch.int64)
    return source, done


def parallel_tempering(
    sweep: Sweep,
    energy: Energy,
    x: Tensor,
    betas: Tensor,
    key: Key,
    steps: int,
    observe: Callable[[Tensor], Any] | None = None,
    *,
    warm_up: int = 0,
    thin: int = 1,
    sweeps_per_swap: int = 1,
    ids: Tensor | None = None,
) -> Tempered:
    """`warm_up + steps` rounds, each of `sweeps_per_swap` sweeps on every rung and a round of swaps.

    States x are [R, *b, n] for betas [R] that go up; chains [*b] are independent ladders with ids [*b]. `observe`
    maps states [R, *b, n] to [R, *b, ...] (default: the energies) after the swaps of every `thin`-th round that
    counts. Rung r of the chain with id i sweeps with the noise of id i R + r.
    """
    _check_ladder(betas)
    rungs = len(betas)
    if x.ndim < 2 or len(x) != rungs:
        raise ConfigError(f"States of {rungs} temperatures must have shape [{rungs}, ..., n], not {list(x.shape)}.")
    if steps < 1 or warm_up < 0 or not 1 <= thin <= steps or sweeps_per_swap < 1:
        raise ConfigError(
            f"A run of {steps} rounds after {warm_up}, every {thin}-th kept, {sweeps_per_swap} sweeps each, is none."
        )
    batch = x.shape[1:-1]
    ids = chain_ids(batch, x.device) if ids is None else ids
    column = (rungs, *[1] * len(batch))
    own = ids * rungs + torch.arange(rungs, device=x.device).reshape(column)
    beta = betas.to(x.device).reshape(column).expand(rungs, *batch)
    walkers = torch.arange(rungs, device=x.device).reshape(column).repeat(1, *batch)
    last_end = torch.zeros_like(walkers)  # of each walker, by where it began: 1 hot, -1 cold, 0 neither yet
    departed = torch.zeros_like(walkers, dtype=torch.bool)  # it has been at the hot end
    trips = torch.zeros(batch, dtype=torch.int64, device=x.device)
    tried = torch.zeros(column, dtype=torch.float64, device=x.device)[1:]
    done = torch.zeros(rungs - 1, *batch, dtype=torch.float64, device=x.device)
    from_hot, from_any = torch.zeros(rungs, dtype=torch.float64), torch.zeros(rungs, dtype=torch.float64)
    seen = []
    for step in range(warm_up + steps):
        for part in range(sweeps_per_swap):
            x = sweep(x, beta, own, key.fold("sweep", step, part))
        energies = energy(x)
        source, exchanged = swap(energies, betas.to(x.device), step, ids, key.fold("swap", step))
        x = x.gather(0, source.unsqueeze(-1).expand_as(x))
        walkers = walkers.gather(0, source)
        hot, cold = walkers[:1], walkers[-1:]
        trips += ((last_end.gather(0, hot) < 0) & departed.gather(0, hot)).squeeze(0)
        last_end.scatter_(0, hot, 1).scatter_(0, cold, -1)
        departed.scatter_(0, hot, True)
        if step < warm_up:
            trips.zero_()
            continue
        tried[step % 2 :: 2] += 1
        done += exchanged
        label = last_end.gather(0, walkers).reshape(rungs, -1)
        from_hot += (label > 0).sum(-1).cpu()
        from_any += (label != 0).sum(-1).cpu()
        if (step - warm_up + 1) % thin == 0:
            seen.append(energies.gather(0, source) if observe is None else observe(x).clone())
    return Tempered(x, torch.stack(seen), done / tried.clamp(min=1), walkers, trips, from_hot / from_any.clamp(min=1))


def ladder(betas: Tensor, deviations: Tensor, acceptance: float = 0.3) -> Tensor:
    """Betas [R] from the first to the last of `betas` [G] between which swaps are accepted about alike.

    `deviations` [G] are the standard deviations of the energy at `betas`, a grid fine enough to integrate them. The
    acceptance is at least about `acceptance`: the number of rungs is rounded up.
    """
    _check_ladder(betas)
    if not 0 < acceptance < 1:
        raise ConfigError(f"The acceptance aimed at must lie between 0 and 1, not {acceptance:g}.")
    check.finite(deviations, "The standard deviation of the energy")
    if deviations.shape != betas.shape:
        raise ConfigError(f"{len(betas)} betas need as many deviations, not {list(deviations.shape)}.")
    parts = (deviations[1:] + deviations[:-1]).double() / 2 * betas.diff()
    length = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    total = float(length[-1])
    if not total > 0:
        raise ConfigError("An energy that does not vary at any beta needs no ladder.")
    stride = 2 * float(special.erfcinv(acceptance))
    rungs = max(2, 1 + -int(-total // stride))
    wanted = torch.linspace(0, total, rungs, dtype=torch.float64)
    right = torch.searchsorted(length, wanted).clamp(1, len(length) - 1)
    share = (wanted - length[right - 1]) / (length[right] - length[right - 1]).clamp(min=1e-300)
    betas = betas.double()
    chosen = betas[right - 1] + share.clamp(0, 1) * (betas[right] - betas[right - 1])
    chosen[0], chosen[-1] = betas[0], betas[-1]
    return chosen


def choose_ladder(
    sweep: Sweep,
    energy: Energy,
    x: Tensor,
    hottest: float,
    coldest: float,
    key: Key,
    acceptance: float = 0.3,
    *,
    grid: int = 24,
    steps: int = 200,
) -> Tensor:
    """`ladder` from a pilot run: parallel tempering of states [*b, n] on `grid` betas, denser where it is hot.

    The first half of the `steps` is warm-up. More chains [*b] give better deviations.
    """
    if not 0 <= hottest < coldest:
        raise ConfigError(f"A ladder goes up from a beta of at least 0, not from {hottest:g} to {coldest:g}.")
    betas = hottest + (coldest - hottest) * torch.linspace(0, 1, grid, dtype=torch.float64) ** 2
    states = x.unsqueeze(0).expand(grid, *x.shape)
    pilot = parallel_tempering(sweep, energy, states, betas, key, steps // 2, warm_up=steps - steps // 2)
    return ladder(betas, pilot.seen.movedim(1, 0).reshape(grid, -1).double().std(-1), acceptance)


def _check_ladder(betas: Tensor) -> None:
    check.inverse_temperature(betas)
    if betas.ndim != 1 or len(betas) < 2 or not bool((betas.diff() > 0).all()) or not bool(betas.isfinite().all()):
        raise ConfigError("A ladder is at least 2 finite betas that go up: the hottest first.")
