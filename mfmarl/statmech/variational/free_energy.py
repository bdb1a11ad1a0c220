r"""The variational free energy of a trial distribution, with the sign under which it is minimised.

$$ F[q] = \langle H \rangle_q - T\, S[q] = -T \log Z + T\, KL(q \| p_T) \ge -T \log Z $$

(Gibbs, Bogoliubov and Feynman; MacKay 2003, ch. 33.) With H = -log p(x, theta) and T = 1 this is minus the ELBO and the
bound is -log p(x). (E_q[log p] + S[q], which some texts call a free energy to be minimised, is the ELBO: it is
maximised.) Entropies are of distributions, in nats; a sum of squared weights is not one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import check, information
from mfmarl.statmech.energies.continuous import Gaussian
from mfmarl.statmech.energies.spins import Ising


def of_spins(system: Ising, magnetisation: Tensor, temperature: float) -> Tensor:
    """F [*b] of independent spins of averages m [*b, n]: <H> = H(m), for H is linear in every spin."""
    check.temperature(temperature)
    if not bool((magnetisation.abs() <= 1).all()):
        raise ConfigError("The average of a spin lies in [-1, 1].")
    return system(magnetisation) - temperature * information.spin_entropy(magnetisation).sum(-1)


def expectation(table: Tensor, factors: Sequence[Tensor], keep: int | None = None) -> Tensor:
    """The average of a table [*b, S_1, ..., S_F] over independent factors [*b, S_f]: [*b].

    With `keep` the factor of that number is left out: [*b, S_keep].
    """
    for f in reversed(range(len(factors))):
        if f == keep:
            continue
        # The axes of the factors before f, and of the kept one if it comes after, are still there.
        trailing = 1 if keep is not None and keep > f else 0
        weight = factors[f].reshape(*factors[f].shape[:-1], *(1,) * f, factors[f].shape[-1], *(1,) * trailing)
        table = (table * weight).sum(-1 - trailing)
    return table


def of_factors(energy: Tensor, factors: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """F [*b] of independent factors [*b, S_f] under a table of energies [*b, S_1, ..., S_F] (finite wherever q > 0)."""
    check.temperature(temperature)
    sizes = [f.shape[-1] for f in factors]
    if list(energy.shape[-len(sizes) :]) != sizes:
        raise ConfigError(f"Factors of {sizes} states need a table that ends in these, not {list(energy.shape)}.")
    for f in factors:
        if not bool(((f.sum(-1) - 1).abs() < 1e-4).all()) or bool((f < 0).any()):
            raise ConfigError("A factor must be a distribution: not negative, with sum 1.")
    forbidden = torch.isinf(energy)
    # 0 times inf is 0: what is forbidden costs nothing where it cannot happen, and everything where it can.
    mean = expectation(energy.masked_fill(forbidden, 0.0), factors)
    crossed = expectation(forbidden.to(energy.dtype), factors) > 0
    mean = torch.where(crossed, torch.inf, mean)
    return mean - temperature * sum((information.entropy(f) for f in factors), torch.zeros_like(mean))


def of_gaussian(energy: Gaussian, mean: Tensor, covariance: Tensor, temperature: float = 1.0) -> Tensor:
    """F [*b] of the Gaussian N(mean [*b, n], covariance [*b, n, n]) under a quadratic energy."""
    check.temperature(temperature)
    spread = (energy.precision * covariance).sum((-2, -1)) / 2
    return energy(mean) + spread - temperature * information.gaussian_entropy(covariance)


def gap(free_energy: Tensor, log_partition: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(q || p) = F[q]/T + log Z: what the trial distribution loses. T > 0."""
    check.temperature(temperature, positive=True)
    return free_energy / temperature + log_partition


def from_samples(energies: Tensor, log_densities: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """F and its standard error, [*b] each, of independent draws of q: energies and log q [S, *b] of S >= 2 draws."""
    check.temperature(temperature)
    if energies.shape != log_densities.shape or len(energies) < 2:
        raise ConfigError(
            f"F needs at least two draws with their energies and log densities, not {list(energies.shape)}, "
            f"{list(log_densities.shape)}."
        )
    value = energies + temperature * log_densities
    return value.mean(0), value.std(0) / math.sqrt(len(value))
