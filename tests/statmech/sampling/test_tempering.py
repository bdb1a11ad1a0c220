from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.special import betainc
from scipy.stats import chi2, norm
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.spins import edwards_anderson, ising, sherrington_kirkpatrick
from mfmarl.statmech.sampling import single_spin
from mfmarl.statmech.sampling.tempering import (
    choose_ladder,
    ladder,
    parallel_tempering,
    swap,
    swap_probability,
)
from tests.statistical import beyond, statistical

BETAS = torch.tensor([0.3, 0.6, 1.0, 1.6], dtype=torch.float64)


def all_spins(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)


def test_swaps_leave_the_joint_law_of_two_rungs_as_it_is() -> None:
    """pi_a(x) pi_b(y) P(swap | x, y) is symmetric under the exchange of x and y: detailed balance, exactly."""
    energies = edwards_anderson((3, 2), Key.of(1))(all_spins(6))
    betas = torch.tensor([0.4, 1.1], dtype=torch.float64)
    pairs = torch.stack([energies[:, None].expand(64, 64), energies[None, :].expand(64, 64)])
    flow = torch.softmax(-betas[0] * energies, 0)[:, None] * torch.softmax(-betas[1] * energies, 0)[None, :]
    flow = flow * swap_probability(pairs, betas)[0]
    torch.testing.assert_close(flow, flow.T, rtol=1e-12, atol=0)


@statistical(alpha=beyond(5, 20, samples=400), bugs=("hot-heat-bath", "swaps-always"))
def test_swaps_of_a_sixteen_spin_glass_are_accepted_as_often_as_enumeration_says() -> None:
    system = sherrington_kirkpatrick(16, Key.of(7))
    energies = system(all_spins(16))
    n, steps = 400, 60
    x = system.random_states((4, n), Key.of(1))
    run = parallel_tempering(single_spin.heat_bath(system), system, x, BETAS, Key.of(2), steps, warm_up=60)
    levels, which = energies.unique(return_inverse=True)
    for r in range(3):
        laws = torch.stack([torch.softmax(-beta * energies, 0) for beta in (BETAS[r], BETAS[r + 1])])
        hot, cold = torch.zeros(2, len(levels), dtype=torch.float64).index_add_(1, which, laws)
        # The sum over both states of p q min(1, e^{d dE}). As many swaps go one way as the other, and where the hotter
        # has less energy all are done: twice that part, less the ties that it counts twice.
        at_least = cold.flip(0).cumsum(0).flip(0)
        exact = float((hot * (2 * at_least - cold)).sum())
        shares = run.acceptance[r]  # one per independent chain
        assert abs(float(shares.mean()) - exact) < 5 * float(shares.std()) / math.sqrt(n)


@statistical(alpha=beyond(5, 200), bugs=("hot-heat-bath", "swaps-always"))
def test_each_rung_holds_its_own_gibbs_distribution() -> None:
    system = edwards_anderson((4, 2), Key.of(3))
    n = 20_000
    run = parallel_tempering(
        single_spin.heat_bath(system), system, system.random_states((4, n), Key.of(1)), BETAS, Key.of(2), 25
    )
    index = ((run.states > 0) * 2 ** torch.arange(7, -1, -1)).sum(-1)
    for r, beta in enumerate(BETAS):
        law = torch.softmax(-beta * system(all_spins(8)), 0) * n
        counts = torch.bincount(index[r], minlength=256).double()
        big = law >= 5
        counts = torch.cat([counts[big], counts[~big].sum().reshape(1)])
        law = torch.cat([law[big], law[~big].sum().reshape(1)])
        keep = law > 1e-9
        statistic = float(((counts - law)[keep] ** 2 / law[keep]).sum())
        assert statistic < chi2.isf(norm.sf(5), int(keep.sum()) - 1)


@statistical(alpha=beyond(5, 200), bugs=("hot-metropolis", "swaps-always"))
def test_the_energy_histogram_of_the_four_by_four_torus_is_exact_at_every_rung() -> None:
    system, n = ising(graphs.torus(4, 4), 16), 8000
    betas = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    levels, which = system(all_spins(16)).round().long().unique(return_inverse=True)
    run = parallel_tempering(
        single_spin.metropolis(system), system, system.random_states((3, n), Key.of(5)), betas, Key.of(6), 60
    )
    energies = system(run.states).round().long()
    for r, beta in enumerate(betas):
        weight = torch.softmax(-beta * system(all_spins(16)), 0)
        law = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, which, weight) * n
        counts = torch.bincount(torch.searchsorted(levels, energies[r]), minlength=len(levels)).double()
        keep = law >= 5
        statistic = float(((counts - law)[keep] ** 2 / law[keep]).sum())
        assert statistic < chi2.isf(norm.sf(5), int(keep.sum()) - 1)


