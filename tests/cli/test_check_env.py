"""`mfmarl check-env` as an author types it: what is printed, which exit code, what is refused."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from mfmarl.cli.check_env import summary
from mfmarl.cli.main import main
from mfmarl.testing.contract import RULES
from mfmarl.testing.finding import Finding, Findings

TOY = Path(__file__).parent.parent / "testing" / "toy.py"

BROKEN = '''
import numpy as np
from toy import Toy


class Broken(Toy):
    """Pays NaN in step 3, and prints."""

    def step(self, actions):
        print("a step")
        answer = super().step(actions)
        if self.t == 3:
            answer[1]["walker_1"] = float("nan")
        return answer


class Loud(Toy):
    def step(self, actions):
        print("a step")
        return super().step(actions)


class Crashing(Toy):
    def step(self, actions):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(Toy):
    def step(self, actions):
        import time
        time.sleep(600)


def make(length: int = 3):
    return Toy(length)


class Hashed(Toy):
    """Draws from where a set's order comes from: a text's hash, which is another in another process."""

    def step(self, actions):
        self.x += hash("north") % 1000003 / 1e6
        return super().step(actions)


class Nothing:
    pass
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(TOY, tmp_path / "toy.py")
    (tmp_path / "mine.py").write_text(BROKEN, encoding="utf-8")
    return tmp_path


def answered(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["check-env", *arguments, "--quick"])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def test_a_clean_environment_leaves_with_0_and_one_line(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answered(capfd, "toy.py:Toy")
    assert code == 0
    assert out == "0 errors, 0 warnings in 28 steps of 3 agents (2 episodes): toy.py:Toy\n"


def test_errors_leave_with_3_and_tell_code_place_and_remedy(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answered(capfd, "mine.py:Broken")
    assert code == 3
    flat = " ".join(out.split())
    assert "error reward-not-finite The reward is nan (agent walker_1, step 3 of episode 1)" in flat
    assert RULES["reward-not-finite"].remedy in flat
    assert flat.endswith("1 error, 1 warning in 28 steps of 3 agents (2 episodes): mine.py:Broken")
    assert "a step\n" not in out  # what it prints is told, not passed on


def test_warnings_fail_only_where_that_is_asked_for(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert answered(capfd, "mine.py:Loud")[0] == 0
    assert answered(capfd, "mine.py:Loud", "--strict")[0] == 3


def test_json_is_one_object_and_nothing_else(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answered(capfd, "mine.py:Broken", "--json")
    table = json.loads(out)
    assert code == 3
    assert [f["code"] for f in table["found"]] == ["reward-not-finite", "prints"]
    assert (table["errors"], table["warnings"], table["passed"], table["steps"]) == (1, 1, False, 28)
    assert set(table["found"][0]) == {"level", "code", "message", "remedy", "where"}


def test_an_environment_that_crashes_or_hangs_is_told_as_any_other(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = answered(capfd, "mine.py:Crashing", "--json")
    (found,) = json.loads(out)["found"]
    assert (code, found["code"]) == (3, "died")
    assert "SIGKILL in step, step 1 of episode 1" in found["message"]
    begun = time.monotonic()
    code, out, _ = answered(capfd, "mine.py:Hanging", "--json", "--patience", "0.3")
    assert (code, json.loads(out)["found"][0]["code"]) == (3, "hangs")
    assert time.monotonic() - begun < 60


def test_options_of_the_environment_and_of_the_check_are_heeded(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = answered(capfd, "toy.py:Toy", "--length", "5", "--episodes", "3", "--json")
    assert (json.loads(out)["steps"], json.loads(out)["episodes"]) == (15, 3)
    _, out, _ = answered(capfd, "toy.py:Toy", "--length=99", "--max-steps", "7", "--json")
    assert json.loads(out)["steps"] == 14
    assert [f["code"] for f in json.loads(out)["found"]] == ["no-end"]
    _, out, _ = answered(capfd, "mine.py:make", "--env.length", "4", "--episodes", "1", "--json")
    assert json.loads(out)["steps"] == 4
    _, out, _ = answered(capfd, "ising", "--num-agents", "9", "--max-steps", "2", "--json")
    assert (json.loads(out)["agents"], json.loads(out)["errors"]) == (9, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], "usage", "mfmarl check-env my_env.py:MyEnv"),
        (["isnig"], "unknown-name", "'ising'"),
        (["mfq"], "unknown-name", "is an agent"),
        (["toy.py:Toi"], "", "'Toy'"),
        (["nowhere.py:Toy"], "no-file", "nowhere.py"),
        (["mine.py:Nothing"], "not-an-environment", "reset and step"),
        (["toy.py:Toy", "--lenght", "3"], "unknown-option", "'length'"),
        (["ising", "--num-agents", "-3"], "bounds", "num_agents"),
        (["toy.py:Toy", "--episodes", "0"], "bounds", "episodes"),
        (["toy.py:Toy", "--max-steps", "0"], "bounds", "max_steps"),
        (["toy.py:Toy", "--seed", "-1"], "bounds", "seed"),
        (["toy.py:Toy", "--patience", "nan"], "bounds", "patience"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_sentence(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: str, words: str
) -> None:
    exit_code, out, err = answered(capfd, *arguments)
    assert (exit_code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert words in err
    assert f"[{code}]" in err or not code
    exit_code, out, _ = answered(capfd, *arguments, "--json")
    assert (exit_code, json.loads(out)["exit_code"]) == (2, 2)


def test_what_depends_on_hashes_is_found_by_a_second_interpreter(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "mine.py:Hashed", "--json"]) == 3
    (found,) = json.loads(capfd.readouterr().out)["found"]
    assert found["code"] == "process-decides"
    assert "step 1 of episode 1" in found["message"]
    assert main(["check-env", "toy.py:Toy", "--length", "4"]) == 0
    capfd.readouterr()


def test_every_code_is_listed(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answered(capfd, "--list-codes")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} >= set(RULES)
    table = json.loads(answered(capfd, "--list-codes", "--json")[1])
    assert table["reward-not-finite"]["level"] == "error"


def test_the_sum_speaks_english() -> None:
    one = Findings("x", (Finding("error", "c", "M.", "R."),), 1, 1, 1)
    assert summary(one) == "1 error, 0 warnings in 1 step of 1 agent (1 episode): x"
