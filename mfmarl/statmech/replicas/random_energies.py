r"""The random energy model: 2^N independent Gaussian levels, the spin glass that freezes and can be solved by hand.

$$ E \sim N(0, N/2), \qquad \beta_c = 2 \sqrt{\ln 2}, \qquad
   f = -\tfrac{\beta}{4} - \tfrac{\ln 2}{\beta}\ (\beta < \beta_c), \quad f = -\sqrt{\ln 2}\ (\beta \ge \beta_c), \qquad
   \overline{\textstyle\sum_s p_s^2} = 1 - T/T_c $$

(Derrida 1981, Phys. Rev. B 24, 2613.) Below T_c the entropy is gone and a handful of levels carries the weight:
one step of replica symmetry breaking is exact, with the weights of a Poisson-Dirichlet process of index T/T_c
(Ruelle 1987, Commun. Math. Phys. 108, 225; Gross and Mezard 1984 for the participation ratio).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.exact.enumeration import LARGEST

CRITICAL_BETA = 2 * math.sqrt(math.log(2))
"""1.66511."""


def levels(num_spins: int, key: Key, instances: tuple[int, ...] = ()) -> Tensor:
    """Energies [*instances, 2^N], float64."""
    if num_spins < 1 or 2**num_spins > LARGEST:
        raise ConfigError(f"2^{num_spins} levels are too many (at most {LARGEST}).")
    ids = torch.arange(math.prod(instances)).reshape(instances)
    # Two uniforms to a number: one alone is never beyond 5.3 deviations, where the ground state of N > 21 lies.
    first = random.uniform(key.fold("radius"), ids, 2**num_spins).double()
    second = random.uniform(key.fold("angle"), ids, 2**num_spins).double()
    fine = (first + (random.uniform(key.fold("fine"), ids, 2**num_spins).double() - 0.5) * 2.0**-23).clamp(min=1e-15)
    return math.sqrt(num_spins / 2) * (-2 * fine.log()).sqrt() * torch.cos(2 * math.pi * second)


def free_energy(beta: float) -> float:
    """f per spin of the infinite system."""
    check.inverse_temperature(beta)
    return -math.sqrt(math.log(2)) if beta >= CRITICAL_BETA else -beta / 4 - math.log(2) / beta


def entropy(beta: float) -> float:
    """s per spin: log 2 - beta^2/4, 0 from beta_c on."""
    check.inverse_temperature(beta)
    return max(math.log(2) - beta * beta / 4, 0.0)


def participation_ratio(energies: Tensor, beta: float) -> Tensor:
    """Y = sum p^2 [*d] of levels [*d, S]: one over the number of levels that matter."""
    return (2 * torch.logsumexp(-beta * energies, -1)).neg().add(torch.logsumexp(-2 * beta * energies, -1)).exp()


def mean_participation_ratio(beta: float) -> float:
    """1 - T/T_c in the glass, 0 above: its mean over the disorder as N grows. Single instances differ: it does not
    self-average.
    """
    return max(1 - CRITICAL_BETA / beta, 0.0) if beta > 0 else 0.0


def poisson_dirichlet(index: float, key: Key, count: int, kept: int = 4096) -> Tensor:
    """The weights [count, kept] of the frozen levels as N grows, largest first, at T/T_c = `index` in (0, 1).

    w_k ~ t_k^(-1/index) with t_k the arrivals of a Poisson process; what is cut off is of order kept^(1 - 1/index).
    """
    if not 0 < index < 1:
        raise ConfigError(f"The index T/T_c of frozen levels lies between 0 and 1, not {index:g}.")
    arrivals = random.exponential(key, torch.arange(count), kept).double().cumsum(-1)
    return torch.softmax(-arrivals.log() / index, -1)
