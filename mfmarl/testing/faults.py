"""Every fault that `FaultyEnv` has on demand: one way each in which an environment can break PettingZoo's contract.

A fault strikes what the game answers (`strike`, at the moment that `when` names); those that are not about an answer (spaces,
calls out of turn, signatures) are known to `faulty_env` by name.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from mfmarl.testing.finding import Level
from mfmarl.testing.small_game import ACTIONS, LIFE, SIZE, Answer

Form = Literal["parallel", "aec"]
When = Literal["reset", "first", "once", "after", "last", "always", "never"]
Strike = Callable[[Any, Answer], None]
"""Given the environment (with its `game`) and the answer, which it spoils."""

BOTH: tuple[Form, ...] = ("parallel", "aec")


@dataclass(frozen=True)
class Fault:
    """One way to be wrong."""

    name: str
    does: str
    """One sentence: what the environment does."""
    level: Level = "error"
    """What a check should call it at least: a warning where an author may mean it."""
    case: int | None = None
    """Its number in the catalogue of faults that every command must meet."""
    forms: tuple[Form, ...] = BOTH
    needs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The options of the game in which it can show."""
    strike: Strike | None = None
    when: When = "never"


FAULTS: dict[str, Fault] = {}
"""By name."""


def _add(name: str, does: str, strike: Strike | None = None, when: When = "never", **more: Any) -> None:
    FAULTS[name] = Fault(name, does, strike=strike, when=when if strike is None or when != "never" else "once", **more)


# ------------------------------------------------------------------------------------------------- rewards


def _paid(value: Callable[[Any], Any]) -> Strike:
    def strike(env: Any, answer: Answer) -> None:
        answer.rewards[env.game.first] = value(answer.rewards[env.game.first])

    return strike


def _payment(name: str, does: str, value: Callable[[Any], Any], case: int, level: Level = "error") -> None:
    _add(name, does, _paid(value), case=case, level=level)


_payment("nan-reward", "One agent's reward is NaN, once.", lambda r: float("nan"), 39)
_payment("inf-reward", "One agent's reward is infinite, once.", lambda r: float("inf"), 40)
_payment("minus-inf-reward", "One agent's reward is minus infinity, once.", lambda r: -np.inf, 40)
_payment("huge-reward", "One agent's reward is 1e38, once: its square is infinite in float32.", lambda r: 1e38, 40)
_payment("string-reward", "One agent's reward is a text, once.", str, 41)
_payment("none-reward", "One agent's reward is None, once.", lambda r: None, 41)
_payment("array-reward", "One agent's reward is an array [2], once.", lambda r: np.array([r, r]), 41)
_payment("array-of-one-reward", "One agent's reward is an array [1], once.", lambda r: np.array([r]), 41, "warning")
_payment("complex-reward", "One agent's reward is a complex number, once.", complex, 41)
_payment("bool-reward", "One agent's reward is True, once.", lambda r: True, 41, "warning")


def _without(which: str) -> Strike:
    return lambda env, answer: getattr(answer, which).pop(env.game.first)


def _with_ghost(which: str, value: Any) -> Strike:
    return lambda env, answer: getattr(answer, which).update(ghost_0=value)


def _as_list(which: str) -> Strike:
    def strike(env: Any, answer: Answer) -> None:
        setattr(answer, which, list(getattr(answer, which).values()))

    return strike


_add("missing-reward", "The rewards lack a living agent, once.", _without("rewards"), case=51)
_add("ghost-reward", "The rewards hold an agent that does not exist, once.", _with_ghost("rewards", 0.0), case=51)
_add("rewards-as-a-list", "The rewards are a list.", _as_list("rewards"), "after", forms=("parallel",))


def _same_dictionary(env: Any, answer: Answer) -> None:
    kept = env.kept.setdefault("rewards", {})
    kept.clear()
    kept.update(answer.rewards)
    answer.rewards = kept


_add(
    "reward-dictionary-reused",
    "The dictionary of rewards is always the same one, overwritten in each step.",
    _same_dictionary,
    "always",
    level="warning",
    forms=("parallel",),
)

# -------------------------------------------------------------------------------------------- observations


def _seen(change: Callable[[Any], Any]) -> Strike:
    def strike(env: Any, answer: Answer) -> None:
        answer.observations[env.game.first] = change(answer.observations[env.game.first])

    return strike


