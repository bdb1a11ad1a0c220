"""Run folders and comparison folders, read into arrays: values, no state.

A comparison folder holds `comparison.json` (the plan) and runs at `<environment>/<agent>/seed-<k>/`; each run has
`config.toml`, `metrics.jsonl`, `status.json` and, where theory is known, `reference.json`. Whatever is torn or
missing is read as far as it goes, and what is wrong with it is said.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mfmarl.errors import ConfigError, ResourceFault, nearest
from mfmarl.population.known import Known

Array = NDArray[np.float64]
Failed = Literal["worst", "exclude"]

BURN_IN = 0.5
"""The share of a run that is left out of its time average."""
_DAMAGED = (ValueError, RecursionError, UnicodeDecodeError)
FAILURES = "failures.json"
_KINDS = ("equilibrium", "optimum", "law", "bound")


@dataclass(frozen=True)
class Run:
    """One run folder. `columns[name]` [T] holds NaN where a row lacks the number."""

    path: Path
    environment: str
    agent: str
    seed: int
    state: str
    """`done`, `diverged` (done, and its health alarms say that it fell apart; it is compared all the same), `failed`,
    `interrupted`, `running` or `missing`."""
    steps: NDArray[np.int64]
    columns: dict[str, Array] = field(repr=False)
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    references: dict[str, Known] = field(default_factory=dict, repr=False)
    wall: float = 0.0
    cpu: float = 0.0
    agent_steps: int = 0
    error: str = ""
    damaged_rows: int = 0
    """Rows of metrics.jsonl, other than a torn last one, that could not be read."""

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]) if len(self.steps) else 0

    @property
    def rate(self) -> float:
        """Agent-steps per second of wall time, training and evaluation together; NaN if unknown."""
        return self.agent_steps / self.wall if self.wall > 0 else float("nan")


@dataclass(frozen=True)
class Comparison:
    """The runs of a comparison folder, with the choices under which they are scored."""

    path: Path
    name: str
    runs: tuple[Run, ...]
    environments: tuple[str, ...]
    agents: tuple[str, ...]
    seeds: tuple[int, ...]
    plan: dict[str, Any] = field(default_factory=dict, repr=False)
    independent: dict[str, str] = field(default_factory=dict)
    """Agent with a field -> its independent twin, where both are compared."""
    column: str = ""
    """The headline column; empty: `eval/reward` where every run has it, else `train/reward`."""
    burn_in: float = BURN_IN
    failed: Failed = "worst"
    """What a failed run counts as: the worst run seen in its environment, or nothing (`exclude`)."""
    baseline: str = ""
    """An agent that all others are also compared with."""
    notes: tuple[str, ...] = ()
    """What was compared although it is not alike, each in a sentence."""

    def of(self, environment: str, agent: str) -> tuple[Run, ...]:
        """The runs of that environment and agent, by seed."""
        found = [r for r in self.runs if r.environment == environment and r.agent == agent]
        return tuple(sorted(found, key=lambda r: r.seed))

    def within(self, environment: str) -> tuple[Run, ...]:
        return tuple(r for r in self.runs if r.environment == environment)

    def references(self, environment: str, agent: str = "") -> dict[str, Known]:
        """The known answers of an environment (for that agent), as the first run that has any states them."""
        runs = self.of(environment, agent) if agent else self.within(environment)
        return next((r.references for r in runs if r.references), {})

    def laws(self, environment: str, measure: str) -> list[tuple[Known, str]]:
        """Every distinct known answer of a measure, with what to call it: its kind, and whose it is where agents differ.

        Agents that feel no field, or act at another temperature, may obey another law.
        """
        found: dict[float, tuple[Known, list[str]]] = {}
        for agent in self.agents:
            known = self.references(environment, agent).get(measure)
            if known is not None:
                found.setdefault(known.value, (known, []))[1].append(agent)
        if len(found) == 1:
            return [(known, known.kind) for known, _ in found.values()]
        return [(known, f"{known.kind} for {', '.join(agents)}") for known, agents in found.values()]

    def headline(self, environment: str) -> str:
        """The column that scores a run there."""
        if self.column:
            return self.column
        complete = [r for r in self.within(environment) if r.state in ENDED] or self.within(environment)
        return "eval/reward" if complete and all("eval/reward" in r.columns for r in complete) else "train/reward"


@dataclass(frozen=True)
class Scores:
    """One number per run of an agent in an environment; `seeds` and `values` lie in step.

    A failed run is never dropped silently. Where a number is needed it counts as the worst run seen in its environment;
    where only order matters it comes last, below that run too (the worst rank: Lachin 1999, "Worst-rank
    score analysis with informatively missing observations in clinical trials", Control. Clin. Trials 20, 408).
    """

    seeds: tuple[int, ...]
    values: Array
    """[runs]; failed runs are counted as the worst run seen, or left out."""
    failed: int
    planned: int
    """All runs, the failed ones included."""
    lost: tuple[bool, ...] = ()
    """Of each of `values`, whether it stands for a failed run; empty: none does."""

    @property
    def ranked(self) -> Array:
        """[runs] `values` for comparing by order: a failed run is below every other, and equal to a failed one."""
        return np.where(self.lost, -np.inf, self.values) if self.lost else self.values


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError where it is missing, damaged or no object."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    except OSError as error:
        raise ResourceFault(f"{path} cannot be read: {error.strerror}.") from error
    except _DAMAGED as error:
        raise ConfigError(f"{path} is not JSON ({error}).") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path} holds {type(table).__name__}, expected a JSON object.")
    return table


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all; returns its path. Raises ResourceFault where the folder cannot be written."""
    return write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, data: bytes) -> Path:
    """As `write_text`, for bytes."""
    partial = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ResourceFault(f"{path} cannot be written: {error.strerror}.") from error
    return path


