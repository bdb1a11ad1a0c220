r"""The Gibbs distribution over a finite set of energies.

$$ p_T(a) = e^{-E(a)/T} / Z, \qquad F = -T \log Z = \langle E \rangle_p - T\, H(p) = \min_q \langle E \rangle_q - T\, H(q) $$

Energies lie on the last axis; leading axes are a batch. An energy of `inf` is forbidden (probability 0).
The temperature is a number or a tensor that broadcasts against the batch. At T = 0 the distribution is
uniform over the ground states, and every function here takes that limit without overflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.random import Key

_COLDEST = 1e-30  # (E - E_min)/T is then 0 or huge: the limit T -> 0 in float32, without 0/0


def _reduced(energy: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """(E - E_min)/T, and E_min [..., 1]."""
    ground = energy.amin(-1, keepdim=True)
    # A row of nothing but forbidden states has E_min = inf: inf - inf must not become NaN silently.
    ground = torch.where(torch.isinf(ground), torch.zeros_like(ground), ground)
    if isinstance(temperature, Tensor):
        cold = temperature.clamp(min=_COLDEST)
        cold = cold.unsqueeze(-1) if cold.ndim else cold
        return (energy - ground) / cold, ground
    return (energy - ground) / max(temperature, _COLDEST), ground


def log_probabilities(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """log p [..., A]; -inf for the forbidden."""
    return torch.log_softmax(-_reduced(energy, temperature)[0], dim=-1)


def probabilities(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """p [..., A], sums to 1."""
    return torch.softmax(-_reduced(energy, temperature)[0], dim=-1)


def free_energy(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """F = -T log Z, [...]; the least energy at T = 0."""
    reduced, ground = _reduced(energy, temperature)
    log_z = torch.logsumexp(-reduced, dim=-1)
    return ground.squeeze(-1) - temperature * log_z


def mean_energy(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """<E>, [...]: forbidden states weigh nothing."""
    p = probabilities(energy, temperature)
    return torch.where(p > 0, p * energy, torch.zeros_like(p)).sum(-1)


def entropy(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """H(p) in nats, [...]."""
    log_p = log_probabilities(energy, temperature)
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, torch.zeros_like(p)).sum(-1)


def sample(energy: Tensor, temperature: float | Tensor, ids: Tensor, key: Key) -> Tensor:
    """One state per row, int64 [...]: inversion of the cumulative distribution, one uniform per row.

    `ids` has the batch's shape. Forbidden states are never drawn, whatever the rounding.
    """
    p = probabilities(energy, temperature)
    cumulative = p.cumsum(-1)
    level = random.uniform(key, ids).unsqueeze(-1) * cumulative[..., -1:]
    if p.shape[-1] == 2:
        # Two states are the spins' case: the level is compared once. p = 0 or 1 stays exact.
        return (level >= cumulative[..., :1]).squeeze(-1).to(torch.int64)
    # argmax of booleans is the first true one: an empty step of the cumulative cannot be chosen.
    return ((cumulative > level) & (p > 0)).to(torch.uint8).argmax(-1)


def temperature_for_entropy(energy: Tensor, target: float, iterations: int = 60) -> Tensor:
    """The temperature (0-dim) at which the mean entropy of the rows is `target` nats, by bisection on log T.

    Entropy grows with T (dH/dT = C/T >= 0), so the root is unique; targets out of reach give the nearest end.
    """
    low, high = math.log(1e-8), math.log(1e8)
    for _ in range(iterations):
        middle = 0.5 * (low + high)
        if float(entropy(energy, math.exp(middle)).mean()) < target:
            low = middle
        else:
            high = middle
    return torch.tensor(math.exp(0.5 * (low + high)), dtype=energy.dtype, device=energy.device)
