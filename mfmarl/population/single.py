"""One third-party environment, its dictionaries turned into rows of arrays. Knows numpy and no torch: child
processes host environments without paying for it.

A `Layout` says who sits in which slot and how spaces of different shapes become one; a `Single` plays one
copy and fills its `Rows`. Every breach of PettingZoo's contract ends in one sentence that names the
environment, the agent, the copy and the step.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from mfmarl.errors import ConfigError, EnvironmentFault, MfmarlError, NumericFault


class Rows(NamedTuple):
    """What copies show after a step, arrays that lead with E; without it in the rows of one copy.

    They begin as zeros, and nobody writes where an agent's observation is padded.
    """

    obs: np.ndarray  # [E, N, *O] float32, or [E, N] int64
    reward: np.ndarray  # [E, N] float32
    alive: np.ndarray  # [E, N] bool
    acting: np.ndarray  # [E, N] bool
    legal: np.ndarray  # [E, N, A] bool; A = 0 here if every action is always legal
    terminated: np.ndarray  # [E, N] bool
    truncated: np.ndarray  # [E, N] bool
    position: np.ndarray  # [E, N, D] float32; D = 0: nowhere
    measure: np.ndarray  # [E, M] float32
    ended: np.ndarray  # [E, 1] bool

    def of(self, copy: int) -> Rows:
        """The rows of one copy: views."""
        return Rows(*(array[copy] for array in self))


@dataclass(frozen=True, eq=False)
class Layout:
    """Who sits where, and the one observation and action that all agents share after padding with zeros."""

    name: str
    agents: tuple[Any, ...]
    """PettingZoo's ids by slot; groups lie one after the other."""
    groups: tuple[str, ...]
    group_sizes: tuple[int, ...]
    turns: bool
    """An AEC environment: one agent acts at a time."""
    observation: gymnasium.Space
    shapes: tuple[tuple[int, ...], ...]
    """The distinct observation shapes before padding."""
    shape_of: np.ndarray
    """Which of them each slot has, [N]."""
    observation_start: np.ndarray
    """Discrete observations: the smallest, [N]."""
    observation_n: np.ndarray
    """Discrete observations: how many, [N]; 0 for a Box."""
    dictionary: bool
    """Observations come as {"observation": ..., "action_mask": ...}."""
    action: gymnasium.Space
    possible: np.ndarray
    """Discrete actions that each slot has at all, [N, A] bool."""
    action_start: np.ndarray
    action_spaces: tuple[gymnasium.Space, ...]
    masked: bool
    """Masks change from step to step."""
    max_steps: int | None = None
    position: int = 0
    measures: tuple[str, ...] = ()
    index: Mapping[Any, int] = field(default_factory=dict)
    dtype: np.dtype[Any] | None = None
    """What all Boxes of observations declare; None: they differ, or there are none."""
    promised: tuple[bool, ...] = ()
    """Whether each slot's observations declare a mask."""
    told: set[str] = field(default_factory=set)
    """Of what has been warned already."""

    @property
    def discrete(self) -> bool:
        return isinstance(self.action, spaces.Discrete)

    @property
    def legal_width(self) -> int:
        return self.possible.shape[1] if self.discrete and (self.masked or not self.possible.all()) else 0

    def empty(self, copies: int) -> Rows:
        """Zeroed rows for so many copies."""
        n = len(self.agents)
        shape, dtype = tuple(self.observation.shape or ()), np.float32
        return Rows(
            obs=np.zeros((copies, n, *shape), np.int64 if isinstance(self.observation, spaces.Discrete) else dtype),
            reward=np.zeros((copies, n), dtype),
            alive=np.zeros((copies, n), bool),
            acting=np.zeros((copies, n), bool),
            legal=np.zeros((copies, n, self.legal_width), bool),
            terminated=np.zeros((copies, n), bool),
            truncated=np.zeros((copies, n), bool),
            position=np.zeros((copies, n, self.position), dtype),
            measure=np.zeros((copies, len(self.measures)), dtype),
            ended=np.zeros((copies, 1), bool),
        )

    def teams(self) -> dict[str, str]:
        """Each agent's group, by name."""
        each = [group for group, size in zip(self.groups, self.group_sizes, strict=True) for _ in range(size)]
        return {str(agent): group for agent, group in zip(self.agents, each, strict=True)}

    def fingerprint(self) -> str:
        """Equal for environments whose rows mean the same."""
        parts = (self.agents, self.groups, self.group_sizes, self.turns, self.shapes, self.shape_of.tolist())
        actions = [str(space) for space in self.action_spaces]
        return repr((*parts, self.observation_n.tolist(), self.dictionary, actions, self.masked))


def group_of(agent: Any) -> str:
    """The team of an agent's name: what stands before the last underscore and a number (`red_0` is of `red`)."""
    team, _, number = str(agent).rpartition("_")
    return team if team and number.isdigit() else str(agent) if not isinstance(agent, int) else "agent"


