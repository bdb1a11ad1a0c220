"""G8 and G9: workers change no results, whatever their number and order; one that is lost costs nothing but time.

Every trial carries out a small sweep, and holds what it leaves (rows, checkpoints, the comparison's numbers; costs in time
excepted) against an undisturbed one of a single worker: byte by byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import psutil

from mfmarl.errors import MfmarlError, RankLost
from mfmarl.evaluation.comparison import PlannedRun, execute, plan, write_plan
from mfmarl.evaluation.local_engine import LocalEngine
from mfmarl.learning import checkpoint, run_folder
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.worker import BEAT
from mfmarl.selftest.goal import Order, Outcome
from mfmarl.selftest.processes import (
    forks_in_place,
    processes_below,
    shared_memory,
    still_alive,
    wait_until,
    write_moody,
)

SILENCE = 2 * BEAT + 1.0
"""Seconds that a stopped worker is given here; 60 unless a user says otherwise."""
FOUND = 10.0
"""Seconds in which a death must be found: the promise is 2, and a machine that is busy is given more."""
_COSTS = ("wall", "cpu", "metrics", "agent_steps_per_second", "agent_steps_per_cpu_second")

DELAYED = '''"""Three walkers of a user's own, whose steps take as long as chance wants."""

import os
import time

import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv


class Delayed(ParallelEnv):
    metadata = {"name": "delayed_v0"}

    def __init__(self):
        self.possible_agents = [f"walker_{i}" for i in range(3)]

    def observation_space(self, agent):
        return Box(-10, 10, (1,), np.float32)

    def action_space(self, agent):
        return Discrete(3)

    def reset(self, seed=None, options=None):
        self.noise = np.random.default_rng(seed)
        self.agents, self.step_count = list(self.possible_agents), 0
        self.place = {a: 0.0 for a in self.agents}
        return self._seen(), {a: {} for a in self.agents}

    def _seen(self):
        return {a: np.array([np.clip(self.place[a], -10, 10)], np.float32) for a in self.agents}

    def step(self, actions):
        time.sleep(float(os.environ.get("MFMARL_SELFTEST_PACE", "0")) * os.urandom(1)[0] / 255)
        self.step_count += 1
        for agent, action in actions.items():
            self.place[agent] += float(action) - 1 + 0.1 * float(self.noise.normal())
        reward = {a: -abs(self.place[a]) for a in self.agents}
        ended = self.step_count >= 7
        seen, flags = self._seen(), {a: ended for a in self.agents}
        no = {a: False for a in self.agents}
        infos = {a: {} for a in self.agents}
        if ended:
            self.agents = []
        return seen, reward, no, flags, infos
