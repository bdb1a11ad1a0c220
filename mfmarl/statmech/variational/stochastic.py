r"""Stochastic variational inference: a Gaussian fitted to any differentiable energy by reparameterised gradients.

$$ x = \mu + L \varepsilon, \qquad \nabla F = \langle (\nabla H(x) + T\, \nabla \log q(x))\, \partial x \rangle_\varepsilon $$

(Kingma and Welling 2014; Kucukelbir et al. 2017.) The score term, whose mean is 0, is left out ("sticking the
landing", Roeder, Wu and Duvenaud 2017, eq. 8): where q is exact the gradient has no noise left. Antithetic draws.
The energy may be estimated anew at every step from a minibatch (Hoffman et al. 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import check
from mfmarl.statmech.energies.energy import Energy, gradient
from mfmarl.statmech.sampling.chains import chain_ids
from mfmarl.statmech.variational import free_energy


@dataclass(frozen=True, eq=False)
class GaussianFit:
    """q = N(mean, L L^T), one for each of a batch of fits."""

    mean: Tensor
    """[*b, d]."""
    scale: Tensor
    """L [*b, d, d], lower triangular; or its diagonal [*b, d]."""

    @property
    def full(self) -> bool:
        return self.scale.ndim > self.mean.ndim

    @property
    def covariance(self) -> Tensor:
        """[*b, d, d]."""
        return self.scale @ self.scale.mT if self.full else torch.diag_embed(self.scale.square())

    def place(self, noise: Tensor) -> Tensor:
        """mean + L noise, for noise [S, *b, d]."""
        if self.full:
            return self.mean + (self.scale @ noise.unsqueeze(-1)).squeeze(-1)
        return self.mean + self.scale * noise

    def sample(self, key: Key, draws: int) -> Tensor:
        """[draws, *b, d]."""
        ids = chain_ids((draws, *self.mean.shape[:-1]), self.mean.device)
        return self.place(random.normal(key, ids, self.mean.shape[-1]).to(self.mean))

    def log_density(self, x: Tensor) -> Tensor:
        """log q, [*b] of x [*b, d]."""
        away = x - self.mean
        if self.full:
            away = torch.linalg.solve_triangular(self.scale, away.unsqueeze(-1), upper=False).squeeze(-1)
            log_det = self.scale.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        else:
            away, log_det = away / self.scale, self.scale.log().sum(-1)
        return -away.square().sum(-1) / 2 - log_det - x.shape[-1] / 2 * math.log(2 * math.pi)

    def entropy(self) -> Tensor:
        """[*b]."""
        diagonal = self.scale.diagonal(dim1=-2, dim2=-1) if self.full else self.scale
        return diagonal.abs().log().sum(-1) + self.mean.shape[-1] / 2 * math.log(2 * math.pi * math.e)

    def free_energy(self, energy: Energy, temperature: float, key: Key, draws: int = 1000) -> tuple[Tensor, Tensor]:
        """F[q] and its standard error, [*b] each, from independent draws."""
        x = self.sample(key, draws)
        return free_energy.from_samples(energy(x), self.log_density(x), temperature)


def fit(
    energy: Energy,
    start: Tensor,
    *,
    key: Key,
    covariance: Literal["diagonal", "full"] = "diagonal",
    temperature: float = 1.0,
    steps: int = 2000,
    draws: int = 8,
    lr: float = 0.05,
    scale: float = 0.1,
    minibatch: Callable[[Key], Energy] | None = None,
    ids: Tensor | None = None,
) -> GaussianFit:
    """The Gaussian of least F found by Adam, its rate falling to 0 as a cosine, from means [*b, d]: a batch of fits.

    `draws` (even) are antithetic pairs per step; `scale` is the deviation at first. `minibatch(key)` gives the energy
    of a step instead of `energy`. A fit depends on its id alone, not on how many there are.
    """
    check.temperature(temperature, positive=True)
    if draws < 2 or draws % 2:
        raise ConfigError(f"Draws come in antithetic pairs: an even number of at least 2, not {draws}.")
    if covariance not in ("diagonal", "full"):
        raise ConfigError(f"A covariance is 'diagonal' or 'full', not {covariance!r}.")
    if not scale > 0 or not lr > 0 or steps < 1:
        raise ConfigError(f"A fit needs scale, lr and steps above 0, not {scale:g}, {lr:g}, {steps}.")
    d = start.shape[-1]
    ids = chain_ids(start.shape[:-1], start.device) if ids is None else ids
    mean = start.detach().clone()
    log_scale = torch.full_like(mean, math.log(scale))
    below = mean.new_zeros(*mean.shape, d) if covariance == "full" else None
    moving = [mean, log_scale] if below is None else [mean, log_scale, below]
    adam = torch.optim.Adam(moving, lr=lr, betas=(0.9, 0.99))
    for step in range(steps):
        here = energy if minibatch is None else minibatch(key.fold("minibatch", step))
        half = random.normal(key.fold("draw", step), ids, draws // 2 * d).to(mean).unflatten(-1, (draws // 2, d))
        noise = torch.cat([half, -half], -2).movedim(-2, 0)
        now = _assembled(mean, log_scale, below)
        x = now.place(noise)
        deviation = log_scale.exp()
        if below is None:
            slope = gradient(here, x) - temperature * noise / deviation
        else:
            turned = torch.linalg.solve_triangular(now.scale.mT, noise.unsqueeze(-1), upper=True).squeeze(-1)
            slope = gradient(here, x) - temperature * turned
        mean.grad = slope.mean(0)
        log_scale.grad = (slope * noise).mean(0) * deviation
        if below is not None:
            below.grad = (slope.unsqueeze(-1) * noise.unsqueeze(-2)).mean(0).tril(-1)
        for group in adam.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        adam.step()
    found = _assembled(mean, log_scale, below)
    check.finite(found.mean, "The fitted mean")
    check.finite(found.scale, "The fitted scale")
    return found


def _assembled(mean: Tensor, log_scale: Tensor, below: Tensor | None) -> GaussianFit:
    if below is None:
        return GaussianFit(mean, log_scale.exp())
    return GaussianFit(mean, below.tril(-1) + torch.diag_embed(log_scale.exp()))
