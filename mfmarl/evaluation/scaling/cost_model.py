r"""What M machines would do: the time of a step, its memory and its traffic, from a sweep on one machine.

$$ t(N, M) = \underbrace{(a + b\,x + \dots)}_{\text{compute},\ x = N/M}\, s_M
   + t_{field} + t_{halo} + t_{gradients}, \qquad \mathrm{memory}(N, M) = c_0 + c\,x $$

a, b, c_0, c >= 0 are least squares of the relative error over the sweep's points; s_M >= 1 is the slowest of M ranks, in
units of one rank's mean: every step waits for it. What travels is counted (`Load`), what a message costs is measured or
given (`Network`). An answer carries the interval that its own errors on held-back sizes give it, and says what it does not
know: of a GPU nothing is assumed but what is given.

    plan, measured = sweep.read(folder)
    for name, points in series(measured).items():
        model = calibrate(points, collective.measure(), load_of(plan, points[0].point))
        print(model.predict(parse_cluster("nodes=64, agents=1e9, cores=32, network=100GbE")).sentence())
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import t as student

from mfmarl.errors import ConfigError, nearest
from mfmarl.evaluation.scaling.collective import PRESETS, Network, preset
from mfmarl.evaluation.scaling.points import PHASES, Measured, Plan, Point

TARGET = 0.2
"""The relative error that a held-back size may have."""
MOST_AGENTS = 1 << 32
"""Agents of one copy that keyed noise can tell apart: their number is the low 32 bits of an id."""
EXACT = 1 << 24
"""Whole numbers that a float32 holds exactly."""
SAMPLE = 4096.0
"""Agents that are learned from (`remember`), where nobody says otherwise."""
_LINEAR = 0.25  # share of the largest size's cost that must grow with every agent, beside a root


# ------------------------------------------------------------------------------------------------- laws


@dataclass(frozen=True)
class Law:
    """y = fixed + root sqrt(x) + each min(x, knee) + beyond max(0, x - knee), none of them negative."""

    fixed: float
    each: float
    root: float = 0.0
    """What becomes cheaper by the dozen: of large x nothing is left of it."""
    beyond: float = 0.0
    knee: float = math.inf

    def __call__(self, x: float) -> float:
        bent = self.beyond * max(0.0, x - self.knee) if self.beyond else 0.0
        return self.fixed + self.root * math.sqrt(x) + self.each * min(x, self.knee) + bent

    def inverse(self, y: float) -> float:
        """The largest x with law(x) <= y; 0 where there is none, infinity where all are."""
        if y < self.fixed:
            return 0.0
        low, high = 0.0, 1.0
        while self(high) <= y:
            low, high = high, 2 * high
            if high > 1e30:
                return math.inf
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self(middle) <= y else (low, middle)
        return low


@dataclass(frozen=True)
class _Shape:
    """A law without its coefficients."""

    curved: bool = False
    knee: float = math.inf


def fit_law(x: Sequence[float], y: Sequence[float], scale: Sequence[float] | None = None) -> Law:
    """The law with the least squares of (law(x) - y) / scale; `scale` is y itself where it is not given.

    Three sizes or fewer allow a straight line, more a root beside it: where there is none, looking for it costs next to
    nothing, and real steps have one (chunks that are not full, memory that is fetched in blocks). A root alone is refused:
    every agent costs something. A knee (a cache that is outgrown, a memory that is full, a sample that is all there is to
    learn from) is put where a sample is full by default, from five sizes on, or at one of six or half-way between two, if
    that predicts held-back sizes much better.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    scales = ys if scale is None else np.asarray(scale, dtype=np.float64)
    sizes = sorted(set(xs.tolist()))
    best = _Shape()
    if len(sizes) >= 4:
        curved = _fit(xs, ys, scales, _Shape(curved=True))
        best = _Shape(curved=curved.each * sizes[-1] >= _LINEAR * curved(sizes[-1]))
    if len(sizes) >= 5:
        smooth = _held_back_error(xs, ys, scales, best)
        between = [math.sqrt(low * high) for low, high in itertools.pairwise(sizes) if low > 0]
        # What is expected must show; what is searched for must be plain, or noise has knees.
        tried = [(SAMPLE, 0.7)] + [(knee, 0.5) for knee in (*sizes, *between) if len(sizes) >= 6]
        least = smooth
        for knee, demand in tried:
            if smooth < 1e-3 or not sizes[0] < knee < sizes[-1]:
                continue  # what is said to a thousandth has no knee
            error = _held_back_error(xs, ys, scales, _Shape(knee=knee))
            if error < min(demand * smooth, least):
                best, least = _Shape(knee=knee), error
    return _fit(xs, ys, scales, best)


