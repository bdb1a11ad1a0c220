"""Options of frozen dataclasses: nothing is converted silently, and all mistakes are told at once."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfmarl.errors import CODES, ConfigError
from mfmarl.options import (
    INT64,
    LONGEST,
    Amount,
    Bounds,
    Count,
    Seed,
    Share,
    Whole,
    as_text,
    check_numbers,
    describe,
    from_table,
    options_of,
    parse_value,
    read_table,
    show,
    to_table,
    unbounded,
    with_option,
)

Temperature = Annotated[float, Bounds(0, 100, open_low=True)]


@dataclass(frozen=True)
class Schedule:
    start: Temperature = 1.0
    """Where it
    starts."""
    stop: Annotated[float, Bounds(0, 100)] = 0.1
    steps: int | None = 1000
    "None: for ever."


@dataclass(frozen=True)
class Loose:
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise ConfigError(f"amount must not be negative, not {self.amount}.")


@dataclass(frozen=True)
class Lattice:
    num_agents: Annotated[int, Bounds(1, 1_000_000)]
    """Agents on the lattice."""
    size: tuple[int, int] = (20, 20)
    order: Literal["sequential", "synchronous", "checkerboard"] = "sequential"
    """Who is asked when."""
    wrap: bool = True
    coupling: Annotated[float, Bounds(-10, 10)] = 1.0
    field: float | tuple[float, ...] = 0.0
    label: str | None = None
    hidden: Annotated[tuple[int, ...], Bounds(1, 4096)] = (64, 64)
    seeds: tuple[int | None, ...] = ()
    schedule: Schedule = Schedule()
    """How the temperature falls."""
    second: Schedule | None = None
    graph: Any = None
    made: int = dataclasses.field(default=7, init=False)


@dataclass(frozen=True)
class Wider(Lattice):
    extra: int = field(default_factory=lambda: 3)
    """Added."""


@dataclass(frozen=True)
class Picky:
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"low {self.low} is above high {self.high}.")
        if self.low == 13:
            raise ValueError("unlucky")


@dataclass(frozen=True)
class Dimension:
    dimension: Literal[1, 2] = 1


BAD_VALUES = [
    ({"num_agents": True}, "num_agents must be int in [1, 1000000], not true"),
    ({"num_agents": "10"}, "num_agents must be int in [1, 1000000], not '10'"),
    ({"num_agents": 10.0}, "whole number"),
    ({"num_agents": 0}, "num_agents must be int in [1, 1000000], not 0"),
    ({"num_agents": 10**30}, "64 bits"),
    ({"num_agents": 1 << 70000}, "a whole number of 70001 bits"),
    ({"num_agents": None}, "num_agents must be int"),
    ({"wrap": 1}, "wrap must be true or false, not 1"),
    ({"wrap": "true"}, "wrap must be true or false, not 'true'"),
    ({"coupling": math.nan}, "finite"),
    ({"coupling": math.inf}, "finite"),
    ({"coupling": False}, "coupling must be float in [-10, 10], not false"),
    ({"coupling": "1"}, "coupling must be float"),
    ({"coupling": 10.000001}, "coupling must be float in [-10, 10], not 10.000001"),
    ({"coupling": INT64}, "64 bits"),
    ({"field": math.nan}, "field must be float or float,..."),
    ({"field": [0.0, math.inf]}, "field must be float or float,..."),
    ({"size": [1, 2, 3]}, "size must have 2 elements, not 3"),
    ({"size": [1, 2.5]}, "size[1] must be int"),
    ({"size": 20}, "size must be a list (int,int), not 20"),
    ({"hidden": [64, 0]}, "hidden[1] must be int in [1, 4096], not 0"),
    ({"order": "sequentail"}, "Did you mean 'sequential'?"),
    ({"order": 0}, "order must be 'sequential' | 'synchronous' | 'checkerboard', not 0"),
    ({"label": [5]}, "label must be text, not a list of 1"),
    ({"label": True}, "label must be text, not true"),
    ({"label": "a\0b"}, "NUL"),
    ({"label": "\ud800"}, "surrogates"),
    ({"schedule": 3}, "schedule must be a table, not 3"),
    ({"schedule": {"start": 0}}, "schedule.start must be float in (0, 100], not 0"),
    ({"schedule": {"strat": 1.0}}, "schedule.strat is not an option of Schedule. Did you mean 'start'?"),
    ({"second": {"steps": 0.5}}, "second.steps must be int"),
    ({"graph": 1}, "graph can only be given in Python"),
    ({"made": 1}, "made is not an option of Lattice"),
    ({"num_agnets": 4}, "num_agnets is not an option of Lattice. Did you mean 'num_agents'?"),
    ({"x" * 10_000: 4}, "is not an option"),
    ({1: 4}, "1 is not an option"),
]


def test_a_number_is_text_where_text_is_wanted() -> None:
    assert from_table(Lattice, {"num_agents": 4, "label": 0.5}).label == "0.5"


@pytest.mark.parametrize(("table", "message"), BAD_VALUES, ids=[message[:40] for _, message in BAD_VALUES])
def test_a_wrong_value_is_refused_with_the_place_and_what_was_expected(table: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_table(Lattice, {"num_agents": 4, **table}, "run.toml [environment]")
    text = str(caught.value)
    assert message in text
    assert text.startswith("run.toml [environment]: ")
    assert "\n" not in text and len(text) < 400


def test_all_mistakes_are_told_at_once() -> None:
    table = {"size": [1], "moed": 1, "wrap": 1, "schedule": {"start": math.nan, "q": 1}, "order": "x"}
    with pytest.raises(ConfigError) as caught:
        from_table(Lattice, table)
    lines = str(caught.value).split("\n")
    places = sorted(line.split(" ")[0] for line in lines)
    assert places == ["moed", "num_agents", "order", "schedule.q", "schedule.start", "size", "wrap"]
    assert any(line == "num_agents is missing: it must be int in [1, 1000000]." for line in lines)


def test_a_thousand_mistakes_are_told_in_twenty_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        from_table(Lattice, {f"key{i}": i for i in range(1000)})
    assert len(str(caught.value).split("\n")) == 21
    assert "981 more problems" in str(caught.value)


def test_every_typo_of_one_letter_is_answered_with_the_right_name() -> None:
    for option in ("num_agents", "coupling", "schedule", "hidden", "order", "label"):
        for i in range(len(option)):
            typo = option[:i] + option[i + 1 :]
            with pytest.raises(ConfigError, match=f"Did you mean '{option}'"):
                from_table(Lattice, {"num_agents": 1, typo: 1})


def test_what_the_class_itself_refuses_is_a_config_error_with_the_place() -> None:
    with pytest.raises(ConfigError, match=r"^x: low 2 is above high 1"):
        from_table(Picky, {"low": 2}, "x")
    with pytest.raises(ConfigError, match="unlucky"):
        from_table(Picky, {"low": 13, "high": 14})


def test_none_is_absent_where_it_is_the_default_and_a_word_elsewhere() -> None:
    value = Lattice(4, schedule=Schedule(steps=None), second=Schedule(), seeds=(1, None))
    table = to_table(value)
    assert "label" not in table and "graph" not in table
    assert table["schedule"]["steps"] == "none"
    assert table["seeds"] == [1, "none"]
    assert from_table(Lattice, table) == value


def test_what_could_not_be_read_back_is_not_printed() -> None:
    for value in (Lattice(4, coupling=math.nan), Lattice(True), Lattice(4, graph=object()), Lattice(4, size=(1,))):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="Lattice"):
            to_table(value)


def test_numbers_of_numpy_are_printed_as_pythons() -> None:
    table = to_table(Lattice(np.int64(5), coupling=np.float32(0.5), wrap=np.bool_(False)))  # type: ignore[arg-type]
    assert table["num_agents"] == 5 and type(table["num_agents"]) is int
    assert type(table["coupling"]) is float and type(table["wrap"]) is bool


def test_a_float_written_without_a_point_becomes_a_float_and_an_int_stays_one() -> None:
    value = from_table(Lattice, {"num_agents": 4, "coupling": 1})
    assert type(value.coupling) is float
    assert to_table(value)["coupling"] == 1.0 and type(to_table(value)["coupling"]) is float


GOOD_TEXTS = [
    ("num_agents", "400", 400),
    ("num_agents", " 4_000 ", 4000),
    ("coupling", "-1e-3", -0.001),
    ("coupling", "2", 2.0),
    ("wrap", "false", False),
    ("wrap", "True", True),
    ("size", "3,4", (3, 4)),
    ("size", "(3, 4)", (3, 4)),
    ("hidden", "64", (64,)),
    ("hidden", "()", ()),
    ("hidden", "", ()),
    ("seeds", "1,none,3", (1, None, 3)),
    ("field", "0.5", 0.5),
    ("field", "0.5,1", (0.5, 1.0)),
    ("label", "none", None),
    ("label", "12", "12"),
    ("label", "a,b = c", "a,b = c"),
    ("order", "synchronous", "synchronous"),
    ("schedule.start", "0.5", 0.5),
    ("schedule.steps", "none", None),
    ("second.steps", "7", 7),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD_TEXTS)
def test_command_line_text_becomes_the_value_that_it_says(name: str, text: str, value: Any) -> None:
    found = parse_value(Lattice, name, text)
    assert found == value and type(found) is type(value)


BAD_TEXTS = [
    ("num_agents", "1e3"),
    ("num_agents", "4.0"),
    ("num_agents", "four"),
    ("num_agents", "true"),
    ("num_agents", ""),
    ("num_agents", "9" * 5000),
    ("num_agents", "\u0664"),
    ("num_agents", "-1"),
    ("coupling", "nan"),
    ("coupling", "inf"),
    ("coupling", "1e400"),
    ("coupling", "11"),
    ("coupling", "none"),
    ("wrap", "1"),
    ("wrap", "yes"),
    ("size", "3"),
    ("size", "3,x"),
    ("size", "3,4,5"),
    ("hidden", "0"),
    ("order", "sync"),
    ("label", "\udc80"),
    ("schedule", "1"),
    ("schedule.strat", "1"),
    ("num_agents.x", "1"),
    ("graph", "x"),
    ("nothing", "x"),
    ("", "x"),
    (".", "x"),
]


@pytest.mark.parametrize(("name", "text"), BAD_TEXTS)
def test_command_line_text_that_does_not_fit_is_a_config_error(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_value(Lattice, name, text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_an_option_set_by_text_changes_the_table_and_not_the_old_one() -> None:
    table = {"num_agents": 4, "schedule": {"start": 2.0}}
    changed = with_option(Lattice, table, "schedule.steps", "none")
    changed = with_option(Lattice, changed, "second.start", "3")
    assert table == {"num_agents": 4, "schedule": {"start": 2.0}}
    value = from_table(Lattice, changed)
    assert value == Lattice(4, schedule=Schedule(2.0, steps=None), second=Schedule(3.0))


def test_help_is_the_string_under_the_field_and_names_every_nested_option() -> None:
    options = {option.name: option for option in options_of(Wider)}
    assert list(options)[:3] == ["num_agents", "size", "order"]
    assert "made" not in options
    assert options["num_agents"].required and options["num_agents"].help == "Agents on the lattice."
    assert options["order"].choices == ("sequential", "synchronous", "checkerboard")
    assert options["wrap"].choices == ("true", "false")
    assert options["schedule.start"].help == "How the temperature falls: Where it starts."
    assert options["schedule.steps"].default == 1000
    assert options["size"].default_text == "20,20"
    assert options["extra"].default == 3 and options["extra"].help == "Added."
    assert not options["graph"].settable
    assert options["hidden"].type == "int in [1, 4096],..."
    assert options["schedule.start"].type == "float in (0, 100]"


def test_every_default_typed_on_the_command_line_is_the_default() -> None:
    for option in options_of(Wider):
        if not option.required and option.settable:
            assert parse_value(Wider, option.name, option.default_text) == option.default, option.name


def test_bounds_say_what_they_allow() -> None:
    assert describe(Annotated[int, Bounds(1)]) == "int >= 1"
    assert describe(Annotated[float, Bounds(0, open_low=True)]) == "float > 0"
    assert describe(Annotated[float, Bounds(high=1)]) == "float <= 1"
    assert describe(Annotated[float, Bounds(0, 1, open_high=True)]) == "float in [0, 1)"
    assert describe(float | None) == "float or none"
    assert not Bounds(0, 1, open_high=True).allow(1)
    assert Bounds(0, 1).allow(1) and Bounds(0, 1).allow(0) and not Bounds(0, 1, open_low=True).allow(0)


def test_a_number_without_bounds_is_found_wherever_it_hides() -> None:
    loose = ["size: int", "size: int", "field: float", "field: float", "seeds: int", "schedule: int", "second: int"]
    assert unbounded(Lattice) == loose


def test_a_field_without_bounds_has_those_of_its_type() -> None:
    assert from_table(Lattice, {"num_agents": 4, "field": 1e18}).field == 1e18
    with pytest.raises(ConfigError, match=r"must be float in \[-1e\+18, 1e\+18\], not 1.1e\+18"):
        parse_value(Loose, "amount", "1.1e18")


def test_texts_and_lists_have_an_end() -> None:
    assert len(from_table(Lattice, {"num_agents": 4, "label": "x" * LONGEST}).label or "") == LONGEST
    for table in ({"label": "x" * (LONGEST + 1)}, {"hidden": [1] * (LONGEST + 1)}):
        with pytest.raises(ConfigError, match=r"at most 100,000") as caught:
            from_table(Lattice, {"num_agents": 4, **table})
        assert caught.value.code == "bounds"


@pytest.mark.parametrize(
    ("table", "code", "key"),
    [
        ({"num_agents": 4, "num_agnets": 4}, "unknown-option", "num_agnets"),
        ({}, "missing-option", ""),
        ({"num_agents": True}, "wrong-type", "num_agents"),
        ({"num_agents": 10**30}, "bounds", "num_agents"),
        ({"num_agents": 4, "hidden": [64, 0]}, "bounds", "hidden[1]"),
        ({"num_agents": 4, "order": "sequentail"}, "unknown-name", "order"),
        ({"num_agents": 4, "schedule": {"start": 0}}, "bounds", "schedule.start"),
        ({"num_agents": 4, "second": {"strat": 1}}, "unknown-option", "second.strat"),
        ({"num_agents": 4, "label": [1]}, "wrong-type", "label"),
    ],
)
def test_every_problem_says_what_kind_it_is_and_where(table: dict[str, Any], code: str, key: str) -> None:
    value, problems = read_table(Lattice, table, "somewhere")
    assert value is None
    assert [(problem.code, problem.key) for problem in problems] == [(code, key)]
    assert code in CODES
    with pytest.raises(ConfigError) as caught:
        from_table(Lattice, table)
    assert caught.value.code == code


def test_a_classs_own_complaint_is_placed_at_the_option_it_names() -> None:
    _, problems = read_table(Loose, {"amount": -1.0})
    assert [problem.key for problem in problems] == ["amount"]


def test_a_class_without_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="dataclass"):
        options_of(int)


finite = st.floats(-1e18, 1e18)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).filter(lambda word: word != "none")
schedules = st.builds(
    Schedule,
    start=st.floats(0, 100, exclude_min=True),
    stop=st.floats(0, 100),
    steps=st.none() | st.integers(-INT64, INT64 - 1),
)
lattices = st.builds(
    Lattice,
    num_agents=st.integers(1, 1_000_000),
    size=st.tuples(st.integers(-INT64, INT64 - 1), st.integers(0, 9)),
    order=st.sampled_from(["sequential", "synchronous", "checkerboard"]),
    wrap=st.booleans(),
    coupling=st.floats(-10, 10),
    field=finite | st.lists(finite, max_size=3).map(tuple),
    label=st.none() | words,
    hidden=st.lists(st.integers(1, 4096), max_size=3).map(tuple),
    seeds=st.lists(st.none() | st.integers(0, 9), max_size=3).map(tuple),
    schedule=schedules,
    second=st.none() | schedules,
)


@settings(max_examples=80, deadline=None)
@given(lattices)
def test_what_is_printed_reads_back_equal(value: Lattice) -> None:
    assert from_table(Lattice, to_table(value)) == value


@settings(max_examples=80, deadline=None)
@given(lattices)
def test_what_is_typed_reads_back_equal(value: Lattice) -> None:
    for name in ("num_agents", "size", "order", "wrap", "coupling", "field", "hidden", "seeds", "schedule.steps"):
        item: Any = value
        for part in name.split("."):
            item = getattr(item, part)
        assert parse_value(Lattice, name, as_text(item)) == item


@pytest.mark.parametrize("value", [True, 1.0, "1", 3, None, [1]])
def test_a_choice_between_numbers_takes_those_numbers_only(value: Any) -> None:
    assert from_table(Dimension, {"dimension": 1}) == Dimension(1)
    assert parse_value(Dimension, "dimension", "2") == 2
    with pytest.raises(ConfigError, match=r"dimension must be 1 \| 2, not"):
        from_table(Dimension, {"dimension": value})


def test_tuples_of_tuples_are_typed_with_brackets() -> None:
    @dataclass(frozen=True)
    class Layers:
        sizes: tuple[tuple[int, ...], ...]

    Layers.__annotations__["sizes"] = tuple[tuple[int, ...], ...]
    for value in ((), ((),), ((1,),), ((1, 2),), ((1,), (2, 3)), ((), (1,))):
        assert parse_value(Layers, "sizes", as_text(value)) == value


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([f.name for f in dataclasses.fields(Lattice)])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(names | st.text(max_size=5), junk, max_size=5), names, st.text(max_size=12))
def test_no_input_raises_anything_but_config_error(table: dict[str, Any], name: str, text: str) -> None:
    with contextlib.suppress(ConfigError):
        value = from_table(Lattice, {"num_agents": 4, **table})
        assert from_table(Lattice, to_table(value)) == value
    with contextlib.suppress(ConfigError):
        parse_value(Lattice, name, text)


def test_reading_options_imports_nothing_heavy() -> None:
    code = "import sys, mfmarl.options; print([m for m in ('torch', 'numpy', 'gymnasium') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclass(frozen=True)
class Wired:
    """What may be a word or, in Python, an object with fields of its own."""

    graph: Literal["torus", "complete"] | Schedule = "torus"
    """Who meets whom."""


def test_a_word_or_an_object_is_typed_as_the_word() -> None:
    """It was read as the object's fields alone: no graph could be chosen on the command line."""
    (option,) = options_of(Wired)
    assert (option.name, option.default, option.choices) == ("graph", "torus", ("torus", "complete"))
    assert parse_value(Wired, "graph", "complete") == "complete"
    with pytest.raises(ConfigError, match="'toruss'. Did you mean 'torus'"):
        parse_value(Wired, "graph", "toruss")


