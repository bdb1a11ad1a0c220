from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.potts import Potts, potts
from mfmarl.statmech.energies.spins import Ising, edwards_anderson, ising, sherrington_kirkpatrick
from mfmarl.statmech.sampling import chains, single_spin

FRUSTRATED = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3], [3, 4], [4, 5], [3, 5], [0, 5]])  # two triangles and a tail


def small_systems() -> dict[str, Ising]:
    key = Key.of(5)
    return {
        "ring": ising(graphs.torus(6), 6),
        "antiferromagnet in a field": ising(graphs.torus(6), 6, -1.0, 0.3),
        "triangles": ising(FRUSTRATED, 6, random.normal(key, torch.arange(8)).double(), 0.2),
        "glass of everyone": sherrington_kirkpatrick(6, key),
    }


def all_spins(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)


def gibbs(energies: Tensor, beta: float) -> Tensor:
    return torch.softmax(-beta * energies, 0)


def site_kernel(system: Ising, site: int, beta: float, rule: str) -> Tensor:
    """P(x -> y) of one update of one spin, from the conditional probabilities that the samplers draw from."""
    states = all_spins(system.num_spins)
    local, spin = system.local_field(states)[:, site], states[:, site]
    up = single_spin.up_probability(local.unsqueeze(-1), beta).squeeze(-1)
    flip = single_spin.flip_probability(spin.unsqueeze(-1), local.unsqueeze(-1), beta).squeeze(-1)
    change = torch.where(spin > 0, 1 - up, up) if rule == "heat_bath" else flip
    other = torch.arange(len(states)) ^ (1 << (system.num_spins - 1 - site))
    kernel = torch.diag(1 - change)
    kernel[torch.arange(len(states)), other] += change
    return kernel


def sweep_kernel(system: Ising, beta: float, rule: str, colouring: Tensor) -> Tensor:
    kernel = torch.eye(2**system.num_spins, dtype=torch.float64)
    for site in torch.argsort(colouring, stable=True).tolist():
        kernel = kernel @ site_kernel(system, site, beta, rule)
    return kernel


def chi_squared(counts: Tensor, expected: Tensor) -> tuple[float, float]:
    """Pearson's statistic over the cells with at least 5 expected (the rest in one), and what only 3e-7 exceed."""
    big = expected >= 5
    seen = torch.cat([counts[big], counts[~big].sum().unsqueeze(0)])
    wanted = torch.cat([expected[big], expected[~big].sum().unsqueeze(0)])
    keep = wanted > 1e-9
    assert float(seen[~keep].sum()) == 0
    freedom = int(keep.sum()) - 1
    return float(((seen - wanted)[keep] ** 2 / wanted[keep]).sum()), float(chi2.isf(norm.sf(5), freedom))


RULES = {"heat_bath": single_spin.heat_bath, "metropolis": single_spin.metropolis}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", small_systems())
@pytest.mark.parametrize("beta", [0.0, 0.7, 2.5])
def test_one_sweep_leaves_the_gibbs_distribution_as_it_is(rule: str, name: str, beta: float) -> None:
    system = small_systems()[name]
    law = gibbs(system(all_spins(6)), beta)
    for colouring in (system.colours, torch.arange(6).flip(0)):
        kernel = sweep_kernel(system, beta, rule, colouring)
        torch.testing.assert_close(law @ kernel, law, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", small_systems())
def test_a_sweep_draws_from_the_exact_kernel_of_its_colours(rule: str, name: str) -> None:
    """From each of the 64 states many chains take one sweep: every row of the kernel, cell by cell."""
    system, beta, chains_each = small_systems()[name], 0.6, 4000
    states = all_spins(6)
    s = states.unsqueeze(1).expand(-1, chains_each, -1)
    out = RULES[rule](system)(s, beta, chains.chain_ids(s.shape[:-1]), Key.of(11))
    index = ((out > 0) * 2 ** torch.arange(5, -1, -1)).sum(-1)
    kernel = sweep_kernel(system, beta, rule, system.colours)
    for row in range(64):
        counts = torch.bincount(index[row], minlength=64).double()
        statistic, bound = chi_squared(counts, kernel[row] * chains_each)
        assert statistic < bound


@pytest.mark.parametrize("rule", RULES)
def test_sampled_energies_of_the_four_by_four_torus_follow_the_density_of_states(rule: str) -> None:
    system, beta, n = ising(graphs.torus(4, 4), 16), 0.4, 20_000
    states = all_spins(16)
    levels, which = system(states).round().long().unique(return_inverse=True)
    law = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, which, gibbs(system(states), beta))
    s = system.random_states((n,), Key.of(1)).to(torch.int8)
    s, _ = chains.run(RULES[rule](system), s, beta, Key.of(2), 40, lambda x: x[:, 0])
    energies = system(s.double()).round().long()
    counts = torch.bincount(torch.searchsorted(levels, energies), minlength=len(levels)).double()
    statistic, bound = chi_squared(counts, law * n)
    assert statistic < bound


