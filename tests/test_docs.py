"""The documents run as they stand: every block of the tour and of the games, and the pictures that they draw."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mfmarl.cli.choices import pairs_of, parse_agents, parse_environments
from mfmarl.cli.main import build_parser
from mfmarl.cli.solve import assign, parse_solvers
from mfmarl.evaluation.solve_config import make_game, make_solver
from mfmarl.learning.run_config import Choice

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        # What a page says in passing, it says of the numbers it prints.
        pytest.param(
            "tour", ["Z = 8229.0354566", "0.0490250401"], marks=pytest.mark.verify
        ),  # the better part of a minute
        ("active_inference", ["tells 0.494632 nat", "centre, then cue, then", "3 peers: orders above w = 0.4753"]),
        ("games", ["torch.Size([20, 1, 15])", "one of 5: ", "limit/exploitability", "finite/exploitability"]),
    ],
)
def test_every_block_of_a_page_runs_and_draws_the_pictures_it_shows(
    page: str, printed: list[str], tmp_path: Path
) -> None:
    script = ROOT / "scripts" / "docs_pictures.py"
    command = [sys.executable, str(script), "--page", page, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = set(re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", (DOCS / f"{page}.md").read_text(encoding="utf-8")))
    assert {path.name for path in tmp_path.iterdir()} == shown
    assert shown  # there are some
    assert all(words in done.stdout for words in printed)


@pytest.mark.parametrize(
    ("page", "least"), [("games", 6), ("active_inference", 6), ("many_machines", 5), ("scaling", 3)]
)
def test_the_commands_of_a_page_parse(page: str, least: int) -> None:
    lines = re.findall(r"^\$ mfmarl (.+)$", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= least
    for line in lines:
        known, rest = build_parser().parse_known_args(shlex.split(line, comments=True))
        if known.command == "solve" and known.game:
            game, solvers = assign(pairs_of(rest), Choice(known.game), parse_solvers(known.solver or "omd"))
            make_game(game)
            assert all(make_solver(choice) for choice in solvers.values())
        if getattr(known, "agents", None):
            assert parse_agents(known.agents)
        if known.command == "compare":
            assert parse_environments(known.environments)


def test_every_module_of_active_inference_has_its_place_in_the_reference() -> None:
    listed = set(re.findall(r"^::: mfmarl\.inference\.([\w.]+)", (DOCS / "reference.md").read_text(), re.MULTILINE))
    root = ROOT / "mfmarl" / "inference"
    there = {".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    assert listed == {name for name in there if not name.endswith("__init__")}


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