def folder_name(name: str) -> str:
    """The folder of an environment or agent called `name`: `magent2/battle_v4` -> `magent2_battle_v4`."""
    return "".join(c if c.isalnum() or c in "._-=,+" else "_" for c in name).strip(".") or "_"


def read_run(path: Path, environment: str = "", agent: str = "") -> Run:
    """One run folder, however far it got. `environment` and `agent` name it where its config does not.

    Raises ConfigError where there is no run at `path` at all.
    """
    path = Path(path)
    if not any((path / name).is_file() for name in ("config.toml", "metrics.jsonl", "status.json")):
        raise ConfigError(f"{path} is not a run folder: it has neither config.toml nor metrics.jsonl nor status.json.")
    config, config_error = _config(path / "config.toml")
    steps, columns, damaged = _metrics(path / "metrics.jsonl")
    try:
        status, status_error = read_json(path / "status.json"), ""
    except ConfigError as error:
        status, status_error = {}, str(error)
    run = _table(config, "run")
    agents = _table(config, "agents")
    names = {str(_table(agents, group).get("name", "")) for group in agents} - {""}
    seed = _number(run.get("seed"), math.nan)
    if math.isnan(seed):
        found = re.search(r"(\d+)$", path.name)
        seed = int(found.group(1)) if found else 0
    return Run(
        path=path,
        environment=environment or str(_table(config, "environment").get("name", path.parent.parent.name)),
        agent=agent or (names.pop() if len(names) == 1 else "+".join(sorted(names)) or path.parent.name),
        seed=int(seed),
        state=_state(status),
        steps=steps,
        columns=columns,
        config=config,
        references=_references(path / "reference.json"),
        wall=_number(status.get("wall"), _last(columns, "wall")),
        cpu=_number(status.get("cpu"), _last(columns, "cpu")),
        agent_steps=int(_number(status.get("agent_steps"), _last(columns, "agent_steps"))),
        error=str(status.get("error") or status.get("diverged") or status_error or config_error),
        damaged_rows=damaged,
    )


