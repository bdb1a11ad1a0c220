"""Bad input on the command line: one sentence on standard error, the exit code of its kind, and nothing lost.

What `test_commands.py` has is not repeated; every case here is also that of a user's own file, disk or typing.
"""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest

from mfmarl.cli.main import LIMITS, main, parsers
from mfmarl.errors import CheckpointError
from mfmarl.learning import checkpoint, run_folder
from mfmarl.learning.run_folder import read_metrics, read_status
from mfmarl.registry import load_file
from mfmarl.selftest.command import fresh

QUICK = ["--copies", "2", "--evaluation-copies", "1", "--report-every", "10", "--quiet"]
KEPT = ["--steps", "100", "--name", "a", "--checkpoint-seconds", "0", *QUICK]
CHARSET = 'name = "ising"\n[agents.all]\nname = "mfq"\n'

BREAKING = Path(__file__).parent / "breaking.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    broken = load_file(BREAKING).Breaking
    broken.steps = broken.resets = 0
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("a file")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, lines: int = 1) -> tuple[int, str]:
    """The exit code and all of standard error, which is one line of one sentence or two, for each thing that is wrong."""
    capsys.readouterr()
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mfmarl: ")
    assert err.count("\n") == lines, err
    assert 15 < len(err) < 600 * lines, err
    assert "Traceback" not in err
    return code, err


def assert_kept(run: Path, code: int, steps: list[int]) -> None:
    """Everything up to the fault is there: rows, a checkpoint that loads, how it ended; and a report can be made."""
    status = read_status(run)
    assert (status["state"], status["exit_code"]) == ("failed", code)
    assert status["error"]
    assert [row["step"] for row in read_metrics(run)] == steps
    assert checkpoint.load(run).step == steps[-1]
    assert main(["report", str(run)]) == 0


