"""Figures of a sweep over sizes: log axes, what was measured as dots, what was fitted as lines, slopes where they end.

All are drawn from what `numbers.json` holds (see docs/scaling.md), so that whoever has that file can draw them again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mfmarl.evaluation import summary
from mfmarl.evaluation.drawing import (
    COLOURS,
    INK,
    NEUTRAL,
    PAPER,
    SOFT,
    Style,
    canvas,
    curve_limits,
    empty,
    label,
    room_for_names,
    spread_out,
    subtitle,
    themed,
)
from mfmarl.evaluation.scaling.points import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Numbers = Mapping[str, Any]

PHASE_COLOURS = dict(zip(PHASES, ("#0072b2", "#3aa0d8", "#009e73", "#b58900", "#d55e00", "#a7adb7"), strict=True))
PHASE_NAMES = {
    "act": "act (the network)",
    "field": "field",
    "step": "environment",
    "remember": "remember",
    "learn": "learn",
    "rest": "rest",
}


def looks(numbers: Numbers) -> dict[str, Style]:
    """One style for each curve, by label: ours solid and filled, twins and baselines dashed and hollow."""
    ours = [s for s in numbers["series"] if s["kind"] == "mfmarl"]
    twins: dict[str, str] = numbers.get("independent", {})
    lone = set(twins.values())
    families: list[str] = []
    found = {}
    for one in ours:
        twin = next((a for a, b in twins.items() if b == one["agent"]), one["agent"])
        family = one["label"].replace(one["agent"], twin, 1)
        if family not in families:
            families.append(family)
        place = families.index(family)
        dash = "--" if one["agent"] in lone else "-"
        found[one["label"]] = Style(COLOURS[place % len(COLOURS)], dash, one["agent"] not in lone, "osD^vP"[place % 6])
    others = [s for s in numbers["series"] if s["kind"] != "mfmarl"]
    for place, one in enumerate(others):
        found[one["label"]] = Style(NEUTRAL, ":", False, "Xsd^v*"[place % 6])
    return found


def agent_looks(numbers: Numbers) -> dict[str, Style]:
    """The style of each of our agents, where there is one curve for it (the first, where there are several)."""
    style = looks(numbers)
    found: dict[str, Style] = {}
    for one in numbers["series"]:
        if one["kind"] == "mfmarl":
            found.setdefault(one["agent"], style[one["label"]])
    for row in (numbers.get("quality") or {}).get("rows", ()):
        if row["agent"] not in found:
            found[row["agent"]] = Style(COLOURS[len(found) % len(COLOURS)], "-", True, "o")
    return found


# ------------------------------------------------------------------------------------------------------ costs


@themed
def cost(numbers: Numbers) -> Figure:
    """CPU time per agent and step against N, of ours and of the baselines; lines are the fitted laws."""
    figure, axes = _log_figure("What one agent's step costs", "CPU time per agent and step")
    axes.yaxis.set_major_formatter(lambda value, _: _time(value))
    subtitle(axes, "dots: each size, bars from its cheapest to its dearest repeat; lines: fixed part + power of N")
    ends = []
    for one, look in _drawn(numbers):
        n = np.array([s["num_agents"] for s in one["sizes"]], dtype=float)
        slots = n * one["copies"]
        y = np.array([s["nanoseconds"] for s in one["sizes"]]) * 1e-9
        low = np.array([s["cpu_low"] for s in one["sizes"]]) / slots
        high = np.array([s["cpu_high"] for s in one["sizes"]]) / slots
        axes.vlines(n, low, high, color=look.colour, linewidth=2.5, alpha=0.35, zorder=2)
        _dots(axes, n, y, look)
        end = float(y[-1])
        if one["growth"] is not None:
            fine = np.geomspace(n[0], n[-1], 100)
            fitted = _law(one["growth"], fine) / (fine * one["copies"])
            axes.plot(fine, fitted, color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
        else:
            axes.plot(n, y, color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
        ends.append((end, f"{label(one['label'], 30)}  {_time(end)}", look.colour))
    return _finish(figure, axes, ends, "No point was measured to its end.")


@themed
def step(numbers: Numbers) -> Figure:
    """CPU-seconds of one step of everybody against N, with the exponent of each law."""
    figure, axes = _log_figure("What a step of everybody costs", "CPU time per step")
    axes.yaxis.set_major_formatter(lambda value, _: _time(value))
    subtitle(axes, "flat on the left: what a step costs whatever N; the slope on the right is the exponent")
    ends = []
    for one, look in _drawn(numbers):
        n = np.array([s["num_agents"] for s in one["sizes"]], dtype=float)
        y = np.array([s["cpu"] for s in one["sizes"]])
        _dots(axes, n, y, look)
        text = label(one["label"], 30)
        growth = one["growth"]
        if growth is not None:
            fine = np.geomspace(n[0], n[-1], 100)
            axes.plot(fine, _law(growth, fine), color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
            text += f"  N^{growth['exponent']:.2f}"
            knee = growth["knee"]
            if knee and n[0] < knee < n[-1]:
                axes.plot(
                    knee, _law(growth, np.array([knee]))[0], "|", color=look.colour, markersize=16, markeredgewidth=1.6
                )
        else:
            axes.plot(n, y, color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
        ends.append((float(y[-1]), text, look.colour))
    _guides(axes, (1.0,))
    return _finish(figure, axes, ends, "No point was measured to its end.")


@themed
def memory(numbers: Numbers) -> Figure:
    """Bytes above what Python and torch take, against N, with the line that was fitted."""
    figure, axes = _log_figure("Memory", "bytes above Python and torch")
    subtitle(axes, "lines: fixed part + bytes for each agent")
    axes.yaxis.set_major_formatter(lambda value, _: _bytes(value))
    ends = []
    for one, look in _drawn(numbers):
        known = [s for s in one["sizes"] if s["bytes"] > 0]
        if not known:
            continue
        n = np.array([s["num_agents"] for s in known], dtype=float)
        y = np.array([s["bytes"] for s in known], dtype=float)
        _dots(axes, n, y, look)
        text = label(one["label"], 30)
        held = one["memory"]
        if held is not None and held["per_agent"] > 0:
            fine = np.geomspace(n[0], n[-1], 100)
            fitted = held["fixed"] + held["per_agent"] * fine * one["copies"]
            fitted = np.where(fitted > 0, fitted, np.nan)
            axes.plot(fine, fitted, color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
            if held["low"] is not None and held["low"] > 0:
                text += f"  {_bytes(held['per_agent'])} per agent"
        ends.append((float(y[-1]), text, look.colour))
    return _finish(figure, axes, ends, "Memory was not measured.")


@themed
def phases(numbers: Numbers) -> Figure:
    """Which part of a step costs what: shares by size, one panel for each agent whose phases were timed."""
    timed = [s for s in numbers["series"] if any(row["phases"] for row in s["sizes"])]
    if not timed:
        figure, [[axes]] = canvas(7.4, 2.0)
        return empty(figure, axes, "No phases were timed.")
    columns = min(3, len(timed))
    rows = math.ceil(len(timed) / columns)
    height = 0.9 + 2.7 * rows
    figure, panels = canvas(9.6, height, rows, columns)
    figure.subplots_adjust(left=0.06, right=0.84, top=1 - 0.55 / height, bottom=0.55 / height, hspace=0.42, wspace=0.16)
    for place, axes in enumerate(panels.flat):
        if place >= len(timed):
            axes.set_axis_off()
            continue
        sizes = [row for row in timed[place]["sizes"] if row["phases"]]
        below = np.zeros(len(sizes))
        middles = {}
        for phase in PHASES:
            share = np.array([row["shares"].get(phase, 0.0) for row in sizes])
            axes.bar(range(len(sizes)), share, 0.86, below, color=PHASE_COLOURS[phase], linewidth=0)
            middles[phase] = float(below[-1] + share[-1] / 2)
            for x, (height_, base) in enumerate(zip(share, below, strict=True)):
                if height_ >= 0.09:
                    axes.text(
                        x, base + height_ / 2, f"{height_:.0%}", ha="center", va="center", fontsize=7.5, color="white"
                    )
            below += share
        axes.set_xticks(range(len(sizes)), [_count(row["num_agents"]) for row in sizes])
        axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"] if place % columns == 0 else ["", "", ""])
        axes.set_ylim(0, 1)
        axes.grid(visible=False)
        axes.set_title(label(timed[place]["label"], 32), fontsize=10, pad=6)
        if place // columns == rows - 1:
            axes.set_xlabel("agents N")
        if place % columns == columns - 1 or place == len(timed) - 1:
            _phase_names(axes, middles)
    return figure


def _phase_names(axes: Axes, middles: Mapping[str, float]) -> None:
    """The names of the bands beside the last bar, pushed apart."""
    names = list(middles)
    for name, y in zip(names, spread_out([middles[p] for p in names], 0.085), strict=True):
        axes.annotate(
            PHASE_NAMES[name],
            (1, min(y, 1.02)),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=PHASE_COLOURS[name],
            annotation_clip=False,
        )


# ---------------------------------------------------------------------------------------------------- quality


@themed
def reward(numbers: Numbers, measure: str = "reward") -> Figure:
    """What agents end with, against N, with 95 % intervals over seeds; dashed: what theory says at that N."""
    figure, axes = _log_figure(f"What is learned: {label(measure)}", measure, log_y=False)
    subtitle(axes, "mean over the settled end of each run, 95 % interval over seeds; dashed, thin: theory at that N")
    style = agent_looks(numbers)
    ends = []
    theory: dict[int, float] = {}
    centres, lows, highs = [], [], []
    for agent, rows in _by_agent(numbers["quality"]["rows"]).items():
        found = [(r["num_agents"], r["measures"].get(measure)) for r in rows if r["measures"].get(measure)]
        found = [(n, m) for n, m in found if m["value"] is not None]
        if not found:
            continue
        look = style[agent]
        n = np.array([n for n, _ in found], dtype=float)
        y = np.array([m["value"] for _, m in found], dtype=float)
        axes.plot(n, y, color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
        _dots(axes, n, y, look)
        _intervals(axes, found, look)
        centres.append(y)
        lows.append(np.array([m["low"] if m["low"] is not None else m["value"] for _, m in found], dtype=float))
        highs.append(np.array([m["high"] if m["high"] is not None else m["value"] for _, m in found], dtype=float))
        theory |= {int(size): m["theory"] for size, m in found if m["theory"] is not None}
        ends.append((float(y[-1]), f"{label(agent, 24)}  {summary.number(float(y[-1]))}", look.colour))
    if theory and ends:
        n = np.array(sorted(theory), dtype=float)
        known = np.array([theory[int(k)] for k in n])
        axes.plot(n, known, color=INK, linestyle=(0, (4, 3)), linewidth=1, marker="_", zorder=2)
        ends.append((float(known[-1]), "theory", INK))
        centres.append(known)
    if centres:
        _settle(axes)
        curve_limits(axes, centres, lows, highs)
    return _finish(figure, axes, ends, f"No finished run reports {label(measure)}.")


@themed
def gaps(numbers: Numbers, column: str) -> Figure:
    """What one agent could gain by leaving, at the end of the runs, against N."""
    figure, axes = _log_figure(f"Exploitability {summary.GAPS.get(column, column)}", "gain of one agent that leaves")
    subtitle(axes, "0 at an equilibrium, and nowhere else; 95 % interval over seeds")
    style = agent_looks(numbers)
    ends = []
    for agent, rows in _by_agent(numbers["quality"]["rows"]).items():
        found = [(r["num_agents"], r["gaps"][column]) for r in rows if r["gaps"].get(column)]
        found = [(n, g) for n, g in found if g["value"] is not None and g["value"] > 0]
        if found:
            ends.append(_curve(axes, found, style[agent], label(agent, 24)))
    _guides(axes, (-0.5, -1.0))
    return _finish(figure, axes, ends, "No game here has an exploitability that could be counted.")


@themed
def limit(numbers: Numbers, name: str = "reward") -> Figure:
    """How far N agents are from infinitely many, against N, with the slopes that theory knows."""
    figure, axes = _log_figure(f"Distance of N agents from infinitely many: {label(name)}", f"|{label(name)} − limit|")
    subtitle(axes, "bars: two standard errors; a distance within them is not seen; guides: slopes −1/2 and −1")
    ends = _scaled(
        axes, numbers, "limit", "limit_fits", name, lambda row: (abs(row["value"]), row["error"])
    )  # fmt: skip
    _guides(axes, (-0.5, -1.0))
    return _finish(figure, axes, ends, "No limit is known.")


@themed
def fluctuations(numbers: Numbers, name: str = "reward") -> Figure:
    """How much the mean over a population fluctuates, against N: 1/sqrt(N) away from critical points."""
    figure, axes = _log_figure(f"Fluctuations: {label(name)}", "standard deviation over copies")
    subtitle(axes, "of the population's mean at one moment, the trained policy frozen; thin: exact")
    ends = _scaled(axes, numbers, "fluctuations", "fluctuation_fits", name, lambda row: (row["value"], row["error"]))
    exact = {
        row["num_agents"]: row["theory"]
        for row in numbers["quality"]["fluctuations"]
        if row["name"] == name and row.get("theory")
    }
    if exact:
        n = sorted(exact)
        axes.plot(n, [exact[k] for k in n], color=INK, linestyle=(0, (4, 3)), linewidth=1, marker="_", zorder=2)
        ends.append((float(exact[n[-1]]), "exact", INK))
    _guides(axes, (-0.5,))
    return _finish(figure, axes, ends, "Fluctuations were not measured.")


@themed
def efficiency(numbers: Numbers) -> Figure:
    """Steps until a run is near its final reward, against N."""
    figure, axes = _log_figure("How many steps learning takes", "environment steps, of each copy")
    subtitle(axes, "until the reward has come within a twentieth of its whole rise; 95 % interval over seeds")
    style = agent_looks(numbers)
    ends = []
    for agent, rows in _by_agent(numbers["quality"]["rows"]).items():
        found = [(r["num_agents"], r["steps"]) for r in rows if r["steps"] and (r["steps"]["value"] or 0) > 0]
        if found:
            ends.append(_curve(axes, found, style[agent], label(agent, 24)))
    return _finish(figure, axes, ends, "No reward rose beyond its noise.")


@themed
def transfer(numbers: Numbers) -> Figure:
    """Trained at N, played at N': the reward, coloured by what it is above or below that of who was trained there."""
    from matplotlib.colors import to_rgba

    cells = _by_agent([r for r in numbers["quality"]["transfer"] if r.get("reward")])
    if not cells:
        figure, [[axes]] = canvas(7.4, 2.0)
        return empty(figure, axes, "No policy was played at another size.")
    columns = min(2, len(cells))
    rows = math.ceil(len(cells) / columns)
    width, height = 1.2 + 4.1 * columns, 1.0 + 3.1 * rows
    figure, panels = canvas(width, height, rows, columns)
    figure.subplots_adjust(
        left=0.9 / width, right=1 - 0.15 / width, top=1 - 0.55 / height, bottom=0.6 / height, hspace=0.5, wspace=0.25
    )
    losses = [abs(r["loss"]["value"]) for found in cells.values() for r in found if r["loss"] and r["loss"]["value"]]
    largest = max(losses, default=0.0) or 1.0
    for axes in panels.flat[len(cells) :]:
        axes.set_axis_off()
    for axes, (agent, found) in zip(panels.flat, cells.items(), strict=False):
        trained = sorted({r["trained"] for r in found})
        played = sorted({r["played"] for r in found})
        for row in found:
            x, y = played.index(row["played"]), trained.index(row["trained"])
            loss = row["loss"]["value"] if row["loss"] and row["loss"]["value"] is not None else 0.0
            colour = COLOURS[1] if loss < 0 else COLOURS[0]
            face = to_rgba(colour, 0.75 * min(1.0, abs(loss) / largest))
            axes.fill([x, x + 1, x + 1, x], [y, y, y + 1, y + 1], facecolor=face, edgecolor=PAPER, linewidth=1.5)
            bold = "bold" if row["trained"] == row["played"] else "normal"
            text = summary.number(row["reward"]["value"], 0.01 * abs(row["reward"]["value"] or 1.0))
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8, fontweight=bold)
        axes.set_xticks(np.arange(len(played)) + 0.5, [_count(n) for n in played])
        axes.set_yticks(np.arange(len(trained)) + 0.5, [_count(n) for n in trained])
        axes.set_xlim(0, len(played))
        axes.set_ylim(len(trained), 0)
        axes.grid(visible=False)
        axes.set_xlabel("played at N'")
        axes.set_ylabel("trained at N")
        axes.set_title(label(agent, 32), fontsize=10, pad=6)
    return figure


