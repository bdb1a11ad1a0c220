"""Diagnostics: against the exact AR(1), against the algorithms written a second time as loops, on broken chains."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import signal, stats

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.sampling import chains, single_spin
from mfmarl.statmech.sampling import diagnostics as d
from tests.statistical import beyond, statistical


def ar1(a: float, steps: int, count: int, seed: int = 0) -> torch.Tensor:
    """Stationary x_t = a x_{t-1} + sqrt(1 - a^2) noise, variance 1, [steps, count]."""
    noise = random.normal(Key.of(seed), torch.arange(count), steps).double().numpy()
    noise[:, 1:] *= math.sqrt(1 - a * a)
    return torch.from_numpy(signal.lfilter([1.0], [1.0, -a], noise, axis=1).T.copy())


def ess_by_loops(x: np.ndarray) -> float:
    """Geyer's initial monotone sequence over several chains [steps, chains], step by step as the Stan manual has it."""
    n, m = x.shape
    away = x - x.mean(0)
    acov = np.array([(away[: n - t] * away[t:]).sum(0) / n for t in range(n)])
    w = (acov[0] * n / (n - 1)).mean()
    var_plus = w * (n - 1) / n + (x.mean(0).var(ddof=1) if m > 1 else 0.0)
    rho = [1.0] + [1 - (w - acov[t].mean()) / var_plus for t in range(1, n)]
    sums: list[float] = []
    t = 0
    while t + 1 < n and rho[t] + rho[t + 1] > 0:
        sums.append(min(rho[t] + rho[t + 1], sums[-1] if sums else math.inf))
        t += 2
    tau = -1 + 2 * sum(sums) + (max(rho[t], 0) if t + 1 < n else 0)
    return n * m / max(tau, 1 / math.log10(n * m))


def normal_scores(x: np.ndarray) -> np.ndarray:
    return stats.norm.ppf((stats.rankdata(x, axis=None).reshape(x.shape) - 0.375) / (x.size + 0.25))


def halves(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[: len(x) // 2], x[-(len(x) // 2) :]], axis=1)


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9, -0.5])
def test_the_autocorrelation_time_of_an_ar1_is_one_plus_a_over_one_minus_a(a):
    tau = d.autocorrelation_time(ar1(a, 20_000, 64))
    exact = (1 + a) / (1 - a)
    left_out = 2 * abs(a) ** (5 * max(exact, 1)) * abs(a) / (1 - a)  # beyond Sokal's window
    assert abs(float(tau.mean()) - exact) < 5 * float(tau.std()) / 8 + left_out


def test_the_autocorrelation_of_an_ar1_is_a_power():
    rho = d.autocorrelation(ar1(0.8, 20_000, 64, 1))
    for lag in (1, 3, 7):
        assert abs(float(rho[lag].mean()) - 0.8**lag) < 5 * float(rho[lag].std()) / 8
    assert torch.equal(rho[0], torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(100, 4), (101, 1), (64, 7), (500, 2)])
