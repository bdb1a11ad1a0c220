"""Progress on standard error: bars with a rate and the time left, plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from mfmarl.errors import printable


class Progress:
    """Several tasks side by side. On a terminal they are bars; elsewhere a line every few seconds."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live: Any = None
        self.tasks: dict[str, Any] = {}
        self.totals: dict[str, int] = {}
        self.begun: dict[str, float] = {}
        self.told = 0.0

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self.live = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=Console(stderr=True),
            )
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def add(self, name: str, total: int) -> None:
        """A task of so many steps."""
        self.totals[name] = total
        self.begun[name] = time.monotonic()
        if self.live is not None:
            self.tasks[name] = self.live.add_task(printable(name), total=total, note="")

    def update(self, name: str, done: int, note: str = "") -> None:
        """How far a task is; `note` is a short text beside the bar."""
        if self.quiet:
            return
        note = printable(note)
        if self.live is not None:
            self.live.update(self.tasks[name], completed=done, note=note)
            return
        now, total = time.monotonic(), self.totals[name]
        if now - self.told >= 5 or done >= total:
            self.told = now
            spent = now - self.begun[name]
            left = f" ({spent / done * (total - done):.0f} s left)" if done else ""
            print(f"{name}: {done}/{total} {note}{left}", file=sys.stderr, flush=True)

    def remove(self, name: str) -> None:
        """Take a finished task off the display."""
        if self.live is not None and name in self.tasks:
            self.live.remove_task(self.tasks.pop(name))

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.quiet:
            return
        text = printable(text)
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
