r"""Block Gibbs sampling of machines in layers: all even layers at once, then all odd ones.

$$ P(x_{l,i} = 1 \mid \text{neighbouring layers}) = \sigma(\beta\, (b_l + x_{l-1} W_{l-1} + x_{l+1} W_l^\top)_i) $$

Layers two apart do not interact, so each half of a sweep is a draw from the exact conditional law. (Sparse machines
of spins are sampled by colours: `single_spin.heat_bath`.) Salakhutdinov and Hinton 2009 (AISTATS), section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.machines import RBM, Machine
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


def bernoulli(p: Tensor, ids: Tensor, key: Key) -> Tensor:
    """Units 0 and 1 [*b, n] in the dtype of p [*b, n], with ids [*b]. p counts to 2^-23; 0 and 1 are certain.

    Two draws from each 64 bits: half the cost of `random.uniform`, which would be most of a step.
    """
    n = p.shape[-1]
    half = (n + 1) // 2
    raw = random.bits(key, ids.unsqueeze(-1) * half + torch.arange(half, device=ids.device)).view(torch.int32)
    # The upper 23 of 32 bits: -2^22 .. 2^22 - 1, put on the middles of 2^23 steps of (0, 1).
    level = raw[..., :n].bitwise_right_shift(9).to(p.dtype).add_(4194304.5).mul_(2.0**-23)
    return (level < p).to(p.dtype)
