"""Training, comparing and solving from Python: the same runs, folders and reports as the command line's.

import mfmarl

run = mfmarl.train("ising", "mfq", num_agents=400, temperature="1.0", steps=500)
print(run.last["eval/magnetisation"], run.report)
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfmarl.errors import ConfigError, RunsFailed, nearest
from mfmarl.evaluation import equilibrium, solve_config, solved
from mfmarl.evaluation.comparison import execute, plan, write_plan
from mfmarl.evaluation.equilibrium_report import read_solved, report_solved, summary_of
from mfmarl.evaluation.films import film_comparison
from mfmarl.evaluation.report import report_run, write_report
from mfmarl.evaluation.results import Comparison, folder_name, read_comparison
from mfmarl.evaluation.summary import summary
from mfmarl.games.game import MeanFieldGame
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import RUN_OPTION_NAMES, Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import read_metrics
from mfmarl.options import from_table, options_of, to_table
from mfmarl.population.open import open_env
from mfmarl.population.simulation import Env
from mfmarl.registry import entries, lookup

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, its rows of numbers, the last of them, and its report."""

    path: Path
    rows: list[dict[str, Any]]
    report: Path

    @property
    def last(self) -> dict[str, Any]:
        return self.rows[-1]


@dataclass(frozen=True)
class ComparedRuns:
    """A finished comparison: its folder, every number of the report, and the report."""

    path: Path
    summary: dict[str, Any]
    report: Path
    comparison: Comparison


