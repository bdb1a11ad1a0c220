"""The contract of a solver: a state, a step, and the policy that the state stands for.

A solver is a frozen dataclass whose fields are its options; it has no memory. Its state is a NamedTuple of tensors
that carry the batch of the policy it began with, [T, *b, G, S, A]: a batch of temperatures, rates or first policies is
one call. Options may be tensors [*b] in Python.
"""

from __future__ import annotations

import ast
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from mfmarl.errors import ConfigError, nearest
from mfmarl.games.game import MeanFieldGame


@dataclass(frozen=True)
class Solver(ABC):
    """One way to an equilibrium. A subclass lies in a file of `mfmarl/games/solvers` and says its `name`."""

    name: ClassVar[str] = ""
    cooperative: ClassVar[bool] = False
    """Whether it seeks the planner's optimum, which is no equilibrium: its exploitability does not go to 0."""

    @property
    def entropy_bonus(self) -> float | Tensor:
        """The temperature of the regularised equilibrium that it goes to; 0: Nash."""
        return 0.0

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


@cache
def _files() -> dict[str, tuple[str, str, str]]:
    """name -> (module, class, first line), read from source: listing imports nothing."""
    found = {}
    for path in sorted((Path(__file__).parent / "solvers").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                for line in node.body:
                    if (
                        isinstance(line, ast.AnnAssign | ast.Assign)
                        and "name"
                        in {getattr(t, "id", "") for t in getattr(line, "targets", [getattr(line, "target", None)])}
                        and isinstance(line.value, ast.Constant)
                    ):
                        doc = (ast.get_docstring(node) or "").split("\n")[0].rstrip(".")
                        found[str(line.value.value)] = (f"mfmarl.games.solvers.{path.stem}", node.name, doc)
    return found


def solvers() -> dict[str, str]:
    """Every solver's name and first line."""
    return {name: line for name, (_, _, line) in sorted(_files().items())}


def solver_class(name: str) -> type[Solver]:
    """The solver of that name. Raises ConfigError with the nearest one."""
    if name not in _files():
        raise ConfigError(f"There is no solver {name!r}.{nearest(name, _files())}")
    module, kind, _ = _files()[name]
    found: type[Solver] = getattr(importlib.import_module(module), kind)
    return found
