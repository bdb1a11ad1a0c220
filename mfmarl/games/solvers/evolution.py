r"""Evolutionary dynamics: in every state the shares of actions grow as they pay, in continuous time.

$$ \dot\pi(a) = \pi(a) \Big( Q(a) - \textstyle\sum_b \pi(b) Q(b) \Big) \;\text{(replicator)}, \qquad
   \dot\pi(a) = \sum_b \pi(b)\, \rho_{ba} - \pi(a) \sum_b \rho_{ab} $$

with Q = Q^pi along the policy's own flow, and the rate rho_ab at which who plays a turns to b:

- `smith`: [Q(b) - Q(a)]_+, who compares two actions (Smith 1984);
- `bnn`: [Q(b) - V]_+, who compares with the mean (Brown and von Neumann 1950; Nash 1951);
- `logit`: the Gibbs probability of b at a temperature T (Fudenberg and Levine 1998);
- `best_response`: 1 for the best b (Gilboa and Matsui 1991).

Sandholm 2010, Population Games and Evolutionary Dynamics, chapters 5 and 6; chapter 7: each climbs the potential of a
potential game, and goes to the equilibria of a monotone one. The replicator, whose rest points are the equilibria among
actions still played, is solved in the coordinates y = log pi, where it reads dy/dt = Q, by Runge and Kutta's fourth
order: what it conserves (in zero-sum games the product of shares to the powers of the equilibrium) stays conserved.
Mirror descent is its Euler step, which spirals out. The others go by Heun's second order, and stay probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, wide
from mfmarl.games.solvers.fixed_point import by_state
from mfmarl.options import Bounds


class State(NamedTuple):
    policy: Tensor  # of the replicator its logits, up to a constant in each state; else pi: [T, *b, G, S, A]


@dataclass(frozen=True)
class Evolution(Solver):
    """Replicator, Smith, Brown-von Neumann-Nash, logit or best-response dynamics in every state."""

    name: ClassVar[str] = "evolution"
    dynamics: Literal["replicator", "smith", "bnn", "logit", "best_response"] = "replicator"
    """The rule by which actions spread."""
    time: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.1
    """Time that passes in an iteration."""
    temperature: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """T, of the logit dynamics; its rest is the quantal response equilibrium."""

    @property
    def rests_elsewhere(self) -> bool:
        return self.dynamics == "logit"

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        # A forbidden action has -inf, and a large number keeps sums with it finite.
        return State(policy.log().clamp(min=-1e4) if self.dynamics == "replicator" else policy)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        time = wide(self.time)
        if self.dynamics == "replicator":
            y = state.policy
            k1 = _payoff(game, values.boltzmann(game, y, 1.0))
            k2 = _payoff(game, values.boltzmann(game, y + time / 2 * k1, 1.0))
            k3 = _payoff(game, values.boltzmann(game, y + time / 2 * k2, 1.0))
            k4 = _payoff(game, values.boltzmann(game, y + time * k3, 1.0))
            return State(y + time / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        # Heun as the mean of no step and two: each is a probability, so the mean is one.
        twice = self._advanced(game, self._advanced(game, state.policy, time), time)
        return State((state.policy + twice) / 2)

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return values.boltzmann(game, state.policy, 1.0) if self.dynamics == "replicator" else state.policy

    def _advanced(self, game: MeanFieldGame, policy: Tensor, time: float | Tensor) -> Tensor:
        """One Euler step; shortened in a state that it would empty of an action, where the clock then goes slower."""
        arriving, leaving = self._turnover(game, policy)
        time = torch.as_tensor(time, dtype=policy.dtype, device=policy.device).minimum(
            1 / leaving.amax(-1, keepdim=True).clamp(min=1e-300)
        )
        moved = (policy + time * (arriving - policy * leaving)).clamp(min=0)
        return moved / moved.sum(-1, keepdim=True)

    def _turnover(self, game: MeanFieldGame, policy: Tensor) -> tuple[Tensor, Tensor]:
        """Shares that arrive at each action per time, and the rates at which it is left, [T, *b, G, S, A]."""
        q = _payoff(game, policy)
        legal = game.legal_mask(policy.device)
        if self.dynamics in ("logit", "best_response"):
            logit = self.dynamics == "logit"
            target = values.boltzmann(game, q, by_state(self.temperature)) if logit else values.greedy(game, q)
            return target, torch.ones_like(target)
        if self.dynamics == "bnn":
            more = (q - (policy * q).sum(-1, keepdim=True)).clamp(min=0)
            more = more if legal is None else more * legal
            return more, more.sum(-1, keepdim=True).expand_as(more)
        rate = (q.unsqueeze(-2) - q.unsqueeze(-1)).clamp(min=0)  # from a to b, [..., A, A]
        if legal is not None:
            rate = rate * legal.unsqueeze(-2)
        return (policy.unsqueeze(-1) * rate).sum(-2), rate.sum(-1)


def _payoff(game: MeanFieldGame, policy: Tensor) -> Tensor:
    return values.of_policy(game, flow(game, policy)).q
