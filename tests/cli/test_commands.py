"""The commands as a user types them: what works, what is refused and how, and what is never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfmarl.cli.main import main
from mfmarl.learning.run_folder import read_metrics, read_status

FAULTY = str(Path(__file__).parent / "faulty.py")
QUICK = ["--copies", "2", "--evaluation-copies", "1", "--report-every", "10", "--quiet"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the one line on standard error."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("mfmarl: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in out + err
    return code, lines[0]


def test_a_run_is_trained_and_leaves_its_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["train", "ising", "--agent", "mfq", "--num-agents", "36", "--steps", "40", "--name", "a", "--json", *QUICK]
    )
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["status"]["state"] == "done"
    assert told["status"]["step"] == 40
    run = here / "runs" / "a"
    assert [row["step"] for row in read_metrics(run)] == [10, 20, 30, 40]
    assert (run / "report.html").stat().st_size > 1000
    assert json.loads((run / "reference.json").read_text())["energy"]["source"]
    assert (run / "figures" / "population.png").is_file()


def test_json_puts_one_object_on_standard_output_and_nothing_else(here: Path) -> None:
    command = [sys.executable, "-m", "mfmarl", "train", "congestion", "--steps", "20", "--json", "--name", "a"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"]["state"] == "done"
    assert "training" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trian"], 2, ["'trian'", "'train'"]),
        (["train", "isin"], 2, ["'isin'", "'ising'"]),
        (["train", "ising", "--agent", "mqf"], 2, ["'mqf'", "'mfq'"]),
        (["train", "ising", "--num-agent", "400"], 2, ["--num-agent", "num-agents"]),
        (["train", "ising", "--lerning-rate", "0.1"], 2, ["--lerning-rate", "learning-rate"]),
        (["train", "ising", "--num-agents", "many"], 2, ["num_agents", "many"]),
        (["train", "ising", "--num-agents", "0"], 2, ["0"]),
        (["train", "ising", "--temperature", "-1"], 2, ["temperature", "-1"]),
        (["train", "ising", "--temperature", "warm"], 2, ["warm", "linear(1, 0.1)"]),
        (["train", "ising", "--agent.field", "actions over nobody"], 2, ["nobody"]),
        (["train", "ising", "--steps", "0"], 2, ["steps"]),
        (["train", "ising", "--steps", "1e3"], 2, ["steps"]),
        (["train", "ising", "--seed", "-1"], 2, ["seed"]),
        (["train", "ising", "--device", "tpu"], 2, ["tpu", "cpu"]),
        (["train", "ising", "--sharing", "some"], 2, ["some"]),
        (["train", "ising", "--agents", "red=mfq"], 2, ["red"]),
        (["train", "ising", "extra"], 2, ["extra"]),
        (["train"], 2, ["environment"]),
        (["train", "nowhere.py:Env"], 2, ["nowhere.py"]),
        (["train", f"{FAULTY}:Fauly"], 2, ["Fauly", "Faulty"]),
        (["train", "magent2/batle_v4"], 2, ["magent2/battle_v4"]),
        (["train", "mpe2/simple_spread_v3", "--n-agents", "3"], 2, ["n-agents"]),
        (["compare", "ising", "--agents", "mfq,mfq"], 2, ["mfq"]),
        (["compare", "ising", "--seeds", "x"], 2, ["seeds"]),
        (["compare", "ising", "--assert", "mfq beats iql"], 2, ["mfq beats iql"]),
        (["report", "nothing"], 2, ["nothing"]),
        (["render", "nothing"], 2, ["nothing"]),
        (["tournament", "nothing"], 2, ["nothing"]),
        (["train", "--resume", "nothing"], 2, ["nothing"]),
        (["list", "isin"], 2, ["'ising'"]),
    ],
)
def test_bad_input_gets_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: list[str]
) -> None:
    found, line = refused(capsys, *arguments)
    assert found == code, line
    for word in words:
        assert word in line, line
    assert not (here / "runs").exists(), "a refused command leaves nothing behind"


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("reward", 5, ["reward", "inf", "agent_2"]),
        ("observation", 5, ["observation", "nan", "agent_1"]),
        ("shape", 3, ["(2, 3, 5)", "(2, 3, 2)"]),
        ("raise", 3, ["ZeroDivisionError", "the market crashed"]),
    ],
)
def test_a_faulty_environment_is_named_and_what_was_done_is_kept(
    here: Path, capsys: pytest.CaptureFixture[str], fault: str, code: int, words: list[str]
) -> None:
    arguments = [
        "train",
        FAULTY,
        "--fault",
        fault,
        "--steps",
        "100",
        "--name",
        "a",
        "--checkpoint-seconds",
        "0",
        *QUICK,
    ]
    found, line = refused(capsys, *arguments)
    assert found == code, line
    for word in words:
        assert word in line, line
    run = here / "runs" / "a"
    status = read_status(run)
    assert (status["state"], status["exit_code"]) == ("failed", code)
    assert [row["step"] for row in read_metrics(run)] == [10, 20]
    assert len(list((run / "checkpoints").glob("*.safetensors"))) == 2


def test_an_existing_run_is_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "congestion", "--steps", "10", "--name", "a", *QUICK]
    assert main(arguments) == 0
    before = (here / "runs" / "a" / "metrics.jsonl").read_bytes()
    code, line = refused(capsys, *arguments)
    assert code == 2
    assert "--resume" in line
    assert (here / "runs" / "a" / "metrics.jsonl").read_bytes() == before


def test_an_unwritable_folder_is_refused_before_anything_starts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs").write_text("a file where a folder should be")
    code, line = refused(capsys, "train", "congestion", "--steps", "10", *QUICK)
    assert code == 8
    assert "runs" in line


def test_a_damaged_checkpoint_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "congestion", "--steps", "20", "--name", "a", *QUICK]) == 0
    newest = next((here / "runs" / "a" / "checkpoints").glob("*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, line = refused(capsys, "train", "--resume", "runs/a", "--steps", "40", "--quiet")
    assert code == 4
    assert newest.name in line


def _numbers(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in read_metrics(run)]


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def test_a_run_that_is_stopped_and_goes_on_is_bitwise_the_run_that_never_stopped(here: Path) -> None:
    arguments = ["train", "ising", "--num-agents", "64", "--steps", "200", "--checkpoint-seconds", "0", *QUICK]
    assert main([*arguments, "--name", "whole"]) == 0
    command = [sys.executable, "-m", "mfmarl", *arguments, "--name", "parts"]
    process = subprocess.Popen(command, cwd=here, env=_environment(), stderr=subprocess.PIPE, text=True)
    run = here / "runs" / "parts"
    deadline = time.monotonic() + 60
    while len(read_metrics(run)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert read_status(run)["state"] == "interrupted"
    assert 30 <= read_status(run)["step"] < 200
    assert main(["train", "--resume", "runs/parts", "--quiet"]) == 0
    assert _numbers(run) == _numbers(here / "runs" / "whole")
    digests = [json.loads((r / "checkpoints" / "latest.json").read_text()) for r in (run, here / "runs" / "whole")]
    from mfmarl.learning import checkpoint

    one, other = (checkpoint.load(r) for r in (run, here / "runs" / "whole"))
    assert digests[0]["step"] == digests[1]["step"] == 200
    assert one.tensors.keys() == other.tensors.keys()
    assert all(one.tensors[k].equal(other.tensors[k]) for k in one.tensors)


def test_a_run_that_is_killed_loses_nothing_that_was_acknowledged(here: Path) -> None:
    arguments = ["train", "congestion", "--steps", "300", "--checkpoint-seconds", "0", *QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "mfmarl", *arguments, "--name", "a"], cwd=here, env=_environment()
    )
    run = here / "runs" / "a"
    deadline = time.monotonic() + 60
    while len(read_metrics(run)) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    rows = len(read_metrics(run))
    assert main(["train", "--resume", "runs/a", "--steps", "300", "--quiet"]) == 0
    assert main(["train", *arguments[1:], "--name", "whole"]) == 0
    assert rows >= 5
    assert _numbers(run) == _numbers(here / "runs" / "whole")


def test_a_changed_config_is_refused_with_the_difference(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "congestion", "--steps", "20", "--name", "a", *QUICK]) == 0
    code, line = refused(capsys, "train", "--resume", "runs/a", "--seed", "7")
    assert code == 2
    assert "seed" in line
    assert "7" in line
    assert main(["train", "--resume", "runs/a", "--steps", "40", "--quiet"]) == 0
    assert read_metrics(here / "runs" / "a")[-1]["step"] == 40


def test_a_config_file_repeats_a_run(here: Path) -> None:
    assert main(["train", "congestion", "--steps", "20", "--num-agents", "7", "--name", "a", *QUICK]) == 0
    assert main(["train", "--config", "runs/a/config.toml", "--name", "b", "--quiet"]) == 0
    assert _numbers(here / "runs" / "a") == _numbers(here / "runs" / "b")
    assert main(["train", "--config", "runs/a/config.toml", "--seed", "1", "--name", "c", "--quiet"]) == 0
    assert _numbers(here / "runs" / "a") != _numbers(here / "runs" / "c")


def test_a_comparison_has_a_row_for_every_agent_and_an_exit_code_for_every_claim(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "congestion", "--agents", "mfq,random", "--seeds", "3", "--steps", "250", "--name", "c"]
    arguments += ["--temperature", "geometric(1, 0.02)", "--json", "--no-film", *QUICK]
    assert main([*arguments, "--assert", "mfq > random"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["claims"][0]["holds"] is True
    assert (here / "runs" / "c" / "report.html").is_file()
    # Everything is done already: a second claim is judged on the same runs.
    written = {path: path.stat().st_mtime_ns for path in (here / "runs" / "c").rglob("metrics.jsonl")}
    assert main([*arguments, "--assert", "random > mfq"]) == 9
    assert json.loads(capsys.readouterr().out)["claims"][0]["holds"] is False
    assert written == {path: path.stat().st_mtime_ns for path in (here / "runs" / "c").rglob("metrics.jsonl")}


def test_a_run_that_takes_its_process_down_is_one_failed_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", f"{FAULTY}:Faulty", "--agents", "mfq,iql", "--seeds", "1", "--steps", "60", "--name", "c"]
    code = main([*arguments, "--fault", "exit", "--json", "--no-film", *QUICK])
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert code in (2, 6), err
    assert code == 6 or "error" in told


def test_unwatched_progress_goes_to_standard_error_and_help_is_quick() -> None:
    def seconds() -> float:
        # Of CPU: what else the machine does is not this program's slowness.
        before = os.times()
        subprocess.run([sys.executable, "-m", "mfmarl", "--help"], env=_environment(), check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.5


def test_the_list_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"ising", "congestion", "gaussian_squeeze"} <= set(told["environments"])
    assert {"mfq", "iql", "mfac", "iac", "mfppo", "ippo"} <= set(told["agents"])
    assert main(["list", "mfq"]) == 0
    assert "--temperature" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "compare", "solve", "tournament", "render", "report", "list"])
def test_every_command_has_examples_in_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"mfmarl {command}" in capsys.readouterr().out.split("examples:")[1]


def test_a_trained_population_is_diagnosed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "train",
        "ising",
        "--num-agents",
        "16",
        "--steps",
        "30",
        "--name",
        "d",
        "--diagnose",
        "--diagnose-steps",
        "80",
    ]
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["diagnosis"]["all"]
    assert found["susceptibility"]["value"] > 0 and found["direction"] == [-1.0, 1.0]
    assert "χ = N Var m / T" in (here / "runs" / "d" / "report.html").read_text()
    assert main(["train", "--resume", "runs/d", "--diagnose", "--diagnose-steps", "80"]) == 0
    assert "N Var(m)/T, from fluctuations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--diagnose", "--diagnose-steps", "3"], "--diagnose-steps must be in [64, 1099511627776], not 3"),
        (["--diagnose", "--temperature", "linear(1, 0)"], "ends at temperature 0"),
    ],
)
def test_a_diagnosis_that_cannot_be_is_refused_before_training(
    here: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["train", "ising", "--num-agents", "16", "--steps", "30", "--name", "d", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs" / "d").exists()
