"""Runs that are interrupted, locked, moved, and named in every way."""

from __future__ import annotations

from mfmarl.selftest.case import Case

CASES: list[Case] = []
