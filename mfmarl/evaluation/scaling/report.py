"""What a sweep over sizes tells: numbers, a sentence of verdict for each agent, a table and one self-contained page.

    numbers = gather(folder)          # all that is said and drawn, as plain values: numbers.json (see docs/scaling.md)
    write_report(folder, numbers)     # report.html, numbers.json, figures/*.svg|png

Works on whatever is there: a sweep that was killed, points that failed or were left out, without runs that learn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfmarl import __version__
from mfmarl.errors import ConfigError, MfmarlError, printable
from mfmarl.evaluation import report, results, summary
from mfmarl.evaluation.results import write_text
from mfmarl.evaluation.scaling import cost_model, fit, sweep
from mfmarl.evaluation.scaling.collective import Network
from mfmarl.evaluation.scaling.fit import AtSize, Curve
from mfmarl.evaluation.scaling.points import Measured, Plan
from mfmarl.learning.durable import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

Numbers = dict[str, Any]

MACHINES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Machines that the report looks at, where no others are asked for."""
WIRE = "10GbE"
"""The network between them."""
EQUAL = 0.02
"""What is learned is called the same at every size beyond one where it stays within this share of its largest value."""
UNSURE = 0.25
"""Intervals of half this share of the largest value, or wider, do not tell whether it changes."""
_QUALITY, _NETWORK, _CLUSTERS = "quality.json", "network.json", "clusters.json"


def keep_quality(folder: Path, table: dict[str, Any]) -> None:
    """Keep what was judged, so that reports need not judge again."""
    write_atomic(folder / _QUALITY, (json.dumps(table, indent=1) + "\n").encode())


def keep_clusters(folder: Path, texts: Sequence[str]) -> list[str]:
    """Remember what clusters were asked about, with those of before; returns them all."""
    path = folder / _CLUSTERS
    known: list[str] = []
    if path.is_file():
        told = results.read_json(path).get("clusters", [])
        known = [t for t in told if isinstance(t, str)] if isinstance(told, list) else []
    every = list(dict.fromkeys([*known, *texts]))
    if every != known:
        write_atomic(path, (json.dumps({"clusters": every}, indent=1) + "\n").encode())
    return every


# ---------------------------------------------------------------------------------------------------- numbers


def gather(folder: Path, measure_network: bool = False) -> Numbers:
    """All that the report says, as plain values that JSON can hold; its keys are told in docs/scaling.md.

    `measure_network`: time an all-reduce between two processes of this machine, where the folder has none yet.
    Raises ConfigError where the folder holds no sweep, or a file of it is damaged.
    """
    folder = Path(folder)
    plan, measured = sweep.read(folder)
    kept = results.read_json(folder / "scale.json")
    curves = fit.curves(measured)
    quality = results.read_json(folder / _QUALITY) if (folder / _QUALITY).is_file() else None
    planned = sweep.points(plan)
    states = {state: sum(m.status == state for m in measured) for state in ("done", "failed", "skipped")}
    numbers: Numbers = {
        "scale": folder.resolve().name,
        "mfmarl": __version__,
        "command": str(kept.get("command", "")),
        "versions": kept.get("versions", {}),
        "environment": {"name": plan.environment.name, "options": plan.environment.options},
        "plan": plan.to_table(),
        "machine": next((m.machine for m in measured if "processor" in m.machine), {}),
        "state": {"planned": len(planned), **states, "missing": max(0, len(planned) - len(measured))},
        "independent": results._twins(list(plan.agents), {}),
        "points": [_point(m) for m in measured],
        "series": [_series(c) for c in curves],
        "quality": quality,
    }
    numbers["machines"] = _machines(folder, plan, measured, curves, measure_network)
    numbers = _finite(numbers)
    numbers["ratios"] = _ratios(numbers)
    numbers["verdicts"] = verdicts(numbers)
    return numbers


def _point(measured: Measured) -> Numbers:
    p = measured.point
    done = measured.status == "done"
    return {
        "agent": p.agent, "kind": p.kind, "num_agents": p.num_agents, "copies": p.copies, "varied": p.varied,
        "repeat": p.repeat, "status": measured.status, "reason": measured.reason, "steps": measured.steps,
        "wall": measured.wall, "cpu": measured.cpu, "build": measured.build,
        "nanoseconds": measured.nanoseconds if done else None,
        "peak_bytes": measured.peak_bytes, "base_bytes": measured.base_bytes,
        "phases": measured.phases, "phase_steps": measured.phase_steps, "weights": measured.weights,
    }  # fmt: skip


