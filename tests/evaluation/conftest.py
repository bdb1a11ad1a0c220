"""Synthetic run folders, written by hand as the training loop lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

HOSTILE = "<script>alert(1)</script>$x^2$ & \"q\" 'a' \x1b[31m"
TRUTH = {"ising": 0.911, "congestion": -0.5294, "magent2/battle_v4": 0.0}
LEVEL = {  # where each agent's reward ends
    "ising": {"mfq": 0.905, "iql": 0.74, "mfac": 0.86, "iac": 0.70, "random": 0.02},
    "congestion": {"mfq": -0.5303, "iql": -0.5305, "mfac": -0.545, "iac": -0.548, "random": -0.62},
    "magent2/battle_v4": {"mfq": 0.021, "iql": 0.012, "mfac": 0.015, "iac": 0.002, "random": -0.012},
}
NOISE = {"ising": 0.02, "congestion": 0.0025, "magent2/battle_v4": 0.0035}
INDEPENDENT = {"mfq": "iql", "mfac": "iac"}


def write_run(
    folder: Path,
    rewards: np.ndarray,
    *,
    environment: str = "ising",
    agent: str = "mfq",
    seed: int = 0,
    measures: dict[str, np.ndarray] | None = None,
    references: dict[str, Any] | None = None,
    state: str = "done",
    error: str = "",
    options: dict[str, Any] | None = None,
    every: int = 40,
    temperature: np.ndarray | None = None,
) -> Path:
    """A run folder whose `eval/reward` is `rewards`, one row per report."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, reward in enumerate(rewards):
        step = (i + 1) * every
        row: dict[str, float] = {"step": step, "agent_steps": step * 1600, "wall": 0.9 * (i + 1), "cpu": 0.8 * (i + 1)}
        row |= {
            "train/reward": float(reward) - 0.02,
            "eval/reward": float(reward),
            f"{agent}/loss": float(np.exp(-i / 9)),
        }
        row |= {f"eval/{name}": float(v[i]) for name, v in (measures or {}).items()}
        row |= {} if temperature is None else {"all/temperature": float(temperature[i])}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {
        "run": {"seed": seed, "steps": len(rewards) * every, "copies": 4, "device": "cpu", "threads": 1},
        "environment": {"name": environment, **(options or {"num_agents": 400})},
        "agents": {"all": {"name": agent, "learning_rate": 0.1}},
        "versions": {"mfmarl": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    last = rows[-1] if rows else {"step": 0, "wall": 0.0, "cpu": 0.0, "agent_steps": 0}
    status: dict[str, Any] = {"state": state, "error": error, "exit_code": 5 if state == "failed" else 0}
    status |= {k: last[k] for k in ("step", "wall", "cpu", "agent_steps")}
    (folder / "status.json").write_text(json.dumps(status))
    if references:
        (folder / "reference.json").write_text(json.dumps(references))
    return folder


def write_comparison(
    folder: Path,
    *,
    environments: tuple[str, ...] = ("ising", "congestion", "magent2/battle_v4"),
    agents: tuple[str, ...] = ("mfq", "iql", "mfac", "iac", "random"),
    seeds: int = 5,
    reports: int = 50,
    failing: tuple[tuple[str, str, int], ...] = (),
    noise_seed: int = 0,
) -> Path:
    """A comparison folder like a real one; `failing` names (environment, agent, seed) of runs that broke."""
    for e, environment in enumerate(environments):
        truth = TRUTH.get(environment, 1.0)
        for a, agent in enumerate(agents):
            level = LEVEL.get(environment, LEVEL["ising"]).get(agent, 0.5)
            spread = NOISE.get(environment, 0.02)
            for seed in range(seeds):
                noise = np.random.Generator(np.random.Philox(key=noise_seed * 100_000 + e * 1000 + a * 100 + seed))
                common = np.random.Generator(np.random.Philox(key=999 + e * 1000 + seed)).normal()
                end = level + spread * (0.6 * noise.normal() + 0.6 * common)
                start = level - 40 * spread * (0.1 if agent == "random" else 0.35)
                shape = 1 - np.exp(-np.arange(1, reports + 1) / (7 + 3 * a))
                rewards = start + (end - start) * shape + spread * 0.35 * noise.normal(size=reports)
                if agent == "random":
                    rewards = np.full(reports, level) + spread * 0.3 * noise.normal(size=reports)
                references, measures = {}, {}
                if environment == "ising":
                    references = {
                        "magnetisation": {
                            "value": 0.9113,
                            "source": "Yang 1952, eq. 96; L = 20 by simulation",
                            "kind": "law",
                        },
                        "reward": {"value": truth, "source": "Onsager 1944, energy per spin", "kind": "law"},
                    }
                    measures = {"magnetisation": np.clip(rewards + 0.006, 0, 1)}
                if environment == "congestion":
                    references = {
                        "reward": {"value": truth, "source": "Wardrop 1952, by bisection", "kind": "equilibrium"}
                    }
                broken = (environment, agent, seed) in failing
                write_run(
                    folder / environment.replace("/", "_") / agent / f"seed-{seed}",
                    rewards[: reports // 3] if broken else rewards,
                    environment=environment,
                    agent=agent,
                    seed=seed,
                    measures={k: v[: reports // 3] if broken else v for k, v in measures.items()},
                    references=references,
                    state="failed" if broken else "done",
                    error="NumericFault: the loss of mfq is NaN at step 640" if broken else "",
                )
    plan = {
        "environments": list(environments),
        "agents": list(agents),
        "seeds": list(range(seeds)),
        "independent": {k: v for k, v in INDEPENDENT.items() if k in agents and v in agents},
        "command": f"mfmarl compare {','.join(environments)} --agents {','.join(agents)} --num-agents 400 --seeds {seeds}",
    }
    (folder / "comparison.json").write_text(json.dumps(plan))
    return folder


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def make_comparison(tmp_path: Path) -> Callable[..., Path]:
    def make(**choices: Any) -> Path:
        return write_comparison(tmp_path / "comparison", **choices)

    return make
