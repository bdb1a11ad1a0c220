"""The page and the verdicts of a sweep: true to what was measured, silent about what was not, whatever is missing."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mfmarl.errors import ConfigError
from mfmarl.evaluation.scaling import report, sweep
from mfmarl.evaluation.scaling.points import Measured, Point
from tests.evaluation.scaling.sample import estimate, keep, numbers_of, plan_of, point_of, quality_of, write_sweep

SIZES = (100, 1000, 10_000, 100_000, 1_000_000)
KEYS = {
    "scale", "mfmarl", "command", "versions", "environment", "plan", "machine", "state", "independent", "points", "series",
    "quality", "machines", "ratios", "verdicts",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "a", SIZES)


def sentence(numbers: dict[str, Any], agent: str = "mfq") -> str:
    return next(v["sentence"] for v in numbers["verdicts"] if v["agent"] == agent)


def test_the_verdict_tells_growth_knee_parts_memory_and_peers(folder: Path) -> None:
    told = sentence(report.gather(folder))
    assert re.match(
        r"mfq: cost grows as N\^1\.00 \((0\.9\d|1\.00) to 1\.0\d\) beyond what a step costs whatever N, ", told
    )
    knee = re.search(r"most of a step below N = (\d+);", told)
    assert knee is not None
    assert int(knee[1]) == pytest.approx(500, rel=0.1)
    assert "2.01 µs of CPU per agent and step at N = 1,000,000" in told
    assert "60% of a step at N = 1,000,000 is the network choosing actions" in told
    assert "memory 400 B per agent" in told
    assert "linear within 1%" in told
    assert "stable-baselines3 (ppo) is 20 times dearer at N = 1,000" in told
    assert "what is learned: not measured" in told
    assert "1 M agents on 8 machines would take" in told
    assert "foretold, over 10GbE" in told


def test_nothing_is_claimed_that_was_not_measured(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    sweep.write_plan(plan_of(SIZES), folder, "")
    keep(folder, replace(point_of("mfq", 100), phases={}, phase_steps=0, peak_bytes=0))
    told = sentence(report.gather(folder))
    assert "how it grows was not measured" in told
    assert "parts of a step not measured" in told
    assert "growth of memory not measured" in told
    assert "what is learned: not measured" in told
    assert "machines" not in told
    assert "N^" not in told


def test_a_sweep_of_which_nothing_is_done_yet_has_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    sweep.write_plan(plan_of(SIZES), folder, "")
    page = report.write_report(folder).read_text(encoding="utf-8")
    assert "0 of 30 points measured" in page
    assert "30 not yet begun: the same command goes on" in page


def test_failed_and_skipped_points_are_shown_with_their_reasons_and_escaped(folder: Path) -> None:
    worst = "<script>alert(1)</script> & \x1b[31m"
    keep(folder, Measured(Point("ppo", "sb3", 10_000), "failed", worst))
    keep(folder, Measured(Point("ppo", "sb3", 100_000), "skipped", "It would take about 900 s."))
    numbers = report.gather(folder)
    assert numbers["state"]["failed"] == 1
    assert numbers["state"]["skipped"] == 1
    page = report.write_report(folder, numbers).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in page
    assert "<script" not in page
    assert "\x1b" not in page
    assert "It would take about 900 s." in page
    assert "1 failed" in page


def test_what_is_learned_is_told_from_the_size_on_where_it_no_longer_changes(folder: Path) -> None:
    quality = quality_of(SIZES)
    for row in quality["rows"]:
        row["reward"] = estimate(0.5 if row["num_agents"] < 10_000 else 1.0)
    report.keep_quality(folder, quality)
    told = sentence(report.gather(folder))
    assert "what is learned is not seen to change from N = 10,000 on: reward 1.000 [0.990, 1.010]" in told
    assert "distance to infinitely many (reward) falls as N^−1.00 (−1.05 to −0.95; theory −1.00)" in told
    assert "off theory (law) at N = 1,000,000, within its interval" in told


@pytest.mark.parametrize(
    ("values", "half", "told"),
    [
        ((0.2, 0.4, 0.6, 0.8, 1.0), 0.01, "what is learned still changes with N"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), 0.01, "is not seen to change at any N measured"),
        ((1.0, 1.0, 1.0, 1.0, 1.0), 0.6, "seeds scatter too widely to tell"),
        ((0.7, 1.0, 0.7, 1.0, 1.0), 0.01, "is not seen to change from N = 100,000 on"),
    ],
)
def test_sameness_is_claimed_only_where_the_intervals_bear_it(
    folder: Path, values: tuple[float, ...], half: float, told: str
) -> None:
    quality = quality_of(SIZES)
    for row in quality["rows"]:
        row["reward"] = estimate(values[SIZES.index(row["num_agents"])], half)
    report.keep_quality(folder, quality)
    assert told in sentence(report.gather(folder))


def test_numbers_are_plain_json_and_whole(folder: Path) -> None:
    report.keep_quality(folder, quality_of(SIZES))
    report.keep_clusters(folder, ["nodes=8, agents=1e8"])
    numbers = report.gather(folder)
    report.write_report(folder, numbers)
    text = (folder / "numbers.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    kept = json.loads(text)
    assert set(kept) == KEYS
    documented = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")
    missing = [key for key in (*KEYS, *kept["series"][0], *kept["machines"]) if f"`{key}`" not in documented]
    assert not missing
    assert len(kept["points"]) == 24
    assert kept["machines"]["asked"][0]["cluster"] == "nodes=8, agents=1e8"


def test_the_page_has_every_figure_as_svg_and_png_and_asks_for_nothing(folder: Path) -> None:
    report.keep_quality(folder, quality_of(SIZES))
    page = report.write_report(folder).read_text(encoding="utf-8")
    stems = {"cost", "step", "phases", "memory", "reward", "gap_limit_exploitability", "limit", "fluctuations", "efficiency",
             "transfer", "machines"}  # fmt: skip
    assert {p.stem for p in (folder / "figures").glob("*.svg")} == stems
    assert {p.stem for p in (folder / "figures").glob("*.png")} == stems
    assert page.count("<svg role='img'") == len(stems)
    assert not re.search(r"(src|href)=['\"]https?:", page)
    assert "default-src 'none'" in page


def test_clusters_asked_about_before_are_remembered_once(folder: Path) -> None:
    report.keep_clusters(folder, ["agents=1e6", "nodes=2, agents=1e6"])
    assert report.keep_clusters(folder, ["agents=1e6"]) == ["agents=1e6", "nodes=2, agents=1e6"]


def test_a_cluster_that_does_not_hold_the_population_is_told_in_the_report(folder: Path) -> None:
    report.keep_clusters(folder, ["nodes=2, agents=1e9, memory=1GB"])
    [first, *_] = report.gather(folder)["machines"]["asked"]
    assert "do not fit" in first["sentence"]
    assert "do not fit" in report.write_report(folder).read_text(encoding="utf-8")


def test_damaged_files_are_named(folder: Path) -> None:
    (folder / "network.json").write_text('{"name": 3, "speed": 1}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"network\.json"):
        report.gather(folder)
    (folder / "network.json").unlink()
    (folder / "quality.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"quality\.json"):
        report.gather(folder)


def test_the_terminal_shows_sizes_and_verdicts() -> None:
    out = io.StringIO()
    report.print_numbers(numbers_of((100, 1000)), Console(file=out, width=140))
    text = out.getvalue()
    assert "1,000" in text
    assert "mfq: cost grows as" in text.replace("\n", " ")
    assert "stable-baselines3 (ppo)" in text