def _series(curve: Curve) -> Numbers:
    growth, rise, memory = curve.growth, curve.rise, curve.memory
    return {
        "label": curve.label, "agent": curve.agent, "kind": curve.kind, "copies": curve.copies, "varied": curve.varied,
        "sizes": [_size(s) for s in curve.sizes],
        "missing": [{"num_agents": n, "status": status, "reason": why} for n, status, why in curve.missing],
        "growth": None if growth is None else {**growth._asdict(), "knee": growth.knee},
        "rise": None if rise is None else {**rise._asdict(), "why": curve.why},
        "memory": None if memory is None else {**memory._asdict(), "linear": memory.linear},
        "flatness": curve.flatness(),
    }  # fmt: skip


def _size(found: AtSize) -> Numbers:
    return {
        "num_agents": found.num_agents, "repeats": found.repeats, "cpu": found.cpu, "cpu_low": found.cpu_low,
        "cpu_high": found.cpu_high, "wall": found.wall, "nanoseconds": found.nanoseconds, "bytes": found.taken,
        "phases": found.phases, "shares": found.shares,
    }  # fmt: skip


def _machines(
    folder: Path, plan: Plan, measured: Sequence[Measured], curves: Sequence[Curve], measure_network: bool
) -> Numbers:
    """What M machines would do, from the points of one copy number and our own agents alone."""
    network, source = _network(folder, measure_network)
    found: Numbers = {
        "network": network.to_table(), "network_source": source, "wire": WIRE, "series": [], "asked": [],
        "held_back": [], "notes": [],
    }  # fmt: skip
    texts = keep_clusters(folder, [])
    for curve in curves:
        if not curve.ours:
            continue
        own = [
            m
            for m in measured
            if m.status == "done"
            and m.point.kind == "mfmarl"
            and (m.point.agent, m.point.copies, m.point.varied) == (curve.agent, curve.copies, curve.varied)
        ]
        try:
            model = _model(plan, own, network, found["notes"])
        except MfmarlError as error:
            found["notes"].append(str(error))
            continue
        found["held_back"] += [{**c.to_table(), "label": curve.label} for c in cost_model.held_back(own)]
        largest = max(m.point.num_agents for m in own)
        strong, weak = max(largest, 1_000_000), largest
        cluster = cost_model.Cluster(agents=strong, network=WIRE, copies=curve.copies)
        found["series"].append(
            {
                "label": curve.label,
                "strong_agents": strong,
                "weak_agents": weak,
                "strong": [_foretold(p) for p in model.strong_scaling(strong, MACHINES, cluster)],
                "weak": [
                    _foretold(p)
                    for p in model.weak_scaling(
                        weak, [m for m in MACHINES if m * weak < cost_model.MOST_AGENTS], cluster
                    )
                ],
            }
        )
        for text in texts:
            try:
                answer = model.predict(cost_model.parse_cluster(text))
                told = {**_foretold(answer), "sentence": answer.sentence(), "notes": list(answer.notes)}
            except MfmarlError as error:
                told = {"sentence": str(error)}
            found["asked"].append({"label": curve.label, "cluster": text, **told})
    found["notes"] = list(dict.fromkeys(found["notes"]))
    return found


def _model(plan: Plan, own: Sequence[Measured], network: Network, notes: list[str]) -> cost_model.CostModel:
    load = None
    if own:
        try:
            load = cost_model.load_of(plan, own[0].point)
        except MfmarlError as error:
            notes.append(f"What {own[0].point.agent} sends between ranks is not known: {error}")
    return cost_model.calibrate(own, network, load)


def _foretold(prediction: cost_model.Prediction) -> Numbers:
    table = prediction.to_table()
    return {k: v for k, v in table.items() if k not in ("cluster", "series", "notes")}


def _network(folder: Path, measure: bool) -> tuple[Network, str]:
    from mfmarl.evaluation.scaling import collective

    path = folder / _NETWORK
    if path.is_file():
        table = results.read_json(path)
        try:
            rows = tuple((int(a), int(b), float(c)) for a, b, c in table.get("measured", ()))
            return Network(**{**table, "measured": rows}), "measured between two processes of this machine"
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path} is not a network: {error}; delete it, and it is measured again.") from error
    if measure:
        try:
            found = collective.measure(ranks=2)
        except (MfmarlError, OSError) as error:
            return collective.preset("loopback"), f"of the preset, since it could not be measured: {error}"
        write_atomic(path, (json.dumps(found.to_table(), indent=1) + "\n").encode())
        return found, "measured between two processes of this machine"
    return collective.preset("loopback"), "of the preset: not measured here"


