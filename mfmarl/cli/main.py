"""`mfmarl`: find the command, import it alone, print a user's mistake as one sentence."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from mfmarl import __version__
from mfmarl.errors import ConfigError, MfmarlError, RankLost, nearest

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

DESCRIPTION = """Large populations of learning agents, from 2 to a million, held against theory.

examples:
  mfmarl compare ising --agents mfq,iql --num-agents 400 --seeds 5
  mfmarl train congestion --agent mfq --temperature 0.2
  mfmarl solve beach_bar --solver omd,fp
  mfmarl list ising"""


class Parser(argparse.ArgumentParser):
    """argparse with this package's one-sentence errors."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options; for completion and help. Imports nothing heavy."""
    return _parsers()[0]


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """The console command. Returns the exit code: 0, or that of the error (see mfmarl.errors)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        parser, commands = _parsers()
        if not given:
            parser.print_help()
            return 0
        if not given[0].startswith("-") and given[0] not in COMMANDS:
            raise ConfigError(f"Unknown command {given[0]!r}.{nearest(given[0], COMMANDS)}")
        known, rest = parser.parse_known_args(_joined(given, commands.get(given[0])))
        if known.command is None:
            raise ConfigError(f"Unknown option {given[0]!r}. See `mfmarl --help`.")
        code: int = known.carry_out(known, rest)
        sys.stdout.flush()
        return code
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
    _say(f"mfmarl: {message} [{code}]", sys.stderr)
    return exit_code


def _say(line: str, stream: TextIO) -> None:
    """Print, where anybody listens: the exit code is to be the error's also when the terminal was closed."""
    try:
        print(line, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
