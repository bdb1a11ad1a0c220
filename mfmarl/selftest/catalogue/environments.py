"""Environments that break their contract, and numbers that are none."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor

from mfmarl.errors import ConfigError, EnvironmentFault, MfmarlError, NumericFault
from mfmarl.learning import checkpoint
from mfmarl.learning.build import Built
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import read_metrics, read_status
from mfmarl.population.adapter import Adapter
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.simulation import Simulation
from mfmarl.population.spec import Spec
from mfmarl.random import Key
from mfmarl.selftest.case import Case, case, expect
from mfmarl.selftest.command import Answer, forked

AT = 12
"""The step in which the town's faults strike: two checkpoints later than the beginning."""
_LAST_GOOD = 10

TOWN = '''
import os, random, time
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Town(ParallelEnv):
    """Cars that choose one of three lanes and are paid for company; `fault` strikes at step `at` of every episode."""

    metadata = {"name": "town_v0", "render_modes": []}

    def __init__(self, fault: str = "", at: int = 12, cars: int = 3, length: int = 30):
        self.fault, self.at, self.length = fault, at, length
        self.possible_agents = [f"car_{i}" for i in range(cars)]

    def observation_space(self, agent):
        box = spaces.Box(-1.0, 1.0, (3 if self.fault == "differ" and agent == "car_1" else 2,), np.float32)
        if self.fault.startswith("mask"):
            return spaces.Dict({"observation": box, "action_mask": spaces.Box(0, 1, (3,), np.int8)})
        if self.fault == "dict-space":
            return spaces.Dict({"near": box, "far": box})
        if self.fault == "tuple-space":
            return spaces.Tuple((box, box))
        return spaces.Text(4) if self.fault == "text-space" else box

    def action_space(self, agent):
        if self.fault == "no-space":
            return None
        if self.fault == "unbounded":
            return spaces.Box(-np.inf, np.inf, (2,), np.float32)
        if self.fault == "start":
            return spaces.Discrete(3, start=5)
        if self.fault == "mixed-actions" and agent == "car_1":
            return spaces.Box(-1.0, 1.0, (1,), np.float32)
        return spaces.Discrete(1 if self.fault == "one-action" else 2 if self.fault == "differ" and agent == "car_1" else 3)

    def look(self):
        seen = {}
        for i, agent in enumerate(self.agents):
            own = np.zeros(self.observation_space(agent).shape or (2,), np.float32)
            own[:2] = np.sin(self.clock + self.phase + i), self.last.get(agent, 0) / 10
            seen[agent] = own
        if self.fault == "alias":
            for agent, own in seen.items():
                self.buffer.setdefault(agent, np.zeros_like(own))[...] = own
            seen = dict(self.buffer)
        now = self.clock == self.at
        if now and self.fault == "obs-nan":
            seen["car_1"][0] = np.nan
        if now and self.fault == "obs-inf":
            seen["car_1"][0] = np.inf
        if now and self.fault == "outside":
            seen["car_1"][0] = 7.0
        if now and self.fault == "shape":
            seen["car_1"] = np.zeros(5, np.float32)
        if self.fault == "float64":
            seen = {agent: own.astype(np.float64) for agent, own in seen.items()}
        if self.fault == "list":
            seen = {agent: [float(x) for x in own] for agent, own in seen.items()}
        if now and self.fault == "no-key":
            del seen["car_1"]
        if self.fault.startswith("mask"):
            mask = {
                "mask-zero": np.zeros(3, np.int8), "mask-short": np.ones(2, np.int8), "mask-float": np.ones(3),
                "mask-none": None, "mask-two": np.full(3, 2, np.int8),
            }.get(self.fault, np.array([1, 0, 1], np.int8))
            usual = np.array([0, 1, 1], bool if self.fault == "mask-bool" else np.int8)
            seen = {a: {"observation": o, "action_mask": mask if now and a == "car_1" else usual} for a, o in seen.items()}
        return seen

    def reset(self, seed=None, options=None):
        self.agents = [] if self.fault == "empty" else list(self.possible_agents)
        if self.fault == "late-birth":
            self.agents.remove("car_2")
        self.clock, self.last, self.buffer = 0, {}, {}
        self.phase = float(np.random.default_rng(seed).random())
        if self.fault == "noisy":
            print("welcome to town")
            os.chdir(os.path.dirname(os.path.abspath(__file__)) + "/elsewhere")
            np.random.seed(3), random.seed(3)
        return self.look(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.clock += 1
        now, fault = self.clock == self.at, self.fault
        if now and fault == "raises":
            raise ValueError("the road is closed")
        if now and fault == "exits":
            raise SystemExit(0)
        if now and fault == "hangs":
            time.sleep(600)
        if fault == "noisy":
            print("a car moves", np.random.random(), random.random())
            self.phase += 0.0 * np.random.random()
        playing = list(self.agents)
        self.last = {agent: np.sum(actions[agent]) for agent in playing}
        rewards = {a: float(np.mean([self.last[a] == self.last[b] for b in playing])) for a in playing}
        if now and fault.startswith("reward-"):
            rewards["car_1"] = {
                "reward-nan": np.nan, "reward-inf": np.inf, "reward-1e38": 1e38, "reward-1e39": 1e39, "reward-100": 100.0,
                "reward-str": "1.0", "reward-none": None, "reward-array": np.zeros(2),
            }[fault]
        over = self.clock >= self.length and fault != "endless" or fault == "one-step"
        dead = {a: False for a in playing}
        cut = {a: over for a in playing}
        if fault == "die-one-by-one":
            dead = {a: self.clock == int(a[4:]) + 2 for a in playing}
        if fault == "die-together":
            dead = {a: now for a in playing}
        if fault == "both-flags":
            dead = {a: over for a in playing}
        if fault == "int-flags":
            dead = {a: 0 for a in playing}
        if fault in ("back", "back-later"):
            dead = {a: a == "car_1" and self.clock == 3 for a in playing}
        self.agents = [a for a in playing if not dead[a] and not cut[a]]
        if now and fault in ("back", "back-later"):
            self.agents = sorted({*self.agents, "car_1"})
        if now and fault == "late-birth":
            self.agents = self.agents + ["car_2"]
        if now and fault == "vanish":
            self.agents.remove("car_1")
        if now and fault == "ghost":
            self.agents.append("ghost_9")
        listed, self.agents = self.agents, sorted({*playing, *self.agents} - {"ghost_9"})
        seen = self.look()
        self.agents = listed
        if now and fault == "no-reward":
            del rewards["car_1"]
        return seen, rewards, dead, cut, {agent: {} for agent in seen}
'''

