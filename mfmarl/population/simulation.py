"""Many copies of one environment as batched tensors: the memory, the clock and the device that rules lack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from mfmarl.errors import ConfigError, EnvironmentFault, NumericFault
from mfmarl.population.environment import PopulationEnv, agent_ids
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key


class Env(ABC):
    """What training sees: E copies of a population. Two finals: `Simulation` and `Adapter`."""

    spec: Spec
    ids: Tensor  # [E, N] int64
    copies: int
    device: torch.device
    turns: bool = False  # whether a living agent may be left out of a step
    lockstep: bool = False  # whether everyone lives and acts in every step, and all copies end together

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


class Simulation(Env):
    """E copies of a `PopulationEnv`. Copy c draws the noise of copy c, however many there are.

    `first_copy` is the number of the first copy here: a batch of copies split over processes draws the
    same noise as one that is whole. `check` looks at every reward and observation (a pass over memory).
    """

    def __init__(
        self,
        env: PopulationEnv,
        copies: int = 1,
        device: torch.device | str = "cpu",
        first_copy: int = 0,
        check: bool = True,
    ) -> None:
        if copies < 1:
            raise ConfigError(f"copies must be at least 1, not {copies}.")
        self.env, self.copies, self.device, self.check = env, copies, torch.device(device), check
        self.spec = env.spec()
        self.ids = agent_ids(copies, self.spec.num_agents, self.device, first_copy)
        self._everyone = torch.ones_like(self.ids, dtype=torch.bool)
        self._nobody = torch.zeros_like(self._everyone)
        self._zero = torch.zeros(self.ids.shape, device=self.device)
        # Rules without `alive` and `done` keep all copies in step: their clock is a number on the host.
        self._lockstep = type(env).done is PopulationEnv.done and type(env).alive is PopulationEnv.alive
        self.turns = type(env).acting is not PopulationEnv.acting
        self.lockstep = self._lockstep and not self.turns
        self.state: Any = None
        self.key = Key(0)
        self.tick = 0  # steps since the simulation began: names the noise
        self.clock = torch.zeros(copies, dtype=torch.int64, device=self.device)
        self._host_clock = 0
        self.timestep: Timestep | None = None

    def reset(self, key: Key) -> Timestep:
        self.key, self.tick, self._host_clock = key, 0, 0
        self.clock = torch.zeros_like(self.clock)
        self.state = self.env.reset(self.ids, key.fold("reset", 0))
        self.timestep = self._begin()
        return self.timestep

    def _begin(self) -> Timestep:
        standing = self.env.standing(self.state)
        if standing is None:
            if self.spec.discrete:
                standing = torch.full_like(self.ids, -1)
            else:
                shape = (*self.ids.shape, self.spec.num_actions)
                standing = torch.full(shape, float("nan"), device=self.device)
        alive = self.env.alive(self.state)
        return self._view(self._zero, standing, self._everyone if alive is None else alive)

    def _view(self, reward: Tensor, action: Tensor, was_alive: Tensor) -> Timestep:
        env, state = self.env, self.state
        alive = env.alive(state)
        alive = self._everyone if alive is None else alive
        done = env.done(state)
        horizon = self.spec.horizon
        if self._lockstep:
            late = horizon is not None and self._host_clock >= horizon
            ended = torch.full((self.copies,), late, device=self.device)
            terminated = self._nobody
            truncated = self._everyone if late else self._nobody
            acting = self._nobody if late else env.acting(state)
            acting = self._everyone if acting is None else acting
        else:
            finished = torch.zeros_like(self.clock, dtype=torch.bool) if done is None else done
            finished = finished | ~alive.any(-1)
            late_copies = torch.zeros_like(finished) if horizon is None else self.clock >= horizon
            ended = finished | late_copies
            terminated = was_alive & (~alive | finished.unsqueeze(-1))
            truncated = (late_copies & ~finished).unsqueeze(-1) & alive
            asked = env.acting(state)
            acting = (alive if asked is None else asked & alive) & ~ended.unsqueeze(-1)
        obs = env.observe(state)
        if self.check:
            self._check(obs, reward)
        self.timestep = Timestep(
            obs=obs,
            reward=reward,
            alive=alive,
            acting=acting,
            legal=env.legal(state),
            action=action,
            terminated=terminated,
            truncated=truncated,
            position=env.position(state),
            step=self.clock,
            ended=ended,
        )
        return self.timestep

    def _check(self, obs: Tensor, reward: Tensor) -> None:
        name = type(self.env).__name__
        expected = (*self.ids.shape, *self.spec.observation_shape)
        if tuple(obs.shape) != expected:
            raise EnvironmentFault(
                f"{name}.observe returned shape {tuple(obs.shape)} at step {self.tick}; "
                f"its spec declares {expected} (copies, agents, observation)."
            )
        if tuple(reward.shape) != tuple(self.ids.shape):
            raise EnvironmentFault(
                f"{name}.step returned rewards of shape {tuple(reward.shape)} at step {self.tick}; "
                f"expected {tuple(self.ids.shape)} (copies, agents)."
            )
        for what, values in (("reward", reward), ("observation", obs)):
            # A sum is not finite if a term is not: one cheap pass; the search runs only on a fault.
            if values.is_floating_point() and not torch.isfinite(values.sum()):
                bad = (~torch.isfinite(values)).nonzero()
                if len(bad):
                    copy, agent = bad[0, :2].tolist()
                    raise NumericFault(
                        f"{name} gave a {what} of {values[tuple(bad[0].tolist())].item()} to agent "
                        f"{self.spec.names[agent]} of copy {copy} at step {self.tick}: {what}s must be finite."
                    )

    def step(self, action: Tensor, acting: Tensor | None = None) -> Timestep:
        """Play one step. `acting` [E, N]: who moves in it, instead of those whom the rules asked."""
        before = self.timestep
        if before is None:
            raise EnvironmentFault("step() was called before reset().")
        if acting is not None:
            before = before._replace(acting=acting)
        if self.check:
            self._check_action(action, before)
        if before.acting is not self._everyone:
            asked = before.acting if self.spec.discrete else before.acting.unsqueeze(-1)
            # Nobody's action in force is -1 or NaN: rules always get a playable one.
            held = before.action.clamp(min=0) if self.spec.discrete else before.action.nan_to_num()
            action = torch.where(asked, action, held)
        self.tick += 1
        self._host_clock += 1
        self.state, reward = self.env.step(self.state, action, self.ids, self.key.fold("step", self.tick))
        self.clock = self.clock + 1
        if before.alive is not self._everyone:
            reward = torch.where(before.alive, reward, self._zero)
        return self._view(reward, action, before.alive)

    def _check_action(self, action: Tensor, before: Timestep) -> None:
        spec = self.spec
        shape = tuple(self.ids.shape) if spec.discrete else (*self.ids.shape, spec.num_actions)
        if tuple(action.shape) != shape:
            raise ConfigError(f"Actions have shape {tuple(action.shape)}; expected {shape} (copies, agents).")
        if spec.discrete:
            low, high = torch.aminmax(torch.where(before.acting, action, 0))
            if int(low) < 0 or int(high) >= spec.num_actions:
                bad = int(low) if int(low) < 0 else int(high)
                raise ConfigError(f"Action {bad} is outside Discrete({spec.num_actions}): expected 0..{spec.num_actions - 1}.")

    def restart(self, timestep: Timestep) -> Timestep:
        if self._lockstep:
            horizon = self.spec.horizon
            if horizon is None or self._host_clock < horizon:
                return timestep
            self._host_clock = 0
        elif not bool(timestep.ended.any()):
            return timestep
        ended = timestep.ended
        fresh = self.env.reset(self.ids, self.key.fold("reset", self.tick))
        if self._lockstep:
            self.state = fresh
        else:
            self.state = type(fresh)(*(_where(ended, new, old) for new, old in zip(fresh, self.state, strict=True)))
        self.clock = torch.where(ended, 0, self.clock)
        begun = self._begin()
        if not self._lockstep:
            begun = begun._replace(
                reward=_where(ended, begun.reward, timestep.reward),
                action=_where(ended, begun.action, timestep.action),
                terminated=timestep.terminated & ~ended.unsqueeze(-1),
                truncated=timestep.truncated & ~ended.unsqueeze(-1),
            )
            self.timestep = begun
        return begun

    def measure(self) -> dict[str, Tensor]:
        return self.env.measure(self.state)

    def render(self, copy: int = 0) -> Tensor | None:
        if type(self.env).render is PopulationEnv.render:
            return None
        return self.env.render(self.state, copy)

    def state_dict(self) -> dict[str, Tensor]:
        assert self.timestep is not None
        state = {f"state.{name}": value for name, value in self.state._asdict().items()}
        last = {
            f"timestep.{name}": value
            for name, value in self.timestep._asdict().items()
            if name in ("reward", "action", "terminated", "truncated", "ended")
        }
        clock = {
            "clock": self.clock,
            "tick": torch.tensor(self.tick),
            "host_clock": torch.tensor(self._host_clock),
            "key": torch.tensor([self.key.value >> 32, self.key.value & 0xFFFFFFFF]),
        }
        return {k: v.detach().clone() for k, v in {**state, **last, **clock}.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> Timestep:
        high, low = state["key"].tolist()
        self.key = Key(high << 32 | low)
        self.tick, self._host_clock = int(state["tick"]), int(state["host_clock"])
        # A state of the right type and shapes, whose values are then replaced.
        self.state = self.env.reset(self.ids, self.key.fold("reset", 0))
        loaded = {}
        for name, fresh in self.state._asdict().items():
            value = state[f"state.{name}"].to(self.device)
            if value.shape != fresh.shape or value.dtype != fresh.dtype:
                raise ConfigError(f"The stored state's {name} is {tuple(value.shape)} {value.dtype}, expected {tuple(fresh.shape)} {fresh.dtype}.")
            loaded[name] = value
        self.state = type(self.state)(**loaded)
        self.clock = state["clock"].to(self.device)
        view = self._view(state["timestep.reward"].to(self.device), state["timestep.action"].to(self.device), self._everyone)
        ending = {name: state[f"timestep.{name}"].to(self.device) for name in ("terminated", "truncated", "ended")}
        self.timestep = view._replace(**ending)
        return self.timestep
