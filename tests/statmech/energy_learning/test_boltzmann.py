"""General Boltzmann machines, hidden spins and sparse graphs included, against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, machines, spins
from mfmarl.statmech.energies.restricted import RBM
from mfmarl.statmech.energy_learning import boltzmann, likelihood
from mfmarl.statmech.energy_learning.training import Training
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.sampling import chains, single_spin
from tests.statistical import beyond, statistical

KEY = Key.of(66)


def every_state(sites: int) -> Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=sites)), dtype=torch.float64)


def test_probabilities_of_the_visible_sum_to_one_and_marginalise_the_hidden() -> None:
    system, visible = machines.sparse_ising(8, 3, KEY, 0.7), torch.tensor([6, 1, 3, 0])
    data = every_state(4)
    found = boltzmann.log_likelihood(system, visible, data)
    assert math.isclose(float(found.exp().sum()), 1, rel_tol=1e-12)
    states = every_state(8)
    p = enumeration.probabilities(system, 1.0)
    for row in (0, 5, 13):
        fits = (states[:, visible] == data[row]).all(-1)
        assert math.isclose(float(found[row].exp()), float(p[fits].sum()), rel_tol=1e-10)
    everything = boltzmann.log_likelihood(system, torch.arange(8), states)
    assert torch.allclose(everything.exp(), p, rtol=1e-10)


def test_a_restricted_machine_is_one_of_these() -> None:
    weights = torch.tensor([[0.5, -1.0], [0.3, 0.8], [-0.6, 0.2]], dtype=torch.float64)
    rbm = RBM(weights, torch.tensor([0.1, -0.3, 0.2]).double(), torch.tensor([0.4, 0.0]).double())
    system, _ = rbm.machine.ising()
    s = every_state(3)
    ours = boltzmann.log_likelihood(system, torch.arange(3), s)
    assert torch.allclose(ours, likelihood.log_likelihood(rbm, machines.to_units(s)), rtol=1e-10)


def test_the_exact_gradient_is_held_less_free_averages() -> None:
    system, visible = machines.sparse_ising(7, 3, KEY, 0.6), torch.tensor([0, 2, 5])
    data = every_state(3)[[1, 4, 7, 7]]
    found = boltzmann.exact(system, visible, data)
    states, p = every_state(7), enumeration.probabilities(system, 1.0)
    products = states[:, system.pairs[:, 0]] * states[:, system.pairs[:, 1]]
    held_pairs, held_spins = torch.zeros(len(system.pairs)).double(), torch.zeros(7).double()
    for row in data:
        weight = torch.where((states[:, visible] == row).all(-1), p, torch.zeros_like(p))
        held_pairs += weight @ products / weight.sum() / len(data)
        held_spins += weight @ states / weight.sum() / len(data)
    assert torch.allclose(found.couplings, held_pairs - p @ products, atol=1e-10)
    assert torch.allclose(found.fields, held_spins - p @ states, atol=1e-10)


@statistical(alpha=beyond(5, 4), bugs=("hot-heat-bath", "average-off"))
def test_hidden_spins_first_then_put_back_is_the_law_given_the_data() -> None:
    system, visible, copies = machines.sparse_ising(7, 3, KEY, 0.8), torch.tensor([0, 2, 5]), 20_000
    row = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    rest, _ = spins.clamped(system, visible, row)
    exact, _ = enumeration.moments(rest, 1.0)
    sweep = single_spin.heat_bath(system, boltzmann.hidden_first(system, visible))
    state, ids = system.random_states((copies,), KEY), chains.chain_ids((copies,))
    state[:, visible] = row
    for turn in range(25):
        state = sweep(state, 1.0, ids, KEY.fold(turn))
        state[:, visible] = row
    hidden = torch.tensor([1, 3, 4, 6])
    error = ((1 - exact * exact) / copies).sqrt()
    assert bool(((state[:, hidden].mean(0) - exact).abs() < 5 * error).all())


@pytest.mark.parametrize("hidden", [0, 4])
def test_training_raises_the_exact_likelihood(hidden: int) -> None:
    """Four spins whose product is +1: pairs alone cannot tell it, hidden spins can."""
    data = every_state(4)
    data = data[data.prod(-1) > 0].repeat(8, 1)
    n = 4 + hidden
    system = spins.ising(graphs.complete(n), n, torch.zeros(n * (n - 1) // 2), 0.0)
    begun = spins.Ising(system.pairs, machines.sparse_ising(n, n - 1, KEY, 0.3).couplings, system.fields)
    visible = torch.arange(4)
    options = Training(epochs=300, batch_size=64, learning_rate=0.1, momentum=0.5, chains=400, final_share=0.1, steps=2)
    before = float(boltzmann.log_likelihood(begun, visible, data).mean())
    *_, last = boltzmann.train(begun, visible, data, KEY, options)
    after = float(boltzmann.log_likelihood(last.system, visible, data).mean())
    assert after <= -3 * math.log(2) + 1e-9  # eight equally likely states
    assert after > before
    if hidden:
        assert after > -4 * math.log(2) + 0.2
    else:
        assert abs(after + 4 * math.log(2)) < 0.02  # the best that pairs can do is to know nothing


def test_batches_of_machines_and_other_methods_are_refused() -> None:
    system = machines.sparse_ising(4, 2, KEY)
    data = every_state(2)
    with pytest.raises(ConfigError, match="persistent"):
        list(boltzmann.train(system, torch.arange(2), data, KEY, Training(method="cd")))
    with pytest.raises(ConfigError, match="Spins are -1 or"):
        list(boltzmann.train(system, torch.arange(2), 0 * data, KEY))
    many = spins.Ising(system.pairs, system.couplings.expand(3, -1), system.fields)
    with pytest.raises(ConfigError, match="One machine"):
        list(boltzmann.train(many, torch.arange(2), data, KEY))
