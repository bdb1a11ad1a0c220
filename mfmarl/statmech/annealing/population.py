r"""Population annealing: many copies cooled together; the unlikely ones die, the likely ones multiply.

$$ w_r = e^{-(\beta_{k+1} - \beta_k) H(x_r)}, \qquad
   \log \frac{Z(\beta_K)}{Z(\beta_0)} = \sum_k \log \frac1R \sum_r w_r, \qquad
   \rho_t = R \sum_i \nu_i^2 $$

After each step of beta R copies are redrawn in proportion to w (systematic resampling), then swept. The product of
the mean weights is an unbiased estimate of the ratio of partition functions. nu_i is the share of the last population
that descends from copy i of the first: rho_t, the mean square family size, is the R below which nothing can be
trusted, and the variance of log Z is at most about rho_t/R. (Hukushima and Iba 2003, AIP Conf. Proc. 690, 200; Machta
2010, Phys. Rev. E 82, 026704; Wang, Machta and Katzgraber 2015, Phys. Rev. E 92, 063307.) Sequential Monte Carlo by
its other name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech import check, weighted_sampling
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.sampling.chains import Sweep, chain_ids


class Population(NamedTuple):
    """R copies at the last beta, of each of the populations [*b]."""

    states: Tensor
    """[*b, R, n]."""
    energies: Tensor
    """[*b, R]."""
    betas: Tensor
    """The schedule [K] (for adaptive steps, the one that was found)."""
    log_ratio: Tensor
    """log Z(beta_k)/Z(beta_0) [K, *b]."""
    family: Tensor
    """int64 [*b, R]: the copy of the first population that each descends from."""
    best_state: Tensor
    """The lowest state met [*b, n]."""
    best_energy: Tensor
    """[*b]."""

    @property
    def mean_square_family(self) -> Tensor:
        """rho_t [*b]: between 1 and R."""
        size = self.family.shape[-1]
        counts = torch.zeros_like(self.family).scatter_add(-1, self.family, torch.ones_like(self.family)).double()
        return (counts / size).square().sum(-1) * size

    @property
    def entropic_family(self) -> Tensor:
        """rho_s [*b] = R exp(-S_f), S_f the entropy of the families' shares: R over the families that count."""
        size = self.family.shape[-1]
        share = torch.zeros_like(self.family).scatter_add(-1, self.family, torch.ones_like(self.family)).double() / size
        return size * torch.special.xlogy(share, share).sum(-1).exp()


def anneal_population(
    sweep: Sweep,
    energy: Energy,
    x: Tensor,
    betas: Tensor,
    key: Key,
    *,
    sweeps: int = 1,
    ids: Tensor | None = None,
) -> Population:
    """Populations x [*b, R, n], drawn from equilibrium at betas[0], taken through `betas` [K] which go up.

    `ids` [*b] name the populations: one does not depend on how many others there are.
    """
    check.inverse_temperature(betas)
    if betas.ndim != 1 or len(betas) < 2 or not bool((betas.diff() > 0).all()) or not bool(betas.isfinite().all()):
        raise ConfigError("Population annealing needs at least 2 finite betas that go up.")
    state = _begin(energy, x, ids, sweeps)
    ratios = [torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)]
    for step in range(1, len(betas)):
        jump = float(betas[step] - betas[step - 1])
        state, more = _advance(state, sweep, energy, jump, float(betas[step]), key.fold(step), sweeps)
        ratios.append(ratios[-1] + more)
    return Population(state.x, state.energies, betas, torch.stack(ratios), state.family, state.best, state.best_energy)


