"""Pictures of a solved game: how the solvers came down, the crowd in time, and what its agents do.

Logarithms are drawn as numbers on plain axes, with the powers of ten written beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mfmarl.evaluation.drawing import (
    COLOURS,
    GRID,
    INK,
    SOFT,
    canvas,
    empty,
    empty_figure,
    end_labels,
    label,
    room_for_names,
    spread_out,
    subtitle,
    themed,
)
from mfmarl.evaluation.solved import Outcome, SavedPolicy
from mfmarl.evaluation.summary import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Frame = NDArray[np.uint8]

_CROWD = ("#f3f6fa", "#a9cbe6", "#3f8fc6", "#0b5a94", "#072b49")
"""From nobody to the fullest state: light to dark, so that it can be read without colours."""
_WALL = "#c9cdd6"
_PANELS = 6
_FEW = 8  # states that have a line or a panel of their own
_ROWS = 200  # of a map, at most: one of a point of the figure each
_STATES = 60  # states that have a bar of their own
_ROUNDING = 1e-16


@dataclass(frozen=True)
class Layout:
    """How a game's states lie and what they are called: `game.json` of a solved run."""

    groups: Sequence[str]
    states: int
    actions: int
    grid: Sequence[int] = ()
    cells: Sequence[int] = ()
    state_names: Sequence[str] = ()
    action_names: Sequence[str] = ()

    @property
    def flat(self) -> bool:
        """Whether states lie on a plane, or on several, one above the other."""
        return len(self.grid) in (2, 3)

    def action(self, a: int) -> str:
        return label(self.action_names[a], 18) if self.action_names else f"action {a}"

    def raster(self, values: Array) -> Array:
        """Values [S] on the grid; NaN where there is a wall."""
        full = np.full(math.prod(self.grid), np.nan)
        full[np.asarray(self.cells or range(self.states))] = values
        return full.reshape(tuple(self.grid))


def colours_of(labels: Sequence[str]) -> dict[str, str]:
    """One colour per solver."""
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(labels)}


