"""Figures of a comparison: curves with bands and the line of theory, intervals, profiles, ratings.

Each function returns a matplotlib Figure; `mfmarl.evaluation.drawing.save` writes it as SVG and PNG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mfmarl.evaluation import results, statistics, summary
from mfmarl.evaluation.drawing import (
    COLOURS,
    GRID,
    INK,
    PAPER,
    SOFT,
    Style,
    agent_rows,
    canvas,
    curve_limits,
    draw_interval,
    empty,
    empty_figure,
    end_labels,
    label,
    room_for_names,
    room_for_rows,
    spread_out,
    styles,
    subtitle,
    themed,
)
from mfmarl.evaluation.elo import Standings
from mfmarl.evaluation.results import Comparison, Run
from mfmarl.population.known import Known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@themed
def learning_curves(comparison: Comparison, environment: str, column: str = "") -> Figure:
    """Interquartile mean over runs against steps, with 95 % bands, and the known answer as a dashed line.

    `column` defaults to the headline score. This is the sample-efficiency curve of the environment.
    """
    column = column or comparison.headline(environment)
    style = styles(comparison.agents, comparison.independent)
    figure, [[axes]] = canvas(7.4, 4.0)
    figure.subplots_adjust(left=0.1, right=0.76, top=0.88, bottom=0.14)
    ends: list[tuple[float, str, str, str]] = []
    centres, lows, highs, drawn = [], [], [], []
    last = 0
    for agent in comparison.agents:
        steps, values = results.curves(comparison, environment, agent, column)
        if not len(steps):
            continue
        band = statistics.curve(values)
        look = style[agent]
        axes.plot(steps, band.value, color=look.colour, linestyle=look.dash, linewidth=1.9, zorder=3)
        if len(steps) == 1:
            axes.plot(steps, band.value, color=look.colour, marker="o", zorder=3)
        if band.runs > 1:
            shade = 0.14 if look.filled else 0.07
            axes.fill_between(steps, band.low, band.high, color=look.colour, alpha=shade, linewidth=0, zorder=2)
            if band.runs <= 10:
                axes.plot(steps, values.T, color=look.colour, linestyle=look.dash, linewidth=0.6, alpha=0.45, zorder=2)
            lows.append(band.low)
            highs.append(band.high)
        centres.append(values)
        last = max(last, int(steps[-1]))
        drawn.append((agent, float(band.value[-1])))
    if not centres:
        return empty(figure, axes, f"No finished run reports {label(column)}.")
    curve_limits(axes, centres, lows, highs)
    fine = float(np.ptp(axes.get_ylim())) / 20
    for agent, value in drawn:
        ends.append((value, f"{label(agent, 22)}  {summary.number(value, fine)}", style[agent].colour, "bold"))
    name = column.partition("/")[2] if column.startswith(("eval/", "train/")) else column
    for known, called in comparison.laws(environment, name):
        _theory_line(axes, known.value, called, ends)
    start = min(0, int(axes.get_xlim()[0]))
    axes.set_xlim(start if last else -1, last or 1)
    axes.set_xlabel("steps of the environment, per copy")
    axes.xaxis.set_major_formatter(lambda value, _: summary.count(value).replace(" ", "\u2009"))
    runs = max(len(comparison.of(environment, a)) for a in comparison.agents)
    axes.set_title(f"{label(environment)}: {label(column)}", pad=20)
    subtitle(
        axes,
        f"interquartile mean, 95 % band and each of {runs} run{'s' if runs != 1 else ''} per agent; grey bar: what is scored",
    )
    axes.grid(axis="x", visible=False)
    axes.axvspan(comparison.burn_in * last, last, ymin=0, ymax=0.012, color=SOFT, alpha=0.5, linewidth=0)
    end_labels(figure, axes, ends)
    return figure


@themed
def intervals(comparison: Comparison, environment: str) -> Figure:
    """Per agent the interquartile mean of its runs' scores with its interval, and every run as a dot."""
    style = styles(comparison.agents, comparison.independent)
    agents = [a for a in comparison.agents if comparison.of(environment, a)]
    figure, [[axes]] = canvas(7.4, 1.3 + 0.46 * len(agents))
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.2, right=0.84, top=1 - 0.62 / height, bottom=0.4 / height)
    shown: list[float] = []
    for row, agent in enumerate(agents):
        scores = results.scores(comparison, environment, agent)
        look = style[agent]
        if not len(scores.values):
            axes.text(0.01, row, "every run failed", transform=axes.get_yaxis_transform(), color=SOFT, va="center")
            continue
        draw_interval(axes, row, statistics.estimate([scores.values]), look)
        finished = {r.seed for r in comparison.of(environment, agent) if not results.has_failed(r, comparison)}
        for seed, value in zip(scores.seeds, scores.values, strict=True):
            mark = "o" if seed in finished else "x"
            axes.plot(value, row + 0.24, mark, color=look.colour, markersize=3.6, alpha=0.55, markeredgewidth=0.9)
            shown.append(float(value))
        runs = f"{scores.planned} run{'s' if scores.planned != 1 else ''}"
        runs += f", {scores.failed} failed" if scores.failed else ""
        axes.text(1.02, row, runs, transform=axes.get_yaxis_transform(), color=SOFT, va="center", fontsize=9)
    column = comparison.headline(environment)
    laws = comparison.laws(environment, column.partition("/")[2])
    if len(laws) == 1 and shown and _near(laws[0][0].value, shown):
        _vertical_theory(axes, laws[0][0].value, laws[0][1])
    elif len(laws) > 1:
        for row, agent in enumerate(agents):
            _own_law(axes, row, comparison.references(environment, agent).get(column.partition("/")[2]))
    agent_rows(axes, agents, style)
    axes.set_title(f"{label(environment)}: {label(column)} per run", pad=20)
    subtitle(axes, "interquartile mean and 95 % interval; small dots are runs, crosses failed ones")
    return figure


