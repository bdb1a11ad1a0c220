"""`mfmarl scale`: how cost, memory and what is learned change with the number of agents, and what M machines would do."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfmarl.cli.choices import (
    add_import_option,
    agent_config,
    assign,
    environment_options,
    import_all,
    pairs_of,
    parse_agents,
    parse_environments,
    short,
    split,
)
from mfmarl.cli.compare import seeds_of
from mfmarl.cli.engines import add_engine_options, engine_of
from mfmarl.cli.sizes import seconds, size_in_bytes, whole_numbers
from mfmarl.errors import ConfigError, MfmarlError, RunsFailed, nearest, printable

if TYPE_CHECKING:
    from mfmarl.cli.progress import Progress
    from mfmarl.evaluation.scaling.points import Measured, Plan

EXAMPLES = """  mfmarl scale ising --agents mfq,iql,ippo --num-agents 100,1000,...,1000000
  mfmarl scale congestion --agents mfq --num-agents 10,20,40,...,5120 --no-quality
  mfmarl scale ising --agents mfq --num-agents 1k,10k,100k --baselines sb3,loop,stacked --budget 10min
  mfmarl scale ising --agents mfq --num-agents 10k,100k --vary hidden=32,32;128,128 --repeats 5
  mfmarl scale ising --agents mfq,iql --name mine --predict "nodes=64, agents=1e9, gpus=8"
  mfmarl scale --name mine --predict "nodes=8, agents=1e8, cores=32, network=100GbE"   # nothing is measured"""

