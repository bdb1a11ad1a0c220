"""Bugs to plant: each breaks one function everywhere it is used, and the statistical tests that name it must fail.

As a plugin of pytest it runs declared tests with their bugs, each in a process of its own, and writes what came out:

    python -m pytest -p tests.planted_bugs --planted OUT.json tests/statmech

`--planted-rule` says which: `declared` (every declared test under each of its own bugs), `clean` (under none),
`salt:K` (under none, with K other seeds), `search` (every test that was chosen under every bug that it can reach).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.statistical import reseeded

PATIENCE = 60.0
"""Seconds for one test under one bug."""

Function = Callable[..., Any]


@dataclass(frozen=True)
class Bug:
    """One mistake. `wrong` is given the right function and returns the wrong one."""

    about: str
    target: str
    """`module:name` or `module:Class.name`."""
    wrong: Callable[[Function], Function]


def _wide(right: Function) -> Function:
    return lambda *a, **k: right(*a, **k) * 1.15


def _lean(right: Function) -> Function:
    return lambda raw: right(raw) ** 1.15


def _hot(factor: float) -> Callable[[Function], Function]:
    return lambda right: lambda energy, temperature, *a, **k: right(energy, temperature * factor, *a, **k)


def _negated(right: Function) -> Function:
    def wrong(energy: torch.Tensor, *a: Any, **k: Any) -> Any:
        return right(torch.where(torch.isinf(energy), energy, -energy), *a, **k)

    return wrong


def _numbers_forgotten(right: Function) -> Function:
    return lambda key, *parts: right(key, *(part if isinstance(part, str) else 0 for part in parts))


def _in_pairs(right: Function) -> Function:
    return lambda key, ids, *a, **k: right(key, ids // 2, *a, **k)


def _draws_repeated(right: Function) -> Function:
    def wrong(key: Any, ids: Any, draws: int | None, dtype: Any, finish: Any) -> Any:
        if draws is None:
            return right(key, ids, None, dtype, finish)
        one = right(key, ids, None, dtype, finish)
        return one.unsqueeze(-1).expand(*one.shape, draws).clone()

    return wrong


def _never_the_last(right: Function) -> Function:
    return lambda key, ids, high, *a, **k: right(key, ids, high, *a, **k).clamp(max=max(0, high - 2))


def _bits_lean(right: Function) -> Function:
    def wrong(*a: Any, **k: Any) -> torch.Tensor:
        z = right(*a, **k)
        return z & (z << 1)

    return wrong


def _powers(right: Function) -> Function:
    return lambda p, *a, **k: right(p**1.15, *a, **k)


def _beta(factor: float) -> Callable[[Function], Function]:
    """The second argument is an inverse temperature."""
    return lambda right: lambda x, beta, *a, **k: right(x, beta * factor, *a, **k)


def _first(factor: float) -> Callable[[Function], Function]:
    """The first number of what is returned is off by a factor."""

    def plant(right: Function) -> Function:
        def wrong(*a: Any, **k: Any) -> Any:
            found = right(*a, **k)
            if hasattr(found, "_replace"):
                return found._replace(**{found._fields[0]: found[0] * factor})
            if dataclasses.is_dataclass(found):
                name = dataclasses.fields(found)[0].name
                return dataclasses.replace(found, **{name: getattr(found, name) * factor})  # type: ignore[type-var]
            if isinstance(found, tuple):
                return (found[0] * factor, *found[1:])
            return found * factor

        return wrong

    return plant


def _second(factor: float) -> Callable[[Function], Function]:
    """The second number of what is returned, its error, is off by a factor."""

    def plant(right: Function) -> Function:
        def wrong(*a: Any, **k: Any) -> Any:
            found = right(*a, **k)
            if hasattr(found, "_replace"):
                return found._replace(**{found._fields[1]: found[1] * factor})
            return (found[0], found[1] * factor, *found[2:])

        return wrong

    return plant


def _shifted(by: float) -> Callable[[Function], Function]:
    return lambda right: lambda *a, **k: right(*a, **k) + by


def _each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Function], Function]:
    return lambda right: lambda *a, **k: [change(x) for x in right(*a, **k)]


def _words_forgotten(right: Function) -> Function:
    return lambda key, *parts: right(key, *("" if isinstance(part, str) else part for part in parts))


def _trembling(right: Function) -> Function:
    """One time in five the policy is left for a uniform choice."""
    return lambda game, policy, *a, **k: right(game, 0.8 * policy + 0.2 / policy.shape[-1], *a, **k)


def _weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Function], Function]:
    def plant(right: Function) -> Function:
        def wrong(self: Any, *a: Any, **k: Any) -> None:
            right(self, *a, **k)
            with torch.no_grad():
                self.weight.copy_(change(self.weight))

        return wrong

    return plant


def _theory_off(right: Function) -> Function:
    return lambda cls, value, *a, **k: right(cls, value * 1.1 + 0.02, *a, **k)


_SAMPLING, _STATMECH = "mfmarl.statmech.sampling", "mfmarl.statmech"

BUGS: dict[str, Bug] = {
    "hot-heat-bath": Bug(
        "spins turn at T/0.87",
        f"{_SAMPLING}.single_spin:up_probability",
        lambda right: lambda local, beta: right(local, beta * 0.87),
    ),
    "hot-metropolis": Bug(
        "flips are accepted at T/0.87",
        f"{_SAMPLING}.single_spin:flip_probability",
        lambda right: lambda s, local, beta: right(s, local, beta * 0.87),
    ),
    "hot-colours": Bug("Potts spins turn at T/0.87", f"{_SAMPLING}.single_spin:state_probabilities", _beta(0.87)),
    "leaning-coins": Bug("coins are tossed with p^1.15", f"{_SAMPLING}.block:toss", _powers),
    "wide-sampler-noise": Bug("samplers' normals of deviation 1.15", f"{_SAMPLING}.noise:normal", _wide),
    "swaps-always": Bug(
        "every exchange is accepted",
        f"{_SAMPLING}.tempering:swap_probability",
        lambda right: lambda *a: torch.ones_like(right(*a)),
    ),
    "average-off": Bug("enumerated averages 8 % large", f"{_STATMECH}.exact.enumeration:average", _first(1.08)),
    "cold-enumeration": Bug("enumerated at 1.2 beta", f"{_STATMECH}.exact.enumeration:probabilities", _beta(1.2)),
    "cold-partition": Bug("log Z of 1.2 beta", f"{_STATMECH}.exact.enumeration:log_partition", _beta(1.2)),
    "cold-thermodynamics": Bug("enumerated at 1.2 beta", f"{_STATMECH}.exact.enumeration:thermodynamics", _beta(1.2)),
    "replay-flat": Bug(
        "priorities count less than they should",
        f"{_STATMECH}.weighted_sampling:replay_probabilities",
        lambda right: lambda priority, alpha: right(priority, 0.7 * alpha),
    ),
    "replay-uncorrected": Bug(
        "weights correct too little",
        f"{_STATMECH}.weighted_sampling:replay_weights",
        lambda right: lambda p, beta, *a, **k: right(p, 0.7 * beta, *a, **k),
    ),
    "weighted-flat": Bug(
        "indices drawn by p^0.85",
        f"{_STATMECH}.weighted_sampling:draw",
        lambda right: lambda p, *a, **k: right(p**0.85, *a, **k),
    ),
    "resampled-flat": Bug(
        "copies redrawn by half their log weights",
        f"{_STATMECH}.weighted_sampling:resample",
        lambda right: lambda w, *a, **k: right(w * 0.7, *a, **k),
    ),
    "covariance-off": Bug("covariances 8 % large", f"{_STATMECH}.response:covariance", _first(1.08)),
    "covariance-error-tiny": Bug("errors of covariances a fiftieth", f"{_STATMECH}.response:covariance", _second(0.02)),
    "weight-estimate-off": Bug("weighted means 8 % large", f"{_STATMECH}.importance:estimate", _first(1.08)),
    "weight-error-tiny": Bug("errors of weighted means a fiftieth", f"{_STATMECH}.importance:estimate", _second(0.02)),
    "log-weight-off": Bug("mean weights 8 % off", f"{_STATMECH}.importance:log_mean_weight", _first(1.08)),
    "block-error-tiny": Bug("errors of block means a fiftieth", f"{_SAMPLING}.resampling:batch_means", _second(0.02)),
    "jackknife-error-tiny": Bug("jackknife's errors a fiftieth", f"{_SAMPLING}.resampling:jackknife", _second(0.02)),
    "chain-error-tiny": Bug("errors of chains a fiftieth", f"{_SAMPLING}.diagnostics:mean_and_error", _second(0.02)),
    "chain-mean-off": Bug("means of chains 8 % large", f"{_SAMPLING}.diagnostics:mean_and_error", _first(1.08)),
    "theory-off": Bug("what theory gives is off", "mfmarl.population.known:Known.__new__", _theory_off),
    "wide-thermal-noise": Bug(
        "optimisers' noise of deviation 1.15",
        f"{_STATMECH}.optimisers.noise:ThermalOptimizer.gaussian",
        _each(lambda x: 1.15 * x),
    ),
    "shifted-thermal-noise": Bug(
        "optimisers' noise of mean 0.1",
        f"{_STATMECH}.optimisers.noise:ThermalOptimizer.gaussian",
        _each(lambda x: x + 0.1),
    ),
    "trembling-flow": Bug("the crowd of another policy", "mfmarl.games.flow:flow", _trembling),
    "trembling-stationary": Bug(
        "the stationary crowd of another policy", "mfmarl.games.stationary:of_policy", _trembling
    ),
    "choice-flat": Bug(
        "actions of paths by p^0.85",
        "mfmarl.games.sampling:choice",
        lambda right: lambda chances, *a, **k: right(chances**0.85, *a, **k),
    ),
    "gap-off": Bug("gaps of N 20 % large", "mfmarl.games.finite:gap", _first(1.2)),
    "sampled-gap-off": Bug("sampled gaps twice as large", "mfmarl.games.sampled:gap", _first(2.0)),
    "frequencies-error-tiny": Bug(
        "errors of gaps from frequencies a fiftieth", "mfmarl.games.sampled:from_samples", _second(0.02)
    ),
    "even-rows": Bug(
        "odd rows are never remembered",
        "mfmarl.learning.memory:sample_rows",
        lambda right: lambda *a, **k: right(*a, **k) // 2 * 2,
    ),
    "wide-weights": Bug(
        "weights begin 15 % wide", "mfmarl.learning.networks:Linear.__init__", _weights(lambda w: 1.15 * w)
    ),
    "peaked-weights": Bug(
        "weights begin not uniform",
        "mfmarl.learning.networks:Linear.__init__",
        _weights(lambda w: w**3 / w.abs().max() ** 2),
    ),
    "t-small": Bug("Student's quantiles 25 % small", "mfmarl.evaluation.statistics:_t", _first(0.75)),
    "z-small": Bug("normal quantiles 25 % small", "mfmarl.evaluation.statistics:_z", _first(0.75)),
    "average-error-tiny": Bug(
        "errors of time averages a fiftieth", "mfmarl.evaluation.averages:average", _second(0.02)
    ),
    "time-average-off": Bug("time averages 5 % large", "mfmarl.evaluation.averages:average", _first(1.05)),
    "ratings-wide": Bug("ratings 15 % too far apart", "mfmarl.evaluation.elo:maximum_likelihood", _first(1.15)),
    "spread-error-small": Bug(
        "errors of spreads a third", "mfmarl.evaluation.scaling.fluctuations:spread", _second(0.33)
    ),
    "spread-off": Bug("spreads 15 % large", "mfmarl.evaluation.scaling.fluctuations:spread", _first(1.15)),
    "quenched-off": Bug("quenched averages 10 % large", f"{_STATMECH}.exact.disorder:quenched", _first(1.1)),
    "annealed-off": Bug("annealed averages 10 % large", f"{_STATMECH}.exact.disorder:annealed", _first(1.1)),
    "variance-over-disorder-off": Bug(
        "means over disorder 10 % large", f"{_STATMECH}.exact.disorder:self_averaging", _first(1.1)
    ),
    "participation-off": Bug(
        "participation 10 % large", f"{_STATMECH}.replicas.random_energies:mean_participation_ratio", _first(1.1)
    ),
    "levels-wide": Bug("random energies 10 % wide", f"{_STATMECH}.replicas.random_energies:levels", _first(1.1)),
    "numbers-lean": Bug(
        "whole numbers lean to zero",
        "mfmarl.random:integers",
        lambda right: lambda key, ids, high, *a, **k: right(key, ids, high, *a, **k) * 4 // 5,
    ),
    "uniforms-narrow": Bug(
        "uniforms keep away from 0 and 1", "mfmarl.random:_unit", lambda right: lambda raw: 0.07 + 0.86 * right(raw)
    ),
    "shifted-normals": Bug("normals of mean 0.1", "mfmarl.random:normal", _shifted(0.1)),
    "shifted-sampler-noise": Bug("samplers' normals of mean 0.1", f"{_SAMPLING}.noise:normal", _shifted(0.1)),
    "purposes-share-noise": Bug("noise of all purposes is the same", "mfmarl.random:Key.fold", _words_forgotten),
    "bits-lean": Bug("bits are seldom set", "mfmarl.random:bits", _bits_lean),
    "hot-draws": Bug("actions are drawn at 1.3 T", "mfmarl.statmech.gibbs:sample", _hot(1.3)),
    "negated-draws": Bug("actions are drawn by -E", "mfmarl.statmech.gibbs:sample", _negated),
    "hot-gibbs": Bug("Gibbs probabilities of 1.2 T", "mfmarl.statmech.gibbs:probabilities", _hot(1.2)),
    "uniforms-lean": Bug("uniforms lean to zero", "mfmarl.random:_unit", _lean),
    "wide-normals": Bug("normals of deviation 1.15", "mfmarl.random:normal", _wide),
    "long-exponentials": Bug("exponentials of mean 1.15", "mfmarl.random:exponential", _wide),
    "last-number-never": Bug("the last whole number is never drawn", "mfmarl.random:integers", _never_the_last),
    "steps-share-noise": Bug("every step has the noise of step 0", "mfmarl.random:Key.fold", _numbers_forgotten),
    "pairs-share-noise": Bug("two agents draw the same", "mfmarl.random:_draw", _in_pairs),
    "draws-repeat": Bug("all draws of an agent are its first", "mfmarl.random:_draw", _draws_repeated),
}


@contextlib.contextmanager
def replaced(target: str, wrong: Callable[[Function], Function]) -> Iterator[None]:
    """The function at `target` made wrong, under every name by which a module of ours or of the tests knows it."""
    module_name, _, path = target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    right = owner.__dict__[name] if outer else getattr(owner, name)
    bound = right.__func__ if isinstance(right, (classmethod, staticmethod)) else right
    other: Any = functools.wraps(bound)(wrong(bound))
    other = type(right)(other) if isinstance(right, (classmethod, staticmethod)) else other
    places = [(owner, name)]
    if not outer:
        for known, module in list(sys.modules.items()):
            if known.partition(".")[0] in ("mfmarl", "tests") and module is not owner:
                places += [(module, key) for key, value in list(vars(module).items()) if value is right]
    for place, key in places:
        setattr(place, key, other)
    try:
        yield
    finally:
        for place, key in places:
            setattr(place, key, right)


def planted(name: str) -> contextlib.AbstractContextManager[None]:
    """The bug of that name, while the context lasts."""
    return replaced(BUGS[name].target, BUGS[name].wrong)


# The plugin.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--planted", default=None, help="run tests under planted bugs and write the outcomes there")
    parser.addoption("--planted-rule", default="declared")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    report.raised = "" if call.excinfo is None else call.excinfo.typename
    report.said = "" if call.excinfo is None else str(call.excinfo.value)[:300]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    out = session.config.getoption("--planted")
    if out is None:
        return None
    rule = str(session.config.getoption("--planted-rule"))
    if session.testsfailed:
        raise session.Interrupted("a test file could not be read")
    functions: dict[str, list[Any]] = {}
    for item in session.items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    with Path(out).open("w", encoding="utf-8") as lines:
        for name, items in functions.items():
            for row in _tried(items, rule):
                lines.write(json.dumps({"test": name, **row}) + "\n")
                lines.flush()
    return True


def _tried(items: list[Any], rule: str) -> Iterator[dict[str, Any]]:
    """Rows of outcomes: {"bug", "outcome", "raised", "said", "seconds", ...}."""
    declared = getattr(items[0].function, "declaration", None)
    if rule == "declared":
        for bug in declared.bugs if declared else ():
            row = _first_failure(items, functools.partial(planted, bug))
            yield {"bug": bug, "false_alarms": declared.false_alarms, **row}
    elif rule.startswith("salt:"):
        for salt in range(1, int(rule[5:]) + 1):
            for item in items:
                yield {"salt": salt, "item": item.nodeid, **_alone(item, functools.partial(reseeded, salt))}
    elif rule == "clean":
        for item in items:
            yield {"item": item.nodeid, **_alone(item, _counted)}
    else:
        reach: set[str] = set()
        for item in items[:3]:
            row = _alone(item, contextlib.nullcontext, trace=True)
            reach |= set(row.get("reach", ()))
            yield {"bug": "", "item": item.nodeid, **row}
        only = rule.partition(":")[2]
        found = 0
        for bug in only.split(",") if only else BUGS:
            if BUGS[bug].target in reach and found < 2:
                row = _first_failure(items[:3], functools.partial(planted, bug))
                found += row["raised"] == "AssertionError"
                yield {"bug": bug, **row}


def _first_failure(items: list[Any], surroundings: Callable[[], Any]) -> dict[str, Any]:
    """The first of a test's parameters to fail; the last, if all pass."""
    row: dict[str, Any] = {"outcome": "none"}
    for item in items:
        row = _alone(item, surroundings)
        if row["outcome"] == "failed":
            break
    return {"item": items[0].nodeid, **row}


