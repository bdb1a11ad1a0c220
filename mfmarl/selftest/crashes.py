"""G1: a process that dies while it saves, at any byte and any call, loses nothing that was acknowledged.

Four kinds of death. `bytes` and `calls`: after so many bytes, or before or after a call that changes the disk, no further
call reaches it, as if the process had been killed there (the wait of fsync is left out: it is the power that it guards
against). `kills`: the same with real processes and SIGKILL, or the kernel's own limit on a file. `moments`: real processes
that save on and on, killed at any time. `runs`: real training, killed at such calls. After each death: the old state or the
new one, whole, never older than what was acknowledged; and the next save works.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor

from mfmarl.errors import MfmarlError
from mfmarl.learning import checkpoint
from mfmarl.learning.checkpoint import list_checkpoints, load
from mfmarl.selftest.command import environment_of
from mfmarl.selftest.goal import Order, Outcome

TARGET = 10_000
CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir", "ftruncate")
"""What changes the disk. Closing a file is not among them: whoever dies has closed his files."""
_SHARES = {"bytes": 0.70, "calls": 0.10, "kills": 0.15, "moments": 0.03, "runs": 0.02}
_CLEAN_EVERY = 16
_SAVE_CALLS = 20  # of a save that also prunes an older one
_PATIENCE = 60.0


class Dead(BaseException):
    """The process is no more: it cleans nothing up, for every later call that changes the disk dies too."""


def die_in_place() -> NoReturn:
    raise Dead


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")


# ------------------------------------------------------------------------------------------ what is saved


def tensors_at(step: int) -> dict[str, Tensor]:
    """A state that tells its step in every part."""
    return {
        "policy.weight": torch.full((4, 3), float(step)),
        "optimiser.step": torch.tensor(step),
        "rng": (torch.arange(9) + step).byte(),
    }


def state_at(step: int) -> dict[str, Any]:
    return {"step": step, "metrics": 120 * step, "updates": 2**53 + step}


def save_at(folder: Path, step: int) -> Path:
    return checkpoint.save(folder, step, tensors_at(step), state_at(step), config_digest="trial")


def lost_or_mixed(folder: Path, acknowledged: int, tried: int) -> str:
    """What is wrong with a folder after a death: nothing (empty), or a state that is lost, unreadable or mixed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # latest.json is whole, and names what is there
            steps = [load(folder), *(load(path) for path in list_checkpoints(folder))]
    except (MfmarlError, Warning) as error:
        return f"unreadable: {error}"
    if not acknowledged <= steps[0].step <= tried:
        return f"step {steps[0].step} is there, step {acknowledged} was acknowledged"
    for found in steps:
        same = found.state == state_at(found.step) and found.tensors.keys() == tensors_at(0).keys()
        if not same or any(not torch.equal(found.tensors[n], t) for n, t in tensors_at(found.step).items()):
            return f"{found.path.name} mixes two states"
    return ""


# ------------------------------------------------------------------------------------------------- dying


@contextmanager
def dying(
    end: Callable[[], NoReturn], call: int = 0, byte: int = -1, after: bool = False, waits: bool = True
) -> Iterator[None]:
    """While this holds, whoever makes the `call`-th call that changes the disk, or writes the byte numbered `byte`, ends.

    `after`: once that call is made. `waits=False` leaves out fsync's wait for the disk.
    """
    made, left, dead = 0, byte, False
    real = {name: getattr(os, name) for name in CALLS}

    def mortal(name: str) -> Callable[..., Any]:
        def one(*arguments: Any, **options: Any) -> Any:
            nonlocal made, left, dead
            if dead:
                raise Dead
            made += 1
            if made == call and not after:
                dead = True
                end()
            if name == "write" and byte >= 0 and len(arguments[1]) > left:
                real["write"](arguments[0], bytes(arguments[1][:left]))
                dead = True
                end()
            try:
                found = None if name == "fsync" and not waits else real[name](*arguments, **options)
            finally:  # a call that fails (a folder that is there already) is one to die after, too
                if made == call:
                    dead = True
                    end()
            if name == "write":
                left -= found or 0
            return found

        return one

    replaced: dict[str, Any] = {name: mortal(name) for name in CALLS}
    with mock.patch.multiple(os, **replaced):
        yield