def _fit(x: np.ndarray, y: np.ndarray, scale: np.ndarray, shape: _Shape) -> Law:
    columns = {"fixed": np.ones_like(x), "each": np.minimum(x, shape.knee)}
    if shape.curved:
        columns["root"] = np.sqrt(x)
    if math.isfinite(shape.knee):
        columns["beyond"] = np.maximum(0.0, x - shape.knee)
    design = np.stack(list(columns.values()), 1) / scale[:, None]
    # Columns of one size: a million agents and one step differ by too much for the solver's tolerance.
    size = np.linalg.norm(design, axis=0)
    size = np.where(size > 0, size, 1.0)
    found, _ = nnls(design / size, y / scale)
    return Law(**{name: float(c) for name, c in zip(columns, found / size, strict=True)}, knee=shape.knee)


def _held_back_error(x: np.ndarray, y: np.ndarray, scale: np.ndarray, shape: _Shape) -> float:
    """Root mean square of the relative error of sizes held back one at a time."""
    errors = []
    for size in sorted(set(x.tolist())):
        rest = x != size
        law = _fit(x[rest], y[rest], scale[rest], shape)
        errors += [(law(size) - value) / by for value, by in zip(y[~rest], scale[~rest], strict=True)]
    return float(np.sqrt(np.mean(np.square(errors))))


# ---------------------------------------------------------------------------------------- what is measured


