"""Exponential averages, Bennett's ratio and MBAR: Gaussians with known answers, error bars that are right, pymbar."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.free_energy import perturbation
from mfmarl.statmech.sampling import noise

CENTRES, WIDTHS = (0.0, 0.5, 1.0), (1.0, 0.95, 1.1)


def reduced(x: torch.Tensor, state: int) -> torch.Tensor:
    return (x - CENTRES[state]) ** 2 / (2 * WIDTHS[state] ** 2)


def exact(state: int, of: int = 0) -> float:
    """log Z_state/Z_of."""
    return math.log(WIDTHS[state] / WIDTHS[of])


def draws(state: int, replications: int, n: int) -> torch.Tensor:
    z = noise.normal(Key.of(10 + state), torch.arange(replications), n, torch.float64)
    return CENTRES[state] + WIDTHS[state] * z


def works(replications: int, n0: int, n1: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduced work 0 -> 1 and 1 -> 0, [replications, n]."""
    x0, x1 = draws(0, replications, n0), draws(1, replications, n1)
    return reduced(x0, 1) - reduced(x0, 0), reduced(x1, 0) - reduced(x1, 1)


def assert_right(z: torch.Tensor) -> None:
    """z-scores: mean 0 and variance 1 within 5 standard errors of each."""
    r = len(z)
    assert abs(float(z.mean())) < 5 / math.sqrt(r)
    square = (z - z.mean()).square()
    assert abs(float(square.mean()) - 1) < 5 * float(square.std()) / math.sqrt(r)


def test_error_bars_of_exponential_averages_are_right_both_ways():
    forward, backward = works(1000, 1000, 1000)
    for found, answer in (
        (perturbation.zwanzig(forward), exact(1)),
        (perturbation.zwanzig(backward), -exact(1)),
    ):
        assert found.value.shape == (1000,)
        assert_right((found.value - found.bias - answer) / found.error)


@pytest.mark.parametrize(("n0", "n1"), [(400, 400), (600, 150)])
def test_error_bars_of_bennetts_ratio_are_right(n0, n1):
    found = perturbation.bar(*works(1000, n0, n1))
    assert_right((found.value - exact(1)) / found.error)


def test_bennetts_ratio_has_a_smaller_error_than_either_exponential_average():
    forward, backward = works(200, 400, 400)
    both = perturbation.bar(forward, backward).value.std()
    for one_way in (perturbation.zwanzig(forward), perturbation.zwanzig(backward)):
        assert both < one_way.value.std()


def test_bennetts_ratio_of_two_states_is_mbar_of_two_states():
    forward, backward = works(1, 300, 200)
    two = perturbation.bar(forward, backward)
    x = torch.cat([draws(0, 1, 300), draws(1, 1, 200)], 1)[0]
    many = perturbation.mbar(torch.stack([reduced(x, 0), reduced(x, 1)]), torch.tensor([300, 200]))
    assert float(many.log_partition[1]) == pytest.approx(float(two.value), abs=1e-9)
    assert float(many.error(1)) == pytest.approx(float(two.error), rel=1e-3)  # equal as n grows


def test_error_bars_of_mbar_are_right_for_all_pairs_and_for_averages():
    counts = torch.tensor([150, 0, 250])  # the middle state was never sampled
    z: dict[str, list[torch.Tensor]] = {"1-0": [], "2-0": [], "2-1": [], "mean": []}
    x0, x2 = draws(0, 400, 150), draws(2, 400, 250)
    for a, b in zip(x0, x2, strict=True):
        x = torch.cat([a, b])
        found = perturbation.mbar(torch.stack([reduced(x, k) for k in range(3)]), counts)
        for i, j in ((1, 0), (2, 0), (2, 1)):
            ratio = found.log_partition[i] - found.log_partition[j]
            z[f"{i}-{j}"].append((ratio - exact(i, j)) / found.error(i, j))
        mean, error = found.mean(x, 1)
        z["mean"].append((mean - CENTRES[1]) / error)
    for scores in z.values():
        assert_right(torch.stack(scores))


def test_weights_of_mbar_sum_to_one_and_its_overlaps_too():
    x = torch.cat([draws(0, 1, 100), draws(1, 1, 120), draws(2, 1, 90)], 1)[0]
    found = perturbation.mbar(torch.stack([reduced(x, k) for k in range(3)]), torch.tensor([100, 120, 90]))
    one = torch.ones(3, dtype=torch.float64)
    assert torch.allclose(found.log_weights.exp().sum(-1), one, atol=1e-9)
    assert torch.allclose(found.overlap.sum(-1), one, atol=1e-9)
    assert float(found.mean(torch.full((310,), 3.0), 2)[0]) == pytest.approx(3.0)