# --------------------------------------------------------------------------------------------------- machines


@themed
def machines(numbers: Numbers) -> Figure:
    """What M machines would do: left, one population over more and more; right, as many agents on each."""
    style = looks(numbers)
    figure, [[left, right]] = canvas(9.6, 3.9, 1, 2)
    figure.subplots_adjust(left=0.085, right=0.86, top=0.82, bottom=0.15, wspace=0.32)
    found = numbers["machines"]["series"]
    if not found:
        right.set_axis_off()
        return empty(figure, left, "Nothing can be foretold from fewer than two sizes.")
    ends = []
    for one in found:
        look = style.get(one["label"]) or Style(NEUTRAL, "-", True, "o")
        for axes, rows, column in ((left, one["strong"], "seconds"), (right, one["weak"], "agent_steps_per_second")):
            m = [r["ranks"] for r in rows]
            y = [r[column] for r in rows]
            if not m:
                continue
            axes.plot(m, y, color=look.colour, linestyle=look.dash, linewidth=1.6, zorder=3)
            if column == "seconds":
                axes.fill_between(m, [r["low"] for r in rows], [r["high"] for r in rows], color=look.colour,
                                  alpha=0.12, linewidth=0)  # fmt: skip
                axes.plot(m, [y[0] / k for k in m], color=look.colour, linewidth=0.7, linestyle=":", zorder=2)
            else:
                ends.append((float(y[-1]), label(one["label"], 20), look.colour))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("machines, one rank each")
    left.yaxis.set_major_formatter(lambda value, _: _time(value))
    right.yaxis.set_major_formatter(lambda value, _: _count(value))
    left.set_title("One population, divided", pad=20)
    subtitle(left, f"seconds per step of {summary.count(found[0]['strong_agents'])} agents; dotted: ideal")
    right.set_title("As many agents on each", pad=20)
    subtitle(right, f"agent-steps per second, {summary.count(found[0]['weak_agents'])} agents on each")
    _names(figure, right, ends)
    return figure


