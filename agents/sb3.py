"""PPO, A2C and DQN of stable-baselines3, over a view of the same arrays: every agent of every copy is one sub-environment.

Parameters are shared by all. The library collects, stores and trains by its own code; here are only the view
(`PopulationVecEnv`), the hand-over at reports, and the policy's logits as an energy, so that it is evaluated
like every other agent. What it cannot do: mask illegal actions (such environments are refused), leave out
agents that are dead or not asked to act (they stay sub-environments that see what the environment shows them,
earn nothing and whose choices do nothing), tell one team from another, or have one mind for each agent. DQN tosses
one coin for all sub-environments when it explores, as the library does.

Its global random generators are kept apart from everyone's and restored, and are part of the checkpoint.
"""

from __future__ import annotations

import random as python_random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import gymnasium
import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.learning.agent import Agent, AgentConfig, Discount, Positive, actor_temperature, finite, logits_as_energy
from mfmarl.options import Bounds
from mfmarl.population.simulation import Env
from mfmarl.population.spec import Spec
from mfmarl.population.timestep import Timestep
from mfmarl.random import Key
from mfmarl.registry import register

if TYPE_CHECKING:
    from mfmarl.learning.episode import Episode
    from mfmarl.learning.training import Tally

Whole = Annotated[int, Bounds(0, 1 << 40)]


@dataclass(frozen=True)
class SB3Config(AgentConfig):
    """Options of stable-baselines3's agents."""

    field: str = "nothing"
    """What is felt of the others, appended to the observation."""
    temperature: str = "0"
    """PPO, A2C: the coefficient of the entropy bonus (advantages are normalised, so not in units of reward).
    DQN: the temperature at which its values are played in evaluation."""
    algorithm: Literal["ppo", "a2c", "dqn"] = "ppo"
    """Which of stable-baselines3's algorithms."""
    gamma: Discount = 0.95
    """Discount per step."""
    learning_rate: Annotated[float, Bounds(0.0, 10.0)] = 0.0
    """0: the library's own (PPO 3e-4, A2C 7e-4, DQN 1e-4)."""
    hidden: tuple[Positive, ...] = (64, 64)
    """Hidden layers of policy and value, or of the action values."""
    n_steps: Whole = 0
    """Environment steps between updates of PPO and A2C; 0: 16 for PPO, 5 for A2C."""
    batch_size: Whole = 0
    """Rows per minibatch; 0: a quarter of the rollout for PPO (the library's 64 is 30 times slower here), 256 for DQN."""
    epochs: Positive = 4
    """Passes over each rollout, of PPO."""
    capacity: Positive = 65_536
    """Transitions kept by DQN."""
    warm_up: Positive = 256
    """Transitions that DQN gathers at random before it learns."""
    learn_every: Positive = 1
    """Environment steps between updates of DQN."""
    target_every: Positive = 100
    """Environment steps between copies of DQN's target network."""
    exploration_steps: Positive = 1000
    """Environment steps over which DQN's chance of a random action falls from 1 to 0.05."""


# ----------------------------------------------------------------------------------------------- the view


