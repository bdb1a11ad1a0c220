"""Langevin dynamics: exact laws of the discrete chains, in harmonic and double wells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import DoubleWell, Gaussian
from mfmarl.statmech.energies.energy import gradient
from mfmarl.statmech.exact import double_well
from mfmarl.statmech.sampling import chains, langevin
from tests.statistical import beyond, statistical


def harmonic(k: float) -> Gaussian:
    return Gaussian(torch.zeros(1, dtype=torch.float64), torch.full((1, 1), k, dtype=torch.float64))


def well_samples(temperature: float, count: int) -> torch.Tensor:
    """Independent draws from the double well's Gibbs distribution by inversion of its quadrature, [count, 1]."""
    x, p = double_well._weights(temperature, 1.0)
    cumulative = np.concatenate([[0.0], (p.cumsum() - p / 2)[1:]])
    level = np.random.default_rng(0).random(count)
    return torch.from_numpy(np.interp(level, cumulative, x)).unsqueeze(-1)


@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "steps-share-noise"))
def test_the_unadjusted_variance_is_biased_as_the_formula_says():
    k, step, temperature, count = 2.0, 0.25, 0.7, 40_000
    sweep = langevin.ula(harmonic(k), step)
    x, _ = chains.run(sweep, torch.zeros(count, 1, dtype=torch.float64), 1 / temperature, Key.of(0), 50)
    exact = temperature / (k * (1 - step * k / 2))
    assert abs(float(x.var()) / exact - 1) < 5 * math.sqrt(2 / count)
    assert abs(float(x.var()) * k / temperature - 1) > 0.25  # far from the unbiased one


def test_steps_of_one_sweep_are_steps():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    well, key, ids = DoubleWell(), Key.of(4), torch.arange(7)
    at_once = langevin.ula(well, 0.01, steps=3)(x, 2.0, ids, key)
    one = langevin.ula(well, 0.01)
    for i in range(3):
        x = one(x, 2.0, ids, key.fold(i))
    assert torch.equal(at_once, x)


@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "shifted-sampler-noise"))
def test_noisy_descent_from_the_wrong_well_escapes_as_often_as_the_exact_chain():
    count, barrier = 12_000, DoubleWell().stationary_points[1]
    x = torch.full((count, 1), 2.0)
    chain = chains.trajectory(langevin.ula(DoubleWell(), 0.01), x, 2.0, Key.of(1))  # noise .1 is T = .1^2/(2 .01)
    for _ in range(2000):
        x = next(chain)
    exact = double_well.noisy_descent(2000, 0.01, 0.1, 2.0)
    assert abs(float((x < barrier).double().mean()) - exact.left) < 5 * math.sqrt(exact.left * (1 - exact.left) / count)
    assert abs(float(x.mean()) - exact.mean) < 5 * math.sqrt(exact.variance / count)


@pytest.mark.parametrize("step", [0.02, 0.1])
@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "uniforms-narrow"))
def test_mala_leaves_the_gibbs_distribution_of_the_double_well_alone(step):
    temperature, count = 1.5, 60_000
    start = well_samples(temperature, count)
    ids = torch.arange(count)
    x = langevin.mala(DoubleWell(), step, steps=4)(start, 1 / temperature, ids, Key.of(2))
    exact = double_well.moments(temperature)
    assert float((x != start).double().mean()) > 0.2
    for value, expected in (
        (x[:, 0], exact.mean),
        (x[:, 0] ** 2, exact.variance + exact.mean**2),
        (DoubleWell()(x), exact.energy),
    ):
        assert abs(float(value.mean()) - expected) < 5 * float(value.std()) / math.sqrt(count)
    # Without the choice the same steps are off by far: the test sees what it must.
    biased = langevin.ula(DoubleWell(), step, steps=4)(start, 1 / temperature, ids, Key.of(2))
    value = DoubleWell()(biased).nan_to_num(50.0).clamp(max=50)
    assert abs(float(value.mean()) - exact.energy) > 5 * float(value.std()) / math.sqrt(count)


