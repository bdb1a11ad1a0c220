"""Names of environments and agents: those of this package, of installed plugins, and of a user's script.

`@register("name")` is all that a new environment or agent needs. The package's own are found by reading
their source for that decorator, so that listing names imports nothing (torch alone takes seconds).
Plugins come from the entry-point groups `mfmarl.envs` and `mfmarl.agents` and are imported when chosen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from mfmarl.errors import ConfigError, EnvironmentFault, MfmarlError, nearest

T = TypeVar("T")
_AGENT = ("mfmarl.learning.agent", "Agent")
Kind = Literal["environment", "agent"]

_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,99}(/[a-z0-9][a-z0-9_.-]{0,99}){0,2}$")
NAMESPACES = {
    "magent2": "Farama's MAgent2 gridworld battles (pip install 'mfmarl[magent]')",
    "mpe2": "Farama's particle environments (pip install 'mfmarl[mpe]')",
    "pettingzoo": "everything in PettingZoo's own registry",
    "gymnasium": "everything in Gymnasium's registry, one agent for each copy",
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
    distribution: str = ""
    """What installed it, of a plugin."""

    def load(self) -> Any:
        """The class or factory; a failing import names the plugin that failed."""
        if self.target is not None:
            return self.target
        module, _, attribute = self.where.partition(":")
        try:
            target: Any = importlib.import_module(module)
            for part in attribute.split("."):
                target = getattr(target, part)
        except (Exception, SystemExit) as error:
            if isinstance(error, MfmarlError) and not self.distribution:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise EnvironmentFault(
                f"The {self.kind} {self.name!r} of {self.origin} cannot be imported: {reason}{_wants(self.distribution)}",
                "plugin" if self.distribution else "",
            ) from error
        if self.distribution and (not callable(target) or _derives(target, *_AGENT) != (self.kind == "agent")):
            article = "an agent" if self.kind == "agent" else "an environment"
            raise EnvironmentFault(
                f"{self.name!r} of {self.origin} is not {article}: its entry point names {self.where}.", "plugin"
            )
        return target


def _wants(distribution: str) -> str:
    """What a plugin asks of this package, where its metadata say: a clash of versions is then plain."""
    from importlib.metadata import PackageNotFoundError, requires

    from mfmarl import __version__

    try:
        lines = (requires(distribution) if distribution else None) or []
    except PackageNotFoundError:
        return ""
    asked = [line for line in lines if re.match(r"mfmarl\s*[<>=!~(]", line, re.IGNORECASE)]
    return f" (it asks for {asked[0]}, and this is {__version__})" if asked else ""


_registered: dict[tuple[Kind, str], Entry] = {}


def register(name: str, *, independent: str | None = None) -> Callable[[T], T]:
    """Give a name to an environment or an agent; returns the class unchanged.

    An environment is a `PopulationEnv`, a PettingZoo `ParallelEnv` or `AECEnv` class, or a function that
    makes one. An agent derives `mfmarl.learning.agent.Agent`; `independent` also registers its twin that
    feels no field.
    """
    for word in (name, independent or name):
        if not isinstance(word, str) or not _NAME.fullmatch(word):
            raise ConfigError(
                f"{word!r} cannot be a name: use lower-case letters, digits, '_', '-' and '.'.", "bad-name"
            )
        if word.partition("/")[0] in NAMESPACES and "/" in word:
            raise ConfigError(
                f"{word!r} cannot be a name: '{word.partition('/')[0]}/' belongs to third parties.", "bad-name"
            )
    if independent == name:
        raise ConfigError(f"An agent and its independent twin need different names, not both {name!r}.")

    def decorate(target: T) -> T:
        kind: Kind = "agent" if _derives(target, *_AGENT) else "environment"
        if independent and kind == "environment":
            raise ConfigError(f"independent={independent!r} is for agents; {name!r} is an environment.")
        where = f"{getattr(target, '__module__', '')}:{getattr(target, '__qualname__', '')}"
        for word in (name, independent):
            known = (_registered.get((kind, word)) or _scan().get((kind, word))) if word else None
            if known is not None and known.where != where and _source(target) != _source(known.target):
                raise ConfigError(f"The {kind} name {word!r} is taken by {known.where}; choose another.")
        entry = Entry(
            name,
            kind,
            where,
            _first_line(inspect.getdoc(target)),
            _origin(target),
            twin=independent or "",
            target=target,
        )
        _registered[kind, name] = entry
        if independent:
            _registered[kind, independent] = _independent(entry, independent)
        return target

    return decorate


def _independent(entry: Entry, name: str) -> Entry:
    summary = f"{entry.name} without a mean field: the independent learner"
    return replace(entry, name=name, summary=summary, overrides=(("field", "nothing"),), twin=entry.name)


def _derives(target: Any, module: str, name: str) -> bool:
    return any(base.__module__ == module and base.__name__ == name for base in getattr(target, "__mro__", ()))


def _source(target: Any) -> str:
    """File and name of a class; of its own kind where they are not known (typed into a shell)."""
    try:
        return f"{Path(inspect.getfile(target)).resolve()}:{target.__qualname__}"
    except (TypeError, AttributeError, OSError):
        return f"unknown {id(target)}"


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
                for node in _statements(path):
                    if isinstance(node, ast.ClassDef | ast.FunctionDef):
                        for entry in _decorated(node, kind, f"{package}.{path.stem}"):
                            found[kind, entry.name] = entry
    return found


_DECORATOR = re.compile(r"^@(?:\w+\.)*register\b", re.MULTILINE)
# From there to the end of the docstring.
_HEAD = re.compile(
    r'^@(?:\w+\.)*register\b[^\n]*\n(?:@[^\n]*\n)*(?:class|def)\b[^\n]*:[ \t]*\n[ \t]+r?""".*?"""',
    re.MULTILINE | re.DOTALL,
)


def _statements(path: Path) -> list[ast.stmt]:
    """The file's statements that may register a name; none of a file that cannot be parsed: the others keep their names.

    Of files that are written as usual no bodies are parsed: that takes a third of the time.
    """
    try:
        text = path.read_text(encoding="utf-8")
        heads = _HEAD.findall(text)
        if len(heads) == len(_DECORATOR.findall(text)):
            return [node for head in heads for node in ast.parse(head).body]
        return ast.parse(text).body
    except (SyntaxError, ValueError, OSError):
        return []


def _decorated(node: ast.ClassDef | ast.FunctionDef, kind: Kind, module: str) -> list[Entry]:
    entries = []
    for call in node.decorator_list:
        if not isinstance(call, ast.Call):
            continue
        called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = {"name": call.args[0]} if call.args else {}
        words |= {k.arg: k.value for k in call.keywords if k.arg}
        texts = {k: v.value for k, v in words.items() if isinstance(v, ast.Constant) and isinstance(v.value, str)}
        if called != "register" or "name" not in texts:
            continue
        summary, twin = _first_line(ast.get_docstring(node)), texts.get("independent", "")
        entry = Entry(texts["name"], kind, f"{module}:{node.name}", summary, twin=twin)
        entries.append(entry)
        if twin:
            entries.append(_independent(entry, twin))
    return entries


class Plugin(NamedTuple):
    """An entry point of an installed distribution, never imported here."""

    entry: Entry
    hidden: str
    """Why the name does not mean this one; empty: it does."""


@cache
def plugins(kind: Kind) -> tuple[Plugin, ...]:
    """Every installed plugin by name. The package's own names win, then the distribution that comes first in the alphabet."""
    from importlib.metadata import entry_points

    points = entry_points(group="mfmarl.envs" if kind == "environment" else "mfmarl.agents")
    found: list[Plugin] = []
    taken = {name: entry.origin for (of, name), entry in _scan().items() if of == kind}
    for point in sorted(points, key=lambda point: (point.name, point.dist.name.lower() if point.dist else "")):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "a plugin"
        where = f"{point.module}:{point.attr}"
        entry = Entry(
            point.name, kind, where, origin=origin, distribution=point.dist.name if point.dist else "a plugin"
        )
        if any(plugin.entry.origin == origin and plugin.entry.name == point.name for plugin in found):
            continue  # one distribution, met twice on the search path
        if not _NAME.fullmatch(point.name) or point.name.partition("/")[0] in NAMESPACES:
            found.append(Plugin(entry, "its name cannot be a name here"))
        else:
            found.append(Plugin(entry, f"the name is {taken[point.name]}'s" if point.name in taken else ""))
            taken.setdefault(point.name, origin)
    return tuple(found)