CROWD = """
from dataclasses import dataclass
from typing import NamedTuple

import torch
from gymnasium import spaces

from mfmarl.population.environment import PopulationEnv
from mfmarl.population.spec import Spec


class State(NamedTuple):
    share: torch.Tensor
    clock: torch.Tensor


@dataclass(frozen=True)
class Crowd(PopulationEnv):
    fault: str = ""
    at: int = 12
    people: int = 4

    def spec(self):
        return Spec(self.people, spaces.Box(0.0, 1.0, (1,)), spaces.Discrete(3), horizon=30)

    def reset(self, ids, key):
        return State(torch.zeros(ids.shape), torch.zeros(len(ids), dtype=torch.int64))

    def _spoilt(self, x, clock, name):
        value = {"nan": float("nan"), "inf": float("inf"), "big": 1e38}.get(self.fault.removeprefix(name + "-"))
        if value is None or not self.fault.startswith(name):
            return x
        x = x.clone()
        x[:, 1] = torch.where((clock == self.at).view(-1, *[1] * (x.ndim - 2)), value, x[:, 1])
        return x

    def observe(self, state):
        return self._spoilt(state.share.unsqueeze(-1), state.clock, "obs")

    def step(self, state, action, ids, key):
        share = (action.unsqueeze(-1) == action.unsqueeze(-2)).float().mean(-1)
        clock = state.clock + 1
        return State(share, clock), self._spoilt(share, clock, "reward")


class Masked(Crowd):
    def legal(self, state):
        legal = torch.ones((*state.share.shape, 3), dtype=torch.bool)
        legal[:, 1] = (state.clock < self.at).view(-1, 1)
        return legal
"""

_SMALL = ("--warm-up", "8", "--batch-size", "8")
_RUN = (
    "--steps", "20", "--copies", "2", "--evaluation-copies", "0", "--report-every", "5", "--checkpoint-seconds", "0",
    "--quiet", "--name", "run",
)  # fmt: skip


def _write(folder: Path) -> None:
    (folder / "town.py").write_text(TOWN, encoding="utf-8")
    (folder / "crowd.py").write_text(CROWD, encoding="utf-8")


def _command(folder: Path, fault: str, *more: str, town: str = "town.py:Town") -> Answer:
    """`mfmarl train` on a town with that fault, beginning anew."""
    _write(folder)
    place = folder / fault
    place.mkdir(exist_ok=True)
    where = str(folder / town)
    return forked(["train", where, "--fault", fault, "--agent", "iql", *_SMALL, *_RUN, *more], place)


def _stopped(folder: Path, fault: str, answer: Answer, step: int = _LAST_GOOD) -> None:
    """The run is marked as failed, and what is kept of it is from before the fault."""
    run = folder / fault / "runs" / "run"
    status = read_status(run)
    expect(status["state"] == "failed", f"{fault}: the run's status is {status['state']!r}, not failed")
    expect(status["exit_code"] == answer.exit_code, f"{fault}: status.json says exit code {status['exit_code']}")
    found = checkpoint.load(run / "checkpoints")
    expect(found.step == step, f"{fault}: the last checkpoint is of step {found.step}, not {step}")
    wrong = [n for n, x in found.tensors.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]
    expect(not wrong, f"{fault}: the last checkpoint holds numbers that are not finite: {wrong[:3]}")
    rows = read_metrics(run)
    expect(len(rows) > 0 and rows[-1]["step"] <= step, f"{fault}: metrics.jsonl goes on to step {rows[-1]['step']}")
    values = [v for row in rows for v in row.values() if isinstance(v, float)]
    expect(all(map(math.isfinite, values)), f"{fault}: a row of metrics.jsonl holds a number that is not finite")


class Trained(NamedTuple):
    """A run that was carried out in this process."""

    rows: list[dict[str, Any]]
    status: dict[str, Any]
    path: Path
    told: list[str]
    """What was warned of."""
    out: str
    """What was printed on standard output."""


def _trained(
    folder: Path, fault: str = "", name: str = "", town: str = "town.py:Town", agent: str = "iql", **run: Any
) -> Trained:
    """A short run on a town with that fault, to its end; its rows without the times."""
    _write(folder)
    options: dict[str, Any] = {"fault": fault} if fault else {}
    options |= run.pop("options", {})
    small = {"warm_up": 8, "batch_size": 8} if agent in ("iql", "mfq") else {}
    config = RunConfig(
        Choice(str(folder / town), options),
        {"all": Choice(agent, {**small, **run.pop("agent_options", {})})},
        replace(RunOptions(steps=20, copies=2, evaluation_copies=0, report_every=5, exploitability="off"), **run),
    )
    path, out = folder / "runs" / (name or fault or "run"), io.StringIO()
    err = contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(out), err:
        warnings.simplefilter("always")
        run_in_folder(config, path)
    rows = [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in read_metrics(path)]
    return Trained(rows, read_status(path), path, [str(w.message) for w in caught], out.getvalue())


