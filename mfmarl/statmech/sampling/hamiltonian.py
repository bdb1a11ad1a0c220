r"""Hamiltonian Monte Carlo on many chains at once, with leapfrogs; `tuning.warm_up` finds its settings.

$$ \mathcal H(x, p) = \beta H(x) + \tfrac12 p^\top M^{-1} p, \qquad
   p \leftarrow p - \tfrac{\varepsilon}{2} \beta \nabla H,\quad x \leftarrow x + \varepsilon M^{-1} p,\quad
   p \leftarrow p - \tfrac{\varepsilon}{2} \beta \nabla H $$

The end of a trajectory is accepted with probability min(1, exp(-change of the total)). For one step in a standard
normal variable that is 1 - (2/pi) atan(eps^3/8) on average. All chains take equally many leapfrogs, of a number drawn
anew for each sweep (jitter), so that no direction is in resonance and the batch stays one batch.

Duane, Kennedy, Pendleton and Roweth 1987 (Phys. Lett. B 195, 216); Neal 2011 (Handbook of MCMC, ch. 5).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy, gradient
from mfmarl.statmech.sampling import noise
from mfmarl.statmech.sampling.chains import Sweep, chain_ids
from mfmarl.statmech.sampling.langevin import column

_DIVERGENCE = 1000.0  # a change of the total beyond it: the integrator has lost the trajectory


class Divergences(UserWarning):
    """Trajectories that the leapfrog lost: regions of high curvature are under-sampled. Use a smaller step."""


class Transition(NamedTuple):
    """One trajectory of every chain."""

    x: Tensor
    """[*b, n]: the new states."""
    acceptance: Tensor
    """[*b]."""
    divergent: Tensor
    """bool [*b]."""
    proposal: Tensor
    """[*b, n]: where the trajectories ended, accepted or not."""
    momentum: Tensor
    """[*b, n]: with which they ended."""
    energy: Tensor
    """H(x), [*b]."""
    slope: Tensor
    """dH/dx at x, [*b, n]: with `energy`, what the next trajectory need not compute again."""


class Metric:
    """M^-1 as a diagonal [n] or a matrix [n, n]; ideally the covariance of what is sampled."""

    def __init__(self, inverse_mass: Tensor) -> None:
        check.finite(inverse_mass, "An inverse mass")
        self.inverse_mass, self.dense = inverse_mass, inverse_mass.ndim == 2
        if self.dense:
            check.symmetric(inverse_mass, "An inverse mass")
            factor, failed = torch.linalg.cholesky_ex(inverse_mass)
            if bool(failed):
                raise ConfigError("A matrix of inverse masses must be positive definite.")
            identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
            self.root = torch.linalg.solve_triangular(factor, identity, upper=False)  # p = z root ~ N(0, M)
        else:
            if inverse_mass.ndim != 1 or not bool((inverse_mass > 0).all()):
                raise ConfigError("Inverse masses must be [n] numbers above 0, or a positive definite matrix [n, n].")
            self.root = inverse_mass.rsqrt()
        self.unit = not self.dense and bool((inverse_mass == 1).all())

    def to(self, x: Tensor) -> Metric:
        """In the dtype and on the device of the states."""
        if self.inverse_mass.shape[-1] != x.shape[-1]:
            raise ConfigError(f"Inverse masses of {self.inverse_mass.shape[-1]} variables for states of {x.shape[-1]}.")
        same = self.inverse_mass.dtype == x.dtype and self.inverse_mass.device == x.device
        return self if same else Metric(self.inverse_mass.to(x))

    def draw(self, key: Key, ids: Tensor, like: Tensor) -> Tensor:
        z = noise.normal(key, ids, like.shape[-1], like.dtype)
        if self.unit:
            return z
        return z @ self.root if self.dense else z.mul_(self.root)

    def kinetic(self, p: Tensor) -> Tensor:
        """p^T M^-1 p/2, [*b]."""
        if self.dense:
            return 0.5 * (p * (p @ self.inverse_mass)).sum(-1)
        return 0.5 * torch.linalg.vector_norm(p if self.unit else p / self.root, dim=-1).square()

    def drift_(self, x: Tensor, p: Tensor, step: float) -> None:
        """x += step M^-1 p."""
        if self.unit:
            x.add_(p, alpha=step)
        elif self.dense:
            x.add_(p @ self.inverse_mass, alpha=step)
        else:
            x.addcmul_(p, self.inverse_mass, value=step)

    def square(self, away: Tensor) -> Tensor:
        """away^T M away, [*b]."""
        return (away @ self.root.mT if self.dense else away * self.root).square().sum(-1)


def transition(
    energy: Energy,
    metric: Metric,
    step_size: float,
    steps: int,
    x: Tensor,
    beta: float | Tensor,
    ids: Tensor,
    key: Key,
    before: Transition | None = None,
) -> Transition:
    """Fresh momenta, `steps` leapfrogs, and the choice: `steps + 1` gradients and 2 energies per chain.

    One of each less, if `before` is the transition that led to `x`.
    """
    cold = column(beta)
    p = metric.draw(key.fold("momenta"), ids, x)
    old, old_slope = (energy(x), gradient(energy, x).clone()) if before is None else (before.energy, before.slope)
    total = beta * old + metric.kinetic(p)
    new = x.clone()

    def kick(slope: Tensor, size: float) -> None:
        if isinstance(cold, Tensor):
            p.addcmul_(slope, (-size * cold).to(p.dtype))
        else:
            p.add_(slope, alpha=-size * cold)

    slope = old_slope
    kick(slope, step_size / 2)
    for i in range(steps):
        metric.drift_(new, p, step_size)
        slope = gradient(energy, new)
        kick(slope, step_size if i < steps - 1 else step_size / 2)
    end = energy(new)
    change = beta * end + metric.kinetic(p) - total
    accept = (-change).clamp(max=0).exp().nan_to_num(0.0)
    refused = random.uniform(key.fold("accept"), ids) >= accept
    divergent = ~(change < _DIVERGENCE)
    # Most are accepted: only the others are written back.
    kept, kept_slope = new.clone(), slope.clone()
    kept[refused], kept_slope[refused] = x[refused], old_slope[refused]
    return Transition(kept, accept, divergent, new, p, torch.where(refused, old, end), kept_slope)


def _length(key: Key, steps: int, jitter: bool) -> int:
    """How many leapfrogs this sweep takes: 1 to `steps`, all alike likely, the same for every chain."""
    if not jitter:
        return steps
    return int(random.integers(key.fold("length"), torch.zeros(1, dtype=torch.int64), steps)) + 1


@dataclass(frozen=True, eq=False)
class Tuned:
    """The settings of a sampler."""

    step_size: float
    steps: int
    """The most leapfrogs of a sweep."""
    inverse_mass: Tensor
    """[n] or [n, n]."""
    jitter: bool = True
    """Whether a sweep takes 1 to `steps` leapfrogs, drawn anew, or always `steps`."""

    def __post_init__(self) -> None:
        if not (self.step_size > 0 and math.isfinite(self.step_size)) or self.steps < 1:
            raise ConfigError(
                f"HMC needs a step size above 0 and at least 1 step, not {self.step_size:g} and {self.steps}."
            )
        Metric(self.inverse_mass)

    def move(self, energy: Energy) -> Callable[..., Transition]:
        """(x, beta, ids, key, before=None) -> Transition."""
        metrics: dict[tuple[torch.dtype, torch.device], Metric] = {}

        def one(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key, before: Transition | None = None) -> Transition:
            where = (x.dtype, x.device)
            if where not in metrics:
                metrics[where] = Metric(self.inverse_mass).to(x)
            steps = _length(key, self.steps, self.jitter)
            return transition(energy, metrics[where], self.step_size, steps, x, beta, ids, key, before)

        return one

    def sweep(self, energy: Energy) -> Sweep:
        """One trajectory per sweep, for `chains.run`, tempering and annealing."""
        move = self.move(energy)
        return lambda x, beta, ids, key: move(x, beta, ids, key).x


def hmc(
    energy: Energy, step_size: float, steps: int, inverse_mass: Tensor | None = None, jitter: bool = False
) -> Sweep:
    """HMC with settings of your own; `inverse_mass` is [n] or [n, n] (default: ones)."""
    if inverse_mass is not None:
        return Tuned(step_size, steps, inverse_mass, jitter).sweep(energy)
    sweeps: dict[int, Sweep] = {}

    def sweep(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        n = x.shape[-1]
        if n not in sweeps:
            sweeps[n] = Tuned(step_size, steps, torch.ones(n, dtype=x.dtype, device=x.device), jitter).sweep(energy)
        return sweeps[n](x, beta, ids, key)

    Tuned(step_size, steps, torch.ones(1), jitter)
    return sweep


class Report(NamedTuple):
    """How a run of HMC went."""

    acceptance: Tensor
    """Mean acceptance of each chain, [*b]."""
    divergences: Tensor
    """How many trajectories of each chain were lost, int64 [*b]."""


def sample(
    energy: Energy,
    tuned: Tuned,
    x: Tensor,
    beta: float | Tensor,
    key: Key,
    steps: int,
    observe: Callable[[Tensor], Any] | None = None,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Report]:
    """Last states [*b, n], observations [steps, *b, ...] (default: the states), and how it went.

    The same chains as `chains.run(tuned.sweep(energy), x, beta, key, steps)`. Warns of divergences.
    """
    check.inverse_temperature(beta)
    ids = chain_ids(x.shape[:-1], x.device) if ids is None else ids
    move, seen = tuned.move(energy), []
    acceptance = torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)
    lost = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    moved: Transition | None = None
    for step in range(steps):
        moved = move(x, beta, ids, key.fold("sweep", step), moved)
        x = moved.x
        acceptance += moved.acceptance
        lost += moved.divergent
        seen.append((x if observe is None else observe(x)).clone())
    if bool(lost.any()):
        warnings.warn(
            f"{int(lost.sum())} of {steps * lost.numel()} trajectories diverged: averages near high curvature are "
            "not to be trusted; use a smaller step size.",
            Divergences,
            stacklevel=2,
        )
    return x, torch.stack(seen), Report(acceptance / steps, lost)
