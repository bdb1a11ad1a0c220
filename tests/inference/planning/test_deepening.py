"""Iterative deepening: whole trees are sophisticated inference; what is dropped, and when it stops."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import sophisticated
from mfmarl.inference.planning.deepening import Thresholds, plan
from tests.inference.planning.brute_force import beliefs, random_model

WHOLE = Thresholds(0.0, 0.0, -1.0)


def test_where_nothing_is_dropped_it_is_the_expectation() -> None:
    for model in (random_model(1), random_model(2, lead=(2, 1), zeros=True), random_model(3, (2, 2), (2,))):
        q = beliefs(4, (2, 3), model.sizes)
        found = plan(model, q, 3, 1.4, thresholds=WHOLE, branching="outcomes").value
        true = sophisticated.plan(model, q, 3, 1.4, backup="expectation").value
        assert torch.allclose(found, true, rtol=0, atol=1e-12)


def test_who_has_decided_plans_no_further() -> None:
    """Of each agent by itself: the depth that it has reached is where its first action's entropy fell to the threshold."""
    model = random_model(5, sharp=3.0)
    q = beliefs(6, (8,), model.sizes)
    gamma, entropy = 10.0, 0.5
    whole = [plan(model, q, d, gamma, thresholds=WHOLE).value for d in (1, 2, 3)]
    found = plan(model, q, 3, gamma, thresholds=Thresholds(0.0, 0.0, entropy)).value
    stopped = [torch.special.entr(torch.softmax(gamma * v, -1)).sum(-1) <= entropy for v in whole[:2]]
    assert 0 < int(stopped[0].sum()) < 8
    expected = torch.where(
        stopped[0].unsqueeze(-1), whole[0], torch.where(stopped[1].unsqueeze(-1), whole[1], whole[2])
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_an_unlikely_action_costs_the_penalty() -> None:
    model = random_model(7, controls=3, sharp=3.0)
    q = beliefs(8, (6,), model.sizes)
    near = plan(model, q, 1, 10.0, thresholds=WHOLE).value
    unlikely = torch.softmax(10.0 * near, -1) <= 0.2
    assert bool(unlikely.any()) and not bool(unlikely.all())
    found = plan(model, q, 1, 10.0, thresholds=Thresholds(0.2, 0.0, -1.0, 30.0)).value
    assert bool((found[unlikely] == -30).all())
    assert torch.equal(found[~unlikely], near[~unlikely])


def test_an_agent_does_not_know_of_the_others() -> None:
    models = random_model(9, lead=(3, 1), controls=3, sharp=3.0)
    q = beliefs(10, (3, 4), models.sizes)
    gamma = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64)
    drop = Thresholds(1 / 8, 1 / 8, 0.1, 50.0)
    together = plan(models, q, 4, gamma, thresholds=drop).value
    in_parts = plan(models, q, 4, gamma, thresholds=drop, budget=3_000_000).value
    assert torch.allclose(together, in_parts, rtol=0, atol=1e-12)
    for i in range(3):
        one = models.map(lambda x, i=i: x[i, 0])  # type: ignore[misc]
        for j in range(4):
            alone = plan(one, (q[0][i, j],), 4, float(gamma[i]), thresholds=drop).value
            assert torch.allclose(together[i, j], alone, rtol=0, atol=1e-12)


def test_bad_questions_are_refused() -> None:
    model = random_model(11)
    q = beliefs(12, (2,), model.sizes)
    with pytest.raises(ConfigError, match="habits"):
        plan(random_model(13, habits=True), q, 2)
    with pytest.raises(ConfigError, match="finite gamma"):
        plan(model, q, 2, math.inf)
    with pytest.raises(ConfigError, match="MiB at depth"):
        plan(model, q, 12, 1.0, Objective(), thresholds=WHOLE, budget=100_000)
    with pytest.raises(ConfigError, match="at least 1 action"):
        plan(model, q, 0)
    with pytest.raises(ConfigError, match="Thresholds.action"):
        Thresholds(action=2.0)
