"""A solved game in its folder: solvers run one after the other, and all that they found is kept.

    config.toml      all that repeats it             metrics.jsonl   a row for each look, with its solver
    status.json      how it goes                     solution.json   what each solver came to, in words and numbers
    policies/        <solver>.safetensors each       report.html, figures/

A policy file holds `policy` [T, G, S, A], `mu` [T + 1, G, S] (the crowd at each time and after the last step), `paths`
[P, T + 1] (rows of mu in the order of time; several under common noise, whose pasts are the rows) and, of a game on a
grid, `drift` [T, G, S, D]: the mean move. What they mean is JSON in its header. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, ConfigError, EnvironmentFault, MfmarlError, ResourceFault
from mfmarl.evaluation.results import folder_name
from mfmarl.games import catalogue, finite, reference, sampled
from mfmarl.games.flow import Flow, check_policy, flow, reach, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import Row, Solution, solve
from mfmarl.games.solver import Solver, solver_class
from mfmarl.learning import run_folder
from mfmarl.learning.build import choose_device, versions
from mfmarl.learning.durable import read_limited, write_atomic
from mfmarl.learning.run import Interrupted
from mfmarl.learning.run_config import Choice, Count, Whole
from mfmarl.options import Bounds, from_table, to_table
from mfmarl.registry import NAMESPACES, Entry, lookup

SCHEMA = 1
SOLUTION = "solution.json"
POLICIES = "policies"
_MOST_BYTES = 16 * 2**30
_KNOWN = 30_000  # entries of a policy up to which the game is asked for its known answers: some solve for them
_TERMS = 8e7  # that are summed over for N agents: a second or three
_WAYS = 3e7
_SAMPLES = 3e7  # of a best response that is learned: about as long
_FEWEST = 16  # copies that anything can be learned from
_FULL = 3  # cells of a grid for each state of a game, at most: else its states do not fill a plane
_PATHS = 3  # pasts of the common noise that are followed, the likeliest

Look = Callable[[str, Row], None]


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


# What is solved, and by whom


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


# Solving


@dataclass
class Outcome:
    """What one solver came to."""

    label: str
    state: Literal["running", "done", "interrupted", "diverged", "failed"] = "running"
    stopped: str = ""
    told: str = ""
    exploitability: float = math.nan
    """Of the best policy that was looked at."""
    regularised: float = math.nan
    """The same of entropy-regularised agents, where the solver has a temperature."""
    uniform: float = math.nan
    """Of the policy that it began with: uniform choice, or the one of another run."""
    value: float = math.nan
    iterations: int = 0
    seconds: float = 0.0
    cooperative: bool = False
    temperature: float = 0.0
    file: str = ""
    measures: dict[str, float] = field(default_factory=dict)
    finite: dict[str, Any] = field(default_factory=dict)
    """The gain of one of N agents: see `finite_gain`."""


class _Interrupts:
    """Ctrl-C and a polite kill: at once while a solver works, after the file in hand while one is written."""

    def __init__(self) -> None:
        self.asked = 0
        self.open = False
        self.old: dict[int, Any] = {}

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: Any) -> None:
        again, self.asked = bool(self.asked), number
        if self.open or again:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        self.open = True
        try:
            yield
        finally:
            self.open = False


def solve_in_folder(
    config: SolveConfig,
    path: Path,
    on_row: Look | None = None,
    on_begin: Callable[[str], None] | None = None,
    game: MeanFieldGame | None = None,
) -> list[Outcome]:
    """Run every solver on the game, one after the other, and keep what each finds in the folder `path`.

    `game` is the one that the config describes, where it is made already.

    Ctrl-C ends it with the curve and the best policy until then: their outcome is `interrupted`, the solvers after it
    are not begun, and Interrupted is raised when all is written. A solver that fails is an outcome like another.
    Raises ConfigError and EnvironmentFault before anything is written; MfmarlError where every solver failed.
    """
    path = Path(path)
    game = make_game(config.environment) if game is None else game
    solvers = {label: make_solver(choice) for label, choice in config.solvers.items()}
    torch.set_num_threads(config.solve.threads)
    first = _first(game, config.solve)
    with _blamed(f"The rules of {config.environment.name} raised"):
        path_of_first = flow(game, first, check=True)
    for label, solver in solvers.items():
        with _blamed(f"{label} cannot solve {config.environment.name}:"):
            solver.begin(game, first)  # said before a folder is made
    if run_folder.is_run(path):
        raise ConfigError(f"{path} holds a run already; choose another --name.")
    folder = run_folder.create(path, {**config.to_table(), "versions": versions()})
    started, cpu = time.monotonic(), time.process_time()
    outcomes: list[Outcome] = []
    failures: list[MfmarlError] = []
    with folder, _Interrupts() as interrupts:

        def status(state: str, error: str = "", code: int = 0) -> None:
            wall, used = time.monotonic() - started, time.process_time() - cpu
            steps = sum(o.iterations for o in outcomes)
            folder.write_status(state, error=error, exit_code=code, step=steps, wall=wall, cpu=used)

        _write_about(folder, config, game, path_of_first)
        del path_of_first
        for label, solver in solvers.items():
            if interrupts.asked:
                break
            if on_begin is not None:
                on_begin(label)
            outcome = Outcome(label, cooperative=solver.cooperative, file=f"{folder_name(label)}.safetensors")
            outcomes.append(outcome)
            try:
                _one(game, solver, first, config, folder, outcome, interrupts, on_row)
            except MfmarlError as error:
                outcome.state, outcome.told = "failed", str(error)
                failures.append(error)
            _write_solution(folder, outcomes)
        if interrupts.asked:
            code = 128 + interrupts.asked
            status("interrupted", "asked to stop", code)
            stopped = Interrupted(_interrupted(path, config, outcomes))
            stopped.exit_code = code
            raise stopped
        if len(failures) == len(solvers):
            status("failed", str(failures[0]), failures[0].exit_code)
            raise failures[0]
        status("done")
    return outcomes


def _interrupted(path: Path, config: SolveConfig, outcomes: list[Outcome]) -> str:
    done = outcomes[-1] if outcomes else None
    not_begun = [label for label in config.solvers if label not in {o.label for o in outcomes}]
    rest = f" {', '.join(not_begun)} was not begun." if not_begun else ""
    if done is None or not math.isfinite(done.exploitability):
        return f"Interrupted before the first look; nothing is found yet.{rest}"
    return (
        f"Interrupted at iteration {done.iterations} of {done.label}; its curve and best policy (exploitability "
        f"{done.exploitability:.3g}) are kept.{rest} Go on from there with: mfmarl solve {config.environment.name} "
        f"--from {path}"
    )


def _first(game: MeanFieldGame, options: SolveOptions) -> Tensor:
    dtype, device = getattr(torch, options.dtype), choose_device(options.device)
    if options.start:
        policy = load_policy(Path(options.start)).policy.to(device, dtype)
        try:
            check_policy(game, policy)
        except MfmarlError as error:
            raise ConfigError(f"The policy of {options.start} does not fit this game: {error}") from error
        return policy
    try:
        return uniform(game, (), dtype, device)
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        numbers = (game.horizon or 1) * game.num_groups * game.num_states * game.num_actions
        raise ResourceFault(
            f"There is not enough memory: a policy of this game has {numbers:,} numbers. Use fewer states or a shorter "
            "horizon, or --dtype float32."
        ) from error


def _is_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or ("alloc" in text and "memory" in text)


@contextlib.contextmanager
def _blamed(who: str) -> Iterator[None]:
    """What somebody's code raises is told as theirs."""
    try:
        yield
    except MfmarlError:
        raise
    except Exception as error:
        if _is_memory(error):
            raise ResourceFault(
                "There is not enough memory for this game: use fewer states or a shorter horizon."
            ) from error
        raise EnvironmentFault(f"{who} {type(error).__name__}: {error}") from error


