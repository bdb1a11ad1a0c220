"""What every test shares: one thread, no window, hypothesis without luck, and a watch on unpickling."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Before torch is imported: results are bitwise for a number of threads, and two workers share the cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["SDL_VIDEODRIVER"] = os.environ["SDL_AUDIODRIVER"] = "dummy"
os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The same examples on every run; time limits are pytest's, not hypothesis's.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


def _refuse_unpickling(event: str, args: tuple[Any, ...]) -> None:
    if event != "pickle.find_class":
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("mfmarl."):
            raise AssertionError(f"{frame.f_globals['__name__']} unpickles {args}: nothing may be unpickled.")
        frame = frame.f_back


sys.addaudithook(_refuse_unpickling)


_HOME = os.getcwd()


@pytest.fixture(autouse=True)
def _folder_kept() -> Iterator[None]:
    """Who leaves the working folder changed is named, and does not make the tests after it fail."""
    yield
    try:
        there = os.getcwd()
    except OSError:
        there = "a folder that is gone"
    if there != _HOME:
        os.chdir(_HOME)
        pytest.fail(f"the test left the working folder at {there}")