def _refused(call: Callable[[], Any], kind: type[MfmarlError], code: str, *words: str) -> str:
    """What was raised; Missed where it was something else, or nothing."""
    try:
        call()
    except kind as error:
        said = str(error)
        expect(not code or error.code == code, f"expected the code {code!r}, not {error.code!r}: {said}")
        for word in words:
            expect(word in said, f"expected to read {word!r} in {said!r}")
        return said
    except Exception as error:  # noqa: BLE001 - any other is a miss, told with its type
        expect(False, f"expected {kind.__name__}, got {type(error).__name__}: {error}")
    expect(False, f"expected {kind.__name__}, and nothing was raised")
    return ""


def _town(folder: Path, fault: str = "", **options: Any) -> Adapter:
    """Copies of the town as batched tensors, in this process."""
    from mfmarl.population.open import open_env

    _write(folder)
    more = {key: options.pop(key) for key in ("copies", "workers", "timeout", "max_steps") if key in options}
    found = open_env(str(folder / "town.py:Town"), {"fault": fault, **options}, **more)
    assert isinstance(found, Adapter)
    return found


def _play(env: Adapter, steps: int, action: int = 0) -> Any:
    """So many steps of the same action, with episodes begun anew."""
    t = env.reset(Key.of(0))
    for _ in range(steps):
        chosen = (
            torch.full(env.ids.shape, action)
            if env.spec.discrete
            else torch.zeros(*env.ids.shape, env.spec.num_actions)
        )
        t = env.restart(env.step(chosen))
    return t


# ---------------------------------------------------------------------------------------- numbers that are none


@case(39, "a reward is NaN", "S2", "stop before the update: environment, agent, copy, step, value, last action; exit 5")
def nan_reward(folder: Path) -> None:
    answer = _command(folder, "reward-nan")
    answer.expect(5, "nan-reward", "town.py:Town", "agent car_1 is nan", "copy 0", f"step {AT}", "after its action")
    _stopped(folder, "reward-nan", answer)
    again = forked(
        ["train", "--resume", "runs/run", "--quiet", "--import", str(folder / "town.py")], folder / "reward-nan"
    )
    again.expect(5, "nan-reward", f"step {AT}")
    answer = _command(folder, "reward-nan", "--name", "crowd", town="crowd.py:Crowd")
    answer.expect(
        5, "nan-reward", "Crowd gave a reward of nan to agent agent_1 of copy 0", f"step {AT}", "after its action"
    )


@case(40, "a reward is infinite, or so large that its square is no float32", "S2", "as 39; the bound is --reward-limit")
def huge_reward(folder: Path) -> None:
    for fault, code in (("reward-inf", "nan-reward"), ("reward-1e38", "reward-bound"), ("reward-1e39", "reward-bound")):
        answer = _command(folder, fault)
        answer.expect(5, code, "agent car_1", f"step {AT}", "after its action")
        _stopped(folder, fault, answer)
    answer = _command(folder, "reward-100", "--reward-limit", "10")
    answer.expect(5, "reward-bound", "reward_limit = 10", "agent car_1")
    _stopped(folder, "reward-100", answer)
    answer = _command(folder, "reward-big", "--name", "crowd", town="crowd.py:Crowd")
    answer.expect(5, "reward-bound", "agent agent_1 of copy 0", "reward_limit")


@case(41, "a reward is text, None or an array", "S3", "an error that names the agent, exit 3")
def reward_of_another_type(folder: Path) -> None:
    for fault, kind in (("reward-str", "(str)"), ("reward-none", "(NoneType)"), ("reward-array", "(ndarray)")):
        answer = _command(folder, fault)
        answer.expect(3, "environment-fault", "the reward of agent car_1", kind, f"step {AT}")
        _stopped(folder, fault, answer)


@case(42, "an observation is NaN or infinite", "S2", "as 39")
def nan_observation(folder: Path) -> None:
    for fault in ("obs-nan", "obs-inf"):
        answer = _command(folder, fault)
        answer.expect(5, "nan-observation", "agent car_1", f"step {AT}", "after its action")
        _stopped(folder, fault, answer)
    answer = _command(folder, "obs-nan", "--name", "crowd", town="crowd.py:Crowd")
    answer.expect(5, "nan-observation", "agent agent_1 of copy 0", f"step {AT}")


# -------------------------------------------------------------------------------------- what is seen, and its type


@case(
    43, "an observation outside its space", "S2", "an error of check-env; training warns once and counts train/outside"
)
def outside_its_space(folder: Path) -> None:
    run = _trained(folder, "outside", options={"at": 7})
    told = [text for text in run.told if "outside its space" in text]
    expect(len(told) == 1 and "agent car_1" in told[0], f"expected one warning that names the agent, got {run.told}")
    counted = [row.get("train/outside", 0) for row in run.rows]
    expect(counted == [0, 2, 2, 2], f"expected train/outside 0, 2, 2, 2 (two copies), got {counted}")
    answer = forked(["check-env", str(folder / "town.py:Town"), "--fault", "outside", "--at", "3"], folder)
    expect(
        answer.exit_code == 3,
        f"`check-env` left with {answer.exit_code}, not 3: {answer.out[-300:]}{answer.err[-300:]}",
    )
    expect("space" in answer.out + answer.err, f"`check-env` does not speak of a space: {answer.out[-300:]}")


