r"""Online mirror descent: the policy is the Gibbs distribution of all past values.

$$ y_{k+1} = (1 - \eta \tau)\, y_k + \eta\, Q^{\pi_k}(\mu^{\pi_k}) , \qquad \pi_{k+1}(a \mid s) \propto e^{y_{k+1}(s, a)} $$

Energies are -(the sum of past Q). The whole policy is held while it is evaluated. With tau > 0 old values fade, and
the fixed point is the Boltzmann policy at temperature tau of its own values. Heavy-ball momentum m adds
m (y_k - y_{k-1}). Perolat et al. 2021 (arXiv 2103.00623); Munchausen mirror descent (Lauriere et al. 2022,
arXiv 2203.11973) is the same sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, positive, wide
from mfmarl.options import Bounds


class State(NamedTuple):
    logits: Tensor  # y, [T, *b, G, S, A]
    before: Tensor  # y of the step before (of momentum; else the same)


@dataclass(frozen=True)
class MirrorDescent(Solver):
    """Online mirror descent, with leak and momentum."""

    name: ClassVar[str] = "omd"
    rate: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.1
    """eta, what a value counts."""
    leak: Annotated[float, Bounds(0, 1e6)] = 0.0
    """tau, the temperature of the policy that it comes to; 0: Nash."""
    momentum: Annotated[float, Bounds(0, 1, open_high=True)] = 0.0
    """Share of the last step that is made again."""

    @property
    def rests_elsewhere(self) -> bool:
        return positive(self.leak)

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        # A forbidden action has -inf, and a large number keeps sums with it finite.
        logits = policy.log().clamp(min=-1e4)
        return State(logits, logits)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        rate = wide(self.rate)
        policy = self.policy(game, state)
        q = values.of_policy(game, flow(game, policy)).q
        kept = (1 - rate * wide(self.leak)) * state.logits if positive(self.leak) else state.logits
        logits = kept + rate * q
        if positive(self.momentum):
            return State(logits + wide(self.momentum) * (state.logits - state.before), state.logits)
        return State(logits, logits)

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return values.boltzmann(game, state.logits, 1.0)
