"""Rules of our own form that are wrong in one named way, for `check_rules`: without a name they are right."""

from __future__ import annotations

import random as python_random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, nearest
from mfmarl.games.game import Crowd, GameState, MeanFieldGame
from mfmarl.games.kernels import Kernel, Outcomes
from mfmarl.options import Count
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.known import Known
from mfmarl.population.spec import Spec
from mfmarl.random import Key

ACTIONS = 3
LIFE = 4


class State(NamedTuple):
    x: Tensor  # [E, N] float32, places
    alive: Tensor  # [E, N] bool
    time: Tensor  # [E] int64


RULE_FAULTS: dict[str, str] = {
    "spec-changes": "spec() names another horizon each time.",
    "no-spec": "spec() gives None.",
    "reset-raises": "reset() raises.",
    "step-raises": "step() raises in the third step.",
    "state-a-tuple": "The state is a plain tuple.",
    "state-holds-a-number": "A field of the state is a Python number.",
    "state-without-copies": "A field of the state lacks the axis of the copies.",
    "state-grows": "A field of the state grows with time.",
    "state-changes-type": "A field of the state turns into float64.",
    "writes-state": "step() writes into the state that it was given.",
    "observe-writes-state": "observe() writes into the state.",
    "writes-action": "step() writes into the action that it was given.",
    "global-torch": "The noise is torch.rand.",
    "global-numpy": "The noise is NumPy's global generator's.",
    "global-python": "The noise is Python's global generator's.",
    "own-generator": "The noise is of a generator that the rules keep.",
    "clock": "The noise is of the clock.",
    "memory": "What is paid depends on how many episodes have begun.",
    "slow-memory": "What is paid changes after ten steps of this object.",
    "noise-by-position": "Noise is drawn in the order of the copies, not by their ids.",
    "copies-averaged": "Agents are paid against the mean of all copies.",
    "copies-normalised": "Observations are divided by the largest of all copies.",
    "reward-nan": "A reward is NaN in the third step.",
    "reward-float64": "Rewards are float64.",
    "reward-per-copy": "Rewards are [E].",
    "reward-nested": "Rewards are [E, N, 1].",
    "reward-buffer": "Rewards are one tensor, overwritten in each step.",
    "step-alone": "step() returns the state alone.",
    "observation-outside": "An observation is above the space's bound.",
    "observation-nan": "An observation is NaN.",
    "observation-float64": "Observations are float64.",
    "observation-short": "Observations lack a column.",
    "legal-shape": "legal() lacks an action.",
    "legal-float": "legal() is of float32.",
    "nothing-legal": "legal() leaves an agent nothing.",
    "revival": "The dead live again.",
    "alive-int": "alive() is of int64.",
    "dead-asked": "acting() asks the dead.",
    "done-per-agent": "done() is [E, N].",
    "done-int": "done() is of int64.",
    "measure-per-agent": "A measure is [E, N].",
    "measure-number": "A measure is a Python number.",
    "measure-nan": "A measure is NaN.",
    "measure-float64": "A measure is float64.",
    "measures-change": "A measure goes missing.",
    "position-float64": "Positions are float64.",
    "standing-outside": "standing() names an action that does not exist.",
    "own-state-wrong": "own_state() names a field that is no agent's.",
    "picture-float": "render() gives floats.",
    "picture-flat": "render() gives [H, W].",
    "picture-writes-state": "render() writes into the state.",
    "reference-bare": "A reference is a bare number.",
    "reference-unsourced": "A reference does not say where it is from.",
    "reference-unmeasured": "A reference is of what nobody measures.",
    "reference-nan": "A reference is NaN.",
}
"""By name, what is wrong."""


