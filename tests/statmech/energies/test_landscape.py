"""Valleys, saddles and barriers of landscapes that are known."""

from __future__ import annotations

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.statmech.energies import landscape
from mfmarl.statmech.energies.continuous import DoubleWell, Gaussian


def test_the_double_wells_stationary_points_are_its_own() -> None:
    well = DoubleWell()
    found = landscape.stationary_points(well, torch.linspace(-2, 2, 21).unsqueeze(-1))
    left, middle, right = well.stationary_points
    assert found.points.squeeze(-1).tolist() == pytest.approx([left, right, middle], abs=1e-8)
    assert found.order.tolist() == [0, 0, 1]
    assert found.energies.tolist()[:2] == pytest.approx([-5.4442, -2.6186], abs=5e-5)
    assert found.curvatures.squeeze(-1).tolist() == pytest.approx([12 * x * x - 8 for x in (left, right, middle)])


def test_two_wells_have_nine_stationary_points_of_each_index() -> None:
    starts = torch.cartesian_prod(*[torch.linspace(-1.6, 1.6, 9)] * 2)
    found = landscape.stationary_points(DoubleWell(), starts)
    assert torch.bincount(found.order).tolist() == [4, 4, 1]
    assert bool((found.energies.diff() >= -1e-12).all())


def test_a_barrier_is_seen_on_the_line_and_none_in_a_bowl() -> None:
    well = DoubleWell()
    left, middle, right = (torch.tensor([x]).double() for x in well.stationary_points)
    height = landscape.barrier(well, left, right, 2001)
    assert float(height) == pytest.approx(float(well(middle) - well(right)), abs=1e-5)
    bowl = Gaussian(torch.zeros(3).double(), torch.eye(3).double())
    assert float(landscape.barrier(bowl, torch.ones(3).double(), -torch.ones(3).double())) == 0


def test_a_plane_shows_the_energy_where_it_says() -> None:
    bowl = Gaussian(torch.tensor([1.0, 2.0, 3.0]).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0])).double())
    where, heights = landscape.plane(bowl, bowl.mean, torch.eye(3).double()[:2], reach=2.0, points=5)
    assert torch.allclose(heights, 0.5 * (where.unsqueeze(-1) ** 2 + 4 * where**2))
    _, line = landscape.plane(bowl, bowl.mean, torch.eye(3).double()[2:], points=3)
    assert line.tolist() == [4.5, 0, 4.5]


def test_what_is_no_landscape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Starts must be \[S, n\]"):
        landscape.stationary_points(DoubleWell(), torch.zeros(3))
    with pytest.raises(ConfigError, match="Directions must be"):
        landscape.plane(DoubleWell(), torch.zeros(2), torch.zeros(3, 2))
