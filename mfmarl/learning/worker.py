"""A process that trains one run after another: told by lines of JSON on standard input, telling by lines on
standard output. Nothing is pickled; a worker that dies takes down only the run in hand.

    in:  {"path": "runs/x/ising/mfq/seed-0", "config": {...}, "imports": ["my_env.py"]}
    out: {"path": ..., "event": "begin", "pid": ...} {"path": ..., "event": "row", "row": {...}} ...
         {"path": ..., "event": "done" | "interrupted" | "failed", "error": ..., "exit_code": ..., "code": ...}
         and {"event": "beat"} every BEAT seconds: it lives. One that was stopped (SIGSTOP) or is stuck in a lock does not.

A worker does not outlive its parent: it is asked to save and leave, and made to where it cannot.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

BEAT = 2.0
"""Seconds between two signs of life."""
LAST = 60.0
"""Seconds that a worker whose parent is gone has to finish its step and save."""
PARENT = "MFMARL_PARENT"
"""The variable that names the parent of a worker: it may be gone before the worker looks."""


class _Reports:
    """Lines of JSON to the parent, from the run and from the heartbeat: one at a time."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.lock = stream, threading.Lock()

    def tell(self, event: str, **more: Any) -> None:
        line = json.dumps({"event": event, **more}) + "\n"
        # A parent that is gone does not listen any more: the run in hand is saved all the same.
        with self.lock, contextlib.suppress(OSError, ValueError):
            self.stream.write(line)
            self.stream.flush()


def work(orders: IO[str], reports: _Reports) -> None:
    """Carry out every order until the input ends."""
    from mfmarl.errors import MfmarlError
    from mfmarl.learning.run import Interrupted, Trust, run_in_folder
    from mfmarl.learning.run_config import RunConfig
    from mfmarl.population.ranks import ALONE, join
    from mfmarl.registry import import_user_code

    ranks = ALONE

    for line in orders:
        order = json.loads(line)
        path = order["path"]
        tell = partial(reports.tell, path=path)

        def report(row: Mapping[str, Any], tell: Any = tell) -> None:
            tell("row", row=row)

        try:
            for name in order.get("imports", []):
                import_user_code(name)
            config = RunConfig.from_table(order["config"], path)
            tell("begin", pid=os.getpid())
            # One of several that play this run together (`mfmarl.learning.launch`): they meet once.
            ranks = join(config.run.device) if ranks is ALONE else ranks
            trust = Trust(**order.get("trust", {}))
            run_in_folder(config, Path(path), order.get("resume", True), report, ranks=ranks, trust=trust)
            tell("done")
        except Interrupted as error:
            tell("interrupted", error=str(error), exit_code=error.exit_code, code=error.code)
            break
        except MfmarlError as error:
            tell("failed", error=str(error), exit_code=error.exit_code, code=error.code)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the other runs go on
            tell("failed", error=f"{type(error).__name__}: {error}", exit_code=3, code="environment-fault")
    ranks.close()


def start(environment: Mapping[str, str] = MappingProxyType({}), **options: Any) -> subprocess.Popen[str]:
    """A worker, with pipes to and from it; `options` are `subprocess.Popen`'s.

    Linux ends it with the *thread* that starts it: start it from one that lives as long.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "mfmarl.learning.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "OMP_WAIT_POLICY": "PASSIVE",
            PARENT: str(os.getpid()),
            **environment,
        },
        **options,
    )


def main() -> None:
    """What `python -m mfmarl.learning.worker` does. Whatever prints, prints to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parent = int(os.environ.pop(PARENT, "0")) or os.getppid()
    leave_with(parent)
    reports = _Reports(stream)
    threading.Thread(target=_beat, args=(reports, parent), daemon=True).start()
    work(sys.stdin, reports)


def leave_with(parent: int) -> None:
    """Ask Linux for SIGTERM when the parent dies; one that is dead already is not waited for."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(143)


def _beat(reports: _Reports, parent: int) -> None:
    """Tell that we live, and see that the parent does: without one a step that never ends would never end."""
    while os.getppid() == parent:
        reports.tell("beat")
        time.sleep(BEAT)
    if sys.platform != "linux":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST)
    os._exit(143)


if __name__ == "__main__":
    main()
