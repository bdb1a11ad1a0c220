"""G11, G12, G13, G17: what the tests themselves are worth. They lie in the source checkout, so these need one."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mfmarl.selftest import mutation
from mfmarl.selftest.command import environment_of
from mfmarl.selftest.goal import Order, Outcome
from mfmarl.selftest.mutation import Mutant

LINES, BRANCHES, SCORE = 0.95, 0.90, 0.85
BUDGET = 1e-4
"""What the false alarms of one run of the suite may add up to."""
REPEATS, BUSY = 20, 8
MUTANTS = 300
"""How many of the mutants are tried in full."""

WHOLE: dict[str, tuple[str, ...]] = {
    "mfmarl/learning/checkpoint.py": ("tests/learning/test_checkpoint.py",),
    "mfmarl/learning/durable.py": ("tests/learning/test_durable.py", "tests/learning/test_checkpoint.py"),
    "mfmarl/learning/migration.py": ("tests/learning/test_migration.py",),
    "mfmarl/learning/config.py": ("tests/learning/test_config.py",),
    "mfmarl/learning/config_file.py": ("tests/learning/test_config_file.py",),
    "mfmarl/learning/run_config.py": ("tests/learning/test_config_file.py",),
    "mfmarl/options.py": ("tests/test_options.py",),
    "mfmarl/registry.py": ("tests/test_registry.py",),
    "mfmarl/evaluation/statistics.py": ("tests/evaluation/test_statistics.py",),
}
"""Every line and branch of these is to be reached, and by the tests named."""
MUTATED: dict[str, tuple[str, ...]] = {
    **WHOLE,
    "mfmarl/learning/memory.py": ("tests/learning/test_memory.py",),
    "mfmarl/random.py": ("tests/test_random.py",),
    "mfmarl/statmech/gibbs.py": ("tests/statmech/test_gibbs.py",),
    "mfmarl/population/field.py": ("tests/population/test_field.py",),
    "mfmarl/testing": ("tests/testing",),
}


# What everything here needs.


def _root() -> Path | None:
    """The source checkout that this package is imported from."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "tests").is_dir() and (root / "pyproject.toml").is_file() else None


def _cannot(*packages: str) -> str:
    """Why nothing can be tried here; empty: it can."""
    if _root() is None:
        return "the tests are in the source checkout, which this installation is not"
    missing = [name for name in ("pytest", "hypothesis", *packages) if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} must be installed: pip install -e '.[dev]'" if missing else ""


def _test_files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in (root / "tests").rglob("test_*.py"))


def _sample(items: Sequence[Any], share: float, seed: int, least: int = 1) -> list[Any]:
    """So many of them, the same for the same seed, in their own order."""
    count = min(len(items), max(least, round(share * len(items))))
    chosen = set(random.Random(seed).sample(range(len(items)), count))  # noqa: S311 - which tests, not a secret
    return [item for place, item in enumerate(items) if place in chosen]


def _pytest(root: Path, arguments: Sequence[str], scratch: Path, patience: float) -> tuple[int, str]:
    """The exit code of pytest (-1: it did not end in time) and all that it said."""
    scratch.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={scratch / 'tmp'}", *arguments]
    with (scratch / "said.txt").open("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment_of({"COVERAGE_FILE": str(scratch / "coverage")}),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        text = said.read()
    shutil.rmtree(scratch / "tmp", ignore_errors=True)
    return code, text


def _workers() -> list[str]:
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(min(4, os.cpu_count() or 1))]


def _failed(text: str) -> list[str]:
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)


# G11.


