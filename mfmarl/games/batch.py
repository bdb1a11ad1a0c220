"""Many games side by side: one class, options that differ in numbers, one call to solve them all.

The rules are asked once for all of them, by `torch.func.vmap` over the options that differ; the games' axis B lies
before G: policies [T, *b, B, G, S, A]. A solver's option may be a tensor [B] too, one number for each game.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel, Outcomes

_MATRIX = 1 << 20  # entries of a matrix [S, A, S] up to which a kernel that is no table is made one


def side_by_side(games: Sequence[MeanFieldGame]) -> MeanFieldGame:
    """The games as one, to be solved and evaluated (it has no agents to play it).

    Raises ConfigError unless they are of one class and differ in options that are floats, the discount not among them,
    and have rules in which such an option may be a tensor (tables of options by `mfmarl.games.game.table`).
    """
    if not games:
        raise ConfigError("There is no game to put beside another.")
    kind = type(games[0])
    if any(type(game) is not kind for game in games):
        raise ConfigError(
            f"Games side by side are of one class, not {', '.join(sorted({type(g).__name__ for g in games}))}."
        )
    differing, hints = [], get_type_hints(kind)
    for field in dataclasses.fields(kind):
        values = [getattr(game, field.name) for game in games]
        if any(value != values[0] for value in values):
            if field.name == "discount" or not all(isinstance(value, float | int) for value in values):
                raise ConfigError(
                    f"Games side by side may not differ in {field.name!r}: only in options that are numbers of the rules."
                )
            if float not in (hints[field.name], *get_args(hints[field.name])):
                raise ConfigError(
                    f"Games side by side may not differ in {field.name!r}: it is a whole number, so shapes may hang on it."
                )
            differing.append(field.name)
    if any(game.tree is not None for game in games):
        raise ConfigError("Games with common noise are solved one by one.")
    return SideBySide(
        games[0].num_agents, games[0].horizon, games[0].discount, games[0].sight, tuple(games), tuple(differing)
    )


@dataclass(frozen=True)
class SideBySide(MeanFieldGame):
    """Made by `side_by_side`."""

    games: tuple[MeanFieldGame, ...] = ()
    """The games."""
    differing: tuple[str, ...] = ()
    """Names of the options in which they differ."""

    def __post_init__(self) -> None:
        first = self.games[0]
        # Facts of the class that the engine asks of an instance.
        for name in ("groups", "time_dependent", "crowd_moves", "extended"):
            object.__setattr__(self, name, getattr(first, name))

    @property
    def batch(self) -> tuple[int, ...]:
        return (len(self.games),)

    @property
    def num_states(self) -> int:
        return self.games[0].num_states

    @property
    def num_actions(self) -> int:
        return self.games[0].num_actions

    def initial(self) -> Tensor:
        raise ConfigError("Games side by side have no population of their own: simulate one of them.")

    def start(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """[B, G, S]."""
        return self._start.to(device, dtype)

    def allowed(self) -> Tensor | None:
        first, *others = [game.allowed() for game in self.games]
        for mask in others:
            if (mask is None) != (first is None) or (mask is not None and first is not None and not mask.equal(first)):
                raise ConfigError("Games side by side must allow the same actions.")
        return first

    def _options(self, like: Tensor) -> list[Tensor]:
        """The differing options, [B] each."""
        return [option.to(like) for option in self._numbers]

    @cached_property
    def _numbers(self) -> list[Tensor]:
        numbers = [[float(getattr(game, name)) for game in self.games] for name in self.differing]
        return list(torch.tensor(numbers, dtype=torch.float64))

    @cached_property
    def _start(self) -> Tensor:
        return torch.stack([game.start() for game in self.games])

    def _one(self, options: dict[str, Tensor]) -> MeanFieldGame:
        """A game whose differing options are one entry of the batch; not checked: its games were."""
        first = self.games[0]
        game: MeanFieldGame = object.__new__(type(first))
        for field in dataclasses.fields(first):
            object.__setattr__(game, field.name, options.get(field.name, getattr(first, field.name)))
        return game

    def _all(self, rule: Callable[[MeanFieldGame, Crowd], Any], crowd: Crowd) -> Any:
        """A rule of every game for its own crowd: B is the first axis of what it gives."""
        parts = (("mu", crowd.mu, -3), ("policy", crowd.policy, -4), ("counted", crowd.counted, -4))
        given = [(name, x, axis) for name, x, axis in parts if x is not None]

        def one(*values: Tensor) -> Any:
            own = dict(zip(self.differing, values, strict=False))
            names = (name for name, _, _ in given)
            return rule(self._one(own), Crowd(**dict(zip(names, values[len(own) :], strict=True))))

        # A flat list of tensors: nested ones cost vmap more than the rules.
        flat = [*self._options(crowd.mu), *(x for _, x, _ in given)]
        axes = (*[0] * len(self.differing), *(axis for _, _, axis in given))
        try:
            return torch.func.vmap(one, in_dims=axes)(*flat)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ConfigError(
                f"{type(self.games[0]).__name__} cannot be put side by side over {', '.join(self.differing)}: its rules turn "
                "an option into a plain number. Build tables of options by mfmarl.games.game.table."
            ) from error

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        found = self._all(lambda game, own: _as_tensors(game.outcomes(t, own)), crowd)
        if len(found) == 1:
            return Dense(_before_groups(found[0], 3))
        successor, probability = found
        return Outcomes(_before_groups(successor, 3), _before_groups(probability, 3))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        raise ConfigError("Games side by side are paid by `paid`.")

    def paid(self, t: int, crowd: Crowd) -> Tensor:
        return self._all(lambda game, own: game.paid(t, own), crowd).movedim(0, -4)

    def terminal(self, crowd: Crowd) -> Tensor | None:
        if type(self.games[0]).terminal is MeanFieldGame.terminal:
            return None
        return self._all(lambda game, own: game.terminal(own), crowd).movedim(0, -3)

    def potential(self, t: int, crowd: Crowd) -> Tensor | None:
        if type(self.games[0]).potential is MeanFieldGame.potential:
            return None

        def phi(game: MeanFieldGame, own: Crowd) -> Tensor:
            found, effort = game.potential(t, own), game.effort()
            assert found is not None
            # Here, and not by `effort`, which these games have each for itself.
            return found if effort is None else found - (own.joint * effort.to(own.mu)).sum((-3, -2, -1))

        return self._all(phi, crowd).movedim(0, -1)


def _as_tensors(kernel: Kernel) -> tuple[Tensor, ...]:
    if isinstance(kernel, Outcomes):
        return kernel.successor, kernel.probability
    if not isinstance(kernel, Dense):
        matrix = kernel.dense()
        if math.prod(matrix.shape) > _MATRIX:
            raise ConfigError(
                f"Games with a {type(kernel).__name__} of {matrix.shape[0]} states are solved one by one."
            )
        return (matrix,)
    return (kernel.probability,)


def _before_groups(x: Tensor, own: int) -> Tensor:
    """B, the first axis, moved before G; away where it is the same for all games.

    A game's own part is its last `own` axes, or one more where it has groups.
    """
    if x.stride(0) == 0:
        return x[0]
    inner = x.ndim - 1
    if inner <= own:
        return x.unsqueeze(1)  # [B, 1, S, A, K]
    return x.movedim(0, x.ndim - own - 2)
