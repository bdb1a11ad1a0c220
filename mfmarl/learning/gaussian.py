r"""A Gaussian carried into a Box, for continuous actions.

$$ u \sim N(\mu, \sigma^2), \qquad a = c + h \tanh u, \qquad \log p(a) = \log N(u) - \log |da/du| $$

with centre c and half-width h (`reach`) of the Box; an unbounded dimension is left as it is (a = u). Actions are so
always inside the space, the map is one to one, and the density is that of the action itself: the entropy is
measured in the units of the action (Haarnoja et al. 2018, arXiv 1801.01290, appendix C).
"""

from __future__ import annotations

import math

import gymnasium
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key

_LARGEST = 1 - 1e-6  # |tanh u| in float32: beyond it the inverse is lost


class Squash(nn.Module):
    """The map between the line and the Box, by dimension: u [..., D] <-> a [..., D]."""

    centre: Tensor
    reach: Tensor
    bounded: Tensor

    def __init__(self, space: gymnasium.spaces.Box) -> None:
        super().__init__()
        low, high = torch.as_tensor(space.low).flatten().float(), torch.as_tensor(space.high).flatten().float()
        bounded = torch.isfinite(low) & torch.isfinite(high)
        if bool((torch.isfinite(low) ^ torch.isfinite(high)).any()):
            raise ConfigError(f"Actions in {space} are bounded on one side only; give both bounds or none.")
        self.register_buffer("centre", torch.where(bounded, (low + high) / 2, 0.0), persistent=False)
        self.register_buffer("reach", torch.where(bounded, (high - low) / 2, 1.0), persistent=False)
        self.register_buffer("bounded", bounded, persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        """The action of u."""
        return torch.where(self.bounded, self.centre + self.reach * torch.tanh(u), u)

    def inverse(self, action: Tensor) -> Tensor:
        """The u of an action; the very edge is taken as just inside it."""
        unit = ((action - self.centre) / self.reach.clamp(min=1e-12)).clamp(-_LARGEST, _LARGEST)
        return torch.where(self.bounded, torch.atanh(unit), action)

    def log_slope(self, u: Tensor) -> Tensor:
        """log |da/du|, summed over the dimensions: [...]."""
        # log(1 - tanh^2 u) without cancellation.
        slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u)) + self.reach.clamp(min=1e-12).log()
        return torch.where(self.bounded, slope, torch.zeros_like(u)).sum(-1)


def log_density(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(u; mean, std), summed over the last axis."""
    z = (u - mean) * torch.exp(-log_std)
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def draw(mean: Tensor, log_std: Tensor, ids: Tensor, key: Key) -> Tensor:
    """One u per row, differentiable in both parameters; `ids` has the rows' shape."""
    return mean + log_std.exp() * random.normal(key, ids, mean.shape[-1])
