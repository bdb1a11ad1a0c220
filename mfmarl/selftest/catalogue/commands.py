"""Options, names, configurations and plugins that cannot be used, and poor surroundings."""

from __future__ import annotations

from mfmarl.selftest.case import Case

CASES: list[Case] = []
