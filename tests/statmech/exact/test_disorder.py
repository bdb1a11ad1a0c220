"""Quenched and annealed averages: the closed chain, and the glass above its transition."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies.spins import sherrington_kirkpatrick
from mfmarl.statmech.exact import disorder, enumeration, transfer_matrix
from tests.statistical import beyond, statistical


def test_the_gaussian_chain_has_the_digits_of_the_note():
    found = disorder.gaussian_chain(1.0)
    assert found.annealed - found.quenched == pytest.approx(0.1254327925, abs=1e-10)
    assert found.variance == pytest.approx(0.18976744917, abs=1e-11)
    # Without disorder there is nothing to tell apart.
    pure = disorder.gaussian_chain(1.3, 0.7, 0.0)
    assert pure.quenched == pytest.approx(math.log(math.cosh(0.91)), abs=1e-12)
    assert pure.annealed == pytest.approx(pure.quenched, abs=1e-12) and pure.variance < 1e-24


@statistical(alpha=beyond(5, 6, samples=32), bugs=("uniforms-lean", "wide-normals"))
def test_sampled_chains_average_to_the_closed_form_and_self_average():
    beta, relative = 1.0, []
    closed = disorder.gaussian_chain(beta)
    for bonds in (20, 80, 320):
        spins = bonds + 1

        def log_partition(key: Key, count: int, bonds: int = bonds) -> torch.Tensor:
            couplings = disorder.gaussian_couplings(key, count, bonds)
            return transfer_matrix.chain_log_partition(couplings, torch.zeros(bonds + 1), beta)

        found = disorder.disorder_average(log_partition, spins, beta, Key.of(1), 2000, batch=500)
        exact = -(math.log(2) * spins + bonds * closed.quenched) / (beta * spins)
        assert abs(found.mean.value - exact) < 5 * found.mean.error
        variance = closed.variance * bonds / (beta * spins) ** 2
        assert abs(found.variance.value - variance) < 5 * found.variance.error
        relative.append(found.relative)
    assert relative[0] / relative[2] == pytest.approx(16, rel=0.35)


@statistical(alpha=beyond(5, 2, samples=32), bugs=("uniforms-lean", "wide-normals"))
def test_the_annealed_average_of_short_chains_is_above_the_quenched_one_by_the_gap():
    couplings = disorder.gaussian_couplings(Key.of(2), 40_000, 3)
    log_z = transfer_matrix.chain_log_partition(couplings, torch.zeros(4), 1.0)
    typical, with_it = disorder.quenched(log_z), disorder.annealed(log_z)
    closed = disorder.gaussian_chain(1.0)
    assert abs(typical.value - 4 * math.log(2) - 3 * closed.quenched) < 5 * typical.error
    assert abs(with_it.value - 4 * math.log(2) - 3 * closed.annealed) < 5 * with_it.error
    assert with_it.value - typical.value > 0.3


@statistical(alpha=beyond(5, 3, samples=32), bugs=("cold-partition", "uniforms-lean"))
def test_the_glass_above_its_transition_has_its_annealed_average_and_its_fluctuations():
    n, beta, instances = 14, 0.5, 400
    log_z = enumeration.log_partition(sherrington_kirkpatrick(n, Key.of(3), (instances,)), beta)
    found = disorder.annealed(log_z)
    assert abs(found.value - disorder.sherrington_kirkpatrick_annealed(n, beta)) < 5 * found.error
    shift, variance = disorder.sherrington_kirkpatrick_fluctuations(beta)
    seen = disorder.self_averaging(log_z)
    # Corrections are of order 1/N of these.
    assert abs(seen.variance.value - variance) < 5 * seen.variance.error + 2 * variance / n
    typical = disorder.quenched(log_z)
    gap = typical.value - disorder.sherrington_kirkpatrick_annealed(n, beta)
    assert abs(gap - shift) < 5 * typical.error + 2 * abs(shift) / n


def test_errors_are_those_that_repeated_experiments_have():
    noise = disorder.gaussian_couplings(Key.of(4), 500, 200)
    found = [disorder.self_averaging(row) for row in noise]
    for pick in (lambda x: x.mean, lambda x: x.variance):
        values = torch.tensor([pick(x).value for x in found])
        stated = torch.tensor([pick(x).error for x in found]).mean()
        assert float(values.std()) == pytest.approx(float(stated), rel=5 / math.sqrt(2 * 500))
    small = torch.tensor([disorder.annealed(row).value for row in 0.3 * noise])
    stated = torch.tensor([disorder.annealed(row).error for row in 0.3 * noise]).mean()
    assert float(small.std()) == pytest.approx(float(stated), rel=5 / math.sqrt(2 * 500))


def test_single_instances_and_cold_limits_are_refused():
    with pytest.raises(ConfigError, match="2 instances"):
        disorder.quenched(torch.zeros(1))
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        disorder.sherrington_kirkpatrick_fluctuations(1.0)
