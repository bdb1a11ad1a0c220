"""A case of the catalogue: a fault that every user meets once, and how the commands must answer it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["S1", "S2", "S3", "S4"]
"""S1 loses work or runs a stranger's code, S2 gives a wrong result silently, S3 stops without a clear error, S4 annoys."""


class Missed(Exception):
    """The answer to a fault was not the promised one: what was expected, and what came."""


@dataclass(frozen=True)
class Case:
    """One fault. `run` is given an empty folder, brings the fault about, and raises Missed where it is not met."""

    number: int
    fault: str
    severity: Severity
    expected: str
    run: Callable[[Path], None]


def case(number: int, fault: str, severity: Severity, expected: str) -> Callable[[Callable[[Path], None]], Case]:
    """Make a case of the function that brings the fault about."""
    return lambda run: Case(number, fault, severity, expected, run)


def expect(holds: bool, otherwise: str) -> None:
    """Raises Missed with what was found `otherwise`."""
    if not holds:
        raise Missed(otherwise)
