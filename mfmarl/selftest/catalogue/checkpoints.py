"""Checkpoints that are damaged, foreign, hostile or old."""

from __future__ import annotations

from mfmarl.selftest.case import Case

CASES: list[Case] = []