def power(exponent: float) -> str:
    """A power of ten as text."""
    whole = round(exponent)
    digits = str(abs(whole)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {0: "1", 1: "10", 2: "100", -1: "0.1", -2: "0.01"}.get(whole, f"10{'⁻' if whole < 0 else ''}{digits}")


def _powers(axis: Any, low: float, high: float, most: int = 7) -> None:
    """Ticks at whole powers between two exponents, at 1, 2, 5 of each where there are few."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))
    ticks = [(float(k), power(k)) for k in range(first, last + 1, step)]
    if len(ticks) < 3:
        between = [
            (k + math.log10(m), f"{m * 10.0**k:g}")
            for k in range(math.floor(low), math.ceil(high) + 1)
            for m in (1, 2, 5)
        ]
        ticks = [(x, text) for x, text in between if low - 1e-9 <= x <= high + 1e-9]
    axis.set_ticks([x for x, _ in ticks], labels=[text for _, text in ticks])


def curve(rows: Sequence[dict[str, Any]], column: str, x: str = "iteration") -> tuple[Array, Array]:
    """A column against iterations or seconds, where both are finite."""
    pairs = [(row.get(x), row.get(column)) for row in rows]
    kept = [(a, b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float) and math.isfinite(b)]
    return np.array([a for a, _ in kept], dtype=float), np.array([b for _, b in kept], dtype=float)


@themed
def exploitability(
    rows: dict[str, list[dict[str, Any]]], outcomes: Sequence[Outcome], tolerance: float, x: str = "iteration"
) -> Figure:
    """What an agent gains by leaving, as each solver goes on; both axes logarithmic."""
    colours = colours_of([o.label for o in outcomes])
    figure, [[axes]] = canvas(7.4, 4.2)
    figure.subplots_adjust(left=0.11, right=0.78, top=0.86, bottom=0.14)
    start = max((o.uniform for o in outcomes if math.isfinite(o.uniform)), default=1.0)
    floor = _ROUNDING * max(1.0, start)
    drawn = []
    for o in outcomes:
        key = "regularised" if math.isfinite(o.regularised) else "exploitability"
        at, value = curve(rows.get(o.label, []), key, x)
        there = at > 0
        if there.any():
            drawn.append((o, np.log10(at[there]), np.log10(np.maximum(value[there], floor))))
    if not drawn:
        return empty(figure, axes, "No solver got as far as a first iteration.")
    ends = []
    for o, at, value in drawn:
        colour = colours[o.label]
        axes.plot(at, value, color=colour, linewidth=1.8, zorder=3)
        axes.plot(at[-1], value[-1], "X" if o.state == "diverged" else "o", color=colour, markersize=5.5, zorder=4)
        regular = " (regularised)" if math.isfinite(o.regularised) else ""
        ends.append((float(value[-1]), label(f"{o.label}{regular}", 26), colour, "bold"))
    shown = [v for _, _, value in drawn for v in value]
    low, high = min(shown), max(*shown, math.log10(max(start, floor)))
    if low - 1 <= math.log10(max(tolerance, floor)) <= low + 0.5 and tolerance > 0:
        low = min(low, math.log10(tolerance))
        axes.axhline(math.log10(tolerance), color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
        axes.annotate(
            f"tolerance {tolerance:g}", (0, math.log10(tolerance)), xycoords=("axes fraction", "data"),
            xytext=(4, 3), textcoords="offset points", fontsize=8.5, color=SOFT,
        )  # fmt: skip
    room = 0.06 * max(high - low, 0.5)
    axes.set_ylim(low - room, high + room)
    axes.axhline(math.log10(max(start, floor)), color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    ends.append((math.log10(max(start, floor)), f"at the start {number(start)}", INK, "normal"))
    left, right = min(at[0] for _, at, _ in drawn), max(at[-1] for _, at, _ in drawn)
    if right - left < 0.3:
        left, right = left - 0.15, right + 0.15
    axes.set_xlim(left - 0.02 * (right - left), right + 0.02 * (right - left))
    _powers(axes.yaxis, *axes.get_ylim())
    _powers(axes.xaxis, *axes.get_xlim())
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("iteration" if x == "iteration" else "seconds")
    axes.set_title(f"Exploitability against {'iterations' if x == 'iteration' else 'time'}", pad=22)
    subtitle(axes, "what an agent gains by leaving the policy that all others keep; 0 in equilibrium")
    end_labels(figure, axes, ends)
    return figure


@themed
def free_energy(rows: dict[str, list[dict[str, Any]]], labels: Sequence[str]) -> Figure:
    """The population's free energy as each solver goes on."""
    colours = colours_of(labels)
    figure, [[axes]] = canvas(7.4, 3.4)
    figure.subplots_adjust(left=0.11, right=0.78, top=0.83, bottom=0.16)
    ends, lefts, rights = [], [], []
    for name in labels:
        at, value = curve(rows.get(name, []), "free_energy")
        if not len(at):
            continue
        at = np.log10(np.maximum(at, 0.5))
        axes.plot(at, value, color=colours[name], linewidth=1.8)
        axes.plot(at[-1], value[-1], "o", color=colours[name], markersize=5.5)
        ends.append((float(value[-1]), label(name, 26), colours[name], "bold"))
        lefts.append(at[0])
        rights.append(at[-1])
    if not ends:
        return empty(figure, axes, "This game has no potential.")
    axes.set_xlim(min(lefts), max(max(rights), min(lefts) + 0.3) * 1.02)
    ticks = [(k, power(k)) for k in range(math.floor(max(rights)) + 1)]
    axes.set_xticks([min(lefts), *(t for t, _ in ticks)], ["start", *(text for _, text in ticks)])
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("iteration")
    axes.set_title("Free energy of the population", pad=22)
    subtitle(axes, "minus the potential, less temperature times entropy where there is one; equilibria are its minima")
    end_labels(figure, axes, ends)
    return figure


# The crowd


@themed
def crowd(saved: SavedPolicy, layout: Layout, title: str) -> Figure:
    """The distribution over states at each time: a map of time and state, panels of a grid, or bars where it stands."""
    ways = _ways(saved)
    if layout.flat:
        return _planes(saved, layout, title)
    if ways[0].shape[0] <= 2:
        return _bars(ways[0], layout, title)
    if layout.states <= _FEW:
        return _lines(saved, layout, title)
    rows, columns = len(ways) * len(layout.groups), 1
    high = min(3.4, max(1.6, 0.2 * layout.states + 0.8)) if layout.states <= _STATES else 3.4
    figure, grid = canvas(7.4, 0.6 + (high + 0.35) * rows, rows, columns)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(
        left=0.11, right=0.87, top=1 - 0.7 / height, bottom=0.55 / height, hspace=0.75 / max(high, 1)
    )
    for panel, (way, chance, g) in enumerate(
        (way, float(c), g) for way, c in zip(ways, saved.chances, strict=True) for g in range(len(layout.groups))
    ):
        axes = grid[panel][0]
        picture = axes.imshow(
            _fullest(way[:, g]).T, origin="lower", aspect="auto", cmap=_colours(), vmin=0, vmax=max(float(way[:, g].max()), 1e-12),
            interpolation="nearest", extent=(-0.5, len(way) - 0.5, -0.5, layout.states - 0.5),
        )  # fmt: skip
        bar = figure.colorbar(picture, ax=axes, pad=0.02, fraction=0.05)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8.5)
        _whole(axes.xaxis, len(way))
        _named_states(axes, layout)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_ylabel("" if layout.state_names else "state")
        axes.set_title(_panel_name(layout, g, chance, len(ways)), fontsize=9.5, fontweight="normal", pad=5)
    grid[-1][0].set_xlabel("time")
    figure.text(0.02, 1 - 0.26 / height, title, fontsize=11, fontweight="bold")
    each = math.ceil(layout.states / _ROWS)
    what = "each state" if each == 1 else f"the fullest of every {each} neighbouring states"
    figure.text(0.02, 1 - 0.46 / height, f"share of agents in {what} at each time", fontsize=9, color=SOFT)
    return figure