class Vague:
    """Like an array: comparing two gives no truth."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Handed:
    """Options that only Python can give, beside one that anybody can."""

    weights: Any = (1, 2)
    count: int = 3
    nested: Schedule | None = None


def test_what_only_python_can_give_is_left_out_where_it_is_the_default_and_else_refused() -> None:
    another = tuple(int(word) for word in "12")  # equal to the default, and not it
    assert to_table(Handed()) == to_table(Handed(weights=another)) == {"count": 3}
    assert to_table(Handed(count=4)) == {"count": 4}
    for other in ((1, 3), Vague()):
        with pytest.raises(ConfigError, match=r"Handed\.weights can only be given in Python") as caught:
            to_table(Handed(weights=other))
        assert caught.value.code == "wrong-type"

    @dataclass(frozen=True)
    class Demanding:
        graph: Any

    Demanding.__annotations__["graph"] = Any
    with pytest.raises(ConfigError, match="graph can only be given in Python"):
        to_table(Demanding(3))
    (option,) = options_of(Demanding)
    assert option.required and option.default_text == "(required)" and option.help == "" and not option.settable


def test_numbers_that_python_gave_are_held_against_their_bounds() -> None:
    check_numbers(Lattice(4, graph=object(), hidden=(0,)))
    check_numbers(Lattice(True))  # a truth is no number: whoever made it knows
    with pytest.raises(ConfigError) as caught:
        check_numbers(Lattice(0, coupling=11.0, field=math.nan))
    lines = str(caught.value).split("\n")
    assert lines[0] == "Lattice.num_agents must be int in [1, 1000000], not 0."
    assert [line.split()[0] for line in lines] == ["Lattice.num_agents", "Lattice.coupling", "Lattice.field"]
    assert caught.value.code == "bounds"


def test_a_type_that_cannot_be_resolved_is_told_with_its_class() -> None:
    @dataclass(frozen=True)
    class Lost:
        place: int = 1

    Lost.__annotations__["place"] = "NoSuchType"
    with pytest.raises(ConfigError, match="The type of an option of Lost cannot be resolved: name 'NoSuchType'"):
        from_table(Lost, {})


def test_a_dataclass_without_source_has_options_without_help() -> None:
    typed = dataclasses.make_dataclass("Typed", [("count", int, 3)], frozen=True)
    assert [(option.name, option.help) for option in options_of(typed)] == [("count", "")]
    assert from_table(typed, {"count": 4}) == typed(4)


def test_help_belongs_to_the_field_right_above_it_and_later_classes_say_it_anew() -> None:
    @dataclass(frozen=True)
    class Old:
        first: int = 1
        """Of the
        first."""
        second: int = 2

        third: int = 3
        b"no text"
        4
        """Of nobody."""

    @dataclass(frozen=True)
    class New(Old):
        first: int = 5
        """Anew."""

    for cls in (Old, New):
        cls.__annotations__.update(dict.fromkeys(cls.__annotations__, int))
    assert [option.help for option in options_of(Old)] == ["Of the first.", "", ""]
    assert [(option.help, option.default) for option in options_of(New)] == [("Anew.", 5), ("", 2), ("", 3)]


def test_an_empty_tuple_holds_nothing_and_says_nothing() -> None:
    @dataclass(frozen=True)
    class Empty:
        none: tuple[()] = ()

    Empty.__annotations__["none"] = tuple[()]
    assert parse_value(Empty, "none", "()") == () and unbounded(Empty) == []
    assert options_of(Empty)[0].type == "" and options_of(Empty)[0].settable
    with pytest.raises(ConfigError, match="must have 0 elements, not 1"):
        from_table(Empty, {"none": [1]})


@pytest.mark.parametrize(
    ("hint", "fits", "fails"),
    [
        (Count, [1, 1 << 40], [0, (1 << 40) + 1]),
        (Whole, [0, 1 << 40], [-1, (1 << 40) + 1]),
        (Seed, [0, 2**63 - 1], [-1, 2**63]),
        (Share, [0, 1, 0.5], [-0.001, 1.001]),
        (Amount, [-1e9, 1e9], [-1.001e9, 1.001e9]),
        (Annotated[float, Bounds(0)], [0, 1e18], [1.1e18, -1]),
        (Annotated[float, Bounds(0, 1e30)], [1e30], [1.1e30, math.inf]),
        (int, [2**63 - 1, -(2**63)], [2**63, -(2**63) - 1]),
        (float, [1e18, -1e18, 0], [1.01e18, -1.01e18, math.nan]),
    ],
)
def test_the_ends_of_a_range_are_in_it_and_what_lies_beyond_is_not(
    hint: Any, fits: list[Any], fails: list[Any]
) -> None:
    One = dataclasses.make_dataclass("One", [("x", hint)], frozen=True)
    for value in fits:
        assert from_table(One, {"x": value}).x == value
    for value in fails:
        with pytest.raises(ConfigError) as caught:
            from_table(One, {"x": value})
        assert caught.value.code == "bounds"


def test_open_ends_are_not_in_the_range() -> None:
    both = Bounds(0, 1, open_low=True, open_high=True)
    assert both.allow(0.5) and not both.allow(0) and not both.allow(1) and not both.allow(-1) and not both.allow(2)
    assert str(both) == "in (0, 1)" and str(Bounds(high=1, open_high=True)) == "< 1" and str(Bounds()) == "any"
    assert str(Bounds(0.5, 1e15)) == "in [0.5, 1e+15]" and str(Bounds(0, 1e14)) == "in [0, 100000000000000]"
    assert Bounds().allow(math.inf) and Bounds().allow(-math.inf)


def test_of_many_unknown_names_twenty_are_answered_with_a_guess() -> None:
    _, problems = read_table(Schedule, {f"stpo{i:02}": 1 for i in range(25)})
    assert ["Did you mean 'stop'" in problem.text for problem in problems] == [True] * 20 + [False] * 5
    with pytest.raises(ConfigError) as caught:
        from_table(Schedule, {f"x{i}": 1 for i in range(21)})
    assert str(caught.value).endswith("\n... and 1 more problems.") and len(str(caught.value).split("\n")) == 21
    with pytest.raises(ConfigError) as caught:
        from_table(Schedule, {f"x{i}": 1 for i in range(20)})
    assert len(str(caught.value).split("\n")) == 20


def test_a_name_without_likeness_and_a_class_without_fields_get_no_guess() -> None:
    Bare = dataclasses.make_dataclass("Bare", [])
    with pytest.raises(ConfigError, match=r"^a is not an option of Bare\.$"):
        from_table(Bare, {"a": 1})
    with pytest.raises(ConfigError, match=r"not 'zzzzzz'\.$"):
        from_table(Lattice, {"num_agents": 4, "order": "zzzzzz"})


def test_a_message_begins_with_its_place() -> None:
    for call, begin in (
        (lambda: from_table(Lattice, {}, "a.toml [x]"), "a.toml [x]: num_agents is missing: it must be int in"),
        (lambda: parse_value(Lattice, "num_agents", "0", "--num"), "--num: num_agents must be"),
        (
            lambda: parse_value(Lattice, "nmu_agents", "0", "--num"),
            "--num: nmu_agents is not an option of Lattice. Did",
        ),
        (lambda: parse_value(Lattice, "size.x", "0", "here"), "here: size has no parts, so size.x is not an option"),
        (lambda: parse_value(Lattice, "schedule.strat", "0"), "schedule.strat is not an option of Schedule. Did"),
        (lambda: from_table(Lattice, [1], "top"), "top: Lattice must be a table, not a list of 1."),  # type: ignore[arg-type]
        (lambda: with_option(Lattice, {}, "wrap", "2", "cli"), "cli: wrap must be true or false, not '2'."),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value).startswith(begin), str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse_value(Lattice, "size.x", "0")
    assert caught.value.code == "unknown-option"


def test_a_nested_classs_own_complaint_names_the_nest() -> None:
    @dataclass(frozen=True)
    class Nest:
        inner: Picky = Picky()
        loose: Loose = Loose()

    Nest.__annotations__.update(inner=Picky, loose=Loose)
    value, problems = read_table(Nest, {"inner": {"low": 13, "high": 14}, "loose": {"amount": -1.0}}, "f")
    assert value is None
    assert [(p.key, p.code) for p in problems] == [("inner", "usage"), ("loose.amount", "usage")]
    assert problems[0].text == "f: inner: Picky refused its options: unlucky"
    assert problems[1].text == "f: loose: amount must not be negative, not -1.0."
    _, problems = read_table(Nest, {"inner": {"low": 5}})
    assert [p.key for p in problems] == ["inner"]  # low and high are both named: which is wrong is not plain
    assert from_table(Nest, {"inner": {"low": 1}}).inner == Picky(1)
    _, both = read_table(Picky, {"low": 2, "lwo": 1})
    assert [p.code for p in both] == ["unknown-option", "usage"], "what is unknown keeps the class from judging nothing"
    assert read_table(Picky, {"lwo": 1})[0] is None


def test_values_that_are_made_already_are_taken_as_they_are() -> None:
    given = Schedule(2.0)
    assert from_table(Lattice, {"num_agents": 4, "schedule": given, "second": given}).schedule is given
    with pytest.raises(ConfigError, match="second must be a table|second must be Schedule"):
        from_table(Lattice, {"num_agents": 4, "second": Loose()})


def test_scalars_of_other_libraries_are_numbers_and_their_arrays_are_not() -> None:
    found = from_table(Lattice, {"num_agents": np.int32(5), "coupling": np.float32(0.5), "wrap": np.bool_(True)})
    assert (found.num_agents, found.coupling, found.wrap) == (5, 0.5, True)
    assert [type(x) for x in (found.num_agents, found.coupling, found.wrap)] == [int, float, bool]
    for value in (np.ones(1), np.array(["x"])):
        with pytest.raises(ConfigError, match="coupling must be float"):
            from_table(Lattice, {"num_agents": 4, "coupling": value})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", 1000.0),
        ("+5", 5.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e-2", 0.01),
        ("1__0.5", None),
        ("1__0", None),
        ("1_", None),
        ("0x10", None),
        ("\u0661", None),
        ("1e", None),
        ("-inf", None),
        ("", None),
    ],
)
def test_a_number_is_what_python_and_toml_call_one(text: str, value: float | None) -> None:
    if value is not None:
        assert parse_value(Loose, "amount", text) == value
    else:
        with pytest.raises(ConfigError, match=r"amount must be float"):
            parse_value(Loose, "amount", text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("((1,2),(3))", ((1, 2), (3,))),
        ("(1,2),(3)", ((1, 2), (3,))),
        ("[1,2],[3]", ((1, 2), (3,))),
        ("[[1,2],[3]]", ((1, 2), (3,))),
        ("1,2", ((1,), (2,))),
        ("(1),", ((1,),)),
        ("()", ()),
        ("(1,2", None),
        ("(1))", None),
        ("((1)", None),
    ],
)
def test_commas_part_outside_brackets_alone(text: str, parts: tuple[Any, ...] | None) -> None:
    Layers = dataclasses.make_dataclass("Layers", [("sizes", tuple[tuple[int, ...], ...])], frozen=True)
    if parts is None:
        with pytest.raises(ConfigError):
            parse_value(Layers, "sizes", text)
    else:
        assert parse_value(Layers, "sizes", text) == parts


def test_values_are_typed_as_they_are_read() -> None:
    assert [as_text(v) for v in (None, True, False, 3, 0.5, "x")] == ["none", "true", "false", "3", "0.5", "x"]
    assert [as_text(v) for v in ((), (1,), (1, 2), [1, 2], ((1,), (2, 3)), ((1, 2),))] == [
        "()", "(1)", "1,2", "1,2", "(1),(2,3)", "((1,2))",
    ]  # fmt: skip


def test_whatever_is_shown_is_short() -> None:
    for value, shown in (
        (True, "true"),
        (False, "false"),
        (2**127, str(2**127)),
        (2**129, "a whole number of 130 bits"),
        ({}, "a table"),
        ([1, 2], "a list of 2"),
        ((1,), "a list of 1"),
        ("x" * 60, repr("x" * 60)),
        ("x" * 61, repr("x" * 57 + "...")),
        (None, "None"),
        ({1, 2}, "{1, 2}"),
        (b"x" * 57, repr(b"x" * 57)),
        (b"x" * 58, repr(b"x" * 58)[:57] + "..."),
    ):
        assert show(value) == shown


def test_an_option_in_a_part_that_is_no_table_makes_it_one() -> None:
    assert with_option(Lattice, {"schedule": 3}, "schedule.start", "2") == {"schedule": {"start": 2.0}}
    assert with_option(Lattice, {}, "size", "3,4") == {"size": [3, 4]}
    assert with_option(Lattice, {}, "label", "none") == {"label": "none"}


def test_choices_are_the_words_of_every_literal_and_none() -> None:
    @dataclass(frozen=True)
    class Several:
        one: Literal["a", "b"] | None = None
        two: Literal["a"] | Literal[2] = "a"
        mixed: Literal["a"] | int = 3
        bare: int = 0

    Several.__annotations__.update(
        one=Literal["a", "b"] | None, two=Literal["a"] | Literal[2], mixed=Literal["a"] | int, bare=int
    )
    assert [option.choices for option in options_of(Several)] == [("a", "b", "none"), ("a", "2"), (), ()]
    assert [option.type for option in options_of(Several)] == ["'a' | 'b' or none", "'a' or 2", "'a' or int", "int"]
    assert [parse_value(Several, "mixed", text) for text in ("a", "7")] == ["a", 7]
    assert parse_value(Several, "one", "NONE") is None
    with pytest.raises(ConfigError, match="mixed must be 'a' or int, not 'x'") as caught:
        from_table(Several, {"mixed": "x"})
    assert caught.value.code == "wrong-type"
    with pytest.raises(ConfigError, match="one must be 'a' | 'b', not 3") as caught:
        from_table(Several, {"one": 3})
    assert caught.value.code == "wrong-type"


def test_none_may_be_one_of_the_words() -> None:
    Chosen = dataclasses.make_dataclass("Chosen", [("word", Literal["a", None], "a")], frozen=True)
    assert [from_table(Chosen, {"word": word}).word for word in ("a", None, "none")] == ["a", None, None]
    assert parse_value(Chosen, "word", "none") is None and options_of(Chosen)[0].choices == ("a", "none")
    assert to_table(Chosen(None)) == {"word": "none"}


def test_of_several_types_the_one_that_fits_best_is_taken() -> None:
    Mixed = dataclasses.make_dataclass(
        "Mixed",
        [("number", float | int, 0), ("word", str | int | bool, 0), ("pair", tuple[int, int] | None, None)],
        frozen=True,
    )
    for number in (3, 3.0):
        assert type(from_table(Mixed, {"number": number}).number) is type(number)
    assert [parse_value(Mixed, "word", text) for text in ("7", "seven", "true")] == [7, "seven", True]
    assert parse_value(Mixed, "pair", "3,4") == (3, 4)
    with pytest.raises(ConfigError, match="pair must have 2 elements, not 1"):
        parse_value(Mixed, "pair", "3")
