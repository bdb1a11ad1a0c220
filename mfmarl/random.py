r"""Keyed noise: random numbers as a function of (seed, purpose, step, agent), never of call order.

A `Key` is 64 bits; `key.fold(...)` mixes in whole numbers or words. A draw mixes the key with the
agent's id and the index of the draw through the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators", OOPSLA; constants of Stafford's variant 13), twice:

    bits(k, i, d) = mix(mix(i G + k) + k' + d G),    k' = mix(k + C)

So an agent draws the same numbers however many others there are, on every device, in every split
(bits and uniforms exactly; logarithms and normals to the last place of the device's own functions).
The second round has a key of its own: with k itself there, the keys k and k + G would share their
numbers, shifted by one agent and one draw.

One key serves one purpose: `uniform(k, ids)`, `bits(k, ids)` and the first draw of `uniform(k, ids, 3)`
are the same noise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from mfmarl.errors import ConfigError

_MASK = (1 << 64) - 1
_C1, _C2, _GOLDEN = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15
_ROUND_TWO = 0xD1B54A32D192ED03  # separates the second round's key from the first's


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_S1, _S2, _SG = _signed(_C1), _signed(_C2), _signed(_GOLDEN)
_CHUNK = 1 << 15  # elements that stay in the cache through the dozen passes of the mixer


def _mix_int(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * _C1) & _MASK
    z = ((z ^ (z >> 27)) * _C2) & _MASK
    return z ^ (z >> 31)


def _mix_(z: Tensor) -> Tensor:
    """The mixer, in place."""
    # int64 shifts are arithmetic in torch: the mask makes them logical. Multiplication wraps.
    t = z >> 30
    z.bitwise_xor_(t.bitwise_and_(0x3FFFFFFFF)).mul_(_S1)
    torch.bitwise_right_shift(z, 27, out=t)
    z.bitwise_xor_(t.bitwise_and_(0x1FFFFFFFFF)).mul_(_S2)
    torch.bitwise_right_shift(z, 31, out=t)
    return z.bitwise_xor_(t.bitwise_and_(0x1FFFFFFFF))


@lru_cache(1024)
def _word(text: str) -> int:
    """64 bits of a word. FNV-1a: Python's own hash of a word differs from process to process."""
    number = 0xCBF29CE484222325
    for byte in text.encode():
        number = ((number ^ byte) * 0x100000001B3) & _MASK
    return _mix_int(number)


def seed_of(value: object) -> int:
    """A seed as users give it, a whole number (numpy's too) from 0 to 2^63 - 1. Raises ConfigError for everything else."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"A seed must be a whole number from 0 to 2^63 - 1, not {str(value)[:40]!r}.", "wrong-type")
    number = operator.index(value)
    if not 0 <= number < 1 << 63:
        raise ConfigError(f"A seed must be a whole number from 0 to 2^63 - 1, not {str(number)[:40]}.", "bounds")
    return int(number)


class Key(NamedTuple):
    """A name for a stream of noise. Immutable: folding gives another key."""

    value: int

    @classmethod
    def of(cls, seed: SupportsIndex) -> Key:
        return cls(_mix_int(_mix_int(operator.index(seed)) ^ _ROUND_TWO))

    def fold(self, *parts: SupportsIndex | str) -> Key:
        """The key of a sub-stream: `key.fold("act", step)`. Words and numbers never collide by accident."""
        value = self.value
        for part in parts:
            if isinstance(part, str):
                number = _word(part)
            else:
                number = operator.index(part)
            # The key is mixed before the part comes in, so that key and part cannot change places.
            value = _mix_int(_mix_int(value + _GOLDEN) + (number + 1) * _GOLDEN)
        return Key(value)


def _draw(
    key: Key, ids: Tensor, draws: int | None, dtype: torch.dtype, finish: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """`finish` of 64 random bits per id (and draw), a piece of the crowd at a time."""
    if ids.dtype != torch.int64:
        raise ConfigError(f"Ids must be int64, not {ids.dtype}.")
    first_key = torch.tensor(_signed(key.value), device=ids.device)
    second_key = _signed(_mix_int(key.value ^ _ROUND_TWO))
    shift = None if draws is None else torch.arange(draws, device=ids.device) * _SG + second_key

    def piece(part: Tensor) -> Tensor:
        z = _mix_(torch.add(first_key, part, alpha=_SG))
        z = _mix_(z.add_(second_key) if shift is None else z.unsqueeze(-1) + shift)
        return z if finish is None else finish(z)

    size = ids.numel() * (draws or 1)
    if size <= _CHUNK or ids.device.type != "cpu":
        return piece(ids)
    shape = ids.shape if draws is None else (*ids.shape, draws)
    flat = ids.reshape(-1)
    out = torch.empty((flat.numel(), *shape[ids.ndim :]), dtype=dtype)
    length = max(1, _CHUNK // (draws or 1))
    for start in range(0, flat.numel(), length):
        out[start : start + length] = piece(flat[start : start + length])
    return out.view(shape)


def _unit(raw: Tensor) -> Tensor:
    # 23 bits and a half: exact in float32, and never 0 or 1. The arithmetic shift gives -2^22 .. 2^22 - 1.
    return (raw >> 41).to(torch.float32).add_(4194304.5).mul_(2.0**-23)


def bits(key: Key, ids: Tensor, draws: int | None = None) -> Tensor:
    """64 random bits, as int64: shape `ids.shape`, or `ids.shape + (draws,)`."""
    return _draw(key, ids, draws, torch.int64, None)


def uniform(key: Key, ids: Tensor, draws: int | None = None) -> Tensor:
    """Uniform on the open interval (0, 1), float32: shape `ids.shape`, or `ids.shape + (draws,)`."""
    return _draw(key, ids, draws, torch.float32, _unit)


def normal(key: Key, ids: Tensor, draws: int | None = None) -> Tensor:
    """Standard normal, float32, by inversion (one uniform per draw, so never beyond 5.3)."""
    return _draw(key, ids, draws, torch.float32, lambda raw: torch.special.ndtri(_unit(raw)))


def exponential(key: Key, ids: Tensor, draws: int | None = None) -> Tensor:
    """Exponential of mean 1, float32."""
    return _draw(key, ids, draws, torch.float32, lambda raw: _unit(raw).log_().neg_())


def integers(key: Key, ids: Tensor, high: int, draws: int | None = None) -> Tensor:
    """Uniform whole numbers in [0, high), int64, for 0 < high <= 2^31; the bias is below high / 2^63."""
    high = operator.index(high)
    if not 0 < high <= 1 << 31:
        raise ConfigError(f"integers(high={high}): expected 1 to 2^31.")

    def scaled(raw: Tensor) -> Tensor:
        # floor(r high / 2^63) of r = 63 bits, in two halves that do not overflow.
        low = ((raw & 0xFFFFFFFF).mul_(high)).bitwise_right_shift_(32)
        return ((raw >> 32).bitwise_and_(0x7FFFFFFF)).mul_(high).add_(low).bitwise_right_shift_(31)

    return _draw(key, ids, draws, torch.int64, scaled)


def generator(key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for what must shuffle (minibatches, initial weights): one per key."""
    return torch.Generator(device=device).manual_seed(key.value >> 1)


def seed_for(key: Key) -> int:
    """A seed in [0, 2^31) for somebody else's generator."""
    return key.value >> 33
