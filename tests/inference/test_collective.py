"""Laws of collectives against theory: Boltzmann's, Peretto's, and how far what breaks the conditions is from them.

Seven agents with random couplings, as in the derivation: all 128 states and their exact kernels.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import collective
from mfmarl.random import Key
from mfmarl.statmech.energies import spins
from mfmarl.statmech.exact import dynamics, enumeration
from tests.statistical import beyond, statistical

N = 7


def drawn(n: int = N, seed: int = 0, size: float = 0.5, symmetric: bool = True) -> tuple[Tensor, Tensor]:
    ids, key = torch.arange(n), Key.of(seed)
    w = random.normal(key.fold("couplings"), ids, n).double() * size
    w = (w + w.mT) / 2 if symmetric else w
    return w.fill_diagonal_(0.0), random.normal(key.fold("bias"), ids).double() * 0.3


SEEDS = range(10)


def test_a_belief_is_bayes_rule_over_both_causes():
    """Against the product of the likelihoods of all others and the prior, normalised."""
    w, h = drawn()
    states = enumeration.spins(N).states()
    q = torch.sigmoid(collective.log_odds(states, w, h))
    for row in (0, 17, 127):
        for i in range(N):
            weight = []
            for z in (-1.0, 1.0):
                p = math.exp(h[i] * z) / (2 * math.cosh(h[i]))
                for j in range(N):
                    if j != i:
                        right = float(collective.reliability_of(w[i, j]))
                        p *= right if float(states[row, j]) == z else 1 - right
                weight.append(p)
            assert float(q[row, i]) == pytest.approx(weight[1] / sum(weight), abs=1e-13)
    assert torch.allclose(collective.coupling_of(collective.reliability_of(w)), w, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_at_a_time_is_exactly_boltzmann(seed):
    """Glauber 1963: the random scan is reversible, a fixed sweep keeps the same law without being so."""
    w, h = drawn(seed=seed)
    up, law = collective.choices(w, h), collective.boltzmann(w, h)
    scan, sweep = collective.random_scan(up), collective.sweep(up)
    assert torch.allclose(scan.sum(-1), torch.ones(128, dtype=torch.float64), atol=1e-14)
    assert collective.total_variation(collective.stationary(scan), law) < 1e-12
    assert collective.imbalance(scan, law) < 1e-15
    assert collective.total_variation(collective.stationary(sweep), law) < 1e-12
    assert collective.imbalance(sweep, law) > 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_all_at_once_is_exactly_peretto_and_not_boltzmann(seed):
    """Peretto 1984: reversible too, with another law."""
    w, h = drawn(seed=seed)
    kernel = collective.parallel(collective.choices(w, h))
    law = collective.stationary(kernel)
    assert collective.total_variation(law, collective.peretto(w, h)) < 1e-12
    assert collective.imbalance(kernel, law) < 1e-14
    assert collective.total_variation(law, collective.boltzmann(w, h)) > 0.05


def test_a_sweep_is_that_of_the_heat_bath_of_statistical_mechanics():
    w, h = drawn()
    up, levels = collective.choices(w, h), enumeration.energies(spins.from_matrix(w, h))
    p = random.uniform(Key.of(1), torch.arange(128)).double()
    p /= p.sum()
    assert torch.allclose(p @ collective.sweep(up), dynamics.heat_bath_sweep(p, levels, 1.0), atol=1e-14)


def test_the_fewer_act_at_once_the_nearer_to_boltzmann():
    """The distance falls to 0, in proportion to the share of those who act."""
    w, h = drawn()
    up, law = collective.choices(w, h), collective.boltzmann(w, h)

    def far(p: float) -> float:
        return collective.total_variation(collective.stationary(collective.parallel(up, p)), law)

    distances = [far(p) for p in (0.05, 0.2, 0.5, 0.9, 1.0)]
    assert distances == sorted(distances)
    assert far(0.01) / far(0.02) == pytest.approx(0.5, rel=0.05)
    assert distances[0] < 0.03


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_the_action_precision_is_an_inverse_temperature(alpha):
    w, h = drawn()
    law = collective.stationary(collective.random_scan(collective.choices(w, h, alpha)))
    assert collective.total_variation(law, collective.boltzmann(w, h, alpha)) < 1e-12
    assert collective.total_variation(law, collective.boltzmann(w, h)) > 0.1
    at_once = collective.stationary(collective.parallel(collective.choices(w, h, alpha)))
    assert collective.total_variation(at_once, collective.peretto(w, h, alpha)) < 1e-12


def test_couplings_that_differ_by_direction_break_detailed_balance():
    w, h = drawn(symmetric=False)
    kernel = collective.random_scan(collective.choices(w, h))
    law = collective.stationary(kernel)
    assert collective.imbalance(kernel, law) > 1e-5
    assert collective.total_variation(law, collective.boltzmann((w + w.mT) / 2, h)) > 0.05


def test_a_checkerboard_of_a_ring_is_boltzmann_and_of_an_odd_one_refused():
    n = 6
    w = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        w[i, (i + 1) % n] = w[(i + 1) % n, i] = 0.2 + 0.1 * i
    h = torch.linspace(-0.3, 0.4, n, dtype=torch.float64)
    kernel = collective.checkerboard(collective.choices(w, h), w)
    assert collective.total_variation(collective.stationary(kernel), collective.boltzmann(w, h)) < 1e-12
    odd = w[:5, :5].clone()
    odd[0, 4] = odd[4, 0] = 0.5
    with pytest.raises(ConfigError, match="odd cycle"):
        collective.checkerboard(collective.choices(odd, h[:5]), odd)


def test_by_expected_free_energy_the_law_is_boltzmann_at_gamma_times_the_preference():
    """However ambiguous the senses are, alike for both actions."""
    c, h = drawn()
    gamma = 1.7
    states = enumeration.spins(N).states()
    up = collective.preferring(states, c, h, gamma, ambiguity=0.8)
    law = collective.stationary(collective.random_scan(up))
    assert collective.total_variation(law, collective.boltzmann(gamma * c, gamma * h)) < 1e-12


def carried_law(stay: float, w: Tensor, h: Tensor, copies: int = 20_000, steps: int = 600) -> tuple[Tensor, Tensor]:
    """Frequencies of states, agents acting one at a time upon beliefs that are carried over; and an independent second half."""
    ids, key = torch.arange(copies * N).view(copies, N), Key.of(2)
    sigma = torch.ones(copies, N, dtype=torch.float64)
    before = torch.zeros_like(sigma)
    space = enumeration.spins(N)
    for t in range(steps):
        odds = collective.log_odds(sigma, w, h, before, stay)
        chosen = collective.act(odds, ids, key.fold("act", t))
        turn = random.integers(key.fold("turn", t), ids[:, 0], N).unsqueeze(-1) == torch.arange(N)
        sigma, before = torch.where(turn, chosen, sigma), torch.where(turn, odds, before)
    counts = torch.bincount(space.number(sigma), minlength=128).double()
    return counts / copies, counts


@pytest.mark.parametrize(("stay", "least"), [(0.5, 0.0), (0.6, 0.02), (0.8, 0.1), (0.95, 0.25)])
@statistical(alpha=1e-3, bugs=("cold-enumeration", "uniforms-lean"))
def test_beliefs_that_are_carried_over_leave_boltzmann_the_farther_the_longer(stay, least):
    """At 1/2 nothing is carried, and frequencies are within chance of the law (chi square, five standard errors)."""
    w, h = drawn(size=0.3)
    law = collective.boltzmann(w, h)
    seen, counts = carried_law(stay, w, h, copies=4000, steps=120)
    far = collective.total_variation(seen, law)
    if stay == 0.5:
        chi = float(((counts - 4000 * law).square() / (4000 * law)).sum())
        assert abs(chi - 127) < 5 * math.sqrt(2 * 127 + float((1 / (4000 * law)).sum()))
    else:
        noise = float((law * (1 - law) / 4000 * 2 / math.pi).sqrt().sum() / 2)
        assert far > least + noise


def test_collectives_of_any_size_who_see_everybody_are_summed_over_magnetisations():
    """Against all states of seven, and Boltzmann against Curie and Weiss at N = 1000."""
    n, coupling, bias = 7, 1.3, 0.2
    w = torch.full((n, n), coupling / (n - 1), dtype=torch.float64).fill_diagonal_(0.0)
    h = torch.full((n,), bias, dtype=torch.float64)
    m = enumeration.spins(n).states().mean(-1)
    for at_once, law in ((False, collective.boltzmann(w, h)), (True, collective.peretto(w, h))):
        found = collective.complete_moments(n, coupling, bias, at_once)
        assert found == pytest.approx([float(law @ x) for x in (m, m.abs(), m.square())], abs=1e-13)
    # m = tanh(coupling m) as N grows, in either order.
    root = 0.8
    for _ in range(200):
        root = math.tanh(1.3 * root)
    for at_once in (False, True):
        assert collective.complete_moments(100_000, 1.3, 0.0, at_once)[1] == pytest.approx(root, abs=1e-3)


@statistical(alpha=beyond(5, 2), bugs=("average-off", "uniforms-lean"))
def test_sampled_collectives_have_the_energy_and_order_of_their_law():
    """N = 16, one at a time: mean energy and magnetisation of 2,000 collectives, five standard errors."""
    n, copies = 16, 2000
    w, h = drawn(n, size=0.25)
    system = spins.from_matrix(w, h)
    ids, key = torch.arange(copies * n).view(copies, n), Key.of(5)
    sigma = torch.where(random.uniform(key.fold("first"), ids) < 0.5, 1.0, -1.0).double()
    for t, i in itertools.product(range(40), range(n)):
        chosen = collective.act(collective.log_odds(sigma, w, h), ids, key.fold(t, i))
        sigma[:, i] = chosen[:, i]
    for seen, exact in (
        (system(sigma), enumeration.average(system, 1.0, system)),
        (sigma.mean(-1), enumeration.average(system, 1.0, lambda s: s.mean(-1))),
    ):
        assert float(seen.mean() - exact) == pytest.approx(0, abs=5 * float(seen.std()) / math.sqrt(copies))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: collective.coupling_of(1.0), "strictly between 0 and 1"),
        (lambda: collective.choices(torch.zeros(13, 13), torch.zeros(13)), "at most 12"),
        (lambda: collective.choices(torch.zeros(3, 2), torch.zeros(3)), r"are \[3, 3\]"),
        (lambda: collective.choices(torch.full((2, 2), math.nan), torch.zeros(2)), "finite"),
        (lambda: collective.parallel(torch.full((2, 1), 0.5), 0.0), "participation"),
        (lambda: collective.log_odds(torch.ones(2), torch.eye(2), torch.ones(2), torch.ones(2), 1.0), "stay"),
        (lambda: collective.complete_moments(0, 1.0), "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()
