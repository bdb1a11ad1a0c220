"""A comparison in numbers and sentences: the same dictionary feeds `--json`, the terminal and the report."""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mfmarl import __version__
from mfmarl.errors import printable
from mfmarl.evaluation import cells as cells_of
from mfmarl.evaluation import results, statistics
from mfmarl.evaluation.results import Comparison, Scores
from mfmarl.evaluation.statistics import Difference, Estimate

if TYPE_CHECKING:
    from rich.console import Console

EQUAL = 0.05
"""Two agents are called equal where the whole interval of their difference is within this share of the score."""


def summary(comparison: Comparison) -> dict[str, Any]:
    """Everything the report says, as plain values that JSON can hold (what is not a number is None).

    `environments[name]` has `agents[name]` (interquartile mean, interval, runs, failed, scores per seed, distance to
    theory, times), `pairs` (difference, probability of improvement, Holm-corrected verdict, a sentence) and `sentences`;
    `overall` pools several environments on a scale where 0 is the worst run of each and 1 the best.
    """
    compared = [(e, a, b) for e in comparison.environments for a, b in results.pairs(comparison)]
    differences = [difference(comparison, e, a, b) for e, a, b in compared]
    tested = [i for i, d in enumerate(differences) if d is not None]
    adjusted: dict[int, float] = dict(
        zip(tested, statistics.holm([d.p for d in differences if d is not None]), strict=True)
    )
    environments: dict[str, Any] = {}
    for environment in comparison.environments:
        agents = {a: _agent(comparison, environment, a) for a in comparison.agents if comparison.of(environment, a)}
        found = [
            _pair(comparison, e, a, b, differences[i], adjusted.get(i, 1.0), agents)
            for i, (e, a, b) in enumerate(compared)
            if e == environment and a in agents and b in agents
        ]
        environments[environment] = {
            "score": comparison.headline(environment),
            "steps": max((r.last_step for r in comparison.within(environment)), default=0),
            "references": {name: known._asdict() for name, known in comparison.references(environment).items()},
            "agents": agents,
            "pairs": found,
            "sentences": [p["sentence"] for p in found] or _lonely(environment, agents),
        }
    runs = comparison.runs
    return _finite(
        {
            "comparison": comparison.name,
            "mfmarl": __version__,
            "burn_in": comparison.burn_in,
            "failed_runs_count_as": comparison.failed,
            "runs": len(runs),
            "failed_runs": sum(results.has_failed(r, comparison) for r in runs),
            "runs_by_state": cells_of.table(cells_of.cells(comparison.path)),
            "notes": [*comparison.notes, *_few(environments)],
            "environments": environments,
            "overall": _overall(comparison) if len(comparison.environments) > 1 else None,
        }
    )


FEW = 5
"""Fewer runs than these are said to be few, beside every verdict."""


def _few(environments: dict[str, Any]) -> list[str]:
    """Where an interval stands on fewer than five runs."""
    least = min((a["runs"] for e in environments.values() for a in e["agents"].values() if a["runs"]), default=FEW)
    if least >= FEW:
        return []
    runs = f"{least} run{'s' if least != 1 else ''}"
    return [f"Intervals stand on as few as {runs}: fewer than {FEW} cannot show how scores are spread."]


def difference(comparison: Comparison, environment: str, first: str, second: str) -> Difference | None:
    """Of the headline scores, first minus second, paired by the seeds that both ran; None without runs on both sides.

    Fewer than two shared seeds: the runs are taken as unpaired.
    """
    a, b = (results.scores(comparison, environment, agent) for agent in (first, second))
    return paired_difference(a, b)


def paired_difference(a: Scores, b: Scores) -> Difference | None:
    """As `difference`, of two sets of scores."""
    if not len(a.values) or not len(b.values):
        return None
    shared = sorted(set(a.seeds) & set(b.seeds))
    if len(shared) >= 2 or (len(shared) == len(a.seeds) == len(b.seeds)):
        return statistics.difference([_at(a, shared)], [_at(b, shared)])
    return statistics.difference([a.values], [b.values], paired=False)