def train(
    environment: Any,
    agent: str | Mapping[str, str] = "mfq",
    *,
    path: str | Path | None = None,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> TrainedRun:
    """Train an agent (or one for each team, by name) on an environment (a name or a class).

    `options` are those of the run, the environment and the agent, as on the command line.
    Raises ConfigError for an option that is nobody's, and whatever the run raises.
    """
    name, label, imports = _named(environment)
    del imports  # the class is known in this process
    team = {"all": agent} if isinstance(agent, str) else dict(agent)
    config = _configure(name, team, options)
    target = Path(path) if path is not None else Path("runs") / folder_name(f"{label}-{_stamp()}")
    run_in_folder(config, target, on_row=on_row)
    return TrainedRun(target, read_metrics(target), report_run(target))


def compare(
    environment: Any,
    agents: Sequence[str] = ("mfq", "iql"),
    *,
    seeds: int | Sequence[int] = 5,
    jobs: int = 0,
    path: str | Path | None = None,
    film: bool = True,
    **options: Any,
) -> ComparedRuns:
    """Compare agents on an environment (a name, or a class that lives in a file) over seeds, in worker processes.

    Raises ConfigError, and RunsFailed when no run succeeded.
    """
    name, label, imports = _named(environment)
    configs = {agent: _configure(name, {"all": agent}, options, strict=False) for agent in agents}
    _refuse_nobodys(name, agents, options)
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    folder = Path(path) if path is not None else Path("runs") / folder_name(f"{label}-{_stamp()}")
    first = next(iter(configs.values()))
    environments = {label: first.environment}
    teams = {agent: config.agents for agent, config in configs.items()}
    write_plan(folder, environments, teams, chosen, f"mfmarl.compare in {Path(sys.argv[0]).name}")
    runs = plan(environments, teams, chosen, first.run, folder)
    failed = execute(runs, jobs or os.cpu_count() or 1, lambda _run, _event: None, imports)
    if len(failed) == len(runs):
        raise RunsFailed(f"Every run failed; the first: {failed[0][1]}")
    comparison = read_comparison(folder)
    if film:
        film_comparison(comparison)
    return ComparedRuns(folder, summary(comparison), write_report(folder), comparison)


@dataclass(frozen=True)
class SolvedGame:
    """A solved game: its folder, a row for each look (with its solver), every number of the report, and the report."""

    path: Path
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    report: Path
    best: solved.SavedPolicy
    """Of the solver with the least exploitability: `policy` [T, G, S, A] and its crowd `mu` [T + 1, G, S]."""

    @property
    def policy(self) -> Tensor:
        return self.best.policy

    @property
    def exploitability(self) -> float:
        return float(self.summary["solvers"][self.summary["best"]]["exploitability"])


def solve(
    game: Any,
    solver: str | Sequence[str] = "omd",
    *,
    path: str | Path | None = None,
    on_row: Callable[[str, dict[str, Any]], None] | None = None,
    **options: Any,
) -> SolvedGame:
    """Solve a mean-field game (a name, a class, or one ready made) by one solver or several.

    `options` are those of `mfmarl solve`, the game and the solvers, as on the command line; `solver_rate=0.1` and
    `env_seed=1` where both have one. `start` is a solved run (or a `SolvedGame`'s path) to begin from.
    Raises ConfigError for an option that is nobody's, and whatever the solvers raise.
    """
    config, label, ready = _to_solve(game, solver, options)
    target = Path(path) if path is not None else Path("runs") / folder_name(f"{label}-{_stamp()}")
    equilibrium.solve_in_folder(config, target, on_row, game=ready)
    page = report_solved(target)
    found = read_solved(target)
    if found.best.label not in found.policies:
        raise RunsFailed(f"No solver came to a policy: {found.best.told}")
    return SolvedGame(target, read_metrics(target), summary_of(found), page, found.policies[found.best.label])


def _to_solve(
    game: Any, solver: str | Sequence[str], options: Mapping[str, Any]
) -> tuple[solve_config.SolveConfig, str, MeanFieldGame]:
    """Give every option to whom it belongs: the run, the game, each solver that has it; and the game's label and self."""
    from mfmarl.cli.solve import parse_solvers, solver_options

    ready = {}
    if isinstance(game, MeanFieldGame):
        ready, game = to_table(game), type(game)
    name, label, _ = _named(game)
    solvers = parse_solvers(solver if isinstance(solver, str) else ",".join(solver))
    own = {f.name for f in fields(solve_config.SolveOptions)}
    rest = {k: v for k, v in options.items() if k not in own}
    # A class is taken as it is: to find it by its name would run its script again.
    kind = game if isinstance(game, type) and issubclass(game, MeanFieldGame) else solve_config.game_class(name)
    of_game = {o.name for o in options_of(kind)}
    of_solvers = {s: set(solver_options(c.name)[1]) for s, c in solvers.items()}
    theirs = {o for known in of_solvers.values() for o in known}
    both = sorted(of_game & theirs & set(rest))
    if both:
        raise ConfigError(f"{both[0]!r} could be the game's or the solver's: write env_{both[0]} or solver_{both[0]}.")
    wrong = sorted(set(rest) - of_game - theirs - {f"env_{o}" for o in of_game} - {f"solver_{o}" for o in theirs})
    if wrong:
        raise ConfigError(f"Unknown option {wrong[0]!r}.{nearest(wrong[0], of_game | theirs | own)}")
    chosen = {
        s: Choice(c.name, {**_addressed(rest, of_solvers[s], "solver_"), **c.options}) for s, c in solvers.items()
    }
    how = {k: str(v) if k == "start" else v for k, v in options.items() if k in own}
    of_environment = {**ready, **_addressed(rest, of_game, "env_")}
    config = solve_config.SolveConfig(Choice(name, of_environment), chosen, from_table(solve_config.SolveOptions, how))
    return config, label, from_table(kind, of_environment, label)


def make(environment: Any, copies: int = 1, device: str = "cpu", **options: Any) -> Env:
    """Copies of an environment as batched tensors: what training sees (`mfmarl.population.simulation.Env`)."""
    return open_env(environment, options, copies, device)


def _stamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def _named(environment: Any) -> tuple[str, str, list[str]]:
    """(name that a worker process understands, label, files that it must import)."""
    if isinstance(environment, str):
        entry = lookup("environment", environment)
        file = _file_of(entry.target) if entry.target is not None and ".py" not in environment else None
        return environment, environment.rpartition(".py:")[2] or environment, [file] if file else []
    where = f"{getattr(environment, '__module__', '')}:{getattr(environment, '__qualname__', '')}"
    known = next((name for name, entry in entries("environment").items() if entry.where == where), None)
    if known is not None and where.startswith("mfmarl."):
        return known, known, []
    file = _file_of(environment)
    if file is None:
        raise ConfigError(
            f"{environment!r} must be a name, or a class defined in a Python file (not typed into a shell)."
        )
    return f"{file}:{environment.__qualname__}", environment.__name__, []


def _file_of(target: Any) -> str | None:
    if str(getattr(target, "__module__", "")).startswith("mfmarl."):
        return None
    try:
        file = inspect.getfile(target)
    except (TypeError, OSError):
        return None
    return str(Path(file).resolve()) if Path(file).is_file() else None


def _own(name: str, kind: str) -> set[str]:
    from mfmarl.cli.choices import agent_config, environment_options

    if kind == "agent":
        return set(agent_config(name)[1])
    return set(environment_options(lookup("environment", name))[1])


def _configure(name: str, team: Mapping[str, str], options: Mapping[str, Any], strict: bool = True) -> RunConfig:
    """Give every option to whom it belongs: the run, the environment, each agent that has it.

    What both have needs `env_` or `agent_` before it: `env_field=0.1, agent_field="nothing"`.
    """
    run = {k: v for k, v in options.items() if k in RUN_OPTION_NAMES}
    rest = {k: v for k, v in options.items() if k not in RUN_OPTION_NAMES}
    of_environment = _own(name, "environment")
    environment = _addressed(rest, of_environment, "env_")
    players = {}
    for group, agent in team.items():
        fixed = dict(lookup("agent", agent).overrides)
        known = _own(agent, "agent")
        both = sorted(known & of_environment & set(rest))
        if both:
            raise ConfigError(
                f"{both[0]!r} could be the environment's or {agent}'s: write env_{both[0]} or agent_{both[0]}."
            )
        players[group] = Choice(agent, _addressed(rest, known - set(fixed), "agent_"))
    if strict:
        _refuse_nobodys(name, list(team.values()), options)
    return RunConfig(Choice(name, environment), players, from_table(RunOptions, run))


def _addressed(options: Mapping[str, Any], known: set[str], prefix: str) -> dict[str, Any]:
    """Of the options, those known, by their own name or behind the prefix."""
    named = {k.removeprefix(prefix) if k not in known else k: v for k, v in options.items()}
    return {k: _plain(v) for k, v in named.items() if k in known}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _refuse_nobodys(name: str, agents: Sequence[str], options: Mapping[str, Any]) -> None:
    theirs = {o for a in agents for o in _own(a, "agent")}
    known = {*RUN_OPTION_NAMES, *_own(name, "environment"), *theirs}
    addressed = {f"env_{o}" for o in _own(name, "environment")} | {f"agent_{o}" for o in theirs}
    wrong = sorted(set(options) - known - addressed)
    if wrong:
        raise ConfigError(f"Unknown option {wrong[0]!r}.{nearest(wrong[0], known)}")
