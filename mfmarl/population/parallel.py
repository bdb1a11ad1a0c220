"""A population as PettingZoo's `ParallelEnv`: everybody chooses, then everybody moves at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import gymnasium
import numpy as np
from pettingzoo import ParallelEnv

from mfmarl.errors import ConfigError, EnvironmentFault
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.one_copy import OneCopy, tensor
from mfmarl.population.timestep import Timestep


class Column(Mapping[str, Any]):
    """What each agent has, by name, made when it is asked for: equal to a dictionary, and not one.

    `array` is all of it, in the order of the agents (and of iteration): [n, ...].
    """

    def __init__(self, rows: Mapping[str, int], array: np.ndarray, made: Callable[[int], Any]) -> None:
        self.rows, self.array, self._made = rows, array, made

    def __getitem__(self, agent: str) -> Any:
        return self._made(self.rows[agent])

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, agent: object) -> bool:
        return agent in self.rows

    def __repr__(self) -> str:
        some = ", ".join(f"{agent!r}: {self[agent]!r}" for agent, _ in zip(self, range(3), strict=False))
        return f"Column({{{some}{', ...' if len(self) > 3 else ''}}})"


class PopulationParallelEnv(ParallelEnv[str, Any, Any]):
    """One copy of `rules`, step by step as `Simulation` plays them.

    Agents that die or are truncated leave `agents` after the step that says so. Where the rules know
    illegal actions, `info["action_mask"]` [A] int8 shows the legal ones; an illegal action of the action
    space is the rules' to judge. Where they ask only some agents at a time, `info["acting"]` says whether
    an agent is asked: the others stay in `agents`, and an action of theirs is ignored (or left out).

    With `lazy`, what `reset` and `step` return are read-only mappings (`Column`) over arrays of their own, and `step` takes
    an array of actions [n] or [n, D] in the order of `agents` too: for crowds whose dictionaries cost more than the rules.
    PettingZoo's own tools want dictionaries, hence not by default.

    `max_cycles` takes the place of the rules' horizon. Raises ConfigError for an action outside the space,
    a missing or an unknown agent; EnvironmentFault for a step before a reset or after the end.
    """

    def __init__(
        self, rules: PopulationEnv, max_cycles: int | None = None, render_mode: str | None = None, lazy: bool = False
    ) -> None:
        self._one = one = OneCopy(rules, max_cycles, render_mode)
        self.rules = rules
        self.metadata = {**one.metadata, "is_parallelizable": True}
        self.render_mode, self.lazy = render_mode, lazy
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
        self, actions: Mapping[str, Any] | np.ndarray
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Play one step: observations, rewards, terminations, truncations and infos of those who played it."""
        one, keys, rows = self._one, self._keys, self._rows
        timestep = one.simulation.step(tensor(self._chosen(actions)))
        rewards = one.rewards(timestep)
        values = rewards if rows is None else rewards[rows]
        result: Any
        if self.lazy:
            result = self._columns(timestep, values)
        else:
            result = (
                self._observations(timestep),
                dict(zip(keys, values.tolist(), strict=True)),
                self._nobody.copy(),
                self._nobody.copy(),
                self._infos(timestep),
            )
        if not one.together or timestep.ended.item():
            if not self.lazy:
                playing = slice(None) if rows is None else rows
                for flags, told in ((timestep.terminated, result[2]), (timestep.truncated, result[3])):
                    told.update(zip(keys, flags.numpy()[0][playing].tolist(), strict=True))
            self._let_go(timestep)
        self._asked = timestep.acting.numpy()[0] if one.asks else None
        if self.render_mode == "human":
            self.render()
        answer: tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]] = result
        return answer

    def _let_go(self, timestep: Timestep) -> None:
        """Who has died or been cut off leaves."""
        playing = slice(None) if self._rows is None else self._rows
        leaving = (timestep.terminated | timestep.truncated).numpy()[0][playing]
        if leaving.any():
            self._play_with(np.arange(len(self._one.names))[playing][~leaving])

    def _columns(self, timestep: Timestep, rewards: np.ndarray) -> tuple[Column, Column, Column, Column, Column]:
        """The five answers of `step`, of those who played it."""
        playing = slice(None) if self._rows is None else self._rows
        ended, cut = (x.numpy()[0][playing].copy() for x in (timestep.terminated, timestep.truncated))
        own = self._column
        return self._observations(timestep), own(rewards.copy()), own(ended), own(cut), self._infos(timestep)

    def _column(self, array: np.ndarray) -> Column:
        """Plain numbers and truth values, one for each of those who play."""
        return Column(self._row_of, array, lambda i: array[i].item())

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
        self._nobody = {} if self.lazy else dict.fromkeys(self._keys, False)
        self._row_of = self._one.index
        if self.lazy and not everyone:
            self._row_of = {key: i for i, key in enumerate(self._keys)}
        self._asked = None

    def _observations(self, timestep: Timestep) -> Any:
        array = self._one.observations(timestep)
        array = array.copy() if self._rows is None else array[self._rows]
        if self.lazy:
            return Column(self._row_of, array, array.__getitem__)
        return dict(zip(self._keys, list(array), strict=True))

    def _infos(self, timestep: Timestep) -> Any:
        if self.lazy:
            return self._lazy_infos(timestep)
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

    def _lazy_infos(self, timestep: Timestep) -> Column:
        masks, rows = self._one.masks(timestep), slice(None) if self._rows is None else self._rows
        shown = np.zeros((len(self._keys), 0), np.int8) if masks is None else masks[rows]
        # A copy: a simulation may write its own over.
        acting = timestep.acting.numpy()[0][rows].copy() if self._one.asks else None

        def info(i: int) -> dict[str, Any]:
            told: dict[str, Any] = {} if masks is None else {"action_mask": shown[i]}
            return told if acting is None else {**told, "acting": bool(acting[i])}

        return Column(self._row_of, shown, info)

    def _chosen(self, actions: Mapping[str, Any] | np.ndarray) -> np.ndarray:
        """Everyone's action, [N] or [N, D]: zeros for the dead."""
        one, keys = self._one, self._keys
        if not keys:
            what = "the episode is over" if self._begun else "it was called before reset()"
            raise EnvironmentFault(f"step() cannot play: {what}; call reset() first.")
        if isinstance(actions, np.ndarray):
            actions = self._named(actions)
        try:
            in_order = isinstance(actions, Column) and actions.rows is self._row_of
            chosen = one.actions(actions.array if in_order else self._pick(actions))  # type: ignore[attr-defined]
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

    def _named(self, actions: np.ndarray) -> Column:
        """An array of actions as a column of those who play. Raises ConfigError for another length, or without `lazy`."""
        if not self.lazy:
            raise ConfigError("step() takes an array of actions only with lazy=True; give a dictionary by agent.")
        if actions.ndim == 0 or len(actions) != len(self._keys):
            raise ConfigError(
                f"step() got an array of shape {actions.shape}: it needs one action for each of {len(self._keys)} agents."
            )
        return Column(self._row_of, actions, actions.__getitem__)

    def _one_by_one(self, actions: Mapping[str, Any]) -> np.ndarray:
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
