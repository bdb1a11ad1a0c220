"""How every figure looks: one theme, one style per agent, names beside what they name, files that never differ.

No pyplot and no global state: a figure belongs to whoever drew it. An agent keeps its colour in every figure; an
independent learner has its twin's colour, dashed and hollow. Names are drawn as they are, never as mathematics.
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, cast

import numpy as np
from numpy.typing import NDArray

from mfmarl.evaluation.results import write_bytes
from mfmarl.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, SOFT, GRID, PAPER = "#22262e", "#6b7280", "#dfe2e8", "#fdfdfe"
"""The report replaces these four by its own colours, light or dark."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8569a", "#b58900", "#3aa0d8", "#8a6d4f", "#6f5fc4")
"""Okabe and Ito's colour-blind-safe set (2008), its pale members darkened to be read as text."""
NEUTRAL = "#7d838c"

_RC: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "mfmarl",
    "path.simplify": True,
}


class Style(NamedTuple):
    """How one agent is drawn everywhere."""

    colour: str
    dash: str
    filled: bool
    marker: str


@contextmanager
def theme() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast("Any", _RC))
        yield


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with theme():
            return draw(*args, **kwargs)

    return inside


def styles(agents: Sequence[str], independent: Mapping[str, str]) -> dict[str, Style]:
    """One style per agent: twins share a hue, the independent one is dashed and hollow; `random` is grey."""
    twin_of = {lone: fielded for fielded, lone in independent.items()}
    families = list(dict.fromkeys(twin_of.get(a, a) for a in agents if a != "random"))
    found = {}
    for agent in agents:
        family = twin_of.get(agent, agent)
        place = families.index(family) if family in families else 0
        colour = NEUTRAL if agent == "random" else COLOURS[place % len(COLOURS)]
        lone = agent in twin_of
        found[agent] = Style(colour, "--" if lone else "-", not lone, "osD^vPXh"[place % 8])
    return found


def label(text: str, length: int = 36) -> str:
    """A name as a figure can show it: no control or surrogate characters, one line, not too long."""
    clean = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else c for c in text)
    clean = " ".join(clean.split()) or "(unnamed)"
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def file_name(text: str) -> str:
    """A name as part of a file's name, on any system."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text)[:80] or "unnamed"


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `<stem>.svg` and `<stem>.png`; the same figure gives the same bytes. Raises ResourceFault."""
    svg, png = to_svg(figure), to_png(figure)
    return write_bytes(Path(f"{stem}.svg"), svg), write_bytes(Path(f"{stem}.png"), png)


def to_svg(figure: Figure) -> bytes:
    with theme():
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "mfmarl"})
    return out.getvalue()


def to_png(figure: Figure, dots_per_inch: int = 160) -> bytes:
    with theme():
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return out.getvalue()


def empty_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, without axes."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def canvas(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, NDArray[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=None)
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_interval(axes: Axes, row: float, found: Estimate, look: Style) -> None:
    if math.isfinite(found.low) and math.isfinite(found.high):
        axes.plot(
            [found.low, found.high],
            [row, row],
            color=look.colour,
            linewidth=5,
            alpha=0.32,
            solid_capstyle="butt",
            zorder=2,
        )
    face = look.colour if look.filled else PAPER
    axes.plot(
        found.value,
        row,
        look.marker,
        color=look.colour,
        markerfacecolor=face,
        markersize=7,
        markeredgewidth=1.6,
        zorder=4,
    )


def agent_rows(axes: Axes, agents: Sequence[str], style: Mapping[str, Style]) -> None:
    axes.set_yticks(range(len(agents)), [label(a, 20) for a in agents])
    for tick, agent in zip(axes.get_yticklabels(), agents, strict=True):
        tick.set(color=style[agent].colour, fontweight="bold", fontsize=10)
    axes.set_ylim(len(agents) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.06)
    room_for_rows(axes)


def room_for_rows(axes: Axes) -> None:
    """The axes give way to the longest name on their left."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    longest = max((name.get_window_extent().width for name in axes.get_yticklabels()), default=0.0) / figure.dpi
    room = (longest + 12 / 72) / figure.get_size_inches()[0]
    if room > figure.subplotpars.left:
        figure.subplots_adjust(left=room)


def room_for_names(figure: Figure, names: Sequence[Any], distance: float) -> None:
    """The axes give way to the longest of the names on their right, which begin so many points away from them."""
    from matplotlib.text import Text

    # Of an annotation the text alone, without its arrow; in a browser's font it may be a little wider.
    longest = 1.08 * max((Text.get_window_extent(name).width for name in names), default=0.0) / figure.dpi
    room = (longest + (distance + 4) / 72) / figure.get_size_inches()[0]
    if 1 - room < figure.subplotpars.right:
        figure.subplots_adjust(right=1 - room)


def subtitle(axes: Axes, text: str) -> None:
    axes.annotate(
        text, (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points", fontsize=9, color=SOFT
    )


def curve_limits(axes: Axes, centres: list[Any], lows: list[Any], highs: list[Any]) -> None:
    # A band of three runs can be ten times as wide as the curves: it may add a quarter of their range on either side, no more.
    low, high = min(float(c.min()) for c in centres), max(float(c.max()) for c in centres)
    span = (high - low) or abs(high) or 1.0
    low = max(low - 0.25 * span, min([low, *(float(b.min()) for b in lows)]))
    high = min(high + 0.25 * span, max([high, *(float(b.max()) for b in highs)]))
    room = 0.05 * ((high - low) or span)
    axes.set_ylim(low - room, high + room)


def spread_out(places: Sequence[float], least: float) -> list[float]:
    """Places moved as little as may be, in order, so that neighbours are at least `least` apart (pool adjacent violators)."""
    order = np.argsort(places, kind="stable")
    blocks: list[list[float]] = []  # [mean of wanted places of the first, members]
    for rank, k in enumerate(order):
        blocks.append([places[k] - rank * least, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + value * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    moved = [value for value, size in blocks for _ in range(int(size))]
    found = [0.0] * len(places)
    for rank, k in enumerate(order):
        found[k] = moved[rank] + rank * least
    return found


def end_labels(figure: Figure, axes: Axes, ends: Sequence[tuple[float, str, str, str]]) -> None:
    """Names at the right end of their curves, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    points = axes.get_position().height * figure.get_size_inches()[1] * 72
    wanted = [(min(max(value, low), high) - low) / (high - low) * points for value, *_ in ends]
    names = []
    for (_, text, colour, weight), place, moved in zip(ends, wanted, spread_out(wanted, 13.0), strict=True):
        name = axes.annotate(
            text,
            (1, place / points),
            xycoords="axes fraction",
            xytext=(16, moved - place),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight=weight,
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
        names.append(name)
    room_for_names(figure, names, 16)


def empty(figure: Figure, axes: Axes, sentence: str) -> Figure:
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.transAxes, color=SOFT)
    return figure
