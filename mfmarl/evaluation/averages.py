"""What a population settles at: averages over time, with standard errors that correlations do not shrink.

Values at successive steps are correlated, so their spread says little. The averages of copies that share no noise are
independent numbers, and the spread of these is honest whatever the correlation time. Copies that are learned from
together share their mind, which wavers: while it learns, blocks of time count too, and the larger error is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.learning.episode import Episode
from mfmarl.learning.training import Training

_BLOCKS = 10

Measures = dict[str, Tensor]


class Average(NamedTuple):
    """A mean and its standard error; NaN error where there is a single sample."""

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
    sums: Measures = {}
    for step in range(burn_in + steps):
        before, _, after, now = episode.play()
        if step >= burn_in:
            for name, value in _found(before.acting, after.reward, episode.env.measure()).items():
                sums[name] = sums[name] + value if name in sums else value
        episode.go_on(after, now)
    return {name: average(total / steps) for name, total in sums.items()}


def averages_while_learning(
    training: Training, burn_in: int, more: Callable[[Measures], Measures] | None = None
) -> dict[str, Average]:
    """Learn to the end of the budget, and average what the environment measures over the steps after `burn_in`.

    The mind goes on learning meanwhile, so its wavering is averaged too and is part of the error: the larger of those
    of the copies and of ten blocks of time. `more` makes further measures [E] of a step's, such as powers. For
    environments without an end, whose measures are then those of what the players did.

    Raises ConfigError for an environment that ends, or too few steps.
    """
    if training.episode.env.spec.horizon is not None:
        raise ConfigError("Averages while learning are for an environment that never ends: give it horizon=None.")
    steps = training.options.steps - max(training.tick, burn_in)
    if steps < _BLOCKS:
        raise ConfigError(f"{steps} steps are left after the burn-in; averages need at least {_BLOCKS}.")
    while training.tick < burn_in:
        training.step()
    blocks: list[Measures] = []
    for block in range(_BLOCKS):
        length = steps * (block + 1) // _BLOCKS - steps * block // _BLOCKS
        sums: Measures = {}
        for _ in range(length):
            acting = training.episode.timestep.acting
            training.step()
            found = _found(acting, training.episode.timestep.reward, training.episode.env.measure())
            for name, value in (found | (more(found) if more else {})).items():
                sums[name] = sums[name] + value if name in sums else value
        blocks.append({name: total / length for name, total in sums.items()})
    return {name: _larger(torch.stack([b[name] for b in blocks])) for name in blocks[0]}


def average(samples: Tensor) -> Average:
    """The mean of independent samples [E] and its standard error."""
    count = samples.numel()
    error = float(samples.double().std(correction=1)) / math.sqrt(count) if count > 1 else math.nan
    return Average(float(samples.double().mean()), error)


def _found(acting: Tensor, reward: Tensor, measured: Measures) -> Measures:
    """Reward per agent that acted, and the measures: [E] each, in double precision."""
    acted = acting.sum(1, dtype=torch.float64).clamp(min=1)
    found = {"reward": reward.sum(1, dtype=torch.float64) / acted, **measured}
    return {name: value.to(torch.float64) for name, value in found.items()}


def _larger(samples: Tensor) -> Average:
    """Of samples [blocks, E]: the mean, with the larger error of its blocks and its copies."""
    by_time, by_copy = average(samples.mean(1)), average(samples.mean(0))
    return max(by_time, by_copy, key=lambda a: a.error if math.isfinite(a.error) else -1.0)
