"""A process that trains one run after another: told by lines of JSON on standard input, telling by lines on
standard output. Nothing is pickled; a worker that dies takes down only the run in hand.

    in:  {"path": "runs/x/ising/mfq/seed-0", "config": {...}, "imports": ["my_env.py"]}
    out: {"path": ..., "event": "row", "row": {...}} ... {"path": ..., "event": "done" | "failed", "error": ...}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any


def work(orders: IO[str], reports: IO[str]) -> None:
    """Carry out every order until the input ends."""

    def tell(path: str, event: str, **more: Any) -> None:
        reports.write(json.dumps({"path": path, "event": event, **more}) + "\n")
        reports.flush()

    def report(path: str, row: Mapping[str, Any]) -> None:
        tell(path, "row", row=row)

    from mfmarl.errors import MfmarlError
    from mfmarl.learning.run import Interrupted, run_in_folder
    from mfmarl.learning.run_config import RunConfig
    from mfmarl.population.ranks import ALONE, join
    from mfmarl.registry import import_user_code

    ranks = ALONE

    for line in orders:
        order = json.loads(line)
        path = order["path"]
        try:
            for name in order.get("imports", []):
                import_user_code(name)
            config = RunConfig.from_table(order["config"], path)
            tell(path, "begin")
            # One of several that play this run together (`mfmarl.learning.launch`): they meet once.
            ranks = join(config.run.device) if ranks is ALONE else ranks
            run_in_folder(config, Path(path), order.get("resume", True), partial(report, path), ranks=ranks)
            tell(path, "done")
        except Interrupted as error:
            tell(path, "interrupted", error=str(error), exit_code=error.exit_code)
            break
        except MfmarlError as error:
            tell(path, "failed", error=str(error), exit_code=error.exit_code)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the other runs go on
            tell(path, "failed", error=f"{type(error).__name__}: {error}", exit_code=3)
    ranks.close()


def start(environment: Mapping[str, str] = MappingProxyType({}), **options: Any) -> subprocess.Popen[str]:
    """A worker, with pipes to and from it; `options` are `subprocess.Popen`'s."""
    return subprocess.Popen(
        [sys.executable, "-m", "mfmarl.learning.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "OMP_WAIT_POLICY": "PASSIVE",
            **environment,
        },
        **options,
    )


def main() -> None:
    """What `python -m mfmarl.learning.worker` does. Whatever prints, prints to standard error."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _die_with_parent()
    work(sys.stdin, reports)


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, so that no worker is orphaned."""
    if sys.platform == "linux":
        import contextlib
        import ctypes
        import signal

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    main()
