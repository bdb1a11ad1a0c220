"""Do 95 % intervals hold the truth 95 times in 100? Simulated; the table in mfmarl.evaluation.statistics is from here.

Run this file to print the table: `python tests/evaluation/test_coverage.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mfmarl.evaluation import statistics as s

Sampler = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SCORES: dict[str, Sampler] = {
    "normal": lambda g, size: g.normal(size=size),
    "t3": lambda g, size: g.standard_t(3, size=size),
    "log-normal": lambda g, size: np.exp(0.7 * g.normal(size=size)),
    "one fifth fails": lambda g, size: np.where(g.random(size) < 0.2, -4.0, 0.0) + g.normal(size=size),
    "two modes": lambda g, size: np.where(g.random(size) < 0.5, -2.0, 2.0) + 0.5 * g.normal(size=size),
}


def coverage(scores: str, runs: int, interval: s.Interval, trials: int, draws: int = 500, tasks: int = 1) -> float:
    """The share of simulated experiments whose interval holds the population's interquartile mean."""
    noise = np.random.Generator(np.random.Philox(key=runs))
    truth = float(s.interquartile_mean(SCORES[scores](noise, (100, 40_000))).mean())
    hits = 0
    for trial in range(trials):
        found = s.estimate(list(SCORES[scores](noise, (tasks, runs))), interval=interval, draws=draws, seed=trial)
        hits += found.low <= truth <= found.high
    return hits / trials


def test_percentiles_fail_at_three_runs_and_ours_do_not() -> None:
    # 800 experiments: a coverage of 94 % is known to 0.8 %, so 90 % is five standard errors away.
    assert coverage("normal", 3, "percentile", 800, 200) < 0.80
    assert coverage("normal", 3, "t", 800, 200) > 0.90
    assert coverage("normal", 5, "t", 800, 200) > 0.92


@pytest.mark.verify
@pytest.mark.parametrize("runs", [3, 5, 10, 20])
@pytest.mark.parametrize("scores", ["normal", "t3", "log-normal", "one fifth fails"])
def test_intervals_cover_at_least_as_often_as_stated(scores: str, runs: int) -> None:
    """Alpha: five standard errors (0.3 % at 95 %) under the 92 % that we state as the least."""
    assert coverage(scores, runs, "t", 4000) > 0.92 - 5 * 0.0034


@pytest.mark.verify
@pytest.mark.parametrize("runs", [3, 5, 10])
def test_intervals_over_four_tasks_cover(runs: int) -> None:
    assert coverage("normal", runs, "t", 2000, tasks=4) > 0.93 - 5 * 0.005


@pytest.mark.verify
@pytest.mark.parametrize("runs", [3, 5, 10, 20])
@pytest.mark.parametrize("paired", [True, False])
def test_false_verdicts_are_as_rare_as_promised(runs: int, paired: bool) -> None:
    """Two equal agents: the verdict is wrong in at most 5 % of 4,000 experiments (five standard errors above: 7.3 %)."""
    noise = np.random.Generator(np.random.Philox(key=77 + runs))
    wrong = 0
    for trial in range(4000):
        luck = noise.normal(size=runs) if paired else 0.0
        a, b = (luck + noise.normal(size=runs) for _ in range(2))
        found = s.difference([a], [b], paired=paired, draws=400, seed=trial)
        wrong += s.verdict(found, found.p) != "not separable"
    assert wrong / 4000 < 0.05 + 5 * 0.0045


@pytest.mark.verify
def test_a_difference_of_two_deviations_is_found_with_ten_runs() -> None:
    noise = np.random.Generator(np.random.Philox(key=5))
    found = 0
    for trial in range(400):
        d = s.difference([noise.normal(size=10) + 2], [noise.normal(size=10)], draws=400, seed=trial)
        found += s.verdict(d, d.p) == "better"
    assert found / 400 > 0.9


@pytest.mark.verify
@pytest.mark.parametrize("runs", [3, 5, 10, 20])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_probability_of_improvement_is_covered(runs: int, shift: float) -> None:
    from scipy.stats import norm

    truth = norm.cdf(shift / np.sqrt(2))
    noise = np.random.Generator(np.random.Philox(key=runs))
    hits = 0
    for _ in range(1000):
        found = s.probability_of_improvement([noise.normal(size=runs) + shift], [noise.normal(size=runs)])
        hits += found.low <= truth <= found.high
    assert hits / 1000 > 0.92 - 5 * 0.0086


if __name__ == "__main__":
    for name in SCORES:
        for n in (3, 5, 10, 20):
            ours, theirs = coverage(name, n, "t", 4000), coverage(name, n, "percentile", 4000)
            print(f"{name:16s} {n:3d} runs: ours {ours:.1%}, percentile {theirs:.1%}", flush=True)