DEFAULT_SIZES = "10,100,...,100000"
BASELINES = ("sb3", "loop", "stacked")
COSTS = 0.5
"""The share of a budget that costs may take where learning is to be judged too."""
_JUDGING = 0.6
"""The share of what is then left that the runs may take: they are judged after them."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "environment",
        nargs="?",
        help="a name from `mfmarl list` or path/to/file.py:Class; options as ising:coupling=-1",
    )
    parser.add_argument(
        "--agents",
        default="mfq,iql",
        help="agents to measure; teams as red=mfq+blue=iql; variants as mfq:bins=9 (default: mfq,iql)",
    )
    parser.add_argument(
        "--num-agents",
        default=DEFAULT_SIZES,
        metavar="SIZES",
        help=f"numbers of agents: 10,100,...,1000000 goes on by factors of ten; 10k, 1M and 1e6 too (default: {DEFAULT_SIZES})",
    )
    parser.add_argument(
        "--copies", default="1", metavar="SIZES", help="copies of the population, one number or several (default: 1)"
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=A;B",
        help="measure every size with these values of an option, too: 'neighbours=4;8'; several options: all combinations",
    )
    parser.add_argument(
        "--baselines",
        default="",
        metavar="KINDS",
        help="others beside ours: sb3 (stable-baselines3), loop (one learner per agent), stacked",
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes that measure each point (default: 3)")
    parser.add_argument(
        "--timed-steps", type=int, default=0, help="steps timed in each (default: as many as take two seconds)"
    )
    parser.add_argument(
        "--seeds", default="3", help="runs of each agent and size that learn: how many, or which (default: 3)"
    )
    parser.add_argument("--steps", type=int, default=500, help="environment steps of a run that learns (default: 500)")
    parser.add_argument("--no-quality", dest="quality", action="store_false", help="costs alone: nothing is learned")
    parser.add_argument("--budget", metavar="TIME", help="time for all of it, such as 10min: the sweep is cut to fit")
    parser.add_argument(
        "--max-memory", metavar="SIZE", help="memory of one point, such as 4GB (default: four fifths of what is free)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, or auto (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in each process (default: 1)")
    parser.add_argument("--jobs", type=int, default=0, help="learning runs at a time (default: one for each core)")
    parser.add_argument(
        "--predict",
        action="append",
        default=[],
        metavar="CLUSTER",
        help='what machines would do, such as "nodes=64, agents=1e9, gpus=8"; with --name alone nothing is measured',
    )
    parser.add_argument(
        "--name", help="the sweep is kept in RUNS/NAME; an old one goes on (default: scale-ENVIRONMENT-AGENTS)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    add_import_option(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_engine_options(parser)


def run(known: argparse.Namespace, rest: list[str]) -> int:
    import_all(known.imports)
    begun = time.monotonic()
    if known.environment is None:
        return _predict_alone(known, rest)
    plan = plan_of(known, rest)
    from mfmarl.evaluation.comparison import terminable
    from mfmarl.evaluation.results import folder_name
    from mfmarl.evaluation.scaling import sweep
    from mfmarl.evaluation.scaling.cost_model import parse_cluster
    from mfmarl.learning.run import Interrupted
    from mfmarl.learning.run_folder import exclusive, inside

    for cluster in known.predict:
        parse_cluster(cluster)  # refused before anything is measured, not after
    engine = engine_of(known)
    sweep.refuse(plan)
    label = short(known.environment)
    default = f"scale-{folder_name(label)}-{folder_name('-'.join(plan.agents))}"
    folder = inside(known.runs, known.name or default[:100])
    # Two that measure at once would measure each other.
    with exclusive(folder):
        kept = sweep.write_plan(plan, folder, "mfmarl " + shlex.join(sys.argv[1:]), known.imports)
        stopped: MfmarlError | None = None
        failed = 0
        try:
            with terminable():
                measured = _measure(known, kept, folder)
                if known.quality:
                    failed = _learn(known, kept, folder, measured, engine, begun)
        except Interrupted as error:
            stopped = error
        return _conclude(known, folder, stopped, failed)


# ------------------------------------------------------------------------------------------- what is asked for


def plan_of(known: argparse.Namespace, rest: list[str]) -> Plan:
    """What the command line asks for. Raises ConfigError for whatever cannot be meant."""
    from mfmarl.evaluation.scaling.points import Plan

    sizes = whole_numbers(known.num_agents)
    copies = whole_numbers(known.copies, "--copies")
    for option, value, least in (
        ("--repeats", known.repeats, 1), ("--steps", known.steps, 1), ("--threads", known.threads, 1),
        ("--jobs", known.jobs, 0), ("--timed-steps", known.timed_steps, 0),
    ):  # fmt: skip
        if value < least:
            raise ConfigError(f"{option} must be at least {max(least, 1)}, not {value}.")
    budget = seconds(known.budget) if known.budget is not None else 0.0
    most = size_in_bytes(known.max_memory) if known.max_memory is not None else 0.0
    seeds = tuple(seeds_of(known.seeds))
    environments = parse_environments(known.environment)
    if len(environments) > 1:
        raise ConfigError(
            f"A sweep is of one environment, not of {len(environments)}: {', '.join(environments)}; compare them by "
            "sweeps of their own."
        )
    environments, agents = assign(pairs_of(rest), environments, parse_agents(known.agents))
    [environment] = environments.values()
    if "num_agents" in environment.options:
        raise ConfigError(
            "--num-agents says the numbers of agents; leave num_agents= out of the environment's options."
        )
    return Plan(
        environment=environment,
        agents=agents,
        sizes=sizes,
        copies=copies,
        varied=_varied(known.vary, environment, agents),
        baselines=_baselines(known.baselines),
        repeats=known.repeats,
        steps=known.timed_steps,
        seeds=seeds if known.quality else (),
        learning_steps=known.steps,
        budget=budget,
        max_memory=most,
        device=known.device,
        threads=known.threads,
    )


def _baselines(text: str) -> tuple[Any, ...]:
    kinds = split(text)
    for kind in kinds:
        if kind not in BASELINES:
            raise ConfigError(f"Unknown baseline {kind!r}.{nearest(kind, BASELINES)}")
        if kinds.count(kind) > 1:
            raise ConfigError(f"The baseline {kind!r} is named twice.")
    return tuple(kinds)


def _varied(texts: list[str], environment: Any, agents: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Every combination of the values given to options; `({},)` where nothing is varied. Raises ConfigError."""
    values: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        # Between semicolons where there are any: a value may hold a comma itself (hidden=32,32;64,64).
        words = [word.strip() for word in (listed.split(";") if ";" in listed else split(listed))]
        if not equals or not name or not all(words) or not words:
            raise ConfigError(f"--vary takes an option and its values, such as neighbours=4,8, not {text!r}.")
        if name in values:
            raise ConfigError(f"--vary names {name!r} twice; give all its values at once.")
        if name == "num_agents":
            raise ConfigError("--vary is for other options: --num-agents says the numbers of agents.")
        values[name] = [_value(name, word, environment, agents) for word in words]
        for value in values[name]:
            if values[name].count(value) > 1:
                raise ConfigError(f"--vary {name} names {value!r} twice.")
    return tuple(dict(zip(values, combination, strict=True)) for combination in product(*values.values()))