def in_child(action: Callable[[], object]) -> int:
    """What a forked process that does this ends with: 0, 1 for an exception, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(int(_PATIENCE))
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---------------------------------------------------------------------------------------------- the deaths


@dataclass
class Arena:
    """A folder in which one life follows another: each saves the next step and dies on the way."""

    folder: Path
    step: int = 1
    lives: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_at(self.folder, self.step)

    def judged(self, acknowledged: int, how: str) -> str:
        """The failure of one life, in a line that repeats it; empty: there is none."""
        self.lives += 1
        tried = self.step + 1
        wrong = lost_or_mixed(self.folder, acknowledged, tried)
        if not wrong:
            self.step = load(self.folder).step
            if self.lives % _CLEAN_EVERY:
                return ""
            self.step += 1
            save_at(self.folder, self.step)
            left = [path.name for path in self.folder.glob("*.tmp")]
            wrong = lost_or_mixed(self.folder, self.step, self.step) or (f"{left[0]} was left" if left else "")
        if wrong:  # the next lives begin anew
            for path in self.folder.iterdir():
                path.unlink()
            self.step += 2
            save_at(self.folder, self.step)
        return f"{how}: {wrong}" if wrong else ""

    def sizes(self) -> int:
        """How many bytes the save of a step writes."""
        return sum(path.stat().st_size for path in (list_checkpoints(self.folder)[0], self.folder / checkpoint.LATEST))


def by_bytes(arena: Arena, draw: random.Random, trials: int) -> Iterator[str]:
    """The process ends after so many bytes: every one in turn, from a random one on."""
    first = draw.randrange(1 << 16)
    for trial in range(trials):
        last = (first + trial) % arena.sizes()
        try:
            with dying(die_in_place, byte=last, waits=False):
                save_at(arena.folder, arena.step + 1)
            yield f"byte {last}: the process did not end there"
        except Dead:
            yield arena.judged(arena.step, f"ended after byte {last}")


def by_calls(arena: Arena, draw: random.Random, trials: int) -> Iterator[str]:
    """The process ends before or after a call that changes the disk: each in turn."""
    call, after = 1, False
    for _ in range(trials):
        survived = False
        try:
            with dying(die_in_place, call=call, after=after, waits=False):
                save_at(arena.folder, arena.step + 1)
            survived = True
        except Dead:
            pass
        yield arena.judged(arena.step + survived, f"ended {'after' if after else 'before'} call {call}")
        call, after = (1, False) if survived else (call + after, not after)


def by_kills(arena: Arena, draw: random.Random, trials: int) -> Iterator[str]:
    """A process of its own is killed at a byte or a call, or by the kernel's own limit on the size of a file."""
    for _ in range(trials):
        kind, step = draw.randrange(5), arena.step + 1
        if kind < 2:
            last = draw.randrange(arena.sizes())
            action, how = partial(_killed, arena.folder, step, byte=last), f"killed after byte {last}"
        elif kind < 4:
            call, after = draw.randint(1, _SAVE_CALLS), draw.random() < 0.5
            action = partial(_killed, arena.folder, step, call=call, after=after)
            how = f"killed {'after' if after else 'before'} call {call}"
        else:
            last = draw.randrange(list_checkpoints(arena.folder)[0].stat().st_size)
            action, how = partial(_limited, arena.folder, step, last), f"the kernel ended it at byte {last} of a file"
        code = in_child(action)
        if code not in (0, -signal.SIGKILL, -signal.SIGXFSZ):
            yield f"{how}: the process left with {code}"
        yield arena.judged(step if code == 0 else arena.step, how)


def _killed(folder: Path, step: int, call: int = 0, byte: int = -1, after: bool = False) -> None:
    with dying(die, call, byte, after):
        save_at(folder, step)


def _limited(folder: Path, step: int, last: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (last, last))
    save_at(folder, step)


