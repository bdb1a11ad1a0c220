"""The process that talks to Ray for mfmarl.evaluation.ray_engine: orders come as one line of JSON on standard input,
events go as lines of JSON to standard output; the end of the input is the order to stop, with the runs in hand saved.

    in:  {"address": "", "jobs": 2, "cpus": 1, ..., "folder": ..., "runs": [{"path": ..., "config": ...}, ...]}
    out: {"event": "awake"} {"event": "connected"} {"event": "ready"}, or {"event": "refused", "error": ...}; then for each run
         {"path": ..., "event": "begin" | "row" | "restarted" | "waiting" | "done" | "failed" | "interrupted", ...}
         and {"event": "end"}, or {"event": "lost", "error": ...} where the cluster went away
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mfmarl.errors import ConfigError, RunLocked
from mfmarl.evaluation import ray_task
from mfmarl.evaluation.ray_engine import end_session, hold, open_doors
from mfmarl.learning.run_folder import METRICS, is_running, read_status

_PATIENCE = 90.0
"""Seconds to wait for a run folder that another process still writes: a task whose command was killed saves and leaves."""
_AGAIN = 2.0
"""Seconds between two looks at such a folder."""
_STORE = 80 * 2**20  # bytes; Ray's least: nothing of ours lies in its object store
_SHOWN_NODES = 64
_STARTS = 3
"""How often a cluster of our own is tried to be started."""


@dataclass
class _Run:
    """One run on its way."""

    order: dict[str, Any]
    restarts: int = 0
    locked_since: float = 0.0
    not_before: float = 0.0
    begun: bool = False
    read: int = field(default=0)
    """Bytes of metrics.jsonl that were told."""

    @property
    def path(self) -> str:
        return self.order["path"]


class _Carrier:
    """All runs of one command, handed out and looked after."""

    def __init__(self, order: dict[str, Any], reports: IO[str], stopping: threading.Event) -> None:
        self.order = order
        self.reports = reports
        self.stopping = stopping
        self.waiting: deque[_Run] = deque()
        for table in order["runs"]:
            run = _Run({**table, "imports": order["imports"], "cwd": order["cwd"], "threads": order["threads"]})
            with contextlib.suppress(OSError):
                run.read = os.path.getsize(Path(run.path) / METRICS)
            self.waiting.append(run)
        self.running: dict[Any, _Run] = {}
        options: dict[str, Any] = {"num_cpus": order["cpus"], "num_gpus": order["gpus"], "max_retries": 0}
        if order["memory"]:
            options["memory"] = order["memory"]
        self.train = ray.remote(**options)(ray_task.train)

    def tell(self, event: str, run: _Run | None = None, **more: Any) -> None:
        where = {} if run is None else {"path": run.path}
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more: the end of the input says so too
            self.reports.write(json.dumps({**where, "event": event, **more}) + "\n")
            self.reports.flush()

    def carry_out(self) -> None:
        while (self.waiting or self.running) and not self.stopping.is_set():
            self._hand_out()
            done: list[Any] = []
            if self.running:
                done, _ = ray.wait(list(self.running), num_returns=1, timeout=0.5)
            else:
                self.stopping.wait(0.2)
            for run in self.running.values():
                self._tell_rows(run)
            for task in done:
                self._conclude(self.running.pop(task), task)

    def _hand_out(self) -> None:
        now = time.monotonic()
        for _ in range(len(self.waiting)):
            if self.order["jobs"] and len(self.running) >= self.order["jobs"]:
                return
            run = self.waiting.popleft()
            if run.not_before > now:
                self.waiting.append(run)
                continue
            self.running[self.train.remote(json.dumps(run.order))] = run

    def _tell_rows(self, run: _Run) -> None:
        """The rows that the run's file has more than were told; a file cut back to a checkpoint is read on from there."""
        file = Path(run.path) / METRICS
        try:
            size = file.stat().st_size
            if size < run.read:
                run.read = size
            if size == run.read:
                return
            with file.open("rb") as rows:
                rows.seek(run.read)
                text = rows.read(size - run.read)
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        run.read += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut while it was read
                row = json.loads(line)
                if not run.begun:
                    run.begun = True
                    self.tell("begin", run)
                self.tell("row", run, row=row)

    def _conclude(self, run: _Run, task: Any) -> None:
        self._tell_rows(run)
        outcome = _outcome(task)
        event, error = outcome["event"], outcome.get("error", "")
        if event == "done":
            self.tell("done", run)
        elif event == "failed" and outcome.get("exit_code") == RunLocked.exit_code:
            self._wait_for_lock(run, error)
        elif event == "failed":
            self.tell("failed", run, error=error, exit_code=outcome.get("exit_code", 3))
        elif run.restarts < self.order["max_restarts"]:
            run.restarts += 1
            self.tell("restarted", run, error=f"{error}; restart {run.restarts} of {self.order['max_restarts']}")
            self.waiting.appendleft(run)
        else:
            times = f", {run.restarts + 1} times" if run.restarts else ""
            self.tell("failed", run, error=f"{error}{times}", exit_code=1)

    def _wait_for_lock(self, run: _Run, error: str) -> None:
        now = time.monotonic()
        if not run.locked_since:
            run.locked_since = now
            self.tell("waiting", run, error=error)
        if now - run.locked_since > _PATIENCE:
            self.tell("failed", run, error=error, exit_code=RunLocked.exit_code)
            return
        run.not_before = now + _AGAIN
        self.waiting.append(run)

    def stop(self, seconds: float) -> None:
        """Have the runs in hand save, and wait for it."""
        for task in self.running:
            with contextlib.suppress(Exception):
                ray.cancel(task, force=False, recursive=False)
        until = time.monotonic() + seconds
        left = list(self.running)
        while left and time.monotonic() < until:
            _, left = ray.wait(left, num_returns=len(left), timeout=0.5)
        for run in self.running.values():
            while is_running(Path(run.path)) and time.monotonic() < until:
                time.sleep(0.1)
            self._tell_rows(run)
            self.tell("interrupted", run, error=read_status(Path(run.path))["error"] or "asked to stop")