def _ratios(numbers: Numbers) -> list[Numbers]:
    """Each baseline's cost over ours, at the largest size that both were measured at."""
    found = []
    for other in (s for s in numbers["series"] if s["kind"] != "mfmarl"):
        theirs = {row["num_agents"]: row["nanoseconds"] for row in other["sizes"]}
        for own in (s for s in numbers["series"] if s["kind"] == "mfmarl" and s["copies"] == other["copies"]):
            mine = {row["num_agents"]: row["nanoseconds"] for row in own["sizes"]}
            if shared := set(theirs) & set(mine):
                at = max(shared)
                found.append(
                    {
                        "label": own["label"],
                        "baseline": other["label"],
                        "num_agents": at,
                        "ratio": theirs[at] / mine[at],
                    }
                )
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --------------------------------------------------------------------------------------------------- sentences


def verdicts(numbers: Numbers) -> list[Numbers]:
    """{"label", "agent", "sentence"} of each of our curves: only what was measured is said, and what was not is named."""
    found = []
    for one in numbers["series"]:
        if one["kind"] == "mfmarl":
            parts = [_costs(one), _parts(one), _memory(one), *_learned(numbers, one), *_beside(numbers, one),
                     _on_machines(numbers, one)]  # fmt: skip
            text = "; ".join(p for p in parts if p)
            found.append({"label": one["label"], "agent": one["agent"], "sentence": f"{one['label']}: {text}."})
    return found


def _costs(one: Numbers) -> str:
    rows, growth, rise = one["sizes"], one["growth"], one["rise"]
    if not rows:
        why = next((m["reason"] for m in one["missing"] if m["reason"]), "")
        return f"cost not measured ({why.rstrip('.')})" if why else "cost not measured"
    last = rows[-1]
    if growth is None:
        return (
            f"{_time(last['nanoseconds'] * 1e-9)} of CPU per agent and step at N = {last['num_agents']:,}; "
            "how it grows was not measured, since that needs two sizes"
        )
    reach = f"{growth['exponent']:.2f}"
    if growth["low"] is None:
        bounds = " (no interval: repeats or sizes are too few)"
    else:
        bounds = f" ({_signed(growth['low'])} to {_signed(growth['high'])})"
    text = f"cost grows as N^{reach}{bounds}"
    if growth["low"] is not None and growth["high"] - growth["low"] > 1:
        text = f"how cost grows is not determined: N^{reach}{bounds}"
    if growth["fixed"] > 0:
        text += " beyond what a step costs whatever N"
        if growth["knee"] > rows[0]["num_agents"]:
            text += f", {_time(growth['fixed'])} and most of a step below N = {_round(growth['knee'])}"
        else:
            text += f", {_time(growth['fixed'])}"
    elif growth["high"] is not None and growth["high"] < 0.8:
        text += ", as where most of a step does not depend on N yet: larger sizes would tell"
    if not growth["straight"]:
        text += "; the sizes scatter about that law more than their repeats do"
    text += f"; {_time(last['nanoseconds'] * 1e-9)} of CPU per agent and step at N = {last['num_agents']:,}"
    if rise is not None:
        text += f", {rise['factor']:.2g} times what it was before N = {_round(rise['begins'])}"
        why = max(rise["why"], key=lambda k: rise["why"][k], default="")
        if why and rise["why"][why] > 0.3:
            text += f" ({rise['why'][why]:.0%} of the rise is {_PARTS[why]})"
    return text


_PARTS = {
    "act": "the network choosing actions",
    "field": "feeling the field",
    "step": "the environment",
    "remember": "remembering",
    "learn": "learning",
    "rest": "the rest",
}


def _parts(one: Numbers) -> str:
    """What most of a step is, at the largest size, and at the smallest where that is another."""
    timed = [row for row in one["sizes"] if row["shares"]]
    if not timed:
        return "parts of a step not measured" if one["sizes"] else ""

    def most(row: Numbers) -> tuple[str, float]:
        name = max(row["shares"], key=lambda k: row["shares"][k])
        return name, row["shares"][name]

    name, share = most(timed[-1])
    text = f"{share:.0%} of a step at N = {timed[-1]['num_agents']:,} is {_PARTS[name]}"
    first, early = most(timed[0])
    if len(timed) > 1 and first != name:
        text += f", where at N = {timed[0]['num_agents']:,} {early:.0%} is {_PARTS[first]}"
    return text