def _one(
    game: MeanFieldGame,
    solver: Solver,
    first: Tensor,
    config: SolveConfig,
    folder: run_folder.RunFolder,
    outcome: Outcome,
    interrupts: _Interrupts,
    on_row: Look | None,
) -> None:
    options = config.solve

    def seen(row: Row) -> None:
        folder.append({"solver": outcome.label, **{k: _cell(v) for k, v in row.items()}})
        if on_row is not None:
            on_row(outcome.label, row)

    found: Solution | None = None
    try:
        with _blamed(f"{outcome.label} on {config.environment.name} failed with"), interrupts.allowed():
            found = solve(
                game,
                solver,
                options.iterations,
                options.tolerance,
                options.every,
                policy=first,
                seconds=options.seconds or math.inf,
                on_row=seen,
            )
    except KeyboardInterrupt:
        interrupts.asked = interrupts.asked or signal.SIGINT
    if found is None or not found.rows:
        outcome.state, outcome.stopped = "interrupted", "interrupted"
        outcome.told = "Interrupted before the first look."
        return
    _note(outcome, found, solver)
    with _blamed(f"The rules of {config.environment.name} raised"), torch.no_grad():
        path = flow(game, found.policy)
        outcome.measures = reference.means(game, path)
        save_policy(folder.path / POLICIES / outcome.file, game, path, outcome, config)
        try:
            outcome.finite = finite_gain(game, found.policy)
        except MfmarlError as error:
            # What was found in the limit stands whatever N agents do.
            outcome.finite = {"agents": game.num_agents, "told": str(error).rstrip(".")}


