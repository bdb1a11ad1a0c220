"""A known answer: the number that theory gives for a measured one, and where it comes from."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Known(NamedTuple):
    """A value that theory gives. `source` names paper and equation, or the calculation."""

    value: float
    source: str
    kind: Literal["equilibrium", "optimum", "law", "bound"] = "law"
