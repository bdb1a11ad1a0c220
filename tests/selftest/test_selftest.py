"""The self-test itself: goals are tried one by one, what is known is kept, and what fails cannot hide."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mfmarl.cli.main import main
from mfmarl.errors import ClaimRefuted, ConfigError
from mfmarl.selftest import every_case, goals
from mfmarl.selftest.carry_out import NUMBERS, carry_out, read
from mfmarl.selftest.case import Case, Missed, case, expect
from mfmarl.selftest.catalogue import cases
from mfmarl.selftest.goal import KEPT, Goal, Order, Outcome, attempt
from mfmarl.selftest.goals import GOALS
from mfmarl.selftest.report import write_report

HERE = __name__
TRIED: list[str] = []


def holds(order: Order) -> Outcome:
    TRIED.append("holds")
    (order.folder / "left behind").write_text("x")
    order.watch(3, 3)
    return Outcome(True, "3 of 3", order.trials(1000, least=3), beside={"a <peer>": "0 of 3"}, figures={"x": 1.5})


def breaks_off(order: Order) -> Outcome:
    TRIED.append("breaks_off")
    raise RuntimeError("no luck <script>alert(1)</script> \x1b[31m")


def misses(order: Order) -> Outcome:
    return Outcome(False, "1 of 100 lost", 100, tuple(f"trial {i} <b>" for i in range(100)))


def cannot(order: Order) -> Outcome:
    return Outcome(None, "there is no fork here")


def _goal(number: int, function: str) -> Goal:
    return Goal(number, f"title {number}", "target", "anchor", f"{__name__}:{function}", 1)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[Goal, ...]:
    found = (_goal(1, "holds"), _goal(2, "breaks_off"), _goal(3, "misses"), _goal(4, "cannot"))
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    for module in ("mfmarl.selftest.goals", "mfmarl.selftest.report"):
        monkeypatch.setattr(f"{module}.GOALS", found)
    TRIED.clear()
    return found


def _quiet(_event: str, _goal: Goal, _outcome: Outcome | None) -> None: ...


def test_a_trial_that_breaks_off_is_not_a_promise_kept(planted: tuple[Goal, ...], tmp_path: Path) -> None:
    outcome = attempt(planted[1], Order(tmp_path))
    assert outcome.met is False
    assert "RuntimeError: no luck" in outcome.found


def test_a_trial_that_is_not_there_is_not_a_promise_kept(tmp_path: Path) -> None:
    assert attempt(Goal(1, "", "", "", "mfmarl.selftest.nowhere:nothing", 1), Order(tmp_path)).met is False


def test_only_some_failures_are_kept_and_an_outcome_comes_back_from_json(
    planted: tuple[Goal, ...], tmp_path: Path
) -> None:
    outcome = attempt(planted[2], Order(tmp_path))
    assert len(outcome.failures) == KEPT
    assert Outcome.from_table(json.loads(json.dumps(outcome.to_table()))) == outcome


@pytest.mark.parametrize(("share", "trials"), [(1.0, 1000), (0.01, 10), (0.0001, 3), (2.0, 2000)])
def test_the_share_says_how_many_trials(share: float, trials: int, tmp_path: Path) -> None:
    assert Order(tmp_path, share).trials(1000, least=3) == trials


def test_what_is_known_is_kept_and_not_tried_again(planted: tuple[Goal, ...], tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    carry_out(planted[:2], tmp_path, Order(tmp_path), lambda event, goal, _: told.append((event, goal.name)))
    assert told == [("begin", "G1"), ("done", "G1"), ("begin", "G2"), ("done", "G2")]
    found = carry_out(planted, tmp_path, Order(tmp_path), _quiet)
    assert TRIED == ["holds", "breaks_off"]
    assert [found[f"G{i}"].met for i in (1, 2, 3, 4)] == [True, False, False, None]
    assert sorted(p.name for p in tmp_path.iterdir()) == [NUMBERS]
    assert read(tmp_path) == found


def test_an_interrupted_goal_leaves_the_others_and_no_rubbish(
    planted: tuple[Goal, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(order: Order) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{HERE}.misses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry_out(planted, tmp_path, Order(tmp_path), _quiet)
    assert sorted(read(tmp_path)) == ["G1", "G2"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [NUMBERS]


def test_a_folder_of_another_share_is_refused(planted: tuple[Goal, ...], tmp_path: Path) -> None:
    carry_out(planted[:1], tmp_path, Order(tmp_path, 0.5), _quiet)
    with pytest.raises(ConfigError, match=r"share 0\.5, now 0\.25"):
        carry_out(planted, tmp_path, Order(tmp_path, 0.25), _quiet)
    assert set(carry_out(planted[3:], tmp_path, Order(tmp_path, 0.25), _quiet, again=True)) == {"G4"}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"goals": 1}', "[" * 5000, "\x00"])
def test_numbers_that_cannot_be_read_are_told(content: str, tmp_path: Path) -> None:
    (tmp_path / NUMBERS).write_text(content)
    with pytest.raises(ConfigError, match="is not of a self-test"):
        read(tmp_path)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_goal_and_runs_nothing(planted: tuple[Goal, ...], tmp_path: Path) -> None:
    carry_out(planted, tmp_path, Order(tmp_path), _quiet)
    page = _Tags()
    page.feed(write_report(tmp_path).read_text())
    assert "script" not in page.tags and "b" in page.tags
    for words in ("1 of 4 promises", "G2, G3 not met", "G4 not tried", "a <peer>", "trial 19 <b>", "<script>alert(1)"):
        assert words in page.text
    assert "\x1b" not in page.text


def test_the_command_tries_keeps_tells_and_leaves_with_9(
    planted: tuple[Goal, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["selftest", "--goals", "G1,g4", "--runs", str(tmp_path), "--name", "a", "--quiet", "--report"]) == 0
    assert "there is no fork here" in capsys.readouterr().out
    assert (tmp_path / "a" / "report.html").is_file()
    code = main(["selftest", "--goals", "G1,G3", "--runs", str(tmp_path), "--name", "a", "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert code == ClaimRefuted.exit_code
    assert "G3 of the goals not met: 1 of 100 lost" in err and "[claim-refuted]" in err
    assert json.loads(out)["goals"]["G3"]["met"] is False
    assert TRIED == ["holds"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--goals", "G99"], "There is no goal 'G99'"),
        (["--cases", "x"], "There is no case 'x'"),
        (["--cases", "0"], "There is no case '0'"),
        (["--share", "0"], "--share must be in (0, 100]"),
        (["--share", "nan"], "--share must be in (0, 100]"),
        (["--seed", "-1"], "--seed must be"),
        (["--goals", "G1", "--cases", "1"], "either --goals or --cases"),
        (["--nothing"], "--nothing"),
        (["--name", "../x"], "cannot name a run"),
    ],
)
def test_wrong_options_are_told_before_anything_is_tried(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["selftest", "--runs", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def _met(folder: Path) -> None:
    (folder / "x").write_text("x")


def _missed(folder: Path) -> None:
    expect((folder / "x").exists(), "there is no x")


def _broken(folder: Path) -> None:
    raise ValueError("oh")


def test_a_case_is_met_missed_or_broken(tmp_path: Path) -> None:
    made = [case(i, "fault", "S1", "told")(run) for i, run in enumerate((_met, _missed, _broken), 1)]
    told = [every_case.attempt_case(one, tmp_path / str(one.number)) for one in made]
    assert told == ["", "case 2 (fault): there is no x", "case 3 (fault) broke off: ValueError: oh"]
    assert not list(tmp_path.iterdir())


def test_the_catalogue_counts_what_is_missing_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = [Case(1, "fault", "S1", "told", _met)]
    monkeypatch.setattr(every_case, "cases", lambda: few)
    outcome = every_case.catalogue(Order(tmp_path))
    assert outcome.met is False and outcome.found.startswith("1 of 76")


def test_the_catalogue_has_76_cases_and_each_once() -> None:
    found = cases()
    assert set(range(1, 77)) <= {one.number for one in found}
    assert all(one.fault and one.expected and one.severity in ("S1", "S2", "S3", "S4") for one in found)


def test_every_goal_has_a_trial_that_is_there() -> None:
    import importlib

    assert [goal.number for goal in GOALS] == list(range(1, 18))
    for goal in GOALS:
        module, _, function = goal.trial.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), goal.trial


def test_the_list_names_goals_and_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--list", "--json"]) == 0
    table: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [goal["number"] for goal in table["goals"]] == [goal.number for goal in goals.GOALS]
    assert main(["selftest", "--list"]) == 0
    assert "G17" in capsys.readouterr().out


def test_missed_is_no_error_of_the_users() -> None:
    assert not issubclass(Missed, ConfigError)