def _note(outcome: Outcome, found: Solution, solver: Solver) -> None:
    key = "regularised" if "regularised" in found.rows[0] else "exploitability"
    best = min(found.rows, key=lambda row: -row["value"] if solver.cooperative else _or_inf(row[key]))
    outcome.stopped = found.stopped
    outcome.state = found.stopped if found.stopped in ("interrupted", "diverged") else "done"
    outcome.told = found.told
    outcome.exploitability = float(best["exploitability"])
    outcome.regularised = float(best.get("regularised", math.nan))
    outcome.uniform = float(found.rows[0]["exploitability"])
    outcome.value = float(best["value"])
    outcome.iterations = found.iterations
    outcome.seconds = float(found.rows[-1]["seconds"])
    outcome.temperature = float(solver.entropy_bonus)


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _cell(value: Any) -> Any:
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) else value


def finite_gain(game: MeanFieldGame, policy: Tensor) -> dict[str, Any]:
    """What one of N agents gains by leaving the policy: counted exactly for the largest N up to the game's own that can
    be, and where that is not the game's, a lower bound at its own from a best response that is learned.

    `agents` (the game's); `at`, `gain` and `sees` of the exact gain ("crowd": the deviator sees where the others are;
    "itself": only its own state); `learned` and its standard `error`; `told`, why there is neither.
    """
    found: dict[str, Any] = {"agents": game.num_agents, "at": 0, "gain": None, "sees": ""}
    counted = _counted(game, policy)
    if counted is not None:
        found |= dict(zip(("at", "gain", "sees"), counted, strict=True))
    if found["at"] == game.num_agents:
        return found
    copies = min(256, int(_SAMPLES / _sample(game)))
    if game.horizon is None or copies < _FEWEST:
        told = "a game without a horizon is not played to its end" if game.horizon is None else "the game is too large"
        return found | {"learned": None, "told": told}
    bound = sampled.gap(game, policy, copies=copies)
    return found | {"learned": bound.exploitability, "error": bound.standard_error}


def _counted(game: MeanFieldGame, policy: Tensor) -> tuple[int, float, str] | None:
    """(agents, gain, what the deviator sees), where agents can be counted."""
    if game.num_groups > 1 or game.tree is not None:
        return None
    cells = game.num_states * (game.num_actions if game.extended else 1)
    for sees, count in (("crowd", finite.gap), ("itself", finite.uninformed)):
        if sees == "itself" and (game.crowd_moves or game.horizon is None):
            continue
        for agents in _ladder(game.num_agents):
            # Vectors of counts are made from all choices of so many cells: what is too many is not begun.
            if (agents + cells) ** min(cells, 64) > _WAYS or (sees == "crowd" and _cost(game, agents) > _TERMS):
                continue
            try:
                return agents, count(game, policy, agents, _TERMS).exploitability, sees
            except ConfigError:
                continue
    return None


def _sample(game: MeanFieldGame) -> float:
    """What one copy costs that a best response is learned from: crowds as seen from every state, and agents' steps."""
    seen = (game.num_groups * game.num_states) ** 2
    return float((game.horizon or 1) * (seen + game.num_agents))


def _ladder(agents: int) -> list[int]:
    """Numbers of agents from the game's own down to 2."""
    rungs = [m * 10**k for k in range(6, -1, -1) for m in (5, 2, 1)]
    return [agents, *(n for n in rungs if 2 <= n < agents)]


def _cost(game: MeanFieldGame, agents: int) -> float:
    try:
        return finite.cost(game, agents)
    except OverflowError:
        return math.inf


# Files