@dataclass(frozen=True)
class FaultyRules(PopulationEnv):
    """Walkers on a line who are paid for standing together, with one fault of `RULE_FAULTS`, or none."""

    fault: str = ""
    """Which; empty: none."""
    num_agents: Count = 4
    """Number of walkers."""

    def __post_init__(self) -> None:
        if self.fault and self.fault not in RULE_FAULTS:
            raise ConfigError(f"There is no fault {self.fault!r}.{nearest(self.fault, RULE_FAULTS)}", "unknown-name")
        # A frozen object with a memory: what the faults that remember keep.
        object.__setattr__(self, "_memory", {"episodes": 0, "steps": 0, "specs": 0, "generator": torch.Generator()})

    def spec(self) -> Any:
        if self.fault == "no-spec":
            return None
        self._memory["specs"] += 1  # type: ignore[attr-defined]
        horizon = self._memory["specs"] if self.fault == "spec-changes" else 9  # type: ignore[attr-defined]
        return Spec(self.num_agents, Box(-1.0, 1.0, (2,), np.float32), Discrete(ACTIONS), horizon=horizon)

    def _noise(self, ids: Tensor, key: Key) -> Tensor:
        """Uniform on (0, 1), [E, N]."""
        fault, shape = self.fault, tuple(ids.shape)
        if fault == "global-torch":
            return torch.rand(shape)
        if fault == "global-numpy":
            return torch.from_numpy(np.random.random(shape).astype(np.float32))  # noqa: NPY002 - the fault
        if fault == "global-python":
            return torch.full(shape, python_random.random())  # noqa: S311 - the fault
        if fault == "own-generator":
            return torch.rand(shape, generator=self._memory["generator"])  # type: ignore[attr-defined]
        if fault == "clock":
            return torch.full(shape, time.perf_counter_ns() % 1009 / 1009)
        if fault == "noise-by-position":
            return torch.rand(shape, generator=torch.Generator().manual_seed(key.value % 2**31))
        return random.uniform(key, ids)

    def reset(self, ids: Tensor, key: Key) -> Any:
        self._memory["episodes"] += 1  # type: ignore[attr-defined]
        if self.fault == "reset-raises":
            raise ValueError("no field")
        x = 2 * self._noise(ids, key.fold("x")) - 1
        state = State(x, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids[:, 0]))
        if self.fault == "state-a-tuple":
            return tuple(state)
        if self.fault == "state-holds-a-number":
            return state._replace(time=0)  # type: ignore[arg-type]
        return state._replace(time=state.time[:1] * 0 if self.fault == "state-without-copies" else state.time)

    def step(self, state: Any, action: Tensor, ids: Tensor, key: Key) -> Any:
        fault = self.fault
        self._memory["steps"] += 1  # type: ignore[attr-defined]
        t = int(state.time[0])
        if fault == "step-raises" and t == 2:
            raise ValueError("the floor gave way")
        x = (state.x + 0.1 * (action - 1) + 0.1 * (self._noise(ids, key.fold("step")) - 0.5)).clamp(-1, 1)
        alive = state.alive.clone()
        alive[:, -1] &= state.time + 1 < LIFE
        if fault == "revival":
            alive[:, -1] |= state.time + 1 > LIFE
        reward = 1 - (x - (x.mean() if fault == "copies-averaged" else x.mean(1, keepdim=True))).abs()
        if fault == "memory":
            reward = reward + self._memory["episodes"] / 100  # type: ignore[attr-defined]
        if fault == "slow-memory":
            reward = reward + float(self._memory["steps"] > 10)  # type: ignore[attr-defined]
        if fault == "writes-state":
            state.x.copy_(x)
        if fault == "writes-action":
            action.zero_()
        after = State(x, alive, state.time + 1)
        if fault == "state-grows":
            after = after._replace(x=torch.cat([x, x[:, :1]], 1))
        if fault == "state-changes-type":
            after = after._replace(x=x.double())
        paid = _PAID.get(fault, lambda r, t: r)(reward, t)
        if fault == "reward-buffer":
            kept = self._memory.setdefault(f"reward {len(ids)}", torch.zeros_like(reward))  # type: ignore[attr-defined]
            paid = kept.copy_(reward)
        return after if fault == "step-alone" else (after, paid)

    def observe(self, state: Any) -> Tensor:
        fault = self.fault
        crowd = state.x.mean(1, keepdim=True).expand_as(state.x)
        seen = torch.stack([state.x, crowd], -1)
        if fault == "copies-normalised":
            seen = seen / seen.abs().amax().clamp(min=1)
            seen = seen * seen.abs().amax().clamp(max=0.999)
        if fault == "observe-writes-state":
            state.x.mul_(0.5)
        return _SEEN.get(fault, lambda o: o)(seen)

    def alive(self, state: Any) -> Tensor:
        return state.alive.long() if self.fault == "alive-int" else state.alive

    def acting(self, state: Any) -> Tensor | None:
        return torch.ones_like(state.alive) if self.fault == "dead-asked" else None

    def legal(self, state: Any) -> Tensor:
        legal = torch.stack([state.x > -0.9, torch.ones_like(state.alive), state.x < 0.9], -1)
        if self.fault == "nothing-legal":
            legal[:, 1] = False
        return {"legal-shape": legal[..., :2], "legal-float": legal.float()}.get(self.fault, legal)

    def done(self, state: Any) -> Tensor:
        done = state.time >= 8
        return {"done-per-agent": done.unsqueeze(-1).expand_as(state.x), "done-int": done.long()}.get(self.fault, done)

    def position(self, state: Any) -> Tensor:
        return state.x.unsqueeze(-1).to(torch.float64 if self.fault == "position-float64" else torch.float32)

    def standing(self, state: Any) -> Tensor | None:
        return torch.full_like(state.alive, 7, dtype=torch.int64) if self.fault == "standing-outside" else None

    def own_state(self) -> tuple[str, ...] | None:
        return ("time",) if self.fault == "own-state-wrong" else None

    def measure(self, state: Any) -> dict[str, Any]:
        spread = state.x.std(1)
        found = {
            "measure-per-agent": state.x,
            "measure-number": 0.5,
            "measure-nan": spread * float("nan"),
            "measure-float64": spread.double(),
        }.get(self.fault, spread)
        if self.fault == "measures-change" and int(state.time[0]) == 2:
            return {}
        return {"spread": found}

    def render(self, state: Any, copy: int = 0) -> Tensor:
        if self.fault == "picture-writes-state":
            state.x.mul_(0.5)
        picture = torch.zeros(16, 64, 3, dtype=torch.uint8)
        picture[:, (31.5 * (state.x[copy] + 1)).long()] = 255
        return {"picture-float": picture / 255, "picture-flat": picture[..., 0]}.get(self.fault, picture)

    def reference(self, temperature: float = 0.0) -> dict[str, Known]:
        if temperature > 0:
            return {}
        known: Any = Known(0.0, "all stand together: no spread", "optimum")
        known = {
            "reference-bare": 0.0,
            "reference-unsourced": Known(0.0, ""),
            "reference-nan": Known(float("nan"), "all stand together"),
        }.get(self.fault, known)
        return {"width" if self.fault == "reference-unmeasured" else "spread": known}


