"""What older versions wrote, made into what this one writes: in memory, one schema after the other.

A checkpoint's digests are checked against what its own schema says, then it is brought forward, and only then fitted to
a run; the next save writes the present schema. To change the format: raise `checkpoint.SCHEMA`, say in KINDS what the new
document holds, and add the step from the schema before. Nothing is ever removed from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Document = dict[str, Any]
Tensors = dict[str, Any]  # of torch, which reading a configuration does not wait for
Step = Callable[[Document, Tensors], tuple[Document, Tensors]]

_FIRST: dict[str, type] = {
    "schema": int,
    "step": int,
    "config_digest": str,
    "mfmarl": str,
    "torch": str,
    "state": dict,
    "contents": str,
}
KINDS: dict[int, dict[str, type]] = {
    1: _FIRST,
    2: {**_FIRST, "of": dict},
}
"""What the document of each schema holds, and of which type: these keys and no others."""


_REPLAYED = ".env.digest"  # what only a third-party environment's state has


def _say_of_what(document: Document, tensors: Tensors) -> tuple[Document, Tensors]:
    """2: a checkpoint says of which environment, agents and population it is; a third-party environment how often it
    was begun anew and showed what lies outside its spaces.
    """
    import torch

    replayed = [name.removesuffix("digest") for name in tensors if name.endswith(_REPLAYED)]
    none = {f"{start}counts": torch.zeros(2, dtype=torch.int64) for start in replayed}
    return {**document, "of": {}}, {**none, **tensors}


STEPS: dict[int, Step] = {1: _say_of_what}
"""By schema: what makes a checkpoint of it one of the next."""

RENAMED: dict[tuple[str, str], str] = {}
"""Options that were renamed: {("run", "old_name"): "new_name"}, by table of config.toml."""


def brought_forward(document: Document, tensors: Tensors, schema: int) -> tuple[Document, Tensors]:
    """A checkpoint as `schema` has it. Raises KeyError where no step leads there."""
    while document["schema"] < schema:
        old = document["schema"]
        document, tensors = STEPS[old](document, tensors)
        document = {**document, "schema": old + 1}
    return document, tensors


def config_brought_forward(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of config.toml with the present names of its options; where both are there, the present one holds."""
    found = dict(table)
    for (part, old), new in RENAMED.items():
        inner = found.get(part)
        if isinstance(inner, dict) and old in inner:
            found[part] = {new: inner[old], **{name: value for name, value in inner.items() if name != old}}
    return found
