"""Options: the fields of a frozen dataclass, read from TOML tables and command-line text, printed back, documented.

Every agent, every environment and the run itself are configured by frozen dataclasses. A field may be an
`int`, `float`, `bool`, `str`, a `Literal`, a tuple of those, another such dataclass, and any of them `| None`.
Numbers take bounds by `Annotated[float, Bounds(0, 1)]`; no float is ever non-finite, no int beyond 64 bits.

Every number has a finite lowest and highest value, that of its type (WHOLE, REAL) where its field names none; texts and
tuples are at most LONGEST long.

Nothing is converted behind the user's back: `true` is not 1 and `"10"` is not 10. All that is wrong with a table
is told at once. TOML has no null: a field that is None is absent where None is its default, else the word "none".
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import re
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from mfmarl.errors import ConfigError, nearest

T = TypeVar("T")

INT64 = 2**63
NONE = "none"
_TOLD_AT_ONCE = 20


@dataclass(frozen=True)
class Bounds:
    """The numbers an option may take, ends included unless `open_low` or `open_high`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def allow(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low, high = _short(self.low), _short(self.high)
        if self.high == math.inf:
            return "any" if self.low == -math.inf else f"{'>' if self.open_low else '>='} {low}"
        if self.low == -math.inf:
            return f"{'<' if self.open_high else '<='} {high}"
        return f"in {'(' if self.open_low else '['}{low}, {high}{')' if self.open_high else ']'}"


def _short(number: float) -> str:
    whole = math.isfinite(number) and number == int(number) and abs(number) < 1e15
    return str(int(number)) if whole else f"{number:g}"


ANY = Bounds()
WHOLE = Bounds(-INT64, INT64 - 1)
REAL = Bounds(-1e18, 1e18)
"""Of a float whose field names no bounds: its square is finite in float32 too."""
LONGEST = 100_000
"""Letters of a text, elements of a tuple."""

Count = Annotated[int, Bounds(1, 1 << 40)]
Whole = Annotated[int, Bounds(0, 1 << 40)]
Seed = Annotated[int, Bounds(0, INT64 - 1)]
Share = Annotated[float, Bounds(0, 1)]
Amount = Annotated[float, Bounds(-1e9, 1e9)]
"""A reward, a price, a strength: of whatever sign, and small enough that a crowd's sum of squares is finite."""


class Problem(NamedTuple):
    """One thing that is wrong with a table."""

    text: str
    code: str
    key: str
    """Of what: `outer.inner`, `hidden[1]`; empty: of the table."""


@dataclass(frozen=True)
class Option:
    """One option as a user sees it. Those of a nested dataclass are named `outer.inner`."""

    name: str
    type: str
    """In words: `int >= 1`, `'all' | 'group'`, `int,int`, `float or none`."""
    default: Any
    """What it is when not given; `dataclasses.MISSING` when it must be given."""
    help: str
    choices: tuple[str, ...] = ()
    """The words it may be, as typed on the command line; empty: not a choice between words."""
    settable: bool = True
    """False: only Python code can give it (a graph, a function)."""

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def default_text(self) -> str:
        """The default as it would be typed on the command line."""
        return "(required)" if self.required else as_text(self.default)


def from_table(cls: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """The dataclass that a table (of TOML or JSON values) describes.

    `where` begins every message, such as `run.toml [environment]`.
    Raises ConfigError that tells all problems at once, one a line.
    """
    value, problems = read_table(cls, table, where)
    if problems:
        raise told(problems)
    return value  # type: ignore[return-value]


def read_table(cls: type[T], table: Mapping[str, Any], where: str = "") -> tuple[T | None, list[Problem]]:
    """`from_table` that gives the problems back, for who reads several tables: a value, or None and what is wrong."""
    problems: list[Problem] = []
    prefix = f"{where}: " if where else ""
    value = _read_dataclass(cls, table, prefix, "", problems)
    return value, [problem._replace(key=problem.key.removeprefix(prefix)) for problem in problems]


def to_table(value: Any) -> dict[str, Any]:
    """The table that `from_table` reads back to an equal dataclass.

    Raises ConfigError for a value that could not be read back: non-finite, of another type, or only Python can give it.
    """
    cls = type(value)
    table: dict[str, Any] = {}
    problems: list[Problem] = []
    for field, hint in _fields(cls):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        default = _default(field)
        if item is None and default is None:
            continue
        if not _settable(hint):
            if item is not default and not (default is not dataclasses.MISSING and _same(item, default)):
                text = f"{cls.__name__}.{field.name} can only be given in Python, so no file can hold it."
                problems.append(Problem(text, "wrong-type", field.name))
            continue
        plain = _plain(item)
        if dataclasses.is_dataclass(item):
            table[field.name] = to_table(item)
        else:
            table[field.name] = _plain(_read(hint, plain, f"{cls.__name__}.{field.name}", ANY, problems))
    if problems:
        raise told(problems)
    return table


def check_numbers(value: Any) -> None:
    """Holds the numbers of a dataclass that Python made against their types and bounds, as `from_table` does a table's.

    What is no plain number (a tensor of one for each game of a batch) is its maker's to know. Raises ConfigError that
    tells all problems at once.
    """
    problems: list[Problem] = []
    for field, hint in _fields(type(value)):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        if isinstance(item, int | float) and not isinstance(item, bool):
            _read(hint, item, f"{type(value).__name__}.{field.name}", ANY, problems)
    if problems:
        raise told(problems)


def parse_value(cls: type, field: str, text: str, where: str = "") -> Any:
    """The value of one field from command-line text: `400`, `0.5`, `true`, `20,20`, `none`, a word.

    `field` is a field's name, or `outer.inner` for a nested dataclass. Raises ConfigError.
    """
    prefix = f"{where}: " if where else ""
    hint = _hint_of(cls, field, prefix)
    problems: list[Problem] = []
    value = _read(hint, _from_text(hint, text), f"{prefix}{field}", ANY, problems)
    if problems:
        raise told(problems)
    return value


def with_option(cls: type, table: Mapping[str, Any], field: str, text: str, where: str = "") -> dict[str, Any]:
    """The table with one option set from command-line text; `field` may be `outer.inner`. Raises ConfigError."""
    value = _plain(parse_value(cls, field, text, where))
    changed = dict(table)
    inside = changed
    *outer, last = field.split(".")
    for part in outer:
        below = inside.get(part)
        inside[part] = dict(below) if isinstance(below, Mapping) else {}
        inside = inside[part]
    inside[last] = value
    return changed


def options_of(cls: type) -> list[Option]:
    """Every option of a dataclass in the order of its fields, with the string under the field as help."""
    return list(_options_of(cls))


@cache
def _options_of(cls: type) -> tuple[Option, ...]:
    found: list[Option] = []
    texts = _help_texts(cls)
    for field, hint in _fields(cls):
        default = _default(field)
        inner = None if _plain_members(hint) else _dataclass_in(hint)
        text = texts.get(field.name, "")
        if inner is not None:
            found += _nested_options(field.name, inner, default, text)
        else:
            found.append(Option(field.name, describe(hint), default, text, _choices(hint), _settable(hint)))
    return tuple(found)


def _nested_options(name: str, inner: type, default: Any, text: str) -> list[Option]:
    options = []
    for option in options_of(inner):
        value = option.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            value = default
            for part in option.name.split("."):
                value = getattr(value, part)
        words = f"{text.rstrip('.')}: {option.help}" if text and option.help else text or option.help
        options.append(dataclasses.replace(option, name=f"{name}.{option.name}", default=value, help=words))
    return options


def describe(hint: Any) -> str:
    """A type in words."""
    return _describe(hint, ANY)


def as_text(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        items = [as_text(item) for item in value]
        items = [
            f"({text})" if isinstance(item, tuple | list) and not _encloses(text) else text
            for item, text in zip(value, items, strict=True)
        ]
        return ",".join(items) if len(items) > 1 else f"({''.join(items)})"
    if isinstance(value, float):
        return repr(float(value))
    return str(value)


def unbounded(cls: type) -> list[str]:
    """The numbers among the options of a dataclass whose fields name no finite bounds on both sides: `bins: int >= 1`."""
    return [
        f"{field.name}: {_describe(kind, bounds)}"
        for field, hint in _fields(cls)
        for kind, bounds in _numbers(hint, ANY)
        if not (math.isfinite(bounds.low) and math.isfinite(bounds.high))
    ]


def _numbers(hint: Any, bounds: Bounds) -> Iterator[tuple[type, Bounds]]:
    """Every number that a type holds, with the bounds that its field names."""
    inner, bounds = _split(hint, bounds)
    if inner in (int, float):
        yield inner, bounds
    elif _is_dataclass(inner):
        for _, part in _fields(inner):
            yield from _numbers(part, ANY)
    elif get_origin(inner) in (Union, types.UnionType, tuple):
        for part in get_args(inner):
            if part is not Ellipsis:
                yield from _numbers(part, bounds)


# The fields of a dataclass and what they may hold


@cache
def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{cls.__name__} has no options: write it as a @dataclass(frozen=True).")
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as error:
        raise ConfigError(f"The type of an option of {cls.__name__} cannot be resolved: {error}.") from error
    return [(field, hints[field.name]) for field in dataclasses.fields(cls) if field.init]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _split(hint: Any, bounds: Bounds = ANY) -> tuple[Any, Bounds]:
    """The type inside Annotated, with its bounds."""
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        return inner, next((extra for extra in extras if isinstance(extra, Bounds)), bounds)
    return hint, bounds


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of anything else, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _element_hints(hint: Any, length: int) -> list[Any] | None:
    """The type of each element of a tuple of that length; None: another length is wanted."""
    args = get_args(hint)
    if len(args) == 2 and args[1] is Ellipsis:
        return [args[0]] * length
    return list(args) if len(args) == length else None


def _plain_members(hint: Any) -> list[Any]:
    """The types of a union that one word or number can say: of `Literal["torus"] | Graph`, the literal."""
    inner, _ = _split(hint)
    kinds = [member for member in _members(inner) if member is not type(None)]
    return [kind for kind in kinds if _settable(kind) and not _is_dataclass(_split(kind)[0])]


def _is_dataclass(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _dataclass_in(hint: Any) -> type | None:
    inner, _ = _split(hint)
    return next((member for member in _members(inner) if _is_dataclass(member)), None)


def _settable(hint: Any) -> bool:
    inner, _ = _split(hint)
    if get_origin(inner) in (Union, types.UnionType):
        return any(_settable(member) for member in _members(inner) if member is not type(None))
    if get_origin(inner) is tuple:
        return all(arg is Ellipsis or _settable(arg) for arg in get_args(inner))
    return inner in (int, float, bool, str) or get_origin(inner) is Literal or _is_dataclass(inner)


def _choices(hint: Any) -> tuple[str, ...]:
    inner, _ = _split(hint)
    members = [m for m in _members(inner) if m is not type(None) and not _is_dataclass(_split(m)[0])]
    if inner is bool:
        return ("true", "false")
    if members and all(get_origin(_split(member)[0]) is Literal for member in members):
        words = tuple(as_text(choice) for member in members for choice in get_args(_split(member)[0]))
        return words + ((NONE,) if type(None) in _members(inner) else ())
    return ()


def _describe(hint: Any, bounds: Bounds) -> str:
    inner, bounds = _split(hint, bounds)
    origin = get_origin(inner)
    if origin in (Union, types.UnionType):
        words = [_describe(member, bounds) for member in _members(inner) if member is not type(None)]
        return " or ".join(words + ([NONE] if type(None) in _members(inner) else []))
    if origin is Literal:
        return " | ".join(repr(choice) if isinstance(choice, str) else as_text(choice) for choice in get_args(inner))
    if origin is tuple:
        args = get_args(inner)
        if len(args) == 2 and args[1] is Ellipsis:
            return f"{_describe(args[0], bounds)},..."
        return ",".join(_describe(arg, bounds) for arg in args)
    name = inner.__name__ if isinstance(inner, type) else str(inner)
    return f"{name} {bounds}" if inner in (int, float) and bounds != ANY else name


# Reading


def _read_dataclass(cls: type, table: Any, prefix: str, path: str, problems: list[Problem]) -> Any:
    """`prefix` begins a message, `path` is that of the nested table: `inner.`."""
    if not isinstance(table, Mapping):
        text = f"{prefix}{path.rstrip('.') or cls.__name__} must be a table, not {show(table)}."
        problems.append(Problem(text, "wrong-type", path.rstrip(".")))
        return None
    before = len(problems)
    known = {field.name: (field, hint) for field, hint in _fields(cls)}
    for key in table:
        if key not in known:
            hint = nearest(str(key)[:60], known) if len(problems) < _TOLD_AT_ONCE and known else ""
            text = f"{prefix}{path}{_show_key(key)} is not an option of {cls.__name__}.{hint}"
            problems.append(Problem(text, "unknown-option", f"{path}{key}"))
    values = {}
    for name, (field, hint) in known.items():
        label = f"{prefix}{path}{name}"
        if name in table:
            nested = _dataclass_in(hint)
            if nested is not None and isinstance(table[name], Mapping):
                values[name] = _read_dataclass(nested, table[name], prefix, f"{path}{name}.", problems)
            else:
                values[name] = _read(hint, table[name], label, ANY, problems)
        elif _default(field) is dataclasses.MISSING:
            problems.append(
                Problem(f"{label} is missing: it must be {describe(hint)}.", "missing-option", path.rstrip("."))
            )
    if any(problem.code != "unknown-option" for problem in problems[before:]):
        return None
    # What is unknown does not keep the class from judging the rest: all is told at once.
    try:
        made = cls(**values)
        return made if len(problems) == before else None
    except ConfigError as error:
        text = f"{prefix}{path.rstrip('.')}{': ' if path else ''}{error}"
        problems.append(Problem(text, error.code, _named_in(str(error), path, known)))
    except (ValueError, TypeError, ArithmeticError) as error:
        text = f"{prefix}{path.rstrip('.')}{': ' if path else ''}{cls.__name__} refused its options: {error}"
        problems.append(Problem(text, "usage", path.rstrip(".")))
    return None


def _named_in(message: str, path: str, known: Iterable[str]) -> str:
    """The option that a class's own complaint is about: the one it names, where it names one alone."""
    named = [name for name in known if re.search(rf"(?<![A-Za-z0-9_]){name}(?![A-Za-z0-9_])", message)]
    return f"{path}{named[0]}" if len(named) == 1 else path.rstrip(".")


def _read(hint: Any, value: Any, label: str, bounds: Bounds, problems: list[Problem]) -> Any:
    """`value` as the type demands, or None with a problem told."""
    inner, bounds = _split(hint, bounds)
    origin = get_origin(inner)
    if origin in (Union, types.UnionType):
        return _read_union(inner, value, label, bounds, problems)
    if origin is Literal:
        return _read_literal(get_args(inner), value, label, problems)
    if origin is tuple:
        return _read_tuple(inner, value, label, bounds, problems)
    if _is_dataclass(inner):
        return value if isinstance(value, inner) else _read_dataclass(inner, value, "", f"{label}.", problems)
    if not _settable(inner):
        problems.append(Problem(f"{label} can only be given in Python, not by text or a file.", "wrong-type", label))
        return None
    if inner is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a temperature may be written 0.5 as well as "0.5"
    if not isinstance(value, int | float | str) and getattr(value, "ndim", None) == 0:
        value = _plain(value)  # a number of numpy's or torch's
    code, wrong = _scalar_problem(inner, value, bounds)
    if wrong:
        problems.append(Problem(f"{label} {wrong}", code, label))
        return None
    return inner(value)


def _scalar_problem(kind: type, value: Any, bounds: Bounds) -> tuple[str, str]:
    """The code and the sentence of what is wrong; empty: nothing is."""
    if type(value) is kind and kind is not str and kind is not bool and _fits(kind, value, bounds):
        return "", ""
    wanted = f"must be {_describe(kind, bounds)}"
    if kind is bool:
        return "wrong-type", "" if isinstance(value, bool) else f"must be true or false, not {show(value)}."
    if kind is str:
        return _text_problem(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "wrong-type", f"{wanted}, not {show(value)}."
    if isinstance(value, int) and not WHOLE.allow(value):
        return "bounds", f"{wanted} of at most 64 bits, not {show(value)}."
    if kind is int and not isinstance(value, int):
        return "wrong-type", f"{wanted} (a whole number written without a point), not {show(value)}."
    if isinstance(value, float) and not math.isfinite(value):
        return "bounds", f"{wanted} and finite, not {show(value)}."
    if not bounds.allow(value):
        return "bounds", f"{wanted}, not {show(value)}."
    if kind is float and not (math.isfinite(bounds.low) and math.isfinite(bounds.high)) and not REAL.allow(value):
        return "bounds", f"must be float {REAL}, not {show(value)}."
    return "", ""


def _fits(kind: type, value: Any, bounds: Bounds) -> bool:
    """Whether a number of that very type is in its bounds: the usual case, decided without a sentence."""
    if not bounds.allow(value):
        return False
    if kind is int:
        return WHOLE.allow(value)
    return math.isfinite(value) and (REAL.allow(value) or (math.isfinite(bounds.low) and math.isfinite(bounds.high)))


def _text_problem(value: Any) -> tuple[str, str]:
    if not isinstance(value, str):
        return "wrong-type", f"must be text, not {show(value)}."
    if len(value) > LONGEST:
        return "bounds", f"must be text of at most {LONGEST:,} letters, not {len(value):,}."
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        return "wrong-type", "must be text without NUL and lone surrogates."
    return "", ""


def _read_union(union: Any, value: Any, label: str, bounds: Bounds, problems: list[Problem]) -> Any:
    members = _members(union)
    if type(None) in members and (value is None or value == NONE):
        return None
    rest = [member for member in members if member is not type(None)]
    rest.sort(key=lambda member: type(value) is not _split(member)[0])  # an int stays an int in `float | int`
    refused: list[list[Problem]] = []
    for member in rest:
        refused.append([])
        found = _read(member, value, label, bounds, refused[-1])
        if not refused[-1]:
            return found
    plain = [i for i, member in enumerate(rest) if not _is_dataclass(_split(member)[0])]
    if len(plain) == 1 and not isinstance(value, Mapping):
        problems += refused[plain[0]]
    elif len(rest) == 1:
        problems += refused[0]
    else:
        problems.append(Problem(f"{label} must be {_describe(union, bounds)}, not {show(value)}.", "wrong-type", label))
    return None


def _read_literal(choices: tuple[Any, ...], value: Any, label: str, problems: list[Problem]) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    if None in choices and value == NONE:
        return None
    words = [as_text(choice) for choice in choices]
    hint = nearest(value[:60], words) if isinstance(value, str) else ""
    hint = hint if hint.startswith(" Did") else ""
    text = f"{label} must be {_describe(Literal[choices], ANY)}, not {show(value)}.{hint}"
    problems.append(Problem(text, "unknown-name" if isinstance(value, str) else "wrong-type", label))
    return None


def _read_tuple(hint: Any, value: Any, label: str, bounds: Bounds, problems: list[Problem]) -> Any:
    if not isinstance(value, list | tuple):
        text = f"{label} must be a list ({_describe(hint, bounds)}), not {show(value)}."
        problems.append(Problem(text, "wrong-type", label))
        return None
    if len(value) > LONGEST:
        problems.append(
            Problem(f"{label} must have at most {LONGEST:,} elements, not {len(value):,}.", "bounds", label)
        )
        return None
    elements = _element_hints(hint, len(value))
    if elements is None:
        text = f"{label} must have {len(get_args(hint))} elements, not {len(value)}."
        problems.append(Problem(text, "wrong-type", label))
        return None
    pairs = enumerate(zip(elements, value, strict=True))
    return tuple(_read(element, item, f"{label}[{i}]", bounds, problems) for i, (element, item) in pairs)


# Command-line text to the value a table would hold. What does not fit stays text, for `_read` to refuse.

_WHOLE = re.compile(r"[+-]?[0-9][0-9_]{0,4000}", re.ASCII)
_REAL = re.compile(r"[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.I)


def _from_text(hint: Any, text: str) -> Any:
    inner, _ = _split(hint)
    origin = get_origin(inner)
    word = text.strip()
    if origin in (Union, types.UnionType):
        if type(None) in _members(inner) and word.lower() == NONE:
            return NONE
        members = [member for member in _members(inner) if member is not type(None)]
        members.sort(key=lambda member: _split(member)[0] is str)
        tries = [_from_text(member, text) for member in members]
        fitting = (plain for member, plain in zip(members, tries, strict=True) if not _problems(member, plain))
        return next(fitting, tries[0] if len(tries) == 1 else text)
    if origin is Literal:
        return next((choice for choice in get_args(inner) if as_text(choice) == word), text)
    if origin is tuple:
        parts = _commas(word)
        elements = _element_hints(inner, len(parts)) or [str] * len(parts)
        return [_from_text(element, part) for element, part in zip(elements, parts, strict=True)]
    if inner is bool:
        return {"true": True, "false": False}.get(word.lower(), text)
    if inner in (int, float):
        return _number(word, text)
    return text


def _number(word: str, text: str) -> Any:
    if _WHOLE.fullmatch(word) and "__" not in word and not word.endswith("_"):
        return int(word)
    if _REAL.fullmatch(word):
        try:
            return float(word)
        except ValueError:
            return text
    return text


def _problems(hint: Any, plain: Any) -> list[Problem]:
    problems: list[Problem] = []
    _read(hint, plain, "", ANY, problems)
    return problems


def _commas(text: str) -> list[str]:
    """Split at commas outside brackets, one pair of brackets round the whole taken off first."""
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _encloses(text):
        text = text[1:-1]
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts]
    return parts[:-1] if parts[-1] == "" else parts


def _encloses(text: str) -> bool:
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0:
            return i == len(text) - 1
    return False


def _hint_of(cls: type, name: str, prefix: str) -> Any:
    outer, _, inner = name.partition(".")
    hints = {field.name: hint for field, hint in _fields(cls)}
    if outer not in hints:
        known = [option.name for option in options_of(cls)]
        text = f"{prefix}{_show_key(name)} is not an option of {cls.__name__}.{nearest(name[:60], known)}"
        raise ConfigError(text, "unknown-option")
    nested = _dataclass_in(hints[outer])
    if not inner:
        return hints[outer]
    if nested is None:
        text = f"{prefix}{outer} has no parts, so {_show_key(name)} is not an option of {cls.__name__}."
        raise ConfigError(text, "unknown-option")
    return _hint_of(nested, inner, f"{prefix}{outer}.")


# Printing


def _plain(value: Any) -> Any:
    """A Python value as a table holds it; numpy and torch scalars become Python's."""
    if value is None:
        return NONE
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_table(value)
    if type(value) not in (bool, int, float) and callable(getattr(value, "item", None)):
        return value.item() if getattr(value, "ndim", 0) == 0 else value
    return value


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False


def show(value: Any) -> str:
    """A value short enough for a message, whatever it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _show_key(key: Any) -> str:
    return key if isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", key) else show(key)


def told(problems: Sequence[Problem]) -> ConfigError:
    """One error for all of them, a line each; its code is that of the first."""
    lines = [problem.text for problem in problems]
    if len(lines) > _TOLD_AT_ONCE:
        lines = [*lines[:_TOLD_AT_ONCE], f"... and {len(lines) - _TOLD_AT_ONCE} more problems."]
    return ConfigError("\n".join(lines), problems[0].code)


# Help: the string literal under a field


def _help_texts(cls: type) -> dict[str, str]:
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            texts.update(_own_help(base))
    return texts


@cache
def _own_help(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    node = tree.body[0]
    body = node.body if isinstance(node, ast.ClassDef) else []
    texts = {}
    for field, after in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            texts[field.target.id] = " ".join(inspect.cleandoc(after.value.value).split())
    return texts
