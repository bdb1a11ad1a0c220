"""Learned spins fluctuate, and answer an incentive, as spins that follow the rules do: most at their transition."""

from __future__ import annotations

import argparse
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest


def reproduction() -> Any:
    path = Path(__file__).parents[2] / "scripts" / "reproduce" / "susceptibility.py"
    spec = importlib.util.spec_from_file_location("reproduce_susceptibility", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.verify
def test_the_susceptibility_of_a_trained_population_peaks_at_the_ising_transition() -> None:
    """Infinite lattice: 1.1346; 20 x 20 has its peak a little above."""
    script = reproduction()
    given = argparse.Namespace(side=20, steps=1500, measured=2000, copies=16, seed=1)
    rows = {t: (script.learned(t, given), script.by_the_rules(t, given)) for t in (0.95, 1.2, 1.6)}
    for temperature, (learned, rules) in rows.items():
        chi = learned["susceptibility"]
        # The estimators are alike; learning's own error in T or Q shifts chi near the peak, so half of it is allowed there.
        slack = 0.5 * rules["value"] if temperature == 1.2 else 0.1 * rules["value"]
        assert abs(chi["value"] - rules["value"]) <= 5 * math.hypot(chi["error"], rules["error"]) + slack
        if temperature != 1.2:
            ratio = learned["violation"]
            assert abs(ratio["value"] - 1) <= 5 * ratio["error"]
    middle = rows[1.2][0]["susceptibility"]["value"]
    assert middle > 4 * max(rows[t][0]["susceptibility"]["value"] for t in (0.95, 1.6))
