"""`mfmarl solve` as a user types it: what is found, what is kept, what is refused, and that nothing is lost."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import mfmarl
from mfmarl.cli.main import main
from mfmarl.cli.solve import assign, parse_solvers
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.errors import CheckpointError, ConfigError
from mfmarl.evaluation import equilibrium, gain_of_one
from mfmarl.evaluation.solved import load_policy, read_outcomes
from mfmarl.games import catalogue
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import solver_class
from mfmarl.learning.run_config import Choice
from mfmarl.learning.run_folder import read_metrics, read_status
from mfmarl.registry import entries

GAME = '''
from dataclasses import dataclass
import torch
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Outcomes


@dataclass(frozen=True)
class Doors(MeanFieldGame):
    """People who choose a door, the emptier the better."""

    horizon: int | None = 2
    """Number of decisions."""
    fault: str = ""
    """What goes wrong."""
    seed: int = 0
    """Of nothing."""

    crowd_moves = False
    state_names = ("left", "right")
    num_states = 2
    num_actions = 2

    def initial(self):
        return torch.tensor([0.5, 0.5], dtype=torch.float64)

    def outcomes(self, t, crowd):
        there = torch.arange(2).view(1, 2, 1).expand(2, 2, 1)
        return Outcomes(there, torch.ones(2, 2, 1, dtype=torch.float64))

    def rewards(self, t, crowd: Crowd):
        if self.fault == "raise":
            raise ZeroDivisionError("no doors")
        liking = torch.tensor([0.0, 0.5], dtype=torch.float64).to(crowd.mu)
        return (liking - crowd.mu.log()).unsqueeze(-1)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # Known answers, where a game solves for them, and gains of N agents take as long as all else here.
    monkeypatch.setattr(equilibrium, "_KNOWN", 0)
    for name in ("_TERMS", "_SAMPLES"):
        monkeypatch.setattr(gain_of_one, name, 1e5)
    return tmp_path


@pytest.fixture
def doors(here: Path) -> str:
    (here / "doors.py").write_text(textwrap.dedent(GAME))
    return "doors.py:Doors"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json", "--quiet"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("mfmarl: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in out + err
    return code, lines[0]


def test_a_game_is_solved_by_two_solvers_and_all_of_it_is_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(
        capsys,
        "solve",
        "beach_bar",
        "--solver",
        "omd,fp,fixed_point",
        "--iterations",
        "40",
        "--places",
        "6",
        "--name",
        "a",
    )
    run = here / "runs" / "a"
    game = BeachBar(places=6)
    for name in ("omd", "fp", "fixed_point"):
        saved = load_policy(run / "policies" / f"{name}.safetensors")
        said = found["solvers"][name]
        assert abs(float(exploitability(game, saved.policy)) - said["exploitability"]) < 1e-12
        path = flow(game, saved.policy)
        last = path.kernels[-1].carry(path.joint[-1])
        assert torch.equal(saved.mu, torch.cat([path.mu, last.unsqueeze(0)]))
        rows = [row for row in read_metrics(run) if row["solver"] == name]
        assert [row["iteration"] for row in rows][:4] == [0, 1, 2, 3]
        assert rows[-1]["iteration"] == 40
        assert min(row["exploitability"] for row in rows) == said["exploitability"]
        # Best responses to best responses run in circles: what is kept is the best that was seen, not the last.
        assert (name == "fixed_point") == (rows[-1]["exploitability"] > 2 * said["exploitability"])
    assert read_status(run)["state"] == "done"
    assert (run / "report.html").stat().st_size > 10_000
    assert {p.name for p in (run / "figures").glob("*.svg")} >= {"exploitability.svg", "free_energy.svg"}
    assert found["best"] == min(found["solvers"], key=lambda s: found["solvers"][s]["exploitability"])


def test_a_solved_game_is_repeated_from_its_config(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--solver", "omd:rate=0.5,omd", "--rate", "0.05", "--horizon", "none", "--discount", "0.9"]
    told(capsys, "solve", "beach_bar", *options, "--iterations", "20", "--name", "a")
    told(capsys, "solve", "--config", "runs/a/config.toml", "--name", "b")
    rows = [[{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(here / "runs" / n)] for n in "ab"]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2 * len({r["iteration"] for r in rows[0]})
    one, other = (load_policy(here / "runs" / n / "policies" / "omd_rate=0.5.safetensors") for n in "ab")
    assert torch.equal(one.policy, other.policy)
    assert one.about["solver"] == {"name": "omd", "rate": 0.5}
    assert load_policy(here / "runs" / "a" / "policies" / "omd.safetensors").about["solver"]["rate"] == 0.05


def test_a_solver_begins_where_a_run_ended(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = told(capsys, "solve", "beach_bar", "--iterations", "200", "--name", "a")["solvers"]["omd"]
    told(capsys, "solve", "beach_bar", "--solver", "fp", "--iterations", "1", "--from", "runs/a", "--name", "b")
    rows = read_metrics(here / "runs" / "b")
    assert abs(rows[0]["exploitability"] - first["exploitability"]) < 1e-12
    assert rows[0]["exploitability"] < 0.1 * first["uniform"]


def test_options_reach_the_game_the_solvers_or_the_one_that_is_named(doors: str) -> None:
    game, solvers = assign(
        [("rate", "0.3"), ("fp.weight", "0.5"), ("horizon", "7")], Choice(doors), parse_solvers("omd:rate=1,omd,fp")
    )
    assert game.options == {"horizon": 7}
    assert {label: c.options for label, c in solvers.items()} == {
        "omd:rate=1": {"rate": 1.0},
        "omd": {"rate": 0.3},
        "fp": {"weight": 0.5},
    }


def test_what_game_and_solver_share_must_be_addressed(doors: str) -> None:
    with pytest.raises(ConfigError, match=r"--env.seed or --solver.seed"):
        assign([("seed", "3")], Choice(doors), parse_solvers("deep_omd"))
    game, solvers = assign([("env.seed", "3"), ("solver.seed", "4")], Choice(doors), parse_solvers("deep_omd"))
    assert game.options == {"seed": 3}
    assert solvers["deep_omd"].options == {"seed": 4}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve"], ["mfmarl list games"]),
        (["solve", "ising"], ["'ising' is not a mean-field game", "beach_bar", "predator_prey"]),
        (["solve", "magent2/battle_v4"], ["is not a mean-field game"]),
        (["solve", "beachbar"], ["'beach_bar'"]),
        (["solve", "beach_bar", "--solver", "omdd"], ["'omdd'", "'omd'"]),
        (["solve", "beach_bar", "--solver", ""], ["--solver"]),
        (["solve", "beach_bar", "--solver", "omd,omd"], ["twice"]),
        (["solve", "beach_bar", "--solver", "omd:rat=1"], ["'rat'", "'rate'"]),
        (["solve", "beach_bar", "--solver", "omd:rate"], ["name=value"]),
        (["solve", "beach_bar", "--rat", "1"], ["--rat", "rate"]),
        (["solve", "beach_bar", "--rate", "fast"], ["rate", "'fast'"]),
        (["solve", "beach_bar", "--rate", "-1"], ["rate", "-1"]),
        (["solve", "beach_bar", "--omd.weight", "1"], ["'omd'", "'weight'"]),
        (["solve", "beach_bar", "--fp.weight", "1"], ["'fp'", "omd"]),
        (["solve", "beach_bar", "--places", "2"], ["places", "2"]),
        (["solve", "beach_bar", "--horizon", "none"], ["discount"]),
        (["solve", "beach_bar", "--iterations", "0"], ["iterations"]),
        (["solve", "beach_bar", "--iterations", "1e3"], ["iterations"]),
        (["solve", "beach_bar", "--tolerance", "nan"], ["tolerance"]),
        (["solve", "beach_bar", "--seconds", "-1"], ["seconds"]),
        (["solve", "beach_bar", "--device", "tpu"], ["tpu", "cpu"]),
        (["solve", "beach_bar", "--dtype", "float16"], ["float16", "float32"]),
        (["solve", "beach_bar", "--from", "nowhere"], ["nowhere"]),
        (["solve", "beach_bar", "--from", "."], ["no solved game"]),
        (["solve", "beach_bar", "--config", "none.toml"], ["none.toml"]),
        (["solve", "beach_bar", "--name", "../x"], ["../x"]),
        (["solve", "beach_bar", "word"], ["'word'"]),
        (["list", "omdd"], ["'omd'"]),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    code, line = refused(capsys, *arguments)
    assert code == 2
    for word in words:
        assert word in line, line
    assert not (here / "runs").exists()


def test_a_policy_of_another_game_and_a_damaged_one_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "solve", "beach_bar", "--iterations", "3", "--name", "a")
    code, line = refused(capsys, "solve", "beach_bar", "--places", "5", "--from", "runs/a", "--name", "b")
    assert code == 2
    assert "S=5" in line and "[3, 1, 4, 3]" in line
    file = here / "runs" / "a" / "policies" / "omd.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    code, line = refused(capsys, "solve", "beach_bar", "--from", "runs/a", "--name", "b")
    assert code == CheckpointError.exit_code
    assert "omd.safetensors" in line
    assert not (here / "runs" / "b").exists()


def test_a_run_that_is_there_is_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "solve", "beach_bar", "--iterations", "3", "--name", "a")
    before = (here / "runs" / "a" / "metrics.jsonl").read_bytes()
    code, line = refused(capsys, "solve", "beach_bar", "--iterations", "3", "--name", "a")
    assert code == 2 and "--name" in line
    assert (here / "runs" / "a" / "metrics.jsonl").read_bytes() == before


def test_rules_that_raise_are_told_as_the_games_own(doors: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(capsys, "solve", doors, "--fault", "raise")
    assert code == 3
    assert "ZeroDivisionError: no doors" in line


def test_a_solver_that_leaves_the_numbers_takes_no_other_with_it(
    doors: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Everybody at one door leaves the other empty, and the logarithm of nobody is infinite.
    code = main(["solve", doors, "--solver", "fixed_point,omd", "--iterations", "300", "--name", "a", "--quiet"])
    _, err = capsys.readouterr()
    assert code == 6
    assert "fixed_point" in err and "log" in err
    first, second = read_outcomes(here / "runs" / "a")
    assert (first.state, second.state) == ("diverged", "done")
    assert second.exploitability < 1e-6
    # Both doors are worth the same where mu(right) / mu(left) = e^0.5.
    mu = load_policy(here / "runs" / "a").mu[1, 0]
    assert abs(float(mu[1] / mu[0]) - math.exp(0.5)) < 1e-3
    assert "diverged" in (here / "runs" / "a" / "report.html").read_text()


def test_a_solve_that_is_interrupted_keeps_its_curve_and_its_best_policy(here: Path) -> None:
    command = [sys.executable, "-m", "mfmarl", "solve", "beach_bar", "--places", "12", "--bar", "6", "--horizon", "9"]
    command += ["--solver", "fp,omd", "--iterations", "100000000", "--name", "a"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, cwd=here, env=environment, stderr=subprocess.PIPE, text=True)
    run = here / "runs" / "a"
    deadline = time.monotonic() + 90
    while len(read_metrics(run)) < 12 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "--from runs/a" in err and "omd was not begun" in err
    assert read_status(run)["state"] == "interrupted"
    (outcome,) = read_outcomes(run)
    rows = read_metrics(run)
    assert outcome.state == "interrupted"
    assert outcome.exploitability == min(row["exploitability"] for row in rows) < rows[0]["exploitability"]
    assert abs(float(exploitability(BeachBar(places=12, bar=6, horizon=9), load_policy(run).policy)) - outcome.exploitability) < 1e-9  # fmt: skip
    assert (run / "report.html").is_file()


def test_the_list_shows_games_and_solvers_without_importing_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    assert {"omd", "fp"} <= set(json.loads(capsys.readouterr().out)["solvers"])
    assert main(["list", "games", "--json"]) == 0
    listed = set(json.loads(capsys.readouterr().out)["games"])
    really = {
        name
        for name, entry in entries("environment").items()
        if entry.where.startswith("mfmarl.envs") and issubclass(entry.load(), MeanFieldGame)
    }
    assert listed == really
    assert all(solver_class(name).name == name for name in catalogue.solvers())
    assert main(["list", "omd"]) == 0
    assert "--rate" in capsys.readouterr().out
    code = "import sys; from mfmarl.cli.main import main; main(['list', 'games']); main(['list', 'solvers']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_is_built_again_without_the_games_code(
    doors: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "solve", doors, "--iterations", "20", "--name", "a")
    page = here / "runs" / "a" / "report.html"
    before = page.read_text()
    page.unlink()
    (here / "doors.py").unlink()
    assert main(["report", "runs/a"]) == 0
    assert page.read_text() == before
    assert "left" in before and "right" in before


def test_solving_from_python_is_the_command(here: Path) -> None:
    seen: list[str] = []
    found = mfmarl.solve(
        BeachBar(places=5), ["omd", "fp"], path=here / "a", on_row=lambda s, _: seen.append(s), solver_rate=0.3,
        iterations=25,
    )  # fmt: skip
    assert found.report.is_file()
    assert len(seen) == len(found.rows) and set(seen) == {"omd", "fp"}
    assert abs(float(exploitability(BeachBar(places=5), found.policy)) - found.exploitability) < 1e-12
    assert found.exploitability == min(row["exploitability"] for row in found.rows)
    assert mfmarl.solve(BeachBar, path=here / "c", places=5, iterations=1).path == here / "c"
    again = mfmarl.solve("beach_bar", path=here / "b", places=5, rate=0.3, iterations=1, start=found.path)
    assert again.rows[0]["exploitability"] == pytest.approx(found.exploitability, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"place": 5}, "places"), ({"solver_weight": 1.0}, "solver_weight"), ({"rate": -1.0}, "rate"), ({"iterations": 0}, "iterations")],
)  # fmt: skip
def test_a_wrong_option_is_refused_from_python_too(here: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mfmarl.solve("beach_bar", path=here / "a", **options)
    assert not (here / "a").exists()
