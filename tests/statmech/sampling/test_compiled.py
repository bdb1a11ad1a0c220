from __future__ import annotations

import builtins
import itertools
import math
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy.stats import chi2, expon, kstest, logistic, norm
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.spins import (
    Ising,
    curie_weiss,
    edwards_anderson,
    ising,
    sherrington_kirkpatrick,
)
from mfmarl.statmech.exact.ising import curie_weiss_finite, square_magnetisation, torus_energy
from mfmarl.statmech.sampling import compiled, single_spin
from mfmarl.statmech.sampling.tempering import parallel_tempering
from tests.statistical import beyond, statistical

pytest.importorskip("numba")

RULES = ["heat_bath", "metropolis"]
FRUSTRATED = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3], [3, 4], [4, 5], [3, 5], [0, 5]])
SIGNS = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1], dtype=torch.float64)


def all_spins(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)


def follows(counts: Tensor, law: Tensor) -> bool:
    """Pearson's chi-squared, cells with fewer than 5 expected taken together; only 3e-7 of true laws fail."""
    expected = law * counts.sum()
    big = expected >= 5
    seen = torch.cat([counts[big], counts[~big].sum().reshape(1)]).double()
    wanted = torch.cat([expected[big], expected[~big].sum().reshape(1)])
    keep = wanted > 1e-9
    if float(seen[~keep].sum()) > 0:
        return False
    statistic = float(((seen - wanted)[keep] ** 2 / wanted[keep]).sum())
    return statistic < chi2.isf(norm.sf(5), int(keep.sum()) - 1)


def reaches_equilibrium(system: Ising, s: Tensor, beta: float) -> bool:
    n = system.num_spins
    index = ((s > 0) * 2 ** torch.arange(n - 1, -1, -1)).sum(-1)
    return follows(torch.bincount(index, minlength=2**n), torch.softmax(-beta * system(all_spins(n)), 0))


def conditional_frequencies_are_right(
    system: Ising, before: Tensor, after: Tensor, order: Tensor, beta: float, rule: str
) -> None:
    """Each site of chains [B, n] against its chance given the new spins of lower order and the old ones of higher."""
    trials: dict[float, int] = defaultdict(int)
    hits: dict[float, int] = defaultdict(int)
    for rank in order.unique().tolist():
        sites = order == rank
        local = system.local_field(torch.where(order < rank, after, before))[..., sites]
        old, new = before[..., sites], after[..., sites]
        if rule == "heat_bath":
            chance, happened = single_spin.up_probability(local, beta), new > 0
        else:
            chance, happened = single_spin.flip_probability(old, local, beta), new != old
        for p in chance.unique().tolist():
            trials[round(p, 9)] += int((chance == p).sum())
            hits[round(p, 9)] += int(happened[chance == p].sum())
    for p, n in trials.items():
        assert abs(hits[p] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1e-6 * n


# ------------------------------------------------------------------------------------------- the packed torus


@pytest.mark.parametrize("rule", RULES)
def test_one_packed_sweep_gives_every_spin_its_chance_given_the_others(rule: str) -> None:
    side, beta = 128, 0.35
    system = ising(graphs.torus(side, side), side * side)
    before = system.random_states((4,), Key.of(1))
    after = compiled.torus_sweeps(before.reshape(4, side, side), beta, 1, Key.of(2), rule).reshape(4, -1)
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    conditional_frequencies_are_right(system, before, after, (row + column) % 2, beta, rule)


@pytest.mark.parametrize("rule", RULES)
def test_the_packed_torus_has_the_exact_energy(rule: str) -> None:
    """L = 128, beta = .4: -1.106079 per site (Kaufman 1949)."""
    chains, side = 48, 128
    s = torch.ones(chains, side, side, dtype=torch.int8)
    s = compiled.torus_sweeps(s, 0.4, 400, Key.of(1), rule)
    total = torch.zeros(chains, dtype=torch.float64)
    for step in range(20):
        s = compiled.torus_sweeps(s, 0.4, 40, Key.of(2).fold(step), rule)
        bonds = s * (s.roll(1, -1) + s.roll(1, -2))
        total -= bonds.double().mean((-1, -2)) / 20
    exact = torus_energy((side, side), 2.5)
    assert exact == pytest.approx(-1.106079, abs=1e-6)
    assert abs(float(total.mean()) - exact) < 5 * float(total.std()) / math.sqrt(chains)


def test_the_packed_torus_is_magnetised_in_its_ordered_phase() -> None:
    chains, side = 32, 256
    s = torch.ones(chains, side, side, dtype=torch.int8)
    s = compiled.torus_sweeps(s, 0.5, 600, Key.of(1))
    m = s.double().mean((-1, -2))
    assert abs(float(m.mean()) - square_magnetisation(2.0)) < 5 * float(m.std()) / math.sqrt(chains)


def test_packed_tori_at_infinite_and_at_zero_temperature() -> None:
    s = torch.ones(2, 128, 128, dtype=torch.int8)
    hot = compiled.torus_sweeps(s, 0.0, 1, Key.of(1))
    assert float(hot.double().mean().abs()) < 5 / 128 / math.sqrt(2)
    assert torch.equal(compiled.torus_sweeps(s, math.inf, 5, Key.of(1)), s)
    assert torch.equal(compiled.torus_sweeps(s, math.inf, 5, Key.of(1), "metropolis"), s)
    assert torch.equal(compiled.torus_sweeps(s, 0.0, 1, Key.of(1), "metropolis"), -s)
    one, two = (compiled.torus_sweeps(s, torch.tensor([0.2, beta]), 3, Key.of(4)) for beta in (0.1, 0.9))
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])