def takes_turns(env: Any) -> bool:
    """Whether it is an AEC environment."""
    return hasattr(env, "agent_iter") or (hasattr(env, "last") and hasattr(env, "agent_selection"))


def check_kind(env: Any, name: str) -> None:
    """Raise ConfigError unless this is a PettingZoo environment."""
    missing = [part for part in ("reset", "step", "observation_space", "action_space") if not hasattr(env, part)]
    if missing:
        raise ConfigError(
            f"{name} made a {type(env).__name__} without {', '.join(missing)}; expected a PettingZoo "
            "ParallelEnv or AECEnv."
        )


def layout_of(
    env: Any,
    name: str,
    agents: Sequence[Any],
    grouping: Mapping[str, str] | None = None,
    masked: bool = False,
    max_steps: int | None = None,
) -> Layout:
    """The layout of an environment's possible agents. Raises ConfigError naming an agent whose space cannot be had."""
    if not agents:
        raise ConfigError(f"{name} has no possible_agents: a population needs at least one.")
    if len(set(agents)) != len(agents):
        raise ConfigError(f"{name} lists an agent twice in possible_agents.")
    team = {agent: (grouping or {}).get(str(agent)) or group_of(agent) for agent in agents}
    if grouping is not None:
        lost = [str(agent) for agent in agents if str(agent) not in grouping]
        if lost:
            raise ConfigError(f"The grouping for {name} has no group for agent {lost[0]}.")
    groups = tuple(dict.fromkeys(team.values()))
    order = tuple(sorted(agents, key=lambda agent: groups.index(team[agent])))
    sizes = tuple(sum(1 for g in team.values() if g == group) for group in groups)

    observations, dictionary, promised = [], set(), []
    for agent in order:
        space = env.observation_space(agent)
        inside = space
        if isinstance(space, spaces.Dict):
            extra = set(space.spaces) - {"observation", "action_mask"}
            inside = space.spaces.get("observation", space)
            if extra or inside is space:
                raise ConfigError(
                    f"{name}: the observation of agent {agent} is a Dict of {', '.join(map(repr, space.spaces))}; "
                    "expected a Box, a Discrete, or a Dict of 'observation' and 'action_mask'."
                )
        promised.append(isinstance(space, spaces.Dict) and "action_mask" in space.spaces)
        dictionary.add(isinstance(space, spaces.Dict))
        if not isinstance(inside, spaces.Box | spaces.Discrete):
            raise ConfigError(
                f"{name}: the observation space of agent {agent} is {type(inside).__name__}; expected a Box, a "
                "Discrete, or a Dict of 'observation' and 'action_mask' (a wrapper can flatten it)."
            )
        observations.append(inside)
    if len(dictionary) > 1:
        raise ConfigError(f"{name}: some agents observe a Dict and others do not; give all of them the same kind.")

    actions = []
    for agent in order:
        space = env.action_space(agent)
        whole = isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating)
        if not isinstance(space, spaces.Box | spaces.Discrete) or whole:
            kind = f"Box of {space.dtype}" if whole else type(space).__name__
            raise ConfigError(
                f"{name}: the action space of agent {agent} is {kind}; expected a Discrete or a Box of floats."
            )
        actions.append(space)
    kinds = {isinstance(space, spaces.Discrete) for space in actions}
    if len(kinds) > 1:
        box = next(a for a, s in zip(order, actions, strict=True) if isinstance(s, spaces.Box))
        raise ConfigError(f"{name}: agent {box} has a Box of actions and others a Discrete; expected one kind for all.")

    shared, shapes, shape_of, start, number = _one_observation(observations)
    action, possible, action_start = _one_action(actions)
    return Layout(
        name=name,
        agents=order,
        groups=groups,
        group_sizes=sizes,
        turns=takes_turns(env),
        observation=shared,
        shapes=shapes,
        shape_of=shape_of,
        observation_start=start,
        observation_n=number,
        dictionary=True in dictionary,
        action=action,
        possible=possible,
        action_start=action_start,
        action_spaces=tuple(actions),
        masked=(any(promised) or masked) and isinstance(action, spaces.Discrete),
        max_steps=max_steps,
        index={agent: slot for slot, agent in enumerate(order)},
        dtype=_one_type(observations),
        promised=tuple(promised),
    )


def _one_type(each: Sequence[Any]) -> np.dtype[Any] | None:
    types = {space.dtype for space in each if isinstance(space, spaces.Box)}
    return types.pop() if len(types) == 1 and all(isinstance(space, spaces.Box) for space in each) else None


