"""Chains: against sums over all states, and against the closed forms of equal spins."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.potts import Potts
from mfmarl.statmech.energies.spins import Ising, ising
from mfmarl.statmech.exact import enumeration, transfer_matrix
from mfmarl.statmech.exact import ising as ising_exact


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return random.normal(Key.of(seed), torch.arange(math.prod(shape)).reshape(shape)).double()


@given(st.integers(0, 10**6), st.integers(3, 9), st.booleans(), st.floats(0.05, 8.0))
@settings(max_examples=30)
def test_random_chains_and_rings_are_their_sums_over_states(seed, n, closed, beta):
    couplings, fields = _noise(seed, 2, n if closed else n - 1), _noise(seed + 1, 2, n)
    pairs = torch.stack([torch.arange(couplings.shape[-1]), (torch.arange(couplings.shape[-1]) + 1) % n], -1)
    exact = enumeration.thermodynamics(Ising(pairs, couplings, fields), beta)
    found = transfer_matrix.chain_thermodynamics(couplings, fields, beta)
    for name, a, b in zip(exact._fields, found, exact, strict=True):
        assert torch.allclose(a, b, atol=1e-9, rtol=1e-9), name
    ground = enumeration.ground_states(Ising(pairs, couplings, fields)).energy
    assert torch.allclose(transfer_matrix.chain_ground_energy(couplings, fields), ground, atol=1e-12)


def test_random_potts_chains_are_their_sums_over_states():
    for closed in (True, False):
        couplings, fields = _noise(3, 2, 5 if closed else 4), _noise(4, 2, 5, 3)
        length = couplings.shape[-1]
        pairs = torch.stack([torch.arange(length), (torch.arange(length) + 1) % 5], -1)
        exact = enumeration.log_partition(Potts(pairs, couplings, fields), 0.7)
        assert torch.allclose(transfer_matrix.potts_log_partition(couplings, fields, 0.7), exact, atol=1e-12)


@pytest.mark.parametrize("coupling", [1.0, -0.8])
@pytest.mark.parametrize("field", [0.0, 0.4, -1.1])
def test_a_ring_of_equals_has_two_eigenvalues(coupling, field):
    for n in (7, 8):
        closed = transfer_matrix.ring_log_partition(n, 0.9, field, coupling)
        product = transfer_matrix.chain_log_partition(torch.full((n,), coupling, dtype=torch.float64), field, 0.9)
        exact = enumeration.log_partition(ising(graphs.torus(n), n, coupling, field), 0.9)
        assert closed == pytest.approx(float(product), abs=1e-12)
        assert closed == pytest.approx(float(exact), abs=1e-12)


def test_odd_antiferromagnetic_rings_are_frustrated():
    k = 0.9
    assert transfer_matrix.ring_log_partition(9, k, 0.0, -1.0) == pytest.approx(
        math.log((2 * math.cosh(k)) ** 9 - (2 * math.sinh(k)) ** 9), abs=1e-12
    )


def test_the_free_energy_density_of_a_ring_misses_the_limit_by_the_second_eigenvalue():
    beta = 1.2
    limit = transfer_matrix.chain_free_energy_density(beta)
    assert limit == pytest.approx(-math.log(2 * math.cosh(beta)) / beta, abs=1e-14)
    for n in (4, 10, 40):
        finite = -transfer_matrix.ring_log_partition(n, beta) / (n * beta)
        assert finite - limit == pytest.approx(-math.log1p(math.tanh(beta) ** n) / (n * beta), abs=1e-14)


def test_correlations_of_the_chain_decay_with_its_length():
    for beta in (0.3, 1.0, 2.0):
        length = transfer_matrix.chain_correlation_length(beta)
        assert length == pytest.approx(-1 / math.log(math.tanh(beta)), rel=1e-12)
    n, beta = 12, 0.8
    _, pair = enumeration.moments(ising(graphs.grid(n), n), beta)
    decay = math.exp(-1 / transfer_matrix.chain_correlation_length(beta))
    assert pair[3, 4:].tolist() == pytest.approx([decay**r for r in range(1, n - 3)], abs=1e-12)


def test_the_magnetisation_is_minus_the_slope_of_the_free_energy_in_the_field():
    for beta, field, coupling in ((0.7, 0.3, 1.0), (2.0, -0.1, 1.0), (1.0, 0.5, -0.7), (300.0, 0.5, 1.0)):
        step = 1e-6
        slope = (
            transfer_matrix.chain_free_energy_density(beta, field - step, coupling)
            - transfer_matrix.chain_free_energy_density(beta, field + step, coupling)
        ) / (2 * step)
        assert transfer_matrix.chain_magnetisation(beta, field, coupling) == pytest.approx(slope, abs=1e-7)
    assert transfer_matrix.chain_magnetisation(1.0, 0.0) == 0.0


def test_a_long_cold_chain_neither_overflows_nor_takes_long():
    couplings = _noise(5, 100_000)
    log_z = transfer_matrix.chain_log_partition(couplings, torch.zeros(100_001), 50.0)
    assert float(log_z) == pytest.approx(float((2 * torch.cosh(50 * couplings)).log().sum()) + math.log(2), rel=1e-12)
    ground = transfer_matrix.chain_ground_energy(couplings, torch.zeros(100_001))
    assert float(ground) == pytest.approx(-float(couplings.abs().sum()), rel=1e-12)


def test_moments_of_a_ring_follow_by_differentiation():
    fields = torch.full((6,), 0.2, dtype=torch.float64, requires_grad=True)
    transfer_matrix.chain_log_partition(torch.ones(6, dtype=torch.float64), fields, 0.7).backward()
    assert fields.grad.tolist() == pytest.approx([0.7 * ising_exact.ring(6, 1 / 0.7, 0.2).magnetisation] * 6, abs=1e-12)


def test_wrong_lengths_and_temperatures_are_refused():
    with pytest.raises(ConfigError, match="there are 3 couplings"):
        transfer_matrix.chain_log_partition(torch.ones(3), torch.zeros(5), 1.0)
    with pytest.raises(ConfigError, match="ground energy"):
        transfer_matrix.chain_log_partition(torch.ones(3), torch.zeros(4), math.inf)
    with pytest.raises(ConfigError, match="beta above 0"):
        transfer_matrix.chain_free_energy_density(0.0)
