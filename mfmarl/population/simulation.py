"""Many copies of one environment as batched tensors: the memory, the clock and the device that rules lack."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any

import gymnasium
import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, ConfigError, EnvironmentFault, MfmarlError, NumericFault
from mfmarl.population.division import Division
from mfmarl.population.environment import PopulationEnv, agent_ids
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key


class Env(ABC):
    """What training sees: E copies of a population. Two finals: `Simulation` and `Adapter`."""

    spec: Spec
    ids: Tensor  # [E, N] int64
    copies: int
    device: torch.device
    division: Division  # which of the agents, or of the copies, are here
    turns: bool = False  # whether a living agent may be left out of a step
    lockstep: bool = False  # whether everyone lives and acts in every step, and all copies end together
    reward_limit: float = 1e18
    """A reward beyond this is a fault, as one that is not finite is: up to it, squares are float32 numbers."""
    restarts: int = 0
    """How often an environment broke, and was made anew."""
    outside: int = 0
    """How many observations lay outside of their space."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in messages."""

    @abstractmethod
    def reset(self, key: Key) -> Timestep:
        """Begin every copy anew; `key` fixes everything that follows."""

    @abstractmethod
    def step(self, action: Tensor) -> Timestep:
        """Play one step. Copies that have ended must be restarted first."""

    @abstractmethod
    def restart(self, timestep: Timestep) -> Timestep:
        """Begin the next episode in the copies that have ended; the others pass through unchanged."""

    @abstractmethod
    def measure(self) -> dict[str, Tensor]:
        """Order parameters of the population now, [E] each."""

    @abstractmethod
    def render(self, copy: int = 0) -> Tensor | None:
        """A picture of one copy, uint8 [H, W, 3], or None."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on bitwise after `load_state_dict`."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> Timestep:
        """Go on from `state_dict`'s moment: returns that moment's timestep."""

    def close(self) -> None:  # noqa: B027 - nothing to close is the usual case
        """Release processes and windows."""


def _where(done: Tensor, fresh: Tensor, old: Tensor) -> Tensor:
    return torch.where(done.view(-1, *[1] * (old.ndim - 1)), fresh, old)


def _refuse_division(env: PopulationEnv) -> None:
    """Raises ConfigError where deaths or endings of one rank's agents would have to be known to all."""
    for rule in ("alive", "done"):
        if getattr(type(env), rule) is not getattr(PopulationEnv, rule):
            raise ConfigError(
                f"{type(env).__name__} cannot be divided by agents: its rules say who is {rule} as it goes; "
                "divide the copies instead (--divide copies)."
            )


# What a checkpoint keeps of the last timestep: the rest follows from the state.
_STORED = ("reward", "action", "terminated", "truncated", "ended")