def read_comparison(
    path: Path,
    *,
    column: str = "",
    burn_in: float = BURN_IN,
    failed: Failed = "worst",
    baseline: str = "",
    allow_unequal: bool = False,
    without_diverged: bool = False,
) -> Comparison:
    """A comparison folder: its plan and every run in it; a planned run without a folder is `missing`.

    Runs of one environment must have had the same number of steps, the same options (their seeds and what does not touch
    their course excepted) and the same versions of mfmarl and torch. With `allow_unequal` all are cut to the shortest
    that is not failed or missing, and `notes` says what is not alike. Runs that diverged count as they are, unless
    `without_diverged`; either is noted. Raises ConfigError for an unfinished or unequal
    comparison (naming a run and what to do), an unknown column or baseline, and a folder without runs.
    """
    path = Path(path)
    if not 0 <= burn_in < 1:
        raise ConfigError(f"burn_in is the share of a run that is left out: it must lie in [0, 1), not {burn_in}.")
    plan, noted = read_plan(path), read_failures(path)
    environments, agents = _names(plan.get("environments")), _names(plan.get("agents"))
    runs: list[Run] = []
    for folder in run_folders(path):
        environment, agent, _ = cell_of(folder, plan)
        try:
            runs.append(read_run(folder, environment, agent))
        except ConfigError:
            continue  # an empty or foreign folder: reported as missing, if it was planned
    seen = {(r.environment, r.agent, r.seed) for r in runs}
    for environment, agent, seed in planned(plan):
        if (environment, agent, seed) not in seen:
            runs.append(_missing(path / place_of(environment, agent, seed), environment, agent, seed))
    runs = [_told_failed(r, noted) for r in runs]
    odd = sum(r.state == "diverged" for r in runs)
    notes = []
    if odd:
        fate = "left out, as asked" if without_diverged else "compared all the same"
        notes.append(f"{odd} of {len(runs)} runs diverged, by their own health alarms ({fate}).")
    if without_diverged:
        runs = [r for r in runs if r.state != "diverged"]
    if not any(len(r.steps) for r in runs):
        raise ConfigError(f"{path} holds no run with results; expected runs at <environment>/<agent>/seed-<k>/.")
    found_agents = tuple(dict.fromkeys([*agents, *(r.agent for r in runs)]))
    if baseline and baseline not in found_agents:
        raise ConfigError(f"There is no agent {baseline!r} in {path}.{nearest(baseline, found_agents)}")
    comparison = Comparison(
        path=path,
        name=str(plan.get("name") or path.resolve().name),
        runs=tuple(runs),
        environments=tuple(dict.fromkeys([*environments, *(r.environment for r in runs)])),
        agents=found_agents,
        seeds=tuple(sorted({r.seed for r in runs})),
        plan=plan,
        independent=_twins(found_agents, plan),
        column=column,
        burn_in=burn_in,
        failed=failed,
        baseline=baseline,
        notes=tuple(notes),
    )
    comparison = _equal_budget(comparison, allow_unequal)
    for environment in comparison.environments:
        _check_column(comparison, environment)
    return comparison


def read_plan(folder: Path) -> dict[str, Any]:
    """`comparison.json`; empty where there is none. Raises ConfigError where it is damaged."""
    return read_json(folder / "comparison.json") if (folder / "comparison.json").is_file() else {}


def read_failures(folder: Path) -> dict[str, Any]:
    """What `note_failures` keeps. Raises ConfigError where it is damaged."""
    return read_json(folder / FAILURES) if (folder / FAILURES).is_file() else {}