# ------------------------------------------------------------------------------------------------ their pieces


def _log_figure(title: str, unit: str, log_y: bool = True) -> tuple[Figure, Axes]:
    figure, [[axes]] = canvas(7.4, 4.0)
    figure.subplots_adjust(left=0.12, right=0.76, top=0.86, bottom=0.14)
    axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: _count(value))
    if log_y:
        axes.yaxis.set_major_formatter(lambda value, _: summary.number(value))
    axes.set_xlabel("agents N")
    axes.set_ylabel(label(unit, 60))
    axes.set_title(title, pad=20)
    return figure, axes


def _drawn(numbers: Numbers) -> list[tuple[Row, Style]]:
    style = looks(numbers)
    return [(one, style[one["label"]]) for one in numbers["series"] if one["sizes"]]


def _dots(axes: Axes, x: Any, y: Any, look: Style) -> None:
    axes.plot(
        x, y, look.marker, color=look.colour, markerfacecolor=look.colour if look.filled else PAPER, markersize=5.5,
        markeredgewidth=1.4, zorder=4,
    )  # fmt: skip


def _law(growth: Row, n: Any) -> Any:
    return growth["fixed"] + growth["scale"] * n ** growth["exponent"]


def _by_agent(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["agent"], []).append(row)
    return found


