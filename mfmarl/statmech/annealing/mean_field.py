r"""Mean-field annealing: the averages of spins followed down in temperature, in place of spins.

$$ m_i \leftarrow (1 - \alpha)\, m_i + \alpha \tanh \beta_k \Big( h_i + \sum_j J_{ij} m_j \Big), \qquad
   \beta_0 \le \beta_1 \le \dots $$

One step at each beta, from small random averages: deterministic, and as good as its free energy (Peterson and
Anderson 1987, Complex Syst. 1, 995; Bilbro et al. 1989). On dense graphs, where mean field is nearly right, it finds
ground states for a fraction of a sampler's price; on sparse frustrated ones it freezes into a poor state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.spins import Ising
from mfmarl.statmech.sampling.chains import chain_ids


def anneal_averages(system: Ising, m: Tensor, betas: Tensor, *, share: float = 0.5) -> Tensor:
    """Averages [*b, n] after a step of `share` of the way at each of `betas` [K], from m [*b, n]; round them by
    `rounded`.
    """
    check.inverse_temperature(betas)
    if not 0 < share <= 1 or betas.ndim != 1:
        raise ConfigError(f"Mean-field annealing takes betas [K] and steps of a share in (0, 1], not {share:g}.")
    for beta in betas.tolist():
        field = system.local_field(m)
        m = m + share * (torch.tanh((beta * field).nan_to_num(0.0)) - m)
    return m


def small_averages(
    system: Ising, shape: tuple[int, ...], key: Key, *, size: float = 0.01, ids: Tensor | None = None
) -> Tensor:
    """Random averages [*shape, n] within `size`, to begin with: each start is a read of its own."""
    ids = chain_ids(shape) if ids is None else ids
    return size * (2 * random.uniform(key, ids, system.num_spins).to(system.couplings.dtype) - 1)


def rounded(m: Tensor) -> Tensor:
    """The nearest spins."""
    return torch.where(m >= 0, 1.0, -1.0).to(m.dtype)
