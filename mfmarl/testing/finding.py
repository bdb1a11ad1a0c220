"""What a check of an environment finds: each fault with its code, its place and its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["error", "warning"]
"""An error breaks the contract; a warning may be meant."""


@dataclass(frozen=True)
class Finding:
    """One fault. `code` is a name that stays (`observation-outside-space`), `where` an agent and a step."""

    level: Level
    code: str
    message: str
    """One sentence: what was found, where, what was expected."""
    remedy: str
    """One sentence: what to change."""
    where: str = ""

    def __str__(self) -> str:
        return f"{self.level} {self.code}: {self.message} {self.remedy}"


@dataclass(frozen=True)
class Findings:
    """All that was found of one environment, worst first, each code once with its first place."""

    name: str
    found: tuple[Finding, ...]
    episodes: int
    steps: int
    agents: int

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def __bool__(self) -> bool:
        """Whether there is an error."""
        return bool(self.errors)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.found if f.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.found if f.level == "warning")

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(f.code for f in self.found)

    def to_table(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**asdict(self), "found": [asdict(f) for f in self.found], "errors": len(self.errors)}
