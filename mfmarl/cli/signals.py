"""Signals that end a command, told in a line as Ctrl-C is."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from mfmarl.errors import MfmarlError


class _Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP where nothing else answers it: within a run or a sweep, it is saved (see mfmarl.learning.run)."""


@contextlib.contextmanager
def ended_in_a_line(told: str = "Asked to stop.") -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does: what it has open is closed, the exit code is 128 + the signal.

    Raises MfmarlError (`interrupted`) that says so. One that is ignored, as nohup does, stays ignored.
    """

    def end(number: int, _frame: Any) -> None:
        raise _Ended(number)

    old = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                old[number] = signal.signal(number, end)
    try:
        yield
    except _Ended as ended:
        error = MfmarlError(told, "interrupted")
        error.exit_code = 128 + int(ended.args[0])
        raise error from None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
