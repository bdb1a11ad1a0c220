"""Figures, the page and the exports: complete, self-contained, the same bytes each time, safe with hostile names."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mfmarl.evaluation import drawing, elo, export, figures, report, results
from mfmarl.evaluation.elo import Match

Make = Callable[..., Path]
HOSTILE = "<script>alert(1)</script>$x^2$ & \"q\" 'a' \x1b[31m"


class _Tags(HTMLParser):
    """Collects every tag and attribute, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self) -> Iterator[tuple[str, str]]:
        for _, attrs in self.tags:
            yield from attrs.items()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    from tests.evaluation.conftest import write_comparison

    path = write_comparison(tmp_path_factory.mktemp("runs") / "demo", failing=(("ising", "iac", 2),))
    (path / "figures").mkdir()
    picture = Image.fromarray(np.zeros((4, 4), dtype=np.uint8))
    picture.save(path / "figures" / "population_ising_mfq.png")
    picture.save(path / "figures" / "population_ising_mfq.gif")
    picture.save(path / "figures" / "population_ising_large_mfq.png")
    report.write_report(path)
    return path


def test_the_page_tells_the_whole_comparison(folder: Path) -> None:
    found = _Tags((folder / "report.html").read_text())
    for words in (
        "ising: mfq is better than its independent twin iql",
        "not separable at 5 runs",
        "Theory gives both the same answer",
        "1 of 5 runs of iac failed",
        "NumericFault: the loss of mfq is NaN",
        "mfmarl compare ising,congestion,magent2/battle_v4 --agents mfq,iql,mfac,iac,random --num-agents 400 --seeds 5",
        "torch 2.13.0",
        "Wardrop 1952",
        "The population",
    ):
        assert words in found.text, words
    assert len(re.findall("<figure>", (folder / "report.html").read_text())) == 3 * 2 + 1 + 3
    assert [t for t, _ in found.tags].count("img") == 1  # the film, not also its picture, and not another environment's


