"""Many runs at once: workers that die, sweeps that are shared, results that are partial."""

from __future__ import annotations

from mfmarl.selftest.case import Case

CASES: list[Case] = []
