"""Warming up: the step size, the masses and the length it should find, and the effective samples that buys."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.energies.continuous import Gaussian
from mfmarl.statmech.sampling import diagnostics, hamiltonian, noise, tuning
from tests.statistical import beyond, statistical


def ill_conditioned(n: int) -> Gaussian:
    """Standard deviations from .03 to 1, along no axis."""
    basis, _ = torch.linalg.qr(noise.normal(Key.of(0), torch.arange(n), n, torch.float64))
    precision = basis @ torch.diag(torch.logspace(3, 0, n, dtype=torch.float64)) @ basis.T
    return Gaussian(torch.zeros(n), ((precision + precision.T) / 2).float())


@pytest.mark.parametrize(("mass", "nuts", "nuts_square"), [("diagonal", 6.89, 4.78), ("dense", 94.57, 33.20)])
@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "numbers-lean"))
def test_an_ill_conditioned_gaussian_of_100_variables_is_sampled_as_well_as_by_nuts(mass, nuts, nuts_square):
    """Effective samples per 1,000 gradients of the worst variable and the worst square; NUTS of blackjax 1.7.1.

    Its figures are from `scripts/bench/bench_hamiltonian.py` (4 chains, window adaptation of 1,000 steps).
    """
    energy, count = ill_conditioned(100), 32
    x = noise.normal(Key.of(1), torch.arange(count), 100)
    x, tuned = tuning.warm_up(energy, x, 1.0, Key.of(1), 400, mass=mass)
    steps = 200
    _, seen, report = hamiltonian.sample(energy, tuned, x, 1.0, Key.of(2), steps)
    gradients = steps * count * (tuned.steps + 1) / 2
    bulk = float(diagnostics.effective_sample_size(seen, observables=1).min())
    square = float(diagnostics.effective_sample_size(seen**2, "mean", observables=1).min())
    assert 1e3 * bulk / gradients > nuts
    assert 1e3 * square / gradients > nuts_square
    assert 0.75 < float(report.acceptance.mean()) < 0.95
    assert float(diagnostics.split_r_hat(seen, observables=1).max()) < 1.05
    exact = energy.covariance.diag()
    # 5 sigma of a variance from the effective samples of the squares.
    assert bool(((seen.double().var((0, 1)) / exact - 1).abs() < 5 * math.sqrt(2 / square)).all())


def test_the_length_settles_at_the_slowest_directions_half_turn():
    """Under uniform jitter the expected ChEES of a Gaussian is largest where tan(2 T) = 2 T: T = 2.247 widths."""
    widths = torch.tensor([3.0] + [0.3] * 19)  # the narrow ones make the steps small beside the length
    energy = Gaussian(torch.zeros(20), torch.diag(widths**-2))
    for count, seed in ((256, 0), (4, 1), (4, 2), (4, 3)):
        x = widths * noise.normal(Key.of(seed), torch.arange(count), 20)
        _, tuned = tuning.warm_up(energy, x, 1.0, Key.of(seed), 400, mass="unit")
        assert tuned.steps * tuned.step_size / 3 == pytest.approx(2.247, rel=0.3)


def test_masses_become_the_spread_of_each_variable():
    scales = torch.tensor([0.1, 1.0, 30.0])
    energy = Gaussian(torch.zeros(3), torch.diag(scales**-2))
    _, tuned = tuning.warm_up(energy, torch.zeros(200, 3), 4.0, Key.of(0), 300)
    assert torch.allclose(tuned.inverse_mass, scales**2 / 4, rtol=0.1)
    _, dense = tuning.warm_up(ill_conditioned(5), torch.zeros(200, 5), 1.0, Key.of(0), 300, mass="dense")
    assert torch.allclose(dense.inverse_mass, ill_conditioned(5).covariance, atol=0.1)


def test_acceptance_comes_near_its_target():
    energy = ill_conditioned(50)
    for target in (0.7, 0.9):
        x, tuned = tuning.warm_up(energy, torch.zeros(64, 50), 1.0, Key.of(0), 400, mass="dense", target=target)
        _, _, report = hamiltonian.sample(energy, tuned, x, 1.0, Key.of(1), 100)
        # Steered by the mean of log steps, over 50 sweeps of changing length: no nearer than this.
        assert float(report.acceptance.mean()) == pytest.approx(target, abs=0.08)


def test_the_windows_of_the_masses_double_and_end_before_the_end():
    ends = tuning.windows(1000)
    assert ends == [200, 300, 500, 950]
    assert tuning.windows(60)[-1] == 45


def test_warming_up_is_repeatable():
    energy, x = ill_conditioned(5), torch.zeros(8, 5)
    one, other = (tuning.warm_up(energy, x, 1.0, Key.of(4), 60) for _ in range(2))
    assert torch.equal(one[0], other[0]) and one[1].step_size == other[1].step_size


def test_what_cannot_be_tuned_is_refused():
    with pytest.raises(NumericFault, match="No HMC step size"):
        tuning.warm_up(lambda x: 0 * x.sum(-1), torch.zeros(4, 2), 1.0, Key.of(0))
    with pytest.raises(ConfigError, match="50 sweeps"):
        tuning.warm_up(ill_conditioned(2), torch.zeros(4, 2), 1.0, Key.of(0), 10)
    with pytest.raises(ConfigError, match="'dense'"):
        tuning.warm_up(ill_conditioned(2), torch.zeros(4, 2), 1.0, Key.of(0), mass="full")


def test_the_length_follows_the_masses_so_that_wide_variables_cost_no_more():
    """Once the masses know a width of 100, a trajectory a hundred times too long would be 99 % waste."""

    def leapfrogs(width: float) -> int:
        count = 0

        class Wide:
            def __call__(self, x: torch.Tensor) -> torch.Tensor:
                return 0.5 * (x / scale).square().sum(-1)

            def gradient(self, x: torch.Tensor) -> torch.Tensor:
                nonlocal count
                count += 1
                return x / scale**2

        scale = torch.tensor([1.0, width])
        x = scale * noise.normal(Key.of(0), torch.arange(64), 2)
        _, tuned = tuning.warm_up(Wide(), x, 1.0, Key.of(1), 200)
        assert tuned.steps * tuned.step_size < 6
        return count

    assert leapfrogs(100.0) < 8 * leapfrogs(1.0)
