"""The variational free energy lies above -T log Z by T KL(q || p), exactly, for every kind of trial distribution."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import information
from mfmarl.statmech.energies.continuous import Gaussian
from mfmarl.statmech.energies.spins import ising
from mfmarl.statmech.exact.regression import LinearRegression
from mfmarl.statmech.variational import free_energy
from tests.statistical import beyond, statistical


def _normal(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    return random.normal(Key.of(seed), ids, shape[-1]).double()


def _all_spins(n: int) -> Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n)), dtype=torch.float64)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 5))
def test_the_free_energy_of_spins_is_the_bound_plus_what_is_lost(seed: int, temperature: float):
    n = 5
    pairs = torch.tensor(list(itertools.combinations(range(n), 2)))
    system = ising(pairs, n, _normal(seed, 1, len(pairs))[0], _normal(seed + 1, 1, n)[0])
    m = torch.tanh(_normal(seed + 2, 3, n))
    s = _all_spins(n)
    log_z = torch.logsumexp(-system(s) / temperature, 0)
    log_p = -system(s) / temperature - log_z
    q = ((1 + m.unsqueeze(1) * s) / 2).prod(-1)
    kl = (q * (q.log() - log_p)).sum(-1)
    f = free_energy.of_spins(system, m, temperature)
    torch.testing.assert_close(f, -temperature * log_z + temperature * kl, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(free_energy.gap(f, log_z, temperature), kl, rtol=1e-8, atol=1e-9)
    assert bool((f >= -temperature * log_z - 1e-10).all())


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 5))
def test_the_free_energy_of_factors_is_the_bound_plus_what_is_lost(seed: int, temperature: float):
    energy = _normal(seed, 2 * 3 * 4, 5).reshape(2, 3, 4, 5)
    factors = [torch.softmax(_normal(seed + k, 2, size), -1) for k, size in enumerate((3, 4, 5))]
    q = torch.einsum("bi,bj,bk->bijk", *factors)
    log_z = torch.logsumexp(-energy.flatten(1) / temperature, -1)
    kl = (q * (q.log() + energy / temperature + log_z.reshape(2, 1, 1, 1))).sum((1, 2, 3))
    f = free_energy.of_factors(energy, factors, temperature)
    torch.testing.assert_close(f, temperature * (kl - log_z), rtol=1e-10, atol=1e-10)
    for keep, left in enumerate("ijk"):
        others = [f for k, f in enumerate(factors) if k != keep]
        expected = torch.einsum(f"bijk,{','.join('b' + c for c in 'ijk' if c != left)}->b{left}", energy, *others)
        torch.testing.assert_close(free_energy.expectation(energy, factors, keep), expected)


def test_a_forbidden_state_costs_everything_where_it_can_happen_and_nothing_where_it_cannot():
    energy = torch.tensor([[0.0, torch.inf], [1.0, 2.0]])
    sure = free_energy.of_factors(energy, [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])])
    doubtful = free_energy.of_factors(energy, [torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])])
    assert float(sure) == 0 and float(doubtful) == math.inf


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_gaussians_lose_their_divergence(temperature: float):
    a, b = _normal(1, 3, 3), _normal(2, 3, 3)
    energy = Gaussian(_normal(3, 1, 3)[0], a @ a.mT + torch.eye(3))
    mean, covariance = _normal(4, 2, 3), (b @ b.mT + 0.2 * torch.eye(3)).expand(2, 3, 3)
    f = free_energy.of_gaussian(energy, mean, covariance, temperature)
    log_z = energy.log_partition(1 / temperature)
    kl = information.gaussian_kl(mean, covariance, energy.mean, energy.covariance * temperature)
    own = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(mean, covariance),
        torch.distributions.MultivariateNormal(energy.mean, energy.covariance * temperature),
    )
    torch.testing.assert_close(kl, own)
    torch.testing.assert_close(free_energy.gap(f, log_z, temperature), kl)


def test_at_the_exact_posterior_the_bound_is_the_log_evidence_to_the_last_digits():
    x = _normal(5, 8, 3)
    model = LinearRegression(x, _normal(6, 8, 1)[:, 0], 0.5, 0.7)
    mean, covariance = model.posterior()
    joint = Gaussian(mean, model.precision())  # -log p(y, w) up to its least value
    least = -float(model.log_joint(mean))
    elbo = lambda m, c: -float(free_energy.of_gaussian(joint, m, c)) - least  # noqa: E731
    assert elbo(mean, covariance) == pytest.approx(float(model.log_evidence()), abs=1e-10)
    for trial in (covariance * 1.3, torch.diag(1 / model.precision().diagonal()), torch.eye(3).double()):
        assert elbo(mean, trial) < float(model.log_evidence())
    assert elbo(mean + 0.1, covariance) < float(model.log_evidence())


def test_the_sign_that_tutorials_print_would_not_be_a_bound():
    """E_q[log p] + S[q] lies *below* log Z: as a 'free energy' to be minimised it has no floor."""
    energy = Gaussian(torch.zeros(1).double(), torch.ones(1, 1).double())
    narrow = [
        float(-free_energy.of_gaussian(energy, torch.zeros(1).double(), torch.tensor([[v]]).double()))
        for v in (1e-2, 1e-8, 1e-16)
    ]
    assert all(v < float(energy.log_partition()) for v in narrow) and narrow[-1] < -10


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "wide-normals"))
def test_the_estimate_from_samples_is_within_its_error_and_has_none_at_the_optimum():
    energy = Gaussian(torch.tensor([1.0, -1.0]).double(), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double())
    temperature, draws = 0.7, 4000
    q = torch.distributions.MultivariateNormal(energy.mean, torch.eye(2).double())
    x = energy.mean + _normal(7, draws, 2)
    f, error = free_energy.from_samples(energy(x), q.log_prob(x), temperature)
    exact = free_energy.of_gaussian(energy, energy.mean, torch.eye(2).double(), temperature)
    assert abs(float(f - exact)) < 5 * float(error) < 0.2
    p = torch.distributions.MultivariateNormal(energy.mean, energy.covariance * temperature)
    f, error = free_energy.from_samples(energy(x), p.log_prob(x), temperature)
    assert float(error) < 1e-12
    assert float(f) == pytest.approx(-temperature * float(energy.log_partition(1 / temperature)), abs=1e-12)


def test_what_is_no_distribution_is_refused():
    system = ising(torch.tensor([[0, 1]]), 2)
    with pytest.raises(ConfigError, match=r"\[-1, 1\]"):
        free_energy.of_spins(system, torch.tensor([1.5, 0.0]), 1.0)
    with pytest.raises(ConfigError, match="distribution"):
        free_energy.of_factors(torch.zeros(2, 2), [torch.tensor([0.5, 0.6]), torch.tensor([1.0, 0.0])])
    with pytest.raises(ConfigError, match="states"):
        free_energy.of_factors(torch.zeros(2, 3), [torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])])
    with pytest.raises(ConfigError, match="two draws"):
        free_energy.from_samples(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ConfigError, match="temperature"):
        free_energy.of_spins(system, torch.zeros(2), -1.0)
