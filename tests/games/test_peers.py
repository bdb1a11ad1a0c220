"""How other packages are asked, tried on this very interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.games.peers import ask


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFMARL_PEERS", sys.executable)


def test_a_script_gets_what_is_given_and_its_answer_comes_back_whatever_it_prints() -> None:
    script = "print('a chatty package')\nanswer = {'sum': sum(given), 'type': str(torch.ones(1).dtype)}"
    assert ask(script, [0.1, 0.2], needs=("json",)) == {"sum": 0.1 + 0.2, "type": "torch.float64"}


def test_a_script_that_fails_is_an_error_with_the_peers_own_words() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        ask("answer = 1 / 0", needs=())


def test_an_absent_package_skips() -> None:
    with pytest.raises(pytest.skip.Exception, match="no_such_peer"):
        ask("answer = 1", needs=("no_such_peer",))


def test_an_absent_interpreter_skips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MFMARL_PEERS", str(tmp_path / "python"))
    with pytest.raises(pytest.skip.Exception, match="MFMARL_PEERS"):
        ask("answer = 1")
