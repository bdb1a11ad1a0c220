"""Statistics of runs, against rliable's numbers, closed forms, and invariances."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mfmarl.evaluation import statistics as s

GOLDEN = json.loads((Path(__file__).parent / "golden" / "rliable.json").read_text())["cases"]
numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{len(c['x'])}x{len(c['x'][0])}")
def test_point_estimates_are_those_of_rliable(case: dict) -> None:
    for name, expected in zip("xy", case["iqm"], strict=True):
        assert s.estimate(case[name]).value == pytest.approx(expected, abs=1e-12)
    assert s.probability_of_improvement(case["x"], case["y"]).value == pytest.approx(case["improvement"], abs=1e-12)
    profile = s.performance_profile(case["x"], case["thresholds"])
    assert profile.value == pytest.approx(case["profile"], abs=1e-12)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{len(c['x'])}x{len(c['x'][0])}")
def test_percentile_intervals_are_those_of_rliable(case: dict) -> None:
    found = s.estimate(case["x"], interval="percentile", draws=20_000)
    # A 2.5 % quantile of 20,000 draws has a standard error of sqrt(.025 * .975 / 20,000) / density, about 0.02 sd.
    tolerance = 5 * np.sqrt(2) * 0.02 * (found.high - found.low) / 4 + 0.011  # scores are rounded to 0.1
    assert [found.low, found.high] == pytest.approx(case["interval"], abs=tolerance)


@given(numbers)
def test_the_interquartile_mean_is_scipys_trimmed_mean(values: list[float]) -> None:
    assert s.interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-12, abs=1e-9)


def test_the_interquartile_mean_of_eight_is_the_mean_of_the_middle_four() -> None:
    assert s.interquartile_mean([100, 1, 2, 3, 4, -50, 5, 6]) == (2 + 3 + 4 + 5) / 4


def test_one_lost_run_in_five_does_not_move_the_interquartile_mean_far() -> None:
    assert s.interquartile_mean([1, 1, 1, 1, -1e9]) == 1


@given(numbers, st.floats(-100, 100), st.floats(0.01, 100))
def test_scaling_and_shifting_scores_scales_and_shifts_the_interval(
    values: list[float], shift: float, scale: float
) -> None:
    old, new = s.estimate([values], draws=50), s.estimate([np.array(values) * scale + shift], draws=50)
    room = 1e-9 * (1 + abs(shift) + scale * 1e3)
    for a, b in zip(old[:3], new[:3], strict=True):
        assert b == pytest.approx(a * scale + shift, abs=room)


def test_the_interval_of_the_mean_of_three_is_students() -> None:
    # A quarter of three runs is none of them: the statistic is the mean, whose t interval is known.
    values = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, values.mean(), values.std(ddof=1) / np.sqrt(3))
    found = s.estimate([values], draws=100_000)
    assert [found.low, found.high] == pytest.approx(
        [low, high], rel=0.02
    )  # draws: 1 / sqrt(2e5) = 0.2 %, times 5 and 2


def test_one_run_has_a_value_and_no_interval() -> None:
    found = s.estimate([[3.0]])
    assert found.value == 3 and np.isnan(found.low) and np.isnan(found.high) and found.runs == 1
    assert s.verdict(s.difference([[3.0]], [[1.0]]), 0.0) == "not separable"


def test_a_curve_is_the_estimate_at_each_step() -> None:
    values = np.random.Generator(np.random.Philox(key=1)).normal(size=(7, 30))
    band = s.curve(values)
    for t in (0, 13, 29):
        assert (band.value[t], band.low[t], band.high[t]) == pytest.approx(s.estimate([values[:, t]])[:3], rel=1e-9)


def test_pairing_cancels_the_luck_of_the_seed() -> None:
    noise = np.random.Generator(np.random.Philox(key=2))
    luck = noise.normal(size=10)
    better, worse = luck + 0.3 + 0.05 * noise.normal(size=10), luck + 0.05 * noise.normal(size=10)
    paired, apart = s.difference([better], [worse]), s.difference([better], [worse], paired=False)
    assert s.verdict(paired, paired.p) == "better"
    assert s.verdict(apart, apart.p) == "not separable"
    assert paired.high - paired.low < (apart.high - apart.low) / 4


@given(numbers, numbers)
def test_swapping_the_sides_turns_the_difference_round(a: list[float], b: list[float]) -> None:
    runs = min(len(a), len(b))
    one, other = s.difference([a[:runs]], [b[:runs]], draws=50), s.difference([b[:runs]], [a[:runs]], draws=50)
    assert one.value == -other.value
    assert one.p == pytest.approx(other.p, abs=1e-9)
    assert one.low == pytest.approx(-other.high, abs=1e-6)
    there, back = s.probability_of_improvement([a], [b]), s.probability_of_improvement([b], [a])
    assert there.value + back.value == pytest.approx(1)
    assert there.low == pytest.approx(1 - back.high, abs=1e-6)


@given(numbers, numbers)
def test_the_interval_excludes_zero_exactly_when_the_p_value_is_small(a: list[float], b: list[float]) -> None:
    runs = min(len(a), len(b))
    found = s.difference([a[:runs]], [b[:runs]], draws=50)
    if abs(found.p - 0.05) > 1e-6 and found.high - found.low > 1e-6:
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_the_same_difference_in_every_run_is_certain_and_none_is_equal() -> None:
    sure = s.difference([[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]])
    assert sure.p == 0 and s.verdict(sure, sure.p) == "better"
    same = s.difference([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]])
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_complete_separation_still_has_an_interval_that_shrinks_with_runs() -> None:
    widths = []
    for runs in (3, 5, 10, 50):
        found = s.probability_of_improvement([np.arange(runs) + 100.0], [np.arange(runs)])
        assert found.value == found.high == 1
        widths.append(1 - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0.4 and widths[-1] < 0.08


def test_ties_count_half() -> None:
    assert s.probability_of_improvement([[1, 1, 1]], [[1, 1, 1]]).value == 0.5
    assert s.probability_of_improvement([[1, 2]], [[1, 3]]).value == pytest.approx((0.5 + 0 + 1 + 0) / 4)


def test_the_probability_of_improvement_solves_newcombes_equation() -> None:
    m, n = 6, 9
    values = (np.arange(6) + 0.5, np.array([0.0, 1, 2, 3, 9, 9, 0, 0, 0]))
    found = s.probability_of_improvement([values[0]], [values[1]])
    for end in (found.low, found.high):
        spread = 7.5 - 1
        variance = end * (1 - end) * (1 + spread * (1 - end) / (2 - end) + spread * end / (1 + end)) / (m * n)
        assert abs(end - found.value) == pytest.approx(1.959964 * np.sqrt(variance), abs=1e-6)
    assert found.low < found.value < found.high


def test_holm_is_the_textbook_example_and_never_below_the_raw_values() -> None:
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.9, 0.8]) == [1.0, 1.0]
    assert s.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p: list[float]) -> None:
    adjusted = s.holm(p)
    for raw, new in zip(p, adjusted, strict=True):
        assert raw <= new <= min(1.0, raw * len(p)) + 1e-12
    assert all(
        (a <= b) for (_, a), (_, b) in zip(*[sorted(zip(p, adjusted, strict=True))[k:] for k in (0, 1)], strict=False)
    )


def test_a_profile_falls_from_one_to_nothing() -> None:
    profile = s.performance_profile([[0.1, 0.5, 0.5, 0.9]], [0.0, 0.1, 0.49, 0.5, 0.9])
    assert list(profile.value) == [1, 0.75, 0.75, 0.25, 0]
    assert (profile.low <= profile.value).all() and (profile.value <= profile.high).all()
    assert profile.high[-1] > 0.2  # four runs without a success exclude little


def test_scores_are_put_on_one_scale() -> None:
    low, high = s.normalise([[2.0, 4.0], [6.0]])
    assert list(low) == [0, 0.5] and list(high) == [1]
    assert [list(x) for x in s.normalise([[3.0], [3.0]])] == [[0.5], [0.5]]


def test_resampling_is_repeatable_and_stays_within_its_task() -> None:
    first, again = s.resample([3, 7], 100), s.resample([3, 7], 100)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert first[0].max() == 2 and first[1].max() == 6 and first[1].shape == (100, 7)


def test_the_axis_along_which_a_mean_is_taken_is_the_one_asked_for() -> None:
    table = [[0.0, 1.0, 2.0, 99.0], [10.0, 11.0, 12.0, 13.0]]
    assert s.interquartile_mean(table) == pytest.approx([1.5, 11.5])
    assert s.interquartile_mean(table, axis=0) == pytest.approx([5.0, 6.0, 7.0, 56.0])
    assert s.interquartile_mean(table, axis=None) == (2 + 10 + 11 + 12) / 4


def test_resamples_are_the_same_for_ever_and_others_for_another_seed() -> None:
    # What a report said yesterday it says tomorrow: the draws of Philox with key 0 are part of the method.
    [first] = s.resample([5])
    assert first.shape == (2000, 5)
    assert first[:2].tolist() == np.random.Generator(np.random.Philox(key=0)).integers(5, size=(2, 5)).tolist()
    assert s.resample([5], 3, seed=1)[0].tolist() != first[:3].tolist()
    scores = [1.0, 2.0, 4.0, 8.0, 9.0]
    assert s.estimate([scores]) == s.estimate([scores], draws=2000, seed=0, level=0.95) != s.estimate([scores], seed=1)
    assert s.standard_error(scores) == s.standard_error(scores, draws=2000, seed=0)
    same = s.difference([scores], [[0.0] * 5])
    assert same == s.difference([scores], [[0.0] * 5], draws=2000, seed=0, paired=True) and same.paired
    curve = s.curve(np.array([scores]).T)
    assert curve.low[0] == s.curve(np.array([scores]).T, draws=2000, seed=0).low[0]


def test_the_percentile_interval_of_two_runs_is_theirs() -> None:
    # The mean of two draws of {0, 1} is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4: 2.5 % and 97.5 % lie at the ends.
    assert s.estimate([[0.0, 1.0]], interval="percentile")[:3] == (0.5, 0.0, 1.0)
    assert s.estimate([[0.0, 1.0]], interval="percentile", level=0.2)[:3] == (0.5, 0.5, 0.5)


def test_the_standard_error_of_the_mean_of_three_is_the_textbooks() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert s.standard_error(values, draws=100_000) == pytest.approx(values.std(ddof=1) / np.sqrt(3), rel=0.02)
    assert np.isnan(s.standard_error([3.0]))
    assert s.standard_error([1.0, 3.0]) > 0


def test_one_run_gives_a_curve_without_a_band_and_no_verdict() -> None:
    band = s.curve([[1.0, 2.0, 3.0]])
    assert band.value.tolist() == [1, 2, 3] and band.runs == 1
    assert np.isnan(band.low).all() and np.isnan(band.high).all()
    alone = s.difference([[3.0]], [[1.0]])
    assert (alone.value, alone.p, alone.runs, alone.paired) == (2, 1.0, 1, True)
    assert np.isnan(alone.low) and np.isnan(alone.high)
    two = s.difference([[3.0, 5.0]], [[1.0, 2.0]])
    assert two.low < two.value == 2.5 < two.high and two.runs == 2


def _freedom(narrow: tuple[float, float], wide: tuple[float, float]) -> int:
    """The degrees of freedom that intervals of levels 0.5 and 0.95 of the same resamples tell of."""
    ratio = (wide[1] - wide[0]) / (narrow[1] - narrow[0])
    [found] = [n for n in range(1, 60) if abs(stats.t.ppf(0.975, n) / stats.t.ppf(0.75, n) - ratio) < 1e-9]
    return found


def test_degrees_of_freedom_are_the_runs_less_the_tasks() -> None:
    noise = np.random.Generator(np.random.Philox(key=3))
    a, b, short = [noise.normal(size=7), noise.normal(size=5)], [noise.normal(size=7), noise.normal(size=5)], [7, 3]
    for level in (0.5, 0.95):
        found = s.estimate(a, level=level)
        assert found.value - found.low == pytest.approx(found.high - found.value)
    assert _freedom(s.estimate(a, level=0.5)[1:3], s.estimate(a)[1:3]) == 10
    curves = [s.curve(noise.normal(size=(1, 4)) + a[0][:, None], level=level) for level in (0.5, 0.95)]
    assert _freedom(*((band.low[2], band.high[2]) for band in curves)) == 6  # type: ignore[misc]
    assert _freedom(*(s.difference(a, b, level=level)[1:3] for level in (0.5, 0.95))) == 10  # type: ignore[misc]
    unequal = [side[:n] for side, n in zip(b, short, strict=True)]
    apart = [s.difference(a, unequal, paired=False, level=level) for level in (0.5, 0.95)]
    assert _freedom(*(found[1:3] for found in apart)) == 8  # type: ignore[misc]
    assert [found.runs for found in apart] == [3, 3] and not apart[0].paired


def test_three_paired_runs_are_judged_as_students_t_test_judges_them() -> None:
    first, second = [1.0, 2.5, 4.0], [0.5, 1.0, 3.8]
    found = s.difference([first], [second], draws=100_000)
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=0.05)
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.05)


def test_half_a_width_is_known_where_the_resamples_are() -> None:
    # Two resamples 0 and 2 vary by sqrt(2); of two runs that is times sqrt(2 / 1), and t of one degree is 12.706.
    assert s.half_width(np.array([[0.0], [2.0]]), 2) == pytest.approx([12.7062047 * 2])
    assert s.half_width(np.array([[0.0], [2.0]]), 5, 0.5) == pytest.approx([0.7406971 * np.sqrt(2 * 5 / 4)])


def test_a_verdict_needs_three_runs_and_a_small_p() -> None:
    better = s.Difference(1.0, 0.5, 1.5, 0.01, 3, True)
    assert s.verdict(better, 0.01) == "better"
    assert s.verdict(better._replace(value=-1.0), 0.01) == "worse"
    assert s.verdict(better._replace(runs=2), 0.01) == "not separable"
    assert s.verdict(better, 0.06) == s.verdict(better, float("nan")) == "not separable"
    assert s.verdict(better, 0.06, level=0.9) == "better"
    assert s.verdict(better, 0.5, level=0.5) == "not separable"  # below, not at, the level


def test_a_profile_has_wilsons_interval() -> None:
    scores = np.arange(10.0)
    profile = s.performance_profile([scores[:4], scores[4:]], [-1, 2, 6.5, 20])
    for place, above in enumerate((10, 7, 3, 0)):
        wilson = stats.binomtest(above, 10).proportion_ci(0.95, method="wilson")
        assert (profile.low[place], profile.high[place]) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    assert profile.runs == 10
    assert s.performance_profile([scores], [2], level=0.5).low > profile.low[1]


def test_chances_of_several_tasks_are_joined_by_square_and_add() -> None:
    a, b = [[1.0, 2.0, 3.0], [5.0, 6.0, 9.0, 1.0]], [[0.0, 2.5, 1.0], [5.5, 7.0, 0.0]]
    parts = [s.probability_of_improvement([x], [y]) for x, y in zip(a, b, strict=True)]
    both = s.probability_of_improvement(a, b)
    assert both.value == pytest.approx((parts[0].value + parts[1].value) / 2)
    for end in (1, 2):
        one, other = (abs(part[end] - part.value) for part in parts)
        reach = np.hypot(one, other) / 2
        assert abs(both[end] - both.value) == pytest.approx(reach)
    assert both.low < both.value < both.high and both.runs == 3
    lost, won = s.probability_of_improvement([[0, 1, 2]], [[5, 6, 7]]), s.probability_of_improvement([[5]], [[0]])
    assert (lost.value, lost.low) == (0, 0) and 0.2 < lost.high < 0.9
    assert (won.value, won.high) == (1, 1) and won.runs == 1
    wide = s.probability_of_improvement(a, b, level=0.5)
    assert wide.low > both.low


def test_a_task_without_runs_is_refused() -> None:
    refused: list[list[list[float]]] = [[], [[]], [[1.0], []]]
    for tasks in refused:
        with pytest.raises(ValueError, match="at least one run"):
            s.estimate(tasks)


def test_what_differs_by_rounding_alone_is_the_same_in_every_run() -> None:
    big = s.difference([[1e6, 1e6, 1e6 + 1e-9]], [[0.0, 0.0, 0.0]])
    assert big.p == 0
    assert s.difference([[1.0, 2.0, 3.5]], [[1.0, 2.0, 3.0]]).p > 0.1