def _with(index: int, value: float) -> Callable[[Any], Any]:
    def change(seen: Any) -> Any:
        changed = np.array(seen, np.float32)
        changed[index] = value
        return changed

    return change


def _sight(name: str, does: str, change: Callable[[Any], Any], case: int | None = None, **more: Any) -> None:
    _add(name, does, _seen(change), case=case, **more)


_UNBOUNDED = {"observation": "unbounded"}
_sight("nan-observation", "One agent sees a NaN, once.", _with(1, np.nan), 42)
_sight("inf-observation", "One agent sees an infinity, once.", _with(1, np.inf), 42)
_sight(
    "nan-in-an-unbounded-box",
    "One agent sees a NaN, and its Box has no bounds.",
    _with(1, np.nan),
    42,
    needs=_UNBOUNDED,
)
_sight(
    "inf-in-an-unbounded-box",
    "One agent sees an infinity, and its Box has no bounds.",
    _with(1, np.inf),
    42,
    needs=_UNBOUNDED,
)
_sight("observation-outside-its-space", "One agent sees a 2 in a Box that ends at 1, once.", _with(0, 2.0), 43)
_sight("observation-just-outside", "One agent sees 1.0001 in a Box that ends at 1, once.", _with(0, 1.0001), 43)
_sight(
    "float64-observation", "One agent sees float64 in a Box of float32, once.", lambda seen: seen.astype(np.float64), 44
)
_sight("integer-observation", "One agent sees int64 in a Box of float32, once.", lambda seen: seen.astype(np.int64), 44)
_sight("list-observation", "One agent sees a list, once.", lambda seen: seen.tolist(), 44)
_sight("none-observation", "One agent sees None, once.", lambda seen: None, 45)
_sight("scalar-observation", "One agent sees a number where its space has four, once.", lambda seen: float(seen[0]), 45)
_sight("short-observation", "One agent sees three numbers where its space has four, once.", lambda seen: seen[:3], 45)
_sight("nested-observation", "One agent sees [1, 4] where its space is [4], once.", lambda seen: seen[None], 45)
_sight("string-observation", "One agent sees a text, once.", lambda seen: "wall", 45)
_sight("object-observation", "One agent sees an array of objects, once.", lambda seen: seen.astype(object), 44)
_sight(
    "structured-observation", "One agent sees a dictionary that its space lacks, once.", lambda seen: {"x": seen}, 45
)
_sight(
    "class-outside-its-space",
    "One agent sees the class 10 of a Discrete(10), once.",
    lambda seen: 10,
    43,
    needs={"observation": "discrete"},
)
_sight(
    "class-as-a-float",
    "One agent sees the class 3.0 of a Discrete space, once.",
    float,
    44,
    needs={"observation": "discrete"},
)
_sight(
    "part-missing-from-an-observation",
    "One agent's dictionary of observations lacks a key, once.",
    lambda seen: {"self": seen["self"]},
    45,
    needs={"observation": "dict"},
)
_sight(
    "part-too-many-in-an-observation",
    "One agent's dictionary of observations has a key that its space lacks, once.",
    lambda seen: {**seen, "more": seen["self"]},
    45,
    needs={"observation": "dict"},
)
_sight(
    "nan-deep-in-an-observation",
    "One agent sees a NaN in a part of a dictionary, once.",
    lambda seen: {**seen, "crowd": np.full(2, np.nan, np.float32)},
    42,
    needs={"observation": "dict"},
)
_add("missing-observation", "The observations lack a living agent, once.", _without("observations"), case=51)
_add(
    "ghost-observation",
    "The observations hold an agent that does not exist, once.",
    _with_ghost("observations", np.zeros(SIZE, np.float32)),
    case=51,
    forms=("parallel",),
)
_add("observations-as-a-list", "The observations are a list.", _as_list("observations"), "after", forms=("parallel",))


def _buffer(env: Any, answer: Answer) -> None:
    for name, seen in list(answer.observations.items()):
        buffer = env.kept.setdefault(name, np.zeros(SIZE, np.float32))
        buffer[:] = seen
        answer.observations[name] = buffer


def _read_only(env: Any, answer: Answer) -> None:
    _buffer(env, answer)
    for name, buffer in list(answer.observations.items()):
        view = buffer.view()
        view.flags.writeable = False
        answer.observations[name] = view


