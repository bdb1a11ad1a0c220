r"""Policy iteration: evaluate the policy along its own flow, and improve it once.

$$ \pi_{k+1}(\cdot \mid s) \in \arg\max_a Q^{\pi_k}(s, a; \mu^{\pi_k}), \qquad \text{or} \qquad
   \pi_{k+1}(a \mid s) \propto e^{Q^{\pi_k}(s, a; \mu^{\pi_k}) / T} $$

Cheaper than `fixed_point` where a best response takes many sweeps, and with the same fixed points (Cacace, Camilli and
Goffi 2021, arXiv 2007.04818; with smoothing Tang and Song 2022, arXiv 2212.04791). At a temperature it is
Boltzmann policy iteration (as in OpenSpiel, whose rate is 1/T), and its fixed point the quantal response equilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, positive
from mfmarl.games.solvers.fixed_point import answer_to, damped
from mfmarl.options import Bounds


class State(NamedTuple):
    policy: Tensor  # [T, *b, G, S, A]


@dataclass(frozen=True)
class PolicyIteration(Solver):
    """One improvement of the policy against its own crowd, damped or at a temperature."""

    name: ClassVar[str] = "policy_iteration"
    weight: Annotated[float, Bounds(0, 1, open_low=True)] = 1.0
    """What the newest improvement counts; 1: undamped."""
    temperature: Annotated[float, Bounds(0, 1e6)] = 0.0
    """T of the improvement; 0: greedy."""
    tie: Annotated[float, Bounds(0, 1)] = values.TIE
    """Actions this close to the best share it alike."""

    @property
    def rests_elsewhere(self) -> bool:
        return positive(self.temperature)

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        return State(policy)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        path = flow(game, state.policy)
        answer = answer_to(game, values.of_policy(game, path).q, self.temperature, self.tie)
        return State(damped(game, path.mu, state.policy, answer, self.weight))

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return state.policy
