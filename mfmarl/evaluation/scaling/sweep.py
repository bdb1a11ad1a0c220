"""Carry out a plan: every point in a fresh process, one after the other, each kept in a file as soon as it is done.

Every size is measured once, the smallest first and all agents at each, before anything is repeated: half a sweep is an even
one. What is done is not done again; what failed or was left out is tried again. Within a budget, repeats go first
and the largest sizes next, by what the points measured so far say of those to come.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfmarl.errors import ConfigError
from mfmarl.evaluation.results import read_json
from mfmarl.evaluation.scaling import memory
from mfmarl.evaluation.scaling.measure import CYCLES, LIMIT, SECONDS, config_of, fresh
from mfmarl.evaluation.scaling.points import Kind, Measured, Plan, Point
from mfmarl.learning.build import choose_device, versions
from mfmarl.learning.durable import resource_fault, write_atomic
from mfmarl.learning.run import Interrupted
from mfmarl.learning.run_folder import check_name
from mfmarl.registry import demand_typed

Event = dict[str, Any]
"""{"event": "begin" | "done" | "failed" | "skipped", "point": Point, "expected_seconds": ..., "measured": Measured}, and
{"event": "planned", "points": how many will be measured, "dropped": how many not, "expected_seconds": all of them},
{"event": "warning", "message": ...}."""

BASELINES: dict[Kind, tuple[str, ...]] = {"sb3": ("ppo",), "loop": ("ppo", "dqn"), "stacked": ("iql", "ippo")}
"""Which learners each kind of baseline is measured with."""
LEAST = 10.0
"""Seconds that a point takes at least: Python, torch and the environment begin, and two seconds of steps."""
_GUESS = 12.0  # seconds, of a point of which nothing like it has been measured
_FREE = ("sizes", "copies", "varied", "baselines", "repeats", "seeds", "learning_steps", "budget", "max_memory")


# ---------------------------------------------------------------------------------------------------- the plan


def refuse(plan: Plan) -> None:
    """Raises ConfigError for a plan that cannot be carried out: numbers that are none, options that are nobody's, a
    device that is not there, a budget too small for one point."""
    if not plan.sizes:
        raise ConfigError("No number of agents is given; write for example --num-agents 10,100,1000.")
    if not plan.agents and not plan.baselines:
        raise ConfigError("No agent is named; write for example --agents mfq,iql.")
    for what, values, least in (
        ("A number of agents", plan.sizes, 1),
        ("A number of copies", plan.copies, 1),
        ("The number of repeats", (plan.repeats,), 1),
        ("The number of steps", (plan.steps,), 0),
        ("The number of threads", (plan.threads,), 1),
        ("The budget in seconds", (plan.budget,), 0),
        ("The memory of a point in bytes", (plan.max_memory,), 0),
    ):
        wrong = [x for x in values if not (math.isfinite(x) and x >= least)]
        if wrong:
            raise ConfigError(f"{what} must be at least {least}, not {wrong[0]:g}.")
    if 0 < plan.budget < LEAST:
        raise ConfigError(
            f"A budget of {plan.budget:g} s is too small for one point, which takes about {LEAST:g} s: "
            f"give at least {LEAST:g} s."
        )
    choose_device(plan.device)
    names: dict[str, Point] = {}
    for point in points(plan):
        if names.setdefault(point.name, point) != point:
            raise ConfigError(f"{names[point.name].agent!r} and {point.agent!r} would be kept in one file; rename one.")
        if point.repeat == 0 and point.num_agents == min(plan.sizes) and point.kind not in ("loop", "sb3"):
            config_of(point, plan)


def points(plan: Plan) -> list[Point]:
    """Every point, in the order in which they are measured."""
    found = []
    for repeat in range(plan.repeats):
        for size in sorted(set(plan.sizes)):
            for copies in sorted(set(plan.copies)):
                for kind, agent, varied in series(plan):
                    found.append(Point(agent, kind, size, copies, dict(varied), repeat))
    return found


def series(plan: Plan) -> list[tuple[Kind, str, dict[str, Any]]]:
    """(kind, agent, what is varied) of every curve over sizes. A baseline is measured as it is: with nothing varied."""
    # As files give it back, where a tuple is a list: points that are read are compared with these.
    varied = plan.to_table()["varied"]
    ours: list[tuple[Kind, str, dict[str, Any]]] = [
        ("mfmarl", agent, dict(options)) for options in varied for agent in plan.agents
    ]
    return ours + [(kind, agent, {}) for kind in plan.baselines for agent in BASELINES[kind]]


def write_plan(plan: Plan, folder: Path, command: str, imports: Sequence[str] = ()) -> Plan:
    """Keep the plan as `scale.json`; one that is there is extended. Returns what is kept.

    Raises ConfigError where the old plan measured something else by the same name, ResourceFault.
    """
    check_name(folder.name)
    path = folder / "scale.json"
    if path.is_file():
        plan = merged(read_plan(folder), plan, folder)
    try:
        (folder / "points").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise resource_fault(error, folder) from error
    table = {**plan.to_table(), "command": command, "imports": [*imports], "versions": versions()}
    write_atomic(path, (json.dumps(table, indent=1) + "\n").encode())
    return plan


def merged(old: Plan, new: Plan, folder: Path) -> Plan:
    """What both ask for. Raises ConfigError where they cannot lie in one folder."""
    before, after = old.to_table(), new.to_table()
    told = []
    for name in before:
        if name in _FREE or name == "agents" or before[name] == after[name]:
            continue
        told.append(f"{name}: {json.dumps(before[name])} there, {json.dumps(after[name])} now")
    for label in old.agents.keys() & new.agents.keys():
        if before["agents"][label] != after["agents"][label]:
            told.append(
                f"{label}: {json.dumps(before['agents'][label])} there, {json.dumps(after['agents'][label])} now"
            )
    if told:
        raise ConfigError(f"{folder} holds another sweep ({'; '.join(told)}); choose another folder.")
    return replace(
        new,
        agents={**old.agents, **new.agents},
        sizes=tuple(sorted({*old.sizes, *new.sizes})),
        copies=tuple(sorted({*old.copies, *new.copies})),
        varied=(*before["varied"], *(v for v in after["varied"] if v not in before["varied"])),
        baselines=(*old.baselines, *(b for b in new.baselines if b not in old.baselines)),
        repeats=max(old.repeats, new.repeats),
        seeds=tuple(sorted({*old.seeds, *new.seeds})),
    )


def read_plan(folder: Path) -> Plan:
    """Raises ConfigError where there is none, it is damaged, or names a Python file that the user has not."""
    path = folder / "scale.json"
    table = read_json(path)
    try:
        plan = Plan.from_table(table)
        names = [plan.environment.name, *(choice.name for team in plan.agents.values() for choice in team.values())]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not the plan of a sweep: {type(error).__name__}: {error}.") from error
    for name in names:
        demand_typed(name, str(path))
    return plan


def read(folder: Path) -> tuple[Plan, list[Measured]]:
    """A sweep's plan and what has been measured, in the plan's order; damaged files are left out."""
    plan = read_plan(folder)
    found, _ = _read_points(folder)
    order = {point.name: i for i, point in enumerate(points(plan))}
    return plan, sorted(found.values(), key=lambda m: (order.get(m.point.name, len(order)), m.point.name))


def _read_points(folder: Path) -> tuple[dict[str, Measured], list[str]]:
    """What is in `points/` by name, and what is wrong with the rest."""
    found, wrong = {}, []
    for path in sorted((folder / "points").glob("*.json")):
        try:
            measured = Measured.from_table(read_json(path))
            if measured.point.name != path.stem:
                raise ValueError(f"it holds {measured.point.name}")
            found[path.stem] = measured
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            wrong.append(f"{path} is damaged and is measured again: {error}")
    return found, wrong


# --------------------------------------------------------------------------------------------------- the sweep


def carry_out(
    plan: Plan,
    folder: Path,
    on_event: Callable[[Event], None] = lambda _event: None,
    *,
    imports: Sequence[str] = (),
    limit: float = LIMIT,
    measure: Callable[..., Measured] | None = None,
) -> list[Measured]:
    """Measure every point of the plan that is not done yet; returns all of them, in the plan's order.

    A point that fails, does not fit in memory, would take longer than `limit` seconds or the budget is a `Measured` that says so.
    Raises ConfigError for a plan that cannot be carried out, `Interrupted` on Ctrl-C: what was measured is kept.
    """
    begun, measure = time.monotonic(), measure or fresh
    refuse(plan)
    if not (folder / "scale.json").is_file():
        write_plan(plan, folder, "", imports)
    (folder / "points").mkdir(exist_ok=True)
    wanted = points(plan)
    kept, wrong = _read_points(folder)
    for message in wrong:
        on_event({"event": "warning", "message": message})
    done = {point.name: kept[point.name] for point in wanted if _is_done(kept.get(point.name))}
    others = [m for m in kept.values() if m.status == "done" and m.point.name not in done]
    todo = [point for point in wanted if point.name not in done]
    probed: list[Measured] = []
    given_up: list[Measured] = []

    def weigh(point: Point) -> Measured:
        probed.append(measure(point, replace(plan, steps=1), seconds=0.0, limit=limit, imports=imports))
        return probed[-1]

    def keep(measured: Measured) -> None:
        done[measured.point.name] = measured
        content = json.dumps(measured.to_table(), indent=1) + "\n"
        write_atomic(folder / "points" / f"{measured.point.name}.json", content.encode())

    def finish(point: Point, measured: Measured, expected: float) -> None:
        on_event({"event": measured.status, "point": point, "expected_seconds": expected, "measured": measured})

    planned = False
    try:
        while todo:
            known = [*done.values(), *others]
            left = plan.budget - (time.monotonic() - begun) if plan.budget else math.inf
            first_pass = sorted(set(plan.sizes))[:2]
            if not planned and not any(p.repeat == 0 and p.num_agents in first_pass for p in todo):
                planned = True
                able = affordable(todo, known, left, plan, limit)
                times = [expected_seconds(p, known, plan) for p in able]
                total = sum(seconds for seconds in times if not far_too_long(seconds, limit))
                on_event(
                    {
                        "event": "planned",
                        "points": len(able),
                        "dropped": len(todo) - len(able),
                        "expected_seconds": total,
                    }
                )
            able = affordable(todo, known, left, plan, limit)
            if not able:
                break
            point = able[0]
            todo.remove(point)
            expected = expected_seconds(point, known, plan)
            told = given_up_before(point, given_up)
            reason = told or far_too_long(expected, limit) or memory.fits(point, plan, [*known, *probed], weigh)
            if reason:
                measured = Measured(point, "skipped", reason)
            else:
                on_event({"event": "begin", "point": point, "expected_seconds": expected})
                measured = measure(point, plan, seconds=SECONDS, limit=min(limit, max(left, LEAST)), imports=imports)
                measured = replace(measured, point=point)
            if measured.status != "done" and not told:
                given_up.append(measured)
            keep(measured)
            finish(point, measured, expected)
    except KeyboardInterrupt as asked:
        stopped = Interrupted(
            f"The sweep was stopped; its {len(done)} points are kept in {folder}: the same command goes on."
        )
        if asked.args:  # not Ctrl-C but another signal, by its number
            stopped.exit_code = 128 + int(asked.args[0])
        raise stopped from None
    for point in todo:
        reason = f"The budget of {plan.budget:g} s leaves no time for it."
        measured = Measured(point, "skipped", reason)
        keep(measured)
        finish(point, measured, expected_seconds(point, [*done.values(), *others], plan))
    return [done[point.name] for point in wanted]


def _is_done(measured: Measured | None) -> bool:
    return measured is not None and measured.status == "done"


def given_up_before(point: Point, given_up: Iterable[Measured]) -> str:
    """Why a point is not begun: it failed or was too much before, or a smaller one of its kind was too much."""
    for other in given_up:
        size = other.point.num_agents
        if memory.alike(other, point) and size == point.num_agents:
            return other.reason
        if memory.alike(other, point) and size < point.num_agents and other.status == "skipped":
            return f"Already with {size} agents: {other.reason}"
    return ""


def far_too_long(expected: float, limit: float) -> str:
    """Why a point is not begun that would surely be given up; what might be in time is tried."""
    if expected <= 2 * limit:
        return ""
    return f"It would take about {expected:.0f} s, and a point may take {limit:.0f} s."


# ----------------------------------------------------------------------------------------------- foretelling


def affordable(
    todo: Sequence[Point], known: Sequence[Measured], left: float, plan: Plan, limit: float = LIMIT
) -> list[Point]:
    """Those of the points that fit in so many seconds: repeats are dropped first, then the dearest.

    A point that would take longer than `limit` is not begun, and costs nothing: it stays, to be told of in its turn, when
    more is known of how its kind grows.
    """
    if math.isinf(left):
        return list(todo)
    cost = {point.name: expected_seconds(point, known, plan) for point in todo}
    cost = {name: 0.0 if far_too_long(seconds, limit) else seconds for name, seconds in cost.items()}
    place = {point.name: i for i, point in enumerate(todo)}
    total = sum(cost.values())
    dropped = set()
    # Of equals the last go first: peers before ours.
    for point in sorted(todo, key=lambda p: (p.repeat, cost[p.name], place[p.name]), reverse=True):
        if total <= left:
            break
        dropped.add(point.name)
        total -= cost[point.name]
    return [point for point in todo if point.name not in dropped]


def expected_seconds(point: Point, known: Iterable[Measured], plan: Plan) -> float:
    """Wall time of a point with everything, from those of its kind that are done: cost times size."""
    peers: dict[int, Measured] = {}
    every = [m for m in known if m.status == "done" and m.steps]
    for m in every:
        if memory.alike(m, point):
            peers[m.point.num_agents] = m
    if not peers:
        starts = [_start(m) for m in every]
        return max(starts) + 1.5 * SECONDS if starts else _GUESS
    below = sorted(n for n in peers if n <= point.num_agents) or sorted(peers)[:1]
    last = peers[below[-1]]
    step = _step_seconds(point.num_agents, [peers[n] for n in below])
    unit, warm = int(last.machine.get("unit", 1)), int(last.machine.get("warm_steps", 3))
    growth = point.num_agents / last.point.num_agents
    warm_steps = max(min(warm, 2 * unit + 3), math.ceil(warm / max(growth, 1.0)))
    timed = (
        max(plan.steps, unit) * step
        if plan.steps
        else max(SECONDS, unit * step, min(CYCLES * unit * step, CYCLES * SECONDS))
    )
    apart = max(unit * step, timed / 4) if point.repeat == 0 else 0.0
    return _start(last) + last.build * max(growth, 1.0) + warm_steps * step + timed + apart


def _step_seconds(size: int, peers: Sequence[Measured]) -> float:
    """Wall time of one step at so many agents, from smaller ones in order: a line, never above proportion."""
    last = peers[-1]
    n, seconds = last.point.num_agents, last.wall / last.steps
    if size <= n:
        return seconds
    slope = 0.0
    if len(peers) > 1:
        before = peers[-2]
        slope = (seconds - before.wall / before.steps) / (n - before.point.num_agents)
    # Sizes at which the fixed cost of a step hides that of an agent tell too little: 50 ns are the least of all.
    line = seconds + max(slope, 50e-9 * last.point.copies) * (size - n)
    return min(line, seconds * size / n) if len(peers) > 1 else seconds * size / n


def _start(measured: Measured) -> float:
    """Seconds of a point's process beside its steps."""
    step = measured.wall / max(measured.steps, 1)
    steps = measured.steps + measured.phase_steps + int(measured.machine.get("warm_steps", 0))
    return max(1.0, float(measured.machine.get("seconds", LEAST)) - measured.build - steps * step)
