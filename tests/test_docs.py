"""The documents run as they stand: every block of the tour, and the pictures that it draws."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_block_of_the_tour_runs_and_draws_the_pictures_it_shows(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "docs_pictures.py"
    command = [sys.executable, str(script), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = set(re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", (DOCS / "tour.md").read_text(encoding="utf-8")))
    assert {path.name for path in tmp_path.iterdir()} == shown
    assert shown  # there are some
    # What it says in passing, it says of the numbers it prints.
    assert "Z = 8229.0354566" in done.stdout and "0.0490250401" in done.stdout


def test_what_the_documents_point_to_is_there() -> None:
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (DOCS / target).exists(), f"{page.name}: {target}"
        for path in re.findall(r"`(scripts/[\w/]+\.py)", text):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"
        for module in re.findall(r"^::: ([\w.]+)", text, re.MULTILINE):
            assert module.startswith("mfmarl."), module


def test_every_name_in_the_list_of_concepts_exists() -> None:
    text = (DOCS / "concepts.md").read_text(encoding="utf-8")
    cells = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ") and line.count("|") == 4]
    names = [name for cell in cells for name in re.findall(r"`([a-z_.]+\.[A-Za-z_]+)`", cell)]
    assert len(names) > 130
    for name in names:
        module, _, attribute = (name if name.startswith("mfmarl.") else f"mfmarl.statmech.{name}").rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_module_of_the_core_has_its_place_in_the_reference() -> None:
    listed = set(re.findall(r"^::: mfmarl\.statmech\.([\w.]+)", (DOCS / "statmech.md").read_text(), re.MULTILINE))
    root = ROOT / "mfmarl" / "statmech"
    there = {".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    assert listed == {name for name in there if not name.endswith("__init__")} - {"sampling.kernels"}
