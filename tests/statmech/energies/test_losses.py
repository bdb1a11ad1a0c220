"""A loss is a Hamiltonian over weights: batched, differentiable, and refused a partition function it has not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.energy import gradient
from mfmarl.statmech.energies.losses import LossEnergy, cross_entropy, half_squares
from mfmarl.statmech.energies.spins import ising
from mfmarl.statmech.exact.regression import LinearRegression
from mfmarl.statmech.optimisers.langevin import SGLD
from tests.statistical import beyond, statistical


def _normal(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    return random.normal(Key.of(seed), ids, shape[-1]).double()


def _classifier() -> tuple[nn.Module, LossEnergy]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = _normal(1, 12, 3)
    return model, LossEnergy(model, cross_entropy, x, (x[:, 0] > 0).long(), 0.7)


def test_the_energy_of_a_network_is_its_loss_and_its_priors_energy():
    model, energy = _classifier()
    states = 0.5 * _normal(2, 2, 3, energy.size)
    found = energy(states)
    assert found.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            energy.write(states[i, j])
            expected = nn.functional.cross_entropy(model(energy.inputs), energy.targets, reduction="sum")
            expected = expected + 0.35 * sum(p.square().sum() for p in model.parameters())
            assert float(found[i, j]) == pytest.approx(float(expected.detach()), rel=1e-12)
            torch.testing.assert_close(energy.outputs(states, energy.inputs)[i, j], model(energy.inputs))
    assert torch.equal(energy.weights, states[1, 2])
    assert torch.equal(energy.flatten(energy.unflatten(states)), states)


def test_the_gradient_is_that_of_the_energy():
    _, energy = _classifier()
    states = _normal(3, 4, energy.size)
    asked = states.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(energy(asked).sum(), asked)
    torch.testing.assert_close(energy.gradient(states), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(energy, states[0]), expected[0], rtol=1e-10, atol=1e-12)
    step = 1e-5 * _normal(4, 4, energy.size)
    difference = energy(states + step) - energy(states - step)
    torch.testing.assert_close(difference, 2 * (expected * step).sum(-1), rtol=1e-6, atol=1e-10)


def test_minibatches_estimate_the_energy_without_bias():
    _, energy = _classifier()
    states = _normal(5, 3, energy.size)
    parts = torch.arange(12).reshape(4, 3)
    whole = torch.stack([energy.minibatch(rows)(states) for rows in parts]).mean(0)
    torch.testing.assert_close(whole, energy(states))
    slopes = torch.stack([energy.minibatch(rows).gradient(states) for rows in parts]).mean(0)
    torch.testing.assert_close(slopes, energy.gradient(states))


def _linear(prior: float) -> tuple[LossEnergy, LinearRegression]:
    x = _normal(6, 20, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5]).double() + _normal(7, 20, 1)[:, 0]
    model = nn.Linear(3, 1, bias=False).double()
    return LossEnergy(model, half_squares, x, y.unsqueeze(-1), prior), LinearRegression(x, y, 1.0, prior)


def test_the_saddle_point_of_a_linear_network_is_the_exact_evidence():
    energy, exact = _linear(1.5)
    log_z = energy.laplace_log_partition(exact.posterior()[0])
    constants = -10 * math.log(2 * math.pi) + 1.5 * math.log(1.5 / (2 * math.pi))
    assert float(log_z) + constants == pytest.approx(float(exact.log_evidence()), abs=1e-10)


@statistical(alpha=beyond(5, 200), bugs=("wide-normals", "draws-repeat"))
def test_langevin_on_the_weights_of_a_linear_network_finds_the_posterior_and_equipartition():
    energy, exact = _linear(1.5)
    mean, covariance = exact.posterior()
    chains, lr = 4_000, 2e-3
    w = nn.Parameter(energy.random_states((chains,), Key.of(8)))
    optimizer = SGLD([w], lr, key=Key.of(9))
    for _ in range(400):
        w.grad = energy.gradient(w.detach())
        optimizer.step()
    precision = torch.linalg.inv(covariance)
    # The law of the discrete step: (A (1 - lr A/2))^-1.
    law = torch.linalg.inv(precision @ (torch.eye(3) - lr / 2 * precision))
    found = w.detach()
    assert bool(((found.mean(0) - mean).abs() < 5 * (law.diag() / chains).sqrt()).all())
    error = ((law.diag().outer(law.diag()) + law**2) / chains).sqrt()
    assert bool(((found.mT.cov() - law).abs() < 5 * error).all())
    h = energy(found)
    least = energy(mean)
    expected = least + torch.trace(precision @ law) / 2  # d/(2 beta) as lr -> 0
    assert abs(float(h.mean() - expected)) < 5 * float(h.std()) / math.sqrt(chains)
    assert float(expected - least) == pytest.approx(1.5, rel=0.02)


def test_a_partition_function_with_flat_directions_is_refused_until_there_is_a_prior():
    x = torch.cat([_normal(10, 8, 2)] * 2, -1)  # two columns twice: two free directions
    y = _normal(11, 8, 1)
    model = nn.Linear(4, 1, bias=False).double()
    free = LossEnergy(model, half_squares, x, y, 0.0)
    with pytest.raises(ConfigError, match=r"2 of 4 directions.*prior"):
        free.laplace_log_partition(torch.zeros(4).double())
    with pytest.raises(ConfigError, match="prior"):
        free.random_states((2,), Key.of(1))
    assert math.isfinite(float(LossEnergy(model, half_squares, x, y, 0.1).laplace_log_partition(free.weights)))


@statistical(alpha=beyond(5, 30), bugs=("uniforms-lean", "wide-normals"))
def test_a_prior_may_differ_from_weight_to_weight():
    _, energy = _classifier()
    prior = torch.linspace(0.5, 2, energy.size).double()
    model, x = energy.model, energy.inputs
    many = LossEnergy(model, cross_entropy, x, energy.targets, prior)
    w = _normal(12, energy.size)
    expected = LossEnergy(model, cross_entropy, x, energy.targets, 0.0)(w) + 0.5 * (prior * w * w).sum()
    torch.testing.assert_close(many(w), expected)
    draws = many.random_states((20_000,), Key.of(2))
    error = (2 / 20_000) ** 0.5
    assert bool(((draws.square().mean(0) * prior - 1).abs() < 5 * error).all())


def test_wrong_data_and_priors_are_refused():
    model, energy = _classifier()
    with pytest.raises(ConfigError, match="as many targets"):
        LossEnergy(model, cross_entropy, energy.inputs, energy.targets[:3], 1.0)
    with pytest.raises(ConfigError, match="precision"):
        LossEnergy(model, cross_entropy, energy.inputs, energy.targets, -1.0)
    with pytest.raises(ConfigError, match="precision"):
        LossEnergy(model, cross_entropy, energy.inputs, energy.targets, torch.ones(3))
    noisy = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).double()
    with pytest.raises(ConfigError, match=r"Dropout.*eval"):
        LossEnergy(noisy, cross_entropy, energy.inputs, energy.targets, 1.0)
    assert LossEnergy(noisy.eval(), cross_entropy, energy.inputs, energy.targets, 1.0).size == 8
    with pytest.raises(ConfigError, match="no parameters"):
        LossEnergy(nn.Tanh(), cross_entropy, energy.inputs, energy.targets, 1.0)
    with pytest.raises(ConfigError, match="shape"):
        energy(torch.zeros(2, energy.size + 1))


class ConvolutionEnergy(nn.Module):
    """H = -sum_x s(x) (k * s)(x)/2 on a ring: a convolution with one kernel for all places."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel)

    def forward(self, s: Tensor) -> Tensor:
        flat = s.reshape(-1, 1, s.shape[-1])
        wide = nn.functional.pad(flat, (1, 1), mode="circular")
        return -0.5 * (flat * nn.functional.conv1d(wide, self.kernel)).sum((1, 2)).reshape(s.shape[:-1])


def test_a_network_of_its_inputs_is_an_energy_and_a_convolution_is_couplings_that_are_tied():
    n, coupling = 7, 0.8
    conv = ConvolutionEnergy(torch.tensor([[[coupling, 0.0, coupling]]], dtype=torch.float64))
    pairs = torch.tensor([[i, (i + 1) % n] for i in range(n)])
    dense = ising(pairs, n, coupling).to(torch.float64)
    s = dense.random_states((3, 50), Key.of(13))
    torch.testing.assert_close(conv(s), dense(s), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient(conv, s), dense.gradient(s), rtol=0, atol=1e-6)