CASES: list[tuple[list[str], int, list[str]]] = [
    # names
    (["train", ""], 2, ["environment"]),
    (["train", "ISING"], 2, ["'ising'"]),
    (["train", "ising", "--agent", "MFQ"], 2, ["'mfq'"]),
    (["train", "ising", "--agent", ""], 2, ["--agent", "empty"]),
    (["train", "ising", "--agents", "all=mfq,all=iql"], 2, ["'all'", "twice"]),
    (["train", "ising", "--agents", "red="], 2, ["''", "mfq"]),
    (["train", "ising", "--agents", "mfq:bins"], 2, ["'bins'", "name=value"]),
    (["train", "ising", "--agents", "mfq:bnis=3"], 2, ["bnis", "'bins'"]),
    (["train", "ising", "--red.bins", "3"], 2, ["'red'", "mfq"]),
    (["train", "ising", "--agent", "mfq", "--agents", "red=mfq"], 2, ["either"]),
    (["train", "ising", "--agent", "rusher"], 2, ["rusher", "battle_v4"]),
    (["train", "congestion", "--agents", "red=mfq,blue=iql"], 2, ["'red'", "congestion", "agent"]),
    (["train", "pettingzoo/sisl/pursit-v5"], 2, ["pettingzoo/sisl/pursuit-v5"]),
    (["train", "pettingzoo/"], 2, ["pettingzoo/"]),
    (["--nothing"], 2, ["'--nothing'", "--help"]),
    (["list", ""], 2, ["''"]),
    (["list", "isng"], 2, ["'ising'"]),
    (["tournament", "folder", "--against", "nobody"], 2, ["folder"]),
    # values
    (["train", "ising", "--graph", "toruss"], 2, ["toruss", "'torus'"]),
    (["train", "ising", "--order", "sequentiall"], 2, ["'sequential'"]),
    (["train", "ising", "--num-agents", "7"], 2, ["7", "num_agents=9"]),
    (["train", "ising", "--shape", "3,5"], 2, ["15"]),
    (["train", "ising", "--num-agents", "1e5"], 2, ["whole number"]),
    (["train", "ising", "--num-agents="], 2, ["num_agents"]),
    (["train", "ising", "--env.horizon", "0"], 2, ["horizon", "0"]),
    (["train", "ising", "--temperature", "nan"], 2, ["finite", "nan"]),
    (["train", "ising", "--temperature", "lineer(1,0)"], 2, ["'linear'"]),
    (["train", "ising", "--temperature", "linear(1)"], 2, ["2 to 3 numbers"]),
    (["train", "ising", "--temperature", "geometric(1,0)"], 2, ["above 0"]),
    (["train", "ising", "--temperature", "linear(1,-1)"], 2, ["not negative", "-1"]),
    (["train", "ising", "--learning-rate", "nan"], 2, ["learning_rate", "nan"]),
    (["train", "ising", "--learning-rate", "1e400"], 2, ["learning_rate", "inf"]),
    (["train", "ising", "--gamma", "1.5"], 2, ["gamma", "[0, 1]"]),
    (["train", "ising", "--hidden", "-4"], 2, ["hidden", "-4"]),
    (["train", "ising", "--hidden", "64,0"], 2, ["hidden[1]", "0"]),
    (["train", "ising", "--hidden", "99999999999"], 8, ["memory"]),
    (["train", "ising", "--num-agents", "999999999999"], 8, ["memory", "fewer agents"]),
    (["train", "congestion", "--field", "actions over neighbours"], 2, ["graph", "everyone"]),
    (["train", "congestion", "--field", "actions over nearby(-1)"], 2, ["-1"]),
    (["train", "congestion", "--field", "action over everyone"], 2, ["actions"]),
    (["train", "congestion", "--copies", "0"], 2, ["copies", "0"]),
    (["train", "congestion", "--steps", "-1"], 2, ["steps", "-1"]),
    (["train", "congestion", "--steps", "9" * 30], 2, ["steps", "64 bits"]),
    (["train", "congestion", "--seed", "9" * 20], 2, ["seed"]),
    (["train", "congestion", "--threads", "0"], 2, ["threads"]),
    (["train", "congestion", "--checkpoint-seconds", "nan"], 2, ["checkpoint_seconds", "nan"]),
    (["train", "congestion", "--sharing", "none", "--agent", "sb3"], 2, ["--sharing all"]),
    (["train", "congestion", "--device", "cuda:99"], 2, ["--device cpu"]),
    (["train", "mpe2/simple_spread_v3", "--N", "many"], 2, ["N", "whole number"]),
    (["train", "mpe2/simple_spread_v3", "--N", "0"], 2, ["N=0"]),
    (["train", "mpe2/simple_spread_v3", "--values", "table"], 2, ["table", "--values network"]),
    (["compare", "ising", "--seeds", "0"], 2, ["--seeds"]),
    (["compare", "ising", "--seeds", "1,1"], 2, ["twice"]),
    (["compare", "ising", "--seeds", "3,-1"], 2, ["-1"]),
    (["compare", "ising", "--burn-in", "2"], 2, ["--burn-in", "2"]),
    (["compare", "ising", "--burn-in", "nan"], 2, ["--burn-in", "nan"]),
    (["compare", "ising", "--jobs", "-2"], 2, ["--jobs"]),
    (["compare", "ising", "--agents", ","], 2, ["mfq,iql"]),
    (["compare", ","], 2, ["environment"]),
    (["render", "folder", "--fps", "nan"], 2, ["--fps"]),
    # files and folders
    (["train", "nofile.py"], 2, ["nofile.py"]),
    (["train", "ising", "--import", "..x"], 2, ["'..x'", "my_env.py"]),
    (["train", "ising", "--import", "no_such_module"], 2, ["no_such_module"]),
    (["train", "ising", "--name", ""], 2, ["--name"]),
    (["train", "ising", "--name", "../up"], 2, ["'../up'", "For example: up"]),
    (["train", "ising", "--name", "a/b"], 2, ["a_b"]),
    (["train", "ising", "--name", "CON"], 2, ["run_CON"]),
    (["train", "ising", "--name", "x" * 300], 2, ["200 bytes"]),
    (["train", "ising", "--name", "tab\there"], 2, ["tab_here"]),
    (["compare", "ising", "--name", "../x"], 2, ["'../x'"]),
    (["train", "--resume", "folder"], 2, ["no run in folder"]),
    (["train", "--resume", "file"], 2, ["no run in file"]),
    (["train", "--config", "folder"], 2, ["folder"]),
    (["train", "--config", "nofile.toml"], 2, ["nofile.toml"]),
    (["report", "file"], 2, ["file"]),
    (["report", "folder"], 2, ["folder"]),
    (["render", "file"], 2, ["file"]),
]


