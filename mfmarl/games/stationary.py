r"""Games without a horizon: stationary distributions, and discounted values as fixed points.

$$ \mu = \mu\, P^\pi(\mu), \qquad V^\pi = (I - \gamma P^\pi)^{-1} r^\pi, \qquad V^* = \max_a r + \gamma P V^* $$

The stationary mean-field equilibrium is a policy that is best against the crowd that it keeps in place (Adlakha,
Johari and Weintraub 2015; Guo, Hu, Xu and Zhang 2019, arXiv 1901.09585).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mfmarl.errors import NumericFault
from mfmarl.games.game import Crowd
from mfmarl.games.kernels import Kernel

if TYPE_CHECKING:
    from mfmarl.games.game import MeanFieldGame

_STEPS = 100_000  # of the push-forward, until the crowd stands
_PATIENCE = 2000  # steps after which a chain that does not depend on the crowd is sped up
_CLOSE = 1e-9  # what a crowd that mixes slowly may still move by
_SWEEPS = 100_000  # of value iteration; policy iteration needs a handful
_SOLVE = 1024  # states up to which a linear system is solved


def distribution(game: MeanFieldGame, policy: Tensor, start: Tensor, tolerance: float = 0.0) -> Tensor:
    """The distribution [*b, G, S] that a policy [*b, G, S, A] keeps in place, reached from `start`.

    Raises NumericFault where the crowd goes round in circles.
    """
    tolerance = tolerance or 64 * torch.finfo(policy.dtype).eps
    mu, settling = start, torch.inf
    for step in range(_STEPS):
        crowd = Crowd(mu, policy)
        after = game.kernel(0, crowd).carry(crowd.joint)
        if step % 8 == 7:
            settling = float((after - mu).detach().abs().sum(-1).max())
            # Rounding is not to add up: the shares of a group are 1.
            after = after / after.sum(-1, keepdim=True)
        mu = after
        if settling <= tolerance:
            return mu
        if step > _PATIENCE and not game.crowd_moves and game.num_states <= _SOLVE:
            return _at_last(game.kernel(0, crowd), policy, start)
        if step > 200:
            # Half-way steps have the same fixed points, and no cycles of period two.
            mu = (mu + crowd.mu) / 2
    if settling <= _CLOSE:
        return mu
    raise NumericFault(
        f"{type(game).__name__}: the crowd of this policy never comes to rest (it still moves by {settling:.2g} a step "
        f"after {_STEPS} steps), so it has no stationary distribution to speak of; give the game a horizon."
    )


def _at_last(kernel: Kernel, policy: Tensor, start: Tensor) -> Tensor:
    """Where a chain that mixes slowly ends: its lazy steps squared until 2^60 of them are made."""
    moves = (policy.unsqueeze(-1) * kernel.dense().to(policy)).sum(-2)
    moves = (moves + torch.eye(moves.shape[-1], dtype=moves.dtype, device=moves.device)) / 2
    for _ in range(60):
        moves = moves @ moves
        moves = moves / moves.sum(-1, keepdim=True)
    return (start.unsqueeze(-2) @ moves).squeeze(-2)


def of_policy(game: MeanFieldGame, kernel: Kernel, rewards: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
    """q [1, *b, G, S, A] and v [1, *b, G, S] of a policy [*b, G, S, A]."""
    v = _solve(game, kernel, rewards, policy)
    q = rewards + game.discount * kernel.expect(v)
    return q.unsqueeze(0), v.unsqueeze(0)


def best(game: MeanFieldGame, kernel: Kernel, rewards: Tensor, legal: Tensor | None) -> tuple[Tensor, Tensor]:
    """By policy iteration, or value iteration where states are many."""

    def masked(q: Tensor) -> Tensor:
        return q if legal is None else q.masked_fill(~legal, -torch.inf)

    if game.num_states > _SOLVE:
        return _iterate(game, kernel, rewards, lambda q: masked(q).amax(-1))
    choice = masked(rewards).argmax(-1)
    for _ in range(1000):
        policy = torch.nn.functional.one_hot(choice, rewards.shape[-1]).to(rewards.dtype)
        v = _solve(game, kernel, rewards, policy)
        q = rewards + game.discount * kernel.expect(v)
        top = masked(q).amax(-1)
        # Where nothing is gained the choice stays: rounding cannot make it go round.
        gain = top - v > 1e-12 * (1 + v.abs())
        if not bool(gain.any()):
            break
        choice = torch.where(gain, masked(q).argmax(-1), choice)
    return q.unsqueeze(0), top.unsqueeze(0)


def soft(
    game: MeanFieldGame, kernel: Kernel, rewards: Tensor, value: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """By value iteration with any monotone, non-expansive `value` of q."""
    return _iterate(game, kernel, rewards, value)


def _iterate(
    game: MeanFieldGame, kernel: Kernel, rewards: Tensor, value: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    v = value(rewards)
    for sweep in range(_SWEEPS):
        q = rewards + game.discount * kernel.expect(v)
        after = value(q)
        change, v = after - v, after
        if sweep % 8 == 7:
            # MacQueen's bounds: the change, if the same everywhere, goes on by a factor gamma for ever.
            ahead = game.discount / (1 - game.discount)
            low, high = change.amin(-1, keepdim=True), change.amax(-1, keepdim=True)
            if float(((high - low) * ahead).detach().max()) <= 1e-12 * float(1 + v.detach().abs().max()):
                v = v + ahead * (high + low) / 2
                break
    q = rewards + game.discount * kernel.expect(v)
    return q.unsqueeze(0), value(q).unsqueeze(0)


def _solve(game: MeanFieldGame, kernel: Kernel, rewards: Tensor, policy: Tensor) -> Tensor:
    """V^pi [*b, G, S]."""
    paid = (policy * rewards).sum(-1)
    if game.num_states > _SOLVE:
        return _iterate(game, kernel, rewards, lambda q: (policy * q).sum(-1))[1].squeeze(0)
    moves = (policy.unsqueeze(-1) * kernel.dense().to(policy)).sum(-2)
    here = torch.eye(game.num_states, dtype=policy.dtype, device=policy.device)
    solved = torch.linalg.solve(here - game.discount * moves, paid.unsqueeze(-1)).squeeze(-1)
    return solved
