r"""Best responses one time after the other, from the first: what is decided now is settled before what comes after.

$$ t_k = \min \{ t : \exists s: \mu_t(s) > 0, \; \max_a Q^*_t(s, a) > \textstyle\sum_a \pi_t(a \mid s) Q^*_t(s, a) \}, \qquad
   \pi_{t_k} \leftarrow \mathrm{BR}_{t_k}(\mu^\pi) $$

with the policy of all other times kept. A best-response path (Monderer and Shapley 1996, Games and Economic Behavior
14, 124) in an order: a change at t moves no crowd before t, so times are settled forwards, and one is gone back to only
where a later change has turned it. Who answers at all times at once (fixed-point iteration) answers to a crowd that
never comes. SIS, on which that goes round for ever, comes to an exact pure equilibrium in one pass of T iterations: the
susceptible go out and stay at home together, in a rhythm of five steps.

A pure equilibrium is a fixed point. A game whose equilibria are all mixed is gone round in: use another solver there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, wide
from mfmarl.options import Bounds


class State(NamedTuple):
    policy: Tensor  # [T, *b, G, S, A]


@dataclass(frozen=True)
class SequentialResponse(Solver):
    """Best responses one time after the other, from the first."""

    name: ClassVar[str] = "sequential"
    weight: Annotated[float, Bounds(0, 1, open_low=True)] = 1.0
    """What the answer counts in the new policy of its time."""
    tie: Annotated[float, Bounds(0, 1)] = values.TIE
    """A time at which less than this is to gain (relative to 1 + the largest value) is settled."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        if game.horizon is None:
            raise ConfigError("sequential goes from time to time: give the game a horizon, or use another solver.")
        return State(policy)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        path = flow(game, state.policy)
        q, v = values.best(game, path)
        answer = values.greedy(game, q, self.tie)
        worth = (state.policy * q).masked_fill(state.policy == 0, 0.0).sum(-1)
        gain = v - worth  # [T, *b, G, S]
        open_ = gain > self.tie * (1 + v.abs().amax((0, -2, -1), keepdim=True))
        # For states where nobody comes no time is opened: Q* knows what they offer to who leaves the crowd.
        crowded = (open_ & (path.mu > 0)).flatten(-2).any(-1)  # [T, *b]
        first = crowded & (crowded.cumsum(0) == 1)
        here = open_ & first.unsqueeze(-1).unsqueeze(-1)
        weight = wide(self.weight)
        mixed = state.policy + weight * (answer - state.policy)
        return State(torch.where(here.unsqueeze(-1), mixed, state.policy))

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return state.policy