def _memory(one: Numbers) -> str:
    held = one["memory"]
    if held is None:
        return "growth of memory not measured" if one["sizes"] else ""
    most = max(row["bytes"] for row in one["sizes"])
    # Two sizes without an interval: what they differ by must at least be more than what a process's memory is known to.
    grown = held["per_agent"] * one["sizes"][-1]["num_agents"] * one["copies"]
    if (held["low"] is not None and held["low"] <= 0) or (held["low"] is None and grown < fit.HEAVY):
        return f"memory {_bytes(most)} above Python and torch, which does not tell how it grows"
    text = f"memory {_bytes(held['per_agent'])} per agent"
    if held["low"] is not None:
        text += f" ({_bytes(held['low'])} to {_bytes(held['high'])})"
    if held["deviation"] is not None:
        text += ", linear within " if held["linear"] else ", not linear: sizes lie off the line by up to "
        text += f"{max(held['deviation'], 0.01):.0%}"
    return text


def _learned(numbers: Numbers, one: Numbers) -> list[str]:
    quality = numbers["quality"]
    if quality is None:
        return ["what is learned: not measured"]
    if one["varied"]:
        return []  # runs that learn are made with nothing varied
    rows = [r for r in quality["rows"] if r["agent"] == one["agent"] and r["reward"]]
    known = [(r["num_agents"], r["reward"]) for r in rows if r["reward"]["value"] is not None]
    if not known:
        return ["what is learned: no run was finished"]
    return [t for t in (_same(known), _against(rows), _far(quality, one["agent"])) if t]


def _same(known: list[tuple[int, Numbers]]) -> str:
    """From which size on the reward is the same as at the largest, by their intervals."""
    last_n, last = known[-1]
    scale = max(abs(r["value"]) for _, r in known) or 1.0
    if len(known) == 1:
        return f"reward {summary.number(last['value'])} at N = {last_n:,}, the only size at which it was learned"
    if any(r["low"] is None for _, r in known):
        return f"reward {summary.number(last['value'])} at N = {last_n:,} (one seed: no interval)"
    if max(r["high"] - r["low"] for _, r in known) > 2 * UNSURE * scale:
        return (
            f"seeds scatter too widely to tell whether what is learned changes with N: reward "
            f"{summary.measured_text(last['value'], last['low'], last['high'])} at N = {last_n:,}"
        )
    since = last_n
    for n, row in reversed(known[:-1]):
        half = 0.5 * math.hypot(row["high"] - row["low"], last["high"] - last["low"])
        if abs(row["value"] - last["value"]) > max(half, EQUAL * scale):
            break
        since = n
    reward = summary.measured_text(last["value"], last["low"], last["high"])
    if since == last_n:
        before = known[-2]
        return (
            f"what is learned still changes with N: reward {reward} at N = {last_n:,}, "
            f"{summary.measured_text(before[1]['value'], before[1]['low'], before[1]['high'])} at {before[0]:,}"
        )
    where = "at any N measured" if since == known[0][0] else f"from N = {since:,} on"
    return f"what is learned is not seen to change {where}: reward {reward} at N = {last_n:,}"


def _against(rows: list[Numbers]) -> str:
    """The distance to theory at the largest size where theory speaks."""
    for row in reversed(rows):
        for name, found in row["measures"].items():
            if found.get("theory") is not None:
                within = "within" if found["agrees"] else "beyond"
                return (
                    f"{name} is {summary.number(abs(found['distance']), _half(found))} off theory ({found['kind']}) at "
                    f"N = {row['num_agents']:,}, {within} its interval"
                )
    return ""


def _half(found: Numbers) -> float:
    """Half of an interval, in whose digits a number is told; 0 where there is none."""
    return 0.0 if found["low"] is None else float(found["high"] - found["low"]) / 2


def _far(quality: Numbers, agent: str) -> str:
    for fitted, what in (("limit_fits", "distance to infinitely many"), ("fluctuation_fits", "fluctuations")):
        for row in quality[fitted]:
            if row["agent"] == agent and row.get("exponent") is not None and row.get("low") is not None:
                if row["low"] <= 0 <= row["high"]:
                    reach = f"N^{_signed(row['low'])} to N^{_signed(row['high'])}"
                    return f"{what} ({row['name']}): not seen to change with N ({reach})"
                verb = "fall" if row["exponent"] < 0 else "grow"
                verb += "s" if what.startswith("distance") else ""
                told = "" if row["theory"] is None else f"; theory {_signed(row['theory'])}"
                reach = f"{_signed(row['low'])} to {_signed(row['high'])}"
                return f"{what} ({row['name']}) {verb} as N^{_signed(row['exponent'])} ({reach}{told})"
    return ""


