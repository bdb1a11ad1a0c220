"""Fits against laws that are known: exponents and their coverage, knees, rises and their false alarms, lines of memory."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mfmarl.evaluation.scaling import fit
from mfmarl.evaluation.scaling.points import PHASES, Measured, Point

DECADES = np.array([10, 100, 1_000, 10_000, 100_000, 1_000_000], dtype=float)


def noisy(
    costs: np.ndarray, repeats: int, spread: float, noise: np.random.Generator, of_size: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and costs of so many repeats, with log-normal noise of each, and of each size."""
    n = np.repeat(DECADES[: len(costs)], repeats)
    shared = np.repeat(noise.normal(size=len(costs)), repeats)
    return n, np.repeat(costs, repeats) * np.exp(spread * noise.normal(size=len(n)) + of_size * shared)


def points(costs: dict[int, Sequence[float]], agent: str = "mfq", **more: Any) -> list[Measured]:
    return [
        Measured(Point(agent, "mfmarl", n, repeat=k), "done", steps=10, wall=20 * c, cpu=10 * c, **more)
        for n, repeated in costs.items()
        for k, c in enumerate(repeated)
    ]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3, 2.0])
def test_an_exact_power_law_is_found_exactly(exponent: float) -> None:
    found = fit.growth(DECADES, 3e-6 * DECADES**exponent)
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert found.low <= exponent <= found.high
    assert found.high - found.low < 1e-4
    assert found.scale == pytest.approx(3e-6, rel=1e-4)
    assert found.at(777.0) == pytest.approx(3e-6 * 777**exponent, rel=1e-4)


def test_a_fixed_part_is_told_from_the_growth_and_the_knee_is_where_both_are_equal() -> None:
    found = fit.growth(DECADES, 3e-3 + 2e-6 * DECADES)
    assert found.exponent == pytest.approx(1.0, abs=1e-6)
    assert found.fixed == pytest.approx(3e-3, rel=1e-6)
    assert found.knee == pytest.approx(1500, rel=1e-4)
    assert found.at(1500.0) == pytest.approx(2 * found.fixed, rel=1e-4)


def test_without_a_fixed_part_there_is_no_knee() -> None:
    assert fit.growth(DECADES, 1e-6 * DECADES).knee == 0.0


@pytest.mark.parametrize(("fixed", "of_size"), [(0.0, 0.0), (3e-3, 0.0), (1e-6, 0.0), (3e-3, 0.05)])
def test_the_interval_holds_the_exponent_as_often_as_it_says(fixed: float, of_size: float) -> None:
    noise = np.random.default_rng(7)
    trials = 200
    held = 0
    for _ in range(trials):
        found = fit.growth(*noisy(fixed + 2e-7 * DECADES, 3, 0.03, noise, of_size))
        held += found.low <= 1.0 <= found.high
    # 95 % less the cost of choosing the law by the same data (at most four points), five standard errors of 200 trials.
    assert held / trials >= 0.91 - 5 * math.sqrt(0.91 * 0.09 / trials)
    # An interval that always holds it says nothing.
    assert found.high - found.low < 0.5


def test_without_noise_between_repeats_the_scatter_of_sizes_alone_widens_the_interval() -> None:
    bent = 1e-6 * DECADES * np.array([1, 1.3, 0.8, 1.2, 0.9, 1.1])
    one = fit.growth(np.repeat(DECADES, 3), np.repeat(bent, 3))
    assert not one.straight
    assert one.freedom <= 4
    assert one.high - one.low > 0.05


def test_one_repeat_of_two_sizes_gives_an_exponent_without_an_interval() -> None:
    found = fit.growth([10, 1000], [1e-3, 1e-1])
    assert found.exponent == pytest.approx(1.0)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(("n", "c"), [([10], [1.0]), ([10, 10], [1.0, 2.0]), ([1, 2], [1.0, 0.0]), ([1, 2], [1.0])])
def test_what_has_no_growth_is_refused(n: list[float], c: list[float]) -> None:
    with pytest.raises(ValueError, match=r"size|cost"):
        fit.growth(n, c)


