"""Drawing by weight: exact counts, unbiased corrections, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import weighted_sampling
from tests.statistical import beyond, statistical

KEY = Key.of(42)
PRIORITY = torch.tensor([0.0, 1.0, 2.0, 4.0, 9.0], dtype=torch.float64)


def test_probabilities_are_powers_of_the_priorities() -> None:
    wanted = torch.tensor([0.0, 1.0, math.sqrt(2), 2.0, 3.0]).double()
    assert torch.allclose(weighted_sampling.replay_probabilities(PRIORITY, 0.5), wanted / wanted.sum())
    assert torch.allclose(weighted_sampling.replay_probabilities(PRIORITY + 1e300, 1.0), torch.full((5,), 0.2).double())
    assert torch.allclose(weighted_sampling.replay_probabilities(PRIORITY, 0.0), torch.full((5,), 0.2).double())


def test_corrected_weights_undo_the_priorities_exactly() -> None:
    p = weighted_sampling.replay_probabilities(PRIORITY[1:], 0.7)
    loss = torch.tensor([3.0, -1.0, 2.0, 5.0]).double()
    weights = weighted_sampling.replay_weights(p, 1.0)
    average = (p * weights * loss).sum() / (p * weights).sum()
    assert math.isclose(float(average), float(loss.mean()), rel_tol=1e-12)
    assert float(weights.max()) == 1.0
    n = len(p)
    wanted = (n * p).pow(-0.4) / (n * p).pow(-0.4).max()
    assert torch.allclose(weighted_sampling.replay_weights(p, 0.4), wanted)
    assert torch.allclose(weighted_sampling.replay_weights(p, 0.4, torch.tensor([2, 0])), wanted[[2, 0]])
    assert torch.equal(weighted_sampling.replay_weights(p, 0.0), torch.ones(4).double())


def test_draws_follow_the_probabilities_and_the_impossible_is_never_drawn() -> None:
    n = 200_000
    p = weighted_sampling.replay_probabilities(PRIORITY, 1.0)
    counts = torch.bincount(weighted_sampling.draw(p, torch.arange(n), KEY), minlength=5)
    assert int(counts[0]) == 0
    expected = n * p[1:]
    chi_square = float(((counts[1:] - expected).square() / expected).sum())
    assert chi_square < 21.1  # 3 degrees of freedom, p = 1e-4


def test_a_draw_does_not_know_how_many_there_are() -> None:
    p = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    many = weighted_sampling.draw(p, torch.arange(500), KEY)
    assert torch.equal(many[100:110], weighted_sampling.draw(p, torch.arange(100, 110), KEY))


def test_among_millions_every_item_can_be_drawn() -> None:
    n = 1 << 25  # float32's 2^23 levels would leave three quarters out
    index = weighted_sampling.draw(torch.ones(n), torch.arange(40_000), KEY)
    assert int((index % 4 == 1).sum()) > 9_000


def test_systematic_resampling_takes_floor_or_ceiling() -> None:
    log_weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.0, 0.5]], dtype=torch.float64).log()
    for turn in range(50):
        index = weighted_sampling.resample(log_weights, torch.arange(2), KEY.fold(turn))
        for row in range(2):
            counts = torch.bincount(index[row], minlength=4)
            expected = 4 * log_weights[row].exp()
            assert bool((counts >= (expected - 1e-9).floor()).all() and (counts <= (expected + 1e-9).ceil()).all())


@pytest.mark.parametrize("method", ["systematic", "multinomial"])
@statistical(alpha=beyond(5, 200), bugs=("resampled-flat", "uniforms-narrow"))
def test_resampling_is_unbiased(method: str) -> None:
    weights = torch.tensor([0.05, 0.25, 0.15, 0.4, 0.15], dtype=torch.float64)
    index = weighted_sampling.resample(weights.log().expand(20_000, 5), torch.arange(20_000), KEY, method)  # type: ignore[arg-type]
    counts = torch.nn.functional.one_hot(index, 5).sum(1).double()
    error = counts.std(0) / math.sqrt(20_000)
    assert bool(((counts.mean(0) - 5 * weights).abs() <= 5 * error + 1e-12).all())
    spread = counts.var(0)
    if method == "multinomial":
        assert torch.allclose(spread, 5 * weights * (1 - weights), rtol=0.05)
    else:
        assert bool((spread < 0.26).all())


def test_what_cannot_be_drawn_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="Every priority is 0"):
        weighted_sampling.replay_probabilities(torch.zeros(3), 1.0)
    with pytest.raises(ConfigError, match="at least 0"):
        weighted_sampling.replay_probabilities(torch.tensor([1.0, -1.0]), 1.0)
    with pytest.raises(ConfigError, match="alpha"):
        weighted_sampling.replay_probabilities(torch.ones(3), -1.0)
    with pytest.raises(ConfigError, match="beta"):
        weighted_sampling.replay_weights(torch.ones(3) / 3, math.nan)
    with pytest.raises(ConfigError, match="systematic"):
        weighted_sampling.resample(torch.zeros(1, 3), torch.arange(1), KEY, "stratified")  # type: ignore[arg-type]
