"""The page of an experiment: what is shown is kept as numbers, and text stays text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mfmarl.errors import ConfigError
from mfmarl.evaluation.drawing import canvas
from mfmarl.evaluation.experiment import Section, Table, write_experiment


def test_a_page_holds_text_table_and_figure_and_the_numbers_lie_beside_it(tmp_path: Path) -> None:
    figure, [[axes]] = canvas(4, 3)
    axes.plot([0, 1], [1, 2])
    found = Section("Finding", "First.\n\nSecond <b>.", Table(["who", "x"], [["a", "1.0"]]), figure, "curve", "A line.")
    page = write_experiment(tmp_path / "run", "Title", "Lead", [found], {"x": [1.0]}, "python that.py")
    text = page.read_text()
    assert text.count("<p>") == 2 and "&lt;b&gt;" in text and "<svg" in text and "A line." in text
    assert json.loads((tmp_path / "run" / "numbers.json").read_text()) == {"command": "python that.py", "x": [1.0]}
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {"curve.svg", "curve.png"}


def test_a_ragged_table_and_a_figure_without_a_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="Row 1 of a table has 1 cells for 2 headings"):
        Table(["a", "b"], [["1", "2"], ["1"]])
    with pytest.raises(ConfigError, match="needs a stem"):
        Section("S", "", figure=canvas(1, 1)[0])