def coverage(order: Order) -> Outcome:
    """Lines and branches that the tests reach; of a small share, those of the modules in WHOLE by their own tests."""
    if why := _cannot("pytest_cov"):
        return Outcome(None, why)
    root = _root()
    assert root is not None
    everything = order.share >= 1
    tests = sorted({test for own in WHOLE.values() for test in own}) if not everything else ["tests"]
    numbers = order.folder / "coverage.json"
    arguments = ["--cov", "--cov-branch", f"--cov-report=json:{numbers}", "-q", "-m", "not verify", *_workers(), *tests]
    code, text = _pytest(root, arguments, order.folder / "coverage", 7200)
    if not numbers.is_file():
        return Outcome(False, f"pytest left with {code} and wrote no coverage: {text.strip()[-300:]}")
    return judge_coverage(json.loads(numbers.read_text(encoding="utf-8")), everything, code, _failed(text))


def judge_coverage(table: dict[str, Any], everything: bool, code: int, failed: Sequence[str]) -> Outcome:
    """The outcome of what `coverage json` wrote."""
    files, totals = table["files"], table["totals"]
    failures = [f"{test} failed: python -m pytest {test}" for test in failed]
    reached: list[float] = []
    for module in WHOLE:
        if module not in files:
            failures.append(f"{module} was not measured")
            continue
        summary = files[module]["summary"]
        reached.append(_share(summary["covered_lines"], summary["num_statements"]))
        lines, arms = files[module]["missing_lines"], files[module].get("missing_branches", [])
        if lines or arms:
            ways = [f"{a}->{b}" for a, b in arms if a not in lines and b not in lines]
            told = [f"lines {_runs(lines)}"] if lines else []
            told += [f"branches {', '.join(ways[:20])}"] if ways else []
            failures.append(f"{module}: not reached: {'; '.join(told)}")
    lines_share = _share(totals["covered_lines"], totals["num_statements"])
    branch_share = _share(totals["covered_branches"], totals["num_branches"])
    met = code == 0 and not failures
    found = f"{sum(s == 1 for s in reached)} of {len(WHOLE)} modules in whole"
    if everything:
        met = met and lines_share >= LINES and branch_share >= BRANCHES
        found = f"{lines_share:.1%} of lines, {branch_share:.1%} of branches; {found}"
    figures = {"lines": lines_share, "branches": branch_share, "whole": min(reached, default=0.0)}
    return Outcome(met, found, len(files), tuple(failures), figures=figures)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _runs(numbers: Sequence[int]) -> str:
    """ "3-5, 9" of [3, 4, 5, 9]."""
    out: list[list[int]] = []
    for number in sorted(numbers):
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


# G12.


def mutants_found(
    root: Path, modules: dict[str, tuple[str, ...]], trials: int, seed: int, scratch: Path, watch: Any = None
) -> tuple[list[tuple[str, Mutant]], list[tuple[str, Mutant]], list[str]]:
    """(found, survived, troubles) of a sample of the mutants of these files or folders, as many of each."""
    chosen = []
    for module, tests in modules.items():
        own = [
            (name, tests, mutant)
            for name in _sources(root, module)
            for mutant in mutation.mutants((root / name).read_text(encoding="utf-8"))
        ]
        # As many of each module: the longest is not the one that matters most.
        chosen += _sample(own, min(1.0, trials / len(modules) / max(1, len(own))), seed)
    found: list[tuple[str, Mutant]] = []
    survived: list[tuple[str, Mutant]] = []
    troubles: list[str] = []
    with _copy(root, scratch) as copy, _server(copy) as ask:
        patience: dict[tuple[str, ...], float] = {}
        for done, (name, tests, mutant) in enumerate(chosen, 1):
            if tests not in patience:
                clean = ask({"file": name, "source": None, "tests": tests, "seconds": 600})
                patience[tests] = 20 + 5 * float(clean["seconds"]) if clean["exit_code"] == 0 else 0
                if not patience[tests]:
                    troubles.append(f"{', '.join(tests)} fail without any change: nothing can be said of {name}")
            if patience[tests]:
                answer = ask({"file": name, "source": mutant.source, "tests": tests, "seconds": patience[tests]})
                (survived if answer["exit_code"] == 0 else found).append((name, mutant))
            if watch is not None:
                watch(done, len(chosen))
    return found, survived, troubles


