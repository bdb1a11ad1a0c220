r"""Heat bath and Metropolis for spins and Potts variables on any graph, one colour of sites at a time.

$$ P(s_i = +1 \mid \text{rest}) = \sigma(2 \beta h_i), \qquad
   P(\text{flip}) = \min(1, e^{-2 \beta s_i h_i}), \qquad h_i = h + \sum_j J_{ij} s_j $$

Sites of one colour do not interact, so updating them at once is updating them in turn: the Gibbs distribution stays.
(All sites at once is another dynamics with another stationary law: Little 1974, Peretto 1984.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.random import Key
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.sampling.chains import Sweep


def heat_bath(system: Ising) -> Sweep:
    """Every spin once, colour by colour, drawn from its distribution given the others (Glauber 1963)."""
    groups = [(system.colours == colour).nonzero().squeeze(-1) for colour in range(int(system.colours.max()) + 1)]
    near = [system.neighbours[group] for group in groups]
    couplings = [system.neighbour_couplings[..., group, :] for group in groups]
    fields = [system.fields[..., group] for group in groups]

    def sweep(s: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        beta = beta.unsqueeze(-1) if isinstance(beta, Tensor) and beta.ndim else beta
        noise = random.uniform(key, ids, system.num_spins)
        s = s.clone()
        for group, others, strength, field in zip(groups, near, couplings, fields, strict=True):
            local = (s[..., others] * strength).sum(-1) + field
            # beta h = inf * 0 at zero temperature is a fair coin.
            up = torch.sigmoid((2 * beta * local).nan_to_num(0.0, torch.inf, -torch.inf))
            s[..., group] = (noise[..., group] < up).to(s.dtype).mul_(2).sub_(1)
        return s

    return sweep
