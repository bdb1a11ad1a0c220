"""For authors of environments: `check_env` finds what is wrong with one, `FaultyEnv` has every fault on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfmarl.testing.check import check_env as check_env
    from mfmarl.testing.faults import FAULTS as FAULTS
    from mfmarl.testing.faulty_env import FaultyEnv as FaultyEnv
    from mfmarl.testing.finding import Finding as Finding
    from mfmarl.testing.finding import Findings as Findings

_LAZY = {
    "check_env": "mfmarl.testing.check",
    "FAULTS": "mfmarl.testing.faults",
    "FaultyEnv": "mfmarl.testing.faulty_env",
    "Finding": "mfmarl.testing.finding",
    "Findings": "mfmarl.testing.finding",
}
__all__ = ["FAULTS", "FaultyEnv", "Finding", "Findings", "check_env"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mfmarl.testing' has no attribute {name!r}")
