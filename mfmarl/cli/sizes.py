"""Numbers as people write them: `10,100,...,1000000`, `10k`, `1e6`, `10min`, `4GB`. Each mistake is one sentence."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from mfmarl.errors import ConfigError

MOST = 100
"""Sizes that one list may name."""
_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_SECONDS = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_BYTES = {
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_AMOUNT = re.compile(r"([+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?)\s*([a-z]*)", re.IGNORECASE)
_DOTS = ("...", "…", "..")


def whole_numbers(text: str, option: str = "--num-agents") -> tuple[int, ...]:
    """`10,100,...,1000000` -> 10, 100, ..., 10^6; plain lists, `10k`, `1M` and `1e6` too. Raises ConfigError.

    What `...` leaves out goes on by the factor between the two numbers before it, where that reaches the number after it;
    else by their difference: `2,4,...,20` is 2, 4, 6, ... because doubling passes 20 by.
    """
    words = [word.strip() for word in text.split(",")]
    if not text.strip() or not all(words):
        raise ConfigError(f"{option} takes numbers between commas, such as 10,100,...,1000000, not {_shown(text)}.")
    gaps = [i for i, word in enumerate(words) if word in _DOTS]
    if len(gaps) > 1:
        raise ConfigError(f"{option} {_shown(text)} has '...' more than once; write the numbers out.")
    numbers = [_whole(word, text, option) for word in words if word not in _DOTS]
    if gaps:
        if gaps[0] < 2 or gaps[0] != len(words) - 2:
            raise ConfigError(
                f"{option}: '...' stands between two numbers or more and the last one, as in 10,100,...,1000000; "
                f"not {_shown(text)}."
            )
        numbers = _continued(numbers, option)
    if len(numbers) > MOST:
        raise ConfigError(f"{option} {_shown(text)} names {len(numbers):,} sizes; at most {MOST} make a sweep.")
    for one, other in pairwise(numbers):
        if one == other:
            raise ConfigError(f"{option} names {one:,} twice.")
        if one > other:
            raise ConfigError(f"{option} must increase, but {other:,} comes after {one:,}.")
    return tuple(numbers)


def _whole(word: str, text: str, option: str) -> int:
    number = _amount(word, _THOUSANDS)
    if number is None:
        raise ConfigError(f"{option}: {_shown(word)} is not a number; write for example 10,100,...,1000000 or 10k,1M.")
    if number.denominator != 1:
        raise ConfigError(f"{option}: {_shown(word)} is not a whole number.")
    if number < 1:
        raise ConfigError(f"{option}: {_shown(word)} is below 1; there is no population without agents.")
    if number > 10**15:
        raise ConfigError(f"{option}: {_shown(word)} is beyond what any machine holds.")
    return int(number)


def _continued(numbers: list[int], option: str) -> list[int]:
    *known, last = numbers
    *before, first, second = known
    if first >= second or known[-1] >= last:
        raise ConfigError(f"{option} must increase: {', '.join(f'{n:,}' for n in known)}, ..., {last:,} does not.")
    ratio, step = Fraction(second, first), second - first
    terms = [Fraction(first)]
    while terms[-1] < last and len(terms) <= 64:
        terms.append(terms[-1] * ratio)
    whole = [int(t) for t in terms if t.denominator == 1]
    if terms[-1] == last and len(whole) == len(terms):
        return [*before, *whole]
    count = (last - first) // step + 1
    if (last - first) % step == 0:
        if count > MOST:
            raise ConfigError(f"{option}: steps of {step:,} up to {last:,} are {count:,} sizes; at most {MOST}.")
        return [*before, *range(first, last + 1, step)]
    factor = f"{float(ratio):g}"
    raise ConfigError(
        f"{option}: {', '.join(f'{n:,}' for n in known)}, ..., {last:,} goes on neither by a factor of {factor} nor by "
        f"steps of {step:,}; write the numbers out, or end at {_near(terms, last)}."
    )


def _near(terms: list[Fraction], last: int) -> str:
    """The whole terms on either side of `last`."""
    below = [int(t) for t in terms[2:] if t.denominator == 1 and t < last]
    above = [int(t) for t in terms if t.denominator == 1 and t > last]
    return " or ".join(f"{n:,}" for n in (*below[-1:], *above[:1]))


def seconds(text: str, option: str = "--budget") -> float:
    """`90`, `90s`, `10min`, `1.5h` -> seconds. Raises ConfigError."""
    number = _amount(text, _SECONDS)
    if number is None:
        raise ConfigError(f"{option} takes a time such as 90s, 10min or 2h, not {_shown(text)}.")
    if number <= 0:
        raise ConfigError(f"{option} must be more than nothing, not {_shown(text)}.")
    return float(number)


def size_in_bytes(text: str, option: str = "--max-memory") -> float:
    """`4GB`, `500MB`, `2GiB` -> bytes. Raises ConfigError."""
    number = _amount(text, _BYTES)
    if number is None:
        raise ConfigError(f"{option} takes an amount with its unit, such as 4GB or 500MB, not {_shown(text)}.")
    if number <= 0:
        raise ConfigError(f"{option} must be more than nothing, not {_shown(text)}.")
    return float(number)


def _amount(text: str, units: dict[str, int]) -> Fraction | None:
    found = _AMOUNT.fullmatch(text.strip()) if len(text) <= 60 else None
    if found is None or found[2].lower() not in units:
        return None
    return Fraction(found[1].replace("_", "")) * units[found[2].lower()]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
