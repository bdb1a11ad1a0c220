"""G2: runs that are killed again and again, in the middle of episodes, of saves and at reports, and go on: bit by bit the run
that nothing happened to.

Every registered agent meets every environment that it can play, which is found by trying; each run is a process of its
own, and every kill is SIGKILL, or SIGTERM, sent from within at a place drawn at random.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.learning import checkpoint
from mfmarl.learning.build import build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import METRICS
from mfmarl.registry import entries, lookup
from mfmarl.selftest.command import warm
from mfmarl.selftest.goal import Order, Outcome

_STEPS = 23
_KILLS = 20
_OFTEN = 0.2
# What makes an agent learn within so few steps.
_AT_ONCE = {"warm_up": 4, "batch_size": 4, "rollout": 5, "hidden": (8,), "n_steps": 5, "capacity": 64, "horizon": 3}
# Named if installed; every other library's environment goes the same way.
_THIRD_PARTY = ("mpe2/simple_spread_v3", "mpe2/simple_speaker_listener_v4", "magent2/battle_v4",
                "pettingzoo/classic/rps-v2", "pettingzoo/classic/tictactoe-v3", "pettingzoo/sisl/pursuit-v5",
                "gymnasium/CartPole-v1", "gymnasium/Pendulum-v1")  # fmt: skip
_SMALL: Mapping[str, Mapping[str, Any]] = {"magent2/battle_v4": {"map_size": 16, "max_cycles": 9}}
_FILE = "from mfmarl.testing.faulty_env import FaultyAECEnv, FaultyEnv\n"
PLAYED, CANNOT = "played", "cannot"


@dataclass(frozen=True)
class Kill:
    """Where a run is struck: before the step, row or rename of that number."""

    place: str
    number: int
    signal: int

    def __str__(self) -> str:
        return f"{signal.Signals(self.signal).name} at {self.place} {self.number}"


@dataclass(frozen=True)
class Trial:
    """A run, and how often it is struck."""

    agent: str
    environment: str
    threads: int = 1
    kills: int = 2
    seed: int = 0


# ----------------------------------------------------------------------------------------------------- comparing


def differences(one: Path, other: Path) -> list[str]:
    """In what two runs differ: tensors and state of their last checkpoints, bit by bit, and their rows; times excepted."""
    first, second = checkpoint.load(one), checkpoint.load(other)
    told = [f"{name} is of one alone" for name in sorted(first.tensors.keys() ^ second.tensors.keys())]
    for name in sorted(first.tensors.keys() & second.tensors.keys()):
        a, b = first.tensors[name], second.tensors[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype) or a.numpy().tobytes() != b.numpy().tobytes():
            told.append(f"the tensor {name}")
    state, wanted = ({k: v for k, v in c.state.items() if k not in _OF_TIME} for c in (first, second))
    told += [
        f"the state {name}" for name in sorted(state.keys() | wanted.keys()) if state.get(name) != wanted.get(name)
    ]
    rows, expected = (_rows(path) for path in (one, other))
    told += [f"row {k}" for k, (row, want) in enumerate(zip(rows, expected, strict=False), 1) if row != want]
    told += [f"{len(rows)} rows and {len(expected)}"] if len(rows) != len(expected) else []
    return told


_OF_TIME = ("wall", "cpu", "metrics", "waiting")


def _rows(path: Path) -> list[str]:
    """The rows as they were written, but for the columns of time."""
    rows = [json.loads(line) for line in (path / METRICS).read_bytes().split(b"\n")[:-1]]
    return [json.dumps({key: value for key, value in row.items() if key not in _OF_TIME}) for row in rows]


# ------------------------------------------------------------------------------------------------------- the runs


def environments(folder: Path) -> dict[str, Choice]:
    """Every registered environment, small; those of other libraries that are installed; a PettingZoo one of either kind
    whose agents die, in a file of its own.
    """
    found = {name: Choice(name, _small(name)) for name in entries("environment") if "/" not in name}
    file = folder / "others.py"
    file.write_text(_FILE)
    for name in ("FaultyEnv", "FaultyAECEnv"):
        found[name] = Choice(f"{file}:{name}", {"max_cycles": 7})
    found["continuous"] = Choice(f"{file}:FaultyEnv", {"max_cycles": 7, "actions": "box"})
    for name in _THIRD_PARTY:
        if importlib.util.find_spec(name.partition("/")[0]) is not None:
            found[name] = Choice(name, dict(_SMALL.get(name, {})))
    return found


def _small(name: str) -> dict[str, Any]:
    """Options under which the environment is quick, where it has such."""
    kind = lookup("environment", name).load()
    known = {f.name for f in fields(kind)} if is_dataclass(kind) else set()
    for number in (9, 16, 8, 12, 64):
        options = {"num_agents": number} if "num_agents" in known else {}
        with contextlib.suppress(MfmarlError, TypeError):
            kind(**options).spec()
            return options
    return {}


def config_of(trial: Trial, choice: Choice, steps: int = _STEPS) -> RunConfig:
    """Few agents, few steps, reports out of step with everything, learning from the first steps on."""
    known = {f.name for f in fields(lookup("agent", trial.agent).load().Config)}
    agent = Choice(trial.agent, {name: value for name, value in _AT_ONCE.items() if name in known})
    options = RunOptions(
        seed=trial.seed, steps=steps, copies=2, report_every=6, evaluation_copies=1, evaluation_steps=3, threads=trial.threads,
        exploitability="off", checkpoint_seconds=0.0,
    )  # fmt: skip
    return RunConfig(choice, {"all": agent}, options)


def _in_fork(action: Callable[[], str], patience: float = 300.0) -> tuple[int, str]:
    """What the action gives in a process of its own, and how that ended: 0, an error's exit code, minus a signal."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code, told = 1, ""
        try:
            os.close(reader)
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            signal.alarm(int(patience))  # whatever hangs is ended, and told as a failure
            told, code = action(), 0
        except MfmarlError as error:
            told, code = str(error), error.exit_code
        except BaseException as error:  # noqa: BLE001 - the child must never become a second copy of its parent
            told = f"{type(error).__name__}: {error}"
        finally:
            with contextlib.suppress(OSError):
                os.write(writer, told.encode(errors="replace")[:4000])
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def _counting(kill: Kill | None) -> dict[str, int]:
    """Count every step of a population, row and rename from here on, and strike where it is wanted."""
    from mfmarl.learning.run_folder import RunFolder
    from mfmarl.population.adapter import Adapter
    from mfmarl.population.simulation import Simulation

    counts = {"step": 0, "row": 0, "rename": 0}

    def counted(owner: Any, name: str, place: str) -> None:
        real = getattr(owner, name)

        def call(*given: Any, **more: Any) -> Any:
            counts[place] += 1
            if kill is not None and (kill.place, kill.number) == (place, counts[place]):
                os.kill(os.getpid(), kill.signal)
            return real(*given, **more)

        setattr(owner, name, call)

    for owner in (Simulation, Adapter):
        counted(owner, "step", "step")
    counted(RunFolder, "append", "row")
    counted(os, "replace", "rename")
    return counts


