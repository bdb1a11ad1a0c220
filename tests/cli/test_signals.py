"""SIGTERM and SIGHUP end every command in a line, with the exit code that shells know them by."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfmarl.cli import listing, tournament
from mfmarl.cli.main import main


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Signals as a terminal has them: whoever runs the tests in the background may have them ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    old = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def struck(number: int) -> Any:
    def run(_known: Any, _rest: Any) -> int:
        os.kill(os.getpid(), number)
        for _ in range(1000):
            pass
        return 0

    return run


@pytest.mark.parametrize(("module", "words"), [(listing, ["list"]), (tournament, ["tournament", "a"])])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=["TERM", "HUP", "INT"]
)
def test_a_signal_ends_any_command_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    words: list[str],
    number: int,
    code: int,
) -> None:
    monkeypatch.setattr(module, "run", struck(number))
    assert main(words) == code
    err = capsys.readouterr().err
    assert err.startswith("mfmarl: ") and err.endswith("[interrupted]\n") and err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup leaves it."""
    monkeypatch.setattr(listing, "run", struck(signal.SIGHUP))
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["list"]) == 0
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_sweep_tells_by_which_signal_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mfmarl.evaluation.scaling import sweep

    def measured(*_given: Any, **_more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "fresh", measured)
    words = ["scale", "congestion", "--agents", "mfq", "--num-agents", "4,8", "--no-quality", "--name", "s", "--quiet"]
    assert main(words) == 143
    assert "the same command goes on" in capsys.readouterr().err