def _write_about(folder: run_folder.RunFolder, config: SolveConfig, game: MeanFieldGame, path: Flow) -> None:
    """What pictures and tables need to know of the game, so that a page can be made again without its code."""
    size = path.policy.numel()
    known: dict[str, Any] = {}
    if size <= _KNOWN:
        with _blamed(f"The rules of {config.environment.name} raised"):
            known = {
                name: {"value": k.value, "source": k.source, "kind": k.kind} for name, k in game.reference().items()
            }
    about = {
        "schema": SCHEMA,
        "game": config.environment.name,
        "title": (type(game).__doc__ or "").strip().split("\n")[0].rstrip("."),
        "groups": list(game.groups),
        "states": game.num_states,
        "actions": game.num_actions,
        "agents": game.num_agents,
        "horizon": game.horizon or 0,
        "discount": game.discount,
        **_layout(game),
        "known": known,
    }
    folder.write_json("game.json", about)


def _layout(game: MeanFieldGame) -> dict[str, Any]:
    """How the game's states lie, and what states and actions are called where it says so (`state_names`, `action_names`).

    A plane or space is read off the game's coordinates: the cells of a grid, of which walls are missing.
    """
    found: dict[str, Any] = {"grid": [], "cells": [], "state_names": [], "action_names": []}
    place = game.coordinates()
    if place is not None and place.ndim == 2 and 2 <= place.shape[1] <= 3 and len(place) == game.num_states:
        ranks = [torch.unique(torch.round(column, decimals=6), return_inverse=True) for column in place.double().T]
        shape = [len(values) for values, _ in ranks]
        cells = torch.zeros(len(place), dtype=torch.int64)
        for size, (_, rank) in zip(shape, ranks, strict=True):
            cells = cells * size + rank
        if min(shape) > 1 and math.prod(shape) <= _FULL * len(place) and len(cells.unique()) == len(cells):
            whole = torch.equal(cells, torch.arange(len(cells)))
            found |= {"grid": shape, "cells": [] if whole else cells.tolist()}
    for name, count in (("state_names", game.num_states), ("action_names", game.num_actions)):
        names = getattr(game, name, None)
        if names is not None and len(names) == count:
            found[name] = [str(n) for n in names]
    return found


def _write_solution(folder: run_folder.RunFolder, outcomes: list[Outcome]) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value

    table = {o.label: {k: plain(v) for k, v in vars(o).items()} for o in outcomes}
    folder.write_json(SOLUTION, {"schema": SCHEMA, "solvers": table})


@dataclass(frozen=True)
class SavedPolicy:
    """A policy file, read back."""

    policy: Tensor  # [T, G, S, A]
    mu: Tensor  # [T + 1, G, S]
    paths: Tensor  # [P, T + 1] int64, rows of mu
    chances: Tensor  # [P], the probability of each path
    drift: Tensor | None  # [T, G, S, D]
    about: dict[str, Any]


def save_policy(file: Path, game: MeanFieldGame, path: Flow, outcome: Outcome, config: SolveConfig) -> None:
    """Write a policy and its crowd, whole or not at all. Raises ResourceFault."""
    import safetensors.torch

    tensors = _crowd(game, path)
    about = {
        "schema": SCHEMA,
        "environment": {"name": config.environment.name, **config.environment.options},
        "solver": {"name": config.solvers[outcome.label].name, **config.solvers[outcome.label].options},
        "exploitability": outcome.exploitability,
        "iterations": outcome.iterations,
    }
    held = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    content = safetensors.torch.save(held, {"mfmarl": json.dumps(about)})
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, content)


def _crowd(game: MeanFieldGame, path: Flow) -> dict[str, Tensor]:
    mu = path.mu
    times = torch.arange(len(mu)).unsqueeze(0)
    chances = torch.ones(1, dtype=torch.float64)
    if game.tree is not None:
        times, chances = _likeliest(game, path)
    elif game.horizon is not None:
        mu = torch.cat([mu, path.kernels[-1].carry(path.joint[-1]).unsqueeze(0)])
        times = torch.arange(len(mu)).unsqueeze(0)
    found = {"policy": path.policy, "mu": mu, "paths": times, "chances": chances}
    drift = _drift(game, path)
    return found if drift is None else {**found, "drift": drift}


def _likeliest(game: MeanFieldGame, path: Flow) -> tuple[Tensor, Tensor]:
    """The likeliest pasts of the common noise as rows of nodes [P, T], with their probabilities."""
    tree = game.tree
    assert tree is not None
    last = tree.levels[-1]
    chance = reach(game, path)[last]
    order = chance.argsort(descending=True, stable=True)[:_PATHS]
    rows = []
    for leaf in order.tolist():
        node, nodes = leaf, []
        for t in range(len(tree.levels) - 1, -1, -1):
            nodes.append(tree.levels[t].start + node)
            node = int(tree.parent[t][node])
        rows.append(nodes[::-1])
    return torch.tensor(rows), chance[order]


