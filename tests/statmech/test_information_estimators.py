"""Estimators' biases, computed exactly by summing over every possible count, and Gaussian truths for neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech import information
from mfmarl.statmech import information_estimators as estimators
from tests.statistical import beyond, statistical

KEY = Key.of(44)
SKEWED = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)


def outcomes(p: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Every vector of counts [M, K] and its multinomial probability [M]."""
    grids = torch.cartesian_prod(*[torch.arange(samples + 1)] * (len(p) - 1))
    counts = torch.cat([grids, samples - grids.sum(-1, keepdim=True)], -1)
    counts = counts[counts[:, -1] >= 0].double()
    log_p = math.lgamma(samples + 1) - torch.lgamma(counts + 1).sum(-1) + (counts * p.log()).sum(-1)
    return counts, log_p.exp()


def bias(estimator: Callable[[Tensor], Tensor], p: Tensor, samples: int) -> float:
    """E[estimate] - truth, exactly."""
    counts, chance = outcomes(p, samples)
    assert abs(float(chance.sum()) - 1) < 1e-9
    return float((chance * estimator(counts)).sum() - information.entropy(p))


def test_the_plug_in_is_too_small_by_the_stated_bias() -> None:
    for samples in (40, 80):
        first_order = -(len(SKEWED) - 1) / (2 * samples)
        # Second order (Harris 1975): (1 - sum 1/p)/(12 N^2).
        second = (1 - float((1 / SKEWED).sum())) / (12 * samples**2)
        assert abs(bias(estimators.plug_in, SKEWED, samples) - first_order - second) < 0.5 * abs(second)


def test_corrections_leave_a_small_part_of_the_bias() -> None:
    for samples in (20, 40, 80):
        plain = abs(bias(estimators.plug_in, SKEWED, samples))
        assert abs(bias(estimators.miller_madow, SKEWED, samples)) < 0.25 * plain
        assert abs(bias(estimators.grassberger, SKEWED, samples)) < 0.01 * plain
        assert abs(bias(estimators.chao_shen, SKEWED, samples)) < plain


def test_miller_madow_is_wrong_to_second_order_only() -> None:
    at_forty, at_eighty = (bias(estimators.miller_madow, SKEWED, n) for n in (40, 80))
    assert 3 < at_forty / at_eighty < 8  # 4 = second order; a little more while a bin may be unseen


def test_chao_and_shen_see_through_unseen_bins() -> None:
    bins, samples = 1000, 400
    index = random.integers(KEY, torch.arange(200), bins, samples)
    counts = torch.zeros(200, bins, dtype=torch.float64).scatter_add_(1, index, torch.ones(200, samples).double())
    truth = math.log(bins)
    plain, seen = estimators.plug_in(counts) - truth, estimators.chao_shen(counts) - truth
    assert float(plain.mean()) < -0.8
    assert abs(float(seen.mean())) < 0.1
    assert abs(float(estimators.grassberger(counts).mean()) - truth) < 0.5  # better than the plug-in, not good


def test_an_estimate_of_one_bin_is_zero_and_of_no_sample_refused() -> None:
    counts = torch.tensor([[7.0, 0.0]])
    for estimator in (estimators.plug_in, estimators.miller_madow):
        assert float(estimator(counts)) == 0
    # psi(7) - G(7) with G(7) = G(6) = 2 + 2/3 + 2/5 - gamma - log 2: not 0, but below 1/N.
    g = 2 + 2 / 3 + 2 / 5 - math.log(2)  # Euler's constant cancels
    assert math.isclose(float(estimators.grassberger(counts)), sum(1 / k for k in range(1, 7)) - g, rel_tol=1e-12)
    assert float(estimators.chao_shen(counts)) == 0
    with pytest.raises(ConfigError, match="no samples"):
        estimators.plug_in(torch.zeros(3))
    assert math.isfinite(float(estimators.chao_shen(torch.ones(5))))


