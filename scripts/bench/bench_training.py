"""How fast training is, beside what one would use instead. Ratios within one process, CPU-seconds of one core.

    python scripts/bench/bench_training.py                  everything, about three minutes
    python scripts/bench/bench_training.py ppo sample       some of: ppo sample mfq minds scale
    python scripts/bench/bench_training.py ppo --supersuit /path/to/python    also SB3 through SuperSuit
    python scripts/bench/bench_training.py mfq --xuance /path/to/python       also XuanCe's MF-Q

The game: 8 observations, 4 actions, pay = the observation that the action names; a policy of 64-64 and a value of
64-64, 4 epochs of 4 minibatches over rollouts of 16 steps, equal for all. Agents are independent learners here
(no field), as the peers are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.learning.players import make_players
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.training import Training
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.graph import Graph
from mfmarl.population.simulation import Simulation
from mfmarl.population.spec import Spec
from mfmarl.random import Key

torch.set_num_threads(1)

SHIFT = tuple(0.137 * (k + 1) for k in range(8))
STEPS = 16
SEEN, CHOICE = gymnasium.spaces.Box(-1.0, 1.0, (8,)), gymnasium.spaces.Discrete(4)


class State(NamedTuple):
    x: Tensor  # [E, N, 8]


@dataclass(frozen=True)
class Signals(PopulationEnv):
    """Eight signals that wander over [-1, 1]; the first four are what the four actions pay."""

    num_agents: int = 1000
    ring: bool = False

    def spec(self) -> Spec:
        graph = Graph.torus_of((self.num_agents,)) if self.ring else None
        return Spec(self.num_agents, SEEN, CHOICE, graph=graph)

    def reset(self, ids: Tensor, key: Key) -> State:
        return State(2 * random.uniform(key, ids, 8) - 1)

    def observe(self, state: State) -> Tensor:
        return state.x

    def step(self, state: State, action: Tensor, ids: Tensor, key: Key) -> tuple[State, Tensor]:
        x = state.x
        pay = x.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        moved = x * 1.7 + torch.tensor(SHIFT)
        return State(moved - 2 * torch.round(moved / 2)), pay


def begin(
    agents: int, agent: str, options: dict[str, Any], copies: int = 1, ring: bool = False, sharing: str = "all"
) -> Training:
    settings = RunOptions(steps=10**9, copies=copies, sharing=sharing)  # type: ignore[arg-type]
    env = Simulation(Signals(agents, ring), copies)
    players = make_players(
        RunConfig(Choice("signals"), {"all": Choice(agent, options)}, settings), env.spec, Key.of(0), env.device
    )
    return Training(env, players, settings)


def equal(**options: Any) -> dict[str, Any]:
    """What everyone's PPO here has in common."""
    return {
        "rollout": STEPS, "epochs": 4, "minibatches": 4, "learning_rate": 1e-3, "gamma": 0.95, "lam": 0.95,
        "temperature": "0", "activation": "tanh", "remember": 0, **options,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- peers


class ArrayEnv:
    """The same game by hand, on numpy arrays."""

    def __init__(self, agents: int) -> None:
        self.x = np.random.default_rng(0).uniform(-1, 1, (agents, 8)).astype(np.float32)
        self.rows, self.shift = np.arange(agents), np.array(SHIFT, np.float32)

    def step(self, action: np.ndarray) -> np.ndarray:
        pay = self.x[self.rows, action]
        moved = self.x * np.float32(1.7) + self.shift
        self.x = np.asarray(moved - 2 * np.round(moved / 2), np.float32)
        return pay


def hand_written(agents: int) -> Callable[[], float]:
    """A single-file PPO as one would write it for arrays; returns one rollout with its learning, giving its mean pay."""
    torch.manual_seed(0)  # noqa: TID251 - a peer

    def network(outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))

    env, actor, critic = ArrayEnv(agents), network(4), network(1)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimiser = torch.optim.Adam(parameters, 1e-3, eps=1e-5)
    rows = STEPS * agents

    def rollout() -> float:
        obs, action = torch.zeros(STEPS, agents, 8), torch.zeros(STEPS, agents, dtype=torch.long)
        log_p, reward, value = torch.zeros(STEPS, agents), torch.zeros(STEPS, agents), torch.zeros(STEPS + 1, agents)
        with torch.no_grad():
            for t in range(STEPS):
                obs[t] = torch.from_numpy(env.x)
                logits = actor(obs[t])
                # Gumbel's trick: torch's own multinomial is dearer than the network.
                action[t] = (logits - torch.log(-torch.log(torch.rand_like(logits)))).argmax(-1)
                log_p[t] = torch.log_softmax(logits, -1).gather(-1, action[t].unsqueeze(-1)).squeeze(-1)
                value[t] = critic(obs[t]).squeeze(-1)
                reward[t] = torch.from_numpy(env.step(action[t].numpy()))
            value[STEPS] = critic(torch.from_numpy(env.x)).squeeze(-1)
            advantage, running = torch.zeros(STEPS, agents), torch.zeros(agents)
            for t in reversed(range(STEPS)):
                running = reward[t] + 0.95 * value[t + 1] - value[t] + 0.95 * 0.95 * running
                advantage[t] = running
            returns = (advantage + value[:-1]).view(rows)
        x, a, old, adv = obs.view(rows, 8), action.view(rows), log_p.view(rows), advantage.view(rows)
        for _ in range(4):
            for part in torch.randperm(rows).chunk(4):
                new = torch.log_softmax(actor(x[part]), -1)
                entropy = -(new.exp() * new).sum(-1).mean()
                ratio = (new.gather(-1, a[part].unsqueeze(-1)).squeeze(-1) - old[part]).exp()
                scaled = (adv[part] - adv[part].mean()) / (adv[part].std() + 1e-8)
                gain = torch.min(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled).mean()
                error = (critic(x[part]).squeeze(-1) - returns[part]).square().mean()
                optimiser.zero_grad(set_to_none=True)
                (0.5 * error - gain - 0.0 * entropy).backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimiser.step()
        return float(reward.mean())

    return rollout


