r"""Langevin dynamics at temperature 1/beta: unadjusted, Metropolis-adjusted, and underdamped (BAOAB).

$$ x' = x - \varepsilon \nabla H(x) + \sqrt{2 \varepsilon / \beta}\, \xi \quad \text{(ULA; MALA accepts it with }
   \min(1, e^{-\beta \Delta H} q(x | x') / q(x' | x))), $$
$$ dx = p\, dt, \quad dp = -\nabla H\, dt - \gamma p\, dt + \sqrt{2 \gamma / \beta}\, dW \quad \text{(unit masses)} $$

ULA is biased: in a harmonic well H = k x^2/2 its variance is T/(k (1 - eps k/2)). BAOAB's positions are exact there
(its momenta are not), and of second order elsewhere; MALA is exact everywhere.

Parisi 1981 (Nucl. Phys. B 180, 378); Roberts and Tweedie 1996 (Bernoulli 2, 341); Leimkuhler and Matthews 2013
(Appl. Math. Res. Express 2013, 34). The sweeps keep the contract of `chains`; beta = inf is gradient descent.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.energy import Energy, gradient
from mfmarl.statmech.sampling import noise
from mfmarl.statmech.sampling.chains import Sweep


def column(value: float | Tensor) -> float | Tensor:
    """A number per chain [*b] as [*b, 1], so that it broadcasts against states [*b, n]; a plain number as it is."""
    return value.unsqueeze(-1) if isinstance(value, Tensor) and value.ndim else value


def _spread(step: float | Tensor, beta: float | Tensor) -> float | Tensor:
    """sqrt(2 eps/beta), of numbers or columns."""
    if not (float(beta.min()) if isinstance(beta, Tensor) else beta) > 0:
        raise ConfigError("Langevin dynamics needs beta above 0: at infinite temperature it has no equilibrium.")
    square = 2 * step / beta
    return square.sqrt() if isinstance(square, Tensor) else math.sqrt(square)


def _noise(key: Key, ids: Tensor, like: Tensor, spread: float | Tensor) -> Tensor:
    """Normals of a standard deviation, or of one per chain [*b, 1], in the shape of `like`."""
    if isinstance(spread, Tensor):
        return noise.normal(key, ids, like.shape[-1], like.dtype).mul_(spread)
    return noise.normal(key, ids, like.shape[-1], like.dtype, spread)


def _positive(value: float | Tensor, name: str) -> None:
    low = float(value.min()) if isinstance(value, Tensor) else float(value)
    if not (low > 0 and math.isfinite(low)):
        raise ConfigError(f"{name} must be above 0 and finite, not {low:g}.")


def ula(energy: Energy, step_size: float | Tensor, steps: int = 1) -> Sweep:
    """`steps` unadjusted steps to a sweep. With a gradient from minibatches it is SGLD (Welling and Teh 2011).

    `step_size` is a number or one per chain [*b]. See the head for the bias.
    """
    _positive(step_size, "A Langevin step size")

    def sweep(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        step = column(step_size)
        spread = _spread(step, column(beta))
        for i in range(steps):
            kick = _noise(key if steps == 1 else key.fold(i), ids, x, spread)
            slope = gradient(energy, x)
            # In place on the noise, which is ours: one pass over the state.
            kick = kick.add_(slope, alpha=-step) if not isinstance(step, Tensor) else kick.addcmul_(slope, -step)
            x = kick.add_(x)
        return x

    return sweep


class Proposal(NamedTuple):
    """What a Metropolis-adjusted move did."""

    x: Tensor
    """[*b, n]."""
    acceptance: Tensor
    """Probability with which each was accepted, [*b]."""


def mala_transition(
    energy: Energy, step_size: float | Tensor, x: Tensor, beta: float | Tensor, ids: Tensor, key: Key
) -> Proposal:
    """One MALA move and its acceptance probability; a proposal of infinite or undefined energy is refused."""
    step, cold = column(step_size), column(beta)
    spread = _spread(step, cold)
    kick = noise.normal(key.fold("move"), ids, x.shape[-1], x.dtype)
    slope = gradient(energy, x)
    new = x - step * slope + spread * kick
    back = (x - new + step * gradient(energy, new)) / spread
    log_accept = -beta * (energy(new) - energy(x)) - 0.5 * (back.square() - kick.square()).sum(-1)
    accept = log_accept.clamp(max=0).exp().nan_to_num(0.0)
    taken = random.uniform(key.fold("accept"), ids) < accept
    return Proposal(torch.where(taken.unsqueeze(-1), new, x), accept)


def mala(energy: Energy, step_size: float | Tensor, steps: int = 1) -> Sweep:
    """`steps` Metropolis-adjusted moves to a sweep: exact at any step size; best where .574 are accepted."""
    _positive(step_size, "A Langevin step size")

    def sweep(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        for i in range(steps):
            x = mala_transition(energy, step_size, x, beta, ids, key.fold(i)).x
        return x

    return sweep


def with_momenta(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
    """States [x, p] packed on the last axis, [*b, 2 n], with momenta p ~ N(0, 1/beta)."""
    spread = _spread(0.5, column(beta))
    return torch.cat([x, noise.normal(key.fold("momenta"), ids, x.shape[-1], x.dtype) * spread], -1)


def positions(packed: Tensor) -> Tensor:
    """x [*b, n] of packed states [*b, 2 n]."""
    return packed[..., : packed.shape[-1] // 2]


class Hamiltonian:
    """H(x) + p^2/2 of packed states [x, p], [*b, 2 n] -> [*b]: the energy whose distribution BAOAB samples.

    Give it, not H, to whatever weighs BAOAB's states: replica exchange, annealed importance sampling.
    """

    def __init__(self, energy: Energy) -> None:
        self.energy = energy

    def __call__(self, packed: Tensor) -> Tensor:
        n = packed.shape[-1] // 2
        return self.energy(packed[..., :n]) + 0.5 * packed[..., n:].square().sum(-1)

    def gradient(self, packed: Tensor) -> Tensor:
        n = packed.shape[-1] // 2
        return torch.cat([gradient(self.energy, packed[..., :n]), packed[..., n:]], -1)


def baoab(energy: Energy, step_size: float | Tensor, friction: float = 1.0, steps: int = 1) -> Sweep:
    """Underdamped Langevin on packed states [x, p] (see `with_momenta`): kick, drift, thermostat, drift, kick.

    A sweep is `steps` steps with `steps + 1` gradients; `friction` is gamma, in units of 1/time.
    """
    _positive(step_size, "A Langevin step size")
    _positive(friction, "A friction")
    if steps < 1:
        raise ConfigError(f"A sweep needs at least one step, not {steps}.")

    def sweep(packed: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        n = packed.shape[-1] // 2
        if packed.shape[-1] != 2 * n:
            raise ConfigError("BAOAB moves packed states [x, p] of even length: make them with `with_momenta`.")
        x, p = packed[..., :n].clone(), packed[..., n:].clone()
        step = column(step_size)
        half = step / 2
        keep = torch.exp(-friction * step) if isinstance(step, Tensor) else math.exp(-friction * step)
        spread = _spread(0.5 * (1 - keep * keep), column(beta))
        slope = gradient(energy, x)
        for i in range(steps):
            p -= half * slope
            x += half * p
            p *= keep
            p += _noise(key.fold(i), ids, x, spread)
            x += half * p
            slope = gradient(energy, x)
            p -= half * slope
        return torch.cat([x, p], -1)

    return sweep
