"""A population as PettingZoo's `ParallelEnv`: everybody chooses, then everybody moves at once."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import gymnasium
import numpy as np
from pettingzoo import ParallelEnv

from mfmarl.errors import ConfigError, EnvironmentFault
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.one_copy import OneCopy, tensor
from mfmarl.population.timestep import Timestep


class PopulationParallelEnv(ParallelEnv[str, Any, Any]):
    """One copy of `rules`, step by step as `Simulation` plays them.

    Agents that die or are truncated leave `agents` after the step that says so. Where the rules know
    illegal actions, `info["action_mask"]` [A] int8 shows the legal ones; an illegal action of the action
    space is the rules' to judge. Where they ask only some agents at a time, `info["acting"]` says whether
    an agent is asked: the others stay in `agents`, and an action of theirs is ignored (or left out).

    `max_cycles` takes the place of the rules' horizon. Raises ConfigError for an action outside the space,
    a missing or an unknown agent; EnvironmentFault for a step before a reset or after the end.
    """

    def __init__(self, rules: PopulationEnv, max_cycles: int | None = None, render_mode: str | None = None) -> None:
        self._one = one = OneCopy(rules, max_cycles, render_mode)
        self.rules = rules
        self.metadata = {**one.metadata, "is_parallelizable": True}
        self.render_mode = render_mode
        self.possible_agents = list(one.names)
        self.agents: list[str] = []
        self._begun = False
        self._asked: np.ndarray | None = None
        self._play_with(np.zeros(0, np.int64))

    @property
    def max_cycles(self) -> int | None:
        """Steps until an episode is truncated; None: never."""
        return self._one.max_cycles

    @max_cycles.setter
    def max_cycles(self, cycles: int | None) -> None:
        self._one.limit(cycles)

    def observation_space(self, agent: str) -> gymnasium.Space:
        return self._one.observation_space(agent)

    def action_space(self, agent: str) -> gymnasium.Space:
        return self._one.action_space(agent)

    @property
    def state_space(self) -> gymnasium.spaces.Box:
        """The observations of all agents, one after the other: a flat Box."""
        return self._one.state_space

    def state(self) -> np.ndarray:
        """The observations of all agents, the dead included, one after the other: flat."""
        return self._one.state()

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode: observations and infos. A seed fixes this episode and those that follow without one."""
        timestep = self._one.reset(seed)
        self._begun = True
        self._play_with(np.flatnonzero(timestep.alive[0].numpy()))
        self._asked = timestep.acting.numpy()[0] if self._one.asks else None
        if self.render_mode == "human":
            self.render()
        return self._observations(timestep), self._infos(timestep)

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Play one step: observations, rewards, terminations, truncations and infos of those who played it."""
        one, keys, rows = self._one, self._keys, self._rows
        timestep = one.simulation.step(tensor(self._chosen(actions)))
        rewards = one.rewards(timestep)
        values = rewards if rows is None else rewards[rows]
        result = (
            self._observations(timestep),
            dict(zip(keys, values.tolist(), strict=True)),
            self._nobody.copy(),
            self._nobody.copy(),
            self._infos(timestep),
        )
        if not one.together or timestep.ended.item():
            playing = slice(None) if rows is None else rows
            for flags, told in ((timestep.terminated, result[2]), (timestep.truncated, result[3])):
                told.update(zip(keys, flags.numpy()[0][playing].tolist(), strict=True))
            leaving = (timestep.terminated | timestep.truncated).numpy()[0][playing]
            if leaving.any():
                self._play_with(np.arange(len(one.names))[playing][~leaving])
        self._asked = timestep.acting.numpy()[0] if one.asks else None
        if self.render_mode == "human":
            self.render()
        return result

    def render(self) -> np.ndarray | None:
        """The picture [H, W, 3] uint8 for `rgb_array`; shows it for `human`."""
        return self._one.render()

    def close(self) -> None:
        self._one.close()

    def _play_with(self, rows: np.ndarray) -> None:
        """Remember who is playing, in the forms that a step needs."""
        names = self._one.names
        everyone = len(rows) == len(names)
        self._rows = None if everyone else rows
        self._keys = names if everyone else tuple(names[i] for i in rows.tolist())
        self.agents = list(self._keys)
        self._pick = (
            itemgetter(*self._keys) if len(self._keys) > 1 else lambda actions: [actions[k] for k in self._keys]
        )
        self._nobody = dict.fromkeys(self._keys, False)
        self._asked = None

    def _observations(self, timestep: Timestep) -> dict[str, Any]:
        array = self._one.observations(timestep)
        array = array.copy() if self._rows is None else array[self._rows]
        return dict(zip(self._keys, list(array), strict=True))

    def _infos(self, timestep: Timestep) -> dict[str, dict[str, Any]]:
        if timestep.legal is None and not self._one.asks:
            return {key: {} for key in self._keys}
        masks = self._one.masks(timestep)
        rows = slice(None) if self._rows is None else self._rows
        infos: dict[str, dict[str, Any]]
        if masks is None:
            infos = {key: {} for key in self._keys}
        else:
            infos = {key: {"action_mask": mask} for key, mask in zip(self._keys, list(masks[rows]), strict=True)}
        if self._one.asks:
            acting = timestep.acting.numpy()[0][rows].tolist()
            for info, asked in zip(infos.values(), acting, strict=True):
                info["acting"] = asked
        return infos

    def _chosen(self, actions: dict[str, Any]) -> np.ndarray:
        """Everyone's action, [N] or [N, D]: zeros for the dead."""
        one, keys = self._one, self._keys
        if not keys:
            what = "the episode is over" if self._begun else "it was called before reset()"
            raise EnvironmentFault(f"step() cannot play: {what}; call reset() first.")
        try:
            chosen = one.actions(self._pick(actions))
        except KeyError:
            chosen = None
        if chosen is None:
            chosen = self._one_by_one(actions)
        if len(actions) != len(keys):
            one.refuse_strangers(actions, keys)
        if self._rows is None:
            return chosen
        everyone = one.no_actions()
        everyone[self._rows] = chosen
        return everyone

    def _one_by_one(self, actions: dict[str, Any]) -> np.ndarray:
        """The careful way: names the culprit, and lets those be who were not asked."""
        one, keys, asked = self._one, self._keys, self._asked
        one.refuse_strangers(actions, keys)
        chosen = one.no_actions()[: len(keys)]
        missing = []
        for i, key in enumerate(keys):
            if asked is not None and not asked[one.index[key]]:
                continue
            if key in actions:
                chosen[i] = one.action(key, actions[key])
            else:
                missing.append(key)
        if missing:
            more = f" and {len(missing) - 1} more agents" if len(missing) > 1 else ""
            raise ConfigError(f"step() got no action for {missing[0]!r}{more}: one is needed for all of env.agents.")
        return chosen