def anneal_population_adaptively(
    sweep: Sweep,
    energy: Energy,
    x: Tensor,
    first: float,
    last: float,
    key: Key,
    *,
    keep: float = 0.85,
    sweeps: int = 1,
    ids: Tensor | None = None,
    most: int = 10_000,
) -> Population:
    """The same, each step of beta as large as leaves an effective share of at least `keep` of the copies (ESS/R) in
    every population.

    Steps that depend on the copies bias the estimate of log Z by order 1/R. Raises NumericFault after `most` steps.
    """
    if not 0 < keep < 1 or not 0 <= first < last:
        raise ConfigError(f"Population annealing goes up from {first:g} to {last:g} and keeps a share in (0, 1).")
    state = _begin(energy, x, ids, sweeps)
    ratios = [torch.zeros(x.shape[:-2], dtype=torch.float64, device=x.device)]
    betas = [first]
    while betas[-1] < last:
        if len(betas) > most:
            raise NumericFault(f"Population annealing got no further than beta = {betas[-1]:g} in {most} steps.")
        jump = _largest_jump(state.energies, last - betas[-1], keep)
        beta = last if jump >= last - betas[-1] else betas[-1] + jump
        state, more = _advance(state, sweep, energy, beta - betas[-1], beta, key.fold(len(betas)), sweeps)
        betas.append(beta)
        ratios.append(ratios[-1] + more)
    return Population(
        state.x, state.energies, torch.tensor(betas, dtype=torch.float64), torch.stack(ratios), state.family,
        state.best, state.best_energy,
    )  # fmt: skip


class _State(NamedTuple):
    x: Tensor
    energies: Tensor
    family: Tensor
    best: Tensor
    best_energy: Tensor
    ids: Tensor


def _begin(energy: Energy, x: Tensor, ids: Tensor | None, sweeps: int) -> _State:
    if x.ndim < 2 or x.shape[-2] < 2 or sweeps < 1:
        raise ConfigError(
            f"A population [*b, R, n] needs at least 2 copies and 1 sweep: not {list(x.shape)}, {sweeps}."
        )
    ids = chain_ids(x.shape[:-2], x.device) if ids is None else ids
    energies = energy(x)
    check.finite(energies, "The energy of the first population")
    family = torch.arange(x.shape[-2], device=x.device).expand(x.shape[:-1]).clone()
    return _lowest(_State(x, energies, family, x[..., 0, :], energies[..., 0], ids))


def _advance(
    state: _State, sweep: Sweep, energy: Energy, jump: float, beta: float, key: Key, sweeps: int
) -> tuple[_State, Tensor]:
    """Redraw for a jump of beta, sweep; log of the mean weight [*b]."""
    log_weights = -jump * state.energies.double()
    size = log_weights.shape[-1]
    more = torch.logsumexp(log_weights, -1) - torch.log(torch.tensor(float(size)))
    check.finite(more, "The weights of the population")
    source = weighted_sampling.resample(log_weights, state.ids, key.fold("redraw"))
    x = state.x.gather(-2, source.unsqueeze(-1).expand_as(state.x))
    own = state.ids.unsqueeze(-1) * size + torch.arange(size, device=x.device)
    for part in range(sweeps):
        x = sweep(x, beta, own, key.fold("sweep", part))
    new = _State(x, energy(x), state.family.gather(-1, source), state.best, state.best_energy, state.ids)
    return _lowest(new), more


def _lowest(state: _State) -> _State:
    low, where = state.energies.min(-1)
    found = state.x.gather(-2, where[..., None, None].expand(*where.shape, 1, state.x.shape[-1])).squeeze(-2)
    better = low < state.best_energy
    best = torch.where(better.unsqueeze(-1), found, state.best)
    return state._replace(best=best, best_energy=torch.where(better, low, state.best_energy))


def _largest_jump(energies: Tensor, furthest: float, keep: float) -> float:
    """The step of beta at which the worst population's effective share of copies is `keep`, by bisection."""
    size = energies.shape[-1]
    above = (energies - energies.amin(-1, keepdim=True)).double()

    def share(jump: float) -> float:
        weights = torch.exp(-jump * above)
        return float((weights.sum(-1) ** 2 / (size * weights.square().sum(-1))).min())

    if share(furthest) >= keep:
        return furthest
    low, high = 0.0, furthest
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > keep else (low, middle)
    return high