def series(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """Points that one law may describe, by name: one agent, one kind of learner, one set of varied options."""
    out: dict[str, list[Measured]] = {}
    for one in measured:
        if one.status == "done" and one.steps > 0:
            point = one.point
            varied = "".join(f", {name}={value}" for name, value in sorted(point.varied.items()))
            kind = "" if point.kind == "mfmarl" else f" ({point.kind})"
            out.setdefault(f"{point.agent}{kind}{varied}", []).append(one)
    return out


def seconds_per_step(one: Measured) -> float:
    """CPU-seconds of a step on one thread of a processor; else wall seconds, which threads and a GPU share."""
    alone = one.machine.get("threads", 1) == 1 and str(one.machine.get("device", "cpu")).startswith("cpu")
    return (one.cpu if alone and one.cpu > 0 else one.wall) / one.steps


@dataclass(frozen=True)
class _Sizes:
    """One series, a row for each size: medians over the repeats."""

    x: tuple[float, ...]
    """Agents times copies."""
    agents: tuple[int, ...]
    seconds: tuple[float, ...]
    memory: tuple[float, ...]
    phases: dict[str, tuple[float, ...]]
    """Seconds per step of each phase; empty where some size lacks them."""


def _by_size(points: Sequence[Measured]) -> _Sizes:
    groups: dict[tuple[int, int], list[Measured]] = {}
    for one in points:
        groups.setdefault((one.point.num_agents * one.point.copies, one.point.num_agents), []).append(one)
    keys = sorted(groups)
    apart = {k: [one for one in groups[k] if one.phases and one.phase_steps > 0] for k in keys}
    return _Sizes(
        tuple(float(slots) for slots, _ in keys),
        tuple(agents for _, agents in keys),
        tuple(median(map(seconds_per_step, groups[k])) for k in keys),
        tuple(float(median(one.peak_bytes for one in groups[k])) for k in keys),
        {
            phase: tuple(median(one.phases.get(phase, 0.0) / one.phase_steps for one in apart[k]) for k in keys)
            for phase in PHASES
            if all(apart.values())
        },
    )


def _one_series(measured: Sequence[Measured]) -> tuple[str, list[Measured]]:
    found = series(measured)
    if not found:
        raise ConfigError("Nothing to predict from: the sweep has no point that was measured to its end.")
    if len(found) > 1:
        raise ConfigError(
            f"A cost model is of one agent, not of {len(found)}: choose one of {', '.join(sorted(found))}."
        )
    return next(iter(found.items()))


# ------------------------------------------------------------------------------------------- what it takes


@dataclass(frozen=True)
class Load:
    """What a step sends between ranks and asks of a processor, counted from the population's and the networks' sizes."""

    field_bytes: float = 0.0
    """Counts that are added up over ranks, each step: int64 for each group and column, of every copy."""
    field_calls: float = 0.0
    """All-reduces that carry them."""
    halo_bytes: float = 0.0
    """Of a lattice that is divided by rows: bytes of one row, given to each of two neighbours each step."""
    halo_growth: float = 0.5
    """A row of N agents has N^halo_growth of them: 1 - 1/D in D dimensions."""
    halo_calls: float = 1.0
    """Exchanges that carry it."""
    agents: int = 1
    """Of the population that the halo was counted for."""
    gradient_bytes: float = 0.0
    """Bytes of an update's gradients: 4 for each weight."""
    updates: float = 0.0
    """Updates per step."""
    flops: float = 0.0
    """Floating-point operations of acting, per agent and step."""
    bytes: float = 0.0
    """Bytes that acting reads and writes, per agent and step, if activations leave the cache between layers."""
    learning_flops: float = 0.0
    """Operations of learning, per step and rank."""
    learning_bytes: float = 0.0
    indivisible: str = ""
    """A field that cannot be felt by parts: such a population is divided by copies alone."""
    known: bool = True
    """Whether it was counted; a load that was not counts weights alone."""

    def sent(self, purposes: Mapping[str, float], steps: int, calls: Mapping[str, float] | None = None) -> Load:
        """This load with what a rank handed over in so many steps (`Ranks.sent`, bytes) in place of what was counted.

        `calls` are the messages of each purpose; not given, there is one to each step. What is neither halo nor gradients
        is added to the field's.
        """
        each = {name: size / steps for name, size in purposes.items() if size > 0}
        often = {name: (calls or {}).get(name, steps) / steps for name in each}
        gradients, halo = each.pop("gradients", 0.0), each.pop("halo", 0.0)
        updates = often.pop("gradients", 0.0)
        return replace(
            self,
            halo_bytes=halo / 2,
            halo_calls=often.pop("halo", 0.0),
            field_bytes=sum(each.values()),
            field_calls=sum(often.values()),
            gradient_bytes=gradients / updates if updates else 0.0,
            updates=updates,
        )


def load_of(plan: Plan, point: Point) -> Load:
    """Counts what a step of that point's population sends and computes; builds one that is as small as it goes.

    Raises ConfigError where the point's learner is not ours: those are not divided over ranks.
    """
    from mfmarl.evaluation.scaling.measure import config_of
    from mfmarl.learning.build import choose_device, open_population
    from mfmarl.learning.players import make_players
    from mfmarl.random import Key

    if point.kind != "mfmarl":
        raise ConfigError(
            f"{point.agent} ({point.kind}) is not divided over ranks: predict one of mfmarl's own agents."
        )
    device = choose_device("cpu")
    fault: ConfigError | None = None
    for size in [*sorted({n for n in plan.sizes if n < point.num_agents}), point.num_agents]:
        try:
            config = config_of(replace(point, num_agents=size, copies=1), plan)
            env = open_population(config, 1, device)
        except ConfigError as error:  # not every size fills a torus
            fault = error
            continue
        try:
            players = make_players(config, env.spec, Key.of(0), device)
            return _counted(env.spec, players, point.copies, point.num_agents)
        finally:
            env.close()
    assert fault is not None
    raise fault


def _counted(spec: Any, players: Sequence[Any], copies: int, num_agents: int) -> Load:
    from mfmarl.population.field import Everyone, Neighbours

    field_bytes = halo = calls = growth = 0.0
    whole = ""
    gradient = updates = flops = moved = learning_flops = learning_bytes = 0.0
    share = 1 / len(players)
    for player in players:
        agent, config = player.agent, player.agent.config
        if not agent.field.is_nothing:
            kinds = len(spec.groups) if agent.field.typed else 1
            columns = kinds * (agent.field.of.size(spec) + 1)
            if isinstance(agent.field.over, Everyone):
                teams = len(spec.groups) if agent.field.over.same else 1
                field_bytes += 8 * columns * teams * copies
                calls += 1
            elif isinstance(agent.field.over, Neighbours) and spec.graph is not None and spec.graph.torus:
                # A row of a torus of so many agents. Counts travel packed, eight bytes to a site.
                dimension = len(spec.graph.torus)
                growth = (dimension - 1) / dimension
                halo += 8 * num_agents**growth * copies
            else:
                whole = str(agent.field)
        weights = sum(p.numel() for p in agent.parameters() if p.requires_grad) / agent.minds
        widths = sum(p.shape[-2] + p.shape[-1] for p in agent.parameters() if p.requires_grad and p.ndim == 3)
        acting = getattr(agent, "policy", None) or getattr(agent, "values", None) or agent
        asked = sum(p.numel() for p in acting.parameters() if p.requires_grad) / agent.minds
        seen = int(np.prod(spec.observation_shape)) if spec.observation_shape else 2
        flops += share * 2 * asked
        moved += (
            share
            * 4
            * (
                seen
                + agent.field_size
                + sum(p.shape[-2] + p.shape[-1] for p in acting.parameters() if p.requires_grad and p.ndim == 3)
            )
        )
        rows, each = _learned(agent, config, copies * num_agents)
        gradient += 4 * weights * agent.minds * (each > 0)
        updates = max(updates, each)
        # Forward once, backward twice; and once more the target or the old policy.
        learning_flops += 8 * weights * rows
        learning_bytes += 4 * 4 * widths * rows
    return Load(
        field_bytes=field_bytes, field_calls=calls, halo_bytes=halo, halo_growth=growth, agents=num_agents,
        gradient_bytes=gradient, updates=updates, flops=flops, bytes=moved, learning_flops=learning_flops,
        learning_bytes=learning_bytes, indivisible=whole,
    )  # fmt: skip


def _learned(agent: Any, config: Any, slots: int) -> tuple[float, float]:
    """Rows that are learned from per step, and updates per step."""
    if not any(p.requires_grad for p in agent.parameters()):
        return 0.0, 0.0
    if agent.memory == "replay":
        often = config.updates / config.learn_every
        return config.batch_size * getattr(agent, "replicas", 1) * agent.minds * often, often
    if agent.memory == "rollout":
        kept = min(slots, getattr(config, "remember", 0) or slots)
        epochs, parts = getattr(config, "epochs", 1), getattr(config, "minibatches", 1)
        return float(kept * epochs), epochs * parts / config.rollout
    if agent.memory == "latest":
        return float(slots), 1.0
    return 0.0, 0.0


# --------------------------------------------------------------------------------------------- clusters


_WORDS = {
    "nodes": "machines",
    "agents": "agents of the population",
    "copies": "copies of the population",
    "cores": "ranks of each machine, one core each",
    "gpus": "GPUs of each machine, a rank each",
    "network": "what lies between machines",
    "memory": "of each machine",
    "speedup": "seconds of the measured core over seconds of one GPU",
    "flops": "peak floating-point operations per second of one GPU (or core)",
    "bandwidth": "bytes per second of its memory",
}
_UNITS = {"": 1.0, "b": 1.0} | {
    f"{letter}{suffix}": base ** (power + 1)
    for power, letter in enumerate("kmgtp")
    for suffix, base in (("b", 1e3), ("ib", 1024.0), ("", 1e3))
}


@dataclass(frozen=True)
class Cluster:
    """Machines, and the population that they are to share."""

    agents: int
    nodes: int = 1
    cores: int = 1
    gpus: int = 0
    network: str = ""
    """A preset's name; empty: the network that the model was calibrated with."""
    memory: float = 0.0
    """Bytes of each node; 0: not known."""
    copies: int = 1
    speedup: float = 0.0
    """Of one GPU over the core that was measured; 0: not known."""
    flops: float = 0.0
    bandwidth: float = 0.0

    @property
    def per_node(self) -> int:
        """Ranks of each node: one for each GPU, or for each core."""
        return self.gpus or self.cores

    @property
    def ranks(self) -> int:
        return self.nodes * self.per_node

    def __post_init__(self) -> None:
        for name in ("agents", "nodes", "cores", "copies"):
            _whole(name, getattr(self, name), 1)
        _whole("gpus", self.gpus, 0)
        if self.network:
            preset(self.network)
        if self.ranks > self.agents * self.copies:
            raise ConfigError(
                f"{self.ranks} ranks are more than the {self.agents * self.copies} agents that they would share: "
                f"at most {self.agents * self.copies} ranks."
            )
        if self.agents > MOST_AGENTS:
            raise ConfigError(
                f"agents={self.agents:.3g}: a population has at most 2^32 = {MOST_AGENTS:,} agents, whose numbers are 32 bits "
                "of their ids; divide them into copies=, which have an id of their own."
            )


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value} must be a whole number of at least {least}.")


