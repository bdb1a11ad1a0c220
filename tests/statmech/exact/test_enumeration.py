"""Sums over all states: against closed forms, and the identities between F, U, S and C."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.potts import Potts, potts
from mfmarl.statmech.energies.spins import (
    Ising,
    edwards_anderson,
    free_spins,
    ising,
    sherrington_kirkpatrick,
)
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.exact import ising as ising_exact


def test_eight_free_spins_are_the_tutorial_with_its_digits():
    system = free_spins(8, -1.0)  # H = + sum x_i
    assert float(enumeration.log_partition(system, 1.0).exp()) == pytest.approx(8229.0354566819, abs=1e-9)
    p = enumeration.probabilities(system, 1.0)
    states = enumeration.spins(8).states()
    seven_down, balanced = states.sum(-1) == -6, states.sum(-1) == 0
    assert p[seven_down].tolist() == pytest.approx([0.0490250401297] * 8, abs=1e-12)
    assert float(p[balanced][0]) == pytest.approx(1.21520924933e-4, abs=1e-15)
    assert float(p[seven_down][0] / p[balanced][0]) == pytest.approx(403.428793, abs=1e-6)
    # The level of one spin up, eight states, outweighs the ground state: entropy.
    assert float(p[seven_down].sum()) == pytest.approx(0.3922003, abs=1e-6)
    assert float(p[0]) == pytest.approx(0.3622487, abs=1e-6)
    found = enumeration.thermodynamics(system, 1.0)
    assert float(found.log_partition) == pytest.approx(9.0154, abs=5e-5)
    assert float(found.entropy) == pytest.approx(8 * (math.log(2 * math.cosh(1)) - math.tanh(1)), abs=1e-12)
    assert float(found.heat_capacity) == pytest.approx(8 / math.cosh(1) ** 2, abs=1e-12)


def test_states_are_numbered_as_itertools_product_does():
    for space in (enumeration.spins(4), enumeration.bits(3), enumeration.colours(3, 3)):
        expected = list(itertools.product(space.values.tolist(), repeat=space.sites))
        assert space.states().tolist() == [list(state) for state in expected]
        assert space.number(space.states()).tolist() == list(range(space.size))


def test_halves_give_what_the_energy_itself_says():
    for system in (sherrington_kirkpatrick(9, Key.of(1)), edwards_anderson((3, 3), Key.of(2)), free_spins(5, 0.3)):
        direct = system(enumeration.space_of(system).states())
        assert torch.allclose(enumeration.energies(system), direct, atol=1e-12)


def test_instances_are_summed_at_once_as_one_by_one():
    many = sherrington_kirkpatrick(7, Key.of(3), (2, 3))
    together = enumeration.thermodynamics(many, 0.8)
    mean, pair = enumeration.moments(many, 0.8)
    assert together.energy.shape == (2, 3) and mean.shape == (2, 3, 7) and pair.shape == (2, 3, 7, 7)
    for i, j in itertools.product(range(2), range(3)):
        alone = Ising(many.pairs, many.couplings[i, j], many.fields)
        one = enumeration.thermodynamics(alone, 0.8)
        for a, b in zip(together, one, strict=True):
            assert float(a[i, j]) == pytest.approx(float(b), abs=1e-11)
        assert torch.allclose(pair[i, j], enumeration.moments(alone, 0.8)[1], atol=1e-12)
    low = enumeration.ground_states(many)
    assert low.degeneracy.tolist() == [[2, 2, 2], [2, 2, 2]]


def test_a_small_torus_is_kaufmans():
    for temperature in (1.5, 2.269185, 4.0):
        found = enumeration.thermodynamics(ising(graphs.torus(4, 4), 16), 1 / temperature)
        assert float(found.log_partition) == pytest.approx(
            ising_exact.torus_log_partition((4, 4), temperature), abs=1e-7
        )
        assert float(found.energy) / 16 == pytest.approx(ising_exact.torus_energy((4, 4), temperature), abs=1e-7)


def test_the_density_of_states_of_the_four_by_four_torus_is_known():
    # Beale 1996 (Phys. Rev. Lett. 76, 78) gives the method; these counts are the classical table of this lattice.
    levels, counts = enumeration.density_of_states(ising(graphs.torus(4, 4), 16))
    assert levels.tolist() == [-32, -24, -20, -16, -12, -8, -4, 0, 4, 8, 12, 16, 20, 24, 32]
    assert counts.tolist() == [2, 32, 64, 424, 1728, 6688, 13568, 20524, 13568, 6688, 1728, 424, 64, 32, 2]


def test_ferromagnets_have_two_ground_states_and_frustrated_rings_many():
    low = enumeration.ground_states(ising(graphs.torus(3, 3), 9))
    assert float(low.energy) == -18 and int(low.degeneracy) == 2
    ring = enumeration.ground_states(ising(graphs.torus(5), 5, -1.0))  # one bond of an odd ring must be unhappy
    assert float(ring.energy) == -3 and int(ring.degeneracy) == 10
    system = ising(graphs.torus(5), 5, -1.0)
    assert float(system(ring.state)) == -3


def test_zero_temperature_counts_the_ground_states():
    system = ising(graphs.torus(5), 5, -1.0)
    low = enumeration.ground_states(system)
    cold = enumeration.thermodynamics(system, math.inf)
    assert float(cold.free_energy) == float(cold.energy) == -3
    assert float(cold.entropy) == pytest.approx(math.log(10), abs=1e-14)
    assert float(cold.heat_capacity) == 0
    temperature = 0.1
    exact = enumeration.thermodynamics(system, 1 / temperature).free_energy
    # The next level is 4 above: the correction is of order T exp(-4/T).
    assert float(exact - enumeration.zero_temperature(low.energy, low.degeneracy, temperature)) == pytest.approx(
        0, abs=1e-15
    )
    assert float(enumeration.probabilities(system, math.inf).max()) == pytest.approx(0.1)


def test_infinite_temperature_is_the_uniform_distribution():
    hot = enumeration.thermodynamics(sherrington_kirkpatrick(6, Key.of(4)), 0.0)
    assert float(hot.log_partition) == pytest.approx(6 * math.log(2), abs=1e-12)
    assert float(hot.entropy) == pytest.approx(6 * math.log(2), abs=1e-12)
    assert float(hot.energy) == pytest.approx(0, abs=1e-12)


@given(st.integers(0, 10**6), st.floats(0.05, 5.0))
@settings(max_examples=25)
def test_free_energy_energy_entropy_and_heat_capacity_fit_together(seed, beta):
    key = Key.of(seed)
    glass = sherrington_kirkpatrick(6, key)
    system = Ising(glass.pairs, glass.couplings, glass.random_states((), key.fold("field")) * 0.3)
    found = enumeration.thermodynamics(system, beta)
    p = enumeration.probabilities(system, beta)
    level = enumeration.energies(system)
    entropy = -(p * p.clamp(min=1e-300).log()).sum()
    assert float(found.entropy) == pytest.approx(float(entropy), abs=1e-10)
    assert float(found.energy) == pytest.approx(float((p * level).sum()), abs=1e-10)
    assert float(found.free_energy) == pytest.approx(float(found.energy - entropy / beta), abs=1e-9)
    assert float(found.log_partition) == pytest.approx(-beta * float(found.free_energy), abs=1e-9)
    step = 1e-4 * beta
    warmer, colder = (float(enumeration.log_partition(system, b)) for b in (beta - step, beta + step))
    assert (warmer - colder) / (2 * step) == pytest.approx(float(found.energy), abs=1e-6 * (1 + 1 / beta**2))


def test_derivatives_in_couplings_and_fields_are_the_moments():
    glass = sherrington_kirkpatrick(5, Key.of(7))
    couplings = glass.couplings.clone().requires_grad_()
    fields = torch.full((5,), 0.2, dtype=torch.float64, requires_grad=True)
    system = Ising(glass.pairs, couplings, fields)
    enumeration.log_partition(system, 1.3).backward()
    mean, pair = enumeration.moments(system, 1.3)
    assert torch.allclose(fields.grad, 1.3 * mean.detach(), atol=1e-12)
    assert torch.allclose(couplings.grad, 1.3 * pair.detach()[glass.pairs[:, 0], glass.pairs[:, 1]], atol=1e-12)


def test_two_potts_states_are_ising_spins_of_half_the_coupling():
    pairs = graphs.torus(3, 3)
    two, spin = potts(pairs, 9, 2, 2.0), ising(pairs, 9, 1.0)
    shift = 0.4 * len(pairs)  # ss' = 2 delta - 1
    assert float(enumeration.log_partition(two, 0.4)) == pytest.approx(
        float(enumeration.log_partition(spin, 0.4)) + shift, abs=1e-11
    )


def test_potts_shares_follow_the_fields_and_joint_shares_have_them_as_margins():
    fields = torch.tensor([[0.0, 0.5, -0.2], [0.1, 0.0, 0.3]], dtype=torch.float64)
    free = Potts(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, dtype=torch.float64), fields)
    share, joint = enumeration.moments(free, 2.0)
    assert torch.allclose(share, torch.softmax(2.0 * fields, -1), atol=1e-12)
    assert torch.allclose(joint[0, 1], share[0, :, None] * share[1, None, :], atol=1e-12)
    tied = Potts(torch.tensor([[0, 1]]), torch.tensor([0.7], dtype=torch.float64), fields)
    share, joint = enumeration.moments(tied, 1.0)
    assert torch.allclose(joint[0, 1].sum(-1), share[0], atol=1e-12)
    assert torch.allclose(joint[0, 1].sum(-2), share[1], atol=1e-12)
    assert joint.shape == (2, 2, 3, 3)


def test_any_energy_is_enumerated_over_bits():
    def restricted(x: torch.Tensor) -> torch.Tensor:
        return -2.0 * x[..., 0] * x[..., 1] + x.sum(-1)

    assert float(enumeration.log_partition(restricted, 1.0, enumeration.bits(2)).exp()) == pytest.approx(
        1 + 2 * math.exp(-1) + 1
    )
    mean = enumeration.average(restricted, 1.0, lambda x: x[..., 0], enumeration.bits(2))
    assert float(mean) == pytest.approx((math.exp(-1) + 1) / (2 + 2 * math.exp(-1)))


def test_what_is_too_large_or_unknown_is_refused():
    with pytest.raises(ConfigError, match=r"2\^26 states are too many"):
        enumeration.log_partition(free_spins(26), 1.0)
    with pytest.raises(ConfigError, match="needs the space"):
        enumeration.energies(lambda x: x.sum(-1))
    with pytest.raises(ConfigError, match="beta must be at least 0"):
        enumeration.log_partition(free_spins(3), math.nan)
    with pytest.raises(ConfigError, match="one instance"):
        enumeration.density_of_states(sherrington_kirkpatrick(4, Key.of(0), (2,)))


def test_many_temperatures_at_once_are_each_by_itself():
    glass = sherrington_kirkpatrick(6, Key.of(9))
    betas = torch.tensor([0.0, 0.5, 2.0, math.inf], dtype=torch.float64)
    together = enumeration.thermodynamics(glass, betas)
    for place, beta in enumerate(betas.tolist()):
        alone = enumeration.thermodynamics(glass, beta)
        for name, a, b in zip(alone._fields, together, alone, strict=True):
            assert float(a[place]) == pytest.approx(float(b), abs=1e-12), name
    assert torch.equal(enumeration.probabilities(glass, betas)[1], enumeration.probabilities(glass, 0.5))
