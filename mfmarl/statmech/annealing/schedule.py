r"""Temperatures over the course of a run: one language for samplers, optimisers and agents.

A schedule is a function of progress x in [0, 1] and is written as text, on the command line and in config files
alike. With T_0 the start and T_1 the end:

| text | T(x) |
|---|---|
| `0.5` | constant |
| `linear(1, 0.1)` | T_0 + (T_1 - T_0) x |
| `geometric(1, 0.01)` | T_0 (T_1/T_0)^x (Kirkpatrick, Gelatt and Vecchi 1983) |
| `logarithmic(1, 0.2)` | T_0 log 2/log(2 + n x), n = 2^(T_0/T_1) - 2 (Geman and Geman 1984, the law that is sure to arrive) |
| `cosine(1, 0.1)` | T_1 + (T_0 - T_1)(1 + cos pi x)/2 |
| `cyclic(1, 0.01, 4)` | so many cosines in a row, each from T_0 to T_1 (Zhang et al. 2020) |
| `through(3, 2.4, 2.2, 1)` | these temperatures at equal distances, straight lines between |
| `entropy(0.7)` | whatever keeps the entropy at that many nats: the agent adjusts its temperature |

A third number of linear, geometric, logarithmic and cosine is the share of the run over which they move:
`geometric(1, 0.01, 0.8)` is at its end after 80 % of it. `through` holds what `constant_speed` finds: temperatures at
constant thermodynamic speed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mfmarl.errors import ConfigError, nearest

Kind = Literal["constant", "linear", "geometric", "logarithmic", "cosine", "cyclic", "through", "entropy"]
_KINDS = get_args(Kind)
_NUMBERS = {"constant": (1, 1), "entropy": (1, 1), "cyclic": (3, 3), "through": (2, 1000)}  # else 2 or 3
_MOVING = ("linear", "geometric", "logarithmic", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A temperature as a function of progress in [0, 1]."""

    kind: Kind = "constant"
    start: float = 1.0
    """The temperature at first; for `entropy`, the target in nats."""
    end: float = 1.0
    share: float = 1.0
    """The part of the run over which it moves; afterwards it stays at `end`."""
    cycles: int = 1
    """Of `cyclic`."""
    points: tuple[float, ...] = ()
    """Of `through`: its temperatures."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"Unknown schedule {self.kind!r}.{nearest(self.kind, _KINDS)}")
        for name, value in (("start", self.start), ("end", self.end), *(("point", p) for p in self.points)):
            if not 0 <= value <= 1e12:
                raise ConfigError(f"A temperature must be finite and not negative: {self.kind} has {name} {value:g}.")
        if not 0 < self.share <= 1:
            raise ConfigError(f"A schedule's share of the run must be in (0, 1], not {self.share:g}.")
        if self.kind in ("geometric", "logarithmic") and min(self.start, self.end) <= 0:
            raise ConfigError(f"A {self.kind} schedule needs temperatures above 0.")
        if self.kind == "logarithmic" and self.start < self.end:
            raise ConfigError(f"A logarithmic schedule cools: {self.start:g} to {self.end:g} would heat.")
        if self.kind == "cyclic" and self.cycles < 1:
            raise ConfigError(f"A cyclic schedule needs a whole number of cycles, at least 1, not {self.cycles}.")
        if self.kind == "through" and len(self.points) < 2:
            raise ConfigError("A schedule through temperatures needs at least two.")

    def at(self, progress: float) -> float:
        """The temperature at that share of the run (clamped to [0, 1]); the target for `entropy`."""
        if self.kind in ("constant", "entropy"):
            return self.start
        x = min(max(progress / self.share, 0.0), 1.0)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * x
        if self.kind == "geometric":
            return math.exp(math.log(self.start) + (math.log(self.end) - math.log(self.start)) * x)
        if self.kind == "logarithmic":
            ratio = self.start / self.end
            if x == 0 or ratio == 1:
                return self.start
            # log2 of 2 + x (2^r - 2) without 2^r, which overflows for ratios r of temperatures in use.
            bits = float(np.logaddexp2(1.0, math.log2(x) + ratio + math.log2(1 - 2 ** (1 - ratio))))
            return self.start / bits
        if self.kind == "through":
            place = x * (len(self.points) - 1)
            low = min(int(place), len(self.points) - 2)
            return self.points[low] + (self.points[low + 1] - self.points[low]) * (place - low)
        turn = x if self.kind == "cosine" or x == 1 else (x * self.cycles) % 1.0
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * turn))

    def temperatures(self, steps: int) -> list[float]:
        """The temperature of each of so many steps: the first at the start, the last at the end."""
        if steps < 1:
            raise ConfigError(f"A schedule of {steps} steps is none; expected at least 1.")
        return [self.at(step / max(steps - 1, 1)) for step in range(steps)]

    def __str__(self) -> str:
        if self.kind == "constant":
            return f"{self.start:g}"
        if self.kind == "entropy":
            return f"entropy({self.start:g})"
        if self.kind == "through":
            return f"through({', '.join(f'{point:g}' for point in self.points)})"
        last = f", {self.cycles}" if self.kind == "cyclic" else "" if self.share == 1.0 else f", {self.share:g}"
        return f"{self.kind}({self.start:g}, {self.end:g}{last})"


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
    least, most = _NUMBERS.get(kind, (2, 3))
    if not least <= len(numbers) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise ConfigError(f"{kind}(...) takes {wanted} numbers, not {len(numbers)}.")
    if kind == "through":
        return Schedule("through", numbers[0], numbers[-1], points=tuple(numbers))
    if kind == "cyclic":
        if numbers[2] != int(numbers[2]):
            raise ConfigError(f"cyclic(start, end, cycles) takes a whole number of cycles, not {numbers[2]:g}.")
        return Schedule("cyclic", numbers[0], numbers[1], cycles=int(numbers[2]))
    start, end = numbers[0], numbers[1] if len(numbers) > 1 else numbers[0]
    share = numbers[2] if kind in _MOVING and len(numbers) > 2 else 1.0
    return Schedule(kind, start, end, share)  # type: ignore[arg-type]
