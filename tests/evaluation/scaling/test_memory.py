"""What a point will weigh, foretold from smaller ones: by a law that is known, and (verify) by what was then weighed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfmarl.evaluation.scaling import memory
from mfmarl.evaluation.scaling.measure import fresh
from mfmarl.evaluation.scaling.points import Measured, Plan, Point
from mfmarl.learning.run_config import Choice
from mfmarl.population import free_memory

PLAN = Plan(Choice("ising"), {"mfq": {"all": Choice("mfq")}}, (16,), max_memory=2e9)
MB = 1 << 20


def weighed(law: Callable[[int], float], *sizes: int, **point: Any) -> list[Measured]:
    return [
        Measured(Point("mfq", "mfmarl", n, **point), "done", peak_bytes=int(law(n * point.get("copies", 1))))
        for n in sizes
    ]


def never(point: Point) -> Measured:
    raise AssertionError(f"{point} need not be weighed")


def test_a_line_is_followed_exactly() -> None:
    law = lambda n: 300 * MB + 700 * n  # noqa: E731
    known = weighed(law, 1000, 10_000, 100_000)
    for n in (100_001, 10**6, 10**7):
        assert memory.estimate(Point("mfq", "mfmarl", n), PLAN, known, never) == int(law(n))


@pytest.mark.parametrize("power", [2.0, 1.5])
def test_what_bends_upwards_is_followed_by_its_power(power: float) -> None:
    law = lambda n: 300 * MB + 50 * n**power  # noqa: E731
    known = weighed(law, 1_000, 10_000, 100_000)
    found = memory.estimate(Point("mfq", "mfmarl", 10**6), PLAN, known, never)
    assert found == pytest.approx(law(10**6), rel=1e-3)


def test_a_kink_that_flattens_out_is_not_taken_for_a_bend() -> None:
    # Batches of learning grow with the crowd until they are full: after that each agent costs less than before.
    law = lambda n: 300 * MB + 1000 * n + 20_000 * min(n, 4096)  # noqa: E731
    known = weighed(law, 1024, 16_384, 131_072)
    assert memory.estimate(Point("mfq", "mfmarl", 10**6), PLAN, known, never) == int(law(10**6))


def test_a_size_that_was_weighed_is_known() -> None:
    known = weighed(lambda n: 300 * MB + n, 16, 64)
    assert memory.estimate(Point("mfq", "mfmarl", 64, repeat=2), PLAN, known, never) == 300 * MB + 64


def test_points_too_small_to_tell_are_not_believed() -> None:
    noise = iter([3 * MB, 0, 5 * MB, 0])
    law = lambda n: 300 * MB + 600 * n  # noqa: E731
    known = weighed(lambda n: law(n) + next(noise), 10, 100)
    asked: list[int] = []

    def probe(point: Point) -> Measured:
        asked.append(point.num_agents)
        return weighed(law, point.num_agents)[0]

    found = memory.estimate(Point("mfq", "mfmarl", 10**6), PLAN, known, probe)
    assert found == pytest.approx(law(10**6), rel=0.05)
    assert asked == [4096, 65_536]


@pytest.mark.parametrize(("kind", "size", "per_agent"), [("stacked", 100_000, 4e6), ("loop", 10_000, 1e6)])
def test_who_has_a_mind_each_is_weighed_in_small_numbers(kind: Any, size: int, per_agent: float) -> None:
    asked: list[int] = []

    def probe(point: Point) -> Measured:
        asked.append(point.num_agents)
        return Measured(point, "done", peak_bytes=int(3e8 + per_agent * point.num_agents))

    point = Point("iql", kind, size)
    assert memory.estimate(point, PLAN, (), probe) == pytest.approx(3e8 + per_agent * size, rel=1e-6)
    assert asked == [16, 256]


def test_copies_and_what_is_varied_are_other_curves() -> None:
    law = lambda n: 300 * MB + 700 * n  # noqa: E731
    known = weighed(law, 100_000, 200_000) + weighed(lambda n: 3 * law(n), 100_000, 200_000, copies=2)
    known += weighed(lambda n: 5 * law(n), 100_000, 200_000, varied={"hidden": [8]})
    assert memory.estimate(Point("mfq", "mfmarl", 10**6), PLAN, known, never) == int(law(10**6))
    assert memory.estimate(Point("mfq", "mfmarl", 10**6, copies=2), PLAN, known, never) == 3 * int(law(2 * 10**6))


def test_who_cannot_be_made_has_no_weight() -> None:
    def refused(point: Point) -> Measured:
        return Measured(point, "failed", "no")

    assert memory.estimate(Point("mfq", "mfmarl", 10**6), PLAN, (), refused) == 0


def test_a_point_that_does_not_fit_is_told_in_a_sentence() -> None:
    known = weighed(lambda n: 300 * MB + 7000 * n, 10_000, 100_000)
    assert memory.fits(Point("mfq", "mfmarl", 200_000), PLAN, known, never) == ""
    reason = memory.fits(Point("mfq", "mfmarl", 10**6), PLAN, known, never)
    assert reason == "It would take about 7.3 GB of memory, and it may take 2.0 GB."


def test_of_what_is_free_four_fifths_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 10**9)
    assert memory.allowed(replace(PLAN, max_memory=0.0)) == 8 * 10**8
    assert memory.allowed(PLAN) == 2 * 10**9
    # Small points are not worth the asking.
    assert memory.fits(Point("mfq", "mfmarl", 4096), replace(PLAN, max_memory=0.0), (), never) == ""


def test_where_nothing_says_what_is_free_all_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    assert memory.fits(Point("mfq", "mfmarl", 10**9), replace(PLAN, max_memory=0.0), (), never) == ""


def test_a_container_may_allow_less_than_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "_available", lambda: 20 * 10**9)
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000000\ninactive_file 400000000\n")
    assert free_memory._left_in_container(tmp_path) == 1_900_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory._left_in_container(tmp_path) == 0
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("1000\n")
    (old / "memory.usage_in_bytes").write_text("900\n")
    assert free_memory._left_in_container(tmp_path) == 100
    (old / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert free_memory._left_in_container(tmp_path) == 0


def test_this_machine_has_some_memory_left() -> None:
    assert 10**8 < free_memory.free_memory() < 10**14


@pytest.mark.parametrize(("size", "words"), [(999, "1.0 kB"), (2.5e6, "2.5 MB"), (1.26e9, "1.3 GB"), (3e12, "3.0 TB")])
def test_bytes_in_words(size: float, words: str) -> None:
    assert free_memory.told(size) == words


@pytest.mark.verify
@pytest.mark.parametrize(("environment", "agent"), [("ising", "mfq"), ("beach_bar", "mfppo"), ("minority_game", "iql")])
@pytest.mark.parametrize("size", [100_000, 500_000])
def test_what_is_foretold_is_what_is_weighed(environment: str, agent: str, size: int) -> None:
    plan = Plan(Choice(environment), {agent: {"all": Choice(agent)}}, (size,), steps=1)
    point = Point(agent, "mfmarl", size)
    foretold = memory.estimate(point, plan)
    found = fresh(point, plan)
    assert found.status == "done"
    assert foretold == pytest.approx(found.peak_bytes, rel=0.2)
    # And of what the agents add to Python and torch, the large part.
    assert foretold - found.base_bytes == pytest.approx(found.peak_bytes - found.base_bytes, rel=0.2, abs=48 * MB)