def _fullest(shares: Array) -> Array:
    """Shares [T, S] in at most some hundred rows: a narrow peak must not fall between them."""
    each = math.ceil(shares.shape[-1] / _ROWS)
    if each == 1:
        return shares
    padded = np.pad(shares, [(0, 0), (0, -shares.shape[-1] % each)])
    return np.asarray(padded.reshape(len(shares), -1, each).max(-1))


def _ways(saved: SavedPolicy) -> list[Array]:
    """The crowd along each path, [T + 1, G, S]."""
    mu = saved.mu.double().numpy()
    return [mu[row] for row in saved.paths.numpy()]


def _panel_name(layout: Layout, g: int, chance: float, ways: int) -> str:
    group = label(layout.groups[g], 24) if len(layout.groups) > 1 else ""
    past = f"one course of the common noise, probability {chance:.2g}" if ways > 1 else ""
    return ", ".join(t for t in (group, past) if t)


def _colours() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("crowd", list(_CROWD)).with_extremes(bad=_WALL)


def _whole(axis: Any, count: int, most: int = 12) -> None:
    step = next(m * 10**k for k in range(12) for m in (1, 2, 5) if m * 10**k * most >= count)
    axis.set_ticks(list(range(0, count, step)))


def _named_states(axes: Axes, layout: Layout) -> None:
    if layout.state_names and layout.states <= 24:
        axes.set_yticks(range(layout.states), [label(n, 16) for n in layout.state_names])
    else:
        _whole(axes.yaxis, layout.states)


