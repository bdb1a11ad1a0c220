r"""Proximal point: mirror descent whose step is paid at the values where it ends, and not where it begins.

$$ y_{k+1} = y_k + \eta_k\, A^{\pi_{k+1}}(\mu^{\pi_{k+1}}), \qquad \pi_k(a \mid s) \propto e^{y_k(s, a)}, \qquad
   A^\pi = Q^\pi - V^\pi $$

The implicit Euler step of the flow whose explicit one is online mirror descent: each step is the equilibrium of a game
in which leaving pi_k costs its divergence / eta (Martinet 1970; Rockafellar 1976, SIAM J. Control Optim. 14, 877). What
grows under small explicit steps (a rotation, a delayed answer as of SIS) is damped by long implicit ones, so eta may
grow: in a monotone game without bound, and the end is Newton's method.

An iteration is one Newton step on y = y_k + eta A(y). Where that has come close, the next proximal step begins with the
same Jacobian; where it does not in 8, eta is cut. The Jacobian is made of differences, T S (A - 1) flows in one batched
call; with more unknowns than `dense`, the linear system is solved by `krylov` steps of GMRES (Saad and Schultz 1986).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.options import Bounds

_LEAST = -40.0  # logarithm of a probability: nobody plays less, and from there one comes back
_NUDGE = 1e-6  # of a logit, for differences
_TRIES = 8  # Newton steps on one proximal step
_CLOSE = 1e-2  # error of a logit, where the action is played, at which a proximal step is made
_FAR = 10.0  # error after two Newton steps at which a third is not worth its while
_PARTS = (1.0, 0.6, 0.3, 0.1, 0.03, 0.01)  # of a Newton step, tried at once
_LOWEST, _HIGHEST = 1e-6, 1e8  # of eta


class State(NamedTuple):
    anchor: Tensor  # y_k, log-probabilities [T, *b, G, S, A]
    logits: Tensor  # y, on the way to y_{k+1}
    rate: Tensor  # eta, [*b]
    tries: Tensor  # Newton steps made from this anchor, [*b]


@dataclass(frozen=True)
class ProximalPoint(Solver):
    """Implicit mirror descent with growing steps, by Newton's method."""

    name: ClassVar[str] = "proximal"
    rate: Annotated[float, Bounds(0, 1e6, open_low=True)] = 0.3
    """eta of the first step, over what the best action is worth more than the worst on average."""
    growth: Annotated[float, Bounds(1, 100)] = 4.0
    """What eta is multiplied by after a step that was easily made."""
    dense: Annotated[int, Bounds(0, 1 << 14)] = 600
    """Unknowns T G S (A - 1) up to which the Jacobian is formed."""
    krylov: Annotated[int, Bounds(1, 1000)] = 20
    """Steps of GMRES beyond."""

    def begin(self, game: MeanFieldGame, policy: Tensor) -> State:
        logits = policy.log().clamp(min=_LEAST)
        rate = torch.as_tensor(self.rate, dtype=policy.dtype, device=policy.device).expand(policy.shape[1:-3])
        return State(logits, logits, rate, torch.zeros_like(rate))

    def step(self, game: MeanFieldGame, state: State, iteration: int) -> State:
        logits, anchor, rate, tries = state.logits, state.anchor, state.rate, state.tries
        gain = _advantage(game, logits)
        policy = values.boltzmann(game, logits, 1.0)
        error = ((anchor + _wide(rate) * gain - logits).abs() * policy.sqrt()).amax((0, -3, -2, -1))
        close = error <= _CLOSE * rate.clamp(max=1)
        lost = ~(error < torch.inf) | (tries >= _TRIES) | (error > _FAR) & (tries >= 2)
        # A step that was made: its end, by the equation itself, is the next anchor. One that was not: a shorter one.
        made = (anchor + _wide(rate) * gain).log_softmax(-1).clamp(min=_LEAST)
        easily = close & (tries <= 5)
        anchor = torch.where(_wide(close), made, anchor)
        rate = torch.where(easily, rate * self.growth, torch.where(lost & ~close, rate / 3, rate))
        rate = rate.clamp(_LOWEST, _HIGHEST)
        logits = torch.where(_wide(lost & ~close), anchor, torch.where(_wide(close), anchor, logits))
        tries = torch.where(close | lost, 0.0, tries)
        if bool(lost.any()):
            gain = _advantage(game, logits)
        residual = anchor + _wide(rate) * gain - logits
        size = len(logits) * logits.shape[-3] * logits.shape[-2] * (logits.shape[-1] - 1)
        way = _direct if size <= self.dense else self._krylov
        found = way(game, logits, gain, rate, residual)
        return State(anchor, _searched(game, anchor, logits, found, rate), rate, tries + 1)

    def policy(self, game: MeanFieldGame, state: State) -> Tensor:
        return values.boltzmann(game, state.anchor, 1.0)

    def _krylov(self, game: MeanFieldGame, logits: Tensor, gain: Tensor, rate: Tensor, residual: Tensor) -> Tensor:
        """(I - eta dA/dy)^-1 residual, by GMRES."""

        def applied(v: Tensor) -> Tensor:
            nudge = _NUDGE / v.abs().amax((0, -3, -2, -1)).clamp(min=1e-30)
            moved = _advantage(game, logits + _wide(nudge) * v)
            return v - _wide(rate / nudge) * (moved - gain)

        length = _norm(residual).clamp(min=1e-300)
        basis = residual.unsqueeze(0) / _wide(length)  # [m, T, *b, G, S, A]
        columns: list[Tensor] = []
        for _ in range(self.krylov):
            w = applied(basis[-1])
            size = _norm(w)
            column = torch.zeros_like(length).expand(len(basis), *length.shape)
            for _ in range(2):  # twice is enough (Kahan and Parlett)
                overlap = (basis * w).sum((1, -3, -2, -1))
                w = w - (_wide(overlap).unsqueeze(1) * basis).sum(0)
                column = column + overlap
            rest = _norm(w)
            ended = rest <= 1e-9 * size  # nothing new: the solution lies in what there is
            columns.append(torch.cat([column, rest.masked_fill(ended, 0.0).unsqueeze(0)]))
            fresh = torch.where(_wide(ended), 0.0, w / _wide(rest.clamp(min=1e-300)))
            basis = torch.cat([basis, fresh.unsqueeze(0)])
        m = len(columns)
        h = torch.stack([torch.nn.functional.pad(c.movedim(0, -1), (0, m + 1 - len(c))) for c in columns], -1)
        goal = torch.nn.functional.pad(length.unsqueeze(-1), (0, m))
        mix = (torch.linalg.pinv(h, rtol=1e-12) @ goal.unsqueeze(-1)).squeeze(-1)  # [*b, m]
        return (_wide(mix.movedim(-1, 0)).unsqueeze(1) * basis[:-1]).sum(0)


