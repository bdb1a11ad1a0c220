"""What a Ray worker does: hand one run to a `python -m mfmarl.learning.worker`, and say how it ended. A string of JSON
in, a string of JSON out; the rows lie in the run's folder. This file imports nothing of Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

_SAVE = 30.0
"""Seconds for a run to save when its task is cancelled."""


def train(order: str) -> str:
    """Carry out one run; `order` is JSON: path, config, imports, cwd, threads.

    Returns JSON: {"event": "done" | "failed" | "interrupted" | "lost", "error": ..., "exit_code": ...}; "lost" where
    the process died under the run. The process is kept for this worker's next run.
    """
    wanted = json.loads(order)
    trainer = _trainer(wanted.pop("cwd"), wanted.pop("threads"))
    finished = False
    try:
        trainer.send(json.dumps(wanted))
        while True:
            line = trainer.line(timeout=0.2)  # never blocks for long: a cancelled task is woken by an exception
            if line == "":
                continue
            if line is None:
                return json.dumps({"event": "lost", "error": trainer.cause_of_death()})
            event = json.loads(line)
            if event["event"] in ("done", "failed", "interrupted"):
                finished = event["event"] != "interrupted"
                return json.dumps({k: event[k] for k in ("event", "error", "exit_code") if k in event})
    except KeyboardInterrupt:
        trainer.process.terminate()  # it finishes the step in hand, saves and leaves
        trainer.wait(_SAVE)
        return json.dumps({"event": "interrupted", "error": "asked to stop"})
    finally:
        if not finished:
            trainer.end()


def look(order: str) -> str:
    """Show that this node sees the folder of the runs, and what is installed on it.

    `order` is JSON: folder, probe (a file there), expected (its content), answer (a file to write). Returns JSON.
    """
    wanted = json.loads(order)
    folder = Path(wanted["folder"])
    fault = ""
    try:
        if _read_patiently(folder / wanted["probe"]) != wanted["expected"]:
            fault = f"{folder} on it is another folder than here"
        else:
            (folder / wanted["answer"]).write_text(wanted["expected"], encoding="utf-8")
    except OSError as error:
        fault = f"{folder} cannot be used there ({error.strerror or type(error).__name__})"
    return json.dumps({"host": socket.gethostname(), "fault": fault, "versions": versions()})


def versions() -> dict[str, str]:
    """What decides the bits of a run, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("mfmarl", "torch", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _read_patiently(path: Path, seconds: float = 5.0) -> str:
    """A file's text; a shared file system may show it a moment late."""
    until = time.monotonic() + seconds
    while True:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if time.monotonic() >= until or not path.parent.is_dir():
                raise
            time.sleep(0.1)


class _Trainer:
    """A process that trains one run after another, with its pipes."""

    def __init__(self, cwd: str, threads: str) -> None:
        self.kind = (cwd, threads, os.environ.get("CUDA_VISIBLE_DEVICES"))
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mfmarl.learning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=cwd if os.path.isdir(cwd) else None,
            env=environment,
        )
        self.lines: Queue[str | None] = Queue()
        self.told: deque[str] = deque(maxlen=40)
        assert self.process.stdout is not None and self.process.stderr is not None
        self.readers = [
            threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._collect, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.lines.put(line)
        self.lines.put(None)

    def _collect(self, pipe: IO[str]) -> None:
        for line in pipe:
            self.told.append(line.strip())

    def send(self, order: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # a process that is gone shows as the end of its output
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()

    def line(self, timeout: float) -> str | None:
        """The next line; "" where there is none yet, None at the end."""
        try:
            return self.lines.get(timeout=timeout)
        except Empty:
            return ""

    def cause_of_death(self) -> str:
        code = self.wait(5.0)
        self.readers[1].join(timeout=1)
        words = next((line[:200] for line in reversed(self.told) if line), "")
        reason = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"the process of this run died ({reason}{': ' + words if words and (code or 0) >= 0 else ''})"

    def wait(self, seconds: float) -> int | None:
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        global _kept
        if _kept is self:
            _kept = None
        if self.process.poll() is None:
            self.process.terminate()
            if self.wait(_SAVE) is None:
                self.process.kill()
                self.process.wait()
        for reader in self.readers:
            reader.join(timeout=1)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


_kept: _Trainer | None = None


def _trainer(cwd: str, threads: str) -> _Trainer:
    """The process this worker has, or a new one where it has none that lives, is idle, and sees the same devices."""
    global _kept
    kind: tuple[Any, ...] = (cwd, threads, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if _kept is not None and (_kept.kind != kind or _kept.process.poll() is not None):
        _kept.end()
    if _kept is None:
        _kept = _Trainer(cwd, threads)
    return _kept
