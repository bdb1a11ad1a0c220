"""Commands carried out as a user would, with what they answered: exit code, output, files.

`fresh` starts a new interpreter. `forked` begins from this one, which has the package in memory, and so takes a tenth of
the time; what it is told to `prepare` (a disk that fails, a clock that jumps) holds in the child alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mfmarl.selftest.case import Missed

PATIENCE = 120.0
"""Seconds that a command may take."""
HUNG = -1000
"""The exit code of a command that was still running then."""


@dataclass(frozen=True)
class Answer:
    """How a command ended. `exit_code` is minus the signal that killed it."""

    command: str
    exit_code: int
    out: str
    err: str
    seconds: float

    @property
    def table(self) -> dict[str, Any]:
        """What `--json` printed. Raises Missed where it is not one JSON object."""
        try:
            found = json.loads(self.out)
        except ValueError as error:
            raise Missed(f"`{self.command}` printed no JSON: {self.out[:200]!r}") from error
        if not isinstance(found, dict):
            raise Missed(f"`{self.command}` printed JSON that is no object: {self.out[:200]!r}")
        return found

    def expect(self, exit_code: int, code: str = "", *words: str) -> Answer:
        """Raises Missed unless it left with that exit code, told that code, and used the words; never a traceback."""
        told = f"`{self.command}` left with {self.exit_code} and said: {(self.err or self.out).strip()[-600:]!r}"
        if self.exit_code != exit_code:
            raise Missed(f"expected exit code {exit_code}; {told}")
        if "Traceback (most recent call last)" in self.err:
            raise Missed(f"expected a sentence, not a traceback; {told}")
        if code and f"[{code}]" not in self.err:
            raise Missed(f"expected the code [{code}]; {told}")
        for word in words:
            if word not in self.err + self.out:
                raise Missed(f"expected to read {word!r}; {told}")
        return self


def environment_of(changes: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The environment variables of a child: one thread, no colours, this package first."""
    path = os.pathsep.join(p for p in sys.path if p)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "NO_COLOR": "1", **changes}


def start(
    arguments: Sequence[str], folder: Path, changes: Mapping[str, str] = MappingProxyType({}), **options: Any
) -> subprocess.Popen[str]:
    """`mfmarl ARGUMENTS` in a new interpreter, in that folder; `options` are subprocess.Popen's."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", "mfmarl", *arguments],
        cwd=folder,
        env=environment_of(changes),
        text=True,
        encoding="utf-8",
        errors="replace",
        **{**pipes, **options},
    )


def fresh(
    arguments: Sequence[str],
    folder: Path,
    changes: Mapping[str, str] = MappingProxyType({}),
    patience: float = PATIENCE,
    **options: Any,
) -> Answer:
    """Carry out `mfmarl ARGUMENTS` in a new interpreter, in that folder."""
    begun = time.monotonic()
    process = start(arguments, folder, changes, **options)
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return Answer(_line(arguments), HUNG, out or "", err or "", time.monotonic() - begun)
    return Answer(_line(arguments), process.returncode, out or "", err or "", time.monotonic() - begun)


def forked(
    arguments: Sequence[str],
    folder: Path,
    prepare: Callable[[], None] = lambda: None,
    changes: Mapping[str, str] = MappingProxyType({}),
    patience: float = PATIENCE,
    drawn: bool = False,
) -> Answer:
    """Carry out `mfmarl ARGUMENTS` in a copy of this process, in that folder, after `prepare` there.

    The figures of `train`'s page are blank unless they are to be `drawn`: drawing takes far longer than a short run.
    Only where processes fork (Linux, macOS). Raises Missed elsewhere.
    """
    if not hasattr(os, "fork"):
        raise Missed("this system cannot fork processes: the case cannot be tried here")
    warm()
    begun = time.monotonic()
    out, err = folder / f".out-{time.monotonic_ns()}", folder / f".err-{time.monotonic_ns()}"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        if not drawn and arguments[:1] == ["train"]:
            _leave_blank()
        _be_the_command(list(arguments), folder, prepare, changes, out, err)
    code = _wait(child, begun + patience)
    texts = []
    for path in (out, err):
        texts.append(path.read_text(encoding="utf-8", errors="replace") if path.exists() else "")
        path.unlink(missing_ok=True)
    return Answer(_line(arguments), code, texts[0], texts[1], time.monotonic() - begun)


def _line(arguments: Sequence[str]) -> str:
    return "mfmarl " + " ".join(arguments)


@functools.cache
def warm() -> None:
    """What every command that trains imports, once, before forking: a small run and its report bring it all."""
    importlib.import_module("mfmarl.cli.main")
    from mfmarl.evaluation.report import report_run
    from mfmarl.learning.run import run_in_folder
    from mfmarl.learning.run_config import Choice, RunConfig, RunOptions

    agent = Choice("mfq", {"warm_up": 2, "batch_size": 2})
    options = RunOptions(steps=4, copies=1, report_every=2, evaluation_copies=1)
    with tempfile.TemporaryDirectory(prefix="mfmarl-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_in_folder(RunConfig(Choice("congestion", {"num_agents": 4}), {"all": agent}, options), Path(folder) / "run")
        report_run(Path(folder) / "run")


def _leave_blank() -> None:
    from mfmarl.evaluation import drawing, figures

    def blank(*_: Any, **__: Any) -> Any:
        return drawing.empty_figure(1.0, 1.0)

    figures.single_run = blank


def _wait(child: int, until: float) -> int:
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG


def _be_the_command(
    arguments: list[str], folder: Path, prepare: Callable[[], None], changes: Mapping[str, str], out: Path, err: Path
) -> None:
    """What the child does: everything that `python -m mfmarl` would, then nothing of the parent's."""
    code = 1
    try:
        for number, path in ((1, out), (2, err)):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        # As a new interpreter has them, whatever the parent made of warnings.
        warnings.resetwarnings()
        for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", quiet)
        os.chdir(folder)
        os.environ.update({"NO_COLOR": "1", **changes})
        sys.argv = ["mfmarl", *arguments]
        prepare()
        runpy.run_module("mfmarl", run_name="__main__", alter_sys=False)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:  # noqa: BLE001 - the child must never become a second copy of its parent
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