@pytest.mark.parametrize("rule", ["heat_bath", "metropolis"])
def test_spins_in_random_order_reach_equilibrium(rule: str) -> None:
    system, n = small_systems()["triangles"], 20_000
    law = gibbs(system(all_spins(6)), 0.8)
    s = system.random_states((n,), Key.of(3))
    s, _ = chains.run(single_spin.in_random_order(system, rule), s, 0.8, Key.of(4), 40, lambda x: x[:, 0])
    counts = torch.bincount(((s > 0) * 2 ** torch.arange(5, -1, -1)).sum(-1), minlength=64).double()
    statistic, bound = chi_squared(counts, law * n)
    assert statistic < bound


def small_potts() -> Potts:
    key = Key.of(9)
    plain = potts(FRUSTRATED, 6, 3)
    fields = 0.3 * random.normal(key, torch.arange(18)).double().reshape(6, 3)
    return Potts(plain.pairs, random.normal(key.fold("J"), torch.arange(8)).double(), fields)


@pytest.mark.parametrize("kernel", [single_spin.potts_heat_bath, single_spin.potts_metropolis])
def test_potts_chains_reach_the_gibbs_distribution(kernel) -> None:
    system, n, beta = small_potts(), 40_000, 0.7
    states = torch.tensor(list(itertools.product(range(3), repeat=6)))
    law = gibbs(system(states), beta)
    k = system.random_states((n,), Key.of(1))
    k, _ = chains.run(kernel(system), k, beta, Key.of(2), 30, lambda x: x[:, 0])
    counts = torch.bincount((k * 3 ** torch.arange(5, -1, -1)).sum(-1), minlength=729).double()
    statistic, bound = chi_squared(counts, law * n)
    assert statistic < bound


def test_the_potts_heat_bath_draws_each_site_from_its_exact_distribution() -> None:
    system, n, beta = small_potts(), 30_000, 0.9
    start = torch.tensor([0, 2, 1, 1, 0, 2])
    alone = torch.arange(6)  # site 0 is drawn first, from the start's surroundings
    k = single_spin.potts_heat_bath(system, alone)(start.expand(n, 6), beta, torch.arange(n), Key.of(8))
    exact = single_spin.state_probabilities(-system.state_energies(start), beta)[0]
    statistic, bound = chi_squared(torch.bincount(k[:, 0], minlength=3).double(), exact * n)
    assert statistic < bound


def test_two_potts_states_are_ising_spins_with_half_the_coupling() -> None:
    pairs, n = graphs.torus(6), 30_000
    two = potts(pairs, 6, 2, 2.0)
    k, _ = chains.run(
        single_spin.potts_heat_bath(two), two.random_states((n,), Key.of(1)), 0.5, Key.of(2), 20, lambda x: x[:, 0]
    )
    spins = 2.0 * k.double() - 1
    law = gibbs(ising(pairs, 6)(all_spins(6)), 0.5)
    counts = torch.bincount(((spins > 0) * 2 ** torch.arange(5, -1, -1)).sum(-1), minlength=64).double()
    statistic, bound = chi_squared(counts, law * n)
    assert statistic < bound


