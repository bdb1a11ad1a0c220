"""Any PettingZoo environment as batched tensors: several copies, here, in threads or in processes.

What becomes of a third-party environment:

- Observations are float32 in their own shape, values untouched (a uint8 image stays 0..255); spaces of
  different shapes are padded with zeros at the far end, flattened only if ranks differ. A Discrete
  observation is a class number (one-hot where other agents have a Box).
- Discrete actions of different number are padded, and the padding is illegal by mask. Masks come from a
  Dict observation's `action_mask` or from `info["action_mask"]`. Boxes are flattened and padded; the shared
  Box spans all bounds, and each agent's action is clipped to its own.
- Agents keep their slot when they die (zeros from the next step on). An agent of `possible_agents` may be
  born later. Both terminated and truncated means terminated.
- Teams are what stands before the last underscore of a name, and lie one after the other.
- In an AEC environment one agent acts per step. It is paid, when it is next asked or over, what it got since
  it last acted; others see what they saw when last asked.
- Copy c's n-th episode is reset with a seed made from (key, c, n) alone, and the global generators of Python,
  numpy and torch are the environment's own while it runs: neither the number of copies nor where they run
  changes a result. (Threads share global generators: an environment that draws from them is refused there.)
- A checkpoint holds the seeds and the actions of the current episodes, and resuming plays them again: an
  environment that is not a function of its seed and actions is found out by a hash of what is seen.
- Pictures are drawn by a twin that is played the same actions, so that drawing changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import select
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mfmarl.errors import (
    CheckpointError,
    ConfigError,
    EnvironmentFault,
    MfmarlError,
    NumericFault,
    ResourceFault,
)
from mfmarl.population import third_party
from mfmarl.population.division import Division
from mfmarl.population.environment import agent_ids
from mfmarl.population.picture import enlarged
from mfmarl.population.simulation import Env
from mfmarl.population.single import (
    KEEP,
    RESET,
    STEP,
    UNLIKE,
    Layout,
    Rows,
    Single,
    agents_of,
    check_kind,
    host,
    isolated,
    mark,
    place_of,
    play,
    raised,
    takes_turns,
    told,
)
from mfmarl.population.spec import Spec
from mfmarl.population.third_party import Maker
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key, seed_for

_STARTING = 60.0  # seconds that a child may take at least to import and make its environments


class Adapter(Env):
    """E copies of a third-party PettingZoo environment.

    `make` makes one environment (a `ParallelEnv` or an `AECEnv`): a `Maker`, a class or a function without
    arguments. `workers` says where copies run: 0 in this process, `"threads"`, or that many child processes
    (which must be able to import what `make` names). `grouping` maps an agent's name to its team.
    `max_steps` truncates episodes; `timeout` (seconds) is how long a child process may take for one step (an environment
    in this process cannot be stopped from outside). An environment whose own code raises in a step ends everything, or, up
    to `max_restarts` times, its episode alone: it is cut off where it was, and one made anew plays the copy's next.

    Raises ConfigError for spaces that cannot be had, EnvironmentFault or NumericFault, in one sentence that
    names environment, agent, copy and step, when the environment breaks its contract.
    """

    def __init__(
        self,
        make: Maker | Callable[..., Any],
        copies: int = 1,
        device: torch.device | str = "cpu",
        first_copy: int = 0,
        workers: int | Literal["threads"] = 0,
        grouping: Mapping[str, str] | Callable[[str], str] | None = None,
        max_steps: int | None = None,
        timeout: float = 60.0,
        max_restarts: int = 0,
    ) -> None:
        if copies < 1:
            raise ConfigError(f"copies must be at least 1, not {copies}.")
        if workers != "threads" and (not isinstance(workers, int) or workers < 0):
            raise ConfigError(f"workers must be 0, a number of processes, or 'threads', not {workers!r}.")
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}.")
        if not timeout > 0:
            raise ConfigError(f"timeout must be a positive number of seconds, not {timeout}.")
        self.maker = make if isinstance(make, Maker) else third_party.maker_of(make)
        if self.maker.instance is not None and (copies > 1 or workers not in (0, "threads")):
            raise ConfigError(
                f"{self.maker.name}: one instance can be one copy here; give a class or a function for more."
            )
        self.copies, self.device = copies, torch.device(device)
        self.max_restarts = max_restarts
        self.restarts = self.outside = 0
        self._first = first_copy
        self.layout = self._probe(grouping, max_steps)
        layout = self.layout
        self.spec = Spec(
            num_agents=len(layout.agents),
            observation_space=layout.observation,
            action_space=layout.action,
            horizon=max_steps,
            groups=layout.groups,
            group_sizes=layout.group_sizes,
            agent_names=tuple(str(agent) for agent in layout.agents),
        )
        self.turns = layout.turns
        self.division = Division(self.spec, copies)
        self.ids = agent_ids(copies, self.spec.num_agents, self.device, first_copy)
        self._place: _Place
        if workers == "threads":
            self._place = _Threads(self.maker, layout, copies, first_copy, max_restarts > 0)
        elif workers:
            self._place = _Processes(
                self.maker, layout, copies, first_copy, min(int(workers), copies), timeout, max_restarts > 0
            )
        else:
            self._place = _Here(self.maker, layout, copies, first_copy, max_restarts > 0)
        self._finalizer = weakref.finalize(self, self._place.close)
        self.key = Key(0)
        self.episode = [0] * copies
        self.clock = np.zeros(copies, np.int64)
        self.rows: Rows | None = None
        self.timestep: Timestep | None = None
        self._log: list[list[np.ndarray]] = [[] for _ in range(copies)]
        small = np.int8 if self.spec.num_actions <= 127 else np.int32
        self._log_dtype = np.dtype(small) if self.spec.discrete else np.dtype(np.float32)
        self._viewer: tuple[int, int, int, Single, Rows] | None = None  # copy, episode, steps played

    def _probe(self, grouping: Mapping[str, str] | Callable[[str], str] | None, max_steps: int | None) -> Layout:
        """The layout, from an environment that is made, reset once, and thrown away."""
        name = self.maker.name
        with isolated():
            env = self.maker()
            check_kind(env, name)
            try:
                answer = env.reset(seed=0)
            except MfmarlError:
                raise
            except (Exception, SystemExit) as error:
                raise EnvironmentFault(
                    f"{name}: reset(seed=0) raised {raised(error)}{place_of(error)}.", "environment-raised"
                ) from error
            infos = (
                env.infos if takes_turns(env) else answer[1] if isinstance(answer, tuple) and len(answer) == 2 else {}
            )
            masked = (
                any("action_mask" in (info or {}) for info in infos.values()) if isinstance(infos, Mapping) else False
            )
            agents = agents_of(env)
            teams = {str(a): str(grouping(str(a))) for a in agents} if callable(grouping) else grouping
            if self.maker.arrays and not self.maker.arrays_fit(env, agents, teams):
                self.maker = dataclasses.replace(self.maker, arrays=False)
            layout = self.maker.layout(env, agents, teams, masked, max_steps)
            if self.maker.instance is None:
                with contextlib.suppress(Exception):
                    env.close()
        return layout

    # ------------------------------------------------------------------------------------------- the cycle

    @property
    def name(self) -> str:
        return self.layout.name

    def reset(self, key: Key) -> Timestep:
        self.key = key
        self.episode = [0] * self.copies
        self._log = [[] for _ in range(self.copies)]
        self.clock = np.zeros(self.copies, np.int64)
        rows = self.layout.empty(self.copies)
        self._run(np.full(self.copies, RESET), self._no_action(), rows)
        self._check(rows)
        return self._view(rows, torch.from_numpy(self._no_action()).to(self.device))

    def _seeds(self) -> list[int]:
        return [seed_for(self.key.fold("episode", self._first + c, n)) for c, n in enumerate(self.episode)]

    def _no_action(self) -> np.ndarray:
        n = self.spec.num_agents
        if self.spec.discrete:
            return np.full((self.copies, n), -1, np.int64)
        return np.full((self.copies, n, self.spec.num_actions), np.nan, np.float32)

    def _run(self, command: np.ndarray, action: np.ndarray, rows: Rows) -> None:
        seeds = self._seeds() if (command == RESET).any() else [0] * self.copies
        for copy, message in self._place.run(command, seeds, action, rows):
            self._cut_off(copy, message, rows)

    def _cut_off(self, copy: int, message: str, rows: Rows) -> None:
        """End the episode of a copy whose environment raised: as it was before that step, and nobody is paid for it."""
        self.restarts += 1
        if self.restarts > self.max_restarts or self.rows is None:
            raise EnvironmentFault(
                f"{message} It has done so {self.restarts} times, and environment_restarts = {self.max_restarts}.",
                "environment-raised",
            )
        now, last = rows.of(copy), self.rows.of(copy)
        for name, array in now._asdict().items():
            array[...] = getattr(last, name) if name in ("obs", "alive", "legal", "position", "measure") else 0
        now.truncated[...] = last.alive
        now.ended[...] = True
        warnings.warn(
            f"{message} The episode ends there, and another environment plays the next (restart {self.restarts} of at most "
            f"{self.max_restarts}).",
            stacklevel=2,
        )

    def step(self, action: Tensor) -> Timestep:
        before = self.timestep
        if before is None or self.rows is None:
            raise EnvironmentFault("step() was called before reset().")
        if self.rows.ended.any():
            copy = int(self.rows.ended[:, 0].argmax())
            raise EnvironmentFault(
                f"{self.layout.name}: copy {self._first + copy} has ended; call restart() before step()."
            )
        played = self._playable(action, before)
        rows = self.layout.empty(self.copies)
        for copy in range(self.copies):
            self._log[copy].append(played[copy].astype(self._log_dtype))
        self._run(np.full(self.copies, STEP), played, rows)
        self.clock = self.clock + 1
        self._check(rows)
        asked = before.acting if self.spec.discrete else before.acting.unsqueeze(-1)
        force = torch.where(asked, action.to(before.action.dtype), before.action)
        return self._view(rows, force)

    def _playable(self, action: Tensor, before: Timestep) -> np.ndarray:
        """The actions as an array, once they are seen to be legal."""
        spec, rows, name = self.spec, self.rows, self.layout.name
        assert rows is not None
        shape = tuple(self.ids.shape) if spec.discrete else (*self.ids.shape, spec.num_actions)
        if tuple(action.shape) != shape:
            raise ConfigError(f"{name}: actions have shape {tuple(action.shape)}; expected {shape}.")
        if spec.discrete and (action.is_floating_point() or action.dtype == torch.bool):
            raise ConfigError(f"{name}: actions are {action.dtype}; a Discrete space takes int64.")
        played = action.detach().cpu().numpy()
        acting = rows.acting
        if spec.discrete:
            outside = acting & ((played < 0) | (played >= spec.num_actions))
            if not outside.any():
                # Nobody's action is read for those that are not asked.
                played = np.where(acting, played, 0)
                legal = rows.legal if self.layout.legal_width else None
                if legal is not None:
                    outside = acting & ~np.take_along_axis(legal, played[..., None], -1)[..., 0]
            if outside.any():
                copy, agent = np.argwhere(outside)[0]
                where = f"of agent {spec.names[agent]} in copy {self._first + copy} at step {self.clock[copy] + 1}"
                number = int(played[copy, agent])
                own = int(self.layout.possible[agent].sum())
                if not 0 <= number < own:
                    raise ConfigError(
                        f"{name}: the action {number} {where} is outside Discrete({own}): expected 0..{own - 1}."
                    )
                raise ConfigError(f"{name}: the action {number} {where} is illegal by its action mask.")
            return played
        space = spec.action_space
        low, high = space.low, space.high  # type: ignore[attr-defined]
        slack = 1e-5 * (1 + np.maximum(np.abs(low), np.abs(high)).clip(max=1e30))
        with np.errstate(invalid="ignore"):
            inside = (played >= low - slack) & (played <= high + slack)
        outside = acting[..., None] & ~inside & self._dimensions
        if outside.any():
            copy, agent, column = np.argwhere(outside)[0]
            if np.isnan(played[copy, agent, column]):
                raise NumericFault(
                    f"{name}: {self._who(agent)} chose {played[copy, agent].tolist()} in copy {self._first + copy} at "
                    f"step {self.clock[copy] + 1}: its weights, or what it sees, are not finite.",
                    "nan-action",
                )
            raise ConfigError(
                f"{name}: the action of agent {spec.names[agent]} in copy {self._first + copy} at step "
                f"{self.clock[copy] + 1} is {played[copy, agent, column]:g} in dimension {column}, outside "
                f"[{low[column]:g}, {high[column]:g}]."
            )
        return np.where(acting[..., None], played, 0).astype(np.float32)

    @property
    def _dimensions(self) -> np.ndarray:
        """Which dimensions of a padded Box each agent has, [N, D]."""
        own = np.array([int(np.prod(space.shape or ())) for space in self.layout.action_spaces])
        return np.arange(self.spec.num_actions) < own[:, None]

    def restart(self, timestep: Timestep) -> Timestep:
        assert self.rows is not None
        ended = self.rows.ended[:, 0].copy()
        if not ended.any():
            return timestep
        for copy in np.flatnonzero(ended):
            self.episode[copy] += 1
            self._log[copy] = []
        rows = Rows(*(array.copy() for array in self.rows))
        self._run(np.where(ended, RESET, KEEP), self._no_action(), rows)
        self.clock = np.where(ended, 0, self.clock)
        self._check(rows)
        fresh = torch.from_numpy(ended).to(self.device).view(-1, *[1] * (timestep.action.ndim - 1))
        none = torch.from_numpy(self._no_action()).to(self.device)
        return self._view(rows, torch.where(fresh, none, timestep.action))

    def _view(self, rows: Rows, action: Tensor) -> Timestep:
        self.rows = rows
        tensors = Rows(*(torch.from_numpy(array).to(self.device) for array in rows))  # type: ignore[arg-type]
        view: Any = tensors
        self.timestep = Timestep(
            obs=view.obs,
            reward=view.reward,
            alive=view.alive,
            acting=view.acting,
            legal=view.legal if self.layout.legal_width else None,
            action=action,
            terminated=view.terminated,
            truncated=view.truncated,
            position=view.position if self.layout.position else None,
            step=torch.from_numpy(self.clock.copy()).to(self.device),
            ended=view.ended[:, 0],
        )
        return self.timestep

    def _check(self, rows: Rows) -> None:
        least, most = rows.reward.min(initial=0.0), rows.reward.max(initial=0.0)
        if not (-self.reward_limit <= least and most <= self.reward_limit):
            copy, agent = np.argwhere(~(np.abs(rows.reward) <= self.reward_limit))[0]
            reward = rows.reward[copy, agent]
            where = f"{self.layout.name}: the reward of {self._who(agent)} is {reward:g}{self._after(copy, agent)}"
            if not np.isfinite(reward):
                raise NumericFault(f"{where}: rewards must be finite.", "nan-reward")
            raise NumericFault(
                f"{where}, beyond reward_limit = {self.reward_limit:g}: scale the rewards.", "reward-bound"
            )
        if rows.obs.dtype != np.float32:
            return
        if not np.isfinite(rows.obs.sum()):
            bad = np.argwhere(~np.isfinite(rows.obs))
            if len(bad):
                copy, agent = bad[0, :2]
                raise NumericFault(
                    f"{self.layout.name}: the observation of {self._who(agent)} has a {rows.obs[tuple(bad[0])]}"
                    f"{self._after(copy, agent)}: observations must be finite.",
                    "nan-observation",
                )
        if self._bounds is not None:
            self._look_outside(rows, *self._bounds)

    def _look_outside(self, rows: Rows, low: np.ndarray, high: np.ndarray) -> None:
        """Count observations of the living outside their space; the first is warned of."""
        outside = (rows.obs < low) | (rows.obs > high)
        if not outside.any():
            return
        outside &= rows.alive.reshape(*rows.alive.shape, *[1] * (outside.ndim - 2))
        number = int(outside.reshape(*outside.shape[:2], -1).any(-1).sum())
        if number and not self.outside:
            place = np.argwhere(outside)[0]
            copy, agent = place[:2]
            warnings.warn(
                f"{self.layout.name}: the observation of {self._who(agent)} has a {rows.obs[tuple(place)]:g}"
                f"{self._after(copy, agent)}, outside its space of {low[tuple(place[2:])]:g} to {high[tuple(place[2:])]:g}: "
                "told once, counted as train/outside.",
                stacklevel=2,
            )
        self.outside += number

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What observations lie between, [*O] each; None where anything goes."""
        space = self.layout.observation
        low, high = getattr(space, "low", None), getattr(space, "high", None)
        if low is None or high is None or not (np.isfinite(low) | np.isfinite(high)).any():
            return None
        return low, high

    def _who(self, agent: int) -> str:
        return f"agent {self.spec.names[agent]}"

    def _after(self, copy: int, agent: int) -> str:
        """What an agent did last, and where that was."""
        log, where = self._log[copy], f" in copy {self._first + copy} at step {self.clock[copy]}"
        if not log:
            return where
        action = log[-1][agent] + (self.layout.action_start[agent] if self.spec.discrete else 0)
        return f"{where}, after its action {told(action)}"

    def measure(self) -> dict[str, Tensor]:
        if self.rows is None:
            return {}
        return {
            name: torch.from_numpy(self.rows.measure[:, i].copy()).to(self.device)
            for i, name in enumerate(self.layout.measures)
        }

    # ------------------------------------------------------------------------------------------- pictures

    def render(self, copy: int = 0) -> Tensor | None:
        if not 0 <= copy < self.copies:
            raise ConfigError(f"There is no copy {copy}: expected 0..{self.copies - 1}.")
        if self.rows is None:
            return None
        with isolated(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pygame's, about fonts
            if self.maker.instance is not None:
                env = self.maker.instance
                frame = env.render() if getattr(env, "render_mode", None) == "rgb_array" else None
            else:
                viewer = self._viewed(copy)
                frame = None if viewer is None else viewer.render()
        if frame is None:
            return None
        picture = np.array(frame)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] < 3:
            raise EnvironmentFault(
                f"{self.layout.name}: render() gave {picture.dtype} of shape {picture.shape}; expected uint8 [H, W, 3]."
            )
        return enlarged(torch.from_numpy(np.ascontiguousarray(picture[..., :3])))

    def _viewed(self, copy: int) -> Single | None:
        """A twin of this copy that makes pictures, at the same moment."""
        episode, log = self.episode[copy], self._log[copy]
        if self._viewer is None or self._viewer[0] != copy:
            if self._viewer is not None:
                self._viewer[3].close()
                self._viewer = None
            env = self.maker.picturing()
            if env is None or getattr(env, "render_mode", None) != "rgb_array":
                return None
            twin = self.maker.single(env, self.layout, self._first + copy)
            self._viewer = (copy, -1, 0, twin, self.layout.empty(1).of(0))
        _, shown, played, twin, rows = self._viewer
        if shown == episode and played <= len(log):
            self._catch_up(twin, log[played:], rows)
        assert self.rows is not None
        if shown != episode or played > len(log) or not np.array_equal(rows.obs, self.rows.obs[copy]):
            # A new episode; or drawing itself moved the twin's generator: then it plays from the beginning.
            twin.reset(self._seeds()[copy], rows)
            self._catch_up(twin, log, rows)
        self._viewer = (copy, episode, len(log), twin, rows)
        if not np.array_equal(rows.obs, self.rows.obs[copy]):
            raise EnvironmentFault(
                f"{self.layout.name}: the same seed and actions led elsewhere in copy {self._first + copy} at step "
                f"{self.clock[copy]}: it is not a function of its seed, so it cannot be drawn."
            )
        return twin

    def _catch_up(self, twin: Single, log: list[np.ndarray], rows: Rows) -> None:
        for action in log:
            twin.step(action.astype(np.int64) if self.spec.discrete else action, rows)

    # ------------------------------------------------------------------------------------------- resuming

    def _digest(self, rows: Rows) -> Tensor:
        digest = hashlib.sha256()
        for array in (rows.obs, rows.alive, rows.acting, rows.legal, rows.ended):
            digest.update(np.ascontiguousarray(array).tobytes())
        return torch.from_numpy(np.frombuffer(digest.digest(), np.uint8).copy())

    def state_dict(self) -> dict[str, Tensor]:
        if self.timestep is None or self.rows is None:
            raise CheckpointError(f"{self.layout.name}: there is nothing to save before reset().")
        now = self.timestep
        state = {f"timestep.{name}": getattr(now, name) for name in ("reward", "action", "terminated", "truncated")}
        for copy, log in enumerate(self._log):
            shape = (0, *self._no_action().shape[1:])
            state[f"log.{copy}"] = torch.from_numpy(np.stack(log) if log else np.zeros(shape, self._log_dtype))
        state["episode"] = torch.tensor(self.episode)
        state["counts"] = torch.tensor([self.restarts, self.outside])
        state["digest"] = self._digest(self.rows)
        state["key"] = torch.tensor([self.key.value >> 32, self.key.value & 0xFFFFFFFF])
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> Timestep:
        """Plays the current episodes again, as long as they have lasted. Raises CheckpointError if they go otherwise."""
        name, tail = self.layout.name, self._no_action().shape[1:]
        try:
            high, low = state["key"].tolist()
            episode = [int(n) for n in state["episode"].tolist()]
            logs = [state[f"log.{copy}"].cpu().numpy() for copy in range(len(episode))]
            digest = state["digest"].cpu()
            now = {part: state[f"timestep.{part}"] for part in ("reward", "action", "terminated", "truncated")}
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{name}: the stored environment lacks or garbles {error}.") from error
        if len(episode) != self.copies or any(log.shape[1:] != tail for log in logs):
            there = f"{len(episode)} copies with actions of shape {logs[0].shape[1:] if logs else ()}"
            raise CheckpointError(f"{name}: the checkpoint holds {there}; expected {self.copies} with {tail}.")
        wide = np.int64 if self.spec.discrete else np.float32
        self.key, self.episode = Key(high << 32 | low), episode
        rows = self.layout.empty(self.copies)
        self.clock = np.zeros(self.copies, np.int64)
        try:
            self._run(np.full(self.copies, RESET), self._no_action(), rows)
            for t in range(max(len(log) for log in logs)):
                going = np.array([t < len(log) for log in logs])
                action = np.stack([log[t] if t < len(log) else np.zeros(tail, wide) for log in logs]).astype(wide)
                self._run(np.where(going, STEP, KEEP), action, rows)
                self.clock = self.clock + going
        except (EnvironmentFault, NumericFault) as error:
            raise CheckpointError(f"{name}: replaying the stored episode failed: {error}") from error
        if not torch.equal(self._digest(rows), digest):
            raise CheckpointError(
                f"{name}: replaying the stored seeds and actions led elsewhere: this environment (or another version "
                "of it) is not a function of its seed, so a run on it cannot be resumed exactly."
            )
        self._log = [[one.astype(self._log_dtype) for one in log] for log in logs]
        self.restarts, self.outside = state.get("counts", torch.zeros(2, dtype=torch.int64)).tolist()
        for part in ("reward", "terminated", "truncated"):
            getattr(rows, part)[...] = now[part].cpu().numpy()
        return self._view(rows, now["action"].to(self.device))

    def close(self) -> None:
        self._finalizer()
        if self._viewer is not None:
            self._viewer[3].close()
            self._viewer = None