class Simulation(Env):
    """E copies of a `PopulationEnv`. Copy c draws the noise of copy c, however many there are.

    Between `ranks` the population is divided, by agents (each rank plays a part of every team) or by `copies`, which
    are those of all ranks together; `first_copy` is the number of the first of them. Everything here is then about those
    on this rank, save `measure`, and `state_dict`, which is the whole population's, on the first rank. `check` looks at every action, reward and observation (a pass over
    memory, and on a GPU a wait): a fault is named with its agent, copy and step, and leaves the
    simulation where it was before that step.
    """

    def __init__(
        self,
        env: PopulationEnv,
        copies: int = 1,
        device: torch.device | str = "cpu",
        first_copy: int = 0,
        check: bool = True,
        ranks: Ranks = ALONE,
        by_agents: bool = True,
    ) -> None:
        if copies < 1:
            raise ConfigError(f"copies must be at least 1, not {copies}.")
        self.division = Division(env.spec(), copies, ranks, by_agents)
        if ranks.count > 1 and by_agents:
            _refuse_division(env)
            env = env.divided(ranks, self.division.here, self.division.local_spec.graph)
        self.env, self.device, self.check = env, torch.device(device), check
        self.copies = self.division.copies_here
        self.spec = replace(self.division.local_spec, rules=env)
        self.ids = agent_ids(self.copies, self.division.here, self.device, first_copy + self.division.first_copy)
        self._everyone = torch.ones_like(self.ids, dtype=torch.bool)
        self._nobody = torch.zeros_like(self._everyone)
        self._all_copies, self._no_copy = self._everyone[:, 0], self._nobody[:, 0]
        self._zero = torch.zeros(self.ids.shape, device=self.device)
        # Rules without `alive` and `done` keep all copies in step: their clock is a number on the host.
        self._lockstep = type(env).done is PopulationEnv.done and type(env).alive is PopulationEnv.alive
        self.turns = type(env).acting is not PopulationEnv.acting
        self.lockstep = self._lockstep and not self.turns
        self._has_legal = type(env).legal is not PopulationEnv.legal
        self._has_position = type(env).position is not PopulationEnv.position
        self.state: Any = None
        self.key = Key(0)
        self.tick = 0  # steps since the simulation began: names the noise
        self.clock = torch.zeros(self.copies, dtype=torch.int64, device=self.device)
        self._host_clock = 0
        self.timestep: Timestep | None = None

    def reset(self, key: Key) -> Timestep:
        self.key, self.tick, self._host_clock = key, 0, 0
        self.clock = torch.zeros_like(self.clock)
        self.state = self._fresh(self.ids, 0)
        self.timestep = self._begin()
        return self.timestep

    def step(self, action: Tensor, acting: Tensor | None = None) -> Timestep:
        """Play one step. `acting` [E, N]: who moves in it, instead of those whom the rules asked."""
        before = self.timestep
        if before is None:
            raise EnvironmentFault("step() was called before reset().")
        if acting is not None:
            before = before._replace(acting=acting)
        if self._late() if self._lockstep else self.check and bool(before.ended.any()):
            raise EnvironmentFault(
                f"step() was called at step {self.tick} with copies that have ended: call restart(timestep) first."
            )
        action = self._checked_action(action, before)
        playable = action
        if before.acting is not self._everyone:
            asked = before.acting if self.spec.discrete else before.acting.unsqueeze(-1)
            action = torch.where(asked, action, before.action)
            # "None yet" is -1 or NaN: the rules get a playable action, the timestep keeps saying so.
            playable = action.clamp(min=0) if self.spec.discrete else action.nan_to_num(nan=0.0)
        if self.check and before.legal is not None:
            self._check_legal(playable, before)
        tick = self.tick + 1
        state, reward = self._ask("step", self.state, playable, self.ids, self.key.fold("step", tick))
        if self.check:
            self._check_state(state, "step", self.state, self.copies)
            self._check_tensor("step's reward", reward, self.ids.shape, torch.float32)
        if before.alive is not self._everyone:
            reward = torch.where(before.alive, reward, self._zero)
        earlier = self.state, self.clock
        self.state, self.clock = state, self.clock + 1
        self.tick, self._host_clock = tick, self._host_clock + 1
        try:
            self.timestep = self._view(reward, action, before.alive)
        except MfmarlError:
            self.state, self.clock = earlier
            self.tick, self._host_clock = tick - 1, self._host_clock - 1
            raise
        return self.timestep

    def restart(self, timestep: Timestep) -> Timestep:
        if self._lockstep:
            if not self._late():
                return timestep
            self._host_clock = 0
            self.clock = torch.zeros_like(self.clock)
            self.state = self._fresh(self.ids, self.tick)
            self.timestep = self._begin()
            return self.timestep
        ended = timestep.ended
        which = ended.nonzero().squeeze(-1)
        if len(which) == 0:
            return timestep
        # A copy does not know how many copies there are, so only those that ended are built.
        fresh = self._fresh(self.ids[which], self.tick)
        if len(which) < self.copies:
            fresh = type(fresh)(*(old.index_copy(0, which, new) for old, new in zip(self.state, fresh, strict=True)))
        self.state = fresh
        self.clock = torch.where(ended, 0, self.clock)
        begun = self._begin()
        self.timestep = begun._replace(
            reward=_where(ended, begun.reward, timestep.reward),
            action=_where(ended, begun.action, timestep.action),
            terminated=_where(ended, begun.terminated, timestep.terminated),
            truncated=_where(ended, begun.truncated, timestep.truncated),
        )
        return self.timestep

    def measure(self) -> dict[str, Tensor]:
        return self.env.measure(self.state)

    def render(self, copy: int = 0) -> Tensor | None:
        if type(self.env).render is PopulationEnv.render or not self.division.whole:
            return None
        return self.env.render(self.state, copy)

    # ---------------------------------------------------------------------------------- store and go on

    def state_dict(self) -> dict[str, Tensor]:
        if self.timestep is None:
            raise EnvironmentFault("state_dict() was called before reset().")
        own, gather = self._own_state(self.state), self.division.gather
        parts = {f"state.{name}": gather(value, name in own) for name, value in self.state._asdict().items()}
        parts |= {f"timestep.{name}": gather(getattr(self.timestep, name), name != "ended") for name in _STORED}
        parts |= {
            "clock": gather(self.clock, False),
            "tick": torch.tensor(self.tick),
            "host_clock": torch.tensor(self._host_clock),
            "key": torch.tensor([self.key.value >> 32, self.key.value & 0xFFFFFFFF]),
        }
        return {name: value.detach().clone() for name, value in parts.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> Timestep:
        def stored(
            name: str, shape: torch.Size | None = None, dtype: torch.dtype | None = None, per_agent: bool | None = None
        ) -> Tensor:
            if name not in state:
                raise CheckpointError(f"The stored simulation lacks {name!r}: it is not one of {self.name}.")
            value = state[name]
            if per_agent is not None:
                value = self._part(value, name, per_agent)
            if shape is not None and (value.shape != shape or value.dtype != dtype):
                raise CheckpointError(
                    f"The stored simulation's {name} is {list(value.shape)} {value.dtype}; "
                    f"{self.name} with {self.copies} copies has {list(shape)} {dtype}."
                )
            return value.to(self.device, copy=True)

        high, low = stored("key", torch.Size([2]), torch.int64).tolist()
        key = Key(high << 32 | low)
        # A state of the right type and shapes, whose values are then replaced.
        like = self._ask("reset", self.ids, key.fold("reset", 0))
        own = self._own_state(like)
        values = {n: stored(f"state.{n}", x.shape, x.dtype, n in own) for n, x in like._asdict().items()}
        clock = stored("clock", self.clock.shape, torch.int64, False)
        reward = stored("timestep.reward", self.ids.shape, torch.float32, True)
        action = stored("timestep.action", per_agent=True)
        ending = {n: stored(f"timestep.{n}", per_agent=n != "ended") for n in ("terminated", "truncated", "ended")}
        self.tick, self._host_clock = int(stored("tick")), int(stored("host_clock"))
        self.key, self.clock, self.state = key, clock, type(like)(**values)
        self.timestep = self._view(reward, action, self._everyone)._replace(**ending)
        return self.timestep

    def _own_state(self, state: Any) -> tuple[str, ...]:
        """The state's fields that are divided by agents."""
        return (self.env.own_state() or ()) if self.division.by_agents else tuple(state._fields)

    def _part(self, value: Tensor, name: str, per_agent: bool) -> Tensor:
        """This rank's part of what is stored of the whole population."""
        division = self.division
        expected = (
            (division.copies, division.spec.num_agents) if per_agent and division.by_agents else (division.copies,)
        )
        if not division.whole and tuple(value.shape[: len(expected)]) != expected:
            raise CheckpointError(
                f"The stored simulation's {name} is {list(value.shape)}; {self.name} with {division.copies} copies has "
                f"{list(expected)} and more."
            )
        return division.part(value, per_agent)

    # ------------------------------------------------------------------------------------ one timestep

    @property
    def name(self) -> str:
        return type(self.env).__name__

    def _late(self) -> bool:
        return self.spec.horizon is not None and self._host_clock >= self.spec.horizon

    def _ask(self, rule: str, *arguments: Any) -> Any:
        """One of the environment's rules; what it raises is named."""
        try:
            return getattr(self.env, rule)(*arguments)
        except MfmarlError:
            raise
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(
                f"{self.name}.{rule} failed after step {self.tick}: {type(error).__name__}: {error}",
                "environment-raised",
            ) from error

    def _fresh(self, ids: Tensor, tick: int) -> Any:
        state = self._ask("reset", ids, self.key.fold("reset", tick))
        self._check_state(state, "reset", None, len(ids))
        return state

    def _begin(self) -> Timestep:
        standing = self._ask("standing", self.state)
        if standing is None:
            if self.spec.discrete:
                standing = torch.full_like(self.ids, -1)
            else:
                standing = torch.full((*self.ids.shape, self.spec.num_actions), float("nan"), device=self.device)
        # Nobody was alive before: who begins dead ends no episode.
        return self._view(torch.zeros_like(self._zero), standing, self._nobody)

    def _view(self, reward: Tensor, action: Tensor, was_alive: Tensor) -> Timestep:
        state, horizon = self.state, self.spec.horizon
        asked = self._ask("acting", state) if self.turns else None
        if self._lockstep:
            late = self._late()
            alive = self._everyone
            ended = self._all_copies if late else self._no_copy
            left = self._everyone if late else self._nobody
            terminated, truncated = (left, self._nobody) if self.spec.ends else (self._nobody, left)
            acting = self._nobody if late else self._everyone if asked is None else asked
        else:
            living, done = self._ask("alive", state), self._ask("done", state)
            if self.check:
                self._check_living(living, done, was_alive)
            alive = self._everyone if living is None else living
            finished = ~alive.any(-1) if done is None else done | ~alive.any(-1)
            out_of_time = torch.zeros_like(finished) if horizon is None else self.clock >= horizon
            if self.spec.ends:
                finished = finished | out_of_time
            ended = finished | out_of_time
            terminated = was_alive & (~alive | finished.unsqueeze(-1))
            truncated = alive & (out_of_time & ~finished).unsqueeze(-1)
            acting = (alive if asked is None else asked & alive) & ~ended.unsqueeze(-1)
        obs = self._ask("observe", state)
        legal = self._ask("legal", state) if self._has_legal else None
        position = self._ask("position", state) if self._has_position else None
        if self.check:
            discrete = isinstance(self.spec.observation_space, gymnasium.spaces.Discrete)
            self._check_tensor(
                "observe", obs, (*self.ids.shape, *self.spec.observation_shape), torch.int64 if discrete else None
            )
            if asked is not None:
                self._check_tensor("acting", asked, self.ids.shape, torch.bool)
            if legal is not None:
                self._check_tensor("legal", legal, (*self.ids.shape, self.spec.num_actions), torch.bool)
            if not float(torch.dot(reward.reshape(-1), reward.reshape(-1))) <= self.reward_limit**2:
                self._check_reward(reward, action)
            self._check_finite(obs, action)
        return Timestep(
            obs=obs,
            reward=reward,
            alive=alive,
            acting=acting,
            legal=legal,
            action=action,
            terminated=terminated,
            truncated=truncated,
            position=position,
            step=self.clock,
            ended=ended,
        )

    # -------------------------------------------------------------------------------------------- checks

    def _check_state(self, state: Any, rule: str, before: Any, copies: int) -> None:
        if not hasattr(state, "_asdict"):
            raise EnvironmentFault(
                f"{self.name}.{rule} must return a NamedTuple of tensors as its state, not {type(state).__name__}."
            )
        for name, value in zip(state._fields, state, strict=True):
            if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != copies:
                what = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise EnvironmentFault(
                    f"{self.name}.{rule} gave a state whose {name} is {what}; expected a tensor [{copies} copies, ...]."
                )
            old = None if before is None else getattr(before, name)
            if old is not None and (old.shape != value.shape or old.dtype != value.dtype):
                raise EnvironmentFault(
                    f"{self.name}.step changed the state's {name} from {list(old.shape)} {old.dtype} to "
                    f"{list(value.shape)} {value.dtype}; shapes and types must stay."
                )

    def _check_tensor(self, what: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
        if not isinstance(value, Tensor):
            raise EnvironmentFault(
                f"{self.name}.{what} is {type(value).__name__} at step {self.tick}; expected a tensor of shape {tuple(shape)}."
            )
        if tuple(value.shape) != tuple(shape):
            raise EnvironmentFault(
                f"{self.name}.{what} has shape {tuple(value.shape)} at step {self.tick}; "
                f"expected {tuple(shape)}: copies, agents and what the spec declares of one."
            )
        if dtype is not None and value.dtype != dtype:
            raise EnvironmentFault(f"{self.name}.{what} has type {value.dtype} at step {self.tick}; expected {dtype}.")

    def _check_living(self, living: Tensor | None, done: Tensor | None, was_alive: Tensor) -> None:
        if done is not None:
            self._check_tensor("done", done, (self.copies,), torch.bool)
        if living is None:
            return
        self._check_tensor("alive", living, self.ids.shape, torch.bool)
        # `was_alive` is nobody's at a beginning, when anyone may be alive.
        if was_alive is not self._nobody and bool((living & ~was_alive).any()):
            copy, agent = (living & ~was_alive).nonzero()[0].tolist()
            raise EnvironmentFault(
                f"{self.name}.alive brought {self._who(copy, agent)} back to life at step {self.tick}; "
                "the dead stay dead until the next reset."
            )

    def _check_reward(self, reward: Tensor, action: Tensor) -> None:
        """Raises NumericFault for one that is not finite, or beyond the limit. Not looked for while their squares add up to
        less than the limit's."""
        wrong = (~(reward.abs() <= self.reward_limit)).nonzero()
        if not len(wrong):
            return
        copy, agent = wrong[0].tolist()
        value = reward[copy, agent].item()
        told = f"{self.name} gave a reward of {value:g} to {self._who(copy, agent)} at step {self.tick}"
        told += self._after(action, copy, agent)
        if not math.isfinite(value):
            raise NumericFault(f"{told}; rewards and observations must be finite.", "nan-reward")
        raise NumericFault(f"{told}, beyond reward_limit = {self.reward_limit:g}: scale the rewards.", "reward-bound")

    def _check_finite(self, obs: Tensor, action: Tensor) -> None:
        # A sum is not finite if a term is not: one cheap pass; the search runs only on a fault.
        if obs.is_floating_point() and not bool(torch.isfinite(obs.sum())):
            bad = (~torch.isfinite(obs)).nonzero()
            if len(bad):
                copy, agent = bad[0, :2].tolist()
                raise NumericFault(
                    f"{self.name} gave an observation of {obs[tuple(bad[0].tolist())].item()} to "
                    f"{self._who(copy, agent)} at step {self.tick}{self._after(action, copy, agent)}; rewards and "
                    "observations must be finite.",
                    "nan-observation",
                )

    def _after(self, action: Tensor, copy: int, agent: int) -> str:
        """What it did last, where it did anything."""
        own = action[copy, agent]
        done = bool(torch.isfinite(own).all()) if own.is_floating_point() else int(own) >= 0
        return f", after its action {own.tolist()}" if done else ""

    def _checked_action(self, action: Tensor, before: Timestep) -> Tensor:
        """The action, of the right shape and type and (where `check`) inside the space for all that act."""
        spec, space = self.spec, self.spec.action_space
        shape = tuple(self.ids.shape) if spec.discrete else (*self.ids.shape, spec.num_actions)
        if tuple(action.shape) != shape:
            raise ConfigError(f"Actions have shape {tuple(action.shape)}; expected {shape} (copies, agents).")
        if spec.discrete:
            if action.is_floating_point():
                raise ConfigError(f"Actions have type {action.dtype}; {space} needs whole numbers.")
            action = action.to(torch.int64)
            if not self.check:
                return action
            low, high = torch.aminmax(action)
            if int(low) >= 0 and int(high) < spec.num_actions:
                return action
            wrong = (action < 0) | (action >= spec.num_actions)
        else:
            action = action.to(torch.float32)
            if not self.check:
                return action
            low, high = self._bounds
            wrong = ~((action >= low) & (action <= high)).all(-1)
        # Those who are not asked may hold anything.
        wrong = wrong & before.acting
        if bool(wrong.any()):
            copy, agent = wrong.nonzero()[0].tolist()
            given, expected = action[copy, agent].tolist(), f"0..{spec.num_actions - 1}"
            if action.is_floating_point() and bool(action[copy, agent].isnan().any()):
                raise NumericFault(
                    f"{self._who(copy, agent)} chose {given} in {self.name} at step {self.tick}: its weights, or what it "
                    "sees, are not finite.",
                    "nan-action",
                )
            if not spec.discrete:
                expected = f"{low.tolist()} to {high.tolist()}"
            raise ConfigError(
                f"Action {given} of {self._who(copy, agent)} is outside {space} at step {self.tick}: expected {expected}."
            )
        return action

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        space = self.spec.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        # Finite ones, so that an infinite action is outside of an unbounded Box too.
        most = torch.finfo(torch.float32).max
        low, high = (torch.as_tensor(x, dtype=torch.float32, device=self.device) for x in (space.low, space.high))
        return low.clamp(min=-most), high.clamp(max=most)

    def _check_legal(self, action: Tensor, before: Timestep) -> None:
        assert before.legal is not None
        illegal = before.acting & ~before.legal.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        if not bool(illegal.any()):
            return
        copy, agent = illegal.nonzero()[0].tolist()
        allowed = before.legal[copy, agent].nonzero().squeeze(-1).tolist()
        if not allowed:
            raise EnvironmentFault(
                f"{self.name}.legal leaves {self._who(copy, agent)} no action at step {self.tick}.", "no-legal-action"
            )
        raise ConfigError(
            f"Action {int(action[copy, agent])} of {self._who(copy, agent)} is illegal at step {self.tick}: "
            f"expected one of {allowed}."
        )

    def _who(self, copy: int, agent: int) -> str:
        return f"agent {self.spec.names[agent]} of copy {int(self.ids[copy, 0] >> 32)}"
