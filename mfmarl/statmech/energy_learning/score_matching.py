r"""Score matching: learning an energy by its slope, without its partition function.

$$ J = \Big\langle \tfrac12 |s(x)|^2 + \nabla \cdot s(x) \Big\rangle_{\text{data}}, \qquad s = -\nabla E $$

equals half the mean squared distance between the model's score and the data's, up to a constant (Hyvaerinen 2005,
JMLR 6, theorem 1). The divergence costs a pass per dimension; sliced score matching takes random directions (Song,
Garg, Shi and Ermon 2019, UAI, eq. 8), denoising score matching the known score of added noise (Vincent 2011, Neural
Computation 23), which fits the smoothed density instead. All energies here are callables [*b, n] -> [*b] at beta = 1;
losses are [*b] and differentiable in the energy's parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.energy import Energy


def score(energy: Energy, x: Tensor) -> Tensor:
    """s = -dE/dx [*b, n], with its graph: for x that need not require gradients."""
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    return -slope


def explicit(energy: Energy, x: Tensor) -> Tensor:
    """J of every sample x [*b, n], [*b]: exact, n passes."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        s = score(energy, x)
        divergence = torch.zeros_like(s[..., 0])
        for site in range(x.shape[-1]):
            divergence = divergence + _slope(s[..., site], x)[..., site]
        return s.square().sum(-1) / 2 + divergence


def sliced(energy: Energy, x: Tensor, ids: Tensor, key: Key, directions: int = 1) -> Tensor:
    """J with the divergence from `directions` random ones of +-1 per sample (unbiased), [*b]; ids int64 [*b].

    The squared score is exact: the variance-reduced form. With +-1 the estimate is exact where the Hessian is diagonal.
    """
    if directions < 1:
        raise ConfigError(f"Sliced score matching needs one direction at least, not {directions}.")
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        s = score(energy, x)
        total = torch.zeros_like(s[..., 0])
        for turn in range(directions):
            sign = (random.uniform(key.fold(turn), ids, x.shape[-1]) < 0.5).to(x.dtype) * 2 - 1
            total = total + (_slope((s * sign).sum(-1), x) * sign).sum(-1)
        return s.square().sum(-1) / 2 + total / directions


def denoising(energy: Energy, x: Tensor, ids: Tensor, key: Key, noise: float) -> Tensor:
    """|s(x + noise e) + e/noise|^2/2 of samples x [*b, n], [*b]: fits the data smoothed by `noise` (a deviation)."""
    if not noise > 0:
        raise ConfigError(f"Denoising needs a noise above 0, not {noise:g}.")
    e = random.normal(key, ids, x.shape[-1]).to(x.dtype)
    return (score(energy, x + noise * e) + e / noise).square().sum(-1) / 2


def gaussian_optimum(x: Tensor, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """The mean [n] and precision [n, n] at which a Gaussian energy has the least J on samples x [m, n].

    Explicit and sliced: P = C^-1, the inverse sample covariance; denoising, on average over the noise,
    (C + noise^2)^-1. Maximum likelihood has the same: for Gaussians nothing is lost.
    """
    mean = x.mean(0)
    away = x - mean
    covariance = away.mT @ away / len(x)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return mean, torch.linalg.inv(covariance + noise**2 * identity)


def _slope(value: Tensor, x: Tensor) -> Tensor:
    """d value/dx, 0 where a score does not depend on x at all (a linear energy)."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if slope is None else slope
