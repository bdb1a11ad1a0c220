"""Runs carried out by processes of this machine: looked after, restarted where one is lost, asked to stop together.

What can go wrong with a worker is told apart:

    it raises        the run has failed, with what was said: the same again would raise the same again
    it leaves        with an exit code of its own: the same
    it is killed     by a signal (the system does so when memory is short): the run goes on in a new process from its last
                     checkpoint, at most `max_restarts` times. Which process carries a run out does not change its results.
    it is stopped    (SIGSTOP, a lock that is never freed): no sign of life for `silence` seconds; killed, and as above
    it gets nowhere  no row for `run_timeout` seconds; killed, and as above

A run whose folder another process has locked is left to that one, and looked at again until it is done.

Workers are sessions of their own: Ctrl-C reaches this process alone, which hands it on once, as it does SIGTERM. The
runs in hand finish their step and save. A second signal ends them at once: their last checkpoints stand.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.learning import run, run_folder, worker
from mfmarl.learning.run import Interrupted

if TYPE_CHECKING:
    from mfmarl.evaluation.comparison import Event, PlannedRun

LOG = "log.txt"
"""In a run's folder: the last words that its process wrote to standard error, kept where it failed or was lost."""
SAVE = 120.0
"""Seconds that runs have to finish their step and save when they are asked to stop."""
_AGAIN = 0.3  # seconds until a locked run is looked at again
_LEAVE = 10.0
_WORDS = 200  # lines of a worker's standard error that are kept
_LOST = ("environment-died", "environment-hangs", "rank-lost")
"""Codes of failures that are a process's, not the run's."""


@dataclass(frozen=True)
class LocalEngine:
    """Carries runs out in worker processes of this machine. Raises ConfigError for what cannot be."""

    max_restarts: int = 2
    """How often a run goes on after its process was lost; once more, and it is a failed run."""
    silence: float = 60.0
    """Seconds without a sign of life after which a worker is taken for stopped."""
    run_timeout: float = 0.0
    """Seconds without a row after which a run is taken for hanging; 0: however long it takes."""

    def __post_init__(self) -> None:
        for option, value, least, most in (
            ("--max-restarts", self.max_restarts, 0, 1000),
            ("--worker-timeout", self.silence, 2 * worker.BEAT, 1e6),
            ("--run-timeout", self.run_timeout, 0, 1e8),
        ):
            if not (math.isfinite(value) and least <= value <= most):
                raise ConfigError(f"{option} must lie between {least:g} and {most:g}, not {value:g}.", "bounds")

    def carry_out(
        self,
        runs: Sequence[PlannedRun],
        jobs: int,
        on_event: Callable[[PlannedRun, Event], None],
        imports: Sequence[str] = (),
    ) -> list[tuple[PlannedRun, str]]:
        """Carry out the runs, `jobs` at a time (0: one for each core); returns the failed ones with their reasons.

        Raises Interrupted on SIGINT and SIGTERM, when the runs in hand are saved.
        """
        return _Sweep(self, runs, on_event, imports).carry_out(max(1, jobs or os.cpu_count() or 1))


@dataclass(eq=False)
class _Run:
    planned: PlannedRun
    restarts: int = 0
    not_before: float = 0.0
    waited: bool = False


@dataclass(eq=False)
class _Worker:
    """A process, and the run that it has in hand."""

    process: subprocess.Popen[str]
    run: _Run | None = None
    heard: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    words: deque[str] = field(default_factory=lambda: deque(maxlen=_WORDS))
    readers: list[threading.Thread] = field(default_factory=list)
    why: str = ""
    """Why it was ended, where we did."""

    def listen(self, events: Queue[tuple[_Worker, Event | None]]) -> None:
        def hear() -> None:
            assert self.process.stdout is not None
            with contextlib.suppress(OSError, ValueError):
                for line in self.process.stdout:
                    events.put((self, json.loads(line)))
            events.put((self, None))

        def overhear() -> None:
            if self.process.stderr is not None:
                with contextlib.suppress(OSError, ValueError):
                    for line in self.process.stderr:
                        self.words.append(line.rstrip())

        self.readers = [threading.Thread(target=target, daemon=True) for target in (hear, overhear)]
        for reader in self.readers:
            reader.start()

    def order(self, run: _Run, imports: Sequence[str]) -> None:
        self.run, self.heard, self.moved = run, time.monotonic(), time.monotonic()
        self.words.clear()
        order = {"path": str(run.planned.path), "config": run.planned.config.to_table(), "imports": list(imports)}
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # one that is gone shows as the end of its output
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """No more orders: it leaves by itself."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()

    def end(self, seconds: float) -> int:
        """Wait for it, at most so long; returns its exit code."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        for reader in self.readers:
            reader.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return code

    def death(self, code: int) -> str:
        """How it ended, as a reason."""
        if self.why:
            return self.why
        if code == -signal.SIGKILL:
            return "the process of this run was killed (signal 9, SIGKILL), as a system does whose memory runs out"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"the process of this run died (signal {-code}, {signal.Signals(-code).name})"
        last = next((line.strip()[:300] for line in reversed(self.words) if line.strip()), "")
        return f"the process of this run died (exit code {code}{f': {last}' if last else ''})"


