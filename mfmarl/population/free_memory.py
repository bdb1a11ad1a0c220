"""How much memory there is to take: what the system has left, or what its container allows, whichever is less."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int:
    """Bytes that a new process may take. 0 where the system does not say."""
    return min((x for x in (_available(), _left_in_container()) if x), default=0)


def told(size: float) -> str:
    """Bytes in words: 1.2 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _available() -> int:
    return _entry(Path("/proc/meminfo"), "MemAvailable:") * 1024


def _left_in_container(root: Path = Path("/sys/fs/cgroup")) -> int:
    """What a control group leaves: its limit less what is in use and could not be given back."""
    for limit, used, statistics, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        most, now = _number(root / limit), _number(root / used)
        if 0 < most < 1 << 60:
            return max(1, most - now + _entry(root / statistics, cache))
    return 0


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0  # "max", or no such thing


def _entry(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
    except (OSError, ValueError, IndexError):
        return 0
