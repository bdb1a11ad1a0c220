r"""How a cost grows with the number of agents: exponents with intervals, where the growth begins, and which part grows.

A step of N agents costs a fixed part, whatever N, and a part that grows:

$$ c(N) = a + b N^p $$

fitted in log c by weighted least squares on the means of the sizes (a size's variance is that of its repeats, shrunk
towards that of all sizes). The fixed part is kept only where it makes the fit better than chance would (F test, 5 %);
its *knee* is the size at which it is half of a step, (a/b)^(1/p). The interval is that of the t distribution: where the
means scatter about the curve no more than their repeats say, repeats and scatter are pooled; where they scatter more
(F test), the scatter alone counts, with its few degrees of freedom. Caches make a second knee, from which an agent
costs more than before: a hinge in log(c/N), found by a likelihood ratio over all places where it could be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mfmarl.evaluation.scaling.points import PHASES, Measured, Point

Array = NDArray[np.float64]

LEVEL = 0.95
_PRIOR = 4.0
"""Degrees of freedom by which a size's variance is drawn towards that of all."""
_LEAST_SPREAD = 1e-3
"""Two timings of the same thing are never taken to agree better than to this share."""
_GRAIN, _SHARE = 2e6, 0.02
"""What is not known of a process's memory: bytes of the allocator's grain, and a share."""
HEAVY = 5 * _GRAIN
"""Bytes that agents must take before a size tells how memory grows."""
LINEAR = 0.1
"""Memory is called linear where every size lies within this share of the line."""
_KEPT, _POOLED = 0.5, 0.2
"""p-values of the two F tests: below the first a fixed part is kept, above the second repeats and scatter are pooled."""
RISE = 1.1
"""The least factor by which an agent must cost more at the largest size for that to be called a rise."""


class Growth(NamedTuple):
    """c(N) = fixed + scale N^exponent, with the exponent's 95 % interval (NaN: too few points for one)."""

    exponent: float
    low: float
    high: float
    fixed: float
    """In the unit of the costs; 0 where none was found."""
    scale: float
    sizes: int
    freedom: int
    straight: bool
    """The sizes lie on the curve as closely as their repeats agree."""

    @property
    def knee(self) -> float:
        """The size at which the fixed part is half of the cost; 0 without a fixed part."""
        return float((self.fixed / self.scale) ** (1 / self.exponent)) if self.fixed > 0 and self.exponent > 0 else 0.0

    def at(self, size: ArrayLike) -> Array:
        return np.asarray(self.fixed + self.scale * np.asarray(size, dtype=np.float64) ** self.exponent)


class Rise(NamedTuple):
    """From size `begins` on an agent costs more: `factor` times the level before, at the largest size."""

    begins: float
    factor: float
    slope: float
    """Of log(cost per agent) against log N, beyond."""
    p: float
    """Of no rise, corrected for the places looked at."""


class Memory(NamedTuple):
    """Bytes above what the process took before: fixed + per_agent x agents, with a 95 % interval of `per_agent`."""

    per_agent: float
    low: float
    high: float
    fixed: float
    deviation: float
    """Largest share by which a size lies off the line, of those whose agents outweigh the allocator's grain; NaN with fewer
    than two such."""
    sizes: int

    @property
    def linear(self) -> bool:
        return bool(self.deviation <= LINEAR)

    def at(self, agents: ArrayLike) -> Array:
        return np.asarray(self.fixed + self.per_agent * np.asarray(agents, dtype=np.float64))


class _Means(NamedTuple):
    sizes: Array
    """Distinct, increasing, [k]."""
    logs: Array
    """Mean of log cost, [k]."""
    variance: Array
    """Of each mean, [k]."""
    freedom: int
    """Of the repeats."""