def sb3(agents: int) -> Callable[[], float]:
    """PPO of stable-baselines3 over a hand-written VecEnv on the same arrays: one rollout with its learning."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecEnv

    class Vec(VecEnv):
        def __init__(self) -> None:
            self.game, self.paid = ArrayEnv(agents), [0.0]
            self.quiet: list[dict[str, Any]] = [{}] * agents
            self.no = np.zeros(agents, bool)
            super().__init__(agents, SEEN, CHOICE)

        def reset(self) -> np.ndarray:
            return self.game.x

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            pay = self.game.step(self.actions)
            self.paid.append(float(pay.mean()))
            return self.game.x, pay, self.no, self.quiet

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * agents

        def close(self) -> None: ...
        def set_attr(self, *arguments: Any, **options: Any) -> None: ...
        def env_method(self, *arguments: Any, **options: Any) -> list[Any]:
            return []

        def env_is_wrapped(self, *arguments: Any, **options: Any) -> list[bool]:
            return [False] * agents

    env = Vec()
    model = PPO(
        "MlpPolicy", env, n_steps=STEPS, batch_size=STEPS * agents // 4, n_epochs=4, learning_rate=1e-3, gamma=0.95,
        policy_kwargs={"net_arch": [64, 64]}, device="cpu", seed=0,
    )  # fmt: skip

    def rollout() -> float:
        env.paid.clear()
        model.learn(STEPS * agents, reset_num_timesteps=False)
        return float(np.mean(env.paid))

    return rollout


def ours(training: Training) -> Callable[[], float]:
    def rollout() -> float:
        training.tally.clear()
        for _ in range(STEPS):
            training.step()
        return training.tally.means("train")["train/reward"]

    return rollout


# ------------------------------------------------------------------------------------------- measuring


def race(runners: dict[str, Callable[[], float]], agents: int, rounds: int, warm: int = 2) -> dict[str, float]:
    """Agent-steps per CPU-second of each, in turns: the best of the rounds, which others' load disturbs least."""
    best = dict.fromkeys(runners, float("inf"))
    for turn in range(warm + rounds):
        for name, runner in runners.items():
            start = time.process_time()
            runner()
            if turn >= warm:
                best[name] = min(best[name], time.process_time() - start)
    return {name: STEPS * agents / seconds for name, seconds in best.items()}


