"""G4: configurations of every kind of nonsense. Each is refused by one class of error, or means something and reads back equal.

Three kinds of trials take turns: tables for every class of options there is (of runs, environments, agents, solvers), TOML
files with bytes changed, and command lines read as `mfmarl train` reads them; nothing is carried out. What is accepted is
held against its types and bounds by a judge of its own, which shares no code with `mfmarl.options`.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import math
import random
import time
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.learning.config import parse_toml, to_text
from mfmarl.learning.config_file import run_config
from mfmarl.learning.run_config import RunOptions
from mfmarl.options import Bounds, from_table, to_table
from mfmarl.registry import entries
from mfmarl.selftest.goal import Order, Outcome

TARGET = 100_000
SLOW = 0.010
"""Seconds of CPU that one configuration may take."""

HOSTILE: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, 1e308, -1e308, 1e18, 1.0000001e18, 1e-320, -0.0, 0.5, 1e3,
    0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**4000,
    True, False, None, "", "none", "nan", "inf", "1e400", "10", "1e3", "0x10", "١٠", "true", "\0", "\ud800", "\x1b[31m", "x" * 200_000,
    "linear(1, -1)", "linear(nan, 1)", "linear(1)", "geometric(0, 1)", "cyclic(1, 0.1, inf)", "cyclic(1, 0.1, 1e300)", "entropy(-1)",
    "through(1)", "linear(1, 0.5, 2)", "linear(((", "../../etc/passwd", "os:system", "evil.py:Evil", "__import__('os')",
    [], [[]], [0] * 100_001, [1, "a", None], [math.nan], {}, {"a": {"b": {}}}, {"_target_": "os.system"}, datetime.date(2026, 1, 1),
)  # fmt: skip


@cache
def every_class() -> dict[str, type]:
    """Every class of options, by who has them: `run`, `solve`, `environment ising`, `agent mfq`, `solver omd`."""
    from mfmarl.evaluation.solve_config import SolveOptions
    from mfmarl.games import catalogue
    from mfmarl.games.solver import solver_class

    found: dict[str, type] = {"run": RunOptions, "solve": SolveOptions}
    for name, entry in entries("environment").items():
        if entry.origin == "mfmarl" and dataclasses.is_dataclass(target := entry.load()):
            found[f"environment {name}"] = target if isinstance(target, type) else type(target)
    found |= {
        f"agent {name}": entry.load().Config for name, entry in entries("agent").items() if entry.origin == "mfmarl"
    }
    return found | {f"solver {name}": solver_class(name) for name in catalogue.solvers()}


def fuzz(order: Order) -> Outcome:
    """Tables, files and command lines: seven, two and one of ten trials."""
    rng = random.Random(order.seed)  # noqa: S311 - trials that can be repeated are wanted
    trials = order.trials(TARGET, least=1000)
    kinds = (("table", _table), ("file", _file), ("command line", _command_line))
    accepted, slow, slowest = dict.fromkeys((name for name, _ in kinds), 0), 0, 0.0
    failures: list[str] = []
    every_class()
    _parsers()
    for trial in range(trials):
        name, tried = kinds[(0, 0, 1, 0, 0, 2, 0, 0, 1, 0)[trial % 10]]
        prepared = tried(rng)
        begun = time.process_time()
        try:
            problem = prepared()
            accepted[name] += not problem
        except ConfigError:
            problem = ""
        except Exception as error:  # noqa: BLE001 - anything else is what is looked for
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        spent = time.process_time() - begun
        slow, slowest = slow + (spent > SLOW), max(slowest, spent)
        if problem:
            failures.append(f"seed {order.seed}, trial {trial}, a {name}: {problem}")
        if trial % 1000 == 999:
            order.watch(trial + 1, trials)
    told = ", ".join(f"{count} {name}s" for name, count in accepted.items())
    return Outcome(
        not failures,
        f"{len(failures)} of {trials:,} met by another class of error or wrongly accepted; {told} accepted; {slow} took over 10 ms",
        trials,
        tuple(failures),
        _beside(),
        {
            "failures": len(failures),
            "over 10 ms": slow,
            "slowest ms": slowest * 1e3,
            **{f"accepted {n}s": c for n, c in accepted.items()},
        },
    )


# Tables


def _table(rng: random.Random) -> Callable[[], str]:
    who = rng.choice(sorted(every_class()))
    cls = every_class()[who]
    table: dict[Any, Any] = {}
    fields = [field for field in dataclasses.fields(cls) if field.init]
    for field in rng.sample(fields, min(len(fields), rng.choice((0, 1, 1, 2, 3, len(fields))))):
        table[_mistyped(rng, field.name)] = _value(rng, _hints(cls)[field.name])
    if rng.random() < 0.1:
        table[rng.choice(("_target_", "__class__", "__post_init__", "name", "", "x" * 10_000, 3, None))] = rng.choice(
            HOSTILE
        )

    def read() -> str:
        value: Any = from_table(cls, table, who)
        return judged(value) or unequal(value)

    return read


def unequal(value: Any) -> str:
    """Why a dataclass of options does not survive being printed and read; empty: it does."""
    again = from_table(type(value), to_table(value))
    return "" if again == value else f"{type(value).__name__} reads back as {again!r:.200}, not {value!r:.200}"


def judged(value: Any) -> str:
    """What an accepted dataclass of options holds that it must not; empty: nothing."""
    return next((p for f in dataclasses.fields(value) if f.init for p in _wrong(_hints(type(value))[f.name], getattr(value, f.name), f.name)), "")  # fmt: skip


def _wrong(hint: Any, value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> Iterator[str]:
    if get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        bounds = next((extra for extra in more if isinstance(extra, Bounds)), None)
        low, high = (bounds.low, bounds.high) if bounds else (low, high)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _wrong(
                _hints(type(value)).get(field.name, Any), getattr(value, field.name), f"{name}.{field.name}"
            )
    elif get_origin(hint) in (Union, types.UnionType):
        told = [list(_wrong(part, value, name, low, high)) for part in get_args(hint) if _may_be(part, value)]
        yield from [] if not told or any(not each for each in told) else told[0]
    elif isinstance(value, tuple):
        parts = get_args(hint)
        for i, item in enumerate(value):
            yield from _wrong(parts[0] if parts[-1:] == (Ellipsis,) else parts[i], item, f"{name}[{i}]", low, high)
    elif isinstance(value, float) and not (math.isfinite(value) and low <= value <= high):
        yield f"{name} = {value} was accepted, beyond [{low}, {high}]"
    elif isinstance(value, int) and not (-(2**63) <= value < 2**63 and low <= value <= high):
        yield f"{name} = {str(value)[:40]} was accepted, beyond [{low}, {high}]"
    elif hint in (int, float, bool, str) and type(value) is not hint:
        yield f"{name} = {value!r:.60} was accepted as {hint.__name__}"


def _may_be(hint: Any, value: Any) -> bool:
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    origin = get_origin(inner)
    if origin is Literal:
        return value in get_args(inner)
    return (origin is tuple) == isinstance(value, tuple) and (inner is type(None)) == (value is None)


def _hints(cls: Any) -> dict[str, Any]:
    if cls not in _KNOWN:
        _KNOWN[cls] = get_type_hints(cls, include_extras=True)
    return _KNOWN[cls]


_KNOWN: dict[Any, dict[str, Any]] = {}


def _value(rng: random.Random, hint: Any) -> Any:
    """Half of them nonsense, half such as the type takes or nearly takes."""
    if rng.random() < 0.5:
        return rng.choice(HOSTILE)
    low, high = -1e9, 1e9
    if get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        bounds = next((extra for extra in more if isinstance(extra, Bounds)), Bounds(low, high))
        low, high = max(bounds.low, -1e18), min(bounds.high, 1e18)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _value(rng, rng.choice(get_args(hint)))
    if origin is Literal:
        return rng.choice(get_args(hint))
    if origin is tuple:
        parts = [part for part in get_args(hint) if part is not Ellipsis and part != ()]
        return [_value(rng, rng.choice(parts)) for _ in range(rng.choice((1, len(parts), 3)))] if parts else []
    if hint is int:
        return rng.choice((int(low), int(low) - 1, int(low) + rng.randrange(20), int(min(high, low + 1000))))
    if hint is float:
        return rng.choice((low, high, math.nextafter(high, math.inf), low + (high - low) * rng.random(), rng.random()))
    if hint is bool:
        return rng.choice((True, False, 1, "true"))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        names = [field.name for field in dataclasses.fields(hint)]
        return {name: _value(rng, _hints(hint)[name]) for name in rng.sample(names, 1)}
    return rng.choice(("cpu", "torus", "0.5", "linear(1, 0.05)", "actions over neighbours", "nothing", 0.5))


def _mistyped(rng: random.Random, name: str) -> str:
    if rng.random() < 0.9:
        return name
    place = rng.randrange(len(name))
    return rng.choice(
        (name[:place] + name[place + 1 :], name[:place] + "_" + name[place:], name.upper(), f"{name}.{name}")
    )


# Files


@cache
def _texts() -> tuple[bytes, ...]:
    """Configurations that are right."""
    texts = []
    for environment, agent in (
        ("ising", "mfq"),
        ("congestion", "mfppo"),
        ("t_maze", "active_inference"),
        ("routing", "iql"),
    ):
        table = {
            "run": to_table(RunOptions()),
            "environment": {"name": environment, **to_table(every_class()[f"environment {environment}"]())},
            "agents": {"all": {"name": agent, **_own(agent)}},
            "versions": {"mfmarl": "0.1.0"},
        }
        texts.append(to_text(table).encode())
    return tuple(texts)


def _own(agent: str) -> dict[str, Any]:
    fixed = dict(entries("agent")[agent].overrides)
    return {key: value for key, value in to_table(every_class()[f"agent {agent}"]()).items() if key not in fixed}


_SPLICES = (
    b"nan", b"inf", b"-1", b"1e400", b"9" * 5000, b"true", b'"', b"'''", b"[[", b"]", b"[" * 200, b"{", b"\0", b"\xef\xbb\xbf", b"\xff", b"\r",
    b"\r\n", b"seed = 1\n", b"[run]\n", b"[agents.red]\nname = 'mfq'\n", b"a.b.c.d.e.f.g = 1\n", b"_target_ = 'os.system'\n", b" = ", b"#",
    b"1979-05-27T07:32:00Z", b"0x7fffffffffffffffff", b"name = 'evil.py:Evil'\n", "ü".encode(), b"\x1b[31m",
)  # fmt: skip


def _file(rng: random.Random) -> Callable[[], str]:
    content = bytearray(rng.choice(_texts()))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        place = rng.randrange(len(content) + 1)
        how = rng.randrange(4)
        if how == 0 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            del content[place : place + rng.choice((1, 3, 40, 4000))]
        elif how == 2:
            content[place:place] = rng.choice(_SPLICES)
        else:
            content[place : place + rng.randrange(1, 12)] = rng.choice(_SPLICES)

    def read() -> str:
        table = parse_toml(bytes(content), "fuzzed.toml")
        text = content.decode("utf-8-sig")
        config = run_config(table, "fuzzed.toml", text)
        parts = [config.run, *(from_table(every_class()[f"agent {c.name}"], c.options) for c in config.agents.values())]
        again = type(config).from_table(parse_toml(to_text(config.to_table()).encode(), "again"))
        return next(
            (told for part in parts if (told := judged(part))),
            "" if again == config else f"reads back as {again!r:.300}",
        )

    return read


# Command lines


@cache
def _parsers() -> Any:
    return importlib.import_module("mfmarl.cli.main").parsers()


def _command_line(rng: random.Random) -> Callable[[], str]:
    main, train = (importlib.import_module(f"mfmarl.cli.{name}") for name in ("main", "train"))
    agent = rng.choice(("mfq", "iql", "mfppo", "mfk", "", "red=mfq", "mfq:bins=3", "mfq:bins", ","))
    words = ["train", rng.choice(("ising", "congestion", "beach_bar", "isng", "", "t_maze"))]
    words += ["--agents" if "=" in agent else "--agent", agent]
    names = [
        f.name for who in ("run", "environment ising", "agent mfq") for f in dataclasses.fields(every_class()[who])
    ]
    for name in rng.sample(names, rng.choice((0, 1, 2, 3))):
        value = rng.choice(HOSTILE)
        scope = rng.choice(("", "", "", "env.", "agent.", "mfq.", "nobody."))
        flag = f"--{scope}{_mistyped(rng, name).replace('_', '-')}"
        text = "nan" if isinstance(value, int) and value.bit_length() > 9999 else str(value)[:1000]
        words += rng.choice(([flag, text], [f"{flag}={text}"], [flag]))
    words += rng.choice(([], [], ["stray"], ["--"], ["-x"], ["--quiet=3"], ["--queit"]))
    parser, commands = _parsers()

    def read() -> str:
        known, rest = main.understood(words, parser, commands)
        known.newer = ""
        config, _, _ = train._new(known, rest)
        parts = [config.run, *(from_table(every_class()[f"agent {c.name}"], c.options) for c in config.agents.values())]
        return next((told for part in parts if (told := judged(part))), "")

    return read


# Others


def _beside() -> dict[str, str]:
    """How many settings that mean nothing stable-baselines3's PPO accepts."""
    try:
        from stable_baselines3 import PPO
    except ImportError:
        return {}
    from mfmarl.selftest.case import Missed

    wrong: tuple[tuple[str, Any], ...] = (
        ("gamma", -1.0), ("gamma", math.nan), ("gamma", 7.0), ("learning_rate", -1.0), ("learning_rate", math.inf), ("gae_lambda", -3.0),
        ("clip_range", -1.0), ("ent_coef", math.nan), ("vf_coef", math.inf), ("max_grad_norm", -1.0), ("n_epochs", -3), ("target_kl", -1.0),
    )  # fmt: skip
    accepted = 0
    for name, value in wrong:
        try:
            PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, seed=0, device="cpu", **{name: value})
            accepted += 1
        except (ValueError, AssertionError, TypeError, ArithmeticError, Missed, MfmarlError):
            continue
    return {"stable-baselines3": f"PPO is made with {accepted} of {len(wrong)} settings that mean nothing"}
