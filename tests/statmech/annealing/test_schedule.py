"""Temperatures over a run: their formulas, their texts, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfmarl.errors import ConfigError
from mfmarl.statmech.annealing.schedule import Schedule, parse_schedule

TEXTS = [
    "0.5",
    "linear(1, 0.1)",
    "geometric(1, 0.01, 0.8)",
    "logarithmic(1, 0.2)",
    "cosine(2, 0.1, 0.5)",
    "cyclic(1, 0.01, 4)",
    "through(3, 2.4, 2.2, 1)",
    "entropy(0.7)",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_schedule_is_read_back_from_its_text(text: str) -> None:
    assert str(parse_schedule(text)) == text
    assert parse_schedule(str(parse_schedule(text))) == parse_schedule(text)


@pytest.mark.parametrize(
    ("text", "progress", "value"),
    [
        ("linear(1, 0)", 0.25, 0.75),
        ("linear(1, 0, 0.5)", 0.25, 0.5),
        ("linear(1, 0, 0.5)", 0.75, 0.0),
        ("geometric(1, 0.01)", 0.5, 0.1),
        ("logarithmic(1, 0.2)", 0.5, math.log(2) / math.log(2 + 0.5 * 30)),  # 2^5 - 2 = 30
        ("logarithmic(1, 0.2)", 1.0, 0.2),
        ("cosine(1, 0)", 0.5, 0.5),
        ("cosine(1, 0)", 1 / 3, 0.75),
        ("cyclic(1, 0, 2)", 0.25, 0.5),
        ("cyclic(1, 0, 2)", 0.5, 1.0),
        ("cyclic(1, 0, 2)", 1.0, 0.0),
        ("through(4, 2, 1)", 0.25, 3.0),
        ("through(4, 2, 1)", 0.75, 1.5),
    ],
)
def test_a_schedule_is_its_formula(text: str, progress: float, value: float) -> None:
    assert parse_schedule(text).at(progress) == pytest.approx(value, abs=1e-12)


def test_the_logarithmic_law_holds_for_ratios_that_would_overflow() -> None:
    schedule = parse_schedule("logarithmic(1, 0.0001)")  # n = 2^10000
    assert schedule.at(1.0) == pytest.approx(1e-4, rel=1e-12)
    # log2(n x) = 10000 - log2(1/x).
    assert schedule.at(2.0**-1000) == pytest.approx(1 / 9000, rel=1e-12)


@given(
    kind=st.sampled_from(["linear", "geometric", "logarithmic", "cosine"]),
    ends=st.tuples(st.floats(1e-3, 10), st.floats(1e-3, 10)),
    share=st.floats(0.01, 1),
    places=st.tuples(st.floats(-1, 2), st.floats(-1, 2)),
)
def test_cooling_schedules_never_heat_and_stay_between_their_ends(
    kind: str, ends: tuple[float, float], share: float, places: tuple[float, float]
) -> None:
    cold, hot = sorted(ends)
    schedule = Schedule(kind, hot, cold, share)
    early, late = (schedule.at(x) for x in sorted(places))
    slack = 1e-9 * hot
    assert hot + slack >= early >= late - slack >= cold - 2 * slack
    assert schedule.at(0.0) == pytest.approx(hot) and schedule.at(1.0) == pytest.approx(cold)


def test_the_steps_of_a_schedule_begin_and_end_with_it() -> None:
    assert parse_schedule("linear(2, 1)").temperatures(3) == [2.0, 1.5, 1.0]
    assert parse_schedule("linear(2, 1)").temperatures(1) == [2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liner(1, 0)", "Did you mean 'linear'"),
        ("linear(1)", "takes 2 to 3 numbers, not 1"),
        ("cyclic(1, 0.1)", "takes 3 numbers, not 2"),
        ("cyclic(1, 0.1, 2.5)", "whole number of cycles"),
        ("cyclic(1, 0.1, 0)", "at least 1"),
        ("geometric(1, 0)", "above 0"),
        ("logarithmic(0.1, 1)", "would heat"),
        ("linear(-1, 1)", "not negative"),
        ("through(1, nan)", "not negative"),
        ("nan", "not negative"),
        ("hot", "Cannot read the temperature 'hot'"),
        ("linear(1, 0, 2)", "share of the run"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_schedule(text)
