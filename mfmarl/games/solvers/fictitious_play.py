r"""Fictitious play: everyone answers best to the average of all that was played before.

$$ \bar L_k = (1 - \alpha_k)\, \bar L_{k-1} + \alpha_k\, L(\mathrm{BR}(\bar\mu_{k-1})), \qquad
   \bar\pi_k(a \mid s) = \frac{\bar L_k(s, a)}{\bar\mu_k(s)}, \qquad \alpha_k = \tfrac{1}{k + 1} $$

Policies are averaged by how often they visit a state, so that the average policy makes the average flow where dynamics
do not depend on the crowd (where they do, its own flow is used). Perrin et al. 2020 (arXiv 2007.03458): in monotone
games the exploitability falls as 1/k. Ties are split by `mfmarl.games.values.greedy`.
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
from mfmarl.options import Bounds


class State(NamedTuple):
    policy: Tensor  # the average, [T, *b, G, S, A]


@dataclass(frozen=True)
class FictitiousPlay(Solver):
    """Fictitious play; with `weight`, damped."""

    name: ClassVar[str] = "fp"
    weight: Annotated[float, Bounds(0, 1, open_low=True)] | None = None
    """alpha, what the newest best response counts; none: 1/(k + 1), each response alike."""
    tie: Annotated[float, Bounds(0, 1)] = values.TIE
    """Actions this close to the best share it alike."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        return State(policy)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        path = flow(game, state.policy)
        answer = values.greedy(game, values.best(game, path).q, self.tie)
        weight = 1 / (iteration + 1) if self.weight is None else wide(self.weight)
        return State(mixed(game, path.mu, state.policy, answer, weight))

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return state.policy


def mixed(game: MeanFieldGame, mu: Tensor, policy: Tensor, answer: Tensor, weight: float | Tensor) -> Tensor:
    """The policy that makes the mixture (1 - weight) L(policy) + weight L(answer), mu being the flow of `policy`.

    Where nobody comes, the answer is taken: it costs nothing, and it is best there.
    """
    old = (1 - weight) * mu.unsqueeze(-1) * policy
    new = weight * flow(game, answer).mu.unsqueeze(-1) * answer
    joint = old + new
    total = joint.sum(-1, keepdim=True)
    return torch.where(total > 0, joint / total.clamp(min=torch.finfo(joint.dtype).tiny), answer)
