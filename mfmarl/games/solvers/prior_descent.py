r"""Prior descent: a Boltzmann answer relative to a prior policy, and from time to time the answer becomes the prior.

$$ \pi_{k+1}(a \mid s) \propto q(a \mid s)\, e^{Q(s, a; \mu^{\pi_k}) / T}, \qquad
   q \leftarrow \pi_{k+1} \;\text{ every } n \text{ iterations} $$

With a prior that stays it is GMF-V, and goes to an equilibrium at temperature T; each new prior lowers the temperature
that the first one feels, and the fixed points move to Nash (Cui and Koeppl 2021, arXiv 2102.01585). Q is the
value of the best response, or with `soft` the soft value relative to the prior, whose fixed point is the equilibrium of
agents who pay T per nat of divergence from q. The prior is kept as a logarithm: nothing overflows or comes back from
an underflow, at any T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, wide
from mfmarl.games.solvers.fixed_point import by_state
from mfmarl.options import Bounds


class State(NamedTuple):
    logits: Tensor  # log of the policy, up to a constant in each state, [T, *b, G, S, A]
    prior: Tensor  # log q, [T, *b, G, S, A]


@dataclass(frozen=True)
class PriorDescent(Solver):
    """Boltzmann answers relative to a prior that follows them."""

    name: ClassVar[str] = "prior_descent"
    temperature: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """T, what a nat of divergence from the prior costs."""
    inner: Annotated[int, Bounds(1, 1 << 40)] | None = None
    """n, iterations with one prior; none: it stays."""
    soft: bool = False
    """Whether values know of the cost of divergence; else they are those of the best response."""

    @property
    def rests_elsewhere(self) -> bool:
        return self.inner is None

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        # A forbidden action has -inf, and a large number keeps sums with it finite.
        logits = policy.log().clamp(min=-1e4)
        return State(logits, logits)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        path = flow(game, self.policy(game, state))
        if self.soft:
            prior = values.boltzmann(game, state.prior, 1.0)
            q = values.soft(game, path, by_state(self.temperature), prior).q
        else:
            q = values.best(game, path).q
        logits = _level(game, state.prior + q / wide(self.temperature))
        # The first prior lasts one iteration less than the others: as Cui and Koeppl's code counts, and mfglib's.
        renewed = self.inner is not None and (iteration + 1) % self.inner == 0
        return State(logits, logits if renewed else state.prior)

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return values.boltzmann(game, state.logits, 1.0)


def _level(game: MeanFieldGame, logits: Tensor) -> Tensor:
    """The largest of a state's logits put at 0, so that they do not drift away from the numbers that add exactly."""
    legal = game.legal_mask(logits.device)
    among = logits if legal is None else logits.masked_fill(~legal, -torch.inf)
    return logits - among.amax(-1, keepdim=True)