'''

_RUN = RunOptions(steps=40, copies=2, report_every=10, evaluation_copies=1, evaluation_steps=5, checkpoint_seconds=0.0)


# ------------------------------------------------------------------------------------------ sweeps, and what they leave


def sweep(
    folder: Path,
    source: Path,
    kind: str,
    *,
    jobs: int,
    workers: int = 0,
    options: dict[str, Any] | None = None,
    engine: LocalEngine | None = None,
    on_event: Callable[[PlannedRun, dict[str, Any]], None] = lambda _run, _event: None,
) -> list[str]:
    """Carry out a small comparison in `folder`; returns why runs failed. `kind`: `moody` (ours) or `delayed` (foreign)."""
    name = f"{source / kind}.py:{kind.capitalize()}"
    place = {kind: Choice(name, options or {})}
    teams = {agent: {"all": Choice(agent)} for agent in ("mfq", "iql")}
    run = replace(_RUN, workers=workers, timeout=SILENCE)
    runs = plan(place, teams, [0, 1], run, folder)
    write_plan(folder, place, teams, [0, 1], "mfmarl selftest")
    return [why for _, why in execute(runs, jobs, on_event, (), engine or LocalEngine(silence=SILENCE))]


def digest(folder: Path) -> str:
    """Of everything that a sweep leaves and that is no cost: rows, tensors, states, the comparison's numbers."""
    from mfmarl.evaluation.results import read_comparison
    from mfmarl.evaluation.summary import summary

    found = hashlib.sha256()
    for path in run_folder.find_runs(folder):
        found.update(str(path.relative_to(folder)).encode())
        found.update(run_digest(path).encode())
    found.update(json.dumps(_without_costs(summary(read_comparison(folder))["environments"]), sort_keys=True).encode())
    return found.hexdigest()


def run_digest(path: Path) -> str:
    """Of one run's rows and last checkpoint."""
    found = hashlib.sha256()
    for row in run_folder.read_metrics(path):
        kept = {k: repr(v) for k, v in row.items() if k not in _COSTS and not k.startswith("sent/")}
        found.update(json.dumps(kept, sort_keys=True).encode())
    last = checkpoint.load(path / "checkpoints")
    for name, tensor in sorted(last.tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().flatten().view(-1).numpy().tobytes())
    found.update(json.dumps(_without_costs(last.state), sort_keys=True).encode())
    return found.hexdigest()


def _without_costs(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_costs(v) for k, v in value.items() if k not in _COSTS}
    if isinstance(value, list | tuple):
        return [_without_costs(v) for v in value]
    return value


def _sources(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir(exist_ok=True)
    write_moody(source)
    (source / "delayed.py").write_text(DELAYED, encoding="utf-8")
    return source


# --------------------------------------------------------------------------------------------------------------- G8


def determinism(order: Order) -> Outcome:
    """G8: 1, 2 and 4 workers of runs and 0, 1, 2 and 4 of environments, with random delays in all of them."""
    if not hasattr(os, "fork"):
        return Outcome(None, "this system cannot fork processes, and starting each anew would take hours")
    chance, source = Random(order.seed), _sources(order.folder)  # noqa: S311 - trials, not secrets
    trials, failures, done, finished = order.trials(100, 4), [], 0, set()
    with forks_in_place():
        told = {}
        for kind in ("moody", "delayed"):
            told[kind] = _trial(order.folder / f"alone-{kind}", source, kind, 1, 0, 0.0)[0]
        for trial in range(trials):
            kind = "delayed" if trial % 4 == 3 else "moody"
            jobs, workers = chance.choice((1, 2, 4)), chance.choice((0, 1, 2)) if kind == "delayed" else 0
            if trial % 16 == 15:
                workers = 4
            pace = chance.choice((0.0, 0.001, 0.004))
            found, ending = _trial(order.folder / f"trial-{trial}", source, kind, jobs, workers, pace)
            finished.add(ending)
            done += 1
            if found != told[kind]:
                failures.append(
                    f"trial {trial} of seed {order.seed}: {kind} by {jobs} run workers and {workers} environment workers "
                    f"with delays up to {1e3 * pace:g} ms: {found[:60]} where one worker gives {told[kind][:12]}"
                )
            order.watch(done, trials)
    return Outcome(
        not failures,
        f"{len(failures)} of {done} sweeps of 4 runs differ from that of one worker; runs ended in {len(finished)} orders",
        done,
        tuple(failures),
        figures={"trials": done, "differ": len(failures), "orders": len(finished)},
    )


def _trial(folder: Path, source: Path, kind: str, jobs: int, workers: int, pace: float) -> tuple[str, tuple[str, ...]]:
    """What a sweep left, and in which order its runs ended."""
    import shutil

    ended: list[str] = []

    def on_event(run: PlannedRun, event: dict[str, Any]) -> None:
        if event["event"] == "done":
            ended.append(f"{run.agent}-{run.seed}")

    # Delays come from outside: they are no option of the run, which would make it another.
    os.environ["MFMARL_SELFTEST_PACE"] = str(pace)
    failed = sweep(folder, source, kind, jobs=jobs, workers=workers, on_event=on_event)
    found = f"failed: {failed[0]}" if failed else digest(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return found, tuple(ended)


# --------------------------------------------------------------------------------------------------------------- G9

DEATHS = ("run killed", "environment killed", "run raises", "rank killed", "parent killed", "run stopped",
          "environment stopped")  # fmt: skip


def deaths(order: Order) -> Outcome:
    """G9: workers of runs, of environments and of a divided population, killed, stopped and raising; and their parent."""
    if not hasattr(os, "fork"):
        return Outcome(None, "this system cannot fork processes")
    source, before = _sources(order.folder), shared_memory()
    trials = order.trials(70, len(DEATHS))
    failures: list[str] = []
    times: dict[str, list[float]] = {}
    with forks_in_place(), _own_temporary(order.folder / "temporary") as temporary:
        told = _undisturbed(order.folder, source)
        for trial in range(trials):
            kind = DEATHS[trial % len(DEATHS)]
            folder = order.folder / f"death-{trial}"
            folder.mkdir()
            chance = Random(order.seed * 1000 + trial)  # noqa: S311 - trials, not secrets
            try:
                with _nobody_left() as left:
                    seconds = _DEATH[kind](folder, source, told, chance)
                if seconds is not None:
                    times.setdefault(kind, []).append(seconds)
                wrong = f"{left[0]} processes are left" if left[0] else ""
            except (_Wrong, MfmarlError) as error:
                wrong = str(error)
            failures += [f"trial {trial} of seed {order.seed}, {kind}: {wrong}"] if wrong else []
            order.watch(trial + 1, trials)
    # (Other programs use shared memory too: what bears other names is theirs.)
    shared = sorted(n for n in shared_memory() - before if n.startswith(("mfmarl", "torch_")))
    failures += [f"left in shared memory: {', '.join(shared)}"] if shared else []
    failures += [f"left in the folder for temporary files: {', '.join(temporary)}"] if temporary else []
    slowest = {kind: max(found) for kind, found in times.items()}
    swift = max((s for kind, s in slowest.items() if "stopped" not in kind), default=0.0)
    still = max((s for kind, s in slowest.items() if "stopped" in kind), default=0.0)
    failures += [f"a death was found after {swift:.1f} s"] if swift > FOUND else []
    return Outcome(
        not failures,
        f"{trials - len(failures)} of {trials} losses left the same results and nobody behind; deaths found in {swift:.2f} s "
        f"at most, silence of {SILENCE:g} s allowed in {still:.1f} s",
        trials,
        tuple(failures),
        figures={"trials": trials, "deaths_found_seconds": swift, "silence_found_seconds": still},
    )


class _Wrong(Exception):
    """What a trial came to, where it is not as promised."""


def _undisturbed(folder: Path, source: Path) -> dict[str, str]:
    told = {}
    for kind, workers in (("moody", 0), ("delayed", 1)):
        failed = sweep(folder / f"calm-{kind}", source, kind, jobs=1, workers=workers)
        if failed:
            raise RuntimeError(f"the undisturbed sweep failed: {failed[0]}")
        told[kind] = digest(folder / f"calm-{kind}")
    run_in_folder(_divided(), folder / "calm-ranks")
    told["ranks"] = run_digest(folder / "calm-ranks")
    return told


def _divided(steps: int = 40) -> RunConfig:
    return RunConfig(Choice("ising", {"num_agents": 16}), {"all": Choice("mfq")}, replace(_RUN, steps=steps, ranks=2))


@contextlib.contextmanager
def _nobody_left() -> Iterator[list[int]]:
    """How many processes that began meanwhile are still there a while later."""
    before = processes_below(os.getpid())
    left = [0]
    yield left
    mine = {pid: began for pid, began in processes_below(os.getpid()).items() if pid not in before}
    wait_until(lambda: not still_alive(mine), 20.0)
    left[0] = len(still_alive(mine))
    for pid in still_alive(mine):
        os.kill(pid, signal.SIGKILL)


def _lose(
    folder: Path,
    source: Path,
    kind: str,
    told: dict[str, str],
    chance: Random,
    number: int,
    pick: Callable[[int], Sequence[int]],
    workers: int,
) -> float:
    """Send a signal to one of the processes that `pick` finds for a worker, at a random row; how long until it was found."""
    wanted, seen = chance.randint(1, 9), [0]
    hit: dict[str, float] = {}
    pids: dict[Path, int] = {}

    def on_event(run: PlannedRun, event: dict[str, Any]) -> None:
        if event["event"] == "begin":
            pids[run.path] = int(event["pid"])
        if event["event"] == "row" and not hit:
            seen[0] += 1
            victims = pick(pids[run.path]) if seen[0] >= wanted else ()
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(list(victims)), number)
                    hit["at"] = time.monotonic()
        if event["event"] == "restarted" and hit:
            hit.setdefault("found", time.monotonic())

    # Steps take their time, so that there is something left to lose.
    os.environ["MFMARL_SELFTEST_PACE"] = "0.01"
    failed = sweep(folder / "s", source, kind, jobs=2, workers=workers, on_event=on_event)
    if failed:
        raise _Wrong(f"a run failed: {failed[0]}")
    if digest(folder / "s") != told[kind]:
        raise _Wrong("the results are others")
    return hit.get("found", hit.get("at", 0.0)) - hit.get("at", 0.0)


def _run_killed(folder: Path, source: Path, told: dict[str, str], chance: Random) -> float:
    return _lose(folder, source, "moody", told, chance, signal.SIGKILL, lambda pid: [pid], 0)


def _run_stopped(folder: Path, source: Path, told: dict[str, str], chance: Random) -> float:
    return _lose(folder, source, "moody", told, chance, signal.SIGSTOP, lambda pid: [pid], 0)


def _environment_killed(folder: Path, source: Path, told: dict[str, str], chance: Random) -> float:
    return _lose(folder, source, "delayed", told, chance, signal.SIGKILL, lambda pid: [*processes_below(pid)], 1)


def _environment_stopped(folder: Path, source: Path, told: dict[str, str], chance: Random) -> float:
    return _lose(folder, source, "delayed", told, chance, signal.SIGSTOP, lambda pid: [*processes_below(pid)], 1)


def _run_raises(folder: Path, source: Path, told: dict[str, str], chance: Random) -> None:
    tally = folder / "tally"
    options = {"fault": "raise", "times": 1, "at": chance.randint(1, 39), "tally": str(tally)}
    restarted: list[str] = []

    def on_event(_run: PlannedRun, event: dict[str, Any]) -> None:
        if event["event"] == "restarted":
            restarted.append(event["error"])

    failed = sweep(folder / "s", source, "moody", jobs=2, options=options, on_event=on_event)
    if len(failed) != 1 or "the market crashed" not in failed[0] or restarted:
        raise _Wrong(f"expected one failed run with its reason, found {failed}, restarted {restarted}")
    states = [run_folder.read_status(p)["state"] for p in run_folder.find_runs(folder / "s")]
    if sorted(states) != ["done"] * 3 + ["failed"]:
        raise _Wrong(f"the others did not go on: {states}")


def _rank_killed(folder: Path, source: Path, told: dict[str, str], chance: Random) -> float:
    del source
    path, hit = folder / "run", [0.0]
    wanted = chance.randint(1, 3)

    def on_row(row: dict[str, Any]) -> None:
        if row["step"] >= 10 * wanted and not hit[0]:
            ranks = [p for p in processes_below(os.getpid()) if psutil.Process(p).ppid() == os.getpid()]
            hit[0] = time.monotonic()
            os.kill(chance.choice(ranks), signal.SIGKILL)

    try:
        run_in_folder(_divided(), path, on_row=on_row)
    except RankLost:
        found = time.monotonic() - hit[0]
    else:
        found = 0.0  # it was done before the signal came
    run_in_folder(_divided(), path, resume=True)
    if run_digest(path) != told["ranks"]:
        raise _Wrong("the divided run that went on is another")
    return found


def _parent_killed(folder: Path, source: Path, told: dict[str, str], chance: Random) -> None:
    kind, workers = chance.choice((("moody", 0), ("delayed", 1)))
    os.environ["MFMARL_SELFTEST_PACE"] = "0.01"
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            sweep(folder / "s", source, kind, jobs=2, workers=workers)
        os._exit(0)
    begun = wait_until(lambda: len(list((folder / "s").glob("*/*/*/metrics.jsonl"))) >= 2)
    time.sleep(chance.random() * 0.3)
    below = processes_below(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not begun:
        raise _Wrong("no run was begun")
    if not wait_until(lambda: not still_alive(below), 30.0):
        raise _Wrong(f"{len(still_alive(below))} of {len(below)} processes outlived their parent")
    failed = sweep(folder / "s", source, kind, jobs=2, workers=workers)
    if failed or digest(folder / "s") != told[kind]:
        raise _Wrong(f"what went on is another {failed}")


_DEATH: dict[str, Callable[[Path, Path, dict[str, str], Random], float | None]] = {
    "run killed": _run_killed,
    "environment killed": _environment_killed,
    "run raises": _run_raises,
    "rank killed": _rank_killed,
    "parent killed": _parent_killed,
    "run stopped": _run_stopped,
    "environment stopped": _environment_stopped,
}


@contextlib.contextmanager
def _own_temporary(folder: Path) -> Iterator[list[str]]:
    """A folder for temporary files of this process and those below it; the names of what is left in it."""
    folder.mkdir()
    left: list[str] = []
    old = os.environ.get("TMPDIR")
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
    try:
        yield left
        # (torch keeps a cache there, for programs to come.)
        left += sorted(name for name in os.listdir(folder) if not name.startswith("torchinductor"))
    finally:
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if old is not None:
            os.environ["TMPDIR"] = old
