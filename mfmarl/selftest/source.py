"""G15: nothing unpickles, evaluates or starts what it should not: read in the source, and watched while commands run.

The source of the installed package is searched for calls; every command is carried out under an audit hook that hears of
every object that is unpickled; `bandit` and `pip-audit` look too where they are installed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import mfmarl
from mfmarl.selftest.case import Missed
from mfmarl.selftest.command import forked
from mfmarl.selftest.goal import Order, Outcome

# What is never called. Names are resolved through the file's own imports: `from torch import load as f` is found.

UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing", "yaml"}
FORBIDDEN_MODULES = UNPICKLERS | {"torch.multiprocessing", "torch.distributed.checkpoint", "concurrent.futures.process"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "torch.manual_seed",
    "torch.seed",
    "torch.random.manual_seed",
    "torch.default_generator.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "numpy.random.seed",
    "random.seed",
    "concurrent.futures.ProcessPoolExecutor",
}
# Draws from a generator that everybody shares, unless they are handed one of their own.
TORCH_DRAWS = {
    f"torch.{name}"
    for name in ("rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal", "poisson")
} | {f"torch.{name}_like" for name in ("rand", "randn", "randint")}
TENSOR_DRAWS = {"random_", "uniform_", "normal_", "bernoulli_", "exponential_", "cauchy_", "geometric_"}
SURE = ("zeros", "ones", "constant", "eye", "dirac", "calculate")  # initial weights that need no draw
# Makers of a generator of one's own, and what sets the shared ones aside and puts them back.
OWN_GENERATORS = {
    "Generator",
    "SeedSequence",
    "BitGenerator",
    "PCG64",
    "Philox",
    "MT19937",
    "RandomState",
    "default_rng",
}
SET_ASIDE = {"getstate", "setstate", "get_state", "set_state", "get_bit_generator", "set_bit_generator"}

_SEEDS = ("random.seed", "numpy.random.seed", "torch.manual_seed")
_DRAWS = ("torch.rand", "numpy.random.random", "random.random", "numpy.random.default_rng")
ALLOWED = {
    (
        "mfmarl/population/single.py",
        "random.seed",
    ): "third-party environments draw from the global generators: they are given their own, and ours are put back",
    ("mfmarl/population/single.py", "numpy.random.seed"): "as there",
    ("mfmarl/agents/sb3.py", "numpy.random.randint"): "stable-baselines3 draws from generators that are lent to it",
} | {
    (f"mfmarl/testing/{file}.py", what): why
    for file, why, calls in (
        ("check_rules", "global generators are set to see whether they matter, and put back", _SEEDS),
        ("surroundings", "global generators are set to see whether they matter, and put back", _SEEDS[:2]),
        ("faults", "the fault that is planted", (*_SEEDS, *_DRAWS)),
        ("faulty_rules", "the fault that is planted", _DRAWS[:3]),
    )
    for what in calls
}
"""Exceptions, (file, what is called) -> why it is right there."""

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("list",),
    ("list", "mfq"),
    ("info",),
    ("train", "ising", "--num-agents", "9", "--steps", "20", "--copies", "2", "--name", "one", "--quiet"),
    ("train", "--resume", "runs/one", "--steps", "30", "--quiet"),
    ("train", "mpe2/simple_spread_v3", "--steps", "8", "--copies", "1", "--name", "two", "--quiet"),
    ("report", "runs/one"),
    ("render", "runs/one", "--frames", "2"),
    ("compare", "congestion", "--agents", "mfq,random", "--num-agents", "9", "--steps", "10", "--seeds", "2", "--jobs", "1", "--name", "three", "--quiet"),
    ("solve", "left_right", "--iterations", "5", "--name", "five", "--quiet"),
    ("check-env", "left_right"),
    ("selftest", "--list"),
)  # fmt: skip
"""What is carried out under the hook; those after the first train need its run."""


def sources() -> dict[str, Path]:
    """The Python files of the installed package, by their names there: mfmarl/envs/ising.py."""
    found: dict[str, Path] = {}
    for name in ("mfmarl", "mfmarl.envs", "mfmarl.agents"):
        spec = importlib.util.find_spec(name)
        for top in (spec.submodule_search_locations if spec else None) or []:
            for folder, _, names in os.walk(Path(top).resolve()):
                inside = Path(name.replace(".", "/")) / Path(folder).relative_to(Path(top).resolve())
                found |= {(inside / file).as_posix(): Path(folder) / file for file in names if file.endswith(".py")}
    return dict(sorted(found.items()))


def forbidden_calls(order: Order, commands: Sequence[Sequence[str]] = COMMANDS, others: bool = True) -> Outcome:
    """The source, then every command, then what other people's searchers find."""
    files = sources()
    failures = [
        f"{name}:{line}: {what}"
        for name, path in files.items()
        for line, what in forbidden(path.read_text(encoding="utf-8"))
        if (name, what) not in ALLOWED
    ]
    calls, unpickled = len(failures), 0
    for done, arguments in enumerate(commands):
        told = watched(arguments, order.folder)
        unpickled += len(told)
        failures += told
        order.watch(done + 1, len(commands))
    beside: dict[str, str] = {}
    if others:
        told, beside = _bandit(sorted({str(path) for path in files.values()}))
        failures += told
        beside |= _pip_audit()
    return Outcome(
        not failures,
        f"{calls} forbidden calls in {len(files)} files, {unpickled} unpickled or evaluated objects in {len(commands)} commands",
        len(files) + len(commands),
        tuple(failures),
        beside,
        {"files": len(files), "forbidden calls": calls, "commands": len(commands), "unpickled": unpickled},
    )


