"""Information against Quinlan's tree, closed forms and the inequalities every distribution obeys."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.statmech import gibbs, information


@st.composite
def joint_distributions(draw: st.DrawFn, axes: int = 2) -> Tensor:
    """Probabilities over 2 to 4 values a variable, zeros among them."""
    shape = [draw(st.integers(2, 4)) for _ in range(axes)]
    size = math.prod(shape)
    numbers = draw(st.lists(st.integers(0, 20), min_size=size, max_size=size).filter(any))
    p = torch.tensor(numbers, dtype=torch.float64)
    return (p / p.sum()).reshape(shape)


def test_quinlans_gains_in_bits() -> None:
    outlook = torch.tensor([[2, 3], [4, 0], [3, 2]])
    temperature = torch.tensor([[2, 2], [4, 2], [3, 1]])
    humidity = torch.tensor([[3, 4], [6, 1]])
    wind = torch.tensor([[6, 2], [3, 3]])
    whole = information.entropy(torch.tensor([9, 5], dtype=torch.float64) / 14)
    assert math.isclose(float(whole) * information.BITS, 0.940286, abs_tol=5e-7)
    for counts, gain in ((outlook, 0.246750), (temperature, 0.029223), (humidity, 0.151836), (wind, 0.048127)):
        assert math.isclose(float(information.information_gain(counts)) * information.BITS, gain, abs_tol=5e-7)


def test_an_ensemble_that_disagrees_knows_that_it_does() -> None:
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    assert math.isclose(float(information.jensen_shannon(p)), 0.368064, abs_tol=5e-7)
    assert abs(float(information.jensen_shannon(p[:1].expand(5, 2)))) < 1e-15
    sure = torch.eye(3, dtype=torch.float64)
    assert math.isclose(float(information.jensen_shannon(sure)), math.log(3))
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    joint = weights.unsqueeze(-1) * p
    assert math.isclose(
        float(information.jensen_shannon(p, weights)), float(information.mutual_information(joint)), rel_tol=1e-12
    )


@given(joint_distributions())
def test_information_lies_between_nothing_and_the_smaller_entropy(joint: Tensor) -> None:
    gain = float(information.mutual_information(joint))
    first, second = information.entropy(joint.sum(-1)), information.entropy(joint.sum(-2))
    assert -1e-12 <= gain <= float(torch.minimum(first, second)) + 1e-12
    assert math.isclose(gain, float(information.mutual_information(joint.mT)), abs_tol=1e-12)
    assert math.isclose(gain, float(second - information.conditional_entropy(joint)), abs_tol=1e-12)
    # Chain rule.
    assert math.isclose(
        float(information.entropy(joint.flatten())),
        float(first + information.conditional_entropy(joint)),
        abs_tol=1e-12,
    )


@given(joint_distributions(3))
def test_conditioning_obeys_the_chain_rule(joint: Tensor) -> None:
    x_to_y_given_z = float(information.conditional_mutual_information(joint))
    assert x_to_y_given_z >= -1e-12
    x, yz = joint.shape[0], joint.flatten(1)
    assert yz.shape[0] == x
    total = float(information.mutual_information(yz))  # I(X; Y, Z) = I(X; Z) + I(X; Y|Z)
    assert math.isclose(total, float(information.mutual_information(joint.sum(1))) + x_to_y_given_z, abs_tol=1e-11)


@given(joint_distributions(), joint_distributions())
def test_processing_data_adds_no_information(joint: Tensor, other: Tensor) -> None:
    outcomes = joint.shape[1]
    table = torch.ones(outcomes, other.shape[1], dtype=torch.float64)
    rows = min(outcomes, other.shape[0])
    table[:rows] += 20 * other[:rows]
    channel = table / table.sum(-1, keepdim=True)
    before = float(information.mutual_information(joint))
    assert float(information.mutual_information(joint @ channel)) <= before + 1e-12


@given(joint_distributions(1), st.integers(0, 3))
def test_divergences_are_never_negative_and_add_up(p: Tensor, turn: int) -> None:
    q = (p.roll(turn) + 0.01) / (1 + 0.01 * len(p))
    kl = float(information.kl_divergence(p, q))
    assert kl >= -1e-12
    assert math.isclose(kl, float(information.cross_entropy(p, q) - information.entropy(p)), abs_tol=1e-12)
    assert 1 - 1e-12 <= float(information.perplexity(p)) <= len(p) + 1e-9


def test_what_is_forbidden_but_happens_is_infinitely_surprising() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    assert float(information.kl_divergence(p, q)) == math.inf == float(information.cross_entropy(p, q))
    assert float(information.kl_divergence(q, p)) == pytest.approx(math.log(2))
    assert float(information.kl_divergence(q, q)) == 0.0 == float(information.entropy(q))


def test_probabilities_and_energies_give_the_same_entropy() -> None:
    energy = torch.linspace(-2, 3, 7, dtype=torch.float64)
    p = gibbs.probabilities(energy, 0.8)
    assert math.isclose(float(information.entropy(p)), float(gibbs.entropy(energy, 0.8)), rel_tol=1e-12)


def test_gaussians_have_closed_forms() -> None:
    r = 0.9
    both = torch.tensor([[1, r], [r, 1]], dtype=torch.float64)
    wanted = -0.5 * math.log(1 - r * r)
    assert math.isclose(float(information.gaussian_mutual_information(both, 1)), wanted, rel_tol=1e-12)
    # The best factorised Gaussian (reverse KL) has variances 1 - r^2, at the same divergence.
    apart, zero = (1 - r * r) * torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert math.isclose(float(information.gaussian_kl(zero, apart, zero, both)), wanted, rel_tol=1e-12)
    one = torch.tensor([[4.0]], dtype=torch.float64)
    assert math.isclose(float(information.gaussian_entropy(one)), 0.5 * math.log(2 * math.pi * math.e * 4))


def test_gaussian_divergence_agrees_with_torch_and_with_batches() -> None:
    generator = torch.Generator().manual_seed(3)
    factor = torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.mT + 0.1 * torch.eye(3, dtype=torch.float64)
    mean = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    normals = [torch.distributions.MultivariateNormal(m, c) for m, c in zip(mean, covariance, strict=True)]
    wanted = torch.distributions.kl_divergence(*normals)
    assert torch.allclose(information.gaussian_kl(mean[0], covariance[0], mean[1], covariance[1]), wanted)
    assert torch.allclose(information.gaussian_entropy(covariance[0]), normals[0].entropy())


def test_impossible_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="positive definite"):
        information.gaussian_entropy(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ConfigError, match="not all 0"):
        information.information_gain(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="each side"):
        information.gaussian_mutual_information(torch.eye(2), 2)
    assert float(information.entropy(torch.tensor([1.5, -0.5]))) == -math.inf
