"""The report of an experiment that is not a comparison of agents: sections of text, tables and figures on one page.

    write_experiment(Path("runs/escape"), "Escape from a well", "Who gets out ...", [Section(...)], {"rows": [...]})

Everything shown lies beside it as numbers: `numbers.json`, and `figures/` as SVG and PNG.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfmarl.errors import ConfigError
from mfmarl.evaluation import report
from mfmarl.evaluation.results import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Columns after the first are aligned to the right, as numbers are."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.headings):
                raise ConfigError(f"Row {number} of a table has {len(row)} cells for {len(self.headings)} headings.")


@dataclass(frozen=True)
class Section:
    """One finding. Paragraphs of `text` are parted by empty lines; all text is plain."""

    title: str
    text: str
    table: Table | None = None
    figure: Figure | None = None
    stem: str = ""
    """The figure's file name; needed where there is one."""
    caption: str = ""

    def __post_init__(self) -> None:
        if (self.figure is None) != (not self.stem):
            raise ConfigError(f"Section {self.title!r}: a figure needs a stem to be saved under, and a stem a figure.")


def write_experiment(
    folder: Path, title: str, lead: str, sections: Sequence[Section], numbers: dict[str, Any], command: str = ""
) -> Path:
    """Write `report.html`, `numbers.json` and `figures/<stem>.svg|png` under `folder`; returns the page.

    `command` repeats the experiment (default: how this process was started). Raises ResourceFault where the folder
    cannot be written.
    """
    folder = Path(folder)
    command = command or " ".join(["python", *sys.argv])
    # First, so that the numbers are kept whatever becomes of the figures.
    write_text(folder / "numbers.json", json.dumps({"command": command, **numbers}, indent=1))
    body = [f"<header><h1>{escape(title)}</h1><p class='lead'>{escape(lead)}</p></header>"]
    for section in sections:
        body.append(f"<section><h2>{escape(section.title)}</h2>")
        body += [f"<p>{escape(part.strip())}</p>" for part in section.text.split("\n\n") if part.strip()]
        if section.table is not None:
            columns = range(1, len(section.table.headings))
            body.append(report.html_table(section.table.headings, section.table.rows, columns))
        if section.figure is not None:
            body.append(report.html_figure(folder, section.stem, section.figure, section.caption))
        body.append("</section>")
    body.append(report.html_repeat(command))
    return write_text(folder / "report.html", report.html_page(title, body))