def _lines(saved: SavedPolicy, layout: Layout, title: str) -> Figure:
    """Few states: the share of each against time."""
    ways = _ways(saved)
    panels = [(w, g) for w in range(len(ways)) for g in range(len(layout.groups))]
    # A major agent stays where it is: what it does is the common noise.
    panels = [(w, g) for w, g in panels if np.ptp(ways[w][:, g], axis=0).any()] or panels
    figure, grid = canvas(7.4, 0.75 + 2.4 * len(panels), len(panels), 1)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.09, right=0.84, top=1 - 0.75 / height, bottom=0.5 / height, hspace=0.35)
    for row, (w, g) in enumerate(panels):
        axes, way = grid[row][0], ways[w][:, g]
        for s in range(layout.states):
            axes.plot(way[:, s], color=COLOURS[s], linewidth=1.8)
        axes.set_xlim(0, len(way) - 1)
        axes.set_ylim(0, 1.04 * max(float(way.max()), 1e-12))
        axes.grid(axis="x", visible=False)
        _whole(axes.xaxis, len(way))
        axes.set_title(
            _panel_name(layout, g, float(saved.chances[w]), len(ways)), fontsize=9.5, fontweight="normal", pad=5
        )
        names = [label(layout.state_names[s], 16) if layout.state_names else f"state {s}" for s in range(layout.states)]
        end_labels(figure, axes, [(float(way[-1, s]), n, COLOURS[s], "bold") for s, n in enumerate(names)])
    grid[-1][0].set_xlabel("time")
    _heading(figure, title, "share of agents in each state")
    return figure


def _bars(way: Array, layout: Layout, title: str) -> Figure:
    """A crowd that stands (or the start and the end of one step)."""
    rows = len(layout.groups)
    figure, grid = canvas(7.4, 0.9 + 2.2 * rows, rows, 1)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.1, right=0.97, top=1 - 0.75 / height, bottom=0.5 / height, hspace=0.5)
    for g in range(rows):
        axes = grid[g][0]
        places = np.arange(layout.states)
        width = 0.8 / len(way)
        for t, mu in enumerate(way):
            colour = COLOURS[0] if t + 1 == len(way) else GRID
            name = "" if len(way) == 1 else ("at the start" if t == 0 else "after the step")
            axes.bar(places + (t - (len(way) - 1) / 2) * width, mu[g], width, color=colour, label=name)
        if layout.state_names and layout.states <= 12:
            axes.set_xticks(places, [label(n, 14) for n in layout.state_names])
        else:
            _whole(axes.xaxis, layout.states, 20)
            axes.set_xlabel("state")
        axes.set_ylabel("share")
        axes.grid(axis="x", visible=False)
        if len(layout.groups) > 1:
            axes.set_title(label(layout.groups[g], 30), fontsize=9.5, fontweight="normal", pad=5)
        if len(way) > 1:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=SOFT, loc="upper right")
    text = "share of agents in each state"
    figure.text(0.02, 1 - 0.26 / height, title, fontsize=11, fontweight="bold")
    figure.text(0.02, 1 - 0.46 / height, text, fontsize=9, color=SOFT)
    return figure


def chosen(count: int, most: int = _PANELS) -> list[int]:
    """Times spread over all, the first and the last among them."""
    return sorted({round(k * (count - 1) / max(min(most, count) - 1, 1)) for k in range(min(most, count))})


def _planes(saved: SavedPolicy, layout: Layout, title: str) -> Figure:
    """A row of the grid's pictures for each group (and floor, and course of the common noise)."""
    ways = _ways(saved)
    times = chosen(len(ways[0]))
    floors = layout.grid[0] if len(layout.grid) == 3 else 1
    rows = [(w, g, f) for w in range(len(ways)) for g in range(len(layout.groups)) for f in range(floors)]
    figure, grid = _tiles(len(rows), len(times), layout)
    for row, (w, g, f) in enumerate(rows):
        for column, t in enumerate(times):
            axes = grid[row][column]
            plane = layout.raster(ways[w][t, g])
            top = float(np.nanmax(plane))
            _plane(axes, plane[f] if floors > 1 else plane, top)
            axes.set_title(f"t = {t}, ≤ {top:.2g}" if f == 0 else "", fontsize=8, fontweight="normal", pad=3)
        _row_name(grid[row][0], layout, g, f if floors > 1 else -1, float(saved.chances[w]) if len(ways) > 1 else 0.0)
    _heading(figure, title, "share of agents in each cell; each picture from 0 (light) to its own largest (dark)")
    return figure


