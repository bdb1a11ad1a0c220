r"""Best responses one time after the other, from the first: what is decided now is settled before what comes after.

$$ t_k = \min \{ t : \exists s: \mu_t(s) > 0, \; \max_a Q^*_t(s, a) > \textstyle\sum_a \pi_t(a \mid s) Q^*_t(s, a) \}, \qquad
   \pi_{t_k} \leftarrow \mathrm{BR}_{t_k}(\mu^\pi) $$

with the policy of all other times kept. A best-response path (Monderer and Shapley 1996, Games and Economic Behavior
14, 124) in an order: a change at t moves no crowd before t, so times are settled forwards, and one is gone back to only
where a later change has turned it. Who answers at all times at once (fixed-point iteration) answers to a crowd that
never comes. SIS, on which that goes round for ever, comes to an exact pure equilibrium in one pass of T iterations: the
susceptible go out and stay at home together, in a rhythm of five steps.

A pure equilibrium is a fixed point. Where equilibria are mixed, answers that are all go round: `weight` damps them, or
makes each time's fictitious play of its own. Without a horizon there is one time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.options import Bounds


class State(NamedTuple):
    policy: Tensor  # [T, *b, G, S, A]
    answers: Tensor  # how often each time was answered at, [T, *b]


@dataclass(frozen=True)
class SequentialResponse(Solver):
    """Best responses one time after the other, from the first."""

    name: ClassVar[str] = "sequential"
    weight: Annotated[float, Bounds(0, 1, open_low=True)] | None = 1.0
    """What an answer counts in the policy of its time; none: 1/n, the n-th at this time."""
    tie: Annotated[float, Bounds(0, 1)] = values.TIE
    """A time at which less than this is to gain (relative to 1 + the largest value) is settled."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        return State(policy, policy.new_zeros(policy.shape[:-3]))

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
        answers = state.answers + first
        weight = 1 / answers.clamp(min=1) if self.weight is None else torch.as_tensor(self.weight).to(answers)
        weight = weight.expand(answers.shape).unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)
        mixed = state.policy + weight * (answer - state.policy)
        return State(torch.where(here.unsqueeze(-1), mixed, state.policy), answers)

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return state.policy
