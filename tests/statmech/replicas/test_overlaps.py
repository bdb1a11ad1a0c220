"""Overlaps: exact distributions against brute force, moments and samples."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.spins import free_spins, ising, sherrington_kirkpatrick
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.replicas import overlaps
from mfmarl.statmech.sampling.chains import chain_ids
from mfmarl.statmech.sampling.single_spin import heat_bath
from tests.statistical import beyond, statistical


def test_the_exact_distribution_is_the_double_sum():
    glass = sherrington_kirkpatrick(6, Key.of(1), (2,))
    # A field, or q and -q would be alike.
    p = enumeration.probabilities(type(glass)(glass.pairs, glass.couplings, glass.fields + 0.4), 1.5)
    values, found = overlaps.overlap_distribution(p)
    states = enumeration.spins(6).states()
    expected = torch.zeros(2, 7, dtype=torch.float64)
    for a, b in itertools.product(range(64), range(64)):
        place = int((float(states[a] @ states[b]) + 6) / 2)
        expected[:, place] += p[:, a] * p[:, b]
    assert torch.allclose(found, expected, atol=1e-13)
    assert values.tolist() == pytest.approx([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1])


def test_its_second_moment_is_that_of_the_correlations():
    glass = sherrington_kirkpatrick(16, Key.of(2))
    values, p = overlaps.overlap_distribution(enumeration.probabilities(glass, 2.0))
    _, pair = enumeration.moments(glass, 2.0)
    assert float((p * values**2).sum()) == pytest.approx(float(overlaps.second_moment(pair)), abs=1e-12)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(p, p.flip(0), atol=1e-12)  # without a field every state has its mirror image


@statistical(alpha=beyond(5, 200), bugs=("cold-enumeration", "steps-share-noise"))
def test_the_distribution_of_sixteen_glassy_spins_is_what_samples_show():
    glass, chains = sherrington_kirkpatrick(16, Key.of(2)), 4000
    sweep, s = heat_bath(glass), glass.random_states((chains, 2), Key.of(3))
    ids = chain_ids((chains, 2))
    # Cooled slowly to beta = 1, where sixteen spins still move: pairs of independent chains in equilibrium.
    for step in range(120):
        s = sweep(s, min(1.0, 0.02 * step), ids, Key.of(4).fold(step))
    q = overlaps.off_diagonal(overlaps.overlap_matrix(s)).squeeze(-1)
    values, seen = overlaps.histogram(q, 16)
    _, exact = overlaps.overlap_distribution(enumeration.probabilities(glass, 1.0))
    error = (exact * (1 - exact) / chains).sqrt()
    assert bool(((seen - exact).abs() < 5 * error + 1e-4).all())
    assert values.shape == seen.shape == (17,)


def test_cold_glasses_spread_and_ferromagnets_do_not():
    values, hot = overlaps.overlap_distribution(enumeration.probabilities(free_spins(10, 0.0), 1.0))
    binomial = torch.tensor([math.comb(10, k) / 1024 for k in range(11)], dtype=torch.float64)
    assert torch.allclose(hot, binomial, atol=1e-14)
    _, cold = overlaps.overlap_distribution(enumeration.probabilities(ising(graphs.complete(10), 10), math.inf))
    assert cold[0] == pytest.approx(0.5) and cold[-1] == pytest.approx(0.5)
    glasses = sherrington_kirkpatrick(12, Key.of(5), (40,))
    values, p = overlaps.overlap_distribution(enumeration.probabilities(glasses, 3.0))
    middle = p[:, values.abs() < 0.5].sum(-1)
    assert 0.02 < float(middle.mean()) < 0.6 and float(middle.max()) > 5 * float(middle.median())  # not self-averaging


def test_link_overlaps_ignore_a_global_flip():
    pairs = graphs.torus(4, 4)
    s = ising(pairs, 16).random_states((2,), Key.of(6))
    both = torch.cat([s, -s[:1]])
    q, link = overlaps.overlap_matrix(both), overlaps.link_overlap_matrix(both, pairs)
    assert float(q[0, 2]) == -1 and float(link[0, 2]) == 1
    assert q.diagonal().tolist() == [1, 1, 1] and float(q[0, 1]) == float(s[0] @ s[1]) / 16


def test_policies_overlap_by_the_chance_of_acting_alike():
    certain = torch.eye(3).repeat(2, 1, 1)[:, :2]  # two situations, the same certain choice
    uniform = torch.full((1, 2, 3), 1 / 3)
    q = overlaps.policy_overlap_matrix(torch.cat([certain, uniform]))
    assert q[0, 1] == 1 and float(q[0, 2]) == pytest.approx(1 / 3) and float(q[2, 2]) == pytest.approx(1 / 3)
    weights = torch.tensor([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0]])
    assert overlaps.cosine_matrix(weights)[0].tolist() == pytest.approx([1, -1, 0], abs=1e-6)


def test_what_is_no_distribution_over_spins_is_refused():
    with pytest.raises(ConfigError, match=r"2\^n probabilities"):
        overlaps.overlap_distribution(torch.ones(6) / 6)
    with pytest.raises(ConfigError, match=r"\[-1, 1\]"):
        overlaps.histogram(torch.tensor([1.5]), 4)