def _value(name: str, word: str, environment: Any, agents: dict[str, Any]) -> Any:
    """A value as the environment, or every agent, understands it."""
    places, teams = assign([(name, word)], {"": environment}, agents)
    option = name.rpartition(".")[2]
    scope = name.rpartition(".")[0]
    _, of_environment = environment_options(_entry(environment.name))
    if option in of_environment and scope in ("", "env", "environment", environment.name):
        if environment.options.get(option) is not None and option in environment.options:
            raise ConfigError(f"{option} is set and varied; give it in one place.")
        return places[""].options[option]
    found: list[Any] = []
    for label, team in agents.items():
        owners = [group for group, choice in team.items() if option in agent_config(choice.name)[1]]
        if not owners:
            raise ConfigError(f"--vary {name}: {label} has no option {option!r}, and all agents are swept alike.")
        for group in owners:
            if option in team[group].options:
                raise ConfigError(f"{option} of {label} is set and varied; give it in one place.")
            found += [teams[label][group].options[option]] if option in teams[label][group].options else []
    if not found:
        raise ConfigError(f"--vary {name}: none of the agents takes it.")
    return found[0]


def _entry(name: str) -> Any:
    from mfmarl.registry import lookup

    return lookup("environment", name)


# ------------------------------------------------------------------------------------------------ carried out


def _measure(known: argparse.Namespace, plan: Plan, folder: Path) -> list[Measured]:
    from mfmarl.cli.progress import Progress
    from mfmarl.evaluation.scaling import sweep

    given = plan
    if plan.budget and known.quality:
        given = replace(plan, budget=max(COSTS * plan.budget, sweep.LEAST))
    with Progress(known.quiet) as progress:
        told = _Told(progress, len(sweep.points(given)))
        return sweep.carry_out(given, folder, told, imports=known.imports)


