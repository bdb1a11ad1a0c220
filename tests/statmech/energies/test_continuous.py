"""Gaussians and double wells: forces, partition functions by quadrature, stationary points."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate

from mfmarl.errors import ConfigError
from mfmarl.statmech.energies.continuous import DoubleWell, Gaussian
from mfmarl.statmech.energies.energy import gradient


def test_a_gaussian_has_its_partition_function_and_covariance() -> None:
    precision = torch.tensor([[2.0, 0.6], [0.6, 1.5]]).double()
    system = Gaussian(torch.tensor([0.3, -1.0]).double(), precision)
    for beta in (0.5, 2.0):
        total, _ = integrate.dblquad(
            lambda y, x, beta=beta: math.exp(-beta * float(system(torch.tensor([x, y]).double()))), -9, 9, -10, 8
        )
        assert float(system.log_partition(beta)) == pytest.approx(math.log(total), abs=1e-6)
    torch.testing.assert_close(system.covariance @ precision, torch.eye(2).double())
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(gradient(system, x), torch.func.vmap(torch.func.grad(system))(x))


def test_the_double_well_is_the_tutorials() -> None:
    well = DoubleWell()
    assert well.stationary_points == pytest.approx((-1.472997601114, 0.126000192586, 1.346997408528), abs=1e-11)
    left, _, right = (torch.tensor([x]).double() for x in well.stationary_points)
    assert float(well(left)) == pytest.approx(-5.4442, abs=5e-5)
    assert float(well(right)) == pytest.approx(-2.6186, abs=5e-5)
    x = torch.linspace(-2, 2, 9).reshape(3, 3).double()
    torch.testing.assert_close(well.gradient(x), torch.func.vmap(torch.func.grad(well))(x))
    torch.testing.assert_close(well(x), (x**4 - 4 * x**2 + x).sum(-1))


def test_an_energy_without_a_gradient_of_its_own_is_differentiated() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gradient(lambda y: (y**3).sum(-1), x), 3 * x**2)
    assert not gradient(lambda y: (y**3).sum(-1), x).requires_grad


def test_bad_energies_are_refused() -> None:
    with pytest.raises(ConfigError, match="positive definite"):
        Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ConfigError, match="symmetric"):
        Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.2], [0.0, 1.0]]))
    with pytest.raises(ConfigError, match="as many rows"):
        Gaussian(torch.zeros(3), torch.eye(2))
    with pytest.raises(ConfigError, match="leaves one well"):
        _ = DoubleWell(5.0).stationary_points