def _intervals(axes: Axes, found: Sequence[tuple[float, Row]], look: Style) -> None:
    known = [(n, m["low"], m["high"]) for n, m in found if m["low"] is not None and m["high"] is not None]
    if axes.get_yscale() == "log":
        floor = min((m["value"] for _, m in found), default=1.0) / 3
        known = [(n, max(low, floor), high) for n, low, high in known if high > 0]
    if known:
        n, low, high = zip(*known, strict=True)
        axes.vlines(n, low, high, color=look.colour, linewidth=3, alpha=0.32, zorder=2)


def _curve(axes: Axes, found: Sequence[tuple[float, Row]], look: Style, name: str) -> tuple[float, str, str]:
    n = [float(n) for n, _ in found]
    y = [float(m["value"]) for _, m in found]
    axes.plot(n, y, color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
    _dots(axes, n, y, look)
    _intervals(axes, found, look)
    return y[-1], f"{name}  {summary.number(y[-1])}", look.colour


def _scaled(axes: Axes, numbers: Numbers, table: str, fits: str, name: str, value: Any) -> list[tuple[float, str, str]]:
    """Rows of a quality table as dots with two standard errors, the fitted power as a line."""
    quality = numbers["quality"]
    style = agent_looks(numbers)
    known = {(f["agent"], f["name"]): f for f in quality[fits]}
    ends = []
    for agent, rows in _by_agent([r for r in quality[table] if r["name"] == name]).items():
        found = [(float(r["num_agents"]), *value(r)) for r in rows if r["value"] is not None]
        found = [(n, y, e or 0.0) for n, y, e in found if y > 0]
        if not found:
            continue
        look = style[agent]
        n, y, error = (np.array(column) for column in zip(*found, strict=True))
        _dots(axes, n, y, look)
        floor = y.min() / 10
        axes.vlines(n, np.maximum(y - 2 * error, floor), y + 2 * error, color=look.colour, linewidth=3, alpha=0.3)
        text = label(agent, 24)
        fit = known.get((agent, name))
        if fit and fit.get("exponent") is not None and fit.get("coefficient"):
            fine = np.geomspace(n[0], n[-1], 50)
            axes.plot(
                fine,
                fit["coefficient"] * fine ** fit["exponent"],
                color=look.colour,
                linestyle=look.dash,
                linewidth=1.4,
            )
            text += f"  N^{_minus(fit['exponent'])}"
        else:
            axes.plot(n, y, color=look.colour, linestyle=look.dash, linewidth=0.8)
        ends.append((float(y[-1]), text, look.colour))
    return ends


def _guides(axes: Axes, slopes: Sequence[float]) -> None:
    """Thin lines of a known slope through the lower left or the upper left of what is drawn, named at their ends."""
    if not axes.lines:
        return
    _settle(axes)
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    a, b = math.log10(x0) + 0.04 * math.log10(x1 / x0), math.log10(x1) - 0.04 * math.log10(x1 / x0)
    low, high = math.log10(y0), math.log10(y1)
    for slope in slopes:
        start = high - 0.06 * (high - low) if slope < 0 else low + 0.06 * (high - low)
        room = (high - low) * 0.9 / abs(slope)
        end = min(b, a + room)
        axes.plot(
            [10**a, 10**end], [10**start, 10 ** (start + slope * (end - a))], color=SOFT, linewidth=0.7, linestyle=":"
        )
        if (end - a) < 0.05:
            continue
        named = {1.0: "∝ N", -1.0: "slope −1", -0.5: "slope −1/2"}.get(slope, f"slope {slope:g}")
        place = a + 0.72 * (end - a)
        axes.annotate(
            named, (10**place, 10 ** (start + slope * (place - a))), xytext=(3, 3 if slope < 0 else -8),
            textcoords="offset points", color=SOFT, fontsize=8,
        )  # fmt: skip
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)


