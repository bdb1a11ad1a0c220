"""What the script on learned models measures is so: pooling, joint posteriors and forgetting help, by five errors."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "reproduce" / "learning_models.py"
    spec = importlib.util.spec_from_file_location("reproduce_learning_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def less(one: torch.Tensor, other: torch.Tensor) -> bool:
    """By five standard errors of the mean difference over seeds, which both share."""
    difference = other - one
    return float(difference.mean()) > 5 * float(difference.std()) / math.sqrt(len(difference))


@pytest.mark.verify
def test_a_pooled_grid_is_learned_sooner_and_sharper_by_joint_posteriors(script: ModuleType) -> None:
    def learned(own: bool, joint: bool) -> Any:
        return script.learn_grid(10, own, joint, 120, 10, 0)

    pooled, apart, blurred = learned(False, True), learned(True, True), learned(False, False)
    for name in ("A", "B", "surprise"):
        middle = len(pooled["marks"]) // 2
        assert less(pooled[name][-1], pooled[name][middle]) and less(pooled[name][-1], apart[name][-1]), name
    assert less(pooled["B"][-1], blurred["B"][-1]) and less(pooled["surprise"][-1], blurred["surprise"][-1])


@pytest.mark.verify
def test_who_forgets_follows_a_reversal_and_pays_for_it_when_there_is_none(script: ModuleType) -> None:
    """Without forgetting the delay grows with the past (to within its noise); with it, it does not."""

    def found(omega: float, steps: int) -> Any:
        return script.learn_reversal(20, True, omega, steps, 10, 0)

    never, soon = found(0.0, 120), found(0.1, 120)
    assert less(soon["delay"], never["delay"]) and less(never["after"], soon["after"])
    assert less(soon["before"], never["before"])
    assert less(never["delay"], found(0.0, 240)["delay"])
    assert not less(soon["delay"], found(0.1, 240)["delay"])
