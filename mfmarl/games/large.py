r"""Mirror descent on large grids: one number per state and time, and work that stays in the cache.

Where moves do not depend on the crowd and the crowd's reward not on the action, r(s, a; mu) = r(s; mu) - c(a), the
sums y of past Q are known from the sums W of past V alone, because the softmax over actions does not see r(s; mu):

$$ y_k(s, a) = \eta\, \Big( \gamma \sum_{s'} P(s' \mid s, a)\, W_{k, t+1}(s') - k\, c(a) \Big) + \mathrm{const}(s), \qquad
   W_{k+1, t} = W_{k, t} + V^{\pi_k}_t $$

So an iteration holds W and mu, 2 S T numbers in all: 8 GB of float32 for a thousand million state-times. Rows of the
torus are gone through in blocks; nothing of the size [S, A] is ever made. The same sequence as `omd` from the uniform
policy (tested to the last digits in float64).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Torus

_BLOCK = 1 << 17  # cells gone through together


class Iterate(NamedTuple):
    """Where mirror descent stands."""

    values: Tensor  # W, [T, S]: sums of the values of all policies so far
    iteration: int


@dataclass(frozen=True)
class LargeGrid:
    """A game on a torus of one or two dimensions, opened for work in blocks.

    Raises ConfigError for a game that is not of the form above.
    """

    game: MeanFieldGame
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __post_init__(self) -> None:
        game = self.game
        name = type(game).__name__
        if game.horizon is None or game.num_groups > 1 or game.tree is not None or game.allowed() is not None:
            raise ConfigError(
                f"{name}: large grids are for one group with a horizon, all actions legal, no common noise."
            )
        if game.crowd_moves or game.extended or not isinstance(self.kernel, Torus) or len(self.kernel.shape) > 2:
            raise ConfigError(
                f"{name}: large grids need a Torus of one or two dimensions as kernel, the same for every crowd."
            )
        effort = game.effort()
        if effort is not None and bool((effort != effort[..., :1, :]).any()):
            raise ConfigError(f"{name}: on a large grid an action costs the same everywhere.")

    @property
    def kernel(self) -> Any:
        return self.game.kernel(0, Crowd(torch.empty(1, 0, dtype=self.dtype, device=self.device)))

    @property
    def shape(self) -> tuple[int, int]:
        sizes = self.kernel.shape
        return (sizes[0], sizes[1]) if len(sizes) == 2 else (sizes[0], 1)

    @property
    def effort(self) -> list[float]:
        effort = self.game.effort()
        return (
            [0.0] * self.game.num_actions if effort is None else effort.reshape(-1, self.game.num_actions)[0].tolist()
        )

    def begin(self) -> Iterate:
        size = (self.game.horizon or 0, self.game.num_states)
        return Iterate(torch.zeros(size, dtype=self.dtype, device=self.device), 0)

    def _workshop(self) -> _Workshop:
        return _Workshop(self)

    def flow(self, at: Iterate, rate: float) -> Tensor:
        """mu [T, S] of the policy at this iterate."""
        work = self._workshop()
        mu = torch.empty_like(at.values)
        mu[0] = self.game.start(self.dtype, self.device)[0]
        for t in range(len(mu) - 1):
            ahead = work.ahead(at.values[t + 1])
            work.push(mu[t], ahead, rate, at.iteration, mu[t + 1])
        return mu

    def step(self, at: Iterate, rate: float) -> Iterate:
        """One iteration of mirror descent; `at` is used up: its memory is the new iterate's."""
        work = self._workshop()
        mu = self.flow(at, rate)
        value = torch.zeros_like(mu[0])
        for t in range(len(mu) - 1, -1, -1):
            last = t + 1 == len(mu)
            hopes = None if last else work.ahead(at.values[t + 1])
            gain = None if last else work.ahead(value, 1)
            if not last:
                at.values[t + 1] += value
            value = work.evaluate(self._paid(t, mu[t]), hopes, gain, rate, at.iteration)
        at.values[0] += value
        return Iterate(at.values, at.iteration + 1)

    def exploitability(self, at: Iterate, rate: float) -> float:
        """Of the policy at this iterate, exact up to the type's rounding."""
        work = self._workshop()
        mu = self.flow(at, rate)
        value = best = torch.zeros_like(mu[0])
        for t in range(len(mu) - 1, -1, -1):
            last = t + 1 == len(mu)
            paid = self._paid(t, mu[t])
            top = work.best(paid, None if last else work.ahead(best, 2))
            hopes = None if last else work.ahead(at.values[t + 1])
            value = work.evaluate(paid, hopes, None if last else work.ahead(value, 1), rate, at.iteration)
            best = top
        start = mu[0].double()
        return float((start * (best.double() - value.double())).sum())

    def policy(self, at: Iterate, rate: float, t: int) -> Tensor:
        """[S, A] at time t."""
        chosen = torch.zeros(self.game.num_states, self.game.num_actions, dtype=self.dtype, device=self.device)
        if t + 1 < len(at.values):
            chosen += rate * self.game.discount * self.kernel.expect(at.values[t + 1].unsqueeze(0))[0]
        chosen -= rate * at.iteration * torch.tensor(self.effort, dtype=self.dtype, device=self.device)
        return torch.softmax(chosen, -1)

    def _paid(self, t: int, mu: Tensor) -> Tensor:
        """r(s; mu), [S]."""
        paid = self.game.rewards(t if self.game.time_dependent else 0, Crowd(mu.unsqueeze(0)))
        if paid.shape[-1] != 1:
            raise ConfigError(
                f"{type(self.game).__name__}: on a large grid rewards are [S, 1]; give the action's part as effort()."
            )
        return paid.reshape(-1).expand(self.game.num_states)


