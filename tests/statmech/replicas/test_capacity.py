"""Capacities of the literature, and small networks that have them."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.spins import hopfield
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.replicas import capacity
from mfmarl.statmech.sampling.chains import chain_ids
from mfmarl.statmech.sampling.single_spin import heat_bath


def test_the_perceptrons_capacity_is_gardners():
    assert capacity.perceptron() == pytest.approx(2, abs=1e-14)
    t = torch.linspace(-1.0, 12, 400_001, dtype=torch.float64)
    density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    assert capacity.perceptron(1.0) == pytest.approx(1 / float(torch.trapezoid(density * (t + 1) ** 2, t)), abs=1e-8)
    assert capacity.perceptron(-0.5) > 2 > capacity.perceptron(0.5)


def test_covers_count_has_its_half_at_twice_the_weights():
    for n in (1, 5, 40):
        assert capacity.separable_share(2 * n, n) == pytest.approx(0.5, abs=1e-12)
        assert capacity.separable_share(n, n) == 1
    # It sharpens into Gardner's capacity.
    assert capacity.separable_share(180, 100) > 0.9 and capacity.separable_share(220, 100) < 0.1


def test_binary_weights_have_the_capacity_of_krauth_and_mezard():
    assert capacity.binary_perceptron() == pytest.approx(0.8330785997, abs=1e-9)
    assert capacity.binary_perceptron_entropy(0.0) == pytest.approx(math.log(2), abs=1e-12)
    assert capacity.binary_perceptron_entropy(0.5) > 0 > capacity.binary_perceptron_entropy(0.9)


def test_the_entropy_of_small_binary_perceptrons_is_near_the_replica_one():
    n, patterns, tasks = 15, 6, 300
    weights = enumeration.spins(n).states()
    signs = (random.uniform(Key.of(1), torch.arange(tasks), patterns * n) < 0.5).double() * 2 - 1
    fits = (signs.reshape(tasks, patterns, n) @ weights.T > 0).all(1).sum(-1).double()
    # The annealed count is exact for a single pattern, 2^n/2 each; the quenched entropy lies below.
    entropy = fits.clamp(min=1).log() / n
    error = float(entropy.std()) / math.sqrt(tasks)
    predicted = capacity.binary_perceptron_entropy(patterns / n)
    assert predicted < math.log(2) * (1 - patterns / n)
    assert abs(float(entropy.mean()) - predicted) < 5 * error + 0.5 / n


def test_hopfields_capacity_has_its_digits_and_ends_with_a_jump():
    assert capacity.hopfield() == pytest.approx(0.137905566495, abs=1e-11)
    assert capacity.hopfield_retrieval(0.1379) == pytest.approx(0.967, abs=3e-3)
    assert capacity.hopfield_retrieval(0.139) == 0
    assert capacity.hopfield_retrieval(0.05) > 0.999


@pytest.mark.parametrize(("load", "kept"), [(0.05, True), (0.3, False)])
def test_a_memory_of_four_hundred_spins_keeps_little_and_forgets_much(load, kept):
    n = 400
    count = int(load * n)
    patterns = (random.uniform(Key.of(2), torch.arange(count), n) < 0.5).double() * 2 - 1
    system = hopfield(patterns)
    sweep, s = heat_bath(system), patterns[:10].clone()
    for step in range(20):
        s = sweep(s, math.inf, chain_ids((10,)), Key.of(3).fold(step))
    overlap = float((s * patterns[:10]).mean())
    assert (overlap > 0.99) if kept else (overlap < 0.75)


def test_loads_out_of_reach_are_refused():
    with pytest.raises(ConfigError, match="loads in"):
        capacity.binary_perceptron_entropy(2.0)
    with pytest.raises(ConfigError, match="at least 1 weight"):
        capacity.separable_share(3, 0)