@case(
    44,
    "observations of another type than their space, or lists",
    "S4",
    "cast, with one warning; results as of the right type",
)
def another_type(folder: Path) -> None:
    right = _trained(folder, "", name="right")
    for fault in ("float64", "list"):
        run = _trained(folder, fault)
        told = [text for text in run.told if "it is cast" in text]
        expect(len(told) == 1 and "float64" in told[0], f"{fault}: expected one warning of float64, got {run.told}")
        expect(run.rows == right.rows, f"{fault}: the run differs from the one with the right type")
    expect(not right.told, f"the right type is warned of: {right.told}")


@case(45, "an observation of the wrong shape", "S3", "an error that names the agent, exit 3")
def wrong_shape(folder: Path) -> None:
    answer = _command(folder, "shape")
    answer.expect(3, "environment-fault", "the observation of agent car_1 has shape (5,)", "(2,)", f"step {AT}")
    _stopped(folder, "shape", answer)


# ------------------------------------------------------------------------------------ environments that misbehave


@case(46, "an environment raises in the middle of an episode", "S3",
      "stop with its sentence, file and line (default), or on_fault = restart: counted, capped, repeatable")  # fmt: skip
def raises(folder: Path) -> None:
    answer = _command(folder, "raises")
    answer.expect(3, "environment-raised", "ValueError: the road is closed", "town.py, line", f"step {AT}")
    _stopped(folder, "raises", answer)
    kept = (folder / "raises" / "runs" / "run" / "fault.json").read_text(encoding="utf-8")
    expect("raise ValueError" in kept and "town.py" in kept, f"fault.json does not hold the traceback: {kept[:200]}")
    answer = _command(folder, "exits")
    answer.expect(3, "environment-raised", "SystemExit", f"step {AT}")
    for at, length in ((1, 30), (5, 30), (4, 4)):
        runs = [
            _trained(folder, "raises", name=f"at-{at}-{workers}-{n}", options={"at": at, "length": length},
                     on_fault="restart", environment_restarts=100, workers=workers)
            for n, workers in enumerate((0, 0) if at != 5 else (0, 2))
        ]  # fmt: skip
        first, second = runs
        expect(first.rows == second.rows, f"raising at {at}: two runs differ")
        count, wanted = first.rows[-1]["train/restarts"], 2 * (20 // at)
        expect(count == wanted, f"raising at {at}: {count} restarts were counted, expected {wanted}")
        expect(
            any("the road is closed" in text for text in first.told), f"no warning says what was raised: {first.told}"
        )
    _refused(
        lambda: _trained(folder, "raises", name="cap", options={"at": 2}, on_fault="restart", environment_restarts=3),
        EnvironmentFault, "environment-raised", "the road is closed", "environment_restarts = 3",
    )  # fmt: skip


@case(47, "an environment hangs in a step", "S3",
      "in a process of its own (--workers): stopped after --timeout, exit 3, none left; in this process: documented as impossible")  # fmt: skip
def hangs(folder: Path) -> None:
    begun = time.monotonic()
    env = _town(folder, "hangs", at=3, workers=1, timeout=0.5)
    process = env._place.children[0].process  # type: ignore[attr-defined]
    try:
        said = _refused(
            lambda: _play(env, 5), EnvironmentFault, "environment-hangs", "town.py:Town", "0.5 seconds", "--timeout"
        )
    finally:
        env.close()
    expect(process.poll() is not None, "the process that hung is still there")
    expect(time.monotonic() - begun < 90, f"it took {time.monotonic() - begun:.0f} s to say: {said}")


@case(48, "an environment prints, seeds and draws from global generators, and leaves the folder", "S2",
      "results and the caller's generators, folder and standard output are untouched")  # fmt: skip
def noisy(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    quiet = _trained(folder, "", name="quiet")
    here = os.getcwd()

    def generators() -> tuple[Any, ...]:
        numpy: Any = np.random.get_state()  # noqa: NPY002 - that is what it is about
        return random.getstate(), numpy[1].tobytes(), numpy[2], torch.get_rng_state().numpy().tobytes()

    before = generators()
    run = _trained(folder, "noisy")
    expect(generators() == before, "the caller's global generators moved")
    expect(os.getcwd() == here, f"the working folder is {os.getcwd()} after the run, not {here}")
    expect(run.rows == quiet.rows, "the run of a noisy environment differs from that of a quiet one")
    expect(not run.out, f"it printed on standard output: {run.out[:100]!r}")


# --------------------------------------------------------------------------------------------------- life and death


@case(49, "agents die one by one, or all in one step", "S2", "masked out; the field is of the living; the episode ends")
def deaths(folder: Path) -> None:
    from mfmarl.population.field import parse_field

    env = _town(folder, "die-one-by-one")
    field = parse_field("actions over everyone")
    t = env.reset(Key.of(0))
    alive, felt = [], []
    for _ in range(4):
        t = env.step(torch.tensor([[0, 1, 2]]))
        alive.append(t.alive[0].tolist())
        felt.append(field(t, env.spec, env.ids, Key(0), slice(0, 3))[0, 2].tolist())
        if bool(t.ended.all()):
            break
    # Car i dies in step i + 2.
    wanted = [[True, True, True], [False, True, True], [False, False, True], [False, False, False]]
    expect(alive == wanted, f"alive after each step: {alive}, by hand {wanted}")
    expect(bool(t.ended.all()), "nobody lives, and the episode goes on")
    # What car 2 feels: the mean choice of the others who live, car 0 and 1, then car 1 alone, then nobody.
    by_hand = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    near = all(np.allclose(a, b, atol=1e-6) for a, b in zip(felt[:3], by_hand, strict=True))
    expect(near, f"car 2 felt {felt[:3]}, by hand {by_hand}")
    for fault in ("die-one-by-one", "die-together"):
        run = _trained(folder, fault, agent="mfq", options={"at": 4})
        values = [v for row in run.rows for v in row.values() if isinstance(v, float)]
        expect(run.status["state"] == "done" and all(map(math.isfinite, values)), f"{fault}: not done, or not finite")


@case(
    50, "agents come back from the dead, or appear", "S2", "those of possible_agents may be born once; none comes back"
)
def comes_back(folder: Path) -> None:
    answer = _command(folder, "back", "--at", "5")
    answer.expect(3, "environment-fault", "agent car_1 came back after its end", "step 5")
    env = _town(folder, "late-birth", at=3)
    t = env.reset(Key.of(0))
    lives = [bool(t.alive[0, 2])]
    for _ in range(4):
        t = env.step(torch.zeros(1, 3, dtype=torch.int64))
        lives.append(bool(t.alive[0, 2]))
    expect(lives == [False, False, False, True, True], f"who is born in step 3 lives {lives}")


@case(51, "an agent vanishes, a stranger appears, a key is missing", "S3", "an error that names agent and step, exit 3")
def vanishes(folder: Path) -> None:
    for fault, words in (
        ("vanish", "agent car_1 left env.agents without being terminated or truncated"),
        ("ghost", "agent ghost_9 is not in possible_agents"),
        ("no-key", "agent car_1 has no observation"),
        ("no-reward", "agent car_1 has no reward"),
    ):
        answer = _command(folder, fault)
        answer.expect(3, "environment-fault", words, f"step {AT}")
        _stopped(folder, fault, answer)


@case(
    52, "there is nobody", "S2", "nobody at the reset: an error; nobody later: the episode ends, and no number is NaN"
)
def nobody(folder: Path) -> None:
    _command(folder, "empty").expect(3, "environment-fault", "no agents after reset")
    run = _trained(folder, "die-together", agent="mfq", options={"at": 1})
    values = [v for row in run.rows for v in row.values() if isinstance(v, float)]
    expect(
        len(run.rows) == 4 and all(map(math.isfinite, values)), "episodes of one step gave numbers that are not finite"
    )
    from mfmarl.learning.agent import pooled
    from mfmarl.population.field import parse_field

    env = _town(folder)
    t = env.reset(Key.of(0))
    empty = t._replace(alive=torch.zeros_like(t.alive), acting=torch.zeros_like(t.acting))
    for text in ("actions over everyone", "states over everyone", "actions over sampled(2)"):
        felt = parse_field(text)(empty, env.spec, env.ids, Key(0), slice(0, 3))
        expect(bool(torch.isfinite(felt).all()), f"{text!r} of nobody is {felt.flatten().tolist()[:4]}")
    loss = pooled(torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.bool))
    expect(float(loss) == 0.0, f"the loss of no rows is {float(loss)}, not 0")
    _refused(lambda: Spec(0, gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)), ConfigError, "")


