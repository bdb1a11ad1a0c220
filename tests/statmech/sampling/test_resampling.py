"""Blocking, batch means, jackknife and bootstrap: against the exact errors of an AR(1), and of known functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import signal

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.sampling import resampling
from mfmarl.statmech.sampling.diagnostics import binder_cumulant
from tests.statistical import beyond, statistical


def ar1(a: float, steps: int, count: int, seed: int = 0) -> torch.Tensor:
    noise = random.normal(Key.of(seed), torch.arange(count), steps).double().numpy()
    noise[:, 1:] *= math.sqrt(1 - a * a)
    return torch.from_numpy(signal.lfilter([1.0], [1.0, -a], noise, axis=1).T.copy())


def exact_error(a: float, steps: int) -> float:
    """Of the mean of a stationary AR(1) of variance 1."""
    lags = np.arange(1, steps)
    return math.sqrt((1 + 2 * ((1 - lags / steps) * a**lags).sum()) / steps)


@pytest.mark.parametrize("a", [0.0, 0.8, 0.95])
@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "wide-normals"))
def test_blocking_finds_the_error_of_an_ar1(a):
    steps, count = 1 << 14, 40
    found = resampling.blocking(ar1(a, steps, count).unsqueeze(1), observables=1)  # every chain by itself
    assert found.errors.shape == (len(found.sizes), count) and found.sizes[:3] == [1, 2, 4]
    ratio = found.error / exact_error(a, steps)
    # Where blocks of B > (2 n)^(1/3) (tau)^(2/3) remember, tau/B of the variance is missing: a few percent.
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(count) + 0.04
    first = found.errors[0].mean() * math.sqrt(steps)
    assert float(first) == pytest.approx(1, abs=0.1)  # unblocked: as if independent


def test_blocking_of_several_chains_joins_them():
    x = ar1(0.8, 4096, 25, 3)
    assert float(resampling.blocking(x).error) == pytest.approx(exact_error(0.8, 4096) / 5, rel=0.25)


@pytest.mark.parametrize("shape", [(8192, 1), (256, 64), (2048, 4)])
@statistical(alpha=beyond(5, 20, samples=30), bugs=("block-error-tiny", "jackknife-error-tiny"))
def test_batch_means_jackknife_and_bootstrap_agree_with_the_exact_error_of_a_mean(shape):
    steps, count = shape
    exact = exact_error(0.6, steps) / math.sqrt(count)
    x = ar1(0.6, steps, count * 30, 7)
    errors = [
        (
            float(resampling.batch_means(part).error),
            float(resampling.jackknife(part, lambda y: y.mean(0)).error),
            float(resampling.bootstrap(part, lambda y: y.mean(0), Key.of(1)).error),
        )
        for part in x.split(count, 1)
    ]
    mean, spread = np.mean(errors, 0) / exact, np.std(errors, 0) / exact / math.sqrt(30)
    assert np.all(np.abs(mean - 1) < 5 * spread + 0.03)
    by_batches, by_jackknife, _ = np.array(errors).T
    assert np.allclose(by_batches, by_jackknife, rtol=1e-9)  # of a mean, the jackknife is the batch means


@statistical(alpha=beyond(5, 200), bugs=("shifted-normals", "uniforms-lean"))
def test_the_jackknife_takes_away_the_bias_of_a_square():
    x = ar1(0.0, 64, 1500, 11) + 1  # (mean of 64)^2 has the bias 1/64, its jackknife none
    found = torch.stack([resampling.jackknife(c, lambda y: y.mean(0) ** 2, 64).value for c in x.unbind(1)])
    plain = x.mean(0) ** 2
    assert abs(float(found.mean()) - 1) < 5 * float(found.std()) / math.sqrt(1500)
    assert abs(float(plain.mean()) - 1 - 1 / 64) < 5 * float(plain.std()) / math.sqrt(1500)
    assert float(plain.mean() - found.mean()) > 5 * float((plain - found).std()) / math.sqrt(1500)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("jackknife-error-tiny", "uniforms-narrow"))
def test_the_error_of_a_binder_cumulant_is_that_of_the_delta_method():
    x = ar1(0.0, 1000, 64, 12)
    expected = math.sqrt(24 / 9 / x.numel())
    assert float(resampling.jackknife(x, binder_cumulant, 64).error) == pytest.approx(expected, rel=5 / math.sqrt(128))
    drawn = resampling.bootstrap(x, binder_cumulant, Key.of(2), replicas=300, count=64)
    assert float(drawn.error) == pytest.approx(expected, rel=5 / math.sqrt(128))


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ConfigError, match="cannot be cut into 32 blocks"):
        resampling.batch_means(torch.zeros(20, 3))
    with pytest.raises(ConfigError, match="at least 16 steps"):
        resampling.blocking(torch.zeros(10))
    with pytest.raises(ConfigError, match="2 replicas"):
        resampling.bootstrap(torch.zeros(40), lambda y: y.mean(0), Key.of(0), replicas=1)
