"""What an environment shows in one moment, held against the contract: keys, life and death, values, flags, masks."""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium import spaces

from mfmarl.testing.contract import RULES, Ledger
from mfmarl.testing.play import PARTS, Moment, Play, Seen, TurnPlay, remember
from mfmarl.testing.surroundings import Broken
from mfmarl.testing.values import MASK, arrays_in, breach, frozen, mask_breach, mask_of, shown

HUGE = 1e18  # the square is just within float32
_SINGULAR = {name: name[:-1] for name in PARTS}


class Inspection:
    """Looks at one instance's moments, one after the other, and notes every breach."""

    def __init__(self, play: Play, ledger: Ledger, possible: Sequence[Any]) -> None:
        self.play, self.ledger, self.possible = play, ledger, list(possible)
        self.turns = isinstance(play, TurnPlay)
        self.spaces: dict[tuple[str, Any], Any] = {}
        self._as_was: dict[tuple[str, Any], Any] = {}
        self.where = ""
        self.asked_for: Counter[Any] = Counter()
        self._earlier: list[tuple[Moment, Seen, str]] = []

    def note(self, code: str, said: str, agent: Any = None, grave: bool = True) -> None:
        where = self.where if agent is None else f"agent {agent}, {self.where}"
        self.ledger.note(code, said, where, None if grave else "warning")

    # ------------------------------------------------------------------------------------------------ spaces

    def look_at_spaces(self, agents: Sequence[Any]) -> None:
        """Every agent's two spaces: there, the same object in every call, with sensible bounds."""
        kept: dict[int, Any] = {}
        for agent in agents:
            for kind in ("observation", "action"):
                try:
                    space, again = self.play.space(kind, agent), self.play.space(kind, agent)
                except Broken as error:
                    self.note("space-missing", f"the {kind} space of agent {agent}: {error.said}")
                    continue
                if not isinstance(space, spaces.Space):
                    self.note("space-missing", f"the {kind} space of agent {agent} is {shown(space)}")
                    continue
                if space is not again and not self._odd(space):
                    self.note("space-new-each-call", f"the {kind} space of agent {agent} is a new object in every call")
                self._bounds(kind, agent, space)
                self.spaces[kind, agent] = space
                # Agents of one kind often share a space.
                self._as_was[kind, agent] = kept.get(id(space)) or copy.deepcopy(space)
                kept[id(space)] = self._as_was[kind, agent]

    def _odd(self, space: Any) -> bool:
        try:
            return bool(space != copy.deepcopy(space))
        except Exception:  # noqa: BLE001 - a space of the user's own
            return True

    def _bounds(self, kind: str, agent: Any, space: Any) -> None:
        if isinstance(space, spaces.Box):
            if np.any(space.low > space.high):
                self.note("space-bounds", f"the {kind} space {shown(space)} of agent {agent} is empty")
            elif np.isnan(space.low).any() or np.isnan(space.high).any():
                self.note("space-bounds", f"a bound of the {kind} space of agent {agent} is NaN")
            elif kind == "action" and not space.is_bounded():
                self.note("action-unbounded", f"the action space {shown(space)} of agent {agent} is unbounded")
        if kind == "action" and isinstance(space, spaces.Discrete):
            if space.n == 1:
                self.note("action-single", f"the action space of agent {agent} has one action")
            if space.start != 0:
                self.note("action-start", f"the actions of agent {agent} begin at {space.start}")

    def compare_spaces(self) -> None:
        """Whether the spaces are still what they were."""
        equal: dict[tuple[int, int], bool] = {}
        seen: list[Any] = []  # keeps what was compared alive, so that its id is its own
        for (kind, agent), space in self.spaces.items():
            try:
                now = self.play.space(kind, agent)
            except Broken as error:
                self.note("space-changed", f"the {kind} space is gone: {error.said}", agent)
                continue
            was = self._as_was[kind, agent]
            seen.append(now)
            pair = id(now), id(was)
            try:
                same = equal[pair] if pair in equal else bool(now == was)
            except Exception:  # noqa: BLE001 - a space of the user's own
                same = now is space
            equal[pair] = same
            if not same:
                self.note("space-changed", f"the {kind} space was {shown(was)} and is {shown(now)}", agent)
            elif now is not space:
                self.note("space-new-each-call", f"the {kind} space became a new object", agent)

    # ---------------------------------------------------------------------------------------------- moments

    def begin(self, moment: Moment) -> Seen:
        """After a reset."""
        self.finished: set[Any] = set()
        self.owed: defaultdict[Any, float] = defaultdict(float)
        self.over_since: Counter[Any] = Counter()
        self._lists(moment)
        if moment.over:
            self.note("no-agents-after-reset", "env.agents is empty after reset")
        self.began = set(moment.agents)
        self._strangers(moment)
        if self.turns:
            self._kept_for_agents(moment)
            flags = [
                (n, a) for n in ("terminations", "truncations") for a, f in self._of(moment, n).items() if _true(f)
            ]
            for name, agent in flags[:1]:
                self.note("over-at-reset", f"{name}[{agent!r}] is true right after reset")
        else:
            for name in ("observations", "infos"):
                self._all_there(moment, name, moment.agents, moment.agents)
        self._values(moment)
        self.masks_of = {agent for agent, mask in self.play.masks(moment).items() if mask is not MASK}
        self.masked = bool(self.masks_of)
        return self._keep(moment)

    def after(self, before: Moment, actions: dict[Any, Any], moment: Moment) -> Seen:
        """After a step in which the agents asked `before` did those actions."""
        self._lists(moment)
        self._strangers(moment)
        if self.turns:
            self._turn(before, actions, moment)
        else:
            self._together(before, moment)
        self._values(moment)
        masks = {} if moment.over else self.play.masks(moment)
        if not self.masked and any(m is not MASK for m in masks.values()):
            self.note("mask-late", "there is an action mask, but there was none at reset")
        for agent, mask in masks.items():
            if mask is not MASK:
                self.masks_of.add(agent)
            elif agent in self.masks_of and not self.play.is_over(agent):
                self.note("mask-gone", "there is no action mask any more", agent)
        return self._keep(moment)

    def glance(self, moment: Moment) -> None:
        """What can be seen of an AEC environment that broke off."""
        self._strangers(moment)
        self._kept_for_agents(moment)
        self._values(moment)

    def _lists(self, moment: Moment) -> None:
        env = self.play.env
        agents, possible = env.agents, getattr(env, "possible_agents", None)
        if not isinstance(agents, list):
            self.note(
                "agents-not-a-list", f"env.agents is a {type(agents).__name__}", grave=not isinstance(agents, tuple)
            )
        if possible is not None:
            if agents is possible:
                self.note("agents-is-possible-agents", "env.agents is the very list env.possible_agents")
            elif list(possible) != self.possible:
                self.note("possible-agents-changed", f"possible_agents became {shown(list(possible))}")
        if len(set(moment.agents)) != len(moment.agents):
            twice = [a for a, n in Counter(moment.agents).items() if n > 1]
            self.note("agent-listed-twice", f"env.agents lists {twice[0]} twice")
        number = getattr(env, "num_agents", len(moment.agents))
        if number != len(moment.agents):
            self.note("num-agents", f"num_agents is {shown(number)}, but {len(moment.agents)} play")
        unknown = [a for a in moment.agents if a not in self.possible]
        if unknown and possible is not None:
            self.note("agent-unknown", f"agent {unknown[0]} is not in possible_agents", unknown[0])

    def _of(self, moment: Moment, name: str) -> Mapping[Any, Any]:
        value = moment.parts.get(name)
        return value if isinstance(value, Mapping) else {}

    def _strangers(self, moment: Moment) -> None:
        known = {*self.possible, *moment.agents}
        for name in PARTS:
            if name not in moment.parts:
                continue
            value = moment.parts[name]
            if not isinstance(value, Mapping):
                self.note(
                    "not-a-dictionary", f"the {name} are a {type(value).__name__}, expected a dictionary by agent"
                )
                continue
            odd = [key for key in value if key not in known]
            if odd:
                # PettingZoo lets observations and infos have keys for all agents in common.
                said = f"the {name} have an entry for {shown(odd[0])}, who is no agent"
                self.note("value-for-a-stranger", said, grave=name not in ("infos", "observations"))

    def _all_there(self, moment: Moment, name: str, needed: Sequence[Any], known: Sequence[Any]) -> None:
        values = moment.parts.get(name)
        if not isinstance(values, Mapping):
            return
        for agent in needed:
            if agent not in values:
                self.note(f"{_SINGULAR[name]}-missing", f"there is no {_SINGULAR[name]} of a playing agent", agent)
        dead = [key for key in values if key in self.finished and key not in known]
        if dead:
            said = f"the {name} have an entry for one that left before"
            self.note("value-for-the-dead", said, dead[0], grave=name != "infos")

    def _together(self, before: Moment, moment: Moment) -> None:
        born = [a for a in moment.agents if a not in before.agents]
        known = [*before.agents, *born]
        flags = {a: [_true(self._of(moment, n).get(a)) for n in ("terminations", "truncations")] for a in before.agents}
        for name in PARTS:
            # Who is over needs no observation any more, and a newborn has earned nothing yet.
            needed = before.agents
            if name == "observations":
                needed = [a for a in before.agents if not any(flags[a])] + [a for a in born if a not in self.finished]
            self._all_there(moment, name, needed, known)
        now = set(moment.agents)
        for agent, (terminated, truncated) in flags.items():
            if (terminated or truncated) and agent in now:
                self.note("agent-stays-after-end", "it is over but still in env.agents", agent)
            if not (terminated or truncated) and agent not in now:
                self.note("agent-vanished", "it left env.agents without being terminated or truncated", agent)
            if terminated or truncated or agent not in now:
                self.finished.add(agent)
        self._births(born)

    def _births(self, born: Sequence[Any]) -> None:
        for agent in born:
            if agent in self.finished:
                self.note("agent-revived", "it is back in env.agents after its end", agent)
            elif agent in self.possible:
                self.note("agent-born", "it joined env.agents in mid-episode", agent)

    def _turn(self, before: Moment, actions: dict[Any, Any], moment: Moment) -> None:
        (agent,) = before.asked
        (action,) = actions.values()
        self.asked_for[agent] += action is not None
        self._kept_for_agents(moment)
        self.owed[agent] = 0
        for other, reward in self._of(moment, "rewards").items():
            if isinstance(reward, int | float | np.number):
                self.owed[other] += float(reward)
        now, was = set(moment.agents), set(before.agents)
        if action is None:
            self.finished.add(agent)
            if agent in now:
                self.note(
                    "agent-stays-after-end", "it is over, was stepped with None, and is still in env.agents", agent
                )
        for other in before.agents:
            if other not in now and other not in self.finished:
                flagged = any(_true(self._of(before, n).get(other)) for n in ("terminations", "truncations"))
                self.note("agent-vanished", "it left env.agents without being flagged and buried", other, not flagged)
                self.finished.add(other)
            elif other in now and self.play.is_over(other):
                self.over_since[other] += 1
                if self.over_since[other] == 2 * len(self.began) + 3:
                    self.note("agent-stays-after-end", "it is over, but is never selected to leave env.agents", other)
        self._births([a for a in moment.agents if a not in was])
        if getattr(self.play, "answer", None) is not None:
            self.note("step-returns-something", f"step returned {shown(self.play.answer)}")  # type: ignore[attr-defined]
        if moment.over:
            return
        self._last(moment)

    def _last(self, moment: Moment) -> None:
        (agent,) = moment.asked
        last = moment.parts.get("last")
        if last is None:
            return
        reward, terminated, truncated, info = last
        for name, value in (("terminations", terminated), ("truncations", truncated), ("infos", info)):
            held = self._of(moment, name).get(agent)
            if name == "infos":
                same = frozen(held) == frozen(value)
            else:
                same = bool(held) == bool(value)
            if not same:
                self.note("last-disagrees", f"last() says {shown(value)}, but {name} {shown(held)}", agent)
        held = self._of(moment, "_cumulative_rewards").get(agent, reward)
        if frozen(_float(held)) != frozen(_float(reward)):
            said = f"last() pays {shown(reward)}, but _cumulative_rewards holds {shown(held)}"
            self.note("last-disagrees", said, agent)
        elif isinstance(reward, int | float | np.number) and math.isfinite(float(reward)):
            owed = self.owed[agent]
            if math.isfinite(owed) and abs(float(reward) - owed) > 1e-4 * (1 + abs(owed)):
                said = f"last() pays {float(reward):g}, but it earned {owed:g} since it last acted"
                self.note("cumulative-reward", said, agent)

    def _kept_for_agents(self, moment: Moment) -> None:
        for name in PARTS[1:]:
            value = moment.parts.get(name)
            if isinstance(value, Mapping) and set(value) != set(moment.agents):
                odd = sorted(map(str, set(value) ^ set(moment.agents)))
                lacking = odd[0] in map(str, moment.agents)
                said = f"env.{name} {'lacks' if lacking else 'has an entry for'} {odd[0]}"
                self.note("keys-not-agents", f"{said}, and env.agents is {shown(moment.agents)}")

    # ----------------------------------------------------------------------------------------------- values

    def _values(self, moment: Moment) -> None:
        observations, infos = self._of(moment, "observations"), self._of(moment, "infos")
        over = set()
        for name in ("terminations", "truncations"):
            for agent, flag in self._of(moment, name).items():
                if type(flag) not in (bool, np.bool_):
                    self.note("flag-type", f"the {_SINGULAR[name]} is {shown(flag)} ({type(flag).__name__})", agent)
                if _true(flag):
                    if agent in over:
                        self.note("both-flags", "it is both terminated and truncated", agent)
                    over.add(agent)
        for agent, reward in self._of(moment, "rewards").items():
            self._reward(agent, reward)
        if self.turns and moment.parts.get("last") is not None and moment.asked:
            (agent,) = moment.asked
            reward, *flags, _ = moment.parts["last"]
            self._reward(agent, reward)
            for flag in flags:
                if type(flag) not in (bool, np.bool_):
                    self.note("flag-type", f"last() gives the flag {shown(flag)} ({type(flag).__name__})", agent)
        for agent, value in observations.items():
            space = self.spaces.get(("observation", agent))
            if space is None or (agent in over and value is None):
                continue
            found = breach(space, value)
            if found is not None:
                self.note(_code("observation", found.kind), f"the observation {found.said}", agent, found.grave)
        for agent, info in infos.items():
            if agent in self.possible and not isinstance(info, Mapping):
                self.note(
                    "info-type", f"the info is {shown(info)} ({type(info).__name__}), expected a dictionary", agent
                )
        for agent in moment.asked:
            mask, space = mask_of(observations.get(agent), infos.get(agent)), self.spaces.get(("action", agent))
            if mask is MASK or space is None or agent in over or self.play.is_over(agent):
                continue
            found = mask_breach(space, mask)
            if found is not None:
                self.note(_code("mask", found.kind), f"the action mask {found.said}", agent, found.grave)
        if len(observations) > 1:
            self._shared(observations)

    def _reward(self, agent: Any, reward: Any) -> None:
        if isinstance(reward, bool | np.bool_):
            self.note("reward-bool", f"the reward is {reward}", agent)
            return
        if isinstance(reward, np.ndarray) and reward.dtype.kind in "fiu" and reward.size == 1:
            self.note("reward-array", f"the reward is an array of shape {reward.shape}", agent, grave=reward.ndim > 0)
            reward = reward.reshape(()).item()
        elif isinstance(reward, np.ndarray):
            self.note("reward-array", f"the reward is an array of {reward.dtype} and shape {reward.shape}", agent)
            return
        if not isinstance(reward, int | float | np.integer | np.floating):
            self.note("reward-type", f"the reward is {shown(reward)} ({type(reward).__name__})", agent)
        elif isinstance(reward, int) and abs(reward) > HUGE:
            self.note("reward-huge", f"the reward is beyond {HUGE:g}", agent)
        elif not math.isfinite(float(reward)):
            self.note("reward-not-finite", f"the reward is {float(reward)}", agent)
        elif abs(float(reward)) > HUGE:
            self.note("reward-huge", f"the reward is {float(reward):g}, beyond {HUGE:g}", agent)

    def _shared(self, observations: Mapping[Any, Any]) -> None:
        """Whether two agents were given the same memory: their neighbours' observations then change with theirs."""
        bounds = []
        for agent, value in observations.items():
            for array in arrays_in(value):
                if array.size:
                    low, high = np.lib.array_utils.byte_bounds(array)
                    bounds.append((low, high, agent, array))
        bounds.sort(key=lambda b: b[:2])
        for (_, end, one, mine), (start, _, other, theirs) in pairwise(bounds):
            if start < end and one != other:
                try:
                    same = np.shares_memory(mine, theirs, max_work=10_000)  # type: ignore[arg-type]
                except Exception:  # noqa: BLE001 - too hard to tell
                    same = False
                if same:
                    self.note("observations-share-memory", f"its observation is in the memory of {other}'s", one)
                    return

    def _keep(self, moment: Moment) -> Seen:
        """Compare what was returned in the last two moments with what it was then; remember this one."""
        for old, seen, where in self._earlier:
            self._still(old, seen, where)
        now = remember(moment)
        self._earlier = [*self._earlier[-1:], (moment, now, self.where)]
        return now

    def forget(self) -> None:
        """At the end of an episode: compare, then let go."""
        for old, seen, where in self._earlier:
            self._still(old, seen, where)
        self._earlier = []

    def _still(self, old: Moment, seen: Seen, where: str) -> None:
        for name, value in old.parts.items():
            if self.turns and name != "observations":
                continue  # an AEC environment's dictionaries are its own
            was, now = seen.parts[name], frozen(value)
            if was == now:
                continue
            code = {"observations": "observation-changed-later", "infos": "info-changed-later"}.get(
                name, "value-changed-later"
            )
            agent = None
            if isinstance(was, dict) and isinstance(now, dict):
                agent = next((a for a in {**was, **now} if was.get(a) != now.get(a)), None)
            self.note(code, f"the {_SINGULAR.get(name, name)} returned at {where} is no longer what it was", agent)


def _float(value: Any) -> Any:
    return float(value) if isinstance(value, int | float | np.number) else value


def _true(flag: Any) -> bool:
    try:
        return bool(flag)
    except Exception:  # noqa: BLE001 - whatever was returned for a flag
        return False


def _code(prefix: str, kind: str) -> str:
    code = f"{prefix}-{kind}"
    return code if code in RULES else f"{prefix}-outside-space"
