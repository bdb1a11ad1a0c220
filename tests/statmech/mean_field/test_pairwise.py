"""Naive mean field and TAP: the bound, the approximations' order, and where they fail."""

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
from mfmarl.statmech.energies.spins import Ising, curie_weiss, ising, sherrington_kirkpatrick
from mfmarl.statmech.exact import enumeration, transfer_matrix
from mfmarl.statmech.exact import ising as ising_exact
from mfmarl.statmech.mean_field import pairwise


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return random.normal(Key.of(seed), torch.arange(math.prod(shape)).reshape(shape)).double()


@given(st.integers(0, 10**6), st.floats(0.05, 5.0), st.floats(0.0, 2.0))
@settings(max_examples=40)
def test_the_naive_free_energy_bounds_the_exact_one_at_any_magnetisation(seed, beta, strength):
    couplings, fields = strength * _noise(seed, 15), _noise(seed + 1, 6)
    system = Ising(graphs.complete(6), couplings, fields)
    exact = float(enumeration.thermodynamics(system, beta).free_energy)
    m = torch.tanh(2 * _noise(seed + 2, 50, 6))
    assert float(pairwise.naive_free_energy(system, m, beta).min()) >= exact - 1e-10
    assert float(pairwise.best(pairwise.naive(system, beta)).free_energy) >= exact - 1e-10


def test_tap_is_no_bound():
    glass = sherrington_kirkpatrick(12, Key.of(1), (6,))
    exact = enumeration.thermodynamics(glass, 0.7).free_energy
    free = pairwise.best(pairwise.tap(glass, 0.7)).free_energy
    assert bool((free < exact).any())
    naive = pairwise.best(pairwise.naive(glass, 0.7)).free_energy
    assert bool((naive > exact).all())
    assert float((free - exact).abs().mean()) < 0.2 * float((naive - exact).mean())


def test_a_dense_ferromagnet_is_curie_weiss():
    for temperature in (0.6, 1.5):
        found = pairwise.best(pairwise.naive(curie_weiss(400), 1 / temperature))
        # Without a spin's coupling to itself J is (N - 1)/N.
        m = ising_exact.curie_weiss(temperature, coupling=399 / 400)
        assert found.magnetisation.abs().mean() == pytest.approx(m, abs=1e-8)


def test_tap_magnetisations_are_nearer_than_naive_ones_on_dense_glasses():
    glass = sherrington_kirkpatrick(14, Key.of(2), (20,))
    system = Ising(glass.pairs, glass.couplings, 0.5 * _noise(3, 20, 14))
    exact, _ = enumeration.moments(system, 0.6)
    errors = [
        float((pairwise.best(solve(system, 0.6)).magnetisation - exact).square().mean())
        for solve in (pairwise.naive, pairwise.tap)
    ]
    assert errors[1] < errors[0] / 10


def test_the_gradients_vanish_and_the_hessians_are_slopes_of_the_gradient():
    glass = sherrington_kirkpatrick(8, Key.of(4))
    system = Ising(glass.pairs, glass.couplings, 0.4 * _noise(5, 8))
    for solve, free, hessian in (
        (pairwise.naive, pairwise.naive_free_energy, pairwise.naive_hessian),
        (pairwise.tap, pairwise.tap_free_energy, pairwise.tap_hessian),
    ):
        m = pairwise.best(solve(system, 0.8)).magnetisation.requires_grad_()
        (slope,) = torch.autograd.grad(free(system, m, 0.8), m)
        assert float(slope.abs().max()) < 1e-8, solve
        found = torch.autograd.functional.hessian(lambda x, free=free: free(system, x, 0.8), m.detach())
        assert torch.allclose(found, hessian(system, m.detach(), 0.8), atol=1e-9)
        assert bool(pairwise.stable(found))


def test_linear_response_gives_the_correlations_that_independent_spins_lack():
    glass = sherrington_kirkpatrick(12, Key.of(6), (10,))
    system = Ising(glass.pairs, glass.couplings, 0.3 * _noise(7, 10, 12))
    beta = 0.3
    mean, pair = enumeration.moments(system, beta)
    exact = pair - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    off = ~torch.eye(12, dtype=torch.bool)
    sizes = []
    for solve, hessian in ((pairwise.naive, pairwise.naive_hessian), (pairwise.tap, pairwise.tap_hessian)):
        m = pairwise.best(solve(system, beta)).magnetisation
        found = pairwise.susceptibility(hessian(system, m, beta)) / beta
        sizes.append(float((found - exact)[:, off].square().mean() / exact[:, off].square().mean()))
    assert sizes[0] < 0.1 and sizes[1] < sizes[0] / 20


def test_the_susceptibility_is_what_a_small_field_does():
    glass = sherrington_kirkpatrick(8, Key.of(8))
    fields, step = 0.4 * _noise(9, 8), torch.zeros(8, dtype=torch.float64)
    step[2] = 1e-5
    for solve, hessian in ((pairwise.naive, pairwise.naive_hessian), (pairwise.tap, pairwise.tap_hessian)):
        up, down, here = (
            pairwise.best(solve(Ising(glass.pairs, glass.couplings, fields + x * step), 0.8)).magnetisation
            for x in (1, -1, 0)
        )
        system = Ising(glass.pairs, glass.couplings, fields)
        response = pairwise.susceptibility(hessian(system, here, 0.8))[:, 2]
        assert torch.allclose((up - down) / 2e-5, response, atol=1e-5)


def test_one_dimension_orders_in_naive_mean_field_but_not_in_truth():
    ring = ising(graphs.torus(100), 100)
    m = pairwise.best(pairwise.naive(ring, 1.0)).magnetisation
    assert float(m.abs().min()) == pytest.approx(ising_exact.curie_weiss(0.5), abs=1e-6)  # 2 neighbours: T_c = 2
    assert transfer_matrix.chain_magnetisation(1.0, 1e-9) < 1e-7
    assert transfer_matrix.chain_correlation_length(1.0) < 4


def test_mean_field_is_worst_near_the_true_transition():
    lattice = ising(graphs.torus(5, 5), 25)
    errors = {
        t: abs(
            float(pairwise.best(pairwise.naive(lattice, 1 / t)).free_energy) / 25 - ising_exact.square_free_energy(t)
        )
        for t in (1.0, 1.6, 2.27, 3.0, 5.0, 20.0)
    }
    assert max(errors, key=errors.__getitem__) in (2.27, 3.0, 5.0)
    assert errors[1.0] < 0.001 and errors[20.0] < 0.06
    # T_c of naive mean field is 4: between, an order that does not exist.
    assert float(pairwise.best(pairwise.naive(lattice, 1 / 3.5)).magnetisation.abs().mean()) > 0.5


def test_instances_do_not_know_of_each_other():
    many = sherrington_kirkpatrick(9, Key.of(10), (3,))
    together = pairwise.tap(many, 1.5)
    for i in range(3):
        alone = pairwise.tap(Ising(many.pairs, many.couplings[i], many.fields), 1.5)
        assert torch.allclose(together.free_energy[i], alone.free_energy, atol=1e-8)


def test_starts_that_are_no_averages_are_refused():
    with pytest.raises(ConfigError, match="averages of 4 spins"):
        pairwise.naive(curie_weiss(4), 1.0, torch.full((1, 4), 2.0))
    with pytest.raises(ConfigError, match="finite beta"):
        pairwise.tap(curie_weiss(4), math.inf)
