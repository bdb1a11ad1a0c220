"""By what an agent's weights descend: Adam, or an optimiser with a temperature that anneals over the run.

A temperature of the weights shakes what is learned, T d log p = -dL; it is not the temperature of acting, which shakes
what is done. Its unit is the loss (a mean over the batch, of each mind).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mfmarl.errors import ConfigError
from mfmarl.learning.agent import AgentConfig
from mfmarl.random import Key
from mfmarl.statmech.annealing.schedule import Schedule, parse_schedule
from mfmarl.statmech.optimisers.hamiltonian import SGHMC
from mfmarl.statmech.optimisers.langevin import SGLD, PreconditionedSGLD
from mfmarl.statmech.optimisers.noise import ThermalOptimizer

USUAL_RATES = {"adam": 1e-3, "sgld": 5e-2, "psgld": 1e-3, "sghmc": 1e-2}
"""Learning rates that serve networks of a few layers: a step of Adam has the size of its rate, others' that of the
gradient times theirs."""


@dataclass(frozen=True)
class LearnerConfig(AgentConfig):
    """Options of every agent that learns by gradients."""

    optimiser: Literal["adam", "sgld", "psgld", "sghmc"] = "adam"
    """What descends: Adam, or Langevin dynamics (plain, preconditioned, with momentum), which at a weight temperature
    of 0 are SGD, RMSprop and SGD with momentum."""
    weight_temperature: str = "0"
    """Temperature of the weights, in units of the loss, or its schedule: `geometric(1e-3, 1e-6)`. Not for adam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule = parse_schedule(self.weight_temperature)
        if schedule.kind == "entropy":
            raise ConfigError(
                "A temperature of weights cannot aim at an entropy; write a number or geometric(1, 0.01)."
            )
        if self.optimiser == "adam" and schedule != Schedule("constant", 0.0, 0.0):
            raise ConfigError(
                f"adam has no temperature: weight_temperature = {self.weight_temperature} needs optimiser = sgld, psgld "
                "or sghmc."
            )


def make_optimiser(
    config: LearnerConfig, parameters: Sequence[nn.Parameter], rate: float | None, key: Key
) -> torch.optim.Optimizer:
    """The optimiser of that name; `rate` None: its usual one."""
    rate = USUAL_RATES[config.optimiser] if rate is None else rate
    if config.optimiser == "adam":
        # Its whole step in one kernel: half the time of the others for networks of this size.
        return torch.optim.Adam(parameters, rate, fused=True)
    rate = max(rate, 1e-12)  # of 0: no descent, which the dynamics do not allow for
    start = parse_schedule(config.weight_temperature).at(0.0)
    kind = {"sgld": SGLD, "psgld": PreconditionedSGLD, "sghmc": SGHMC}[config.optimiser]
    return kind(parameters, rate, start, key=key)


def set_pace(optimiser: torch.optim.Optimizer, rate: float, config: LearnerConfig, progress: float) -> None:
    """The learning rate, and the temperature of the weights, at that progress of the run."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    if isinstance(optimiser, ThermalOptimizer):
        optimiser.set_temperature(parse_schedule(config.weight_temperature).at(progress))
