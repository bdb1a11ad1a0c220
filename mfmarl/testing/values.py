"""Values that an environment returns, held against its spaces; and told apart to the last bit.

gymnasium's own `contains` casts lists to arrays, takes infinities in unbounded boxes, and answers yes or no. Here every
breach has a kind, and a sentence that says where in a nested space it lies.
"""

from __future__ import annotations

import copy
import hashlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

MASK = "action_mask"
_LONG = 2048  # bytes from which an array is remembered by its digest


class Breach(NamedTuple):
    """How a value breaks its space. `kind` ends the code of the finding: `shape`, `outside-space`, ..."""

    kind: str
    said: str
    grave: bool = True
    """False: doubtful, a warning."""


def shown(value: Any, most: int = 60) -> str:
    """A value in a sentence: short, on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception as error:  # noqa: BLE001 - a foreign __repr__
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def breach(space: Any, value: Any, path: str = "") -> Breach | None:
    """The first way in which the value is not one of the space, or None."""
    at = f" in {path}" if path else ""
    if value is None:
        return Breach("none", f"is None{at}")
    if isinstance(space, spaces.Box):
        return _box(space, value, at)
    if isinstance(space, spaces.Discrete):
        return _discrete(space, value, at)
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return _whole(space, value, at)
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping):
            return Breach("type", f"is a {type(value).__name__}{at}, expected a dictionary")
        if set(value) != set(space.spaces):
            odd = sorted(map(str, set(value) ^ set(space.spaces)))
            return Breach("keys", f"has the keys {shown(list(value))}{at}; {', '.join(odd[:3])} is missing or too many")
        parts = [(inner, value[key], f"{path}[{key!r}]") for key, inner in space.spaces.items()]
        return next((b for inner, v, p in parts if not _is_mask(space, p) and (b := breach(inner, v, p))), None)
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple):
            return Breach("type", f"is a {type(value).__name__}{at}, expected a tuple")
        if len(value) != len(space.spaces):
            return Breach("shape", f"has {len(value)} parts{at}, expected {len(space.spaces)}")
        each = zip(space.spaces, value, strict=True)
        return next((b for i, (s, v) in enumerate(each) if (b := breach(s, v, f"{path}[{i}]"))), None)
    if isinstance(space, spaces.Text) and not isinstance(value, str):
        return Breach("type", f"is a {type(value).__name__}{at}, expected text")
    try:
        inside = bool(space.contains(value))
    except Exception as error:  # noqa: BLE001 - a space of the user's own
        return Breach("outside-space", f"makes its {type(space).__name__} space raise {type(error).__name__}{at}")
    return None if inside else Breach("outside-space", f"is {shown(value)}{at}, not one of its {shown(space)}")


def _is_mask(space: spaces.Dict, path: str) -> bool:
    return path == f"[{MASK!r}]" and "observation" in space.spaces


def _array(space: Any, value: Any, at: str) -> Breach | None:
    if not isinstance(value, np.ndarray | np.generic):
        return Breach("type", f"is a {type(value).__name__}{at}, expected a numpy array of {space.dtype}")
    if value.dtype == object or value.dtype.kind in "USVOmM":
        return Breach("dtype", f"has dtype {value.dtype}{at}, expected {space.dtype}")
    if value.shape != space.shape:
        return Breach("shape", f"has shape {value.shape}{at}, expected {space.shape}")
    return None


def _box(space: spaces.Box, value: Any, at: str) -> Breach | None:
    wrong = _array(space, value, at)
    if wrong is not None:
        return wrong
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        odd = np.asarray(value)[~np.isfinite(value)].reshape(-1)[0]
        return Breach("not-finite", f"has the value {odd}{at}")
    if value.dtype.kind == "c":
        return Breach("dtype", f"has dtype {value.dtype}{at}, expected {space.dtype}")
    low, high = space.low, space.high
    inside = (value >= low) & (value <= high)
    if not np.all(inside):
        place = tuple(int(i) for i in np.argwhere(~np.asarray(inside))[0])
        least, most = (np.broadcast_to(bound, space.shape)[place] for bound in (low, high))
        spot = f" at index {place if len(place) != 1 else place[0]}" if place else ""
        return Breach("outside-space", f"is {np.asarray(value)[place]:g}{spot}{at}, outside [{least:g}, {most:g}]")
    if value.dtype != space.dtype:
        safe = np.can_cast(value.dtype, space.dtype)
        return Breach("dtype", f"has dtype {value.dtype}{at}, but its space says {space.dtype}", grave=not safe)
    return None


def _discrete(space: spaces.Discrete, value: Any, at: str) -> Breach | None:
    number = value.reshape(()).item() if isinstance(value, np.ndarray) and value.shape == () else value
    if isinstance(number, bool | np.bool_) or not isinstance(number, int | np.integer):
        return Breach("type", f"is {shown(value)} ({type(value).__name__}){at}, expected a whole number")
    first, n = int(space.start), int(space.n)
    if not first <= int(number) < first + n:
        return Breach("outside-space", f"is {number}{at}, outside {first}..{first + n - 1}")
    return None


def _whole(space: Any, value: Any, at: str) -> Breach | None:
    wrong = _array(space, value, at)
    if wrong is not None:
        return wrong
    if value.dtype.kind not in "iub":
        return Breach("dtype", f"has dtype {value.dtype}{at}, expected {space.dtype}")
    if not space.contains(np.asarray(value).astype(space.dtype)):
        return Breach("outside-space", f"is {shown(value)}{at}, not one of its {shown(space)}")
    if value.dtype != space.dtype:
        return Breach("dtype", f"has dtype {value.dtype}{at}, but its space says {space.dtype}", grave=False)
    return None


def mask_breach(space: Any, mask: Any) -> Breach | None:
    """The first way in which a mask of actions cannot be used, or None."""
    if isinstance(space, spaces.MultiDiscrete):
        if not isinstance(mask, tuple):
            return Breach("type", f"is a {type(mask).__name__}, expected a tuple of arrays, one for each part")
        parts = [spaces.Discrete(int(n)) for n in space.nvec.reshape(-1)]
        if len(mask) != len(parts):
            return Breach("length", f"has {len(mask)} parts, but the action has {len(parts)}")
        return next((b for part, own in zip(parts, mask, strict=True) if (b := mask_breach(part, own))), None)
    if not isinstance(space, spaces.Discrete):
        return Breach("unused", f"is for a {type(space).__name__} of actions, which cannot be masked", grave=False)
    if not isinstance(mask, np.ndarray):
        return Breach("type", f"is {shown(mask)} ({type(mask).__name__}), expected a numpy array of int8")
    if mask.dtype.kind not in "iub":
        return Breach("dtype", f"has dtype {mask.dtype}, expected int8")
    if mask.shape != (int(space.n),):
        return Breach("length", f"has shape {mask.shape}, but there are {space.n} actions")
    if not np.isin(mask, (0, 1)).all():
        return Breach("value", f"holds {mask[~np.isin(mask, (0, 1))][0]}, expected 0 or 1")
    if not mask.any():
        return Breach("empty", "leaves no action legal")
    if mask.dtype != np.int8:
        return Breach("dtype", f"has dtype {mask.dtype}; gymnasium's sample() takes int8 alone", grave=False)
    return None


def mask_of(observation: Any, info: Any) -> Any:
    """The mask shown to an agent, in its info or its observation; MASK itself where there is none."""
    for shown_to in (info, observation):
        if isinstance(shown_to, Mapping) and MASK in shown_to:
            return shown_to[MASK]
    return MASK


def draw(space: Any, rng: np.random.Generator, mask: Any = MASK) -> Any:
    """An action, a function of the generator alone; legal by its mask, where that is one."""
    if isinstance(space, spaces.Discrete):
        found = None if mask is MASK else mask_breach(space, mask)
        heeded = mask is not MASK and (found is None or not found.grave)
        legal = np.flatnonzero(mask) if heeded else np.arange(space.n)
        return np.int64(int(space.start) + int(rng.choice(legal)))
    if isinstance(space, spaces.Box):
        low = np.where(np.isfinite(space.low), space.low, np.minimum(space.high, 1) - 2).astype(np.float64)
        high = np.where(np.isfinite(space.high), space.high, np.maximum(space.low, -1) + 2).astype(np.float64)
        whole = space.dtype is not None and np.dtype(space.dtype).kind in "iu"
        drawn = rng.integers(low.astype(np.int64), high.astype(np.int64) + 1) if whole else rng.uniform(low, high)
        return np.clip(np.asarray(drawn).astype(space.dtype), space.low, space.high)
    if isinstance(space, spaces.MultiDiscrete) and mask is MASK:
        return (rng.integers(0, space.nvec) + space.start).astype(space.dtype)
    if isinstance(space, spaces.Dict):
        return {key: draw(inner, rng) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(draw(inner, rng) for inner in space.spaces)
    own = copy.deepcopy(space)
    own.seed(int(rng.integers(2**31)))
    return own.sample() if mask is MASK else own.sample(mask)


# ------------------------------------------------------------------------------------------ to the last bit


def frozen(value: Any, depth: int = 0) -> Any:
    """A value that stays as it is and is equal to another one's only if all bits are; what cannot be known is its type."""
    kind = type(value)
    if kind is float:
        return ("float", struct.pack("<d", value))
    if kind is dict and not value:
        return {}
    if value is None or isinstance(value, bool | str | bytes):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return ("objects", value.shape, tuple(frozen(v, depth + 1) for v in value.reshape(-1)[:1000]))
        raw = value.tobytes()
        if len(raw) > _LONG:
            raw = hashlib.blake2b(raw, digest_size=16).digest()
        return (value.dtype.str, value.shape, raw)
    if isinstance(value, np.generic):
        return (value.dtype.str, value.tobytes())
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    if isinstance(value, int):
        return ("int", value)
    if depth > 20:
        return ("deep",)
    if isinstance(value, Mapping):
        return {key: frozen(value[key], depth + 1) for key in list(value)}
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(frozen(v, depth + 1) for v in value))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(map(repr, value)))
    numpy = getattr(value, "numpy", None)
    if callable(numpy) and type(value).__module__.startswith("torch"):
        return ("tensor", frozen(value.detach().cpu().numpy()))
    return ("a", type(value).__name__)


def spoil(value: Any) -> None:
    """Write over every array in a value, as a learner that works in place may."""
    if isinstance(value, np.ndarray):
        if value.flags.writeable and value.dtype.kind in "fiub" and value.size:
            value[...] = np.where(value == 0, np.ones((), value.dtype), np.zeros((), value.dtype))
    elif isinstance(value, Mapping):
        for inner in list(value.values()):
            spoil(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            spoil(inner)


def arrays_in(value: Any) -> list[np.ndarray]:
    """Every array in a value."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, Mapping):
        return [a for inner in value.values() for a in arrays_in(inner)]
    if isinstance(value, list | tuple):
        return [a for inner in value for a in arrays_in(inner)]
    return []
