"""Environments, agents and their options from the command line.

What argparse does not know is an option of the environment or of the agents: `--num-agents 400`,
`--temperature 0.5` (every agent that has it), `--mfq.bins 9` (that agent), `--red.bins 9` (that team),
`--env.horizon 50` where an environment and an agent share a name.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from mfmarl.errors import ConfigError, nearest
from mfmarl.learning.run_config import Choice
from mfmarl.options import NONE, Option, Problem, options_of, parse_value, show, told
from mfmarl.registry import Entry, import_user_code, lookup

S = TypeVar("S")
T = TypeVar("T")
Team = dict[str, Choice]


def add_import_option(parser: argparse.ArgumentParser, text: str = "") -> None:
    """`--import FILE`, which may be given several times; `import_all` carries it out."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE",
        help=text or "a Python file or module that registers names of your own",
    )


def add_statistics_options(parser: argparse.ArgumentParser) -> None:
    """What is compared, and of which runs: the same in every command that shows a comparison."""
    parser.add_argument("--metric", default="", help="the number to compare by (default: eval/reward)")
    parser.add_argument(
        "--burn-in", type=float, default=0.5, help="share of a run left out of its time average (default: 0.5)"
    )
    parser.add_argument(
        "--allow-unequal",
        action="store_true",
        help="compare runs that are unfinished, cut to the shortest, or were made otherwise; it is said which",
    )
    parser.add_argument(
        "--without-diverged", action="store_true", help="leave runs out whose health alarms say that they fell apart"
    )


def import_all(names: Sequence[str]) -> None:
    """Import what `--import` named, so that what it registers is known."""
    for name in names:
        import_user_code(name)