class PopulationVecEnv(VecEnv):
    """E copies of N agents as E x N sub-environments of stable-baselines3, rows [E x N, O + F].

    An agent's `done` is its own termination or truncation, or the end of its copy. With `value`, the worth of what a
    truncated agent would have seen next is added to its reward here, for all at once; without, `infos` say
    `TimeLimit.truncated` and the library asks row by row.
    """

    def __init__(self, episode: Episode, gamma: float = 0.0, value: Any = None) -> None:
        self.episode, self.gamma, self.value = episode, gamma, value
        self.tally: Tally | None = None
        env = episode.env
        self.copies, self.agents = env.copies, env.spec.num_agents
        self._action: np.ndarray[Any, Any] | None = None
        self._quiet: list[dict[str, Any]] = [{}] * (self.copies * self.agents)
        self._seed: int | None = None
        columns = episode.felt[0].shape[-1] if episode.felt else 0
        super().__init__(self.copies * self.agents, flat_space(env.spec, columns), playable(env.spec))

    def rows(self, timestep: Timestep, felt: Sequence[Tensor]) -> np.ndarray[Any, Any]:
        """What the sub-environments see: [E x N, O + F] float32."""
        obs = flat(timestep.obs.flatten(0, 1), self.episode.env.spec)
        if felt and felt[0].shape[-1]:
            obs = torch.cat([obs, felt[0].flatten(0, 1)], -1)
        rows: np.ndarray[Any, Any] = obs.cpu().numpy()
        return rows

    def reset(self) -> np.ndarray[Any, Any]:
        episode = self.episode
        if self._seed is not None:
            episode.key, self._seed = Key.of(self._seed), None
        episode.begin()
        return self.rows(episode.timestep, episode.felt)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Fix everything that follows the next `reset`."""
        self._seed = seed
        return [seed] * self.num_envs

    def step_async(self, actions: np.ndarray[Any, Any]) -> None:
        self._action = actions

    def step_wait(
        self,
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], list[dict[str, Any]]]:
        episode, spec = self.episode, self.episode.env.spec
        action = torch.as_tensor(self._action, device=episode.env.device).view(self.copies, self.agents, -1)
        before, _, after, now = episode.play(action.squeeze(-1).long() if spec.discrete else action.float())
        if self.tally is not None:
            self.tally.step(before, after)
        over = ((after.terminated | after.truncated) & before.alive) | after.ended.unsqueeze(-1)
        done = over.flatten().cpu().numpy()
        reward, infos = after.reward.flatten().cpu().numpy().copy(), self._quiet
        if done.any():
            last = self.rows(after, now)
            cut = after.truncated.flatten().cpu().numpy()
            if self.value is not None:
                if cut.any():
                    reward[cut] += self.gamma * self.value(last[cut])
            else:
                infos = [
                    {"terminal_observation": last[i], "TimeLimit.truncated": bool(cut[i])} if d else {}
                    for i, d in enumerate(done)
                ]
        episode.go_on(after, now)
        return self.rows(episode.timestep, episode.felt), reward, done, infos

    def close(self) -> None:
        self.episode.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [None] * self.num_envs
        return [getattr(self.episode.env, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"The environment cannot be changed through this view: {attr_name}.")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise AttributeError(f"Sub-environments are rows of one array and have no methods: {method_name}.")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def vec_env(env: Env, seed: int = 0) -> PopulationVecEnv:
    """A view of an environment for stable-baselines3 used directly, e.g. `PPO("MlpPolicy", vec_env(env))`."""
    from mfmarl.learning.episode import Episode

    return PopulationVecEnv(Episode(env, [], Key.of(seed)))


class _Choices(gymnasium.spaces.Discrete):
    """Discrete actions drawn by numpy's global generator, which the library's other draws use too."""

    def sample(self, mask: Any = None, probability: Any = None) -> np.int64:
        return np.int64(np.random.randint(self.n))


def playable(spec: Spec) -> gymnasium.Space[Any]:
    return _Choices(spec.num_actions) if spec.discrete else spec.action_space


def flat_space(spec: Spec, columns: int) -> gymnasium.spaces.Box:
    """Observation and field in one row."""
    size = int(getattr(spec.observation_space, "n", 0)) or int(torch.Size(spec.observation_shape).numel())
    return gymnasium.spaces.Box(-np.inf, np.inf, (size + columns,), np.float32)


def flat(obs: Tensor, spec: Spec) -> Tensor:
    """[B, *O] -> [B, O] float32; classes become one-hot."""
    classes = int(getattr(spec.observation_space, "n", 0))
    if classes:
        return torch.nn.functional.one_hot(obs, classes).float()
    return obs.flatten(1).float()


# ------------------------------------------------------------------------------------ the library's own state


class _Spaces(VecEnv):
    """The spaces alone: what the library needs to make a policy."""

    def __init__(self, spec: Spec, columns: int) -> None:
        super().__init__(1, flat_space(spec, columns), playable(spec))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None]

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        return [seed]

    def _never(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("There is nothing to play here.")

    reset = step_async = step_wait = close = set_attr = env_method = env_is_wrapped = _never


class _Rollout(RolloutBuffer):
    """The library's rollout, which may be left half full and gone on with."""

    def reset(self) -> None:
        if self.pos == 0 or self.full:
            super().reset()


