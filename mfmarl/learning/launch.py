"""One run on several processes of this machine: started, listened to, and ended together.

The ranks meet in a file beside the run's folder and speak over the loopback interface: nothing listens elsewhere. Each
is a worker (`mfmarl.learning.worker`) with the same order; the first tells how the run goes. On several machines
`torchrun` starts the ranks, and the run is the same.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from types import FrameType, MappingProxyType
from typing import Any

import psutil

from mfmarl.errors import MfmarlError, RankLost
from mfmarl.learning import run_folder, worker
from mfmarl.learning.durable import resource_fault
from mfmarl.learning.run_config import RunConfig

Event = dict[str, Any]
_GRACE = 15.0  # seconds for the others to notice that one is gone, and to say so
SILENCE = 60.0
"""Seconds without a sign of life after which a rank is taken for stopped."""


def run_on_ranks(
    config: RunConfig,
    path: Path,
    resume: bool,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    imports: Sequence[str] = (),
    trust: Mapping[str, bool] = MappingProxyType({}),
) -> run_folder.RunFolder:
    """Carry out the run on `config.run.ranks` processes here; returns its (closed) folder.

    `trust` holds the fields of `mfmarl.learning.run.Trust`. SIGINT and SIGTERM are handed on once each: the ranks finish their step and save. Raises what the ranks raised, or
    RankLost where one died.
    """
    wanted = {"path": str(path), "config": config.to_table(), "resume": resume, "imports": list(imports)}
    order = json.dumps({**wanted, "trust": dict(trust)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise resource_fault(error, path.parent) from error
    for left in path.parent.glob(f".{glob.escape(path.name)}.ranks-*"):
        with contextlib.suppress(OSError, ValueError):  # of a command that was killed
            if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
                left.unlink()
    meeting = path.parent / f".{path.name}.ranks-{os.getpid()}"
    ranks = [_start(rank, config.run.ranks, meeting) for rank in range(config.run.ranks)]
    events: Queue[tuple[int, Event | None]] = Queue()
    listeners = [
        threading.Thread(target=_listen, args=(rank, process, events), daemon=True)
        for rank, process in enumerate(ranks)
    ]
    try:
        for listener, process in zip(listeners, ranks, strict=True):
            listener.start()
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # one that died at once says so below
                process.stdin.write(order + "\n")
                process.stdin.close()
        with _handing_on(ranks):
            _follow(ranks, events, path, on_row)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
        for listener in listeners:
            listener.join()
        meeting.unlink(missing_ok=True)
    return run_folder.RunFolder(path, -1, -1, 0)


def _follow(
    ranks: list[subprocess.Popen[str]],
    events: Queue[tuple[int, Event | None]],
    path: Path,
    on_row: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Until all have left. Raises what was the first reason, not what followed from it."""
    ended: dict[int, Event] = {}
    left = set(range(len(ranks)))
    patience: float | None = None
    last = time.monotonic()
    heard = dict.fromkeys(left, last)
    while left:
        now = time.monotonic()
        if now - last > 5.0:  # it was this process that was stopped, not they
            heard = {rank: when + now - last for rank, when in heard.items()}
        last = now
        try:
            rank, event = events.get(timeout=0.2)
        except Empty:
            if patience is not None and time.monotonic() > patience:
                break
            for silent in [r for r in left if now - heard[r] > SILENCE and r not in ended]:
                # The others would wait for it half an hour.
                ended[silent] = {"event": "died", "code": -signal.SIGSTOP}
                ranks[silent].kill()
            continue
        heard[rank] = now
        if event is None:
            left.discard(rank)
            ended.setdefault(rank, {"event": "died", "code": ranks[rank].wait()})
        elif event["event"] == "row":
            if rank == 0 and on_row is not None:
                on_row(event["row"])
        elif event["event"] in ("done", "failed", "interrupted"):
            ended[rank] = event
        if patience is None and any(e["event"] in ("died", "failed") for e in ended.values()):
            patience = time.monotonic() + _GRACE
    if all(event["event"] == "done" for event in ended.values()) and len(ended) == len(ranks):
        return
    _raise(ended, len(ranks), path)


def _raise(ended: dict[int, Event], count: int, path: Path) -> None:
    kinds = {kind.exit_code: kind for kind in MfmarlError.__subclasses__()}
    reasons = [
        e for _, e in sorted(ended.items()) if e["event"] == "failed" and e.get("exit_code") != RankLost.exit_code
    ]
    if reasons:
        first = reasons[0]
        raise kinds.get(first.get("exit_code", 1), MfmarlError)(first["error"], first.get("code", ""))
    dead = {rank: event for rank, event in ended.items() if event["event"] == "died"}
    saved = run_folder.is_run(path) and any((path / "checkpoints").glob("*.safetensors"))
    way = f"go on with: mfmarl train --resume {path}" if saved else "nothing was saved yet: start it again"
    if dead:
        rank, event = next(iter(dead.items()))
        code = event["code"]
        how = f"died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
        if code == -signal.SIGSTOP:
            how = f"gave no sign of life for {SILENCE:g} s"
        raise RankLost(f"Rank {rank} of {count} {how}, and the others stopped; {way}.")
    stopped = [e for _, e in sorted(ended.items()) if e["event"] == "interrupted"]
    if stopped:
        from mfmarl.learning.run import Interrupted

        error = Interrupted(str(stopped[0]["error"]))
        error.exit_code = int(stopped[0].get("exit_code", Interrupted.exit_code))
        raise error
    lost = [e["error"] for e in ended.values() if e["event"] == "failed"]
    raise RankLost(f"{lost[0] if lost else 'The ranks fell silent.'} {way[:1].upper()}{way[1:]}.")


def _start(rank: int, count: int, meeting: Path) -> subprocess.Popen[str]:
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MFMARL_STORE": str(meeting.resolve()),
    }
    # Ctrl-C reaches this process alone, which hands it on: twice would mean: leave at once.
    return worker.start(place, start_new_session=True)


def _listen(rank: int, process: subprocess.Popen[str], events: Queue[tuple[int, Event | None]]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError), process.stdout:
        for line in process.stdout:
            events.put((rank, json.loads(line)))
    events.put((rank, None))


@contextlib.contextmanager
def _handing_on(ranks: list[subprocess.Popen[str]]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hand_on(number: int, _frame: FrameType | None) -> None:
        for process in ranks:
            with contextlib.suppress(OSError):
                process.send_signal(number)

    old = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
