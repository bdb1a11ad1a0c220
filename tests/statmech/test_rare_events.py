"""Rare events against the error function, binomial sums and the chi-squared law."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech import importance, rare_events
from tests.statistical import beyond, statistical

KEY = Key.of(43)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("weight-estimate-off", "weight-error-tiny"))
def test_four_sigma_is_found_by_tilting() -> None:
    exact = 0.5 * math.erfc(4 / math.sqrt(2))
    assert math.isclose(exact, 3.167e-5, rel_tol=1e-4)
    found = rare_events.gaussian_tail(4.0, 100_000, KEY)
    assert abs(float(found.value) - exact) < 5 * float(found.standard_error)
    assert float(found.standard_error) / exact < 0.007  # counting would need 700 million samples for that
    # The exact relative variance of one sample: e^(theta^2) Phi(-2 theta)/p^2 - 1 at theta = 4.
    per_sample = math.exp(16) * 0.5 * math.erfc(8 / math.sqrt(2)) / exact**2 - 1
    assert abs(float(found.standard_error) / exact / math.sqrt(per_sample / 100_000) - 1) < 0.03


def test_the_tilt_of_a_gaussian_is_the_threshold_and_of_a_coin_its_log_odds() -> None:
    assert math.isclose(rare_events.tilt(lambda t: t * t / 2, 4.0), 4.0, abs_tol=1e-10)
    fair = rare_events.tilt(lambda t: torch.log(0.5 + 0.5 * torch.exp(t)), 0.9)
    assert math.isclose(fair, math.log(9), abs_tol=1e-10)
    with pytest.raises(ConfigError, match="out of reach"):
        rare_events.tilt(lambda t: torch.log(0.5 + 0.5 * torch.exp(t)), 1.5)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("weight-estimate-off", "weight-error-tiny"))
def test_a_tilted_coin_knows_the_odds_of_90_heads_in_100() -> None:
    exact = sum(math.comb(100, k) for k in range(90, 101)) / 2**100
    theta = rare_events.tilt(lambda t: torch.log(0.5 + 0.5 * torch.exp(t)), 0.9)
    heads = (random.uniform(KEY.fold("coin"), torch.arange(20_000), 100) < 0.9).sum(-1).double()
    log_weights = 100 * math.log(0.5 + 0.5 * math.exp(theta)) - theta * heads
    found = importance.estimate((heads >= 90).double(), log_weights, self_normalised=False, warn=False)
    assert abs(float(found.value) - exact) < 5 * float(found.standard_error)
    assert float(found.standard_error) < 0.05 * exact


@statistical(alpha=beyond(5, 20, samples=32), bugs=("weight-estimate-off", "weight-error-tiny"))
def test_the_cross_entropy_method_climbs_to_a_sum_of_five() -> None:
    level = 4.5 * math.sqrt(5)  # sum of five standard normals: 4.5 deviations
    exact = 0.5 * math.erfc(4.5 / math.sqrt(2))
    found = rare_events.cross_entropy_tail(lambda x: x.sum(-1), 5, level, KEY, samples=20_000)
    assert abs(float(found.value) - exact) < 5 * float(found.standard_error)
    assert float(found.standard_error) < 0.05 * exact
    proposal = rare_events.cross_entropy_proposal(lambda x: x.sum(-1), 5, level, KEY, samples=20_000)
    assert len(proposal.levels) > 2 and proposal.levels[-1] == level
    assert proposal.levels == sorted(proposal.levels)
    # The optimal mean is that of x given the event: E[x_i | sum >= level] = density/(probability sqrt 5).
    wanted = math.exp(-(4.5**2) / 2) / math.sqrt(2 * math.pi) / exact / math.sqrt(5)
    assert torch.allclose(proposal.mean, torch.full((5,), wanted).double(), atol=0.1)


def test_a_level_out_of_reach_is_refused() -> None:
    with pytest.raises(NumericFault, match="reached level"):
        rare_events.cross_entropy_proposal(lambda x: x.tanh().sum(-1), 2, 2.5, KEY, samples=200, rounds=5)
    with pytest.raises(ConfigError, match="elite"):
        rare_events.cross_entropy_proposal(lambda x: x.sum(-1), 2, 2.5, KEY, samples=10, elite=0.1)
