"""The sentences and numbers of a comparison."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mfmarl.evaluation import statistics
from mfmarl.evaluation.results import read_comparison, scores
from mfmarl.evaluation.summary import count, duration, interval, number, print_table, summary

Make = Callable[..., Path]


def test_the_summary_holds_the_statistics_of_the_runs(make_comparison: Make) -> None:
    comparison = read_comparison(make_comparison(seeds=5))
    table = json.loads(json.dumps(summary(comparison), allow_nan=False))
    found = table["environments"]["ising"]["agents"]["mfq"]
    expected = statistics.estimate([scores(comparison, "ising", "mfq").values])
    assert (found["iqm"], found["low"], found["high"], found["runs"]) == expected
    assert found["theory"]["magnetisation"]["distance"] == abs(found["theory"]["magnetisation"]["measured"] - 0.9113)
    assert found["wall"] == pytest.approx(45) and found["agent_steps"] == 2000 * 1600
    assert table["failed_runs"] == 0 and table["runs"] == 75


def test_verdicts_say_better_and_not_separable_where_it_is_so(make_comparison: Make) -> None:
    table = summary(read_comparison(make_comparison(seeds=6)))
    by = {(e, p["first"]): p for e, a in table["environments"].items() for p in a["pairs"]}
    assert by["ising", "mfq"]["verdict"] == "better"
    assert "mfq is better than its independent twin iql" in by["ising", "mfq"]["sentence"]
    equal = by["congestion", "mfq"]
    assert equal["verdict"] == "not separable" and equal["equal_within"] is not None
    assert "not separable at 6 runs" in equal["sentence"] and "equal within 5%" in equal["sentence"]
    assert "Theory gives both the same answer" in equal["sentence"]


def test_runs_of_the_same_seed_are_compared_with_each_other(tmp_path: Path, make_run: Make) -> None:
    for seed, luck in enumerate([0.0, 5.0, -3.0, 9.0, 2.0]):
        for agent, level in (("mfq", 0.1 + 0.01 * seed), ("iql", 0.0)):
            make_run(tmp_path / "ising" / agent / f"seed-{seed}", np.full(4, luck + level), agent=agent, seed=seed)
    [pair] = summary(read_comparison(tmp_path, baseline="iql"))["environments"]["ising"]["pairs"]
    assert pair["difference"]["paired"] and pair["verdict"] == "better"
    for seed in range(5):  # other seeds: nothing to pair, and the luck hides the difference
        (tmp_path / "ising" / "mfq" / f"seed-{seed}").rename(tmp_path / "ising" / "mfq" / f"seed-{seed + 100}")
        (tmp_path / "ising" / "mfq" / f"seed-{seed + 100}" / "config.toml").unlink()
    [pair] = summary(read_comparison(tmp_path, baseline="iql"))["environments"]["ising"]["pairs"]
    assert not pair["difference"]["paired"] and pair["verdict"] == "not separable"


def test_holm_is_taken_over_every_pair_of_every_environment(make_comparison: Make) -> None:
    pairs = [p for e in summary(read_comparison(make_comparison(seeds=5)))["environments"].values() for p in e["pairs"]]
    assert len(pairs) == 6
    adjusted = statistics.holm([p["difference"]["p"] for p in pairs])
    assert [p["difference"]["p_holm"] for p in pairs] == adjusted


def test_failed_runs_are_in_the_sentence_and_in_the_count(make_comparison: Make) -> None:
    folder = make_comparison(seeds=5, failing=(("ising", "mfq", 1), ("ising", "mfq", 2)))
    table = summary(read_comparison(folder))
    [pair] = [p for p in table["environments"]["ising"]["pairs"] if p["first"] == "mfq"]
    assert "2 of 5 runs of mfq failed (counted as the worst run seen)." in pair["sentence"]
    assert table["failed_runs"] == 2
    assert "NaN at step 640" in table["environments"]["ising"]["agents"]["mfq"]["errors"]["1"]
    left_out = summary(read_comparison(folder, failed="exclude"))["environments"]["ising"]["pairs"][0]["sentence"]
    assert "2 of 5 runs of mfq failed (left out, as asked)." in left_out


def test_an_agent_whose_runs_all_failed_is_not_compared(make_comparison: Make) -> None:
    broken = tuple(("ising", "mfq", k) for k in range(3))
    table = summary(read_comparison(make_comparison(seeds=3, failing=broken)))
    [pair] = [p for p in table["environments"]["ising"]["pairs"] if p["first"] == "mfq"]
    assert pair["verdict"] == "no result" and "every run of mfq failed" in pair["sentence"]
    assert table["environments"]["ising"]["agents"]["mfq"]["iqm"] is None
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize(("seeds", "words"), [(1, "at 1 run:"), (2, "at 2 runs:")])
def test_few_runs_give_no_verdict(make_comparison: Make, seeds: int, words: str) -> None:
    table = summary(read_comparison(make_comparison(seeds=seeds, environments=("ising",))))
    sentence = table["environments"]["ising"]["sentences"][0]
    assert "not separable" in sentence and words in sentence and "needs 3" in sentence


def test_a_single_agent_is_described_alone(make_comparison: Make) -> None:
    table = summary(read_comparison(make_comparison(seeds=3, environments=("ising",), agents=("mfq",))))
    assert "no other agent" in table["environments"]["ising"]["sentences"][0]


def test_a_baseline_is_compared_with_everybody(make_comparison: Make) -> None:
    table = summary(read_comparison(make_comparison(seeds=3, environments=("ising",)), baseline="random"))
    pairs = {(p["first"], p["second"]) for p in table["environments"]["ising"]["pairs"]}
    assert pairs == {("mfq", "iql"), ("mfac", "iac"), *((a, "random") for a in ("mfq", "iql", "mfac", "iac"))}


def test_the_terminal_shows_names_as_they_are(make_comparison: Make) -> None:
    folder = make_comparison(seeds=3, environments=("[red]x[/red]",), agents=("mfq", "iql"))
    out = io.StringIO()
    print_table(summary(read_comparison(folder)), Console(file=out, width=160))
    assert "[red]x[/red]" in out.getvalue() and "mfq is better than its independent twin iql" in " ".join(
        out.getvalue().split()
    )


@pytest.mark.parametrize(
    ("value", "scale", "text"),
    [(0.91234, 0.02, "0.912"), (-0.5, 0.1, "−0.50"), (12345.6, 0, "12,346"), (0.00001234, 0, "1.234e−05"), (423.03, 15, "423"),
     (1e9, 0, "1e+09"), (float("nan"), 0, "–"), (None, 0, "–"), (0.0, 0.0, "0"), (1e-9, 1e-10, "1e−09"), (5.0, float("inf"), "5")],
)  # fmt: skip
def test_numbers_have_the_digits_they_deserve(value: float | None, scale: float, text: str) -> None:
    assert number(value, scale) == text


def test_times_and_counts_are_for_people() -> None:
    assert [duration(t) for t in (0.5, 75, 4000, float("nan"))] == ["0.5 s", "1 min 15 s", "1 h 6 min", "–"]
    assert [count(x) for x in (12, 2500, 3.2e6, 5e10)] == ["12", "2.5 k", "3.2 M", "50 G"]
    assert interval(None, None) == "(no interval)" and interval(0.1, 0.2) == "[0.100, 0.200]"