def _hurry() -> None:
    """Let a clock run that makes the run save every few steps, wherever they fall."""
    now, looks = time.monotonic, [0]

    def look() -> float:
        looks[0] += 1
        return now() + _OFTEN * looks[0]

    time.monotonic = look


def _segment(config: RunConfig, path: Path, kill: Kill | None, hurry: bool) -> tuple[int, str]:
    def go_on() -> str:
        from mfmarl.learning.run import run_in_folder

        counts = _counting(kill)
        if hurry:
            _hurry()
        run_in_folder(config, path, resume=True)
        return json.dumps(counts)

    return _in_fork(go_on)


def attempt(trial: Trial, choice: Choice, folder: Path, struck: list[str] | None = None) -> tuple[str, str]:
    """(PLAYED, what differs) or (CANNOT, why the agent cannot play there). Adds to `struck` the kills that fell into the run."""
    struck = [] if struck is None else struck
    config = config_of(trial, choice)
    warm()
    try:
        build(config).close()  # and what they import is imported once, before processes are forked
    except ConfigError as error:
        return CANNOT, str(error)
    finally:
        torch.set_num_threads(1)  # a pool of threads would not survive a fork
    code, told = _segment(config, folder / "undisturbed", None, hurry=False)
    if code:
        return PLAYED, f"undisturbed, it ended with {code}: {told}"
    counts, chance = json.loads(told), np.random.default_rng([trial.seed, trial.threads])
    for k in range(trial.kills):
        left = 1.0 - _share_done(folder / "struck")
        kill = _drawn(counts, chance, left, trial.kills - k)
        code, told = _segment(config, folder / "struck", kill, hurry=bool(k % 2))
        if code == 0:
            break  # it came to its end before
        struck.append(str(kill))
        if code not in (0, -signal.SIGKILL, 128 + signal.SIGTERM):
            return PLAYED, f"after {', '.join(struck)} it ended with {code}: {told}"
    code, told = _segment(config, folder / "struck", None, hurry=False)
    if code:
        return PLAYED, f"after {', '.join(struck)} it did not go on: {code}: {told}"
    told_apart = differences(folder / "struck", folder / "undisturbed")
    return PLAYED, f"after {', '.join(struck)}: {'; '.join(told_apart[:4])}" if told_apart else ""


def _share_done(path: Path) -> float:
    """How much of the run is saved."""
    with contextlib.suppress(MfmarlError):
        return min(1.0, checkpoint.load(path).step / _STEPS)
    return 0.0