def _one_observation(
    each: Sequence[Any],
) -> tuple[gymnasium.Space, tuple[tuple[int, ...], ...], np.ndarray, np.ndarray, np.ndarray]:
    """One space for all: Discrete if all are, else a Box padded with zeros (flattened if ranks differ)."""
    discrete = [isinstance(space, spaces.Discrete) for space in each]
    start = np.array([int(s.start) if d else 0 for s, d in zip(each, discrete, strict=True)], np.int64)
    number = np.array([int(s.n) if d else 0 for s, d in zip(each, discrete, strict=True)], np.int64)
    if all(discrete):
        return spaces.Discrete(int(number.max())), ((),), np.zeros(len(each), np.int64), start, number
    # In mixed company a Discrete observation is shown one-hot.
    own = [(int(s.n),) if d else tuple(s.shape) for s, d in zip(each, discrete, strict=True)]
    shapes = tuple(dict.fromkeys(own))
    shape_of = np.array([shapes.index(shape) for shape in own], np.int64)
    if len({len(shape) for shape in shapes}) > 1:
        whole: tuple[int, ...] = (max(int(np.prod(shape)) for shape in shapes),)
    else:
        whole = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    low, high = np.full(whole, np.inf, np.float32), np.full(whole, -np.inf, np.float32)
    for space, shape, d in zip(each, own, discrete, strict=True):
        least, most = (np.float32(0), np.float32(1)) if d else (space.low, space.high)
        corner = tuple(slice(0, size) for size in ((int(np.prod(shape)),) if len(shape) != len(whole) else shape))
        target = low[corner].shape
        with np.errstate(over="ignore"):
            # A bound beyond float32 is no bound.
            least, most = (np.broadcast_to(b, shape).astype(np.float32).reshape(target) for b in (least, most))
        low[corner] = np.minimum(low[corner], least)
        high[corner] = np.maximum(high[corner], most)
    if len(shapes) > 1:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    return spaces.Box(low, high, dtype=np.float32), shapes, shape_of, start, number


def _one_action(each: Sequence[Any]) -> tuple[gymnasium.Space, np.ndarray, np.ndarray]:
    """One space for all, which discrete actions each slot has, and where its own numbers start."""
    if isinstance(each[0], spaces.Discrete):
        n = np.array([int(space.n) for space in each])
        start = np.array([int(space.start) for space in each], np.int64)
        return spaces.Discrete(int(n.max())), np.arange(n.max()) < n[:, None], start
    width = max(int(np.prod(space.shape)) for space in each)
    low, high = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for column in range(width):
        flat = [s for s in each if int(np.prod(s.shape)) > column]
        low[column] = min(s.low.reshape(-1)[column] for s in flat)
        high[column] = max(s.high.reshape(-1)[column] for s in flat)
    return spaces.Box(low, high, dtype=np.float32), np.ones((len(each), 0), bool), np.zeros(len(each), np.int64)


# ------------------------------------------------------------------------- other people's global generators

_private = threading.local()  # threads share the global generators: theirs are not seeded


def seed_globals(seed: int, step: int) -> None:
    """Fix what the next call draws from the global generators: a function of episode and step alone."""
    if getattr(_private, "here", False):
        number = (seed * 0x9E3779B1 + step * 0x85EBCA77 + 1) & 0xFFFFFFFF
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 - theirs, not ours
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.default_generator.manual_seed(number)


@contextmanager
def isolated() -> Iterator[None]:
    """Inside, environments have global generators (random, numpy, torch) of their own; the caller's go on untouched, as
    does the working folder. What they print goes to standard error: standard output is the command's own.

    (numpy's spare normal, the second of the last pair drawn by `np.random.randn`, is dropped: keeping it
    would cost more than many environments' steps.)
    """
    python, numpy = random.getstate(), np.random.get_bit_generator()  # type: ignore[attr-defined]
    torch = sys.modules.get("torch")
    tensor = torch.default_generator.get_state() if torch is not None else None
    folder, out = _folder(), sys.stdout
    np.random.set_bit_generator(_own)  # type: ignore[attr-defined]
    _private.here = True
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        _private.here = False
        sys.stdout = out
        if folder and _folder() != folder:
            with suppress(OSError):
                os.chdir(folder)
        np.random.set_bit_generator(numpy)  # type: ignore[attr-defined]
        random.setstate(python)
        if torch is not None:
            torch.default_generator.set_state(tensor)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""  # deleted meanwhile


_own = np.random.MT19937(0)


def mark() -> tuple[Any, ...]:
    """Where the environments' global generators stand (inside `isolated`): it moves when one draws."""
    numpy, torch = _own.state["state"], sys.modules.get("torch")
    tensor = bytes(torch.default_generator.get_state().numpy()) if torch is not None else b""
    return random.getstate(), int(numpy["pos"]), numpy["key"].tobytes(), tensor


# ----------------------------------------------------------------------------------------------- one copy


