"""Run folders as they are found: whole, torn, unequal, hostile."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mfmarl.errors import ConfigError, ResourceFault
from mfmarl.evaluation import results

Make = Callable[..., Path]


def test_a_run_is_read_as_it_was_written(tmp_path: Path, make_run: Make) -> None:
    known = {"reward": {"value": 2.0, "source": "by hand", "kind": "optimum"}}
    run = results.read_run(make_run(tmp_path / "r", np.array([1.0, 2.0, 3.0]), seed=7, references=known))
    assert (run.environment, run.agent, run.seed, run.state) == ("ising", "mfq", 7, "done")
    assert list(run.steps) == [40, 80, 120] and list(run.columns["eval/reward"]) == [1, 2, 3]
    assert run.references["reward"].value == 2.0 and run.references["reward"].kind == "optimum"
    assert run.agent_steps == 120 * 1600 and run.rate == pytest.approx(run.agent_steps / 2.7)


def test_a_torn_last_row_is_left_out_and_a_damaged_one_is_counted(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "r", np.array([1.0, 2.0]))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(
        f'{lines[0]}\nnonsense\n{"[" * 100_000}\n{lines[1]}\n{{"step": 120, "eval/rew'
    )
    run = results.read_run(folder)
    assert list(run.steps) == [40, 80] and run.damaged_rows == 2


def test_a_step_that_was_repeated_after_a_resume_keeps_its_last_row(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "r", np.array([1.0, 2.0]))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 80, "eval/reward": 9.0}) + "\n")
    assert list(results.read_run(folder).columns["eval/reward"]) == [1, 9]


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "status.json", "reference.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[" * 50_000, b"[1, 2]", b'{"step": 1e999}\n'])
def test_whatever_a_file_holds_a_run_can_be_read(tmp_path: Path, make_run: Make, name: str, content: bytes) -> None:
    folder = make_run(tmp_path / "r" / "seed-3", np.array([1.0, 2.0]), seed=3)
    (folder / name).write_bytes(content)
    run = results.read_run(folder)
    assert run.seed == 3
    assert run.state in ("done", "interrupted")
    (folder / name).unlink()
    assert results.read_run(folder).seed == 3


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        results.read_run(tmp_path)


def test_the_score_is_the_mean_after_burn_in_and_not_the_best_moment(tmp_path: Path, make_run: Make) -> None:
    run = results.read_run(make_run(tmp_path / "r", np.array([0.0, 100.0, 1.0, 3.0])))
    assert results.time_average(run, "eval/reward") == 2.0
    assert results.time_average(run, "eval/reward", burn_in=0.75) == 3.0
    assert results.time_average(run, "eval/reward", burn_in=0.0) == 26.0
    assert math.isnan(results.time_average(run, "eval/nothing"))


def test_rows_without_the_number_do_not_count_but_a_nan_row_does(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "r", np.array([0.0, 0.0, 1.0, 3.0]))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 165, "wall": 4}\n')
    assert results.time_average(results.read_run(folder), "eval/reward") == 2.0
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 170, "eval/reward": NaN}\n')
    assert math.isnan(results.time_average(results.read_run(folder), "eval/reward"))


def test_a_comparison_groups_its_runs_and_knows_the_twins(make_comparison: Make) -> None:
    comparison = results.read_comparison(make_comparison(seeds=3))
    assert comparison.environments == ("ising", "congestion", "magent2/battle_v4")
    assert comparison.agents == ("mfq", "iql", "mfac", "iac", "random")
    assert [r.seed for r in comparison.of("magent2/battle_v4", "iql")] == [0, 1, 2]
    assert results.pairs(comparison) == [("mfq", "iql"), ("mfac", "iac")]
    assert comparison.headline("ising") == "eval/reward"


def test_twins_of_variants_and_teams_differ_in_one_word(make_comparison: Make) -> None:
    folder = make_comparison(seeds=1, environments=("ising",), agents=("mfq",))
    names = ["mfq:bins=9", "iql:bins=9", "red=mfq+blue=rusher", "red=iql+blue=rusher", "mfq:lr=1", "iql", "mfqx"]
    plan = {
        "agents": [{"label": n} for n in names],
        "environments": [{"label": "ising"}],
        "seeds": [0],
        "independent": {"mfq": "iql"},
    }
    (folder / "comparison.json").write_text(json.dumps(plan))
    comparison = results.read_comparison(folder, allow_unequal=True)
    assert comparison.independent == {
        "mfq:bins=9": "iql:bins=9",
        "red=mfq+blue=rusher": "red=iql+blue=rusher",
        "mfq:lr=1": "iql",
        "mfq": "iql",
    }


def test_without_a_plan_the_folders_speak_for_themselves(make_comparison: Make) -> None:
    folder = make_comparison(seeds=2, environments=("ising",), agents=("mfq", "random"))
    (folder / "comparison.json").unlink()
    comparison = results.read_comparison(folder)
    assert comparison.environments == ("ising",) and comparison.agents == ("mfq", "random")
    assert results.pairs(comparison) == [("random", "mfq")]
    assert results.pairs(results.read_comparison(folder, baseline="random")) == [("mfq", "random")]


def test_unequal_budgets_are_refused_unless_told_and_then_cut(make_comparison: Make, make_run: Make) -> None:
    folder = make_comparison(seeds=2, environments=("ising",), agents=("mfq", "iql"))
    make_run(folder / "ising" / "iql" / "seed-1", np.arange(20.0), agent="iql", seed=1)
    with pytest.raises(ConfigError, match="different budgets"):
        results.read_comparison(folder)
    comparison = results.read_comparison(folder, allow_unequal=True)
    assert {r.last_step for r in comparison.runs} == {800}
    assert results.scores(comparison, "ising", "iql").values[1] == np.arange(10, 20).mean()


@pytest.mark.parametrize("state", ["interrupted", "running"])
def test_an_unfinished_run_is_refused_with_the_way_to_go_on(make_comparison: Make, state: str) -> None:
    folder = make_comparison(seeds=2, environments=("ising",), agents=("mfq", "iql"))
    status = folder / "ising" / "mfq" / "seed-1" / "status.json"
    status.write_text(json.dumps({"state": state}))
    with pytest.raises(ConfigError, match=r"finish it with `mfmarl train --resume .*seed-1`"):
        results.read_comparison(folder)
    results.note_failures(folder, {("ising", "mfq", 1): "the process died (signal 9)"})
    comparison = results.read_comparison(folder)
    assert comparison.of("ising", "mfq")[1].error == "the process died (signal 9)"
    assert results.scores(comparison, "ising", "mfq").failed == 1


def test_a_planned_run_without_results_is_never_forgotten(make_comparison: Make) -> None:
    folder = make_comparison(seeds=3, environments=("ising",), agents=("mfq", "iql"))
    for file in (folder / "ising" / "iql" / "seed-2").iterdir():
        file.unlink()
    with pytest.raises(ConfigError, match="has no results"):
        results.read_comparison(folder)
    comparison = results.read_comparison(folder, allow_unequal=True)
    found = results.scores(comparison, "ising", "iql")
    assert (found.failed, found.planned) == (1, 3)
    results.note_failures(folder, {("ising", "iql", 2): "the environment cannot be built"})
    assert results.read_comparison(folder).of("ising", "iql")[2].state == "failed"


def test_a_noted_failure_that_was_mended_is_done(make_comparison: Make) -> None:
    folder = make_comparison(seeds=2, environments=("ising",), agents=("mfq",))
    results.note_failures(folder, {("ising", "mfq", 0): "an old story"})
    assert results.read_comparison(folder).of("ising", "mfq")[0].state == "done"


def test_a_failed_run_counts_as_the_worst_and_leaves_only_when_told(make_comparison: Make) -> None:
    folder = make_comparison(seeds=4, environments=("ising",), agents=("mfq", "iql"), failing=(("ising", "mfq", 1),))
    worst = results.read_comparison(folder)
    everyone = np.concatenate([results.scores(worst, "ising", a).values for a in ("mfq", "iql")])
    found = results.scores(worst, "ising", "mfq")
    assert found.seeds == (0, 1, 2, 3) and found.values[1] == everyone.min() and found.failed == 1
    left_out = results.scores(results.read_comparison(folder, failed="exclude"), "ising", "mfq")
    assert left_out.seeds == (0, 2, 3) and left_out.failed == 1 and left_out.planned == 4


def test_a_run_whose_score_is_not_a_number_has_failed(make_comparison: Make, make_run: Make) -> None:
    folder = make_comparison(seeds=3, environments=("ising",), agents=("mfq", "iql"))
    make_run(folder / "ising" / "mfq" / "seed-0", np.full(50, np.nan), seed=0)
    assert results.scores(results.read_comparison(folder), "ising", "mfq").failed == 1


def test_when_every_run_of_an_agent_failed_it_has_no_score(make_comparison: Make) -> None:
    broken = tuple(("ising", "mfq", k) for k in range(2))
    comparison = results.read_comparison(
        make_comparison(seeds=2, environments=("ising",), agents=("mfq", "iql"), failing=broken)
    )
    found = results.scores(comparison, "ising", "mfq")
    assert len(found.values) == 0 and found.failed == 2


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"column": "eval/rewrad"}, "Did you mean 'eval/reward'"),
        ({"baseline": "mqf"}, "Did you mean 'mfq'"),
        ({"burn_in": 1.0}, r"\[0, 1\)"),
    ],
)
def test_a_wrong_choice_is_answered_in_one_sentence(make_comparison: Make, choice: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        results.read_comparison(make_comparison(seeds=1, environments=("ising",), agents=("mfq",)), **choice)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run with results"):
        results.read_comparison(tmp_path)


def test_a_measure_of_a_failed_run_is_not_made_up(make_comparison: Make) -> None:
    comparison = results.read_comparison(
        make_comparison(seeds=3, environments=("ising",), agents=("mfq", "iql"), failing=(("ising", "mfq", 1),))
    )
    found = results.measured(comparison, "ising", "mfq", "magnetisation")
    assert found.seeds == (0, 2) and found.failed == 1


def test_curves_stand_on_the_steps_that_all_runs_share(tmp_path: Path, make_comparison: Make) -> None:
    folder = make_comparison(seeds=2, environments=("ising",), agents=("mfq",))
    path = folder / "ising" / "mfq" / "seed-1" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    steps, values = results.curves(results.read_comparison(folder), "ising", "mfq", "eval/reward")
    assert 160 not in steps and len(steps) == 49 and values.shape == (2, 49)
    whole = results.read_comparison(folder).of("ising", "mfq")[0]
    assert values[0, 3] == whole.columns["eval/reward"][4]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = results.write_text(tmp_path / "page.html", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(ResourceFault, match="No space left"):
        results.write_text(target, "new")
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["page.html"]
