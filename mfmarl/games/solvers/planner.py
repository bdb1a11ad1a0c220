r"""The planner: mean-field control, the policy that is best for all if all keep it.

$$ y_{k+1} = y_k + \eta_k\, \tilde Q^{\pi_k}, \qquad \pi_{k+1}(a \mid s) \propto e^{y_{k+1}(s, a)} $$

Mirror ascent with the marginal values of `mfmarl.games.welfare`, which is natural policy gradient on the exact
deterministic flow, dynamics that the crowd moves included. With values of the game in their place this is online
mirror descent and goes to the equilibrium: the two differ by what an agent does to the others. The step is tried, and
halved where it makes the total smaller. J need not be concave: several first policies side by side (`policy` with a
batch) find several optima. Carmona, Lauriere and Tan 2023 (arXiv 1910.12802) on control as a problem of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games import values, welfare
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, wide
from mfmarl.options import Bounds

_GROWTH = 1.2  # of a step that made the total larger


class State(NamedTuple):
    logits: Tensor  # y, [T, *b, G, S, A]
    q: Tensor  # marginal values of its policy, [T, *b, G, S, A]
    total: Tensor  # J of its policy, [*b]
    rate: Tensor  # eta, [*b]


@dataclass(frozen=True)
class Planner(Solver):
    """The social optimum, by mirror ascent on the total reward."""

    name: ClassVar[str] = "planner"
    cooperative: ClassVar[bool] = True
    rate: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.1
    """eta, the first step; later ones grow while the total does, and are halved where it falls."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        if game.horizon is None:
            raise ConfigError("planner needs a game with a horizon.")
        if game.tree is not None:
            raise ConfigError("planner needs a game without common noise.")
        q, total = _look(game, policy)
        rate = torch.as_tensor(self.rate, dtype=policy.dtype, device=policy.device).expand(total.shape)
        # A forbidden action has -inf, and a large number keeps sums with it finite.
        return State(policy.log().clamp(min=-1e4), q, total, rate)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        tried = state.logits + wide(state.rate) * state.q
        tried = tried - tried.amax(-1, keepdim=True)
        q, total = _look(game, values.boltzmann(game, tried, 1.0))
        # Rounding is no fall.
        better = total >= state.total - 1e-13 * (1 + state.total.abs())
        where = better.reshape(*better.shape, 1, 1, 1)
        return State(
            torch.where(where, tried, state.logits),
            torch.where(where, q, state.q),
            torch.where(better, total, state.total),
            torch.where(better, _GROWTH * state.rate, state.rate / 2),
        )

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return values.boltzmann(game, state.logits, 1.0)


def _look(game: MeanFieldGame, policy: Tensor) -> tuple[Tensor, Tensor]:
    path = flow(game, policy)
    return welfare.values(game, path).q, welfare.total(game, path)