def planned(plan: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(environment, agent, seed) of every run that a plan names."""
    environments, agents = _names(plan.get("environments")), _names(plan.get("agents"))
    return [(e, a, seed) for e in environments for a in agents for seed in _seeds(plan.get("seeds"))]


def run_folders(path: Path) -> list[Path]:
    """The folders in a comparison's that may be runs, in order; empty ones and links are left out."""
    return [
        folder
        for folder in sorted(path.glob("*/*/seed-*"), key=lambda p: (p.parts[:-1], _digits(p.name)))
        if folder.is_dir() and not folder.is_symlink() and any(folder.iterdir())
    ]


def cell_of(folder: Path, plan: dict[str, Any]) -> tuple[str, str, int]:
    """(environment, agent, seed) of a run's folder, by the labels of the plan."""
    environment = _named(folder.parent.parent.name, _names(plan.get("environments")))
    return environment, _named(folder.parent.name, _names(plan.get("agents"))), _digits(folder.name)


def note_failures(
    path: Path, reasons: dict[tuple[str, str, int], str], tried: Iterable[tuple[str, str, int]] = ()
) -> Path:
    """Keep, in a comparison folder, why runs failed that could not say so themselves: {(environment, agent, seed): why}.

    A run whose process died, or that could not begin, is then read as failed, not as unfinished; once done it is done.
    What was kept of runs that were `tried` since is forgotten.
    """
    again = {str(place_of(*run)) for run in tried}
    kept = {where: why for where, why in read_failures(path).items() if where not in again}
    table = kept | {str(place_of(*run)): why for run, why in reasons.items()}
    return write_text(path / FAILURES, json.dumps(dict(sorted(table.items())), indent=1))


def time_average(run: Run, column: str, burn_in: float = BURN_IN, settled: bool = False) -> float:
    """Mean of a column over the rows after the burn-in: never the best moment of a run. NaN without such a row.

    `settled`: of these, the rows whose temperatures lie within a tenth of the last ones.
    A row that lacks the number (evaluation may be rarer than reports) does not count; a NaN or infinite row makes it NaN.
    """
    if column not in run.columns or not len(run.steps):
        return float("nan")
    late = run.steps > burn_in * run.last_step
    if settled:
        for name, temperature in run.columns.items():
            if name.endswith("/temperature"):
                last = temperature[-1]
                late &= ~(np.abs(temperature - last) > 0.1 * abs(last))
    values = run.columns[column][late]
    values = values[_present(values)]
    return float(values.mean()) if len(values) and np.isfinite(values).all() else float("nan")


def has_failed(run: Run, comparison: Comparison) -> bool:
    """A run that failed, is missing, or whose headline score is not a number."""
    if run.state in ("failed", "missing"):
        return True
    return math.isnan(time_average(run, comparison.headline(run.environment), comparison.burn_in))


def scores(comparison: Comparison, environment: str, agent: str) -> Scores:
    """The headline score of every run of that agent there, by seed, failed runs treated as the comparison says."""
    column, burn_in = comparison.headline(environment), comparison.burn_in
    runs = comparison.of(environment, agent)
    broken = [has_failed(r, comparison) for r in runs]
    everyone = [
        time_average(r, column, burn_in) for r in comparison.within(environment) if not has_failed(r, comparison)
    ]
    worst = min(everyone, default=float("nan"))
    seeds, values, lost = [], [], []
    for run, bad in zip(runs, broken, strict=True):
        if not bad:
            seeds.append(run.seed)
            values.append(time_average(run, column, burn_in))
            lost.append(False)
        elif comparison.failed == "worst" and not all(broken):
            seeds.append(run.seed)
            values.append(worst)
            lost.append(True)
    return Scores(tuple(seeds), np.array(values, dtype=np.float64), sum(broken), len(runs), tuple(lost))


def measured(comparison: Comparison, environment: str, agent: str, measure: str, settled: bool = False) -> Scores:
    """The time average of a measure in every run that finished: failed runs have none, and are left out.

    `settled`: over the rows at the temperature that the run ends at, which is what theory speaks of.
    """
    column = measure_column(comparison, environment, measure)
    runs = [r for r in comparison.of(environment, agent) if r.state not in ("failed", "missing")]
    values = [time_average(r, column, comparison.burn_in, settled) for r in runs]
    kept = [(r.seed, v) for r, v in zip(runs, values, strict=True) if not math.isnan(v)]
    planned = len(comparison.of(environment, agent))
    return Scores(
        tuple(s for s, _ in kept), np.array([v for _, v in kept], dtype=np.float64), planned - len(kept), planned
    )


def at_end(comparison: Comparison, environment: str, agent: str, column: str) -> Scores:
    """The last number in a column of every run that finished; runs without one are left out."""
    runs = [
        r for r in comparison.of(environment, agent) if r.state not in ("failed", "missing") and column in r.columns
    ]
    ends = [(r.seed, r.columns[column][_present(r.columns[column])]) for r in runs]
    kept = [(seed, float(values[-1])) for seed, values in ends if len(values) and np.isfinite(values[-1])]
    planned = len(comparison.of(environment, agent))
    return Scores(tuple(s for s, _ in kept), np.array([v for _, v in kept]), planned - len(kept), planned)


def measure_column(comparison: Comparison, environment: str, measure: str) -> str:
    """The column of a measure: itself, or `eval/<measure>` where a run has it, else `train/<measure>`, else empty."""
    columns = {name for r in comparison.within(environment) for name in r.columns}
    return next((c for c in (measure, f"eval/{measure}", f"train/{measure}") if c in columns), "")


def curves(comparison: Comparison, environment: str, agent: str, column: str) -> tuple[NDArray[np.int64], Array]:
    """Steps [T] that every finished run of that agent reports, and the column there, [runs, T]."""
    runs = [
        r for r in comparison.of(environment, agent) if r.state not in ("failed", "missing") and column in r.columns
    ]
    if not runs:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    rows = [r.steps[np.isfinite(r.columns[column])] for r in runs]
    shared = rows[0]
    for other in rows[1:]:
        shared = np.intersect1d(shared, other)
    values = [r.columns[column][np.searchsorted(r.steps, shared)] for r in runs]
    return shared, np.stack(values) if len(shared) else np.zeros((len(runs), 0))


def pairs(comparison: Comparison) -> list[tuple[str, str]]:
    """Who is compared with whom: each agent with its independent twin, and with the baseline if there is one.

    Without a twin or a baseline the first agent is the one the others are held against.
    """
    found = [(a, b) for a, b in comparison.independent.items()]
    if comparison.baseline:
        found += [(a, comparison.baseline) for a in comparison.agents if a != comparison.baseline]
    if not found and len(comparison.agents) > 1:
        found = [(a, comparison.agents[0]) for a in comparison.agents[1:]]
    return list(dict.fromkeys(found))


def _state(status: dict[str, Any]) -> str:
    state = str(status.get("state", "interrupted"))
    return "diverged" if state == "done" and status.get("diverged") else state


def _config(path: Path) -> tuple[dict[str, Any], str]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), ""
    except FileNotFoundError:
        return {}, f"{path.name} is missing"
    except (OSError, *_DAMAGED) as error:
        return {}, f"{path.name} cannot be read: {error}"


