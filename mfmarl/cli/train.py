"""`mfmarl train`: one run in its own folder."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfmarl.cli.choices import (
    add_import_option,
    add_run_options,
    all_at_once,
    assign,
    import_all,
    pairs_of,
    parse_agents,
    run_options,
    short,
)
from mfmarl.cli.signals import ended_in_a_line
from mfmarl.errors import ConfigError, MfmarlError, printable

EXAMPLES = """  mfmarl train ising --agent mfq --num-agents 400 --steps 2000
  mfmarl train congestion --agent mfq --temperature "linear(1, 0.05)" --name routes
  mfmarl train magent2/battle_v4 --agents red=mfq,blue=rusher --map-size 20 --mfq.temperature 0.01
  mfmarl train my_env.py:MyEnv --agent mfppo
  mfmarl train --config run.toml
  mfmarl train ising --temperature 2.4 --steps 1000 --diagnose
  mfmarl train --resume runs/routes
  mfmarl train --resume runs/routes --fork colder --temperature 0.01
  mfmarl list ising          # the environment's own options
  mfmarl list mfq            # the agent's own options"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("environment", nargs="?", help="a name from `mfmarl list`, or path/to/file.py:Class")
    parser.add_argument("--agent", help="one agent for everybody (default: mfq)")
    parser.add_argument("--agents", help="an agent for each team: red=mfq,blue=iql")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a config.toml; options given beside it win")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    parser.add_argument(
        "--fork",
        metavar="NAME",
        help="with --resume: leave that run as it is, and begin RUNS/NAME from its checkpoint, with other options",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="with --resume: only from the checkpoint that the run names as its latest, never an older one in its place",
    )
    parser.add_argument(
        "--allow-nonfinite",
        action="store_true",
        help="with --resume: from a checkpoint with NaN or infinity in it too, to see what goes wrong",
    )
    parser.add_argument("--name", help="the run is kept in RUNS/NAME (default: environment-agent-time)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    add_import_option(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument(
        "--diagnose",
        action="store_true",
        help="then freeze the policies and measure how the population fluctuates and answers a small incentive: its "
        "susceptibility in two ways, which agree in equilibrium and peak at a transition",
    )
    parser.add_argument(
        "--diagnose-steps",
        type=int,
        default=1000,
        metavar="STEPS",
        help="of each measurement, after as many to forget the start (default: 1000)",
    )
    add_run_options(parser)


def run(known: argparse.Namespace, rest: list[str]) -> int:
    known.newer = ""
    try:
        with warnings_in_a_line(), ended_in_a_line("Asked to stop; what was done is kept."):
            return _run(known, rest)
    except ConfigError as error:
        if not known.newer:
            raise
        told = f"{error} (That config was written by mfmarl {known.newer}, newer than this one.)"
        raise ConfigError(told, error.code) from error


