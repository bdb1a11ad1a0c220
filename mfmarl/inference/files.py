r"""Generative models in files, and in the lists of arrays that the field's other packages use.

    MODEL.safetensors    tensors A.0, A.1, ..., B.0, ..., C.0, ..., D.0, ..., E and counts.A.0, ...; dependencies and
                         names as JSON inside
    MODEL.npz            arrays A_0, B_0, C_0, D_0, E as other tools write them; optional A_factors_0, B_factors_0,
                         B_controls_0, controls, timed, modalities, factors, states_0, and counts_A_0, ...

Nothing is ever unpickled and nothing in a file names code: a file holds numbers and names, and is refused in one
sentence where it holds anything else. A model that is read is checked as one that is built.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mfmarl.errors import CheckpointError, ConfigError, ResourceFault, nearest
from mfmarl.inference.counts import Counts
from mfmarl.inference.model import GenerativeModel

SCHEMA = 1
_KEY = "mfmarl_model"
_MOST_BYTES = 8 * 2**30
_MOST_HEADER = 64 * 2**20
_LONGEST = 200  # characters of a name
_NUMBERS = ("A_factors", "B_factors", "B_controls")
_NAMES = ("modalities", "factors")
_TABLE = re.compile(r"(counts[._])?([ABCD])[._](0|[1-9][0-9]{0,5})|(counts[._])?(E)")
Conventions = Literal["pymdp", "spm"]


class Stored(NamedTuple):
    """What a model file holds."""

    model: GenerativeModel
    counts: Counts | None


# ------------------------------------------------------------------------------------------------- files


def save(model: GenerativeModel, path: Path | str, counts: Counts | None = None) -> Path:
    """Write a model, and counts of it, whole or not at all, as .safetensors or .npz. Returns the path.

    Raises ConfigError for another ending, ResourceFault where it cannot be written.
    """
    path = Path(path)
    tensors = dict(_tables(model, ""))
    if counts is not None:
        tensors |= dict(_tables(counts, "counts."))
    held = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    about = _description(model, counts)
    if path.suffix == ".safetensors":
        content = safetensors.torch.save({name: x.clone() for name, x in held.items()}, {_KEY: json.dumps(about)})
    elif path.suffix == ".npz":
        content = _packed(held, about)
    else:
        raise ConfigError(f"A model is written as NAME.safetensors or NAME.npz, not as {path.name!r}.")
    _write(path, content)
    return path


def load(path: Path | str) -> Stored:
    """The model in a file, and its counts where it has some; on the CPU, in the precision it was written in.

    Raises CheckpointError for a file that is missing, damaged, foreign, or holds what is not numbers and names;
    ConfigError for tables that are no generative model.
    """
    path = Path(path)
    content = _read(path)
    try:
        if content[:2] == b"PK":
            tables, about = _unpacked(content)
        else:
            tables, about = _deserialised(content)
    except _Foreign as error:
        raise CheckpointError(f"{path} {error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit in memory.") from error
    except Exception as error:  # whatever a damaged file makes of its reader: it ends here, as one sentence
        raise CheckpointError(f"{path} is no model file, or it is damaged: {_short(error)}.") from error
    try:
        return _built(tables, about)
    except (ConfigError, _Foreign) as error:
        raise ConfigError(f"{path}: {error}") from error


class _Foreign(Exception):
    """Why a file is refused, as the end of a sentence that its path begins."""


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no more is known'}".rstrip(
        "."
    )


def _tables(of: GenerativeModel | Counts, before: str) -> list[tuple[str, Tensor]]:
    found = [
        (f"{before}{letter}.{i}", x)
        for letter in "ABCD"
        for i, x in enumerate(getattr(of, letter) or ())
        if x is not None
    ]
    return found if of.E is None else [*found, (f"{before}E", of.E)]


def _description(model: GenerativeModel, counts: Counts | None) -> dict[str, Any]:
    about: dict[str, Any] = {"schema": SCHEMA, "controls": list(model.controls), "timed": model.timed}
    about |= {name: [list(x) for x in getattr(model, name)] for name in (*_NUMBERS, "states")}
    about |= {name: list(getattr(model, name)) for name in _NAMES}
    if counts is not None:
        about["zeros"] = counts.zeros
        about["learned"] = counts.learned
    return about


def _deserialised(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(_MOST_HEADER, len(content) - 8):
        raise _Foreign("is no model file: expected .safetensors or .npz of mfmarl (nothing else is read: no pickle).")
    header = json.loads(content[8 : 8 + size])
    said = header.get("__metadata__", {}).get(_KEY) if isinstance(header, dict) else None
    if said is None:
        raise _Foreign("is a safetensors file, but no generative model: it does not say what its tensors are.")
    about = json.loads(said)
    if not isinstance(about, dict):
        raise _Foreign("does not say what its tensors are.")
    return safetensors.torch.load(content), about


def _packed(held: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    arrays: dict[str, Any] = {name.replace(".", "_"): x.numpy() for name, x in held.items()}
    for name in (*_NUMBERS, "states"):
        for i, own in enumerate(about[name]):
            arrays[f"{name}_{i}"] = np.array(own, dtype=str if name == "states" else np.int64)
    for name in _NAMES:
        arrays[name] = np.array(about[name], dtype=str)
    arrays["controls"] = np.array(about["controls"], dtype=np.int64)
    arrays["timed"] = np.array(about["timed"])
    for name in ("zeros", "learned"):
        if name in about:
            arrays[name] = np.array(about[name], dtype=str)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpacked(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(item.file_size for item in archive.infolist()) > _MOST_BYTES:
            raise _Foreign(f"would unpack to more than {_MOST_BYTES:,} bytes.")
        if any(not item.filename.endswith(".npy") for item in archive.infolist()):
            raise _Foreign(
                "is an archive of other things than arrays: a model is a .npz of arrays A_0, B_0, C_0, D_0 ..."
            )
    tables: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    lists: dict[str, dict[int, list[Any]]] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                array = arrays[name]
            except ValueError as error:
                if "allow_pickle" in str(error) or "Object" in str(error):
                    raise _Foreign(
                        f"holds Python objects in {name!r}, which may hide code: save arrays of numbers, one for each "
                        "modality and factor (A_0, A_1, ...)."
                    ) from error
                raise
            if _TABLE.fullmatch(name):
                if array.dtype.kind not in "fiu":
                    raise _Foreign(f"holds {array.dtype} in {name!r}, where numbers are expected.")
                floating = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
                tables[name.replace("_", ".")] = torch.from_numpy(np.ascontiguousarray(floating))
                continue
            stem, _, number = name.rpartition("_")
            if stem in (*_NUMBERS, "states") and number.isdigit():
                lists.setdefault(stem, {})[int(number)] = array.reshape(-1).tolist()
            elif name in (*_NAMES, "controls"):
                about[name] = array.reshape(-1).tolist()
            elif name in ("timed", "zeros", "learned"):
                about[name] = array.item()
            else:
                known = ["A_0", "B_0", "C_0", "D_0", "E", *_NUMBERS, *_NAMES, "controls", "timed", "counts_A_0"]
                raise _Foreign(f"holds {name!r}, which is no part of a model.{nearest(name, known)}")
    for stem, found in lists.items():
        if sorted(found) != list(range(len(found))):
            raise _Foreign(f"holds {stem} of numbers {sorted(found)}: expected 0, 1, ... without a gap.")
        about[stem] = [found[i] for i in range(len(found))]
    if all(x.dtype == torch.float32 for x in tables.values()):
        return tables, about
    return {name: x.double() for name, x in tables.items()}, about


def _built(tables: Mapping[str, Tensor], about: Mapping[str, Any]) -> Stored:
    known = {"schema", "controls", "timed", "states", "zeros", "learned", *_NUMBERS, *_NAMES}
    unknown = sorted(set(about) - known)
    if about.get("schema", SCHEMA) != SCHEMA or unknown:
        raise _Foreign(
            f"it was written by another version of mfmarl (schema {about.get('schema')!r}"
            + (f", with {', '.join(map(repr, unknown))})." if unknown else ").")
        )
    letters: dict[str, dict[int, Tensor]] = {}
    for name, table in tables.items():
        match = _TABLE.fullmatch(name)
        if match is None:
            raise _Foreign(
                f"it holds a tensor {name[:_LONGEST]!r}, which is no part of a model: expected A.0, B.0, ..."
            )
        if not table.dtype.is_floating_point:
            raise _Foreign(f"its table {name!r} holds {table.dtype}, not floating-point numbers.")
        counted, letter, number, counted_E, habit = match.groups()
        letters.setdefault(("counts." if counted or counted_E else "") + (letter or habit), {})[int(number or 0)] = (
            table
        )
    lists: dict[str, Any] = {}
    for letter in "ABCD":
        own = letters.get(letter, {})
        if not own or sorted(own) != list(range(len(own))):
            had = ", ".join(f"{letter}.{i}" for i in sorted(own)) or "none"
            raise _Foreign(f"its tables {letter} are {had}: expected {letter}.0, {letter}.1, ... without a gap.")
        lists[letter] = tuple(own[i] for i in range(len(own)))
    lists |= {name: _whole(about.get(name, []), name) for name in _NUMBERS}
    lists |= {name: _words([about.get(name, [])], name)[0] for name in _NAMES}
    model = GenerativeModel(
        **lists,
        E=letters.get("E", {}).get(0),
        controls=_whole([about.get("controls", [])], "controls")[0],
        timed=_truth(about.get("timed", False)),
        states=_words(about.get("states", []), "states"),
    )
    return Stored(model, _counts(model, letters, about))


def _counts(
    model: GenerativeModel, letters: Mapping[str, dict[int, Tensor]], about: Mapping[str, Any]
) -> Counts | None:
    found: dict[str, Any] = {}
    for letter in "ABCDE":
        own = letters.get(f"counts.{letter}")
        if own is None:
            continue
        tables = (model.E,) if letter == "E" else getattr(model, letter)
        if max(own) >= len(tables):
            raise _Foreign(f"it has counts {letter}.{max(own)} and {len(tables)} tables {letter}.")
        for i, a in own.items():
            core = _core(model, letter, i)
            if tuple(a.shape[max(0, a.ndim - len(core)) :]) != core:
                raise _Foreign(f"its counts {letter}.{i} must end in the shape {list(core)}, not be {list(a.shape)}.")
            if not bool(a.isfinite().all()) or bool((a < 0).any()):
                raise _Foreign(f"its counts {letter}.{i} must be finite and not negative.")
        found[letter] = own[0] if letter == "E" else tuple(own.get(i) for i in range(len(tables)))
    if not found:
        return None
    zeros = about.get("zeros", "kept")
    return Counts(**found, zeros=zeros if isinstance(zeros, str) else "kept")  # type: ignore[arg-type]


def _core(model: GenerativeModel, letter: str, i: int) -> tuple[int, ...]:
    """The shape of a table behind its leading axes."""
    if letter == "A":
        return (model.outcomes[i], *[model.sizes[f] for f in model.A_factors[i]])
    if letter == "B":
        inputs = [model.sizes[f] for f in model.B_factors[i]] + [model.controls[g] for g in model.B_controls[i]]
        return (model.sizes[i], *inputs)
    if letter == "C":
        return tuple(model.C[i].shape[-2:]) if model.timed else (model.outcomes[i],)
    if letter == "D":
        return (model.sizes[i],)
    return (model.num_actions,) if model.E is None else (model.E.shape[-1],)


def _whole(given: Any, name: str) -> tuple[tuple[int, ...], ...]:
    if not isinstance(given, list) or not all(
        isinstance(own, list) and all(type(i) is int and 0 <= i < 2**31 for i in own) for own in given
    ):
        raise _Foreign(f"its {name} must be lists of whole numbers.")
    return tuple(tuple(own) for own in given)


def _words(given: Any, name: str) -> tuple[tuple[str, ...], ...]:
    if not isinstance(given, list) or not all(
        isinstance(own, list) and all(isinstance(word, str) and len(word) <= _LONGEST for word in own) for own in given
    ):
        raise _Foreign(f"its {name} must be names of at most {_LONGEST} characters.")
    return tuple(tuple(own) for own in given)


def _truth(given: Any) -> bool:
    if not isinstance(given, bool):
        raise _Foreign(f"its `timed` must be true or false, not {given!r}.")
    return given


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise CheckpointError(f"There is no model file {path}.")
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path} has more than {_MOST_BYTES:,} bytes, which no model has.")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ResourceFault(f"{path} cannot be written: {error.strerror or error}.") from error


# ------------------------------------------------------------------------------------------ lists of arrays


def from_lists(
    A: Sequence[Any],
    B: Sequence[Any],
    C: Sequence[Any] | None = None,
    D: Sequence[Any] | None = None,
    E: Any = None,
    A_dependencies: Sequence[Sequence[int]] | None = None,
    B_dependencies: Sequence[Sequence[int]] | None = None,
    B_action_dependencies: Sequence[Sequence[int]] | None = None,
    num_controls: Sequence[int] | None = None,
    conventions: Conventions = "pymdp",
    dtype: torch.dtype = torch.float64,
) -> GenerativeModel:
    """A model of lists of arrays, one for each modality (A, C) and factor (B, D), as pymdp and SPM have them.

    A[m] is [outcomes, states of its factors ...], B[f] [next states, states of its factors ..., settings ...]. Without
    dependencies all modalities depend on all factors, and every factor on itself and a control of its own: a factor
    that nobody moves has one setting. C None: no preferences; D None: all states alike.

    "pymdp": columns of A, B, D add up to one; C[m] is [outcomes] or [times, outcomes]; arrays may lead with a batch.
    "spm" (the fields of MATLAB's MDP, as loaded by scipy): columns are counts and are normalised here; B[f] without a
    third axis is one setting; C[m] is [outcomes] or [outcomes, times]; D[f] and E may be columns of a matrix.

    Raises ConfigError for arrays that do not fit together, as GenerativeModel does.
    """
    if conventions not in ("pymdp", "spm"):
        raise ConfigError(
            f"Conventions are 'pymdp' or 'spm', not {conventions!r}.{nearest(str(conventions), ('pymdp', 'spm'))}"
        )
    spm = conventions == "spm"
    likelihoods = [_array(a, f"A[{m}]", dtype) for m, a in enumerate(A)]
    transitions = [_array(b, f"B[{f}]", dtype) for f, b in enumerate(B)]
    if not likelihoods or not transitions:
        raise ConfigError("A generative model needs at least one array in A and one in B.")
    own = [tuple(x) for x in B_dependencies] if B_dependencies is not None else [(f,) for f in range(len(B))]
    if B_action_dependencies is not None:
        moved = [tuple(x) for x in B_action_dependencies]
    else:
        moved = [(f,) for f in range(len(B))]
    if len(own) != len(transitions) or len(moved) != len(transitions):
        raise ConfigError(
            f"B has {len(transitions)} factors, and dependencies for {len(own)}, of actions for {len(moved)}."
        )
    if spm:
        transitions = [
            b.unsqueeze(-1) if b.ndim == len(own[f]) + 1 and moved[f] else b for f, b in enumerate(transitions)
        ]
        likelihoods = [_normalised(a, 0) for a in likelihoods]
        transitions = [_normalised(b, 0) for b in transitions]
    leads = [b.ndim - 1 - len(own[f]) - len(moved[f]) for f, b in enumerate(transitions)]
    for f, lead in enumerate(leads):
        if lead < 0:
            raise ConfigError(
                f"B[{f}] must be [next states, states of factors {own[f]}, settings of controls {moved[f]}], "
                f"not {list(transitions[f].shape)}."
            )
    sizes = [b.shape[lead] for b, lead in zip(transitions, leads, strict=True)]
    parents = [tuple(x) for x in A_dependencies] if A_dependencies is not None else [tuple(range(len(B)))] * len(A)
    if len(parents) != len(likelihoods):
        raise ConfigError(f"A has {len(likelihoods)} modalities, and dependencies for {len(parents)}.")
    outcomes = []
    for m, a in enumerate(likelihoods):
        lead = a.ndim - 1 - len(parents[m])
        if lead < 0:
            raise ConfigError(f"A[{m}] must be [outcomes, states of factors {parents[m]}], not {list(a.shape)}.")
        outcomes.append(a.shape[lead])
    if D is None:
        firsts = [torch.full((s,), 1 / s, dtype=dtype) for s in sizes]
    else:
        firsts = [_array(d, f"D[{f}]", dtype) for f, d in enumerate(D)]
        firsts = [_normalised(d.reshape(-1), 0) for d in firsts] if spm else firsts
    preferences, timed = _preferences(C, outcomes, 0 if spm else likelihoods[0].ndim - 1 - len(parents[0]), spm, dtype)
    habits = None if E is None else _array(E, "E", dtype)
    if habits is not None and spm:
        habits = _normalised(habits.reshape(-1), 0)
    return GenerativeModel(
        A=tuple(likelihoods),
        B=tuple(transitions),
        C=tuple(preferences),
        D=tuple(firsts),
        E=habits,
        A_factors=tuple(parents),
        B_factors=tuple(own),
        B_controls=tuple(moved),
        controls=tuple(num_controls) if num_controls is not None and B_action_dependencies is not None else (),
        timed=timed,
    )


def to_lists(model: GenerativeModel) -> dict[str, Any]:
    """The arguments of pymdp's Agent: lists of numpy arrays A, B, C, D, and E, with the dependencies of each.

    Those of actions and num_controls are None where every factor has a control of its own, as it expects there.
    """

    plain = model.B_controls == tuple((f,) for f in range(len(model.B)))

    def arrays(tables: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
        return [x.detach().cpu().numpy().copy() for x in tables]

    return {
        "A": arrays(model.A),
        "B": arrays(model.B),
        "C": arrays(model.C),
        "D": arrays(model.D),
        "E": None if model.E is None else arrays([model.E])[0],
        "A_dependencies": [list(x) for x in model.A_factors],
        "B_dependencies": [list(x) for x in model.B_factors],
        "B_action_dependencies": None if plain else [list(x) for x in model.B_controls],
        "num_controls": None if plain else list(model.controls),
    }


def _array(given: Any, name: str, dtype: torch.dtype) -> Tensor:
    if isinstance(given, Tensor):
        return given.to(dtype)
    array = np.asarray(given)
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"{name} must be an array of numbers, not of {array.dtype}.")
    return torch.as_tensor(np.ascontiguousarray(array)).to(dtype)


def _normalised(x: Tensor, axis: int) -> Tensor:
    total = x.sum(axis, keepdim=True)
    return x / total if bool((total > 0).all()) else x


def _preferences(
    C: Sequence[Any] | None, outcomes: Sequence[int], lead: int, spm: bool, dtype: torch.dtype
) -> tuple[list[Tensor], bool]:
    """C^m, all with an axis of times where one has it. `lead`: axes of a batch."""
    if C is None:
        return [torch.zeros(o, dtype=dtype) for o in outcomes], False
    if len(C) != len(outcomes):
        raise ConfigError(f"{len(outcomes)} modalities need as many preferences C, not {len(C)}.")
    found = []
    for m, (c, o) in enumerate(zip(C, outcomes, strict=True)):
        x = _array(c, f"C[{m}]", dtype)
        if spm:
            x = x.movedim(0, -1) if x.ndim == 2 else x
            x = x[0] if x.ndim == 2 and x.shape[0] == 1 else x
        if x.ndim == 0 or x.shape[-1] != o:
            layout = "[outcomes, times]" if spm else "[times, outcomes]"
            raise ConfigError(f"C[{m}] must be [{o} outcomes], or {layout}, not {list(np.shape(c))}.")
        found.append(x)
    if not any(x.ndim > 1 + lead for x in found):
        return found, False
    return [x if x.ndim > 1 + lead else x.unsqueeze(-2) for x in found], True