def show(title: str, speeds: dict[str, float], base: str) -> None:
    print(f"\n{title}")
    for name, speed in speeds.items():
        print(f"  {name:<44}{speed / 1e3:>10.1f} k agent-steps/CPU-s   {speed / speeds[base]:>6.2f} x")


def bench_ppo(python: str) -> dict[str, float]:
    agents = 1000
    runners = {
        "stable-baselines3 on arrays": sb3(agents),
        "hand-written": hand_written(agents),
        "ippo (tanh, as the others)": ours(begin(agents, "ippo", equal())),
        "ippo (relu, the default)": ours(begin(agents, "ippo", equal(activation="relu"))),
        "mfppo on a ring (tanh)": ours(begin(agents, "mfppo", equal(), ring=True)),
    }
    speeds = race(runners, agents, 12)
    if python:
        speeds["stable-baselines3 through SuperSuit"] = peer(python, "peer_supersuit.py", str(agents))
    base = "stable-baselines3 through SuperSuit" if python else "stable-baselines3 on arrays"
    show(f"PPO, {agents} agents, learning from all", speeds, base)
    return {f"ppo/{k}": v for k, v in speeds.items()}


def bench_sample() -> dict[str, float]:
    agents, rollouts, last = 10_000, 25, 5
    runners = {
        "stable-baselines3 on arrays": sb3(agents),
        "ippo, learning from 400": ours(begin(agents, "ippo", equal(remember=400))),
        "ippo, learning from 200": ours(begin(agents, "ippo", equal(remember=200))),
        "ippo, learning from 100": ours(begin(agents, "ippo", equal(remember=100))),
    }
    best, pay = dict.fromkeys(runners, float("inf")), {name: list[float]() for name in runners}
    for _ in range(rollouts):
        for name, runner in runners.items():
            start = time.process_time()
            pay[name].append(runner())
            best[name] = min(best[name], time.process_time() - start)
    speeds = {name: STEPS * agents / seconds for name, seconds in best.items()}
    show(f"PPO, {agents} agents, learning from a sample", speeds, "stable-baselines3 on arrays")
    print(f"  pay by environment step (the best possible is 0.6), and over the last {last * STEPS}:")
    finals = {name: sum(values[-last:]) / last for name, values in pay.items()}
    for name, values in pay.items():
        marks = ", ".join(f"{values[i]:.3f}" for i in (0, 4, 9, 14, 19, 24))
        print(f"    {name:<42} steps 16..400: {marks}   last: {finals[name]:.3f}")
    return {f"sample/{k}": v for k, v in speeds.items()} | {f"sample/pay/{k}": v for k, v in finals.items()}


def bench_mfq(python: str) -> dict[str, float]:
    agents = 1000
    table = {"values": "table", "bins": 2, "field": "moments(1) over neighbours"}
    runners = {
        "mfq on a ring, one update a step": ours(begin(agents, "mfq", {}, ring=True)),
        "mfq of everyone, one update a step": ours(begin(agents, "mfq", {})),
        "iql, one update a step": ours(begin(agents, "iql", {})),
        "mfac on a ring, one update a step": ours(begin(agents, "mfac", {}, ring=True)),
        "mfq on a ring, a table (2 bins)": ours(begin(agents, "mfq", table, ring=True)),
        "random": ours(begin(agents, "random", {})),
    }
    speeds, base = race(runners, agents, 12), "mfq on a ring, one update a step"
    if python:
        speeds |= {
            "XuanCe's MF-Q, an update a step": peer(python, "peer_xuance.py", str(agents)),
            "XuanCe's MF-Q, batches as shipped": peer(
                python, "peer_xuance.py", str(agents), "--batch", "256", "--every", "25", "--steps", "50"
            ),
        }
        base = "XuanCe's MF-Q, an update a step"
    show(f"Mean-field Q-learning, {agents} agents", speeds, base)
    return {f"mfq/{k}": v for k, v in speeds.items()}