def by_moments(arena: Arena, draw: random.Random, trials: int) -> Iterator[str]:
    """A process that saves on and on is killed at a random moment; what it has acknowledged comes through a pipe."""
    for _ in range(trials):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(int(_PATIENCE))
                for step in range(arena.step + 1, arena.step + 10_000):
                    save_at(arena.folder, step)
                    os.write(write, step.to_bytes(8, "little"))
            finally:
                os._exit(1)
        os.close(write)
        select.select([read], [], [], _PATIENCE)  # it has begun
        time.sleep(draw.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told = b""
        while part := os.read(read, 1 << 16):
            told += part
        os.close(read)
        acknowledged = int.from_bytes(told[len(told) // 8 * 8 - 8 : len(told) // 8 * 8], "little") or arena.step
        arena.step = acknowledged
        yield arena.judged(acknowledged, f"killed at a moment after step {acknowledged}")


def by_runs(folder: Path, draw: random.Random, trials: int) -> Iterator[str]:
    """Training is killed at calls that change the disk, again and again until it is done, and then begun anew."""
    from mfmarl.learning.run import load_training, run_in_folder
    from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
    from mfmarl.learning.run_folder import is_run, read_metrics, read_status

    options: dict[str, Any] = {"hidden": [4], "capacity": 24, "warm_up": 8, "batch_size": 8}
    run = RunOptions(
        steps=40, report_every=4, copies=1, evaluation_copies=0, checkpoint_seconds=0.0, exploitability="off"
    )
    config = RunConfig(Choice("congestion", {"num_agents": 4}), {"all": Choice("mfq", options)}, run)
    number, path, before, named = 0, folder / "0", -1, False

    def train(call: int) -> None:
        with warnings.catch_warnings(), dying(die, call):
            warnings.simplefilter("ignore")
            run_in_folder(config, path, resume=True).close()

    for _ in range(trials):
        call = draw.randint(1, 90)
        code = in_child(partial(train, call))
        how, wrong = f"training killed before call {call}", ""
        if code not in (0, -signal.SIGKILL):
            wrong = f"it left with {code}"
        try:
            there = is_run(path) and bool(list_checkpoints(path / "checkpoints"))
            if there:
                with warnings.catch_warnings():
                    # Who dies between the first file and the latest.json that names it had nothing acknowledged.
                    named = named or (path / "checkpoints" / checkpoint.LATEST).exists()
                    warnings.simplefilter("error" if named else "ignore", checkpoint.CheckpointWarning)
                    _, built = load_training(path)
                built.close()
                step, told = built.training.tick, read_status(path)
                if step < before or (told["state"] == "running" and step < told["step"]):
                    wrong = f"step {step} is there; {max(before, told['step'])} was acknowledged"
                if [row["step"] for row in read_metrics(path)] != sorted({row["step"] for row in read_metrics(path)}):
                    wrong = "rows are there twice"
                before = step
            elif before >= 0:
                wrong = "its checkpoints are gone"
        except (MfmarlError, Warning) as error:
            wrong = f"unreadable: {error}"
        if code == 0 or wrong:
            number, before, named = number + 1, -1, False
            path = folder / str(number)
        yield f"{how}: {wrong}" if wrong else ""


# ------------------------------------------------------------------------------------------------- the trial


def crash_points(order: Order) -> Outcome:
    """G1. At a share of 1, 10,000 deaths."""
    if not hasattr(os, "fork") or sys.platform == "win32":
        return Outcome(None, "this system cannot fork processes, and so none could be killed at a chosen byte")
    trials = order.trials(TARGET, 40)
    wanted = {kind: max(1, round(share * trials)) for kind, share in _SHARES.items()}
    draw = random.Random(order.seed)  # noqa: S311 - deaths are to be repeatable, not secret
    done, failures = dict.fromkeys(wanted, 0), []
    kinds: dict[str, Callable[..., Iterator[str]]] = {
        "bytes": by_bytes,
        "calls": by_calls,
        "kills": by_kills,
        "moments": by_moments,
    }
    for kind, count in wanted.items():
        if kind == "runs":
            (order.folder / kind).mkdir()
            lives = by_runs(order.folder / kind, draw, count)
        else:
            lives = kinds[kind](Arena(order.folder / kind), draw, count)
        for failure in lives:
            done[kind] += 1
            if failure:
                failures.append(f"{kind}, seed {order.seed}, trial {done[kind]}: {failure}")
            order.watch(sum(done.values()), sum(wanted.values()))
    real = done["kills"] + done["moments"] + done["runs"]
    total = sum(done.values())
    return Outcome(
        not failures,
        f"{len(failures)} of {total:,} deaths lost or mixed a state ({real:,} of them real processes, killed)",
        total,
        tuple(failures),
        beside=others(order.folder, max(1, round(60 * min(order.share, 1))))
        if order.share >= _LEAST_FOR_OTHERS
        else {},
        figures={**done, "failures": len(failures)},
    )


_LEAST_FOR_OTHERS = 0.05
# What others do when the kernel ends them at a byte of the file that they write: readable afterwards, or not. Nothing is
# unpickled: a zip archive is readable if its directory and checksums are.
_OTHERS = """
import json, os, random, resource, signal, sys, zipfile
folder, trials = sys.argv[1], int(sys.argv[2])
import safetensors.torch, torch
state = {"weight": torch.arange(3000.0), "step": torch.tensor(7)}
plain = {"weights": list(range(3000))}

def to_json(path):
    with open(path, "w") as file:
        json.dump(plain, file)

def whole_json(path):
    return json.load(open(path)) == plain

def whole_zip(path):
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None

def whole_model(path):  # cut short, it may end in an inner archive, which would be found instead
    with zipfile.ZipFile(path) as archive:
        return "data" in archive.namelist() and archive.testzip() is None

def whole_safetensors(path):
    return len(safetensors.deserialize(open(path, "rb").read())) == 2

ways = {
    "torch.save": (lambda path: torch.save(state, path), whole_zip),
    "json.dump": (to_json, whole_json),
    "safetensors": (lambda path: safetensors.torch.save_file(state, path), whole_safetensors),
}
try:
    from stable_baselines3 import PPO
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    ways["stable-baselines3"] = (model.save, whole_model)
except Exception:
    pass
draw, told = random.Random(0), {}
for name, (save, whole) in ways.items():
    path = os.path.join(folder, name + ".zip")
    lost = killed = 0
    for _ in range(trials):
        save(path)
        size = os.path.getsize(path)
        child = os.fork()
        if child == 0:
            try:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                limit = draw.randrange(1, size)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                save(path)
            finally:
                os._exit(0)
        draw.random()
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        try:
            lost += not whole(path)
        except Exception:
            lost += 1
    told[name] = f"{lost} of {killed} files lost by a kill while they were saved over"
print(json.dumps(told))
"""


def others(folder: Path, trials: int) -> dict[str, str]:
    """What became of the files of other libraries, killed in the same way; empty where that could not be tried."""
    place = folder / "others"
    place.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _OTHERS, str(place), str(trials)],
            env=environment_of(),
            capture_output=True,
            timeout=600,
            check=True,
        )
        told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
    return told
