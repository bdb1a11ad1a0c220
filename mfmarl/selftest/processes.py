"""Workers that begin as forks of this process, environments that fail on purpose, and what a command leaves behind.

A worker that is started anew imports torch, which takes two seconds; hundreds of trials cannot afford that. A fork has
it in memory, and is a worker in everything else: a process of its own, told and telling through pipes, killed by signals.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import psutil

from mfmarl.learning import worker
from mfmarl.selftest.command import warm


class ForkedWorker:
    """As much of `subprocess.Popen` as is asked of a worker; the process is a fork that serves as one."""

    def __init__(self, environment: Mapping[str, str], new_session: bool, hears: bool) -> None:
        orders, self._orders = os.pipe()
        self._reports, reports = os.pipe()
        self._words, words = os.pipe() if hears else (-1, -1)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(orders, reports, words, parent, environment, new_session)
        for mine in (orders, reports, words):
            if mine >= 0:
                os.close(mine)
        self.returncode: int | None = None
        self.stdin: IO[str] | None = os.fdopen(self._orders, "w", encoding="utf-8")
        self.stdout: IO[str] | None = os.fdopen(self._reports, encoding="utf-8", errors="replace")
        self.stderr: IO[str] | None = os.fdopen(self._words, encoding="utf-8", errors="replace") if hears else None

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                done, status = os.waitpid(self.pid, os.WNOHANG)
                if done:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("a forked worker", timeout or 0.0)
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(
    orders: int, reports: int, words: int, parent: int, environment: Mapping[str, str], new_session: bool
) -> None:
    """What the fork does; it never returns."""
    code = 1
    try:
        if new_session:
            os.setsid()
        os.dup2(orders, 0)
        os.dup2(reports, 1)
        if words >= 0:
            os.dup2(words, 2)
        os.closerange(3, 4096)  # what a new process would not have inherited
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.environ.update({worker.PARENT: str(parent), **environment})
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        worker.main()
        code = 0
    except BaseException:  # noqa: BLE001 - the fork must never become a second copy of its parent
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def start_forked(environment: Mapping[str, str] = MappingProxyType({}), **options: Any) -> ForkedWorker:
    """In the place of `mfmarl.learning.worker.start`."""
    return ForkedWorker(environment, bool(options.get("start_new_session")), options.get("stderr") == subprocess.PIPE)


def prepare_forks() -> None:
    """For `command.forked`: workers are forks, and a comparison's page is not drawn, which takes seconds."""
    worker.start = start_forked  # type: ignore[assignment]
    from mfmarl.evaluation import report

    report.write_report = _no_page


def _no_page(path: Path, **_choices: Any) -> Path:
    return path / "report.html"


# ------------------------------------------------------------------------------------------- failing on purpose

MOODY = '''"""An environment that fails as it is told to, so many times in all: every time is counted in a file."""

import fcntl
import os
import signal
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

import mfmarl
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.spec import Spec


class State(NamedTuple):
    step: torch.Tensor


@mfmarl.register("moody")
@dataclass(frozen=True)
class Moody(PopulationEnv):
    """Three agents who are paid for their second action."""

    fault: str = ""
    """raise, exit, kill, stop, hang, memory; or none."""
    times: int = 0
    """How often, over all runs and processes."""
    at: int = 25
    """At which step of a run."""
    tally: str = ""
    """The file that counts."""
    pace: float = 0.0
    """Seconds that a step takes at most; how many is left to chance, and nobody's seed."""
    log: str = ""
    """A file that every step is written to."""

    def spec(self):
        return Spec(3, Box(-1, 1, (2,), np.float32), Discrete(3))

    def reset(self, ids, key):
        return State(torch.zeros_like(ids))

    def observe(self, state):
        return torch.zeros(*state.step.shape, 2)

    def step(self, state, action, ids, key):
        # Also from outside: an option would make it another run.
        pace = max(self.pace, float(os.environ.get("MFMARL_SELFTEST_PACE", "0")))
        if pace:
            time.sleep(pace * os.urandom(1)[0] / 255)
        if self.log:
            file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(file, f"{key.value}\\n".encode())
            os.close(file)
        if self.fault and int(state.step[0, 0]) == self.at and self.now():
            self.fail()
        noise = mfmarl.random.uniform(key, ids)
        return State(state.step + 1), (action == 1).float() + 0.1 * noise

    def now(self):
        file = os.open(self.tally, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size
            if size >= self.times:
                return False
            os.lseek(file, size, os.SEEK_SET)
            os.write(file, b"x")
            return True
        finally:
            os.close(file)

    def fail(self):
        if self.fault == "raise":
            raise ZeroDivisionError("the market crashed")
        if self.fault == "exit":
            os._exit(7)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.fault == "hang":
            time.sleep(10_000)
        if self.fault == "memory":
            torch.zeros(1 << 42)
'''


def write_moody(folder: Path) -> str:
    """Write the failing environment into a folder; returns what names it on a command line there."""
    (folder / "moody.py").write_text(MOODY, encoding="utf-8")
    return "moody.py:Moody"


# ---------------------------------------------------------------------------------------------- what is left


def processes_below(pid: int) -> dict[int, float]:
    """Every living descendant of a process, with when it began."""
    found = {}
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found[process.pid] = process.create_time()
    return found


def still_alive(pids: Mapping[int, float]) -> list[int]:
    """Of processes that were seen, those that live: zombies do not, and another with the number is not they."""
    alive = []
    for pid, began in pids.items():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == began and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
    return alive


def wait_until(condition: Callable[[], bool], seconds: float = 60.0, pause: float = 0.01) -> bool:
    """Whether it came true in time."""
    until = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < until:
        time.sleep(pause)
    return met


@contextlib.contextmanager
def forks_in_place() -> Iterator[None]:
    """While it lasts, workers of this process are forks, which have imported what they need before they begin."""
    warm()
    old = worker.start
    worker.start = start_forked  # type: ignore[assignment]
    try:
        yield
    finally:
        worker.start = old


def shared_memory() -> set[str]:
    """What lies in shared memory now, by name; nothing where there is no such folder."""
    with contextlib.suppress(OSError):
        return set(os.listdir("/dev/shm"))  # noqa: S108  # nosec B108 - looked at alone
    return set()
