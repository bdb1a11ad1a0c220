r"""A generative model of a world of which only the observations, the actions and the range of rewards are known.

States are what is observed, and what was done last: A shows the observation itself, the reward depends on both, and the
next observation on the last and the action. Everything but the identity of observation and state is to be learned from
counts. Rewards are a modality of levels, of which a higher one is preferred: C = reward, so that a nat of preference is a
unit of reward and expected utility is expected reward.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel

_ENTRIES = 50_000_000


def unknown(space: gymnasium.Space[Any], actions: int, levels: Tensor) -> GenerativeModel:
    """The model before anything was seen: uniform where it is ignorant. `levels` [R]: rewards that its outcomes stand for.

    Factors: observation [O], last action [U]. Modalities: observation, reward. Raises ConfigError unless observations are
    Discrete, or where the tables would be too large.
    """
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise ConfigError(
            f"A model of states and counts is learned from Discrete observations, not {space}; "
            "deep_active_inference learns a neural one."
        )
    count = int(space.n)
    if count * count * actions > _ENTRIES:
        raise ConfigError(
            f"{count} observations and {actions} actions make transitions of {count * count * actions:,} entries: too many "
            "to count; deep_active_inference learns a neural model."
        )
    eye = torch.eye(count, dtype=torch.float64)
    done = torch.eye(actions, dtype=torch.float64).unsqueeze(1).expand(-1, actions, -1)
    return GenerativeModel(
        A=(eye, torch.full((len(levels), count, actions), 1 / len(levels), dtype=torch.float64)),
        B=(torch.full((count, count, actions), 1 / count, dtype=torch.float64), done),
        C=(torch.zeros(count, dtype=torch.float64), levels.double()),
        D=(
            torch.full((count,), 1 / count, dtype=torch.float64),
            torch.full((actions,), 1 / actions, dtype=torch.float64),
        ),
        A_factors=((0,), (0, 1)),
        B_factors=((0,), (1,)),
        B_controls=((0,), (0,)),
        modalities=("observation", "reward"),
        factors=("observation", "last action"),
    )


def level(rewards: Tensor, levels: Tensor) -> Tensor:
    """The number of the level nearest to each reward, int64 like `rewards`; levels rise evenly."""
    span = (levels[-1] - levels[0]).clamp(min=1e-12)
    return ((rewards - levels[0]) / span * (len(levels) - 1)).round().clamp(0, len(levels) - 1).long()
