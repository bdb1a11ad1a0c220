"""One run on several processes: the same run, ended together, and heard nowhere but on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mfmarl.errors import CheckpointError, ConfigError, RankLost
from mfmarl.learning import run_folder
from mfmarl.learning.run import Trust, run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions

slow = pytest.mark.verify


def config(steps=40, ranks=1, agent="mfq", **options):
    return RunConfig(
        Choice("ising", {"num_agents": 36}),
        {"all": Choice(agent)},
        RunOptions(steps=steps, copies=2, report_every=10, evaluation_copies=1, ranks=ranks, **options),
    )


def without_costs(row):
    return {k: v for k, v in row.items() if k not in ("wall", "cpu") and not k.startswith("sent/")}


def close(row, other):
    row, other = without_costs(row), without_costs(other)
    assert row.keys() == other.keys()
    for name, value in row.items():
        assert other[name] == pytest.approx(value, abs=1e-5), name


def train(path, *words, **options):
    command = [sys.executable, "-m", "mfmarl", "train", "ising", "--agent", "mfq", "--num-agents", "36", "--quiet",
               "--name", path.name, "--runs", str(path.parent), *words]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def children(pid):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(found)


def listening(pids):
    """The addresses, in hexadecimal, on which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.append(words[1].partition(":")[0])
    return found


def until(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def rows_in(path):
    file = path / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


def test_two_ranks_write_one_run_which_is_that_of_one(tmp_path):
    rows: list[dict[str, Any]] = []
    run_in_folder(config(), tmp_path / "one")
    run_in_folder(config(ranks=2), tmp_path / "two", on_row=rows.append)
    one, two = (run_folder.read_metrics(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == len(rows) == 4
    for row, other in zip(one, two, strict=True):
        close(row, other)
    assert two[-1]["sent/gradients"] > 0
    assert two[-1]["sent/halo"] > 0
    assert run_folder.read_status(tmp_path / "two")["state"] == "done"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"], "the ranks' meeting place is gone"


def test_a_folder_with_a_run_is_not_begun_anew(tmp_path):
    run_in_folder(config(10), tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run already"):
        run_in_folder(config(10, ranks=2), tmp_path / "run")


@slow
@pytest.mark.filterwarnings("ignore:.*not bitwise the run that was begun")
def test_a_divided_run_goes_on_on_any_number_of_ranks(tmp_path):
    for steps in (40, 80):  # progress is a share of the budget, so the budget must grow where the others' does
        run_in_folder(config(steps), tmp_path / "whole", resume=True)
    for first, then in ((2, 3), (3, 1), (1, 2)):
        path = tmp_path / f"{first}-{then}"
        run_in_folder(config(40, ranks=first), path)
        run_in_folder(config(80, ranks=then), path, resume=True)
        for row, other in zip(run_folder.read_metrics(tmp_path / "whole"), run_folder.read_metrics(path), strict=True):
            assert row["step"] == other["step"]
            assert other["eval/energy"] == pytest.approx(row["eval/energy"], abs=1e-5)


@slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_with_a_word_and_a_checkpoint(tmp_path, victim):
    path = tmp_path / "run"
    process = train(path, "--steps", "200000", "--ranks", "2", "--report-every", "20", "--checkpoint-seconds", "0")
    try:
        until(lambda: rows_in(path) >= 3)
        ranks = children(process.pid)
        assert len(ranks) == 2
        assert set(listening(ranks)) <= {"0100007F", "00000000000000000000000001000000"}, "heard off this machine"
        killed = time.monotonic()
        os.kill(ranks[victim], signal.SIGKILL)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == RankLost.exit_code, told
    assert told.count("\n") == 1
    assert f"Rank {victim} of 2 died (signal 9)" in told
    assert f"mfmarl train --resume {path}" in told
    assert time.monotonic() - killed < 30
    assert not children(process.pid)
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    step = run_folder.read_metrics(path)[-1]["step"]
    stored = RunConfig.from_table({k: v for k, v in run_folder.read_config(path).items() if k != "versions"}, str(path))
    more = replace(stored, run=replace(stored.run, steps=step + 100, ranks=1))
    run_in_folder(more, path, resume=True)
    assert run_folder.read_metrics(path)[-1]["step"] == step + 100


@slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_divided_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(tmp_path, number, code):
    path = tmp_path / "run"
    process = train(path, "--steps", "200000", "--ranks", "2", "--report-every", "50")
    try:
        until(lambda: rows_in(path) >= 2)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, told
    assert "and saved; go on with: mfmarl train --resume" in told
    assert run_folder.read_status(path)["state"] == "interrupted"


@slow
def test_torchrun_starts_the_ranks_as_well(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "mfmarl", "train", "ising",
               "--agent", "mfq", "--num-agents", "36", "--copies", "2", "--steps", "40", "--report-every", "10",
               "--evaluation-copies", "1", "--name", "run", "--runs", str(tmp_path), "--json"]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["status"]["state"] == "done"
    run_in_folder(config(), tmp_path / "one")
    close(run_folder.read_metrics(tmp_path / "one")[-1], run_folder.read_metrics(tmp_path / "run")[-1])


@slow
def test_more_ranks_than_agents_are_refused_in_one_sentence(tmp_path):
    process = train(tmp_path / "run", "--ranks", "40", "--steps", "10")
    _, told = process.communicate(timeout=300)
    assert process.returncode == ConfigError.exit_code
    assert told == "mfmarl: 40 ranks cannot share 36 agents: give at most 36 ranks, or more agents.\n"
    assert not (tmp_path / "run").exists()


def test_ranks_trust_no_older_checkpoint_where_the_command_does_not(tmp_path):
    run_in_folder(config(20), tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "latest.json").unlink()
    with pytest.raises(CheckpointError, match="latest.json is missing"):
        run_in_folder(config(40, ranks=2), tmp_path / "a", resume=True, trust=Trust(strict=True))