def parse_cluster(text: str) -> Cluster:
    """The cluster of a text such as `nodes=64, agents=1e9, gpus=8, network=100GbE, memory=256GB`.

    Raises ConfigError for what cannot be read, with the nearest word that can.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.replace(";", ",").split(","))):
        word, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise ConfigError(f"{_short(part)!r} is not word=number; write for example nodes=64, agents=1e9.")
        if word not in _WORDS:
            raise ConfigError(f"Unknown word {_short(word)!r} in a cluster.{nearest(word[:100], _WORDS)}")
        if word in found:
            raise ConfigError(f"{word}= is given twice.")
        found[word] = value
    if "agents" not in found:
        raise ConfigError(
            "A cluster needs agents=, the size of its population; write for example nodes=64, agents=1e9."
        )
    values: dict[str, Any] = {}
    for word, value in found.items():
        if word == "network":
            values[word] = preset(_short(value)).name
        elif word in ("memory", "flops", "bandwidth", "speedup"):
            values[word] = _quantity(word, value)
        else:
            number = _number(word, value)
            if number != int(number):
                raise ConfigError(f"{word}={_short(value)} must be a whole number.")
            if number < 1 and word != "gpus":
                raise ConfigError(f"{word}={_short(value)} must be at least 1.")
            values[word] = int(number)
    return Cluster(**values)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."


def _number(word: str, text: str) -> float:
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        raise ConfigError(
            f"{word}={_short(text)!r} is not a number; write for example {word}=64 or {word}=1e9."
        ) from None
    if not math.isfinite(number) or number < 0 or number > 1e18:
        raise ConfigError(f"{word}={_short(text)} must be a number from 0 to 1e18.")
    return number


def _quantity(word: str, text: str) -> float:
    """A positive amount with its unit, in bytes or plain: 256GB, 1.5TiB, 989T, 40."""
    digits = len(text)
    while digits and text[digits - 1].isalpha():
        digits -= 1
    unit = text[digits:].lower()
    if unit not in _UNITS:
        raise ConfigError(
            f"{word}={_short(text)}: unknown unit {_short(text[digits:])!r}; write for example {word}=256GB."
        )
    number = _number(word, text[:digits].strip()) * _UNITS[unit]
    if number <= 0:
        raise ConfigError(f"{word}={_short(text)} must be more than 0.")
    return number


# -------------------------------------------------------------------------------------------- stragglers


def slowest(times: Sequence[float], ranks: int) -> float:
    """The expected largest of `ranks` independent draws from these times, over their mean: at least 1.

    Exact for the times as they are: with F the share of times up to t, <max> = sum_t t (F(t)^M - F(t-)^M). Of more ranks
    than times it is the largest time seen, and real ones may be slower.
    """
    if not times or ranks < 2:
        return 1.0
    ordered = np.sort(np.asarray(times, dtype=np.float64))
    up_to = np.arange(len(ordered) + 1) / len(ordered)
    weights = np.diff(up_to**ranks)
    return float(max(1.0, (ordered * weights).sum() / ordered.mean()))


def simulate(times: Sequence[float], ranks: int, steps: int, seed: int = 0, barrier: str = "all") -> float:
    """Seconds per step of so many ranks, rank by rank and step by step, each step's time drawn from `times`.

    `barrier` says for whom a rank waits before its next step: `all` (an all-reduce) or `neighbours` (halos of a torus:
    a slow rank is felt only next door, and a step later by those behind). Time of the last rank to finish, over `steps`.
    """
    if barrier not in ("all", "neighbours"):
        raise ConfigError(f"barrier={barrier!r} is not known.{nearest(barrier, ('all', 'neighbours'))}")
    generator = np.random.default_rng(seed)
    values = np.asarray(times, dtype=np.float64)
    clock = np.zeros(ranks)
    for _ in range(steps):
        ready = np.full(ranks, clock.max())
        if barrier == "neighbours":
            ready = np.maximum(clock, np.maximum(np.roll(clock, 1), np.roll(clock, -1)))
        clock = ready + values[generator.integers(0, len(values), ranks)]
    return float(clock.max() / steps)


# --------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Prediction:
    """One step of a population on a cluster. Seconds are wall seconds of ranks that have a core (or GPU) each."""

    series: str
    cluster: Cluster
    ranks: int
    agents_per_rank: float
    seconds: float
    low: float
    """Of the seconds: between `low` and `high` with 95 % confidence, if the law holds that far."""
    high: float
    compute: float
    """Seconds of one rank, were all equally fast."""
    straggling: float
    """Seconds of waiting for the slowest."""
    field: float
    halo: float
    gradients: float
    phases: dict[str, float]
    """Of `compute`, the shares of a step's phases; empty where they were not measured."""
    agent_steps_per_second: float
    memory_per_rank: float
    """Bytes."""
    bytes_per_step: float
    """Sent by each rank."""
    efficiency: float
    """Seconds of one rank for the whole population, over ranks times these seconds."""
    bottleneck: str
    largest_agents: float
    """Agents that fit the cluster's memory (and the width of an id); infinity where its memory is not known."""
    bound: float
    """Seconds that a device of the given flops and bandwidth takes at least; 0: none was given."""
    notes: tuple[str, ...] = ()

    @property
    def communication(self) -> float:
        return self.field + self.halo + self.gradients

    def to_table(self) -> dict[str, Any]:
        """Plain values for JSON; what is infinite is None."""
        table = asdict(self)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in table.items()}

    def sentence(self) -> str:
        """What a report says of it."""
        cluster = self.cluster
        copies = f" in each of {cluster.copies} copies" if cluster.copies > 1 else ""
        text = (
            f"{self.series}: {cluster.agents:,} agents{copies} on {self.ranks:,} ranks take {_seconds(self.seconds)} per step "
            f"({_seconds(self.low)} to {_seconds(self.high)}): {self.agent_steps_per_second:.2g} agent-steps/s, "
            f"{_bytes(self.memory_per_rank)} and {_bytes(self.bytes_per_step)} sent per step by each rank; efficiency "
            f"{self.efficiency:.0%}, most of the time is {self.bottleneck}."
        )
        if self.bound:
            text += f" No device with the given flops and bandwidth takes less than {_seconds(self.bound)}."
        return " ".join([text, *self.notes])