@themed
def improvement(comparison: Comparison, table: dict[str, Any] | None = None) -> Figure:
    """Probability that a run of the first agent beats one of the second, per environment, with its interval.

    `table` is the comparison's summary, if it is at hand.
    """
    rows = [
        (environment, p)
        for environment, about in (table or summary.summary(comparison))["environments"].items()
        for p in about["pairs"]
        if p["improvement"] is not None
    ]
    style = styles(comparison.agents, comparison.independent)
    figure, [[axes]] = canvas(7.4, 1.5 + 0.42 * max(1, len(rows)))
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.36, right=0.84, top=1 - 0.62 / height, bottom=0.4 / height)
    axes.set_title("Probability of improvement", pad=20)
    if not rows:
        return empty(figure, axes, "No two agents to compare.")
    axes.axvspan(0, 0.5, color=GRID, alpha=0.35, linewidth=0)
    axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    for row, (_, p) in enumerate(rows):
        found = statistics.Estimate(*(p["improvement"][k] for k in ("value", "low", "high", "runs")))
        draw_interval(axes, row, found, style[p["first"]]._replace(filled=True))
        axes.text(
            1.02,
            row,
            f"{found.value:.2f}  ({found.runs} runs)",
            transform=axes.get_yaxis_transform(),
            color=SOFT,
            va="center",
            fontsize=9,
        )
    several = len(comparison.environments) > 1
    names = [
        f"{label(p['first'], 20)} over {label(p['second'], 20)}" + (f"\n{label(e, 28)}" if several else "")
        for e, p in rows
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.tick_params(axis="y", colors=INK, labelsize=8.5 if several or max(map(len, names)) > 32 else 10)
    room_for_rows(axes)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(-0.02, 1.02)
    subtitle(axes, "chance that a run of the first beats one of the second, 95 % interval")
    return figure


@themed
def profile(comparison: Comparison) -> Figure:
    """Per agent the fraction of runs, over all environments, that score above a threshold, with Wilson bands."""
    tasks = summary.pooled(comparison)
    style = styles(comparison.agents, comparison.independent)
    figure, [[axes]] = canvas(7.4, 4.0)
    figure.subplots_adjust(left=0.1, right=0.76, top=0.88, bottom=0.14)
    axes.set_title("Performance profile", pad=20)
    if not tasks:
        return empty(figure, axes, "No agent finished a run in every environment.")
    thresholds = np.linspace(0, 1, 201)
    for agent, scores in tasks.items():
        band = statistics.performance_profile(scores, thresholds)
        look = style[agent]
        axes.step(
            thresholds,
            band.value,
            where="post",
            color=look.colour,
            linestyle=look.dash,
            linewidth=1.9,
            label=label(agent),
            zorder=3,
        )
        axes.fill_between(thresholds, band.low, band.high, step="post", color=look.colour, alpha=0.1, linewidth=0)
    _curve_labels(figure, axes, tasks, style)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("score: 0 the worst run of the environment, 1 the best")
    axes.grid(axis="x", visible=False)
    subtitle(axes, "fraction of runs that score above, with 95 % band; higher is better")
    return figure


@themed
def theory(comparison: Comparison) -> Figure:
    """Each measure with a known answer: the answer as a line, each agent's time average with its interval."""
    style = styles(comparison.agents, comparison.independent)
    panels = []
    for environment in comparison.environments:
        rows = {a: summary.theory(comparison, environment, a) for a in comparison.agents}
        for measure in dict.fromkeys(m for found in rows.values() for m in found):
            panels.append((environment, measure, {a: f[measure] for a, f in rows.items() if measure in f}))
    if len(panels) > 6:  # share/0, share/1 and the like have their lines in the table
        panels = [p for p in panels if "/" not in p[1]][:12] or panels[:12]
    rows_high = [0.32 * len(found) for _, _, found in panels] or [0.6]
    gap, top = 0.72, 1.0
    total = top + sum(rows_high) + gap * len(rows_high)
    figure, edge = empty_figure(7.4, total), total - top
    for place, (environment, measure, found) in enumerate(panels):
        edge -= rows_high[place]
        axes = figure.add_axes((0.2, edge / total, 0.54, rows_high[place] / total))
        edge -= gap
        axes.locator_params(axis="x", nbins=6)
        for row, (agent, m) in enumerate(found.items()):
            estimate = statistics.Estimate(m["measured"], m["low"], m["high"], m["runs"])
            draw_interval(axes, row, estimate, style[agent])
            axes.text(
                1.02,
                row,
                f"{summary.number(m['measured'], (m['high'] - m['low']) / 2)}  (off by {summary.number(m['distance'], m['distance'])})",
                transform=axes.get_yaxis_transform(),
                color=SOFT,
                va="center",
                fontsize=9,
            )
        known = next(iter(found.values()))
        laws = comparison.laws(environment, measure)
        if len(laws) == 1:
            axes.axvline(known["theory"], color=INK, linewidth=1.4, linestyle=(0, (5, 3)), zorder=1)
        else:
            for row, agent in enumerate(found):
                _own_law(axes, row, comparison.references(environment, agent).get(measure))
        axes.set_yticks(range(len(found)), [label(a, 18) for a in found])
        for tick, agent in zip(axes.get_yticklabels(), found, strict=True):
            tick.set_color(style[agent].colour)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{label(environment)}: {label(measure)}", fontsize=10, pad=6)
        axes.set_title(
            f"{known['kind']} {' / '.join(summary.number(law.value) for law, _ in laws)}",
            loc="right",
            fontsize=9,
            color=INK,
            fontweight="normal",
            pad=6,
        )
    if not panels:
        return empty(figure, figure.add_axes((0, 0, 1, 0.6)), "No environment here publishes a known answer.")
    figure.text(0.02, 1 - 0.3 / total, "Measured against theory", fontsize=11, fontweight="bold")
    figure.text(
        0.02, 1 - 0.5 / total, "dashed: the known answer; time average over runs, 95 % interval", fontsize=9, color=SOFT
    )
    return figure


@themed
def order_parameter(comparison: Comparison, measure: str, option: str) -> Figure:
    """A measure against an option that differs between the environments (`varied_option`), and theory's curve."""
    style = styles(comparison.agents, comparison.independent)
    figure, [[axes]] = canvas(7.4, 4.2)
    figure.subplots_adjust(left=0.1, right=0.76, top=0.88, bottom=0.14)
    points = sorted((_option(comparison, e, option), e) for e in comparison.environments)
    known = [(x, comparison.references(e)[measure].value) for x, e in points if measure in comparison.references(e)]
    ends = []
    if known:
        x, y = zip(*known, strict=True)
        axes.plot(x, y, color=INK, linewidth=1.3, linestyle=(0, (5, 3)), marker="_", markersize=9, zorder=1)
        ends.append((y[-1], "theory", INK, "normal"))
    width = (points[-1][0] - points[0][0]) or 1.0
    for place, agent in enumerate(comparison.agents):
        look, row = style[agent], []
        for value, environment in points:
            found = results.measured(comparison, environment, agent, measure)
            if len(found.values):
                row.append(
                    (
                        value + 0.008 * width * (place - (len(comparison.agents) - 1) / 2),
                        statistics.estimate([found.values]),
                    )
                )
        for value, e in row:
            axes.plot(
                [value, value], [e.low, e.high], color=look.colour, linewidth=1.6, solid_capstyle="butt", zorder=2
            )
            axes.plot(
                value,
                e.value,
                look.marker,
                color=look.colour,
                markerfacecolor=look.colour if look.filled else PAPER,
                markersize=6,
                zorder=3,
            )
        if row:
            axes.plot(
                [v for v, _ in row],
                [e.value for _, e in row],
                color=look.colour,
                linewidth=0.9,
                linestyle=look.dash,
                alpha=0.6,
            )
            ends.append((row[-1][1].value, label(agent, 22), look.colour, "bold"))
    axes.set_xlabel(label(option))
    axes.grid(axis="x", visible=False)
    axes.set_title(f"{label(measure)} against {label(option)}", pad=20)
    subtitle(axes, "time average over runs with 95 % interval; dashed: the known answer")
    end_labels(figure, axes, ends)
    return figure


@themed
def single_run(run: Run, columns: Sequence[str] = ()) -> Figure:
    """One run: each column (default: what its evaluation or training measured) in a panel, with the known answer."""
    chosen = list(columns) or _telling(run)
    rows = max(1, math.ceil(len(chosen) / 2))
    figure, grid = canvas(7.4, 0.4 + 2.3 * rows, rows, 2)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.09, right=0.97, top=1 - 0.45 / height, bottom=0.5 / height, hspace=0.55, wspace=0.25)
    for axes, column in zip(grid.flat, chosen, strict=False):
        values = run.columns[column]
        there = np.isfinite(values)
        axes.plot(
            run.steps[there], values[there], color=COLOURS[0], linewidth=1.7, marker="o" if there.sum() == 1 else None
        )
        known = run.references.get(column) or run.references.get(column.partition("/")[2])
        if known is not None and there.any() and _near(known.value, list(values[there])):
            axes.axhline(known.value, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
            text = f"{known.kind} {summary.number(known.value)}"
            axes.set_title(text, loc="right", fontsize=8.5, fontweight="normal", pad=6)
        axes.set_title(label(column), fontsize=10, pad=6)
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: summary.count(value).replace(" ", "\u2009"))
    for axes in list(grid.flat)[len(chosen) :]:
        axes.set_axis_off()
    return figure


