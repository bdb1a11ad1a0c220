"""mfmarl: large populations of learning agents, from 2 to a million, held against theory.

Importing this package imports nothing heavy; the names below load what they need when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mfmarl.api import compare as compare
    from mfmarl.api import make as make
    from mfmarl.api import solve as solve
    from mfmarl.api import train as train
    from mfmarl.registry import register as register

_LAZY = {
    "register": "mfmarl.registry",
    "train": "mfmarl.api",
    "compare": "mfmarl.api",
    "make": "mfmarl.api",
    "solve": "mfmarl.api",
}
__all__ = ["__version__", "compare", "make", "register", "solve", "train"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mfmarl' has no attribute {name!r}")