@dataclass(frozen=True)
class CostModel:
    """Laws of one series of points, and the network that its ranks would speak over."""

    series: str
    network: Network
    load: Load
    seconds: Law
    """Compute seconds of a step of x agents on one rank."""
    phases: dict[str, Law] = field(default_factory=dict)
    memory: Law = field(default_factory=lambda: Law(0.0, 0.0))
    """Bytes of a rank of x agents."""
    spread: float = 0.0
    """Half the width of the 95 % interval of ln(seconds), from sizes held back."""
    jitter: tuple[float, ...] = ()
    """Times of equal steps over their median."""
    smallest: float = 0.0
    largest: float = 0.0
    """Agents (times copies) of the points that it was fitted to."""

    def predict(self, cluster: Cluster) -> Prediction:
        """One step on that cluster. Raises ConfigError where its memory does not hold the population."""
        ranks, slots = cluster.ranks, cluster.agents * cluster.copies
        share = slots / ranks
        notes: list[str] = []
        network = self._network(cluster)
        memory = self.memory(share)
        fits = self._largest(cluster)
        if cluster.memory and memory * cluster.per_node > cluster.memory:
            raise ConfigError(
                f"{cluster.agents:.4g} agents do not fit: {cluster.per_node} ranks of {_bytes(memory)} are more than the "
                f"{_bytes(cluster.memory)} of a node; at most {fits:.3g} agents fit {cluster.nodes} nodes, or take "
                f"{self._nodes_needed(cluster)}."
            )
        compute = self.seconds(share)
        if cluster.gpus and cluster.speedup:
            compute /= cluster.speedup
        elif cluster.gpus:
            notes.append(
                "GPU time unknown: give speedup= (seconds of the measured core over seconds of one GPU); these times are "
                f"of one core in the place of each of {ranks:,} GPUs."
            )
        # A bound on what arithmetic and memory take, whatever the software.
        bound = 0.0
        if cluster.flops and self.load.flops:
            bound = (self.load.flops * share + self.load.learning_flops) / cluster.flops
        if cluster.bandwidth and self.load.bytes:
            bound = max(bound, (self.load.bytes * share + self.load.learning_bytes) / cluster.bandwidth)
        straggling = compute * (slowest(self.jitter, ranks) - 1)
        calls = self.load.field_calls
        felt = calls * network.all_reduce(self.load.field_bytes / max(calls, 1.0), ranks) if calls else 0.0
        growth = (cluster.agents / max(self.load.agents, 1)) ** self.load.halo_growth
        halo_bytes = self.load.halo_bytes * growth if ranks > 1 else 0.0
        swaps = self.load.halo_calls
        halo = swaps * network.exchange(halo_bytes / max(swaps, 1.0), ranks) if halo_bytes else 0.0
        gradients = self.load.updates * network.all_reduce(self.load.gradient_bytes, ranks)
        seconds = compute + straggling + felt + halo + gradients
        sent = 0.0
        if ranks > 1:
            sent = network.share(ranks) * (self.load.field_bytes + self.load.updates * self.load.gradient_bytes)
            sent += min(2, ranks - 1) * halo_bytes
        alone = self.seconds(slots) / (cluster.speedup if cluster.gpus and cluster.speedup else 1.0)
        wide = math.exp(self.spread)
        parts = {"computing": compute, "waiting for the slowest": straggling, "the field's all-reduce": felt,
                 "halos": halo, "averaging gradients": gradients}  # fmt: skip
        phases = self._phases(share)
        bottleneck = max(parts, key=lambda name: parts[name])
        if bottleneck == "computing" and phases:
            bottleneck = f"computing ({max(phases, key=lambda name: phases[name])})"
        if self.load.indivisible and ranks > cluster.copies:
            notes.append(
                f"A population that feels {self.load.indivisible!r} is divided by copies alone, not by agents."
            )
        if not self.load.known:
            notes.append("What the field sends was not counted: only gradients are.")
        if cluster.nodes > 1 and not cluster.network:
            notes.append(f"network= was not given: machines are taken to speak as the ranks of {network.name!r} do.")
        if share > 1.01 * self.largest:
            notes.append(
                f"{share:.3g} agents per rank lie beyond the largest size that was measured, {self.largest:.3g}."
            )
        elif share < 0.99 * self.smallest:
            notes.append(f"{share:.3g} agents per rank lie below the smallest size measured, {self.smallest:.3g}.")
        if ranks > 1 and 1 < len(self.jitter) < ranks:
            notes.append(
                f"Stragglers are those of {len(self.jitter)} measured steps: {ranks:,} ranks may meet slower ones."
            )
        elif ranks > 1 and not self.jitter:
            notes.append("No step times were given: waiting for the slowest rank is left out.")
        if cluster.agents > EXACT:
            notes.append("Counts above 2^24 are divided as float32: means are right to 6e-8, not to the last agent.")
        return Prediction(
            series=self.series, cluster=cluster, ranks=ranks, agents_per_rank=share, seconds=seconds,
            low=compute / wide + (seconds - compute), high=compute * wide + (seconds - compute),
            compute=compute, straggling=straggling, field=felt, halo=halo, gradients=gradients, phases=phases,
            agent_steps_per_second=slots / seconds, memory_per_rank=memory, bytes_per_step=sent,
            efficiency=alone / (ranks * seconds), bottleneck=bottleneck, largest_agents=fits, bound=bound,
            notes=tuple(notes),
        )  # fmt: skip

    def strong_scaling(self, agents: int, ranks: Sequence[int], cluster: Cluster | None = None) -> list[Prediction]:
        """The same population on more and more ranks, one to a node where no cluster says otherwise."""
        like = cluster or Cluster(agents=max(agents, 1))
        return [self.predict(self._with(like, agents, m)) for m in ranks]

    def weak_scaling(self, per_rank: int, ranks: Sequence[int], cluster: Cluster | None = None) -> list[Prediction]:
        """As many agents on each rank, on more and more ranks."""
        like = cluster or Cluster(agents=max(per_rank, 1))
        return [self.predict(self._with(like, per_rank * m, m)) for m in ranks]

    def to_table(self) -> dict[str, Any]:
        return _finite(asdict(self))

    def _with(self, cluster: Cluster, agents: int, ranks: int) -> Cluster:
        nodes, rest = divmod(ranks, cluster.per_node) if ranks >= cluster.per_node else (1, 0)
        if rest:
            raise ConfigError(f"{ranks} ranks do not fill nodes of {cluster.per_node}: use a multiple of it.")
        if ranks >= cluster.per_node:
            return replace(cluster, agents=agents, nodes=nodes)
        inside = {"gpus": ranks} if cluster.gpus else {"cores": ranks}
        return replace(cluster, agents=agents, nodes=1, **inside)  # type: ignore[arg-type]

    def _network(self, cluster: Cluster) -> Network:
        if not cluster.network:
            return self.network
        wire = preset(cluster.network)
        # NCCL's networks are given with their software; gloo's own is what was measured here.
        return wire if wire.algorithm == "tree" else self.network.behind(wire)

    def _largest(self, cluster: Cluster) -> float:
        if not cluster.memory:
            return math.inf
        share = self.memory.inverse(cluster.memory / cluster.per_node)
        return min(share * cluster.ranks / cluster.copies, float(MOST_AGENTS))

    def _nodes_needed(self, cluster: Cluster) -> str:
        share = self.memory.inverse(cluster.memory / cluster.per_node)
        if share < 1:
            return f"nodes of more than {_bytes(self.memory(1) * cluster.per_node)}, or fewer ranks on each"
        return f"nodes={math.ceil(cluster.agents * cluster.copies / share / cluster.per_node)}"

    def _phases(self, x: float) -> dict[str, float]:
        times = {name: law(x) for name, law in self.phases.items()}
        total = sum(times.values())
        return {name: value / total for name, value in times.items()} if total > 0 else {}


