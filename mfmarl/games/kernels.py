r"""Where a state and an action lead: Markov kernels P(s' | s, a), as a table of outcomes, a matrix, or moves and noise.

$$ (P V)(s, a) = \sum_{s'} P(s' \mid s, a)\, V(s'), \qquad (L P)(s') = \sum_{s, a} L(s, a)\, P(s' \mid s, a) $$

`expect` is the first, `carry` its adjoint: sum (L P) V = sum L (P V). `draw` moves N agents by the same law.
Values are [*b, G, S] and joint distributions [*b, G, S, A]: a batch, groups, states, actions. A kernel may be one for
all, [S, A, ...], or have leading axes that broadcast against [*b, G].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mfmarl.errors import EnvironmentFault

_SMALL = 1 << 17  # entries of a matrix [S, A, S] up to which one product is faster than a gather
_TINY = 256  # entries of a matrix [S, A, S] up to which a sum is faster than a product
_FEW = 8  # outcomes up to which a draw counts steps of the cumulative; beyond, it bisects


class Kernel(ABC):
    """P(s' | s, a)."""

    @abstractmethod
    def expect(self, value: Tensor) -> Tensor:
        """The mean of `value` [*b, G, S] after the step: [*b, G, S, A]."""

    @abstractmethod
    def carry(self, joint: Tensor) -> Tensor:
        """The distribution over states [*b, G, S] after the step, from that over states and actions [*b, G, S, A]."""

    @abstractmethod
    def draw(self, group: Tensor, state: Tensor, action: Tensor, level: Tensor) -> Tensor:
        """Each agent's next state [E, N]: by inversion at `level` [E, N], uniform on (0, 1).

        `group` [N], `state` and `action` [E, N] are int64; a kernel with a batch has [E, G, ...].
        """

    @abstractmethod
    def total(self) -> Tensor:
        """The sum over s' of P(s' | s, a), which must be 1, and -1 where an entry is negative: [..., S, A]."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix [..., S, A, S]."""

    @abstractmethod
    def among(self, index: int) -> Kernel:
        """The kernel of one entry along the first axis, where there is a batch."""

    def check(self, where: str) -> None:
        """Raises EnvironmentFault unless every row is a probability distribution."""
        total = self.total()
        bad = ~((total - 1).abs() <= 1e-6)
        if bool(bad.any()):
            place = bad.nonzero()[0].tolist()
            value = float(total[tuple(place)])
            told = "has a negative or undefined entry" if not value >= 0 else f"sums to {value:.6g}"
            raise EnvironmentFault(
                f"{where}: the kernel {told} at state {place[-2]}, action {place[-1]}; probabilities sum to 1."
            )


@dataclass(frozen=True, eq=False)
class Outcomes(Kernel):
    """K outcomes of every state and action: O(S A K) a step.

    `successor` int64 [S, A, K] and `probability` [S, A, K], both with leading axes where they depend on the crowd
    or the group. One successor may be named twice; probabilities add up.
    """

    successor: Tensor
    probability: Tensor

    @cached_property
    def _matrix(self) -> Tensor | None:
        """[S A, S] where that is small and one for all."""
        s, a, _ = self.successor.shape[-3:]
        if self.successor.ndim > 3 or self.probability.ndim > 3 or s * a * s > _SMALL:
            return None
        return self.dense().reshape(s * a, s)

    def _weights(self, like: Tensor) -> Tensor:
        return self.probability.to(like.dtype)

    def expect(self, value: Tensor) -> Tensor:
        s, a, k = self.successor.shape[-3:]
        if self._matrix is not None:
            return (value @ self._matrix.mT.to(value.dtype)).unflatten(-1, (s, a))
        if self.successor.ndim == 3:
            ahead = value.index_select(-1, self.successor.reshape(-1)).unflatten(-1, (s, a, k))
        else:
            index = self.successor.flatten(-3).expand(*value.shape[:-1], -1)
            ahead = value.gather(-1, index).unflatten(-1, (s, a, k))
        if k == 1:
            return (ahead * self._weights(value)).squeeze(-1)
        return (ahead * self._weights(value)).sum(-1)

    def carry(self, joint: Tensor) -> Tensor:
        if self._matrix is not None:
            return joint.flatten(-2) @ self._matrix.to(joint.dtype)
        flowing = (joint.unsqueeze(-1) * self._weights(joint)).flatten(-3)
        empty = joint.new_zeros((*joint.shape[:-2], joint.shape[-2]))
        if self.successor.ndim == 3:
            return empty.index_add(-1, self.successor.reshape(-1), flowing)
        return empty.scatter_add(-1, self.successor.flatten(-3).expand(flowing.shape), flowing)

    def draw(self, group: Tensor, state: Tensor, action: Tensor, level: Tensor) -> Tensor:
        row = _rows(self.probability, group, state, action)
        which = _inverse(row, level)
        return _rows(self.successor, group, state, action).gather(-1, which.unsqueeze(-1)).squeeze(-1)

    def total(self) -> Tensor:
        return _total(self.probability)

    def dense(self) -> Tensor:
        shape = torch.broadcast_shapes(self.successor.shape, self.probability.shape)
        p = self.probability.expand(shape)
        return p.new_zeros((*shape[:-1], shape[-3])).scatter_add(-1, self.successor.expand(shape), p)

    def among(self, index: int) -> Outcomes:
        successor = self.successor if self.successor.ndim < 5 else _entry(self.successor, index)
        probability = self.probability if self.probability.ndim < 5 else _entry(self.probability, index)
        return Outcomes(successor, probability)


@dataclass(frozen=True, eq=False)
class Dense(Kernel):
    """The matrix itself, [S, A, S] or with leading axes."""

    probability: Tensor

    def expect(self, value: Tensor) -> Tensor:
        s, a = self.probability.shape[-3:-1]
        if self.probability.ndim > 3 and s * s * a <= _TINY:
            return (self.probability.to(value.dtype) * value.unsqueeze(-2).unsqueeze(-2)).sum(-1)
        matrix = self.probability.to(value.dtype).flatten(-3, -2)
        if matrix.ndim == 2:
            return (value @ matrix.mT).unflatten(-1, (s, a))
        return (matrix @ value.unsqueeze(-1)).squeeze(-1).unflatten(-1, (s, a))

    def carry(self, joint: Tensor) -> Tensor:
        s, a = self.probability.shape[-3:-1]
        if self.probability.ndim > 3 and s * s * a <= _TINY:
            return (joint.unsqueeze(-1) * self.probability.to(joint.dtype)).sum((-3, -2))
        matrix = self.probability.to(joint.dtype).flatten(-3, -2)
        if matrix.ndim == 2:
            return joint.flatten(-2) @ matrix
        return (joint.flatten(-2).unsqueeze(-2) @ matrix).squeeze(-2)

    def draw(self, group: Tensor, state: Tensor, action: Tensor, level: Tensor) -> Tensor:
        return _inverse(_rows(self.probability, group, state, action), level)

    def total(self) -> Tensor:
        return _total(self.probability)

    def dense(self) -> Tensor:
        return self.probability

    def among(self, index: int) -> Dense:
        return self if self.probability.ndim < 5 else Dense(_entry(self.probability, index))


@dataclass(frozen=True, eq=False)
class Moves(Kernel):
    """A move that the action chooses, then a shove that nobody chooses: O(S (A + K)) a step.

    `target` int64 [S, A]: where each action leads; then from there to `shoved` [S, K] with `probability` [S, K] or [K].
    """

    target: Tensor
    shoved: Tensor
    probability: Tensor

    def expect(self, value: Tensor) -> Tensor:
        ahead = value.index_select(-1, self.shoved.reshape(-1)).unflatten(-1, self.shoved.shape)
        mean = (ahead * self.probability.to(value.dtype)).sum(-1)
        return mean.index_select(-1, self.target.reshape(-1)).unflatten(-1, self.target.shape)

    def carry(self, joint: Tensor) -> Tensor:
        empty = joint.new_zeros(joint.shape[:-1])
        moved = empty.index_add(-1, self.target.reshape(-1), joint.flatten(-2))
        flowing = (moved.unsqueeze(-1) * self.probability.to(joint.dtype)).flatten(-2)
        return empty.index_add(-1, self.shoved.reshape(-1), flowing)

    def draw(self, group: Tensor, state: Tensor, action: Tensor, level: Tensor) -> Tensor:
        there = self.target[state, action]
        which = _inverse(self.probability.expand(self.shoved.shape)[there], level)
        return self.shoved[there, which]

    def total(self) -> Tensor:
        return _total(self.probability.expand(self.shoved.shape))[self.target]

    def dense(self) -> Tensor:
        s, k = self.shoved.shape
        p = self.probability.expand(s, k)
        shove = p.new_zeros((s, s)).scatter_add(-1, self.shoved, p)
        return shove[self.target]

    def among(self, index: int) -> Moves:
        return self


@dataclass(frozen=True, eq=False)
class Torus(Kernel):
    """A move and then a shove on a torus, the same everywhere: by shifts, without a table of states.

    `shape` of the grid, row by row; `moves` int64 [A, D]; `shoves` int64 [K, D] with `chance` [K].
    """

    shape: tuple[int, ...]
    moves: Tensor
    shoves: Tensor
    chance: Tensor

    def _shift(self, x: Tensor, by: Tensor) -> Tensor:
        """x(cell + by), over the last axes."""
        return x.roll([-int(d) for d in by], list(range(-len(self.shape), 0)))

    def expect(self, value: Tensor) -> Tensor:
        grid = value.unflatten(-1, self.shape)
        mean = self._shoved(grid, 1)
        # Actions outermost, so that each is one stretch of memory; seen as the last axis.
        ahead = torch.stack([self._shift(mean, by).flatten(-len(self.shape)) for by in self.moves])
        return ahead.movedim(0, -1)

    def carry(self, joint: Tensor) -> Tensor:
        grid = joint.movedim(-1, 0).unflatten(-1, self.shape)
        moved = torch.stack([self._shift(part, -by) for part, by in zip(grid, self.moves, strict=True)]).sum(0)
        return self._shoved(moved, -1).flatten(-len(self.shape))

    def _shoved(self, grid: Tensor, sign: int) -> Tensor:
        total = torch.zeros_like(grid)
        for chance, by in zip(self.chance.tolist(), self.shoves, strict=True):
            total.add_(self._shift(grid, sign * by), alpha=chance)
        return total

    def draw(self, group: Tensor, state: Tensor, action: Tensor, level: Tensor) -> Tensor:
        which = _inverse(self.chance.expand(*level.shape, -1), level)
        by = self.moves[action] + self.shoves[which]
        index, stride = torch.zeros_like(state), 1
        for axis in range(len(self.shape) - 1, -1, -1):
            size = self.shape[axis]
            index = index + (state // stride % size + by[..., axis]) % size * stride
            stride *= size
        return index

    def total(self) -> Tensor:
        return _total(self.chance).expand(1, len(self.moves))

    def dense(self) -> Tensor:
        size = math.prod(self.shape)
        return self.expect(torch.eye(size, dtype=self.chance.dtype, device=self.chance.device)).movedim(0, -1)

    def among(self, index: int) -> Torus:
        return self


def grid_moves(shape: tuple[int, ...], moves: Tensor, torus: bool = False, walls: Tensor | None = None) -> Tensor:
    """Where each move [M, D] leads from each cell of a grid (row by row): int64 [S, M].

    Off the edge one comes out on the other side (`torus`) or stops there, each coordinate for itself; who would enter
    a wall (bool [S]) stays.
    """
    axes = [torch.arange(n) for n in shape]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 1, len(shape)) + moves
    size = torch.tensor(shape)
    place = place % size if torus else place.clamp(min=torch.zeros_like(size), max=size - 1)
    index = place[..., 0]
    for axis in range(1, len(shape)):
        index = index * shape[axis] + place[..., axis]
    if walls is not None:
        index = torch.where(walls[index], torch.arange(len(index)).unsqueeze(-1), index)
    return index


def _entry(x: Tensor, index: int) -> Tensor:
    return x[0 if x.shape[0] == 1 else index]


def _total(probability: Tensor) -> Tensor:
    return torch.where((probability >= 0).all(-1), probability.sum(-1), -1.0)


def _rows(table: Tensor, group: Tensor, state: Tensor, action: Tensor) -> Tensor:
    """The rows [E, N, K] of a table [S, A, K], [G, S, A, K] or [E, G, S, A, K] that agents stand at."""
    if table.ndim == 3:
        return table[state, action]
    if table.ndim == 4:
        table = table.unsqueeze(0)
    copies = torch.arange(state.shape[0], device=state.device).unsqueeze(-1)
    if table.shape[0] == 1:
        copies = torch.zeros_like(copies)
    if table.shape[1] == 1:
        group = torch.zeros_like(group)
    return table[copies, group, state, action]


def _inverse(p: Tensor, level: Tensor) -> Tensor:
    """Which of K outcomes [..., K] the level falls into: int64; never one of probability 0."""
    cumulative = p.cumsum(-1)
    level = level.to(p.dtype) * cumulative[..., -1]
    if p.shape[-1] <= _FEW:
        return (level.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)
    return torch.searchsorted(cumulative, level.unsqueeze(-1), right=True).squeeze(-1).clamp(max=p.shape[-1] - 1)
