"""`mfmarl check-env`: look for everything that is wrong with an environment."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

from mfmarl.cli.choices import add_import_option
from mfmarl.errors import ConfigError, EnvironmentFault, printable

if TYPE_CHECKING:
    from mfmarl.testing.finding import Findings

EXAMPLES = """  mfmarl check-env ising --num-agents 36
  mfmarl check-env my_env.py:MyEnv
  mfmarl check-env my_env.py:MyEnv --size 5 --strict   # warnings are errors, for CI
  mfmarl check-env mpe2/simple_spread_v3 --json
  mfmarl check-env --list-codes                        # all that can be found"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("environment", nargs="?", help="a name from `mfmarl list`, or path/to/file.py:Class")
    parser.add_argument("--episodes", type=int, default=2, help="how many are played (default: 2)")
    parser.add_argument(
        "--max-steps",
        type=int,
        metavar="STEPS",
        help="of each episode (default: 500, and as many as a few seconds allow; with a number what is reported does not "
        "depend on the machine)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (default: 0)")
    parser.add_argument(
        "--patience", type=float, default=30.0, metavar="SECONDS", help="that one call may take (default: 30)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do without a second interpreter, which finds what depends on hashes (a second or two)",
    )
    parser.add_argument("--strict", action="store_true", help="warnings are errors")
    parser.add_argument("--list-codes", action="store_true", help="show every code that can be found, and stop")
    add_import_option(parser)


def run(known: argparse.Namespace, rest: list[str]) -> int:
    if known.list_codes:
        return _codes(known)
    if not known.environment:
        raise ConfigError(
            "Which environment? Write for example `mfmarl check-env my_env.py:MyEnv`; `mfmarl list` shows names."
        )
    from mfmarl.testing.check import check_named

    found = check_named(
        known.environment,
        lambda: _options(known, rest),
        episodes=known.episodes,
        max_steps=known.max_steps,
        seed=known.seed,
        patience=known.patience,
        elsewhere=not known.quick,
    )
    failed = bool(found.errors or (known.strict and found.warnings))
    if known.json:
        print(json.dumps({**found.to_table(), "warnings": len(found.warnings), "passed": not failed}))
    else:
        _show(found)
    return EnvironmentFault.exit_code if failed else 0


def _options(known: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """The environment's own options. Raises ConfigError for one that it does not have."""
    from mfmarl.cli.choices import environment_options, import_all, literal, pairs_of, parsed
    from mfmarl.errors import nearest
    from mfmarl.registry import lookup

    import_all(known.imports)
    pairs = pairs_of(rest)
    if not pairs:
        return {}
    cls, own = environment_options(lookup("environment", known.environment))
    options: dict[str, Any] = {}
    for name, text in pairs:
        option = name.removeprefix("env.")
        if option not in own:
            hint = nearest(option, own).replace("_", "-")
            flag = option.replace("_", "-")
            raise ConfigError(
                f"{known.environment} has no option --{flag}.{hint} `mfmarl list {known.environment}` shows them.",
                "unknown-option",
            )
        where = f"environment {known.environment}"
        options[option] = parsed(cls, option, text, where) if cls is not None else literal(text)
    return options


def _show(found: Findings) -> None:
    """Each finding in three lines: its code, what was found and where, what mends it; then the sum."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    width = min(shutil.get_terminal_size().columns, 110)
    for one in found:
        style = "bold red" if one.level == "error" else "bold yellow"
        console.print(Text(one.level.ljust(9), style=style) + Text(one.code, style="bold"))
        for text in (one.message, one.remedy):
            for line in textwrap.wrap(printable(text), max(width - 9, 20)):
                console.print(Text(" " * 9 + line))
        console.print()
    console.print(Text(printable(summary(found))))


def summary(found: Findings) -> str:
    """`2 errors, 1 warning in 140 steps of 3 agents (2 episodes): my_env.py:MyEnv`."""
    return (
        f"{_count(len(found.errors), 'error')}, {_count(len(found.warnings), 'warning')} in "
        f"{_count(found.steps, 'step')} of {_count(found.agents, 'agent')} ({_count(found.episodes, 'episode')}): "
        f"{found.name}"
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _codes(known: argparse.Namespace) -> int:
    from mfmarl.testing.contract import every_code

    table = every_code()
    if known.json:
        print(json.dumps(table))
        return 0
    width = max(len(code) for code in table)
    for code, rule in table.items():
        print(f"{code:<{width}}  {rule['level']:<7}  {rule['broken'] or rule['remedy']}")
    return 0
