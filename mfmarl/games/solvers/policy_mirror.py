r"""Policy mirror ascent: a step uphill in the regularised value, as far as the divergence from the policy allows.

$$ \pi_{k+1}(\cdot \mid s) = \arg\max_p\; \langle p, Q_\tau^{\pi_k} \rangle + \tau H(p) - \tfrac{1}{\eta} D(p \,\|\, \pi_k)
   \;\propto\; \big( \pi_k\, e^{\eta Q_\tau^{\pi_k}} \big)^{1 / (1 + \eta \tau)} $$

Q_tau counts tau per nat of entropy of all later choices, so the fixed point is the regularised equilibrium: `omd` with
a leak does not count it and goes to the quantal response one. Of stationary games Yardim, Cayci, Geist and He 2023
(arXiv 2212.14449, there with the Euclidean divergence); with a horizon Zhang, Tan, Wang and Yang 2023
(arXiv 2310.08089). As eta grows it is soft policy iteration; at tau = 0 natural policy gradient, to Nash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, positive, wide
from mfmarl.games.solvers.fixed_point import by_state
from mfmarl.options import Bounds


class State(NamedTuple):
    logits: Tensor  # log of the policy, up to a constant in each state, [T, *b, G, S, A]


@dataclass(frozen=True)
class PolicyMirror(Solver):
    """Policy mirror ascent, to the equilibrium with an entropy bonus."""

    name: ClassVar[str] = "policy_mirror"
    rate: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.1
    """eta, how far a step may go."""
    temperature: Annotated[float, Bounds(0, 1e6)] = 0.0
    """tau, what a nat of entropy is worth; 0: Nash."""

    @property
    def entropy_bonus(self) -> float | Tensor:
        return self.temperature

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        # A forbidden action has -inf, and a large number keeps sums with it finite.
        return State(policy.log().clamp(min=-1e4))

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        policy = self.policy(game, state)
        path = flow(game, policy)
        if positive(self.temperature):
            entropy = -torch.special.xlogy(policy, policy).sum(-1)
            path = path._replace(rewards=path.rewards + (by_state(self.temperature) * entropy).unsqueeze(-1))
        q = values.of_policy(game, path).q
        rate = wide(self.rate)
        logits = (state.logits + rate * q) / (1 + rate * wide(self.temperature))
        return State(logits)

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return values.boltzmann(game, state.logits, 1.0)