# ---------------------------------------------------------------------------------------- where copies run


class _Place(Protocol):
    def run(self, command: np.ndarray, seeds: list[int], action: np.ndarray, rows: Rows) -> list[tuple[int, str]]:
        """Play; which copies broke and were made anew, and why."""
        ...

    def close(self) -> None: ...


class _Here:
    def __init__(self, maker: Maker, layout: Layout, copies: int, first: int, restarts: bool) -> None:
        with isolated():
            copied = range(first, first + copies)
            own, self.singles = host(maker, copied, layout.teams(), layout.masked, layout.max_steps)
        if own.fingerprint() != layout.fingerprint():
            raise EnvironmentFault(f"{maker.name} made copy {first} {UNLIKE}")

        def anew(single: Single) -> Single:
            return maker.single(maker(), layout, single.copy)

        self.again = anew if restarts else None

    def run(self, command: np.ndarray, seeds: list[int], action: np.ndarray, rows: Rows) -> list[tuple[int, str]]:
        with isolated():
            return play(self.singles, command, seeds, action, rows, self.again)

    def close(self) -> None:
        for single in self.singles:
            single.close()


class _Threads(_Here):
    def __init__(self, maker: Maker, layout: Layout, copies: int, first: int, restarts: bool) -> None:
        super().__init__(maker, layout, copies, first, restarts)
        self.name = layout.name
        self.pool = ThreadPoolExecutor(max_workers=min(copies, os.cpu_count() or 1))

    def run(self, command: np.ndarray, seeds: list[int], action: np.ndarray, rows: Rows) -> list[tuple[int, str]]:
        def one(copy: int) -> list[tuple[int, str]]:
            own, part = [self.singles[copy]], slice(copy, copy + 1)
            view = Rows(*(array[part] for array in rows))
            broken = play(own, command[part], seeds[part], action[part], view, self.again)
            self.singles[copy] = own[0]
            return [(copy, message) for _, message in broken]

        with isolated():
            before = mark()
            jobs = [self.pool.submit(one, copy) for copy in range(len(self.singles))]
            faults = [job.exception() for job in jobs]
            after = mark()
        for fault in faults:
            if fault is not None:
                raise fault
        if before != after:
            raise EnvironmentFault(
                f"{self.name} draws from the global random generators, which threads share: run its copies in "
                "processes (workers=2) or in this one (workers=0)."
            )
        return [found for job in jobs for found in job.result()]

    def close(self) -> None:
        self.pool.shutdown(wait=True)
        super().close()


