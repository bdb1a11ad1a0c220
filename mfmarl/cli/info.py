"""`mfmarl info`: versions, machine, plugins, and what can be repeated bit by bit here."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mfmarl import __version__, errors
from mfmarl.errors import CODES, MfmarlError, printable
from mfmarl.registry import Kind, Plugin, plugins

EXAMPLES = """  mfmarl info
  mfmarl info --json
  mfmarl info --check-plugins   # import each plugin, one by one
  mfmarl info --codes           # every exit code, and every code that an error may carry"""

PACKAGES = ("torch", "numpy", "gymnasium", "pettingzoo", "safetensors", "matplotlib", "scipy")
EXTRAS = {
    "magent2": ("magent2", "magent"),
    "mpe2": ("mpe2", "mpe"),
    "stable-baselines3": ("stable_baselines3", "sb3"),
    "ray": ("ray", "ray"),
    "tensorboard": ("tensorboard", "tensorboard"),
}
"""Distribution -> its module, and the extra of this package that installs it."""
_KINDS: tuple[Kind, ...] = ("environment", "agent")
PROMISES = {
    "R1": "Same machine, versions, threads and configuration: the same weights, optimiser and metrics bit by bit (clock "
    "columns aside), however often the run is interrupted and resumed.",
    "R2": "How many worker processes host environments changes no result: all randomness is keyed by seed, role and agent.",
    "R3": "A run has one thread unless --threads says otherwise, so R1 holds whatever the number of cores; other numbers of "
    "threads are recorded, and their results are not promised to be equal.",
    "R4": "Across kinds of processors, versions of torch, and GPUs nothing is promised bit by bit: results are equal in "
    "distribution. Runs with one digest class fall under R1.",
}
"""What repeats, and what does not."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--codes", action="store_true", help="show the exit codes and the codes of errors")
    parser.add_argument("--check-plugins", action="store_true", help="import every plugin, and tell which of them fail")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")


def run(known: argparse.Namespace, rest: list[str]) -> int:
    table = codes() if known.codes else _everything(known.check_plugins, known.runs)
    if known.json:
        print(json.dumps(table))
    elif known.codes:
        _print("exit codes", {str(code): text for code, text in table["exit codes"].items()})
        _print("codes of errors", table["codes"])
    else:
        for title in ("versions", "extras", "machine", "repetition", "promises", "plugins", "folders"):
            _print(title, table[title])
    return 0


def codes() -> dict[str, Any]:
    """Every exit code and every code of an error, in words."""
    kinds = sorted(MfmarlError.__subclasses__(), key=lambda kind: kind.exit_code)
    left = {0: "done", **{kind.exit_code: " ".join((kind.__doc__ or "").split()).rstrip(".") for kind in kinds}}
    return {"exit codes": {**left, 130: "stopped by Ctrl-C (SIGINT)", 143: "stopped by SIGTERM"}, "codes": CODES}


def _everything(check_plugins: bool, runs: Path) -> dict[str, Any]:
    machine, repetition = _machine(), _repetition()
    found = {title: _version(title) for title in PACKAGES}
    return {
        "versions": {"mfmarl": __version__, "python": platform.python_version(), **found},
        "extras": {name: _extra(name, *where) for name, where in EXTRAS.items()},
        "machine": machine,
        "repetition": repetition,
        "promises": PROMISES,
        "plugins": {
            f"{kind} {plugin.entry.name} ({plugin.entry.origin})": _health(plugin, check_plugins)
            for kind in _KINDS
            for plugin in plugins(kind)
        },
        "folders": {"mfmarl": str(Path(errors.__file__).parent), "runs": str(runs.absolute())},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _extra(name: str, module: str, extra: str) -> str:
    if find_spec(module) is None:
        return f"not installed: pip install 'mfmarl[{extra}]'"
    return _version(name)


def _health(plugin: Plugin, check: bool) -> str:
    """What is known of a plugin; it is imported only to `check` it."""
    if plugin.hidden:
        return f"cannot be used: {plugin.hidden}"
    if not check:
        return "installed; --check-plugins imports it"
    try:
        plugin.entry.load()
    except MfmarlError as error:
        return f"broken: {error}"
    return "works"


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": f"{cores} of {os.cpu_count() or cores} may be used",
        "memory": _size(_memory()),
        "memory of the group": _group_memory(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "not known"


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _group_memory() -> str:
    """The limit that a container or a batch system sets."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return _size(int(text)) if text.isdigit() and int(text) < 1 << 60 else "no limit"
    return "not known"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _repetition() -> dict[str, str]:
    """What decides whether two runs are equal bit by bit. This alone imports torch."""
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    found = {
        "digest class": digest_class(),
        "ATen": torch.backends.cpu.get_cpu_capability(),
        "MKL": _mkl(),
        "GPUs": ", ".join(gpus) or "none",
        "threads of a run": "1, unless --threads says otherwise",
    }
    return found


def digest_class() -> str:
    """Runs with the same of it, the same threads and the same configuration are equal bit by bit on this kind of machine."""
    import torch

    parts = (
        f"torch {torch.__version__}",
        f"numpy {_version('numpy')}",
        f"python {sys.version_info.major}.{sys.version_info.minor}",
        f"{platform.system()} {platform.machine()}",
        f"ATen {torch.backends.cpu.get_cpu_capability()}",
        f"MKL {_mkl()}",
        _processor(),
    )
    return f"{hashlib.sha256('; '.join(parts).encode()).hexdigest()[:12]} ({'; '.join(parts[:-1])})"


def _mkl() -> str:
    import torch

    if not torch.backends.mkl.is_available():
        return "none"
    return os.environ.get("MKL_CBWR") or os.environ.get("MKL_ENABLE_INSTRUCTIONS") or "default"


def _print(title: str, rows: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(title, style="bold", markup=False, highlight=False)
    if not rows:
        console.print("  none", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=all(3 * len(name) < console.width for name in rows), overflow="fold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(Text(printable(f"  {name}")), Text(printable(str(text))))
    if rows:
        console.print(table)
    console.print()