def mutants(order: Order) -> Outcome:
    """How many of the mutants of MUTATED the tests of those files find."""
    if why := _cannot():
        return Outcome(None, why)
    if not hasattr(os, "fork"):
        return Outcome(None, "mutants are tried in forked processes, which this system has not")
    root = _root()
    assert root is not None
    modules = {m: t for m, t in MUTATED.items() if all((root / path).exists() for path in (m, *t))}
    found, survived, troubles = mutants_found(
        root, modules, order.trials(MUTANTS, 10), order.seed, order.folder, order.watch
    )
    tried = len(found) + len(survived)
    score = len(found) / max(1, tried)
    failures = [*troubles, *(f"{name}:{m.line}: `{m.before}` -> `{m.after}` was not noticed" for name, m in survived)]
    return Outcome(
        tried > 0 and not troubles and score >= SCORE,
        f"{len(found)} of {tried} mutants found ({score:.0%})",
        tried,
        tuple(failures),
        figures={"score": score, "tried": tried},
    )


def _sources(root: Path, module: str) -> list[str]:
    path = root / module
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [str(file.relative_to(root)) for file in files if file.name != "__init__.py"]


@contextlib.contextmanager
def _copy(root: Path, scratch: Path) -> Iterator[Path]:
    """A copy of the checkout, compiled files included, links as they are."""
    scratch.mkdir(parents=True, exist_ok=True)
    copy = Path(tempfile.mkdtemp(prefix="checkout-", dir=scratch))
    for name in ("mfmarl", "envs", "agents", "tests", "scripts", "docs"):
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, symlinks=True)
    for file in root.glob("*.*"):
        if file.is_file():
            shutil.copy2(file, copy / file.name)
    try:
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