@pytest.mark.parametrize("rule", RULES)
def test_at_zero_temperature_no_energy_rises_and_ties_stay_open(rule: str) -> None:
    system = ising(graphs.torus(8, 8), 64)
    s = system.random_states((200,), Key.of(1))
    energies = [system(s)]
    for x in itertools.islice(chains.trajectory(RULES[rule](system), s, math.inf, Key.of(2)), 30):
        energies.append(system(x))
    assert all(bool((b <= a).all()) for a, b in itertools.pairwise(energies))
    assert float(energies[-1].mean()) < -110  # of -128
    lone = ising(graphs.torus(2), 2, 0.0)
    free = RULES[rule](lone)(-torch.ones(4000, 2), math.inf, torch.arange(4000), Key.of(3))
    # A spin in no field at T = 0: a fair coin by heat bath, a sure flip by Metropolis.
    expected = 0.0 if rule == "heat_bath" else 1.0
    assert abs(float(free.mean()) - expected) <= 5 / math.sqrt(8000)


def test_zero_temperature_potts_ties_are_drawn_evenly() -> None:
    probability = single_spin.state_probabilities(torch.tensor([[1.0, 1.0, 0.0]]), math.inf)
    assert probability.tolist() == [[0.5, 0.5, 0.0]]


def test_a_hot_spin_is_a_fair_coin() -> None:
    system = ising(graphs.torus(10), 10, 3.0, 5.0)
    s = single_spin.heat_bath(system)(torch.ones(20_000, 10), 0.0, torch.arange(20_000), Key.of(1))
    assert abs(float(s.mean())) < 5 / math.sqrt(200_000)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 9), rule=st.sampled_from(sorted(RULES)))
def test_a_chain_does_not_know_of_the_others(seed: int, n: int, rule: str) -> None:
    key = Key.of(seed)
    system = edwards_anderson((n, 3), key)
    sweep = RULES[rule](system)
    s = system.random_states((7,), key.fold("start"))
    betas = torch.linspace(0.1, 2.0, 7, dtype=torch.float64)
    together = sweep(s, betas, torch.arange(7), key)
    alone = torch.stack([sweep(s[i], float(betas[i]), torch.tensor(i), key) for i in range(7)])
    assert torch.equal(together, alone)


def test_every_realisation_of_the_disorder_meets_its_own_chains() -> None:
    key = Key.of(2)
    batch = edwards_anderson((4, 3), key, instances=(3, 1))
    s = batch.random_states((3, 5), key)
    ids = chains.chain_ids((3, 5))
    for make in (single_spin.heat_bath, single_spin.metropolis, single_spin.in_random_order):
        together = make(batch)(s, 0.7, ids, key)
        for d in range(3):
            alone = make(Ising(batch.pairs, batch.couplings[d, 0], batch.fields))(s[d], 0.7, ids[d], key)
            assert torch.equal(together[d], alone)


def test_small_integers_walk_the_same_chain() -> None:
    system = ising(graphs.torus(4, 6), 24, 1.0, 0.1)
    s = system.random_states((9,), Key.of(1))
    sweep = single_spin.metropolis(system)
    small = sweep(s.to(torch.int8), 0.4, torch.arange(9), Key.of(2))
    assert small.dtype == torch.int8
    assert torch.equal(small.double(), sweep(s, 0.4, torch.arange(9), Key.of(2)))


def test_bad_colourings_and_spins_are_refused() -> None:
    system = ising(graphs.torus(6), 6)
    with pytest.raises(ConfigError, match="Sites 0 and 1 interact and share colour 0"):
        single_spin.heat_bath(system, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"int64 \[6\]"):
        single_spin.metropolis(system, torch.arange(5))
    with pytest.raises(ConfigError, match="a state holds 0"):
        single_spin.heat_bath(system)(torch.zeros(3, 6), 1.0, torch.arange(3), Key.of(0))
    with pytest.raises(ConfigError, match="one spin each"):
        single_spin.metropolis(system)(torch.ones(3, 5), 1.0, torch.arange(3), Key.of(0))
    with pytest.raises(ConfigError, match="'glauber'"):
        single_spin.in_random_order(system, "glauber")
    with pytest.raises(ConfigError, match=r"0\.\.2"):
        single_spin.potts_heat_bath(small_potts())(torch.full((6,), 3), 1.0, torch.tensor(0), Key.of(0))