def _tiles(rows: int, columns: int, layout: Layout) -> tuple[Figure, Any]:
    side = (7.4 - 0.7) / columns
    tall = side * layout.grid[-2] / layout.grid[-1]
    height = 0.75 + rows * (min(tall, 3.4) + 0.26)
    figure = empty_figure(7.4, height)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(left=0.08, right=0.99, top=1 - 0.85 / height, bottom=0.05 / height, wspace=0.08, hspace=0.14)
    return figure, grid


def _heading(figure: Figure, title: str, text: str) -> None:
    height = figure.get_size_inches()[1]
    figure.text(0.02, 1 - 0.26 / height, title, fontsize=11, fontweight="bold")
    figure.text(0.02, 1 - 0.46 / height, text, fontsize=9, color=SOFT)


def _row_name(axes: Axes, layout: Layout, g: int, floor: int, chance: float) -> None:
    words = [label(layout.groups[g], 16)] if len(layout.groups) > 1 else []
    words += [f"floor {floor}"] if floor >= 0 else []
    words += [f"p = {chance:.2g}"] if chance else []
    axes.set_ylabel("\n".join(words), fontsize=9)


def _plane(axes: Axes, plane: Array, top: float) -> None:
    # Close together, a few full cells would leave all others white: the root shows both.
    shown = np.sqrt(np.clip(plane / max(top, 1e-300), 0, 1))
    axes.imshow(np.ma.masked_invalid(shown), cmap=_colours(), vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


# The policy


@themed
def policy(saved: SavedPolicy, layout: Layout, title: str) -> Figure:
    """What agents do in each state: arrows of their mean move on a grid, stacked probabilities elsewhere."""
    if layout.flat and saved.drift is not None and len(layout.grid) == 2:
        return _arrows(saved, layout, title)
    if layout.states <= _FEW and min(saved.paths.shape[1], len(saved.policy)) > 4:
        return _areas(saved, layout, title)
    return _stacks(saved, layout, title)


def _areas(saved: SavedPolicy, layout: Layout, title: str) -> Figure:
    """Few states: what those in each do against time, stacked."""
    nodes = saved.paths[0].numpy()
    nodes = nodes[nodes < len(saved.policy)]
    probability = saved.policy.double().numpy()[nodes]  # [T, G, S, A]
    panels = [(g, s) for g in range(len(layout.groups)) for s in range(layout.states)]
    figure, grid = canvas(7.4, 0.85 + 1.1 * len(panels), len(panels), 1)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.16, right=0.8, top=1 - 0.75 / height, bottom=0.5 / height, hspace=0.3)
    colours = [COLOURS[a % len(COLOURS)] for a in range(layout.actions)]
    edges = np.arange(len(nodes) + 1) - 0.5
    for row, (g, s) in enumerate(panels):
        axes = grid[row][0]
        chances = np.concatenate([probability[:, g, s], probability[-1:, g, s]])
        axes.stackplot(edges, chances.T, colors=colours, step="post", linewidth=0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _whole(axes.xaxis, len(nodes))
        if row < len(panels) - 1:
            axes.tick_params(labelbottom=False)
        words = [label(layout.groups[g], 14)] if len(layout.groups) > 1 else []
        words.append(label(layout.state_names[s], 14) if layout.state_names else f"state {s}")
        axes.set_ylabel("\n".join(words), rotation=0, ha="right", va="center", color=INK)
    grid[-1][0].set_xlabel("time")
    _action_names(figure, grid[0][0], probability[-1:, 0, 0], layout, colours)
    past = ", along the likeliest course of the common noise" if len(saved.paths) > 1 else ""
    _heading(figure, title, f"probabilities of the actions at each time{past}")
    return figure


def _arrows(saved: SavedPolicy, layout: Layout, title: str) -> Figure:
    assert saved.drift is not None
    way, nodes = _ways(saved)[0], saved.paths[0].numpy()
    times = chosen(min(len(way), len(saved.policy)), 4)
    figure, grid = _tiles(len(layout.groups), len(times), layout)
    drift = saved.drift.double().numpy()
    rows, columns = layout.grid
    for g in range(len(layout.groups)):
        for column, t in enumerate(times):
            axes = grid[g][column]
            plane = layout.raster(way[t, g])
            _plane(axes, plane, float(np.nanmax(plane)) * 4)  # pale, so that the arrows are seen
            down, right = (layout.raster(drift[nodes[t], g, :, axis]) for axis in (0, 1))
            step = max(1, math.ceil(max(rows, columns) / 14))
            y, x = np.mgrid[0:rows:step, 0:columns:step]
            u, v = right[::step, ::step], down[::step, ::step]
            longest = max(float(np.nanmax(np.hypot(u, v))), 1e-9)
            there = np.isfinite(u) & (np.hypot(u, v) > 0.02 * longest)
            size = 0.9 * step / longest
            axes.quiver(
                x[there], y[there], u[there] * size, v[there] * size, angles="xy", scale_units="xy", scale=1,
                pivot="mid", color=INK, width=0.008, headwidth=4, headlength=4.5, headaxislength=4,
            )  # fmt: skip
            axes.set_title(f"t = {t}", fontsize=8.5, fontweight="normal", pad=3)
        _row_name(grid[g][0], layout, g, -1, 0.0)
    _heading(
        figure, title, "mean move of those who stand there (longest arrow: the largest of its picture), on the crowd"
    )
    return figure


def _stacks(saved: SavedPolicy, layout: Layout, title: str) -> Figure:
    nodes, way = saved.paths[0].numpy(), _ways(saved)[0]
    count = min(len(nodes), len(saved.policy))
    times = chosen(count, 4)
    probability = saved.policy.double().numpy()
    rows = [(t, g) for t in times for g in range(len(layout.groups))]
    figure, grid = canvas(7.4, 0.85 + 1.25 * len(rows), len(rows), 1)
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.12, right=0.8, top=1 - 0.75 / height, bottom=0.5 / height, hspace=0.35)
    states, shown = _shown_states(way[:count].max((0, 1)), layout)
    colours = [COLOURS[a % len(COLOURS)] for a in range(layout.actions)]
    places = np.arange(len(states))
    wide = 0.86 if len(states) <= _STATES else 1.0
    for row, (t, g) in enumerate(rows):
        axes = grid[row][0]
        below = np.zeros(len(states))
        empty_state = way[t, g, states] < 1e-9
        for a in range(layout.actions):
            p = probability[nodes[t], g, states, a]
            bars = axes.bar(places, p, wide, bottom=below, color=colours[a], linewidth=0)
            for k in np.flatnonzero(empty_state) if len(states) <= _STATES else ():
                bars[k].set_alpha(0.25)
            below = below + p
        axes.set_xlim(-0.5, len(states) - 0.5)
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        names = [f"t = {t}"] if count > 1 else []
        names += [label(layout.groups[g], 14)] if len(layout.groups) > 1 else []
        axes.set_ylabel("\n".join(names), rotation=0, ha="right", va="center", color=INK)
        last = row == len(rows) - 1
        if layout.state_names and len(states) <= 16:
            axes.set_xticks(places, [label(layout.state_names[s], 12) for s in states] if last else [""] * len(states))
        else:
            ticks = places[:: max(1, math.ceil(len(states) / 16))]
            axes.set_xticks(ticks, [str(states[k]) for k in ticks] if last else [""] * len(ticks))
    grid[-1][0].set_xlabel(shown)
    _action_names(figure, grid[0][0], probability[nodes[times[0]], 0][states], layout, colours)
    faded = (
        "; pale: nobody is there" if (way[:count][times][:, :, states] < 1e-9).any() and len(states) <= _STATES else ""
    )
    _heading(figure, title, f"probabilities of the actions in each state{faded}")
    return figure


