"""What to solve, and how: the options of a solve, its game and its solvers, as its folder keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.games import catalogue
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver, solver_class
from mfmarl.learning.config_file import placed
from mfmarl.learning.run_config import Choice, Count, Whole
from mfmarl.options import Bounds, Problem, from_table, read_table, to_table, told
from mfmarl.registry import NAMESPACES, Entry, demand_typed, lookup


@dataclass(frozen=True)
class SolveOptions:
    """How a game is solved, whichever it is and whoever solves it."""

    iterations: Count = 1000
    """Iterations of each solver, at most."""
    tolerance: Annotated[float, Bounds(0.0, 1e300)] = 1e-8
    """Exploitability at which a solver is done, in units of reward."""
    every: Whole = 0
    """Iterations between looks at the exploitability; 0: at 1, 2, 3 and then ever more rarely."""
    seconds: Annotated[float, Bounds(0.0, 1e9)] = 0.0
    """Seconds that each solver may take; 0: as long as its iterations last."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision of policies, distributions and values."""
    device: str = "cpu"
    """Where they live: cpu, cuda, cuda:1, or auto."""
    threads: Annotated[int, Bounds(1, 1024)] = 1
    """Threads of torch: one is the fastest up to some hundred thousand entries."""
    start: str = ""
    """A solved run (or one policy file of it) whose policy is where the solvers begin; empty: uniform choice."""


@dataclass(frozen=True)
class SolveConfig:
    """A game, who solves it, and how: what `config.toml` prints and reads back."""

    environment: Choice
    solvers: dict[str, Choice]
    """By label: a solver's name, or a variant's `omd:rate=0.05`."""
    solve: SolveOptions = SolveOptions()

    def to_table(self) -> dict[str, Any]:
        return {
            "solve": to_table(self.solve),
            "environment": {"name": self.environment.name, **self.environment.options},
            "solvers": {label: {"name": c.name, **c.options} for label, c in self.solvers.items()},
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str = "config.toml") -> SolveConfig:
        """The inverse of `to_table`. Raises ConfigError."""
        unknown = sorted(set(table) - {"solve", "environment", "solvers", "versions", "command"})
        if unknown or not isinstance(table.get("solvers"), dict) or not table["solvers"]:
            raise ConfigError(
                f"{where} is no solved game's: expected [solve], [environment] and [solvers.<name>]"
                f"{f', not [{unknown[0]}]' if unknown else ''}."
            )

        def choice(part: Any, name: str) -> Choice:
            if not isinstance(part, dict) or not isinstance(part.get("name"), str):
                raise ConfigError(f"{where}: [{name}] needs a name.")
            return Choice(part["name"], {k: v for k, v in part.items() if k != "name"})

        return cls(
            choice(table.get("environment"), "environment"),
            {label: choice(part, f"solvers.{label}") for label, part in table["solvers"].items()},
            from_table(SolveOptions, table.get("solve", {}), f"{where}: [solve]"),
        )


def solve_config(table: Mapping[str, Any], where: str, text: str = "") -> SolveConfig:
    """What a file of a user's asks to be solved; `text` is the file's, for the numbers of its lines.

    A Python file is only played where the user has named it too. Raises ConfigError that tells every problem in a line of
    its own.
    """
    problems = [
        Problem(f"unknown table [{name[:60]}], expected {_TABLES}.", "unknown-option", name)
        for name in table
        if name not in ("solve", "environment", "solvers", "versions", "command")
    ]
    problems += _problems(SolveOptions, table.get("solve", {}), "solve")
    solvers = table.get("solvers")
    if not isinstance(solvers, Mapping) or not solvers:
        problems.append(Problem(f"[solvers.omd] is missing, expected {_TABLES}.", "missing-option", "solvers"))
        solvers = {}
    parts: list[tuple[str, Any, Callable[[str], type]]] = [("environment", table.get("environment"), game_class)]
    parts += [(f"solvers.{label}", part, solver_class) for label, part in solvers.items()]
    for key, part, kind in parts:
        name = part.get("name") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or not isinstance(name, str):
            problems.append(Problem(f"[{key}]: it needs a name.", "missing-option", key))
            continue
        try:
            demand_typed(name, "This configuration")
            cls = kind(name)
        except MfmarlError as error:
            problems.append(Problem(f"[{key}]: {error}", error.code, f"{key}.name"))
            continue
        problems += _problems(cls, {option: value for option, value in part.items() if option != "name"}, key)
    if problems:
        raise told(placed(problems, where, text))
    return SolveConfig.from_table(table, where)


_TABLES = "[solve], [environment] and [solvers.<name>]"


def _problems(cls: type, table: Any, key: str) -> list[Problem]:
    _, found = read_table(cls, table, f"[{key}]")
    return [problem._replace(key=f"{key}.{problem.key}".rstrip(".")) for problem in found]


def game_class(name: str) -> type[MeanFieldGame]:
    """The mean-field game of that name. Raises ConfigError for an environment that is none, naming those that are."""
    entry = lookup("environment", name)
    target = None if _third_party(entry) else entry.load()
    if not (isinstance(target, type) and issubclass(target, MeanFieldGame)):
        raise ConfigError(
            f"{name!r} is not a mean-field game, so there is no limit to solve; games are: "
            f"{', '.join(catalogue.games())}."
        )
    return target


def _third_party(entry: Entry) -> bool:
    return entry.target is None and entry.name.partition("/")[0] in NAMESPACES


def make_game(choice: Choice) -> MeanFieldGame:
    """The game with its options. Raises ConfigError."""
    return from_table(game_class(choice.name), choice.options, f"environment {choice.name}")


def make_solver(choice: Choice) -> Solver:
    """The solver with its options. Raises ConfigError."""
    return from_table(solver_class(choice.name), choice.options, f"solver {choice.name}")