def test_the_page_asks_for_nothing_and_runs_nothing(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    found = _Tags(page)
    assert not {t for t, _ in found.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    policy = next(
        a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "script-src" not in policy
    for name, value in found.attributes():
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/", "#")), value
    assert not re.search(r"url\((?!#)", page) and "@import" not in page


def test_figures_are_kept_as_svg_and_png_and_the_numbers_as_json(folder: Path) -> None:
    stems = {p.stem for p in (folder / "figures").glob("*.svg")}
    assert {
        "curves_ising",
        "curves_ising_magnetisation",
        "intervals_congestion",
        "theory",
        "improvement",
        "profile",
    } <= stems
    assert "curves_magent2_battle_v4" in stems
    for stem in stems:
        ET.parse(folder / "figures" / f"{stem}.svg")
        assert (folder / "figures" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "summary.json").read_text())["environments"]["ising"]["agents"]["mfq"]["runs"] == 5


def test_the_same_runs_make_the_same_bytes(folder: Path) -> None:
    comparison = results.read_comparison(folder)
    for make in (drawing.to_svg, drawing.to_png):
        assert make(figures.learning_curves(comparison, "ising")) == make(figures.learning_curves(comparison, "ising"))
    run = folder / "ising" / "mfq" / "seed-0"
    assert report.report_run(run).read_bytes() == report.report_run(run).read_bytes()


def test_hostile_names_and_errors_are_only_text(tmp_path: Path, make_run: Make) -> None:
    for agent in ("mfq", "iql"):
        for seed in range(3):
            place = tmp_path / "c" / "e" / agent / f"seed-{seed}"
            make_run(
                place,
                np.arange(10.0) + seed,
                environment=HOSTILE,
                agent=agent,
                seed=seed,
                measures={HOSTILE: np.arange(10.0)},
                references={HOSTILE: {"value": 3, "source": HOSTILE, "kind": HOSTILE}},
                options={HOSTILE: HOSTILE},
                state="failed" if seed == 2 else "done",
                error=HOSTILE if seed == 2 else "",
            )
    plan = {"environments": [HOSTILE], "agents": ["mfq", "iql"], "seeds": 3, "command": HOSTILE, "name": HOSTILE}
    plan["versions"] = {HOSTILE: HOSTILE}
    (tmp_path / "c" / "comparison.json").write_text(json.dumps(plan | {"environments": ["e"]}))
    report.write_report(tmp_path / "c")
    report.report_run(tmp_path / "c" / "e" / "mfq" / "seed-2")
    for page in (tmp_path / "c" / "report.html", tmp_path / "c" / "e" / "mfq" / "seed-2" / "report.html"):
        found = _Tags(page.read_text())
        assert not [t for t, _ in found.tags if t == "script"]
        assert "<script>alert(1)</script>" in found.text and "$x^2$" in found.text
        assert "\x1b" not in page.read_text()
    drawn = list((tmp_path / "c" / "figures").glob("*.svg"))
    assert any(
        "$x^2$" in re.sub("<!--.*?-->", "", svg.read_text()) for svg in drawn
    )  # a dollar sign is a dollar sign, not mathematics
    for svg in drawn:
        ET.parse(svg)
        assert svg.resolve().parent == (tmp_path / "c" / "figures").resolve()


@pytest.mark.parametrize(("seeds", "reports"), [(1, 1), (2, 3)])
def test_the_smallest_comparisons_have_a_page(make_comparison: Make, seeds: int, reports: int) -> None:
    path = report.write_report(
        make_comparison(seeds=seeds, reports=reports, environments=("ising",), agents=("mfq", "iql"))
    )
    assert "needs 3 or more" in path.read_text()


def test_when_every_run_failed_the_page_says_so(make_comparison: Make) -> None:
    broken = tuple(("ising", a, k) for a in ("mfq", "iql") for k in range(2))
    folder = make_comparison(seeds=2, environments=("ising",), agents=("mfq", "iql"), failing=broken)
    page = report.write_report(folder).read_text()
    assert "cannot be compared" in page and "Failed runs" in page


def test_a_single_run_has_a_page(make_comparison: Make) -> None:
    folder = make_comparison(seeds=1, environments=("ising",), agents=("mfq",)) / "ising" / "mfq" / "seed-0"
    found = _Tags(report.report_run(folder).read_text())
    assert "mfq on ising, seed 0" in found.text and "Yang 1952" in found.text and "eval/magnetisation" in found.text
    assert (folder / "figures" / "run.svg").is_file()


def test_a_tournament_has_a_page(tmp_path: Path) -> None:
    matches = [Match("mfq", "iql", 30, 5, 15, k, m) for k in range(2) for m in range(2)]
    elo.write_tournament(tmp_path, ["mfq", "iql"], matches, name="battle", command="mfmarl tournament battle")
    found = _Tags(report.write_report(tmp_path).read_text())
    assert "mfq leads 2 players" in found.text and "130 of 200" in found.text and "2 trained runs each" in found.text


def test_a_phase_diagram_is_drawn_where_one_option_varies(tmp_path: Path, make_run: Make) -> None:
    for temperature in (1.0, 1.2, 1.4):
        for seed in range(3):
            place = tmp_path / f"ising-{temperature}" / "mfq" / f"seed-{seed}"
            known = {"magnetisation": {"value": 2 - temperature, "source": "", "kind": "law"}}
            values = {"magnetisation": np.full(4, 2 - temperature + 0.01 * seed)}
            make_run(
                place,
                np.arange(4.0),
                seed=seed,
                measures=values,
                references=known,
                options={"temperature": temperature},
            )
    comparison = results.read_comparison(tmp_path)
    assert figures.varied_option(comparison) == "temperature"
    drawn = drawing.to_svg(figures.order_parameter(comparison, "magnetisation", "temperature")).decode()
    assert "magnetisation against temperature" in drawn and "theory" in drawn and "mfq" in drawn


def test_twins_share_a_colour_and_differ_in_dash_and_filling() -> None:
    found = drawing.styles(["iql", "mfq", "mfac", "iac", "random"], {"mfq": "iql", "mfac": "iac"})
    assert found["mfq"].colour == found["iql"].colour != found["mfac"].colour == found["iac"].colour
    assert (found["mfq"].dash, found["iql"].dash) == ("-", "--") and found["mfq"].filled and not found["iql"].filled


def test_labels_never_overlap_and_move_as_little_as_they_can() -> None:
    wanted = [3.0, 1.0, 1.1, 1.2, 50.0]
    placed = drawing.spread_out(wanted, 2.0)
    assert np.diff(sorted(placed)).min() >= 2 - 1e-9
    assert placed[4] == 50 and list(np.argsort(placed)) == list(np.argsort(wanted))
    assert sum(placed[:4]) == pytest.approx(sum(wanted[:4]))
    assert drawing.spread_out([1.0, 9.0], 2.0) == [1.0, 9.0]


def test_file_names_stay_in_their_folder() -> None:
    assert drawing.file_name("../../etc/passwd") == ".._.._etc_passwd"
    assert "/" not in drawing.file_name("magent2/battle_v4") and drawing.file_name("") == "unnamed"


def test_marl_eval_gets_its_nesting(make_comparison: Make) -> None:
    comparison = results.read_comparison(make_comparison(seeds=3, reports=10, failing=(("ising", "iql", 0),)))
    data = json.loads(export.write_marl_eval(comparison).read_text())
    assert set(data) == {"mfmarl", "magent2"} and set(data["magent2"]) == {"battle_v4"}
    assert set(data["mfmarl"]["ising"]["iql"]) == {"run_1", "run_2"}
    run = data["mfmarl"]["ising"]["mfq"]["run_1"]
    assert run["step_3"]["step_count"] == 120 and len(run["step_3"]["reward"]) == 1
    [score] = run["absolute_metrics"]["reward"]
    assert score == results.scores(comparison, "ising", "mfq").values[0]
    assert set(run) == {*(f"step_{k}" for k in range(1, 11)), "absolute_metrics"}


def test_a_table_has_a_row_per_run_and_no_formulas(make_comparison: Make, make_run: Make) -> None:
    folder = make_comparison(seeds=2, environments=("ising",), agents=("mfq", "iql"), failing=(("ising", "iql", 0),))
    status = folder / "ising" / "iql" / "seed-0" / "status.json"
    status.write_text(json.dumps({"state": "failed", "error": '=HYPERLINK("http://x")\n,+1'}))
    comparison = results.read_comparison(folder)
    rows = list(csv.DictReader(export.write_csv(comparison).read_text().splitlines()))
    assert len(rows) == 4
    by = {(r["agent"], r["seed"]): r for r in rows}
    assert float(by["mfq", "1"]["score"]) == results.scores(comparison, "ising", "mfq").values[1]
    assert by["iql", "0"]["score"] == "" and by["iql", "0"]["state"] == "failed"
    assert by["iql", "0"]["error"] == '\'=HYPERLINK("http://x") ,+1'
    assert export._cell("@x") == "'@x" and export._cell("-1+2") == "'-1+2" and export._cell(-1.5) == "-1.5"


def test_reading_and_summarising_imports_neither_matplotlib_nor_torch() -> None:
    code = (
        "import sys, mfmarl.evaluation.report, mfmarl.evaluation.claims, mfmarl.evaluation.export, mfmarl.evaluation.figures\n"
        "heavy = {'matplotlib', 'torch', 'scipy.stats', 'rich', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
