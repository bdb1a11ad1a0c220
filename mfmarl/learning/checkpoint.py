"""Checkpoints: one safetensors file holds all of a run's memory, and a kill at any moment loses none.

    checkpoints/step-000000001200-1f2e3d4c.safetensors     tensors, and the scalar state as JSON inside
                latest.json                                its name, sha256 and size: the commit

The newest file counts once latest.json names it. Nothing is ever unpickled and nothing in a file names code.
A file proves itself three times: by the sha256 in latest.json, by the first half of it in its own name, and,
should it be copied elsewhere under another name, by a digest of its contents inside. A file is refused as
CheckpointError before anything is built from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import mfmarl
from mfmarl.errors import CheckpointError, NumericFault
from mfmarl.learning import migration
from mfmarl.learning.durable import read_limited, remove_stale, resource_fault, write_atomic

SCHEMA = 2
LATEST = "latest.json"
MAX_BYTES = 64 * 2**30
MAX_HEADER = 64 * 2**20
MAX_DEPTH = 40
_NAME = re.compile(r"step-([0-9]{12,19})-([0-9a-f]{8})\.safetensors")

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_TAGS = {dtype: tag for tag, dtype in _DTYPES.items()}


class CheckpointWarning(UserWarning):
    """Something was amiss with a checkpoint, and another good one was taken."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run was at a step. `path` is the file it was read from."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    config_digest: str = ""
    mfmarl: str = ""
    torch: str = ""
    of: dict[str, Any] = field(default_factory=dict)
    """Which environment, agents and population; empty where an older version did not say."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
    config_digest: str = "",
    nonfinite: Iterable[str] = (),
    of: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Write one checkpoint, then make it the latest, then drop all but the last `keep`. Returns its path.

    Tensors may be of any layout and device, bool, integer or floating, 0-dimensional too; `state` is JSON with
    whole numbers of any size and finite floats. Files of a later step belong to a course that was abandoned, and go.

    Raises NumericFault for NaN or infinity (the older checkpoints stay good), CheckpointError for what cannot be
    stored, ResourceFault for a full or failing disk. `nonfinite` are the beginnings of names of tensors that may hold
    infinities or NaN. `of` says which environment, agents and population: see `fit.about`.
    """
    _check_storable(tensors)
    wrong = _nonfinite(tensors, nonfinite)
    if wrong:
        raise NumericFault(
            f"NaN or infinity at step {step} in {', '.join(wrong[:10])}: this is not saved, and the checkpoints before it "
            "stay good.",
            "nonfinite-state",
        )
    document = {
        "schema": SCHEMA,
        "step": _checked_step(step),
        "config_digest": config_digest,
        "mfmarl": mfmarl.__version__,
        "torch": str(torch.__version__),
        "of": dict(of),
        "state": dict(state),
    }
    content = serialise(document, dict(tensors))
    try:
        folder.mkdir(exist_ok=True)  # not its parents: a run folder that was deleted is not to be made anew
    except OSError as error:
        raise resource_fault(error, folder) from error
    clean(folder)
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"step-{step:012d}-{digest[:8]}.safetensors"
    write_atomic(path, content)
    entry = {key: document[key] for key in ("step", "schema", "mfmarl", "torch", "config_digest")}
    entry |= {"file": path.name, "sha256": digest, "bytes": len(content)}
    write_atomic(folder / LATEST, (json.dumps(entry, indent=1, sort_keys=True) + "\n").encode())
    _prune(folder, path, step, keep)
    return path


