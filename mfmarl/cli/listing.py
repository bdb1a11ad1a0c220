"""`mfmarl list`: what there is to play, who can play it, who can solve it, and every option of each."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mfmarl.cli.choices import add_import_option, agent_config, environment_options, import_all
from mfmarl.errors import ConfigError, nearest, printable
from mfmarl.games import catalogue
from mfmarl.options import show
from mfmarl.registry import NAMESPACES, Kind, entries, lookup, plugins

EXAMPLES = """  mfmarl list                # everything
  mfmarl list environments   # or games (the environments that can be solved), agents, solvers
  mfmarl list ising          # an environment's options and their defaults
  mfmarl list mfq            # an agent's options and their defaults
  mfmarl list omd            # a solver's options and their defaults"""

KINDS = ("environments", "games", "agents", "solvers")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", help="environments, games, agents, solvers, or one name")
    add_import_option(parser)


def run(known: argparse.Namespace, rest: list[str]) -> int:
    import_all(known.imports)
    if known.what in (None, *KINDS):
        return _everything(known)
    return _one(known)


def _everything(known: argparse.Namespace) -> int:
    table: dict[str, Any] = {}
    if known.what in (None, "environments"):
        table["environments"] = {n: e.summary for n, e in entries("environment").items()}
        table["third party"] = _third_party()
    if known.what == "games":
        table["games"] = catalogue.games()
    if known.what in (None, "agents"):
        table["agents"] = {n: e.summary for n, e in entries("agent").items()}
    if known.what in (None, "solvers"):
        table["solvers"] = catalogue.solvers()
    hidden = _plugins(table, known.what)
    if known.json:
        print(json.dumps(table | ({"plugins": hidden} if hidden else {})))
        return 0
    for title, names in table.items():
        print(title)
        width = max((len(n) for n in names), default=0)
        for name, summary in names.items():
            print(f"  {name:<{width}}  {printable(summary)}".rstrip())
        print()
    for plugin in hidden:
        if plugin["hidden"]:
            print(printable(f"{plugin['name']!r} of {plugin['from']} cannot be used: {plugin['hidden']}.\n"))
    print("`mfmarl list NAME` shows the options of one.")
    return 0


def _plugins(table: dict[str, Any], what: str | None) -> list[dict[str, str]]:
    """The installed plugins, and in the table whose they are."""
    kinds: dict[str, Kind] = {"environments": "environment", "agents": "agent"}
    found = []
    for title, kind in kinds.items():
        for plugin in plugins(kind) if what in (None, title) else ():
            entry = plugin.entry
            found.append({"name": entry.name, "kind": kind, "from": entry.origin, "hidden": plugin.hidden})
            if not plugin.hidden:
                table[title][entry.name] = f"{entry.summary} (plugin: {entry.origin})".strip()
    return found


def _third_party() -> dict[str, str]:
    from mfmarl.population.third_party import names

    found = dict.fromkeys(names(), "")
    for space, text in NAMESPACES.items():
        if not any(name.startswith(f"{space}/") for name in found):
            found[f"{space}/..."] = text
    return found


def _one(known: argparse.Namespace) -> int:
    agents, solvers = entries("agent"), catalogue.solvers()
    fixed: dict[str, Any] = {}
    if known.what in agents:
        entry = agents[known.what]
        kind, summary, where = "agent", entry.summary, entry.where
        options = {o.name: o for o in agent_config(known.what)[1].values()}
        fixed = dict(entry.overrides)
    elif known.what in solvers:
        from mfmarl.cli.solve import solver_options

        cls, found = solver_options(known.what)
        options = dict(found)
        kind, summary, where = "solver", solvers[known.what], f"{cls.__module__}:{cls.__qualname__}"
    else:
        try:
            entry = lookup("environment", known.what)
        except ConfigError:
            hint = nearest(known.what, [*agents, *solvers, *entries("environment"), *KINDS])
            raise ConfigError(
                f"Unknown name {show(known.what)}.{hint} `mfmarl list` shows them all.", "unknown-name"
            ) from None
        kind, summary, where = entry.kind, entry.summary, entry.where
        options = environment_options(entry)[1]
    rows = [
        {
            "option": f"--{name.replace('_', '-')}",
            "type": getattr(o, "type", ""),
            "default": fixed.get(name, getattr(o, "default_text", "")),
            "help": getattr(o, "help", ""),
        }
        for name, o in options.items()
        if getattr(o, "settable", True)
    ]
    if known.json:
        print(json.dumps({"name": known.what, "kind": kind, "summary": summary, "from": where, "options": rows}))
        return 0
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(printable(f"{kind} {known.what}: {summary}"), markup=False, highlight=False)
    table = Table("option", "type", "default", "what it does", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(_escaped(printable(str(row[key]))) for key in ("option", "type", "default", "help")))
    console.print(table)
    return 0


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