def watched(arguments: Sequence[str], folder: Path) -> list[str]:
    """What a command unpickled, or loaded that it should not, in a line each; and if it ended otherwise than it should."""
    heard = folder / "heard.txt"
    heard.unlink(missing_ok=True)
    try:
        answer = forked(arguments, folder, prepare=partial(_listen, heard), drawn=True)
    except Missed as missed:
        return [] if "cannot fork" in str(missed) else [str(missed)]
    told = (
        [f"`{answer.command}`: {line}" for line in heard.read_text(encoding="utf-8").splitlines()]
        if heard.exists()
        else []
    )
    findings = arguments[0] == "check-env" and answer.exit_code == 3  # an answer, not a failure
    if answer.exit_code != 0 and not findings and "pip install" not in answer.err:
        told.append(f"`{answer.command}` left with {answer.exit_code}: {answer.err.strip()[-300:]}")
    return told


def _listen(heard: Path) -> None:
    """A hook cannot be taken off again: it is set in the child alone, where the command is carried out."""

    def hear(event: str, details: tuple[object, ...]) -> None:
        if event in ("pickle.find_class", "os.system", "shutil.unpack_archive"):
            descriptor = os.open(heard, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(descriptor, f"{event} {' '.join(str(detail) for detail in details)[:200]}\n".encode())
            os.close(descriptor)

    sys.addaudithook(hear)


def _bandit(paths: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    if importlib.util.find_spec("bandit") is None:
        return [], {"bandit": "not tried: pip install bandit"}
    command = [sys.executable, "-m", "bandit", "-q", "-f", "json", "--severity-level", "medium", *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    try:
        results = json.loads(done.stdout)["results"]
    except (ValueError, KeyError, TypeError):
        return [f"bandit: {(done.stderr or done.stdout).strip()[-200:]}"], {}
    root = str(Path(mfmarl.__file__).parent.parent)
    told = [
        f"bandit {r['test_id']} at {r['filename'].removeprefix(root)}:{r['line_number']}: {r['issue_text']}"
        for r in results
    ]
    return told, {"bandit": f"{len(told)} findings of medium severity or above"}


def _pip_audit() -> dict[str, str]:
    if importlib.util.find_spec("pip_audit") is None:
        return {"pip-audit": "not tried: pip install pip-audit"}
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return {"pip-audit": "not tried: the list of advisories cannot be reached"}
    known = [f"{package['name']} {package['version']}" for package in packages if package.get("vulns")]
    return {"pip-audit": f"{len(known)} installed packages with known advisories: {', '.join(known[:10]) or 'none'}"}


def forbidden(source: str) -> list[tuple[int, str]]:
    """Lines of `source` that unpickle, evaluate text, or use a generator that everybody shares."""
    tree = ast.parse(source)
    full: dict[str, str] = {}
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                full[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                found += [(node.lineno, alias.name)] if _banned_module(alias.name) else []
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                full[alias.asname or alias.name] = name
                found += [(node.lineno, name)] if _banned_module(node.module) or _banned_module(name) else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _forbidden_call(node, full)]
    return sorted(found)


def _banned_module(name: str) -> bool:
    return any(name == banned or name.startswith(f"{banned}.") for banned in FORBIDDEN_MODULES)


def _forbidden_call(node: ast.Call, full: dict[str, str]) -> Iterator[str]:
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    pickles = keywords.get("allow_pickle")
    if pickles is not None and not (isinstance(pickles, ast.Constant) and pickles.value is False):
        yield "allow_pickle"
    name = _called(node.func, full)
    if name in FORBIDDEN_CALLS:
        yield name
    elif name.startswith(("random.", "numpy.random.")) and name.rpartition(".")[2] in SET_ASIDE:
        return
    elif name.startswith("random."):
        if name != "random.Random" or not node.args:
            yield name
    elif name.startswith("numpy.random."):
        unseeded = name in ("numpy.random.default_rng", "numpy.random.RandomState") and not (node.args or keywords)
        if name.split(".")[2] not in OWN_GENERATORS or unseeded:
            yield name
    elif name.startswith("stable_baselines3.") and name.rpartition(".")[2] in ("load", "load_replay_buffer"):
        yield name
    elif "generator" in keywords:
        return
    elif name in TORCH_DRAWS or (name.startswith("torch.nn.init.") and not name.split(".")[3].startswith(SURE)):
        yield name
    elif not name and isinstance(node.func, ast.Attribute):
        method = node.func.attr
        if method in TENSOR_DRAWS or (method == "multinomial" and len(node.args) == 1):  # numpy's own takes two
            yield f".{method}"


def _called(function: ast.expr, full: dict[str, str]) -> str:
    """The full name of what is called, "numpy.random.seed" or "eval"; empty for a method of a value."""
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.insert(0, function.attr)
        function = function.value
    if isinstance(function, ast.Name) and (function.id in full or not parts):
        return ".".join([full.get(function.id, function.id), *parts])
    return ""
