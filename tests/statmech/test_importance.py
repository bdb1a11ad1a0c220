"""Importance weights against Gaussian integrals, known Pareto laws and unreliable proposals."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfmarl import random
from mfmarl.errors import NumericFault
from mfmarl.random import Key
from mfmarl.statmech import importance
from tests.statistical import beyond, statistical

KEY = Key.of(41)


def shifted(shift: float, scale: float, batches: int, samples: int, dimension: int = 1) -> tuple[torch.Tensor, ...]:
    """x from N(shift, scale^2) [batches, samples, d], and the log weights towards N(0, 1) [batches, samples]."""
    ids = torch.arange(batches * samples).reshape(batches, samples)
    noise = random.normal(KEY.fold("x"), ids, dimension).double()
    x = shift + scale * noise
    return x, ((noise * noise - x * x) / 2 + math.log(scale)).sum(-1)


@given(st.lists(st.floats(-300, 300), min_size=1, max_size=20), st.floats(-1000, 1000))
def test_weights_sum_to_one_and_a_common_factor_does_not_matter(values: list[float], factor: float) -> None:
    log_weights = torch.tensor(values, dtype=torch.float64)
    weights = importance.normalised(log_weights)
    assert abs(float(weights.sum()) - 1) < 1e-12
    assert torch.allclose(weights, importance.normalised(log_weights + factor), rtol=1e-9)
    size = float(importance.effective_sample_size(log_weights + factor))
    assert 1 - 1e-9 <= size <= len(values) + 1e-9
    assert math.isclose(size, 1 / float(weights.square().sum()), rel_tol=1e-9)


def test_equal_weights_are_worth_all_samples_and_one_large_weight_a_single_one() -> None:
    assert math.isclose(float(importance.effective_sample_size(torch.zeros(7, dtype=torch.float64))), 7)
    assert math.isclose(float(importance.effective_sample_size(torch.tensor([0.0, 1000.0, -1000.0]))), 1)


def test_a_policy_ratio_has_the_known_effective_share() -> None:
    old, new = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
    divergence = importance.categorical_renyi_divergence(new, old)
    assert math.isclose(math.exp(-float(divergence)), 0.93457944, abs_tol=5e-9)  # 1/1.07
    # Samples in exactly the old policy's proportions show exactly that share.
    ratio = (new / old).log().repeat_interleave(torch.tensor([5, 3, 2]))
    assert math.isclose(float(importance.effective_sample_size(ratio)) / 10, 1 / 1.07, rel_tol=1e-12)
    assert math.isclose(float(importance.renyi_divergence(ratio)), float(divergence), rel_tol=1e-12)


@pytest.mark.parametrize(("shift", "scale", "dimension"), [(0.5, 1.0, 1), (0.3, 1.0, 5), (0.2, 1.4, 2), (0.0, 0.9, 1)])
@statistical(alpha=beyond(5, 20, samples=400), bugs=("uniforms-narrow", "shifted-normals"))
def test_the_second_moment_of_gaussian_weights_is_the_integral(shift: float, scale: float, dimension: int) -> None:
    _, log_weights = shifted(shift, scale, 400, 2000, dimension)
    wanted = float(
        importance.gaussian_renyi_divergence(torch.full((dimension,), shift), torch.full((dimension,), scale))
    )
    moments = (2 * log_weights).exp().mean(-1)
    error = float(moments.std()) / math.sqrt(400)
    assert abs(float(moments.mean()) - math.exp(wanted)) < 5 * error
    if scale == 1:
        assert math.isclose(wanted, dimension * shift**2, rel_tol=1e-6)  # ESS/n -> exp(-d delta^2)


@statistical(alpha=1e-3, bugs=("uniforms-narrow", "uniforms-lean"))
def test_the_effective_share_tends_to_the_exponential_of_the_divergence() -> None:
    _, log_weights = shifted(0.7, 1.0, 1, 400_000)
    share = float(importance.effective_sample_size(log_weights)) / 400_000
    # Delta method: the relative error of ESS/n from the fluctuations of w^2 and w over the samples.
    w = log_weights[0].exp()
    error = float((w.square() / w.square().mean() - 2 * w / w.mean()).std()) / math.sqrt(400_000)
    assert abs(math.log(share) + 0.49) < 5 * error


@pytest.mark.parametrize("scale", [0.7, math.sqrt(0.5), 0.3])
def test_a_proposal_that_is_too_narrow_has_infinite_variance(scale: float) -> None:
    assert importance.gaussian_renyi_divergence(torch.zeros(1).double(), torch.tensor([scale]).double()) == math.inf
    assert (
        importance.gaussian_renyi_divergence(torch.zeros(1).double(), torch.tensor([0.72], dtype=torch.float64))
        < math.inf
    )


@statistical(alpha=beyond(5, 20, samples=1000), bugs=("weight-estimate-off", "weight-error-tiny"))
def test_estimates_fall_within_their_errors_as_often_as_they_should() -> None:
    x, log_weights = shifted(0.5, 1.2, 1000, 1000)
    for known in (True, False):
        found = importance.estimate(x[..., 0].square(), log_weights, self_normalised=not known)
        away = (found.value - 1) / found.standard_error
        inside = float((away.abs() < 1).double().mean())
        assert abs(inside - 0.6827) < 5 * math.sqrt(0.6827 * 0.3173 / 1000)
        assert abs(float((found.value - 1).mean())) < 5 * float(found.value.std()) / math.sqrt(1000) + 2e-3


@statistical(alpha=beyond(5, 20, samples=500), bugs=("log-weight-off", "uniforms-narrow"))
def test_the_mean_weight_gives_the_ratio_of_partition_functions() -> None:
    _, log_weights = shifted(0.4, 1.1, 500, 2000)
    value, error = importance.log_mean_weight(log_weights + math.log(3.0))
    assert abs(float(value.mean()) - math.log(3.0)) < 5 * float(value.std()) / math.sqrt(500) + 1e-3
    ratio = float(error.square().mean().sqrt() / value.std())
    assert abs(ratio - 1) < 5 / math.sqrt(2 * 500)


def pareto(shape: float, batches: int, samples: int) -> torch.Tensor:
    """Log weights whose law has the tail index `shape`: w = u^-k."""
    ids = torch.arange(batches * samples).reshape(batches, samples)
    return random.exponential(KEY.fold("pareto"), ids).double() * shape


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.3])
@statistical(alpha=beyond(5, 20, samples=200), bugs=("uniforms-narrow", "uniforms-lean"))
def test_the_shape_of_a_pareto_tail_is_found(shape: float) -> None:
    found = importance.pareto_shape(pareto(shape, 200, 20_000))
    size = math.ceil(3 * math.sqrt(20_000))
    shrunk = (size * shape + 5) / (size + 10)
    error = float(found.std()) / math.sqrt(200)
    # Maximum likelihood's error for a tail of this size (Smith 1987): (1 + k)/sqrt(size), and its bias, O(1/size).
    assert abs(float(found.mean()) - shrunk) < 5 * error + 3 / size
    assert abs(float(found.std()) / ((1 + shape) / math.sqrt(size)) - 1) < 0.25 + 5 / math.sqrt(400)


def test_the_shape_agrees_with_an_independent_fit_drawn_to_one_half() -> None:
    stats = pytest.importorskip("scipy.stats")
    log_weights = pareto(1.3, 12, 2500)
    size = math.ceil(3 * math.sqrt(2500))
    ours = importance.pareto_shape(log_weights)
    theirs = []
    for row in log_weights:
        weights = row.exp().sort().values
        shape, _, _ = stats.genpareto.fit((weights[-size:] - weights[-size - 1]).numpy(), floc=0)
        theirs.append((size * shape + 10 * 0.5) / (size + 10))
    assert abs(float(ours.mean()) - sum(theirs) / len(theirs)) < 0.015  # without the pull it would be .05


def test_smoothing_leaves_the_bulk_and_the_order_alone_and_never_exceeds_the_largest() -> None:
    log_weights = pareto(0.8, 5, 1000)
    smooth, shape = importance.pareto_smoothed(log_weights)
    order = log_weights.argsort(-1)
    size = math.ceil(3 * math.sqrt(1000))
    before, after = log_weights.gather(-1, order), smooth.gather(-1, order)
    assert torch.equal(before[:, :-size], after[:, :-size])
    assert bool((after.diff(dim=-1) >= -1e-9).all())
    assert bool((after[:, -1] <= before[:, -1] + 1e-12).all())
    assert torch.equal(shape, importance.pareto_shape(log_weights))


def test_smoothing_makes_heavy_tailed_averages_steadier() -> None:
    x, log_weights = shifted(0.0, 0.6, 400, 1000)  # infinite variance: the plain error never settles
    raw = importance.estimate(x[..., 0].square(), log_weights, warn=False).value
    smooth = importance.estimate(x[..., 0].square(), importance.pareto_smoothed(log_weights)[0], warn=False).value
    assert float((smooth - 1).square().mean()) < float((raw - 1).square().mean())


def test_alike_weights_have_no_tail() -> None:
    assert float(importance.pareto_shape(torch.zeros(100))) == -math.inf
    assert float(importance.pareto_shape(torch.randn(10, generator=torch.Generator().manual_seed(0)))) == -math.inf
    smooth, _ = importance.pareto_smoothed(torch.zeros(100))
    assert torch.equal(smooth, torch.zeros(100))


def test_a_poor_proposal_is_warned_of_by_name_and_a_good_one_is_not() -> None:
    x, log_weights = shifted(3.0, 1.0, 1, 1000)
    with pytest.warns(importance.ProposalWarning, match=r"effective sample size .* of 1000 .* k = "):
        importance.estimate(x[..., 0], log_weights)
    x, log_weights = shifted(0.3, 1.1, 1, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importance.estimate(x[..., 0], log_weights)


def test_infinite_variance_raises_the_alarm_though_the_effective_size_looks_fair() -> None:
    _, log_weights = shifted(0.0, 0.45, 1, 20_000)
    seen = importance.overlap(log_weights, warn=False)
    assert float(seen.pareto_shape) > importance.ALARM
    with pytest.warns(importance.ProposalWarning):
        importance.overlap(log_weights, least_share=0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_weights_are_refused(bad: float) -> None:
    with pytest.raises(NumericFault, match="NaN or"):
        importance.normalised(torch.tensor([0.0, bad]))


def test_no_overlap_at_all_is_refused() -> None:
    with pytest.raises(NumericFault, match="no sample"):
        importance.estimate(torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 0.0], [-math.inf] * 3]))


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "uniforms-lean"))
def test_joint_ratios_of_many_agents_die_while_each_alone_stays_fair() -> None:
    sigma, samples = 0.3, 200_000
    for agents in (1, 10, 40):
        noise = random.normal(KEY.fold("ratio", agents), torch.arange(samples), agents).double()
        found = importance.ratios(sigma * noise - sigma * sigma / 2)
        # Log-normal ratios: variance N sigma^2, joint share exp(-N sigma^2), alone exp(-sigma^2).
        assert abs(float(found.joint_log_variance) / (agents * sigma**2) - 1) < 5 * math.sqrt(2 / samples)
        assert abs(float(found.agent_log_variance) / sigma**2 - 1) < 5 * math.sqrt(2 / samples)
        assert abs(float(found.agent_share) - math.exp(-(sigma**2))) < 0.005
        assert abs(math.log(float(found.joint_share)) + agents * sigma**2) < 0.05 * agents * sigma**2 + 0.005


def test_rows_of_a_batch_do_not_know_each_other() -> None:
    log_weights = pareto(0.5, 6, 500)
    for function in (importance.effective_sample_size, importance.pareto_shape, importance.renyi_divergence):
        together = function(log_weights)
        alone = torch.stack([function(row) for row in log_weights])
        assert torch.allclose(together, alone, rtol=1e-12)
    first = importance.estimate(log_weights, log_weights, warn=False)
    assert torch.allclose(first.value[2], importance.estimate(log_weights[2], log_weights[2], warn=False).value)