@themed
def win_matrix(found: Standings) -> Figure:
    """Points per game of the row's player against the column's, ties half; players from the best rating down."""
    from matplotlib.colors import LinearSegmentedColormap

    order = np.argsort(-found.rating, kind="stable")
    rate = found.win_rate[np.ix_(order, order)]
    size = 0.62 * len(order)
    figure, [[axes]] = canvas(2.6 + size, 1.6 + size)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=1.9 / width, right=1 - 0.5 / width, top=1 - 1.3 / height, bottom=0.2 / height)
    colours = LinearSegmentedColormap.from_list(
        "wins", ["#c8702f", "#f3e3d3", "#f4f5f7", "#cfe2ef", "#1f77b0"], bad=GRID
    )
    axes.imshow(np.ma.masked_invalid(rate), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(rate):
        if math.isfinite(value):
            dark = value < 0.12 or value > 0.88
            axes.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=9.5, color="white" if dark else "#30343b"
            )
    names = [label(found.players[k], 20) for k in order]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, colors=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.text(
        0.1 / width, 1 - 0.28 / height, "Points per game of the row against the column", fontsize=11, fontweight="bold"
    )
    figure.text(
        0.1 / width, 1 - 0.48 / height, f"ties count half; {int(found.games.sum() / 2)} games", fontsize=9, color=SOFT
    )
    return figure