@statistical(alpha=beyond(5, 200), bugs=("swaps-always", "uniforms-narrow"))
def test_continuous_states_are_tempered_too() -> None:
    """Exact normal draws as the sweep: rung r of H = |x|^2/2 in d dimensions accepts what the beta law says."""

    def sweep(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
        return random.normal(key, ids, x.shape[-1]).double() / torch.as_tensor(beta).sqrt().unsqueeze(-1)

    d, n, steps = 6, 2000, 40
    betas = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    run = parallel_tempering(
        sweep, lambda x: x.square().sum(-1) / 2, torch.zeros(3, n, d, dtype=torch.float64), betas, Key.of(1), steps
    )
    # For two gamma energies of shape d/2 and rates 1 : R the acceptance is 2 I_{1/(1+R)}(d/2, d/2) for R > 1.
    exact = 2 * betainc(d / 2, d / 2, 1 / 3)
    trials = n * steps / 2  # every sweep draws anew: all swaps are independent trials
    assert torch.all((run.acceptance.mean(-1) - exact).abs() < 5 * math.sqrt(exact * (1 - exact) / trials))


def test_walkers_are_a_permutation_and_round_trips_are_counted() -> None:
    system = ising(graphs.torus(6), 6)
    betas = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    run = parallel_tempering(
        single_spin.heat_bath(system), system, system.random_states((3, 50), Key.of(1)), betas, Key.of(2), 200
    )
    assert torch.equal(run.walkers.sort(0).values, torch.arange(3).unsqueeze(-1).expand(3, 50))
    assert float(run.flow[0]) == 1 and float(run.flow[-1]) == 0 and 0.2 < float(run.flow[1]) < 0.8
    # Nearly all swaps are accepted: 6 steps a round trip for each of 3 walkers, so 100 at most, and many of them.
    assert bool((run.round_trips <= 100).all()) and float(run.round_trips.double().mean()) > 50


def test_swaps_that_always_succeed_carry_every_walker_round_in_twice_the_rungs() -> None:
    rungs, steps = 4, 80
    betas = torch.linspace(1, 2, rungs, dtype=torch.float64)
    run = parallel_tempering(
        lambda x, beta, ids, key: x,
        lambda x: torch.zeros(x.shape[:-1]),
        torch.zeros(rungs, 3, 1),
        betas,
        Key.of(0),
        steps,
    )
    assert bool((run.acceptance == 1).all())
    # Every other round one of them arrives at the hot end; the first time of each is its departure.
    assert run.round_trips.tolist() == [steps // 2 - rungs] * 3


def test_a_chain_does_not_know_of_the_others() -> None:
    system = edwards_anderson((4, 3), Key.of(3))
    sweep, x = single_spin.heat_bath(system), system.random_states((4, 5), Key.of(4))
    together = parallel_tempering(sweep, system, x, BETAS, Key.of(1), 12)
    alone = parallel_tempering(sweep, system, x[:, 3:4], BETAS, Key.of(1), 12, ids=torch.tensor([3]))
    assert torch.equal(together.states[:, 3:4], alone.states)
    assert torch.equal(together.seen[:, :, 3:4], alone.seen)


def test_observed_energies_are_those_of_the_states_after_the_swaps() -> None:
    system = edwards_anderson((4, 3), Key.of(3))
    run = parallel_tempering(
        single_spin.heat_bath(system), system, system.random_states((4, 5), Key.of(4)), BETAS, Key.of(1), 7
    )
    torch.testing.assert_close(run.seen[-1], system(run.states))


@pytest.mark.parametrize("target", [0.25, 0.4])
def test_a_chosen_ladder_meets_the_acceptance_aimed_at(target: float) -> None:
    system = edwards_anderson((8, 8), Key.of(3), "binary")
    sweep = single_spin.heat_bath(system)
    betas = choose_ladder(sweep, system, system.random_states((20,), Key.of(1)), 0.1, 1.5, Key.of(2), target)
    assert float(betas[0]) == 0.1 and float(betas[-1]) == 1.5
    run = parallel_tempering(
        sweep, system, system.random_states((len(betas), 40), Key.of(3)), betas, Key.of(4), 100, warm_up=100
    )
    # Rounding the number of rungs up raises it; the energies are not quite normal.
    shares = run.acceptance.mean(-1)
    assert bool((shares > target - 0.05).all()) and bool((shares < target + 0.15).all())


def test_the_ladder_of_a_constant_heat_capacity_is_geometric() -> None:
    betas = torch.logspace(-1, 1, 400, dtype=torch.float64)
    chosen = ladder(betas, 3 / betas, 0.3)  # sigma = sqrt(C)/beta
    ratio = chosen[1:] / chosen[:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)


def test_bad_ladders_are_refused() -> None:
    system = ising(graphs.torus(6), 6)
    sweep, x = single_spin.heat_bath(system), torch.ones(2, 6)
    for betas in (torch.tensor([1.0, 0.5]), torch.tensor([1.0]), torch.tensor([0.5, math.inf])):
        with pytest.raises(ConfigError, match="go up"):
            parallel_tempering(sweep, system, x, betas, Key.of(0), 1)
    with pytest.raises(ConfigError, match="at least 0"):
        parallel_tempering(sweep, system, x, torch.tensor([-1.0, 0.5]), Key.of(0), 1)
    with pytest.raises(ConfigError, match=r"\[3, \.\.\., n\]"):
        parallel_tempering(sweep, system, x, torch.tensor([0.1, 0.2, 0.3]), Key.of(0), 1)
    with pytest.raises(ConfigError, match="not vary"):
        ladder(torch.tensor([0.1, 0.2]), torch.zeros(2))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        ladder(torch.tensor([0.1, 0.2]), torch.ones(2), 1.5)


def test_a_swap_moves_only_the_pairs_whose_turn_it_is() -> None:
    energies = torch.zeros(5, 3)
    for parity in (0, 1):
        source, done = swap(energies, torch.linspace(0, 1, 5), parity, torch.arange(3), Key.of(0))
        assert done[parity::2].all() and not done[1 - parity :: 2].any()
        expected = [1, 0, 3, 2, 4] if parity == 0 else [0, 2, 1, 4, 3]
        assert source[:, 0].tolist() == expected