class Globals:
    """torch's and numpy's global generators as the library left them; everyone else's are put back afterwards."""

    def __init__(self, seed: int) -> None:
        self.torch = torch.Generator().manual_seed(seed).get_state()
        self.numpy: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state()

    @contextmanager
    def lent(self) -> Iterator[None]:
        theirs = torch.get_rng_state(), np.random.get_state(), python_random.getstate()
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        try:
            yield
        finally:
            self.torch, self.numpy = torch.get_rng_state(), np.random.get_state()
            torch.set_rng_state(theirs[0])
            np.random.set_state(theirs[1])
            python_random.setstate(theirs[2])


# ruff: noqa: NPY002 - the library draws from the global generators, which is why they are lent to it.
_ROLLOUT = ("observations", "actions", "rewards", "values", "log_probs", "episode_starts")
_REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Past:
    """What the library has gathered and counted, as tensors: the part of its state that is not weights."""

    def __init__(self, agent: SB3) -> None:
        self.agent = agent
        self.waiting: dict[str, Tensor] = {}  # loaded before there was an environment to load it for

    def state_dict(self) -> dict[str, Tensor]:
        agent, algorithm = self.agent, self.agent.algorithm
        if algorithm is None:
            return dict(self.waiting)
        _, keys, position, *_ = agent.globals.numpy
        buffer, columns = _buffer(algorithm)
        rows = len(buffer.rewards) if buffer.full else buffer.pos
        state = {f"column.{name}": torch.as_tensor(getattr(buffer, name)[:rows]).clone() for name in columns}
        if isinstance(buffer, RolloutBuffer) and buffer.full:
            state = {}  # learned from already
        counts = [
            algorithm.num_timesteps,
            algorithm._n_updates,
            getattr(algorithm, "_n_calls", 0),
            buffer.pos,
            int(buffer.full),
        ]
        return {
            **state,
            "counts": torch.tensor(counts),
            "starts": torch.as_tensor(algorithm._last_episode_starts).clone(),
            "torch": agent.globals.torch,
            "numpy": torch.as_tensor(np.append(keys.astype(np.int64), position)),
        }

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        self.agent.algorithm, self.waiting = None, {name: value.cpu() for name, value in state.items()}

    def restore(self, algorithm: Any) -> None:
        """Hand what was loaded to the library, made anew."""
        state = self.waiting
        if not state:
            return
        numbers = state["numpy"].numpy()
        self.agent.globals.torch = state["torch"]
        self.agent.globals.numpy = ("MT19937", numbers[:-1].astype(np.uint32), int(numbers[-1]), 0, 0.0)
        steps, updates, calls, position, is_full = state["counts"].tolist()
        algorithm.num_timesteps, algorithm._n_updates = steps, updates
        if isinstance(algorithm, DQN):
            algorithm._n_calls, algorithm.exploration_rate = calls, algorithm.exploration_schedule(0.0)
        algorithm._last_episode_starts = state["starts"].numpy()
        buffer, columns = _buffer(algorithm)
        for name in columns:
            if f"column.{name}" in state:
                part = state[f"column.{name}"].numpy()
                getattr(buffer, name)[: len(part)] = part
        buffer.pos, buffer.full = position, bool(is_full)
        self.waiting = {}


def _buffer(algorithm: Any) -> tuple[Any, tuple[str, ...]]:
    if isinstance(algorithm, DQN):
        return algorithm.replay_buffer, _REPLAY
    return algorithm.rollout_buffer, _ROLLOUT


# ---------------------------------------------------------------------------------------------- the agent