def _nan_at(reward: Tensor, t: int) -> Tensor:
    paid = reward.clone()
    paid[0, 0] = float("nan") if t == 2 else 0.0
    return paid


_PAID: dict[str, Callable[[Tensor, int], Tensor]] = {
    "reward-nan": _nan_at,
    "reward-float64": lambda reward, t: reward.double(),
    "reward-per-copy": lambda reward, t: reward.mean(1),
    "reward-nested": lambda reward, t: reward.unsqueeze(-1),
}
_SEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "observation-outside": lambda seen: seen + 1.5,
    "observation-nan": lambda seen: seen / torch.zeros_like(seen) * 0,
    "observation-float64": lambda seen: seen.double(),
    "observation-short": lambda seen: seen[..., :1],
}

# ------------------------------------------------------------------------------------------ mean-field games

GAME_FAULTS: dict[str, str] = {
    "initial-sum": "The first distribution adds up to 0.9.",
    "initial-negative": "The first distribution has a negative share.",
    "outcomes-sum": "The probabilities of an action add up to 0.95.",
    "outcomes-negative": "A probability is negative.",
    "successor-outside": "An action leads to a state that does not exist.",
    "rewards-infinite": "The reward of an empty state is infinite.",
    "rewards-shape": "Rewards have one state too many.",
    "nothing-allowed": "No action is legal in a state.",
    "moves-otherwise": "Agents do not move as outcomes() says.",
    "moves-impossibly": "Agents reach states that outcomes() rules out.",
    "moves-slightly-otherwise": "Agents slip with probability 0.15, and outcomes() says 0.1.",
}
"""By name, what is wrong."""


@dataclass(frozen=True)
class FaultyGame(MeanFieldGame):
    """A ring on which crowds are shunned, with one fault of `GAME_FAULTS`, or none."""

    fault: str = ""
    """Which; empty: none."""
    size: Count = 5
    """States of the ring."""
    slip: float = 0.1
    """Probability that an agent stays where it is."""

    @property
    def num_states(self) -> int:
        return self.size

    @property
    def num_actions(self) -> int:
        return ACTIONS

    def initial(self) -> Tensor:
        mu = torch.zeros(self.size, dtype=torch.float64)
        mu[0], mu[1] = 0.5, 0.4 if self.fault == "initial-sum" else 0.5
        if self.fault == "initial-negative":
            mu[2], mu[1] = -0.1, 0.6
        return mu

    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        here = torch.arange(self.size).view(-1, 1)
        there = here + torch.arange(ACTIONS) - 1
        there = there if self.fault == "successor-outside" else there % self.size
        chance = torch.tensor([1 - self.slip, self.slip], dtype=torch.float64).expand(self.size, ACTIONS, 2).clone()
        if self.fault == "outcomes-sum":
            chance[2, 1, 0] -= 0.05
        if self.fault == "outcomes-negative":
            chance[2, 1] = torch.tensor([1.1, -0.1], dtype=torch.float64)
        return Outcomes(torch.stack([there, here.expand_as(there)], -1), chance.to(crowd.mu))

    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        paid = -(crowd.mu if self.fault == "rewards-infinite" else crowd.mu + 0.01).log()
        if self.fault == "rewards-shape":
            paid = torch.cat([paid, paid[..., :1]], -1)
        return paid.unsqueeze(-1)

    def allowed(self) -> Tensor | None:
        if self.fault != "nothing-allowed":
            return None
        mask = torch.ones(self.size, ACTIONS, dtype=torch.bool)
        mask[3] = False
        return mask

    def step(self, state: GameState, action: Tensor, ids: Tensor, key: Key) -> tuple[GameState, Tensor]:
        after, reward = super().step(state, action, ids, key)
        drawn = random.uniform(key.fold("fault"), ids)
        if self.fault == "moves-otherwise":
            moved = torch.where(drawn < 0.3, state.state, after.state)
        elif self.fault == "moves-slightly-otherwise":
            moved = torch.where(drawn < 0.05, state.state, after.state)
        elif self.fault == "moves-impossibly":
            moved = torch.where(drawn < 0.01, (state.state + 2) % self.size, after.state)
        else:
            return after, reward
        return after._replace(state=moved), reward