def _plugins(kind: Kind) -> dict[tuple[Kind, str], Entry]:
    """The plugins that their names mean."""
    return {(kind, plugin.entry.name): plugin.entry for plugin in plugins(kind) if not plugin.hidden}


def entries(kind: Kind) -> dict[str, Entry]:
    """Every known name of that kind, sorted: the package's own and a script's win over plugins."""
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
        if not _NAME.fullmatch(name.lower()):
            raise ConfigError(
                f"{name!r} is not an environment's name; write for example magent2/battle_v4.", "unknown-name"
            )
        return Entry(name, kind, f"third party: {space}", NAMESPACES[space], origin=space)
    hint = nearest(name, [*known, *(f"{s}/..." for s in NAMESPACES)] if kind == "environment" else known)
    raise ConfigError(f"Unknown {kind} {name!r}.{hint} `mfmarl list` shows them all.", "unknown-name")


def demand_typed(name: str, where: str) -> None:
    """Raises ConfigError for a Python file that a config names and the user has not: it may be a stranger's."""
    if ".py:" not in name and not name.endswith(".py"):
        return
    path = Path(name.partition(".py")[0] + ".py").expanduser()
    if _module_name(path.resolve()) not in sys.modules:
        raise ConfigError(f"{where} plays {name}; say that you trust that file: --import {path}", "untrusted-file")