@case(
    53, "one agent alone", "S2", "the mean-field learner is the single-agent learner, bit by bit, whoever shares minds"
)
def alone(folder: Path) -> None:
    one: dict[str, Any] = {"options": {"cars": 1}}
    runs = [_trained(folder, name=f"iql-{s}", sharing=s, **one) for s in ("all", "group", "none")]
    expect(runs[0].rows == runs[1].rows == runs[2].rows, "one agent learns otherwise where minds are shared otherwise")
    tables = [
        _trained(folder, name=f"table-{agent}", agent=agent, agent_options={"values": "table", "bins": 3}, **one)
        for agent in ("iql", "mfq")
    ]
    rows = [[{k.split("/", 1)[-1]: v for k, v in row.items()} for row in run.rows] for run in tables]
    expect(rows[0] == rows[1], "of one agent, mean-field Q-learning in a table is not Q-learning bit by bit")


@case(
    54,
    "a population that does not fit in memory",
    "S1",
    "refused before it is made, with sizes and how many would fit; exit 8",
)
def too_many(folder: Path) -> None:
    from mfmarl.learning.footprint import estimate

    _write(folder)
    where = str(folder / "crowd.py:Crowd")
    asked = ["train", where, "--people", "1000000000", "--name", "x", "--quiet"]
    answer = forked(asked, folder).expect(8, "memory", "GB", "agents would fit")
    expect(not (folder / "runs" / "x").exists(), "a run folder was made for what was refused")
    expect(answer.seconds < 60, f"it took {answer.seconds:.0f} s to refuse it")
    asked = ["train", where, "--people", "100000", "--max-memory", "1e6", "--name", "y", "--quiet"]
    forked(asked, folder).expect(8, "memory", "1.0 MB may be taken", "agents would fit")
    config = RunConfig(Choice(where), {"all": Choice("mfq")}, RunOptions(copies=4, evaluation_copies=0))
    sizes = [
        estimate(
            config, Spec(n, gymnasium.spaces.Box(0.0, 1.0, (1,)), gymnasium.spaces.Discrete(3), horizon=30)
        ).population
        for n in (10**4, 10**5, 10**6)
    ]
    grown = [b / a for a, b in itertools.pairwise(sizes)]
    expect(all(abs(g - 10) < 0.1 for g in grown), f"ten times the agents take {grown} times the memory")