def _alone(item: Any, surroundings: Callable[[], Any], trace: bool = False) -> dict[str, Any]:
    """One test in a copy of this process, fixtures and all."""
    read, write = os.pipe()
    begun = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            row = _run(item, surroundings, trace)
            os.write(write, json.dumps(row).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(write)
    try:
        told = os.read(read, 65_536) if _came(read, child) else b""
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    row = json.loads(told) if told else {"outcome": "broke off", "raised": "", "said": "no answer in time"}
    return {**row, "seconds": round(time.monotonic() - begun, 3)}


def _came(read: int, child: int) -> bool:
    """Whether the child answers within PATIENCE seconds of its own CPU: a busy machine is no verdict."""
    until = time.monotonic() + 10 * PATIENCE
    while time.monotonic() < until:
        if select.select([read], [], [], 1.0)[0]:
            return True
        used = psutil.Process(child).cpu_times()
        if used.user + used.system > PATIENCE:
            return False
    return False


def _run(item: Any, surroundings: Callable[[], Any], trace: bool) -> dict[str, Any]:
    from _pytest.runner import runtestprotocol

    item.config.pluginmanager.unregister(name="terminalreporter")
    with contextlib.ExitStack() as stack:
        reach: set[str] = set()
        if trace:
            for target in {bug.target for bug in BUGS.values()}:
                with contextlib.suppress(ImportError, AttributeError, KeyError):
                    stack.enter_context(replaced(target, functools.partial(_noted, reach, target)))
        stack.enter_context(surroundings())
        reports: list[Any] = runtestprotocol(item, log=False, nextitem=None)
        seen = _COMPARISONS[0]
    failed = [report for report in reports if report.failed]
    skipped = [report for report in reports if report.skipped]
    told = (failed or skipped or reports)[0]
    row = {"outcome": "failed" if failed else "skipped" if skipped else "passed"}
    return {
        **row,
        "when": told.when,
        "raised": told.raised,
        "said": told.said,
        "reach": sorted(reach),
        "comparisons": seen,
    }


_COMPARISONS = [0]
_STATISTICAL = re.compile(
    r"\b[4-9](\.\d+)?\s*[*/]|error|sigma|spread|deviation|limit|p_?value|z\b|law|share|allowed|chi|slack|within"
)


@functools.cache
def _asserted(path: str) -> dict[int, bool]:
    """Lines of the asserts of a file that look as if they compared with an error; True: the first line of one."""
    if f"{os.sep}tests{os.sep}" not in path:
        return {}
    source, found = Path(path).read_text(encoding="utf-8"), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and _STATISTICAL.search(ast.get_source_segment(source, node.test) or ""):
            found.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), False))
            found[node.lineno] = True
    return found


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    """How many numbers a test compares with their errors: each assert, and each element of what it reduces."""
    _COMPARISONS[0] = 0

    def call(frame: Any, event: str, argument: Any) -> Any:
        return line if _asserted(frame.f_code.co_filename) else None

    def line(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and _asserted(frame.f_code.co_filename).get(frame.f_lineno):
            _COMPARISONS[0] += 1
        return line

    def reduced(right: Function) -> Function:
        def wrong(x: torch.Tensor, *a: Any, **k: Any) -> Any:
            frame = sys._getframe(1)
            if frame.f_lineno in _asserted(frame.f_code.co_filename):
                _COMPARISONS[0] += max(0, x.numel() - 1)
            return right(x, *a, **k)

        return wrong

    right = {name: getattr(torch.Tensor, name) for name in ("all", "max", "any", "tolist")}
    for name, method in right.items():
        setattr(torch.Tensor, name, reduced(method))
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(None)
        for name, method in right.items():
            setattr(torch.Tensor, name, method)


def _noted(reach: set[str], target: str, right: Function) -> Function:
    def watched(*a: Any, **k: Any) -> Any:
        reach.add(target)
        return right(*a, **k)

    return watched