def growth(sizes: ArrayLike, costs: ArrayLike) -> Growth:
    """The growth of positive `costs` [n] with `sizes` [n]; a size may come several times, once for each repeat.

    Raises ValueError with fewer than two sizes, or a cost that is not positive.
    """
    means = _means(np.asarray(sizes, dtype=np.float64), np.asarray(costs, dtype=np.float64))
    plain = _power(means)
    full = _offset(means)
    if full is not None and _better(plain, full, means):
        return _finish(full, means)
    return _finish(plain, means)


class _Fit(NamedTuple):
    theta: Array
    """(p, log b) or (p, log b, log a)."""
    covariance: Array
    """Of theta, if `variance` is right."""
    chi2: float


def _means(sizes: Array, costs: Array) -> _Means:
    if sizes.shape != costs.shape or sizes.ndim != 1:
        raise ValueError(f"Expected as many costs as sizes, got {costs.shape} for {sizes.shape}.")
    if not (np.all(costs > 0) and np.all(np.isfinite(costs)) and np.all(sizes > 0)):
        raise ValueError("Sizes and costs must be positive numbers.")
    distinct, place, repeats = np.unique(sizes, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise ValueError("A growth needs at least two sizes.")
    logs = np.log(costs)
    centre = np.bincount(place, logs) / repeats
    squares = np.bincount(place, (logs - centre[place]) ** 2)
    freedom = int(repeats.sum() - len(distinct))
    pooled = max(float(squares.sum() / freedom) if freedom else 0.0, _LEAST_SPREAD**2)
    own = (squares + _PRIOR * pooled) / (repeats - 1 + _PRIOR)
    return _Means(distinct, centre, own / repeats, freedom)


def _power(means: _Means) -> _Fit:
    design = np.stack([np.log(means.sizes), np.ones_like(means.sizes)], -1)
    return _linear(design, means)


def _linear(design: Array, means: _Means) -> _Fit:
    weight = 1 / means.variance
    normal = design.T @ (weight[:, None] * design)
    theta = np.linalg.solve(normal, design.T @ (weight * means.logs))
    left = means.logs - design @ theta
    return _Fit(np.asarray(theta, np.float64), _inverse(normal), float((weight * left**2).sum()))


def _inverse(matrix: Array) -> Array:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _offset(means: _Means) -> _Fit | None:
    """With a fixed part; None where there are too few sizes, or where it vanishes."""
    from scipy.optimize import least_squares

    if len(means.sizes) < 3 or len(means.sizes) + means.freedom < 4:
        return None
    x, y, root = np.log(means.sizes), means.logs, 1 / np.sqrt(means.variance)

    def residuals(theta: Array) -> Array:
        p, b, a = theta
        return np.asarray(root * (np.logaddexp(a, b + p * (x - x[-1])) - y))

    def jacobian(theta: Array) -> Array:
        p, b, a = theta
        grows = b + p * (x - x[-1])
        share = np.exp(grows - np.logaddexp(a, grows))
        return np.asarray(root[:, None] * np.stack([share * (x - x[-1]), share, 1 - share], -1))

    best: Any = None
    for begin in (0.9, 0.5, 0.1):
        start = (1.0, y[-1], y[0] + math.log(begin))
        found = least_squares(residuals, start, jac=jacobian, method="lm" if len(x) >= 3 else "trf")
        if best is None or found.cost < best.cost:
            best = found
    slopes = jacobian(best.x)
    normal = slopes.T @ slopes
    if not np.all(np.isfinite(best.x)) or best.x[0] <= 0 or np.linalg.cond(normal) > 1e12:
        return None
    theta = np.array([best.x[0], best.x[1] - best.x[0] * x[-1], best.x[2]])
    return _Fit(theta, _inverse(normal), float(2 * best.cost))


def _better(plain: _Fit, full: _Fit, means: _Means) -> bool:
    """Is the improvement by one parameter more than chance gives one time in twenty?"""
    from scipy.special import fdtrc

    freedom = len(means.sizes) - 3 + means.freedom
    if means.freedom:
        # The repeats' own scatter is in `variance`: their chi-square is their freedom.
        left = (full.chi2 + means.freedom) / freedom
    else:
        left = full.chi2 / freedom
    gain = plain.chi2 - full.chi2
    # A fixed part too small to be seen still bends the curve: with sizes to spare it is kept unless it does nothing.
    chance = _KEPT if len(means.sizes) > 3 else 1 - LEVEL
    return bool(gain > 0 and fdtrc(1, freedom, gain / max(left, 1e-300)) < chance)


def _finish(fit: _Fit, means: _Means) -> Growth:
    from scipy.special import fdtrc, stdtrit

    scatter = len(means.sizes) - len(fit.theta)
    straight = True
    if means.freedom and scatter > 0:
        straight = bool(fdtrc(scatter, means.freedom, fit.chi2 / scatter) >= _POOLED)
    if means.freedom and straight:
        freedom = scatter + means.freedom
        inflation = max(1.0, (fit.chi2 + means.freedom) / freedom) if scatter else 1.0
    else:
        freedom, inflation = scatter, fit.chi2 / scatter if scatter else math.nan
    error = math.sqrt(max(fit.covariance[0, 0] * inflation, 0.0)) if freedom else math.nan
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error if freedom else math.nan
    p = float(fit.theta[0])
    fixed = float(np.exp(fit.theta[2])) if len(fit.theta) == 3 else 0.0
    return Growth(p, p - half, p + half, fixed, float(np.exp(fit.theta[1])), len(means.sizes), freedom, straight)


def rise(sizes: ArrayLike, costs: ArrayLike) -> Rise | None:
    """Where the cost per agent leaves its level at large sizes; None where it does not. `costs` are per step, [n].

    Log(c/N) = log(a/N + b) is set against the same with a hinge, s max(0, log N - log k), for every inner size k.
    """
    from scipy.special import fdtrc

    means = _means(np.asarray(sizes, dtype=np.float64), np.asarray(costs, dtype=np.float64))
    count = len(means.sizes)
    if count < 4 or count + means.freedom < 6:
        return None
    x = np.log(means.sizes)
    level, _ = _level(means, None)
    tried = [(k, *_level(means, np.maximum(0.0, x - x[k]))) for k in range(1, count - 1)]
    k, chi2, slope = min(tried, key=lambda one: one[1])
    scatter = count - 4
    freedom = scatter + means.freedom
    left = (chi2 + means.freedom) / freedom if means.freedom else chi2 / freedom
    if scatter and means.freedom:
        left = max(left, chi2 / scatter)
    gain = max(0.0, level - chi2) / 2
    p = min(1.0, len(tried) * float(fdtrc(2, freedom, gain / max(left, 1e-300))))
    factor = float(np.exp(slope * (x[-1] - x[k])))
    if p < 1 - LEVEL and factor >= RISE:
        return Rise(float(means.sizes[k]), factor, slope, p)
    return None


def _level(means: _Means, hinge: Array | None) -> tuple[float, float]:
    """Chi-square and slope of the best a/N + b, with a hinge of any slope (or none)."""
    from scipy.optimize import minimize_scalar

    y = means.logs - np.log(means.sizes)
    weight = 1 / means.variance
    columns = [np.ones_like(y)] if hinge is None else [np.ones_like(y), hinge]
    design = np.stack(columns, -1)

    def left(log_knee: float) -> tuple[float, Array]:
        rest = y - np.log1p(np.exp(log_knee) / means.sizes)
        theta = np.linalg.lstsq(np.sqrt(weight)[:, None] * design, np.sqrt(weight) * rest, rcond=None)[0]
        return float((weight * (rest - design @ theta) ** 2).sum()), theta

    span = np.log(means.sizes)
    grid = np.linspace(span[0] - 7, span[-1] + 1, 33)
    at = int(np.argmin([left(g)[0] for g in grid]))
    step = grid[1] - grid[0]
    found = minimize_scalar(lambda g: left(g)[0], bounds=(grid[at] - step, grid[at] + step), method="bounded")
    chi2, theta = left(float(found.x))
    return chi2, 0.0 if hinge is None else float(theta[1])


def memory(agents: ArrayLike, taken: ArrayLike) -> Memory:
    """The line through bytes `taken` [n] by `agents` [n], in shares of what is taken. ValueError below two sizes."""
    from scipy.special import stdtrit

    x, y = np.asarray(agents, dtype=np.float64), np.asarray(taken, dtype=np.float64)
    distinct = np.unique(x)
    if len(distinct) < 2:
        raise ValueError("Growth of memory needs at least two sizes.")
    weight = 1 / (_GRAIN**2 + (_SHARE * y) ** 2)
    design = np.stack([x, np.ones_like(x)], -1)
    normal = design.T @ (weight[:, None] * design)
    slope, fixed = np.linalg.solve(normal, design.T @ (weight * y))
    left = y - (slope * x + fixed)
    freedom = len(x) - 2
    half = math.nan
    if freedom:
        # The inflation is not below 1: what is not known is not made smaller by a lucky fit of three points.
        inflation = max(1.0, float((weight * left**2).sum()) / freedom)
        half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(np.linalg.inv(normal)[0, 0] * inflation)
    # Two points lie on every line, and so does the only one that is heavy enough to count.
    seen = [n for n in distinct if slope * n > HEAVY]
    seen = seen if len(seen) > 1 and len(distinct) > 2 else []
    off = [abs(float(y[x == n].mean()) / float(slope * n + fixed) - 1) for n in seen]
    return Memory(float(slope), slope - half, slope + half, float(fixed), max(off, default=math.nan), len(distinct))


class AtSize(NamedTuple):
    """The measurements of one size, put together over repeats."""

    num_agents: int
    repeats: int
    cpu: float
    """CPU-seconds per step; geometric mean over repeats."""
    cpu_low: float
    cpu_high: float
    """The cheapest and the dearest repeat."""
    wall: float
    """Seconds per step; geometric mean."""
    nanoseconds: float
    """CPU-nanoseconds per agent and step; geometric mean."""
    taken: float
    """Bytes above the base; mean."""
    phases: dict[str, float]
    """CPU-nanoseconds per agent and step of each phase; empty where phases were not timed."""

    @property
    def shares(self) -> dict[str, float]:
        """Of a step, by phase; they sum to 1."""
        whole = sum(self.phases.values())
        return {name: value / whole for name, value in self.phases.items()} if whole > 0 else {}


@dataclass(frozen=True)
class Curve:
    """One agent (of one kind, at so many copies, under the same varied options) over all sizes."""

    agent: str
    kind: str
    copies: int
    varied: dict[str, Any]
    sizes: list[AtSize]
    """Those measured, increasing."""
    missing: list[tuple[int, str, str]]
    """Sizes without a measurement: (num_agents, failed or skipped, why)."""
    growth: Growth | None = None
    """Of CPU-seconds per step."""
    rise: Rise | None = None
    memory: Memory | None = None
    label: str = ""
    why: dict[str, float] = field(default_factory=dict)
    """Where there is a rise: the share of it that each phase makes."""

    @property
    def ours(self) -> bool:
        return self.kind == "mfmarl"

    def flatness(self, beyond: float = 1000.0) -> float:
        """The dearest cost per agent-step over the cheapest, of sizes from `beyond` on; NaN with fewer than two."""
        found = [s.nanoseconds for s in self.sizes if s.num_agents >= beyond]
        return max(found) / min(found) if len(found) > 1 else math.nan


KINDS = {"sb3": "stable-baselines3", "loop": "PettingZoo loop", "stacked": "stacked networks"}
"""How baselines are called."""


def curves(measured: Sequence[Measured]) -> list[Curve]:
    """What was measured, by agent, kind, copies and varied options, with every fit that the points allow."""
    groups: dict[tuple[Any, ...], list[Measured]] = {}
    for one in measured:
        groups.setdefault(_key(one.point), []).append(one)
    copies = {key[2] for key in groups}
    varied = {key[3] for key in groups}
    found = []
    for members in groups.values():
        point = members[0].point
        words = [called(point)]
        if len(varied) > 1:
            words += [f"{name}={value}" for name, value in sorted(point.varied.items())]
        if len(copies) > 1:
            words.append(f"{point.copies} {'copy' if point.copies == 1 else 'copies'}")
        found.append(_curve(members, ", ".join(words)))
    return sorted(found, key=lambda c: not c.ours)


def _key(point: Point) -> tuple[Any, ...]:
    return (point.kind, point.agent, point.copies, tuple(sorted((k, str(v)) for k, v in point.varied.items())))


def called(point: Point) -> str:
    if point.kind == "mfmarl":
        return point.agent
    name = KINDS.get(point.kind, point.kind)
    return name if point.agent in ("", point.kind) else f"{name} ({point.agent})"


def _curve(members: Sequence[Measured], label: str) -> Curve:
    point = members[0].point
    done = [m for m in members if m.status == "done" and m.cpu > 0 and m.steps > 0]
    by_size: dict[int, list[Measured]] = {}
    for one in done:
        by_size.setdefault(one.point.num_agents, []).append(one)
    sizes = [_at_size(n, by_size[n]) for n in sorted(by_size)]
    missing: dict[int, tuple[int, str, str]] = {}
    for one in members:
        if one.point.num_agents not in by_size:
            missing.setdefault(one.point.num_agents, (one.point.num_agents, one.status, one.reason))
    n = np.array([m.point.num_agents for m in done], dtype=np.float64)
    costs = np.array([m.cpu / m.steps for m in done])
    grows = growth(n, costs) if len(by_size) > 1 else None
    rises = rise(n, costs) if len(by_size) > 1 else None
    known = [m for m in done if m.peak_bytes > 0]
    held = None
    if len({m.point.num_agents for m in known}) > 1:
        held = memory(
            [m.point.num_agents * m.point.copies for m in known],
            [max(0, m.peak_bytes - m.base_bytes) for m in known],
        )
    return Curve(
        point.agent, point.kind, point.copies, point.varied, sizes, [missing[k] for k in sorted(missing)],
        grows, rises, held, label, _blame(sizes, rises),
    )  # fmt: skip


def _at_size(num_agents: int, members: Sequence[Measured]) -> AtSize:
    cpu = [m.cpu / m.steps for m in members]
    timed = [m for m in members if m.phases and m.phase_steps]
    phases = {
        phase: float(
            np.mean([1e9 * m.phases.get(phase, 0.0) / (m.phase_steps * num_agents * m.point.copies) for m in timed])
        )
        for phase in (PHASES if timed else ())
    }
    return AtSize(
        num_agents=num_agents,
        repeats=len(members),
        cpu=_geometric(cpu),
        cpu_low=min(cpu),
        cpu_high=max(cpu),
        wall=_geometric([m.wall / m.steps for m in members]),
        nanoseconds=_geometric([m.nanoseconds for m in members]),
        taken=float(np.mean([max(0, m.peak_bytes - m.base_bytes) for m in members])),
        phases=phases,
    )


def _geometric(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-12)))))


def _blame(sizes: Sequence[AtSize], found: Rise | None) -> dict[str, float]:
    """Which phases make an agent dearer, from the size where that begins to the largest; shares of what is added."""
    if found is None:
        return {}
    before = next((s for s in sizes if s.num_agents == found.begins), None)
    if before is None or not before.phases or not sizes[-1].phases:
        return {}
    added = {name: sizes[-1].phases[name] - before.phases[name] for name in PHASES}
    whole = sum(v for v in added.values() if v > 0)
    return {name: max(0.0, v) / whole for name, v in added.items()} if whole > 0 else {}
