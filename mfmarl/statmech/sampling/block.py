r"""Block Gibbs sampling of machines in layers: all even layers at once, then all odd ones.

$$ P(x_{l,i} = 1 \mid \text{neighbouring layers}) = \sigma(\beta\, (b_l + x_{l-1} W_{l-1} + x_{l+1} W_l^\top)_i) $$

Layers two apart do not interact, so each half of a sweep is a draw from the exact conditional law. (Sparse machines
of spins are sampled by colours: `single_spin.heat_bath`.) Salakhutdinov and Hinton 2009 (AISTATS), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.machines import Machine
from mfmarl.statmech.energies.restricted import RBM
from mfmarl.statmech.sampling.chains import Sweep


def layers(machine: Machine | RBM, *, odd_first: bool = True, visible_held: bool = False) -> Sweep:
    """A sweep of states [*b, n] of units 0 and 1. The visible layer is layer 0, so odd layers first keeps to data.

    `visible_held` leaves layer 0 as it is: the law of the hidden given the data.
    """
    machine = machine.machine if isinstance(machine, RBM) else machine
    parities = (1, 0) if odd_first else (0, 1)
    order = [
        layer for parity in parities for layer in range(int(visible_held), len(machine.biases)) if layer % 2 == parity
    ]

    def sweep(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        if x.shape[-1] != machine.num_units:
            raise ConfigError(f"States must have {machine.num_units} units, not {x.shape[-1]}.")
        beta = beta.unsqueeze(-1) if isinstance(beta, Tensor) and beta.ndim else beta
        parts = machine.split(x)
        for layer in order:
            # Zero temperature: inf x 0 is a fair coin.
            reduced = (beta * machine.field(layer, parts)).nan_to_num(0.0, torch.inf, -torch.inf)
            parts[layer] = bernoulli(torch.sigmoid(reduced), ids, key.fold(layer))
        return torch.cat(parts, -1)

    return sweep


class Coins(NamedTuple):
    """Noise for n units of each row, not yet compared with their chances."""

    shared: Tensor
    """[*b, 1]."""
    level: Tensor
    """int16 [*b, n]."""


def coins(ids: Tensor, key: Key, sizes: Sequence[int], dtype: torch.dtype) -> list[Coins]:
    """Noise for layers of these sizes (8 at most), by one draw for all: small layers cost little but the call.

    Sixteen bits to a unit and eight more that the units of a layer share, for half the cost of a step would be noise:
    each unit's chance is exact, and any two units of a layer are independent but for 2^-32.
    """
    words = [(size + 3) // 4 for size in sizes]
    raw = random.bits(key, ids, sum(words) + 1)
    last, quarters, found, start = raw[..., -1:], raw.view(torch.int16), [], 0
    for place, (size, count) in enumerate(zip(sizes, words, strict=True)):
        # The shared part lies on the middles of 256 steps of (0, 1): in float32 no sum of it is rounded to an edge.
        shared = (last >> 8 * place).bitwise_and_(255).to(dtype).add_(0.5).mul_(-1 / 256).sub_(32768)
        found.append(Coins(shared, quarters[..., 4 * start : 4 * start + size]))
        start += count
    return found


def toss(p: Tensor, noise: Coins) -> Tensor:
    """Units 0 and 1 [*b, n] in the dtype of their chances p [*b, n], which count to 2^-24; 0 and 1 are certain."""
    return torch.add(noise.shared, p, alpha=65536.0).gt_(noise.level)


def bernoulli(p: Tensor, ids: Tensor, key: Key) -> Tensor:
    """`toss` of fresh `coins`: units [*b, n] from chances p [*b, n], with ids [*b]."""
    return toss(p, coins(ids, key, p.shape[-1:], p.dtype)[0])
