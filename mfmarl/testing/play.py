"""A foreign environment played and remembered: what it showed in every step, to the last bit.

Both of PettingZoo's forms are played through one face. A `Moment` is what the environment shows after a reset or a step;
`Seen` is the same, frozen, so that two plays can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from mfmarl.population.single import takes_turns
from mfmarl.testing.surroundings import Broken, Watch
from mfmarl.testing.values import MASK, draw, frozen, mask_of, shown, spoil

PARTS = ("observations", "rewards", "terminations", "truncations", "infos")


@dataclass
class Moment:
    """What an environment shows after a reset or a step; `parts` by the name of the part."""

    parts: dict[str, Any]
    agents: list[Any]
    asked: list[Any]
    """Who is to act now: the living, or the one selected; those that are over act with None."""
    over: bool
    """Nobody is left."""


@dataclass(frozen=True)
class Seen:
    """A moment to the last bit."""

    parts: dict[str, Any]
    agents: tuple[str, ...]
    asked: tuple[str, ...]

    def differs(self, other: Seen) -> str:
        """The first part that is not the same, with its agent; empty: all are."""
        if self.agents != other.agents:
            return "env.agents"
        if self.asked != other.asked:
            return "agent_selection"
        for name, mine in self.parts.items():
            theirs = other.parts.get(name)
            if name == "infos" or mine == theirs:
                continue
            if isinstance(mine, dict) and isinstance(theirs, dict):
                agent = next((a for a in mine if a not in theirs or mine[a] != theirs[a]), None)
                if agent is not None:
                    return f"the {name[:-1]} of agent {agent}"
            return f"the {name}"
        if self.parts.get("infos") != other.parts.get("infos"):
            mask = {a: i.get(MASK) for a, i in _infos(self).items()}
            if mask != {a: i.get(MASK) for a, i in _infos(other).items()}:
                return "an action mask"
        return ""

    def differs_in_infos(self, other: Seen) -> bool:
        return bool(self.parts.get("infos") != other.parts.get("infos"))


def _infos(seen: Seen) -> dict[Any, Any]:
    infos = seen.parts.get("infos")
    return {a: i for a, i in infos.items() if isinstance(i, dict)} if isinstance(infos, dict) else {}


def remember(moment: Moment) -> Seen:
    """A moment, frozen."""
    parts = {name: frozen(value) for name, value in moment.parts.items()}
    return Seen(parts, tuple(map(str, moment.agents)), tuple(map(str, moment.asked)))


class Play(ABC):
    """One instance being played."""

    def __init__(self, env: Any, watch: Watch) -> None:
        self.env, self.watch = env, watch

    @abstractmethod
    def reset(self, seed: int | None) -> Moment:
        """Begin an episode. Raises Broken."""

    @abstractmethod
    def step(self, actions: dict[Any, Any]) -> Moment:
        """Play one step. Raises Broken."""

    @abstractmethod
    def look(self) -> None:
        """Ask for everything that may be asked for without playing."""

    def close(self) -> None:
        self.watch.call("close", getattr(self.env, "close", lambda: None))

    def space(self, kind: str, agent: Any) -> Any:
        """An agent's space. Raises Broken."""
        return self.watch.call(f"{kind}_space", getattr(self.env, f"{kind}_space"), agent)

    def masks(self, moment: Moment) -> dict[Any, Any]:
        """The masks shown to those who are asked; MASK where there is none."""
        obs, infos = moment.parts.get("observations"), moment.parts.get("infos")
        obs, infos = (x if isinstance(x, Mapping) else {} for x in (obs, infos))
        return {agent: mask_of(obs.get(agent), infos.get(agent)) for agent in moment.asked}

    def draw(self, moment: Moment, rng: np.random.Generator) -> dict[Any, Any]:
        """An action for each who is asked, None for one that is over. Raises Broken."""
        masks = self.masks(moment)
        return {agent: None if self.is_over(agent) else self._drawn(agent, rng, masks[agent]) for agent in moment.asked}

    def _drawn(self, agent: Any, rng: np.random.Generator, mask: Any) -> Any:
        space = self.space("action", agent)
        try:
            return draw(space, rng, mask)
        except Exception as error:
            raise Broken(
                "space-missing", f"the action space {shown(space)} of agent {agent} cannot be drawn from: {error}"
            ) from error

    def is_over(self, agent: Any) -> bool:
        return False

    def _agents(self) -> list[Any]:
        agents = self.watch.call("agents", lambda: self.env.agents)
        return list(agents) if isinstance(agents, list | tuple) else []


