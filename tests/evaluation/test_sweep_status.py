"""A comparison as cells, each with how it stands; failed seeds are last and never gone; what is unlike is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mfmarl.errors import ConfigError
from mfmarl.evaluation import results, statistics, summary
from mfmarl.evaluation.cells import cells, counts, sentence, table
from mfmarl.learning import run_folder

Make = Callable[..., Path]


def small(make_comparison: Make, **options) -> Path:
    return make_comparison(seeds=4, environments=("ising",), agents=("mfq", "iql"), **options)


def status(folder: Path, agent: str, seed: int, **changes) -> None:
    path = folder / "ising" / agent / f"seed-{seed}" / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_cell_says_how_it_stands_and_why(make_comparison: Make) -> None:
    folder = small(make_comparison, failing=(("ising", "mfq", 0),))
    status(folder, "mfq", 1, state="interrupted", error="asked to stop")
    status(folder, "mfq", 2, state="running")
    status(folder, "iql", 0, diverged="iql at step 300: loss = 1e20")
    status(folder, "iql", 1, state="running")
    for file in (folder / "ising" / "iql" / "seed-3").iterdir():
        file.unlink()
    results.note_failures(folder, {("ising", "iql", 1): "killed (signal 9)"})
    with run_folder.reopen(folder / "ising" / "mfq" / "seed-2"):
        found = {(c.agent, c.seed): c for c in cells(folder)}
    states = {key: cell.state for key, cell in found.items()}
    assert states == {
        ("mfq", 0): "failed", ("mfq", 1): "interrupted", ("mfq", 2): "running", ("mfq", 3): "done",
        ("iql", 0): "diverged", ("iql", 1): "failed", ("iql", 2): "done", ("iql", 3): "never run",
    }  # fmt: skip
    assert "NaN" in found["mfq", 0].reason and found["iql", 1].reason == "killed (signal 9)"
    assert "process " in found["mfq", 2].reason and "loss" in found["iql", 0].reason
    # The lock is free again: the run that says it is running was killed.
    after = {(c.agent, c.seed): c for c in cells(folder)}["mfq", 2]
    assert (after.state, after.reason) == ("interrupted", "its process was killed")


def test_counts_name_every_state_and_the_table_all_that_is_odd(make_comparison: Make) -> None:
    folder = small(make_comparison, failing=(("ising", "mfq", 0), ("ising", "iql", 2)))
    found = cells(folder)
    assert counts(found) == {"done": 6, "diverged": 0, "failed": 2, "interrupted": 0, "running": 0, "never run": 0}
    told = table(found)
    assert [(c["agent"], c["seed"]) for c in told["cells"]] == [("mfq", 0), ("iql", 2)]
    assert sentence(told) == "8 runs: 6 done, 2 failed."
    assert json.loads(json.dumps(told)) == told


def test_a_folder_that_holds_no_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no comparison") as caught:
        cells(tmp_path)
    assert caught.value.code == "no-run"


def test_a_failure_that_was_tried_again_is_forgotten_and_others_are_kept(make_comparison: Make) -> None:
    folder = small(make_comparison)
    first, second = ("ising", "mfq", 0), ("ising", "iql", 1)
    results.note_failures(folder, {first: "one", second: "two"})
    results.note_failures(folder, {}, tried=[first])
    assert list(results.read_failures(folder).values()) == ["two"]


def test_a_failed_seed_is_beaten_by_the_worst_that_finished_and_ties_with_the_failed(make_comparison: Make) -> None:
    # Both agents get the same scores; then one of mfq's seeds fails.
    folder = small(make_comparison)
    for seed in range(4):
        for agent in ("mfq", "iql"):
            place = folder / "ising" / agent / f"seed-{seed}" / "metrics.jsonl"
            rows = [{"step": 40 * (i + 1), "eval/reward": float(seed)} for i in range(50)]
            place.write_text("".join(json.dumps(r) + "\n" for r in rows))
    status(folder, "mfq", 3, state="failed", error="NaN")
    comparison = results.read_comparison(folder)
    a, b = (results.scores(comparison, "ising", agent) for agent in ("mfq", "iql"))
    assert list(a.values) == [0, 1, 2, 0] and a.lost == (False, False, False, True)
    assert list(a.ranked) == [0, 1, 2, -np.inf] and list(b.ranked) == [0, 1, 2, 3]
    # By hand: 0 beats none of (0, 1, 2, 3) and ties once, and so on: 0.5 + 1.5 + 2.5 + 0 of 16.
    chance = statistics.probability_of_improvement([a.ranked], [b.ranked]).value
    assert chance == pytest.approx(4.5 / 16)
    told = summary.summary(comparison)["environments"]["ising"]
    assert told["pairs"][0]["improvement"]["value"] == pytest.approx(4.5 / 16)
    assert len(told["agents"]["mfq"]["scores"]) == 4
    # Two failed against two failed: nobody is better.
    both = statistics.probability_of_improvement([[-np.inf, -np.inf]], [[-np.inf, -np.inf]])
    assert both.value == 0.5
    # Dropping the failed seed would have told another story.
    dropped = results.scores(results.read_comparison(folder, failed="exclude"), "ising", "mfq")
    assert statistics.probability_of_improvement([dropped.ranked], [b.ranked]).value > chance


def test_an_agent_that_failed_everywhere_in_one_environment_is_last_there_and_not_gone(make_comparison: Make) -> None:
    broken = tuple(("congestion", "mfq", k) for k in range(3))
    folder = make_comparison(seeds=3, environments=("ising", "congestion"), agents=("mfq", "iql"), failing=broken)
    comparison = results.read_comparison(folder)
    tasks = summary.pooled(comparison)
    assert list(tasks["mfq"][1]) == [0, 0, 0]
    told = summary.summary(comparison)
    assert told["overall"]["left_out"] == [] and told["overall"]["agents"]["mfq"]["value"] < 0.7
    excluded = summary.summary(results.read_comparison(folder, failed="exclude"))
    assert excluded["overall"]["left_out"] == ["mfq"]


def test_few_seeds_are_said_to_be_few(make_comparison: Make) -> None:
    assert any(
        "as few as 4 runs" in n for n in summary.summary(results.read_comparison(small(make_comparison)))["notes"]
    )


def test_enough_seeds_need_no_word(make_comparison: Make) -> None:
    folder = make_comparison(seeds=5, environments=("ising",), agents=("mfq", "iql"))
    assert summary.summary(results.read_comparison(folder))["notes"] == []


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("copies = 4", "copies = 8", "run.copies is 4 there and 8"),
        ("num_agents = 400", "num_agents = 100", "environment.num_agents is 400 there and 100"),
        ("learning_rate = 0.1", "learning_rate = 0.5", "agents.all.learning_rate is 0.1 there and 0.5"),
        ('torch = "2.13.0"', 'torch = "2.14.0"', "versions.torch is '2.13.0' there and '2.14.0'"),
    ],
)
def test_runs_that_were_made_otherwise_are_refused_by_name_and_noted_when_allowed(
    make_comparison: Make, old: str, new: str, where: str
) -> None:
    folder = small(make_comparison)
    config = folder / "ising" / "mfq" / "seed-2" / "config.toml"
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        results.read_comparison(folder)
    assert caught.value.code == "unequal-runs"
    assert where in str(caught.value) and "seed-2" in str(caught.value) and "1 of " in str(caught.value)
    assert "--allow-unequal" in str(caught.value)
    allowed = results.read_comparison(folder, allow_unequal=True)
    assert any(where in note for note in allowed.notes)


@pytest.mark.parametrize(("old", "new"), [("threads = 1", "threads = 2"), ('device = "cpu"', 'device = "cuda"')])
def test_what_does_not_touch_the_course_of_a_run_may_differ(make_comparison: Make, old: str, new: str) -> None:
    folder = small(make_comparison)
    config = folder / "ising" / "mfq" / "seed-2" / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    assert results.read_comparison(folder).notes == ()


def test_agents_may_differ_from_each_other_in_their_options(make_comparison: Make) -> None:
    folder = small(make_comparison)
    for seed in range(4):
        config = folder / "ising" / "mfq" / f"seed-{seed}" / "config.toml"
        config.write_text(config.read_text().replace("learning_rate = 0.1", "learning_rate = 0.9"))
    assert results.read_comparison(folder).notes == ()


def test_runs_that_diverged_count_are_noted_and_leave_only_when_told(make_comparison: Make) -> None:
    folder = small(make_comparison)
    status(folder, "mfq", 2, diverged="mfq at step 300: loss = 1e20")
    comparison = results.read_comparison(folder)
    assert results.scores(comparison, "ising", "mfq").seeds == (0, 1, 2, 3)
    assert comparison.notes == ("1 of 8 runs diverged, by their own health alarms (compared all the same).",)
    without = results.read_comparison(folder, without_diverged=True)
    assert results.scores(without, "ising", "mfq").seeds == (0, 1, 3)
    assert "left out" in without.notes[0]


def test_what_is_not_finished_is_refused_with_how_many(make_comparison: Make) -> None:
    folder = small(make_comparison)
    status(folder, "mfq", 1, state="interrupted")
    status(folder, "iql", 1, state="running")
    with pytest.raises(ConfigError, match="2 such of 8 runs") as caught:
        results.read_comparison(folder)
    assert caught.value.code == "unfinished-runs"
    assert any(
        "2 of 8 runs of ising are not finished" in n for n in results.read_comparison(folder, allow_unequal=True).notes
    )