def _from_file(kind: Kind, name: str) -> Entry:
    text, _, attribute = name.partition(".py:")
    path = Path(text if text.endswith(".py") else text + ".py").expanduser()
    if not path.is_file():
        raise ConfigError(f"There is no file {path}; expected path/to/file.py:ClassName.", "no-file")
    module = load_file(path)
    own = [e for e in _registered.values() if e.kind == kind and getattr(e.target, "__module__", "") == module.__name__]
    if not attribute:
        # A twin comes with its agent: the file still registers one.
        first = [e for e in own if not e.overrides]
        if len(first) != 1:
            found = ", ".join(e.name for e in first) or "none"
            raise ConfigError(
                f"{path.name} registers {len(first)} {kind}s ({found}); say which: {path.name}:ClassName."
            )
        return replace(first[0], name=name, where=f"{path}:{first[0].target.__qualname__}", origin=str(path))
    for entry in own:
        if attribute == entry.name or (attribute == entry.target.__qualname__ and not entry.overrides):
            return replace(entry, name=name, where=f"{path}:{entry.target.__qualname__}", origin=str(path))
    target = getattr(module, attribute, None)
    if target is None:
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise ConfigError(f"{path.name} has no {attribute!r}.{nearest(attribute, [*names, *(e.name for e in own)])}")
    is_agent = _derives(target, *_AGENT)
    if not callable(target) or is_agent != (kind == "agent"):
        article = {"agent": "an agent (a class that derives mfmarl.learning.agent.Agent)"}.get(kind, "an environment")
        raise ConfigError(f"{attribute!r} in {path.name} is not {article}.")
    return Entry(
        name, kind, f"{path}:{attribute}", _first_line(inspect.getdoc(target)), origin=str(path), target=target
    )


def _module_name(path: Path) -> str:
    """Two files of one name are two modules: a_b.py in one folder, b.py in another called a."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    return f"mfmarl_user_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{digest[:12]}"


def load_file(path: Path) -> Any:
    """Import a user's file under a name of its own (never `__main__`, so its main guard holds); once.

    Its folder joins the end of the module search path, so that it finds the files beside it.
    """
    path = path.resolve()
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    before = dict(_registered)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        # Nothing of a file that failed half-way stays behind.
        del sys.modules[name]
        _registered.clear()
        _registered.update(before)
        if isinstance(error, MfmarlError | KeyboardInterrupt):
            raise
        raise EnvironmentFault(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def import_user_code(name: str) -> Any:
    """Import what a user named: a path to a Python file, or an installed module."""
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"There is no file {path} to import.", "no-file")
        return load_file(path)
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{name!r} is neither a Python file (my_env.py) nor a module's name (my_package.envs).")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: nothing that is installed can be hidden by it
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"The module {name!r} cannot be imported: {error}") from error
    except MfmarlError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvironmentFault(f"The module {name!r} cannot be imported: {type(error).__name__}: {error}") from error
