"""Which games and solvers there are, read from source: naming them imports nothing (torch alone takes seconds)."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mfmarl.registry import entries

_BASE = "MeanFieldGame"


def games() -> dict[str, str]:
    """Every mean-field game of this package: its name and first line."""
    bases = _bases_of_environments()
    found = {}
    for name, entry in entries("environment").items():
        kind = entry.where.rpartition(":")[2]
        if entry.where.startswith("mfmarl.envs.") and _derives(kind, bases):
            found[name] = entry.summary
    return found


class Named(NamedTuple):
    """A solver as its source has it."""

    module: str
    kind: str  # the class's name
    summary: str  # its first line


def solvers() -> dict[str, str]:
    """Every solver of this package: its name and first line."""
    return {name: found.summary for name, found in solver_sources().items()}


@cache
def solver_sources() -> dict[str, Named]:
    """Where every solver is, by its name."""
    found = {}
    for path in sorted((Path(__file__).parent / "solvers").glob("*.py")):
        for node in _classes(path):
            name = _said_name(node)
            if name:
                first = (ast.get_docstring(node) or "").split("\n")[0].rstrip(".")
                found[name] = Named(f"mfmarl.games.solvers.{path.stem}", node.name, first)
    return dict(sorted(found.items()))


def _said_name(node: ast.ClassDef) -> str:
    """The literal that a class gives its `name`."""
    for line in node.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        value = getattr(line, "value", None)
        if (
            any(isinstance(t, ast.Name) and t.id == "name" for t in targets)
            and isinstance(value, ast.Constant)
            and isinstance(value.value, str)
        ):
            return value.value
    return ""


def _classes(path: Path) -> list[ast.ClassDef]:
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError, OSError):
        return []  # a file that cannot be read does not take the names of the others with it
    return [node for node in body if isinstance(node, ast.ClassDef)]


@cache
def _bases_of_environments() -> dict[str, set[str]]:
    """The names of the bases of every class in `envs`."""
    spec = importlib.util.find_spec("mfmarl.envs")
    found: dict[str, set[str]] = {}
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for path in sorted(Path(folder).glob("*.py")):
            for node in _classes(path):
                found[node.name] = {getattr(b, "id", getattr(b, "attr", "")) for b in node.bases}
    return found


def _derives(kind: str, bases: dict[str, set[str]], depth: int = 8) -> bool:
    above = bases.get(kind, set())
    return _BASE in above or (depth > 0 and any(_derives(b, bases, depth - 1) for b in above))
