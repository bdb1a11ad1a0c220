r"""Occupation-measure inclusion: a step along the rewards, and back to the nearest flow.

$$ L_{k+1} = \Pi\big( L_k + \alpha\, (\gamma^t r_t(L_k) - \eta L_k) \big), \qquad
   \mathcal{D} = \{ L \ge 0 : \sum_a L_0 = \mu_0,\ \sum_a L_{t+1} = L_t P_t \} $$

With dynamics that the crowd does not move the equilibria are the zeros of a sum of two operators, minus the rewards
and the normal cone of the polytope D, and forward-backward splitting finds them: MF-OMI-FBS (Hu and Zhang 2024,
arXiv 2405.00282). In monotone games with eta > 0 and a small step it converges to a point near an equilibrium. `twice`
looks at the rewards again after a trial step (Korpelevich 1976), which needs no eta, and finds its own step: halved
where alpha |r(L) - r(L')| > 0.7 |L - L'| (Khobotov 1987).

The projection is exact. Its dual variable is a value function V, and its solution that of a quadratically regularised
decision problem,

$$ L_t(s, a) = \big[ D_t(s, a) + \sum_{s'} P_t(s' \mid s, a)\, V_{t+1}(s') - V_t(s) \big]_+ , $$

piecewise linear in V: Newton's method finds V in a few steps, each a block-tridiagonal system over time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.games.flow import flow
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.solver import Solver, wide
from mfmarl.options import Bounds

_NEWTON = 200  # steps of one projection; from the last one's V two or three do
_HALVINGS = 40
_SAFE, _GROWTH = 0.7, 1.1  # of a step
_STATES = 1024  # beyond, the blocks of Newton's system are too large


class State(NamedTuple):
    joint: Tensor  # L, [T, *b, G, S, A]: the flow of its policy
    value: Tensor  # V of the last projection, [T, *b, G, S]
    rate: Tensor  # alpha, [*b]


@dataclass(frozen=True)
class OccupationInclusion(Solver):
    """Forward-backward splitting on occupation measures, with an exact projection."""

    name: ClassVar[str] = "omi"
    rate: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.05
    """alpha, the step along the rewards; with `twice` the first one."""
    perturbation: Annotated[float, Bounds(0, 1e6)] = 0.0
    """eta, what is taken off the rewards for each unit of L: makes the step a contraction, and moves its fixed point."""
    twice: bool = True
    """Evaluate the rewards again after a trial step; without, two equilibria of a monotone game may be circled."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        if game.horizon is None:
            raise ConfigError("omi needs a game with a horizon.")
        if game.tree is not None:
            raise ConfigError("omi needs a game without common noise.")
        if game.crowd_moves:
            raise ConfigError(
                f"omi projects on the flows of fixed dynamics, and in {type(game).__name__} the crowd moves them; "
                "use omo or omd."
            )
        if game.num_states > _STATES:
            raise ConfigError(f"omi solves linear systems over the states: at most {_STATES}, not {game.num_states}.")
        path = flow(game, policy)
        rate = torch.as_tensor(self.rate, dtype=policy.dtype, device=policy.device).expand(policy.shape[1:-3])
        return State(path.joint, torch.zeros_like(path.mu), rate)

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        polytope, old = Polytope.of(game, state.joint), state.joint
        along = self._along(game, old)
        joint, value = polytope.project(old + wide(state.rate) * along, state.value)
        if not self.twice:
            return State(joint, value, state.rate)
        again = self._along(game, joint)
        safe = state.rate * _length(again - along) <= _SAFE * _length(joint - old)
        joint, value = polytope.project(old + wide(state.rate) * again, value)
        there = safe.reshape(*safe.shape, 1, 1, 1)
        return State(
            torch.where(there, joint, old),
            torch.where(there[..., 0], value, state.value),
            torch.where(safe, _GROWTH * state.rate, state.rate / 2),
        )

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        mu = state.joint.sum(-1, keepdim=True)
        legal = game.legal_mask(mu.device)
        free = torch.ones_like(state.joint) if legal is None else legal.to(state.joint).expand_as(state.joint)
        # Where nobody comes any choice is as good.
        here = torch.where(mu > 0, state.joint, free)
        return here / here.sum(-1, keepdim=True)

    def _along(self, game: MeanFieldGame, joint: Tensor) -> Tensor:
        return gains(game, joint) - wide(self.perturbation) * joint