def test_a_packed_torus_does_not_know_of_the_others() -> None:
    s = ising(graphs.torus(128, 128), 128**2).random_states((3,), Key.of(1)).reshape(3, 128, 128)
    together = compiled.torus_sweeps(s, 0.4, 4, Key.of(2))
    assert torch.equal(compiled.torus_sweeps(s[2], 0.4, 4, Key.of(2), ids=torch.tensor(2)), together[2])
    assert not torch.equal(compiled.torus_sweeps(s[2], 0.4, 4, Key.of(3), ids=torch.tensor(2)), together[2])


# ----------------------------------------------------------------------------------- 64 chains to a word


@pytest.mark.parametrize(
    ("rule", "field"),
    [("heat_bath", 0.0), ("metropolis", 0.0), ("heat_bath", torch.tensor([0.3, -0.2, 0.3, 0.0, 0.7, 0.3]).double())],
)
def test_packed_chains_reach_the_gibbs_distribution(rule: str, field: float | Tensor) -> None:
    system = ising(FRUSTRATED, 6, 0.8 * SIGNS, field)
    s = system.random_states((40_000,), Key.of(1))
    s = compiled.packed_sweeps(system, s, torch.full((40,), 0.9), Key.of(2), rule)
    assert reaches_equilibrium(system, s, 0.9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(4, 4), (3, 3, 3), (3, 3, 2, 2, 2, 2)])  # degrees 4, 6 and 8
def test_one_sweep_of_packed_chains_gives_every_spin_its_chance(rule: str, shape: tuple[int, ...]) -> None:
    system, beta = edwards_anderson(shape, Key.of(3), "binary"), 0.3
    before = system.random_states((300,), Key.of(1))
    after = compiled.packed_sweeps(system, before, torch.tensor([beta]), Key.of(2), rule)
    conditional_frequencies_are_right(system, before, after, torch.arange(system.num_spins), beta, rule)