def load(path: Path, strict: bool = False) -> Checkpoint:
    """The checkpoint in a file, or the latest in a run folder or its `checkpoints` folder.

    Where latest.json is missing, damaged or points to no file, the newest valid file is taken with a
    CheckpointWarning (`strict`: refused). A file that is damaged is refused, and the last good one named.
    Raises CheckpointError only.
    """
    path = Path(path)
    if not path.is_dir():
        return _load_file(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    entry = _read_latest(folder)
    if isinstance(entry, dict):
        return _load_file(folder / entry["file"])
    if not list_checkpoints(folder):
        raise CheckpointError(
            f"There is no checkpoint in {folder}: expected step-....safetensors and {LATEST}.", "no-checkpoint"
        )
    if strict:
        raise CheckpointError(f"{entry}{_advice(_newest_valid(folder, None), None)}", "damaged-checkpoint")
    good = _newest_valid(folder, None)
    if good is None:
        raise CheckpointError(f"{entry} None of the checkpoints beside it is whole.", "damaged-checkpoint")
    warnings.warn(f"{entry} Going on from {good.name}, the newest that is whole.", CheckpointWarning, stacklevel=2)
    return _load_file(good)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, newest step first; whether they are whole is not looked at."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (_step_of(path), path.name), reverse=True)


def clean(folder: Path) -> list[Path]:
    """Remove what a killed writer left half-written. Returns what went."""
    return remove_stale(folder, (".safetensors", LATEST))


# Writing


def _checked_step(step: int) -> int:
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
        raise CheckpointError(
            f"A checkpoint's step must be a whole number from 0 to 2^63 - 1, not {step!r}.", "unstorable-state"
        )
    return step


def _check_storable(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in _TAGS or tensor.layout != torch.strided:
            raise CheckpointError(
                f"The tensor {name!r} is {tensor.dtype} {tensor.layout}: it cannot be stored.", "unstorable-state"
            )
        if name == "__metadata__":
            raise CheckpointError(
                "A tensor cannot be called '__metadata__': the file format uses that name.", "unstorable-state"
            )


def _nonfinite(tensors: Mapping[str, Tensor], allowed: Iterable[str]) -> list[str]:
    spared = tuple(allowed)
    return [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not name.startswith(spared) and not bool(torch.isfinite(tensor).all())
    ]


def serialise(document: dict[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The file of a document (all of it but its digest) and tensors. Raises CheckpointError."""
    # Copies, because the format knows no strides and no shared storage.
    copies = {
        name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in sorted(tensors)
    }
    parts = {name: (_TAGS[copy.dtype], list(copy.shape), _bytes_of(copy)) for name, copy in copies.items()}
    contents = contents_digest(canonical(document), parts)
    try:
        # One key of metadata: the order of several would not be repeatable.
        return safetensors.torch.save(copies, {"state": canonical({**document, "contents": contents})})
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The state of step {document['step']} cannot be stored: {error}.", "unstorable-state"
        ) from error


def _bytes_of(tensor: Tensor) -> memoryview:
    if tensor.numel() == 0:
        return memoryview(b"")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def canonical(value: Any) -> str:
    """The one JSON of a value. Raises CheckpointError for what has none."""
    try:
        _check_depth(value)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (_Refused, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The state cannot be stored as JSON ({error}); it may hold finite numbers, text, lists and tables.",
            "unstorable-state",
        ) from error


def contents_digest(body: str, arrays: Mapping[str, tuple[str, list[int], memoryview | bytearray]]) -> str:
    """sha256 of a document's canonical JSON and of its tensors' names, types, shapes and bytes."""
    digest = hashlib.sha256(body.encode())
    for name in sorted(arrays):
        tag, shape, raw = arrays[name]
        digest.update(json.dumps([name, tag, shape]).encode())
        digest.update(raw)
    return digest.hexdigest()


def _prune(folder: Path, newest: Path, step: int, keep: int) -> None:
    older = [path for path in list_checkpoints(folder) if path != newest and _step_of(path) <= step]
    kept = {newest, *older[: max(keep, 1) - 1]}
    for path in list_checkpoints(folder):
        if path not in kept:
            with contextlib.suppress(OSError):
                path.unlink()


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


# Reading: a reason to refuse is a _Refused, which never leaves this file


class _Refused(Exception):
    """Why a file is refused: what was found, and what was expected."""

    def __init__(self, text: str, code: str = "damaged-checkpoint") -> None:
        super().__init__(text)
        self.code = code


def _load_file(path: Path) -> Checkpoint:
    try:
        return _parse(path)
    except _Refused as error:
        raise CheckpointError(f"{error}{_advice(_newest_valid(path.parent, path), path)}", error.code) from error


def _advice(good: Path | None, bad: Path | None) -> str:
    """Which checkpoint is good, and the command that goes on from it."""
    if good is None:
        return " There is no other good checkpoint beside it."
    run = good.parent.parent if good.parent.name == "checkpoints" else good.parent
    command = f"mfmarl train --resume {shlex.quote(str(run))}"
    if bad is not None and bad.parent == good.parent:
        command = f"rm {shlex.quote(str(bad))} && {command}"
    return f" The last good one is {good.name}; to go on from it: {command}"


def _newest_valid(folder: Path, but: Path | None) -> Path | None:
    for path in list_checkpoints(folder):
        if path != but:
            with contextlib.suppress(_Refused):
                _parse(path)
                return path
    return None


def _read_latest(folder: Path) -> dict[str, Any] | str:
    """What latest.json says, or a sentence on why it says nothing of use."""
    path = folder / LATEST
    if not path.exists():
        return f"{path} is missing."
    try:
        entry = _json(read_limited(path, 2**20, _Refused).decode())
    except (_Refused, ValueError, RecursionError) as error:
        return f"{path} is damaged ({str(error)[:100]})."
    known = entry if isinstance(entry, dict) else {}
    name, digest, size = known.get("file"), known.get("sha256"), known.get("bytes")
    if not (isinstance(name, str) and isinstance(digest, str) and isinstance(size, int) and _NAME.fullmatch(name)):
        return f"{path} is damaged: it names no checkpoint."
    if not (folder / name).is_file():
        return f"{path} points to {name}, which is missing."
    return known


def _parse(path: Path) -> Checkpoint:
    """Read and check one file: size, digests, format, contents, schema, in this order. Raises _Refused only."""
    try:
        content = _read(path)
        _check_digest(path, content)
        document = _document(content)
        arrays = dict(safetensors.deserialize(content))
        del content
        tensors = _tensors(document, arrays)
        document, tensors = migration.brought_forward(document, tensors, SCHEMA)
    except _Refused as error:
        text = str(error)
        raise _Refused(text if str(path) in text else f"{path} {text}", error.code) from error
    except safetensors.SafetensorError as error:
        raise _Refused(f"{path} is not a whole safetensors file: {error}.") from error
    except MemoryError as error:
        raise _Refused(f"{path} does not fit in memory.") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError, RuntimeError) as error:
        raise _Refused(
            f"{path} is damaged ({type(error).__name__}: {error}); expected a checkpoint of mfmarl."
        ) from error
    return Checkpoint(
        document["step"],
        tensors,
        document["state"],
        path,
        document["config_digest"],
        document["mfmarl"],
        document["torch"],
        document["of"],
    )


def _read(path: Path) -> bytes:
    """All of a file that begins like a safetensors file and has the size that it should have."""
    if path.is_symlink():
        raise _Refused("is a symbolic link; expected the file itself.", "foreign-checkpoint")
    size = path.stat().st_size if path.is_file() else 0
    if path.is_file():
        with path.open("rb") as file:
            _check_magic(file.read(512), size)
    entry = _listed(path)
    if entry and entry["bytes"] != size:
        raise _Refused(f"is damaged: it has {size:,} bytes, expected {entry['bytes']:,}.")
    return read_limited(path, MAX_BYTES, _Refused)


def _listed(path: Path) -> dict[str, Any] | None:
    """The entry of latest.json for that file, if it has one."""
    entry = _read_latest(path.parent) if _NAME.fullmatch(path.name) else None
    return entry if isinstance(entry, dict) and entry["file"] == path.name else None


_MAGIC = {
    b"PK\x03\x04": "a zip archive, perhaps of torch.save or stable-baselines3",
    b"\x80": "a pickle",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a numpy file",
    b"{": "a JSON file",
}


def _check_magic(head: bytes, size: int) -> None:
    header = int.from_bytes(head[:8], "little")
    if size < 10:
        raise _Refused(f"has {size} bytes; expected a safetensors file.")
    if header <= min(size - 8, MAX_HEADER) and head[8:9] == b"{":
        return
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    if not kind and head[257:262] == b"ustar":
        kind = "a tar archive"
    found = f"is {kind}" if kind else f"declares a header of {header:,} bytes in a file of {size:,}"
    raise _Refused(
        f"{found}; expected a safetensors file. Nothing in it was run.",
        "foreign-checkpoint" if kind else "damaged-checkpoint",
    )


def _check_digest(path: Path, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    named, entry = _NAME.fullmatch(path.name), _listed(path)
    if named and named[2] != digest[:8]:
        raise _Refused(f"is damaged: its sha256 begins with {digest[:8]}, expected {named[2]} as in its name.")
    if entry and entry["sha256"] != digest:
        raise _Refused(f"is damaged: its sha256 is {digest}, expected {entry['sha256']}.")


def _document(content: bytes) -> dict[str, Any]:
    """The JSON in the header's metadata, with exactly the known keys."""
    size = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + size].decode())
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or set(metadata) != {"state"} or not isinstance(metadata["state"], str):
        found = sorted(map(str, metadata))[:5] if isinstance(metadata, dict) else "none"
        raise _Refused(
            f"is not a checkpoint of mfmarl: its metadata has {found}, expected only 'state'.", "foreign-checkpoint"
        )
    document = _json(metadata["state"])
    if not isinstance(document, dict) or not isinstance(document.get("schema"), int):
        raise _Refused("is not a checkpoint of mfmarl: its state has no schema number.", "foreign-checkpoint")
    schema = document["schema"]
    if schema > SCHEMA:
        raise _Refused(
            f"has the newer schema {schema}, written by mfmarl {str(document.get('mfmarl'))[:20]}; this is mfmarl "
            f"{mfmarl.__version__}, which reads up to {SCHEMA}: install that version or a newer one.",
            "newer-checkpoint",
        )
    kinds = migration.KINDS.get(schema) if type(schema) is int else None
    if kinds is None:
        raise _Refused(f"has the unknown schema {schema}; expected 1 to {SCHEMA}.", "foreign-checkpoint")
    wrong = sorted(set(document) ^ set(kinds)) or sorted(
        k for k, kind in kinds.items() if type(document[k]) is not kind
    )
    if wrong or not 0 <= document["step"] < 2**63:
        raise _Refused(
            f"is not a checkpoint of mfmarl: {', '.join(map(repr, wrong[:5])) or 'step'} is not as expected.",
            "foreign-checkpoint",
        )
    return document


def _tensors(document: dict[str, Any], arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    unknown = sorted({str(item["dtype"]) for item in arrays.values()} - set(_DTYPES))
    if unknown:
        raise _Refused(f"holds {', '.join(unknown[:5])}; expected the dtypes {', '.join(_DTYPES)}.")
    parts = {name: (item["dtype"], list(item["shape"]), item["data"]) for name, item in arrays.items()}
    body = canonical({key: value for key, value in document.items() if key != "contents"})
    if contents_digest(body, parts) != document["contents"]:
        raise _Refused("is damaged: its contents do not have the digest that it states.")
    return {name: _tensor(tag, shape, raw) for name, (tag, shape, raw) in sorted(parts.items())}


def _tensor(tag: str, shape: list[int], raw: bytearray) -> Tensor:
    dtype = _DTYPES[tag]
    if not raw:
        return torch.empty(shape, dtype=dtype)
    if tag == "BOOL":
        return torch.frombuffer(raw, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _json(text: str) -> Any:
    """Strict JSON: no NaN, no duplicate keys, no deep nesting. Raises _Refused or ValueError or RecursionError."""
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _Refused("is damaged: a key occurs twice.")
    return table


def _no_constant(word: str) -> float:
    raise _Refused(f"is damaged: {word} where a finite number was expected.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"is damaged: {text[:20]} where a finite number was expected.")
    return value


def _check_depth(value: Any) -> None:
    layer, depth = [value], 0
    while layer:
        if depth > MAX_DEPTH:
            raise _Refused(f"is nested deeper than {MAX_DEPTH}")
        tables = [
            item.values() if isinstance(item, dict) else item for item in layer if isinstance(item, dict | list | tuple)
        ]
        layer, depth = [inner for table in tables for inner in table], depth + 1