def _at(scores: Scores, seeds: Sequence[int]) -> np.ndarray:
    by_seed = dict(zip(scores.seeds, scores.values, strict=True))
    return np.array([by_seed[s] for s in seeds])


def theory(comparison: Comparison, environment: str, agent: str) -> dict[str, dict[str, Any]]:
    """Per measure with a known answer: the measured value with its interval, theory's, and the distance between."""
    found = {}
    for name, known in comparison.references(environment, agent).items():
        column = results.measure_column(comparison, environment, name)
        values = results.measured(comparison, environment, agent, name, settled=True).values if column else np.zeros(0)
        if not len(values):
            continue
        estimate = statistics.estimate([values])
        found[name] = {
            "measured": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "runs": estimate.runs,
            "theory": known.value,
            "distance": abs(estimate.value - known.value),
            "standard_error": statistics.standard_error(values),
            "agrees": bool(estimate.low <= known.value <= estimate.high),
            "kind": known.kind,
            "source": known.source,
            "column": column,
        }
    return found


GAPS = {"limit/exploitability": "of infinitely many", "finite/exploitability": "at N"}
"""How far from equilibrium, as reports call it: never the limit alone where N is known."""


def gaps(comparison: Comparison, environment: str, agent: str) -> dict[str, dict[str, Any]]:
    """Of a mean-field game what one agent could gain by leaving the policy at the end of a run, with its interval."""
    found = {}
    for column in GAPS:
        values = results.at_end(comparison, environment, agent, column).values
        if len(values):
            found[column] = statistics.estimate([values])._asdict()
    return found