def _drawn(counts: Mapping[str, int], chance: np.random.Generator, left: float = 1.0, more: int = 1) -> Kill:
    """A place in what is left of the run, so early that the kills that are still to come find some of it too."""
    place = str(chance.choice(["step", "row", "rename"], p=[0.7, 0.1, 0.2]))
    number = 1 + int(chance.integers(max(1, int(counts[place] * left * 2 / (more + 1)))))
    term = place == "step" and chance.random() < 0.3
    return Kill(place, number, signal.SIGTERM if term else signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------- the trial


def _drawn_trials(places: Mapping[str, Choice], seed: int, kills: int) -> Iterator[Iterator[Trial]]:
    """For every agent its trials, in an order of its own."""
    chance = np.random.default_rng(seed)
    for agent in entries("agent"):
        pairs = [(name, threads) for name in places for threads in (1, 2)]
        order = chance.permutation(len(pairs))
        yield iter([Trial(agent, pairs[k][0], pairs[k][1], kills, seed) for k in order])


def carry_out(
    order: Order, places: Mapping[str, Choice], wanted: int, kills: int
) -> tuple[int, int, list[str], dict[str, str]]:
    """Trials agent by agent in turn until so many were played: their number, that of their kills, failures, and pairs that
    cannot be played.
    """
    queues = list(_drawn_trials(places, order.seed, kills))
    played, struck, failures, cannot = 0, [], [], {}  # type: int, list[str], list[str], dict[str, str]
    while queues and played < wanted:
        for queue in list(queues):
            for trial in queue:
                pair = f"{trial.agent} on {trial.environment}"
                if pair in cannot:
                    continue
                place = order.folder / "trial"
                place.mkdir()
                how, told = attempt(trial, places[trial.environment], place, struck)
                shutil.rmtree(place)
                if how == CANNOT:
                    cannot[pair] = told
                    continue
                played += 1
                failures += [f"{pair}, {trial.threads} threads, seed {trial.seed}: {told}"] if told else []
                order.watch(played, max(wanted, played))
                break
            else:
                queues.remove(queue)
    return played, len(struck), failures, cannot


def bitwise_resume(order: Order) -> Outcome:
    """Every pair on 1 and 2 threads with 20 kills each; a share of it: fewer pairs, every agent among them, fewer kills."""
    if not hasattr(os, "fork"):
        return Outcome(None, "processes cannot be forked on this system")
    places = environments(order.folder)
    every = 2 * len(places) * len(entries("agent"))
    kills = max(2, min(_KILLS, round(_KILLS * order.share)))
    wanted = order.trials(every, len(entries("agent")))
    played, struck, failures, cannot = carry_out(order, places, wanted, kills)
    if struck < played:
        failures.append(f"only {struck} kills fell into {played} runs")
    return Outcome(
        met=not failures and played > 0,
        found=f"{played - len(failures)} of {played} runs, killed {struck} times in all, are bit by bit those that were never stopped",
        trials=played,
        failures=tuple(failures),
        beside=_others(order),
        figures={"runs": played, "kills": struck, "differing": len(failures), "pairs that cannot be": len(cannot),
                 "agents": len(entries("agent")), "environments": len(places)},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- another library

_SB3 = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from stable_baselines3 import DQN, PPO
torch.set_num_threads(1)
def make(kind):
    more = {"n_steps": 256, "batch_size": 64} if kind is PPO else {"learning_starts": 100, "buffer_size": 2000}
    return kind("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **more)
def weights(model):
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])
found = {}
for kind in (PPO, DQN):
    whole = make(kind); whole.learn(512); whole.learn(512, reset_num_timesteps=False)
    part = make(kind); part.learn(512); part.save("part")
    if kind is DQN:
        part.save_replay_buffer("buffer")
    more = kind.load("part", env=part.get_env(), device="cpu")
    if kind is DQN:
        more.load_replay_buffer("buffer")
    more.learn(512, reset_num_timesteps=False)
    found[kind.__name__] = float((weights(more) - weights(whole)).abs().max())
print(json.dumps(found))
"""


def _others(order: Order) -> dict[str, str]:
    """What stable-baselines3 does when it goes on from its own files, in a process of its own."""
    if order.share < 0.01 or importlib.util.find_spec("stable_baselines3") is None:
        return {}
    place = order.folder / "stable-baselines3"
    place.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SB3], cwd=place, capture_output=True, text=True, timeout=600, check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError, OSError) as error:
        return {"stable-baselines3": f"could not be tried: {type(error).__name__}"}
    return {
        f"stable-baselines3 {name}": f"weights differ by up to {apart:.1e} after going on from its own files"
        for name, apart in found.items()
    }
