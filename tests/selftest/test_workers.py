"""Workers that are lost, late or many change nothing; and where they do, the trials say so."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from mfmarl.errors import ConfigError
from mfmarl.evaluation import local_engine
from mfmarl.evaluation.local_engine import LocalEngine
from mfmarl.learning import run_folder, worker
from mfmarl.selftest import processes, workers
from mfmarl.selftest.goal import Order
from mfmarl.selftest.processes import forks_in_place


@pytest.fixture(autouse=True)
def no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFMARL_SELFTEST_PACE", "0")  # and put back what a trial sets


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return workers._sources(tmp_path)


def of_moody(folder: Path, source: Path, fault: str, times: int, engine: LocalEngine, jobs: int = 2):
    events: list[tuple[str, str]] = []
    options = {"fault": fault, "times": times, "tally": str(folder) + "-tally"}
    with forks_in_place():
        failed = workers.sweep(
            folder, source, "moody", jobs=jobs, options=options, engine=engine,
            on_event=lambda run, event: events.append((f"{run.agent}-{run.seed}", event["event"])),
        )  # fmt: skip
    return failed, events


def test_a_killed_run_goes_on_in_another_process_to_the_same_end(tmp_path: Path, source: Path) -> None:
    failed, events = of_moody(tmp_path / "a", source, "kill", 2, LocalEngine(max_restarts=2))
    assert not failed
    assert [kind for _, kind in events].count("restarted") == 2
    assert [kind for _, kind in events].count("done") == 4
    calm, _ = of_moody(tmp_path / "b", source, "kill", 0, LocalEngine())
    assert not calm
    ends = [{str(p.relative_to(tmp_path / x)): run_folder.read_metrics(p)[-1]["train/reward"]
             for p in run_folder.find_runs(tmp_path / x)} for x in "ab"]  # fmt: skip
    assert len(ends[0]) == 4 and ends[0] == ends[1]


def test_a_run_that_is_killed_too_often_has_failed_and_the_others_go_on(tmp_path: Path, source: Path) -> None:
    [why], events = of_moody(tmp_path / "a", source, "kill", 2, LocalEngine(max_restarts=1), jobs=1)
    assert "SIGKILL" in why and "memory" in why and why.endswith(", 2 times")
    assert [kind for _, kind in events].count("done") == 3


def test_a_process_that_leaves_by_itself_is_not_tried_again(tmp_path: Path, source: Path) -> None:
    [why], events = of_moody(tmp_path / "a", source, "exit", 1, LocalEngine())
    assert "exit code 7" in why
    assert "restarted" not in [kind for _, kind in events]


def test_last_words_are_kept_beside_the_run(tmp_path: Path, source: Path) -> None:
    text = (source / "moody.py").read_text()
    (source / "moody.py").write_text(text.replace("os._exit(7)", "os.write(2, b'the dog ate it\\n'); os._exit(7)"))
    [why], _ = of_moody(tmp_path / "a", source, "exit", 1, LocalEngine())
    assert "the dog ate it" in why
    [log] = (tmp_path / "a").rglob(local_engine.LOG)
    assert "the dog ate it" in log.read_text()


def test_what_is_done_needs_no_worker(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_moody(tmp_path / "a", source, "kill", 0, LocalEngine())
    monkeypatch.setattr(processes, "start_forked", None)
    failed, events = of_moody(tmp_path / "a", source, "kill", 0, LocalEngine())
    assert not failed and [kind for _, kind in events] == ["done"] * 4


@pytest.mark.parametrize(
    ("choice", "told"),
    [({"max_restarts": -1}, "--max-restarts"), ({"silence": 1.0}, "--worker-timeout"),
     ({"run_timeout": float("nan")}, "--run-timeout"), ({"silence": float("inf")}, "--worker-timeout")],
)  # fmt: skip
def test_limits_have_bounds(choice: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        LocalEngine(**choice)
    assert caught.value.code == "bounds"


def test_a_worker_whose_parent_is_gone_already_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(worker.os, "_exit", left.append)
    monkeypatch.setattr(worker.os, "getppid", lambda: 1)
    monkeypatch.setattr(worker.sys, "platform", "darwin")  # nothing is asked of the kernel here
    worker.leave_with(4711)
    assert left == [143]
    worker.leave_with(1)
    assert left == [143]


@pytest.mark.verify
def test_a_small_share_of_the_sweeps_is_the_same(tmp_path: Path) -> None:
    outcome = workers.determinism(Order(tmp_path, 0.02))
    assert outcome.met, outcome.failures
    assert outcome.trials == 4


@pytest.mark.verify
def test_an_environment_that_draws_from_its_process_misses_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MOODY", processes.MOODY.replace("0.1 * noise", "0.1 * noise + os.getpid() % 97"))
    outcome = workers.determinism(Order(tmp_path, 0.02))
    assert outcome.met is False
    assert any("moody" in line and "of seed 0" in line for line in outcome.failures)


@pytest.mark.parametrize(
    "kind",
    ["run killed", *(pytest.param(kind, marks=pytest.mark.verify) for kind in ("run raises", "parent killed"))],
)
def test_a_loss_leaves_the_same_results_and_nobody_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(workers, "DEATHS", (kind,))
    monkeypatch.setattr(workers, "_undisturbed", _undisturbed_ours)
    monkeypatch.setattr(Random, "choice", lambda _self, values: values[0])  # our own rules: they begin at once
    outcome = workers.deaths(Order(tmp_path, 0.01))
    assert outcome.met, outcome.failures


def _undisturbed_ours(folder: Path, source: Path) -> dict[str, str]:
    workers.sweep(folder / "calm", source, "moody", jobs=1)
    return {"moody": workers.digest(folder / "calm")}


def _planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> workers.Outcome:
    monkeypatch.setattr(workers, "DEATHS", (kind,))
    monkeypatch.setattr(workers, "_undisturbed", _undisturbed_ours)
    monkeypatch.setattr(Random, "choice", lambda _self, values: values[0])
    outcome = workers.deaths(Order(tmp_path, 0.01))
    assert outcome.met is False
    return outcome


def test_an_engine_that_forgets_lost_runs_misses_the_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_engine._Sweep, "_lost", lambda *_, **__: None)
    outcome = _planted(tmp_path, monkeypatch, "run killed")
    assert "run killed" in outcome.failures[0]


@pytest.mark.verify
def test_workers_that_outlive_their_parent_miss_the_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "leave_with", lambda _parent: None)
    monkeypatch.setattr(worker, "_beat", lambda _reports, _parent: None)
    monkeypatch.setattr(processes, "MOODY", processes.MOODY.replace("time.sleep(pace", "time.sleep(100 * pace"))
    outcome = _planted(tmp_path, monkeypatch, "parent killed")
    assert "outlived their parent" in outcome.failures[0]
