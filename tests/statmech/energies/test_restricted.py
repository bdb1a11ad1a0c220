"""Restricted Boltzmann machines against every one of their states."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mfmarl.random import Key
from mfmarl.statmech.energies import machines, restricted, spins
from mfmarl.statmech.energies.restricted import RBM
from mfmarl.statmech.exact import enumeration

KEY = Key.of(51)


def every_state(units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def machine(visible: int, hidden: int) -> RBM:
    return RBM(
        restricted.random_rbm(visible, hidden, KEY, 0.8).weights,
        torch.linspace(-0.7, 0.6, visible, dtype=torch.float64),
        torch.linspace(-1.4, 1.2, hidden, dtype=torch.float64),
    )


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_the_free_energy_of_the_visible_sums_out_the_hidden(beta: float) -> None:
    rbm = machine(5, 4)
    v, h = every_state(5), every_state(4)
    states = torch.cat([v.repeat_interleave(16, 0), h.repeat(32, 1)], -1)
    wanted = -torch.logsumexp(-beta * rbm(states).reshape(32, 16), -1) / beta
    assert torch.allclose(rbm.free_energy(v, beta), wanted, rtol=1e-12)
    betas = torch.full((32,), beta, dtype=torch.float64)
    assert torch.allclose(rbm.free_energy(v, betas), wanted, rtol=1e-12)


def test_conditional_probabilities_are_those_of_the_joint_law() -> None:
    rbm = machine(4, 3)
    x = every_state(7)
    p = torch.softmax(-rbm(x), 0).reshape(16, 8)
    v, h = every_state(4), every_state(3)
    assert torch.allclose(rbm.hidden_given(v), (p @ h) / p.sum(1, keepdim=True), rtol=1e-12)
    assert torch.allclose(rbm.visible_given(h), (p.mT @ v) / p.sum(0).unsqueeze(-1), rtol=1e-12)


def test_the_gradient_of_log_z_is_minus_the_mean_gradient_of_the_energy() -> None:
    rbm = machine(4, 3)
    weights = rbm.weights.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(RBM(weights, rbm.visible, rbm.hidden).log_partition(), weights)
    x = every_state(7)
    p = torch.softmax(-rbm(x), 0)
    assert torch.allclose(slope, x[:, :4].mT @ (p.unsqueeze(-1) * x[:, 4:]), rtol=1e-10)


def test_a_clamped_general_machine_agrees_with_the_free_energy() -> None:
    rbm = machine(3, 4)
    ising, constant = rbm.machine.ising()
    v = every_state(3)
    rest, shift = spins.clamped(ising, torch.arange(3), machines.to_spins(v))
    log_z = torch.stack(
        [enumeration.log_partition(spins.Ising(rest.pairs, rest.couplings, fields), 1.0) for fields in rest.fields]
    )
    assert torch.allclose(-log_z + shift + constant, rbm.free_energy(v), atol=1e-11)
