"""A Python file is carried out where the user has named it, never because a folder or a configuration does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mfmarl.cli.main import main
from tests.evaluation.scaling.sample import write_sweep

SOLVE = """[solve]
iteratons = 5

[environment]
name = "beach_bar"
plcaes = 4

[solvers.omd]
name = "omdd"
rate = 0.1
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    return tmp_path


def test_a_configuration_of_a_solve_does_not_carry_a_file_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.toml").write_text(SOLVE.replace("beach_bar", "theirs.py:World"))
    assert main(["solve", "--config", "c.toml"]) == 2
    err = capsys.readouterr().err
    assert "c.toml, line 5" in err and "--import theirs.py" in err
    assert not Path("executed").exists()


@pytest.mark.parametrize("whose", ["environment", "agent"])
def test_the_report_of_a_sweep_does_not_carry_a_file_out(
    here: Path, capsys: pytest.CaptureFixture[str], whose: str
) -> None:
    folder = write_sweep(here / "runs" / "a", (100, 1000))
    table = json.loads((folder / "scale.json").read_text())
    if whose == "environment":
        table["environment"]["name"] = "theirs.py:World"
    else:
        next(iter(next(iter(table["agents"].values())).values()))["name"] = "theirs.py:Agent"
    (folder / "scale.json").write_text(json.dumps(table))
    assert main(["report", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "--import theirs.py" in err and "[untrusted-file]" in err
    assert not Path("executed").exists()


def test_all_that_is_wrong_with_a_solve_is_told_at_once_with_its_lines(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.toml").write_text(SOLVE + "[solver]\na = 1\n")
    assert main(["solve", "--config", "c.toml"]) == 2
    told = capsys.readouterr().err.splitlines()
    for line, word in ((2, "'iterations'"), (6, "'places'"), (9, "'omd'"), (11, "[solvers.<name>]")):
        assert [one for one in told if f"line {line}:" in one and word in one], (line, told)
    assert len(told) == 4
    assert not Path("runs").exists()


def test_a_good_configuration_is_solved(here: Path) -> None:
    text = SOLVE.replace("iteratons", "iterations").replace("plcaes = 4\n", "").replace("omdd", "omd")
    Path("c.toml").write_text(text)
    assert main(["solve", "--config", "c.toml", "--name", "s", "--quiet"]) == 0
    assert Path("runs/s/solution.json").exists() or Path("runs/s/report.html").exists()