def raised(error: BaseException) -> str:
    """What somebody else's code raised, in half a sentence."""
    said = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def place_of(error: BaseException) -> str:
    """Where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def told(action: Any) -> str:
    """An action as a message shows it: short."""
    array = np.asarray(action)
    return str(array.tolist()) if array.size <= 8 else f"{array.reshape(-1)[:8].tolist()}..."


class Single(ABC):
    """One copy of an environment, played on rows of arrays."""

    def __init__(self, env: Any, layout: Layout, copy: int) -> None:
        self.env, self.layout, self.copy = env, layout, copy
        self.clock = 0  # steps since the reset
        self.seed = 0
        self.played: dict[Any, Any] = {}  # each agent's last action, for messages
        self.masked: set[int] = set()  # the slots of those who ever had a mask

    @abstractmethod
    def reset(self, seed: int, rows: Rows) -> None:
        """Begin an episode."""

    @abstractmethod
    def step(self, action: np.ndarray, rows: Rows) -> None:
        """Play one step; `action` [N] or [N, D] of the slots that were asked to act."""

    def render(self) -> np.ndarray | None:
        """The environment's own picture, if it makes arrays."""
        seed_globals(self.seed, -1)
        frame = self._call(self.env.render)
        return None if frame is None else np.asarray(frame)

    def close(self) -> None:
        with suppress(Exception):
            self.env.close()

    @property
    def where(self) -> str:
        return f"in copy {self.copy} at step {self.clock}"

    def fault(self, text: str, code: str = "", more: str = "") -> EnvironmentFault:
        return EnvironmentFault(f"{self.layout.name}: {text} {self.where}{more}.", code)

    def after(self, agent: Any) -> str:
        """What the agent did last, for a message."""
        return f", after its action {told(self.played[agent])}" if agent in self.played else ""

    def warn_once(self, what: str, text: str) -> None:
        if what not in self.layout.told:
            self.layout.told.add(what)
            warnings.warn(f"{self.layout.name}: {text} {self.where} (told once).", stacklevel=2)

    def _call(self, function: Callable[..., Any], *arguments: Any, who: str = "", **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except MfmarlError:
            raise
        except (Exception, SystemExit) as error:
            what = getattr(function, "__name__", "call")
            raise self.fault(f"{what}(){who} raised {raised(error)}", "environment-raised", place_of(error)) from error

    # Checks shared by both kinds. `names` are PettingZoo's ids, `slots` their numbers here.

    def _rewards(self, rewards: list[Any], names: Sequence[Any]) -> np.ndarray:
        try:
            array = np.array(rewards)
        except ValueError:
            array = np.array(None)
        if array.dtype.kind not in "fiu" or array.ndim != 1:
            for agent, reward in zip(names, rewards, strict=True):
                one = np.asarray(reward)
                if one.dtype.kind not in "fiu" or one.size != 1:
                    kind = type(reward).__name__
                    raise self.fault(f"the reward of agent {agent} is {reward!r} ({kind}), not a number,")
            array = np.array([float(np.asarray(reward).reshape(())) for reward in rewards])
        finite = np.isfinite(array)
        if not finite.all():
            agent = names[int((~finite).argmax())]
            raise NumericFault(
                f"{self.layout.name}: the reward of agent {agent} is {array[(~finite).argmax()]} "
                f"{self.where}{self.after(agent)}: rewards must be finite.",
                "nan-reward",
            )
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float32)
        if not np.isfinite(narrow).all():
            agent = names[int((~np.isfinite(narrow)).argmax())]
            raise NumericFault(
                f"{self.layout.name}: the reward of agent {agent} is beyond float32 {self.where}{self.after(agent)}: "
                "scale the rewards.",
                "reward-bound",
            )
        return narrow

    def _flags(self, flags: list[Any], names: Sequence[Any], what: str) -> np.ndarray:
        if not set(map(type, flags)) <= {bool, np.bool_}:
            for agent, flag in zip(names, flags, strict=True):
                if type(flag) not in (bool, np.bool_):
                    raise self.fault(f"the {what} of agent {agent} is {flag!r} ({type(flag).__name__}), not a bool,")
        return np.array(flags, dtype=bool)

    def _observe(self, values: list[Any], slots: np.ndarray, rows: Rows) -> None:
        """Write observations (the inner ones, without a Dict) into their slots."""
        layout = self.layout
        if len(slots) == 0:
            return
        if isinstance(layout.observation, spaces.Discrete):
            rows.obs[slots] = self._classes(values, slots)
            return
        if len(layout.shapes) == 1:
            self._block(values, slots, layout.shapes[0], rows)
            return
        kinds = layout.shape_of[slots]
        for kind, shape in enumerate(layout.shapes):
            which = np.flatnonzero(kinds == kind)
            if len(which):
                self._block([values[i] for i in which], slots[which], shape, rows)

    def _classes(self, values: list[Any], slots: np.ndarray) -> np.ndarray:
        """Discrete observations as numbers from 0."""
        layout = self.layout
        for slot, value in zip(slots, values, strict=True):
            number = np.asarray(value)
            first, n = layout.observation_start[slot], layout.observation_n[slot]
            if number.dtype.kind not in "iu" or number.size != 1 or not first <= int(number.reshape(())) < first + n:
                raise self.fault(
                    f"the observation of agent {layout.agents[slot]} is {value!r}, "
                    f"not one of its Discrete({n}){f' from {first}' if first else ''},"
                )
        return np.array([int(np.asarray(v).reshape(())) for v in values]) - layout.observation_start[slots]

    def _block(self, values: list[Any], slots: np.ndarray, shape: tuple[int, ...], rows: Rows) -> None:
        """Observations of one shape, all at once."""
        layout = self.layout
        hot = layout.observation_n[slots] > 0
        if hot.any():
            eye = np.eye(int(layout.observation_n.max()), dtype=np.float32)
            numbers = iter(self._classes([v for v, h in zip(values, hot, strict=True) if h], slots[hot]))
            values = [eye[next(numbers), : shape[0]] if h else v for v, h in zip(values, hot, strict=True)]
        try:
            same = all(value.shape == shape for value in values)
        except AttributeError:
            values = [np.asarray(value) for value in values]
            same = all(value.shape == shape for value in values)
        if not same:
            slot, value = next((s, v) for s, v in zip(slots, values, strict=True) if v.shape != shape)
            raise self.fault(
                f"the observation of agent {layout.agents[slot]} has shape {tuple(value.shape)} "
                f"but its space declares {shape}"
            )
        if layout.dtype is not None and any(v.dtype != layout.dtype and v.dtype.kind in "fiub" for v in values):
            slot, value = next((s, v) for s, v in zip(slots, values, strict=True) if v.dtype != layout.dtype)
            self.warn_once(
                "type",
                f"the observation of agent {layout.agents[slot]} is of {value.dtype} and its space of {layout.dtype}; it is "
                "cast",
            )
        full = tuple(rows.obs.shape[1:])
        try:
            with np.errstate(over="ignore"):
                if full == shape and shape and len(slots) == len(rows.obs):
                    # Everyone is here: straight into place.
                    np.concatenate(values, out=rows.obs.reshape(-1, *shape[1:]), casting="same_kind")
                    return
                block = np.array(values) if not shape else np.concatenate(values).reshape(len(values), *shape)
                if block.dtype.kind not in "fiub":
                    raise TypeError
                if len(full) != len(shape):
                    block = block.reshape(len(values), -1)
                corner: tuple[Any, ...] = (slots, *(slice(0, size) for size in block.shape[1:]))
                rows.obs[corner] = block
        except TypeError:
            slot, value = next(
                ((s, v) for s, v in zip(slots, values, strict=True) if np.asarray(v).dtype.kind not in "fiub"),
                (slots[0], values[0]),
            )
            raise self.fault(
                f"the observation of agent {layout.agents[slot]} is of {np.asarray(value).dtype}, not of numbers,"
            ) from None

    def _inner(self, values: list[Any], slots: np.ndarray) -> tuple[list[Any], list[Any]]:
        """Observations and masks of {"observation", "action_mask"} dictionaries; masks are None without one."""
        if not self.layout.dictionary:
            return values, [None] * len(values)
        inner, masks = [], []
        for slot, value in zip(slots, values, strict=True):
            if not isinstance(value, Mapping) or "observation" not in value:
                raise self.fault(f"the observation of agent {self.layout.agents[slot]} is no Dict with 'observation'")
            inner.append(value["observation"])
            mask = value.get("action_mask")
            masks.append(_NO_MASK if mask is None and self.layout.promised[slot] else mask)
        return inner, masks

    def _mask(self, masks: Sequence[Any], slots: np.ndarray, rows: Rows) -> None:
        """Write the masks of agents that are asked to act; None (that of one who has none): all their actions."""
        layout = self.layout
        if not layout.legal_width:
            return
        rows.legal[:] = layout.possible
        if not layout.masked:
            return
        for slot, mask in zip(slots, masks, strict=True):
            if mask is None:
                if slot in self.masked:
                    agent = layout.agents[slot]
                    self.warn_once(
                        "mask", f"agent {agent} had an action mask and has none: all its actions are taken as legal"
                    )
                continue
            self.masked.add(slot)
            agent, n = layout.agents[slot], int(layout.possible[slot].sum())
            array = np.array(None) if mask is _NO_MASK else np.asarray(mask)
            if array.dtype.kind == "O":
                what = "missing" if mask is _NO_MASK else f"a {type(mask).__name__}"
                raise self.fault(f"the action mask of agent {agent} is {what}, expected {n} times 0 or 1,", "bad-mask")
            if array.shape != (n,):
                raise self.fault(
                    f"the action mask of agent {agent} has shape {array.shape}, expected ({n},),", "bad-mask"
                )
            if array.dtype.kind not in "biu" or not ((array == 0) | (array == 1)).all():
                raise self.fault(
                    f"the action mask of agent {agent} is not made of whole numbers 0 and 1 ({array.dtype})", "bad-mask"
                )
            if not array.any():
                raise self.fault(f"the action mask of agent {agent} forbids every action", "no-legal-action")
            rows.legal[slot, :n] = array.astype(bool)

    def _late(self) -> bool:
        return self.layout.max_steps is not None and self.clock >= self.layout.max_steps

    def _played(self, action: np.ndarray, slots: Sequence[int] | np.ndarray) -> list[Any]:
        """Actions as the environment expects them: Python ints, or arrays of its own shape and type."""
        layout = self.layout
        if layout.discrete:
            played: list[Any] = (action[slots] + layout.action_start[slots]).tolist()
            return played
        out = []
        for slot in slots:
            space = layout.action_spaces[slot]
            assert isinstance(space, spaces.Box)
            own = action[slot, : int(np.prod(space.shape))].reshape(space.shape).astype(space.dtype)
            # An agent with narrower bounds than the shared Box, or a rounding past the bound: its own bound.
            out.append(np.clip(own, space.low, space.high))
        return out


