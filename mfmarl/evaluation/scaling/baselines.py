"""A peer as people write it: PettingZoo's parallel loop, with one small network and one learner for each agent.

Independent PPO (rollouts of 16 steps, four passes over each) or independent DQN (one batch of 32 from a replay of
10,000 a step), 64-64, on the environment that ours is measured on, at the same size. Everything about an agent is a Python
loop: acting, remembering, learning. It draws from the libraries' own generators, as such code does.

The other baselines need no code of their own: stable-baselines3 is the agent `sb3` (each agent a sub-environment of one
vector environment), and stacked learners are `iql` and `ippo` with a mind for each agent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from mfmarl.errors import ConfigError
from mfmarl.evaluation.scaling.measure import Runner, TooSlow, sized
from mfmarl.evaluation.scaling.points import Plan, Point
from mfmarl.population.pettingzoo_out import open_face

ROLLOUT, EPOCHS, CLIP, GAMMA, LAMBDA, RATE = 16, 4, 0.2, 0.95, 0.95, 1e-3
BATCH, CAPACITY, FOLLOW, EXPLORE = 32, 10_000, 100, 0.1
HIDDEN = 64


class Learner(Protocol):
    """One agent of the loop. `path` numbers the copies, whose stories it keeps apart."""

    num_weights: int

    def act(self, obs: np.ndarray, mask: np.ndarray | None, path: int) -> Any: ...

    def remember(self, reward: float, obs: np.ndarray, terminated: bool, over: bool, path: int) -> None: ...

    def learn(self) -> None: ...


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)
    )


def size_of(space: gymnasium.Space[Any]) -> int:
    """Inputs of a network that sees it. Raises ConfigError for a space that is neither a Box nor Discrete."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gymnasium.spaces.Box):
        return math.prod(space.shape)
    raise ConfigError(f"The plain loop sees a Box or a Discrete space, not {space}.")


def seen(obs: Any, space: gymnasium.Space[Any]) -> np.ndarray:
    """One observation as a row of float32."""
    if isinstance(space, gymnasium.spaces.Discrete):
        row = np.zeros(int(space.n), np.float32)
        row[int(obs) - int(space.start)] = 1.0
        return row
    return np.asarray(obs, np.float32).reshape(-1)