def _shared(env: Any, answer: Answer) -> None:
    one = answer.observations[env.game.first]
    answer.observations = dict.fromkeys(answer.observations, one)


def _exposed(env: Any, answer: Answer) -> None:
    """The places that the game goes on from are those in the array that was given away."""
    name = env.game.first
    if isinstance(answer.observations.get(name), np.ndarray):
        env.kept["exposed"] = answer.observations[name]


_add(
    "observation-buffer-reused",
    "An agent's observations are one array, overwritten in each step.",
    _buffer,
    "always",
    case=59,
)
_add(
    "read-only-view-that-changes",
    "Observations are read-only views of an array that changes.",
    _read_only,
    "always",
    case=59,
)
_add("observation-shared", "All agents are given the same array.", _shared, "always", case=59, level="warning")
_add(
    "state-exposed",
    "An observation is the state itself: who writes into it moves the agent.",
    _exposed,
    "always",
    case=59,
)

# --------------------------------------------------------------------------------------------------- flags


def _flags(change: Callable[[bool], Any], which: tuple[str, ...] = ("terminations", "truncations")) -> Strike:
    def strike(env: Any, answer: Answer) -> None:
        for name in which:
            setattr(answer, name, {agent: change(flag) for agent, flag in getattr(answer, name).items()})

    return strike


def _all_key(env: Any, answer: Answer) -> None:
    answer.terminations["__all__"] = answer.truncations["__all__"] = False


def _both(env: Any, answer: Answer) -> None:
    answer.terminations = {name: answer.terminations[name] or answer.truncations[name] for name in answer.terminations}


_add("int-flags", "Flags are 0 and 1.", _flags(int), "always", case=56)
_add("numpy-int-flags", "Flags are NumPy integers.", _flags(np.int64), "always", case=56)
_add("float-flags", "Flags are 0.0 and 1.0.", _flags(float), "always", case=56)
_add("text-flags", 'Flags are texts, and "False" is true.', _flags(str), "after", case=56, forms=("parallel",))
_add("none-flags", "Flags are None where they mean no.", _flags(lambda f: f or None), "always", case=56)
_add("array-flags", "Flags are arrays [1].", _flags(lambda f: np.array([f])), "always", case=56)
_add("both-flags", "Agents that are cut off are terminated too.", _both, "always", case=56, level="warning")
_add("missing-termination", "The terminations lack a living agent, once.", _without("terminations"), case=51)
_add("missing-truncation", "The truncations lack a living agent, once.", _without("truncations"), case=51)
_add(
    "ghost-termination",
    "The terminations hold an agent that does not exist, once.",
    _with_ghost("terminations", False),
    case=51,
)
_add(
    "all-key",
    'The flags have a key "__all__", as RLlib wants it.',
    _all_key,
    "after",
    case=51,
    forms=("parallel",),
)

# ------------------------------------------------------------------------------------------ life and death


def _join(env: Any, answer: Answer, name: str, flag: bool = False) -> None:
    """That agent is part of the answer."""
    game = env.game
    game.x.setdefault(name, 0.5)
    for which, value in (("observations", game.seen(name, 0.5)), ("rewards", 0.0), ("infos", {})):
        getattr(answer, which)[name] = value
    answer.terminations[name], answer.truncations[name] = flag, False


def _revive(env: Any, answer: Answer) -> None:
    if env.game.t == LIFE + 2:
        _live_on(env, answer, env.game.names[-1])
        _join(env, answer, env.game.names[-1])


def _live_on(env: Any, answer: Answer, name: str) -> None:
    env.game.deaths = False
    env.game.alive.append(name)
    answer.agents.append(name)


def _born(env: Any, answer: Answer) -> None:
    _live_on(env, answer, "stranger_0")
    _join(env, answer, "stranger_0")


def _vanish(env: Any, answer: Answer) -> None:
    for agents in (env.game.alive, answer.agents):
        agents.remove(env.game.first)


def _linger(env: Any, answer: Answer) -> None:
    if env.game.t == LIFE:
        _live_on(env, answer, env.game.names[-1])


def _still_answered(env: Any, answer: Answer) -> None:
    if LIFE < env.game.t < env.game.max_cycles:
        _join(env, answer, env.game.names[-1], flag=True)


def _all_die(env: Any, answer: Answer) -> None:
    answer.terminations = dict.fromkeys(answer.terminations, True)