@themed
def elo(found: Standings, independent: Mapping[str, str] | None = None) -> Figure:
    """Elo ratings with 95 % intervals, best first."""
    style = styles(found.players, independent or {})
    order = np.argsort(-found.rating, kind="stable")
    figure, [[axes]] = canvas(7.4, 1.5 + 0.42 * len(order))
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.2, right=0.84, top=1 - 0.62 / height, bottom=0.4 / height)
    for row, k in enumerate(order):
        draw_interval(
            axes,
            row,
            statistics.Estimate(found.rating[k], found.low[k], found.high[k], found.runs),
            style[found.players[k]],
        )
        axes.text(
            1.02,
            row,
            f"{found.rating[k]:.0f}",
            transform=axes.get_yaxis_transform(),
            color=SOFT,
            va="center",
            fontsize=9,
        )
    agent_rows(axes, [found.players[k] for k in order], style)
    axes.set_title("Elo rating", pad=20)
    unit = f"{found.runs} trained runs per player" if found.runs > 1 else "over games alone"
    subtitle(axes, f"maximum likelihood, mean 1500, 95 % bootstrap interval ({unit})")
    return figure


def varied_option(comparison: Comparison) -> str:
    """The one numeric option that differs between environments of the same name, if there are three or more; else empty."""
    tables = []
    for environment in comparison.environments:
        runs = comparison.within(environment)
        tables.append(_options(next((r for r in runs if r.config), runs[0])) if runs else {})
    if len(tables) < 3:
        return ""
    keys = [k for k in tables[0] if all(k in t for t in tables)]
    different = [k for k in keys if len({repr(t[k]) for t in tables}) > 1]
    numeric = [
        k for k in different if all(isinstance(t[k], int | float) and not isinstance(t[k], bool) for t in tables)
    ]
    return numeric[0] if len(different) == 1 and len(numeric) == 1 else ""