def _shown_states(most: Array, layout: Layout) -> tuple[NDArray[np.int64], str]:
    """All states where they have an order and room, else those that are fullest."""
    if layout.states <= 400:
        return np.arange(layout.states), "" if layout.state_names and layout.states <= 16 else "state"
    if len(layout.grid) == 1:
        return np.arange(0, layout.states, math.ceil(layout.states / 400)), "state"
    return np.sort(np.argsort(-most, kind="stable")[:_STATES]), f"state (the {_STATES} fullest)"


def _action_names(figure: Figure, axes: Axes, first: Array, layout: Layout, colours: Sequence[str]) -> None:
    """Beside the first panel, at the height where the rightmost state's bar has them."""
    if layout.actions > 12:
        return
    ends = np.cumsum(first[-1])
    middles = [float(e - p / 2) for e, p in zip(ends, first[-1], strict=True)]
    points = axes.get_position().height * figure.get_size_inches()[1] * 72
    moved = spread_out([m * points for m in middles], 12.0)
    shift = max(0.0, moved[-1] - points - 4) if moved else 0.0
    names = [
        axes.annotate(
            layout.action(a),
            (1, 0),
            xycoords="axes fraction",
            xytext=(8, place - shift),
            textcoords="offset points",
            va="center",
            color=colours[a],
            fontweight="bold",
            fontsize=9,
            annotation_clip=False,
        )
        for a, place in enumerate(moved)
    ]
    room_for_names(figure, names, 8)


