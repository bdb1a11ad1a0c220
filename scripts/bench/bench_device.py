"""Everything on another device: each agent learns on each environment there, equals the CPU's environment, and how fast.

    python scripts/bench/bench_device.py cuda [--json]

Without a device: cuda where there is one, else the CPU, with fewer steps, smaller crowds and nothing to compare with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time

import torch

from mfmarl.learning.build import build
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.population.open import open_env
from mfmarl.random import Key


def same_as_cpu(name: str, device: str) -> None:
    """The environment draws the same noise and gives the same rewards on both devices."""
    envs = [open_env(name, {"num_agents": 400}, 4, d) for d in ("cpu", device)]
    steps = [env.reset(Key.of(1)) for env in envs]
    worst = 0.0
    for t in range(20):
        actions = torch.randint(0, envs[0].spec.num_actions, (4, 400), generator=torch.Generator().manual_seed(t))
        steps = [env.step(actions.to(env.device)) for env in envs]
        assert torch.equal(steps[0].acting, steps[1].acting.cpu()), f"{name}: the noise differs between devices"
        worst = max(worst, float((steps[0].reward - steps[1].reward.cpu()).abs().max()))
        steps = [env.restart(step) for env, step in zip(envs, steps, strict=True)]
    print(f"{name:<18} same noise on cpu and {device}; rewards differ by at most {worst:.1e}")


def learn(environment: str, agent: str, device: str, agents: int, steps: int, **options: object) -> float:
    """Agent-steps per second of wall time, training included."""
    config = RunConfig(
        Choice(environment, {"num_agents": agents, **({"order": "synchronous"} if environment == "ising" else {})}),
        {"all": Choice(agent, dict(options))},
        RunOptions(steps=steps, copies=1, evaluation_copies=0, device=device),
    )
    built = build(config)
    for _ in range(max(3, steps // 10)):
        built.training.step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    begun, first = time.perf_counter(), built.training.tick
    for _ in built.training.rows():
        pass
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    rate = (steps - first) * agents / (time.perf_counter() - begun)
    built.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", nargs="?", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    given = parser.parse_args()
    device, cuda = given.device, given.device.startswith("cuda")
    rates: dict[str, float] = {}
    with contextlib.redirect_stdout(sys.stderr if given.json else sys.stdout):
        print(device, torch.cuda.get_device_name() if cuda else "", torch.__version__)
        for name in ("ising", "congestion", "gaussian_squeeze") if device != "cpu" else ():
            same_as_cpu(name, device)
        for environment in ("ising", "congestion"):
            for agent in ("mfq", "mfac", "mfppo"):
                for agents, steps in ((1024, 150), (1_048_576, 150)) if cuda else ((1024, 64), (65_536, 32)):
                    rate = rates[f"{environment}/{agent}/{agents}"] = learn(environment, agent, device, agents, steps)
                    print(
                        f"{environment:<12} {agent:<6} N = {agents:>9,}: {rate / 1e6:8.2f} million agent-steps/s",
                        flush=True,
                    )
    if given.json:
        print(json.dumps({"device": device, "agent_steps_per_second": rates}))


if __name__ == "__main__":
    main()
