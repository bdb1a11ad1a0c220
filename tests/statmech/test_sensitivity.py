"""Sensitivity of networks to noise on inputs and weights: linear maps exactly, a trained network by its gradient."""

from __future__ import annotations

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.losses import LossEnergy, half_squares
from mfmarl.statmech.sampling import noise
from mfmarl.statmech.sensitivity import sensitivity
from tests.statistical import beyond, statistical


@statistical(alpha=beyond(5, 20, samples=32), bugs=("wide-sampler-noise", "jackknife-error-tiny"))
def test_a_linear_map_answers_with_the_squares_of_its_rows():
    matrix = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]).double()
    kicks = noise.normal(Key.of(0), torch.arange(4000), 3, torch.float64)
    found = sensitivity(lambda x: x @ matrix.T, torch.tensor([5.0, 1.0, -2.0]).double(), 0.7, kicks)
    exact = matrix.square().sum(-1)
    assert torch.allclose(found.linear, exact)
    assert bool(((found.fluctuation.value - exact).abs() < 5 * found.fluctuation.error).all())
    assert bool((found.fluctuation.error < 0.05 * exact).all())


def trained() -> tuple[torch.nn.Module, LossEnergy]:
    """A small tanh network fitted to a sine by Adam."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(noise.normal(Key.of(i), torch.tensor(7), parameter.numel()).double().view_as(parameter))
    inputs = noise.normal(Key.of(9), torch.arange(40), 2, torch.float64)
    energy = LossEnergy(network, half_squares, inputs, torch.sin(2 * inputs[:, :1]), 0.1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        half_squares(network(energy.inputs), energy.targets).backward()
        optimizer.step()
    return network, energy


@statistical(alpha=beyond(5, 20, samples=32), bugs=("wide-sampler-noise", "jackknife-error-tiny"))
def test_a_trained_networks_fluctuation_is_its_gradient_for_small_noise_and_not_for_large():
    network, energy = trained()
    x = torch.tensor([0.6, -0.3]).double()
    kicks = noise.normal(Key.of(0), torch.arange(2000), 2, torch.float64)
    small, large = (sensitivity(network, x, width, kicks) for width in (1e-3, 2.0))
    assert small.linear.shape == (1,)
    gap = float((small.fluctuation.value - small.linear).abs())
    assert gap < 5 * float(small.fluctuation.error)
    assert float((large.fluctuation.value - large.linear).abs()) > 5 * float(large.fluctuation.error)
    # And of its weights at the same input.
    weights = energy.weights
    shakes = noise.normal(Key.of(1), torch.arange(2000), energy.size, torch.float64)
    of_weights = sensitivity(lambda w: energy.outputs(w, x.unsqueeze(0)).squeeze(-2), weights, 1e-3, shakes)
    assert abs(float(of_weights.fluctuation.value - of_weights.linear)) < 5 * float(of_weights.fluctuation.error)
    slope = torch.autograd.grad(network(x).sum(), list(network.parameters()))
    assert float(of_weights.linear) == pytest.approx(sum(float(s.square().sum()) for s in slope), rel=1e-6)


def test_kicks_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="at least 4 kicks"):
        sensitivity(lambda x: x, torch.zeros(3), 0.1, torch.zeros(10, 2))
    with pytest.raises(ConfigError, match="width above 0"):
        sensitivity(lambda x: x, torch.zeros(3), 0.0, torch.zeros(10, 3))