class _Sweep:
    """All runs of one command, handed out and looked after, in one thread."""

    def __init__(
        self,
        engine: LocalEngine,
        runs: Sequence[PlannedRun],
        on_event: Callable[[PlannedRun, Event], None],
        imports: Sequence[str],
    ) -> None:
        self.engine, self.on_event, self.imports = engine, on_event, imports
        self.waiting = deque(_Run(planned) for planned in runs)
        self.workers: list[_Worker] = []
        self.events: Queue[tuple[_Worker, Event | None]] = Queue()
        self.failed: list[tuple[PlannedRun, str]] = []
        self.asked = 0
        self.at_once = False

    def carry_out(self, jobs: int) -> list[tuple[PlannedRun, str]]:
        last = time.monotonic()
        try:
            with self._asked_to_stop():
                while not self.asked and (self.waiting or any(w.run for w in self.workers)):
                    self._hand_out(jobs)
                    self._hear(0.2)
                    now = time.monotonic()
                    if now - last > 5.0:  # it was this process that was stopped, not they
                        for one in self.workers:
                            one.heard, one.moved = one.heard + now - last, one.moved + now - last
                    last = now
                    self._end_the_silent(now)
                if self.asked:
                    self._stop()
        finally:
            for one in self.workers:
                one.dismiss()
                if self.at_once:
                    one.process.kill()
            for one in self.workers:
                one.end(_LEAVE)
        return self.failed

    # ------------------------------------------------------------------------------------------- handing out

    def _hand_out(self, jobs: int) -> None:
        now = time.monotonic()
        for _ in range(len(self.waiting)):
            if sum(w.run is not None for w in self.workers) >= jobs:
                return
            one = self.waiting.popleft()
            if one.not_before > now:
                self.waiting.append(one)
            elif run_folder.is_running(one.planned.path):
                self._wait(one, "another process is carrying it out")
            elif self._is_done(one.planned):
                self.on_event(one.planned, {"event": "done"})
            else:
                self._idle().order(one, self.imports)

    def _is_done(self, planned: PlannedRun) -> bool:
        try:
            return run.is_done(planned.config, planned.path)
        except MfmarlError:
            return False  # the worker says what is wrong with it

    def _idle(self) -> _Worker:
        free = next((w for w in self.workers if w.run is None and w.process.poll() is None), None)
        if free is None:
            free = _Worker(worker.start(start_new_session=True, stderr=subprocess.PIPE))
            self.workers.append(free)
            free.listen(self.events)
        return free

    def _wait(self, one: _Run, why: str) -> None:
        one.not_before = time.monotonic() + _AGAIN
        if not one.waited:
            one.waited = True
            self.on_event(one.planned, {"event": "waiting", "error": why})
        self.waiting.append(one)

    # --------------------------------------------------------------------------------------------- listening

    def _hear(self, seconds: float) -> None:
        """What workers say, until there is nothing more; waits so long for the first word."""
        with contextlib.suppress(Empty):
            speaker, event = self.events.get(timeout=seconds)
            while True:
                self._take(speaker, event)
                speaker, event = self.events.get_nowait()

    def _take(self, speaker: _Worker, event: Event | None) -> None:
        if event is None:
            self.workers.remove(speaker)
            speaker.dismiss()
            code = speaker.end(_LEAVE)
            if speaker.run is not None:
                self._lost(speaker.run, speaker.death(code), speaker, deliberate=code >= 0 and not speaker.why)
            return
        speaker.heard = time.monotonic()
        one, kind = speaker.run, event["event"]
        if kind == "beat" or one is None:
            return
        speaker.moved = speaker.heard
        if kind == "done":
            speaker.run = None
            self.on_event(one.planned, event)
        elif kind == "failed":
            speaker.run = None
            if event.get("code") == "locked":
                self._wait(one, str(event["error"]))
            elif event.get("code") in _LOST:
                self._lost(one, str(event["error"]), speaker, deliberate=False)
            else:
                self._keep_words(one, speaker)
                self._fail(one, str(event.get("error", "")), event)
        elif kind == "interrupted":
            speaker.run = None
            if self.asked:
                self.on_event(one.planned, event)
            else:  # somebody asked this worker alone
                self._lost(one, "the process of this run was asked to stop (SIGTERM)", speaker, deliberate=False)
        else:
            self.on_event(one.planned, event)

    def _lost(self, one: _Run, reason: str, speaker: _Worker, deliberate: bool) -> None:
        self._keep_words(one, speaker)
        most = self.engine.max_restarts
        if self.asked:
            self.on_event(one.planned, {"event": "interrupted", "error": reason})
        elif deliberate or one.restarts >= most:
            times = f", {one.restarts + 1} times" if one.restarts else ""
            self._fail(one, f"{reason}{times}", {"exit_code": 1, "code": "worker-lost"})
        else:
            one.restarts += 1
            told = f"{reason}; restart {one.restarts} of {most}, from its last checkpoint"
            self.on_event(one.planned, {"event": "restarted", "error": told})
            self.waiting.appendleft(one)

    def _fail(self, one: _Run, error: str, event: Event) -> None:
        self.failed.append((one.planned, error))
        told: dict[str, Any] = {"event": "failed", "error": error}
        self.on_event(one.planned, told | {key: event[key] for key in ("exit_code", "code") if key in event})

    def _keep_words(self, one: _Run, speaker: _Worker) -> None:
        if speaker.words and run_folder.is_run(one.planned.path):
            with contextlib.suppress(OSError), open(one.planned.path / LOG, "a", encoding="utf-8") as log:
                log.write("\n".join([*speaker.words, ""]))

    def _end_the_silent(self, now: float) -> None:
        for one in self.workers:
            if one.run is None or one.why:
                continue
            if now - one.heard > self.engine.silence:
                one.why = f"the process of this run gave no sign of life for {self.engine.silence:g} s and was ended"
            elif self.engine.run_timeout and now - one.moved > self.engine.run_timeout:
                one.why = f"this run reported nothing for {self.engine.run_timeout:g} s (--run-timeout) and was ended"
            if one.why:
                one.process.kill()

    # ---------------------------------------------------------------------------------------------- stopping

    @contextlib.contextmanager
    def _asked_to_stop(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # (A SIGHUP that is ignored, as nohup does, stays ignored.)
        hangup = getattr(signal, "SIGHUP", None)
        numbers = [signal.SIGINT, signal.SIGTERM]
        numbers += [hangup] if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN else []
        old = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _frame: Any) -> None:
        if self.asked:
            self.at_once = True
            for one in self.workers:
                with contextlib.suppress(OSError):
                    one.process.kill()
        self.asked = self.asked or number
        # (The loop hands it on: a worker that is being started now is not in the list yet.)

    def _stop(self) -> None:
        """Have the runs in hand save, and wait for it. Raises Interrupted."""
        for one in self.workers:
            with contextlib.suppress(OSError):
                one.process.send_signal(self.asked)
        until = time.monotonic() + SAVE
        while not self.at_once and any(w.run for w in self.workers) and time.monotonic() < until:
            self._hear(0.2)
        stopped = Interrupted(
            "Stopped; every run in hand is saved and goes on when the same command is given again."
            if not self.at_once and not any(w.run for w in self.workers)
            else "Stopped at once; runs in hand go on from their last checkpoints when the same command is given again."
        )
        self.at_once = True  # whoever is left has had its time
        stopped.exit_code = 128 + self.asked
        raise stopped