def bench_minds() -> dict[str, float]:
    """A mind for each of 1,000 agents: 16 copies of the game, so that each has 16 rows a step."""
    agents, copies = 1000, 4
    options = equal(activation="relu", minibatches=1)
    stacked = ours(begin(agents, "ippo", options, copies, sharing="none"))
    alone = [begin(1, "ippo", options, copies) for _ in range(5)]

    def loop() -> float:
        return sum(ours(training)() for training in alone) / len(alone)

    best = {"stacked": float("inf"), "loop": float("inf")}
    for turn in range(4):
        for name, runner in (("stacked", stacked), ("loop", loop)):
            start = time.process_time()
            runner()
            if turn:
                best[name] = min(best[name], time.process_time() - start)
    rows = STEPS * copies
    speeds = {
        "a Python loop over 1,000 learners": rows * len(alone) / best["loop"],
        "1,000 minds in one product": rows * agents / best["stacked"],
    }
    show(f"A mind for each of {agents} agents (ippo, {copies} copies)", speeds, "a Python loop over 1,000 learners")
    return {f"minds/{k}": v for k, v in speeds.items()}


def bench_scale() -> dict[str, float]:
    """The same million rows a step at every size: a thousand crowds of a thousand, ..., one of a million."""
    rows, steps = 1_000_000, 4
    print("\nns of CPU per agent-step as the crowd grows, a million rows a step (learning from at most 4096 of them)")
    results = {}
    for agent, options in {"mfq": {}, "ippo": {"rollout": steps}, "mfppo": {"rollout": steps}}.items():
        line = f"  {agent:<8}"
        for agents in (1_000, 10_000, 100_000, 1_000_000):
            training = begin(agents, agent, options, rows // agents, ring=agent.startswith("mf"))
            best = float("inf")
            for turn in range(3):
                start = time.process_time()
                for _ in range(steps):
                    training.step()
                best = min(best, time.process_time() - start) if turn else best
            results[f"scale/{agent}/{agents}"] = rows * steps / best
            line += f"{agents:>12,}: {1e9 * best / rows / steps:>8.0f}"
        print(line, flush=True)
    for agent in ("mfq", "mfppo"):
        command = [sys.executable, __file__, "--weigh", agent]
        peak = float(subprocess.run(command, capture_output=True, check=True).stdout)
        results[f"scale/bytes/{agent}"] = peak
        print(f"  {agent:<8}{peak:>8.0f} bytes per agent at the peak of a process with a million of them")
    return results


def weigh(agent: str) -> float:
    """Bytes per agent that a million agents that learn add to this process at its peak."""
    ours(begin(1000, agent, {}, ring=True))()
    agents, before = 1_000_000, peak_bytes()
    training = begin(agents, agent, {"rollout": 4} if agent == "mfppo" else {}, ring=True)
    for _ in range(5):
        training.step()
    return (peak_bytes() - before) / agents


def peak_bytes() -> int:
    """The most memory this process has held. Not ru_maxrss, which a child inherits from its parent, where there is better."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peer(python: str, script: str, *arguments: str) -> float:
    """The speed of a peer that another Python has."""
    command = [python, str(Path(__file__).with_name(script)), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(answer.stdout.splitlines()[-1])["speed"])


PARTS: dict[str, Callable[[], dict[str, float]]] = {"sample": bench_sample, "minds": bench_minds, "scale": bench_scale}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="ppo, sample, mfq, minds, scale; none: all")
    parser.add_argument("--supersuit", default="", help="a Python with stable-baselines3 and SuperSuit installed")
    parser.add_argument("--xuance", default="", help="a Python with XuanCe installed")
    parser.add_argument("--json", action="store_true", help="the numbers as one JSON object, nothing else, on stdout")
    parser.add_argument("--weigh", default="", metavar="AGENT", help="only the bytes per agent of a million of these")
    options = parser.parse_args()
    if options.weigh:
        print(weigh(options.weigh))
        return
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "ppo": lambda: bench_ppo(options.supersuit), "mfq": lambda: bench_mfq(options.xuance), **PARTS
    }  # fmt: skip
    unknown = [part for part in options.parts if part not in parts]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(parts)}")
    results: dict[str, float] = {}
    with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
        for part in options.parts or parts:
            results |= parts[part]()
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
