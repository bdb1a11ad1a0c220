"""The Gibbs distribution: identities to rounding, the limit of no temperature, the tutorial's eight spins."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech import gibbs
from tests.statistical import beyond, statistical

INF = math.inf
energies = st.lists(st.floats(-50, 50), min_size=1, max_size=20).map(lambda x: torch.tensor(x, dtype=torch.float64))
temperatures = st.floats(0.05, 50)


def eight_spins() -> torch.Tensor:
    """H = B sum x_i of all 256 states, B = 1."""
    states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 8)
    return states.sum(-1)


def test_eight_free_spins_in_a_field_have_the_tutorials_probabilities() -> None:
    energy = eight_spins()
    p = gibbs.probabilities(energy, 1.0)
    assert float(gibbs.log_partition(energy, 1.0)) == pytest.approx(math.log(8229.0354566819), abs=1e-12)
    assert float(p[energy == -6][0]) == pytest.approx(0.0490250401297, rel=1e-11)
    assert float(p[energy == 0][0]) == pytest.approx(1.21520924933e-4, rel=1e-11)
    assert float(p[energy == -6][0] / p[energy == 0][0]) == pytest.approx(403.428793, rel=1e-8)
    # A state is not a level: eight states of energy -6 outweigh the ground state.
    assert float(p[energy == -6].sum()) == pytest.approx(0.3922, abs=5e-5)
    assert float(p[energy == -8]) == pytest.approx(0.3622, abs=5e-5)
    # log Z is not the entropy.
    assert float(gibbs.log_partition(energy, 1.0)) == pytest.approx(9.0154, abs=5e-5)
    assert float(gibbs.entropy(energy, 1.0)) == pytest.approx(2.9227, abs=5e-5)


@given(energies, temperatures)
def test_free_energy_is_energy_less_temperature_times_entropy(energy: torch.Tensor, temperature: float) -> None:
    free = gibbs.free_energy(energy, temperature)
    legendre = gibbs.mean_energy(energy, temperature) - temperature * gibbs.entropy(energy, temperature)
    assert torch.allclose(free, legendre, rtol=1e-11, atol=1e-10)
    assert torch.allclose(free, -temperature * gibbs.log_partition(energy, temperature), rtol=1e-11, atol=1e-10)
    assert float(gibbs.probabilities(energy, temperature).sum()) == pytest.approx(1, abs=1e-12)


@given(energies, temperatures)
def test_no_distribution_has_a_lower_free_energy(energy: torch.Tensor, temperature: float) -> None:
    noise = torch.rand(5, len(energy), generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e-9
    q = noise / noise.sum(-1, keepdim=True)
    other = (q * energy).sum(-1) + temperature * (q * q.log()).sum(-1)
    assert bool((other >= gibbs.free_energy(energy, temperature) - 1e-9).all())


@given(energies, temperatures)
def test_entropy_and_heat_capacity_are_derivatives(energy: torch.Tensor, temperature: float) -> None:
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gibbs.free_energy(energy, t), t)
    assert torch.allclose(slope, -gibbs.entropy(energy, temperature), rtol=1e-8, atol=1e-8)
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gibbs.mean_energy(energy, t), t)
    assert torch.allclose(slope, gibbs.heat_capacity(energy, temperature), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("temperature", [1e-8, 1e-30, 0.0])
def test_the_zero_temperature_limit_is_uniform_over_the_ground_states(temperature: float) -> None:
    energy = torch.tensor([3.0, -2.0, -2.0, INF, 1e30], dtype=torch.float64)
    p = gibbs.probabilities(energy, temperature)
    assert p.tolist() == [0, 0.5, 0.5, 0, 0]
    # F = E_0 - T log g.
    assert float(gibbs.free_energy(energy, temperature)) == pytest.approx(-2 - temperature * math.log(2), abs=1e-15)
    assert float(gibbs.entropy(energy, temperature)) == pytest.approx(math.log(2))
    assert float(gibbs.heat_capacity(energy, temperature)) == 0
    assert float(gibbs.mean_energy(energy, temperature)) == -2


def test_the_limit_of_no_temperature_is_approached_as_laplace_says() -> None:
    energy = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    for temperature in (0.2, 0.1, 0.05, 1e-3, 1e-8):
        exact = -temperature * (math.log(2) + math.log1p(1.5 * math.exp(-1 / temperature)))
        assert float(gibbs.free_energy(energy, temperature)) == pytest.approx(exact, rel=1e-12)


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "hot-draws"))
def test_a_forbidden_state_is_never_drawn_and_frequencies_are_the_probabilities() -> None:
    for count in (4, 12):  # both ways of drawing
        energy = torch.linspace(0, 3, count)
        energy[2] = INF
        n = 40_000
        ids = torch.arange(n)
        drawn = gibbs.sample(energy.expand(n, -1), 0.7, ids, Key.of(3))
        p = gibbs.probabilities(energy, 0.7)
        share = torch.bincount(drawn, minlength=count) / n
        assert float(share[2]) == 0
        assert bool(((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-12).all())


def test_the_temperature_of_an_entropy_has_that_entropy() -> None:
    energy = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64)
    temperature = gibbs.temperature_for_entropy(energy, 0.8)
    assert float(gibbs.entropy(energy, temperature)) == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize(
    "function", ["probabilities", "free_energy", "mean_energy", "entropy", "heat_capacity", "log_partition"]
)
def test_bad_input_is_named(function: str) -> None:
    call = getattr(gibbs, function)
    fine = torch.zeros(2, 3)
    for wrong in (-1.0, math.nan, torch.tensor([1.0, -1.0])):
        with pytest.raises(ConfigError, match="temperature must be finite and"):
            call(fine, wrong)
    with pytest.raises(NumericFault, match=r"Every state of 1 row\(s\) has infinite energy"):
        call(torch.tensor([[0.0, 1.0], [INF, INF]]), 1.0)
    with pytest.raises(NumericFault, match="hold NaN or -inf"):
        call(torch.tensor([[0.0, math.nan]]), 1.0)
    with pytest.raises(ConfigError, match="not -1"):
        gibbs.sample(fine, -1.0, torch.arange(2), Key.of(0))