def _stop(env: Any, answer: Answer) -> None:
    env.game.alive.clear()
    answer.agents.clear()


def _twice(env: Any, answer: Answer) -> None:
    answer.agents.append(env.game.first)


def _more_possible(env: Any, answer: Answer) -> None:
    env.possible_agents = [*env.game.names, f"late_{env.game.t}"]


def _never_end(env: Any, answer: Answer) -> None:
    env.game.max_cycles = 10**9


def _gone_after_reset(env: Any, answer: Answer) -> None:
    if env.episodes > 1:
        _vanish(env, answer)


_DEATHS = {"deaths": True}
_add("revival", "A dead agent lives again.", _revive, "always", case=50, needs=_DEATHS)
_add("birth-unannounced", "An agent appears that is not in possible_agents.", _born, case=50)
_add("vanishing", "An agent leaves without being terminated or truncated.", _vanish, case=51)
_add("lingering", "A terminated agent stays in agents.", _linger, "always", case=49, needs=_DEATHS, forms=("parallel",))
_add(
    "dead-still-answered",
    "A dead agent goes on being shown and paid.",
    _still_answered,
    "always",
    case=49,
    needs=_DEATHS,
    forms=("parallel",),
)
_add("all-die-and-stay", "All are terminated at once, and none leaves.", _all_die, case=49, forms=("parallel",))
_add("stops-without-a-flag", "All leave at once, and no flag says why.", _stop, case=51)
_add("never-ends", "No episode ends.", _never_end, "reset", case=55, level="warning")
_add("ends-at-reset", "Nobody lives after a reset.", _stop, "reset", case=55)
_add("one-step-episodes", "Every episode is over after one step.", case=55, level="warning")
_add(
    "agents-is-possible-agents",
    "`agents` and `possible_agents` are one list: who dies is no longer possible.",
    needs=_DEATHS,
)
_add("agent-listed-twice", "An agent is in `agents` twice.", _twice, case=51)
_add("possible-agents-change", "possible_agents grows while the game is played.", _more_possible, "after", case=50)
_add(
    "gone-after-reset",
    "An agent is missing from every episode but the first.",
    _gone_after_reset,
    "reset",
    case=50,
    level="warning",
)
_add("number-of-agents-wrong", "num_agents is one too many.", case=51)

# ------------------------------------------------------------------------------------------ what was given

_add(
    "action-dictionary-emptied",
    "step() takes the actions out of the dictionary that it was given.",
    forms=("parallel",),
)
_add("action-overwritten", "step() writes into the array of the action that it was given.", needs={"actions": "box"})

# ---------------------------------------------------------------------------------------------- randomness


def _seed_numpy(env: Any, answer: Answer) -> None:
    np.random.seed(7)  # noqa: NPY002 - the fault


def _seed_torch(env: Any, answer: Answer) -> None:
    import torch

    torch.manual_seed(7)  # noqa: TID251 - the fault


_COUNT = [0]


def _counted(game: Any) -> float:
    _COUNT[0] += 1
    return (_COUNT[0] % 97) / 97


def _torch_noise(game: Any) -> float:
    import torch

    return float(torch.rand(()))


def _own(game: Any) -> float:
    return float(game.rng.random())


NOISE: dict[str, Callable[[Any], float]] = {
    "draws-from-numpy": lambda game: np.random.random(),  # noqa: NPY002 - the fault
    "draws-from-random": lambda game: random.random(),  # noqa: S311 - the fault
    "draws-from-torch": _torch_noise,
    "unseeded": lambda game: float(np.random.default_rng().random()),
    "unseeded-later": lambda game: float(np.random.default_rng().random()) if game.t >= 2 else _own(game),
    "depends-on-the-time": lambda game: time.perf_counter_ns() % 1009 / 1009,
    "depends-on-an-address": lambda game: id(game) // 16 % 1009 / 1009,
    "depends-on-hashes": lambda game: hash("mfmarl") % 1009 / 1009,
    "depends-on-the-process": lambda game: os.getpid() % 1009 / 1009,
    "state-of-the-class": _counted,
}
"""Where the noise comes from instead."""