def test_a_cache_that_is_outgrown_is_seen_where_it_is() -> None:
    noise = np.random.default_rng(3)
    level = 2e-7 * np.where(DECADES > 10_000, (DECADES / 10_000) ** 0.2, 1.0)
    found = fit.rise(*noisy(3e-3 + level * DECADES, 3, 0.02, noise))
    assert found is not None
    assert found.begins == 10_000
    assert found.factor == pytest.approx(100**0.2, rel=0.15)
    assert found.slope == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_a_rise_is_rarely_seen_where_there_is_none(spread: float) -> None:
    noise = np.random.default_rng(5)
    alarms = sum(fit.rise(*noisy(3e-3 + 2e-7 * DECADES, 3, spread, noise)) is not None for _ in range(100))
    assert alarms <= 5 + 5 * math.sqrt(100 * 0.05 * 0.95)


def test_a_rise_of_less_than_a_tenth_is_not_told() -> None:
    level = np.where(DECADES > 10_000, (DECADES / 10_000) ** 0.01, 1.0)
    costs = 1e-6 * DECADES * level
    assert fit.rise(np.repeat(DECADES, 3), np.repeat(costs, 3)) is None


def test_memory_is_a_line_with_its_interval() -> None:
    noise = np.random.default_rng(1)
    agents = np.repeat(DECADES[2:], 3)
    taken = 30e6 + 400 * agents + noise.normal(0, 5e5, len(agents))
    found = fit.memory(agents, taken)
    assert found.low <= 400 <= found.high
    assert found.high - found.low < 40
    assert found.fixed == pytest.approx(30e6, rel=0.1)
    assert found.linear
    assert found.at(1e6) == pytest.approx(430e6, rel=0.05)


def test_memory_that_is_not_linear_is_called_so() -> None:
    found = fit.memory(DECADES[2:], 500.0 * DECADES[2:] ** 1.3)
    assert not found.linear
    assert found.deviation > 0.1


def test_memory_of_two_sizes_lies_on_every_line_and_is_not_called_linear() -> None:
    found = fit.memory([1e5, 1e6], [40e6, 400e6])
    assert found.per_agent == pytest.approx(400)
    assert math.isnan(found.deviation)
    assert not found.linear


def test_points_are_put_together_by_agent_kind_copies_and_what_is_varied() -> None:
    measured = points({100: [1e-3, 2e-3], 1000: [4e-3]})
    measured += [
        Measured(Point("ppo", "sb3", 100), "done", steps=1, wall=1.0, cpu=1.0),
        Measured(Point("mfq", "mfmarl", 100, copies=4, varied={"hidden": [8, 8]}), "done", steps=1, wall=1.0, cpu=1.0),
        Measured(Point("mfq", "mfmarl", 10_000), "skipped", "It is too large."),
    ]
    found = fit.curves(measured)
    assert [c.label for c in found] == [
        "mfq, 1 copy",
        "mfq, hidden=[8, 8], 4 copies",
        "stable-baselines3 (ppo), 1 copy",
    ]
    plain = found[0]
    assert [s.num_agents for s in plain.sizes] == [100, 1000]
    assert plain.sizes[0].repeats == 2
    assert plain.sizes[0].cpu == pytest.approx(math.sqrt(2) * 1e-3)
    assert (plain.sizes[0].cpu_low, plain.sizes[0].cpu_high) == pytest.approx((1e-3, 2e-3))
    assert plain.sizes[1].nanoseconds == pytest.approx(4000)
    assert plain.missing == [(10_000, "skipped", "It is too large.")]
    assert found[1].growth is None


def test_the_phase_that_grows_is_blamed_for_the_rise() -> None:
    level = np.where(DECADES > 10_000, (DECADES / 10_000) ** 0.3, 1.0)
    measured = []
    for n, factor in zip(DECADES, level, strict=True):
        cost = 1e-6 * n * factor
        phases = dict.fromkeys(PHASES, 0.0) | {"act": 0.4e-6 * n, "learn": cost - 0.4e-6 * n}
        measured += points({int(n): [cost, 1.001 * cost]}, phases=phases, phase_steps=1)
    [found] = fit.curves(measured)
    assert found.rise is not None
    assert found.why["learn"] == pytest.approx(1.0)
    assert found.sizes[0].shares["act"] == pytest.approx(0.4)
    assert sum(found.sizes[-1].shares.values()) == pytest.approx(1.0)


def test_flatness_is_of_the_sizes_from_a_thousand_on() -> None:
    [found] = fit.curves(points({10: [1e-3], 1000: [1e-3], 10_000: [1.2e-2]}))
    assert found.flatness() == pytest.approx(1.2)
    assert math.isnan(found.flatness(10_000))
