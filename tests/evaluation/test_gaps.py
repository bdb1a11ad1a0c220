"""How far from equilibrium learners of a mean-field game are: beside their scores, in the limit and at N."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mfmarl.cli.main import main
from mfmarl.evaluation import report
from mfmarl.evaluation.claims import evaluate, parse_claim
from mfmarl.evaluation.results import at_end, read_comparison
from mfmarl.evaluation.summary import gap_rows, gaps, print_table, summary
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs each of two agents on a beach."""
    folder = tmp_path_factory.mktemp("beach")
    for agent in ("iql", "random"):
        for seed in range(3):
            options = {"values": "table", "temperature": "0.2"} if agent == "iql" else {}
            config = RunConfig(
                Choice("beach_bar", {"num_agents": 8}),
                {"all": Choice(agent, options)},
                RunOptions(seed=seed, steps=40, report_every=20, copies=2),
            )
            run_in_folder(config, folder / "beach_bar" / agent / f"seed-{seed}")
    return folder


def test_both_gaps_are_shown_beside_the_scores(compared: Path) -> None:
    comparison = read_comparison(compared)
    table = summary(comparison)
    rows = dict(gap_rows(table["environments"]["beach_bar"]))
    assert set(rows) == {"iql", "random"} and all(len(cells) == 2 for cells in rows.values())
    assert "not known" not in [cell for cells in rows.values() for cell in cells]
    out = io.StringIO()
    print_table(table, Console(file=out, width=160))
    assert "of infinitely many" in out.getvalue() and "at N" in out.getvalue()
    page = report.write_report(compared).read_text()
    assert "of infinitely many" in page and "sees no fluctuations" in page


def test_the_end_of_a_run_counts_not_its_course(compared: Path) -> None:
    comparison = read_comparison(compared)
    ends = at_end(comparison, "beach_bar", "iql", "limit/exploitability")
    assert ends.seeds == (0, 1, 2)
    for run, end in zip(comparison.of("beach_bar", "iql"), ends.values, strict=True):
        assert end == run.columns["limit/exploitability"][-1] != run.columns["limit/exploitability"][0]
    found = gaps(comparison, "beach_bar", "iql")
    assert set(found) == {"limit/exploitability", "finite/exploitability"}
    assert found["finite/exploitability"]["runs"] == 3


def test_theory_and_claims_speak_of_them(compared: Path) -> None:
    comparison = read_comparison(compared)
    about = summary(comparison)["environments"]["beach_bar"]
    told = about["agents"]["iql"]["theory"]
    assert told["limit/exploitability"]["theory"] > 0 and told["finite/exploitability"]["kind"] == "equilibrium"
    holds, sentence = evaluate(parse_claim("random limit/exploitability > 0.01"), comparison)
    assert holds, sentence
    holds, _ = evaluate(parse_claim("random limit/exploitability = theory"), comparison)
    assert not holds  # uniform play is the equilibrium at no finite temperature


def test_environments_without_an_equilibrium_to_speak_of_show_nothing(make_comparison: Callable[..., Path]) -> None:
    comparison = read_comparison(make_comparison(environments=("ising",), agents=("mfq",), seeds=3))
    assert gaps(comparison, "ising", "mfq") == {}
    out = io.StringIO()
    print_table(summary(comparison), Console(file=out, width=160))
    assert "exploitability" not in out.getvalue()
    assert len(at_end(comparison, "ising", "mfq", "nowhere").values) == 0


def test_a_run_without_the_number_at_n_says_so() -> None:
    table = {"agents": {"a": {"gaps": {"limit/exploitability": {"value": 0.5, "low": 0.4, "high": 0.6, "runs": 3}}}}}
    assert gap_rows(table)[0][1][1] == "not known"


def test_train_tells_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "beach_bar", "--agent", "random", "--num-agents", "6", "--steps", "4", "--quiet", "--runs"]
    assert main([*words, str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "of infinitely many" in told and "at N" in told