class PPO:
    """Clipped policy gradient from one agent's own rollouts; a Gaussian where actions are a Box."""

    def __init__(self, seen: gymnasium.Space[Any], chosen: gymnasium.Space[Any], copies: int, number: int) -> None:
        inputs = size_of(seen)
        self.space, self.discrete = chosen, isinstance(chosen, gymnasium.spaces.Discrete)
        outputs = size_of(chosen)
        self.actor, self.critic = network(inputs, outputs), network(inputs, 1)
        self.log_std = nn.Parameter(torch.zeros(outputs))
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        if not self.discrete:
            self.parameters.append(self.log_std)
        self.num_weights = sum(p.numel() for p in self.parameters)
        self.optimiser = torch.optim.Adam(self.parameters, RATE)
        self.paths: list[list[dict[str, Any]]] = [[] for _ in range(copies)]

    def law(self, obs: Tensor, mask: Tensor | None) -> torch.distributions.Distribution:
        out = self.actor(obs)
        if not self.discrete:
            return torch.distributions.Independent(torch.distributions.Normal(out, self.log_std.exp()), 1)
        return torch.distributions.Categorical(logits=out if mask is None else out.masked_fill(~mask, -1e9))

    @torch.no_grad()
    def act(self, obs: np.ndarray, mask: np.ndarray | None, path: int) -> Any:
        row, legal = torch.from_numpy(obs), None if mask is None else torch.from_numpy(mask.astype(bool))
        law = self.law(row, legal)
        action = law.sample()
        step = {"obs": row, "mask": legal, "action": action, "log_p": law.log_prob(action), "value": self.critic(row)}
        self.paths[path].append(step)
        if isinstance(self.space, gymnasium.spaces.Box):
            return np.clip(action.numpy().reshape(self.space.shape), self.space.low, self.space.high)
        return int(action)

    def remember(self, reward: float, obs: np.ndarray, terminated: bool, over: bool, path: int) -> None:
        self.paths[path][-1].update(reward=reward, next_obs=obs, terminated=terminated, over=over)

    def learn(self) -> None:
        steps = [step for path in self.paths for step in path]
        if not steps:
            return
        advantage = [a for path in self.paths for a in self.advantages(path)]
        obs, action = torch.stack([s["obs"] for s in steps]), torch.stack([s["action"] for s in steps])
        masks = [s["mask"] for s in steps]
        mask = None if masks[0] is None else torch.stack(masks)
        old, gain = torch.stack([s["log_p"] for s in steps]), torch.tensor(advantage)
        returns = gain + torch.cat([s["value"] for s in steps])
        if len(gain) > 1:
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        for _ in range(EPOCHS):
            law = self.law(obs, mask)
            ratio = (law.log_prob(action) - old).exp()
            clipped = torch.min(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean()
            error = (self.critic(obs).squeeze(-1) - returns).square().mean()
            self.optimiser.zero_grad(set_to_none=True)
            (0.5 * error - clipped - 0.01 * law.entropy().mean()).backward()
            nn.utils.clip_grad_norm_(self.parameters, 0.5)
            self.optimiser.step()
        self.paths = [[] for _ in self.paths]

    @torch.no_grad()
    def advantages(self, path: Sequence[dict[str, Any]]) -> list[float]:
        found: list[float] = []
        following = running = 0.0
        for i in reversed(range(len(path))):
            step = path[i]
            if step["over"] or i == len(path) - 1:
                running = 0.0
                following = 0.0 if step["terminated"] else float(self.critic(torch.from_numpy(step["next_obs"])))
            value = float(step["value"])
            running = step["reward"] + GAMMA * following - value + GAMMA * LAMBDA * running
            following = value
            found.append(running)
        return found[::-1]


class DQN:
    """Q-learning with a replay and a target network of one agent's own."""

    def __init__(self, seen: gymnasium.Space[Any], chosen: gymnasium.Space[Any], copies: int, number: int) -> None:
        if not isinstance(chosen, gymnasium.spaces.Discrete):
            raise ConfigError(f"DQN needs discrete actions, not {chosen}.")
        inputs, self.actions = size_of(seen), int(chosen.n)
        self.values, self.target = network(inputs, self.actions), network(inputs, self.actions)
        self.target.load_state_dict(self.values.state_dict())
        self.num_weights = sum(p.numel() for p in self.values.parameters())
        self.optimiser = torch.optim.Adam(self.values.parameters(), RATE)
        # Full, not empty: a replay fills as a run goes on, and is weighed as it will be.
        self.obs = np.full((CAPACITY, inputs), 0.0, np.float32)
        self.next_obs = np.full((CAPACITY, inputs), 0.0, np.float32)
        self.action, self.reward = np.full(CAPACITY, 0, np.int64), np.full(CAPACITY, 0.0, np.float32)
        self.terminated = np.full(CAPACITY, False)
        self.added = self.updates = 0
        self.last: list[tuple[np.ndarray, int]] = [(np.zeros(inputs, np.float32), 0)] * copies
        self.draw = np.random.default_rng(number)

    @torch.no_grad()
    def act(self, obs: np.ndarray, mask: np.ndarray | None, path: int) -> int:
        if self.draw.random() < EXPLORE:
            legal = np.arange(self.actions) if mask is None else np.flatnonzero(mask)
            action = int(self.draw.choice(legal))
        else:
            values = self.values(torch.from_numpy(obs))
            if mask is not None:
                values = values.masked_fill(~torch.from_numpy(mask.astype(bool)), -1e9)
            action = int(values.argmax())
        self.last[path] = (obs, action)
        return action

    def remember(self, reward: float, obs: np.ndarray, terminated: bool, over: bool, path: int) -> None:
        at = self.added % CAPACITY
        self.obs[at], self.action[at] = self.last[path]
        self.reward[at], self.next_obs[at], self.terminated[at] = reward, obs, terminated
        self.added += 1

    def learn(self) -> None:
        if self.added < BATCH:
            return
        rows = self.draw.integers(0, min(self.added, CAPACITY), BATCH)
        with torch.no_grad():
            best = self.target(torch.from_numpy(self.next_obs[rows])).max(-1).values
            left = torch.from_numpy(~self.terminated[rows])
            goal = torch.from_numpy(self.reward[rows]) + GAMMA * left * best
        value = self.values(torch.from_numpy(self.obs[rows])).gather(-1, torch.from_numpy(self.action[rows])[:, None])
        self.optimiser.zero_grad(set_to_none=True)
        nn.functional.mse_loss(value.squeeze(-1), goal).backward()
        self.optimiser.step()
        self.updates += 1
        if self.updates % FOLLOW == 0:
            self.target.load_state_dict(self.values.state_dict())


LEARNERS: dict[str, Callable[[gymnasium.Space[Any], gymnasium.Space[Any], int, int], Learner]] = {
    "ppo": PPO,
    "dqn": DQN,
}


class Loop:
    """The loop itself, over the copies one after the other."""

    def __init__(self, envs: Sequence[Any], learner: str, deadline: float = math.inf) -> None:
        self.envs, self.deadline, self.tick = envs, deadline, 0
        self.every = ROLLOUT if learner == "ppo" else 1
        first = envs[0]
        self.names = list(first.possible_agents)
        self.spaces = {name: first.observation_space(name) for name in self.names}
        self.learners: dict[str, Learner] = {}
        for number, name in enumerate(self.names):
            self.watch(f"making {len(self.names)} learners, one for each agent,")
            self.learners[name] = LEARNERS[learner](self.spaces[name], first.action_space(name), len(envs), number)
        self.now = [env.reset(seed=copy) for copy, env in enumerate(envs)]
        self.reward = 0.0

    def watch(self, what: str) -> None:
        if time.monotonic() > self.deadline:
            raise TooSlow(f"In a loop over agents {what} took all the time for this point.")

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            for copy, env in enumerate(self.envs):
                self.play(copy, env)
            self.tick += 1
            if self.tick % self.every == 0:
                for learner in self.learners.values():
                    self.watch(f"{self.tick} steps")
                    learner.learn()

    def play(self, copy: int, env: Any) -> None:
        observations, infos = self.now[copy]
        actions = {}
        for name in env.agents:
            mask = infos[name].get("action_mask")
            actions[name] = self.learners[name].act(seen(observations[name], self.spaces[name]), mask, copy)
        self.watch(f"{self.tick} steps")
        observations, rewards, terminations, truncations, infos = env.step(actions)
        for name in actions:
            over = terminations[name] or truncations[name]
            row = seen(observations[name], self.spaces[name])
            self.learners[name].remember(rewards[name], row, terminations[name], over, copy)
            self.reward += rewards[name]
        self.now[copy] = (observations, infos) if env.agents else env.reset()


def loop(point: Point, plan: Plan, deadline: float = math.inf) -> Runner:
    """The plain loop at a point of a sweep, `point.agent` (`ppo` or `dqn`) learning.

    Raises ConfigError for an environment that it cannot play, TooSlow past the deadline.
    """
    environment, _ = sized(plan.environment, point.num_agents, point.varied)
    envs = [open_face("parallel", environment.name, **environment.options) for _ in range(point.copies)]
    played = Loop(envs, point.agent, deadline)

    def warm() -> None:
        played.advance(played.every)
        if played.every == 1:
            played.advance(-(-BATCH // point.copies))

    def close() -> None:
        for env in envs:
            env.close()

    return Runner(
        played.advance,
        played.every,
        warm,
        lambda: played.tick,
        len(played.names),
        sum(learner.num_weights for learner in played.learners.values()),
        torch.device("cpu"),
        lambda steps: {},
        close,
    )
