r"""Fixed-point iteration: everyone answers best to the crowd of the answer before.

$$ \pi_{k+1} = \mathrm{BR}(\mu^{\pi_k}), \qquad \text{or} \qquad
   \pi_{k+1}(a \mid s) \propto e^{Q^*(s, a; \mu^{\pi_k}) / T} $$

Banach and Picard's iteration of the operator whose fixed points are the equilibria (Huang, Malhame and Caines 2006).
It contracts in weakly coupled games only, and elsewhere goes round; damped, it plays the mixture of the last crowd and
its answer, (1 - w) L(pi_k) + w L(answer). At a temperature it is the Boltzmann iteration of Guo et al. 2019 (GMF-V,
arXiv 1901.09585; Cui and Koeppl 2021, arXiv 2102.01585), a contraction where T is high enough. Its policy
is Boltzmann in the best values Q*, which is not quite the regularised equilibrium: that is `soft_fixed_point`.
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
from mfmarl.options import Bounds


class State(NamedTuple):
    policy: Tensor  # [T, *b, G, S, A]


@dataclass(frozen=True)
class FixedPoint(Solver):
    """Best response after best response, damped or at a temperature."""

    name: ClassVar[str] = "fixed_point"
    weight: Annotated[float, Bounds(0, 1, open_low=True)] = 1.0
    """w, what the newest answer counts; 1: undamped."""
    temperature: Annotated[float, Bounds(0, 1e6)] = 0.0
    """T of the answer; 0: the best response."""
    tie: Annotated[float, Bounds(0, 1)] = values.TIE
    """Actions this close to the best share it alike."""

    @property
    def rests_elsewhere(self) -> bool:
        return positive(self.temperature)

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        return State(policy)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        path = flow(game, state.policy)
        answer = answer_to(game, values.best(game, path).q, self.temperature, self.tie)
        return State(damped(game, path.mu, state.policy, answer, self.weight))

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return state.policy


def answer_to(game: MeanFieldGame, q: Tensor, temperature: float | Tensor, tie: float) -> Tensor:
    """The policy that answers values q: greedy, or Boltzmann at a temperature above 0."""
    if positive(temperature):
        return values.boltzmann(game, q, by_state(temperature))
    return values.greedy(game, q, tie)


def damped(game: MeanFieldGame, mu: Tensor, policy: Tensor, answer: Tensor, weight: float | Tensor) -> Tensor:
    """`mixed`, and the answer itself at weight 1."""
    if not isinstance(weight, Tensor) and weight == 1:
        return answer
    return mixed(game, mu, policy, answer, wide(weight))


def by_state(option: float | Tensor) -> float | Tensor:
    """An option [*b] that broadcasts against [*b, G, S]."""
    return option.reshape(*option.shape, 1, 1) if isinstance(option, Tensor) and option.ndim else option
