"""A solved game in its folder: solvers run one after the other, and all that they found is kept.

config.toml      all that repeats it             metrics.jsonl   a row for each look, with its solver
status.json      how it goes                     solution.json   what each solver came to, in words and numbers
policies/        <solver>.safetensors each       report.html, figures/
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, EnvironmentFault, MfmarlError, ResourceFault, RunLocked
from mfmarl.evaluation.gain_of_one import finite_gain
from mfmarl.evaluation.results import folder_name
from mfmarl.evaluation.solve_config import SolveConfig, SolveOptions, make_game, make_solver
from mfmarl.evaluation.solved import POLICIES, SCHEMA, SOLUTION, Outcome, layout, load_policy, or_inf, save_policy
from mfmarl.games import reference
from mfmarl.games.flow import Flow, check_policy, flow, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import Row, Solution, solve
from mfmarl.games.solver import Solver
from mfmarl.learning import run_folder
from mfmarl.learning.build import choose_device, versions
from mfmarl.learning.run import Interrupted

_KNOWN = 30_000  # entries of a policy up to which the game is asked for its known answers: some solve for them

Look = Callable[[str, Row], None]


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
        if run_folder.is_running(path):
            who = run_folder.holder(path)
            raise RunLocked(f"{path} is being written by {who}. Wait for it, end it, or use another --name.")
        raise ConfigError(f"{path} holds a run already; choose another --name.", "run-exists")
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
    best = min(found.rows, key=lambda row: -row["value"] if solver.cooperative else or_inf(row[key]))
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


def _cell(value: Any) -> Any:
    return float(value) if isinstance(value, float | int) and not isinstance(value, bool) else value


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
        **layout(game),
        "known": known,
    }
    folder.write_json("game.json", about)


def _write_solution(folder: run_folder.RunFolder, outcomes: list[Outcome]) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value

    table = {o.label: {k: plain(v) for k, v in vars(o).items()} for o in outcomes}
    folder.write_json(SOLUTION, {"schema": SCHEMA, "solvers": table})
