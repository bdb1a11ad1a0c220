"""The contract of a solver: a state, a step, and the policy that the state stands for.

A solver is a frozen dataclass whose fields are its options; it has no memory. Its state is a NamedTuple of tensors
that carry the batch of the policy it began with, [T, *b, G, S, A]: a batch of temperatures, rates or first policies is
one call. Options may be tensors [*b] in Python.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.games.catalogue import solver_sources
from mfmarl.games.game import MeanFieldGame
from mfmarl.options import check_numbers


@dataclass(frozen=True)
class Solver(ABC):
    """One way to an equilibrium. A subclass lies in a file of `mfmarl/games/solvers` and says its `name`."""

    name: ClassVar[str] = ""
    cooperative: ClassVar[bool] = False
    """Whether it seeks the planner's optimum, which is no equilibrium: its exploitability does not go to 0."""

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def entropy_bonus(self) -> float | Tensor:
        """The temperature of the regularised equilibrium that it goes to; 0: Nash."""
        return 0.0

    @property
    def rests_elsewhere(self) -> bool:
        """Whether it comes to rest where neither exploitability nor the regularised one is 0, as agents who act by
        exp(Q / T) do: its curve then levels off, which is no failure to settle."""
        return False

    @abstractmethod
    def begin(self, game: MeanFieldGame, policy: Tensor) -> Any:
        """The state before the first step, from a policy [T, *b, G, S, A] (usually the uniform one)."""

    @abstractmethod
    def step(self, game: MeanFieldGame, state: Any, iteration: int) -> Any:
        """One iteration; the first is number 1."""

    @abstractmethod
    def policy(self, game: MeanFieldGame, state: Any) -> Tensor:
        """The policy [T, *b, G, S, A] that this state stands for."""


def positive(option: float | Tensor) -> bool:
    """Whether an option is above 0, or a batch that may be."""
    return isinstance(option, Tensor) or option > 0


def wide(option: float | Tensor) -> float | Tensor:
    """An option [*b] that broadcasts against [*b, G, S, A]."""
    return option.reshape(*option.shape, 1, 1, 1) if isinstance(option, Tensor) and option.ndim else option


def solver_class(name: str) -> type[Solver]:
    """The solver of that name. Raises ConfigError with the nearest one."""
    known = solver_sources()
    if name not in known:
        raise ConfigError(f"There is no solver {name!r}.{nearest(name, known)}")
    found: type[Solver] = getattr(importlib.import_module(known[name].module), known[name].kind)
    return found
