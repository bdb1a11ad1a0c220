"""From what an environment shows to the outcomes that a generative model knows.

A Discrete observation space numbers the outcomes of all modalities together, the last modality fastest; a Box holds them
as one-hot vectors (or as soft evidence: any weights), one modality after the other.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel


def check(model: GenerativeModel, space: gymnasium.Space[Any]) -> None:
    """Raises ConfigError unless the space shows the model's outcomes."""
    sizes = model.outcomes
    if isinstance(space, gymnasium.spaces.Discrete):
        if int(space.n) != math.prod(sizes):
            raise ConfigError(
                f"The environment shows {int(space.n)} observations and the model's modalities have "
                f"{' x '.join(map(str, sizes))} = {math.prod(sizes)} outcomes: they must be as many."
            )
    elif tuple(space.shape or ()) != (sum(sizes),):
        raise ConfigError(
            f"The environment shows observations of shape {tuple(space.shape or ())} and the model's modalities have "
            f"{' + '.join(map(str, sizes))} outcomes: a Box must hold them one-hot, in shape ({sum(sizes)},)."
        )


def outcomes(model: GenerativeModel, space: gymnasium.Space[Any], obs: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Of observations [*b, *O]: outcomes int64 [*b, M], or for a Box the evidence [*b, O_m] of every modality."""
    if isinstance(space, gymnasium.spaces.Discrete):
        left, found = obs, []
        for size in reversed(model.outcomes):
            found.append(left % size)
            left = left // size
        return torch.stack(found[::-1], -1)
    return tuple(x.to(model.dtype) for x in obs.split(list(model.outcomes), -1))


def number(model: GenerativeModel, seen: Tensor) -> Tensor:
    """The number of outcomes int64 [*b, M] together, the inverse of `outcomes` for a Discrete space: int64 [*b]."""
    total = torch.zeros_like(seen[..., 0])
    for m, size in enumerate(model.outcomes):
        total = total * size + seen[..., m]
    return total