def test_mala_accepts_with_the_ratio_of_densities():
    energy = Gaussian(torch.zeros(2).double(), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double())
    x = torch.tensor([[0.3, -1.0], [2.0, 0.1]]).double()
    beta, step = torch.tensor([0.5, 2.0]).double(), torch.tensor([0.3, 0.1]).double()
    ids, key = torch.arange(2), Key.of(8)
    found = langevin.mala_transition(energy, step, x, beta, ids, key)
    kick = langevin.noise.normal(key.fold("move"), ids, 2, torch.float64)
    new = x - step[:, None] * gradient(energy, x) + (2 * step / beta).sqrt()[:, None] * kick

    def log_q(to: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        return -beta / (4 * step) * (to - of + step[:, None] * gradient(energy, of)).square().sum(-1)

    ratio = -beta * (energy(new) - energy(x)) + log_q(x, new) - log_q(new, x)
    assert torch.allclose(found.acceptance, ratio.exp().clamp(max=1), atol=1e-12)


def test_mala_refuses_what_has_no_energy():
    def energy(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[..., 0] > 0, x.square().sum(-1), torch.nan)

    x = torch.full((500, 1), 0.2)
    moved = langevin.mala(energy, 0.5)(x, 1.0, torch.arange(500), Key.of(0))
    assert bool((moved > 0).all()) and bool((moved != x).any())


@pytest.mark.parametrize("step", [0.3, 1.2])
@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "shifted-sampler-noise"))
def test_baoab_has_the_exact_positions_in_a_harmonic_well_at_any_step(step):
    """The sweep is linear: its matrix (at T = 0) and its noise give the stationary covariance without sampling."""
    k, temperature, friction = 1.7, 0.6, 0.8
    sweep = langevin.baoab(harmonic(k), step, friction)
    ids = torch.arange(2)
    a = sweep(torch.eye(2, dtype=torch.float64), math.inf, ids, Key.of(0)).T.numpy()
    spread = math.sqrt(temperature * (1 - math.exp(-2 * friction * step)))
    b = spread * np.array([step / 2, 1 - step**2 * k / 4])
    sigma = linalg.solve_discrete_lyapunov(a, np.outer(b, b))
    assert sigma[0, 0] == pytest.approx(temperature / k, rel=1e-12)
    assert sigma[1, 1] == pytest.approx(temperature * (1 - step**2 * k / 4), rel=1e-12)
    # And the noise that the sweep adds is that b.
    start = torch.zeros(20_000, 2, dtype=torch.float64)
    kicked = sweep(start, 1 / temperature, torch.arange(20_000), Key.of(1))
    assert np.allclose(np.cov(kicked.T.numpy()), np.outer(b, b), atol=5 * math.sqrt(2 / 20_000) * float(b @ b))
    assert np.allclose(kicked[:, 0] * b[1], kicked[:, 1] * b[0], atol=1e-12)


@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "shifted-sampler-noise"))
def test_baoab_samples_the_double_well_for_small_steps_and_several_steps_are_one_sweep():
    temperature, count = 1.5, 20_000
    ids = torch.arange(count)
    start = langevin.with_momenta(well_samples(temperature, count), 1 / temperature, ids, Key.of(0))
    packed = langevin.baoab(DoubleWell(), 0.05, steps=20)(start, 1 / temperature, ids, Key.of(3))
    exact = double_well.moments(temperature)
    value = DoubleWell()(langevin.positions(packed))
    assert abs(float(value.mean()) - exact.energy) < 5 * float(value.std()) / math.sqrt(count)
    total = langevin.Hamiltonian(DoubleWell())
    kinetic = total(packed) - value
    assert (
        abs(float(kinetic.mean()) - temperature / 2)
        < 5 * float(kinetic.std()) / math.sqrt(count) + temperature * 0.05**2 * 4
    )  # V'' = 16 / 4
    slope = torch.autograd.functional.jacobian(lambda s: total(s).sum(), start[:5])
    assert torch.allclose(total.gradient(start[:5]), slope)


@pytest.mark.parametrize("make", [langevin.ula, langevin.mala, langevin.baoab])
def test_a_chain_does_not_know_how_many_chains_there_are(make):
    sweep = make(DoubleWell(), 0.05)
    x = torch.linspace(-1, 1, 60).double().reshape(10, 6)
    ids, beta = torch.arange(10), torch.linspace(1, 3, 10).double()
    whole = sweep(x, beta, ids, Key.of(5))
    part = sweep(x[3:5], beta[3:5], ids[3:5], Key.of(5))
    assert torch.equal(whole[3:5], part)
    folded = sweep(x.reshape(2, 5, 6), beta.reshape(2, 5), ids.reshape(2, 5), Key.of(5))
    assert torch.equal(whole, folded.reshape(10, 6))


def test_steps_may_differ_between_chains():
    x, ids = torch.ones(3, 2).double(), torch.arange(3)
    both = langevin.ula(DoubleWell(), torch.tensor([0.1, 0.2, 0.1]).double())(x, 1.0, ids, Key.of(0))
    alone = langevin.ula(DoubleWell(), 0.2)(x, 1.0, ids, Key.of(0))
    assert torch.allclose(both[1], alone[1]) and not torch.allclose(both[0], alone[0])


def test_what_has_no_equilibrium_is_refused():
    x, ids = torch.zeros(2, 2), torch.arange(2)
    with pytest.raises(ConfigError, match="step size must be above 0"):
        langevin.ula(DoubleWell(), 0.0)
    with pytest.raises(ConfigError, match="no equilibrium"):
        langevin.ula(DoubleWell(), 0.1)(x, 0.0, ids, Key.of(0))
    with pytest.raises(ConfigError, match="friction"):
        langevin.baoab(DoubleWell(), 0.1, friction=-1.0)
    with pytest.raises(ConfigError, match="even length"):
        langevin.baoab(DoubleWell(), 0.1)(torch.zeros(2, 3), 1.0, ids, Key.of(0))