_FAULTS: dict[str, type[MfmarlError]] = {
    kind.__name__: kind for kind in (ConfigError, EnvironmentFault, NumericFault, ResourceFault)
}


class RemoteTraceback(Exception):
    """The traceback of what went wrong in a child process, as text."""


class _Processes:
    """Children that host a run of copies each, spoken to over pipes: a JSON line's length, the line, raw bytes."""

    def __init__(
        self, maker: Maker, layout: Layout, copies: int, first: int, workers: int, timeout: float, restarts: bool
    ) -> None:
        self.layout, self.timeout = layout, timeout
        self.children: list[_Child] = []
        address = maker.address()
        bounds = [copies * w // workers for w in range(workers + 1)]
        try:
            for start, end in pairwise(bounds):
                self.children.append(_Child(layout.name, start, end, first, timeout))
            for child in self.children:
                child.send(
                    {
                        "address": address,
                        "first": first + child.start,
                        "copies": child.end - child.start,
                        "teams": layout.teams(),
                        "masked": layout.masked,
                        "max_steps": layout.max_steps,
                        "restarts": restarts,
                        "path": sys.path,
                    },
                    [],
                    time.monotonic() + timeout,
                )
            for child in self.children:
                answer = child.receive(time.monotonic() + max(timeout, _STARTING), "while starting")
                if answer["fingerprint"] != hashlib.sha256(layout.fingerprint().encode()).hexdigest():
                    raise EnvironmentFault(f"{layout.name} made copy {first + child.start} {UNLIKE}")
        except BaseException:
            self.close()
            raise

    def run(self, command: np.ndarray, seeds: list[int], action: np.ndarray, rows: Rows) -> list[tuple[int, str]]:
        deadline = time.monotonic() + self.timeout
        asked, broken = [], []
        try:
            for child in self.children:
                mine = slice(child.start, child.end)
                if not command[mine].any():
                    continue
                message = {"command": command[mine].tolist(), "seeds": seeds[mine]}
                child.send(message, [np.ascontiguousarray(action[mine])], deadline)
                asked.append(child)
            fault: BaseException | None = None
            for child in asked:
                try:
                    answer = child.receive(deadline, "in a step")
                    broken += [(child.start + int(place), str(message)) for place, message in answer["broken"]]
                    for copy in range(child.start, child.end):
                        if command[copy]:
                            for array in rows.of(copy):
                                if array.size:
                                    child.read(array.data.cast("B"), deadline)
                except MfmarlError as error:
                    fault = fault or error
            if fault is not None:
                raise fault
        except BaseException:
            # Half-read pipes cannot be used again.
            self.close()
            raise
        return broken

    def close(self) -> None:
        for child in self.children:
            child.kill()


class _Child:
    def __init__(self, name: str, start: int, end: int, first: int, timeout: float) -> None:
        self.start, self.end, self.timeout = start, end, timeout
        self.who = f"{name}: the process of copies {first + start} to {first + end - 1}"
        if end - start == 1:
            self.who = f"{name}: the process of copy {first + start}"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        root = Path(__file__).resolve().parents[2]
        environment["PYTHONPATH"] = os.pathsep.join([str(root), environment["PYTHONPATH"]])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mfmarl.population.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.out, self.into = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.out, False)
        os.set_blocking(self.into, False)

    def _dead(self, when: str) -> EnvironmentFault:
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return EnvironmentFault(f"{self.who} {how} {when}; its last words are on standard error.", "environment-died")

    def _late(self) -> EnvironmentFault:
        self.process.kill()
        self.process.wait()
        return EnvironmentFault(
            f"{self.who} did not answer within {self.timeout:g} seconds and was killed: the environment hangs, or needs a "
            f"longer --timeout.",
            "environment-hangs",
        )

    def send(self, message: dict[str, Any], arrays: list[np.ndarray], deadline: float) -> None:
        text = json.dumps(message).encode()
        part: Any
        for part in (len(text).to_bytes(4, "little") + text, *(a.data.cast("B") for a in arrays if a.size)):
            view = memoryview(part)
            while view:
                ready = select.select([], [self.out], [], max(0.0, deadline - time.monotonic()))[1]
                if not ready:
                    raise self._late()
                try:
                    view = view[os.write(self.out, view) :]
                except BrokenPipeError:
                    raise self._dead("before a step") from None

    def read(self, view: memoryview, deadline: float, when: str = "in a step") -> None:
        while view:
            if not select.select([self.into], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._late()
            got = os.readv(self.into, [view])
            if got == 0:
                raise self._dead(when)
            view = view[got:]

    def receive(self, deadline: float, when: str) -> dict[str, Any]:
        length = bytearray(4)
        self.read(memoryview(length), deadline, when)
        text = bytearray(int.from_bytes(length, "little"))
        self.read(memoryview(text), deadline, when)
        answer: dict[str, Any] = json.loads(text.decode())
        if "fault" in answer:
            kind = _FAULTS.get(answer["fault"], EnvironmentFault)
            raise kind(answer["message"], answer["code"]) from RemoteTraceback(answer["traceback"])
        return answer

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
