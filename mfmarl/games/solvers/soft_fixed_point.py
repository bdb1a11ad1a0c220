r"""Relative-entropy iteration: everyone answers with the soft best response to the crowd of the answer before.

$$ \pi_{k+1}(a \mid s) = e^{(Q_T(s, a; \mu^{\pi_k}) - V_T(s)) / T}, \qquad V_T = T \log \sum_a e^{Q_T / T} $$

A fixed point is the equilibrium of agents who are also paid T times the entropy of their choices: minus V_T is the free
energy of energies -Q_T. Above a temperature that grows with the coupling it contracts, and the equilibrium is unique
(Cui and Koeppl 2021, arXiv 2102.01585; Anahtarci, Kariksiz and Saldi 2023, arXiv 2003.12151). Damped, it
plays the mixture (1 - w) L(pi_k) + w L(answer), which settles at lower temperatures too. The relative entropy to
another prior than the uniform one is `prior_descent` with `soft`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.fixed_point import by_state, damped
from mfmarl.options import Bounds


class State(NamedTuple):
    policy: Tensor  # [T, *b, G, S, A]


@dataclass(frozen=True)
class SoftFixedPoint(Solver):
    """Soft best response after soft best response: the equilibrium with an entropy bonus."""

    name: ClassVar[str] = "soft_fixed_point"
    temperature: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """T, what a nat of entropy is worth."""
    weight: Annotated[float, Bounds(0, 1, open_low=True)] = 1.0
    """w, what the newest answer counts; 1: undamped."""

    @property
    def entropy_bonus(self) -> float | Tensor:
        return self.temperature

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        return State(policy)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        path = flow(game, state.policy)
        temperature = by_state(self.temperature)
        answer = values.boltzmann(game, values.soft(game, path, temperature).q, temperature)
        return State(damped(game, path.mu, state.policy, answer, self.weight))

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return state.policy