def mirror_descent(
    grid: LargeGrid,
    rate: float,
    iterations: int,
    every: int = 0,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Iterate, list[dict[str, Any]]]:
    """So many iterations from the uniform policy; a row (iteration, exploitability, seconds) `every` so many, and at the end."""
    at, rows, started = grid.begin(), [], time.monotonic()
    with torch.no_grad():
        for k in range(iterations + 1):
            if k == iterations or (every and k % every == 0):
                seconds = time.monotonic() - started
                rows.append({"iteration": k, "exploitability": grid.exploitability(at, rate), "seconds": seconds})
                if on_row is not None:
                    on_row(rows[-1])
            if k < iterations:
                at = grid.step(at, rate)
    return at, rows


class _Workshop:
    """Padded rooms that are filled again and again: fresh memory costs seven times the work done in it."""

    def __init__(self, grid: LargeGrid) -> None:
        kernel = grid.kernel
        self.rows, self.columns = grid.shape
        flat = len(kernel.shape) == 1
        self.moves = [(int(m[0]), 0 if flat else int(m[1])) for m in kernel.moves]
        self.shoves = [(int(m[0]), 0 if flat else int(m[1])) for m in kernel.shoves]
        self.chance, self.effort, self.gamma = kernel.chance.tolist(), grid.effort, grid.game.discount
        both = [*self.moves, *self.shoves]
        self.halo = (max(abs(x) for x, _ in both), max(abs(y) for _, y in both))
        hx, hy = self.halo
        new = {"dtype": grid.dtype, "device": grid.device}
        padded = (self.rows + 2 * hx, self.columns + 2 * hy)
        self.raw = torch.empty(padded, **new)  # type: ignore[call-overload]
        self.smooth = [torch.empty(padded, **new) for _ in range(3)]  # type: ignore[call-overload]
        self.height = max(1, _BLOCK // self.columns)
        self.logits = torch.empty((len(self.moves), min(self.height, self.rows), self.columns), **new)  # type: ignore[call-overload]
        self.joint = [torch.empty(padded, **new) for _ in self.moves]  # type: ignore[call-overload]

    def _wrap(self, room: Tensor) -> Tensor:
        """Fill the rim of a padded room from its other side."""
        hx, hy = self.halo
        n, m = self.rows, self.columns
        for size, halo, axis in ((n, hx, 0), (m, hy, 1)):
            for k in range(halo):
                # One line at a time: a rim may be wider than the torus.
                room.select(axis, halo - 1 - k).copy_(room.select(axis, halo + (-1 - k) % size))
                room.select(axis, halo + size + k).copy_(room.select(axis, halo + k % size))
        return room

    def _view(self, room: Tensor, first: int, last: int, by: tuple[int, int]) -> Tensor:
        """room(cell + by) for rows first..last."""
        hx, hy = self.halo
        x, y = hx + by[0], hy + by[1]
        return room[x + first : x + last, y : y + self.columns]

    def _blocks(self) -> list[tuple[int, int]]:
        return [(first, min(first + self.height, self.rows)) for first in range(0, self.rows, self.height)]

    def _mix(self, room: Tensor, out: Tensor, sign: int) -> None:
        """out = sum_k chance_k room(cell + sign shove_k)."""
        for first, last in self._blocks():
            target = self._view(out, first, last, (0, 0)) if out.shape == room.shape else out[first:last]
            for k, (p, (x, y)) in enumerate(zip(self.chance, self.shoves, strict=True)):
                source = self._view(room, first, last, (sign * x, sign * y))
                if k == 0:
                    torch.mul(source, p, out=target)
                else:
                    target.add_(source, alpha=p)

    def ahead(self, value: Tensor, slot: int = 0) -> Tensor:
        """The mean of a value [S] over the shove, padded: an action's is a shifted view of it."""
        self._view(self.raw, 0, self.rows, (0, 0)).copy_(value.view(self.rows, self.columns))
        self._mix(self._wrap(self.raw), self.smooth[slot], 1)
        return self._wrap(self.smooth[slot])

    def _choices(self, hopes: Tensor | None, first: int, last: int, rate: float, iteration: int) -> Tensor:
        """The policy in a block, [A, rows, columns]."""
        logits = self.logits[:, : last - first]
        for a, by in enumerate(self.moves):
            spent = -rate * iteration * self.effort[a]
            if hopes is None:
                logits[a].fill_(spent)
            else:
                torch.mul(self._view(hopes, first, last, by), rate * self.gamma, out=logits[a])
                if spent:
                    logits[a].add_(spent)
        return _softmax_(logits)

    def evaluate(self, paid: Tensor, hopes: Tensor | None, gain: Tensor | None, rate: float, iteration: int) -> Tensor:
        """V = r + sum_a pi (gamma P V' - c), [S]."""
        out = torch.empty_like(paid, memory_format=torch.contiguous_format)
        paid, whole = paid.reshape(self.rows, self.columns), out.view(self.rows, self.columns)
        for first, last in self._blocks():
            policy = self._choices(hopes, first, last, rate, iteration)
            target = whole[first:last].copy_(paid[first:last])
            for a, by in enumerate(self.moves):
                if gain is not None:
                    target.addcmul_(policy[a], self._view(gain, first, last, by), value=self.gamma)
                if self.effort[a]:
                    target.add_(policy[a], alpha=-self.effort[a])
        return out

    def best(self, paid: Tensor, gain: Tensor | None) -> Tensor:
        """max_a r + gamma P V' - c, [S]."""
        if gain is None:
            return paid - min(self.effort)
        out = torch.empty_like(paid, memory_format=torch.contiguous_format)
        paid, whole = paid.reshape(self.rows, self.columns), out.view(self.rows, self.columns)
        for first, last in self._blocks():
            room = self.logits[0, : last - first]
            target = whole[first:last].fill_(-math.inf)
            for a, by in enumerate(self.moves):
                torch.mul(self._view(gain, first, last, by), self.gamma, out=room).sub_(self.effort[a])
                torch.maximum(target, room, out=target)
            target.add_(paid[first:last])
        return out

    def push(self, mu: Tensor, hopes: Tensor, rate: float, iteration: int, out: Tensor) -> None:
        """out = mu after a step, [S]."""
        grid = mu.view(self.rows, self.columns)
        for first, last in self._blocks():
            policy = self._choices(hopes, first, last, rate, iteration)
            for a, room in enumerate(self.joint):
                torch.mul(policy[a], grid[first:last], out=self._view(room, first, last, (0, 0)))
        for room in self.joint:
            self._wrap(room)
        for first, last in self._blocks():
            target = self._view(self.raw, first, last, (0, 0))
            for a, (x, y) in enumerate(self.moves):
                source = self._view(self.joint[a], first, last, (-x, -y))
                target.copy_(source) if a == 0 else target.add_(source)
        self._mix(self._wrap(self.raw), out.view(self.rows, self.columns), -1)


def _softmax_(logits: Tensor) -> Tensor:
    """Over the first axis, in place."""
    top = logits.amax(0)
    logits.sub_(top).exp_()
    total = logits.sum(0)
    return logits.div_(total)
