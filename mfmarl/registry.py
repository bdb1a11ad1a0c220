"""Names of environments and agents: those of this package, of installed plugins, and of a user's script.

`@register("name")` is all that a new environment or agent needs. The package's own are found by reading
their source for that decorator, so that listing names imports nothing (torch alone takes seconds).
Plugins come from the entry-point groups `mfmarl.envs` and `mfmarl.agents` and are imported when chosen.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from mfmarl.errors import ConfigError, EnvironmentFault, nearest

T = TypeVar("T")
Kind = Literal["environment", "agent"]

_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,99}(/[a-z0-9][a-z0-9_.-]{0,99}){0,2}$")
NAMESPACES = {
    "magent2": "Farama's MAgent2 gridworld battles (pip install 'mfmarl[magent]')",
    "mpe2": "Farama's particle environments (pip install 'mfmarl[mpe]')",
    "pettingzoo": "everything in PettingZoo's own registry",
}


@dataclass(frozen=True)
class Entry:
    """One name. `where` is `module:Class`, or a file path and class for a user's script."""

    name: str
    kind: Kind
    where: str
    summary: str = ""
    origin: str = "mfmarl"
    overrides: tuple[tuple[str, Any], ...] = ()
    twin: str = ""
    """For an agent with a field: the name of its independent learner; for an independent learner: its twin."""
    target: Any = None
    """The class itself, once known."""

    def load(self) -> Any:
        """The class or factory; a failing import names the plugin that failed."""
        if self.target is not None:
            return self.target
        module, _, attribute = self.where.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise EnvironmentFault(
                f"The {self.kind} {self.name!r} of {self.origin} cannot be imported: {type(error).__name__}: {error}"
            ) from error


_registered: dict[tuple[Kind, str], Entry] = {}


def register(name: str, *, independent: str | None = None) -> Callable[[T], T]:
    """Give a name to an environment or an agent; returns the class unchanged.

    An environment is a `PopulationEnv`, a PettingZoo `ParallelEnv` or `AECEnv` class, or a function that
    makes one. An agent derives `mfmarl.learning.agent.Agent`; `independent` also registers its twin that
    feels no field.
    """
    if not _NAME.match(name):
        raise ConfigError(f"{name!r} cannot be a name: use lower-case letters, digits, '_', '-' and '.'.")

    def decorate(target: T) -> T:
        kind: Kind = "agent" if _derives(target, "mfmarl.learning.agent", "Agent") else "environment"
        known = _scan().get((kind, name)) or _registered.get((kind, name))
        where = f"{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', '')}"
        if known is not None and known.where != where and _source(target) != _source(known.target):
            raise ConfigError(f"The {kind} name {name!r} is taken by {known.where}; choose another.")
        entry = Entry(
            name, kind, where, _first_line(inspect.getdoc(target)), _origin(target), twin=independent or "", target=target
        )
        _registered[kind, name] = entry
        if independent:
            _registered["agent", independent] = _independent(entry, independent)
        return target

    return decorate


def _independent(entry: Entry, name: str) -> Entry:
    summary = f"{entry.name} without a mean field: the independent learner"
    return replace(entry, name=name, summary=summary, overrides=(("field", "nothing"),), twin=entry.name)


def _derives(target: Any, module: str, name: str) -> bool:
    return any(base.__module__ == module and base.__name__ == name for base in getattr(target, "__mro__", ()))


def _source(target: Any) -> str:
    try:
        return f"{inspect.getfile(target)}:{target.__qualname__}"
    except (TypeError, AttributeError):
        return ""


def _origin(target: Any) -> str:
    module = str(getattr(target, "__module__", ""))
    return "mfmarl" if module.startswith("mfmarl.") else module


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0].rstrip(".")


