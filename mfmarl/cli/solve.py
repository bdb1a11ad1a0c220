"""`mfmarl solve`: the equilibrium of a mean-field game by one solver or several, with its exploitability and a report."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfmarl.cli.choices import add_import_option, import_all, pairs_of, parsed, short, split, variant
from mfmarl.errors import ConfigError, RunsFailed, nearest, printable
from mfmarl.options import Option, options_of, parse_value

EXAMPLES = """  mfmarl solve beach_bar
  mfmarl solve beach_bar --solver omd,fp --places 20 --bar 10 --horizon 15
  mfmarl solve beach_bar --solver omd:rate=0.5,omd:rate=0.05 --iterations 5000
  mfmarl solve beach_bar --solver omd,fp --omd.rate 0.3 --seconds 10
  mfmarl solve beach_bar --solver fp --from runs/mine
  mfmarl solve my_game.py:MyGame --num-agents 200
  mfmarl list games          # what can be solved
  mfmarl list omd            # a solver's own options"""

OPTIONS = ("iterations", "tolerance", "every", "seconds", "dtype", "device", "threads")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("game", nargs="?", help="a name from `mfmarl list games`, or path/to/file.py:Class")
    parser.add_argument(
        "--solver",
        "--solvers",
        dest="solver",
        help="solvers to run, separated by commas; variants as omd:rate=0.05 (default: omd)",
    )
    parser.add_argument("--iterations", metavar="INT", help="iterations of each solver, at most (default: 1000)")
    parser.add_argument(
        "--tolerance", metavar="FLOAT", help="exploitability at which a solver is done (default: 1e-08)"
    )
    parser.add_argument(
        "--every", metavar="INT", help="iterations between looks; 0: 1, 2, 3 and then ever more rarely (default: 0)"
    )
    parser.add_argument("--seconds", metavar="FLOAT", help="seconds for each solver; 0: no limit (default: 0)")
    parser.add_argument("--dtype", choices=("float64", "float32"), help="precision (default: float64)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, or auto (default: cpu)")
    parser.add_argument("--threads", metavar="INT", help="threads of torch (default: 1)")
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="RUN",
        help="begin with the policy of a solved run, not uniform choice",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a config.toml; options given beside it win")
    parser.add_argument("--name", help="the run is kept in RUNS/NAME (default: game-solver-time)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    add_import_option(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(known: argparse.Namespace, rest: list[str]) -> int:
    import_all(known.imports)
    from mfmarl.cli.progress import Progress
    from mfmarl.evaluation.equilibrium import solve_in_folder
    from mfmarl.evaluation.equilibrium_report import gain
    from mfmarl.evaluation.results import folder_name
    from mfmarl.learning.run import Interrupted
    from mfmarl.learning.run_folder import inside

    config = _config(known, rest)
    default = f"{folder_name(short(config.environment.name))}-{folder_name('-'.join(config.solvers))[:80]}"
    path = inside(known.runs, known.name or f"{default}-{time.strftime('%Y%m%d-%H%M%S')}")
    total = config.solve.iterations
    interrupted: Interrupted | None = None
    with Progress(known.quiet) as progress:

        def on_row(label: str, row: dict[str, Any]) -> None:
            note = f"exploitability {gain(float(row.get('regularised', row['exploitability'])))}"
            progress.update(label, int(row["iteration"]), note)

        try:
            solve_in_folder(config, path, on_row, lambda label: progress.add(label, total))
        except Interrupted as error:
            interrupted = error
    return _conclude(known, path, interrupted)


def _config(known: argparse.Namespace, rest: list[str]) -> Any:
    from mfmarl.evaluation.solve_config import SolveConfig, SolveOptions, solve_config
    from mfmarl.learning.config_file import read_text
    from mfmarl.learning.run_config import Choice
    from mfmarl.options import from_table, to_table

    stored = None
    if known.config is not None:
        table, text = read_text(known.config)
        stored = solve_config(table, str(known.config), text)
    if not known.game and stored is None:
        raise ConfigError("Which game? Write for example `mfmarl solve beach_bar`; `mfmarl list games` shows them.")
    for option in ("solver", "name"):
        if getattr(known, option) == "":
            raise ConfigError(f"--{option} is empty; give it a value, or leave it out.")
    game = Choice(known.game) if known.game else stored.environment  # type: ignore[union-attr]
    solvers = parse_solvers(known.solver or "omd") if known.solver or stored is None else stored.solvers
    game, solvers = assign(pairs_of(rest), game, solvers)
    table = {} if stored is None else to_table(stored.solve)
    for option in OPTIONS:
        text = getattr(known, option)
        if text is not None:
            table[option] = parse_value(SolveOptions, option, text)
    if known.start is not None:
        table["start"] = str(known.start)
    return SolveConfig(game, solvers, from_table(SolveOptions, table))


def parse_solvers(text: str) -> dict[str, Any]:
    """`omd,fp` -> {"omd": omd, "fp": fp}; `omd:rate=0.05` is a variant with options of its own. Raises ConfigError."""
    from mfmarl.learning.run_config import Choice

    found: dict[str, Any] = {}
    for label in split(text):
        name, texts = variant(label, label)
        cls, known = solver_options(name)
        for key in texts:
            if key not in known:
                raise ConfigError(f"The solver {name!r} has no option {key!r}.{nearest(key, known)}")
        options = {key: parsed(cls, key, value, f"solver {name}") for key, value in texts.items()}
        if label in found:
            raise ConfigError(f"The solver {label!r} is named twice.")
        found[label] = Choice(name, options)
    if not found:
        raise ConfigError("No solver is named; write for example --solver omd,fp.")
    return found


def solver_options(name: str) -> tuple[type, dict[str, Option]]:
    """The class of a solver and its options by name. Raises ConfigError with the nearest solver."""
    from mfmarl.games.catalogue import solvers
    from mfmarl.games.solver import solver_class

    if name not in solvers():
        raise ConfigError(f"Unknown solver {name!r}.{nearest(name, solvers())} `mfmarl list solvers` shows them all.")
    cls = solver_class(name)
    return cls, {o.name: o for o in options_of(cls)}


def assign(pairs: Sequence[tuple[str, str]], game: Any, solvers: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give every option to the game or to the solvers that have it. Raises ConfigError for one that is nobody's.

    `--rate` is for every solver that has one (a variant's own option stands), `--omd.rate` for omd alone, `--env.seed`
    and `--solver.seed` where game and solver share a name.
    """
    from mfmarl.evaluation.solve_config import game_class
    from mfmarl.learning.run_config import Choice

    cls = game_class(game.name)
    of_game = {o.name: o for o in options_of(cls) if o.settable}
    of_solvers = {label: solver_options(choice.name) for label, choice in solvers.items()}
    mine = dict(game.options)
    theirs = {label: dict(choice.options) for label, choice in solvers.items()}
    for name, text in pairs:
        scope, dot, option = name.partition(".")
        if not dot or (scope in of_game or scope not in {"env", "environment", "game", "solver", *_names(solvers)}):
            scope, option = "", name
        takers = [
            label
            for label, (_, known) in of_solvers.items()
            if option in known and scope in ("", "solver", label, solvers[label].name)
        ]
        wanted = option in of_game and scope in ("", "env", "environment", "game")
        flag = option.replace("_", "-")
        if wanted and takers and not scope:
            raise ConfigError(
                f"--{flag} could be the game's ({game.name}) or the solver's ({solvers[takers[0]].name}): "
                f"write --env.{flag} or --solver.{flag}."
            )
        if wanted:
            mine[option] = parsed(cls, option, text, f"environment {game.name}")
        for label in takers:
            if scope in ("", "solver") and option in solvers[label].options:
                continue  # a variant's own option stands
            theirs[label][option] = parsed(of_solvers[label][0], option, text, f"solver {solvers[label].name}")
        if not wanted and not takers:
            raise _nobodys(name, scope, option, of_game, of_solvers, solvers)
    return Choice(game.name, mine), {label: Choice(c.name, theirs[label]) for label, c in solvers.items()}


def _names(solvers: Mapping[str, Any]) -> set[str]:
    return {*solvers, *(c.name for c in solvers.values())}


def _nobodys(
    name: str,
    scope: str,
    option: str,
    of_game: Mapping[str, Any],
    of_solvers: Mapping[str, tuple[type, Mapping[str, Any]]],
    solvers: Mapping[str, Any],
) -> ConfigError:
    outer, dot, inner = name.rpartition(".")
    scopes = {"env", "solver", *_names(solvers)}
    if dot and outer not in scopes:
        return ConfigError(f"Nobody is called {outer!r} in --{name}.{nearest(outer, scopes)}")
    known = {*of_game, *(o for _, options in of_solvers.values() for o in options), *OPTIONS, "name", "runs"}
    if scope in _names(solvers):
        asked = [known for label, (_, known) in of_solvers.items() if scope in (label, solvers[label].name)]
        return ConfigError(f"The solver {scope!r} has no option {option!r}.{nearest(option, asked[0])}")
    hint = nearest(inner or option, known)
    hint = hint.replace("_", "-") if "Did you mean" in hint else ""
    return ConfigError(
        f"Unknown option --{name.replace('_', '-')}.{hint} `mfmarl list NAME` shows the options of a game or solver."
    )


def _conclude(known: argparse.Namespace, path: Path, interrupted: Any) -> int:
    from mfmarl.evaluation.equilibrium_report import finite_sentence, read_solved, report_solved, summary_of

    page = report_solved(path)
    found = read_solved(path)
    code = 0 if interrupted is None else interrupted.exit_code
    failed = [o for o in found.outcomes if o.state in ("failed", "diverged")]
    if known.json:
        error = {}
        if interrupted is not None:
            error = {"error": str(interrupted), "exit_code": code, "code": interrupted.code}
        elif failed:
            told = f"{failed[0].label}: {failed[0].told}"
            error = {"error": told, "exit_code": RunsFailed.exit_code, "code": RunsFailed.code}
        print(json.dumps({**summary_of(found), "run": str(path), "report": str(page), **error}))
    else:
        _print(found)
        if found.outcomes and math.isfinite(found.best.exploitability):
            print(finite_sentence(found.best))
        print(f"   run: {path}\nreport: {page}")
    for outcome in failed:
        print(f"mfmarl: {printable(f'{outcome.label}: {outcome.told}')} [{RunsFailed.code}]", file=sys.stderr)
    if interrupted is not None:
        print(f"mfmarl: {printable(str(interrupted))} [{interrupted.code}]", file=sys.stderr)
        return int(code)
    return RunsFailed.exit_code if failed else 0


def _print(found: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mfmarl.evaluation.equilibrium_report import _share, ending, gain
    from mfmarl.evaluation.summary import duration, number

    table = Table("solver", box=None, pad_edge=False)
    for heading in ("exploitability", "of the start's", "value", "iterations", "time"):
        table.add_column(heading, justify="right")
    table.add_column("ended")
    for o in found.outcomes:
        share = _share(o.exploitability / o.uniform) if o.uniform > 1e-12 and math.isfinite(o.exploitability) else "–"
        cells = (o.label, gain(o.exploitability), share, number(o.value), f"{o.iterations:,}", duration(o.seconds))
        table.add_row(*(escape(printable(c)) for c in (*cells, ending(o))))
    console = Console()
    Console(width=None if console.is_terminal else 140).print(table)