# The film


def film(saved: SavedPolicy, layout: Layout, most: int = 80) -> list[Frame]:
    """Pictures of the crowd in time (the likeliest course of a common noise); none where it stands still."""
    way = _ways(saved)[0]
    if len(way) < 3:
        return []
    times = chosen(len(way), most)
    top = way.max((0, 2), keepdims=True)
    return [_frame(way[t], top[0], t / (len(way) - 1), layout) for t in times]


def _frame(mu: Array, top: Array, done: float, layout: Layout) -> Frame:
    """One time: groups side by side, and below how much of the time is over."""
    parts: list[Frame] = []
    for g in range(len(layout.groups)):
        picture = _map(mu[g], layout) if layout.flat else _columns(mu[g] / max(float(top[g, 0]), 1e-12))
        parts += [picture] if not parts else [np.full((picture.shape[0], 10, 3), 255, np.uint8), picture]
    picture = np.concatenate(parts, 1)
    bar = np.full((8, picture.shape[1], 3), 255, np.uint8)
    bar[3:, : max(1, round(done * picture.shape[1]))] = (107, 114, 128)
    return np.concatenate([picture, bar])


def _map(mu: Array, layout: Layout) -> Frame:
    plane = layout.raster(mu)
    if plane.ndim == 3:  # floors side by side, the ground floor left
        gap = np.full((plane.shape[0], plane.shape[1], 1), np.nan)
        plane = np.concatenate(list(np.concatenate([plane, gap], 2)), 1)[:, :-1]
    shown = np.sqrt(np.clip(plane / max(float(np.nanmax(plane)), 1e-300), 0, 1))
    colours = (_colours()(np.ma.masked_invalid(shown))[..., :3] * 255).round().astype(np.uint8)
    side = max(1, -(-320 // max(plane.shape)))
    return np.asarray(colours.repeat(side, 0).repeat(side, 1))


def _columns(heights: Array, height: int = 200, width: int = 360) -> Frame:
    import torch

    from mfmarl.population import picture

    width = max(width, 3 * min(len(heights), _ROWS))
    return np.asarray(
        picture.bars(torch.from_numpy(_fullest(heights[None])[0].copy()), picture.palette(1), height, width).numpy()
    )
