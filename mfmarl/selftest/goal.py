"""A promise of reliability: what is tried, what must come out, and what other libraries do."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

KEPT = 20
"""How many failures of a goal are told one by one."""

Watch = Callable[[int, int], None]
"""Told how many trials are done, and of how many."""


@dataclass(frozen=True)
class Order:
    """How much of a goal is tried, where, and who watches."""

    folder: Path
    """An empty folder of its own; nothing is written outside it."""
    share: float = 1.0
    """Of the trials that the target names: 1 tries 10,000 crash points where the target says 10,000."""
    seed: int = 0
    """Another seed tries other kills, mutations and configurations."""
    watch: Watch = field(default=lambda done, of: None)

    def trials(self, target: int, least: int = 1) -> int:
        """How many of the target's trials are to be made."""
        return max(min(least, target), round(self.share * target))


@dataclass(frozen=True)
class Outcome:
    """What the trials of a goal came to."""

    met: bool | None
    """None: it could not be tried here, and `found` says why."""
    found: str
    """One line, with numbers."""
    trials: int = 0
    failures: tuple[str, ...] = ()
    """Each one line that says what happened and how to repeat it; at most KEPT are kept."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """What other libraries did in the same trials here: {"torch.save": "200 of 200 files lost"}."""
    figures: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def to_table(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "failures": list(self.failures)[:KEPT]}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Outcome:
        """The inverse of `to_table`. Raises KeyError, TypeError."""
        known = {f.name for f in fields(cls)}
        return cls(**{**{k: v for k, v in table.items() if k in known}, "failures": tuple(table["failures"])})


@dataclass(frozen=True)
class Goal:
    """One promise. `trial` is `module:function`, a function from an Order to an Outcome, imported when it is tried."""

    number: int
    title: str
    target: str
    anchor: str
    """What the field's usual libraries do, and with which versions that was measured."""
    trial: str
    minutes: float
    """About how long all of its trials take on two cores."""

    @property
    def name(self) -> str:
        return f"G{self.number}"


def attempt(goal: Goal, order: Order) -> Outcome:
    """Try a goal. What it raises is an outcome too: a promise that could not be tried is not one that holds."""
    module, _, function = goal.trial.partition(":")
    begun = time.monotonic()
    try:
        outcome: Outcome = getattr(importlib.import_module(module), function)(order)
    except Exception as error:  # noqa: BLE001 - the other goals are still to be tried
        outcome = Outcome(False, f"The trial broke off: {type(error).__name__}: {error}")
    return replace(outcome, seconds=time.monotonic() - begun, failures=outcome.failures[:KEPT])
