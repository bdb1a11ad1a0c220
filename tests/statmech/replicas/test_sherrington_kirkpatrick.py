"""The glass by replicas: literature's numbers, limits, and derivatives that must fit."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import spins
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.replicas import sherrington_kirkpatrick as sk


def test_above_the_transition_the_free_energy_is_the_annealed_one():
    for t in (1.0, 1.5, 4.0):
        found = sk.replica_symmetric(t)
        assert found.overlap == 0
        assert found.free_energy == pytest.approx(-t * math.log(2) - 1 / (4 * t), abs=1e-12)
        assert found.entropy == pytest.approx(math.log(2) - 1 / (4 * t * t), abs=1e-12)
        assert found.replicon == pytest.approx(1 - 1 / t**2, abs=1e-12)


def test_the_symmetric_solution_at_low_temperature_has_a_negative_entropy():
    found = sk.replica_symmetric(0.01)
    assert found.energy == pytest.approx(-math.sqrt(2 / math.pi), abs=1e-4)
    assert found.entropy == pytest.approx(-1 / (2 * math.pi), abs=0.01)
    # Just below T_c: q = tau + tau^2/3 + ..., tau = 1 - T.
    assert sk.replica_symmetric(0.99).overlap == pytest.approx(0.01 + 0.01**2 / 3, rel=2e-3)


@pytest.mark.parametrize(("t", "h"), [(0.5, 0.0), (0.7, 0.4), (1.3, 0.2)])
def test_energy_entropy_and_magnetisation_are_derivatives(t, h):
    step = 1e-4
    found = sk.replica_symmetric(t, h)
    up, down = sk.replica_symmetric(t + step, h), sk.replica_symmetric(t - step, h)
    assert -(up.free_energy - down.free_energy) / (2 * step) == pytest.approx(found.entropy, abs=1e-6)
    if h:
        more, less = sk.replica_symmetric(t, h + step), sk.replica_symmetric(t, h - step)
        assert -(more.free_energy - less.free_energy) / (2 * step) == pytest.approx(found.magnetisation, abs=1e-6)
    q = found.overlap
    z = torch.linspace(-9, 9, 40001, dtype=torch.float64)
    weight = torch.softmax(-z * z / 2, -1)
    assert float(weight @ torch.tanh((math.sqrt(q) * z + h) / t) ** 2) == pytest.approx(q, abs=1e-10)


def test_the_line_of_de_almeida_and_thouless_has_its_two_asymptotes():
    tau = 0.003
    # h^2 = 4/3 tau^3 near T_c; T = 4/(3 sqrt(2 pi)) exp(-h^2/2) where it is cold.
    assert sk.instability_field(1 - tau) ** 2 == pytest.approx(4 / 3 * tau**3, rel=0.03)
    t = 0.02
    assert t == pytest.approx(
        4 / (3 * math.sqrt(2 * math.pi)) * math.exp(-(sk.instability_field(t) ** 2) / 2), rel=0.06
    )
    line = [sk.instability_field(x) for x in (0.2, 0.5, 0.8, 1.0)]
    assert line == sorted(line, reverse=True) and line[-1] == 0
    for x, h in zip((0.2, 0.5), line, strict=False):
        assert sk.replica_symmetric(x, h * 1.01).replicon > 0 > sk.replica_symmetric(x, h * 0.99).replicon


def test_ground_states_of_one_and_two_steps_are_parisis():
    one, two = sk.broken(1), sk.broken(2)
    assert one.free_energy == pytest.approx(-0.76526, abs=5e-6)
    assert two.free_energy == pytest.approx(-0.763608, abs=5e-7)
    assert -math.sqrt(2 / math.pi) < one.free_energy < two.free_energy < sk.GROUND_STATE_ENERGY
    assert len(one.overlaps) == 1 and len(two.gammas) == 2 and two.gammas[0] < two.gammas[1]


def test_a_step_raises_the_free_energy_below_the_line_and_not_above():
    warm = sk.replica_symmetric(0.5)
    broken = sk.broken(1, 0.5)
    assert 1e-4 < broken.free_energy - warm.free_energy < 2e-3
    assert 0 < 0.5 * broken.gammas[0] < 1 and broken.overlaps[0] < warm.overlap < broken.overlaps[1]
    stable = sk.replica_symmetric(0.9, 1.5)
    assert stable.replicon > 0
    assert sk.broken(1, 0.9, 1.5).free_energy == pytest.approx(stable.free_energy, abs=1e-6)
    # Cold, the entropy of one step is nearly healed: -.01 instead of -.16.
    cold = sk.broken(1, 0.05)
    assert (sk.broken(1).free_energy - cold.free_energy) / 0.05 == pytest.approx(0, abs=0.02)


def test_the_functional_bounds_the_ground_states_of_samples_as_they_grow():
    energies = []
    for n in (8, 12, 16):
        low = enumeration.ground_states(spins.sherrington_kirkpatrick(n, Key.of(n), (200,))).energy / n
        energies.append(float(low.mean()))
    # E_0(N) = e_0 + .70 N^(-2/3) (Boettcher 2010; Palassini 2008), from above.
    assert energies == sorted(energies, reverse=True)
    assert energies[-1] > sk.GROUND_STATE_ENERGY
    for n, e in zip((8, 12, 16), energies, strict=True):
        assert (e - sk.GROUND_STATE_ENERGY) * n ** (2 / 3) == pytest.approx(0.7, abs=0.12)


def test_temperatures_and_steps_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="temperature"):
        sk.replica_symmetric(0.0)
    with pytest.raises(ConfigError, match="1 step or more"):
        sk.broken(0)
    with pytest.raises(ConfigError, match="need 1 overlaps"):
        sk.parisi([], [torch.tensor(0.0), torch.tensor(1.0)], 0.0)
