"""A crowd that shares one reward: learned from what uniform play gets to within some percent of the optimum.

Published (400, 200), N = 100: 423.03 at best, 413.48 by uniform play, 422.745 by the best crowd that draws
independently. Normalised (2, 1): 2.1151 at best, .0180 by uniform play (.0087 as N grows).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mfmarl.envs.gaussian_squeeze import GaussianSqueeze
from mfmarl.evaluation import statistics
from tests.theory.settled import assert_agrees, settled

TABLE: dict[str, Any] = {"values": "table", "learning_rate": 0.02}
FELT = {**TABLE, "field": "moments(1) over everyone"}
PUBLISHED, NORMALISED = GaussianSqueeze.published(horizon=None), GaussianSqueeze(horizon=None)
WARM_TO_COLD = "geometric(0.03, 0.001, 0.6)"


def least(found: Any, value: float) -> None:
    assert found.value - 5 * found.error > value, f"{found}, not above {value:.4f}"


@pytest.mark.parametrize("agent", ["iql", "mfq"])
def test_the_published_squeeze_is_learned_to_one_percent(agent: str) -> None:
    """Each with a mind of its own; uniform play is 2.3 % short, so that this is less than half of what is to be had."""
    options = {**(TABLE if agent == "iql" else FELT), "learning_rate": 0.05, "temperature": "geometric(1, 0.03, 0.6)"}
    found = settled(PUBLISHED, agent, options, steps=800, copies=4, burn_in=0.8, sharing="none")
    least(found["reward"], 0.99 * 423.033)


@pytest.mark.verify
def test_the_normalised_squeeze_is_learned_to_three_percent_from_uniform_play() -> None:
    first = settled(NORMALISED, "mfq", {**FELT, "temperature": "1e6"}, steps=200, copies=16, burn_in=0.0)
    uniform = NORMALISED.expected_reward(np.full(10, 0.1))
    assert uniform == pytest.approx(0.0180, abs=1e-4)
    assert_agrees(first["reward"], uniform, "uniform play")
    found = settled(
        NORMALISED, "mfq", {**FELT, "temperature": WARM_TO_COLD}, steps=1500, copies=16, burn_in=0.9, seed=1
    )
    least(found["reward"], 0.97 * 2.1151)


# ------------------------------------------------------------------------------------------ minutes each


@pytest.mark.verify
@pytest.mark.parametrize("agent", ["mfppo", "ippo"])
@pytest.mark.parametrize("rules", [PUBLISHED, NORMALISED], ids=["published", "normalised"])
def test_policy_optimisation_learns_both(agent: str, rules: GaussianSqueeze) -> None:
    temperature, share = ("0.01", 0.99) if rules is PUBLISHED else ("0.0005", 0.97)
    found = settled(rules, agent, {"temperature": temperature}, steps=3000, copies=4, burn_in=0.9)
    least(found["reward"], share * rules.optimum()[1])


@pytest.mark.verify
def test_ten_runs_with_and_without_a_field() -> None:
    """Both leave uniform play far behind in the typical run; which is better is reported, not asserted (see
    scripts/reproduce/squeeze.py): some runs of a shared mind freeze on the way down."""
    scores = {
        name: [
            settled(
                NORMALISED, name, {**options, "temperature": WARM_TO_COLD}, steps=1500, copies=16, burn_in=0.9, seed=k
            )["reward"].value
            for k in range(10)
        ]
        for name, options in (("mfq", FELT), ("iql", TABLE))
    }
    for name, runs in scores.items():
        print(name, statistics.estimate([runs]), sorted(runs))
        assert statistics.interquartile_mean(runs) > 0.9 * 2.1151, name
    print("mfq - iql", statistics.difference([scores["mfq"]], [scores["iql"]]))
