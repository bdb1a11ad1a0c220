r"""One shared reward for a total that must be neither too small nor too large: the Gaussian squeeze.

$$ r = G(x) = x\, e^{-(x - \mu)^2 / \sigma^2}, \qquad x = \tfrac1N \sum_i a_i \ \text{(normalised)} \quad\text{or}\quad
   x = \sum_i a_i, \qquad x^\ast = \tfrac12\left(\mu + \sqrt{\mu^2 + 2 \sigma^2}\right) $$

Holmes-Parker, Taylor, Agogino and Tumer 2014; in Yang et al. 2018 (arXiv 1802.05438) with mu = 400, sigma = 200 on
the sum of actions 0..9. That form tells little: with N = 100 a uniformly random crowd already has 97.7 % of the
optimum (413.48 of 423.03), and with N = 500 its reward is 2.6e-28, nothing to learn from. The default here is
therefore the mean action with (2, 1): the same game at every N, with an optimum of 2.1152 of which uniform play gets
.0087 (as N grows; .0180 at N = 100).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import ArrayLike, NDArray
from scipy import fft, signal
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.options import Bounds, Count
from mfmarl.population import picture
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.registry import register
from mfmarl.statmech.mean_field import logit

Array = NDArray[np.float64]
_DIRECT = 20_000  # totals up to which sums are convolved term by term, exact in relative terms; beyond, by FFT


class State(NamedTuple):
    action: Tensor  # [E, N] uint8, everyone's last action (before the first: a uniform draw)


@register("gaussian_squeeze")
@dataclass(frozen=True)
class GaussianSqueeze(PopulationEnv):
    """A crowd that shares one reward for its total: neither too little nor too much, every round anew."""

    num_agents: Count = 100
    """Number of agents."""
    actions: Annotated[int, Bounds(2, 256)] = 10
    """A: everyone adds one of 0..A-1."""
    mu: Annotated[float, Bounds(-1e12, 1e12)] = 2.0
    """Centre of the bell, in units of x."""
    sigma: Annotated[float, Bounds(0, 1e12, open_low=True)] = 1.0
    """Width of the bell."""
    normalised: bool = True
    """Whether x is the mean action; false: the sum, as published with mu = 400, sigma = 200."""
    horizon: Count | None = 100
    """Rounds of an episode; none: it never ends."""

    def __post_init__(self) -> None:
        if self.num_agents < 1:
            raise ConfigError(f"num_agents must be at least 1, not {self.num_agents}.")
        if not 2 <= self.actions <= 256:
            raise ConfigError(f"actions must be from 2 to 256, not {self.actions}.")
        if not (math.isfinite(self.mu) and math.isfinite(self.sigma) and self.sigma > 0):
            raise ConfigError(f"mu must be finite and sigma positive, not {self.mu:g} and {self.sigma:g}.")

    @classmethod
    def published(cls, num_agents: int = 100, horizon: int | None = 100) -> GaussianSqueeze:
        """Yang et al.'s: the sum of actions 0..9, mu = 400, sigma = 200."""
        return cls(num_agents, mu=400.0, sigma=200.0, normalised=False, horizon=horizon)

    # ------------------------------------------------------------------------------------------- the rules

    def spec(self) -> Spec:
        return Spec(
            num_agents=self.num_agents,
            observation_space=Box(0.0, 1.0, (1,), np.float32),
            action_space=Discrete(self.actions),
            horizon=self.horizon,
            discount=0.0,
        )

    def reset(self, ids: Tensor, key: Key) -> State:
        return State(random.integers(key.fold("action"), ids, self.actions).to(torch.uint8))

    def own_state(self) -> tuple[str, ...]:
        return ("action",)

    def standing(self, state: State) -> Tensor:
        return state.action.long()

    def observe(self, state: State) -> Tensor:
        return torch.ones((*state.action.shape, 1), device=state.action.device)

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        reward = self._objective(self.ranks.sum(action.sum(1))).to(torch.float32)
        return State(action.to(torch.uint8)), reward.unsqueeze(-1).expand(action.shape)

    def _objective(self, total: Tensor) -> Tensor:
        x = total.to(torch.float64) / (self.num_agents if self.normalised else 1)
        return x * torch.exp(-(((x - self.mu) / self.sigma) ** 2))

    def measure(self, state: State) -> dict[str, Tensor]:
        """The total, the mean action, and the reward that the last joint action is worth."""
        total = self.ranks.sum(state.action.sum(1, dtype=torch.int64))
        mean = total.to(torch.float32) / self.num_agents
        return {"mean_action": mean, "total": total.to(torch.float32), "objective": self._objective(total).float()}

    def render(self, state: State, copy: int = 0) -> Tensor:
        """How many chose each action, one bar each, the fullest filling the height."""
        counts = torch.bincount(state.action[copy].long(), minlength=self.actions)
        return picture.bars(counts / counts.max(), picture.palette(self.actions))

    # ----------------------------------------------------------------------------------- what theory knows

    def objective(self, total: ArrayLike) -> Array:
        """G at a total of actions, of any shape."""
        x = np.asarray(total, dtype=np.float64) / (self.num_agents if self.normalised else 1)
        return np.asarray(x * np.exp(-(((x - self.mu) / self.sigma) ** 2)))

    def optimum(self) -> tuple[int, float]:
        """The best total that the actions can make, and G there. Where G is unimodal it is also every pure Nash total."""
        totals = np.arange(self.num_agents * (self.actions - 1) + 1)
        values = self.objective(totals)
        return int(values.argmax()), float(values.max())

    def total_distribution(self, probabilities: ArrayLike, agents: int | None = None) -> Array:
        """Law of the sum of `agents` (default: all) independent draws from `probabilities` [A]: [agents (A-1) + 1]."""
        p = np.asarray(probabilities, dtype=np.float64)
        if p.shape != (self.actions,) or p.min() < 0 or abs(p.sum() - 1) > 1e-6:
            raise ConfigError(f"probabilities must be {self.actions} numbers of at least 0 that sum to 1.")
        law, square, left = np.ones(1), p, self.num_agents if agents is None else agents
        while left:
            if left & 1:
                law = _convolve(law, square)
            left >>= 1
            if left:
                square = _convolve(square, square)
        return law

    def expected_reward(self, probabilities: ArrayLike) -> float:
        """Exact E[G] when everyone draws independently from `probabilities` [A]."""
        law = self.total_distribution(probabilities)
        return float(law @ self.objective(np.arange(len(law))))

    def action_values(self, probabilities: ArrayLike) -> Array:
        """E[G | one's own action], [A], when the others draw independently from `probabilities`."""
        others = self.num_agents - 1
        if others * (self.actions - 1) <= 1_000:
            law = self.total_distribution(probabilities, others)
        else:  # one transform instead of many convolutions: right to 1e-13 of G's height, which no choice can tell
            length = fft.next_fast_len(others * (self.actions - 1) + 1, real=True)
            law = fft.irfft(fft.rfft(np.asarray(probabilities, dtype=np.float64), length) ** others, length)
            law = np.maximum(law[: others * (self.actions - 1) + 1], 0.0)
        values = self.objective(np.arange(len(law) + self.actions - 1))
        return np.array([law @ values[a : a + len(law)] for a in range(self.actions)])

    def logit_equilibrium(self, temperature: float, start: ArrayLike | None = None) -> Array:
        """A policy [A] with p ~ exp(E[G | a]/tau) when all follow it: the one reached from `start` (default: uniform).

        There can be several: at N = 500 and (400, 200), uniform play and a good one.
        """
        first = np.full(self.actions, 1 / self.actions) if start is None else start
        return logit.softmax_fixed_point(self.action_values, temperature, first, damping=0.1)

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        """At temperature 0 the optimum; else the symmetric logit equilibrium that uniform play leads to.

        Above N = 1,000 and below a ten-thousandth of the optimum's reward the equilibrium is left out (slow or stiff),
        and the optimum stands as a bound.
        """
        total, best = self.optimum()
        if temperature >= 1e-4 * best and temperature > 0 and self.num_agents <= 1_000:
            p = self.logit_equilibrium(temperature)
            mean, value = float(p @ np.arange(self.actions)), self.expected_reward(p)
            source = "symmetric logit equilibrium reached from uniform play, expectation by convolution"
            values = {"reward": value, "objective": value, "mean_action": mean, "total": mean * self.num_agents}
            return {name: Known(v, source, "equilibrium") for name, v in values.items()}
        source = "best whole total, next to x* = (mu + sqrt(mu^2 + 2 sigma^2))/2"
        if temperature:
            return {name: Known(best, source, "bound") for name in ("reward", "objective")}
        values = {"reward": best, "objective": best, "mean_action": total / self.num_agents, "total": float(total)}
        return {name: Known(v, source, "optimum") for name, v in values.items()}


def _convolve(one: Array, other: Array) -> Array:
    if len(one) + len(other) <= _DIRECT:
        return np.convolve(one, other)
    # Rounding leaves tails of either sign around 1e-17.
    return np.maximum(signal.fftconvolve(one, other), 0.0)


parallel_env, env = faces(GaussianSqueeze)