_add("seeds-numpy", "reset() seeds NumPy's global generator.", _seed_numpy, "reset", case=48)
_add("seeds-random", "reset() seeds Python's global generator.", lambda env, answer: random.seed(7), "reset", case=48)
_add("seeds-torch", "reset() seeds PyTorch's global generator.", _seed_torch, "reset", case=48)
_add("draws-from-numpy", "The noise is NumPy's global generator's.", case=48)
_add("draws-from-random", "The noise is Python's global generator's.", case=48)
_add("draws-from-torch", "The noise is PyTorch's global generator's.", case=48)
_add("unseeded", "The noise is of a generator that no seed reaches.")
_add("unseeded-later", "The noise is of a generator that no seed reaches, from the third step on.")
_add("depends-on-the-time", "The noise is of the clock.")
_add("depends-on-an-address", "The noise is of where the environment lies in memory.")
_add("depends-on-hashes", "The noise is of a text's hash, which differs between processes.")
_add("depends-on-the-process", "The noise is of the process's number.")
_add("state-of-the-class", "The noise counts what all instances have drawn.")
_add("seed-ignored", "Every episode is that of seed 0, whatever the seed.", level="warning")
_add("state-of-the-last-episode", "An episode begins where the last one ended, whatever the seed.")

# -------------------------------------------------------------------------------------------- surroundings


def _thread(env: Any, answer: Answer) -> None:
    threading.Thread(target=time.sleep, args=(env.seconds,), daemon=True, name="left-by-a-fault").start()


def _child(env: Any, answer: Answer) -> None:
    code = f"import time; time.sleep({env.seconds})"
    env.child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.DEVNULL)


def _signal(env: Any, answer: Answer) -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: None)


def _environment(env: Any, answer: Answer) -> None:
    os.environ["MFMARL_FAULT"] = str(env.game.t)


def _file(env: Any, answer: Answer) -> None:
    env.kept.setdefault("files", []).append(open(os.devnull))  # noqa: SIM115 - the fault


def _numpy_errors(env: Any, answer: Answer) -> None:
    np.seterr(all="ignore")


def _default_type(env: Any, answer: Answer) -> None:
    import torch

    torch.set_default_dtype(torch.float64)


def _surrounding(name: str, does: str, strike: Strike, when: When = "once", level: Level = "error") -> None:
    _add(name, does, strike, when, case=48, level=level)


_surrounding(
    "changes-the-folder", "step() changes the working directory.", lambda env, a: os.chdir(tempfile.gettempdir())
)
_surrounding("sets-a-variable", "step() sets an environment variable.", _environment)
_surrounding("prints", "Every step prints a line.", lambda env, a: print("step", env.game.t), "always", "warning")
_surrounding("signal-handler", "step() takes SIGTERM for itself.", _signal)
_surrounding("silences-warnings", "step() silences all warnings.", lambda env, a: warnings.simplefilter("ignore"))
_surrounding("leaves-threads", "reset() starts a thread that nobody ends.", _thread, "reset", "warning")
_surrounding("leaves-a-process", "step() starts a process that nobody ends.", _child, "once", "warning")
_surrounding("leaves-files-open", "Every step opens a file that nobody closes.", _file, "always", "warning")
_surrounding(
    "numpy-errors-silenced",
    "step() changes how NumPy meets errors.",
    _numpy_errors,
    level="warning",
)
_surrounding("default-type-changed", "step() changes PyTorch's default type.", _default_type)
_surrounding(
    "import-path-changed", "step() adds to sys.path.", lambda env, a: sys.path.insert(0, "/nowhere"), level="warning"
)

# --------------------------------------------------------------------------------------------------- masks


def _masked(change: Callable[[Any], Any]) -> Strike:
    def strike(env: Any, answer: Answer) -> None:
        holder = answer.infos if env.game.mask == "info" else answer.observations
        for one in holder.values():
            if "action_mask" in one:
                one["action_mask"] = change(one["action_mask"])

    return strike


def _mask(name: str, does: str, change: Callable[[Any], Any], case: int = 58, where: str = "info", **more: Any) -> None:
    _add(name, does, _masked(change), "after", case=case, needs={"mask": where}, **more)


def _no_mask(env: Any, answer: Answer) -> None:
    for info in answer.infos.values():
        info.pop("action_mask", None)


def _refuse(env: Any, answer: Answer) -> None:
    if any(action is not None and int(action) == ACTIONS - 1 for action in env.game.chosen.values()):
        raise ValueError("illegal move")


