"""Gradients of an RBM against all its states, and what chains make of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import restricted
from mfmarl.statmech.energies.restricted import RBM
from mfmarl.statmech.energy_learning import contrastive, likelihood
from tests.statistical import beyond, statistical

KEY = Key.of(62)


def every_state(units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def machine(visible: int = 5, hidden: int = 3, scale: float = 1.0) -> RBM:
    plain = restricted.random_rbm(visible, hidden, KEY, scale)
    return RBM(
        plain.weights,
        torch.linspace(-0.5, 0.7, visible, dtype=torch.float64),
        torch.linspace(0.4, -0.3, hidden, dtype=torch.float64),
    )


def rows(count: int, units: int, name: str = "data") -> Tensor:
    return (random.uniform(KEY.fold(name), torch.arange(count), units) < 0.35).double()


def test_the_statistics_are_minus_the_gradient_of_the_free_energy() -> None:
    rbm, data = machine(), rows(7, 5)
    parts = [value.clone().requires_grad_(True) for value in (rbm.weights, rbm.visible, rbm.hidden)]
    slopes = torch.autograd.grad(-RBM(*parts).free_energy(data).mean(), parts)
    for ours, wanted in zip(contrastive.statistics(rbm, data), slopes, strict=True):
        assert torch.allclose(ours, wanted, rtol=0, atol=1e-10)


def test_the_exact_gradient_is_that_of_the_log_likelihood() -> None:
    rbm, data = machine(), rows(7, 5)
    parts = [value.clone().requires_grad_(True) for value in (rbm.weights, rbm.visible, rbm.hidden)]
    slopes = torch.autograd.grad(likelihood.log_likelihood(RBM(*parts), data).mean(), parts)
    v = every_state(5)
    p = torch.softmax(-rbm.free_energy(v), 0)
    model = contrastive.statistics(rbm, v, p)
    for ours, wanted, base, mean in zip(
        contrastive.exact(rbm, data), slopes, contrastive.statistics(rbm, data), model, strict=True
    ):
        assert torch.allclose(ours, wanted, rtol=0, atol=1e-10)
        assert torch.allclose(ours, base - mean, rtol=0, atol=1e-10)


def kernel(rbm: RBM) -> Tensor:
    """The exact transition probabilities v -> v' of one sweep, [2^V, 2^V]."""
    v, h = every_state(len(rbm.visible)), every_state(len(rbm.hidden))

    def chances(p: Tensor, states: Tensor) -> Tensor:
        return torch.where(states.bool(), p.unsqueeze(-2), 1 - p.unsqueeze(-2)).prod(-1)

    return chances(rbm.hidden_given(v), h) @ chances(rbm.visible_given(h), v)


@pytest.mark.parametrize("steps", [1, 2, 5])
@statistical(alpha=1e-3, bugs=("leaning-coins", "bits-lean"))
def test_contrastive_divergence_is_on_average_what_its_kernel_says(steps: int) -> None:
    rbm, copies = machine(3, 2), 60_000
    data = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).expand(copies, 3)
    found, ends = contrastive.contrastive_divergence(rbm, data, torch.arange(copies), KEY, steps)
    law = torch.linalg.matrix_power(kernel(rbm), steps)[5]  # the state 101
    v = every_state(3)
    wanted = contrastive.difference(contrastive.statistics(rbm, data[:1]), contrastive.statistics(rbm, v, law))
    for ours, exact in zip(found, wanted, strict=True):
        assert bool(((ours - exact).abs() < 5 * 0.5 / math.sqrt(copies)).all())  # units spread by 1/2 at most
    counts = torch.bincount((ends @ torch.tensor([4.0, 2.0, 1.0]).double()).long(), minlength=8).double()
    assert float(((counts - copies * law).square() / (copies * law)).sum()) < 7 + 5 * math.sqrt(14)