@pytest.mark.parametrize(("arguments", "code", "words"), CASES, ids=[" ".join(c[0])[:60] for c in CASES])
def test_bad_input_gets_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: list[str]
) -> None:
    found, line = refused(capsys, *arguments)
    assert found == code, line
    for word in words:
        assert word in line, line
    assert {p.name for p in here.iterdir()} == {"folder", "file"}, "a refused command leaves nothing behind"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run\nsteps = 3", ["bad.toml", "line 1"]),
        ("", ["[agents.all]"]),
        ("run = 3\n[environment]\n" + CHARSET, ["[run]", "3"]),
        ('agents = "mfq"\n[environment]\nname = "ising"\n', ["[agents.all]"]),
        ('[environment]\nname = 3\n[agents.all]\nname = "mfq"\n', ["[environment]", "name"]),
        ("[environment]\nnme = 3\n" + CHARSET, ["nme"]),
        ("[run]\nstep = 3\n[environment]\n" + CHARSET, ["step", "'steps'"]),
        ("[run]\nsteps = 0x1p\n[environment]\n" + CHARSET, ["line 2"]),
        ("[run]\ncheckpoint_seconds = nan\n[environment]\n" + CHARSET, ["checkpoint_seconds", "finite"]),
        ("[environment]\n" + CHARSET + "temperature = -1\n", ["temperature", "-1"]),
        ("[environment]\n" + CHARSET + "temprature = 1\n", ["temprature", "'temperature'"]),
        ("[curriculum]\na = 1\n[environment]\n" + CHARSET, ["[curriculum]"]),
        (
            "[run]\nfancy = 1\n[environment]\n" + CHARSET + '[versions]\nmfmarl = "99.1.0"\n',
            ["fancy", "mfmarl 99.1.0", "newer"],
        ),
        (
            "[environment]\n" + CHARSET + 'fancy = 1\n[versions]\nmfmarl = "99.1.0"\n',
            ["fancy", "mfmarl 99.1.0", "newer"],
        ),
        ("[environment]\n" + CHARSET + 'fancy = 1\n[versions]\nmfmarl = "0.0.1"\n', ["fancy"]),
        ("[environment]\n" + CHARSET + "fancy = 1\n[versions]\nmfmarl = false\n", ["fancy"]),
    ],
)
def test_a_bad_config_is_refused_with_the_key(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    (here / "bad.toml").write_text(text)
    code, line = refused(capsys, "train", "--config", "bad.toml", lines=1 if text else 2)
    assert code == 2, line
    for word in words:
        assert word in line, line
    assert ("newer" in line) == ("99." in text)
    assert not (here / "runs").exists()


def test_all_that_is_wrong_with_a_config_is_told_at_once_with_its_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bad.toml").write_text(
        "[run]\nstep = 3\nthreads = 0\n\n[environment]\n"
        + 'name = "ising"\ncoupling = "strong"\n[agents.all]\nname = "mfq"\ngama = 0.5\ntemperature = "linear(1, -1)"\n'
        + '[agents.red]\nname = "mfk"\n[extra]\na = 1\n'
    )
    _, told = refused(capsys, "train", "--config", "bad.toml", lines=7)
    for line, words in (
        (2, "step is not an option of RunOptions. Did you mean 'steps'?"),
        (3, "threads must be int in [1, 1024], not 0"),
        (7, "coupling must be float"),
        (10, "gama is not an option of MFQConfig. Did you mean 'gamma'?"),
        (13, "Unknown agent 'mfk'"),
        (14, "unknown table [extra]"),
    ):
        assert any(f"bad.toml, line {line}: " in each and words in each for each in told.splitlines()), (line, told)