def _run(known: argparse.Namespace, rest: list[str]) -> int:
    import_all(known.imports)
    if known.fork is not None and known.resume is None:
        raise ConfigError("--fork begins a run from another's checkpoint: say which, --resume RUN.")
    if known.resume is None and (known.strict or known.allow_nonfinite):
        raise ConfigError("--strict and --allow-nonfinite are about a checkpoint: say of which run, --resume RUN.")
    if known.resume is not None:
        config, path, resume = _resumed(known, rest)
    else:
        config, path, resume = _new(known, rest)

    from mfmarl.cli.progress import Progress
    from mfmarl.learning.run import Trust, run_in_folder
    from mfmarl.learning.run_folder import read_metrics, read_status
    from mfmarl.population.ranks import join

    trust = Trust(strict=known.strict, nonfinite=known.allow_nonfinite)

    ranks = join(config.run.device)
    path = Path(ranks.tell(str(path)))
    if ranks.count > 1 and known.diagnose:
        raise ConfigError("--diagnose freezes a whole population: diagnose a divided run without torchrun.")
    if not ranks.first:
        run_in_folder(config, path, resume=resume, ranks=ranks, trust=trust)
        ranks.close()
        return 0
    if config.run.device == "auto":
        from mfmarl.learning.build import choose_device

        print(f"mfmarl: --device auto is {choose_device('auto')}", file=sys.stderr)
    started = time.monotonic()
    with Progress(known.quiet) as progress:
        progress.add("training", config.run.steps)
        first: list[float] = []

        def on_row(row: dict[str, Any]) -> None:
            if not first:
                first.extend((row["agent_steps"], time.monotonic()))
            elapsed = time.monotonic() - first[1]
            rate = (row["agent_steps"] - first[0]) / elapsed if elapsed > 0 else 0.0
            reward = row.get("eval/reward", row.get("train/reward", float("nan")))
            with contextlib.suppress(OSError):  # who watched is gone: the terminal was closed, the pipe broke
                progress.update("training", row["step"], f"reward {reward:.4g}  {_per_second(rate)}")

        if known.diagnose:
            refuse_diagnosis(config, known.diagnose_steps)
        judges: list[Any] = []
        run_in_folder(
            config,
            path,
            resume=resume,
            on_row=on_row,
            on_start=lambda b: judges.append(b.training.judge),
            ranks=ranks,
            imports=known.imports,
            trust=trust,
        )
        ranks.close()
        found = _diagnose(path, known.diagnose_steps, progress) if known.diagnose else {}
    rows, status = read_metrics(path), read_status(path)
    page = _report(path)
    if known.json:
        print(
            json.dumps(
                {
                    "run": str(path),
                    "report": str(page or ""),
                    "status": status,
                    "last": _plain(rows[-1]) if rows else {},
                }
                | ({"diagnosis": {name: one.to_table() for name, one in found.items()}} if found else {})
            )
        )
    else:
        last = rows[-1] if rows else {}
        for name in ("eval/reward", "train/reward"):
            if name in last:
                print(f"{name:>14}  {last[name]:.5g}")
        if "limit/exploitability" in last:
            print(f"{'exploitability':>14}  {last['limit/exploitability']:.4g} of infinitely many{_at_n(last)}")
        for judge in judges:
            if judge is not None and judge.told:
                print(f"mfmarl: {judge.told}", file=sys.stderr)
        for name, one in found.items():
            team = f" of {name}" if len(found) > 1 else ""
            print(f"{'chi':>14}  {one.susceptibility}{team}: N Var(m)/T, from fluctuations")
            print(f"{'dm/dh':>14}  {one.response}{team}: from incentives of {one.incentive:.2g}")
            print(f"{'ratio':>14}  {one.violation}{team}: 1 in equilibrium")
            print(f"{'memory':>14}  {one.autocorrelation_time:.3g} steps{team}: autocorrelation time of m")
            if one.apart:
                print(f"{'':>14}  The copies settled on different sides{team}: chi is that within each.")
            if 50 * one.autocorrelation_time > known.diagnose_steps:
                print(
                    f"{'':>14}  That is long: for surer numbers, --diagnose-steps {_round(100 * one.autocorrelation_time)}"
                )
        print(f"{'time':>14}  {time.monotonic() - started:.1f} s")
        print(f"{'run':>14}  {path}")
        print(f"{'report':>14}  {page or 'none'}")
    return 0


