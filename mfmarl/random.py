r"""Keyed noise: random numbers as a function of (seed, purpose, step, agent), never of call order.

A `Key` is 64 bits; `key.fold(...)` mixes in whole numbers or words. A draw mixes the key with the
agent's id and the index of the draw through the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators", OOPSLA; constants of Stafford's variant 13), twice.
So an agent draws the same numbers however many others there are, on every device, in every split.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_C1, _C2, _GOLDEN = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_S1, _S2, _SG = _signed(_C1), _signed(_C2), _signed(_GOLDEN)
_CHUNK = 1 << 14  # elements that stay in the cache through the dozen passes of the mixer: 10x faster


def _mix_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * _C1) & _MASK
    z = ((z ^ (z >> 27)) * _C2) & _MASK
    return z ^ (z >> 31)


def _mix(z: Tensor) -> Tensor:
    # int64 shifts are arithmetic in torch: the mask makes them logical. Multiplication wraps.
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _S1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _S2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


class Key(NamedTuple):
    """A name for a stream of noise. Immutable: folding gives another key."""

    value: int

    @classmethod
    def of(cls, seed: int) -> Key:
        return cls(_mix_int((seed + _GOLDEN) & _MASK))

    def fold(self, *parts: int | str) -> Key:
        """The key of a sub-stream: `key.fold("act", step)`. Words and numbers never collide by accident."""
        value = self.value
        for part in parts:
            if isinstance(part, str):
                # FNV-1a: Python's own hash of a word differs from process to process.
                number = 0xCBF29CE484222325
                for byte in part.encode():
                    number = ((number ^ byte) * 0x100000001B3) & _MASK
            else:
                number = (part * _GOLDEN + 1) & _MASK
            value = _mix_int((value ^ _mix_int(number)) + _GOLDEN & _MASK)
        return Key(value)


def bits(key: Key, ids: Tensor) -> Tensor:
    """64 random bits per id, as int64 of the shape of `ids`."""
    offset = _signed(key.value)
    if ids.numel() <= _CHUNK or ids.device.type != "cpu":
        return _mix(_mix(ids * _SG + offset) + offset)
    flat = ids.reshape(-1)
    out = torch.empty_like(flat)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        out[start : start + _CHUNK] = _mix(_mix(part * _SG + offset) + offset)
    return out.view(ids.shape)


def _unit(raw: Tensor) -> Tensor:
    # 23 bits and a half: exact in float32, and never 0 or 1.
    return (((raw >> 41) & 0x7FFFFF).to(torch.float32) + 0.5) * 2.0**-23


def uniform(key: Key, ids: Tensor, draws: int | None = None) -> Tensor:
    """Uniform on the open interval (0, 1), float32: shape `ids.shape`, or `ids.shape + (draws,)`."""
    if draws is None:
        return _unit(bits(key, ids))
    index = torch.arange(draws, device=ids.device) * _SG
    offset = _signed(key.value)
    return _unit(_mix(_mix(ids * _SG + offset).unsqueeze(-1) + index + offset))


def normal(key: Key, ids: Tensor, draws: int | None = None) -> Tensor:
    """Standard normal, float32, by inversion (one uniform per draw)."""
    return torch.special.ndtri(uniform(key, ids, draws))


def exponential(key: Key, ids: Tensor, draws: int | None = None) -> Tensor:
    """Exponential of mean 1, float32."""
    return -uniform(key, ids, draws).log()


def integers(key: Key, ids: Tensor, high: int, draws: int | None = None) -> Tensor:
    """Uniform whole numbers in [0, high), int64; the bias is below high / 2^31."""
    if draws is None:
        raw = bits(key, ids)
    else:
        index = torch.arange(draws, device=ids.device) * _SG
        offset = _signed(key.value)
        raw = _mix(_mix(ids * _SG + offset).unsqueeze(-1) + index + offset)
    return (((raw >> 33) & 0x7FFFFFFF) * high) >> 31


def generator(key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for what must shuffle (minibatches, initial weights): one per key."""
    return torch.Generator(device=device).manual_seed(key.value >> 1)


def seed_for(key: Key) -> int:
    """A seed in [0, 2^31) for somebody else's generator."""
    return key.value >> 33
