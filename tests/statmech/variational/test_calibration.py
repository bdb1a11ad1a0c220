"""Scores, calibration and doubt against numbers done by hand and scikit-learn's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.variational import calibration
from tests.statistical import beyond, statistical


def _logits(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape[:-1])).reshape(shape[:-1])
    return 2 * random.normal(Key.of(seed), ids, shape[-1]).double()


def test_two_sure_members_that_disagree_are_epistemic_doubt():
    """The anchor .368064 nats: p = (.9, .1) and (.1, .9)."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    found = calibration.doubt(p.log().unsqueeze(1))
    assert float(found.total) == pytest.approx(math.log(2))
    assert float(found.aleatoric) == pytest.approx(0.325083, abs=1e-6)
    assert float(found.epistemic) == pytest.approx(0.368064, abs=1e-6)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_doubt_is_the_sum_of_its_parts_and_the_mutual_information_of_label_and_member(seed: int):
    logits = _logits(seed, 5, 4, 3)
    found = calibration.doubt(logits)
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
    p = torch.softmax(logits, -1)
    joint = p / 5
    independent = p.mean(0, keepdim=True) / 5
    information = (joint * (joint / independent).log()).sum((0, -1))
    torch.testing.assert_close(found.epistemic, information)
    same = calibration.doubt(logits[:1].expand(5, -1, -1))
    assert float(same.epistemic.abs().max()) < 1e-12


def test_an_ensembles_prediction_is_the_average_of_probabilities():
    logits = _logits(1, 6, 10, 4)
    torch.testing.assert_close(calibration.predictive(logits).exp(), torch.softmax(logits, -1).mean(0))


def test_scores_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    log_p = torch.log_softmax(_logits(2, 200, 3), -1)
    labels = random.integers(Key.of(3), torch.arange(200), 3)
    p = log_p.exp().numpy()
    assert float(calibration.log_loss(log_p, labels)) == pytest.approx(metrics.log_loss(labels.numpy(), p))
    assert float(calibration.accuracy(log_p, labels)) == metrics.accuracy_score(labels.numpy(), p.argmax(1))
    binary = torch.log_softmax(log_p[:, :2], -1)
    two = labels % 2
    score = metrics.brier_score_loss(two.numpy(), binary.exp().numpy()[:, 1])
    assert float(calibration.brier(binary, two)) == pytest.approx(2 * score)  # both classes count


def test_calibration_error_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.9, 0.1], [0.62, 0.38], [0.3, 0.7]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    # Bins of .1: (.8, .9] holds .9, wrong; (.9, 1] holds .95, right; (.6, .7] holds .62 and .7, right.
    expected = (1 * 0.9 + 1 * 0.05 + 2 * (1 - 0.66)) / 4
    assert float(calibration.calibration_error(p.log(), labels, 10)) == pytest.approx(expected)
    assert calibration.reliability(p.log(), labels, 10).points.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 1, 1]
    mass = calibration.reliability(p.log(), labels, 2, "mass")
    assert mass.points.tolist() == [2, 2] and mass.confidence.tolist() == pytest.approx([0.66, 0.925])


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "draws-repeat"))
def test_what_is_calibrated_has_an_error_of_the_order_of_its_sampling():
    n = 20_000
    log_p = torch.log_softmax(_logits(4, n, 3), -1)
    draw = random.uniform(Key.of(5), torch.arange(n)).double().unsqueeze(-1)
    labels = (draw > log_p.exp().cumsum(-1)).sum(-1).clamp(max=2)
    for kind in ("width", "mass"):
        found = calibration.reliability(log_p, labels, 15, kind)
        error = (0.25 / found.points).sqrt()
        full = found.points > 0
        assert bool(((found.accuracy - found.confidence).abs() < 5 * error)[full].all())
        sure = torch.log_softmax(3 * log_p, -1)
        assert calibration.calibration_error(sure, labels, 15, kind) > 0.1


def test_temperature_scaling_finds_the_temperature_that_was_hidden():
    n, hidden = 20_000, 2.5
    logits = _logits(6, n, 4)
    draw = random.uniform(Key.of(7), torch.arange(n)).double().unsqueeze(-1)
    labels = (draw > torch.softmax(logits / hidden, -1).cumsum(-1)).sum(-1).clamp(max=3)
    found = calibration.best_temperature(logits, labels)
    # The information about 1/T is the heat capacity of the rows: Var E.
    p = torch.softmax(logits / hidden, -1)
    variance = ((p * logits**2).sum(-1) - (p * logits).sum(-1) ** 2).mean()
    assert abs(1 / found - 1 / hidden) < 5 / math.sqrt(n * float(variance))
    loss = lambda t: float(calibration.log_loss(torch.log_softmax(logits / t, -1), labels))  # noqa: E731
    assert loss(found) < min(loss(found * 1.05), loss(found / 1.05))


def test_a_temperature_stays_within_its_bounds():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert calibration.best_temperature(logits, torch.tensor([0, 1])) == pytest.approx(1e-3)  # always right: colder
    assert calibration.best_temperature(logits, torch.tensor([1, 0])) == pytest.approx(1e3)  # always wrong: hotter


def test_what_cannot_be_scored_is_refused():
    log_p = torch.log_softmax(_logits(8, 4, 3), -1)
    for labels in (torch.tensor([0, 1, 2]), torch.tensor([0.0, 1, 2, 0]), torch.tensor([0, 1, 2, 3])):
        with pytest.raises(ConfigError):
            calibration.log_loss(log_p, labels)
    with pytest.raises(ConfigError, match="bin"):
        calibration.reliability(log_p, torch.zeros(4, dtype=torch.int64), 0)
    with pytest.raises(ConfigError, match="mass"):
        calibration.reliability(log_p, torch.zeros(4, dtype=torch.int64), 2, "equal")
    with pytest.raises(NumericFault, match="finite"):
        calibration.best_temperature(log_p * math.inf, torch.zeros(4, dtype=torch.int64))
