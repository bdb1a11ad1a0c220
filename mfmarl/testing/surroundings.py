"""A foreign environment under watch: how long a call may take, and what it must leave as it is.

Time is limited by SIGALRM, so only in the main thread of a POSIX system, and only where the environment comes back to
Python now and then; `mfmarl.testing.apart` can also end one that is lost in compiled code.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mfmarl.errors import MfmarlError
from mfmarl.testing.contract import Ledger

_PLAYED = ("making", "reset", "step", "observe", "last", "state", "render")


def files_open() -> set[str]:
    """The files that this process has open, where the system tells (Linux), one entry for each time."""
    found = set()
    for one in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            path = os.readlink(one)
            device = path.startswith("/dev/") and path != os.devnull
            # Libraries keep fonts and the like open.
            others = ("/proc/", "/sys/", "/memfd:", sys.prefix + os.sep, sys.base_prefix + os.sep, "/usr/")
            if path.startswith("/") and not device and not path.startswith(others):
                found.add(f"{one.name} {path}")
    return found


class Broken(Exception):
    """A call that did not come back with an answer: the code of the finding, and what is said of it."""

    def __init__(self, code: str, said: str) -> None:
        super().__init__(said)
        self.code, self.said = code, said


class _TooLate(BaseException):
    """Not an Exception: an environment that swallows those is still found out."""


def last_line(error: BaseException) -> str:
    """The line of code that raised: `my_env.py, line 12, in step`."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "compiled code"
    frame = frames[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"


def _numpy_state() -> bytes:
    """The words and the place of numpy's global Mersenne twister; read where they lie, which takes a hundredth of asking."""
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if not isinstance(generator, np.random.MT19937):
        return repr(generator.state).encode()
    return ctypes.string_at(generator.ctypes.state_address, 4 * 625)


def generators() -> dict[str, Any]:
    """Where the global generators stand."""
    found: dict[str, Any] = {"random": random.getstate(), "numpy.random": _numpy_state()}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = torch.default_generator.get_state().numpy().tobytes()
    return found


def children() -> set[str]:
    """The ids of this process's children, where the system tells (Linux)."""
    found: set[str] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(task.read_text().split())
    return found


class Watch:
    """Calls an environment; within `with watch:` everything it may have changed is set back at the end.

    `patience` is how many seconds a call may take. `now` says what is being done, for sentences.
    """

    def __init__(self, ledger: Ledger, patience: float, told: Callable[[str], None] = lambda where: None) -> None:
        self.ledger, self.patience, self._told = ledger, patience, told
        self.where = ""
        self.skew = 0.0
        self.check_generators = True
        self._timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
        self._interrupted = False
        self._output = io.StringIO()
        self._moved: dict[tuple[str, str, str], Any] = {}
        self._stand: dict[str, Any] | None = None

    def __enter__(self) -> Watch:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(_generators_kept())
        self._stack.enter_context(_folder_kept())
        self._stack.enter_context(warnings.catch_warnings())
        self._stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.ERROR)  # what it logs about misuse is the check's doing
        # By a pattern: an environment that silences all warnings by itself is then seen to.
        warnings.filterwarnings("ignore", message="(?s:.*)")
        if self._timed:
            begun, (left, _) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
            alarm = signal.signal(signal.SIGALRM, self._late)
            interrupt = signal.signal(signal.SIGINT, self._interrupt)

            def restore() -> None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, alarm)
                signal.signal(signal.SIGINT, interrupt)
                if left:  # somebody else's time limit goes on
                    signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 1e-3))

            self._stack.callback(restore)
        self.before = self.surroundings()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def seed(self, seed: int) -> None:
        """Seed the global generators: python's, numpy's, and torch's where torch is loaded."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the environment's possible source, not ours
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.default_generator.manual_seed(seed)
        self._stand = None

    def _late(self, number: int, frame: Any) -> None:
        raise _TooLate

    def _interrupt(self, number: int, frame: Any) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def call(self, what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the call answers. Raises Broken: it raised, exited, or did not come back."""
        self._told(f"{what}, {self.where}" if self.where else what)
        heeded = self.check_generators and what in _PLAYED
        before = None
        if heeded:
            before, self._stand = self._stand or generators(), None
        output, clocks = sys.stdout, _clocks(self.skew) if self.skew else None
        sys.stdout = self._output
        try:
            if self._timed:
                signal.setitimer(signal.ITIMER_REAL, self.patience)
            try:
                answer = function(*arguments, **options)
            finally:
                if self._timed:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                if clocks is not None:
                    clocks()
                sys.stdout = output
        except _TooLate:
            raise Broken("hangs", f"{what} did not come back within {self.patience:g} s") from None
        except KeyboardInterrupt as error:
            if self._interrupted or not self._timed:
                raise
            raise Broken("interrupts", f"{what} raised KeyboardInterrupt ({last_line(error)})") from error
        except SystemExit as error:
            raise Broken("exits", f"{what} raised SystemExit({error.code!r}) ({last_line(error)})") from error
        except BaseException as error:
            said = str(error).strip().split("\n")[0]
            place = "" if isinstance(error, MfmarlError) else f" ({last_line(error)})"
            raise Broken(
                f"raises-at-{what}" if what in ("reset", "step") else "raises-elsewhere",
                f"{what} raised {type(error).__name__}: {said[:200]}{place}",
            ) from error
        if before is not None:
            self._compare_generators(what, before)
        if self._output.tell():
            said = self._output.getvalue().strip().split("\n")[0]
            self._output.seek(0)
            self._output.truncate()
            self.ledger.note("prints", f"{what} prints {said[:60]!r}", self.where)
        if hasattr(answer, "__await__"):
            answer.close()
            raise Broken("coroutine", f"{what} returned a coroutine")
        return answer

    def _compare_generators(self, what: str, before: dict[str, Any]) -> None:
        """Who is seeded ends at the same place wherever it began: that is seen when a call is repeated elsewhere."""
        after = self._stand = generators()
        for name, state in before.items():
            if after[name] == state:
                continue
            key = (what, self.where, name)
            if key in self._moved:
                self._tell(key, seeded=self._moved.pop(key) == after[name])
            elif sum(other == name for _, _, other in self._moved) < 3:
                self._moved[key] = after[name]

    def _tell(self, key: tuple[str, str, str], seeded: bool) -> None:
        what, where, name = key
        code, done = ("global-random-seeded", "seeds") if seeded else ("global-random-drawn", "draws from")
        self.ledger.note(code, f"{what} {done} the global generator of {name}", where)

    def settle(self) -> None:
        """Note what was seen to move the global generators and never repeated."""
        told = {"global-random-seeded", "global-random-drawn"} & set(self.ledger.first)
        for key in list(self._moved) if not told else []:
            self._tell(key, seeded=False)
        self._moved.clear()

    def surroundings(self) -> dict[str, Any]:
        """What an environment leaves alone."""
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, *_more_signals())}
        torch = sys.modules.get("torch")
        numeric = [np.geterr(), np.get_printoptions(), sys.getrecursionlimit()]
        if torch is not None:
            numeric += [torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()]
        return {
            "folder": os.getcwd(),
            "environment-variables": dict(os.environ),
            "signals": handlers,
            "warnings": list(warnings.filters),
            "import-path": list(sys.path),
            "numeric-settings": numeric,
        }

    def compare_surroundings(self, when: str) -> None:
        """Note what is no longer as it was, and set back what can be."""
        now = self.surroundings()
        for name, was in self.before.items():
            if now[name] != was:
                self.ledger.note(f"changes-{name}", f"{_change(name, was, now[name])} during {when}", self.where)
        if now["folder"] != self.before["folder"]:
            os.chdir(self.before["folder"])
        if now["environment-variables"] != self.before["environment-variables"]:
            os.environ.clear()
            os.environ.update(self.before["environment-variables"])
        for number, handler in self.before["signals"].items():
            if now["signals"][number] is not handler and handler is not None:
                signal.signal(number, handler)
        if now["warnings"] != self.before["warnings"]:
            warnings.resetwarnings()
            warnings.filters[:] = self.before["warnings"]  # type: ignore[index]
        if now["import-path"] != self.before["import-path"]:
            sys.path[:] = self.before["import-path"]
        if now["numeric-settings"] != self.before["numeric-settings"]:
            _set_numeric(self.before["numeric-settings"])


