"""MAgent2 without its dictionaries: one copy played through the engine's arrays.

Same observations, rewards and deaths, bit by bit, as through its ParallelEnv; positions and counts of the
living besides. The engine's own order of agents is the slots' order, and its ids are the slots.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mfmarl.population.single import Layout, Rows, Single, seed_globals

_DUELS = ("battle_v4", "battlefield_v5")  # two teams, and nobody dies but by the other's hand


def array_layout(env: Any, layout: Layout) -> Layout:
    """The layout with what the engine tells besides: where agents stand, how many of each team live."""
    raw = env.unwrapped
    measures = tuple(f"alive/{group}" for group in layout.groups)
    if raw.metadata.get("name") in _DUELS and len(layout.groups) == 2:
        measures += tuple(f"kills/{group}" for group in layout.groups)
    return dataclasses.replace(layout, position=2, measures=measures)


def mended(env: Any) -> Any:
    """The environment, counting its teams after it has placed them.

    MAgent2 0.3.4 counts before, when there is nobody: in the first step of every episode its dictionaries
    hand all teams the actions of the first agents in the list.
    """
    raw, reset = env.unwrapped, env.reset

    def counted(*arguments: Any, **options: Any) -> Any:
        answer = reset(*arguments, **options)
        raw.team_sizes = [raw.env.get_num(handle) for handle in raw.handles]
        return answer

    env.reset = counted
    return env


def fits(env: Any, layout: Layout) -> bool:
    """Whether slots lie in the engine's order (a grouping of one's own may reorder them)."""
    return tuple(env.possible_agents) == layout.agents and hasattr(env.unwrapped, "handles")


class ArraySingle(Single):
    """One copy of a MAgent2 environment. Its teams may differ in view and actions."""

    def __init__(self, env: Any, layout: Layout, copy: int) -> None:
        super().__init__(env, layout, copy)
        self.raw = env.unwrapped
        self.engine, self.handles = self.raw.env, self.raw.handles
        self.sizes = np.array(layout.group_sizes)
        self.team = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.possible = layout.possible[:, : layout.legal_width]
        self.slots: list[np.ndarray] = []
        """The living of each of the engine's groups."""

    def reset(self, seed: int, rows: Rows) -> None:
        self.clock, self.seed = 0, seed
        seed_globals(seed, 0)
        self._call(self._begin)
        self.slots = [self.engine.get_agent_id(handle) for handle in self.handles]
        number = sum(map(len, self.slots))
        if number != len(self.layout.agents):
            raise self.fault(f"the map holds {number} agents, expected {len(self.layout.agents)},")
        for array in rows[1:]:
            array[...] = 0
        rows.legal[...] = self.possible
        for handle, slots in zip(self.handles, self.slots, strict=True):
            self._look(handle, slots, rows)
        rows.alive[...] = True
        rows.acting[...] = True
        self._finish(rows, rows.alive)

    def _begin(self) -> None:
        raw = self.raw
        raw.seed(self.seed)
        raw.agents = raw.possible_agents[:]
        self.engine.reset()
        raw.frames = 0
        raw.generate_map()
        raw.team_sizes = [self.engine.get_num(handle) for handle in self.handles]

    def _look(self, handle: Any, slots: np.ndarray, rows: Rows) -> None:
        """What one of the engine's groups sees, into its slots."""
        if len(slots) == 0:
            return
        view, features = self.engine.get_observation(handle)
        height, width, channels = view.shape[1:]
        if len(slots) == slots[-1] - slots[0] + 1:
            block = rows.obs[slots[0] : slots[-1] + 1]  # nobody is missing: a plain copy
            block[:, :height, :width, :channels] = view
        else:
            rows.obs[slots, :height, :width, :channels] = view
        if self.raw.minimap_mode and not self.raw.extra_features:
            features = features[:, -2:]
        if self.raw.minimap_mode or self.raw.extra_features:
            end = channels + features.shape[1]
            rows.obs[slots, :height, :width, channels:end] = features[:, None, None, :]

    def step(self, action: np.ndarray, rows: Rows) -> None:
        engine = self.engine
        for handle, slots in zip(self.handles, self.slots, strict=True):
            engine.set_action(handle, action[slots].astype(np.int32))
        self.clock += 1
        seed_globals(self.seed, self.clock)
        done = self._call(engine.step)
        self.raw.frames = self.clock
        late = self.clock >= self.raw.max_cycles
        for array in rows[1:]:
            array[...] = 0
        rows.legal[...] = self.possible
        if sum(map(len, self.slots)) < len(self.layout.agents):
            rows.obs[...] = 0
        living = np.zeros(len(self.layout.agents), bool)
        for handle, slots in zip(self.handles, self.slots, strict=True):
            lives = engine.get_alive(handle)
            living[slots] = lives
            rows.reward[slots] = engine.get_reward(handle)
            rows.terminated[slots] = done | ~lives
            self._look(handle, slots, rows)
        engine.clear_dead()
        self.slots = [slots[living[slots]] for slots in self.slots]
        rows.alive[...] = living & (not done)
        if done or late or not living.any() or self._late():
            rows.truncated[...] = rows.alive
            rows.ended[...] = True
        else:
            rows.acting[...] = rows.alive
        self._finish(rows, living)

    def _finish(self, rows: Rows, living: np.ndarray) -> None:
        """Positions and counts, once the dead are off the map."""
        for handle, slots in zip(self.handles, self.slots, strict=True):
            rows.position[slots] = self.engine.get_pos(handle)
        alive = np.bincount(self.team[living], minlength=len(self.sizes))
        rows.measure[: len(alive)] = alive
        if len(rows.measure) > len(alive):
            rows.measure[len(alive) :] = (self.sizes - alive)[::-1]
