"""Results for other tools: marl-eval's JSON, and a table with a row per run."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from mfmarl.evaluation import results
from mfmarl.evaluation.results import Comparison, Run, write_text

_FORMULA = ("=", "+", "-", "@")


def write_marl_eval(comparison: Comparison, path: Path | None = None) -> Path:
    """marl-eval's raw data (Gorsane et al. 2022) at `path`, default `marl_eval.json` in the folder; returns the path.

    Nested by environment, task, algorithm and run; the task is the environment's label, its environment the part before
    the slash. Metrics are the evaluated columns (else the trained ones) as lists of one number, `absolute_metrics` the
    time averages. Failed runs are left out: marl-eval cannot say that a run failed.
    """
    data: dict[str, Any] = {}
    for run in comparison.runs:
        if results.has_failed(run, comparison):
            continue
        space, _, task = run.environment.rpartition("/")
        algorithms = data.setdefault(space or "mfmarl", {}).setdefault(task, {})
        runs = algorithms.setdefault(run.agent, {})
        runs[f"run_{len(runs) + 1}"] = _marl_eval_run(run, comparison)
    return write_text(path or comparison.path / "marl_eval.json", json.dumps(data, indent=1, allow_nan=False))


def write_csv(comparison: Comparison, path: Path | None = None) -> Path:
    """A row per run, failed ones included, at `path`, default `runs.csv` in the folder; returns the path.

    Columns of numbers are time averages. A text that a spreadsheet would take for a formula is quoted by an apostrophe.
    """
    columns = sorted({c for r in comparison.runs for c in r.columns if c.startswith(("eval/", "train/"))})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed = ["environment", "agent", "seed", "state", "score", "step", "agent_steps", "wall", "cpu", "error"]
    writer.writerow([_cell(name) for name in [*fixed, *columns]])
    for run in comparison.runs:
        score = math.nan
        if not results.has_failed(run, comparison):
            score = results.time_average(run, comparison.headline(run.environment), comparison.burn_in)
        row: list[Any] = [run.environment, run.agent, run.seed, run.state, score, run.last_step, run.agent_steps]
        row += [run.wall, run.cpu, run.error, *(results.time_average(run, c, comparison.burn_in) for c in columns)]
        writer.writerow([_cell(value) for value in row])
    return write_text(path or comparison.path / "runs.csv", out.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    if isinstance(value, str):
        text = "".join(c if c.isprintable() else " " for c in value)
        return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
    return value


def _marl_eval_run(run: Run, comparison: Comparison) -> dict[str, Any]:
    prefix = "eval/" if any(c.startswith("eval/") for c in run.columns) else "train/"
    names = {c: c.removeprefix(prefix).replace("/", "_") for c in run.columns if c.startswith(prefix)}
    table: dict[str, Any] = {}
    for i, step in enumerate(run.steps):
        row = {name: [float(run.columns[c][i])] for c, name in names.items() if math.isfinite(run.columns[c][i])}
        table[f"step_{i + 1}"] = {"step_count": int(step), **row}
    averages = {name: results.time_average(run, c, comparison.burn_in) for c, name in names.items()}
    table["absolute_metrics"] = {name: [value] for name, value in averages.items() if math.isfinite(value)}
    return table
