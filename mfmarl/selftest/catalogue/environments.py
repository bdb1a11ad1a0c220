"""Environments that break their contract, and numbers that are none."""

from __future__ import annotations

from mfmarl.selftest.case import Case

CASES: list[Case] = []