class TogetherPlay(Play):
    """A ParallelEnv: the living act at once."""

    def reset(self, seed: int | None) -> Moment:
        given = {} if seed is None else {"seed": seed}
        answer = self.watch.call("reset", self.env.reset, **given)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise Broken("reset-returns", f"reset returned {_kind(answer)}, expected (observations, infos)")
        agents = self._agents()
        return Moment({"observations": answer[0], "infos": answer[1]}, agents, list(agents), not agents)

    def step(self, actions: dict[Any, Any]) -> Moment:
        answer = self.watch.call("step", self.env.step, actions)
        if not (isinstance(answer, tuple) and len(answer) == 5):
            raise Broken(
                "step-returns",
                f"step returned {_kind(answer)}, expected (observations, rewards, terminations, truncations, infos)",
            )
        agents = self._agents()
        return Moment(dict(zip(PARTS, answer, strict=True)), agents, list(agents), not agents)

    def look(self) -> None:
        for agent in self._agents()[:8]:
            self.space("observation", agent)
            self.space("action", agent)
        _look_at_state(self)


class TurnPlay(Play):
    """An AECEnv: the selected agent acts. Its observations are those of `last()`: one in each moment."""

    def reset(self, seed: int | None) -> Moment:
        self.watch.call("reset", self.env.reset, **({} if seed is None else {"seed": seed}))
        return self._moment()

    def step(self, actions: dict[Any, Any]) -> Moment:
        (action,) = actions.values()
        self.answer = self.watch.call("step", self.env.step, action)
        return self._moment()

    answer: Any = None

    def _moment(self) -> Moment:
        agents = self._agents()
        names = (*PARTS[1:], "_cumulative_rewards")
        # Copies: an AEC environment's dictionaries are its own, and change as they should.
        parts = {n: _copied(self.watch.call(n, getattr, self.env, n, {})) for n in names}
        if not agents:
            return Moment({"observations": {}, **parts}, [], [], True)
        selected = self.watch.call("agent_selection", lambda: self.env.agent_selection)
        if selected not in agents:
            raise Broken("selection-unknown", f"agent_selection is {shown(selected)}, but {shown(agents)} play")
        last = self.watch.call("last", self.env.last)
        if not (isinstance(last, tuple) and len(last) == 5):
            raise Broken(
                "last-disagrees", f"last returned {_kind(last)}, expected (observation, reward, two flags, info)"
            )
        return Moment({"observations": {selected: last[0]}, **parts, "last": last[1:]}, agents, [selected], False)

    def partial(self) -> Moment:
        """What can be had without asking for a turn."""
        parts = {n: _copied(getattr(self.env, n, {})) for n in PARTS[1:]}
        return Moment({"observations": {}, **parts}, self._agents(), [], False)

    def is_over(self, agent: Any) -> bool:
        flags = (getattr(self.env, name, {}) for name in ("terminations", "truncations"))
        return any(bool(f.get(agent)) for f in flags if isinstance(f, Mapping))

    def look(self) -> None:
        for agent in self._agents()[:8]:
            self.watch.call("observe", self.env.observe, agent)
        if self._agents():
            self.watch.call("last", self.env.last, observe=False)  # what it shows is looked at elsewhere
        _look_at_state(self)


def _look_at_state(play: Play) -> None:
    if callable(getattr(play.env, "state", None)):
        try:
            play.watch.call("state", play.env.state)
        except Broken:
            return  # it is optional, and the base class raises


def _copied(value: Any) -> Any:
    return {k: dict(v) if isinstance(v, dict) else v for k, v in value.items()} if isinstance(value, dict) else value


def _kind(answer: Any) -> str:
    return f"a tuple of {len(answer)}" if isinstance(answer, tuple) else f"a {type(answer).__name__}"


def play_of(env: Any, watch: Watch) -> Play:
    """The play of an environment of either form."""
    return TurnPlay(env, watch) if takes_turns(env) else TogetherPlay(env, watch)


