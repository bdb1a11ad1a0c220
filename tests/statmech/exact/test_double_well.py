"""The double well: against scipy's quadrature, the published numbers, other methods, and each other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, linalg, stats

from mfmarl.errors import ConfigError
from mfmarl.statmech.energies.continuous import DoubleWell
from mfmarl.statmech.exact import double_well

LEFT, BARRIER, RIGHT = DoubleWell().stationary_points


def v(x: float) -> float:
    return x**4 - 4 * x**2 + x


@pytest.mark.parametrize("temperature", [0.2, 0.5, 2.0, 10.0])
def test_averages_agree_with_adaptive_quadrature(temperature):
    def integral(f, low=-9.0, high=9.0):
        at = [p for p in (LEFT, BARRIER, RIGHT) if low < p < high]
        return integrate.quad(
            lambda x: f(x) * math.exp(-(v(x) - v(LEFT)) / temperature), low, high, points=at, epsabs=0, epsrel=1e-11
        )[0]

    z = integral(lambda x: 1.0)
    found = double_well.moments(temperature)
    assert double_well.log_partition(temperature) == pytest.approx(math.log(z) - v(LEFT) / temperature, abs=1e-9)
    assert found.mean == pytest.approx(integral(lambda x: x) / z, abs=1e-9)
    assert found.variance == pytest.approx(integral(lambda x: x * x) / z - found.mean**2, rel=1e-8)
    assert found.energy == pytest.approx(integral(v) / z, abs=1e-8)
    assert double_well.occupation(temperature) == pytest.approx(integral(lambda x: 1.0, -9.0, BARRIER) / z, abs=1e-9)


def test_the_energy_is_the_slope_of_log_z_and_the_heat_capacity_that_of_the_energy():
    t, step = 0.7, 1e-4
    slope = double_well.log_partition(1 / (1 / t - step)) - double_well.log_partition(1 / (1 / t + step))
    assert double_well.moments(t).energy == pytest.approx(slope / (2 * step), rel=1e-6)
    rise = double_well.moments(t + step).energy - double_well.moments(t - step).energy
    assert double_well.moments(t).heat_capacity == pytest.approx(rise / (2 * step), rel=1e-6)


def test_a_symmetric_well_is_half_left_and_has_a_mean_of_nought():
    assert double_well.occupation(0.3, tilt=0.0) == pytest.approx(0.5, abs=1e-12)
    assert double_well.moments(0.3, tilt=0.0).mean == pytest.approx(0, abs=1e-12)
    assert double_well.occupation(0.3, tilt=-1.0) == pytest.approx(1 - double_well.occupation(0.3), rel=1e-9)


def test_the_published_passage_time_and_relaxation_rate_at_one_half():
    assert double_well.first_passage(0.5, RIGHT, LEFT) == pytest.approx(139.732644565, abs=2e-8)
    assert double_well.relaxation_rate(0.5) == pytest.approx(0.0072206901, abs=5e-11)


def test_passage_times_solve_their_backward_equation():
    """-V' tau' + T tau'' = -1 with tau(end) = 0, by differences; and times along a line add up."""
    t, h = 0.8, 2e-3
    low, middle, high = (double_well.first_passage(t, 0.5 + i * h, LEFT) for i in (-1, 0, 1))
    slope = float(4 * 0.5 * (0.25 - 2) + 1)
    residue = -slope * (high - low) / (2 * h) + t * (high - 2 * middle + low) / h**2
    assert residue == pytest.approx(-1, abs=5e-4)
    whole = double_well.first_passage(t, RIGHT, LEFT)
    assert whole == pytest.approx(
        double_well.first_passage(t, RIGHT, BARRIER) + double_well.first_passage(t, BARRIER, LEFT), rel=1e-9
    )


def test_kramers_rate_becomes_exact_as_the_barrier_grows_above_t():
    """Leaving for good takes the time to the other side; the correction is of order T/barrier."""
    gaps = [
        abs(double_well.kramers_rate(t) * double_well.first_passage(t, RIGHT, LEFT) - 1) for t in (0.4, 0.2, 0.1, 0.05)
    ]
    assert gaps[-1] < 0.01 and all(later < 0.65 * earlier for earlier, later in itertools.pairwise(gaps))


def test_the_relaxation_rate_is_the_sum_of_both_passages_rates_when_wells_are_deep():
    t = 0.15
    rates = 1 / double_well.first_passage(t, RIGHT, LEFT) + 1 / double_well.first_passage(t, LEFT, RIGHT)
    assert double_well.relaxation_rate(t) == pytest.approx(rates, rel=2e-3)


def test_the_relaxation_rate_of_another_discretisation_is_the_same():
    """Jumps between the cells of a grid with rates that keep detailed balance, error of order of the spacing^2."""

    def by_cells(n: int, t: float = 1.0) -> float:
        x = np.linspace(-3.5, 3.5, n)
        h, energy = x[1] - x[0], x**4 - 4 * x**2 + x
        right = t / h**2 * np.exp(-np.diff(energy) / (2 * t))
        left = t / h**2 * np.exp(np.diff(energy) / (2 * t))
        out = np.zeros(n)
        out[:-1] += right
        out[1:] += left
        return float(
            linalg.eigh_tridiagonal(out, -np.sqrt(right * left), eigvals_only=True, select="i", select_range=(1, 1))[0]
        )

    coarse, fine = by_cells(1001), by_cells(2001)
    assert double_well.relaxation_rate(1.0) == pytest.approx(fine + (fine - coarse) / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("noise", "left", "stationary", "relaxation"),
    [(0.1, 0.13417773, 0.9958180, 13582.03), (0.2, 0.77748772, 0.7775041, 184.5265)],
)
def test_noisy_descent_of_the_founding_text_ends_in_the_global_well_as_often_as_its_kernel_says(
    noise, left, stationary, relaxation
):
    law, time = double_well.noisy_descent_stationary(0.01, noise)
    assert double_well.noisy_descent(2000, 0.01, noise, 2.0).left == pytest.approx(left, abs=1e-8)
    assert law.left == pytest.approx(stationary, abs=1e-6)
    assert time == pytest.approx(relaxation, rel=1e-5)
    late = double_well.noisy_descent(int(4 * relaxation), 0.01, noise, 2.0)
    assert late.left == pytest.approx(law.left, abs=2 * math.exp(-4))


def test_at_a_small_noise_the_barrier_is_not_crossed():
    assert double_well.noisy_descent(2000, 0.01, 0.05, 2.0).left == pytest.approx(1.6e-8, rel=0.05)


def test_one_and_two_steps_of_noisy_descent_are_a_gaussian_and_its_image():
    one = double_well.noisy_descent(1, 0.01, 0.1, 2.0)
    middle = 2 - 0.01 * 17
    assert one.mean == pytest.approx(middle, abs=1e-13) and one.variance == pytest.approx(0.01, abs=1e-13)
    assert one.left == pytest.approx(stats.norm.cdf((BARRIER - middle) / 0.1), rel=1e-6)
    two = double_well.noisy_descent(2, 0.01, 0.1, 2.0)
    # E V'(z) of a Gaussian: 4 (m^3 + 3 m s^2) - 8 m + 1.
    expected = middle - 0.01 * (4 * (middle**3 + 3 * middle * 0.01) - 8 * middle + 1)
    assert two.mean == pytest.approx(expected, abs=1e-12)


def test_small_steps_approach_the_gibbs_distribution_at_noise_squared_over_twice_the_rate():
    exact = double_well.occupation(1.0)
    gaps = [double_well.noisy_descent_stationary(lr, math.sqrt(2 * lr))[0].left - exact for lr in (0.002, 0.001)]
    assert abs(gaps[1]) < 0.003 and gaps[1] == pytest.approx(gaps[0] / 2, rel=0.1)  # first order in the step


def test_what_has_no_answer_is_refused():
    with pytest.raises(ConfigError, match="temperature"):
        double_well.log_partition(-1.0)
    with pytest.raises(ConfigError, match="at least 0.02"):
        double_well.occupation(0.001)
    with pytest.raises(ConfigError, match="one well"):
        double_well.kramers_rate(0.5, tilt=5.0)
    with pytest.raises(ConfigError, match="runs away"):
        double_well.noisy_descent(10, 0.2, 0.5, 1.0)
    with pytest.raises(ConfigError, match="at least one step"):
        double_well.noisy_descent(0, 0.01, 0.1, 1.0)
    with pytest.raises(ConfigError, match="beyond"):
        double_well.noisy_descent(10, 0.01, 0.1, 9.0)