def _options(run: Run) -> dict[str, Any]:
    table = run.config.get("environment")
    found = dict(table) if isinstance(table, dict) else {}
    agents = run.config.get("agents")
    for options in agents.values() if isinstance(agents, dict) else ():
        if isinstance(options, dict):
            found |= {k: v for k, v in options.items() if k not in ("name", "field") and k not in found}
    return found


def _option(comparison: Comparison, environment: str, option: str) -> float:
    runs = [r for r in comparison.within(environment) if r.config]
    return float(_options(runs[0])[option])


def _telling(run: Run) -> list[str]:
    prefix = "eval/" if any(c.startswith("eval/") for c in run.columns) else "train/"
    measured = [c for c in run.columns if c.startswith(prefix) and c.count("/") == 1]
    learned = [c for c in run.columns if c.rpartition("/")[2] in ("loss", "entropy", "temperature")]
    first = [c for c in (f"{prefix}reward", "limit/exploitability") if c in run.columns]
    return list(dict.fromkeys([*first, *measured, *learned]))[:8]


def _near(value: float, shown: Sequence[float]) -> bool:
    low, high = min(shown), max(shown)
    room = 4 * ((high - low) or abs(high) or 1.0)
    return low - room <= value <= high + room


def _theory_line(axes: Axes, value: float, kind: str, ends: list[tuple[float, str, str, str]]) -> None:
    low, high = axes.get_ylim()
    text = f"{kind}  {summary.number(value)}"
    if low - 3 * (high - low) <= value <= high + 3 * (high - low):
        room = 0.06 * (max(high, value) - min(low, value))
        axes.set_ylim(min(low, value - room), max(high, value + room))
        axes.axhline(value, color=INK, linewidth=1.3, linestyle=(0, (5, 3)), zorder=4)
        ends.append((value, text, INK, "normal"))
    else:
        ends.append((high if value > high else low, f"{text} {'↑' if value > high else '↓'}", INK, "normal"))


def _own_law(axes: Axes, row: int, known: Known | None) -> None:
    if known is not None:
        axes.plot(
            [known.value] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.4, linestyle=(0, (3, 2)), zorder=1
        )


def _vertical_theory(axes: Axes, value: float, kind: str) -> None:
    axes.axvline(value, color=INK, linewidth=1.3, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"{kind} {summary.number(value)}",
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8.5,
    )


def _curve_labels(figure: Figure, axes: Axes, tasks: Mapping[str, Any], style: Mapping[str, Style]) -> None:
    # All profiles end at zero: they are labelled on the right in the order of their areas, each at its level there.
    area = {agent: float(np.mean(np.concatenate(scores))) for agent, scores in tasks.items()}
    order = sorted(area, key=lambda a: area[a])
    places = spread_out([area[a] for a in order], 0.07)
    names = []
    for agent, place in zip(order, places, strict=True):
        look = style[agent]
        axes.plot([1.03, 1.09], [place, place], color=look.colour, linestyle=look.dash, linewidth=1.9, clip_on=False)
        names.append(
            axes.text(1.11, place, label(agent, 22), color=look.colour, fontweight="bold", fontsize=9.5, va="center")
        )
    room_for_names(figure, names, 0.11 * axes.get_position().width * figure.get_size_inches()[0] * 72)