def _drift(game: MeanFieldGame, path: Flow) -> Tensor | None:
    """The mean move of those who stand in each cell of a grid of two or more dimensions, [T, G, S, D].

    By the circular mean of where they go, so that a step across the edge of a torus is a step.
    """
    layout = _layout(game)
    grid = layout["grid"]
    if len(grid) < 2:
        return None
    cells = torch.tensor(layout["cells"] or list(range(game.num_states)), device=path.mu.device)
    place = torch.stack(torch.unravel_index(cells, tuple(grid)), -1).to(path.mu)  # [S, D]
    levels = [slice(t, t + 1) for t in range(len(path.mu))] if game.tree is None else list(game.tree.levels)
    moves = []
    for axis, size in enumerate(grid):
        angle = place[:, axis] * (2 * math.pi / size)
        found = []
        for t, level in enumerate(levels):
            shape = path.mu[level].shape
            ahead = [
                (path.policy[level] * path.kernels[t].expect(f(angle).expand(shape))).sum(-1)
                for f in (torch.cos, torch.sin)
            ]
            turned = ahead[1] * angle.cos() - ahead[0] * angle.sin()
            along = ahead[0] * angle.cos() + ahead[1] * angle.sin()
            found.append(torch.atan2(turned, along) * (size / (2 * math.pi)))
        moves.append(torch.cat(found))
    return torch.stack(moves, -1)


def load_policy(path: Path) -> SavedPolicy:
    """The policy of a solved run (its best where several solvers found one), or of one policy file.

    Raises ConfigError where there is none, CheckpointError for a file that is damaged.
    """
    import safetensors.torch

    path = Path(path)
    if path.is_dir():
        path = path / POLICIES / _best_file(path)
    elif not path.is_file():
        raise ConfigError(f"There is no solved run or policy file {path}.")
    content = read_limited(path, _MOST_BYTES, CheckpointError)
    try:
        tensors = safetensors.torch.load(content)
        size = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["mfmarl"])
    except Exception as error:
        raise CheckpointError(f"{path} is no policy of a solved game, or it is damaged: {error}") from error
    missing = sorted({"policy", "mu", "paths", "chances"} - set(tensors))
    if missing or not isinstance(about, dict):
        raise CheckpointError(f"{path} is no policy of a solved game: it has no {', '.join(missing) or 'description'}.")
    return SavedPolicy(
        tensors["policy"], tensors["mu"], tensors["paths"], tensors["chances"], tensors.get("drift"), about
    )


def _best_file(path: Path) -> str:
    try:
        outcomes = read_outcomes(path)
    except ConfigError as error:
        raise ConfigError(f"{path} holds no solved game ({SOLUTION} is missing or damaged).") from error
    kept = [o for o in outcomes if (path / POLICIES / o.file).is_file()]
    if not kept:
        raise ConfigError(f"{path} holds no policy: no solver came to one.")
    return best_of(kept).file


def best_of(outcomes: list[Outcome]) -> Outcome:
    """The outcome of least exploitability; a planner's only where there is no other."""
    return min(outcomes, key=lambda o: (o.cooperative, _or_inf(o.exploitability)))


def read_outcomes(path: Path) -> list[Outcome]:
    """What each solver of a solved run came to. Raises ConfigError."""
    table = read_table(Path(path) / SOLUTION).get("solvers")
    known = set(Outcome.__dataclass_fields__)
    if not isinstance(table, dict):
        raise ConfigError(f"{path}/{SOLUTION} is damaged: it names no solvers.")
    found = []
    for label, row in table.items():
        if not isinstance(row, dict) or not set(row) <= known:
            raise ConfigError(f"{path}/{SOLUTION} is damaged at {label!r}.")
        floats = ("exploitability", "regularised", "uniform", "value", "seconds", "temperature")
        found.append(Outcome(**{**row, **{k: math.nan for k in floats if row.get(k) is None}, "label": str(label)}))
    return found


def read_table(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigError."""
    try:
        table = json.loads(read_limited(file, 2**26, ConfigError))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is damaged: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{file} is damaged: expected a JSON object.")
    return table


def is_solved(path: Path) -> bool:
    """Whether that folder is one of `solve_in_folder`."""
    return (Path(path) / "game.json").is_file() and run_folder.is_run(Path(path))