@register("sb3")
class SB3(Agent):
    """PPO, A2C or DQN of stable-baselines3, with shared parameters."""

    Config = SB3Config
    memory = "self"

    def __init__(self, config: SB3Config, spec: Spec, slots: slice, minds: int, key: Key) -> None:
        if minds != 1:
            raise ConfigError("sb3 has one policy for all its agents: use --sharing all or group.")
        if config.algorithm == "dqn" and not spec.discrete:
            raise ConfigError(
                f"DQN needs discrete actions, and this environment's are {spec.action_space}; try --algorithm ppo."
            )
        super().__init__(config, spec, slots, minds, key)
        if self.schedule.kind != "constant":
            raise ConfigError(f"sb3 needs a constant temperature, not {self.schedule}.")
        self.globals = Globals(random.seed_for(key.fold("library")))
        with self.globals.lent():
            self.policy = self._make(_Spaces(spec, self.field_size), torch.device("cpu")).policy
        # The library clips gradients, NaN ones too, and takes every step: none is taken of what is no number.
        self.policy.optimizer.register_step_pre_hook(_refuse_step)
        self.algorithm: Any = None
        self.past = Past(self)

    def _make(self, view: VecEnv, device: torch.device) -> Any:
        config: SB3Config = self.config
        rate = {"learning_rate": config.learning_rate} if config.learning_rate else {}
        shared: dict[str, Any] = {
            **rate, "gamma": config.gamma, "device": device, "policy_kwargs": {"net_arch": list(config.hidden)},
        }  # fmt: skip
        if config.algorithm == "dqn":
            return DQN(
                "MlpPolicy", view, **shared,
                buffer_size=config.capacity, learning_starts=config.warm_up, batch_size=config.batch_size or 256,
                target_update_interval=config.target_every * view.num_envs,
            )  # fmt: skip
        coefficient = self.schedule.start
        if config.algorithm == "a2c":
            return A2C(
                "MlpPolicy", view, **shared,
                n_steps=config.n_steps or 5, ent_coef=coefficient, rollout_buffer_class=_Rollout,
            )  # fmt: skip
        steps = max(config.n_steps or 16, 2 if view.num_envs == 1 else 1)
        batch = config.batch_size or max(2, -(-steps * view.num_envs // 4))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")  # the last one may be smaller
            return PPO(
                "MlpPolicy", view, **shared,
                n_steps=steps, batch_size=batch, n_epochs=config.epochs, ent_coef=coefficient,
                rollout_buffer_class=_Rollout,
            )  # fmt: skip

    # ---------------------------------------------------------------------------------------- acting

    @property
    def temperature(self) -> float | Tensor:
        return super().temperature if self.config.algorithm == "dqn" else actor_temperature(super().temperature)

    def _out(self, obs: Tensor, field: Tensor) -> Tensor:
        rows = torch.cat([flat(obs[0], self.spec), field[0]], -1)
        policy: Any = self.policy
        if self.config.algorithm == "dqn":
            return policy.q_net(rows).unsqueeze(0)
        features = policy.extract_features(rows, policy.pi_features_extractor)
        return policy.action_net(policy.mlp_extractor.forward_actor(features)).unsqueeze(0)

    def energy(self, obs: Tensor, field: Tensor) -> Tensor:
        """-Q of DQN; of PPO and A2C, the policy's logits in units of the temperature."""
        if not self.spec.discrete:
            raise ConfigError("A Box of actions has no list of energies: sb3 draws from a Gaussian there.")
        out = self._out(obs, field)
        return -out if self.config.algorithm == "dqn" else logits_as_energy(out, self.temperature)

    def choose(self, obs: Tensor, field: Tensor, legal: Tensor | None, ids: Tensor, key: Key) -> Tensor:
        if self.spec.discrete:
            return super().choose(obs, field, legal, ids, key)
        mean, space = self._out(obs, field), self.spec.action_space
        action = mean + self.policy.log_std.exp() * random.normal(key, ids, mean.shape[-1])
        low, high = (torch.as_tensor(x, device=mean.device).flatten() for x in (space.low, space.high))  # type: ignore[attr-defined]
        return torch.minimum(torch.maximum(action, low), high)

    # -------------------------------------------------------------------------------------- learning

    def advance(self, episode: Episode, steps: int, tally: Tally, numbers: dict[str, list[Tensor]]) -> None:
        """Let the library play and learn for `steps` environment steps, adding to the tally and the numbers.

        Raises ConfigError for an environment it cannot play, NotFinite if it diverged.
        """
        if episode.timestep.legal is not None:
            raise ConfigError(
                "stable-baselines3 cannot mask illegal actions, which this environment has: use mfq, mfac or mfppo."
            )
        algorithm = self.algorithm or self._begin(episode)
        view: PopulationVecEnv = algorithm.env
        view.tally = tally
        play = self._play_replay if isinstance(algorithm, DQN) else self._play_rollout
        stride = max(1, steps // 20)
        with self.globals.lent():
            for done in range(0, steps, stride):
                play(algorithm, view, min(stride, steps - done), episode.players[0].name, numbers)
                tally.measures(episode.env.measure())

    def _begin(self, episode: Episode) -> Any:
        device = next(self.policy.parameters()).device
        view = PopulationVecEnv(episode, self.config.gamma)
        with self.globals.lent():
            algorithm = self._make(view, device)
        algorithm.policy = self.policy
        if isinstance(algorithm, DQN):
            algorithm._create_aliases()
            algorithm.exploration_schedule = lambda _: max(
                0.05, 1 - 0.95 * episode.tick / self.config.exploration_steps
            )
        else:

            def value(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
                with torch.no_grad():
                    worth = algorithm.policy.predict_values(torch.as_tensor(rows, device=device))
                return worth.flatten().cpu().numpy()

            view.value = value
        # It goes on where the episode is, and does not begin one.
        algorithm._last_obs = view.rows(episode.timestep, episode.felt)
        algorithm._last_episode_starts = np.ones(view.num_envs, dtype=bool)
        algorithm.set_logger(Logger(None, []))  # its own would make a folder
        self.past.restore(algorithm)
        self.algorithm = algorithm
        return algorithm

    def _play_rollout(
        self, algorithm: Any, view: VecEnv, steps: int, name: str, numbers: dict[str, list[Tensor]]
    ) -> None:
        _, callback = algorithm._setup_learn(1, None, reset_num_timesteps=False)
        buffer = algorithm.rollout_buffer
        while steps:
            held = 0 if buffer.full else buffer.pos
            part = min(steps, algorithm.n_steps - held)
            algorithm.collect_rollouts(view, callback, buffer, n_rollout_steps=part)
            steps -= part
            if buffer.full:
                algorithm.train()
                self._note(algorithm, name, numbers)

    def _play_replay(
        self, algorithm: Any, view: VecEnv, steps: int, name: str, numbers: dict[str, list[Tensor]]
    ) -> None:
        _, callback = algorithm._setup_learn(1, None, reset_num_timesteps=False)
        once = TrainFreq(1, TrainFrequencyUnit.STEP)
        for _ in range(steps):
            algorithm.collect_rollouts(
                view,
                callback,
                once,
                algorithm.replay_buffer,
                learning_starts=algorithm.learning_starts,
                log_interval=None,
            )
            due = algorithm.num_timesteps // view.num_envs % self.config.learn_every == 0
            if due and algorithm.num_timesteps > algorithm.learning_starts:
                algorithm.train(batch_size=algorithm.batch_size, gradient_steps=1)
                self._note(algorithm, name, numbers)

    def _note(self, algorithm: Any, name: str, numbers: dict[str, list[Tensor]]) -> None:
        """The library's own numbers, under the names that all agents use."""
        found = algorithm.logger.name_to_value
        for theirs, ours, sign in (
            ("train/value_loss", "loss", 1),
            ("train/loss", "loss", 1),
            ("train/entropy_loss", "entropy", -1),
        ):
            if theirs in found and not (ours == "loss" and theirs == "train/loss" and "train/value_loss" in found):
                value = float(found[theirs])
                finite(torch.tensor(value), f"{ours} of stable-baselines3")
                numbers.setdefault(f"{name}/{ours}", []).append(torch.tensor(sign * value))
        found.clear()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"policy": self.policy.optimizer}


def _refuse_step(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """Raises NotFinite before a step down a gradient that is not a number."""
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    finite(torch.stack(torch._foreach_norm(gradients)).sum(), "norm of the gradient of stable-baselines3")
