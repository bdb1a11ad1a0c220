"""Block Gibbs against exact kernels and exact marginals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import machines
from mfmarl.statmech.energies.machines import Machine
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.sampling import block, chains, single_spin
from tests.statistical import beyond, statistical

KEY = Key.of(52)


def machine(*sizes: int) -> Machine:
    plain = machines.random_machine(sizes, KEY, 1.0)
    return Machine(plain.weights, tuple(torch.linspace(-0.5, 0.4, size, dtype=torch.float64) for size in sizes))


def every_state(units: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def number(x: Tensor) -> Tensor:
    return (x.long() << torch.arange(x.shape[-1] - 1, -1, -1)).sum(-1)


def goodness(counts: Tensor, expected: Tensor) -> tuple[float, int]:
    """Chi-square over states expected at least 5 times (the others together), and its degrees of freedom."""
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum().unsqueeze(0)])
    expected = torch.cat([expected[~rare], expected[rare].sum().unsqueeze(0)])
    keep = expected > 0
    return float(((counts - expected)[keep].square() / expected[keep]).sum()), int(keep.sum()) - 1


@pytest.mark.parametrize("odd_first", [True, False])
@statistical(alpha=beyond(5, 2), bugs=("leaning-coins", "bits-lean"))
def test_equilibrium_stays_equilibrium_state_by_state(odd_first: bool) -> None:
    """Chains started from exact samples are, after a sweep, still exact samples."""
    system, beta, copies = machine(3, 2, 2), 0.7, 100_000
    x = every_state(7)
    p = torch.softmax(-beta * system(x), 0)
    start = torch.searchsorted(p.cumsum(0), random.uniform(KEY.fold("start"), torch.arange(copies)).double())
    after = block.layers(system, odd_first=odd_first)(x[start.clamp(max=127)], beta, torch.arange(copies), KEY)
    statistic, freedom = goodness(torch.bincount(number(after), minlength=128).double(), copies * p)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
    assert bool((after != x[start.clamp(max=127)]).any(-1).double().mean() > 0.5)


@pytest.mark.parametrize("sizes", [(5, 4), (5, 4, 3), (3, 2, 3, 2)])
@statistical(alpha=beyond(5, 40), bugs=("leaning-coins", "bits-lean"))
def test_chains_come_to_the_exact_averages(sizes: tuple[int, ...]) -> None:
    system, copies = machine(*sizes), 4000
    x = every_state(system.num_units)
    p = torch.softmax(-system(x), 0)
    state, seen = chains.run(
        block.layers(system), torch.zeros(copies, system.num_units).double(), 1.0, KEY, 10, warm_up=40
    )
    mean = seen.mean(0)  # of each chain
    error = mean.std(0) / math.sqrt(copies)
    assert bool(((mean.mean(0) - p @ x).abs() < 5 * error).all())
    statistic, freedom = goodness(torch.bincount(number(state), minlength=len(x)).double(), copies * p)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@statistical(alpha=beyond(5, 8), bugs=("leaning-coins", "bits-lean"))
def test_held_data_gives_the_law_of_the_hidden() -> None:
    system, copies = machine(2, 3, 2), 40_000
    x = every_state(7)
    v = torch.tensor([1.0, 0.0], dtype=torch.float64)
    p = torch.softmax(torch.where((x[:, :2] == v).all(-1), -system(x), -math.inf), 0)
    start = torch.cat([v.expand(copies, 2), torch.zeros(copies, 5).double()], -1)
    state, _ = chains.run(block.layers(system, visible_held=True), start, 1.0, KEY, 1, warm_up=30)
    assert torch.equal(state[:, :2], start[:, :2])
    error = (p @ x * (1 - p @ x)).clamp(min=0).div(copies).sqrt()
    assert bool(((state.mean(0) - p @ x).abs() <= 5 * error + 1e-12).all())


@statistical(alpha=beyond(5, 200), bugs=("hot-heat-bath", "average-off"))
def test_a_sparse_machine_sampled_by_colours_has_its_exact_law() -> None:
    system, copies = machines.sparse_ising(16, 3, KEY, 0.6), 30_000
    start = torch.ones(copies, 16).double()
    state, _ = chains.run(single_spin.heat_bath(system), start, 1.0, KEY, 1, warm_up=60)
    exact, pairs = enumeration.moments(system, 1.0)
    error = ((1 - exact * exact) / copies).sqrt()
    assert bool(((state.mean(0) - exact).abs() < 5 * error).all())
    products = (state.mT @ state / copies - pairs).fill_diagonal_(0)
    assert bool((products.abs() <= 5 * ((1 - pairs * pairs).clamp(min=0) / copies).sqrt() + 1e-12).all())
    space = enumeration.space_of(system)
    p = enumeration.probabilities(system, 1.0)
    statistic, freedom = goodness(torch.bincount(space.number(state), minlength=space.size).double(), copies * p)
    assert freedom > 500 and statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_a_chain_does_not_know_how_many_there_are_and_tells_ladders_apart() -> None:
    system = machine(4, 3)
    x = system.random_states((6,), KEY)
    sweep = block.layers(system)
    ids, beta = torch.arange(6), torch.linspace(0.1, 2, 6).double()
    together = sweep(x, beta, ids, KEY)
    alone = torch.stack([sweep(x[k], beta[k], ids[k], KEY) for k in range(6)])
    assert torch.equal(together, alone)


@statistical(alpha=beyond(5), bugs=("leaning-coins", "bits-lean"))
def test_zero_temperature_descends_and_infinite_temperature_forgets() -> None:
    system = machine(6, 5)
    x = system.random_states((500,), KEY)
    sweep = block.layers(system)
    energy = system(x)
    for turn in range(5):
        x = sweep(x, math.inf, torch.arange(500), KEY.fold(turn))
        assert bool((system(x) <= energy + 1e-12).all())
        energy = system(x)
    free = sweep(x, 0.0, torch.arange(500), KEY)
    assert abs(float(free.mean()) - 0.5) < 5 * 0.5 / math.sqrt(500 * 11)


@statistical(alpha=beyond(5, 25), bugs=("leaning-coins", "bits-lean"))
def test_coins_follow_their_probabilities_and_certainties_are_certain() -> None:
    p = torch.tensor([0.0, 1e-3, 0.3, 0.5, 0.999, 1.0, 0.7], dtype=torch.float32)
    drawn = block.bernoulli(p.expand(200_000, 7), torch.arange(200_000), KEY)
    error = (p * (1 - p) / 200_000).sqrt()
    assert bool(((drawn.mean(0) - p).abs() <= 5 * error + 1e-12).all())
    centred = (drawn - p)[:, 1:5].double()
    correlation = centred.mT @ centred / 200_000 / torch.outer(centred.std(0), centred.std(0))
    assert float(correlation.fill_diagonal_(0).abs().max()) < 5 / math.sqrt(200_000)


def test_states_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="7 units"):
        block.layers(machine(4, 3))(torch.zeros(2, 6).double(), 1.0, torch.arange(2), KEY)
