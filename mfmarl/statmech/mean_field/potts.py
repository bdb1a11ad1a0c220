r"""The Potts crowd: q choices, each worth its own share. First order for q >= 3, with hysteresis.

$$ p = \operatorname{softmax}(K p), \qquad K = \beta J, \qquad
   f(p)/J = -\tfrac12 \sum_k p_k^2 + \tfrac1K \sum_k p_k \log p_k $$

Coordination games under logit choice are this (Blume 1993), as is the Curie-Weiss-Potts model (Wu 1982, eq. 1.30):
the uniform state is stable for K < q, an ordered one exists from the lower spinodal on, and they exchange the
lower free energy at K_c = 2 (q - 1) ln(q - 1)/(q - 2), where the favourite's share jumps from 1/q to 1 - 1/q. All
three are 2 for q = 2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import optimize
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech.mean_field import self_consistent


class Transition(NamedTuple):
    """Couplings K = beta J."""

    ordered_ends: float
    """The lower spinodal: below, no ordered state."""
    equal: float
    """K_c: the two have the same free energy."""
    uniform_ends: float
    """The upper spinodal: above, the uniform state is unstable."""


def transition(num_states: int) -> Transition:
    """The three couplings of the q-state crowd."""
    q = num_states
    if q < 2:
        raise ConfigError(f"A Potts model needs at least 2 states, not {q}.")
    if q == 2:
        return Transition(2.0, 2.0, 2.0)

    # On the ordered branch the favourite has share x: K(x) = ln((q - 1) x/(1 - x)) (q - 1)/(q x - 1); its least value.
    def coupling(x: float) -> float:
        return math.log((q - 1) * x / (1 - x)) * (q - 1) / (q * x - 1)

    found = optimize.minimize_scalar(
        coupling, bounds=(1 / q + 1e-6, 1 - 1e-9), method="bounded", options={"xatol": 1e-12}
    )
    return Transition(float(found.fun), 2 * (q - 1) * math.log(q - 1) / (q - 2), float(q))


def free_energy(shares: Tensor, coupling: float | Tensor) -> Tensor:
    """f/J [*b] of shares [*b, q], in units of J."""
    return -(shares * shares).sum(-1) / 2 + torch.special.xlogy(shares, shares).sum(-1) / coupling


def loop(num_states: int, couplings: Tensor) -> tuple[Tensor, Tensor]:
    """The largest share [P] while K rises slowly through `couplings` [P], and while it falls again (same order).

    The two differ between the spinodals: what a crowd does there depends on where it comes from.
    """

    def update(p: Tensor, coupling: float) -> Tensor:
        return torch.softmax(coupling * p, -1)

    uniform = torch.full((num_states,), 1 / num_states, dtype=torch.float64)
    values = couplings.tolist()
    # The nudge leaves the uniform state only where that is unstable.
    rising = self_consistent.follow(update, values, uniform, nudge=1e-6, share=1.0)
    falling = self_consistent.follow(update, values[::-1], rising[-1], nudge=0.0, share=1.0).flip(0)
    return rising.amax(-1), falling.amax(-1)
