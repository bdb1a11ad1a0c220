r"""A random game: Garnet, generic and without structure, with a crowd to avoid.

$$ r(s, a; \mu) = R(s, a) - \eta \log(\mu(s) + \epsilon), \qquad P(\cdot \mid s, a) \text{ on } K \text{ random states} $$

R is uniform on (0, 1) with probability `filled` and else 0; the K successors are drawn evenly (one may come twice), and
their probabilities are the gaps of K - 1 uniform points (Archibald, McKinnon and Thomas 1995; as mean-field game
Geist et al. 2022, arXiv 2106.03787; `mfg_garnet` of OpenSpiel, which draws others). The crowd enters by -log mu alone:
a potential game with one equilibrium, whatever was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Outcomes
from mfmarl.games.reference import equilibrium
from mfmarl.options import Bounds, Count, Seed
from mfmarl.population import picture
from mfmarl.population.known import Known
from mfmarl.population.pettingzoo_out import faces
from mfmarl.random import Key
from mfmarl.registry import register


@register("garnet")
@dataclass(frozen=True)
class Garnet(MeanFieldGame):
    """A random game of given size, in which a crowd is to be avoided."""

    horizon: Count | None = 10
    """Number of decisions."""
    states: Annotated[int, Bounds(2, 1 << 20)] = 10
    """Number of states."""
    actions: Annotated[int, Bounds(2, 1 << 12)] = 3
    """Number of actions."""
    branching: Annotated[int, Bounds(1, 1 << 12)] = 3
    """K, successors of a state and an action."""
    filled: Annotated[float, Bounds(0, 1)] = 1.0
    """Probability that a state and an action pay."""
    eta: Annotated[float, Bounds(0, 1e6)] = 0.1
    """Weight of -log mu."""
    floor: Annotated[float, Bounds(0, 1, open_low=True)] = 1e-25
    """Added to shares before the logarithm."""
    table_seed: Seed = 0
    """Which of the random games."""

    crowd_moves = False

    @property
    def num_states(self) -> int:
        return self.states

    @property
    def num_actions(self) -> int:
        return self.actions

    def initial(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)

    @cached_property
    def pay(self) -> Tensor:
        """R, float64 [S, A]."""
        key, ids = Key.of(self.table_seed).fold("garnet"), torch.arange(self.states)
        amount = random.uniform(key.fold("pay"), ids, self.actions)
        pays = random.uniform(key.fold("pays"), ids, self.actions) < self.filled
        return (amount * pays).double()

    @cached_property
    def _drawn(self) -> Outcomes:
        key, ids = Key.of(self.table_seed).fold("garnet"), torch.arange(self.states * self.actions)
        shape = (self.states, self.actions, self.branching)
        successor = random.integers(key.fold("successor"), ids, self.states, self.branching)
        points = torch.empty(len(ids), 0)
        if self.branching > 1:
            points = random.uniform(key.fold("points"), ids, self.branching - 1)
        ends = torch.zeros(len(ids), 1), torch.ones(len(ids), 1)
        gaps = torch.cat([ends[0], points.sort(-1).values, ends[1]], -1).double().diff(dim=-1)
        return Outcomes(successor.view(shape), gaps.view(shape))

    def outcomes(self, t: int, crowd: Crowd) -> Outcomes:
        return Outcomes(self._drawn.successor.to(crowd.mu.device), self._drawn.probability.to(crowd.mu))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        return self.pay.to(crowd.mu) - self.eta * (crowd.mu + self.floor).log().unsqueeze(-1)

    def potential(self, t: int, crowd: Crowd) -> Tensor | None:
        if crowd.policy is None and crowd.counted is None:
            return None
        mu = crowd.mu
        # d/dmu [(mu + e) log(mu + e) - mu] = log(mu + e).
        crowded = (mu + self.floor) * (mu + self.floor).log() - mu
        return (crowd.joint * self.pay.to(mu)).sum((-3, -2, -1)) - self.eta * crowded.sum((-2, -1))

    def render(self, state: GameState, copy: int = 0) -> Tensor:
        """Every state's share, one bar each; the fullest reaches the top."""
        share = self.crowd(GameState(*(x[copy : copy + 1] for x in state))).mu[0, 0]
        return picture.bars(share / share.max(), picture.palette(1))

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        return equilibrium(self, temperature)


parallel_env, env = faces(Garnet)
