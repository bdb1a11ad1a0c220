"""The catalogue of faults: 76 cases in four parts, each brought about and each with the answer that is promised."""

from __future__ import annotations

from mfmarl.selftest.case import Case


def cases() -> list[Case]:
    """Every case, by number. Raises ValueError where a number occurs twice."""
    from mfmarl.selftest.catalogue import checkpoints, commands, environments, runs, storage, sweeps

    parts = (storage, runs, checkpoints, environments, commands, sweeps)
    found = sorted((case for part in parts for case in part.CASES), key=lambda case: case.number)
    numbers = [case.number for case in found]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"a case is there twice: {sorted(n for n in set(numbers) if numbers.count(n) > 1)}")
    return found
