"""What a population settles at: averages over time, with standard errors from copies that know nothing of each other.

Values at successive steps are correlated, so their spread says little; the averages of independent copies are
independent numbers, and the spread of these is honest whatever the correlation time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from mfmarl.errors import ConfigError
from mfmarl.learning.training import Episode


class Average(NamedTuple):
    """A mean and its standard error; NaN error where there is a single copy."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.error:.4f}"


@torch.no_grad()
def time_averages(episode: Episode, steps: int, burn_in: int = 0) -> dict[str, Average]:
    """Let the players act, without learning, and average what the environment measures over `steps` steps.

    Besides the measures, `reward` per agent that acted. The first `burn_in` steps are played and not counted.
    The errors are those of copies that share no noise: players that learned together are one sample of learning.
    """
    if steps < 1:
        raise ConfigError(f"An average needs at least one step, not {steps}.")
    sums: dict[str, torch.Tensor] = {}
    for step in range(burn_in + steps):
        before, _, after, now = episode.play()
        if step >= burn_in:
            acted = before.acting.sum(1, dtype=torch.float64).clamp(min=1)
            found = {"reward": after.reward.sum(1, dtype=torch.float64) / acted, **episode.env.measure()}
            for name, value in found.items():
                sums[name] = sums[name] + value.to(torch.float64) if name in sums else value.to(torch.float64)
        episode.go_on(after, now)
    return {name: average(total / steps) for name, total in sums.items()}


def average(samples: torch.Tensor) -> Average:
    """The mean of independent samples [E] and its standard error."""
    count = samples.numel()
    error = float(samples.double().std(correction=1)) / math.sqrt(count) if count > 1 else math.nan
    return Average(float(samples.double().mean()), error)
