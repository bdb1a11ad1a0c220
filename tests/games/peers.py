"""Other packages of mean-field games, asked live: each answers from an interpreter of its own.

They pin old numbers of our dependencies, so they live in `.venv-peers` (see the Makefile), or where the environment
variable MFMARL_PEERS says. A script is a few lines of Python that find their input in `given` and leave their result
in `answer`, both of what JSON can hold; torch counts in float64 there, on one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_ABSENT = 77
_BEFORE = """
import importlib.util, json, sys
for needed in {needs!r}:
    if importlib.util.find_spec(needed) is None:
        sys.exit({absent})
if {needs!r} and importlib.util.find_spec("torch") is not None:
    import torch
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
given = json.loads(sys.stdin.read())
"""
_AFTER = """
print("\\n" + json.dumps(answer))
"""


def interpreter() -> Path | None:
    """The Python that has the peers, or None."""
    said = os.environ.get("MFMARL_PEERS")
    found = Path(said) if said else Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
    return found if found.exists() else None


def ask(script: str, given: Any = None, needs: tuple[str, ...] = ("mfglib",), seconds: float = 600) -> Any:
    """What the script left in `answer`. Skips the test where the peer is absent; a script that fails is an error."""
    python = interpreter()
    if python is None:
        pytest.skip(f"{' and '.join(needs)}: no .venv-peers here, and MFMARL_PEERS does not name its python")
    return json.loads(_asked(python, script, json.dumps(given), needs, seconds))


@cache
def _asked(python: Path, script: str, given: str, needs: tuple[str, ...], seconds: float) -> str:
    code = _BEFORE.format(needs=needs, absent=_ABSENT) + script + _AFTER
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), "-c", code], input=given, capture_output=True, text=True, timeout=seconds, env=environment
    )
    if done.returncode == _ABSENT:
        pytest.skip(f"{python} has not all of {', '.join(needs)}")
    if done.returncode:
        raise RuntimeError(f"The peer failed:\n{done.stderr[-3000:]}")
    return done.stdout.rstrip().splitlines()[-1]
