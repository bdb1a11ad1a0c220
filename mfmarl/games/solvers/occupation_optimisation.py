r"""Occupation-measure optimisation: an equilibrium as the minimum, zero, of a smooth function.

$$ f(L, V, z) = c_1 \sum_t \Big\| \sum_a L_t - L_{t-1} P_{t-1}(L_{t-1}) \Big\|^2
   + c_2 \sum_t \| r_t(L_t) + \gamma P_t(L_t) V_{t+1} - V_t + z_t \|^2 + c_3 \langle z, L \rangle, \qquad z \ge 0 $$

L is a flow, V the values of its best response and z what an action falls short of it, which costs nothing where
nobody takes the action: f = 0 at the equilibria and nowhere else, whatever the game (MF-OMO: Guo, Hu and Zhang 2022,
arXiv 2206.09608; f is theirs with y = (V_1, ..., V_T, -V_0)). It needs neither monotone nor contracting games,
crowds may move the dynamics, and which of several equilibria is found depends on where one begins. It may also
end in a minimum above zero, which the exploitability tells. In a stationary game L_{-1} is L itself.

Descent is by Adam (Kingma and Ba 2015), each L_t kept a distribution by a projection or as a softmax. The paper's bounds on
V and z, which make its set compact, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games import values
from mfmarl.games.flow import along, flow
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.solver import Solver, wide
from mfmarl.options import Bounds

_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8  # Adam's


class Point(NamedTuple):
    """Where the descent is, or a direction there."""

    joint: Tensor  # L, or logits of it, [T, *b, G, S, A]
    value: Tensor  # V, [T, *b, G, S]
    slack: Tensor  # z, [T, *b, G, S, A]


class State(NamedTuple):
    point: Point
    mean: Point  # of gradients, Adam's
    square: Point  # of their squares


@dataclass(frozen=True)
class OccupationOptimisation(Solver):
    """Adam on the violation of an equilibrium's conditions; finds equilibria of any game, one or the other."""

    name: ClassVar[str] = "omo"
    rate: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.03
    """Adam's step."""
    form: Literal["projected", "softmax"] = "projected"
    """How each L_t is kept a distribution; a softmax comes to the edge, where equilibria often are, only slowly."""
    settle: Annotated[float, Bounds(0, 1e9)] = 300.0
    """Iterations after which the step begins to fall, as 1 / (1 + k / settle); 0: never."""
    flow_weight: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """c1."""
    value_weight: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """c2."""
    gap_weight: Annotated[float, Bounds(0, 1e6, open_low=True)] = 1.0
    """c3."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        """At the policy's flow and its best response's values."""
        if game.tree is not None:
            raise ConfigError("omo needs a game without common noise.")
        return self.beginning(game, flow(game, policy).joint)

    def beginning(self, game: MeanFieldGame, joint: Tensor) -> State:
        """At any L [T, *b, G, S, A], and the values of the best response to it."""
        mu = joint.sum(-1)
        path = along(game, mu, torch.where(mu.unsqueeze(-1) > 0, joint / mu.unsqueeze(-1), 1 / joint.shape[-1]))
        best = values.best(game, path)
        slack = (best.v.unsqueeze(-1) - best.q).clamp(min=0)
        legal = game.legal_mask(joint.device)
        slack = slack if legal is None else torch.where(legal, slack, 0.0)
        where = joint if self.form == "projected" else joint.clamp(min=1e-12).log()
        point = Point(where, best.v, slack)
        empty = Point(*(torch.zeros_like(x) for x in point))
        return State(point, empty, empty)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        with torch.enable_grad():
            point = Point(*(x.detach().requires_grad_() for x in state.point))
            found = self.violation(game, point)
            slope = Point(*torch.autograd.grad(found.sum(), point))
        if not bool(torch.isfinite(found.sum())):
            raise NumericFault(f"{self.name}: the violation of iteration {iteration} is not finite.")
        mean = Point(*(m + (1 - _FIRST) * (d - m) for m, d in zip(state.mean, slope, strict=True)))
        square = Point(*(s + (1 - _SECOND) * (d * d - s) for s, d in zip(state.square, slope, strict=True)))
        rate = wide(self.rate) / (1 + iteration / self.settle if self.settle else 1)
        moved = []
        for x, m, s in zip(state.point, mean, square, strict=True):
            size = rate.squeeze(-1) if isinstance(rate, Tensor) and rate.ndim > x.ndim - 1 else rate
            spread = (s / (1 - _SECOND**iteration)).sqrt() + _TINY
            moved.append(x - size * m / (1 - _FIRST**iteration) / spread)
        return State(self._allowed(game, Point(*moved)), mean, square)

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        """L_t(s, a) / mu_t(s), and where nobody comes what is best by V."""
        joint = self._joint(game, state.point)
        mu = joint.sum(-1, keepdim=True)
        answer = values.greedy(game, -state.point.slack)
        return torch.where(mu > 0, joint / mu.clamp(min=torch.finfo(mu.dtype).tiny), answer)

    def violation(self, game: MeanFieldGame, point: Point) -> Tensor:
        """f, [*b]; 0 at an equilibrium."""
        joint = self._joint(game, point)
        flowing, short = residuals(game, joint, point.value)
        slack = point.slack if self.form == "projected" else point.slack.clamp(min=0)
        missed = (short + slack) ** 2
        apart = (flowing**2).sum((0, -2, -1))
        wrong = missed.sum((0, -3, -2, -1))
        gap = (slack * joint).sum((0, -3, -2, -1))
        return self.flow_weight * apart + self.value_weight * wrong + self.gap_weight * gap

    def _joint(self, game: MeanFieldGame, point: Point) -> Tensor:
        if self.form == "projected":
            return point.joint
        legal = game.legal_mask(point.joint.device)
        logits = point.joint if legal is None else point.joint.masked_fill(~legal, -torch.inf)
        return logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])

    def _allowed(self, game: MeanFieldGame, point: Point) -> Point:
        if self.form == "softmax":
            return point._replace(slack=point.slack.clamp(min=0))
        legal = game.legal_mask(point.joint.device)
        joint = point.joint if legal is None else point.joint.masked_fill(~legal, -torch.inf)
        return Point(
            on_simplex(joint.flatten(-2)).unflatten(-1, joint.shape[-2:]), point.value, point.slack.clamp(min=0)
        )


def residuals(game: MeanFieldGame, joint: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """By how much more is in each state than comes there [T, *b, G, S], and r + gamma P V - V of what is legal, else 0
    [T, *b, G, S, A]."""
    mu = joint.sum(-1)
    crowds = [Crowd(m, counted=part) for m, part in zip(mu.unbind(0), joint.unbind(0), strict=True)]
    kernels = [game.kernel(t, crowd) for t, crowd in enumerate(crowds)]
    after = [kernel.carry(part) for kernel, part in zip(kernels, joint.unbind(0), strict=True)]
    ahead: list[Tensor | None] = [*value[1:].unbind(0), value[0] if game.horizon is None else None]
    if game.horizon is None:
        come = after
    else:
        come = [game.start(joint.dtype, joint.device).expand(mu.shape[1:]), *after[:-1]]
        last = game.terminal(Crowd(after[-1]))
        ahead[-1] = None if last is None else last.expand(mu.shape[1:])
    if game.time_dependent:
        paid = torch.stack([game.paid(t, crowd) for t, crowd in enumerate(crowds)])
    else:
        paid = game.paid(0, Crowd(mu, counted=joint))
    legal = game.legal_mask(joint.device)
    paid = paid if legal is None else torch.where(legal, paid, 0.0)
    hoped = [
        torch.zeros_like(part) if v is None else game.discount * kernel.expect(v).expand_as(part)
        for v, kernel, part in zip(ahead, kernels, joint.unbind(0), strict=True)
    ]
    short = paid + torch.stack(hoped) - value.unsqueeze(-1)
    return mu - torch.stack(come), short if legal is None else torch.where(legal, short, 0.0)


def on_simplex(x: Tensor) -> Tensor:
    """The nearest probability distribution along the last axis; entries of -inf become 0 (Duchi et al. 2008)."""
    down = x.sort(-1, descending=True).values
    over = down.clamp(min=torch.finfo(x.dtype).min / x.shape[-1] / 4).cumsum(-1) - 1
    count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    support = (down * count > over).sum(-1, keepdim=True)
    return (x - over.gather(-1, support - 1) / support).clamp(min=0)
