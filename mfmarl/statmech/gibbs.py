r"""The Gibbs distribution over a finite set of energies.

$$ p_T(a) = e^{-E(a)/T} / Z, \qquad F = -T \log Z = \langle E \rangle_p - T\, H(p) = \min_q \langle E \rangle_q - T\, H(q) $$

Energies lie on the last axis; leading axes are a batch. An energy of `inf` is forbidden (probability 0).
The temperature is a number or a tensor that broadcasts against the batch. At T = 0 the distribution is
uniform over the ground states, and every function here takes that limit without overflow.

$$ \frac{dF}{dT} = -H, \qquad C = \frac{d\langle E \rangle}{dT} = \frac{\mathrm{Var}(E)}{T^2}, \qquad
   \frac{d\langle E \rangle}{d\beta} = -\mathrm{Var}(E) $$

Raised everywhere: ConfigError for a temperature that is negative or not a number, NumericFault for energies that are
not numbers or forbid every state of a row. `sample` alone looks at temperatures given as numbers only, since agents
act by it: tensors are not waited for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import NumericFault
from mfmarl.random import Key
from mfmarl.statmech import check

_SHORT = 15  # as many states along the last axis are too few for torch's kernels
_COLDEST = 1e-30  # (E - E_min)/T is then 0 or huge: the limit T -> 0 in float32, without 0/0


def _reduced(energy: Tensor, temperature: float | Tensor, checked: bool = True) -> tuple[Tensor, Tensor]:
    """(E - E_min)/T, and E_min [..., 1]."""
    if checked or not isinstance(temperature, Tensor):
        check.temperature(temperature)
    ground = energy.amin(-1, keepdim=True)
    if checked and not bool(torch.isfinite(ground).all()):
        # The least of a row is NaN if any is, and infinite if all are.
        bad = ground[~torch.isfinite(ground)]
        if bool((bad == torch.inf).all()):
            raise NumericFault(f"Every state of {len(bad)} row(s) has infinite energy: no state is allowed, Z = 0.")
        raise NumericFault(
            f"Energies of {len(bad)} row(s) hold NaN or -inf; expected numbers, or inf for the forbidden."
        )
    # A row of nothing but forbidden states has E_min = inf: inf - inf must not become NaN silently.
    ground = torch.where(torch.isinf(ground), torch.zeros_like(ground), ground)
    if isinstance(temperature, Tensor):
        cold = temperature.clamp(min=_COLDEST)
        cold = cold.unsqueeze(-1) if cold.ndim else cold
        return (energy - ground) / cold, ground
    return (energy - ground) / max(temperature, _COLDEST), ground


def log_softmax(x: Tensor) -> Tensor:
    """torch's over the last axis, five times as fast where that is short: the states outermost, rows side by side."""
    if x.shape[-1] > _SHORT:
        return torch.log_softmax(x, -1)
    return torch.log_softmax(x.movedim(-1, 0), 0).movedim(0, -1)


def softmax(x: Tensor) -> Tensor:
    """torch's over the last axis, likewise."""
    if x.shape[-1] > _SHORT:
        return torch.softmax(x, -1)
    return torch.softmax(x.movedim(-1, 0), 0).movedim(0, -1)


def log_probabilities(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """log p [..., A]; -inf for the forbidden."""
    return log_softmax(-_reduced(energy, temperature)[0])


def probabilities(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """p [..., A], sums to 1."""
    return softmax(-_reduced(energy, temperature)[0])


def log_partition(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """log Z = log sum exp(-E/T), [...]: -F/T, Massieu's potential ("free entropy"; the entropy is `entropy`). T > 0."""
    check.temperature(temperature, positive=True)
    reduced, ground = _reduced(energy, temperature)
    return torch.logsumexp(-reduced, dim=-1) - ground.squeeze(-1) / temperature


def free_energy(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """F = -T log Z = <E> - T H, [...]; the least energy at T = 0."""
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


def heat_capacity(energy: Tensor, temperature: float | Tensor) -> Tensor:
    """C = d<E>/dT = Var(E)/T^2, [...]; 0 at T = 0, where a discrete set of energies has none."""
    reduced, _ = _reduced(energy, temperature)
    p = softmax(-reduced)
    # In units of T, above the ground state: nothing overflows, and no two large numbers are subtracted.
    height = torch.where(p > 0, reduced, torch.zeros_like(reduced))
    mean = (p * height).sum(-1, keepdim=True)
    return (p * (height - mean).square()).sum(-1)


def sample(energy: Tensor, temperature: float | Tensor, ids: Tensor, key: Key) -> Tensor:
    """One state per row, int64 [...]: inversion of the cumulative distribution, one uniform per row.

    `ids` has the batch's shape. Forbidden states are never drawn, whatever the rounding.
    """
    p = softmax(-_reduced(energy, temperature, checked=False)[0])
    level = random.uniform(key, ids)
    if p.shape[-1] <= 8:
        # How many steps of the cumulative lie at or below the level: an empty step cannot be where it stops.
        columns = p.unbind(-1)
        total = columns[0]
        steps = [total]
        for column in columns[1:]:
            total = total + column
            steps.append(total)
        level = level * total
        state = (level >= steps[0]).to(torch.int64)
        for step in steps[1:-1]:
            state += level >= step
        return state
    cumulative = p.cumsum(-1)
    level = level.unsqueeze(-1) * cumulative[..., -1:]
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