_mask("short-mask", "Masks lack an action.", lambda mask: mask[:-1])
_mask("long-mask", "Masks have an action too many.", lambda mask: np.append(mask, np.int8(1)))
_mask("flat-mask-nested", "Masks are [1, A].", lambda mask: mask[None])
_mask("float-mask", "Masks are of float32.", lambda mask: mask.astype(np.float32))
_mask(
    "int64-mask",
    "Masks are of int64, which the spaces refuse to sample with.",
    lambda mask: mask.astype(np.int64),
    level="warning",
)
_mask("mask-none", "Masks are None.", lambda mask: None, level="warning")
_mask("mask-as-a-list", "Masks are lists.", lambda mask: mask.tolist())
_mask("mask-of-twos", "Masks hold a 2.", lambda mask: (mask * 2).astype(np.int8))
_mask("mask-of-zeros", "No action is legal.", np.zeros_like, 57)
_mask("mask-of-zeros-in-observation", "No action is legal, the observation says.", np.zeros_like, 57, "observation")
_mask(
    "short-mask-in-observation",
    "The mask in the observation lacks an action.",
    lambda mask: mask[:-1],
    58,
    "observation",
)
_mask(
    "float-mask-in-observation",
    "The mask in the observation is of float64.",
    lambda mask: mask.astype(float),
    58,
    "observation",
)
_mask("mask-none-in-observation", "The mask in the observation is None.", lambda mask: None, 58, "observation")
_mask(
    "mask-of-twos-in-observation",
    "The mask in the observation holds a 2.",
    lambda mask: (mask * 2).astype(np.int8),
    58,
    "observation",
)
_add("mask-that-goes", "Masks are told at first and then no more.", _no_mask, "after", case=58, needs={"mask": "info"})
_add(
    "legal-action-refused", "An action that the mask allows raises.", _refuse, "after", case=57, needs={"mask": "info"}
)

# -------------------------------------------------------------------------------------------------- spaces

_add("action-space-none", "action_space() gives None.", case=60)
_add("action-space-a-number", "action_space() gives 3 instead of Discrete(3).", case=60)
_add("observation-space-none", "observation_space() gives None.", case=60)
_add(
    "action-space-new-each-call", "action_space() makes a new space in every call, so that seeding it is lost.", case=60
)
_add("observation-space-new-each-call", "observation_space() makes a new space in every call.", case=60)
_add("action-space-changes", "action_space() has other actions as the game goes on.", case=60)
_add("observation-space-changes", "observation_space() has other bounds as the game goes on.", case=60)
_add("space-for-some", "action_space() raises for one of the agents.", case=60)
_add("one-action", "There is one action only.", case=60, level="warning")
_add("actions-from-one", "Actions are numbered from 1.", case=60, level="warning")
_add("unbounded-actions", "The Box of the actions has no bounds.", case=60, level="warning", needs={"actions": "box"})
_add("text-observations", "Observations are texts.", case=59, level="warning")

# ---------------------------------------------------------------------------------------------- exceptions


def _raise(error: type[BaseException], *text: str) -> Strike:
    def strike(env: Any, answer: Answer) -> None:
        raise error(*text)

    return strike


def _recurse(env: Any, answer: Answer) -> None:
    _recurse(env, answer)


def _hang(env: Any, answer: Answer) -> None:
    time.sleep(env.seconds)


def _second_reset(env: Any, answer: Answer) -> None:
    if env.episodes > 1:
        raise RuntimeError("no second episode")


_add("raises-at-reset", "reset() raises.", _raise(RuntimeError, "no field"), "reset", case=46)
_add("raises-at-the-second-reset", "reset() raises the second time.", _second_reset, "reset", case=46)
_add("raises-at-the-first-step", "The first step raises.", _raise(KeyError, "walker_9"), "first", case=46)
_add("raises-midway", "A step in the middle raises.", _raise(RuntimeError, "the floor gave way"), case=46)
_add(
    "raises-at-the-end",
    "The step that ends an episode raises.",
    _raise(IndexError, "list index out of range"),
    "last",
    case=46,
)
_add("exits", "A step leaves Python (SystemExit).", _raise(SystemExit, "3"), case=46)
_add("interrupts", "A step raises KeyboardInterrupt.", _raise(KeyboardInterrupt), case=46)
_add("out-of-memory", "A step raises MemoryError.", _raise(MemoryError), case=46)
_add("recursion", "A step calls itself without end.", _recurse, case=46)
_add("hangs", "A step takes an hour.", _hang, case=47)
_add("hangs-at-reset", "A reset takes an hour.", _hang, "reset", case=47)

