"""Figures of a sweep show what was measured, where it was measured, on axes that fit; whatever there is of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from mfmarl.evaluation import drawing
from mfmarl.evaluation.scaling import figures
from tests.evaluation.scaling.sample import numbers_of, quality_of

SIZES = (100, 1000, 10_000, 100_000)


@pytest.fixture
def numbers() -> dict[str, Any]:
    return {**numbers_of(SIZES), "quality": quality_of(SIZES)}


COSTS = (figures.cost, figures.step, figures.memory, figures.phases, figures.machines)
QUALITY = (figures.reward, figures.limit, figures.fluctuations, figures.efficiency, figures.transfer)


def texts(figure: Any) -> str:
    return " | ".join(t.get_text() for axes in figure.axes for t in [*axes.texts, axes.title])


def test_dots_lie_where_they_were_measured_and_the_line_where_it_was_fitted(numbers: dict[str, Any]) -> None:
    axes = figures.cost(numbers).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    dots = next(line for line in axes.lines if line.get_linestyle() == "None")
    np.testing.assert_array_equal(dots.get_xdata(), SIZES)
    np.testing.assert_allclose(dots.get_ydata(), [2e-6 + 1e-3 / n for n in SIZES], rtol=0.02)
    law = next(line for line in axes.lines if line.get_linestyle() == "-")
    n, y = (np.asarray(a, dtype=float) for a in law.get_data())
    np.testing.assert_allclose(y, 2e-6 + 1e-3 / n, rtol=0.05)


def test_curves_are_named_with_their_exponent_where_they_end(numbers: dict[str, Any]) -> None:
    shown = texts(figures.step(numbers))
    assert "mfq  N^1.00" in shown
    assert "stable-baselines3 (ppo)" in shown
    assert "∝ N" in shown


def test_the_knee_is_marked_where_the_fixed_part_is_half(numbers: dict[str, Any]) -> None:
    axes = figures.step(numbers).axes[0]
    [mark, *_] = [line for line in axes.lines if line.get_marker() == "|"]
    assert np.asarray(mark.get_xdata(), dtype=float)[0] == pytest.approx(500, rel=0.1)
    assert np.asarray(mark.get_ydata(), dtype=float)[0] == pytest.approx(2e-3, rel=0.1)


def test_shares_of_the_phases_fill_every_bar(numbers: dict[str, Any]) -> None:
    axes = figures.phases(numbers).axes[0]
    tops: dict[float, float] = {}
    for bar in axes.patches:
        assert isinstance(bar, Rectangle)
        tops[bar.get_x()] = tops.get(bar.get_x(), 0.0) + bar.get_height()
    assert list(tops.values()) == pytest.approx([1.0] * len(SIZES))


def test_twins_share_a_colour_and_baselines_are_grey(numbers: dict[str, Any]) -> None:
    style = figures.looks(numbers)
    assert style["mfq"].colour == style["iql"].colour
    assert style["mfq"].dash != style["iql"].dash
    assert style["stable-baselines3 (ppo)"].colour == drawing.NEUTRAL


def test_an_interval_of_two_seeds_does_not_flatten_what_it_is_about(numbers: dict[str, Any]) -> None:
    rows = numbers["quality"]["rows"]
    rows[0]["measures"]["reward"] |= {"low": -500.0, "high": 500.0}
    low, high = figures.reward(numbers).axes[0].get_ylim()
    assert high - low < 10


@pytest.mark.parametrize("draw", [*COSTS, *QUALITY])
def test_every_figure_is_drawn_the_same_twice(numbers: dict[str, Any], draw: Any) -> None:
    one = drawing.to_svg(draw(numbers))
    assert one == drawing.to_svg(draw(numbers))
    assert b"<svg" in one


@pytest.mark.parametrize("draw", COSTS)
def test_a_sweep_without_any_point_says_so(draw: Any) -> None:
    found = numbers_of(())
    assert texts(draw(found)).strip(" |")
    drawing.to_svg(draw(found))


@pytest.mark.parametrize("draw", [*COSTS, *QUALITY])
def test_one_size_alone_has_its_figure(draw: Any) -> None:
    drawing.to_svg(draw({**numbers_of((1000,)), "quality": quality_of((1000,))}))


def test_names_that_are_hostile_are_drawn_as_they_are() -> None:
    found = numbers_of(SIZES, agents=("$x^2$\x1b[31m\u202e" + "long" * 50,))
    svg = drawing.to_svg(figures.cost(found)).decode()
    assert "\x1b" not in svg
    assert "\u202e" not in svg
    assert "longlonglonglonglonglonglonglong" not in svg