def _outcome(task: Any) -> dict[str, Any]:
    """How a task ended, as its own word or in ours where Ray lost it."""
    try:
        return json.loads(ray.get(task))
    except OutOfMemoryError:
        return {"event": "lost", "error": "Ray ended the worker of this run: its node ran out of memory"}
    except NodeDiedError:
        return {"event": "lost", "error": "the node of this run was lost"}
    except WorkerCrashedError:
        return {"event": "lost", "error": "the Ray worker of this run died"}
    except TaskCancelledError:
        return {"event": "lost", "error": "the task of this run was cancelled"}
    except RayTaskError as error:
        # Our own code raised, or the node cannot import it: another try gives the same.
        return {"event": "failed", "error": f"the task of this run raised {_short(error)}", "exit_code": 3}
    except RayError as error:
        return {"event": "lost", "error": f"Ray lost this run ({type(error).__name__}: {_short(error)})"}


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


# The cluster


def connect(order: dict[str, Any]) -> None:
    """Start a cluster of this machine, or join the one at the address."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if order["address"]:
        ray.init(address=order["address"], **quiet)
        return
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                num_cpus=max(1, round(order["jobs"] * order["cpus"])),
                include_dashboard=False,
                object_store_memory=_STORE,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(Path(os.environ["MFMARL_RAY_FOLDER"]) / "r"),
                **quiet,
            )
            return
        except Exception as error:
            # Ray gives its processes 30 s, which are too few on a busy machine, and raises a bare Exception then.
            if not left or "timed out" not in str(error):
                raise
            ray.shutdown()
            _end_left()


def demand_room(order: dict[str, Any], nodes: list[dict[str, Any]]) -> None:
    """Raises ConfigError where no node could ever hold a run: its task would wait for ever."""
    wanted = {"CPU": order["cpus"], "GPU": order["gpus"], "memory": order["memory"]}
    for node in nodes:
        if all(node["Resources"].get(name, 0) >= amount for name, amount in wanted.items()):
            return
    asked = _told(wanted)
    there = "; ".join(sorted({_told(node["Resources"]) for node in nodes})) or "none at all"
    raise ConfigError(f"No node of the Ray cluster has room for a run that asks for {asked}; the nodes have {there}.")


def _told(resources: dict[str, float]) -> str:
    words = [
        f"{resources[name]:g} {name}{'' if resources[name] == 1 else 's'}"
        for name in ("CPU", "GPU")
        if resources.get(name)
    ]
    if resources.get("memory"):
        words.append(f"{resources['memory'] / 1e9:.3g} GB")
    return " and ".join(words) or "nothing"


def demand_closed_doors() -> None:
    """Raises ConfigError where Ray, all told, listens on more than loopback: how it is kept from it is no promise of Ray's."""
    if ports := open_doors(os.getpid()):
        raise ConfigError(
            f"Ray {ray.__version__} listens on all interfaces of this machine (port {ports[0]}); expected loopback alone, "
            "as with Ray 2.60: use that version, or leave out --engine ray."
        )


