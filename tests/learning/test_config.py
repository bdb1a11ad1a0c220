"""Configuration files: strict, one line for every mistake, and never another exception."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from mfmarl.errors import ConfigError, ResourceFault
from mfmarl.learning.config import (
    MAX_BYTES,
    MAX_DEPTH,
    difference,
    digest,
    parse_toml,
    read_toml,
    to_text,
    write_toml,
)
from mfmarl.options import Bounds, from_table, to_table


@dataclass(frozen=True)
class Schedule:
    start: Annotated[float, Bounds(0, 100, open_low=True)] = 1.0
    steps: int | None = None


@dataclass(frozen=True)
class Run:
    name: str = "first"
    seed: int = 0
    steps: Annotated[int, Bounds(1, 10**12)] = 1000
    sharing: Literal["all", "group", "none"] = "all"
    rate: Annotated[float, Bounds(0, 1)] = 1e-3
    hidden: tuple[int, ...] = (64, 64)
    resume: bool = False
    schedule: Schedule = Schedule()


BASE = b"""# a run
[run]
name = "first"
seed = 7
steps = 1_000
sharing = "group"
rate = 5e-4
hidden = [64, 32]
resume = false

[run.schedule]
start = 2.5
steps = 400

[environment]
name = "ising"
size = [20, 20]
"""

TABLE = {
    "run": {"name": 'a "quoted" ü 🐝\n', "seed": -(2**63), "steps": 2**63 - 1, "rate": 1e-300, "on": True},
    "environment": {
        "name": "ising",
        "size": [20, 20],
        "nested": {"deep": [[1, 2], []]},
        "when": datetime.date(2026, 1, 2),
    },
    "agents": {"all": {"name": "mfq"}, "a.b c": {}},
}


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    write_toml(tmp_path / "config.toml", TABLE)
    assert read_toml(tmp_path / "config.toml") == TABLE
    assert os.listdir(tmp_path) == ["config.toml"]


def test_a_table_with_tuples_is_written_as_lists() -> None:
    assert parse_toml(to_text({"size": (20, 20)}).encode(), "x") == {"size": [20, 20]}


def test_a_dataclass_survives_the_file(tmp_path: Path) -> None:
    run = Run("x", seed=-1, rate=0.1 + 0.2, hidden=(), schedule=Schedule(1e-9, 2**53 + 1))
    write_toml(tmp_path / "config.toml", {"run": to_table(run)})
    assert from_table(Run, read_toml(tmp_path / "config.toml")["run"]) == run


def test_windows_line_ends_and_a_byte_order_mark_are_read() -> None:
    assert parse_toml(b"\xef\xbb\xbfa = 1\r\nb = 2\r\n", "x") == {"a": 1, "b": 2}


BAD_FILES = [
    (b"a = 1\na = 2\n", "line 2"),
    (b"[t]\nx = 1\n[t]\ny = 1\n", "line 3"),
    (b"a = \n", "line 1"),
    (b"a = 1\nb = nope\n", "line 2"),
    (b"a = nan\n", "a must be a finite number, not nan"),
    (b"[t]\na = [1.0, -inf]\n", "t.a[1] must be a finite number, not -inf"),
    (b"a = 1e400\n", "finite"),
    (b"a = 9223372036854775808\n", "64 bits"),
    (b"a = 1" + b"0" * 30 + b"\n", "64 bits"),
    (b"a = " + b"9" * 1_000_000 + b"\n", "digits"),
    (b"a = 0x" + b"f" * 100_000 + b"\n", "400000 bits"),
    (b"a = \xff\xfe\n", "line 1 is not UTF-8"),
    (b"ok = 1\n# \x80\n", "line 2 is not UTF-8"),
    (b"a = 1\0\n", "line 1"),
    (b"\xff\xfea\0 \0=\0", "UTF-8"),
    (b"a = " + b"[" * 100_000 + b"]" * 100_000 + b"\n", "nested deeper"),
    (b"a = " + b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2) + b"\n", "nested deeper"),
    (b"a" + b".a" * 30 + b" = 1\n", "nested deeper"),
    (b"# " + b"x" * MAX_BYTES + b"\n", "more than"),
    (b"PK\x03\x04\x14\0\0\0", "UTF-8|line 1"),
    (b"\x80\x05\x95\0\0", "UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file_is_one_line_that_names_the_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as caught:
        read_toml(path)
    text = str(caught.value)
    assert "run.toml" in text and "\n" not in text and len(text) < 400 + len(str(path))


@pytest.mark.timeout(60)
def test_dotted_keys_do_not_take_time_without_end() -> None:
    hostile = b"".join(b".".join([b"a"] * 200) + b".k%d = 1\n" % i for i in range(2000))
    with pytest.raises(ConfigError, match="nested deeper"):
        parse_toml(hostile, "x")


def test_what_is_not_a_file_is_a_config_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none.toml", tmp_path / "pipe", Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(ConfigError):
            read_toml(path)


NOT_TOML: list[Any] = [None, math.nan, math.inf, 2**63, {1: 2}, object(), b"bytes", 1j, "\ud800", {"x": [None]}, {1, 2}]


@pytest.mark.parametrize("value", NOT_TOML, ids=range(len(NOT_TOML)))
def test_what_toml_cannot_hold_is_not_written(value: Any, tmp_path: Path) -> None:
    write_toml(tmp_path / "x.toml", {"old": 1})
    for table in ({"a": value}, {"t": {"a": [value]}}):
        with pytest.raises(ConfigError):
            write_toml(tmp_path / "x.toml", table)
    assert read_toml(tmp_path / "x.toml") == {"old": 1}


def test_a_file_that_cannot_be_written_is_a_resource_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "x.toml", tmp_path / "gone" / "x.toml"):
        with pytest.raises(ResourceFault, match=r"x\.toml|cannot be written"):
            write_toml(path, {"a": 1})


def test_differences_are_told_by_key() -> None:
    old = {"run": {"steps": 100, "seed": 1, "deep": {"a": 1}}, "x": [1, 2], "same": 1.5, "gone": "a\nb"}
    new = {"run": {"steps": 200, "seed": 1.0, "deep": {"a": 1}}, "x": (1, 2), "same": 1.5, "new": True, "empty": {}}
    assert difference(old, new) == [
        "empty: (absent) -> (empty)",
        "gone: 'a\\nb' -> (absent)",
        "new: (absent) -> true",
        "run.seed: 1 -> 1.0",
        "run.steps: 100 -> 200",
    ]
    assert difference(old, old) == []


def test_the_digest_knows_values_and_not_the_order_of_keys() -> None:
    one = {"a": 1, "t": {"x": [1, 2.5], "y": "z"}}
    other = {"t": {"y": "z", "x": [1, 2.5]}, "a": 1}
    assert digest(one) == digest(other)
    assert digest(one) == hashlib.sha256(b'{"a":1,"t":{"x":[1,2.5],"y":"z"}}').hexdigest()
    changed: list[dict[str, Any]] = [
        {"a": 1.0},
        {"a": True},
        {"a": "1"},
        {"a": 2},
        {"a": [1]},
        {"b": 1},
        {"a": {"a": 1}},
    ]
    assert len({digest(table) for table in [{"a": 1}, *changed]}) == 1 + len(changed)
    with pytest.raises(ConfigError):
        digest({"a": math.nan})


TOKENS = [b"nan", b"-inf", b"1e400", b"true", b'"10"', b"[[", b"]]", b"=", b".", b"\n", b"\0", b"\xff", b"'''", b'"""']
TOKENS += [
    b"1_0",
    b"0x",
    b"99999999999999999999",
    b"{a=1}",
    b"[run]",
    b"steps",
    b"none",
    b"\\ud800",
    b"2026-01-01",
    b"#",
]


