r"""A million agents learn on one core, to where theory says they end.

python scripts/million.py                           # six runs, each of minutes
python scripts/million.py mfq-ising mfppo-beach_bar
python scripts/million.py --num-agents 10000        # each of seconds

Mean-field Q-learning and mean-field PPO, one mind of 64-64 units that all agents share, in three worlds whose answer is
known:

 - `ising`: spins on a 1000 x 1000 torus, black and white in turn, paid for agreeing with their neighbours, at tau = 1.5:
   the energy is Onsager's (Kaufman 1949, exact on the torus at hand). Who felt no neighbours would find order there.
 - `beach_bar`: bathers near a bar who avoid each other (Perrin et al. 2020), at temperature 1;
 - `susceptible_infected`: who goes out and who stays at home in an epidemic (Cui and Koeppl 2021), at temperature 0.2:
   both at the quantal response equilibrium of infinitely many, by the solver, with the exploitability that it has.

A run has arrived where every number that theory knows is met by the mean over its second half within five standard
errors, from the scatter of eight blocks of time, in which the wavering of a mind that still learns is part. It came within
reach at the first report after which no row of its first known number leaves theory by more than five standard deviations
of its rows.

Each run is an ordinary run folder `OUT/AGENT-WORLD` (config.toml, metrics.jsonl, report.html with the curves against theory
and a picture of the crowd); Ctrl-C saves, and the same command goes on. `OUT/numbers.json` holds what is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfmarl.cli.progress import Progress
from mfmarl.errors import ConfigError, MfmarlError, nearest
from mfmarl.evaluation.report import report_run
from mfmarl.learning.durable import write_atomic
from mfmarl.learning.run import Interrupted, run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import read_metrics

AGENTS = ("mfq", "mfppo")
BLOCKS = 8
SIGMAS = 5.0


@dataclass(frozen=True)
class World:
    """An environment, its agents' temperature, and how long they learn in it."""

    temperature: str
    steps: int
    report_every: int
    """Environment steps between rows: whole episodes, so that every row tells of the same moments."""
    options: dict[str, Any] = field(default_factory=dict)
    of_agent: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of each agent that are not its own defaults."""


WORLDS = {
    "ising": World(
        "1.5",
        400,
        10,
        of_agent={
            "mfq": {"updates": 4},
            "mfppo": {"rollout": 4, "minibatches": 4, "learning_rate": 0.003, "remember": 8192},
        },
    ),
    "beach_bar": World("1", 240, 6, of_agent={"mfq": {"updates": 16}, "mfppo": {"rollout": 6, "minibatches": 8}}),
    "susceptible_infected": World(
        "0.2",
        400,
        10,
        {"horizon": 10},
        {"mfq": {"updates": 16}, "mfppo": {"rollout": 10, "minibatches": 16}},
    ),
}
NAMES = tuple(f"{agent}-{world}" for world in WORLDS for agent in AGENTS)


def configuration(name: str, num_agents: int, steps: int, seed: int, device: str) -> RunConfig:
    """The run of that name, `AGENT-WORLD`; `steps` 0: as many as its world has.

    Raises ConfigError for a name that is none.
    """
    if name not in NAMES:
        raise ConfigError(f"There is no run {name!r}.{nearest(name, NAMES)}")
    agent, _, world = name.partition("-")
    told = WORLDS[world]
    mind = {"temperature": told.temperature, **told.of_agent[agent]}
    run = RunOptions(
        seed=seed,
        steps=steps or told.steps,
        copies=1,
        evaluation_copies=0,  # a second million would tell the same
        report_every=told.report_every,
        device=device,
    )
    return RunConfig(Choice(world, {"num_agents": num_agents, **told.options}), {"all": Choice(agent, mind)}, run)


def refuse_few(run: RunOptions) -> None:
    """Raises ConfigError for a run whose rows would be too few to tell where it ends."""
    least = 2 * BLOCKS * run.report_interval
    if run.steps < least:
        raise ConfigError(f"{run.steps} steps are too few to tell where a run ends: give at least {least}.")


def carry_out(name: str, config: RunConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Begin the run or go on with it, to its end; what came of it, as `arrived` and `costs` tell it.

    Raises MfmarlError; Interrupted where it was asked to stop, and is saved.
    """
    forget_peak()
    progress.add(name, config.run.steps)
    first: list[dict[str, Any]] = []

    def on_row(row: dict[str, Any]) -> None:
        if not first:
            first.append(row)
        seconds, steps = row["cpu"] - first[0]["cpu"], row["agent_steps"] - first[0]["agent_steps"]
        rate = f"  {steps / seconds / 1e6:.2f} million agent-steps per CPU-s" if seconds > 0 else ""
        progress.update(name, row["step"], f"reward {row['train/reward']:.4f}{rate}")

    def on_start(built: Any) -> None:
        if built.training.tick:
            progress.update(name, built.training.tick, "goes on")

    path = folder / name
    run_in_folder(config, path, resume=True, on_row=on_row, on_start=on_start)
    rows = read_metrics(path)
    known = json.loads((path / "reference.json").read_text())
    earlier = read_numbers(folder).get(name, {})
    found = {"num_agents": config.environment.options["num_agents"], "device": config.run.device}
    found |= costs(rows) | {"peak_memory_bytes": max(peak_bytes(), int(earlier.get("peak_memory_bytes", 0)))}
    if not first and earlier:  # it was done already: this process has played nothing
        found["peak_memory_bytes"] = earlier["peak_memory_bytes"]
    found |= arrived(rows, {n: k["value"] for n, k in known.items()})
    return found | {"report": str(report_run(path))}


