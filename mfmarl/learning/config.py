"""Configuration files: TOML read strictly, written so that it reads back equal, compared and digested.

What a table means is for `mfmarl.options.from_table` to say; here it is only known to be sane: UTF-8, at most 1 MiB,
not nested deeply, finite numbers of at most 64 bits. All trouble is a ConfigError of one line.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from mfmarl.errors import ConfigError
from mfmarl.learning.durable import read_limited, write_atomic
from mfmarl.options import INT64, as_text, show

MAX_BYTES = 2**20
MAX_DEPTH = 20


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a file. Raises ConfigError, with the line where the syntax is wrong."""
    return parse_toml(read_limited(Path(path), MAX_BYTES, ConfigError), str(path))


def parse_toml(content: bytes, where: str) -> dict[str, Any]:
    """The table in TOML text; `where` names it in messages. Raises ConfigError."""
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{where} has {len(content):,} bytes, more than the {MAX_BYTES:,} that it may have.", "syntax"
        )
    try:
        table = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}: line {line} is not UTF-8 text.", "syntax") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested deeper than {MAX_DEPTH}.", "syntax") from error
    except (ValueError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{where}: {_shorten(str(error) or type(error).__name__)}.", "syntax") from error
    _check(table, where)
    return table


def write_toml(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table, whole or not at all. Raises ConfigError for what TOML cannot hold, ResourceFault."""
    write_atomic(Path(path), to_text(table).encode())


def to_text(table: Mapping[str, Any]) -> str:
    """A table as TOML that reads back equal. Raises ConfigError for None, NaN, infinity and what is no TOML value."""
    _check(table, "The configuration")
    try:
        text = tomli_w.dumps(table)
        same = tomllib.loads(text) == _lists(table)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"The configuration cannot be written as TOML: {_shorten(str(error))}.") from error
    if not same or len(text.encode()) > MAX_BYTES:
        raise ConfigError("The configuration cannot be written as TOML that reads back equal.")
    return text


def digest(table: Mapping[str, Any]) -> str:
    """The sha256 of a table, whatever the order of its keys; 1 and 1.0 differ. Raises ConfigError."""
    _check(table, "The configuration")
    text = json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What has changed, in words: `run.steps: 100 -> 200`, `agents.all.rate: 0.1 -> (absent)`; sorted by key."""
    before, after = dict(_flat(old)), dict(_flat(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if type(one) is not type(other) or one != other:
            lines.append(f"{key}: {_word(one)} -> {_word(other)}")
    return lines


_ABSENT = object()


def _word(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    if isinstance(value, Mapping):
        return "(empty)"
    return show(value) if isinstance(value, str) else _shorten(as_text(value))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _check(table: Mapping[str, Any], where: str) -> None:
    """Layer by layer, so that no nesting is too deep for it. Raises ConfigError with the key."""
    layer: list[tuple[str, Any]] = [("", table)]
    for _ in range(MAX_DEPTH + 1):
        if not layer:
            return
        layer = [inner for key, value in layer for inner in _inside(key, value, where)]
    if layer:
        raise ConfigError(f"{where}: {_shorten(layer[0][0])} is nested deeper than {MAX_DEPTH}.", "syntax")


def _inside(key: str, value: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise ConfigError(f"{where}: the names in {_shorten(key) or 'it'} must be text.")
        return [(f"{key[:200]}.{name}" if key else name, item) for name, item in value.items()]
    if isinstance(value, list | tuple):
        return [(f"{key[:200]}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {_shorten(key)} must be a finite number, not {value}.", "bounds")
    if isinstance(value, int) and not -INT64 <= value < INT64:
        message = f"{where}: {_shorten(key)} must be a number of at most 64 bits, not {show(value)}."
        raise ConfigError(message, "bounds")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{where}: {_shorten(key)} must be text that UTF-8 can hold.")
    if not isinstance(value, str | int | float | datetime.datetime | datetime.date | datetime.time):
        raise ConfigError(f"{where}: {_shorten(key)} cannot be {type(value).__name__}: TOML has no such value.")
    return []


def _shorten(text: str) -> str:
    text = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]+", " ", text).rstrip(". ")
    return text if len(text) <= 160 else text[:157] + "..."