def test_a_file_that_only_a_config_names_is_not_executed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "theirs.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    for environment, agent in (("ising", "theirs.py"), ("theirs.py:X", "mfq")):
        (here / "bad.toml").write_text(f'[environment]\nname = "{environment}"\n[agents.all]\nname = "{agent}"\n')
        for more in ([], ["--steps", "10"], ["--num-agents", "9"]):
            code, line = refused(capsys, "train", "--config", "bad.toml", *more)
            assert (code, "[untrusted-file]" in line) == (2, True), line
            assert not (here / "executed").exists()


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("made", 3, ["RuntimeError", "no ground to build on"]),
        ("spec", 3, ["KeyError", "spaces"]),
        ("first reset", 3, ["reset", "RuntimeError", "the map is missing"]),
    ],
)
def test_an_environment_that_cannot_begin_leaves_no_folder(
    here: Path, capsys: pytest.CaptureFixture[str], fault: str, code: int, words: list[str]
) -> None:
    found, line = refused(capsys, "train", f"{BREAKING}:Breaking", "--fault", fault, *KEPT)
    assert found == code, line
    for word in words:
        assert word in line, line
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("nan", 5, ["reward", "nan", "agent_2", "copy 1"]),
        ("huge", 5, ["reward_limit", "scale the rewards"]),
        ("words", 3, ["reward", "list"]),
        ("nothing", 3, ["TypeError"]),
        ("grown", 3, ["[2, 3]", "[2, 9]"]),
        ("memory", 8, ["memory"]),
        ("lines", 3, ["first line"]),
        ("silent", 3, ["AssertionError"]),
        ("later reset", 3, ["reset", "the map is missing"]),
        ("measure", 3, ["nothing to measure"]),
    ],
)
def test_an_environment_that_breaks_is_named_and_what_was_done_is_kept(
    here: Path, capsys: pytest.CaptureFixture[str], fault: str, code: int, words: list[str]
) -> None:
    arguments = ["train", f"{BREAKING}:Breaking", "--fault", fault, "--warm-up", "8", *KEPT]
    found, line = refused(capsys, *arguments)
    assert found == code, line
    for word in words:
        assert word in line, line
    done = [row["step"] for row in read_metrics(here / "runs" / "a")]
    assert done
    assert done == list(range(10, 10 * len(done) + 1, 10))
    assert done[-1] < 100
    assert_kept(here / "runs" / "a", code, done)


def test_an_agent_that_leaves_the_action_space_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", f"{BREAKING}:Breaking", "--agent", "wild", "--import", str(BREAKING), *KEPT]
    code, line = refused(capsys, *arguments)
    assert code == 2
    for word in ("Action 7", "agent_0", "0..2"):
        assert word in line, line
    assert_kept(here / "runs" / "a", 2, [10])


# ------------------------------------------------------------------------------------------- disks and damage


def trained(*more: str, steps: int = 40) -> Path:
    arguments = ["train", "congestion", "--num-agents", "9", "--warm-up", "8", "--steps", str(steps), "--name", "a"]
    assert main([*arguments, "--checkpoint-seconds", "0", *QUICK, *more]) == 0
    return Path("runs") / "a"


def numbers(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in read_metrics(run)]


def full(path: Path | None = None) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", str(path or ""))


