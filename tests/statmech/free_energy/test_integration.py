"""Thermodynamic integration: rules against exact integrals, Ising rings, and the evidence of a regression."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.free_energy import integration
from mfmarl.statmech.sampling import hamiltonian, noise, single_spin
from tests.statistical import beyond, statistical


@settings(max_examples=40)
@given(st.lists(st.floats(0.05, 2), min_size=3, max_size=8), st.integers(0, 3), st.booleans())
def test_rules_are_exact_for_the_powers_they_should_be(gaps, power, falling):
    betas = torch.tensor([0.3, *gaps], dtype=torch.float64).cumsum(0)
    betas = betas.flip(0) if falling else betas
    exact = float(betas[-1] ** (power + 1) - betas[0] ** (power + 1)) / (power + 1)
    for rule, order in (("trapezoid", 1), ("simpson", 2), ("spline", 3)):
        if power <= order:
            assert float(integration.weights(betas, rule) @ betas**power) == pytest.approx(exact, rel=1e-9)


def test_even_spacing_gives_the_weights_of_the_text_books():
    thirds = integration.weights(torch.tensor([0.0, 1.0, 2.0]), "simpson") * 3
    assert torch.allclose(thirds, torch.tensor([1.0, 4.0, 1.0]).double())
    halves = integration.weights(torch.tensor([0.0, 1.0, 2.0]), "trapezoid") * 2
    assert torch.allclose(halves, torch.tensor([1.0, 2.0, 1.0]).double())


def ring_energy(betas: torch.Tensor, n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """<H> and Var H of a ring by derivatives of its log Z."""
    betas = betas.double().clone().requires_grad_(True)
    log_z = ((2 * betas.cosh()) ** n + (2 * betas.sinh()) ** n).log()
    (slope,) = torch.autograd.grad(log_z.sum(), betas, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), betas)
    return -slope.detach(), curve


def ring_log_ratio(beta: float, n: int = 8) -> float:
    return math.log((2 * math.cosh(beta)) ** n + (2 * math.sinh(beta)) ** n) - n * math.log(2)


def test_rules_converge_with_their_order_on_exact_energies():
    def gap(rungs: int, rule: str) -> float:
        betas = torch.linspace(0, 1.5, rungs + 1).double()
        mean, variance = ring_energy(betas)
        zero = torch.zeros_like(mean)
        found = (
            integration.corrected(betas, mean, zero, variance, zero)
            if rule == "corrected"
            else integration.integrate(betas, mean, zero, rule)
        )
        assert float(found.discretisation) > abs(float(found.value) - ring_log_ratio(1.5))  # a bound, here
        return abs(float(found.value) - ring_log_ratio(1.5))

    for rule, order in (("trapezoid", 2), ("simpson", 4), ("spline", 4), ("corrected", 4)):
        assert gap(16, rule) / gap(32, rule) > 0.7 * 2**order
    assert gap(16, "corrected") < gap(16, "trapezoid") / 50


def test_errors_are_those_of_a_linear_function():
    betas = torch.linspace(0, 1, 6).double()
    errors = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1, 0.2]).double()
    w = integration.weights(betas, "spline")
    mean = noise.normal(Key.of(0), torch.arange(20_000), 6, torch.float64) * errors
    found = integration.integrate(betas, mean, errors.expand_as(mean))
    assert float(found.value.std()) == pytest.approx(float(found.error[0]), rel=5 / math.sqrt(2 * 20_000))
    assert float(found.error[0]) == pytest.approx(float((w * errors).square().sum().sqrt()))


@statistical(alpha=beyond(5, 2, samples=32), bugs=("hot-heat-bath", "chain-error-tiny"))
def test_the_free_energy_of_a_sampled_ring():
    system = spins.ising(graphs.torus(8), 8)
    betas = torch.linspace(0, 1.5, 13).double()
    start = system.random_states((13, 50), Key.of(0))
    _, found = integration.log_partition(
        system, single_spin.heat_bath(system), start, betas, Key.of(1), 100, warm_up=30
    )
    assert abs(float(found.value) - ring_log_ratio(1.5)) < 5 * float(found.error) + float(found.discretisation)
    assert float(found.error) < 0.03 and float(found.discretisation) < 0.02


@statistical(alpha=beyond(5, 20, samples=60), bugs=("hot-heat-bath", "chain-error-tiny"))
def test_error_bars_of_integration_are_right_over_replications():
    system = spins.ising(graphs.torus(8), 8)
    betas = torch.linspace(0, 1, 9).double()
    z = []
    for seed in range(60):
        start = system.random_states((9, 40), Key.of(seed).fold("start"))
        _, found = integration.log_partition(
            system, single_spin.heat_bath(system), start, betas, Key.of(seed), 10, warm_up=12
        )
        z.append((float(found.value) - ring_log_ratio(1.0)) / float(found.error))
    scores = torch.tensor(z)
    square = scores.square()
    assert abs(float(square.mean()) - 1) < 5 * float(square.std()) / math.sqrt(60)
    assert abs(float(scores.mean())) < 5 / math.sqrt(60)


@statistical(alpha=beyond(5, 1, samples=32), bugs=("wide-sampler-noise", "chain-error-tiny"))
def test_the_evidence_of_a_regression_by_a_ladder_that_is_dense_at_the_prior():
    design = noise.normal(Key.of(1), torch.arange(6), 3, torch.float64)
    y = 2 * design[:, 0] - design[:, 1] + 0.3 * noise.normal(Key.of(2), torch.arange(6), 1, torch.float64)[:, 0]
    sigma = 0.3
    covariance = design @ design.T + sigma**2 * torch.eye(6).double()
    exact = float(torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance).log_prob(y))

    def misfit(w: torch.Tensor) -> torch.Tensor:
        return (y - w @ design.T).square().sum(-1) / (2 * sigma**2) + 6 * math.log(sigma * math.sqrt(2 * math.pi))

    betas = integration.ladder(16)
    assert betas[0] == 0 and betas[-1] == 1 and float(betas[1]) == pytest.approx((1 / 16) ** 5)
    precision = torch.eye(3).double() + betas[:, None, None] * (design.T @ design) / sigma**2
    mean = torch.linalg.solve(precision, betas[:, None] * (design.T @ y) / sigma**2)
    # Exact means of the power posteriors: the rule alone.
    inside = torch.einsum("ij,kjl,il->k", design, torch.linalg.inv(precision), design) / (2 * sigma**2)
    at_mean = torch.stack([misfit(m) for m in mean])
    zero = torch.zeros(17).double()
    alone = integration.integrate(betas, at_mean + inside, zero)
    assert abs(float(alone.value) - exact) < float(alone.discretisation) + 1e-3
    even = torch.linspace(0, 1, 17).double()
    flat = torch.eye(3).double() + even[:, None, None] * (design.T @ design) / sigma**2
    centre = torch.linalg.solve(flat, even[:, None] * (design.T @ y) / sigma**2)
    spread = torch.einsum("ij,kjl,il->k", design, torch.linalg.inv(flat), design) / (2 * sigma**2)
    uniform = integration.integrate(even, torch.stack([misfit(m) for m in centre]) + spread, zero, "trapezoid")
    assert abs(float(uniform.value) - exact) > 100 * abs(float(alone.value) - exact) > 0  # an even ladder fails

    # And sampled: every rung side by side, beta in the energy's own closure.
    cold = betas.reshape(17, 1)

    def tempered(w: torch.Tensor) -> torch.Tensor:
        return w.square().sum(-1) / 2 + cold * misfit(w)

    widths = torch.linalg.eigvalsh(precision)[:, -1].rsqrt().reshape(17, 1, 1)

    def scaled(v: torch.Tensor) -> torch.Tensor:  # every rung in its own units, so that one step size serves all
        return tempered(v * widths)

    sweep = hamiltonian.hmc(scaled, 0.5, 12, jitter=True)
    _, found = integration.log_partition(
        scaled,
        lambda x, beta, ids, key: sweep(x, 1.0, ids, key),
        torch.zeros(17, 64, 3).double(),
        betas,
        Key.of(5),
        60,
        warm_up=60,
        energy_of_path=lambda v: misfit(v * widths),
    )
    assert abs(float(found.value) - exact) < 5 * float(found.error) + float(found.discretisation)


def test_what_is_no_ladder_is_refused():
    with pytest.raises(ConfigError, match="all rising"):
        integration.weights(torch.tensor([0.0, 1.0, 1.0]), "spline")
    with pytest.raises(ConfigError, match="'spline'"):
        integration.weights(torch.tensor([0.0, 1.0, 2.0]), "gauss")
    with pytest.raises(ConfigError, match="as many means"):
        integration.integrate(torch.linspace(0, 1, 4), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ConfigError, match="rungs, chains, n"):
        integration.log_partition(
            lambda x: x.sum(-1), lambda *a: a[0], torch.zeros(3, 4), torch.linspace(0, 1, 4), Key.of(0), 3, warm_up=0
        )