@pytest.mark.parametrize("rule", RULES)
def test_energies_of_packed_four_by_four_tori_follow_the_density_of_states(rule: str) -> None:
    system = ising(graphs.torus(4, 4), 16)
    levels, which = system(all_spins(16)).round().long().unique(return_inverse=True)
    law = torch.zeros(len(levels), dtype=torch.float64)
    law.index_add_(0, which, torch.softmax(-0.4 * system(all_spins(16)), 0))
    s = system.random_states((30_000,), Key.of(1)).to(torch.int8)
    for sampler in (compiled.packed_sweeps, compiled.graph_sweeps):
        out = sampler(system, s, torch.full((60,), 0.4), Key.of(2), rule)
        energies = system(out.double()).round().long()
        assert follows(torch.bincount(torch.searchsorted(levels, energies), minlength=len(levels)), law)


def test_packed_chains_do_not_know_of_each_other() -> None:
    system = edwards_anderson((4, 4), Key.of(3), "binary")
    s = system.random_states((300,), Key.of(1))
    betas = torch.linspace(0.1, 2, 9)
    together = compiled.packed_sweeps(system, s, betas, Key.of(2))
    some = torch.tensor([7, 64, 201, 299])
    assert torch.equal(compiled.packed_sweeps(system, s[some], betas, Key.of(2), ids=some), together[some])
    assert torch.equal(
        compiled.packed_sweeps(system, s.reshape(3, 100, 16), betas, Key.of(2)).reshape(300, 16), together
    )


def test_a_long_schedule_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    system = ising(FRUSTRATED, 6, SIGNS, torch.linspace(-1, 1, 6).double())
    s, betas = system.random_states((100,), Key.of(1)), torch.linspace(0, 2, 23)
    whole = compiled.packed_sweeps(system, s, betas, Key.of(2))
    monkeypatch.setattr(compiled, "_THRESHOLDS", 1 << 12)
    assert torch.equal(compiled.packed_sweeps(system, s, betas, Key.of(2)), whole)


def test_a_schedule_is_followed_sweep_by_sweep() -> None:
    system = edwards_anderson((6, 6), Key.of(3), "binary")
    s = system.random_states((200,), Key.of(1))
    hot_last = torch.tensor([5.0, 5, 5, 5, 5, 5, 5, 0])
    for sampler in (compiled.packed_sweeps, compiled.graph_sweeps):
        cold, hot = sampler(system, s, hot_last[:7], Key.of(2)), sampler(system, s, hot_last, Key.of(2))
        assert float(system(cold).mean()) < -40
        assert abs(float(system(hot).mean())) < 5 * math.sqrt(72 / 200)  # 72 links of variance 1


@pytest.mark.parametrize("rule", RULES)
def test_cold_packed_chains_only_go_down(rule: str) -> None:
    system = edwards_anderson((4, 4, 4), Key.of(3), "binary")
    s = system.random_states((100,), Key.of(1))
    for sampler in (compiled.packed_sweeps, compiled.graph_sweeps):
        energies = [system(sampler(system, s, torch.full((k,), math.inf), Key.of(2), rule)) for k in range(6)]
        assert all(bool((b <= a).all()) for a, b in itertools.pairwise(energies))
        assert float(energies[-1].mean()) < -90


# --------------------------------------------------------------------------------------- any graph, any J


