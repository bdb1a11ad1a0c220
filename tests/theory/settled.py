"""Where learners settle, in one line, with errors; and what it means to agree with theory."""

from __future__ import annotations

from typing import Any

from mfmarl.evaluation.averages import Average, averages_while_learning
from mfmarl.population.environment import PopulationEnv
from tests.learning.mini import train


def settled(
    rules: PopulationEnv,
    agent: str,
    options: dict[str, Any],
    *,
    steps: int,
    copies: int,
    burn_in: float = 0.5,
    seed: int = 0,
    sharing: str = "group",
    more: Any = None,
) -> dict[str, Average]:
    """Learn, and average over what follows the first `burn_in` of the steps, learning on."""
    training = train(rules, agent, options, evaluate=False, steps=steps, copies=copies, seed=seed, sharing=sharing)
    return averages_while_learning(training, round(burn_in * steps), more)


def assert_agrees(found: Average, expected: float, name: str = "", slack: float = 0.0) -> None:
    """Within five standard errors, and `slack` where a bias of that size is known."""
    assert abs(found.value - expected) < 5 * found.error + slack, f"{name}: {found} instead of {expected:.4f}"
