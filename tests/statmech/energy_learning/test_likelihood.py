"""Likelihoods of an RBM against enumeration."""

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
from mfmarl.statmech.energy_learning import likelihood
from tests.statistical import beyond, statistical

KEY = Key.of(63)


def every_state(units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def machine(visible: int, hidden: int, scale: float) -> RBM:
    plain = restricted.random_rbm(visible, hidden, KEY, scale)
    return RBM(
        plain.weights,
        torch.linspace(-0.5, 0.7, visible, dtype=torch.float64),
        torch.linspace(0.4, -0.3, hidden, dtype=torch.float64),
    )


def test_probabilities_of_all_states_sum_to_one() -> None:
    rbm = machine(6, 4, 0.9)
    assert math.isclose(float(likelihood.log_likelihood(rbm, every_state(6)).exp().sum()), 1, rel_tol=1e-12)
    given = likelihood.log_likelihood(rbm, every_state(6), rbm.log_partition())
    assert torch.allclose(given, likelihood.log_likelihood(rbm, every_state(6)))


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("scale", [0.3, 1.2])
@statistical(alpha=beyond(5, 12), bugs=("leaning-coins", "log-weight-off"))
def test_annealed_importance_sampling_finds_log_z_within_its_error(scale: float, base: bool) -> None:
    rbm = machine(12, 8, scale)
    exact = float(rbm.log_partition())
    biases = torch.linspace(-1, 1, 12, dtype=torch.float64) if base else None
    found = likelihood.annealed_importance_sampling(rbm, KEY, chains=2000, steps=150, base=biases)
    assert abs(float(found.value) - exact) < 5 * float(found.standard_error)
    assert float(found.standard_error) < 0.05 and float(found.effective_sample_size) > 200
    # exp(log w - log Z) has mean 1 exactly.
    ratio = (found.log_weights - exact).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(2000)


@statistical(alpha=beyond(5, 1, samples=200), bugs=("bits-lean", "steps-share-noise"))
def test_the_error_of_annealing_is_the_spread_of_repeated_runs() -> None:
    rbm = machine(8, 5, 1.5)
    exact = float(rbm.log_partition())
    ids = torch.arange(200 * 50)
    found = likelihood.annealed_importance_sampling(rbm, KEY, chains=50, steps=30, ids=ids)
    weights = found.log_weights.reshape(200, 50)
    values = torch.logsumexp(weights, -1) - math.log(50)
    from mfmarl.statmech import importance

    _, stated = importance.log_mean_weight(weights)
    assert abs(float(values.std() / stated.square().mean().sqrt()) - 1) < 0.3
    assert float(values.mean()) < exact + 5 * float(values.std()) / math.sqrt(200)  # biased low, by about error^2/2


def test_one_step_of_annealing_is_plain_importance_sampling_from_the_base() -> None:
    rbm = machine(4, 3, 0.5)
    found = likelihood.annealed_importance_sampling(rbm, KEY, chains=500, steps=1)
    v = (random.uniform(KEY.fold("base"), torch.arange(500), 4) < 0.5).double()
    wanted = -rbm.free_energy(v) + 4 * math.log(2)
    assert torch.allclose(found.log_weights, wanted, atol=1e-10)


@statistical(alpha=beyond(5, 3), bugs=("numbers-lean", "last-number-never"))
def test_the_pseudo_likelihood_is_the_product_of_conditionals() -> None:
    rbm = machine(5, 4, 1.0)
    v = every_state(5)
    p = likelihood.log_likelihood(rbm, v).exp().reshape(2, 2, 2, 2, 2)
    wanted = sum((p / p.sum(axis, keepdim=True)).log() for axis in range(5))
    found = likelihood.pseudo_log_likelihood(rbm, v)
    assert torch.allclose(found, torch.as_tensor(wanted).flatten(), atol=1e-11)
    copies = 20_000
    rows = v[:3].repeat_interleave(copies, 0)
    sampled = likelihood.sampled_pseudo_log_likelihood(rbm, rows, torch.arange(3 * copies), KEY).reshape(3, copies)
    error = sampled.std(-1) / math.sqrt(copies)
    assert bool(((sampled.mean(-1) - found[:3]).abs() < 5 * error).all())


def test_an_annealing_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 chains and 1 step"):
        likelihood.annealed_importance_sampling(machine(3, 2, 0.1), KEY, chains=1)