def _mutated(random_: random.Random) -> bytes:
    text = bytearray(BASE)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(text) + 1)
        kind = random_.randrange(6)
        if kind == 0:
            text[at:at] = random_.choice(TOKENS)
        elif kind == 1:
            text[at : at + random_.randint(1, 6)] = random_.choice(TOKENS)
        elif kind == 2:
            del text[at : at + random_.randint(1, 12)]
        elif kind == 3 and at < len(text):
            text[at] ^= 1 << random_.randrange(8)
        elif kind == 4:
            lines = bytes(text).split(b"\n")
            lines.insert(random_.randrange(len(lines)), random_.choice(lines))
            text = bytearray(b"\n".join(lines))
        else:
            text = text[:at] + text[at + 5 : at + 30] + text[at:]
    return bytes(text)


def test_twenty_thousand_mutated_files_are_read_right_or_refused() -> None:
    """Only ConfigError; what is accepted is finite, within its bounds, and survives being written again."""
    random_ = random.Random(2026)
    accepted = refused = longest = 0
    for _ in range(20_000):
        content = _mutated(random_)
        try:
            run = from_table(Run, parse_toml(content, "run.toml").get("run", {}), "run.toml [run]")
        except ConfigError as error:
            refused += 1
            longest = max(longest, len(str(error)))
            continue
        accepted += 1
        assert 0 <= run.rate <= 1 and 1 <= run.steps <= 10**12 and 0 < run.schedule.start <= 100
        assert type(run.rate) is float and type(run.seed) is int and type(run.resume) is bool
        if accepted % 10 == 0:
            assert from_table(Run, parse_toml(to_text({"run": to_table(run)}).encode(), "again")["run"]) == run
    assert 0 < longest < 4000
    assert accepted > 1000 and refused > 5000  # the mutations are neither harmless nor hopeless


