r"""Smoothed fictitious play: the average crowd is answered by a Gibbs distribution, not by the best response.

$$ \bar L_k = (1 - \alpha_k)\, \bar L_{k-1} + \alpha_k\, L(\pi^{T_k}(\bar\mu_{k-1})), \qquad
   \pi^T(a \mid s) \propto e^{Q_T(s, a) / T}, \qquad \alpha_k = \tfrac{1}{k + 1}, \qquad T_k = T k^{-c} $$

Q_T are the soft values along the average's flow. At a constant temperature it goes to the regularised equilibrium, in
monotone games without the zigzag of ties that ordinary fictitious play has; while it cools (c > 0) the goal moves to
Nash. Fudenberg and Kreps 1993, Games and Economic Behavior 5, 320 (stochastic fictitious play); Fudenberg and Levine
1998; in mean-field games Geist et al. 2022, arXiv 2106.03787, and Xie, Yang, Wang and Minca 2021
(ICML).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, positive, wide
from mfmarl.games.solvers.fictitious_play import mixed
from mfmarl.games.solvers.fixed_point import by_state
from mfmarl.options import Bounds


class State(NamedTuple):
    policy: Tensor  # the average, [T, *b, G, S, A]


@dataclass(frozen=True)
class SmoothedPlay(Solver):
    """Fictitious play with soft best responses, at a temperature that may fall."""

    name: ClassVar[str] = "smoothed_fp"
    temperature: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """T, of the first answer."""
    cooling: Annotated[float, Bounds(0, 4)] = 0.0
    """c, the power of k by which the temperature falls; 0: constant."""
    weight: Annotated[float, Bounds(0, 1, open_low=True)] | None = None
    """alpha, what the newest answer counts; none: 1/(k + 1), each alike."""

    @property
    def entropy_bonus(self) -> float | Tensor:
        return 0.0 if positive(self.cooling) else self.temperature

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        return State(policy)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        path = flow(game, state.policy)
        temperature = by_state(self.temperature * iteration**-self.cooling)
        answer = values.boltzmann(game, values.soft(game, path, temperature).q, temperature)
        weight = 1 / (iteration + 1) if self.weight is None else wide(self.weight)
        return State(mixed(game, path.mu, state.policy, answer, weight))

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return state.policy
