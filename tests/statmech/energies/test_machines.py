"""Boltzmann machines against every one of their states."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.energies import machines, restricted
from mfmarl.statmech.energies.machines import Machine
from mfmarl.statmech.exact import enumeration

KEY = Key.of(51)


def every_state(units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def machine(*sizes: int) -> Machine:
    plain = machines.random_machine(sizes, KEY, 0.8)
    biases = tuple(torch.linspace(-0.7, 0.6, size, dtype=torch.float64) * (1 + k) for k, size in enumerate(sizes))
    return Machine(plain.weights, biases)


@pytest.mark.parametrize("sizes", [(5, 4), (4, 6), (5, 4, 3), (2, 3, 2, 3), (3, 2, 2, 2, 2)])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0, 2.5])
def test_summing_out_every_second_layer_gives_the_partition_function(sizes: tuple[int, ...], beta: float) -> None:
    system = machine(*sizes)
    x = every_state(system.num_units)
    wanted = torch.logsumexp(-beta * system(x), 0)
    assert math.isclose(float(system.log_partition(beta)), float(wanted), rel_tol=1e-12)
    v = every_state(sizes[0])
    held = system.log_partition(beta, v)
    table = -beta * system(x).reshape(len(v), -1)
    assert torch.allclose(held, torch.logsumexp(table, -1), rtol=1e-12)
    assert math.isclose(float(torch.logsumexp(held, 0)), float(wanted), rel_tol=1e-12)


def test_the_energy_is_the_sum_over_pairs_and_units() -> None:
    system = machine(3, 2, 2)
    x = torch.tensor([1.0, 0, 1, 0, 1, 1, 0], dtype=torch.float64)
    w, u = system.weights
    a, b, c = system.biases
    by_hand = -(w[0, 1] + w[2, 1] + u[1, 0] + a[0] + a[2] + b[1] + c[0])
    assert math.isclose(float(system(x)), float(by_hand), rel_tol=1e-14)
    slope = torch.autograd.functional.jacobian(system, x)
    assert torch.allclose(system.gradient(x), slope)


@pytest.mark.parametrize("sizes", [(4, 3), (3, 4, 2)])
def test_spins_and_units_are_the_same_machine_in_all_states(sizes: tuple[int, ...]) -> None:
    system = machine(*sizes)
    ising, constant = system.ising()
    x = every_state(system.num_units)
    assert torch.allclose(ising(machines.to_spins(x)) + constant, system(x), rtol=0, atol=1e-12)
    assert torch.equal(machines.to_units(machines.to_spins(x)), x)
    log_z = enumeration.log_partition(ising, 1.0) - constant
    assert math.isclose(float(log_z), float(system.log_partition()), rel_tol=1e-12)
    # And back: numbers that are meant for spins, as units.
    units, shift = machines.from_spins(system)
    s = machines.to_spins(x)
    parts = system.split(s)
    wanted = torch.zeros(len(x), dtype=torch.float64)
    for part, bias in zip(parts, system.biases, strict=True):
        wanted -= (part * bias).sum(-1)
    for k, weight in enumerate(system.weights):
        wanted -= ((parts[k] @ weight) * parts[k + 1]).sum(-1)
    assert torch.allclose(units(x) + shift, wanted, rtol=0, atol=1e-12)
    again, constant = units.ising()
    assert torch.allclose(again.fields, torch.cat(system.biases), atol=1e-12)
    assert torch.allclose(again.couplings, torch.cat([w.flatten() for w in system.weights]), atol=1e-12)
    assert math.isclose(float(constant + shift), 0, abs_tol=1e-11)


def test_random_machines_of_spins_are_symmetric_under_a_flip() -> None:
    system = machines.random_machine((3, 4), KEY, 0.5, spin=True)
    x = every_state(7)
    assert torch.allclose(system(x), system(1 - x), atol=1e-12)
    assert not torch.allclose(machines.random_machine((3, 4), KEY, 0.5)(x), system(x), atol=0.1)


def test_large_machines_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="Use annealed importance sampling"):
        restricted.random_rbm(30, 30, KEY).log_partition()
    with pytest.raises(ConfigError, match="above layer 1"):
        Machine((torch.zeros(2, 3), torch.zeros(2, 3)), (torch.zeros(2), torch.zeros(3), torch.zeros(3)))
    with pytest.raises(ConfigError, match="L >= 2"):
        Machine((), (torch.zeros(2),))
    with pytest.raises(NumericFault, match="Weights"):
        restricted.RBM(torch.full((2, 2), math.nan), torch.zeros(2), torch.zeros(2))


def test_a_sparse_machine_has_its_links_and_does_not_repeat_them() -> None:
    system = machines.sparse_ising(16, 3, KEY)
    assert len(system.pairs) == 24 and len(torch.unique(system.pairs, dim=0)) == 24
    assert int(system.colours.max()) < 6
    with pytest.raises(ConfigError, match="cannot have"):
        machines.sparse_ising(4, 5, KEY)