def _length(x: Tensor) -> Tensor:
    return (x**2).sum((0, -3, -2, -1)).sqrt()


def gains(game: MeanFieldGame, joint: Tensor) -> Tensor:
    """gamma^t r_t(s, a; L) [T, *b, G, S, A] of fixed dynamics, the terminal reward paid with the last step."""
    if game.time_dependent:
        paid = torch.stack([game.paid(t, Crowd(part.sum(-1), counted=part)) for t, part in enumerate(joint.unbind(0))])
    else:
        paid = game.paid(0, Crowd(joint.sum(-1), counted=joint))
    legal = game.legal_mask(paid.device)
    paid = paid if legal is None else torch.where(legal, paid, 0.0)
    if not bool(torch.isfinite(paid.sum())):
        raise NumericFault(f"{type(game).__name__}: rewards are not finite at this crowd.")
    kernel = game.kernel(len(joint) - 1, Crowd(joint[-1].sum(-1), counted=joint[-1]))
    last = game.terminal(Crowd(kernel.carry(joint[-1])))
    if last is not None:
        ahead = game.discount * kernel.expect(last.expand(joint.shape[1:-1]))
        paid = torch.cat([paid[:-1], (paid[-1] + ahead).unsqueeze(0)])
    weight = game.discount ** torch.arange(len(joint), dtype=joint.dtype, device=joint.device)
    return paid * weight.reshape(-1, *[1] * (joint.ndim - 1))