def test_a_disk_that_fills_ends_the_run_and_loses_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = numbers(trained())
    Path("runs/a").rename("runs/whole")
    rows, write = [0], run_folder.write_all

    def fills(descriptor: int, content: bytes) -> None:
        rows[0] += content.startswith(b'{"step"')
        if rows[0] > 2:
            write(descriptor, content[: len(content) // 2])
            raise full()
        write(descriptor, content)

    monkeypatch.setattr(run_folder, "write_all", fills)
    monkeypatch.setattr(run_folder, "FULL_PATIENCE", 0.0)
    arguments = ["train", "congestion", "--num-agents", "9", "--warm-up", "8", "--steps", "40", "--name", "a"]
    code, line = refused(capsys, *arguments, "--checkpoint-seconds", "0", *QUICK)
    assert code == 8
    assert "metrics.jsonl" in line
    assert read_status(here / "runs" / "a")["state"] == "failed"
    assert [row["step"] for row in read_metrics(here / "runs" / "a")] == [10, 20]
    assert checkpoint.load(here / "runs" / "a").step == 30  # the row that found no room is in it
    # Space is made, and the run goes on as if nothing had happened.
    monkeypatch.setattr(run_folder, "write_all", write)
    assert main(["train", "--resume", "runs/a", "--quiet"]) == 0
    assert numbers(here / "runs" / "a") == whole


def test_a_disk_that_fills_in_a_checkpoint_keeps_the_last_one(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [0], checkpoint.save

    def fills(*arguments: Any, **more: Any) -> Any:
        saved[0] += 1
        if saved[0] > 2:
            from mfmarl.learning.durable import resource_fault

            raise resource_fault(full(), Path("checkpoints"), 1)
        return save(*arguments, **more)

    monkeypatch.setattr(checkpoint, "save", fills)
    arguments = ["train", "congestion", "--num-agents", "9", "--warm-up", "8", "--steps", "40", "--name", "a"]
    code, _ = refused(capsys, *arguments, "--checkpoint-seconds", "0", *QUICK)
    assert code == 8
    run = here / "runs" / "a"
    assert read_status(run)["state"] == "failed"
    assert checkpoint.load(run).step == 20
    assert [row["step"] for row in read_metrics(run)] == [10, 20, 30]


def test_a_folder_that_cannot_be_written_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    code, line = refused(capsys, "train", "congestion", "--steps", "10", "--name", "a", *QUICK)
    assert code == 8
    assert "runs" in line
    assert "ermission" in line


@pytest.mark.parametrize("where", ["runs/a", "runs/a/checkpoints"])
def test_a_file_where_a_folder_should_be_is_told_and_left_alone(
    here: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    Path(where).parent.mkdir(parents=True)
    Path(where).write_text("mine")
    code, line = refused(capsys, "train", "congestion", "--steps", "10", "--name", "a", *QUICK)
    assert code in (2, 8)
    assert "runs/a" in line
    assert Path(where).read_text() == "mine"
    assert not Path("runs/a/config.toml").exists()


def test_a_row_that_was_cut_is_left_out_and_the_run_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained()
    whole = numbers(run)
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30])
    assert len(read_metrics(run)) == 3
    assert main(["report", str(run)]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--steps", "50", "--quiet"]) == 0
    assert "the rows between are lost" in capsys.readouterr().err
    assert numbers(run)[:3] == whole[:3]
    assert numbers(run)[-1]["step"] == 50


def test_a_damaged_row_is_told_with_its_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report goes without it; what reads rows as they are says which."""
    run = trained()
    metrics = run / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([lines[0], lines[1].replace(b":", b";", 1), *lines[2:]]))
    assert main(["report", str(run)]) == 0
    capsys.readouterr()
    with pytest.raises(CheckpointError, match="metrics.jsonl line 2 is damaged"):
        read_metrics(run)
    # Going on is not hindered by it: what was trained is in the checkpoint.
    assert main(["train", "--resume", str(run), "--steps", "50", "--quiet"]) == 4
    assert "metrics.jsonl line 2" in capsys.readouterr().err
    assert (read_status(run)["state"], read_status(run)["step"]) == ("done", 50)


@pytest.mark.filterwarnings("always::mfmarl.learning.checkpoint.CheckpointWarning")
@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle", "gone"])
def test_a_checkpoint_that_cannot_be_read_is_told(here: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    run = trained()
    newest, older = sorted((run / "checkpoints").glob("*.safetensors"), reverse=True)
    content = {"truncated": newest.read_bytes()[:-9], "empty": b"", "pickle": b"\x80\x04cos\nsystem\n."}
    if damage == "gone":
        newest.unlink()
        capsys.readouterr()
        assert main(["train", "--resume", str(run), "--steps", "50", "--quiet"]) == 0
        assert f"Going on from {older.name}" in capsys.readouterr().err
        assert numbers(run)[-1]["step"] == 50
        return
    newest.write_bytes(content[damage])
    before = (run / "metrics.jsonl").read_bytes()
    code, line = refused(capsys, "train", "--resume", str(run), "--steps", "50", "--quiet")
    assert code == 4
    assert newest.name in line
    assert older.name in line, "what is still good is named"
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_runs_own_config_that_was_damaged_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(steps=10)
    config = (run / "config.toml").read_text()
    for text, word in (
        (config + "[x", "table declaration"),
        (config.replace('"mfq"', '"mqf"'), "'mfq'"),
        (config.replace("[run]", "[run]\nspeed = 3"), "speed"),
    ):
        (run / "config.toml").write_text(text)
        code, line = refused(capsys, "train", "--resume", str(run), "--steps", "20", "--quiet")
        assert code == 2
        assert word in line
    (run / "config.toml").write_text(config)
    assert main(["train", "--resume", str(run), "--steps", "20", "--quiet"]) == 0


def test_json_tells_the_error_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "isin", "--json"]) == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["exit_code"] == 2
    assert told["error"] in err


@pytest.mark.parametrize("name", ["ünï€", "with space", "日本", "x" * 200, "a.b", "(1)"])
def test_names_that_can_be_are(here: Path, name: str) -> None:
    assert main(["train", "congestion", "--num-agents", "3", "--steps", "10", "--name", name, *QUICK]) == 0
    assert (here / "runs" / name / "report.html").is_file()


def test_all_wrong_options_are_told_at_once_with_what_may_have_been_meant(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--num-agnets", "25", "--bnis=3", "--setps", "5", "--queit", "--sharing", "gruop", "--threads", "0"]
    code, told = refused(capsys, "train", "ising", *words, lines=6)
    assert code == 2
    for hint in ("'num-agents'", "'bins'", "'steps'", "'--quiet'", "'group'", "[1, 1024]"):
        assert hint in told, told
    code, told = refused(capsys, "list", "--improt", "x", "--jsn", lines=2)
    assert (code, "'--import'" in told, "'--json'" in told) == (2, True, True)


def test_every_number_of_a_command_has_bounds() -> None:
    _, commands = parsers()
    for name, command in commands.items():
        for action in command._actions:
            if action.type in (int, float):
                assert action.dest in LIMITS, f"{name} {action.option_strings}"
    assert all(math.isfinite(b.low) and math.isfinite(b.high) for b in LIMITS.values())


@pytest.mark.parametrize(
    "arguments",
    [
        ["render", "folder", "--frames", "99999999999"],
        ["report", "folder", "--burn-in", "nan"],
        ["compare", "ising", "--jobs", "9999999"],
        ["tournament", "folder", "--games", "-1"],
        ["tournament", "folder", "--seed", str(2**63)],
        ["selftest", "--seed", "-1"],
    ],
)
def test_a_number_beyond_its_bounds_is_told_them(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, line = refused(capsys, *arguments)
    assert code == 2
    assert arguments[2 if len(arguments) > 3 else 1] in line
    assert "[bounds]" in line


def test_an_option_of_the_environment_does_not_take_the_environments_place(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refused(capsys, "train", "--num-agents", "7", "ising")
    assert (code, "num_agents=9" in line) == (2, True)


def test_what_others_wrote_cannot_act_on_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, line = refused(capsys, "train", "isi\x1b[2Jng\x07\r\x9b31m")
    assert not any(letter in line for letter in "\x1b\x07\r\x9b")


def test_a_file_in_the_working_folder_is_not_imported_in_place_of_a_library(here: Path) -> None:
    for name in ("torch.py", "rich.py", "shtab.py"):
        (here / name).write_text("import pathlib\npathlib.Path('executed').touch()\n")
    done = fresh(["list", "mfq"], here, {"PYTHONPATH": ""})
    assert done.exit_code == 0, done.err
    assert not (here / "executed").exists()


def test_a_module_beside_the_user_is_found_where_he_names_it(here: Path) -> None:
    (here / "my_worlds.py").write_text("import pathlib\npathlib.Path('imported').touch()\n")
    assert fresh(["list", "agents", "--import", "my_worlds"], here, {"PYTHONPATH": ""}).exit_code == 0
    assert (here / "imported").exists()
