"""A check in a child process: an environment that crashes, leaves, or is lost in compiled code takes nothing with it.

The child tells where it is through memory that both share; the findings come back through a pipe, as JSON. Where processes
cannot fork (Windows) the check runs here.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from mfmarl import errors
from mfmarl.errors import MfmarlError
from mfmarl.testing.finding import Finding, Findings

_GRACE = 5.0  # seconds beyond the patience, in which the child may end a call by itself
_ROOM = 4096
_IDLE = 0.02  # of a core: what uses less waits for something
_BUSY = 10  # so many times its patience is waited for at most

Told = Callable[[str], None]
"""Told what is about to be called."""


def apart(
    check: Callable[[Told], Findings], name: str, died: Callable[[str, str], Finding], patience: float
) -> Findings:
    """The findings of a check that is carried out in a child. `died` makes the finding of one that did not come back.

    Raises the MfmarlError that the check raised.
    """
    if not hasattr(os, "fork"):
        return check(lambda where: None)
    shared = mmap.mmap(-1, _ROOM)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process, which is not measured
        os.close(reading)
        _carry_out(check, shared, writing)
    os.close(writing)
    try:
        answer, late = _listen(reading, shared, patience + _GRACE, partial(_spent, child))
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(reading)
        if not _gone(child):
            os.kill(child, signal.SIGKILL)
            _, _status[0] = os.waitpid(child, 0)
    where = _heard(shared)[1]
    if answer:
        return _read(answer, name)
    if late:
        said = f"{where or 'making it'} did not come back within {patience:g} s, and could not be interrupted"
        return Findings(name, (died("hangs", said),), 0, 0, 0)
    status = _status[0]
    if os.WIFSIGNALED(status):
        how = f"was ended by the signal {signal.Signals(os.WTERMSIG(status)).name}"
    else:
        how = f"left with exit code {os.waitstatus_to_exitcode(status)}"
    return Findings(name, (died("died", f"the process {how} in {where or 'making it'}"),), 0, 0, 0)


_status = [0]


def _gone(child: int) -> bool:
    """Whether the child has ended, given a moment; its status is kept."""
    for _ in range(100):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _status[0] = status
            return True
        time.sleep(0.01)
    return False


def _carry_out(check: Callable[[Told], Findings], shared: mmap.mmap, writing: int) -> None:  # pragma: no cover
    code = 1
    try:
        # What compiled code prints goes where it does no harm to what is promised of standard output.
        os.dup2(2, 1)
        count = [0]

        def told(where: str) -> None:
            count[0] += 1
            text = where.encode(errors="replace")[: _ROOM - 16]
            shared[:16] = count[0].to_bytes(8, "little") + len(text).to_bytes(8, "little")
            shared[16 : 16 + len(text)] = text

        try:
            table = check(told).to_table()
        except MfmarlError as error:
            table = {"error": str(error), "class": type(error).__name__, "code": error.code}
        data = json.dumps(table).encode()
        while data:
            data = data[os.write(writing, data) :]
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:  # noqa: BLE001 - told to the parent, which raises it
        with contextlib.suppress(BaseException):
            table = {"error": f"The check itself failed: {type(error).__name__}: {error}", "class": "", "code": ""}
            os.write(writing, json.dumps(table).encode())
    finally:
        os._exit(code)


def _heard(shared: mmap.mmap) -> tuple[int, str]:
    head = shared[:16]
    length = min(int.from_bytes(head[8:], "little"), _ROOM - 16)
    return int.from_bytes(head[:8], "little"), shared[16 : 16 + length].decode(errors="replace")


def _spent(child: int) -> float:
    """CPU seconds of the child so far."""
    import psutil

    try:
        used = psutil.Process(child).cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system)


def _listen(reading: int, shared: mmap.mmap, patience: float, spent: Callable[[], float]) -> tuple[bytes, bool]:
    """What came through the pipe, and whether the child fell silent instead.

    A child that computes on a busy machine, which gives it less than a core, is not silent: it has `patience` CPU seconds.
    """
    data, last, since, before = b"", -1, time.monotonic(), 0.0
    while True:
        if select.select([reading], [], [], 0.2)[0]:
            more = os.read(reading, 1 << 16)
            if not more:
                return data, False
            data, since = data + more, time.monotonic()
        count = _heard(shared)[0]
        waited = time.monotonic() - since
        if count != last:
            last, since, before = count, time.monotonic(), spent()
        elif waited > patience:
            used = spent() - before
            if waited > _BUSY * patience or not _IDLE * waited < used < patience:
                return b"", True


def _read(answer: bytes, name: str) -> Findings:
    table: dict[str, Any] = json.loads(answer)
    if "error" in table:
        raise getattr(errors, table["class"], MfmarlError)(table["error"], table["code"])
    found = tuple(Finding(**finding) for finding in table["found"])
    return Findings(table["name"], found, table["episodes"], table["steps"], table["agents"])