def pairs_of(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--a 1 --b=2 --flag --no-other` as (name, text) pairs, with '-' read as '_'."""
    pairs: list[tuple[str, str]] = []
    i = 0
    while i < len(rest):
        word = rest[i]
        if not word.startswith("--"):
            raise ConfigError(f"{show(word)} is one word too many here; options are written --name value.")
        name, equals, value = word[2:].partition("=")
        i += 1
        if not equals:
            if i < len(rest) and not rest[i].startswith("--"):
                value = rest[i]
                i += 1
            elif name.startswith("no-"):
                name, value = name[3:], "false"
            else:
                value = "true"
        pairs.append((name.replace("-", "_"), value))
    return pairs


def environment_options(entry: Entry) -> tuple[type | None, dict[str, Any]]:
    """The options class of an environment (None for a third party) and its options by name."""
    target = entry.load() if entry.target is not None or not entry.where.startswith("third party") else None
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        return target, {o.name: o for o in options_of(target)}
    from mfmarl.population import third_party

    maker = third_party.maker(entry.name) if target is None else third_party.maker_of(target, {}, entry.name)
    return None, {name: _third_party_option(name, default) for name, default in maker.keywords.items()}


def parsed(cls: type, option: str, text: str, where: str = "") -> Any:
    """`parse_value` as a table holds it: no option is None there, but the word `none`."""
    value = parse_value(cls, option, text, where)
    return NONE if value is None else value


def _third_party_option(name: str, default: Any) -> Option:
    missing = default is inspect.Parameter.empty
    kind = "" if missing or default is None else type(default).__name__
    return Option(name, kind, dataclasses.MISSING if missing else default, "")


def agent_config(name: str) -> tuple[type, dict[str, Option]]:
    """The config class of a registered agent and its options by name."""
    cls = lookup("agent", name).load().Config
    return cls, {o.name: o for o in options_of(cls)}


def split(text: str) -> list[str]:
    """The parts between commas; a comma within brackets is of the part."""
    return [part.strip() for part in re.split(r",(?![^(\[]*[)\]])", text) if part.strip()]


def variant(text: str, label: str) -> tuple[str, dict[str, str]]:
    """`mfq:bins=9:carry=caused` -> its name and its own options; `my.py:Mine:size=3` likewise."""
    words = text.split(":")
    named = 2 if words[0].endswith(".py") else 1
    options = {}
    for word in words[named:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"In {label!r}, write options as name=value; {word!r} has no '='.")
        options[key.replace("-", "_")] = value
    return ":".join(words[:named]), options


def parse_environments(text: str) -> dict[str, Choice]:
    """`ising,ising:coupling=-1` -> {label: environment}: variants of one environment can be compared."""
    environments: dict[str, Choice] = {}
    for label in split(text):
        name, texts = variant(label, label)
        cls, known = environment_options(lookup("environment", name))
        options: dict[str, Any] = {}
        for key, value in texts.items():
            if cls is None and key not in known:
                raise ConfigError(f"The environment {name!r} has no option {key!r}.{nearest(key, known)}")
            options[key] = parsed(cls, key, value, f"environment {name}") if cls else literal(value)
        if short(label) in environments:
            raise ConfigError(f"The environment {short(label)!r} is named twice.")
        environments[short(label)] = Choice(name, options)
    if not environments:
        raise ConfigError("No environment is named; `mfmarl list` shows them.")
    return environments


def parse_agents(text: str) -> dict[str, Team]:
    """`mfq,iql` -> {"mfq": {"all": mfq}, ...}; `red=mfq+blue=iql` is one entry of two teams.

    `mfq:bins=9:carry=caused` gives an entry options of its own, so that variants of an agent can be compared.
    """
    teams: dict[str, Team] = {}
    for label in split(text):
        team: Team = {}
        for part in label.split("+"):
            group, equals, rest = part.partition("=")
            if not equals or ":" in group:
                group, rest = "all", part
            name, texts = variant(rest, label)
            cls, _ = agent_config(name)
            options = {key: parsed(cls, key, value, f"agent {name}") for key, value in texts.items()}
            if group in team:
                raise ConfigError(f"The team {group!r} is played twice in {label!r}.")
            team[group] = Choice(name, options)
        if label in teams:
            raise ConfigError(f"The agent {label!r} is named twice.")
        teams[label] = team
    if not teams:
        raise ConfigError("No agent is named; write for example --agents mfq,iql.")
    return teams


def assign(
    pairs: Sequence[tuple[str, str]],
    environments: dict[str, Choice],
    agents: dict[str, Team],
    replaced: Collection[str] = (),
) -> tuple[dict[str, Choice], dict[str, Team]]:
    """Give every option to whom it belongs.

    What a variant names itself stands (`--agents mfq:gamma=0,iql --gamma 1`); of the `replaced` ("environments", "agents"),
    which come from a file, it is what is replaced. Raises ConfigError for options that are nobody's, or no such values.
    """
    classes = {label: environment_options(lookup("environment", c.name)) for label, c in environments.items()}
    configs = {name: agent_config(name) for name in {c.name for team in agents.values() for c in team.values()}}
    env_options = {label: dict(c.options) for label, c in environments.items()}
    own = {label: {group: dict(c.options) for group, c in team.items()} for label, team in agents.items()}
    problems: list[Problem] = []
    for name, text in pairs:
        scope, dot, option = name.partition(".")
        try:
            if not dot:
                scope, option = "", name
                _refuse_ambiguous(option, environments, classes, configs)
            used = _to_environments(scope, option, text, environments, classes, env_options, "environments" in replaced)
            if not used or scope not in ("", "env", "environment"):
                used = _to_agents(scope, option, text, agents, configs, own, "agents" in replaced) or used
            if not used:
                raise _unknown(name, classes, configs, agents)
        except ConfigError as error:
            problems.append(Problem(str(error), error.code, name))
    if problems:
        raise told(problems)
    return (
        {label: Choice(c.name, env_options[label]) for label, c in environments.items()},
        {
            label: {group: Choice(c.name, own[label][group]) for group, c in team.items()}
            for label, team in agents.items()
        },
    )


def _refuse_ambiguous(
    option: str,
    environments: dict[str, Choice],
    classes: dict[str, tuple[type | None, dict[str, Any]]],
    configs: dict[str, tuple[type, dict[str, Option]]],
) -> None:
    """What an environment and an agent both have means two things (`field`: a magnet's, and what is felt)."""
    place = next((environments[label].name for label, (_, known) in classes.items() if option in known), "")
    player = next((name for name, (_, known) in configs.items() if option in known), "")
    if place and player:
        flag = option.replace("_", "-")
        raise ConfigError(
            f"--{flag} could be the environment's ({place}) or the agents' ({player}): "
            f"write --env.{flag} or --agent.{flag}.",
            "ambiguous-option",
        )


def _to_environments(
    scope: str,
    option: str,
    text: str,
    environments: dict[str, Choice],
    classes: dict[str, tuple[type | None, dict[str, Any]]],
    env_options: dict[str, dict[str, Any]],
    replaced: bool,
) -> bool:
    used = False
    if scope in ("", "env", "environment"):
        for label, (cls, known) in classes.items():
            if option in known:
                used = True
                if not replaced and option in environments[label].options:
                    continue  # a variant's own option stands
                where = f"environment {environments[label].name}"
                env_options[label][option] = parsed(cls, option, text, where) if cls else literal(text)
    return used


def _to_agents(
    scope: str,
    option: str,
    text: str,
    agents: dict[str, Team],
    configs: dict[str, tuple[type, dict[str, Option]]],
    own: dict[str, dict[str, dict[str, Any]]],
    replaced: bool,
) -> bool:
    used = False
    # What learners have is meant for them: a scripted fighter is not warmed by a crowd's `--temperature`.
    takers = {name for name, (_, known) in configs.items() if option in known}
    learners = {name for name in takers if lookup("agent", name).load().memory != "none"}
    for label, team in agents.items():
        for group, choice in team.items():
            if scope in ("", "agent") and learners and choice.name not in learners:
                continue
            cls, known = configs[choice.name]
            fixed = dict(lookup("agent", choice.name).overrides)
            if option in known and scope in ("", "agent", choice.name, group, label):
                used = True
                named = option in choice.options and not replaced
                if scope in ("", "agent") and (option in fixed or named):
                    continue  # `--field x` is for those that feel one; a variant's own option stands
                own[label][group][option] = parsed(cls, option, text, f"agent {choice.name}")
    return used


def literal(text: str) -> Any:
    """A third party's option from text: a number, true, false, none, or the word itself."""
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _unknown(
    name: str,
    classes: dict[str, tuple[type | None, dict[str, Any]]],
    configs: dict[str, tuple[type, dict[str, Option]]],
    agents: dict[str, Team],
) -> ConfigError:
    from mfmarl.learning.run_config import RUN_OPTION_NAMES

    scopes = {"env", "agent", *configs, *(g for team in agents.values() for g in team)}
    scope, dot, option = name.rpartition(".")
    if dot and scope not in scopes:
        return ConfigError(f"Nobody is called {scope!r} in --{name}.{nearest(scope, scopes)}", "unknown-name")
    known = {o for _, options in classes.values() for o in options} | {
        o for _, options in configs.values() for o in options
    }
    known |= set(RUN_OPTION_NAMES)
    hint = nearest(option, known) if len(known) else ""
    if "Did you mean" not in hint:
        hint = ""
    return ConfigError(
        f"Unknown option --{name.replace('_', '-')}.{hint.replace('_', '-')} "
        "`mfmarl list NAME` shows the options of an environment or agent.",
        "unknown-option",
    )


def add_run_options(parser: Any, skip: Sequence[str] = ()) -> None:
    """The options of `RunOptions` as flags, defaults shown."""
    from mfmarl.learning.run_config import RunOptions

    group = parser.add_argument_group("run")
    for option in options_of(RunOptions):
        if option.name in skip:
            continue
        group.add_argument(
            f"--{option.name.replace('_', '-')}",
            dest=f"run_{option.name}",
            metavar=f"{{{','.join(option.choices)}}}" if option.choices else option.type.partition(" ")[0].upper(),
            # Not `choices`: argparse tells the first word that is none alone; `run_options` tells all.
            help=f"{option.help.replace('%', '%%')} (default: {option.default_text})",
            **({"nargs": "?", "const": "true"} if option.type.startswith("bool") else {}),
        )


def run_options(known: Any, base: dict[str, Any] | None = None) -> Any:
    """`RunOptions` from parsed flags, over the values of a config file."""
    from mfmarl.learning.run_config import RunOptions
    from mfmarl.options import from_table

    table, problems = dict(base or {}), []
    for option in options_of(RunOptions):
        text = getattr(known, f"run_{option.name}", None)
        if text is not None:
            try:
                table[option.name] = parse_value(RunOptions, option.name, text)
            except ConfigError as error:
                problems.append(Problem(str(error), error.code, option.name))
    if problems:
        raise told(problems)
    return from_table(RunOptions, table)


def all_at_once(one: Callable[[], S], other: Callable[[], T]) -> tuple[S, T]:
    """What two readers of the command line make of it. Raises ConfigError that tells what both have to say."""
    problems: list[Problem] = []
    found: list[Any] = []
    for read in (one, other):
        try:
            found.append(read())
        except ConfigError as error:
            problems.append(Problem(str(error), error.code, ""))
    if problems:
        raise told(problems)
    return found[0], found[1]


def short(name: str) -> str:
    """How an environment is called in folders and reports: `my_env.py:MyEnv` is MyEnv."""
    return name.rpartition(".py:")[2] or name
