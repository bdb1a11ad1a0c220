"""Small third-party environments for the adapter's tests, whose every number is known. No torch: children import it."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv

ALL = [f"{team}_{i}" for i in range(3) for team in ("red", "blue")]  # red and blue by turns


class Counting(ParallelEnv):
    """Agent i sees (its number, the step, its last action, noise of the seed) and earns 10 i + its action.

    `deaths` and `births` map an agent to the step in which it is terminated or appears; `cuts` to the step of its
    truncation. Everyone left is truncated at `length`.
    """

    metadata = {"name": "counting", "render_modes": ["rgb_array"]}

    def __init__(
        self,
        length: int = 6,
        deaths: dict[str, int] | None = None,
        births: dict[str, int] | None = None,
        cuts: dict[str, int] | None = None,
        agents: list[str] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.length, self.deaths, self.births, self.cuts = length, deaths or {}, births or {}, cuts or {}
        self.possible_agents = list(agents or ALL)
        self.render_mode = render_mode

    def observation_space(self, agent: str) -> gymnasium.Space:
        return spaces.Box(-np.inf, np.inf, (4,), np.float64)

    def action_space(self, agent: str) -> gymnasium.Space:
        return spaces.Discrete(5)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.noise = np.random.default_rng(seed)
        self.t, self.last = 0, dict.fromkeys(self.possible_agents, 0)
        self.agents = [a for a in self.possible_agents if a not in self.births]
        return self.look(self.agents), {a: {} for a in self.agents}

    def look(self, agents: list[str]) -> dict[str, Any]:
        return {a: np.array([self.possible_agents.index(a), self.t, self.last[a], self.noise.random()]) for a in agents}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        assert set(actions) == set(self.agents), "every living agent acts, and no other"
        assert all(type(a) is int and 0 <= a < 5 for a in actions.values())
        self.t += 1
        self.last.update(actions)
        before = self.agents
        reward = {a: 10.0 * self.possible_agents.index(a) + actions[a] for a in before}
        terminated = {a: self.deaths.get(a) == self.t for a in before}
        truncated = {a: self.cuts.get(a) == self.t or self.t >= self.length for a in before}
        self.agents = [a for a in before if not (terminated[a] or truncated[a])]
        if self.agents:
            self.agents += [a for a, t in self.births.items() if t == self.t]
        shown = before + [a for a in self.agents if a not in before]
        return self.look(shown), reward, terminated, truncated, {a: {} for a in shown}

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        self.noise.random()  # drawing has a side effect, as in some real environments
        return np.full((4, 5, 3), self.t, np.uint8)


class Faulty(Counting):
    """Breaks the contract in one way, at one step, in agent red_1."""

    def __init__(self, fault: str = "", at: int = 3, length: int = 6) -> None:
        super().__init__(length, births={"blue_2": 99} if fault == "late mask" else None)
        self.fault, self.at = fault, at
        self.made_by = os.getpid()

    def reset(self, seed: int | None = None, options: dict | None = None) -> Any:
        if seed == 0:  # the probe
            return super().reset(seed)
        obs, infos = super().reset(seed)
        if self.fault == "reset raises":
            raise RuntimeError("the map is missing")
        if self.fault == "reset returns only observations":
            return obs
        if self.fault == "nobody after reset":
            self.agents = []
        return obs, infos

    def step(self, actions: dict[str, int]) -> Any:
        obs, reward, terminated, truncated, infos = super().step(actions)
        if self.t != self.at:
            return obs, reward, terminated, truncated, infos
        fault, who = self.fault, "red_1"
        if fault == "raises":
            raise ValueError("division by cucumber\nsecond line")
        if fault == "four values":
            return obs, reward, terminated, infos
        if fault == "hangs":
            time.sleep(60)
        if fault == "exits":
            os._exit(3)
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.startswith("reward "):
            reward[who] = {"nan": float("nan"), "inf": float("-inf"), "word": "1.0", "none": None, "huge": 1e300}[
                fault[7:]
            ]
        if fault == "no reward":
            del reward[who]
        if fault == "no observation":
            del obs[who]
        if fault == "observation nan":
            obs[who][2] = np.nan
        if fault == "observation shape":
            obs[who] = np.zeros(3)
        if fault == "observation words":
            obs[who] = np.array(["a", "b", "c", "d"])
        if fault == "observation none":
            obs[who] = None
        if fault == "int flag":
            terminated[who] = 0
        if fault == "vanishes":
            self.agents.remove(who)
        if fault == "ghost":
            terminated[who] = True
        if fault == "stranger":
            self.agents.append("green_0")
            obs["green_0"] = obs[who]
        if fault == "late mask":
            infos[who] = {"action_mask": np.ones(5, np.int8)}
        if fault == "infos none":
            return obs, reward, terminated, truncated, None
        return obs, reward, terminated, truncated, infos


class Revived(Counting):
    """red_1 dies at step 2 and is back at step 4."""

    def __init__(self) -> None:
        super().__init__(deaths={"red_1": 2})

    def step(self, actions: dict[str, int]) -> Any:
        out = super().step(actions)
        if self.t == 4:
            self.agents.append("red_1")
            out[0]["red_1"] = np.zeros(4)
        return out


class Mixed(ParallelEnv):
    """One step of anything: observation and action spaces by agent; remembers what it was given."""

    def __init__(
        self, observations: dict[str, Any], actions: dict[str, Any], values: dict[str, Any] | None = None
    ) -> None:
        self.observations, self.actions, self.values = observations, actions, values or {}
        self.possible_agents = list(observations)
        self.given: list[dict] = []

    def observation_space(self, agent: str) -> gymnasium.Space:
        return self.observations[agent]

    def action_space(self, agent: str) -> gymnasium.Space:
        return self.actions[agent]

    def look(self) -> dict[str, Any]:
        return {a: self.values[a] if a in self.values else self.observations[a].sample() for a in self.agents}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        return self.look(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.given.append(actions)
        flags = dict.fromkeys(self.agents, False)
        return self.look(), dict.fromkeys(self.agents, 0), flags, flags, {a: {} for a in self.agents}


class Masked(ParallelEnv):
    """Three actions, of which agent i may not take (step + i) mod 3. `where`: masks in the observation or in the info."""

    def __init__(self, where: str = "info", bad: Any = None) -> None:
        self.where, self.bad = where, bad
        self.possible_agents = ["p_0", "p_1"]

    def observation_space(self, agent: str) -> gymnasium.Space:
        inside = spaces.Box(0, 9, (2,), np.float32)
        if self.where == "info":
            return inside
        return spaces.Dict({"observation": inside, "action_mask": spaces.MultiBinary(3)})

    def action_space(self, agent: str) -> gymnasium.Space:
        return spaces.Discrete(3)

    def mask(self, agent: str) -> Any:
        if self.bad is not None and self.t == 2 and agent == "p_1":
            return self.bad
        mask = np.ones(3, np.int8)
        mask[(self.t + int(agent[-1])) % 3] = 0
        return mask

    def both(self) -> tuple[dict, dict]:
        obs: dict[str, Any] = {a: np.full(2, self.t, np.float32) for a in self.agents}
        if self.where == "info":
            return obs, {a: {"action_mask": self.mask(a)} for a in self.agents}
        return {a: {"observation": o, "action_mask": self.mask(a)} for a, o in obs.items()}, {a: {} for a in obs}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents, self.t = self.possible_agents[:], 0
        return self.both()

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        assert all(self.mask(a)[action] for a, action in actions.items()), "an illegal action came through"
        self.t += 1
        obs, infos = self.both()
        done = dict.fromkeys(self.agents, self.t == 5)
        reward = dict.fromkeys(self.agents, 1.0)
        if self.t == 5:
            self.agents = []
        return obs, reward, dict.fromkeys(done, False), done, infos


class GlobalNoise(Counting):
    """Draws from the global generators of random and numpy, as many environments do."""

    def look(self, agents: list[str]) -> dict[str, Any]:
        return {a: np.array([random.random(), np.random.rand(), np.random.randn(), 0.0]) for a in agents}


class Forgetful(Counting):
    """Not a function of its seed: sees the number of environments that were made before it."""

    made = 0

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        Forgetful.made += 1
        return super().reset(seed)

    def look(self, agents: list[str]) -> dict[str, Any]:
        return {a: o + Forgetful.made for a, o in super().look(agents).items()}


class Chatty(Counting):
    """Prints on every occasion, also past Python."""

    def step(self, actions: dict[str, int]) -> Any:
        print("step!", self.t)
        os.write(1, b"raw step!\n")
        return super().step(actions)


class Steering(ParallelEnv):
    """Two kinds of Box actions, of different size and bounds; the observation repeats what arrived."""

    metadata = {"name": "steering"}

    def __init__(self) -> None:
        self.possible_agents = ["car_0", "ship_0"]
        self.boxes = {
            "car_0": spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 2.0], np.float32)),
            "ship_0": spaces.Box(-3.0, 3.0, (1, 3), np.float32),
        }

    def observation_space(self, agent: str) -> gymnasium.Space:
        return spaces.Box(-9, 9, self.boxes[agent].shape, np.float32)

    def action_space(self, agent: str) -> gymnasium.Space:
        return self.boxes[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents, self.t = self.possible_agents[:], 0
        return {a: np.zeros(b.shape, np.float32) for a, b in self.boxes.items()}, {a: {} for a in self.agents}

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, dict, dict, dict, dict]:
        assert all(self.boxes[a].contains(action) for a, action in actions.items())
        self.t += 1
        cut = dict.fromkeys(self.agents, self.t == 4)
        over = dict.fromkeys(self.agents, False)
        obs, reward = dict(actions), {a: float(action.sum()) for a, action in actions.items()}
        if self.t == 4:
            self.agents = []
        return obs, reward, over, cut, {a: {} for a in cut}


class Auction(AECEnv):
    """Bidders speak by turns; each bid b pays b to every *other* bidder still there. Who bids 0 leaves; the last wins 100.

    Seen: (number of my turns so far, sum of the pot).
    """

    metadata = {"name": "auction", "render_modes": ["rgb_array"]}

    def __init__(
        self,
        bidders: int = 3,
        rounds: int = 4,
        masks: bool = False,
        leavers_are_cut: bool = False,
        render_mode: str | None = None,
    ) -> None:
        super().__init__()
        self.leavers_are_cut = leavers_are_cut
        self.possible_agents = [f"bidder_{i}" for i in range(bidders)]
        self.rounds, self.masks, self.render_mode = rounds, masks, render_mode

    def observation_space(self, agent: str) -> gymnasium.Space:
        return spaces.Box(0, 1000, (2,), np.float32)

    def action_space(self, agent: str) -> gymnasium.Space:
        return spaces.Discrete(4)

    def reset(self, seed: int | None = None, options: dict | None = None) -> None:
        self.agents = self.possible_agents[:]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.turns, self.pot = dict.fromkeys(self.agents, 0), 0
        self.infos: dict[str, dict] = {a: {} for a in self.agents}
        self.agent_selection = self.agents[0]
        self._tell()

    def _tell(self) -> None:
        if self.masks:
            self.infos[self.agent_selection] = {"action_mask": np.array([1, 1, 1, self.pot < 3], np.int8)}

    def observe(self, agent: str) -> np.ndarray:
        return np.array([self.turns[agent], self.pot], np.float32)

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            if self.agents:
                self._tell()
            return
        assert action is not None
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        self.turns[agent] += 1
        self.pot += action
        after = self.agents[(self.agents.index(agent) + 1) % len(self.agents)]
        for other in self.agents:
            if other != agent:
                self.rewards[other] += action
        if action == 0:
            (self.truncations if self.leavers_are_cut else self.terminations)[agent] = True
        left = [a for a in self.agents if not (self.terminations[a] or self.truncations[a])]
        if len(left) == 1:
            self.rewards[left[0]] += 100
            self.terminations[left[0]] = True
        elif self.turns[agent] == self.rounds and agent == left[-1]:
            self.truncations.update(dict.fromkeys(left, True))
        self._accumulate_rewards()
        self.agent_selection = after
        self._deads_step_first()
        self._tell()

    def render(self) -> np.ndarray | None:
        return None if self.render_mode is None else np.full((2, 2, 3), self.pot, np.uint8)


class BadAuction(Auction):
    """Breaks the AEC contract at the pot's third coin."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault

    def step(self, action: int | None) -> None:
        super().step(action)
        if self.pot != 3:
            return
        if self.fault == "stranger":
            self.agent_selection = "nobody_7"
            self._cumulative_rewards["nobody_7"] = 0.0
            self.terminations["nobody_7"] = self.truncations["nobody_7"] = False
            self.infos["nobody_7"] = {}
            self.turns["nobody_7"] = 0
        if self.fault == "raises":
            raise KeyError("hammer")
        if self.fault == "vanishes":
            self.agents.remove(next(a for a in self.agents if a != self.agent_selection))
        if self.fault == "nan":
            self._cumulative_rewards[self.agent_selection] = float("nan")


def counting(length: int = 6) -> Counting:
    """A factory of the kind that users write."""
    return Counting(length)
