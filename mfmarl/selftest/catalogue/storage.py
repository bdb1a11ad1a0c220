"""A disk that fails while a run is saved: kills at any byte and call, full and failing disks."""

from __future__ import annotations

from mfmarl.selftest.case import Case

CASES: list[Case] = []
