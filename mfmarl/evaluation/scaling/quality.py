"""What is learned, against the number of agents: ordinary runs at every size, and what they tell together.

`plan_quality` says which runs there are to be, `judge` reads those that are done. Every number is judged over seeds:
its interquartile mean with a 95 % interval, as in comparisons.

The runs of one size share their number of agents times copies as far as that can be: small populations are played in
more copies, so that a report averages over as many agents and a learner meets as many, and one of more than
`TOGETHER` agents is played in one copy. Learners thus make the same number of updates at every size.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.evaluation import results, statistics, summary
from mfmarl.evaluation.comparison import PlannedRun, plan, write_plan
from mfmarl.evaluation.results import Comparison, Run
from mfmarl.evaluation.scaling.fluctuations import (
    FEWEST,
    PowerLaw,
    Spread,
    at_large_sizes,
    in_the_limit,
    length,
    of_everybody,
    play_on,
    pool,
    power_law,
    signed_power_law,
    spread,
)
from mfmarl.evaluation.scaling.fluctuations import exact as exact_of
from mfmarl.evaluation.scaling.measure import size_option
from mfmarl.evaluation.scaling.points import Measured, Plan
from mfmarl.evaluation.scaling.transfer import Mind, minds, play_column
from mfmarl.evaluation.scaling.transfer import length as pair_length
from mfmarl.learning.build import Built, known_answers, open_population
from mfmarl.learning.durable import write_atomic
from mfmarl.learning.players import make_players
from mfmarl.learning.run import load_training
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import read_status
from mfmarl.population.known import Known
from mfmarl.population.open import open_env
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.registry import lookup

TOGETHER = 4096
"""Agents of all copies together that a run has, where copies can make them up."""
MOST_COPIES = 64
TOLERANCE = 0.05
"""How near to its final value a curve has come when it is called there: a share of all that it rises."""
NANOSECONDS = 2000.0
"""CPU-nanoseconds per agent and step that a run is thought to take where nothing was measured."""
BEYOND = 20_000_000
"""Agents that theory may be asked of, in place of infinitely many, where it knows only finite populations."""

FOLDER = "quality"
_SIZES = "sizes.json"
Event = dict[str, Any]
Row = dict[str, Any]


class Size(NamedTuple):
    """What a game says of one number of agents."""

    reason: str
    """Why it is not played; empty: it is."""
    horizon: int | None = None
    """Steps of an episode that everybody lives through; None: it has none such."""


@dataclass(frozen=True)
class Quality:
    """All that is said of learning against N: plain values throughout.

    An *estimate* is {"value", "low", "high", "runs"}: interquartile mean over seeds with its 95 % interval (None where
    it is not known, such as the interval of one run). A *fit* is {"coefficient", "exponent", "low", "high", "points",
    "first", "misfit", "theory", "agrees"}: y = coefficient N^exponent with the exponent's 95 % interval (None where there
    was nothing to fit: nothing beyond the errors), the number of sizes in it and the smallest of them (smaller ones are
    left out where no line fits them), the square root of chi^2 per degree of freedom, what theory says of the exponent
    (None: nothing), and whether the interval holds it (None likewise).
    """

    sizes: tuple[int, ...]
    """Numbers of agents that were played."""
    skipped: dict[int, str]
    """Numbers of agents that were not, and why: the game's own sentence, or that no time was left."""
    rows: list[Row]
    """One for each agent and size, in the order of the plan, whether or not a run of it is done: "agent", "num_agents",
    "copies", "runs" (done), "planned"; "reward" and "return" (estimates of the time average over the later half of the
    evaluations; "return" over an episode, None where episodes have no common length); "measures": by name (`reward`
    first) {"value", "low", "high", "runs", "standard_error", "theory", "kind", "source", "distance" (measured less
    theory), "standard_errors" (the distance in them), "agrees" (the interval holds theory)}, whose last six are None
    where theory is silent; "gaps": estimates by column, of "limit/exploitability" and "finite/exploitability";
    "steps" and "agent_steps" (estimates of what it takes to come within `TOLERANCE` of the final reward: environment
    steps of each copy, and steps of agents in all copies together; None where nothing rose beyond the noise)."""
    failed: list[Row]
    """Runs that are not done: "agent", "num_agents", "seed", "state", "error"."""
    fluctuations: list[Row]
    """One for each agent, size and number: "agent", "num_agents", "name" (`reward` or a measure), "value" and "error"
    (standard deviation over copies of the population's mean at one moment, and its standard error), "samples"
    (moments that are worth an independent one), "theory" (the exact one; None: not known), "source", "runs"."""
    fluctuation_fits: list[Row]
    """One for each agent and number: "agent", "name", and a fit; theory -1/2, away from critical points."""
    limit: list[Row]
    """How far N agents are from infinitely many. One for each agent, size and number: "agent", "num_agents", "name",
    "value" and "error" (what is measured less the limit's, with its standard error), "measured", "limit", "source",
    "theory" (the reference at N less the limit's; None: not known), "beyond" (the number of agents that stands for
    infinitely many where theory knows only finite ones; None: the limit itself)."""
    limit_fits: list[Row]
    """One for each agent and number: "agent", "name", and a fit of the distance; theory -1 for means, and
    where theory knows every N the exponent of its own distances."""
    transfer: list[Row]
    """One for each agent and pair of sizes: "agent", "trained", "played", "reward" (an estimate; the diagonal is
    played alike), "loss" (an estimate of the reward less that of who was trained at this size, paired by seeds; None
    on the diagonal) and "reason" (why there is no reward; else empty)."""
    notes: list[str]
    """What a reader must be told besides: what was left out, and why."""

    def to_table(self) -> dict[str, Any]:
        """As JSON has it: the fields by name, sizes as words in `skipped`, None for what is no number."""
        table = {name: getattr(self, name) for name in self.__dataclass_fields__}
        table["sizes"] = list(self.sizes)
        table["skipped"] = {str(n): why for n, why in self.skipped.items()}
        plain: dict[str, Any] = _plain(table)
        return plain