@cache
def _scan() -> dict[tuple[Kind, str], Entry]:
    """The package's own names, read from source."""
    found: dict[tuple[Kind, str], Entry] = {}
    kinds: tuple[tuple[Kind, str], ...] = (("environment", "mfmarl.envs"), ("agent", "mfmarl.agents"))
    for kind, package in kinds:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or []:
            for path in sorted(Path(folder).glob("*.py")):
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.ClassDef | ast.FunctionDef):
                        for entry in _decorated(node, kind, f"{package}.{path.stem}"):
                            found[kind, entry.name] = entry
    return found


def _decorated(node: ast.ClassDef | ast.FunctionDef, kind: Kind, module: str) -> list[Entry]:
    entries = []
    for call in node.decorator_list:
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register"):
            continue
        name = ast.literal_eval(call.args[0])
        keywords = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        entry = Entry(
            name,
            kind,
            f"{module}:{node.name}",
            _first_line(ast.get_docstring(node)),
            twin=keywords.get("independent", ""),
        )
        entries.append(entry)
        if entry.twin:
            entries.append(_independent(entry, entry.twin))
    return entries


def _plugins(kind: Kind) -> dict[tuple[Kind, str], Entry]:
    from importlib.metadata import entry_points

    found = {}
    for point in entry_points(group="mfmarl.envs" if kind == "environment" else "mfmarl.agents"):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "a plugin"
        found[kind, point.name] = Entry(point.name, kind, point.value, origin=origin)
    return found


def entries(kind: Kind) -> dict[str, Entry]:
    """Every known name of that kind, sorted: the package's own win over plugins, a script's own over both."""
    merged = {**_plugins(kind), **_scan(), **_registered}
    return {name: entry for (of, name), entry in sorted(merged.items()) if of == kind}


def lookup(kind: Kind, name: str) -> Entry:
    """The entry of that name; `path/to/file.py:Class` names a class in a user's file.

    Raises ConfigError with the nearest known name.
    """
    if ".py:" in name or name.endswith(".py"):
        return _from_file(kind, name)
    known = entries(kind)
    if name in known:
        return known[name]
    space = name.partition("/")[0]
    if kind == "environment" and "/" in name and space in NAMESPACES:
        if not _NAME.match(name.lower()):
            raise ConfigError(f"{name!r} is not an environment's name; write for example magent2/battle_v4.")
        return Entry(name, kind, f"third party: {space}", NAMESPACES[space], origin=space)
    hint = nearest(name, [*known, *(f"{s}/..." for s in NAMESPACES)] if kind == "environment" else known)
    raise ConfigError(f"Unknown {kind} {name!r}.{hint} `mfmarl list` shows them all.")


def _from_file(kind: Kind, name: str) -> Entry:
    text, _, attribute = name.partition(".py:")
    path = Path(text if text.endswith(".py") else text + ".py").expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"There is no file {path}; expected path/to/file.py:ClassName.")
    module = load_file(path)
    if not attribute:
        own = [e for e in _registered.values() if e.kind == kind and e.target.__module__ == module.__name__]
        if len(own) != 1:
            found = ", ".join(e.name for e in own) or "none"
            raise ConfigError(f"{path.name} registers {len(own)} {kind}s ({found}); say which: {path.name}:ClassName.")
        return replace(own[0], name=name)
    target = getattr(module, attribute, None)
    if target is None:
        names = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise ConfigError(f"{path.name} has no {attribute!r}.{nearest(attribute, names)}")
    where = f"{path}:{attribute}"
    return Entry(name, kind, where, _first_line(inspect.getdoc(target)), origin=str(path), target=target)


def load_file(path: Path) -> Any:
    """Import a user's file under a name of its own (never `__main__`, so its main guard holds); once."""
    path = path.resolve()
    name = f"mfmarl_user_{re.sub(r'[^A-Za-z0-9_]', '_', str(path))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise EnvironmentFault(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def import_user_code(name: str) -> Any:
    """Import what a user named: a path to a Python file, or an installed module."""
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"There is no file {path} to import.")
        return load_file(path)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"The module {name!r} cannot be imported: {error}") from error
