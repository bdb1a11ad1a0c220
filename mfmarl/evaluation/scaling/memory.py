r"""How much memory a point will take, before it is begun: smaller points are weighed, and a line is drawn through them.

$$ m(n) = m_1 + (n - n_1) \frac{m_1 - m_0}{n_1 - n_0}, $$

n the rows (agents times copies) of the two largest points known; or, where three or more of them bend upwards, the power of n that goes
through the last two. Points that are too small to tell (everything fits in what the process has anyway) are no base for
it: then larger ones are tried, each sixteen times the one before, until the difference shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from mfmarl.evaluation.scaling.measure import fresh
from mfmarl.evaluation.scaling.points import Measured, Plan, Point
from mfmarl.population.free_memory import free_memory, told

Probe = Callable[[Point], Measured]
"""Weighs a point; a few steps are enough."""

SHARE = 0.8
"""Of what is free, the part that one point may take."""
NOISE = 32 << 20
"""Bytes by which two points must differ for their slope to be believed."""
TELLING = 1 << 16
"""Rows from which on a slope is believed however small it is: what a row weighs shows there."""
HARMLESS = {"mfmarl": 4096, "sb3": 1024, "loop": 64, "stacked": 16}
"""Rows at which nothing is asked: so few fit wherever this package does."""


def allowed(plan: Plan) -> int:
    """Bytes that one point may take; 0: nobody knows."""
    return int(plan.max_memory) or int(SHARE * free_memory())


def fits(point: Point, plan: Plan, measured: Iterable[Measured] = (), probe: Probe | None = None) -> str:
    """Empty, or why the point is not begun."""
    limit = allowed(plan)
    if not limit or (rows(point) <= HARMLESS[point.kind] and not plan.max_memory):
        return ""
    needed = estimate(point, plan, measured, probe)
    if needed <= limit:
        return ""
    return f"It would take about {told(needed)} of memory, and it may take {told(limit)}."


def estimate(point: Point, plan: Plan, measured: Iterable[Measured] = (), probe: Probe | None = None) -> int:
    """Resident bytes of a point's process at its largest, from `measured` points of its kind or from smaller ones
    that `probe` weighs now (`None`: each in a fresh process, some seconds). 0 where nothing of the kind can be made.
    """
    known = {rows(m.point): m.peak_bytes for m in measured if m.status == "done" and m.peak_bytes and alike(m, point)}
    known = {n: peak for n, peak in known.items() if n <= rows(point)}
    weigh = probe or (lambda smaller: fresh(smaller, replace(plan, steps=1)))
    size = 1
    while rows(point) not in known and not telling(known):
        size = _next_size(known, size, point)
        if size >= point.num_agents:
            break
        found = weigh(replace(point, num_agents=size, repeat=1))
        if found.status == "done":
            known[rows(found.point)] = found.peak_bytes
        elif known:
            break  # already the smaller one does not go: what is known must do
    return extrapolate(known, rows(point)) if known else 0


def rows(point: Point) -> int:
    return point.num_agents * point.copies


def alike(measured: Measured, point: Point) -> bool:
    """Whether only the number of agents differs."""
    other = measured.point
    return (other.kind, other.agent, other.varied, other.copies) == (
        point.kind,
        point.agent,
        point.varied,
        point.copies,
    )


def telling(known: dict[int, int]) -> bool:
    """Whether the slope between the two largest means something."""
    if len(known) < 2:
        return False
    before, last = sorted(known)[-2:]
    return known[last] - known[before] >= NOISE or (before >= TELLING // 16 and last >= TELLING)


def extrapolate(known: dict[int, int], n: int) -> int:
    """Bytes at n rows, by the line through the two largest known or, if that bends upwards, by the power law."""
    if n in known:
        return known[n]
    sizes = sorted(known)
    if len(sizes) == 1:
        return known[sizes[0]]
    before, last = sizes[-2:]
    rise = max(0, known[last] - known[before])
    line = known[last] + rise / (last - before) * (n - last)
    if len(sizes) < 3 or rise < NOISE:
        return round(line)
    first = sizes[-3]
    earlier = max(0, known[before] - known[first])
    if earlier < NOISE or rise / (last - before) < 1.5 * earlier / (before - first):
        return round(line)
    # Each step weighed more per row than the one before: m = c + b n^p, c being so small a share that it is left in.
    power = (
        math.log(rise / earlier) / math.log((last - before) / (before - first))
        if last - before != before - first
        else 2.0
    )
    power = min(max(power, 1.0), 3.0)
    bend = known[last] + rise * ((n**power - last**power) / (last**power - before**power))
    return round(max(line, bend))


def _next_size(known: dict[int, int], size: int, point: Point) -> int:
    largest = max(known, default=0) // point.copies
    # Whoever has a mind for each agent is weighed in small numbers.
    least = 16 if point.kind in ("stacked", "loop") else 4096
    return max(size * 16, largest * 16 if largest >= least // 16 else 0, least) if largest or size > 1 else least