def test_more_steps_come_closer_to_the_likelihood() -> None:
    """The expected CD-k gradient, from the kernel's powers: its distance to the exact one falls to nothing."""
    rbm = machine(5, 3, 2.0)
    data, v = rows(9, 5), every_state(5)
    exact, positive = contrastive.exact(rbm, data), contrastive.statistics(rbm, data)
    number = (data @ torch.tensor([16.0, 8, 4, 2, 1], dtype=torch.float64)).long()
    move, distances = kernel(rbm), []
    for steps in (1, 2, 4, 8, 16, 64):
        law = torch.linalg.matrix_power(move, steps)[number].mean(0)
        expected = contrastive.difference(positive, contrastive.statistics(rbm, v, law))
        distances.append(float((expected.weights - exact.weights).norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.05 and distances[-1] < 1e-9


@pytest.mark.parametrize("method", ["persistent", "tempered"])
@statistical(alpha=beyond(5, 50), bugs=("swaps-always", "bits-lean"))
def test_kept_chains_come_to_the_exact_gradient(method: str) -> None:
    rbm, data, count = machine(5, 3, 1.5), rows(9, 5), 3000
    exact = contrastive.exact(rbm, data)
    ids, betas = torch.arange(count), torch.linspace(0, 1, 4)
    held = rows(count, 3, "held") if method == "persistent" else torch.zeros(4, count, 8, dtype=torch.float64)
    for turn in range(40):
        if method == "persistent":
            gradient, held = contrastive.persistent(rbm, data, held, ids, KEY.fold(turn))
        else:
            gradient, held = contrastive.tempered(rbm, data, held, betas, ids, KEY.fold(turn), 2)
    for ours, wanted in zip(gradient, exact, strict=True):
        assert bool(((ours - wanted).abs() < 5 * 0.5 / math.sqrt(count)).all())


@statistical(alpha=beyond(5), bugs=("leaning-coins", "bits-lean"))
def test_tempering_escapes_where_plain_chains_stay() -> None:
    """Two deep valleys far apart: chains begun in one should show both."""
    weights = torch.full((8, 2), 6.0, dtype=torch.float64)
    rbm = RBM(weights, torch.full((8,), -6.0, dtype=torch.float64), torch.full((2,), -24.0, dtype=torch.float64))
    v = every_state(8)
    p = torch.softmax(-rbm.free_energy(v), 0)
    assert float(p[0]) > 0.4 and float(p[-1]) > 0.4
    data, count = torch.zeros(4, 8, dtype=torch.float64), 400
    ids, plain = torch.arange(count), torch.zeros(count, 2, dtype=torch.float64)
    ladder = torch.zeros(10, count, 10, dtype=torch.float64)
    for turn in range(600):
        _, plain = contrastive.persistent(rbm, data, plain, ids, KEY.fold(turn))
        _, ladder = contrastive.tempered(rbm, data, ladder, torch.linspace(0, 1, 10), ids, KEY.fold(turn))
    assert float(plain.mean()) < 0.1
    share = ladder[-1, :, :8].mean(-1)
    assert abs(float(share.mean()) - float(p @ v.mean(-1))) < 5 * float(share.std()) / math.sqrt(count)


def test_a_row_of_data_has_noise_of_its_own() -> None:
    rbm, data = machine(), rows(10, 5)
    _, ends = contrastive.contrastive_divergence(rbm, data, torch.arange(10), KEY, 3)
    _, some = contrastive.contrastive_divergence(rbm, data[4:6], torch.arange(4, 6), KEY, 3)
    assert torch.equal(ends[4:6], some)


def test_ladders_and_steps_that_make_no_sense_are_refused() -> None:
    rbm, data = machine(), rows(3, 5)
    with pytest.raises(ConfigError, match="one step at least"):
        contrastive.contrastive_divergence(rbm, data, torch.arange(3), KEY, 0)
    with pytest.raises(ConfigError, match="go up to 1"):
        contrastive.tempered(rbm, data, torch.zeros(2, 3, 8).double(), torch.tensor([0.0, 0.9]), torch.arange(3), KEY)