def calibrate(
    measured: Sequence[Measured], network: Network, load: Load | None = None, jitter: Sequence[float] = ()
) -> CostModel:
    """The laws of one series of points (see `series`), at two or more sizes.

    Without a load, gradients of the measured weights are sent once a step, and nothing else. Without `jitter` (see
    `measure_jitter`), the repeats of each size stand in for it, over their median. Raises ConfigError where there is nothing
    to fit, or more than one series.
    """
    name, points = _one_series(measured)
    sizes = _by_size(points)
    if len(set(sizes.x)) < 2:
        raise ConfigError(f"{name} was measured at one size alone: a law of growth needs at least two (--num-agents).")
    law, phases = _compute_law(sizes)
    # What is asked about is larger than the smallest size, whose own error tells nothing of that.
    checks = [check for check in _checks(name, sizes, "seconds") if check.where != "smallest"]
    errors = [math.log(max(check.predicted, 1e-300) / check.measured) for check in checks]
    spread = 0.0
    if errors:
        spread = float(
            student.ppf(0.975, max(len(errors) - 1, 1)) * math.sqrt(sum(e * e for e in errors) / len(errors))
        )
    if load is None:
        weights = max(one.weights for one in points)
        load = Load(gradient_bytes=4.0 * weights, updates=1.0 if weights else 0.0, field_calls=0.0, known=False)
    return CostModel(
        name,
        network,
        load,
        law,
        phases,
        _memory_law(sizes.x, sizes.memory) if all(sizes.memory) else Law(0.0, 0.0),
        min(spread, math.log(100.0)),
        tuple(jitter) or _between_repeats(points),
        min(sizes.x),
        max(sizes.x),
    )


