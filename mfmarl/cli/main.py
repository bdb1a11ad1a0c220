"""`mfmarl`: find the command, import it alone, print a user's mistake as one sentence."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from mfmarl import __version__
from mfmarl.cli.signals import ended_in_a_line
from mfmarl.errors import ConfigError, MfmarlError, RankLost, nearest, printable
from mfmarl.options import Bounds, Problem, show, told

COMMANDS = {
    "train": "train agents on an environment, in a run folder",
    "compare": "compare agents: environments x agents x seeds, with statistics and a report",
    "scale": "measure cost, memory and learning against the number of agents, and foretell M machines",
    "solve": "solve a mean-field game: its equilibrium, exploitability, pictures and a report",
    "tournament": "let trained teams play each other: win matrix and Elo",
    "render": "draw a trained population: PNG and GIF",
    "report": "build the report of a run or comparison again",
    "list": "show environments, agents, solvers, and their options",
    "check-env": "look for everything that is wrong with an environment",
    "selftest": "put what is promised of reliability to the test on this machine",
    "info": "show versions, plugins and what can be repeated bit by bit here",
}

_MODULES = {"list": "listing", "check-env": "check_env"}

_OTHERS_OPTIONS = ("train", "compare", "scale", "solve", "check-env")
"""Commands that give what they do not know to the environment and the agents; the others refuse it here."""

_COUNT = Bounds(1, 1 << 40)
_SECONDS = Bounds(0, 1e9)
LIMITS = {
    "jobs": Bounds(0, 1 << 16),
    "burn_in": Bounds(0, 1, open_high=True),
    "cpus_per_run": Bounds(0, 1e6),
    "gpus_per_run": Bounds(0, 1e6),
    "max_restarts": Bounds(0, 1 << 20),
    "engine_silence": _SECONDS,
    "engine_run_timeout": _SECONDS,
    "frames": Bounds(1, 1 << 20),
    "every": _COUNT,
    "fps": Bounds(0, 1000, open_low=True),
    "seed": Bounds(0, 2**63 - 1),
    "repeats": Bounds(1, 1 << 20),
    "timed_steps": Bounds(0, 1 << 40),
    "steps": _COUNT,
    "threads": Bounds(1, 1024),
    "share": Bounds(0, 100, open_low=True),
    "games": Bounds(1, 1 << 30),
    "horizon": _COUNT,
    "copies": _COUNT,
    "diagnose_steps": Bounds(64, 1 << 40),
    "episodes": Bounds(1, 1 << 20),
    "max_steps": Bounds(0, 1 << 40),
    "patience": _SECONDS,
}
"""What a command's own numbers may be; those of a run, an environment and an agent are with their fields."""

DESCRIPTION = """Large populations of learning agents, from 2 to a million, held against theory.

examples:
  mfmarl compare ising --agents mfq,iql --num-agents 400 --seeds 5
  mfmarl train congestion --agent mfq --temperature 0.2
  mfmarl solve beach_bar --solver omd,fp
  mfmarl list ising"""


class Parser(argparse.ArgumentParser):
    """argparse with this package's one-sentence errors."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.", _code_of(message))


def _code_of(message: str) -> str:
    """The kind of a complaint of argparse's."""
    kinds = (
        ("invalid choice", "unknown-name"),
        ("required", "missing-option"),
        ("unrecognized", "unknown-option"),
        ("invalid", "wrong-type"),
        ("expected", "missing-option"),
    )
    return next((code for word, code in kinds if word in message), "usage")


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options; for completion and help. Imports nothing heavy."""
    return parsers()[0]


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of all, and that of each command."""
    parser = Parser(prog="mfmarl", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"mfmarl {__version__}")
    import shtab

    shtab.add_argument_to(
        parser, "--print-completion", help="print the completion script of a shell: bash, zsh or tcsh"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    for name, text in COMMANDS.items():
        module = importlib.import_module(f"mfmarl.cli.{_MODULES.get(name, name)}")
        # The environment's and agents' own options are unknown until they are named: `run` reads them.
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.\n\nexamples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object on standard output, and nothing else there"
        )
        module.configure(sub)
        sub.set_defaults(carry_out=module.run)
    return parser, dict(commands.choices)