def small_systems() -> dict[str, Ising]:
    key = Key.of(5)
    return {
        "triangles": ising(FRUSTRATED, 6, random.normal(key, torch.arange(8)).double(), 0.2),
        "everyone": sherrington_kirkpatrick(6, key),
        "five neighbours": ising(graphs.complete(6), 6, random.normal(key, torch.arange(15)).double(), -0.1),
        "alone": ising(torch.empty(0, 2, dtype=torch.int64), 6, torch.empty(0), torch.linspace(-1, 1, 6).double()),
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", small_systems())
def test_chains_on_any_graph_reach_the_gibbs_distribution(
    rule: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = small_systems()[name]
    s = system.random_states((20_000,), Key.of(1))
    betas = torch.full((41 if name == "alone" else 40,), 0.8)  # a lone spin is drawn anew only by heat bath
    assert reaches_equilibrium(system, compiled.graph_sweeps(system, s, betas, Key.of(2), rule), 0.8)
    if system.dense:
        monkeypatch.setattr(compiled, "_DENSE", 2)
        assert reaches_equilibrium(system, compiled.graph_sweeps(system, s, betas, Key.of(2), rule), 0.8)


@pytest.mark.parametrize("rule", RULES)
def test_one_sweep_on_a_graph_gives_every_spin_its_chance(rule: str) -> None:
    system, beta = edwards_anderson((3, 3, 3), Key.of(3), "binary"), 0.3
    before = system.random_states((700,), Key.of(1))
    after = compiled.graph_sweeps(system, before, torch.tensor([beta]), Key.of(2), rule)
    conditional_frequencies_are_right(system, before, after, torch.arange(27), beta, rule)


@pytest.mark.parametrize("rule", RULES)
def test_everyone_with_everyone_has_the_exact_energy_and_magnetisation(rule: str) -> None:
    n, chains, temperature = 100, 2000, 1.2
    system = curie_weiss(n)
    s = compiled.graph_sweeps(
        system, system.random_states((chains,), Key.of(1)), torch.full((150,), 1 / temperature), Key.of(2), rule
    )
    exact = curie_weiss_finite(n, temperature)
    m = s.mean(-1).abs()
    pair = ((s.sum(-1) ** 2 - n) / (n * (n - 1))).double()
    assert abs(float(m.mean()) - exact.absolute) < 5 * float(m.std()) / math.sqrt(chains)
    assert abs(float(pair.mean()) - exact.correlation) < 5 * float(pair.std()) / math.sqrt(chains)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dense", [False, True])
def test_a_chain_on_a_graph_is_the_same_alone_and_among_hundreds(rule: str, dense: bool) -> None:
    system = sherrington_kirkpatrick(70, Key.of(2)) if dense else edwards_anderson((6, 6, 6), Key.of(2))
    s = system.random_states((150,), Key.of(1))
    betas = torch.linspace(0.2, 3, 20).unsqueeze(-1) * torch.linspace(0.5, 1.5, 150)
    together = compiled.graph_sweeps(system, s, betas, Key.of(3), rule)
    for chain in (0, 77, 149):
        alone = compiled.graph_sweeps(
            system, s[chain], betas[:, chain], Key.of(3), rule, ids=torch.tensor(chain, dtype=torch.int64)
        )
        assert torch.equal(alone, together[chain])


def test_realisations_of_the_disorder_meet_their_own_chains() -> None:
    for n in (12, 70):
        batch = sherrington_kirkpatrick(n, Key.of(2), (3, 1))
        s = batch.random_states((3, 10), Key.of(1))
        betas = torch.linspace(0.2, 2, 8)
        together = compiled.graph_sweeps(batch, s, betas, Key.of(3))
        for d in range(3):
            one = Ising(batch.pairs, batch.couplings[d, 0], batch.fields)
            alone = compiled.graph_sweeps(one, s[d], betas, Key.of(3), ids=torch.arange(10) + 10 * d)
            assert torch.equal(alone, together[d])


def test_a_compiled_sweep_is_a_sweep_like_any_other() -> None:
    system = edwards_anderson((4, 2), Key.of(3))
    betas = torch.tensor([0.3, 0.8, 1.5], dtype=torch.float64)
    s = system.random_states((3, 20_000), Key.of(1))
    run = parallel_tempering(compiled.graph_sweep(system), system, s, betas, Key.of(2), 20)
    for r, beta in enumerate(betas.tolist()):
        assert reaches_equilibrium(system, run.states[r], beta)
    sweep, ids = compiled.graph_sweep(system, "metropolis", 3), torch.arange(50)
    once = sweep(s[0, :50], 0.7, ids, Key.of(4))
    assert torch.equal(once, compiled.graph_sweeps(system, s[0, :50], torch.full((3,), 0.7), Key.of(4), "metropolis"))
    each = torch.linspace(0, 2, 50)
    assert torch.equal(sweep(s[0, :50], each, ids, Key.of(4))[7], sweep(s[0, 7], each[7], ids[7], Key.of(4)))


# ------------------------------------------------------------------------------------------ the noise itself


def test_the_generators_are_those_of_blackman_and_vigna() -> None:
    from mfmarl.statmech.sampling import kernels

    def rotate(x: int, k: int, width: int) -> int:
        return ((x << k) | (x >> (width - k))) & ((1 << width) - 1)

    x, y = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    first, second = np.array([x], np.uint64), np.array([y], np.uint64)
    below = np.zeros((3, 1), np.uint64)
    coin, bits = np.zeros(1, np.uint64), np.zeros((3, kernels.PLANES), np.uint64)
    bits[0] = np.uint64(2**64 - 1)
    seen = 0
    for _ in range(20):
        kernels._four_planes_of_three(first, second, below[0], below[1], below[2], coin, bits, 0, 1)
        for _ in range(4):
            out = (rotate((x + y) & (2**64 - 1), 17, 64) + x) & (2**64 - 1)
            y ^= x
            x, y = rotate(x, 49, 64) ^ y ^ ((y << 21) & (2**64 - 1)), rotate(y, 28, 64)
            seen |= out
        assert int(coin[0]) == out
        assert int(below[0, 0]) == seen and int(below[1, 0]) == 0

    a, b, c, d = 1, 2, 3, 4
    state = np.array([a, b, c, d], np.uint32)
    noise = np.empty(256, np.float32)
    kernels._draw_ahead(noise, 256, True, state)
    for j in range(256):
        out = (rotate((a + d) & 0xFFFFFFFF, 7, 32) + a) & 0xFFFFFFFF
        shifted = (b << 9) & 0xFFFFFFFF
        c ^= a
        d ^= b
        b ^= c
        a ^= d
        c ^= shifted
        d = rotate(d, 11, 32)
        assert float(noise[j]) == pytest.approx(-math.log((out + 0.5) / 2**32), rel=1e-6, abs=2e-7)
    assert state.tolist() == [a, b, c, d]


@pytest.mark.parametrize("metropolis", [False, True])
def test_the_noise_of_numbers_has_its_law_and_no_memory(metropolis: bool) -> None:
    from mfmarl.statmech.sampling import kernels

    seeds = random.bits(Key.of(1), torch.arange(2000)).numpy().view(np.uint32).reshape(1000, 4).copy()
    noise = np.empty((1000, 256), np.float32)
    for chain in range(1000):
        kernels._draw_ahead(noise[chain], 256, metropolis, seeds[chain])
    law = expon if metropolis else logistic
    assert kstest(noise.ravel(), law.cdf).pvalue > 3e-7
    u = law.cdf(noise.astype(np.float64)) - 0.5
    for other in (np.roll(u, 1, 0), np.roll(u, 1, 1), np.roll(u, 2, 1)):  # the next chain, and the number before
        assert abs(float((u * other).mean())) < 5 / 12 / math.sqrt(u.size)


def test_each_bit_of_a_comparison_meets_its_chance_alone() -> None:
    from mfmarl.statmech.sampling import kernels

    chances = torch.tensor([0.3, 0.01, 0.77], dtype=torch.float64)
    bits = compiled._threshold_bits(kernels, chances)
    size, rounds = 64, 300
    seeds = compiled._seeds(Key.of(3), torch.arange(size), 2)
    drawn = np.zeros((rounds, 3, size), np.uint64)
    coin = np.zeros(size, np.uint64)
    for step in range(rounds):
        for plane in range(0, kernels.PLANES, 4):
            kernels._four_planes_of_three(
                seeds[0], seeds[1], drawn[step, 0], drawn[step, 1], drawn[step, 2], coin, bits, plane, size
            )
    hits = (drawn[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)  # [rounds, 3, words, bits]
    for which, p in enumerate(chances.tolist()):
        x = hits[:, which].astype(np.float64)
        assert np.all(np.abs(x.mean((0, 1)) - p) < 5.5 * math.sqrt(p * (1 - p) / rounds / size))
        centred = x - p
        for other in (np.roll(centred, 1, 0), np.roll(centred, 1, 1), np.roll(centred, 1, 2), np.roll(centred, 17, 2)):
            assert abs(float((centred * other).mean())) < 5 * p * (1 - p) / math.sqrt(x.size)
    both = (hits[:, 0] & hits[:, 1]).sum()
    assert both == hits[:, 1].sum()  # one random number: below .01 is below .3


@pytest.mark.verify
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", ["torus", "packed", "graph"])
@statistical(alpha=beyond(5, 20, samples=48), bugs=("steps-share-noise", "pairs-share-noise"))
def test_billions_of_updates_agree_with_the_exact_energy(path: str, rule: str) -> None:
    """Kaufman's energy to some 1e-4: a generator with a flaw that matters here would show."""
    side, chains, beta = {"torus": (128, 32, 0.42), "packed": (32, 4096, 0.44), "graph": (32, 512, 0.44)}[path]
    system = ising(graphs.torus(side, side), side * side)
    s = torch.ones(chains, side * side, dtype=torch.int8)
    total = torch.zeros(chains, dtype=torch.float64)
    for step in range(-3, 30):
        key, count = Key.of(5).fold(step + 3), {"torus": 1000, "packed": 150, "graph": 60}[path]
        if step < 0:
            count *= 6
        if path == "torus":
            s = compiled.torus_sweeps(s.reshape(chains, side, side), beta, count, key, rule).reshape(chains, -1)
        else:
            kernel = compiled.packed_sweeps if path == "packed" else compiled.graph_sweeps
            s = kernel(system, s, torch.full((count,), beta), key, rule)
        if step >= 0:
            lattice = s.reshape(chains, side, side)
            total -= (lattice * (lattice.roll(1, -1) + lattice.roll(1, -2))).double().mean((-1, -2)) / 30
    error = float(total.std()) / math.sqrt(chains)
    assert error < 2e-3
    assert abs(float(total.mean()) - torus_energy((side, side), 1 / beta)) < 5 * error


# -------------------------------------------------------------------------------------------------- refusals


def test_what_the_packed_paths_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 128"):
        compiled.torus_sweeps(torch.ones(64, 64), 0.4, 1, Key.of(0))
    with pytest.raises(ConfigError, match="a state holds 0"):
        compiled.torus_sweeps(torch.zeros(128, 128), 0.4, 1, Key.of(0))
    with pytest.raises(ConfigError, match="at least 0"):
        compiled.torus_sweeps(torch.ones(128, 128), -0.4, 1, Key.of(0))
    system = edwards_anderson((3, 3), Key.of(1))
    with pytest.raises(ConfigError, match="of one size"):
        compiled.packed_sweeps(system, torch.ones(9), torch.ones(1), Key.of(0))
    with pytest.raises(ConfigError, match="'heat_bath' only"):
        compiled.packed_sweeps(
            ising(graphs.torus(4), 4, 1.0, 0.1), torch.ones(4), torch.ones(1), Key.of(0), "metropolis"
        )
    with pytest.raises(ConfigError, match="one realisation"):
        compiled.packed_sweeps(
            edwards_anderson((3,), Key.of(0), "binary", (2,)), torch.ones(3), torch.ones(1), Key.of(0)
        )
    with pytest.raises(ConfigError, match="'glauber'"):
        compiled.graph_sweeps(system, torch.ones(9), torch.ones(1), Key.of(0), "glauber")
    with pytest.raises(ConfigError, match="at least 0, not nan"):
        compiled.graph_sweeps(system, torch.ones(9), torch.tensor([math.nan]), Key.of(0))


def test_without_numba_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.split(".")[0] == "numba":
            raise ModuleNotFoundError("No module named 'numba'", name="numba")
        return real(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "mfmarl.statmech.sampling.kernels", raising=False)
    from mfmarl.statmech import sampling

    monkeypatch.delattr(sampling, "kernels", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'mfmarl\[fast\]'"):
        compiled.torus_sweeps(torch.ones(128, 128), 0.4, 1, Key.of(0))