def _beside(numbers: Numbers, one: Numbers) -> list[str]:
    found = []
    for row in numbers["ratios"]:
        if row["label"] == one["label"]:
            ratio = row["ratio"]
            dearer, factor = ratio >= 1, max(ratio, 1 / ratio)
            word = f"{factor:.{0 if factor >= 10 else 1}f} times {'dearer' if dearer else 'cheaper'}"
            found.append(f"{row['baseline']} is {word} at N = {row['num_agents']:,}")
    return found


def _on_machines(numbers: Numbers, one: Numbers) -> str:
    for found in numbers["machines"]["series"]:
        if found["label"] == one["label"]:
            eight = next((r for r in found["strong"] if r["ranks"] == 8), None)
            if eight is not None:
                sure = eight["low"] < eight["high"]
                reach = f"{_time(eight['low'])} to {_time(eight['high'])}; " if sure else "no interval; "
                return (
                    f"{summary.count(found['strong_agents'])} agents on 8 machines would take {_time(eight['seconds'])} "
                    f"a step ({reach}foretold, over {numbers['machines']['wire']})"
                )
    return ""


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _round(size: float) -> str:
    """A size to two digits, which is as well as a knee is known."""
    return f"{float(f'{size:.2g}'):,.0f}"


def _time(seconds: float | None) -> str:
    from mfmarl.evaluation.scaling.figures import _time as told

    return "–" if seconds is None else told(seconds)


def _bytes(size: float | None) -> str:
    from mfmarl.evaluation.scaling.figures import _bytes as told

    return "–" if size is None else told(size)


# -------------------------------------------------------------------------------------------------- the page


def write_report(folder: Path, numbers: Numbers | None = None) -> Path:
    """Write `report.html`, `numbers.json` and `figures/*` of a sweep's folder; returns the page. Raises ConfigError."""
    folder = Path(folder)
    numbers = gather(folder) if numbers is None else numbers
    # First, so that the numbers are kept whatever becomes of the figures.
    write_text(folder / "numbers.json", json.dumps(numbers, indent=1) + "\n")
    sizes = numbers["plan"]["sizes"]
    title = f"{numbers['environment']['name']}: {min(sizes):,} to {max(sizes):,} agents"
    if min(sizes) == max(sizes):
        title = f"{numbers['environment']['name']}: {max(sizes):,} agents"
    items = "".join(
        f"<li><span class='sign' aria-hidden='true'>·</span>{escape(v['sentence'])}</li>" for v in numbers["verdicts"]
    )
    body = [
        f"<header><h1>{escape(title)}</h1><p class='lead'>{_lead(numbers)}</p>",
        f"<ul class='verdicts'>{items}</ul></header>" if items else "</header>",
        _costs_section(folder, numbers),
        _phases_section(folder, numbers),
        _memory_section(folder, numbers),
        _quality_section(folder, numbers),
        _machines_section(folder, numbers),
        _missing_section(numbers),
        _method(numbers),
        _settings(numbers),
        report.html_repeat(numbers["command"]),
    ]
    return write_text(folder / "report.html", report.html_page(title, body))


def _lead(numbers: Numbers) -> str:
    state, machine = numbers["state"], numbers["machine"]
    parts = [f"{state['done']} of {state['planned']} points measured"]
    parts += [f"<span class='bad'>{state['failed']} failed</span>"] if state["failed"] else []
    parts += [f"{state['skipped']} skipped"] if state["skipped"] else []
    parts += [f"{state['missing']} not yet begun: the same command goes on"] if state["missing"] else []
    where = ""
    if machine:
        threads = machine.get("threads", 1)
        where = (
            f" On {escape(str(machine.get('processor', 'an unknown processor')))}, {threads} "
            f"thread{'s' if threads != 1 else ''}, {escape(str(machine.get('device', 'cpu')))}."
        )
    return f"{', '.join(parts)}.{where}"