def _joined(given: list[str], command: argparse.ArgumentParser | None) -> list[str]:
    """`--num-agents 400` as `--num-agents=400` where the command does not know the option: it is the environment's or an
    agent's, and 400 is not the environment's name.
    """
    if command is None:
        return given
    own = {name for action in command._actions for name in action.option_strings}
    words: list[str] = []
    waiting = False
    for word in given:
        if waiting and not word.startswith("--"):
            words[-1] += f"={word}"
            waiting = False
            continue
        words.append(word)
        waiting = word.startswith("--") and "=" not in word and word not in own and not word.startswith("--no-")
    return words


def _flags(command: argparse.ArgumentParser) -> list[str]:
    """The options of a command: `--name`."""
    return [name for action in command._actions for name in action.option_strings if name.startswith("--")]


def _check(known: argparse.Namespace, rest: Sequence[str], command: argparse.ArgumentParser) -> None:
    """Raises ConfigError for every number out of its bounds, and every option that the command alone should know."""
    problems = []
    for name, bounds in LIMITS.items():
        value = getattr(known, name, None)
        if isinstance(value, int | float) and not bounds.allow(value):
            flag = next(a.option_strings[0] for a in command._actions if a.dest == name)
            text = f"{flag} must be {bounds}, not {show(value)}."
            problems.append(Problem(text, "bounds", name))
    if known.command not in _OTHERS_OPTIONS:
        for word in rest:
            hint = _meant(word, _flags(command))
            kind = "option" if word.startswith("-") else "word"
            text = f"Unknown {kind} {show(word.partition('=')[0])}.{hint} See `mfmarl {known.command} --help`."
            problems.append(Problem(text, "unknown-option", ""))
    if problems:
        raise told(problems)


def _meant(word: str, flags: Sequence[str]) -> str:
    hint = nearest(word.partition("=")[0][:60], flags)
    return hint if hint.startswith(" Did") else ""


def _hinted(error: ConfigError, flags: Sequence[str]) -> str:
    """What was said of an option that nobody has, and the command's own that may have been meant."""

    def said(line: str) -> str:
        found = re.match(r"Unknown option (--[^\s.]+)\.(?! Did you mean)", line)
        return line[: found.end()] + _meant(found[1], flags) + line[found.end() :] if found else line

    return "\n".join(said(line) for line in str(error).splitlines())


def understood(
    given: list[str], parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]
) -> tuple[argparse.Namespace, list[str]]:
    """What a command line says, and the options in it that are the environment's or the agents'. Raises ConfigError."""
    if not given[0].startswith("-") and given[0] not in COMMANDS:
        hint = nearest(given[0][:60], COMMANDS)
        raise ConfigError(f"Unknown command {show(given[0])}.{hint}", "unknown-name")
    known, rest = parser.parse_known_args(_joined(given, commands.get(given[0])))
    if known.command is None:
        raise ConfigError(f"Unknown option {show(given[0])}. See `mfmarl --help`.", "unknown-option")
    _check(known, rest, commands[known.command])
    return known, rest


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command. Returns the exit code: 0, or that of the error (see mfmarl.errors)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    commands: dict[str, argparse.ArgumentParser] = {}
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows ASCII alone shows the rest as escapes, and nothing ends in a UnicodeEncodeError.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        parser, commands = parsers()
        if not given:
            parser.print_help()
            return 0
        known, rest = understood(given, parser, commands)
        with ended_in_a_line():
            code: int = known.carry_out(known, rest)
            sys.stdout.flush()
        return code
    except ConfigError as error:
        command = commands.get(given[0]) if commands and given else None
        message = _hinted(error, _flags(command)) if command is not None else str(error)
        return _tell(message, error.exit_code, error.code, as_json)
    except MfmarlError as error:
        return _tell(str(error), error.exit_code, error.code, as_json)
    except KeyboardInterrupt:
        return _tell("Interrupted.", 130, "interrupted", as_json)
    except BrokenPipeError:
        # `mfmarl list | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# What all ranks of a divided run have to say alike: a mistake in the command, a signal to all, that another was lost.
_SAID_BY_THE_FIRST = (ConfigError.exit_code, RankLost.exit_code, 129, 130, 143)


def _tell(message: str, exit_code: int, code: str, as_json: bool) -> int:
    if os.environ.get("RANK", "0") != "0" and exit_code in _SAID_BY_THE_FIRST:
        return exit_code
    if as_json:
        _say(json.dumps({"error": message, "exit_code": exit_code, "code": code}), sys.stdout)
    _say(f"mfmarl: {printable(message)} [{code}]", sys.stderr)
    return exit_code


def _say(line: str, stream: TextIO) -> None:
    """Print, where anybody listens: the exit code is to be the error's also when the terminal was closed."""
    try:
        print(line, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