@case(55, "episodes of one step, and environments that never end", "S2", "returns are defined; --max-steps ends them")
def lengths(folder: Path) -> None:
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (("one-step", {}), ("endless", {}), ("endless", {"max_steps": 4}))
    for fault, more in kinds:
        for agent in ("iql", "ippo"):
            run = _trained(folder, fault, name=f"{fault}-{agent}-{len(more)}", agent=agent, **more)
            values = [v for row in run.rows for v in row.values() if isinstance(v, float)]
            expect(run.status["state"] == "done", f"{fault}, {agent}: {run.status['error']}")
            expect(all(map(math.isfinite, values)), f"{fault}, {agent}: a number is not finite")
    env = _town(folder, "endless", max_steps=4)
    t = env.reset(Key.of(0))
    ends = []
    for _ in range(4):
        t = env.step(torch.zeros(1, 3, dtype=torch.int64))
        ends.append(bool(t.ended.all()))
    expect(ends == [False, False, False, True] and bool(t.truncated.all()), f"max_steps = 4 ended it after {ends}")


@case(
    56,
    "terminated and truncated at once; whole numbers for flags",
    "S2",
    "terminated wins; flags are bools, else exit 3",
)
def flags(folder: Path) -> None:
    env = _town(folder, "both-flags", length=2)
    t = env.reset(Key.of(0))
    for _ in range(2):
        t = env.step(torch.zeros(1, 3, dtype=torch.int64))
    expect(bool(t.terminated.all()) and not bool(t.truncated.any()), "both flags did not mean terminated")
    answer = _command(folder, "int-flags")
    answer.expect(3, "environment-fault", "the termination of agent car_0 is 0 (int), not a bool", "step 1")


# ------------------------------------------------------------------------------------------------ masks and spaces


@case(57, "no action is legal", "S2", "an error that names agent and step, exit 3: never action 0")
def no_legal_action(folder: Path) -> None:
    from mfmarl.statmech import gibbs

    answer = _command(folder, "mask-zero")
    answer.expect(3, "no-legal-action", "agent car_1", f"step {AT}")
    _stopped(folder, "mask-zero", answer)
    _write(folder)
    for agent in ("iql", "mfac", "mfppo", "random"):
        place = folder / agent
        place.mkdir()
        answer = forked(["train", str(folder / "crowd.py:Masked"), "--agent", agent, *_RUN], place)
        answer.expect(3, "no-legal-action", "agent agent_1 of copy 0", f"step {AT}")
    _refused(lambda: gibbs.probabilities(torch.full((1, 3), math.inf), 1.0), NumericFault, "")


@case(58, "a mask of the wrong length, type or value, or None", "S3", "an error that names agent and step, exit 3")
def bad_mask(folder: Path) -> None:
    for fault, words in (
        ("mask-short", "has shape (2,), expected (3,)"),
        ("mask-float", "float64"),
        ("mask-two", "not made of whole numbers 0 and 1"),
        ("mask-none", "is missing"),
    ):
        answer = _command(folder, fault)
        answer.expect(3, "bad-mask", "the action mask of agent car_1", words, f"step {AT}")
    run = _trained(folder, "mask-bool")
    expect(run.status["state"] == "done", f"a mask of bools was refused: {run.status['error']}")


@case(59, "agents with different spaces; spaces that cannot be had; observations that are reused", "S2",
      "padded and masked; refused by name before anything is written, exit 2; copies are taken")  # fmt: skip
def spaces_differ(folder: Path) -> None:
    env = _town(folder, "differ")
    t = env.reset(Key.of(0))
    expect(
        env.spec.observation_shape == (3,) and bool((t.obs[0, 0, 2:] == 0).all()), "shorter observations are not padded"
    )
    assert t.legal is not None
    expect(t.legal[0].tolist() == [[True] * 3, [True, True, False], [True] * 3], f"masks are {t.legal[0].tolist()}")
    for fault, words in (
        ("dict-space", "Dict of 'far', 'near'"), ("tuple-space", "Tuple"), ("text-space", "Text"),
        ("mixed-actions", "expected one kind for all"),
    ):  # fmt: skip
        _command(folder, fault).expect(2, "", "agent car_", words)
        expect(not (folder / fault / "runs" / "run").exists(), f"{fault}: a run folder was made for what was refused")
    usual, reused = _trained(folder, "", name="usual"), _trained(folder, "alias")
    expect(usual.rows == reused.rows, "an environment that reuses its observations gives another run")


@case(60, "an action space that is None, has one action, does not start at 0, or has no bounds", "S3",
      "refused by name, or played exactly")  # fmt: skip
def action_spaces(folder: Path) -> None:
    _command(folder, "no-space").expect(2, "", "the action space of agent car_0 is NoneType")
    for agent in ("iql", "mfppo", "mfac"):
        run = _trained(folder, "one-action", name=f"one-{agent}", agent=agent)
        expect(run.status["state"] == "done", f"{agent} with a single action: {run.status['error']}")
    env = _town(folder, "start")
    t = _play(env, 1, action=2)
    expect(t.action.tolist() == [[2, 2, 2]], f"actions that start at 5 are shown as {t.action.tolist()}")
    seen = t.obs[0, :, 1].tolist()
    expect(
        all(abs(x - 0.7) < 1e-6 for x in seen), f"action 2 of a space that starts at 5 was played as {10 * seen[0]:g}"
    )
    for agent in ("mfppo", "mfac"):
        run = _trained(folder, "unbounded", name=f"unbounded-{agent}", agent=agent)
        expect(run.status["state"] == "done", f"{agent} without bounds: {run.status['error']}")
    _command(folder, "unbounded").expect(2, "", "needs discrete actions")


# --------------------------------------------------------------------------------------------------------- learning


class _Light(NamedTuple):
    on: Tensor


