"""Everything needed to repeat a run, as one frozen value: what `config.toml` prints and reads back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from mfmarl.errors import ConfigError
from mfmarl.options import Bounds, Count, Seed, Whole, from_table, to_table
from mfmarl.registry import demand_typed


@dataclass(frozen=True)
class Choice:
    """A registered name and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out, whatever is played by whom."""

    seed: Seed = 0
    """Fixes everything: initial weights, the environment's noise, every draw."""
    steps: Count = 2000
    """Environment steps per copy: the budget."""
    copies: Count = 4
    """Copies of the population that run side by side and are learned from together."""
    sharing: Literal["all", "group", "none"] = "group"
    """How many minds: one for all agents, one per group (team), or one for each agent."""
    report_every: Whole = 0
    """Environment steps between rows of numbers; 0: fifty rows over the run."""
    evaluation_copies: Whole = 4
    """Copies that the frozen policy is evaluated on, on a random stream of their own; 0: no evaluation."""
    evaluation_steps: Whole = 0
    """Environment steps of each evaluation; 0: as many as between two reports, at most 100."""
    exploitability: Literal["auto", "sampled", "off"] = "auto"
    """Of a mean-field game: in the limit at every report, and at the run's own number of agents at the end, counted
    where that can be and else by a best response that is learned; `sampled`: always learned, against the players
    themselves; `off`: neither."""
    workers: Whole = 0
    """Child processes that host a third-party environment's copies; 0: none, everything in this process."""
    max_steps: Whole = 0
    """Truncate a third-party environment's episodes after so many steps; 0: as the environment says."""
    timeout: Annotated[float, Bounds(0.01, 1e7)] = 60.0
    """Seconds that a child process (`workers`) may take for one step before it is taken to hang, and stopped. An
    environment in this process cannot be stopped from outside: give those that may hang --workers 1."""
    on_fault: Literal["fail", "restart"] = "fail"
    """When a third-party environment's own code raises: stop, or end its episode there and go on with one made anew."""
    environment_restarts: Annotated[int, Bounds(0, 1 << 40)] = 10
    """How often in a run that may be, with on_fault = restart; counted as train/restarts."""
    reward_limit: Annotated[float, Bounds(0.0, 3e38, open_low=True)] = 1e18
    """A reward beyond this stops the run as one that is not finite does: squares of larger ones are no float32 numbers."""
    max_memory: Annotated[float, Bounds(0.0, 1e18)] = 0.0
    """Bytes that the run may take by the estimate made before it begins; 0: what is free."""
    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1, or auto. Of several ranks on `cuda`, each takes the next GPU of its machine."""
    ranks: Annotated[int, Bounds(1, 1 << 20)] = 1
    """Processes that play the run together, each a part of the population. Under torchrun: as many as it starts."""
    divide: Literal["agents", "copies"] = "agents"
    """What each rank has a part of: every team's agents, or the copies."""
    threads: Annotated[int, Bounds(1, 1024)] = 1
    """Threads of torch inside this run. Part of what makes a run repeatable bit by bit: a run that goes on with another
    number says so."""
    checkpoint_seconds: Annotated[float, Bounds(0.0, 1e9)] = 60.0
    """Seconds between checkpoints: the most that a kill can cost; 0: one at every report. Writing takes a tenth of the
    time at most."""
    tensorboard: bool = False
    """Also write the rows for TensorBoard."""

    @property
    def report_interval(self) -> int:
        return self.report_every or max(1, self.steps // 50)

    @property
    def evaluation_interval(self) -> int:
        return self.evaluation_steps or min(100, self.report_interval)


@dataclass(frozen=True)
class RunConfig:
    """An environment, who plays it, and how the run is carried out."""

    environment: Choice
    agents: dict[str, Choice]
    """By group; the single key `all` stands for every group."""
    run: RunOptions = RunOptions()

    def __post_init__(self) -> None:
        if not self.agents:
            raise ConfigError("A run needs an agent; write for example --agent mfq.")

    def to_table(self) -> dict[str, Any]:
        """As nested tables of plain values, for TOML."""
        return {
            "run": to_table(self.run),
            "environment": {"name": self.environment.name, **self.environment.options},
            "agents": {group: {"name": c.name, **c.options} for group, c in self.agents.items()},
        }

    def demand_typed(self, where: str) -> None:
        """Raises ConfigError where a Python file is played that the user has not named: only a config has."""
        for choice in (self.environment, *self.agents.values()):
            demand_typed(choice.name, where)

    @classmethod
    def from_table(cls, table: dict[str, Any], where: str = "config.toml") -> RunConfig:
        """The inverse of `to_table`. Raises ConfigError naming every wrong key."""
        unknown = sorted(set(table) - {"run", "environment", "agents", "versions", "command", "fork"})
        if unknown:
            raise ConfigError(
                f"{where}: unknown table [{unknown[0]}]; expected [run], [environment] and [agents.<group>]."
            )

        def choice(part: Any, name: str) -> Choice:
            if not isinstance(part, dict) or not isinstance(part.get("name"), str):
                raise ConfigError(f'{where}: [{name}] needs a name, for example name = "ising".')
            return Choice(part["name"], {k: v for k, v in part.items() if k != "name"})

        agents = table.get("agents")
        if not isinstance(agents, dict):
            raise ConfigError(f'{where}: [agents.all] is missing; write for example [agents.all] with name = "mfq".')
        return cls(
            choice(table.get("environment"), "environment"),
            {group: choice(part, f"agents.{group}") for group, part in agents.items()},
            from_table(RunOptions, table.get("run", {}), f"{where}: [run]"),
        )


RUN_OPTION_NAMES = tuple(f.name for f in fields(RunOptions))
