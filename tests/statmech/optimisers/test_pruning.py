"""Masks anneal: at a fixed temperature they have the Gibbs distribution, cooled slowly they are the best subset."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import gibbs
from mfmarl.statmech.annealing.schedule import Schedule
from mfmarl.statmech.energies.losses import LossEnergy, half_squares
from mfmarl.statmech.optimisers import pruning
from tests.statistical import beyond, statistical


def _regression(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    ids = torch.arange(n)
    common = random.normal(Key.of(seed).fold("common"), ids).double().unsqueeze(-1)
    x = random.normal(Key.of(seed), ids, d).double() + 0.7 * common  # correlated: greedy choices mislead
    w = torch.where(torch.arange(d) % 3 == 0, 1.0, 0.15).double()
    return x, x @ w + random.normal(Key.of(seed).fold("noise"), ids).double()


def test_the_residual_of_a_subset_is_that_of_least_squares_on_its_columns():
    x, y = _regression(30, 5, 1)
    energy = pruning.subset_regression(x, y, penalty=0.3)
    for mask in pruning.all_masks(5):
        kept = x[:, mask]
        rest = y - kept @ torch.linalg.lstsq(kept, y).solution if bool(mask.any()) else y
        assert float(energy(mask)) == pytest.approx(float(rest @ rest + 0.3 * int(mask.sum())), rel=1e-10)


@pytest.mark.parametrize("keep_size", [False, True])
@statistical(alpha=beyond(5, 200), bugs=("hot-gibbs", "uniforms-lean"))
def test_at_a_fixed_temperature_masks_have_the_gibbs_distribution(keep_size: bool):
    x, y = _regression(20, 4, 2)
    energy, chains, temperature = pruning.subset_regression(x, y, 2.0), 40_000, 8.0
    start = torch.tensor([True, True, False, False]).expand(chains, 4)
    found = pruning.anneal_masks(energy, start, temperature, 60, Key.of(5), keep_size=keep_size).mask
    masks = pruning.all_masks(4)
    masks = masks[masks.sum(-1) == 2] if keep_size else masks
    exact = gibbs.probabilities(energy(masks), temperature)
    for mask, p in zip(masks, exact.tolist(), strict=True):
        share = float((found == mask).all(-1).double().mean())
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / chains), (mask, share, p)


@pytest.mark.parametrize("size", [None, 4])
def test_slow_cooling_finds_the_best_subset_of_ten_and_a_quench_does_not_always(size: int | None):
    x, y = _regression(40, 10, 3)
    penalty = 0.0 if size else 3.0
    energy = pruning.subset_regression(x, y, penalty)
    mask, least = pruning.exhaustive(energy, 10, size)
    start = torch.zeros(200, 10, dtype=torch.bool)
    start[:, 10 - (size or 5) :] = True
    slow = pruning.anneal_masks(energy, start, Schedule("geometric", 20, 0.05), 400, Key.of(7), keep_size=bool(size))
    assert float((slow.best_energy < least + 1e-9).double().mean()) > 0.9
    assert bool((slow.best_energy > least - 1e-9).all())
    assert torch.equal(slow.best_mask[slow.best_energy.argmin()], mask)


@statistical(alpha=beyond(5, 200), bugs=("steps-share-noise", "draws-repeat"))
def test_greedy_choice_is_trapped_where_cooling_is_not():
    """Two features that help only together: dropping either costs, and neither helps alone."""

    def energy(m: Tensor) -> Tensor:
        both = (m[..., 0] & m[..., 1]).double()
        return -3.0 * both + (m[..., 0].double() + m[..., 1].double()) + 0.5 * m[..., 2].double()

    mask, least = pruning.exhaustive(energy, 3)
    assert mask.tolist() == [True, True, False] and float(least) == -1
    start = torch.zeros(500, 3, dtype=torch.bool)
    greedy = pruning.anneal_masks(energy, start, 0.0, 200, Key.of(1))
    assert float((greedy.energy == 0).double().mean()) == 1
    schedule, steps, chains = Schedule("geometric", 2, 0.02), 200, 20_000
    start = torch.zeros(chains, 3, dtype=torch.bool)
    cooled = pruning.anneal_masks(energy, start, schedule, steps, Key.of(1))
    # The exact chain over the eight masks, numbered by their bits.
    h = energy(pruning.all_masks(3))
    p = torch.zeros(8, dtype=torch.float64)
    p[0] = 1
    for step in range(steps):
        kernel = torch.zeros(8, 8, dtype=torch.float64)
        for m, i in itertools.product(range(8), range(3)):
            chance = torch.exp(-(h[m ^ 1 << i] - h[m]) / schedule.at(step / (steps - 1))).clamp(max=1) / 3
            kernel[m, m ^ 1 << i] += chance
            kernel[m, m] += 1 / 3 - chance
        p = p @ kernel
    share, exact = float((cooled.energy == -1).double().mean()), float(p[3])
    assert 0.8 < exact < 0.95
    assert abs(share - exact) < 5 * math.sqrt(exact * (1 - exact) / chains)


def test_a_chain_of_masks_does_not_know_of_the_others():
    x, y = _regression(20, 6, 4)
    energy = pruning.subset_regression(x, y)
    start = torch.ones(8, 6, dtype=torch.bool)
    whole = pruning.anneal_masks(energy, start, 5.0, 30, Key.of(2))
    part = pruning.anneal_masks(energy, start[5:], 5.0, 30, Key.of(2), ids=torch.arange(5, 8))
    assert torch.equal(whole.mask[5:], part.mask)


def test_the_weights_of_any_loss_can_be_pruned():
    weights = torch.tensor([2.0, 0.1, -1.0])
    masked = pruning.pruned_loss(lambda w: ((w - weights) ** 2).sum(-1), weights, penalty=0.5)
    mask, least = pruning.exhaustive(masked, 3)
    assert mask.tolist() == [True, False, True]
    assert float(least) == pytest.approx(0.01 + 1.0)


def test_a_trained_network_is_pruned_as_well_by_cooling_as_by_trying_all_its_masks():
    ids = torch.arange(40)
    x = random.normal(Key.of(8), ids, 3)
    y = torch.tanh(2 * x[:, :1])  # the third input and half the hidden units are of no use
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1, bias=False))
    energy = LossEnergy(model, half_squares, x, y, 1e-3)
    w = energy.random_states((1,), Key.of(9))[0] * 0.02
    adam = torch.optim.Adam([w], lr=0.02)
    for _ in range(400):
        w.grad = energy.gradient(w)
        adam.step()
    masked = pruning.pruned_loss(energy, w, penalty=0.3)
    mask, least = pruning.exhaustive(masked, energy.size)
    assert 2 <= int(mask.sum()) < energy.size
    start = torch.ones(100, energy.size, dtype=torch.bool)
    found = pruning.anneal_masks(masked, start, Schedule("geometric", 5, 0.02), 300, Key.of(10))
    assert torch.equal(found.best_mask[found.best_energy.argmin()], mask)
    assert float((found.best_energy < least + 1e-5).float().mean()) > 0.5


def test_masks_that_cannot_move_are_refused():
    energy = lambda m: m.double().sum(-1)  # noqa: E731
    with pytest.raises(ConfigError, match="bool"):
        pruning.anneal_masks(energy, torch.ones(2, 3), 1.0, 5, Key.of(1))
    with pytest.raises(ConfigError, match="keep something and drop something"):
        pruning.anneal_masks(energy, torch.ones(2, 3, dtype=torch.bool), 1.0, 5, Key.of(1), keep_size=True)
    with pytest.raises(ConfigError, match="independent"):
        pruning.subset_regression(torch.ones(5, 2), torch.ones(5))
    with pytest.raises(ConfigError, match="No mask"):
        pruning.exhaustive(energy, 3, 4)
    assert len(list(itertools.islice(pruning.all_masks(3), 8))) == 8