def _compute_law(sizes: _Sizes) -> tuple[Law, dict[str, Law]]:
    """The law of a step's seconds, and one for each phase in units of the whole."""
    # A phase's error counts by what it is of the whole step: the smallest phases are all noise.
    phases = {name: fit_law(sizes.x, y, scale=sizes.seconds) for name, y in sizes.phases.items() if any(y)}
    return fit_law(sizes.x, sizes.seconds), phases


def _memory_law(x: Sequence[float], y: Sequence[float]) -> Law:
    """Arrays of agents lie beside each other, and beside what is there without them: a straight line, whose slope may
    change where a sample is full, if two sizes lie on either side of that."""
    known = np.asarray(y, dtype=np.float64)
    sizes = set(x)
    below = sum(n <= SAMPLE for n in sizes)
    shape = _Shape(knee=SAMPLE) if min(below, len(sizes) - below) >= 2 else _Shape()
    return _fit(np.asarray(x, dtype=np.float64), known, known, shape)


def _between_repeats(points: Sequence[Measured]) -> tuple[float, ...]:
    groups: dict[tuple[int, int], list[float]] = {}
    for one in points:
        groups.setdefault((one.point.num_agents, one.point.copies), []).append(seconds_per_step(one))
    return tuple(t / median(times) for times in groups.values() if len(times) > 1 for t in times)