# ------------------------------------------------------------------------------------------- what came of it


def costs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps, seconds, and agent-steps (of those asked to act) per CPU-second, learning included."""
    last = rows[-1]
    return {
        "steps": last["step"],
        "agent_steps": last["agent_steps"],
        "cpu_seconds": last["cpu"],
        "wall_seconds": last["wall"],
        "agent_steps_per_cpu_second": last["agent_steps"] / max(last["cpu"], 1e-9),
    }


def arrived(rows: list[dict[str, Any]], known: dict[str, float]) -> dict[str, Any]:
    """How far the second half of the rows is from theory, number by number, in its standard errors; and since when.

    `arrived` is whether all are within five. Raises ConfigError where there is nothing to tell.
    """
    half = rows[len(rows) // 2 :]
    if len(half) < BLOCKS:
        raise ConfigError(f"{len(rows)} rows are too few to tell where a run ends: at least {2 * BLOCKS}")
    numbers: dict[str, Any] = {}
    for name, value in known.items():
        column = next((c for c in (f"train/{name}", name) if all(c in row for row in half)), None)
        if column is None:
            continue
        found = np.array([row[column] for row in half])
        means = np.array([block.mean() for block in np.array_split(found, BLOCKS)])
        error = float(means.std(ddof=1)) / math.sqrt(BLOCKS)
        away = float(found.mean()) - value
        numbers[name] = {
            "found": float(found.mean()),
            "standard_error": error,
            "theory": value,
            "away": away / error if error > 0 else math.copysign(math.inf, away) if away else 0.0,
            "column": column,
            "spread_of_rows": float(found.std(ddof=1)),
        }
    if not numbers:
        raise ConfigError("Theory knows no number of this run: there is nothing to arrive at.")
    first = next(iter(numbers.values()))
    off = [abs(row[first["column"]] - first["theory"]) > SIGMAS * first["spread_of_rows"] for row in rows]
    since = max((i + 1 for i, far in enumerate(off) if far), default=0)
    there = rows[since] if since < len(rows) else None
    return {
        "numbers": numbers,
        "arrived": all(abs(n["away"]) < SIGMAS for n in numbers.values()),
        "steps_to_reach": there["step"] if there else None,
        "cpu_minutes_to_reach": there["cpu"] / 60 if there else None,
    }


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process has held since then, of the device too where that is a GPU."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return device + 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return device + unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_numbers(folder: Path) -> dict[str, Any]:
    """What earlier commands found, by run; nothing where there is nothing that can be read."""
    try:
        found = json.loads((folder / "numbers.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def told(name: str, found: dict[str, Any]) -> str:
    """A run's lines on the terminal."""
    reached = "not within reach of theory"
    if found["steps_to_reach"] is not None:
        minutes = found["cpu_minutes_to_reach"]
        reached = f"within reach of theory after {found['steps_to_reach']} steps, {minutes:.1f} CPU-minutes"
    lines = [
        f"{name}: {found['num_agents']:,} agents, {found['steps']} steps in {found['cpu_seconds'] / 60:.1f} CPU-minutes, "
        f"{found['agent_steps_per_cpu_second'] / 1e6:.2f} million agent-steps per CPU-second, "
        f"peak {found['peak_memory_bytes'] / 1e9:.2f} GB",
        f"  {reached}; {'arrived' if found['arrived'] else 'NOT ARRIVED'}",
    ]
    for number, n in found["numbers"].items():
        lines.append(
            f"    {number:<22}{n['found']:>11.5f} +- {n['standard_error']:.5f}   theory {n['theory']:>10.5f}   "
            f"{n['away']:+.1f} standard errors"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------- the command


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"{', '.join(NAMES)}; none: all")
    parser.add_argument("--num-agents", type=int, default=1_000_000, help="(default: a million)")
    parser.add_argument("--steps", type=int, default=0, help="environment steps of each run (default: its own)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("runs/million"), help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON on standard output, nothing else")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    known = parser.parse_args(given)
    if known.num_agents < 1 or known.steps < 0:
        parser.error("--num-agents must be at least 1, and --steps not negative.")
    return known


def main(given: list[str] | None = None) -> int:
    known = arguments(given)
    torch.set_num_threads(1)
    begun = time.monotonic()
    numbers: dict[str, Any] = {}
    try:
        # A name that is none is told before hours of what comes before it.
        configs = {
            name: configuration(name, known.num_agents, known.steps, known.seed, known.device)
            for name in known.runs or NAMES
        }
        for config in configs.values():
            refuse_few(config.run)
        with Progress(known.quiet) as progress:
            for name, config in configs.items():
                numbers[name] = carry_out(name, config, known.out, progress)
                everything = read_numbers(known.out) | numbers
                write_atomic(known.out / "numbers.json", json.dumps(everything, indent=1).encode())
                progress.remove(name)
                if not known.json:
                    print(told(name, numbers[name]), flush=True)
    except Interrupted as error:
        at = str(error).partition(" and saved")[0]
        print(f"million: {at} and saved; the same command goes on.", file=sys.stderr)
        return error.exit_code
    except MfmarlError as error:
        print(f"million: {error}", file=sys.stderr)
        return error.exit_code
    if known.json:
        print(json.dumps(numbers))
    else:
        print(f"numbers: {known.out / 'numbers.json'}   ({time.monotonic() - begun:.0f} s)")
    return 0 if all(found["arrived"] for found in numbers.values()) else 6


if __name__ == "__main__":
    sys.exit(main())