def _direct(game: MeanFieldGame, logits: Tensor, gain: Tensor, rate: Tensor, residual: Tensor) -> Tensor:
    """(I - eta dA/dy)^-1 residual, by the matrix."""
    times, *batch, groups, states, actions = logits.shape
    cells = times * groups * states
    # All actions but the first are nudged; nudging all of a state alike changes nothing, which gives the first.
    nudges = torch.eye(cells * (actions - 1), dtype=logits.dtype, device=logits.device)
    nudges = nudges.view(-1, times, *[1] * len(batch), groups, states, actions - 1).transpose(0, 1)
    nudges = torch.nn.functional.pad(nudges, (1, 0)) * _NUDGE
    moved = _advantage(game, logits.unsqueeze(1) + nudges)  # [T, D, *b, G, S, A]
    slope = ((moved - gain.unsqueeze(1)) / _NUDGE).movedim(1, 0)
    slope = _flat(slope.movedim(1, -4)).unflatten(0, (cells, actions - 1))  # [cells, A - 1, *b, n]
    slope = torch.cat([-slope.sum(1, keepdim=True), slope], 1).flatten(0, 1).movedim(0, -1)  # [*b, n, n]
    matrix = torch.eye(slope.shape[-1], dtype=slope.dtype, device=slope.device) - rate[..., None, None] * slope
    found = torch.linalg.solve(matrix, _flat(residual.movedim(0, -4)).unsqueeze(-1)).squeeze(-1)
    return found.unflatten(-1, (times, groups, states, actions)).movedim(-4, 0)


def _searched(game: MeanFieldGame, anchor: Tensor, logits: Tensor, step: Tensor, rate: Tensor) -> Tensor:
    """The best of a few parts of the step: by the error of y, weighed by how often actions are played here or there."""
    parts = torch.tensor(_PARTS, dtype=logits.dtype, device=logits.device)
    tried = logits.unsqueeze(1) + parts.reshape(1, -1, *[1] * (logits.ndim - 1)) * step.unsqueeze(1)
    error = anchor.unsqueeze(1) + _wide(rate) * _advantage(game, tried) - tried
    weight = values.boltzmann(game, tried, 1.0) + values.boltzmann(game, anchor, 1.0).unsqueeze(1)
    size = (weight * error**2).sum((0, -3, -2, -1)).nan_to_num(nan=torch.inf)  # [parts, *b]
    best = size.argmin(0)
    index = best.reshape(1, 1, *best.shape, 1, 1, 1).expand(len(logits), 1, *logits.shape[1:])
    return tried.gather(1, index).squeeze(1)


def _advantage(game: MeanFieldGame, logits: Tensor) -> Tensor:
    """A = Q - V of the Boltzmann policy of these logits along its own flow; 0 for what is not legal."""
    policy = values.boltzmann(game, logits, 1.0)
    found = values.of_policy(game, flow(game, policy))
    gain = found.q - found.v.unsqueeze(-1)
    legal = game.legal_mask(logits.device)
    return gain if legal is None else gain.masked_fill(~legal, 0.0)


def _flat(x: Tensor) -> Tensor:
    """[..., T, G, S, A] as [..., n]."""
    return x.flatten(-4)


def _norm(x: Tensor) -> Tensor:
    return (x**2).sum((0, -3, -2, -1)).sqrt()


def _wide(x: Tensor) -> Tensor:
    """[*b] against [T, *b, G, S, A]."""
    return x.reshape(*x.shape, 1, 1, 1)