# ------------------------------------------------------------------------------------------------ the call

_PARALLEL: Mapping[str, Any] = {"forms": ("parallel",)}
_add("four-values", "step() returns four values, as before 2022.", **_PARALLEL)
_add("reset-without-infos", "reset() returns the observations alone.", **_PARALLEL)
_add("step-returns-nothing", "step() returns None.", **_PARALLEL)
_add("coroutine", "step() is a coroutine.", **_PARALLEL)
_add("reset-takes-no-seed", "reset() takes no seed.")
_add("step-before-reset", "step() before reset() is played.", level="warning")
_add("step-after-the-end", "step() after the end is played.", level="warning", forms=("parallel",))
_add("outside-actions-taken", "An action outside the space is played in silence.", level="warning")
_add("close-raises", "close() raises.")
_add("second-close-raises", "close() raises when it is called twice.", level="warning")

# --------------------------------------------------------------------------------------------------- infos


def _info(value: Any) -> Strike:
    return lambda env, answer: answer.infos.update({env.game.first: value})


_add("missing-info", "The infos lack a living agent, once.", _without("infos"), case=51)
_add("none-info", "One agent's info is None, once.", _info(None))
_add("list-info", "One agent's info is a list, once.", _info([]))
_add("ghost-info", "The infos hold an agent that does not exist, once.", _with_ghost("infos", {}), level="warning")
_add("infos-as-a-list", "The infos are a list.", _as_list("infos"), "after", forms=("parallel",))
_add("none-infos", "The infos are None.", lambda env, a: setattr(a, "infos", None), "after", forms=("parallel",))

# ------------------------------------------------------------------------------------------------- pictures

PICTURES: dict[str, Callable[[Any], Any]] = {
    "picture-of-a-wrong-shape": lambda picture: picture[..., 0],
    "picture-of-floats": lambda picture: picture / 255.0,
    "no-picture": lambda picture: None,
}
_add("picture-of-a-wrong-shape", "render() gives [H, W].")
_add("picture-of-floats", "render() gives floats.")
_add("no-picture", "render() gives None for rgb_array.")
_add("picture-raises", "render() raises.")
_add("picture-moves-the-game", "render() draws from the game's generator.")
_add("no-metadata", "The environment has no metadata.", level="warning")

# ------------------------------------------------------------------------------------------- agent by agent

_AEC: Mapping[str, Any] = {"forms": ("aec",)}
_add("selection-stuck", "The same agent is selected for ever.", **_AEC)
_add("selection-of-nobody", "An agent is selected that is not in the game.", **_AEC)
_add("agent-never-selected", "One agent is never asked.", **_AEC)
_add("rewards-pile-up", "The rewards since an agent's last turn are never set back to 0.", **_AEC)
_add("observe-moves-the-game", "observe() draws from the game's generator.", **_AEC)
_add("last-disagrees", "last() gives another reward than _cumulative_rewards.", **_AEC)
_add("last-shows-unasked", "last(observe=False) shows an observation.", **_AEC)
_add("dead-may-act", "A terminated agent's action is taken.", level="warning", **_AEC)
_add("dead-stay", "A terminated agent is never removed, and is asked again and again.", **_AEC)
_add("dead-are-dropped", "Terminated agents leave without their last turn.", **_AEC)
_add("living-may-pass", "None is taken for a living agent's action.", level="warning", **_AEC)
_add("step-answers", "step() returns something.", **_AEC)
_add("observation-of-the-selected", "observe(agent) shows what the selected agent sees.", **_AEC)
_add("ended-at-reset", "Terminations are True after a reset.", **_AEC)


def needed(name: str) -> Fault:
    """The fault of that name. Raises ConfigError with the nearest one."""
    from mfmarl.errors import ConfigError, nearest

    if name not in FAULTS:
        raise ConfigError(f"There is no fault {name!r}.{nearest(name, FAULTS)}", "unknown-name")
    return FAULTS[name]


def of_form(form: Form) -> list[Fault]:
    """Those that an environment of that form can have."""
    return [fault for fault in FAULTS.values() if form in fault.forms]