_NO_MASK: Any = object()
"""Where a mask was promised, or is None."""


def _mask_of(info: Any) -> Any:
    """The mask in an agent's info; None where there is no word of one."""
    if not isinstance(info, Mapping) or "action_mask" not in info:
        return None
    mask = info["action_mask"]
    return _NO_MASK if mask is None else mask


class ParallelSingle(Single):
    """A ParallelEnv: all living agents act at once."""

    def reset(self, seed: int, rows: Rows) -> None:
        self.clock, self.seed, self.played = 0, seed, {}
        seed_globals(seed, 0)
        answer = self._call(self.env.reset, seed=seed)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise self.fault(f"reset() returned {type(answer).__name__}, expected (observations, infos),")
        obs, infos = answer
        self.finished: set[Any] = set()
        self.listed = list(self.env.agents)
        if not self.listed:
            raise self.fault("there are no agents after reset()")
        self._seat(self.listed)
        self._clear(rows, len(self.slots))
        self._show(obs, infos, self.names, self.slots, rows, np.zeros(len(self.slots), bool))
        rows.alive[self.slots] = True
        rows.acting[self.slots] = True

    def _clear(self, rows: Rows, written: int) -> None:
        """Empty rows, but for observations that are about to be written in full."""
        for array in rows[1:]:
            array[...] = 0
        if written < len(self.layout.agents):
            rows.obs[...] = 0

    def _seat(self, agents: Sequence[Any]) -> None:
        """Who plays now: names and slots, in the order of slots."""
        index = self.layout.index
        unknown = [agent for agent in agents if agent not in index]
        if unknown:
            raise self.fault(f"agent {unknown[0]} is not in possible_agents")
        self.slots = np.array(sorted(index[agent] for agent in agents), dtype=np.int64)
        if len(set(agents)) != len(agents):
            raise self.fault("env.agents lists an agent twice")
        self.names = [self.layout.agents[slot] for slot in self.slots]

    def _show(
        self, obs: Any, infos: Any, names: Sequence[Any], slots: np.ndarray, rows: Rows, over: np.ndarray
    ) -> None:
        """Write observations and masks; agents that are `over` may have none."""
        if not isinstance(obs, Mapping):
            raise self.fault(f"the observations are a {type(obs).__name__}, expected a dictionary,")
        try:
            values = [obs[agent] for agent in names]
        except KeyError:
            there = np.array([agent in obs for agent in names])
            if (~there & ~over).any():
                agent = names[int((~there & ~over).argmax())]
                raise self.fault(f"agent {agent} has no observation") from None
            names = [agent for agent, here in zip(names, there, strict=True) if here]
            slots, over = slots[there], over[there]
            values = [obs[agent] for agent in names]
        values, masks = self._inner(values, slots)
        self._observe(values, slots, rows)
        if not isinstance(infos, Mapping):
            raise self.fault(f"the infos are a {type(infos).__name__}, expected a dictionary,")
        if any(infos.values()):
            told = [_mask_of(infos.get(agent)) for agent in names]
            late = [mask is not None for mask in told]
            if any(late) and not self.layout.masked and self.layout.discrete:
                raise self.fault(
                    f"agent {names[late.index(True)]} has an action mask in its info but none had at reset", "bad-mask"
                )
            masks = [
                mask if seen is None or (seen is _NO_MASK and mask is not None) else seen
                for mask, seen in zip(told, masks, strict=True)
            ]
        asked = ~over
        self._mask([mask for mask, ask in zip(masks, asked, strict=True) if ask], slots[asked], rows)

    def step(self, action: np.ndarray, rows: Rows) -> None:
        names, slots = self.names, self.slots
        played = dict(zip(names, self._played(action, slots), strict=True))
        self.clock += 1
        seed_globals(self.seed, self.clock)
        self.played = dict(played)  # theirs may be changed
        answer = self._call(self.env.step, played)
        if not (isinstance(answer, tuple) and len(answer) == 5):
            count = f" of {len(answer)}" if isinstance(answer, tuple) else ""
            raise self.fault(
                f"step() returned a {type(answer).__name__}{count}, expected (observations, rewards, terminations, "
                "truncations, infos),"
            )
        obs, rewards, terminations, truncations, infos = answer
        self._clear(rows, len(slots) if isinstance(obs, Mapping) and len(obs) >= len(slots) else 0)
        reward = self._rewards(self._each(rewards, names, "reward"), names)
        terminated = self._flags(self._each(terminations, names, "termination"), names, "termination")
        truncated = self._flags(self._each(truncations, names, "truncation"), names, "truncation") & ~terminated
        over = terminated | truncated
        rows.reward[slots] = reward
        rows.terminated[slots] = terminated
        rows.truncated[slots] = truncated
        listed = list(self.env.agents)
        shown_names, shown_slots, shown_over = names, slots, over
        if over.any() or listed != self.listed:
            born = self._changed(listed, names, over)
            self._seat(listed)
            self.listed = listed
            if born:
                new = np.array([self.layout.index[agent] for agent in born], np.int64)
                shown_names, shown_slots = [*names, *born], np.concatenate([slots, new])
                shown_over = np.concatenate([over, np.zeros(len(new), bool)])
        self._show(obs, infos, shown_names, shown_slots, rows, shown_over)
        rows.alive[self.slots] = True
        # Cut off is not dead: who was truncated still counts in this last moment.
        rows.alive[slots[truncated]] = True
        if len(self.slots) == 0:
            rows.ended[...] = True
        elif self._late():
            rows.truncated[self.slots] = True
            rows.ended[...] = True
        else:
            rows.acting[self.slots] = True

    def _each(self, values: Any, names: Sequence[Any], what: str) -> list[Any]:
        if not isinstance(values, Mapping):
            raise self.fault(f"the {what}s are a {type(values).__name__}, expected a dictionary,")
        try:
            return [values[agent] for agent in names]
        except KeyError as error:
            raise self.fault(f"agent {error.args[0]} has no {what}") from None

    def _changed(self, listed: list[Any], names: Sequence[Any], over: np.ndarray) -> list[Any]:
        """Check who left and who came; returns the newborn."""
        now, before = set(listed), set(names)
        for agent, gone in zip(names, over, strict=True):
            if gone and agent in now:
                raise self.fault(f"agent {agent} is over but still in env.agents")
            if not gone and agent not in now:
                raise self.fault(f"agent {agent} left env.agents without being terminated or truncated")
        self.finished.update(agent for agent, gone in zip(names, over, strict=True) if gone)
        born = [agent for agent in listed if agent not in before]
        back = [agent for agent in born if agent in self.finished]
        if back:
            raise self.fault(f"agent {back[0]} came back after its end")
        unknown = [agent for agent in born if agent not in self.layout.index]
        if unknown:
            raise self.fault(f"agent {unknown[0]} is not in possible_agents")
        return born


