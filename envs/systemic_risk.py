r"""Banks that borrow from and lend to each other through a central one, and may fail together.

$$ dX^i = \big[ a (\bar X - X^i) + \alpha^i \big] dt + \sigma \big( \rho\, dW^0 + \sqrt{1 - \rho^2}\, dW^i \big), \qquad
   f = \tfrac12 \alpha^2 - q \alpha (\bar X - x) + \tfrac{\epsilon}{2} (\bar X - x)^2, \quad g = \tfrac{c}{2} (\bar X - x)^2 $$

Carmona, Fouque and Sun 2015 (arXiv 1308.2172). X is a bank's log-reserve, alpha its rate of borrowing. The feedback
equilibrium of N banks is alpha = [q + (1 - 1/N) eta_t] (X_mean - x) with

$$ \dot\eta = 2 (a + q) \eta + (1 - N^{-2}) \eta^2 - (\epsilon - q^2), \qquad \eta_T = c $$

Here time goes in steps of T/horizon (Euler); the equilibrium of the stepped game itself is `nash()`, and it comes to
the paper's as steps get smaller. The mean of all is a martingale: lending moves the crowd together, not the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.linear_quadratic import LinearQuadraticGame, State
from mfmarl.games.riccati import Array, LinearQuadratic
from mfmarl.options import Bounds, Count, Share
from mfmarl.population import picture
from mfmarl.population.pettingzoo_out import faces
from mfmarl.registry import register

_APART = np.array([[1.0, -1.0], [-1.0, 1.0]])  # (x - m)^2 as a form of (x, m)


@register("systemic_risk")
@dataclass(frozen=True)
class SystemicRisk(LinearQuadraticGame):
    """Banks whose reserves drift together by mutual lending."""

    horizon: Count | None = 20
    """Steps that the time is cut into."""
    discount: Share = 1.0
    """Discount per step."""
    reversion: Annotated[float, Bounds(0, 1e3)] = 0.1
    """a, the pull to the mean that costs nothing."""
    incentive: Annotated[float, Bounds(0, 1e3)] = 0.1
    """q, what the central bank pays for borrowing when low and lending when high."""
    penalty: Annotated[float, Bounds(0, 1e3)] = 0.5
    """epsilon, what distance from the mean costs; at least q^2."""
    final: Annotated[float, Bounds(0, 1e3)] = 1.0
    """c, what it costs at the end."""
    volatility: Annotated[float, Bounds(0, 1e3)] = 1.0
    """sigma of log-reserves."""
    shared: Annotated[float, Bounds(-1, 1)] = 0.0
    """rho, the part of the noise that hits all banks alike."""
    duration: Annotated[float, Bounds(0, 1e3, open_low=True)] = 1.0
    """T, the time in all."""
    variance: Annotated[float, Bounds(0, 1e3)] = 0.0
    """Of log-reserves at the start, around 0."""

    def __post_init__(self) -> None:
        if self.horizon is None:
            raise ConfigError("The systemic-risk game ends with its time: give a horizon, the number of its steps.")
        super().__post_init__()
        if self.incentive**2 > self.penalty:
            raise ConfigError(
                f"penalty must be at least incentive^2 = {self.incentive**2:g}, not {self.penalty:g}: else costs have "
                "no minimum."
            )
        if not -1 <= self.shared <= 1:
            raise ConfigError(f"shared must lie in [-1, 1], not {self.shared:g}.")

    def problem(self) -> LinearQuadratic:
        assert self.horizon is not None
        dt, drift = self.duration / self.horizon, np.array([[self.reversion * self.duration / self.horizon]])
        own = self.volatility**2 * (1 - self.shared**2) * dt
        return LinearQuadratic(
            own=1 - drift,
            crowd=drift,
            control=np.array([[dt]]),
            cost=dt * self.penalty / 2 * _APART,
            cross=dt * self.incentive / 2 * np.array([[1.0, -1.0]]),
            effort=np.array([[dt / 2]]),
            terminal=self.final / 2 * _APART,
            noise=np.array([[own]]),
            common=np.array([[self.volatility**2 * self.shared**2 * dt]]),
            spread=np.array([[self.variance]]),
            discount=self.discount,
            horizon=self.horizon,
        )

    def forms(self) -> dict[str, tuple[Array, Array]]:
        """`variance` of banks around their mean, and the square of the mean."""
        one, none = np.ones((1, 1)), np.zeros((1, 1))
        return {"variance": (one, none), "mean_square": (none, one)}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """How many banks have how much, from -3 to 3 standard deviations of a bank left alone."""
        reach = 3 * math.sqrt(self.variance + self.volatility**2 * self.duration) + 1e-9
        cell = ((state.x[copy, :, 0].cpu() / reach + 1) * 10.5).long().clamp(0, 20)
        counts = torch.bincount(cell, minlength=21)
        return picture.bars(counts / counts.max(), picture.palette(2)[[0]].expand(21, 3))

    # ------------------------------------------------------------------------------------ in continuous time

    def eta(self, time: float = 0.0, agents: float | None = None) -> float:
        """The paper's eta_t of N banks (default: these; `math.inf`: infinitely many), in closed form: its eq. 2.9."""
        n = self.num_agents if agents is None else agents
        pull, square, source = self.reversion + self.incentive, 1 - 1 / n**2, self.penalty - self.incentive**2
        root, left = math.sqrt(pull**2 + square * source), self.duration - time
        if root == 0:
            return self.final / (1 + square * self.final * left)
        up, down, grown = root - pull, -root - pull, math.exp(2 * root * left)
        above = -source * (grown - 1) - self.final * (up * grown - down)
        return above / ((down * grown - up) - self.final * square * (grown - 1))

    def gain(self, time: float = 0.0, agents: float | None = None) -> float:
        """How fast a bank borrows per distance from the mean: q + (1 - 1/N) eta_t."""
        n = self.num_agents if agents is None else agents
        return self.incentive + (1 - 1 / n) * self.eta(time, n)

    def failure(self, level: float) -> float:
        """The probability that the mean of all falls to a `level` < 0 before the end: by reflection (section 4)."""
        if level >= 0:
            raise ConfigError(f"level must be below 0, where the mean begins, not {level:g}.")
        deviation = self.volatility * math.sqrt(
            self.duration * (self.shared**2 + (1 - self.shared**2) / self.num_agents)
        )
        return math.erfc(-level / deviation / math.sqrt(2)) if deviation else 0.0


parallel_env, env = faces(SystemicRisk)