@statistical(alpha=beyond(5, 200), bugs=("numbers-lean", "purposes-share-noise"))
def test_independent_variables_seem_related_by_the_stated_bias() -> None:
    rows, columns, samples, repeats = 4, 3, 200, 2000
    x = random.integers(KEY.fold("x"), torch.arange(repeats), rows, samples)
    y = random.integers(KEY.fold("y"), torch.arange(repeats), columns, samples)
    counts = torch.zeros(repeats, rows * columns).double()
    counts.scatter_add_(1, x * columns + y, torch.ones(repeats, samples).double())
    counts = counts.reshape(repeats, rows, columns)
    plain = estimators.plug_in_mutual_information(counts)
    error = float(plain.std()) / math.sqrt(repeats)
    wanted = (rows - 1) * (columns - 1) / (2 * samples)
    assert abs(float(plain.mean()) - wanted) < 5 * error + 2 * wanted * rows * columns / samples / 12
    corrected = estimators.corrected_mutual_information(counts)
    assert abs(float(corrected.mean())) < 5 * error + 2 * wanted * rows * columns / samples / 12


@pytest.mark.parametrize("dimension", [1, 2, 3])
@statistical(alpha=beyond(5, 20, samples=30), bugs=("uniforms-narrow", "uniforms-lean"))
def test_neighbours_find_the_entropy_of_a_gaussian(dimension: int) -> None:
    factor = torch.eye(dimension).double() + 0.5 * torch.ones(dimension, dimension).double()
    truth = float(information.gaussian_entropy(factor @ factor.mT))
    found = torch.stack(
        [
            estimators.kozachenko_leonenko(
                random.normal(KEY.fold("gauss", turn), torch.arange(1000), dimension).double() @ factor.mT
            )
            for turn in range(30)
        ]
    )
    # Stated bias: of order N^(-2/d), and for d = 1 below the noise.
    allowed = 0.5 * 1000 ** (-2 / max(dimension, 2))
    assert abs(float(found.mean()) - truth) < 5 * float(found.std()) / math.sqrt(30) + (dimension > 1) * allowed


def test_the_entropy_of_a_shifted_and_scaled_variable_moves_as_it_must() -> None:
    x = random.normal(KEY, torch.arange(500), 2).double()
    plain = float(estimators.kozachenko_leonenko(x))
    assert math.isclose(float(estimators.kozachenko_leonenko(3 * x + 7)), plain + 2 * math.log(3), rel_tol=1e-9)


@pytest.mark.parametrize("r", [0.0, 0.5, 0.9])
@statistical(alpha=beyond(5, 20, samples=30), bugs=("uniforms-narrow", "steps-share-noise"))
def test_ksg_finds_the_information_between_gaussians(r: float) -> None:
    found = []
    for turn in range(30):
        noise = random.normal(KEY.fold("ksg", turn), torch.arange(1000), 2).double()
        x, y = noise[:, :1], r * noise[:, :1] + math.sqrt(1 - r * r) * noise[:, 1:]
        found.append(float(estimators.ksg_mutual_information(x, y)))
    away = np.mean(found) + 0.5 * math.log(1 - r * r)
    # Unbiased for the independent; else the published systematic errors at N = 1000, k = 3 are below .01.
    assert abs(away) < 5 * np.std(found, ddof=1) / math.sqrt(30) + (0.01 if r else 0.0)


def test_ksg_agrees_with_scikit_learn() -> None:
    selection = pytest.importorskip("sklearn.feature_selection")
    noise = random.normal(KEY.fold("peer"), torch.arange(2000), 2).double()
    x, y = noise[:, :1], noise[:, :1].square() + 0.3 * noise[:, 1:]
    x, y = x / x.std(correction=0), y / y.std(correction=0)
    theirs = selection.mutual_info_regression(x.numpy(), y[:, 0].numpy(), n_neighbors=3, random_state=0)[0]
    assert abs(float(estimators.ksg_mutual_information(x, y)) - theirs) < 1e-3  # it adds noise of 1e-10


def test_samples_without_density_or_number_are_refused() -> None:
    with pytest.raises(NumericFault, match="repeat"):
        estimators.kozachenko_leonenko(torch.zeros(10, 2))
    with pytest.raises(NumericFault, match="NaN"):
        estimators.kozachenko_leonenko(torch.full((10, 2), math.nan))
    with pytest.raises(ConfigError, match="n above k"):
        estimators.kozachenko_leonenko(torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="as many"):
        estimators.ksg_mutual_information(torch.rand(10, 1), torch.rand(9, 1))