@contextlib.contextmanager
def _server(copy: Path) -> Iterator[Any]:
    environment = {k: v for k, v in environment_of().items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "scripts/quality/try_mutants.py"],
        cwd=copy,
        env={**environment, "PYTHONPATH": str(copy)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    out, into = process.stdout, process.stdin
    out.readline()

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        into.write(json.dumps(question) + "\n")
        into.flush()
        answer: dict[str, Any] = json.loads(out.readline() or '{"exit_code": 70, "seconds": 0}')
        return answer

    try:
        yield ask
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        into.close()
        out.close()


# G13.


def declared_tests(root: Path) -> list[tuple[str, int]]:
    """(node id, number of planted bugs) of every test below tests/ that declares itself statistical."""
    found = []
    for name in _test_files(root):
        text = (root / name).read_text(encoding="utf-8")
        if "@statistical(" not in text:
            continue
        for node in ast.parse(text).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "statistical":
                    bugs = next((k.value for k in mark.keywords if k.arg == "bugs"), ast.Tuple([]))
                    found.append((f"{name}::{node.name}", len(getattr(bugs, "elts", ()))))
    return found


def statistical_tests(order: Order) -> Outcome:
    """Each declared test under each of its planted bugs, and what their false alarms add up to."""
    if why := _cannot():
        return Outcome(None, why)
    root = _root()
    assert root is not None
    declared = declared_tests(root)
    if not declared or not hasattr(os, "fork"):
        return Outcome(None, "bugs are planted in forked processes, which this system has not")
    tests = [name for name, _ in _sample(declared, order.share, order.seed, least=min(10, len(declared)))]
    out = order.folder / "planted.jsonl"
    arguments = ["-p", "tests.planted_bugs", "--planted", str(out), "-q", *tests]
    code, text = _pytest(root, arguments, order.folder / "planted", 7200)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.is_file() else []
    if code != 0 or not rows:
        return Outcome(False, f"pytest left with {code}: {text.strip()[-300:]}")
    return judge_planted(rows, [name for name, bugs in declared if bugs < 2])


def judge_planted(rows: Sequence[dict[str, Any]], too_few: Sequence[str] = ()) -> Outcome:
    """The outcome of the rows that `tests.planted_bugs` wrote."""
    unseen = [row for row in rows if row["bug"] and (row["outcome"], row["raised"]) != ("failed", "AssertionError")]
    alarms = {row["test"]: float(row["false_alarms"]) for row in rows}
    total = sum(alarms.values())
    failures = [f"{name} names fewer than two bugs" for name in too_few]
    failures += [
        f"{row['test']} under {row['bug']}: {row['outcome']} {row['raised']} {row['said'][:80]}" for row in unseen
    ]
    failures += [f"false alarms add up to {total:.1e}, more than {BUDGET:.0e}"] if total > BUDGET else []
    tried = len(rows)
    return Outcome(
        not failures,
        f"{len(alarms)} tests: {tried - len(unseen)} of {tried} planted bugs found; false alarms {total:.1e} a run",
        tried,
        tuple(failures),
        figures={"tests": len(alarms), "found": tried - len(unseen), "bugs": tried, "false_alarms": total},
    )


# G17.


def busy_machine(order: Order) -> Outcome:
    """The suite in random order beside busy processes, again and again; of a small share, some of its files, twice."""
    if why := _cannot("pytest_randomly"):
        return Outcome(None, why)
    root = _root()
    assert root is not None
    files = _test_files(root)
    repeats = order.trials(REPEATS, 2)
    failures, passed = [f"{where} asserts a time" for where in timed_asserts(root)], 0
    with busy(BUSY):
        for number in range(repeats):
            seed = order.seed + number
            chosen = files if order.share >= 1 else _sample(files, order.share, seed, least=3)
            options = (
                f"addopts=--import-mode=importlib --strict-markers --strict-config -p randomly --randomly-seed={seed}"
            )
            arguments = ["-o", options, "-q", "-m", "not verify", "--timeout", "1800", *_workers(), *chosen]
            code, text = _pytest(root, arguments, order.folder / f"run-{number}", 14_400)
            passed += code in (0, 5)  # 5: none of these files has a test that is not for `make verify`
            if code not in (0, 5):
                names = ", ".join(_failed(text)[:5]) or text.strip()[-200:]
                failures.append(f"order {seed}: {names}: python -m pytest -o '{options}' {' '.join(chosen[:20])}")
            order.watch(number + 1, repeats)
    return Outcome(
        passed == repeats and not failures,
        f"{passed} of {repeats} runs pass in random order beside {BUSY} busy processes",
        repeats,
        tuple(failures),
        figures={"passed": passed, "runs": repeats},
    )


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that count and do nothing else; they end with this one, whatever ends it."""
    loop = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(200_000))"
    started = [subprocess.Popen([sys.executable, "-S", "-c", loop]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


_CLOCK = re.compile(r"\btime\.(monotonic|perf_counter|time)\(\)|\bperf_counter\(\)|\bmonotonic\(\)")


GENEROUS = 20.0
"""Seconds. A bound as wide as this tells what hangs from what does not; a narrower one tells a fast machine from a slow one."""


def timed_asserts(root: Path) -> list[str]:
    """`file:line` of every assert below tests/ that holds what the wall's clock says against a narrow bound.

    CPU time is no such clock: a busy machine leaves it nearly as it is.
    """
    found = []
    for name in _test_files(root):
        text = (root / name).read_text(encoding="utf-8")
        if not _CLOCK.search(text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assert) and _CLOCK.search(ast.unparse(node.test)):
                numbers = [n.value for n in ast.walk(node.test) if isinstance(n, ast.Constant)]
                bounds = [float(n) for n in numbers if isinstance(n, (int, float)) and not isinstance(n, bool)]
                if bounds and max(bounds) < GENEROUS:
                    found.append(f"{name}:{node.lineno}")
    return found
