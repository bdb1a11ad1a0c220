"""Runs whose numbers are known are judged to have them; what cannot be played is said before anything runs."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from mfmarl.errors import ConfigError
from mfmarl.evaluation import statistics
from mfmarl.evaluation.comparison import PlannedRun
from mfmarl.evaluation.results import note_failures
from mfmarl.evaluation.scaling.points import Measured, Plan, Point
from mfmarl.evaluation.scaling.quality import (
    TOGETHER,
    Quality,
    arrival,
    expected_seconds,
    judge,
    label,
    look,
    options_at,
    plan_quality,
)
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice
from tests.statistical import beyond, statistical


def plan(sizes: tuple[int, ...], agents: tuple[str, ...] = ("iql",), env: str = "ising", **options: Any) -> Plan:
    team = {name: {"all": Choice(name)} for name in agents}
    return Plan(Choice(env, options), team, sizes, seeds=(0, 1, 2), learning_steps=200)


def write(run: PlannedRun, columns: dict[str, np.ndarray], *, state: str = "done", error: str = "",
          references: dict[str, tuple[float, str]] | None = None, every: int = 4) -> None:  # fmt: skip
    """A run folder with those columns, one row per report: what a run of the plan would have left."""
    run.path.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    per_step = run.config.run.copies * int(run.environment.removeprefix("N-"))
    rows = [
        {"step": (i + 1) * every, "agent_steps": (i + 1) * every * per_step, "wall": i, "cpu": i}
        | {name: float(x[i]) for name, x in columns.items()}
        for i in range(count)
    ]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (run.path / "config.toml").write_text(tomli_w.dumps(run.config.to_table()))
    (run.path / "status.json").write_text(json.dumps({"state": state, "error": error, "step": count * every}))
    known = {name: {"value": v, "source": s, "kind": "law"} for name, (v, s) in (references or {}).items()}
    (run.path / "reference.json").write_text(json.dumps(known))


def row(quality: Quality, agent: str, num_agents: int) -> dict[str, Any]:
    return next(r for r in quality.rows if (r["agent"], r["num_agents"]) == (agent, num_agents))


# ----------------------------------------------------------------------------------------------- planning


def test_every_size_agent_and_seed_is_an_ordinary_run(tmp_path: Path) -> None:
    the = plan((9, 100, 10_000), ("mfq", "iql"), coupling=0.5)
    runs = plan_quality(the, tmp_path)
    assert len(runs) == 3 * 2 * 3
    assert {(r.environment, r.agent, r.seed) for r in runs} == {
        (f"N-{n}", a, s) for n in (9, 100, 10_000) for a in ("mfq", "iql") for s in (0, 1, 2)
    }
    one = next(r for r in runs if (r.environment, r.agent, r.seed) == ("N-100", "mfq", 2))
    assert one.path == tmp_path / "quality" / "N-100" / "mfq" / "seed-2"
    assert one.config.environment == Choice("ising", {"coupling": 0.5, "num_agents": 100})
    assert one.config.run.seed == 2 and one.config.run.steps == 200
    told = json.loads((tmp_path / "quality" / "comparison.json").read_text())
    assert [e["label"] for e in told["environments"]] == ["N-9", "N-100", "N-10000"] and told["seeds"] == [0, 1, 2]
    # Seed by seed, so that a sweep that is killed is as even as it can be.
    assert [r.seed for r in runs] == sorted(r.seed for r in runs)


def test_small_populations_are_played_in_more_copies_and_large_ones_not_dearer() -> None:
    the = plan((2,))
    for n in (2, 10, 100, 1000, 4096, 10_000, 1_000_000):
        options = options_at(the, n)
        acted = options.evaluation_copies * options.evaluation_interval
        trained = options.copies * options.report_interval
        assert options.copies * n <= max(TOGETHER, n)
        assert acted <= trained, n  # evaluation never costs more than acting in training
        assert options.evaluation_copies >= 2
    assert options_at(the, 100).copies == 40 and options_at(the, 1_000_000).copies == 1


def test_a_size_that_the_game_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    the = plan((9, 10, 16))
    assert look(the)[9].reason == "" and look(the)[16].reason == ""
    runs = plan_quality(the, tmp_path)
    assert {r.environment for r in runs} == {"N-9", "N-16"}
    quality = judge(the, tmp_path)
    assert quality.sizes == (9, 16)
    assert "10 agents do not fill a nearly square torus" in quality.skipped[10]
    assert "take num_agents=9" in quality.to_table()["skipped"]["10"]
    with pytest.raises(ConfigError, match="do not fill"):
        plan_quality(plan((10, 22)), tmp_path / "none")
    told = look(plan((1, 4), env="stag_hunt"))
    assert "num_agents must be int in [2," in told[1].reason and told[4].reason == ""


def test_a_budget_leaves_out_the_largest_sizes_and_what_is_done_costs_nothing(tmp_path: Path) -> None:
    the = plan((9, 100, 10_000))
    point = Point("iql", "mfmarl", 10_000)
    known = [Measured(point, "done", steps=10, cpu=10 * 10_000 * 5e-6)]  # 5 us per agent and step
    options = options_at(the, 10_000)
    steps = 200 * options.copies + 50 * options.evaluation_copies * options.evaluation_interval
    assert expected_seconds(the, 10_000, known) == pytest.approx(3 * 5e-6 * 10_000 * steps)
    enough = sum(expected_seconds(the, n, known) for n in the.sizes)
    assert len(plan_quality(the, tmp_path, 1.01 * enough, 1, known)) == 9
    little = enough - expected_seconds(the, 10_000, known) / 2
    runs = plan_quality(the, tmp_path, little, 1, known)
    assert {r.environment for r in runs} == {"N-9", "N-100"}
    assert "would take about" in judge(the, tmp_path).skipped[10_000]
    assert len(plan_quality(the, tmp_path, enough / 2.9, 3, known)) == 9  # three at a time
    for run in runs:
        write(run, {"eval/reward": np.ones(50)})
    smaller = 1.01 * expected_seconds(the, 10_000, known)
    assert len(plan_quality(the, tmp_path, smaller, 1, known)) == 9


def test_a_plan_without_seeds_learns_nothing(tmp_path: Path) -> None:
    assert plan_quality(replace(plan((9,)), seeds=()), tmp_path) == []
    assert not (tmp_path / "quality").exists()


# ------------------------------------------------------------------------------------------------- judging


def test_known_numbers_come_back_with_their_intervals(tmp_path: Path) -> None:
    the = plan((9, 100), ("mfq", "iql"), env="gaussian_squeeze", horizon=20)
    level = {0: 1.0, 1: 1.1, 2: 1.3}
    for run in plan_quality(the, tmp_path):
        n = int(run.environment.removeprefix("N-"))
        settled = np.full(50, level[run.seed] + 1 / n)
        settled[:20] = 0.0
        write(run, {"eval/reward": settled, "eval/mean_action": 2 * settled, "limit/exploitability": settled},
              references={"reward": (1.0, "a book")})  # fmt: skip
    quality = judge(the, tmp_path)
    assert quality.failed == []
    for n in (9, 100):
        found = row(quality, "mfq", n)
        scores = [v + 1 / n for v in level.values()]
        expected = statistics.estimate([scores])
        assert found["reward"] == pytest.approx(expected._asdict())
        assert found["return"]["value"] == pytest.approx(20 * expected.value)
        assert found["return"]["runs"] == 3 == found["runs"] == found["planned"]
        told = found["measures"]["reward"]
        assert list(found["measures"]) == ["reward", "mean_action"]
        assert told["theory"] == 1.0 and told["source"] == "a book" and told["kind"] == "law"
        assert told["distance"] == pytest.approx(expected.value - 1)
        error = statistics.standard_error(scores)
        assert told["standard_errors"] == pytest.approx((expected.value - 1) / error)
        assert told["agrees"] == (expected.low <= 1.0 <= expected.high)
        assert found["measures"]["mean_action"]["theory"] is None
        assert found["gaps"]["limit/exploitability"]["value"] == pytest.approx(expected.value)
        # From 0 to its level in row 21; the mean of three is there in row 23, at step 92.
        assert found["steps"]["value"] == pytest.approx(92)
        assert found["agent_steps"]["value"] == pytest.approx(92 * n * found["copies"])
    assert len(quality.rows) == 4
    json.dumps(quality.to_table(), allow_nan=False)


def test_failed_runs_are_named_and_count_for_nothing(tmp_path: Path) -> None:
    the = plan((9, 16))
    for run in plan_quality(the, tmp_path):
        if (run.environment, run.seed) == ("N-16", 2):
            continue  # never begun
        ends = {("N-16", 1): "failed", ("N-9", 0): "interrupted"}
        state = ends.get((run.environment, run.seed), "done")
        values = np.full(50, 2.0 if state == "done" else 99.0)
        write(run, {"eval/reward": values}, state=state, error="diverged" if state == "failed" else "")
    died = "the process of this run died (signal 9)"
    note_failures(tmp_path / "quality", {("N-16", "iql", 2): died})
    quality = judge(the, tmp_path)
    told = sorted((f["num_agents"], f["seed"], f["error"]) for f in quality.failed)
    assert told == [(9, 0, ""), (16, 1, "diverged"), (16, 2, died)]
    assert row(quality, "iql", 16)["runs"] == 1 and row(quality, "iql", 16)["planned"] == 3
    assert row(quality, "iql", 16)["reward"]["value"] == 2.0 and row(quality, "iql", 9)["runs"] == 2
    assert row(quality, "iql", 9)["measures"]["reward"]["value"] == 2.0
    assert quality.to_table()["rows"][1]["reward"]["low"] is None  # one run has no interval


def test_a_sweep_that_has_not_begun_is_judged_to_be_empty(tmp_path: Path) -> None:
    the = plan((9, 16))
    plan_quality(the, tmp_path)
    quality = judge(the, tmp_path)
    assert len(quality.failed) == 6 and all(r["runs"] == 0 and r["reward"] is None for r in quality.rows)
    assert quality.fluctuations == [] and quality.limit == []
    assert all(cell["reason"] for cell in quality.transfer)
    json.dumps(quality.to_table(), allow_nan=False)


def test_a_curve_arrives_where_it_is_known_to() -> None:
    steps = np.arange(1, 101)
    curve = 3 - 2 * np.exp(-steps / 10.0)
    found = arrival(steps, curve)
    assert found is not None
    rise = curve[50:].mean() - curve[0]
    # The mean of three rows is within a twentieth of the rise: about 10 log 20 steps after the first, one more for the mean.
    exact = 10 * math.log(2 * math.exp(-0.1) / (0.05 * rise)) + 1 + 1
    assert abs(steps[found] - exact) < 1.5
    assert arrival(steps, -curve) == found  # falling is arriving too
    noisy = curve + 0.02 * np.random.default_rng(0).standard_normal(100)
    assert abs((arrival(steps, noisy) or 0) - found) < 8
    assert arrival(steps, 0.1 * np.random.default_rng(1).standard_normal(100)) is None
    assert arrival(steps, np.full(100, 2.0)) is None
    assert arrival(steps[:3], curve[:3]) is None


def test_the_distance_from_the_limit_has_the_exponent_it_was_made_with(tmp_path: Path) -> None:
    sizes = (40, 160, 640, 2560)
    the = plan(sizes, ("mfq",), graph="complete", coupling=4.0)
    runs = plan_quality(the, tmp_path)
    from mfmarl.envs.ising import Ising

    beyond = Ising(num_agents=1_000_000, graph="complete", coupling=4.0).reference(1.0)["reward"].value
    for run in runs:
        n = int(run.environment.removeprefix("N-"))
        wobble = 1e-4 * (run.seed - 1)
        reference = Ising(num_agents=n, graph="complete", coupling=4.0).reference(1.0)
        write(run, {"eval/reward": np.full(50, beyond + 3 / n + wobble)},
              references={"reward": (reference["reward"].value, "Curie-Weiss")})  # fmt: skip
    quality = judge(the, tmp_path)
    rows = [r for r in quality.limit if r["name"] == "reward"]
    assert [r["num_agents"] for r in rows] == list(sizes)
    for r in rows:
        assert r["limit"] == pytest.approx(beyond) and r["beyond"] == 1_000_000
        assert r["value"] == pytest.approx(3 / r["num_agents"], abs=1e-6)
        known = Ising(num_agents=r["num_agents"], graph="complete", coupling=4.0).reference(1.0)["reward"].value
        assert r["theory"] == pytest.approx(known - beyond)
    fit = next(f for f in quality.limit_fits if f["name"] == "reward")
    assert fit["low"] <= -1 <= fit["high"] and fit["exponent"] == pytest.approx(-1, abs=0.02)
    assert fit["coefficient"] == pytest.approx(3, rel=0.05)
    # Theory's own distances, at tau = 1 far below tau_c = 2, fall as 1/N.
    assert fit["theory"] == pytest.approx(-1, abs=0.1)


@statistical(alpha=beyond(5, 200), bugs=("chain-mean-off", "steps-share-noise"))
def test_random_play_is_the_same_game_at_every_size(tmp_path: Path) -> None:
    the = replace(plan((9, 36, 144), ("random",), order="synchronous"), learning_steps=50, seeds=(0, 1))
    for run in plan_quality(the, tmp_path):
        run_in_folder(run.config, run.path)
    heard: list[dict[str, Any]] = []
    quality = judge(the, tmp_path, heard.append)
    assert {(e["what"], e["num_agents"]) for e in heard} == {
        (w, n) for w in ("fluctuations", "transfer") for n in (9, 36, 144)
    }
    fit = next(f for f in quality.fluctuation_fits if f["name"] == "magnetisation/signed")
    assert fit["low"] <= -0.5 <= fit["high"] and fit["high"] - fit["low"] < 0.1 and fit["points"] == 3
    assert fit["agrees"] is True and fit["coefficient"] == pytest.approx(1.0, rel=0.1)
    for spread in (r for r in quality.fluctuations if r["name"] == "magnetisation/signed"):
        assert abs(spread["value"] - 1 / math.sqrt(spread["num_agents"])) < 5 * spread["error"]
        assert spread["runs"] == 2
    cells = {(c["trained"], c["played"]): c for c in quality.transfer}
    assert len(cells) == 9
    for (trained, played), cell in cells.items():
        assert cell["reason"] == "" and cell["reward"]["runs"] == 2
        assert cell["reward"] == cells[played, played]["reward"]
        assert cell["loss"] is None if trained == played else cell["loss"]["value"] == 0
    assert label(9) == "N-9"
    json.dumps(quality.to_table(), allow_nan=False)
    # What was learned is told whatever the time; what would have to be played is left out, and said.
    hurried = judge(the, tmp_path, until=time.monotonic() - 1)
    assert hurried.rows == quality.rows
    assert hurried.fluctuations == []
    assert {c["reason"] for c in hurried.transfer} == {"the time that was given is spent"}
    assert sum("the time that was given is spent" in note for note in hurried.notes) == 6


@pytest.mark.verify
@statistical(alpha=beyond(5, 200), bugs=("chain-error-tiny", "chain-mean-off"))
def test_a_mean_field_game_is_held_against_its_limit(tmp_path: Path) -> None:
    the = replace(plan((20, 200), ("random",), env="beach_bar", places=3, bar=1), learning_steps=40, seeds=(0, 1))
    for run in plan_quality(the, tmp_path):
        run_in_folder(run.config, run.path)
    quality = judge(the, tmp_path)
    assert {r["name"] for r in quality.limit} >= {"reward", "spread", "share/0"}
    for r in quality.limit:
        if r["name"].startswith("share/"):  # linear in the crowd: no distance at any N
            assert abs(r["value"]) < 5 * r["error"]
        assert r["limit"] is not None and r["measured"] == pytest.approx(r["limit"] + r["value"])
    near = {r["num_agents"]: r for r in quality.limit if r["name"] == "spread"}
    # <-sum p log p> is below the limit's by (S - 1) / (2 N log S).
    for n, r in near.items():
        assert abs(r["value"] + 2 / (2 * n * math.log(3))) < 5 * r["error"] + 1 / n**2 * 5
        assert r["value"] < -5 * r["error"] or n == 200
    for r in (r for r in quality.fluctuations if r["name"] == "share/0"):
        assert r["theory"] is not None and abs(r["value"] - r["theory"]) < 5 * r["error"]
    assert row(quality, "random", 20)["gaps"]["limit/exploitability"]["value"] > 0
