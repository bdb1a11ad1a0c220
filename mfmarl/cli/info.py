"""`mfmarl info`: versions, plugins, and what can be repeated bit by bit here."""

from __future__ import annotations

import argparse

from mfmarl.errors import ConfigError

EXAMPLES = """  mfmarl info
  mfmarl info --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = parser.description


def run(known: argparse.Namespace, rest: list[str]) -> int:
    raise ConfigError("There is nothing to tell yet.")