def _costs_section(folder: Path, numbers: Numbers) -> str:
    from mfmarl.evaluation.scaling import figures

    headings = ["agent", "N", "CPU per agent and step", "cheapest to dearest", "CPU per step", "agent-steps/s", "memory"]  # fmt: skip
    rows = []
    for one in numbers["series"]:
        for row in one["sizes"]:
            slots = row["num_agents"] * one["copies"]
            spread = (
                f"{_time(row['cpu_low'] / slots)} to {_time(row['cpu_high'] / slots)}" if row["repeats"] > 1 else "–"
            )
            rows.append([
                one["label"], f"{row['num_agents']:,}", _time(row["nanoseconds"] * 1e-9), spread, _time(row["cpu"]),
                summary.count(slots / row["wall"]) if row["wall"] else "–",
                _bytes(row["bytes"]),
            ])  # fmt: skip
        for gone in one["missing"]:
            rows.append([one["label"], f"{gone['num_agents']:,}", gone["status"], *["–"] * 5])
    ratios = "".join(
        f"<li>{escape(r['baseline'])}: {r['ratio']:.3g} times the CPU of {escape(r['label'])} at N = {r['num_agents']:,}</li>"
        for r in numbers["ratios"]
    )
    return (
        "<section><h2>What it costs</h2>"
        + _figure(folder, "cost", figures.cost(numbers), "CPU time of one agent and step, learning included. Flat: "
                  "a step costs in proportion to its agents. It falls while a fixed part is shared by more of them.")
        + _figure(folder, "step", figures.step(numbers), "CPU-seconds of one step of everybody. The upright mark is the knee: "
                  "there half of a step is what it costs whatever N.")
        + (f"<h3>Beside others, at the largest size that both were measured at</h3><ul>{ratios}</ul>" if ratios else "")
        + report.html_table(headings, rows, range(1, len(headings)))
        + "<p class='note'>Agent-steps per second are of wall time; all else is CPU time of the process. Memory is what "
        "the process took at its largest above what it took before the population was made.</p></section>"
    )  # fmt: skip


def _phases_section(folder: Path, numbers: Numbers) -> str:
    from mfmarl.evaluation.scaling import figures

    if not any(row["shares"] for one in numbers["series"] for row in one["sizes"]):
        return "<section><h2>Which part costs what</h2><p class='note'>Not measured.</p></section>"
    return (
        "<section><h2>Which part costs what</h2>"
        + _figure(folder, "phases", figures.phases(numbers), "Shares of the CPU time of a step, by number of agents, in steps "
                  "timed apart from those above: their clocks cost something themselves.")
        + "</section>"
    )  # fmt: skip


def _memory_section(folder: Path, numbers: Numbers) -> str:
    from mfmarl.evaluation.scaling import figures

    if not any(one["memory"] for one in numbers["series"]):
        return (
            "<section><h2>Memory</h2><p class='note'>Its growth was not measured: that needs two sizes.</p></section>"
        )
    rows = []
    for one in numbers["series"]:
        held = one["memory"]
        if held is None:
            continue
        rows.append([
            one["label"], _bytes(held["per_agent"]) if held["low"] is None or held["low"] > 0 else "not determined",
            "–" if held["low"] is None else f"{_bytes(held['low'])} to {_bytes(held['high'])}", _bytes(held["fixed"]),
            "too small to tell" if held["deviation"] is None else f"{held['deviation']:.1%}",
        ])  # fmt: skip
    headings = ["agent", "for each agent", "95 % interval", "whatever N", "furthest off the line"]
    return (
        "<section><h2>Memory</h2>"
        + _figure(folder, "memory", figures.memory(numbers), "Resident memory at its largest, less what the process took "
                  "before the population was made.")
        + report.html_table(headings, rows, range(1, 5))
        + "</section>"
    )  # fmt: skip