def gap_rows(about: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """For each agent that has gaps: its name, and them in the order of `GAPS`."""
    rows = []
    for name, agent in about["agents"].items():
        if found := agent.get("gaps", {}):
            cells = [found.get(column) for column in GAPS]
            rows.append((name, ["not known" if f is None else measured_text(*_interval_of(f)) for f in cells]))
    return rows


def _agent(comparison: Comparison, environment: str, agent: str) -> dict[str, Any]:
    scores = results.scores(comparison, environment, agent)
    runs = comparison.of(environment, agent)
    finished = [r for r in runs if r.state not in ("failed", "missing")]
    found = statistics.estimate([scores.values]) if len(scores.values) else Estimate(math.nan, math.nan, math.nan, 0)
    return {
        "iqm": found.value,
        "low": found.low,
        "high": found.high,
        "runs": found.runs,
        "failed": scores.failed,
        "planned": scores.planned,
        "seeds": list(scores.seeds),
        "scores": [float(v) for v in scores.values],
        "theory": theory(comparison, environment, agent),
        "gaps": gaps(comparison, environment, agent),
        "wall": _median([r.wall for r in finished]),
        "cpu": _median([r.cpu for r in finished]),
        "agent_steps": int(_median([r.agent_steps for r in finished], 0)),
        "agent_steps_per_second": _median([r.rate for r in finished]),
        "agent_steps_per_cpu_second": _median([r.agent_steps / r.cpu for r in finished if r.cpu > 0]),
        "errors": {str(r.seed): r.error or r.state for r in runs if results.has_failed(r, comparison)},
    }


def _pair(
    comparison: Comparison,
    environment: str,
    first: str,
    second: str,
    found: Difference | None,
    adjusted: float,
    agents: dict[str, Any],
) -> dict[str, Any]:
    a, b = (results.scores(comparison, environment, agent) for agent in (first, second))
    entry: dict[str, Any] = {
        "first": first,
        "second": second,
        "twins": comparison.independent.get(first) == second,
    }
    if found is None:
        dead = " and ".join(x for x, s in ((first, a), (second, b)) if not len(s.values))
        entry |= {"verdict": "no result", "improvement": None, "difference": None}
        entry["sentence"] = f"{first} and {second} cannot be compared: every run of {dead} failed."
        return entry
    improvement = statistics.probability_of_improvement([a.ranked], [b.ranked])
    verdict = statistics.verdict(found, adjusted)
    margin = EQUAL * max(abs(agents[first]["iqm"]), abs(agents[second]["iqm"]))
    entry |= {
        "verdict": verdict,
        "difference": found._asdict() | {"p_holm": adjusted},
        "improvement": improvement._asdict(),
        "equal_within": margin
        if verdict == "not separable" and -margin <= found.low and found.high <= margin
        else None,
    }
    entry["sentence"] = _sentence(comparison, entry, found, adjusted, improvement, agents, (a, b))
    return entry


def _sentence(
    comparison: Comparison,
    entry: dict[str, Any],
    found: Difference,
    adjusted: float,
    improvement: Estimate,
    agents: dict[str, Any],
    sides: tuple[Scores, Scores],
) -> str:
    first, second = entry["first"], entry["second"]
    twin = "its independent twin " if entry["twins"] else ""
    change = f"{signed(found.value, found.low, found.high)} {interval(found.low, found.high)}"
    runs = f"{found.runs} run{'s' if found.runs != 1 else ''}"
    fine = (found.high - found.low) / 2
    if entry["verdict"] != "not separable":
        text = (
            f"{first} is {entry['verdict']} than {twin}{second}: interquartile mean "
            f"{number(agents[first]['iqm'], fine)} against {number(agents[second]['iqm'], fine)}, difference {change} "
            f"at {runs} each, probability of improvement {improvement.value:.2f}, {p_value(adjusted)} after Holm."
        )
    elif found.runs < statistics.FEWEST:
        text = f"{first} and {twin}{second} are not separable at {runs}: a verdict needs {statistics.FEWEST} or more."
    elif found.value == found.low == found.high == 0:
        text = f"{first} and {twin}{second} scored the same in every run ({runs} each)."
    else:
        text = f"{first} and {twin}{second} are not separable at {runs} each: difference {change}, {p_value(adjusted)} after Holm"
        text += f"; they are equal within {EQUAL:.0%} of the score." if entry["equal_within"] is not None else "."
    text += _same_by_theory(entry, agents) or _own_laws(entry, agents)
    for name, side in ((first, sides[0]), (second, sides[1])):
        if side.failed:
            fate = "counted as the worst run seen" if comparison.failed == "worst" else "left out, as asked"
            text += f" {side.failed} of {side.planned} runs of {name} failed ({fate})."
    return text


def _same_law(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return math.isclose(one["theory"], two["theory"], rel_tol=1e-9, abs_tol=1e-12)


def _own_laws(entry: dict[str, Any], agents: dict[str, Any]) -> str:
    # Two agents may differ because theory says so: each is then held against its own answer.
    one, two = agents[entry["first"]]["theory"], agents[entry["second"]]["theory"]
    differing = [m for m in one if m in two and not _same_law(one[m], two[m])]
    told = [m for m in differing if one[m]["agrees"] and two[m]["agrees"]]
    if not told:
        return ""
    m = min(told, key=lambda name: name != "reward")
    each = (f"{number(f['theory'])} for {a} (measured {number(f['measured'], f['high'] - f['low'])})"
            for a, f in ((entry["first"], one[m]), (entry["second"], two[m])))  # fmt: skip
    return f" Theory says that they differ, and each agrees with its own law: {m} {' and '.join(each)}."


def _same_by_theory(entry: dict[str, Any], agents: dict[str, Any]) -> str:
    # Not separable is not equal: an interval that is wide enough holds any answer.
    if entry["equal_within"] is None:
        return ""
    one, two = agents[entry["first"]]["theory"], agents[entry["second"]]["theory"]
    shared = [m for m in one if m in two and one[m]["kind"] in ("law", "equilibrium") and _same_law(one[m], two[m])]
    agreeing = [m for m in shared if one[m]["agrees"] and two[m]["agrees"]]
    if not agreeing:
        return ""
    agreeing.sort(key=lambda m: "/" in m)  # share/0, share/1 and the like last
    stated = ", ".join(f"{m} {number(one[m]['theory'])}" for m in agreeing[:3])
    stated += f" and {len(agreeing) - 3} more" if len(agreeing) > 3 else ""
    return f" Theory gives both the same answer ({stated}), and the intervals of both hold it."


def _lonely(environment: str, agents: dict[str, Any]) -> list[str]:
    return [
        f"{name}: interquartile mean {number(a['iqm'], a['high'] - a['low'])} {interval(a['low'], a['high'])}, "
        f"{a['runs']} run{'s' if a['runs'] != 1 else ''}; there is no other agent to compare with."
        for name, a in agents.items()
        if a["runs"]
    ] or [f"No run finished on {environment}."]


def pooled(comparison: Comparison) -> dict[str, list[np.ndarray]]:
    """Per agent, its scores in each environment on the common scale 0 to 1.

    An agent all of whose runs failed in an environment counts there as the worst run seen, 0 (as the comparison's
    `failed` says). Agents that were not planned everywhere are left out.
    """
    tasks: dict[str, list[np.ndarray]] = {agent: [] for agent in comparison.agents}
    for environment in comparison.environments:
        found = {a: results.scores(comparison, environment, a) for a in comparison.agents}
        present = {a: s.values for a, s in found.items() if len(s.values)}
        if not present:
            continue
        for agent, values in zip(present, statistics.normalise(list(present.values())), strict=True):
            tasks[agent].append(values)
        if comparison.failed == "worst":
            for agent, scores in found.items():
                if agent not in present and scores.planned:
                    tasks[agent].append(np.zeros(scores.planned))
    complete = max((len(t) for t in tasks.values()), default=0)
    return {agent: t for agent, t in tasks.items() if t and len(t) == complete}


def _overall(comparison: Comparison) -> dict[str, Any]:
    tasks = pooled(comparison)
    return {
        "scale": "0 is the worst run of each environment, 1 the best",
        "left_out": [a for a in comparison.agents if a not in tasks],
        "agents": {a: statistics.estimate(t)._asdict() for a, t in tasks.items()},
        "pairs": [
            {
                "first": a,
                "second": b,
                "improvement": statistics.probability_of_improvement(tasks[a], tasks[b])._asdict(),
            }
            for a, b in results.pairs(comparison)
            if a in tasks and b in tasks
        ],
    }


def number(value: float | None, scale: float = 0.0) -> str:
    """A number with as many digits as `scale`, its uncertainty, makes meaningful (four without one)."""
    if value is None or not math.isfinite(value):
        return "–"
    if scale and math.isfinite(scale):
        digits = min(8, max(0, 1 - math.floor(math.log10(abs(scale)))))
        if abs(value) < 1e7 and (digits <= 5 or abs(value) > 10**-digits):
            return _minus(f"{value:,.{digits}f}")
    return _minus(f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}")


def signed(value: float, low: float, high: float) -> str:
    text = number(value, (high - low) / 2)
    return text if value < 0 or not math.isfinite(value) else f"+{text}"


def interval(low: float | None, high: float | None) -> str:
    """`[low, high]`, or `(no interval)` for a single run."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return "(no interval)"
    return f"[{number(low, (high - low) / 2)}, {number(high, (high - low) / 2)}]"


def p_value(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def count(value: float | None) -> str:
    """A rate or a number of steps, to three digits with k, M or G."""
    if value is None or not math.isfinite(value):
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _minus(text: str) -> str:
    # What rounds to nothing has no sign.
    return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")


def _median(values: Sequence[float], default: float = math.nan) -> float:
    known = [v for v in values if math.isfinite(v)]
    return float(plain_statistics.median(known)) if known else default


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def print_table(table: dict[str, Any], console: Console) -> None:
    """The summary in a terminal: tables per environment, then sentences. Names are shown as they are, never as markup."""
    from rich.table import Table
    from rich.text import Text

    def empty(title: str, headings: Sequence[str]) -> Table:
        shown = Table(
            title=Text(printable(title)), title_justify="left", title_style="bold", header_style="dim", box=None
        )
        for place, heading in enumerate(headings):
            shown.add_column(
                Text(printable(heading)),
                justify="right" if place else "left",
                no_wrap=place > 0,
                overflow="fold" if place == 0 else "ellipsis",
                min_width=None if place else 8,
            )
        return shown

    for environment, about in table["environments"].items():
        # Long names take the room of the times, which the report has; and what failed does too.
        longest = max(map(len, about["agents"]), default=0)
        told = max((len(runs_text(agent)) for agent in about["agents"].values()), default=0)
        timed = longest + max(told, 4) + 64 <= console.width
        headings = ["agent", f"{about['score']}, 95 %", "runs", "P(impr.)", *(["wall", "CPU"] if timed else [])]
        shown = empty(environment, [*headings, "agent-steps/s"])
        for name, agent in about["agents"].items():
            chance = improvement_of(about, name)
            times = [duration(agent["wall"]), duration(agent["cpu"])] if timed else []
            shown.add_row(
                Text(printable(name), style="bold"),
                Text(measured_text(agent["iqm"], agent["low"], agent["high"]) if agent["runs"] else "failed"),
                Text(runs_text(agent), style="red" if agent["failed"] else ""),
                "" if chance is None else f"{chance['value']:.2f}",
                *times,
                count(agent["agent_steps_per_second"]),
            )
        console.print(shown)
        if measures := [row[0] for row in theory_rows(about)]:
            console.print()
            shown = empty("", ["against theory", *about["agents"]])
            for measure in measures:
                found = [a["theory"].get(measure) for a in about["agents"].values()]
                shown.add_row(Text(printable(measure)), *("–" if f is None else _starred(f) for f in found))
                shown.add_row("  theory", *("" if f is None else number(f["theory"]) + " " for f in found), style="dim")
            console.print(shown)
            console.print(Text(" * theory lies outside the 95 % interval", style="dim"))
        if left := gap_rows(about):
            console.print()
            shown = empty("exploitability at the end of a run", ["agent", *GAPS.values()])
            for name, cells in left:
                shown.add_row(Text(printable(name), style="bold"), *(Text(cell) for cell in cells))
            console.print(shown)
        console.print()
        for sentence in about["sentences"]:
            console.print(Text(printable(sentence)))
        console.print()
    told = table["runs_by_state"]
    if told["cells"]:
        cells_of.print_cells(told, console)
    for note in table["notes"]:
        console.print(Text(printable(note), style="yellow"))


def theory_rows(about: dict[str, Any]) -> list[tuple[str, dict[str, Any], list[str]]]:
    """Per measure with a known answer: its name, the answer, and each agent's distance (empty where not measured)."""
    agents = about["agents"].values()
    measures = dict.fromkeys(m for a in agents for m in a["theory"])
    rows = []
    for m in measures:
        found = [a["theory"].get(m) for a in agents]
        cells = ["" if f is None else _off(f) for f in found]
        known = [f for f in found if f is not None]
        texts = dict.fromkeys(number(f["theory"]) for f in known)
        rows.append((m, {**known[0], "text": " / ".join(texts)}, cells))
    return rows


def _starred(found: dict[str, Any]) -> str:
    """What was measured, with a star where its interval does not hold what theory says."""
    width = 0.0 if found["low"] is None else (found["high"] - found["low"]) / 2
    return f"{number(found['measured'], width)}{' ' if found['agrees'] else '*'}"


def _off(found: dict[str, Any]) -> str:
    # The half width stands beside it: at three runs nearly any answer lies within the interval.
    if found["low"] is None or not math.isfinite(found["low"]):
        return number(found["distance"])
    half = (found["high"] - found["low"]) / 2
    return f"{number(found['distance'], half or found['distance'])} ± {number(half, half)} (n = {found['runs']})"


def measured_text(value: float | None, low: float | None, high: float | None, runs: int = 0) -> str:
    """A value with its interval, in the digits that the interval makes meaningful, and how many `runs` it stands on."""
    width = 0.0 if low is None or high is None else (high - low) / 2
    return f"{number(value, width)} {interval(low, high)}{f' (n = {runs})' if runs else ''}"


def _interval_of(found: dict[str, Any]) -> tuple[float | None, float | None, float | None, int]:
    return found["value"], found["low"], found["high"], found["runs"]


def runs_text(agent: dict[str, Any]) -> str:
    return f"{agent['planned']}, {agent['failed']} failed" if agent["failed"] else str(agent["runs"])


def improvement_of(about: dict[str, Any], agent: str) -> dict[str, Any] | None:
    """The probability of improvement of an agent over the one it is compared with first; None where it is not."""
    return next((p["improvement"] for p in about["pairs"] if p["first"] == agent), None)
