"""`mfmarl check-env`: look for everything that is wrong with an environment."""

from __future__ import annotations

import argparse

from mfmarl.errors import ConfigError

EXAMPLES = """  mfmarl check-env ising
  mfmarl check-env my_env.py:MyEnv
  mfmarl check-env mpe2/simple_spread_v3"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("environment", help="a name from `mfmarl list`, or path/to/file.py:Class")


def run(known: argparse.Namespace, rest: list[str]) -> int:
    raise ConfigError(f"{known.environment} cannot be checked yet.")