def _more_signals() -> tuple[int, ...]:
    return tuple(getattr(signal, n) for n in ("SIGALRM", "SIGHUP", "SIGCHLD", "SIGUSR1") if hasattr(signal, n))


def _set_numeric(was: list[Any]) -> None:
    np.seterr(**was[0])
    np.set_printoptions(**{k: v for k, v in was[1].items() if k != "override_repr"})
    sys.setrecursionlimit(was[2])
    torch = sys.modules.get("torch")
    if torch is not None and len(was) > 3:
        torch.set_default_dtype(was[3])
        torch.set_num_threads(was[4])
        torch.set_grad_enabled(was[5])


def _change(name: str, was: Any, now: Any) -> str:
    if name == "folder":
        return f"the working folder became {now}"
    if name == "environment-variables":
        odd = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
        return f"the environment variable {odd[0]} changed"
    if name == "signals":
        odd = [signal.Signals(n).name for n in was if was[n] is not now[n]]
        return f"the handler of {odd[0] if odd else 'a signal'} was replaced"
    if name == "import-path":
        return "sys.path changed"
    return "the filters of warnings changed" if name == "warnings" else "a setting of numpy, torch or Python changed"


def _clocks(skew: float) -> Callable[[], None]:
    """Set the clocks of `time` on by `skew` seconds; call the answer to set them back."""
    own = {name: getattr(time, name) for name in ("time", "monotonic", "perf_counter", "time_ns")}
    for name, clock in own.items():
        scale = 1e9 if name.endswith("_ns") else 1

        def later(clock: Callable[[], float] = clock, by: float = skew * scale) -> float:
            told = clock()
            return told + int(by) if isinstance(told, int) else told + by

        setattr(time, name, later)

    def restore() -> None:
        for name, clock in own.items():
            setattr(time, name, clock)

    return restore


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch = sys.modules.get("torch")
    tensor = torch.default_generator.get_state() if torch is not None else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch is not None and tensor is not None:
            torch.default_generator.set_state(tensor)


@contextlib.contextmanager
def _folder_kept() -> Iterator[None]:
    folder, variables = os.getcwd(), dict(os.environ)
    try:
        yield
    finally:
        os.chdir(folder)
        if dict(os.environ) != variables:
            os.environ.clear()
            os.environ.update(variables)
