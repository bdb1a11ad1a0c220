"""What a sweep over sizes consists of: its plan, and the points that are measured, as values that JSON can hold.

A sweep's folder:

    scale.json                  the plan
    points/<name>.json          one file for each measured point, written when it is done: a sweep resumes
    quality/                    a comparison (comparison.json, one run folder per environment, agent and seed)
    numbers.json, report.html   what came out; figures/*.svg
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from mfmarl.learning.run_config import Choice

Kind = Literal["mfmarl", "sb3", "loop", "stacked"]
"""Whose learner is measured: ours; stable-baselines3's PPO through a vector environment; a plain PettingZoo loop with one
learner per agent; independent learners whose networks are stacked into one batched product."""

PHASES = ("act", "field", "step", "remember", "learn", "rest")
"""The parts of one training step: choosing actions, feeling the field, the environment's rules, gathering what is learned
from, learning, and what is left (tallies, clocks)."""


@dataclass(frozen=True)
class Plan:
    """What is swept: every agent at every size (and number of copies), each measured `repeats` times."""

    environment: Choice
    agents: dict[str, dict[str, Choice]]
    """By label, who plays each group, as in a comparison."""
    sizes: tuple[int, ...]
    """Numbers of agents, increasing."""
    copies: tuple[int, ...] = (1,)
    """Numbers of copies at which each size is measured."""
    varied: tuple[dict[str, Any], ...] = ({},)
    """Further points of every agent and size: options of the environment or of the agents (`neighbours` of a graph,
    `hidden` of a network, `field`), each set by name."""
    baselines: tuple[Kind, ...] = ()
    repeats: int = 3
    steps: int = 0
    """Timed environment steps of a point; 0: as many as take about two seconds."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs that measure quality; empty: costs alone."""
    learning_steps: int = 500
    """Environment steps of a run that measures quality."""
    budget: float = 0.0
    """Seconds of wall time for the whole sweep; 0: no limit."""
    max_memory: float = 0.0
    """Bytes that one point may take; 0: four fifths of what is free."""
    device: str = "cpu"
    threads: int = 1

    def to_table(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Plan:
        """The inverse of `to_table`; entries that this version does not know are left out."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k in known}
        values["environment"] = Choice(**table["environment"])
        values["agents"] = {
            label: {group: Choice(**choice) for group, choice in team.items()}
            for label, team in table["agents"].items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Point:
    """One measurement, made in a process of its own."""

    agent: str
    kind: Kind
    num_agents: int
    copies: int = 1
    varied: dict[str, Any] = field(default_factory=dict)
    repeat: int = 0

    @property
    def name(self) -> str:
        """Its file's name, without `.json`: portable, and another for every other point."""
        from mfmarl.evaluation.results import folder_name

        varied = "".join(f"_{k}={v}" for k, v in sorted(self.varied.items()))
        return folder_name(f"{self.kind}_{self.agent}{varied}_N{self.num_agents}_copies{self.copies}_{self.repeat}")


@dataclass(frozen=True)
class Measured:
    """A point and what it cost. Times are of the timed steps alone, after the warm-up."""

    point: Point
    status: Literal["done", "failed", "skipped"]
    reason: str = ""
    """Why it failed or was skipped."""
    steps: int = 0
    wall: float = 0.0
    """Seconds."""
    cpu: float = 0.0
    """CPU-seconds of the process, all its threads."""
    build: float = 0.0
    """CPU-seconds until the first step could begin, imports left out."""
    peak_bytes: int = 0
    """Resident memory of the process at its largest."""
    base_bytes: int = 0
    """Resident memory before the population was made: Python, torch, this package."""
    phases: dict[str, float] = field(default_factory=dict)
    """CPU-seconds of each of PHASES, in steps timed apart from those above."""
    phase_steps: int = 0
    weights: int = 0
    """Numbers that are learned: parameters of the networks, or entries of the tables."""
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def agent_steps(self) -> int:
        return self.steps * self.point.num_agents * self.point.copies

    @property
    def nanoseconds(self) -> float:
        """CPU-nanoseconds per agent and step."""
        return 1e9 * self.cpu / self.agent_steps if self.agent_steps else float("nan")

    @property
    def bytes_per_agent(self) -> float:
        """Memory above the base per agent (of every copy)."""
        return max(0, self.peak_bytes - self.base_bytes) / (self.point.num_agents * self.point.copies)

    def to_table(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Measured:
        return replace(cls(point=Point(**table["point"]), status=table["status"]), **_known(cls, table))


def _known(kind: type, table: dict[str, Any]) -> dict[str, Any]:
    """What this version knows of a table that another may have written."""
    names = {f.name for f in fields(kind)} - {"point", "status"}
    return {name: value for name, value in table.items() if name in names}