class Alone:
    """A gymnasium.Env as a ParallelEnv of one agent, its spaces and values untouched."""

    AGENT = "agent_0"

    def __init__(self, env: Any) -> None:
        self.env = env
        self.metadata, self.render_mode = env.metadata, env.render_mode
        self.possible_agents = [self.AGENT]
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Any:
        return self.env.observation_space

    def action_space(self, agent: str) -> Any:
        return self.env.action_space

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        answer = self.env.reset(seed=seed, options=options)
        self.agents = [self.AGENT]
        if not (isinstance(answer, tuple) and len(answer) == 2):
            return answer
        return {self.AGENT: answer[0]}, {self.AGENT: answer[1]}

    def step(self, actions: dict[str, Any]) -> Any:
        answer = self.env.step(actions[self.AGENT])
        if not (isinstance(answer, tuple) and len(answer) == 5):
            return answer
        if any(bool(flag) for flag in answer[2:4] if isinstance(flag, bool | int | np.bool_)):
            self.agents = []
        return tuple({self.AGENT: part} for part in answer)

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    @property
    def unwrapped(self) -> Any:
        return self.env.unwrapped


# ------------------------------------------------------------------------------------- recorded and repeated


@dataclass
class Episode:
    """One episode: its seed, the actions of every step, and what was seen (one more than there are steps)."""

    seed: int | None
    actions: list[dict[Any, Any]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    ended: bool = False
    broken: str = ""

    @property
    def empty(self) -> bool:
        """Whether nobody played."""
        return not self.seen[0].agents


@dataclass(frozen=True)
class Disturbance:
    """What must make no difference to an environment whose seed and actions are the same."""

    code: str
    generators: int = 0
    """The seed of the global generators."""
    skew: float = 0.0
    """Seconds by which the clocks are set on."""
    beside: bool = False
    """Another instance is played at the same time."""
    spoil: bool = False
    """Observations are written over once they have been looked at."""
    look: bool = False
    """It is asked for everything that may be asked for."""
    plain: bool = False
    """Discrete actions come as Python's int."""

    def __or__(self, other: Disturbance) -> Disturbance:
        return Disturbance(
            other.code,
            self.generators or other.generators,
            self.skew or other.skew,
            self.beside or other.beside,
            self.spoil or other.spoil,
            self.look or other.look,
            self.plain or other.plain,
        )


def replay(play: Play, episode: Episode, how: Disturbance, beside: Play | None, most: int) -> tuple[int, str, bool]:
    """Play an episode again: the step of the first difference (-1: none), the part, and whether infos alone differ."""
    rng = np.random.default_rng(1)
    other: Moment | None = None
    infos = False
    try:
        moment = play.reset(episode.seed)
    except Broken as error:
        return 0, error.said, False
    end = len(episode.seen) if episode.broken else None
    for step, seen in enumerate(episode.seen[: most + 1]):
        now = remember(moment)
        if part := seen.differs(now):
            return step, part, False
        infos = infos or seen.differs_in_infos(now)
        if step >= min(len(episode.actions), most):
            break
        if beside is not None and step < 25:
            other = _aside(beside, other, episode.seed, rng)
        try:
            if how.look:
                play.look()
            actions = {agent: _plain(a) if how.plain else a for agent, a in episode.actions[step].items()}
            if how.spoil:
                spoil(moment.parts["observations"])
            moment = play.step(_fresh(actions))
        except Broken as error:
            if error.code == "hangs":
                raise
            if step + 1 == end:
                break  # as it did the first time
            return step + 1, error.said, False
    return -1, "", infos


def _aside(play: Play, moment: Moment | None, seed: int | None, rng: np.random.Generator) -> Moment | None:
    """One step of an instance that is nobody's business."""
    try:
        if moment is None or moment.over:
            return play.reset(seed)
        return play.step(play.draw(moment, rng))
    except Broken:
        return None


def _plain(action: Any) -> Any:
    return int(action) if isinstance(action, np.integer) else action


def _fresh(actions: dict[Any, Any]) -> dict[Any, Any]:
    """Actions that the environment may keep or spoil."""
    return {agent: a.copy() if isinstance(a, np.ndarray) else a for agent, a in actions.items()}


def discrete(space: Any) -> bool:
    return isinstance(space, spaces.Discrete)