class Polytope(NamedTuple):
    """The flows of fixed dynamics from one start."""

    start: Tensor  # mu_0, [G, S]; of games side by side [B, G, S]
    moves: tuple[Tensor, ...]  # P_t as [S A, S], or with leading axes that broadcast against [*b, G]; one for each t
    legal: Tensor | None  # [G, S, A]

    @classmethod
    def of(cls, game: MeanFieldGame, joint: Tensor) -> Polytope:
        """Of a game whose dynamics the crowd does not move; type and device are those of `joint`."""
        moves = []
        for t in range(len(joint) if game.time_dependent else 1):
            crowd = Crowd(joint[t].sum(-1), counted=joint[t])
            moves.append(game.kernel(t, crowd).dense().to(joint).flatten(-3, -2))
        start = game.start(joint.dtype, joint.device)
        return cls(start, tuple(moves) * (len(joint) // len(moves)), game.legal_mask(joint.device))

    def project(self, point: Tensor, value: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The nearest flow to `point` [T, *b, G, S, A], and its V [T, *b, G, S]; `value` is a guess of V.

        Its equations hold to 64 eps (1.4e-14 of float64) times the largest entry. Raises NumericFault where Newton's
        method does not come there.
        """
        value = point.new_zeros(point.shape[:-1]) if value is None else value
        close = 64 * torch.finfo(point.dtype).eps * (1 + float(point.abs().max()))
        joint, value, used = self._primal(point, value)
        for _ in range(_NEWTON):
            excess = self._excess(joint)
            worst = excess.abs().amax((0, -2, -1))
            if float(worst.max()) <= close:
                return joint, value
            step = self._newton(used.to(point.dtype), excess, (1e-3 * worst).clamp(1e-13, 1e-3))
            joint, value, used = self._search(point, value, joint, excess, step)
        raise NumericFault(f"omi: the projection did not come closer than {float(worst.max()):.2g} to a flow.")

    def _primal(self, point: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L, V and which actions are in use, where V is lowered to the best action's worth in states that use none.

        Nothing leaves such a state, and what comes in can only make the dual fall with V: without this, one state far
        from its first action would hold up all others.
        """
        parts: list[Tensor] = []
        lowered: list[Tensor] = []
        used: list[Tensor] = []
        for t in range(len(self.moves) - 1, -1, -1):
            gain = point[t]
            if lowered:
                ahead = (lowered[-1].unsqueeze(-2) @ self.moves[t].mT).squeeze(-2)
                gain = gain + ahead.reshape(gain.shape)
            if self.legal is not None:
                gain = gain.masked_fill(~self.legal, -torch.inf)
            top = gain.amax(-1)
            lowered.append(torch.minimum(value[t], top))
            excess = gain - lowered[-1].unsqueeze(-1)
            parts.append(excess.clamp(min=0))
            # The best action is in use as soon as somebody comes.
            used.append((excess > 0) | (gain == top.unsqueeze(-1)))
        return torch.stack(parts[::-1]), torch.stack(lowered[::-1]), torch.stack(used[::-1])

    def _excess(self, joint: Tensor) -> Tensor:
        """By how much more is in each state than comes there, [T, *b, G, S]: the gradient of the dual."""
        come = [self.start.expand(joint.shape[1:-1])]
        come += [
            (part.flatten(-2).unsqueeze(-2) @ move).squeeze(-2)
            for part, move in zip(joint[:-1].unbind(0), self.moves, strict=False)
        ]
        return joint.sum(-1) - torch.stack(come)

    def _dual(self, joint: Tensor, value: Tensor) -> Tensor:
        """[*b, G]: least at the projection."""
        return (joint**2).sum((0, -2, -1)) / 2 + (self.start * value[0]).sum(-1)

    def _newton(self, active: Tensor, excess: Tensor, damping: Tensor) -> Tensor:
        """The step of V: a block-tridiagonal system over time, eliminated forwards and substituted backwards."""
        actions = active.shape[-1]
        damp = damping.unsqueeze(-1).unsqueeze(-1) * torch.ones_like(excess[0])
        factors: list[Tensor] = []
        right: list[Tensor] = []
        links: list[Tensor] = []
        for t, move in enumerate(self.moves):
            block = torch.diag_embed(active[t].sum(-1) + damp)
            rhs = excess[t]
            if t > 0:
                before = self.moves[t - 1]
                block = block + before.mT @ (active[t - 1].flatten(-2).unsqueeze(-1) * before)
                done = torch.cholesky_solve(links[-1], factors[-1])
                block = block - links[-1].mT @ done
                rhs = rhs - (done.mT @ right[-1].unsqueeze(-1)).squeeze(-1)
            factors.append(torch.linalg.cholesky(block))
            right.append(rhs)
            weighted = active[t].unsqueeze(-1) * move.unflatten(-2, (-1, actions))
            links.append(-weighted.sum(-2))
        steps: list[Tensor] = []
        for t in range(len(self.moves) - 1, -1, -1):
            rhs = right[t] if not steps else right[t] - (links[t] @ steps[-1].unsqueeze(-1)).squeeze(-1)
            steps.append(torch.cholesky_solve(rhs.unsqueeze(-1), factors[t]).squeeze(-1))
        return torch.stack(steps[::-1])

    def _search(
        self, point: Tensor, value: Tensor, joint: Tensor, excess: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each group's step, halved until its dual falls enough (Armijo), or is at rounding."""
        was = self._dual(joint, value)
        slope = (excess * step).sum((0, -1))
        length = torch.ones_like(was)
        for _ in range(_HALVINGS):
            found = self._primal(point, value + length.unsqueeze(-1) * step)
            bad = self._dual(found[0], found[1]) > was - 1e-4 * length * slope + 1e-14 * (1 + was.abs())
            if not bool(bad.any()):
                break
            length = torch.where(bad, length / 2, length)
        return found
