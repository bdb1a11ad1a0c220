r"""Choosing a hyper-parameter by its evidence: thermodynamic integration along the powers of the likelihood.

$$ \log p(y | \lambda) = -\int_0^1 \langle L \rangle_\beta\, d\beta, \qquad
   p_\beta(w) \propto e^{-\beta L(w) - \lambda |w|^2/2}, \quad L = -\log p(y | w) $$

for a Gaussian prior of precision lambda: from draws of the prior (beta = 0) to the posterior (beta = 1). The integrand is
steep next to the prior, where a weight is free to be absurd: beta_k = (k/K)^5 (Friel and Pettitt 2008, J. R. Stat. Soc.
B 70, 589; Calderhead and Girolami 2009). All candidates and all powers are sampled side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.energy import Energy
from mfmarl.statmech.free_energy import integration
from mfmarl.statmech.sampling import chains
from mfmarl.statmech.sampling.chains import Sweep, chain_ids
from mfmarl.statmech.sampling.diagnostics import mean_and_error
from mfmarl.statmech.sampling.noise import normal


class Evidence(NamedTuple):
    """Of each of C candidates, nats."""

    precisions: Tensor
    """lambda [C]."""
    log_evidence: Tensor
    """log p(y | lambda) [C], float64, up to the constants that the misfit leaves out."""
    error: Tensor
    """Statistical, one sigma, [C]."""
    discretisation: Tensor
    """Of the integral, [C]; usually a bound."""

    @property
    def best(self) -> float:
        """The candidate of greatest evidence."""
        return float(self.precisions[self.log_evidence.argmax()])


def of_priors(
    misfit: Energy,
    precisions: Tensor,
    size: int,
    sweep_of: Callable[[Energy], Sweep],
    key: Key,
    *,
    rungs: int = 16,
    num_chains: int = 16,
    steps: int = 200,
    warm_up: int = 100,
) -> Evidence:
    """The evidence of Gaussian priors of `precisions` [C] on weights of `size` numbers, float64.

    `misfit` is L, minus a log-likelihood (a `LossEnergy` without prior). `sweep_of` makes the sampler of an energy, such
    as `lambda e: hmc(e, 0.1, 10, jitter=True)`: its steps must suit the stiffest posterior. Energies are of states
    [C, rungs + 1, chains, size]. Raises ConfigError for a precision that is not above 0.
    """
    precisions = precisions.double()
    if precisions.ndim != 1 or not bool(((precisions > 0) & precisions.isfinite()).all()):
        raise ConfigError("The precisions of priors must be a row of finite numbers above 0.")
    betas = integration.ladder(rungs)
    power, own = betas.view(-1, 1), precisions.view(-1, 1, 1)
    batch = (len(precisions), rungs + 1, num_chains)
    ids = chain_ids(batch)
    start = normal(key.fold("prior"), ids, size, torch.float64) / own.sqrt().unsqueeze(-1)

    def tempered(w: Tensor) -> Tensor:
        return power * misfit(w) + own * w.square().sum(-1) / 2

    _, seen = chains.run(sweep_of(tempered), start, 1.0, key.fold("sample"), steps, misfit, warm_up=warm_up)
    found = mean_and_error(seen.movedim(-1, 1), observables=2)  # [steps, chains, C, rungs + 1]
    found_integral = integration.integrate(betas, found.value, found.error)
    return Evidence(precisions, *found_integral)
