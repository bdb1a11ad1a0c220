r"""A mean-field game: one set of rules, played by N agents or by infinitely many.

Agents of one group are alike and meet the others only through the crowd: the share mu_t(s) of each state, and where
the game is an extended one the share L_t(s, a) of each state and action.

$$ s_{t+1} \sim P_t(\cdot \mid s_t, a_t; \mu_t), \qquad r_t(s_t, a_t; \mu_t), \qquad
   \mu_{t+1}(s') = \sum_{s, a} \mu_t(s)\, \pi_t(a \mid s)\, P_t(s' \mid s, a; \mu_t) $$

The author writes `num_states`, `num_actions`, `initial`, `outcomes` and `rewards`. From these follow N agents in
PettingZoo and as batched tensors (here), and the push-forward, values, best responses and exploitability of the limit
(`flow`, `values`, `exploitability`). Lasry and Lions 2007; Huang, Malhame and Caines 2006; for finite games Perrin et
al. 2020 (arXiv 2007.03458) and Lauriere et al. 2022 (arXiv 2205.12944).

Shapes: T times, *b any batch, G groups, S states, A actions, K outcomes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.games.common_noise import Tree, grow
from mfmarl.games.kernels import Kernel
from mfmarl.options import Count, Share, check_numbers
from mfmarl.population.environment import PopulationEnv, copy_ids
from mfmarl.population.spec import Spec
from mfmarl.random import Key

_ONE_HOT = 64  # states, and times, up to which an agent sees a one-hot of them
_CROWD = 4096  # entries of a crowd that an agent may be shown


@dataclass(frozen=True, eq=False)
class Crowd:
    """Everybody, as one agent meets them: of N agents the counted shares, in the limit the distribution itself."""

    mu: Tensor
    """Share of each state within its group, [*b, G, S]; sums to 1 over S."""
    policy: Tensor | None = None
    """Probabilities of actions in each state, [*b, G, S, A]."""
    counted: Tensor | None = None
    """Counted shares of states and actions, [*b, G, S, A]: of N agents, whose choices are known."""
    common: Tensor | None = None
    """The state of the common noise, int64 [*b, 1, 1]; None in a game without."""

    @cached_property
    def joint(self) -> Tensor:
        """L: share of each state and action, [*b, G, S, A]; sums to 1 over S and A."""
        if self.counted is not None:
            return self.counted
        if self.policy is None:
            raise ConfigError("This crowd has states and no actions: give it a policy.")
        return self.mu.unsqueeze(-1) * self.policy

    @property
    def actions(self) -> Tensor:
        """Share of each action, [*b, G, A]."""
        return self.joint.sum(-2)


_DOUBLE = torch.empty(0, dtype=torch.float64)


def table(rows: Any, like: Tensor = _DOUBLE) -> Tensor:
    """A tensor of nested lists of numbers, of the type and on the device of `like`.

    As `torch.tensor`, but an option may stand in it that is itself a tensor: one of many games solved side by side
    (`mfmarl.games.batch`).
    """
    shape: list[int] = []
    inner = rows
    while isinstance(inner, list | tuple):
        shape.append(len(inner))
        inner = inner[0]
    flat = _flat(rows)
    if not any(isinstance(entry, Tensor) for entry in flat):
        return torch.tensor(rows, dtype=like.dtype, device=like.device)
    entries = [torch.as_tensor(entry, dtype=like.dtype, device=like.device) for entry in flat]
    return torch.stack(entries).view(shape)


def _flat(rows: Any) -> list[Any]:
    return [entry for row in rows for entry in _flat(row)] if isinstance(rows, list | tuple) else [rows]


class GameState(NamedTuple):
    state: Tensor  # [E, N] int64
    time: Tensor  # [E] int64
    common: Tensor  # [E] int64: the common noise, 0 in a game without


@dataclass(frozen=True)
class MeanFieldGame(PopulationEnv):
    """Rules of a mean-field game. A subclass is a frozen dataclass that adds its own options.

    Leading axes of what the rules are given are a batch (copies, times, problems): write them for the last axes,
    `crowd.mu[..., s]`. What they return may have any leading axes that broadcast. Tables of the author's own are
    brought to the crowd's type and device by `table.to(crowd.mu)`.
    """

    num_agents: Count = 100
    """Number of agents."""
    horizon: Count | None = 20
    """Number of decisions; none: without end, discounted, in its stationary state."""
    discount: Share = 1.0
    """Discount per step."""
    sight: Literal["state", "crowd"] = "state"
    """What agents see: their own state and the time, or the distribution of all too."""

    groups: ClassVar[tuple[str, ...]] = ("agent",)
    """Names of the populations; the rules find them along the last axis but one (G) of mu."""
    time_dependent: ClassVar[bool] = False
    """Whether `outcomes` or `rewards` depend on t. Where not, t is 0, and all times may come in one call."""
    crowd_moves: ClassVar[bool] = True
    """Whether `outcomes` depends on the crowd or on common noise. Where not, it is asked once."""
    extended: ClassVar[bool] = False
    """Whether the rules read `crowd.joint` or `crowd.actions`, and not `crowd.mu` alone."""
    major: ClassVar[str] = ""
    """Name of the last group where it is one major agent, whose state is the common noise and whose actions move it
    (`common_moves`); in its group everybody is in state 0, and stays there."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.num_agents < len(self.groups):
            raise ConfigError(f"num_agents must be at least {len(self.groups)}, not {self.num_agents}.")
        if self.horizon is not None and self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1, not {self.horizon}.")
        if not 0 < self.discount <= 1:
            raise ConfigError(f"discount must lie in (0, 1], not {self.discount:g}.")
        if self.horizon is None and self.discount == 1:
            raise ConfigError("A game without a horizon needs a discount below 1.")
        if self.horizon is None and self.common_states > 1:
            raise ConfigError("Common noise needs a horizon: its pasts are counted one by one.")

    # ------------------------------------------------------------------------------- what an author writes

    @property
    @abstractmethod
    def num_states(self) -> int:
        """S."""

    @property
    @abstractmethod
    def num_actions(self) -> int:
        """A."""

    @abstractmethod
    def initial(self) -> Tensor:
        """The distribution over states at the start: float64 [S], or [G, S]."""

    @abstractmethod
    def outcomes(self, t: int, crowd: Crowd) -> Kernel:
        """Where states and actions lead."""

    @abstractmethod
    def rewards(self, t: int, crowd: Crowd) -> Tensor:
        """r_t(s, a; crowd): broadcasts to [*b, G, S, A]; [..., S, 1] where the action does not matter."""

    # Optional rules.

    def effort(self) -> Tensor | None:
        """What an action costs whoever takes it, whatever the others do: [S, A] or [G, S, A], taken off the reward."""
        return None

    def terminal(self, crowd: Crowd) -> Tensor | None:
        """Reward for the state after the last step, [*b, G, S]."""
        return None

    def allowed(self) -> Tensor | None:
        """Which actions are legal in which state, bool [S, A] or [G, S, A]; None: all."""
        return None

    def coordinates(self) -> Tensor | None:
        """What an agent sees of its state where there are many, [S, D] in [-1, 1]; None: its one-hot."""
        return None

    def potential(self, t: int, crowd: Crowd) -> Tensor | None:
        """Phi_t [*b] with dPhi_t / dL(s, a) = r_t(s, a) (effort left out), summed over groups; None: no potential.

        In a potential game with fixed dynamics, sum_t Phi_t rises along fictitious play and mirror descent.
        """
        return None

    # Common noise: something that everybody sees and nobody (or one major agent) moves.

    @property
    def common_states(self) -> int:
        """Z; 1: no common noise. The rules find its state in `crowd.common`."""
        return 1

    def common_initial(self) -> Tensor:
        """Its distribution at the start, float64 [Z]; the default: state 0."""
        return torch.eye(self.common_states, dtype=torch.float64)[0]

    def common_moves(self, t: int, crowd: Crowd) -> Tensor:
        """At every time t (asked for each): probabilities of its next state, [*b, Z], or [*b, A, Z] where a major agent's action decides."""
        raise ConfigError(
            f"{type(self).__name__} has common_states and must say how they move: common_moves(t, crowd)."
        )

    def common_support(self, t: int) -> Tensor:
        """Which of its states [Z, Z] can follow which after step t, bool; the default: any. Fewer make fewer pasts."""
        return torch.ones(self.common_states, self.common_states, dtype=torch.bool)

    # -------------------------------------------------------------------------------- what follows: tables

    @cached_property
    def tree(self) -> Tree | None:
        """The pasts of the common noise; None in a game without."""
        if self.common_states == 1:
            return None
        return grow(self.common_initial(), [self.common_support(t) for t in range((self.horizon or 1) - 1)])

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    @property
    def batch(self) -> tuple[int, ...]:
        """Axes that the rules themselves have before G: those of many games solved side by side."""
        return ()

    def start(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """The initial distribution, [G, S].

        Raises ConfigError unless each group's is a probability distribution over the states.
        """
        mu = torch.as_tensor(self.initial())
        name = type(self).__name__
        if mu.shape not in ((self.num_states,), (self.num_groups, self.num_states)):
            raise ConfigError(
                f"{name}.initial() has shape {list(mu.shape)}; expected [{self.num_states}] or "
                f"[{self.num_groups}, {self.num_states}]."
            )
        if not bool((mu >= 0).all()) or not bool(((mu.sum(-1) - 1).abs() < 1e-6).all()):
            raise ConfigError(f"{name}.initial() must be at least 0 and sum to 1, not to {float(mu.sum(-1).max()):g}.")
        return mu.to(device, dtype).expand(self.num_groups, self.num_states)

    def kernel(self, t: int, crowd: Crowd) -> Kernel:
        """`outcomes`, remembered where the crowd does not matter."""
        t = t if self.time_dependent else 0
        if self.crowd_moves:
            return self.outcomes(t, crowd)
        known: dict[object, Kernel] = self.__dict__.setdefault("_kernels", {})
        name = (t, crowd.mu.dtype, crowd.mu.device)
        if name not in known:
            # Of a crowd without a batch: what is remembered must not depend on who asked first.
            known[name] = self.outcomes(t, Crowd(self.start(crowd.mu.dtype, crowd.mu.device)))
        return known[name]

    def paid(self, t: int, crowd: Crowd) -> Tensor:
        """Rewards less effort, [*b, G, S, A]."""
        reward = self.rewards(t if self.time_dependent else 0, crowd)
        effort = self.effort()
        if effort is not None:
            reward = reward - effort.to(crowd.mu)
        shape = (*crowd.mu.shape, self.num_actions)
        return reward if reward.shape == shape else reward.expand(shape)

    def legal_mask(self, device: torch.device | str = "cpu") -> Tensor | None:
        """`allowed`, [G, S, A] bool, or None.

        Raises ConfigError for a state in which nothing is legal.
        """
        mask = self.allowed()
        if mask is None:
            return None
        mask = mask.to(device).expand(self.num_groups, self.num_states, self.num_actions)
        if not bool(mask.any(-1).all()):
            raise ConfigError(
                f"{type(self).__name__}: nothing is legal in state {int((~mask.any(-1)).nonzero()[0, -1])}."
            )
        return mask

    # ------------------------------------------------------------------------------ what follows: N agents

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Agents of each group: as even as can be, after the one that is major."""
        groups = self.num_groups - bool(self.major)
        each, more = divmod(self.num_agents - bool(self.major), groups)
        return tuple(each + (g < more) for g in range(groups)) + (1,) * bool(self.major)

    @cached_property
    def _state_features(self) -> Tensor:
        """[S, D] float32."""
        seen = self.coordinates()
        if seen is None or self.num_states <= _ONE_HOT:
            return torch.eye(self.num_states)
        return seen.to(torch.float32)

    @cached_property
    def _time_features(self) -> Tensor:
        """[T + 1, D] float32: nobody acts at T, but something is seen."""
        if self.horizon is None:
            return torch.zeros(1, 0)
        if self.horizon <= _ONE_HOT:
            return torch.cat([torch.eye(self.horizon), torch.zeros(1, self.horizon)])
        return torch.linspace(0, 1, self.horizon + 1).unsqueeze(-1)

    def spec(self) -> Spec:
        size = self._state_features.shape[1] + self._time_features.shape[1]
        size += self.common_states if self.common_states > 1 else 0
        if self.sight == "crowd":
            if self.num_groups * self.num_states > _CROWD:
                raise ConfigError(
                    f"A crowd of {self.num_groups * self.num_states} shares is too much to show everyone; use sight=state."
                )
            size += self.num_groups * self.num_states
        return Spec(
            num_agents=self.num_agents,
            observation_space=Box(-1.0, 1.0, (size,), np.float32),
            action_space=Discrete(self.num_actions),
            horizon=self.horizon,
            ends=self.horizon is not None,
            groups=self.groups,
            group_sizes=self.group_sizes,
            discount=self.discount,
        )

    @cached_property
    def _group(self) -> Tensor:
        return self.mine(torch.repeat_interleave(torch.arange(self.num_groups), torch.tensor(self.group_sizes)))

    def own_state(self) -> tuple[str, ...] | None:
        return None if self.major else ("state",)

    def reset(self, ids: Tensor, key: Key) -> GameState:
        cumulative = self.start(device=ids.device).cumsum(-1)
        group = self._group.to(ids.device)
        level = random.uniform(key.fold("state"), ids).to(torch.float64)
        state = torch.empty_like(ids)
        for g in range(self.num_groups):
            mine = group == g
            drawn = torch.searchsorted(cumulative[g], level[:, mine] * cumulative[g, -1], right=True)
            state[:, mine] = drawn.clamp(max=self.num_states - 1)
        time = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        common = time
        if self.common_states > 1:
            common = self._one_for_all(self.common_initial().to(ids.device).expand(len(ids), -1), ids, key)
        return GameState(state, time, common)

    def _one_for_all(self, chance: Tensor, ids: Tensor, key: Key) -> Tensor:
        """A state of the common noise [E] by these probabilities [E, Z]: a copy's own, whatever the number of agents."""
        level = random.uniform(key.fold("common"), copy_ids(ids)).to(chance.dtype)
        cumulative = chance.cumsum(-1)
        return (level.unsqueeze(-1) * cumulative[:, -1:] >= cumulative[:, :-1]).sum(-1)

    def observe(self, state: GameState) -> Tensor:
        here = self._state_features.to(state.state.device)[state.state]
        now = self._time_features.to(state.time.device)[self._clock(state.time)]
        seen = [here, now.unsqueeze(1).expand(*state.state.shape, -1)]
        if self.common_states > 1:
            known = torch.nn.functional.one_hot(state.common, self.common_states).to(torch.float32)
            seen.append(known.unsqueeze(1).expand(*state.state.shape, -1))
        if self.sight == "crowd":
            mu = self.crowd(state).mu.to(torch.float32).flatten(-2)
            seen.append(mu.unsqueeze(1).expand(*state.state.shape, -1))
        return torch.cat(seen, -1)

    def views(self, t: int, mu: Tensor, common: Tensor | None = None) -> Tensor:
        """What an agent in each state sees at time t of a crowd mu [*b, G, S]: float32 [*b, G, S, O].

        `common` int64 [*b, 1, 1] is the state of the common noise, as in `Crowd`.
        """
        shape = mu.shape
        here = self._state_features.to(mu.device).expand(*shape, -1)
        now = self._time_features.to(mu.device)[0 if self.horizon is None else min(t, self.horizon)]
        seen = [here, now.expand(*shape, -1)]
        if self.common_states > 1:
            if common is None:
                raise ConfigError(f"{type(self).__name__} has common noise: say which state of it is seen.")
            known = torch.nn.functional.one_hot(common, self.common_states).to(torch.float32)
            seen.append(known.expand(*shape, -1))
        if self.sight == "crowd":
            seen.append(mu.to(torch.float32).flatten(-2).unsqueeze(-2).unsqueeze(-2).expand(*shape, -1))
        return torch.cat(seen, -1)

    def _clock(self, time: Tensor) -> Tensor:
        return torch.zeros_like(time) if self.horizon is None else time.clamp(max=self.horizon)

    def crowd(self, state: GameState, action: Tensor | None = None) -> Crowd:
        """The counted crowd of each copy."""
        device = state.state.device
        sizes = torch.tensor(self.group_sizes, dtype=torch.float64, device=device)
        cell = self._group.to(device) * self.num_states + state.state
        shares = self._counted(cell, self.num_groups * self.num_states).unflatten(-1, (self.num_groups, -1))
        mu = shares / sizes.unsqueeze(-1)
        common = state.common.view(-1, 1, 1) if self.common_states > 1 else None
        if action is None or not self.extended:
            return Crowd(mu, common=common)
        joint = self._counted(cell * self.num_actions + action, self.num_groups * self.num_states * self.num_actions)
        joint = joint.view(*mu.shape, self.num_actions) / sizes.view(-1, 1, 1)
        return Crowd(mu, counted=joint, common=common)

    def _counted(self, index: Tensor, size: int) -> Tensor:
        """How often each number in [0, size) occurs among all agents, wherever they are: float64 [E, size]."""
        offset = torch.arange(len(index), device=index.device).unsqueeze(-1) * size
        counts = torch.bincount((index + offset).flatten(), minlength=len(index) * size).view(len(index), size)
        return self.ranks.sum(counts).double()

    def step(self, state: GameState, action: Tensor, ids: Tensor, key: Key) -> tuple[GameState, Tensor]:
        crowd = self.crowd(state, action)
        # Copies keep step with each other, so that one clock serves for all.
        t = int(state.time[0]) if self.time_dependent or self.common_states > 1 else 0
        group = self._group.to(ids.device)
        kernel = self.kernel(t, crowd)
        after = kernel.draw(group, state.state, action, random.uniform(key.fold("move"), ids))
        common = state.common
        if self.common_states > 1:
            chance = self.common_moves(t, crowd)
            if self.major:
                chance = chance.expand(len(ids), self.num_actions, -1)[torch.arange(len(ids)), action[:, -1]]
            common = self._one_for_all(chance.expand(len(ids), -1), ids, key)
        following = GameState(after, state.time + 1, common)
        table = self.paid(t, crowd).expand(len(ids), -1, -1, -1)
        reward = _at(table.flatten(1), (group * self.num_states + state.state) * self.num_actions + action)
        if self.horizon is not None and type(self).terminal is not MeanFieldGame.terminal:
            last = self.terminal(self.crowd(following))
            if last is not None:
                paid = _at(last.expand(len(ids), -1, -1).flatten(1), group * self.num_states + after)
                reward = reward + torch.where((following.time == self.horizon).unsqueeze(-1), paid, 0.0)
        return following, reward.to(torch.float32)

    def legal(self, state: GameState) -> Tensor | None:
        mask = self.legal_mask(state.state.device)
        return None if mask is None else mask[self._group.to(state.state.device), state.state]

    def measure(self, state: GameState) -> dict[str, Tensor]:
        return {name: value.to(torch.float32) for name, value in self.measures(self.crowd(state).mu).items()}

    def measures(self, mu: Tensor) -> dict[str, Tensor]:
        """Order parameters [*b] of a crowd mu [*b, G, S], of N agents or infinitely many: what `measure` reports.

        The default: the entropy of the distribution over states in units of log S (`spread`, 1: evenly), and the shares
        of up to 8 states.
        """
        entropy = -torch.special.xlogy(mu, mu).sum(-1) / math.log(max(self.num_states, 2))
        found = {}
        for g, name in enumerate(self.groups):
            team = f"/{name}" if self.num_groups > 1 else ""
            found[f"spread{team}"] = entropy[..., g]
            if self.num_states <= 8:
                found |= {f"share{team}/{s}": mu[..., g, s] for s in range(self.num_states)}
        return found


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table.gather(1, index)
