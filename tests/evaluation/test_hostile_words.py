"""Words of a stranger's (names, errors, options, claims) on a terminal, in a page and in a table: never more than words."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mfmarl.cli.main import main
from mfmarl.cli.progress import Progress
from mfmarl.evaluation import elo
from mfmarl.evaluation.elo import Match
from tests.evaluation.conftest import write_run
from tests.evaluation.scaling.sample import write_sweep

CONTROLS = "\x1b[31m\x1b]0;mine\x07\x9b2J\x08\u202e"
SCRIPT = "<script>alert(1)</script>]]><img src=x onerror='alert(2)'>"
HOSTILE = f"=1+1 {SCRIPT} [bold]b[/bold] {CONTROLS}"


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(page: Path) -> str:
    """The text of a page in which nothing acts and nothing is loaded."""
    source = page.read_text(encoding="utf-8")
    found = _Tags(source)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(found.tags)
    assert "Content-Security-Policy" in source
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not [v for name, v in found.attributes if name in ("src", "href") and not v.startswith(("data:image/", "#"))]
    assert not [c for c in source if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
    return found.text


def plain(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, by which no terminal is steered."""
    out, err = capsys.readouterr()
    steering = {c for c in out + err if not c.isprintable() and c != "\n"}
    assert not steering, f"{steering} in {out + err!r}"
    return out + err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A comparison whose every word is hostile, one run of three failed with a reason that is not even text."""
    for agent in ("mfq", HOSTILE):
        for seed in range(3):
            place = tmp_path / "c" / "e" / ("mfq" if agent == "mfq" else "theirs") / f"seed-{seed}"
            write_run(
                place, np.arange(10.0) + seed, environment=HOSTILE, agent=agent, seed=seed,
                measures={HOSTILE: np.arange(10.0)}, options={HOSTILE: HOSTILE},
                references={HOSTILE: {"value": 3, "source": HOSTILE, "kind": HOSTILE}},
                state="failed" if seed == 2 else "done", error=f"{HOSTILE}\nline 2 \ud800" if seed == 2 else "",
            )  # fmt: skip
    plan = {"environments": ["e"], "agents": ["mfq", "theirs"], "seeds": 3, "command": HOSTILE, "name": HOSTILE}
    (tmp_path / "c" / "comparison.json").write_text(json.dumps({**plan, "versions": {HOSTILE: HOSTILE}}))
    return tmp_path / "c"


def test_a_comparison_is_only_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder), "--export", "csv"]) == 0
    told = plain(capsys)
    assert "[bold]b[/bold]" in told
    assert "alert(1)" in harmless(folder / "report.html")
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    cells = [value for row in rows for value in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]
    assert sum(cell.startswith("'=1+1") for cell in cells) >= 2  # the failed runs' reasons


def test_how_runs_stand_is_only_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder), "--status"]) == 0
    told = plain(capsys)
    assert "failed" in told and "alert(1)" in told


def test_a_run_is_only_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder / "e" / "mfq" / "seed-2")]) == 0
    plain(capsys)
    assert "alert(1)" in harmless(folder / "e" / "mfq" / "seed-2" / "report.html")


def test_a_tournament_is_only_text(tmp_path: Path) -> None:
    matches = [Match(HOSTILE, "iql", 30, 5, 15, k, m) for k in range(2) for m in range(2)]
    elo.write_tournament(tmp_path, [HOSTILE, "iql"], matches, name=HOSTILE, command=HOSTILE, environment=HOSTILE)
    assert main(["report", str(tmp_path)]) == 0
    assert "alert(1)" in harmless(tmp_path / "report.html")


def test_a_measurement_is_only_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from mfmarl.evaluation.scaling import report

    folder = write_sweep(tmp_path / "a", (100, 1000, 10_000))
    numbers = report.gather(folder)
    for one in numbers["series"]:
        one["label"] = HOSTILE
    for verdict in numbers["verdicts"]:
        verdict["sentence"] = HOSTILE
    numbers["command"] = HOSTILE
    report.print_numbers(numbers, Console(width=100))
    assert "alert(1)" in plain(capsys)
    assert "alert(1)" in harmless(report.write_report(folder, numbers))


def test_progress_and_messages_are_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.add("all runs", 2)
        progress.update("all runs", 2, HOSTILE)
        progress.say(HOSTILE)
    assert plain(capsys).count("alert(1)") == 2


@pytest.mark.parametrize("command", ["train", "compare", "solve", "list", "check-env", "report", "selftest"])
def test_a_name_that_steers_a_terminal_is_told_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [command, "--goals", HOSTILE] if command == "selftest" else [command, HOSTILE]
    assert main(words) in (2, 3)
    assert "mfmarl: " in plain(capsys)
    assert list(tmp_path.iterdir()) == []
