"""Score matching against the closed form of Gaussians and the theorem behind it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import DoubleWell, Gaussian
from mfmarl.statmech.energy_learning import score_matching
from tests.statistical import beyond, statistical

KEY = Key.of(64)
COUNT = 4000


class Quadratic(nn.Module):
    """x^T P x/2 - r x with free P (symmetrised) and r."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.eye(3, dtype=torch.float64))
        self.r = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    @property
    def precision(self) -> Tensor:
        return (self.p + self.p.mT) / 2

    def forward(self, x: Tensor) -> Tensor:
        return (x * (x @ self.precision)).sum(-1) / 2 - x @ self.r


def samples(count: int = COUNT) -> Tensor:
    mix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.2, -0.4], [0.0, 0.0, 0.7]], dtype=torch.float64)
    return random.normal(KEY.fold("x"), torch.arange(count), 3).double() @ mix + torch.tensor([0.5, -1.0, 0.2])


def fitted(loss: str, x: Tensor, noise: float = 0.0, part: int = 0) -> Quadratic:
    """The optimum, by L-BFGS on a fixed draw of the noise."""
    energy, ids = Quadratic(), torch.arange(len(x))
    optimiser = torch.optim.LBFGS(
        energy.parameters(), max_iter=400, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        if loss == "explicit":
            value = score_matching.explicit(energy, x).mean()
        elif loss == "sliced":
            value = score_matching.sliced(energy, x, ids, KEY.fold("slices", part), 4).mean()
        else:
            value = score_matching.denoising(energy, x, ids, KEY.fold("noise", part), noise).mean()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return energy


def test_the_explicit_optimum_of_a_gaussian_is_the_inverse_sample_covariance() -> None:
    x = samples()
    energy = fitted("explicit", x)
    mean, precision = score_matching.gaussian_optimum(x)
    assert torch.allclose(energy.precision, precision, rtol=1e-6, atol=1e-7)
    assert torch.allclose(torch.linalg.solve(energy.precision, energy.r), mean, rtol=1e-5, atol=1e-6)
    covariance = torch.linalg.inv(precision)
    assert torch.allclose(covariance, torch.cov(x.mT, correction=0), rtol=1e-9)


@pytest.mark.parametrize(("loss", "noise"), [("sliced", 0.0), ("denoising", 0.5)])
@statistical(alpha=beyond(6.5, 10, samples=8), bugs=("uniforms-lean", "wide-normals"))
def test_noisy_forms_have_the_same_optimum_up_to_their_noise(loss: str, noise: float) -> None:
    found = []
    for part in range(8):  # independent halves of a large sample tell the error
        x = samples(8 * COUNT)[part::8]
        found.append(fitted(loss, x, noise, part).precision - score_matching.gaussian_optimum(x, noise)[1])
    away = torch.stack(found).detach()
    error = away.std(0) / math.sqrt(8)
    assert bool((away.mean(0).abs() < 6.5 * error).all())  # 5 sigma of normal errors is 6.5 or so with 7 of freedom
    if loss == "denoising":
        sharp = score_matching.gaussian_optimum(samples(8 * COUNT))[1]
        smooth = score_matching.gaussian_optimum(samples(8 * COUNT), noise)[1]
        assert bool(((sharp - smooth).diagonal() > 10 * error.diagonal()).all())


def test_j_is_half_the_squared_distance_of_scores_up_to_a_constant() -> None:
    """Hyvaerinen's theorem on a grid: J(E) - J(E_data) = <|s - s_data|^2>/2 under the data's own density."""
    truth, other = DoubleWell(1.0), DoubleWell(0.3)
    x = torch.linspace(-4, 4, 40_001, dtype=torch.float64).unsqueeze(-1)
    density = torch.softmax(-truth(x), 0)
    gap = density @ (score_matching.explicit(other, x) - score_matching.explicit(truth, x)).detach()
    distance = density @ (other.gradient(x) - truth.gradient(x)).square().sum(-1) / 2
    assert math.isclose(float(gap), float(distance), rel_tol=1e-6)


def test_slices_are_unbiased_and_exact_for_separable_energies() -> None:
    x = samples(5)
    p = torch.tensor([[2.0, 0.7, 0.0], [0.7, 1.0, 0.3], [0.0, 0.3, 1.5]], dtype=torch.float64)
    energy = Gaussian(torch.zeros(3, dtype=torch.float64), p)
    exact = score_matching.explicit(energy, x)
    assert torch.allclose(exact.detach(), ((x @ p).square().sum(-1) / 2 - 5.5 + 1.0).detach(), rtol=1e-9)
    copies = 4000
    many = x.repeat_interleave(copies, 0)
    found = score_matching.sliced(energy, many, torch.arange(len(many)), KEY).detach().reshape(5, copies)
    error = found.std(-1) / math.sqrt(copies)
    assert bool(((found.mean(-1) - exact).abs() < 5 * error).all())
    wells = DoubleWell()
    one = score_matching.sliced(wells, x, torch.arange(5), KEY)
    assert torch.allclose(one, score_matching.explicit(wells, x), rtol=1e-9)


def test_a_score_is_minus_the_slope_and_keeps_its_graph() -> None:
    energy, x = Quadratic(), samples(6)
    s = score_matching.score(energy, x)
    assert torch.allclose(s, -(x @ energy.precision - energy.r))
    (push,) = torch.autograd.grad(s.sum(), energy.r)
    assert torch.allclose(push, torch.full((3,), 6.0, dtype=torch.float64))


def test_noise_and_directions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="noise above 0"):
        score_matching.denoising(DoubleWell(), samples(2), torch.arange(2), KEY, 0.0)
    with pytest.raises(ConfigError, match="one direction"):
        score_matching.sliced(DoubleWell(), samples(2), torch.arange(2), KEY, 0)