# --------------------------------------------------------------------------------------------- held back


@dataclass(frozen=True)
class Check:
    """One size, predicted from the others."""

    series: str
    num_agents: int
    copies: int
    what: str
    """`seconds` of a step, or `memory` in bytes."""
    where: str
    """`between` the other sizes, or the `smallest` or `largest` of all, which the law must reach beyond the others."""
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative: predicted / measured - 1."""
        return self.predicted / self.measured - 1

    @property
    def holds(self) -> bool:
        """Whether it is within the target of 20 %."""
        return abs(self.error) <= TARGET

    def to_table(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error, "holds": self.holds}


def held_back(measured: Sequence[Measured]) -> list[Check]:
    """Each size of each series predicted from its other sizes; series of fewer than three sizes have none."""
    checks = []
    for name, points in series(measured).items():
        sizes = _by_size(points)
        checks += _checks(name, sizes, "seconds")
        if all(sizes.memory):
            checks += _checks(name, sizes, "memory")
    return checks


def _checks(name: str, sizes: _Sizes, what: str) -> list[Check]:
    known = sizes.seconds if what == "seconds" else sizes.memory
    different = sorted(set(sizes.x))
    if len(different) < 3:
        return []
    out = []
    for i, x in enumerate(sizes.x):
        rest = [j for j, other in enumerate(sizes.x) if other != x]
        fit = fit_law if what == "seconds" else _memory_law
        law = fit([sizes.x[j] for j in rest], [known[j] for j in rest])
        where = "smallest" if x == different[0] else "largest" if x == different[-1] else "between"
        agents = sizes.agents[i]
        out.append(Check(name, agents, round(x / agents), what, where, known[i], law(x)))
    return out


# ---------------------------------------------------------------------------------------------- measuring


def measure_jitter(plan: Plan, point: Point, repeats: int = 5, steps: int = 40) -> tuple[float, ...]:
    """Times of the same step over their median: what makes one rank slower than another that does the same.

    The point's training is built `repeats` times, always the same: a step that learns is compared with that very step of
    the other repeats, since all ranks learn at once. CPU-seconds, of this process: what others of this machine take is not
    counted, what they do to the caches is.
    """
    import time

    from mfmarl.evaluation.scaling.measure import config_of
    from mfmarl.learning.build import build

    config, times = config_of(point, plan), []
    for _ in range(repeats):
        built, row = build(config), []
        try:
            for _ in range(steps + 3):
                began = time.process_time()
                built.training.step()
                row.append(time.process_time() - began)
        finally:
            built.close()
        times.append(row[3:])
    table = np.asarray(times)
    return tuple((table / np.median(table, 0)).flatten().tolist())


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} bytes"


def _finite(value: Any) -> Any:
    """JSON knows no infinity: None in its place."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = [
    "PRESETS",
    "Check",
    "Cluster",
    "CostModel",
    "Law",
    "Load",
    "Prediction",
    "calibrate",
    "fit_law",
    "held_back",
    "load_of",
    "measure_jitter",
    "parse_cluster",
    "series",
    "simulate",
    "slowest",
]