def _quality_section(folder: Path, numbers: Numbers) -> str:
    from mfmarl.evaluation.scaling import figures

    quality = numbers["quality"]
    if quality is None:
        return "<section><h2>What is learned</h2><p class='note'>Not measured: no runs that learn were made or finished.</p></section>"
    parts = ["<section><h2>What is learned</h2>"]
    rows = quality["rows"]
    measures = list(dict.fromkeys(m for r in rows for m in r["measures"]))
    if "reward" in measures:
        parts.append(_figure(folder, "reward", figures.reward(numbers), "Reward per agent and step of the frozen policy at "
                             "the end of learning. Level: what is learned does not depend on N. Intervals wider than the figure are cut off."))  # fmt: skip
    known = [
        m
        for m in measures
        if m != "reward" and any((r["measures"].get(m) or {}).get("theory") is not None for r in rows)
    ]
    for measure in known[:2]:
        parts.append(
            _figure(
                folder, f"measure_{_stem(measure)}", figures.reward(numbers, measure), f"{measure}, against theory."
            )
        )
    parts.append(_quality_table(numbers))
    for column, called in summary.GAPS.items():
        if any((r["gaps"].get(column) or {}).get("value") for r in rows):
            parts.append(_figure(folder, f"gap_{_stem(column)}", figures.gaps(numbers, column),
                                 f"What one agent {called} could gain by leaving the learned policy."))  # fmt: skip
    for table, stem, draw, caption in (
        ("limit", "limit", figures.limit, "How far what N agents reach lies from what infinitely many would. Means come "
         "nearer as 1/N, what fluctuates as 1/√N."),
        ("fluctuations", "fluctuations", figures.fluctuations, "A population of independent agents fluctuates as 1/√N; more "
         "slowly where they move together, near a critical point."),
    ):  # fmt: skip
        if name := _told(quality[table]):
            parts.append(_figure(folder, stem, draw(numbers, name), caption))
    if any(r["steps"] for r in rows):
        parts.append(_figure(folder, "efficiency", figures.efficiency(numbers), "How many steps of the environment a run "
                             "needs, by number of agents: a larger population gives more to learn from in each."))  # fmt: skip
    if any(r.get("reward") for r in quality["transfer"]):
        parts.append(_figure(folder, "transfer", figures.transfer(numbers), "Train small, deploy large: the reward of who was "
                             "trained at N and is played at N'. Orange: less than who was trained there; blue: more; "
                             "bold: trained there."))  # fmt: skip
        why = list(dict.fromkeys(r["reason"] for r in quality["transfer"] if r.get("reason")))
        parts += [f"<p class='note'>{escape(w)}</p>" for w in why[:3]]
    if quality["failed"]:
        rows_ = [
            [f["agent"], f"{f['num_agents']:,}", str(f["seed"]), f["error"] or f["state"]] for f in quality["failed"]
        ]
        parts.append("<h3 class='bad'>Runs that are not done</h3>")
        parts.append(report.html_table(["agent", "N", "seed", "what happened"], rows_))
    if quality["skipped"]:
        rows_ = [[f"{int(n):,}", why] for n, why in quality["skipped"].items()]
        parts.append("<h3>Sizes at which nothing was learned</h3>" + report.html_table(["N", "why"], rows_))
    parts += [f"<p class='note'>{escape(note)}</p>" for note in quality["notes"]]
    return "".join(parts) + "</section>"


def _told(rows: Sequence[Numbers]) -> str:
    """Which number a figure is of: the reward where there is one, else the first that is not nothing."""
    names = list(dict.fromkeys(r["name"] for r in rows if r["value"]))
    return "reward" if "reward" in names else next(iter(names), "")


def _quality_table(numbers: Numbers) -> str:
    rows = []
    for row in numbers["quality"]["rows"]:
        reward = row["reward"]
        told = "not done" if not reward else summary.measured_text(reward["value"], reward["low"], reward["high"])
        known = next(((n, m) for n, m in row["measures"].items() if m.get("theory") is not None), None)
        distance = "–"
        if known is not None:
            distance = f"{known[0]}: {summary.number(known[1]['distance'])}"
            if known[1]["standard_errors"] is not None:
                distance += f" ({summary.number(known[1]['standard_errors'], 1)} s.e.)"
        steps = row["steps"]
        rows.append([
            row["agent"], f"{row['num_agents']:,}", told, f"{row['runs']} of {row['planned']}", distance,
            "–" if not steps else f"{steps['value']:,.0f}", str(row["copies"]),
        ])  # fmt: skip
    headings = ["agent", "N", "reward, 95 % interval", "runs", "off theory", "steps to learn", "copies"]
    return report.html_table(headings, rows, range(1, len(headings)))


def _machines_section(folder: Path, numbers: Numbers) -> str:
    from mfmarl.evaluation.scaling import figures

    found = numbers["machines"]
    parts = ["<section><h2>On many machines</h2>"]
    for one in found["asked"]:
        parts.append(f"<p><strong>{escape(one['cluster'])}</strong>: {escape(one['sentence'])}</p>")
    if found["series"]:
        parts.append(_figure(
            folder, "machines", figures.machines(numbers),
            f"Foretold from this sweep, one rank on each machine, over {found['wire']} with the software latency "
            f"{found['network_source']}. Bands: 95 %, from sizes held back. No machine but this one was used.",
        ))  # fmt: skip
    if found["held_back"]:
        checks = [c for c in found["held_back"] if c["what"] == "seconds"]
        good = sum(c["holds"] for c in checks)
        parts.append(
            f"<h3>Can it foretell what was measured?</h3><p>Each size foretold from the others: {good} of {len(checks)} "
            f"within {cost_model.TARGET:.0%}.</p>"
        )
        rows = [[c["label"], f"{c['num_agents']:,}", c["where"], _time(c["measured"]), _time(c["predicted"]),
                 f"{c['error']:+.0%}"] for c in checks]  # fmt: skip
        headings = ["agent", "N", "of the sizes", "measured step", "foretold", "error"]
        parts.append(report.html_table(headings, rows, range(1, 6)))
    if not found["series"] and not found["asked"]:
        parts.append("<p class='note'>Nothing is foretold.</p>")
    parts += [f"<p class='note'>{escape(note)}</p>" for note in found["notes"]]
    return "".join(parts) + "</section>"