def demand_shared_folder(folder: Path, nodes: list[dict[str, Any]], seconds: float = 60.0) -> None:
    """Raises ConfigError where a node does not see the folder of the runs, or has another mfmarl, Python or torch."""
    name = f".mfmarl-probe-{secrets.token_hex(8)}"
    nonce = secrets.token_hex(16)
    probe = ray.remote(num_cpus=0, max_retries=1)(ray_task.look)
    answers = {node["NodeID"]: f"{name}-{number}" for number, node in enumerate(nodes[:_SHOWN_NODES])}
    try:
        (folder / name).write_text(nonce, encoding="utf-8")
        tasks = {
            node: probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                json.dumps({"folder": str(folder), "probe": name, "expected": nonce, "answer": answer})
            )
            for node, answer in answers.items()
        }
        until = time.monotonic() + seconds
        for node, task in tasks.items():
            judge_node(folder, _answer_of(task, until - time.monotonic()), answers[node], nonce)
    finally:
        for left in [name, *answers.values()]:
            (folder / left).unlink(missing_ok=True)


def _answer_of(task: Any, seconds: float) -> dict[str, Any]:
    try:
        return json.loads(ray.get(task, timeout=max(1.0, seconds)))
    except GetTimeoutError:
        raise ConfigError(
            "The nodes of the Ray cluster did not answer a first task within 60 s; are they busy?"
        ) from None
    except RayError as error:
        raise ConfigError(
            f"A first task failed on the Ray cluster ({_short(error)}); every node needs the same mfmarl and Python as here."
        ) from error


def judge_node(folder: Path, told: dict[str, Any], answer: str, nonce: str) -> None:
    """Raises ConfigError where what a node told, or did not write, makes it unfit for the runs."""
    advice = "put the runs on storage that all nodes share (--runs)"
    if told["fault"]:
        raise ConfigError(f"The node {told['host']} does not see the folder of the runs: {told['fault']}; {advice}.")
    try:
        seen = ray_task._read_patiently(folder / answer) == nonce
    except OSError:
        seen = False
    if not seen:
        raise ConfigError(f"What the node {told['host']} writes in {folder} is not seen here; {advice}.")
    ours = ray_task.versions()
    differ = [
        f"{name} {told['versions'].get(name, 'none')} (here {version})"
        for name, version in ours.items()
        if told["versions"].get(name, "none") != version
    ]
    if differ:
        raise ConfigError(f"The node {told['host']} has {', '.join(differ)}; runs repeat only with the same versions.")


# The process


def serve(orders: IO[str], reports: IO[str]) -> None:
    """Carry out the one order on the first line."""
    line = orders.readline()
    if not line:
        return
    order = json.loads(line)
    stopping = threading.Event()
    threading.Thread(target=_watch, args=(orders, stopping), daemon=True).start()
    lock = hold(Path(os.environ["MFMARL_RAY_FOLDER"])) if not order["address"] else -1
    carrier = _Carrier(order, reports, stopping)
    try:
        carrier.tell("awake")
        connect(order)
        # Ray sets its own; after it, a polite end is an order to stop.
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        carrier.tell("connected")
        try:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            demand_room(order, nodes)
            if not order["address"]:
                demand_closed_doors()
            if order["address"]:
                demand_shared_folder(Path(order["folder"]), nodes)
        except ConfigError as error:
            carrier.tell("refused", error=str(error))
            return
        carrier.tell("ready")
        try:
            carrier.carry_out()
        except (RayError, ConnectionError) as error:
            carrier.tell(
                "lost",
                error=f"The Ray cluster was lost ({_short(error)}); what is done is kept: give the same command again.",
            )
            return
        if stopping.is_set():
            carrier.stop(45.0)
        carrier.tell("end")
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()
        if not order["address"]:
            _end_left()
        if lock >= 0:
            os.close(lock)


def _end_left() -> None:
    """End what Ray left running; only where this process leads its session, in which nobody else's are then."""
    if hasattr(os, "getsid") and os.getsid(0) == os.getpid():
        end_session(os.getpid())


def _watch(orders: IO[str], stopping: threading.Event) -> None:
    orders.read()
    stopping.set()


def main() -> None:
    """What `python -m mfmarl.evaluation.ray_driver` does. Whatever Ray prints, it prints to standard error."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, reports)


if __name__ == "__main__":
    main()
