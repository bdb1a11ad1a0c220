"""Spin systems: energies against sums written out, forces against flips, the named systems, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from tests.statistical import beyond, statistical


def written_out(system: spins.Ising, s: Tensor) -> float:
    """H of one state of one instance, link by link."""
    total = -sum(float(h * x) for h, x in zip(system.fields, s, strict=True))
    for (i, j), coupling in zip(system.pairs.tolist(), system.couplings.tolist(), strict=True):
        total -= coupling * float(s[i] * s[j])
    return total


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SYSTEMS = {
    "sparse": spins.Ising(graphs.torus(3, 4), drawn(24), drawn(12, 1)),
    "dense": spins.Ising(graphs.complete(7), drawn(21), drawn(7, 1)),
    "free": spins.free_spins(5, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])),
    "chain": spins.ising(graphs.grid(6), 6, -1.5, 0.3),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_energy_is_the_sum_over_links_and_a_flip_costs_twice_the_local_field(name: str) -> None:
    system = SYSTEMS[name]
    s = system.random_states((6,), Key.of(1))
    energy, local = system(s), system.local_field(s)
    for row in range(6):
        assert float(energy[row]) == pytest.approx(written_out(system, s[row]), abs=1e-12)
    for i in range(system.num_spins):
        flipped = s.clone()
        flipped[:, i] *= -1
        torch.testing.assert_close(system(flipped) - energy, 2 * s[:, i] * local[:, i])
    slope = torch.func.vmap(torch.func.grad(system))(s)
    torch.testing.assert_close(system.gradient(s), slope)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000))
def test_instances_broadcast_against_chains(seed: int) -> None:
    glasses = spins.edwards_anderson((3, 3), Key.of(seed), instances=(4, 1))
    s = glasses.random_states((4, 5), Key.of(seed + 1))
    for d in range(4):
        alone = spins.Ising(glasses.pairs, glasses.couplings[d, 0], glasses.fields)
        torch.testing.assert_close(glasses(s)[d], alone(s[d]))
        torch.testing.assert_close(glasses.local_field(s)[d], alone.local_field(s[d]))
    dense = spins.sherrington_kirkpatrick(6, Key.of(seed), (4, 1))
    s = dense.random_states((4, 5), Key.of(seed + 1))
    alone = spins.Ising(dense.pairs, dense.couplings[2, 0], dense.fields)
    torch.testing.assert_close(dense(s)[2], alone(s[2]))


def test_a_matrix_and_its_pairs_are_the_same_system() -> None:
    glass = spins.sherrington_kirkpatrick(8, Key.of(3))
    again = spins.from_matrix(glass.matrix)
    s = glass.random_states((10,), Key.of(4))
    torch.testing.assert_close(glass(s), again(s))
    assert torch.equal(glass.matrix, glass.matrix.mT) and float(glass.matrix.diagonal().abs().max()) == 0


def test_curie_weiss_is_the_square_of_the_magnetisation() -> None:
    n, coupling, field = 9, 1.3, 0.2
    s = spins.curie_weiss(n, coupling, field).random_states((20,), Key.of(0))
    total = s.sum(-1)
    wanted = -coupling * total**2 / (2 * n) - field * total + coupling / 2
    torch.testing.assert_close(spins.curie_weiss(n, coupling, field)(s), wanted)


@statistical(alpha=beyond(5, 4), bugs=("uniforms-lean", "wide-normals"))
def test_glasses_have_the_couplings_of_their_name() -> None:
    n, instances = 20, 500
    sk = spins.sherrington_kirkpatrick(n, Key.of(1), (instances,)).couplings.flatten()
    count = sk.numel()
    assert abs(float(sk.mean())) <= 5 * float(sk.std()) / count**0.5
    assert abs(float(sk.var()) * n - 1) <= 5 * (2 / count) ** 0.5
    binary = spins.edwards_anderson((4, 4), Key.of(1), "binary", (instances,)).couplings
    assert set(binary.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(binary.mean())) <= 5 / binary.numel() ** 0.5
    gaussian = spins.edwards_anderson((4, 4), Key.of(1), "gaussian", (instances,)).couplings
    assert abs(float(gaussian.var()) - 1) <= 5 * (2 / gaussian.numel()) ** 0.5


def test_stored_patterns_are_minima_of_hopfields_energy() -> None:
    patterns = torch.where(torch.rand(3, 200, generator=torch.Generator().manual_seed(0)) < 0.5, 1.0, -1.0)
    memory = spins.hopfield(patterns)
    # E = -(N/2) sum_p m_p^2 + P/2 with overlaps m_p: of pattern 1 alone (1, small, small).
    m = patterns.double() @ patterns.double().mT / 200
    wanted = -100 * m.square().sum(-1) + 3 / 2
    torch.testing.assert_close(memory(patterns.double()), wanted)
    assert bool((patterns * memory.local_field(patterns.double()) > 0).all())


def test_clamped_spins_leave_the_system_of_the_others() -> None:
    glass = spins.Ising(graphs.complete(6), drawn(15), drawn(6, 1))
    held, values = torch.tensor([4, 1]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    rest, constant = spins.clamped(glass, held, values)
    s = rest.random_states((2,), Key.of(2))
    full = torch.empty(2, 6, dtype=torch.float64)
    full[:, held], full[:, [0, 2, 3, 5]] = values.double(), s
    torch.testing.assert_close(rest(s) + constant, glass(full))


def test_random_states_are_fair_and_each_its_own() -> None:
    s = spins.free_spins(10).random_states((4000,), Key.of(7))
    assert set(s.flatten().tolist()) == {-1.0, 1.0}
    assert float(s.mean(0).abs().max()) <= 5 / math.sqrt(4000)
    assert float((s.mT @ s / 4000 - torch.eye(10)).abs().max()) <= 5 / math.sqrt(4000)


def test_bad_systems_are_refused_in_a_sentence() -> None:
    pairs, fields = torch.tensor([[0, 1]]), torch.zeros(3)
    for call, message in (
        (lambda: spins.Ising(pairs, torch.ones(2), fields), "1 pairs need as many couplings, not 2"),
        (lambda: spins.Ising(torch.tensor([[0, 3]]), torch.ones(1), fields), r"outside 0\.\.2"),
        (lambda: spins.Ising(torch.tensor([[1, 1]]), torch.ones(1), fields), "two different spins"),
        (lambda: spins.Ising(torch.tensor([[0, 1], [1, 0]]), torch.ones(2), fields), "may appear once"),
        (lambda: spins.Ising(pairs.double(), torch.ones(1), fields), "Pairs must be int64"),
        (lambda: spins.from_matrix(torch.tensor([[0.0, 1.0], [0.5, 0.0]])), r"entries \(0, 1\) and \(1, 0\) differ"),
        (lambda: spins.from_matrix(torch.eye(2)), "zero diagonal"),
        (lambda: spins.hopfield(torch.tensor([[1.0, 0.5]])), "Spins are -1 or"),
        (lambda: spins.edwards_anderson((4, 4), Key.of(0), "uniform"), "'binary' or 'gaussian'"),
        (lambda: graphs.torus(0, 3), "at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(NumericFault, match="Couplings holds 1 values"):
        spins.Ising(pairs, torch.tensor([math.nan]), fields)