def _missing_section(numbers: Numbers) -> str:
    gone: dict[tuple[str, str, str], list[int]] = {}
    for one in numbers["points"]:
        if one["status"] != "done":
            name = fit.KINDS.get(one["kind"], "")
            name = f"{name} ({one['agent']})" if name else one["agent"]
            sizes = gone.setdefault((name, one["status"], one["reason"]), [])
            if one["num_agents"] not in sizes:
                sizes.append(one["num_agents"])
    if not gone:
        return ""
    rows = [[name, ", ".join(f"{n:,}" for n in sizes), status, why] for (name, status, why), sizes in gone.items()]
    return (
        "<section><h2>What was not measured</h2>"
        + report.html_table(["agent", "N", "what happened", "why"], rows)
        + "</section>"
    )


def _method(numbers: Numbers) -> str:
    plan = numbers["plan"]
    each = f"{plan['steps']} steps" if plan["steps"] else "as many steps as take two seconds"
    budget = ""
    if plan["budget"]:
        budget = f" The budget was {summary.duration(plan['budget'])}; half of it is for costs where learning is measured too."
    return (
        "<section><h2>How to read this</h2><p>Each point is a process of its own: the population is built, warmed up until "
        f"it learns in its true share, and {each} are timed; {plan['repeats']} such processes, one after another.{budget} "
        "The law is c(N) = a + b N^p, fitted to log c; the interval of p is that of the t distribution over sizes and repeats "
        "(the sizes' scatter alone, where that is the larger). Its knee is where a = b N^p. A rise at large N is told only "
        "where a hinge fits better than chance allows in one of twenty sweeps, and an agent costs a tenth more. Times of "
        "baselines are of the same environment at the same size.</p></section>"
    )


def _settings(numbers: Numbers) -> str:
    versions = numbers["versions"] if isinstance(numbers["versions"], dict) else {}
    listed = ", ".join(f"{escape(str(k))} {escape(str(v))}" for k, v in versions.items()) or f"mfmarl {__version__}"
    rows = [[key, json.dumps(value)] for key, value in numbers["plan"].items()]
    settings = report.html_table(["setting", "value"], rows)
    return (
        f"<section><h2>Settings and versions</h2><p>{listed}.</p><details><summary>All settings</summary>{settings}</details>"
        "</section>"
    )


def _figure(folder: Path, stem: str, figure: Figure, caption: str) -> str:
    return report.html_figure(folder, stem, figure, caption)


def _stem(name: str) -> str:
    from mfmarl.evaluation.drawing import file_name

    return file_name(name)


# ------------------------------------------------------------------------------------------------- the terminal


def print_numbers(numbers: Numbers, console: Console) -> None:
    """The table and the verdicts."""
    from rich.table import Table
    from rich.text import Text

    table = Table("agent", box=None, pad_edge=False)
    for heading in ("N", "CPU per agent-step", "CPU per step", "agent-steps/s", "memory", "repeats"):
        table.add_column(heading, justify="right")
    for one in numbers["series"]:
        for row in one["sizes"]:
            slots = row["num_agents"] * one["copies"]
            rate = summary.count(slots / row["wall"]) if row["wall"] else "–"
            table.add_row(
                Text(printable(one["label"]), style="bold"), f"{row['num_agents']:,}", _time(row["nanoseconds"] * 1e-9),
                _time(row["cpu"]), rate, _bytes(row["bytes"]), str(row["repeats"]),
            )  # fmt: skip
        for gone in one["missing"]:
            table.add_row(
                Text(printable(one["label"]), style="bold"), f"{gone['num_agents']:,}", Text(gone["status"], style="red"),
            )  # fmt: skip
    console.print(table)
    console.print()
    for verdict in numbers["verdicts"]:
        console.print(Text(printable(verdict["sentence"])))
    for one in numbers["machines"]["asked"]:
        console.print(Text(printable(f"{one['cluster']}: {one['sentence']}")))
