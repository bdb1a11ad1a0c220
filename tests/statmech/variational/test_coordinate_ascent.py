"""Coordinate ascent: the free energy only falls, the optimum is the known one, and so are its failures."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import Gaussian
from mfmarl.statmech.energies.spins import ising
from mfmarl.statmech.variational import coordinate_ascent, free_energy


def _normal(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    return random.normal(Key.of(seed), ids, shape[-1]).double()


def _falls(trace: Tensor) -> None:
    assert bool((trace[1:] <= trace[:-1] + 1e-12).all())


def test_spins_settle_where_each_is_the_answer_to_the_others_and_the_free_energy_only_falls():
    n = 7
    pairs = torch.tensor(list(itertools.combinations(range(n), 2)))
    system = ising(pairs, n, 0.5 * _normal(1, 1, len(pairs))[0], 0.3 * _normal(2, 1, n)[0])
    found = coordinate_ascent.spins(system, 0.8, torch.tanh(_normal(3, 6, n)))
    torch.testing.assert_close(found.magnetisation, torch.tanh(system.local_field(found.magnetisation) / 0.8))
    _falls(found.free_energy)
    s = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)
    exact = -0.8 * torch.logsumexp(-system(s) / 0.8, 0)
    assert bool((found.free_energy[-1] >= exact).all())


def test_two_spins_order_in_mean_field_and_in_no_other_way():
    """m = tanh(m J/T) above J/T = 1, though <s> = 0 at every temperature: the bound's artefact, and it is a bound."""
    two = ising(torch.tensor([[0, 1]]), 2).to(torch.float64)
    start = torch.full((2,), 0.9, dtype=torch.float64)
    warm = coordinate_ascent.spins(two, 1.25, start)
    assert float(warm.magnetisation.abs().max()) < 1e-9
    assert float(warm.free_energy[-1]) == pytest.approx(-1.25 * 2 * math.log(2), abs=1e-12)
    cold = coordinate_ascent.spins(two, 0.5, start)
    assert cold.magnetisation.tolist() == pytest.approx([0.957504024, 0.957504024], abs=1e-9)
    exact = -0.5 * math.log(4 * math.cosh(2))
    assert exact < float(cold.free_energy[-1]) < -0.5 * 2 * math.log(2)
    frozen = coordinate_ascent.spins(two, 0.0, start)
    assert frozen.magnetisation.tolist() == [1, 1] and float(frozen.free_energy[-1]) == -1


@pytest.mark.parametrize("rho", [0.3, 0.9, 0.99])
def test_a_correlated_pair_gets_variances_that_are_too_small_and_a_known_divergence(rho: float):
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    energy = Gaussian(mean, torch.linalg.inv(covariance))
    found = coordinate_ascent.gaussian(energy)
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-10)
    assert found.variance.tolist() == pytest.approx([1 - rho**2] * 2, rel=1e-10)
    kl = free_energy.gap(found.free_energy, energy.log_partition())
    assert float(kl) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=1e-10)


def test_temperature_widens_the_factors():
    energy = Gaussian(torch.zeros(2).double(), torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64))
    assert coordinate_ascent.gaussian(energy, 0.6).variance.tolist() == pytest.approx([0.3, 0.2])


def _evidence(data: Tensor, k: int, noise: float, prior: float) -> float:
    """log p(x), summed over all k^n assignments; each cluster's points are jointly Gaussian."""
    n = len(data)
    terms = []
    for assignment in itertools.product(range(k), repeat=n):
        same = torch.tensor([[a == b for b in assignment] for a in assignment], dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(
            torch.zeros(n).double(), noise * torch.eye(n).double() + prior * same
        )
        terms.append(law.log_prob(data.mT).sum() - n * math.log(k))
    return float(torch.logsumexp(torch.stack(terms), 0))


def test_a_mixtures_bound_lies_below_its_evidence_and_only_rises():
    data = torch.tensor([[-2.1], [-1.9], [-1.6], [1.5], [2.0], [2.4]], dtype=torch.float64)
    found = coordinate_ascent.mixture(data, 3 * _normal(4, 5, 2).unsqueeze(-1), noise_variance=0.5, prior_variance=4.0)
    _falls(found.free_energy)
    evidence = _evidence(data, 2, 0.5, 4.0)
    elbo = -found.free_energy[-1]
    assert bool((elbo < evidence).all())
    # Two far clusters have two labellings, of which one factorised q can hold one: log 2 is lost, and little more.
    assert float(elbo.max()) == pytest.approx(evidence - math.log(2), abs=0.01)
    best = found.mean[elbo.argmax()].flatten().sort().values
    shrunk = torch.tensor([-5.6, 5.9]).double() / 0.5 / (1 / 4 + 3 / 0.5)
    torch.testing.assert_close(best, shrunk, rtol=0, atol=1e-3)


def test_a_mixture_of_one_is_exact():
    data = _normal(5, 7, 2)
    found = coordinate_ascent.mixture(data, torch.zeros(1, 2).double(), noise_variance=0.5, prior_variance=4.0)
    assert float(-found.free_energy[-1]) == pytest.approx(_evidence(data, 1, 0.5, 4.0), abs=1e-10)


def test_many_starts_do_not_know_of_each_other():
    data = _normal(6, 20, 2)
    start = _normal(7, 3, 4).reshape(3, 2, 2)
    whole = coordinate_ascent.mixture(data, start, sweeps=5000, tolerance=0.0)
    alone = coordinate_ascent.mixture(data, start[1], sweeps=5000, tolerance=0.0)
    torch.testing.assert_close(whole.mean[1], alone.mean, rtol=0, atol=1e-6)


def test_what_cannot_settle_or_start_is_refused():
    two = ising(torch.tensor([[0, 1]]), 2).to(torch.float64)
    with pytest.raises(NumericFault, match="settled"):
        coordinate_ascent.spins(two, 1.0, torch.ones(2).double() * 0.9, sweeps=3)
    with pytest.raises(ConfigError, match="variance"):
        coordinate_ascent.mixture(_normal(1, 3, 1), _normal(2, 2, 1), noise_variance=0.0)
    with pytest.raises(ConfigError, match="centres"):
        coordinate_ascent.mixture(_normal(1, 3, 1), _normal(2, 2, 2))
