"""The README's Python runs, and its commands parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mfmarl.cli.main import COMMANDS, build_parser

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINES = [
    line[2:].partition("  #")[0]
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("$ mfmarl")
]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_python_block_runs_as_it_stands(number: int, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(BLOCKS[number])
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    if "attendance" in BLOCKS[number]:
        assert float(done.stdout.split()[-1]) == pytest.approx(0.6, abs=0.1)


def test_there_are_blocks_and_commands_to_check() -> None:
    assert len(BLOCKS) >= 3
    assert len(LINES) >= 8


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_is_understood(line: str) -> None:
    words = shlex.split(line)[1:]
    assert words[0] in COMMANDS
    build_parser().parse_known_args(words)


def test_what_the_readme_points_to_is_there() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target