class TurnSingle(Single):
    """An AECEnv: the selected agent acts; agents that are over are stepped with None, within the same step here.

    An agent is paid, when it is next asked or when it is over, all that it got since it last acted
    (`env.last()`), and its observation is renewed then.
    """

    def __init__(self, env: Any, layout: Layout, copy: int) -> None:
        super().__init__(env, layout, copy)
        self.own = layout.empty(1).of(0)
        self.selected = -1

    def reset(self, seed: int, rows: Rows) -> None:
        self.clock, self.seed, self.played = 0, seed, {}
        for array in self.own:
            array[...] = 0
        seed_globals(seed, 0)
        self._call(self.env.reset, seed=seed)
        self.finished: set[Any] = set()
        self.listed = list(self.env.agents)
        if not self.listed:
            raise self.fault("there are no agents after reset()")
        self._settle()
        if not self.listed:
            raise self.fault("every agent is over right after reset()")
        self._publish(rows)

    def step(self, action: np.ndarray, rows: Rows) -> None:
        own, agent = self.own, self.layout.agents[self.selected]
        played = self._played(action, [self.selected])[0]
        own.obs[(own.terminated | own.truncated)] = 0  # an empty slot from the step after its end
        own.alive[own.truncated] = False
        for array in (own.reward, own.terminated, own.truncated, own.acting):
            array[...] = 0
        self.clock += 1
        seed_globals(self.seed, self.clock)
        self.played[agent] = played
        self._call(self.env.step, played, who=f" of agent {agent}")
        self._settle()
        if not self.listed:
            own.ended[...] = True
        elif self._late():
            self._cut()
        self._publish(rows)

    def _publish(self, rows: Rows) -> None:
        for out, own in zip(rows, self.own, strict=True):
            out[...] = own

    def _settle(self) -> None:
        """Bury who is over, until someone living is asked."""
        env, own, layout = self.env, self.own, self.layout
        cut: list[int] = []
        buried = 0
        while env.agents:
            agent = env.agent_selection
            slot = layout.index.get(agent)
            if slot is None:
                raise self.fault(f"agent {agent} is not in possible_agents")
            answer = self._call(env.last, who=f" for agent {agent}")
            if not (isinstance(answer, tuple) and len(answer) == 5):
                raise self.fault("last() must return (observation, reward, termination, truncation, info), and did not")
            observation, reward, termination, truncation, info = answer
            own.reward[slot] += self._rewards([reward], [agent])[0]
            terminated = bool(self._flags([termination], [agent], "termination")[0])
            truncated = bool(self._flags([truncation], [agent], "truncation")[0])
            one = np.array([slot])
            over = terminated or truncated
            mask = None
            if observation is not None or not over:
                if observation is None:
                    raise self.fault(f"agent {agent} has no observation")
                values, masks = self._inner([observation], one)
                mask = masks[0]
                own.obs[slot] = 0
                self._observe(values, one, own)
            if not over:
                told = _mask_of(info)
                if told is not None and not layout.masked and layout.discrete:
                    raise self.fault(f"agent {agent} has an action mask in its info but none had at reset", "bad-mask")
                self._mask([mask if told is None else told], one, own)
                own.acting[slot] = True
                self.selected = slot
                break
            own.terminated[slot] = terminated
            own.truncated[slot] = truncated and not terminated
            self.finished.add(agent)
            if own.truncated[slot]:
                cut.append(slot)
            buried += 1
            if buried > 2 * len(layout.agents):
                raise self.fault(f"agent {agent} is over but never leaves env.agents")
            self._call(env.step, None, who=f" of agent {agent}, which is over,")
        listed = list(env.agents)
        if buried or listed != self.listed or self.clock == 0:
            self._changed(listed)
            own.alive[...] = False
            own.alive[[layout.index[agent] for agent in listed]] = True
            own.alive[cut] = True
            self.listed = listed

    def _changed(self, listed: list[Any]) -> None:
        now, index = set(listed), self.layout.index
        for agent in self.listed:
            if agent not in now and agent not in self.finished:
                raise self.fault(f"agent {agent} left env.agents without being terminated or truncated")
        for agent in listed:
            if agent not in index:
                raise self.fault(f"agent {agent} is not in possible_agents")
            if agent in self.finished:
                raise self.fault(f"agent {agent} is over but still in env.agents")

    def _cut(self) -> None:
        """The time limit: everyone is paid what is still owed and sees where it stands."""
        own, owed = self.own, getattr(self.env, "_cumulative_rewards", {})
        for agent in self.env.agents:
            slot = self.layout.index[agent]
            own.truncated[slot] = True
            if slot != self.selected:
                own.reward[slot] += self._rewards([owed.get(agent, 0.0)], [agent])[0]
                values, _ = self._inner([self._call(self.env.observe, agent)], np.array([slot]))
                self._observe(values, np.array([slot]), own)
        own.acting[...] = False
        own.ended[...] = True