@dataclass(frozen=True)
class _Lights(PopulationEnv):
    """Three lamps; who switches on as most do is paid."""

    box: bool = False

    def spec(self) -> Spec:
        space = gymnasium.spaces.Box(-1.0, 1.0, (1,)) if self.box else gymnasium.spaces.Discrete(2)
        return Spec(3, gymnasium.spaces.Discrete(2), space, horizon=4, discount=0.9)

    def reset(self, ids: Tensor, key: Key) -> _Light:
        return _Light(torch.zeros(ids.shape, dtype=torch.int64))

    def observe(self, state: _Light) -> Tensor:
        return state.on

    def step(self, state: _Light, action: Tensor, ids: Tensor, key: Key) -> tuple[_Light, Tensor]:
        on = (action[..., 0] > 0).long() if self.box else action
        return _Light(on), (on == (on.sum(-1, keepdim=True) > 1)).float()


def _learner(agent: str, sharing: str = "group", box: bool = False, **options: Any) -> Built:
    """A training on the lamps, a few updates old."""
    from mfmarl.learning.players import make_players
    from mfmarl.learning.training import Training

    run = RunOptions(steps=10_000, copies=4, evaluation_copies=0, sharing=sharing, exploitability="off")  # type: ignore[arg-type]
    config = RunConfig(Choice("lamps"), {"all": Choice(agent, options)}, run)
    env = Simulation(_Lights(box=box), 4)
    players = make_players(config, env.spec, Key.of(0), torch.device("cpu"))
    training = Training(env, players, run)
    return Built(training, env, None, players)


def _weights(built: Built) -> list[Tensor]:
    """All that learning changes, copied."""
    agent = built.players[0].agent
    states = [
        v for o in agent.optimisers().values() for s in o.state.values() for v in s.values() if isinstance(v, Tensor)
    ]
    return [x.detach().clone() for x in (*agent.parameters(), *states)]


GRADIENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mfq", {"warm_up": 8, "batch_size": 8}),
    ("mfq", {"warm_up": 8, "batch_size": 8, "replicas": 3}),
    ("mfq", {"warm_up": 8, "batch_size": 8, "sharing": "none"}),
    *(("mfq", {"warm_up": 8, "batch_size": 8, "optimiser": name}) for name in ("sgld", "psgld", "sghmc")),
    ("iql", {"warm_up": 8, "batch_size": 8}),
    ("mfac", {"warm_up": 8, "batch_size": 8}),
    ("mfac", {"warm_up": 8, "batch_size": 8, "box": True}),
    ("mfppo", {"rollout": 4}),
    ("mfppo", {"rollout": 4, "box": True}),
    ("mfppo", {"rollout": 4, "sharing": "none"}),
    ("deep_active_inference", {"warm_up": 8, "batch_size": 8, "candidates": 8, "elites": 2, "iterations": 1}),
)
"""Every way down a gradient that agents here have: networks, optimisers, replicas, minds."""


def nan_gradient_in(agent: str, options: dict[str, Any], value: float = math.nan) -> str:
    """What is missed where the gradient of one weight turns into `value`; empty: nothing was touched by it."""
    options = dict(options)
    sharing, box = options.pop("sharing", "group"), options.pop("box", False)
    built = _learner(agent, sharing, box, **options)
    training, name = built.training, f"{agent} {options} sharing={sharing}"
    for _ in range(12):
        training.step()
    weight = next(p for p in built.players[0].agent.parameters() if p.requires_grad)
    before: list[Tensor] = []

    def spoil(gradient: Tensor) -> Tensor:
        before[:] = before or _weights(built)
        spoilt = gradient.clone()
        spoilt.view(-1)[0] = value
        return spoilt

    weight.register_hook(spoil)
    # What is learned before the spoilt gradient in the same step (a critic, then an actor) is sound, and may change.
    try:
        for _ in range(8):
            training.step()
    except NumericFault as fault:
        told = str(fault)
        for word in ("_Lights", "all", f"at step {training.tick}", "gradient"):
            if word not in told:
                return f"{name}: {word!r} is not in {told!r}"
        if fault.code != "nan-gradient":
            return f"{name}: the code is {fault.code}"
        if sharing == "none" and "mind of agent agent_0" not in told:
            return f"{name}: the mind is not named: {told}"
        after = _weights(built)
        if len(after) != len(before) or not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            return f"{name}: weights or optimiser changed"
        return "" if all(bool(torch.isfinite(x).all()) for x in after) else f"{name}: something is not finite"
    return f"{name}: a gradient of {value} was learned from"


@case(61, "a gradient is NaN (clipping spreads it to all weights, and Adam keeps it for ever)", "S2",
      "stop before the update, weights and optimiser untouched; whose mind, environment, step; exit 5")  # fmt: skip
def nan_gradient(folder: Path) -> None:
    for agent, options in GRADIENTS:
        missed = nan_gradient_in(agent, options)
        expect(not missed, missed)
    missed = nan_gradient_in("mfq", {"warm_up": 8, "batch_size": 8}, math.inf)
    expect(not missed, missed)


@case(
    62, "learning diverges, or is left without any choice", "S2", "alarms in the metrics; the run is marked as diverged"
)
def divergence(folder: Path) -> None:
    wild = {"learning_rate": 10.0, "gradient_clip": 0.0, "anneal": False, "target_rate": 1.0}
    run = _trained(folder, "endless", name="wild", agent="iql", agent_options=wild, steps=200, report_every=50)
    alarms = {name for row in run.rows for name in row if "/alarm/" in name}
    expect("all/alarm/loss" in alarms or "all/alarm/value" in alarms, f"no alarm of {sorted(alarms)}: {run.rows[-1]}")
    expect("at step" in str(run.status.get("diverged", "")), f"status.json does not say that it diverged: {run.status}")
    calm = _trained(folder, "endless", name="calm", agent="iql", steps=200, report_every=50)
    ringing = [name for row in calm.rows for name in row if "/alarm/" in name]
    expect(not ringing and "diverged" not in calm.status, f"an ordinary run is marked: {ringing}, {calm.status}")
    from mfmarl.learning.health import alarms as look

    built = _learner("iql")
    frozen = look(built.players[0], {"all/entropy": 0.0})
    expect("entropy" in frozen, "an entropy of 0 at temperature 1 rings no alarm")


