r"""A flock in the plane: everyone steers to fly as the others do, and near them, at little effort.

$$ p' = p + v\,\delta, \quad v' = v + a\,\delta + \sigma \sqrt\delta\, w, \qquad
   c = \delta \left( |v - s \bar v|^2 + \kappa |p - \bar p|^2 + R |a|^2 \right) $$

Cucker and Smale 2007 (IEEE TAC 52, 852) with interactions of any range, linearised, as a game: Nourian, Caines and
Malhame 2011 (IFAC 44, 4471). An agent matches its speed with a share s of the flock's: for 0 < s < 1 nobody counts what
its own haste does to the others' reference, so that a planner would stop the flock more slowly. With delta = 1, kappa = 0, R = 1,
s = 1/2, discount .95 and no horizon the flock's velocity falls by the factor .517138 a step in equilibrium and by
.628921 under the planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.linear_quadratic import LinearQuadraticGame, State, mean_of
from mfmarl.games.riccati import Array, LinearQuadratic
from mfmarl.options import Bounds
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.picture import BACKGROUND
from mfmarl.registry import register

_AXES = np.eye(2)


@register("flocking")
@dataclass(frozen=True)
class Flocking(LinearQuadraticGame):
    """A flock that aligns its velocities and keeps together; each axis by itself."""

    alignment: Annotated[float, Bounds(-10, 10)] = 0.5
    """s, the share of the flock's velocity that an agent wants for itself."""
    cohesion: Annotated[float, Bounds(0, 1e3)] = 0.1
    """kappa, what distance from the flock's middle costs."""
    effort: Annotated[float, Bounds(0, 1e3, open_low=True)] = 1.0
    """R, what steering costs."""
    gusts: Annotated[float, Bounds(0, 1e3)] = 0.1
    """sigma, the noise of velocities."""
    interval: Annotated[float, Bounds(0, 10, open_low=True)] = 1.0
    """delta, the time of a step."""
    wind: Annotated[float, Bounds(-1e3, 1e3)] = 1.0
    """The mean velocity at the start, along the first axis."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.effort > 0:
            raise ConfigError(f"effort must be positive, not {self.effort:g}.")
        if not self.interval > 0:
            raise ConfigError(f"interval must be positive, not {self.interval:g}.")

    def problem(self) -> LinearQuadratic:
        # States are (p, v), each of two axes.
        dt, s, zero = self.interval, self.alignment, np.zeros((2, 2))
        apart = np.array([[1.0, -1.0], [-1.0, 1.0]])
        along = np.array([[1.0, -s], [-s, s * s]])
        place, speed = np.diag([1.0, 0.0]), np.diag([0.0, 1.0])
        cost = self.cohesion * np.kron(apart, place) + np.kron(along, speed)
        return LinearQuadratic(
            own=np.kron([[1.0, dt], [0.0, 1.0]], _AXES),
            control=np.vstack([zero, dt * _AXES]),
            cost=dt * np.kron(cost, _AXES),
            effort=dt * self.effort * _AXES,
            noise=self.gusts**2 * dt * np.kron(speed, _AXES),
            mean=np.array([0.0, 0.0, self.wind, 0.0]),
            spread=np.eye(4),
            discount=self.discount,
            horizon=self.horizon,
        )

    def forms(self) -> dict[str, tuple[Array, Array]]:
        """`drift`: the squared speed of the flock; `disorder`: of agents against it; `radius2`: their squared distance
        from its middle."""
        none = np.zeros((4, 4))
        place, speed = np.kron(np.diag([1.0, 0.0]), _AXES), np.kron(np.diag([0.0, 1.0]), _AXES)
        return {"drift": (none, speed), "disorder": (speed, none), "radius2": (place, none)}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """Where everyone is, seen from the middle of the flock; colours say which way they fly."""
        x = state.x[copy : copy + 1].cpu()
        away = (x - mean_of(x).unsqueeze(1))[0]
        reach = 3 * float(away[:, :2].square().mean().sqrt()) + 1e-9
        place = ((away[:, :2] / reach).clamp(-1, 1) * 126 + 128).long()
        heading = torch.atan2(x[0, :, 3], x[0, :, 2])
        colour = (127 + 110 * torch.stack([(heading + k).cos() for k in (0.0, 2.1, 4.2)], -1)).to(torch.uint8)
        picture = torch.tensor(BACKGROUND, dtype=torch.uint8).repeat(256, 256, 1)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                picture[255 - place[:, 1] + down, place[:, 0] + right] = colour
        return picture


parallel_env, env = faces(Flocking)
