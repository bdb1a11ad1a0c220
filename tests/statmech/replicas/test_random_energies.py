"""The random energy model: its freezing, its annealed bound and its participation ratio."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.exact import disorder
from mfmarl.statmech.replicas import random_energies as rem
from tests.statistical import beyond, statistical


@statistical(alpha=beyond(5, 3), bugs=("uniforms-lean", "draws-repeat"))
def test_levels_are_gaussian_far_into_the_tails():
    found = rem.levels(20, Key.of(1)) / math.sqrt(10)
    count = len(found)
    assert abs(float(found.mean())) < 5 / math.sqrt(count)
    assert abs(float(found.square().mean()) - 1) < 5 * math.sqrt(2 / count)
    # Expected below -4.5: 3.4e-6 of 2^20, 3.56; the lowest near -sqrt(2 ln 2^20) = -5.27 less a logarithm.
    share = 0.5 * math.erfc(4 / math.sqrt(2))
    assert abs(int((found < -4).sum()) - share * count) < 5 * math.sqrt(share * count)
    assert -6 < float(found.min()) < -4.4


def test_the_free_energy_freezes_with_its_entropy():
    assert pytest.approx(2 * math.sqrt(math.log(2))) == rem.CRITICAL_BETA
    below, above = rem.free_energy(rem.CRITICAL_BETA * (1 - 1e-9)), rem.free_energy(rem.CRITICAL_BETA * 5)
    assert below == pytest.approx(above, abs=1e-12) and above == -math.sqrt(math.log(2))
    assert rem.entropy(0.0) == math.log(2) and rem.entropy(2.0) == 0
    # U = f + T s is the derivative of beta f.
    beta, step = 1.1, 1e-5
    slope = ((beta + step) * rem.free_energy(beta + step) - (beta - step) * rem.free_energy(beta - step)) / (2 * step)
    assert slope == pytest.approx(rem.free_energy(beta) + rem.entropy(beta) / beta, abs=1e-8)


@pytest.mark.parametrize("beta", [0.8, 1.2])
@statistical(alpha=beyond(5, 20, samples=32), bugs=("uniforms-lean", "pairs-share-noise"))
def test_above_freezing_finite_systems_have_the_annealed_free_energy(beta):
    n = 16
    log_z = torch.logsumexp(-beta * rem.levels(n, Key.of(2), (100,)), -1)
    annealed = n * (math.log(2) + beta * beta / 4)
    found = disorder.annealed(log_z)
    assert abs(found.value - annealed) < 5 * found.error
    assert disorder.quenched(log_z).value <= annealed
    assert -disorder.quenched(log_z).value / (beta * n) == pytest.approx(rem.free_energy(beta), abs=0.01)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("uniforms-lean", "draws-repeat"))
def test_below_freezing_the_ground_state_is_all_there_is():
    n = 18
    energies = rem.levels(n, Key.of(3), (40,))
    log_z = torch.logsumexp(-4 * energies, -1)
    # f = -sqrt(log 2) with a correction of log(4 pi N log 2)/(4 N sqrt(log 2)) (Derrida 1981, extreme values).
    correction = math.log(4 * math.pi * n * math.log(2)) / (4 * math.sqrt(math.log(2)) * n)
    ground = disorder.quenched(energies.amin(-1) / n)
    assert abs(ground.value + math.sqrt(math.log(2)) - correction) < 5 * ground.error + 0.6 / n
    assert abs(-disorder.quenched(log_z).value / (4 * n) - ground.value) < 0.04


@pytest.mark.parametrize("index", [0.3, 0.6])
@statistical(alpha=beyond(5, 2), bugs=("participation-off", "uniforms-narrow"))
def test_frozen_weights_have_the_participation_ratio_of_one_step_of_symmetry_breaking(index):
    weights = rem.poisson_dirichlet(index, Key.of(4), 4000)
    ratio = weights.square().sum(-1)
    error = float(ratio.std()) / math.sqrt(len(ratio))
    beta = rem.CRITICAL_BETA / index
    assert rem.mean_participation_ratio(beta) == pytest.approx(1 - index)
    cut = 4096 ** (1 - 1 / index)  # what the levels left out would weigh
    assert abs(float(ratio.mean()) - (1 - index)) < 5 * error + 5 * cut
    # It fluctuates from sample to sample: Var Y = m(1 - m)/3 (Derrida 1997).
    assert float(ratio.var()) == pytest.approx(index * (1 - index) / 3, rel=0.15)


@statistical(alpha=beyond(5, 20, samples=200), bugs=("uniforms-narrow", "purposes-share-noise"))
def test_finite_systems_freeze_towards_it():
    beta = 2 * rem.CRITICAL_BETA
    ratio = rem.participation_ratio(rem.levels(16, Key.of(5), (200,)), beta)
    error = float(ratio.std()) / math.sqrt(200)
    assert abs(float(ratio.mean()) - 0.5) < 5 * error + 0.05
    assert float(rem.participation_ratio(rem.levels(16, Key.of(5)), 0.3)) < 0.001


def test_too_many_levels_are_refused():
    with pytest.raises(ConfigError, match="too many"):
        rem.levels(40, Key.of(0))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        rem.poisson_dirichlet(1.5, Key.of(0), 3)