def test_a_mebibyte_is_read_and_not_a_byte_more() -> None:
    assert MAX_BYTES == 1_048_576 and MAX_DEPTH == 20
    room = MAX_BYTES - len(b"a = 1\n# ")
    assert parse_toml(b"a = 1\n# " + b"x" * room, "x") == {"a": 1}
    with pytest.raises(ConfigError, match=r"^x has 1,048,577 bytes, more than the 1,048,576 that") as caught:
        parse_toml(b"a = 1\n# " + b"x" * (room + 1), "x")
    assert caught.value.code == "syntax"
    text = "x" * (MAX_BYTES - len('a = ""\n'))
    assert to_text({"a": text}) == f'a = "{text}"\n'
    with pytest.raises(ConfigError, match="cannot be written as TOML that reads back equal"):
        to_text({"a": text + "x"})


def test_twenty_tables_deep_is_read_and_not_one_deeper() -> None:
    for make in (lambda n: b".".join([b"a"] * n) + b" = 1", lambda n: b"a = " + b"[" * (n - 1) + b"1" + b"]" * (n - 1)):
        assert parse_toml(make(MAX_DEPTH), "x")
        with pytest.raises(ConfigError, match=r"x: a.* is nested deeper than 20") as caught:
            parse_toml(make(MAX_DEPTH + 1), "x")
        assert caught.value.code == "syntax"


def test_the_line_that_is_no_text_is_counted_from_one() -> None:
    for content, line in ((b"\xff", 1), (b"\n\xff", 2), (b"a = 1\n\n\xff\n\xff", 3)):
        with pytest.raises(ConfigError, match=f"^x: line {line} is not UTF-8 text"):
            parse_toml(content, "x")


def test_a_time_with_an_offset_has_no_toml() -> None:
    aware = datetime.time(1, 2, tzinfo=datetime.UTC)
    with pytest.raises(ConfigError, match=r"^The configuration cannot be written as TOML: .*offset"):
        to_text({"a": aware})
    whole = {"t": datetime.time(1, 2), "d": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)}
    assert parse_toml(to_text(whole).encode(), "x") == whole


@pytest.mark.parametrize(
    ("value", "words", "code"),
    [
        (object(), r"t\.a\[1\] cannot be object: TOML has no such value", "usage"),
        ({1: 2}, r"the names in t\.a\[1\] must be text", "usage"),
        (math.inf, r"t\.a\[1\] must be a finite number, not inf", "bounds"),
        (-math.inf, r"t\.a\[1\] must be a finite number, not -inf", "bounds"),
        (2**63, r"t\.a\[1\] must be a number of at most 64 bits, not 9223372036854775808", "bounds"),
        (-(2**63) - 1, r"t\.a\[1\] must be a number of at most 64 bits", "bounds"),
        ("\udfff", r"t\.a\[1\] must be text that UTF-8 can hold", "usage"),
        (None, r"t\.a\[1\] cannot be NoneType", "usage"),
    ],
)
def test_what_is_no_configuration_has_neither_text_nor_digest(value: Any, words: str, code: str) -> None:
    for made_of in (to_text, digest):
        with pytest.raises(ConfigError, match=rf"^The configuration: {words}") as caught:
            made_of({"t": {"a": [1, value]}})
        assert caught.value.code == code
    for fine in (2**63 - 1, -(2**63), "\ud7ff\ue000", True, datetime.date(2026, 1, 2)):
        assert len(digest({"a": fine})) == 64
    with pytest.raises(ConfigError, match="the names in it must be text"):
        digest({1: 2})  # type: ignore[dict-item]


def test_long_names_are_cut_in_messages() -> None:
    for length, shown in ((160, "k" * 160), (161, "k" * 157 + "...")):
        with pytest.raises(ConfigError) as caught:
            digest({"k" * length: math.nan})
        assert str(caught.value) == f"The configuration: {shown} must be a finite number, not nan."
    with pytest.raises(ConfigError) as caught:
        digest({"a\n\x1b[31mb": {"c": math.nan}})
    assert str(caught.value) == "The configuration: a [31mb.c must be a finite number, not nan."