def _finish(figure: Figure, axes: Axes, ends: Sequence[tuple[float, str, str]], otherwise: str) -> Figure:
    if not ends:
        axes.set_title("")
        for text in list(axes.texts):
            text.remove()
        return empty(figure, axes, otherwise)
    _settle(axes)
    for axis, scale in ((axes.xaxis, "log"), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            _few_ticks(axis)
    _names(figure, axes, ends)
    return figure


def _settle(axes: Axes) -> None:
    """Limits where all that is drawn has one size, or one value: no axis finds any by itself."""
    drawn = [np.asarray(line.get_xydata(), dtype=float) for line in axes.lines]
    if not drawn:
        return
    every = np.concatenate(drawn)
    every = every[np.isfinite(every).all(-1)]
    if not len(every):
        return
    (left, bottom), (right, top) = every.min(0), every.max(0)
    # Both are taken off matplotlib's hands before either is set: setting one makes it look at the other.
    if left == right:
        axes.set_autoscalex_on(False)
    if bottom == top:
        axes.set_autoscaley_on(False)
    if left == right:
        axes.set_xlim(*_round_one(float(left), axes.get_xscale()))
    if bottom == top:
        axes.set_ylim(*_round_one(float(bottom), axes.get_yscale()))


def _round_one(value: float, scale: str) -> tuple[float, float]:
    room = 0.1 * abs(value) or 1.0
    return (value / 3, value * 3) if scale == "log" else (value - room, value + room)


def _few_ticks(axis: Any) -> None:
    """Decades alone; 1, 2 and 5 of each where fewer than three decades would be marked."""
    from matplotlib.ticker import LogLocator

    low, high = axis.get_view_interval()
    decades = math.floor(math.log10(high)) - math.ceil(math.log10(low)) + 1
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))


def _names(figure: Figure, axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right end of their curves, whatever the scale of the axis, pushed apart where they would overlap."""
    if not ends:
        return
    figure.canvas.draw()
    box = axes.get_window_extent()
    points = box.height / figure.dpi * 72
    wanted = []
    for value, *_ in ends:
        y = axes.transData.transform((axes.get_xlim()[1], value))[1]
        wanted.append(min(max((y - box.y0) / box.height, 0.0), 1.0) * points)
    names = []
    for (_, text, colour), place, moved in zip(ends, wanted, spread_out(wanted, 13.0), strict=True):
        names.append(
            axes.annotate(
                text,
                (1, place / points),
                xycoords="axes fraction",
                xytext=(16, moved - place),
                textcoords="offset points",
                va="center",
                color=colour,
                fontweight="bold",
                fontsize=9.5,
                annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-",
                    "color": colour,
                    "linewidth": 0.8,
                    "shrinkA": 1,
                    "shrinkB": 0,
                    "relpos": (0, 0.5),
                },
            )
        )
    room_for_names(figure, names, 16)


def _count(value: float) -> str:
    return summary.count(value).replace(" ", "\u2009")


def _time(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} B"


def _minus(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