def _metrics(path: Path) -> tuple[NDArray[np.int64], dict[str, Array], int]:
    """Steps, columns and the number of damaged rows. A repeated step (after a resume) keeps its last row."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        lines = []
    rows: dict[int, dict[str, float]] = {}
    damaged = 0
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (KeyError, TypeError, OverflowError, *_DAMAGED):
            damaged += index < len(lines) - 1  # what follows the last newline is a row that was being written
            continue
        rows[step] = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        rows[step] |= {k: _BROKEN for k, v in rows[step].items() if not math.isfinite(v)}
    order = sorted(rows)
    names = dict.fromkeys(name for step in order for name in rows[step] if name != "step")
    columns = {name: np.array([rows[step].get(name, math.nan) for step in order]) for name in names}
    return np.array(order, dtype=np.int64), columns, damaged


_BROKEN = math.inf
"""A number that was written as NaN or infinite; a number that was not written is NaN."""


def _present(values: Array) -> NDArray[np.bool_]:
    return ~np.isnan(values)


def _references(path: Path) -> dict[str, Known]:
    try:
        table = read_json(path)
    except ConfigError:
        return {}
    known = {}
    for name, entry in table.items():
        if isinstance(entry, dict):
            value = _number(entry.get("value"), math.nan)
            kind = entry.get("kind")
            if math.isfinite(value):
                known[name] = Known(value, str(entry.get("source", "")), kind if kind in _KINDS else "law")
    return known


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def _last(columns: dict[str, Array], name: str) -> float:
    values = columns.get(name, np.zeros(0))
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else 0.0


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _names(listed: Any) -> list[str]:
    # The plan names environments and agents as words, as tables with a label or a name, or as the keys of a table.
    if isinstance(listed, dict):
        return [str(name) for name in listed]
    if not isinstance(listed, list):
        return []
    return [str(e.get("label") or e.get("name") or "") if isinstance(e, dict) else str(e) for e in listed]


def _seeds(listed: Any) -> list[int]:
    if isinstance(listed, int):
        return list(range(listed))
    return [int(s) for s in listed if isinstance(s, int)] if isinstance(listed, list) else []


def _digits(name: str) -> int:
    found = re.search(r"(\d+)$", name)
    return int(found.group(1)) if found else 0


def _named(folder: str, names: Sequence[str]) -> str:
    return next((name for name in names if folder_name(name) == folder), folder)


def place_of(environment: str, agent: str, seed: int) -> PurePosixPath:
    """Where a comparison keeps that run."""
    return PurePosixPath(folder_name(environment), folder_name(agent), f"seed-{seed}")


def _told_failed(run: Run, noted: dict[str, Any]) -> Run:
    why = noted.get(str(place_of(run.environment, run.agent, run.seed)))
    if why is None or run.state in (*ENDED, "failed"):
        return run
    return replace(run, state="failed", error=str(why))


def _missing(path: Path, environment: str, agent: str, seed: int) -> Run:
    return Run(
        path, environment, agent, seed, "missing", np.zeros(0, dtype=np.int64), {}, error="the run has no results"
    )


def _twins(agents: Sequence[str], plan: dict[str, Any]) -> dict[str, str]:
    from mfmarl.registry import entries

    told = plan.get("independent")
    known = {str(a): str(b) for a, b in told.items()} if isinstance(told, dict) else {}
    if not known:
        known = {
            entry.twin: name
            for name, entry in entries("agent").items()
            if entry.twin and ("field", "nothing") in entry.overrides
        }
    found = {}
    for agent in agents:
        for name, lone in known.items():
            # The same variant or team with one word changed (mfq:bins=9, red=mfq+blue=rusher), else the plain twin.
            changed = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", lone, agent)
            twin = next((t for t in (changed, lone if agent.startswith(f"{name}:") else "") if t in agents), "")
            if twin and twin != agent:
                found[agent] = twin
    return found


def _equal_budget(comparison: Comparison, allow_unequal: bool) -> Comparison:
    """Refuse what is not alike: unfinished, missing, of unequal length, configuration or version; or note it."""
    runs, notes = list(comparison.runs), list(comparison.notes)
    for environment in comparison.environments:
        here = [r for r in runs if r.environment == environment]
        going = [r for r in here if r.state not in ("failed", "missing") and len(r.steps)]
        if not going:
            continue
        absent = [r for r in here if r.state == "missing"]
        open_ends = [r for r in going if r.state not in ENDED]
        longest, shortest = max(going, key=lambda r: r.last_step), min(going, key=lambda r: r.last_step)
        told = _unlike(environment, going)
        if not allow_unequal:
            if open_ends:
                run = open_ends[0]
                raise ConfigError(
                    f"The run {run.path} is {run.state} at step {run.last_step} ({len(open_ends)} such of {len(here)} runs "
                    f"of {environment}); finish it with `mfmarl train --resume {run.path}`, or the whole comparison with "
                    "its own command, or pass --allow-unequal to cut all runs to the shortest.",
                    "unfinished-runs",
                )
            if absent:
                raise ConfigError(
                    f"The planned run {absent[0].path} has no results ({len(absent)} such of {len(here)} runs of "
                    f"{environment}); run the comparison again to go on with it, or pass --allow-unequal to report "
                    "without it.",
                    "unfinished-runs",
                )
            if shortest.last_step != longest.last_step:
                fewer = sum(r.last_step < longest.last_step for r in going)
                raise ConfigError(
                    f"The runs of {environment} had different budgets ({fewer} of {len(going)} fewer steps): "
                    f"{shortest.path} {shortest.last_step} steps, {longest.path} {longest.last_step}; pass "
                    "--allow-unequal to cut all to the shortest.",
                    "unequal-runs",
                )
            if told:
                raise ConfigError(f"{told}; pass --allow-unequal to compare them all the same.", "unequal-runs")
        else:
            end = shortest.last_step
            runs = [_cut(r, end) if r.environment == environment and r.last_step > end else r for r in runs]
            if end < longest.last_step:
                longer = sum(r.last_step > end for r in going)
                notes.append(
                    f"{longer} of {len(going)} runs of {environment} are cut to the {end} steps of the shortest."
                )
            if open_ends:
                notes.append(f"{len(open_ends)} of {len(here)} runs of {environment} are not finished.")
            if absent:
                notes.append(f"{len(absent)} of {len(here)} planned runs of {environment} have no results.")
            if told:
                notes.append(f"{told}.")
    return replace(comparison, runs=tuple(runs), notes=tuple(notes))


ENDED = ("done", "diverged")
_OWN = ("seed", "steps", "checkpoint_seconds", "tensorboard", "workers", "device", "ranks", "divide", "threads")
"""Options of a run that may differ within a comparison: its seed, and how it is carried out. (Steps are counted.)"""
_VERSIONS = ("mfmarl", "torch")


def _unlike(environment: str, runs: Sequence[Run]) -> str:
    """The first difference in configuration or version among runs that are compared, in a sentence without its end."""
    first = runs[0]
    of_agent: dict[str, Run] = {}
    for run in runs:
        peer = of_agent.setdefault(run.agent, run)
        for one, table, own in ((first, "run", _OWN), (first, "environment", ()), (peer, "agents", ())):
            there, here = _flat(_table(one.config, table)), _flat(_table(run.config, table))
            for name in there.keys() & here.keys():
                if name not in own and there[name] != here[name]:
                    return _told_unlike(environment, runs, (table, name), one, run, there[name], here[name])
        there, here = _table(first.config, "versions"), _table(run.config, "versions")
        for name in _VERSIONS:
            if name in there and name in here and there[name] != here[name]:
                return _told_unlike(environment, runs, ("versions", name), first, run, there[name], here[name])
    return ""


def _told_unlike(
    environment: str, runs: Sequence[Run], where: tuple[str, str], one: Run, other: Run, there: Any, here: Any
) -> str:
    table, name = where
    peers = runs if table != "agents" else [r for r in runs if r.agent == one.agent]
    many = sum(_flat(_table(r.config, table)).get(name, there) != there for r in peers)
    return (
        f"{many} of {len(peers)} runs of {environment} were made otherwise than {one.path}: {table}.{name} is {there!r} "
        f"there and {here!r} in {other.path}"
    )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _cut(run: Run, end: int) -> Run:
    kept = run.steps <= end
    return replace(run, steps=run.steps[kept], columns={k: v[kept] for k, v in run.columns.items()})


def _check_column(comparison: Comparison, environment: str) -> None:
    column = comparison.headline(environment)
    known = {name for r in comparison.within(environment) for name in r.columns}
    if known and column not in known:
        raise ConfigError(f"No run of {environment} reports {column!r}.{nearest(column, known)}")
