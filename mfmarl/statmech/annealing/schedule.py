"""Temperatures over the course of a run: constant, linear, geometric, or whatever keeps the entropy.

A schedule is written as text, on the command line and in config files alike: `0.5`, `linear(1, 0.1)`,
`geometric(1, 0.01, 0.8)` (over the first 80 % of the run), `entropy(0.7)` (a target in nats; the agent
adjusts its temperature to keep it).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from mfmarl.errors import ConfigError, nearest

_KINDS = ("constant", "linear", "geometric", "entropy")


@dataclass(frozen=True)
class Schedule:
    """A temperature as a function of progress in [0, 1]."""

    kind: Literal["constant", "linear", "geometric", "entropy"] = "constant"
    start: float = 1.0
    """The temperature at first; for `entropy`, the target in nats."""
    end: float = 1.0
    share: float = 1.0
    """The part of the run over which it moves; afterwards it stays at `end`."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"Unknown schedule {self.kind!r}.{nearest(self.kind, _KINDS)}")
        for name, value in (("start", self.start), ("end", self.end)):
            if not 0 <= value <= 1e12:
                raise ConfigError(f"A temperature must be finite and not negative: {self.kind} has {name} {value:g}.")
        if not 0 < self.share <= 1:
            raise ConfigError(f"A schedule's share of the run must be in (0, 1], not {self.share:g}.")
        if self.kind == "geometric" and min(self.start, self.end) <= 0:
            raise ConfigError("A geometric schedule needs temperatures above 0.")

    def at(self, progress: float) -> float:
        """The temperature at that share of the run (clamped to [0, 1]); the target for `entropy`."""
        if self.kind in ("constant", "entropy"):
            return self.start
        x = min(max(progress / self.share, 0.0), 1.0)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * x
        return math.exp(math.log(self.start) + (math.log(self.end) - math.log(self.start)) * x)

    def __str__(self) -> str:
        if self.kind == "constant":
            return f"{self.start:g}"
        if self.kind == "entropy":
            return f"entropy({self.start:g})"
        share = "" if self.share == 1.0 else f", {self.share:g}"
        return f"{self.kind}({self.start:g}, {self.end:g}{share})"


def parse_schedule(text: str | float) -> Schedule:
    """The schedule of a text such as `linear(1, 0.1)` (see the module's docstring)."""
    try:
        value = float(text)
        return Schedule("constant", value, value)
    except ValueError:
        pass
    match = re.fullmatch(r"\s*([a-z]+)\s*\(([^()]*)\)\s*", str(text))
    try:
        if match is None:
            raise ValueError
        kind, numbers = match.group(1), [float(part) for part in match.group(2).split(",")]
    except ValueError:
        raise ConfigError(
            f"Cannot read the temperature {text!r}; write a number, linear(1, 0.1), geometric(1, 0.01) or entropy(0.5)."
        ) from None
    if kind not in _KINDS:
        raise ConfigError(f"Unknown schedule {kind!r}.{nearest(kind, _KINDS)}")
    wanted = {"constant": (1, 1), "entropy": (1, 1), "linear": (2, 3), "geometric": (2, 3)}[kind]
    if not wanted[0] <= len(numbers) <= wanted[1]:
        raise ConfigError(f"{kind}(...) takes {wanted[0]} to {wanted[1]} numbers, not {len(numbers)}.")
    start, end = numbers[0], numbers[1] if len(numbers) > 1 else numbers[0]
    return Schedule(kind, start, end, numbers[2] if len(numbers) > 2 else 1.0)  # type: ignore[arg-type]
