"""A sweep whose law is known: a step costs 1 ms and 2 us for each agent; memory is 20 MB and 400 bytes for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mfmarl.evaluation.scaling import report, sweep
from mfmarl.evaluation.scaling.points import PHASES, Kind, Measured, Plan, Point
from mfmarl.learning.run_config import Choice

SHARES = {"act": 0.6, "learn": 0.3, "step": 0.1}


def point_of(agent: str, n: int, repeat: int = 0, kind: Kind = "mfmarl", factor: float = 1.0) -> Measured:
    cost = factor * (1e-3 + 2e-6 * n) * (1 + 0.01 * repeat)
    return Measured(
        Point(agent, kind, n, repeat=repeat), "done", steps=10, wall=10 * cost, cpu=10 * cost,
        peak_bytes=320_000_000 + 400 * n, base_bytes=300_000_000,
        phases={p: cost * SHARES.get(p, 0.0) for p in PHASES} if kind == "mfmarl" else {},
        phase_steps=1 if kind == "mfmarl" else 0, weights=5000,
        machine={"processor": "one of a test", "threads": 1, "device": "cpu"},
    )  # fmt: skip


def plan_of(sizes: Sequence[int], agents: Sequence[str] = ("mfq", "iql"), **more: Any) -> Plan:
    teams = {a: {"all": Choice(a if a in ("mfq", "iql") else "mfq")} for a in agents}
    return Plan(Choice("ising"), teams, tuple(sizes) or (100,), baselines=("sb3",), repeats=2, seeds=(), **more)


def write_sweep(folder: Path, sizes: Sequence[int], agents: Sequence[str] = ("mfq", "iql")) -> Path:
    plan = plan_of(sizes, agents)
    sweep.write_plan(plan, folder, "mfmarl scale ising")
    for n in sizes:
        for repeat in range(2):
            for i, agent in enumerate(agents):
                keep(folder, point_of(agent, n, repeat, factor=1 + 0.1 * i))
            if n <= 1000:
                keep(folder, point_of("ppo", n, repeat, "sb3", 20.0))
    return folder


def keep(folder: Path, measured: Measured) -> None:
    (folder / "points" / f"{measured.point.name}.json").write_text(json.dumps(measured.to_table()), encoding="utf-8")


def numbers_of(sizes: Sequence[int], agents: Sequence[str] = ("mfq", "iql")) -> dict[str, Any]:
    with TemporaryDirectory() as there:
        return report.gather(write_sweep(Path(there) / "a", sizes, agents))


def estimate(value: float, half: float = 0.01) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "runs": 3}


def quality_of(sizes: Sequence[int], agents: Sequence[str] = ("mfq", "iql")) -> dict[str, Any]:
    """As `Quality.to_table()` gives it; the reward is 1 + 1/N, fluctuations are 0.5/sqrt(N)."""
    rows, limit, fluctuations, transfer = [], [], [], []
    for agent in agents:
        for n in sizes:
            reward = estimate(1 + 1 / n)
            known = {"standard_error": 0.004, "theory": 1.0, "kind": "law", "source": "a test", "distance": 1 / n,
                     "standard_errors": 250 / n, "agrees": True}  # fmt: skip
            rows.append({
                "agent": agent, "num_agents": n, "copies": 4, "runs": 3, "planned": 3, "reward": reward, "return": None,
                "measures": {"reward": {**reward, **known}}, "gaps": {"limit/exploitability": estimate(0.2, 0.05)},
                "steps": estimate(100.0, 20.0), "agent_steps": estimate(100.0 * n),
            })  # fmt: skip
            both = {"agent": agent, "num_agents": n, "name": "reward"}
            limit.append({**both, "value": 1 / n, "error": 0.1 / n, "measured": 1 + 1 / n, "limit": 1.0, "source": "",
                          "theory": None})  # fmt: skip
            fluctuations.append({**both, "value": 0.5 / np.sqrt(n), "error": 0.02 / np.sqrt(n), "samples": 100.0,
                                 "theory": 0.5 / float(np.sqrt(n)), "source": "exact", "runs": 3})  # fmt: skip
            for played in sizes:
                loss = None if played == n else estimate(-0.1)
                transfer.append({"agent": agent, "trained": n, "played": played, "reward": reward, "loss": loss,
                                 "reason": ""})  # fmt: skip

    def fitted(coefficient: float, exponent: float) -> list[dict[str, Any]]:
        return [{"agent": a, "name": "reward", "coefficient": coefficient, "exponent": exponent, "low": exponent - 0.05,
                 "high": exponent + 0.05, "points": len(sizes), "misfit": 1.0, "theory": exponent, "agrees": True}
                for a in agents]  # fmt: skip

    return {
        "sizes": list(sizes), "skipped": {}, "rows": rows, "failed": [], "fluctuations": fluctuations,
        "fluctuation_fits": fitted(0.5, -0.5), "limit": limit, "limit_fits": fitted(1.0, -1.0), "transfer": transfer,
        "notes": [],
    }  # fmt: skip