# ------------------------------------------------------------------------------------------------ planning


def label(num_agents: int) -> str:
    """What a comparison calls a size."""
    return f"N-{num_agents}"


def look(plan: Plan) -> dict[int, Size]:
    """What the game says of each size of the plan: one that it cannot be played with is refused in its own words."""
    entry = lookup("environment", plan.environment.name)
    found = {}
    for n in plan.sizes:
        try:
            env = open_env(entry, _environment(plan, n).options, 1)
        except MfmarlError as error:
            found[n] = Size(str(error))
            continue
        if env.spec.num_agents != n:
            found[n] = Size(f"{plan.environment.name} has {env.spec.num_agents} agents when asked for {n}.")
        else:
            whole = isinstance(env, Simulation) and env.lockstep
            found[n] = Size("", env.spec.horizon if whole else None)
        env.close()
    return found


def evaluation_copies_at(num_agents: int) -> int:
    """Copies that a policy is evaluated on at that size."""
    return max(2, min(MOST_COPIES, TOGETHER // num_agents))  # two tell how they differ


def options_at(plan: Plan, num_agents: int, seed: int = 0) -> RunOptions:
    """How a run of that many agents is carried out."""
    copies = min(MOST_COPIES, max(1, TOGETHER // num_agents))
    options = RunOptions(
        seed=seed,
        steps=plan.learning_steps,
        copies=copies,
        evaluation_copies=evaluation_copies_at(num_agents),
        device=plan.device,
        threads=plan.threads,
    )
    if 2 * num_agents <= TOGETHER:
        return options
    # Two copies act in evaluation where one learns: half as many steps cost as much as acting in training.
    return replace(options, evaluation_steps=max(1, options.evaluation_interval // 2))


def plan_quality(
    plan: Plan, folder: Path, seconds: float = 0.0, jobs: int = 1, measured: Sequence[Measured] = ()
) -> list[PlannedRun]:
    """Every run of every size that the game allows, by size within each seed; writes folder/quality/comparison.json.

    `seconds` of wall time, with `jobs` runs at a time, leave out the largest sizes that would not fit, by the costs
    that were `measured`; 0: no limit. What is left out, and why, is kept in the folder and told by `judge`.

    Raises ConfigError where no size can be played, with the game's own words.
    """
    if not plan.seeds:
        return []
    sizes = look(plan)
    if all(s.reason for s in sizes.values()):
        raise ConfigError(next(iter(sizes.values())).reason)
    if seconds > 0:
        sizes = _within(plan, folder, sizes, seconds * max(1, jobs), measured)
    place = folder / FOLDER
    runs = _runs(plan, place, [n for n, s in sizes.items() if not s.reason])
    _write(place, plan, sizes)
    return runs


def expected_seconds(plan: Plan, num_agents: int, measured: Sequence[Measured] = ()) -> float:
    """CPU-seconds that all runs of one size are thought to take, by the nearest size that was measured."""
    options = options_at(plan, num_agents)
    reports = math.ceil(options.steps / options.report_interval)
    acted = options.evaluation_copies * options.evaluation_interval * reports
    total = 0.0
    for agent in plan.agents:
        own = [m for m in measured if m.point.agent == agent and m.point.kind == "mfmarl" and m.status == "done"]
        near = min(own, key=lambda m: abs(math.log(_together(m) / (num_agents * options.copies))), default=None)
        each = NANOSECONDS if near is None else near.nanoseconds
        total += 1e-9 * each * num_agents * (options.steps * options.copies + acted) * len(plan.seeds)
    return total


def _together(measured: Measured) -> int:
    return measured.point.num_agents * measured.point.copies


def _within(
    plan: Plan, folder: Path, sizes: dict[int, Size], cpu: float, measured: Sequence[Measured]
) -> dict[int, Size]:
    """The sizes, those refused that do not fit into so many CPU-seconds: the largest first. What is done costs nothing."""
    kept, spent = dict(sizes), 0.0
    for n in sorted(sizes):
        if sizes[n].reason:
            continue
        runs = _runs(plan, folder / FOLDER, [n])
        left = sum(read_status(r.path)["state"] != "done" for r in runs) / len(runs)
        needed = left * expected_seconds(plan, n, measured)
        if spent + needed > cpu:
            kept[n] = Size(
                f"Learning at N = {n:,} would take about {needed:,.0f} CPU-seconds, and {max(0.0, cpu - spent):,.0f} "
                "of the budget are left."
            )
        else:
            spent += needed
    return kept


def _environment(plan: Plan, num_agents: int) -> Choice:
    return Choice(plan.environment.name, {**plan.environment.options, size_option(plan.environment): num_agents})


def _runs(the_plan: Plan, place: Path, sizes: Sequence[int]) -> list[PlannedRun]:
    found: list[PlannedRun] = []
    for seed in the_plan.seeds:
        for n in sizes:
            there = {label(n): _environment(the_plan, n)}
            found += plan(there, the_plan.agents, [seed], options_at(the_plan, n), place)
    return found


def _write(place: Path, plan: Plan, sizes: dict[int, Size]) -> None:
    played = {label(n): _environment(plan, n) for n, s in sizes.items() if not s.reason}
    write_plan(place, played, plan.agents, plan.seeds, f"mfmarl scale {plan.environment.name}")
    told = {str(n): s._asdict() for n, s in sizes.items()}
    write_atomic(place / _SIZES, (json.dumps(told, indent=1) + "\n").encode())


def _sizes(plan: Plan, place: Path) -> dict[int, Size]:
    if not (place / _SIZES).is_file():
        return look(plan)
    told = results.read_json(place / _SIZES)
    return {n: Size(**told[str(n)]) if str(n) in told else Size("It was not planned.") for n in plan.sizes}


# ------------------------------------------------------------------------------------------------- judging


_SPENT = "the time that was given is spent"


def judge(
    plan: Plan, folder: Path, on_event: Callable[[Event], None] | None = None, until: float = math.inf
) -> Quality:
    """What the runs that are done tell; those that are not are named. Plays the trained policies on, and elsewhere.

    Nothing more is played after `until` (of `time.monotonic`), smaller sizes being played first; what was left out is noted.

    `on_event` hears {"event": "judging", "what": "fluctuations" or "transfer", "agent", "num_agents"}.
    """
    tell = on_event or (lambda event: None)
    place = folder / FOLDER
    sizes = _sizes(plan, place)
    played = [n for n, s in sizes.items() if not s.reason]
    comparison = _read(plan, place, played)
    notes: list[str] = []
    looked: list[_Looked] = []
    transferred: list[Row] = []
    for n in played:
        for agent in plan.agents:
            looked += _look_at(comparison, agent, n, sizes[n].horizon, tell, notes, until)
    for agent in plan.agents:
        found = [x for x in looked if x.agent == agent]
        transferred += _transfer(comparison, agent, played, sizes, found, tell, notes, until)
    rows = [_row(comparison, agent, n, sizes[n]) for agent in plan.agents for n in played]
    shaking, shaken = _fluctuations(looked)
    distances, laws = _limits(plan, comparison, rows, looked)
    return Quality(
        sizes=tuple(played),
        skipped={n: s.reason for n, s in sizes.items() if s.reason},
        rows=rows,
        failed=_failed(place, comparison),
        fluctuations=shaking,
        fluctuation_fits=shaken,
        limit=distances,
        limit_fits=laws,
        transfer=transferred,
        notes=list(dict.fromkeys(notes)),
    )


def _read(plan: Plan, place: Path, sizes: Sequence[int]) -> Comparison:
    """The runs that are done, as a comparison, and the others as failed ones; nothing is refused or cut short."""
    runs = []
    for planned in _runs(plan, place, sizes):
        try:
            run = results.read_run(planned.path, planned.environment, planned.agent)
        except ConfigError:
            run = _absent(planned)
        runs.append(run if run.state == "done" else replace(run, state="missing" if not len(run.steps) else "failed"))
    return Comparison(
        path=place,
        name=place.name,
        runs=tuple(runs),
        environments=tuple(label(n) for n in sizes),
        agents=tuple(plan.agents),
        seeds=plan.seeds,
    )


def _absent(planned: PlannedRun) -> Run:
    return Run(
        planned.path, planned.environment, planned.agent, planned.seed, "missing", np.zeros(0, dtype=np.int64), {},
        error="the run has no results",
    )  # fmt: skip


def _failed(place: Path, comparison: Comparison) -> list[Row]:
    noted = results.read_json(place / results.FAILURES) if (place / results.FAILURES).is_file() else {}
    found = []
    for run in comparison.runs:
        if run.state == "done":
            continue
        told = noted.get(str(run.path.relative_to(place)), "")
        found.append({
            "agent": run.agent,
            "num_agents": int(run.environment.removeprefix("N-")),
            "seed": run.seed,
            "state": run.state,
            "error": str(told) or run.error,
        })  # fmt: skip
    return found


def _row(comparison: Comparison, agent: str, num_agents: int, size: Size) -> Row:
    environment = label(num_agents)
    runs = _done(comparison, agent, num_agents)
    reward = _estimate([results.time_average(r, "eval/reward") for r in runs])
    arrived = [
        (r, i)
        for r in runs
        if "eval/reward" in r.columns and (i := arrival(r.steps, r.columns["eval/reward"])) is not None
    ]
    return {
        "agent": agent,
        "num_agents": num_agents,
        "copies": min(MOST_COPIES, max(1, TOGETHER // num_agents)),
        "runs": len(runs),
        "planned": len(comparison.of(environment, agent)),
        "reward": reward,
        "return": None if reward is None or size.horizon is None else _times(reward, size.horizon),
        "measures": _measures(comparison, environment, agent),
        "gaps": summary.gaps(comparison, environment, agent),
        "steps": _estimate([float(r.steps[i]) for r, i in arrived]),
        "agent_steps": _estimate(
            [float(r.columns["agent_steps"][i]) for r, i in arrived if "agent_steps" in r.columns]
        ),
    }


def _measures(comparison: Comparison, environment: str, agent: str) -> dict[str, Row]:
    theory = summary.theory(comparison, environment, agent)
    runs = [r for r in comparison.of(environment, agent) if r.state == "done"]
    columns = {name for r in runs for name in r.columns if name.startswith("eval/")}
    found: dict[str, Row] = {}
    for name in sorted((c.removeprefix("eval/") for c in columns), key=lambda c: (c != "reward", c)):
        scores = results.measured(comparison, environment, agent, f"eval/{name}", settled=True).values
        estimate = _estimate(scores)
        if estimate is None:
            continue
        known, error = theory.get(name), statistics.standard_error(scores)
        row: Row = {**estimate, "standard_error": error}
        row |= dict.fromkeys(("theory", "kind", "source", "distance", "standard_errors", "agrees"))
        if known is not None:
            away = estimate["value"] - known["theory"]
            row |= {key: known[key] for key in ("theory", "kind", "source", "agrees")}
            row |= {"distance": away, "standard_errors": away / error if error > 0 else None}
        found[name] = row
    return found


class _Looked(NamedTuple):
    """What was seen of one trained run by playing it on."""

    agent: str
    num_agents: int
    seed: int
    minds: list[Mind]
    spreads: dict[str, Spread]
    exact: dict[str, tuple[float, str]]
    limit: dict[str, float]


def _done(comparison: Comparison, agent: str, num_agents: int) -> list[Run]:
    return [r for r in comparison.of(label(num_agents), agent) if r.state == "done"]


def _look_at(
    comparison: Comparison,
    agent: str,
    num_agents: int,
    horizon: int | None,
    tell: Callable[[Event], None],
    notes: list[str],
    until: float,
) -> list[_Looked]:
    """Every run of that agent at that size, restored and played on."""
    runs = _done(comparison, agent, num_agents)
    found: list[_Looked] = []
    for index, run in enumerate(runs):
        if time.monotonic() > until:
            notes.append(f"Not every policy that {agent} learned at N = {num_agents:,} was played on: {_SPENT}.")
            break
        tell({"event": "judging", "what": "fluctuations", "agent": agent, "num_agents": num_agents})
        try:
            _, built = load_training(run.path)
        except MfmarlError as error:
            notes.append(f"{agent} at N = {num_agents:,}, seed {run.seed}, cannot be played on: {error}")
            continue
        try:
            found.append(_play(agent, num_agents, run.seed, built, index, len(runs), horizon, notes))
        finally:
            built.close()
    return found


def _play(
    agent: str, num_agents: int, seed: int, built: Built, index: int, runs: int, horizon: int | None, notes: list[str]
) -> _Looked:
    trained = minds(built)
    episode = built.training.evaluation
    spreads: dict[str, Spread] = {}
    exact: dict[str, tuple[float, str]] = {}
    if episode is not None:
        steps, players = length(num_agents, episode.env.copies, runs, horizon)
        if not players:
            notes.append(f"Fluctuations at N = {num_agents:,} were not looked at: {FEWEST} steps would be too dear.")
        elif index < players:
            series = of_everybody(play_on(episode, steps), num_agents)
            spreads = {name: spread(x) for name, x in series.items()}
            schedules = {p.agent.schedule for p in built.players}
            if len(schedules) == 1 and (schedule := schedules.pop()).kind != "entropy":
                exact = exact_of(built, schedule.at(1.0))
    return _Looked(agent, num_agents, seed, trained, spreads, exact, in_the_limit(built))


# --------------------------------------------------------------------------------------------- fluctuations


def _by_number(looked: Sequence[_Looked]) -> dict[tuple[str, str], dict[int, list[_Looked]]]:
    """By agent and measured number, and within it by size: who measured it."""
    found: dict[tuple[str, str], dict[int, list[_Looked]]] = {}
    for x in looked:
        for name in x.spreads:
            found.setdefault((x.agent, name), {}).setdefault(x.num_agents, []).append(x)
    return found


def _fluctuations(looked: Sequence[_Looked]) -> tuple[list[Row], list[Row]]:
    rows, fits = [], []
    for (agent, name), by_size in _by_number(looked).items():
        own = []
        for n, found in by_size.items():
            seen = pool([x.spreads[name] for x in found])
            known = [x.exact[name] for x in found if name in x.exact]
            own.append({
                "agent": agent, "num_agents": n, "name": name, "value": seen.value, "error": seen.error,
                "samples": seen.samples, "runs": len(found),
                "theory": math.sqrt(sum(v**2 for v, _ in known) / len(known)) if known else None,
                "source": known[0][1] if known else None,
            })  # fmt: skip
        rows += own
        law = at_large_sizes(power_law, *_columns(own))
        fits.append({"agent": agent, "name": name, **_fit(law, -0.5)})
    return rows, fits


def _columns(rows: Sequence[Row]) -> tuple[list[float], list[float], list[float]]:
    return [r["num_agents"] for r in rows], [r["value"] for r in rows], [r["error"] for r in rows]


def _fit(law: PowerLaw | None, theory: float | None) -> Row:
    if law is None:
        empty = dict.fromkeys(("coefficient", "exponent", "low", "high", "first", "misfit", "agrees"))
        return {**empty, "points": 0, "theory": theory}
    agrees = None if theory is None else bool(law.low <= theory <= law.high)
    return {**law._asdict(), "theory": theory, "agrees": agrees}


def _expected(rows: Sequence[Row]) -> float | None:
    """The exponent of theory: -1 of means; where theory knows every N, that of its own distances, if they have one."""
    if all(r["theory"] is None for r in rows):
        return -1.0
    known = sorted((r["num_agents"], r["theory"]) for r in rows if r["theory"])
    if len(known) < 2 or len(known) < len(rows):
        return None
    slopes = [math.log(abs(b / a)) / math.log(m / n) for (n, a), (m, b) in pairwise(known)]
    late = slopes[-2:]
    return slopes[-1] if max(late) - min(late) < 0.1 else None


# -------------------------------------------------------------------------------------------------- limit


def _limits(
    plan: Plan, comparison: Comparison, rows: Sequence[Row], looked: Sequence[_Looked]
) -> tuple[list[Row], list[Row]]:
    """Distances from infinitely many agents: under the players' own policy where that has a limit, else theory's."""
    found = _under_the_policy(looked)
    told = {(r["agent"], r["name"]) for r in found}
    found += [r for r in _from_references(plan, comparison, rows) if (r["agent"], r["name"]) not in told]
    fits = []
    for agent, name in dict.fromkeys((r["agent"], r["name"]) for r in found):
        own = [r for r in found if (r["agent"], r["name"]) == (agent, name) and r["num_agents"] <= r["beyond"] / 10]
        fits.append(
            {"agent": agent, "name": name, **_fit(at_large_sizes(signed_power_law, *_columns(own)), _expected(own))}
        )
    for row in found:
        row["beyond"] = row["beyond"] if math.isfinite(row["beyond"]) else None
    return found, fits


def _under_the_policy(looked: Sequence[_Looked]) -> list[Row]:
    rows = []
    for (agent, name), by_size in _by_number(looked).items():
        for n, found in by_size.items():
            known = [x for x in found if name in x.limit]
            if not known:
                continue
            away = np.array([x.spreads[name].mean - x.limit[name] for x in known])
            within = math.sqrt(sum(x.spreads[name].mean_error ** 2 for x in known)) / len(known)
            between = away.std(ddof=1) / math.sqrt(len(away)) if len(away) > 1 else 0.0
            limit = float(np.mean([x.limit[name] for x in known]))
            rows.append({
                "agent": agent, "num_agents": n, "name": name, "value": float(away.mean()),
                "error": max(within, float(between)), "measured": limit + float(away.mean()), "limit": limit,
                "source": "the players' own policy in a crowd without end", "theory": None, "beyond": math.inf,
            })  # fmt: skip
    return rows


def _from_references(plan: Plan, comparison: Comparison, rows: Sequence[Row]) -> list[Row]:
    """Of games that are no mean-field games: theory at so many agents that they stand for infinitely many."""
    found: list[Row] = []
    for agent in plan.agents:
        own = [r for r in rows if r["agent"] == agent and r["runs"]]
        if not any(m["theory"] is not None for r in own for m in r["measures"].values()):
            continue
        beyond, limits = _references_beyond(plan, _done(comparison, agent, own[0]["num_agents"])[0])
        for row in own:
            for name, measure in row["measures"].items():
                error = measure["standard_error"]
                if name not in limits or measure["theory"] is None or not math.isfinite(error):
                    continue
                known = limits[name]
                found.append({
                    "agent": agent, "num_agents": row["num_agents"], "name": name,
                    "value": measure["value"] - known.value, "error": error, "measured": measure["value"],
                    "limit": known.value, "source": f"{known.source} (N = {beyond:,})",
                    "theory": measure["theory"] - known.value, "beyond": beyond,
                })  # fmt: skip
    return found


def _references_beyond(plan: Plan, run: Run) -> tuple[int, dict[str, Known]]:
    """A number of agents beyond all that are played, and theory's answers there for who played that run."""
    config = RunConfig.from_table({k: v for k, v in run.config.items() if k != "versions"}, str(run.path))
    config.demand_typed(str(run.path))
    for beyond in (1_000_000, 4 * max(plan.sizes), 100 * max(plan.sizes)):
        if not 4 * max(plan.sizes) <= beyond <= BEYOND:
            continue
        # Nobody is trained there: one copy is asked for its answers.
        once = replace(config.run, copies=1, evaluation_copies=0, steps=1)
        there = replace(config, environment=_environment(plan, beyond), run=once)
        try:
            env = open_population(there, 1, torch.device("cpu"))
        except MfmarlError:
            continue
        try:
            # The players of the small population: all that is asked of them is at what temperature they act.
            small = open_population(config, 1, torch.device("cpu"))
            players = make_players(config, small.spec, Key.of(config.run.seed), torch.device("cpu"))
            small.close()
            known = {k: v for k, v in known_answers(env, players).items() if not k.endswith("/exploitability")}
            return beyond, known
        except MfmarlError:
            return beyond, {}
        finally:
            env.close()
    return 0, {}


# ----------------------------------------------------------------------------------------------- transfer


def _transfer(
    comparison: Comparison,
    agent: str,
    sizes: Sequence[int],
    told: dict[int, Size],
    looked: Sequence[_Looked],
    tell: Callable[[Event], None],
    notes: list[str],
    until: float,
) -> list[Row]:
    """The table of one agent: every size's minds in every size's crowd, seed by seed."""
    rewards: dict[tuple[int, int], dict[int, float]] = {}
    reasons: dict[tuple[int, int], str] = {}
    trained = {n: {x.seed: x.minds for x in looked if x.num_agents == n} for n in sizes}
    for n in sizes:
        runs = _done(comparison, agent, n)
        if not runs:
            reasons |= {(m, n): f"no run among {n:,} agents is done" for m in sizes}
            continue
        copies = evaluation_copies_at(n)
        steps, players = pair_length(n, copies, len(sizes), len(runs), told[n].horizon)
        if not players:
            reasons |= {(m, n): "it would take too long" for m in sizes}
            notes.append(f"Nothing was played among {n:,} agents by who was trained elsewhere: it would take too long.")
        for run in runs[:players]:
            if time.monotonic() > until:
                reasons |= {(m, n): _SPENT for m in sizes}
                notes.append(f"Not all who were trained elsewhere were played among {n:,} agents: {_SPENT}.")
                break
            tell({"event": "judging", "what": "transfer", "agent": agent, "num_agents": n})
            try:
                _, built = load_training(run.path)
            except MfmarlError as error:
                reasons |= {(m, n): str(error) for m in sizes}
                continue
            try:
                there = {m: trained[m][run.seed] for m in sizes if run.seed in trained[m]}
                for m, series in play_column(there, built, steps).items():
                    if isinstance(series, str):
                        reasons[m, n] = series
                    else:
                        rewards.setdefault((m, n), {})[run.seed] = float(series.mean())
            finally:
                built.close()
    rows = []
    for m in sizes:
        for n in sizes:
            here, own = rewards.get((m, n), {}), rewards.get((n, n), {})
            shared = [here[s] - own[s] for s in here if s in own]
            rows.append({
                "agent": agent, "trained": m, "played": n, "reward": _estimate(list(here.values())),
                "loss": None if m == n else _estimate(shared),
                "reason": "" if here else reasons.get((m, n), f"no run among {m:,} agents is done"),
            })  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------------ estimates


def arrival(steps: np.ndarray, values: np.ndarray) -> int | None:
    """The row from which a curve is near its final value: where three rows' mean first comes as near as `TOLERANCE`.

    The final value is the time average of the later half, what there is to rise its distance from the first row.
    None where that is not beyond three standard deviations of the later rows: nothing was seen to be learned.
    """
    known = np.isfinite(values)
    where, seen = np.flatnonzero(known), values[known]
    late = seen[steps[known] > results.BURN_IN * steps[-1]] if len(steps) else seen
    if len(seen) < 4 or len(late) < 2:
        return None
    final, noise = late.mean(), late.std(ddof=1)
    rise = final - seen[0]
    if abs(rise) <= 3 * noise or rise == 0:
        return None
    smooth = np.convolve(seen, np.full(3, 1 / 3), mode="valid")
    near = np.sign(rise) * (final - smooth) <= TOLERANCE * abs(rise) + noise / math.sqrt(3)
    return int(where[int(np.argmax(near)) + 2]) if near.any() else None


def _estimate(values: Sequence[float] | np.ndarray) -> Row | None:
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    return statistics.estimate([kept])._asdict() if len(kept) else None


def _times(estimate: Row, factor: float) -> Row:
    return {k: v if k == "runs" else v * factor for k, v in estimate.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