@contextlib.contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """What a run has to say besides, as this package says things: one line each, every time."""
    from mfmarl.learning.run_folder import RunWarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, RunWarning) or category.__module__.startswith("mfmarl."):
            with contextlib.suppress(OSError):
                print(f"mfmarl: {printable(str(message))}", file=sys.stderr, flush=True)
        else:
            usual(message, category, *where)

    with warnings.catch_warnings():
        usual: Any = warnings.showwarning
        warnings.simplefilter("always", RunWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _report(path: Path) -> Path | None:
    """The page of a run that is done. What goes wrong with it costs the page alone."""
    from mfmarl.evaluation.report import report_run

    try:
        return report_run(path)
    except Exception as error:  # noqa: BLE001 - the run is done and kept, whatever a page of it says
        told = str(error) if isinstance(error, MfmarlError) else f"{type(error).__name__}: {error}"
        again = f"mfmarl report {shlex.quote(str(path))}"
        with contextlib.suppress(OSError):
            print(
                f"mfmarl: {path} is done and kept, but its report could not be made ({printable(told)}): {again}",
                file=sys.stderr,
            )
        return None


def _at_n(row: dict[str, Any]) -> str:
    if "finite/exploitability" not in row:
        return "; at N it is not known"
    error = f" +- {row['finite/standard_error']:.2g}" if "finite/standard_error" in row else ""
    return f", {row['finite/exploitability']:.4g}{error} at N"


def refuse_diagnosis(config: Any, steps: int) -> None:
    """What cannot be diagnosed is said before hours of training, where the config alone tells."""
    from mfmarl.statmech.annealing.schedule import parse_schedule

    if not 64 <= steps < 1 << 40:
        raise ConfigError(f"--diagnose-steps must be at least 64, not {steps}.")
    for choice in config.agents.values():
        schedule = parse_schedule(choice.options.get("temperature", "1"))
        if schedule.kind != "entropy" and not schedule.at(1.0) > 0:
            raise ConfigError(f"{choice.name} ends at temperature 0: its fluctuations say nothing of its response.")


def _diagnose(path: Path, steps: int, progress: Any) -> Any:
    from mfmarl.learning.diagnosis import diagnose_run
    from mfmarl.learning.run_folder import read_config

    players = max(1, len(read_config(path).get("agents", {})))
    progress.add("diagnosis", (1 + 2 * players) * 2 * steps)
    return diagnose_run(path, steps, watched=lambda done: progress.update("diagnosis", done))


def _round(steps: float) -> int:
    """Up to one digit."""
    unit = 10 ** max(len(str(int(steps))) - 1, 0)
    return -int(-steps // unit) * unit


def _per_second(rate: float) -> str:
    return f"{rate / 1e6:.2f}M agent-steps/s" if rate >= 1e6 else f"{rate / 1e3:.0f}k agent-steps/s"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and v != v else v for k, v in row.items()}


def _new(known: argparse.Namespace, rest: list[str]) -> tuple[Any, Path, bool]:
    from mfmarl.learning.run_config import Choice, RunConfig
    from mfmarl.learning.run_folder import inside

    base: dict[str, Any] = {}
    stored = None
    if known.config is not None:
        from mfmarl.learning.config_file import read_text, run_config

        found, text = read_text(known.config)
        table = _without_versions(known, found)
        # Options given beside the file belong to its environment and agents too: then all are checked together, later.
        alone = not (rest or known.environment or known.agent or known.agents)
        stored = run_config(table, str(known.config), text, whole=alone)
        base = dict(table.get("run", {}))
    for option in ("agent", "agents", "name"):
        if getattr(known, option) == "":
            raise ConfigError(f"--{option} is empty; give it a value, or leave it out.")
    if known.agent and known.agents:
        raise ConfigError("Give either --agent (one for everybody) or --agents (one for each team).")
    if not known.environment and stored is None:
        raise ConfigError(
            "Which environment? Write for example `mfmarl train ising --agent mfq`; `mfmarl list` shows them."
        )
    environment = Choice(known.environment) if known.environment else stored.environment  # type: ignore[union-attr]
    replaced = [] if known.environment else ["environments"]  # by options given beside the file
    if known.agent or known.agents or stored is None:
        text = (known.agents or known.agent or "mfq").replace(",", "+") if known.agents else known.agent or "mfq"
        team = next(iter(parse_agents(text).values()))
    else:
        team, replaced = stored.agents, [*replaced, "agents"]
    (environments, agents), options = all_at_once(
        lambda: assign(pairs_of(rest), {"here": environment}, {"here": team}, replaced),
        lambda: run_options(known, base),
    )
    config = RunConfig(environments["here"], agents["here"], options)
    name = (
        known.name
        or f"{_safe(short(environment.name))}-{_safe('-'.join(c.name for c in team.values()))}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    return config, inside(known.runs, name), False


def _without_versions(known: argparse.Namespace, table: dict[str, Any]) -> dict[str, Any]:
    """The table of a config file; `known.newer` is the version that wrote it, where that is newer than this one."""
    from mfmarl import __version__

    versions = table.get("versions")
    written = str(versions.get("mfmarl", "")) if isinstance(versions, dict) else ""
    known.newer = written if _numbers(written) > _numbers(__version__) else ""
    return {k: v for k, v in table.items() if k != "versions"}


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d{1,9}", version)[:3]]


def _safe(text: str) -> str:
    from mfmarl.evaluation.results import folder_name

    return folder_name(text)


def _resumed(known: argparse.Namespace, rest: list[str]) -> tuple[Any, Path, bool]:
    from mfmarl.learning.config_file import read_text, run_config
    from mfmarl.learning.run_config import RunConfig
    from mfmarl.learning.run_folder import CONFIG, demand_run, inside

    if known.name:
        raise ConfigError("--resume goes on in the run's own folder: leave --name out, or write --fork NAME.")
    if known.environment or known.agent or known.agents or known.config:
        raise ConfigError(
            "--resume goes on as the run's own config says: leave the environment, agents and --config out."
        )
    demand_run(known.resume)
    found, text = read_text(known.resume / CONFIG)
    table = _without_versions(known, found)
    stored = run_config(table, str(known.resume / CONFIG), text)
    environments, agents = assign(
        pairs_of(rest), {"here": stored.environment}, {"here": stored.agents}, ("environments", "agents")
    )
    config = RunConfig(environments["here"], agents["here"], run_options(known, table.get("run", {})))
    if known.fork is None:
        return config, known.resume, True
    from mfmarl.learning.run import fork

    path = inside(known.runs, known.fork)
    if path.resolve() == known.resume.resolve():
        raise ConfigError(f"{path} is the run itself: give the fork another name.", "run-exists")
    fork(known.resume, path, config)
    return config, path, True
