"""Exact Ising answers against published digits, enumeration, and the identities of thermodynamics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfmarl.errors import ConfigError
from mfmarl.statmech.exact import ising as exact

T_C = exact.SQUARE_CRITICAL_TEMPERATURE


def _enumerate(links: list[tuple[int, int]], spins: int, temperature: float, field: float = 0.0) -> dict[str, float]:
    s = np.array(list(itertools.product([-1.0, 1.0], repeat=spins)))
    bonds = sum(s[:, i] * s[:, j] for i, j in links)
    log_weight = (bonds + field * s.sum(1)) / temperature
    log_z = float(np.logaddexp.reduce(log_weight))
    p = np.exp(log_weight - log_z)
    m = s.mean(1)
    return {"log_z": log_z, "bonds": float(p @ bonds), "m": float(p @ m), "abs": float(p @ np.abs(m))}


def _torus_links(a: int, b: int) -> list[tuple[int, int]]:
    site = np.arange(a * b).reshape(a, b)
    return [
        (int(i), int(j)) for axis in (0, 1) for i, j in zip(site.ravel(), np.roll(site, -1, axis).ravel(), strict=True)
    ]


def test_the_critical_temperature_is_onsagers():
    assert pytest.approx(2.269185314213, abs=1e-12) == T_C


@pytest.mark.parametrize(
    ("temperature", "free_energy", "energy"),
    [
        (1.8, -2.027340, -1.85930),
        (2.0, -2.051586, -1.74556),
        (T_C, -2.109651, -1.41421),
        (2.4, -2.156615, -1.20398),
        (2.6, -2.243690, -1.02829),
        (3.0, -2.447648, -0.81731),
        (4.0, -3.036426, -0.55727),
    ],
)
def test_onsagers_free_energy_and_energy_have_their_known_digits(temperature, free_energy, energy):
    assert exact.square_free_energy(temperature) == pytest.approx(free_energy, abs=6e-7)
    assert exact.square_energy(temperature) == pytest.approx(energy, abs=6e-6)


def test_yangs_magnetisation_has_its_known_digits_and_vanishes_above():
    known = {1.6: 0.979622, 2.0: 0.911319, 2.2: 0.784755, T_C: 0.0, 2.5: 0.0}
    assert {t: round(exact.square_magnetisation(t), 6) for t in known} == known


@pytest.mark.parametrize("temperature", [0.7, 1.5, 2.2, 2.3, 5.0, 40.0])
def test_energies_are_the_slope_of_free_energies_in_inverse_temperature(temperature):
    step = 1e-5
    beta = 1 / temperature

    def log_z(b: float) -> float:
        return -b * exact.square_free_energy(1 / b)

    slope = -(log_z(beta + step) - log_z(beta - step)) / (2 * step)
    # The specific heat is large near T_c: the error of a difference quotient is of order step there.
    assert exact.square_energy(temperature) == pytest.approx(slope, abs=2e-5)


@pytest.mark.parametrize("shape", [(3, 3), (4, 4), (3, 5), (5, 3)])
@pytest.mark.parametrize("temperature", [0.8, 1.5, T_C, 2.3, 4.0])
def test_kaufmans_torus_agrees_with_the_sum_over_all_configurations(shape, temperature):
    every = _enumerate(_torus_links(*shape), shape[0] * shape[1], temperature)
    # At T_c itself the function steps 1e-9 aside.
    assert exact.torus_log_partition(shape, temperature) == pytest.approx(every["log_z"], abs=1e-7)
    assert exact.torus_energy(shape, temperature) == pytest.approx(-every["bonds"] / math.prod(shape), abs=1e-7)


def test_kaufmans_torus_has_its_known_digits_and_grows_into_onsagers_lattice():
    assert exact.torus_energy((128, 128), 2.5) == pytest.approx(-1.106079, abs=6e-7)
    for temperature in (1.5, 3.5):
        assert exact.torus_energy((200, 200), temperature) == pytest.approx(exact.square_energy(temperature), abs=1e-9)


@pytest.mark.parametrize("side", [90, 100, 110])
@pytest.mark.parametrize("temperature", [3.9996, 4.0, 4.0004])
def test_two_products_that_cancel_each_other_leave_the_rest(side, temperature):
    # Two of the four are equal and of opposite sign there.
    assert exact.torus_energy((side, side), temperature) == pytest.approx(exact.square_energy(temperature), abs=1e-9)


def test_the_torus_magnetisation_is_given_only_where_it_is_known():
    known = exact.torus_magnetisation((20, 20), 2.0)
    assert known is not None
    assert known[0] == pytest.approx(0.911319, abs=1e-6)
    tabulated = exact.torus_magnetisation((20, 20), 2.4)
    assert tabulated is not None
    assert tabulated[0] == 0.460
    assert exact.torus_magnetisation((30, 30), 2.4) is None
    assert exact.torus_magnetisation((4, 4), 2.2) is None


@pytest.mark.parametrize(
    ("temperature", "digits"),
    [
        (0.5, (0.91552, 0.95510, 0.95727, 0.95748)),
        (0.8, (0.63060, 0.66443, 0.70729, 0.71011)),
        (1.0, (0.50636, 0.28680, 0.16162, 0.09095)),
        (1.2, (0.43594, 0.17942, 0.06110, 0.01952)),
    ],
)
def test_curie_weiss_at_finite_n_has_its_known_digits(temperature, digits):
    found = tuple(round(exact.curie_weiss_finite(n, temperature).absolute, 5) for n in (10, 100, 1_000, 10_000))
    assert found == digits


def test_curie_weiss_at_infinite_n_has_its_known_digits_and_solves_its_equation():
    assert exact.curie_weiss(0.5) == pytest.approx(0.957504, abs=5e-7)
    assert exact.curie_weiss(0.8) == pytest.approx(0.71041, abs=5e-6)
    assert exact.curie_weiss(1.0) == exact.curie_weiss(1.5) == 0.0
    for temperature, m in ((0.5, 0.973016), (0.8, 0.816156), (0.9, 0.723550), (1.1, 0.490744), (1.5, 0.192683)):
        assert exact.curie_weiss(temperature, field=0.1) == pytest.approx(m, abs=5e-7)
        assert exact.curie_weiss(temperature, field=-0.1) == pytest.approx(-m, abs=5e-7)


@settings(max_examples=60)
@given(st.floats(0.05, 5), st.floats(-2, 2), st.floats(-3, 3))
def test_curie_weiss_always_solves_its_equation(temperature, field, coupling):
    m = exact.curie_weiss(temperature, field, coupling)
    assert m == pytest.approx(math.tanh((coupling * m + field) / temperature), abs=1e-9)


@pytest.mark.parametrize(("temperature", "field"), [(0.5, 0.0), (1.3, 0.2), (0.9, -0.4)])
def test_curie_weiss_moments_agree_with_the_sum_over_all_configurations(temperature, field):
    n = 9
    s = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
    weight = np.exp((s.sum(1) ** 2 / (2 * n) + field * s.sum(1)) / temperature)
    p = weight / weight.sum()
    found = exact.curie_weiss_finite(n, temperature, field)
    assert found.magnetisation == pytest.approx(float(p @ s.mean(1)), abs=1e-12)
    assert found.absolute == pytest.approx(float(p @ np.abs(s.mean(1))), abs=1e-12)
    assert found.correlation == pytest.approx(float(p @ (s[:, 0] * s[:, 1])), abs=1e-12)


@pytest.mark.parametrize(("n", "temperature", "field"), [(3, 1.0, 0.0), (9, 0.7, 0.3), (10, 2.5, -0.2)])
def test_the_ring_agrees_with_the_sum_over_all_configurations(n, temperature, field):
    every = _enumerate([(i, (i + 1) % n) for i in range(n)], n, temperature, field)
    found = exact.ring(n, temperature, field)
    assert found.magnetisation == pytest.approx(every["m"], abs=1e-12)
    assert found.correlation == pytest.approx(every["bonds"] / n, abs=1e-12)


@pytest.mark.parametrize(
    ("temperature", "free_energy", "m"),
    [
        (1.8, -2.026787, 0.96095),
        (2.0, -2.049606, 0.92858),
        (T_C, -2.099482, 0.85270),
        (2.4, -2.133794, 0.79465),
        (2.6, -2.202016, 0.65847),
        (3.0, -2.406779, 0.0),
        (4.0, -3.020027, 0.0),
    ],
)
def test_bethe_has_its_known_digits_and_lies_above_the_exact_free_energy_of_the_lattice(temperature, free_energy, m):
    assert exact.bethe_free_energy(4, temperature) == pytest.approx(free_energy, abs=6e-7)
    assert exact.bethe(4, temperature).magnetisation == pytest.approx(m, abs=6e-6)
    assert exact.bethe_free_energy(4, temperature) > exact.square_free_energy(temperature)


@pytest.mark.parametrize(
    ("degree", "temperature", "field"), [(3, 1.2, 0.0), (4, 2.0, 0.1), (6, 7.0, -0.5), (2, 1.0, 0.3)]
)
def test_bethes_moments_are_derivatives_of_its_free_energy(degree, temperature, field):
    step = 1e-5
    slope = (
        exact.bethe_free_energy(degree, temperature, field + step)
        - exact.bethe_free_energy(degree, temperature, field - step)
    ) / (2 * step)
    moments = exact.bethe(degree, temperature, field)
    if field:
        assert moments.magnetisation == pytest.approx(-slope, abs=1e-7)

    def log_z(beta: float) -> float:
        return -beta * exact.bethe_free_energy(degree, 1 / beta, field)

    beta = 1 / temperature
    energy = -(log_z(beta + step) - log_z(beta - step)) / (2 * step)
    assert -degree / 2 * moments.correlation - field * moments.magnetisation == pytest.approx(energy, abs=1e-7)


def test_bethe_orders_at_its_critical_temperature():
    assert exact.bethe_critical_temperature(4) == pytest.approx(2 / math.log(2), abs=1e-12)
    assert exact.bethe_critical_temperature(2) == 0.0
    assert exact.bethe(4, 2.88).magnetisation > 0.05
    assert exact.bethe(4, 2.89).magnetisation == 0.0


def test_potts_critical_temperatures_have_their_known_digits_and_are_self_dual():
    assert exact.potts_critical_temperature(3) == pytest.approx(0.994973, abs=5e-7)
    assert exact.potts_critical_temperature(4) == pytest.approx(0.910239, abs=5e-7)
    assert 2 * exact.potts_critical_temperature(2) == pytest.approx(T_C, abs=1e-12)
    for q in (2, 3, 4, 7):
        assert (math.exp(1 / exact.potts_critical_temperature(q)) - 1) ** 2 == pytest.approx(q, abs=1e-9)


def test_mean_field_potts_has_two_branches_between_its_spinodals():
    ordered, uniform = exact.potts_mean_field(3, 2.9), exact.potts_mean_field(3, 2.9, np.full(3, 1 / 3))
    assert ordered.max() > 0.7
    assert uniform == pytest.approx(np.full(3, 1 / 3))
    for shares in (ordered, uniform):
        weight = np.exp(2.9 * shares)
        assert shares == pytest.approx(weight / weight.sum(), abs=1e-12)
    assert exact.potts_mean_field(3, 2.0).max() == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 0.02])
def test_everything_is_ordered_near_zero_temperature_without_overflow(temperature):
    with np.errstate(all="raise", under="ignore"):
        assert exact.square_magnetisation(temperature) == 1.0
        assert exact.square_energy(temperature) == pytest.approx(-2)
        assert exact.square_free_energy(temperature) == pytest.approx(-2)
        assert exact.torus_energy((6, 9), temperature) == pytest.approx(-2)
        assert exact.bethe(4, temperature) == pytest.approx((1, 1, 1))
        assert exact.bethe_free_energy(4, temperature) == pytest.approx(-2)
        assert exact.curie_weiss(temperature) == pytest.approx(1)
        assert exact.curie_weiss_finite(50, temperature).absolute == pytest.approx(1)
        assert exact.ring(10, temperature).correlation == pytest.approx(1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature):
    for function in (exact.square_energy, exact.square_magnetisation, exact.square_free_energy, exact.curie_weiss):
        with pytest.raises(ConfigError, match="temperature must be positive"):
            function(temperature)
