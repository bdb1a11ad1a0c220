"""A run's configuration from a file, with everything that is wrong with it told at once, each with its line.

What the parts mean is for the registry and the option classes to say; here the tables are put together, and for each
problem its line is looked for in the text. TOML can write one key in many ways: where the line is not plain, none is told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mfmarl.errors import ConfigError, MfmarlError, nearest
from mfmarl.learning.config import MAX_BYTES, parse_toml
from mfmarl.learning.durable import read_limited
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.options import Problem, read_table, show, told
from mfmarl.registry import NAMESPACES, demand_typed, lookup

T = TypeVar("T")

TABLES = ("run", "environment", "agents", "versions", "command")


def read_text(path: Path) -> tuple[dict[str, Any], str]:
    """The table in a file, and its text. Raises ConfigError."""
    content = read_limited(path, MAX_BYTES, partial(ConfigError, code="no-file"))
    return parse_toml(content, str(path)), content.decode("utf-8-sig")


def run_config(table: Mapping[str, Any], where: str, text: str = "", whole: bool = True) -> RunConfig:
    """The run that a file's table describes; `text` is the file's, for the numbers of its lines.

    Not `whole`: the options of the environment and the agents are left for whoever adds to them. A Python file is only
    played where the user has named it too. Raises ConfigError that tells every problem in a line of its own.
    """
    problems: list[Problem] = []
    for name in table:
        if name not in TABLES:
            hint = nearest(name[:60], TABLES[:3])
            hint = hint if hint.startswith(" Did") else ""
            problems.append(Problem(f"unknown table [{name[:60]}], expected [run], [environment] and [agents.<group>].{hint}", "unknown-option", name))  # fmt: skip
    run = _read(RunOptions, table.get("run", {}), "run", problems)
    environment = _choice(table.get("environment"), "environment", 'name = "ising"', problems)
    agents = table.get("agents")
    if not isinstance(agents, Mapping) or not agents:
        missing = '[agents.all] is missing; write for example [agents.all] with name = "mfq".'
        problems.append(Problem(missing, "missing-option", "agents"))
        agents = {}
    team = {group: _choice(part, f"agents.{group}", 'name = "mfq"', problems) for group, part in agents.items()}
    if environment is not None:
        _check_options("environment", environment, "environment", problems, whole)
    for group, choice in team.items():
        if choice is not None:
            _check_options("agent", choice, f"agents.{group}", problems, whole)
    if problems or run is None or environment is None:
        raise told(placed(problems, where, text))
    return RunConfig(environment, {group: choice for group, choice in team.items() if choice is not None}, run)


def _read(cls: type[T], table: Any, name: str, problems: list[Problem]) -> T | None:
    value, found = read_table(cls, table, f"[{name}]")
    problems += [problem._replace(key=f"{name}.{problem.key}".rstrip(".")) for problem in found]
    return value


def _choice(part: Any, name: str, example: str, problems: list[Problem]) -> Choice | None:
    if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
        said = f", not {show(part['name'])}" if isinstance(part, Mapping) and "name" in part else ""
        problems.append(Problem(f"[{name}]: it needs a name, for example {example}{said}.", "missing-option", name))
        return None
    return Choice(part["name"], {key: value for key, value in part.items() if key != "name"})


def _check_options(kind: Any, choice: Choice, name: str, problems: list[Problem], whole: bool) -> None:
    """What the options class of an environment or agent says of a table; a third party's is asked when it is made."""
    try:
        demand_typed(choice.name, "This configuration")
        entry = lookup(kind, choice.name)
        if entry.target is None and kind == "environment" and entry.name.partition("/")[0] in NAMESPACES:
            return
        target = entry.load()
    except MfmarlError as error:
        problems.append(Problem(f"[{name}]: {error}", error.code, f"{name}.name"))
        return
    cls = getattr(target, "Config", None) if kind == "agent" else target
    if whole and isinstance(cls, type) and hasattr(cls, "__dataclass_fields__"):
        _read(cls, {**dict(entry.overrides), **choice.options}, name, problems)


def placed(problems: list[Problem], where: str, text: str) -> list[Problem]:
    """The problems in the order of their lines, each beginning with the file and its line where that is plain."""
    lines = [line_of(text, problem.key) for problem in problems]
    return [
        problem._replace(text=f"{where}{f', line {line}' if line else ''}: {problem.text}")
        for line, problem in sorted(zip(lines, problems, strict=True), key=lambda pair: pair[0])
    ]


_HEADER = re.compile(r"^\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"\\]*"|'[^']*'))*)\s*="""
)


def line_of(text: str, key: str) -> int:
    """The line of a key (`agents.all.bins`, `run`) in TOML text, else that of the table it is in; 0: it is not plain.

    A scan, not a parser: a text with strings of several lines, where a line may look like a key and be none, has no lines.
    """
    if '"""' in text or "'''" in text:
        return 0
    places: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        header, pair = _HEADER.match(line), _KEY.match(line)
        if header:
            table = _plain(header[1])
            parts = table.split(".")
            for depth in range(len(parts), 0, -1):
                places.setdefault(".".join(parts[:depth]), number)
        elif pair:
            places.setdefault(f"{table}.{_plain(pair[1])}".strip("."), number)
    path = re.sub(r"\[\d+\]$", "", key)
    while path and path not in places:
        path = path.rpartition(".")[0]
    return places.get(path, 0)


def _plain(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))