@pytest.mark.parametrize("a", [0.0, 0.7, -0.6])
def test_ess_and_r_hat_agree_with_loops_of_a_second_hand(shape, a):
    x = ar1(a, shape[0], shape[1], seed=5)
    x[:, 0] += 0.3
    y = x.numpy()
    assert float(d.effective_sample_size(x, "mean")) == pytest.approx(ess_by_loops(halves(y)), rel=1e-9)
    bulk = ess_by_loops(normal_scores(halves(y)))
    assert float(d.effective_sample_size(x)) == pytest.approx(bulk, rel=1e-9)
    low, high = np.quantile(y, [0.05, 0.95])
    tail = min(ess_by_loops(halves(1.0 * (y <= level))) for level in (low, high))
    assert float(d.effective_sample_size(x, "tail")) == pytest.approx(tail, rel=1e-9)

    def r_hat(z: np.ndarray) -> float:
        w = z.var(0, ddof=1).mean()
        return math.sqrt(((len(z) - 1) / len(z) * w + z.mean(0).var(ddof=1)) / w)

    cut = halves(y)
    # torch's median of an even number is the lower of the two in the middle; the folding is then about it.
    folded = np.abs(cut - np.sort(cut, axis=None)[(cut.size - 1) // 2])
    expected = max(r_hat(normal_scores(cut)), r_hat(normal_scores(folded)))
    assert float(d.split_r_hat(x)) == pytest.approx(expected, rel=1e-9)


def test_observables_are_judged_one_by_one():
    x = torch.stack([ar1(a, 300, 4, seed) for seed, a in enumerate((0.0, 0.5, 0.9))], -1).reshape(300, 2, 2, 3)
    for answer in (
        d.effective_sample_size,
        d.split_r_hat,
        lambda y, observables=0: d.mean_and_error(y, observables).error,
    ):
        together = answer(x, observables=1)
        assert together.shape == (3,)
        for i in range(3):
            assert float(together[i]) == pytest.approx(float(answer(x[..., i])), rel=1e-12)


@pytest.mark.parametrize(("count", "steps"), [(1, 2000), (4, 500), (64, 20)])
@statistical(alpha=beyond(5, 200), bugs=("chain-error-tiny", "shifted-normals"))
def test_the_errors_of_means_are_right_over_many_replications(count, steps):
    z, replications = [], 400
    x = ar1(0.7, steps, count * replications, seed=9)
    for part in x.split(count, 1):
        mean, error = d.mean_and_error(part)
        z.append(float(mean / error))
    square = np.square(z)
    # E z^2 = 1 but for the noise of the error itself: 63 degrees of freedom give 63/61; Geyer's noise gives percents.
    spread = square.std() / math.sqrt(replications)
    assert abs(square.mean() - 1) < 5 * spread
    assert square.mean() / spread > 5  # so that 0 would not have passed


def test_chains_that_stay_apart_make_a_large_r_hat_and_a_small_ess():
    x = ar1(0.0, 400, 4)
    assert float(d.split_r_hat(x)) < 1.01
    x[:, :2] += 3
    assert float(d.split_r_hat(x)) > 1.5
    assert float(d.effective_sample_size(x)) < 10
    wide = ar1(0.0, 400, 4) * torch.tensor([1.0, 1.0, 3.0, 3.0])  # one centre, two widths: only folding sees it
    assert float(d.split_r_hat(wide)) > 1.1


def test_heavy_tails_do_not_fool_the_bulk():
    cauchy = torch.tan(math.pi * (random.uniform(Key.of(2), torch.arange(4), 2000).double().T - 0.5))
    assert 6500 < float(d.effective_sample_size(cauchy)) < 10_000
    assert float(d.split_r_hat(cauchy)) < 1.01


def test_standing_chains_are_told_from_mixed_ones():
    still = torch.ones(50, 3)
    assert torch.equal(d.autocorrelation_time(still), torch.ones(3, dtype=torch.float64))
    assert float(d.split_r_hat(still)) == 1
    apart = torch.ones(50, 4) * torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert float(d.split_r_hat(apart)) == math.inf
    with pytest.warns(d.NonErgodic, match="magnetisation is not ergodic: R-hat is inf"):
        assert not d.check_mixing(apart, "magnetisation").mixed


def quench(temperature: float, key: Key) -> torch.Tensor:
    """A 12 x 12 Ising torus put at once from infinite temperature to T: magnetisation [600, 16 chains]."""
    system = spins.ising(graphs.torus(12, 12), 144).to(torch.float32)
    start = system.random_states((16,), key.fold("start"))
    return chains.run(
        single_spin.heat_bath(system), start, 1 / temperature, key, 600, lambda s: s.mean(-1), warm_up=200
    )[1]


def test_a_quench_of_the_ising_model_below_its_critical_temperature_is_flagged():
    m = quench(1.6, Key.of(3))
    assert bool((m[-1] > 0.8).any()) and bool((m[-1] < -0.8).any())
    with pytest.warns(d.NonErgodic, match="R-hat"):
        found = d.check_mixing(m, "m")
    assert not found.mixed and found.r_hat > 1.5
    with pytest.warns(d.NonErgodic, match="symmetry asks for 0"):  # one chain agrees with itself, but not with symmetry
        one = d.check_mixing(m[:, m[-1] > 0.8][:, :1], "m", symmetric=True)
    assert one.jumps == 0


def test_the_ising_model_above_its_critical_temperature_is_not_flagged():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = d.check_mixing(quench(4.0, Key.of(3)), "m", symmetric=True)
    assert found.mixed and found.jumps > 100


def test_jumps_are_counted_with_hysteresis():
    path = torch.tensor([0.1, 1.0, 0.2, -0.2, 0.3, -1.2, -0.5, 0.5, 2.0, 0.0, 1.0, -1.0])
    assert int(d.mode_jumps(path, -1, 1)) == 3
    assert d.mode_jumps(torch.stack([path, -path, 0 * path], -1), -1, 1).tolist() == [3, 3, 0]


def test_the_binder_cumulant_is_nought_for_a_gaussian_and_two_thirds_for_two_values():
    x = random.normal(Key.of(4), torch.arange(200_000)).double()
    # Var U = Var(z^4 - 6 z^2)/9n = 24/9n for z of variance 1.
    assert abs(float(d.binder_cumulant(x))) < 5 * math.sqrt(24 / 9 / len(x))
    assert float(d.binder_cumulant(torch.where(x > 0, 0.7, -0.7))) == pytest.approx(2 / 3, abs=1e-12)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ConfigError, match="at least 8 steps"):
        d.effective_sample_size(torch.zeros(5, 2))
    with pytest.raises(NumericFault, match="Observations"):
        d.split_r_hat(torch.tensor([1.0, math.nan] * 10))
    with pytest.raises(ConfigError, match="'tail'"):
        d.effective_sample_size(torch.zeros(20, 2), "tails")
    with pytest.raises(ConfigError, match="axes of observables"):
        d.split_r_hat(torch.zeros(20, 2), observables=2)
    with pytest.raises(ConfigError, match="order parameter"):
        d.binder_cumulant(torch.zeros(5))
    with pytest.raises(ConfigError, match="cannot tell an error"):
        d.mean_and_error(torch.zeros(5, 2))