@case(63, "a temperature of 0, below it, infinite or NaN", "S2", "0 is the best action; the others are refused, exit 2")
def temperatures(folder: Path) -> None:
    from mfmarl.statmech import gibbs
    from mfmarl.statmech.annealing.schedule import parse_schedule

    energy = torch.tensor([[3.0, -1.0, 2.0], [0.0, 0.0, 1.0], [1e30, -1e30, 0.0]])
    p = gibbs.probabilities(energy, 0.0)
    expect(
        torch.equal(p, torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])), f"at T = 0 p is {p.tolist()}"
    )
    drawn = gibbs.sample(energy.repeat(50, 1), 0.0, torch.arange(150), Key(1)).view(50, 3)
    expect(bool((drawn[:, 0] == 1).all() & (drawn[:, 2] == 1).all()), "at T = 0 another than the best action was drawn")
    for text in (
        "-1",
        "inf",
        "nan",
        "linear(1, -0.1)",
        "linear(inf, 0)",
        "geometric(1, 0)",
        "1e400",
        "entropy(-1)",
        "entropy(nan)",
    ):
        _refused(lambda text=text: parse_schedule(text), ConfigError, "")  # type: ignore[misc]
    _write(folder)
    for agent in ("iql", "mfac", "mfppo", "mean_field_inference"):
        for text in ("-1", "inf", "nan"):
            place = folder / f"{agent}{text}"
            place.mkdir()
            asked = ["train", str(folder / "town.py:Town"), "--agent", agent, f"--temperature={text}", *_RUN]
            forked(asked, place).expect(2, "", "emperature")
            expect(not (place / "runs" / "run").exists(), f"{agent} {text}: a run folder was made for what was refused")


@case(
    64,
    "schedules over no steps, that end below where they start, and beyond their end",
    "S3",
    "clamped; never divided by 0",
)
def schedules(folder: Path) -> None:
    from mfmarl.statmech.annealing.schedule import parse_schedule

    texts = (
        "1", "linear(1, 0.1)", "linear(0.1, 1)", "linear(1, 1)", "geometric(1, 0.01)", "geometric(0.01, 1)", "cosine(1, 0)",
        "logarithmic(1, 0.2)", "cyclic(1, 0.1, 3)", "through(3, 2, 1)", "linear(2, 1, 1e-9)", "geometric(1, 1e-12)",
    )  # fmt: skip
    for text in texts:
        schedule = parse_schedule(text)
        ends = schedule.at(0.0), schedule.at(1.0)
        low, high = min(*ends, schedule.start, schedule.end), max(*ends, schedule.start, schedule.end)
        for progress in (-1e9, -0.0, 0.0, 1e-300, 0.3, 1.0, 1.5, 1e300):
            at = schedule.at(progress)
            expect(low - 1e-12 <= at <= high + 1e-9 or schedule.kind == "through", f"{text} at {progress} is {at}")
            expect(math.isfinite(at), f"{text} at {progress} is {at}")
        expect(schedule.at(7.0) == schedule.at(1.0), f"{text} goes on after its end")
        expect(schedule.temperatures(1) == [schedule.at(0.0)], f"{text} over one step is {schedule.temperatures(1)}")
        _refused(lambda schedule=schedule: schedule.temperatures(0), ConfigError, "", "at least 1")  # type: ignore[misc]
    _command(folder, "", "--steps", "0").expect(2, "", "steps")


@case(65, "counters so large that a float would stand still", "S2", "whole numbers: step 2^53 + 1 follows 2^53")
def counters(folder: Path) -> None:
    far = 2**53
    built = _learner("mfq", warm_up=8, batch_size=8)
    training = built.training
    for _ in range(3):
        training.step()
    training.episode.tick = training.episode.env.tick = far  # type: ignore[attr-defined]
    training.agent_steps = far
    training.options = replace(training.options, steps=1 << 60)
    for _ in range(3):
        training.step()
    expect(training.tick == far + 3, f"three steps after 2^53 it is step 2^53 + {training.tick - far}")
    tensors, plain = training.state_dict()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        checkpoint.save(Path(place), training.tick, tensors, plain)
        found = checkpoint.load(Path(place))
    expect(int(found.state["tick"]) == far + 3, f"the checkpoint says step {found.state['tick']}")
    other = _learner("mfq", warm_up=8, batch_size=8).training
    other.options = training.options
    other.load_state_dict(found.tensors, found.state)
    expect(other.tick == far + 3 and other.episode.env.tick == far + 3, f"it goes on at step {other.tick}")  # type: ignore[attr-defined]
    row = training.report()
    expect(
        row["step"] == far + 3 and row["agent_steps"] == far + 6 * 12, f"it reports {row['step']}, {row['agent_steps']}"
    )
    expect(Key(1).fold(far) != Key(1).fold(far + 1), "the noise of steps 2^53 and 2^53 + 1 is the same")


CASES: list[Case] = [
    nan_reward, huge_reward, reward_of_another_type, nan_observation, outside_its_space, another_type, wrong_shape, raises,
    hangs, noisy, deaths, comes_back, vanishes, nobody, alone, too_many, lengths, flags, no_legal_action, bad_mask,
    spaces_differ, action_spaces, nan_gradient, divergence, temperatures, schedules, counters,
]  # fmt: skip