class _Told:
    """Events of a sweep as progress: points done, the rate of the last, what was dropped, skipped or failed."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.done = 0
        self.rate = ""
        self.reasons: set[str] = set()
        self.begun = False

    def __call__(self, event: dict[str, Any]) -> None:
        from mfmarl.evaluation.scaling.fit import called
        from mfmarl.evaluation.summary import count, duration

        kind = event["event"]
        if kind == "warning":
            self.progress.say(str(event["message"]))
            return
        if kind == "planned":
            text = f"{event['points']} points more, about {duration(event['expected_seconds'])}"
            dropped = f"; {event['dropped']} do not fit the budget" if event["dropped"] else ""
            self.progress.say(text + dropped)
            return
        if not self.begun:
            self.begun = True
            self.progress.add("points", self.total)
        point = event["point"]
        name = f"{called(point)}, {point.num_agents:,} agents"
        if kind == "begin":
            # On a terminal the bar says what goes on; elsewhere a line for each point that is done is enough.
            if self.progress.live is not None:
                self.progress.update("points", self.done, f"{name}  {self.rate}")
            return
        self.done += 1
        found = event.get("measured")
        if kind == "done" and found is not None and found.wall > 0:
            self.rate = f"{count(found.agent_steps / found.wall)} agent-steps/s"
        elif kind in ("failed", "skipped") and found is not None and found.reason not in self.reasons:
            self.reasons.add(found.reason)
            self.progress.say(f"{kind}: {name}: {found.reason}")
        self.progress.update("points", self.done, f"{name}  {self.rate}")


def _learn(
    known: argparse.Namespace, plan: Plan, folder: Path, measured: list[Measured], engine: Any, begun: float
) -> int:
    """Carry out the runs that learn, and keep what they tell as `quality.json`; returns how many failed."""
    from mfmarl.cli.carry_out import carry_out
    from mfmarl.cli.progress import Progress
    from mfmarl.evaluation.results import note_failures
    from mfmarl.evaluation.scaling import report
    from mfmarl.evaluation.scaling.quality import judge, plan_quality

    jobs = known.jobs or os.cpu_count() or 1
    left = 0.0
    if plan.budget:
        left = max(1.0, _JUDGING * (plan.budget - (time.monotonic() - begun)))
    try:
        runs = plan_quality(plan, folder, left, jobs, measured)
    except ConfigError as error:
        # No size can be played, or the game does not learn: what it costs is known all the same.
        with Progress(known.quiet) as progress:
            progress.say(f"Learning is not judged: {error}")
        return 0
    failed = carry_out(runs, known.jobs, known.quiet, known.imports, engine) if runs else []
    if failed:
        note_failures(
            folder / "quality",
            {(r.environment, r.agent, r.seed): why for r, why in failed},
            tried=[(r.environment, r.agent, r.seed) for r in runs],
        )
    with Progress(known.quiet) as progress:
        told: set[str] = set()

        def on_event(event: dict[str, Any]) -> None:
            if event.get("what") and event["what"] not in told:
                told.add(event["what"])
                progress.say(f"judging: {event['what']}")

        until = begun + plan.budget if plan.budget else math.inf
        report.keep_quality(folder, judge(plan, folder, on_event, until).to_table())
    return len(failed)


def _predict_alone(known: argparse.Namespace, rest: list[str]) -> int:
    if not known.predict:
        raise ConfigError("Which environment? Write for example `mfmarl scale ising --agents mfq,iql`.")
    if not known.name:
        raise ConfigError("--predict needs an environment to measure, or --name of a sweep that was measured.")
    if rest:
        raise ConfigError(f"{rest[0]} has no meaning without an environment: nothing is measured.")
    from mfmarl.evaluation.scaling import sweep
    from mfmarl.evaluation.scaling.cost_model import parse_cluster
    from mfmarl.learning.run_folder import inside

    for cluster in known.predict:
        parse_cluster(cluster)
    folder = inside(known.runs, known.name)
    if not (folder / "scale.json").is_file():
        there = sorted(p.parent.name for p in known.runs.glob("*/scale.json")) if known.runs.is_dir() else []
        raise ConfigError(f"There is no sweep in {folder}.{nearest(known.name, there)}")
    sweep.read_plan(folder)
    return _conclude(known, folder, None, 0)


def _conclude(known: argparse.Namespace, folder: Path, stopped: MfmarlError | None, failed_runs: int) -> int:
    from mfmarl.evaluation.scaling import report

    report.keep_clusters(folder, known.predict)
    numbers = report.gather(folder, measure_network=stopped is None)
    page = report.write_report(folder, numbers)
    failed = numbers["state"]["failed"]
    code = 0 if stopped is None else stopped.exit_code
    error = "" if stopped is None else str(stopped)
    if not error and (failed or failed_runs):
        code = RunsFailed.exit_code
        parts = [f"{n} of the {what}" for n, what in ((failed, "points"), (failed_runs, "learning runs")) if n]
        why = next((p["reason"] for p in numbers["points"] if p["status"] == "failed"), "")
        error = f"{' and '.join(parts)} failed{f'; the first: {why}' if why else '; see the report'}"
    if known.json:
        kind = stopped.code if stopped is not None else RunsFailed.code
        ended = {"error": error, "exit_code": code, "code": kind} if error else {}
        print(json.dumps({**numbers, "report": str(page), "folder": str(folder), **ended}))
    else:
        from rich.console import Console

        report.print_numbers(numbers, Console())
        print(f"report: {page}")
    if error:
        print(
            f"mfmarl: {printable(error)} [{stopped.code if stopped is not None else RunsFailed.code}]", file=sys.stderr
        )
    return code
