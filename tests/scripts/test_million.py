"""A million agents, by thousands: what the script says of its runs is so; and the million itself, in `make verify`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfmarl.cli.progress import Progress
from mfmarl.errors import ConfigError
from mfmarl.learning.build import build
from mfmarl.learning.run_folder import read_metrics, read_status
from scripts import million

ROOT = Path(__file__).parents[2]
SMALL = ["--num-agents", "1600", "--steps", "160", "--quiet", "--json"]


def rows_of(values: Any, column: str = "train/energy") -> list[dict[str, Any]]:
    return [
        {"step": 10 * (i + 1), "agent_steps": 100 * (i + 1), "cpu": 60.0 * (i + 1), "wall": 0.0, column: float(v)}
        for i, v in enumerate(values)
    ]


# ------------------------------------------------------------------------------------------- arriving


def test_a_standard_error_is_that_of_eight_blocks_of_the_second_half() -> None:
    values = np.random.default_rng(0).normal(3.0, 0.1, 64)
    found = million.arrived(rows_of(values), {"energy": 3.0})["numbers"]["energy"]
    means = values[32:].reshape(8, 4).mean(1)
    assert found["found"] == pytest.approx(values[32:].mean())
    assert found["standard_error"] == pytest.approx(means.std(ddof=1) / 8**0.5)
    assert found["away"] == pytest.approx((values[32:].mean() - 3.0) / found["standard_error"])


def test_arrived_is_within_five_standard_errors_of_every_number() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 64)
    about = million.arrived(rows_of(values), {"energy": 0.0})["numbers"]["energy"]
    mean, error = about["found"], about["standard_error"]
    for away, there in ((4.9, True), (-4.9, True), (5.1, False), (-5.1, False)):
        assert million.arrived(rows_of(values), {"energy": mean - away * error})["arrived"] is there
    both = [a | {"train/reward": 7.0} for a in rows_of(values)]
    assert not million.arrived(both, {"energy": mean, "reward": 8.0})["arrived"]
    assert million.arrived(both, {"energy": mean, "reward": 7.0})["arrived"]


def test_a_run_is_within_reach_from_the_first_row_that_no_far_one_follows() -> None:
    noise = np.random.default_rng(2).normal(0.0, 0.01, 40)
    found = million.arrived(rows_of(noise + np.where(np.arange(40) < 6, 1.0, 0.0)), {"energy": 0.0})
    assert found["steps_to_reach"] == 70  # six rows of ten steps are far
    assert found["cpu_minutes_to_reach"] == pytest.approx(7.0)
    gone = million.arrived(rows_of(noise + np.where(np.arange(40) < 20, 0.0, 1.0)), {"energy": 0.0})
    assert gone["steps_to_reach"] is None  # near for a while is not there
    assert not gone["arrived"]


def test_numbers_without_a_column_are_left_out_and_gaps_are_found_by_their_own_name() -> None:
    rows = rows_of(np.random.default_rng(3).normal(0.2, 0.01, 32), "limit/exploitability")
    found = million.arrived(rows, {"limit/exploitability": 0.2, "finite/exploitability": 0.3})
    assert list(found["numbers"]) == ["limit/exploitability"]
    with pytest.raises(ConfigError, match="Theory knows no number"):
        million.arrived(rows, {"energy": 0.0})
    with pytest.raises(ConfigError, match="too few"):
        million.arrived(rows[:14], {"limit/exploitability": 0.2})


# ------------------------------------------------------------------------------------------- running


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = million.main([*arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out.strip() else None, err


def test_spins_arrive_at_kaufmans_energy_and_leave_an_ordinary_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, numbers, _ = run(capsys, "mfq-ising", *SMALL, "--out", str(tmp_path))
    found, folder = numbers["mfq-ising"], tmp_path / "mfq-ising"
    assert code == 0
    assert found["arrived"]
    assert found["num_agents"] == 1600
    assert found["steps"] == 160
    assert found["agent_steps"] == 160 * 800  # every other spin is asked
    assert set(found["numbers"]) == {"energy", "reward"}
    assert found["numbers"]["energy"]["theory"] == pytest.approx(-0.4087, abs=2e-4)
    assert 0 < found["steps_to_reach"] < 160
    assert found["peak_memory_bytes"] > 1e8
    for name in ("config.toml", "metrics.jsonl", "report.html", "figures/population.png", "reference.json"):
        assert (folder / name).stat().st_size > 0
    assert read_status(folder)["state"] == "done"
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers

    before = (folder / "metrics.jsonl").read_bytes()
    again_code, again, _ = run(capsys, "mfq-ising", *SMALL, "--out", str(tmp_path))
    assert (again_code, again) == (0, numbers)  # done is done
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_who_learns_nothing_does_not_arrive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = million.WORLDS["ising"]
    idle = million.World(world.temperature, 160, 10, of_agent={"mfq": {"learning_rate": 1e-9}})
    monkeypatch.setitem(million.WORLDS, "ising", idle)
    code, numbers, _ = run(capsys, "mfq-ising", *SMALL, "--out", str(tmp_path))
    assert code == 6
    assert not numbers["mfq-ising"]["arrived"]
    assert numbers["mfq-ising"]["steps_to_reach"] is None


def test_a_run_that_is_interrupted_is_saved_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit as if it had never stopped."""
    arguments = ["mfppo-beach_bar", "--num-agents", "100", "--steps", "96", "--json"]
    update = Progress.update

    def interrupting(self: Progress, name: str, done: int, note: str = "") -> None:
        update(self, name, done, note)
        if done == 48:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(million, "report_run", lambda path: path / "report.html")  # drawn in the test above
    monkeypatch.setattr(Progress, "update", interrupting)
    code, numbers, err = run(capsys, *arguments, "--out", str(tmp_path / "cut"))
    assert code == 130
    assert numbers is None
    assert "saved; the same command goes on" in err
    assert not (tmp_path / "cut" / "numbers.json").exists()
    monkeypatch.setattr(Progress, "update", update)
    code, cut, err = run(capsys, *arguments, "--out", str(tmp_path / "cut"))
    assert code in (0, 6)
    assert "mfppo-beach_bar: 96/96" in err
    _, whole, _ = run(capsys, *arguments, "--quiet", "--out", str(tmp_path / "whole"))

    def course(folder: str) -> list[dict[str, Any]]:
        rows = read_metrics(tmp_path / folder / "mfppo-beach_bar")
        return [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in rows]

    assert course("cut") == course("whole")
    assert cut["mfppo-beach_bar"]["numbers"] == whole["mfppo-beach_bar"]["numbers"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mfq-izing"], "Did you mean 'mfq-ising'"),
        (["mfq-ising", "--steps", "100"], "at least 160"),
        (["mfq-ising", "--num-agents", "7", "--steps", "160"], "torus"),
        (["mfq-ising", "--device", "cuda:77"], "cuda"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, _, err = run(capsys, *arguments, "--quiet", "--out", str(tmp_path / "out"))
    assert code == 2
    assert err.startswith("million: ")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_best_response_of_a_million_is_learned_in_sixteen_copies_of_them() -> None:
    """It would want three gigabytes at the end of a run; of a hundred thousand it may."""
    for agents, copies in ((1_000_000, 0), (100_000, 16)):
        config = million.configuration("mfq-beach_bar", agents, 0, 0, "cpu")
        built = build(config)
        judge = built.training.judge
        assert judge is not None
        found = judge._copies(1e12)
        assert found >= copies if copies else found < 16
        built.close()


def test_a_spoilt_file_of_numbers_is_begun_anew(tmp_path: Path) -> None:
    assert million.read_numbers(tmp_path) == {}
    (tmp_path / "numbers.json").write_text("[1, 2")
    assert million.read_numbers(tmp_path) == {}
    (tmp_path / "numbers.json").write_text("[1, 2]")
    assert million.read_numbers(tmp_path) == {}


# ------------------------------------------------------------------------------------------ minutes each

_SOME_STEPS = """
import json, sys
from pathlib import Path
import torch
from scripts import million
torch.set_num_threads(1)
config = million.configuration(sys.argv[1], 1_000_000, int(sys.argv[2]), 0, "cpu")
million.run_in_folder(config, Path(sys.argv[3]))
rows = million.read_metrics(Path(sys.argv[3]))
print(json.dumps({**million.costs(rows), "peak": million.peak_bytes()}))
"""


@pytest.mark.verify
@pytest.mark.parametrize("name", million.NAMES)
def test_a_million_learn_at_a_million_and_a_half_steps_a_second_within_two_gigabytes(name: str, tmp_path: Path) -> None:
    """Agent-steps per CPU-second with 64-64 networks, learning included; the process's peak, end and checkpoint too."""
    steps = 3 * million.WORLDS[name.partition("-")[2]].report_every
    command = [sys.executable, "-c", _SOME_STEPS, name, str(steps), str(tmp_path / "run")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["agent_steps"] == steps * 1_000_000 // (2 if name.endswith("ising") else 1)
    assert found["peak"] < 2e9
    assert found["agent_steps_per_cpu_second"] > 1.5e6