def test_pymbar_says_the_same(monkeypatch):
    logging = pytest.importorskip("logging")
    logging.disable(logging.WARNING)
    pymbar = pytest.importorskip("pymbar")
    forward, backward = works(1, 300, 200)
    ours = perturbation.bar(forward, backward)
    theirs = pymbar.other_estimators.bar(forward[0].numpy(), backward[0].numpy())
    assert -float(ours.value) == pytest.approx(theirs["Delta_f"], abs=1e-6)
    assert float(ours.error) == pytest.approx(theirs["dDelta_f"], rel=1e-4)
    one_way, single = pymbar.other_estimators.exp(forward[0].numpy()), perturbation.zwanzig(forward)
    assert -float(single.value) == pytest.approx(one_way["Delta_f"], abs=1e-9)
    assert float(single.error) == pytest.approx(one_way["dDelta_f"], rel=0.01)  # n or n - 1

    x = torch.cat([draws(0, 1, 200), draws(2, 1, 250)], 1)[0]
    u = torch.stack([reduced(x, k) for k in range(3)])
    many = perturbation.mbar(u, torch.tensor([200, 0, 250]))
    peer = pymbar.MBAR(u.numpy(), np.array([200, 0, 250]), solver_protocol="robust")
    answer = peer.compute_free_energy_differences()
    assert np.allclose(-many.log_partition.numpy(), answer["Delta_f"][0], atol=1e-7)
    for i in range(3):
        for j in range(3):
            assert float(many.error(i, j)) == pytest.approx(answer["dDelta_f"][i, j], rel=1e-3, abs=1e-7)
    average = peer.compute_expectations(x.numpy())
    for k in range(3):
        mean, error = many.mean(x, k)
        assert float(mean) == pytest.approx(average["mu"][k], abs=1e-7)
        assert float(error) == pytest.approx(average["sigma"][k], rel=1e-3)
    logging.disable(logging.NOTSET)


def test_no_overlap_is_warned_of_by_name():
    far = 60 + 8 * noise.normal(Key.of(1), torch.arange(2), 500, torch.float64)  # <w> = 60, both ways
    with pytest.warns(perturbation.PoorOverlap, match=r"ESS of 1\.\d* of 500"):
        perturbation.zwanzig(far[0])
    with pytest.warns(perturbation.PoorOverlap, match=r"Bennett's ratio has an ESS of"):
        perturbation.bar(far[0], far[1])
    x = torch.cat([draws(0, 1, 300), 12 + draws(0, 1, 300)], 1)[0]
    u = torch.stack([x**2 / 2, (x - 12) ** 2 / 2])
    with pytest.warns(perturbation.PoorOverlap, match=r"MBAR's weakest link has an ESS of"):
        perturbation.mbar(u, torch.tensor([300, 300]))
    far_apart = torch.stack([x**2 / 2, (x - 400) ** 2 / 2])
    with pytest.warns(perturbation.PoorOverlap, match=r"ESS of \d\.\d+e-\d\d of 600"):
        perturbation.mbar(far_apart, torch.tensor([300, 300]))


def test_good_overlap_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forward, backward = works(1, 500, 500)
        perturbation.zwanzig(forward)
        assert float(perturbation.bar(forward, backward).ess) > 300
        perturbation.bar(forward[:, :20], backward[:, :20])  # few samples, but of states that overlap


def test_correlated_samples_have_errors_that_are_wider_by_the_root_of_their_inefficiency():
    forward, backward = works(1, 400, 400)
    for plain, wide in (
        (perturbation.zwanzig(forward), perturbation.zwanzig(forward, inefficiency=4.0)),
        (perturbation.bar(forward, backward), perturbation.bar(forward, backward, inefficiency=4.0)),
    ):
        assert torch.allclose(2 * plain.error, wide.error)


def test_an_offset_of_the_energy_shifts_the_answer_and_nothing_else():
    forward, backward = works(3, 200, 300)
    plain, shifted = perturbation.bar(forward, backward), perturbation.bar(forward + 700, backward - 700)
    assert torch.allclose(shifted.value, plain.value - 700, atol=1e-9)
    assert torch.allclose(shifted.error, plain.error, rtol=1e-6)


def test_what_is_no_work_is_refused():
    with pytest.raises(ConfigError, match="at least 2 samples"):
        perturbation.zwanzig(torch.zeros(1))
    with pytest.raises(NumericFault, match="NaN"):
        perturbation.bar(torch.tensor([0.0, math.nan]), torch.zeros(2))
    with pytest.raises(NumericFault, match="importance weight is 0"):
        perturbation.log_mean_weight(torch.full((5,), -math.inf))
    with pytest.raises(ConfigError, match="counts that add up"):
        perturbation.mbar(torch.zeros(2, 5), torch.tensor([2, 2]))