def play(
    singles: list[Single],
    command: Sequence[int] | np.ndarray,
    seeds: Sequence[int],
    action: np.ndarray,
    rows: Rows,
    again: Callable[[Single], Single] | None = None,
) -> list[tuple[int, str]]:
    """Tell each copy what to do: KEEP, RESET or STEP.

    With `again`, which makes a copy anew, a step whose code raised ends its episode only: returned is which copies that
    were, and what was raised. Whatever else goes wrong is raised.
    """
    broken = []
    for place, single in enumerate(singles):
        try:
            if command[place] == RESET:
                single.reset(seeds[place], rows.of(place))
            elif command[place] == STEP:
                single.step(action[place], rows.of(place))
        except EnvironmentFault as fault:
            if again is None or command[place] != STEP or fault.code != "environment-raised":
                raise
            broken.append((place, str(fault)))
            single.close()
            singles[place] = again(single)
    return broken


KEEP, RESET, STEP = 0, 1, 2  # what a copy is told


def host(
    maker: Any, copies: range, teams: Mapping[str, str], masked: bool, max_steps: int | None
) -> tuple[Layout, list[Single]]:
    """The copies of one process (`maker` is a `third_party.Maker`), each seen to be laid out as the first.

    Raises EnvironmentFault if copies differ, ConfigError if they are one and the same.
    """
    made: list[Single] = []
    first: Layout | None = None
    for copy in copies:
        env = maker()
        check_kind(env, maker.name)
        if any(env is other.env for other in made):
            raise ConfigError(f"{maker.name} made the same environment twice; expected a new one for every copy.")
        own = maker.layout(env, agents_of(env), teams, masked, max_steps)
        if first is None:
            first = own
        elif own.fingerprint() != first.fingerprint():
            raise EnvironmentFault(f"{maker.name} made copy {copy} {UNLIKE}")
        made.append(maker.single(env, first, copy))
    assert first is not None
    return first, made


UNLIKE = "with other agents or spaces than the first; all must be alike."


def agents_of(env: Any) -> list[Any]:
    """The possible agents; for an environment that does not list them, those after a reset."""
    listed = getattr(env, "possible_agents", None)
    if listed is None or len(listed) == 0:
        env.reset(seed=0)
        listed = env.agents
    return list(listed)
