from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs
from mfmarl.statmech.energies.potts import Potts, potts
from mfmarl.statmech.energies.spins import Ising, edwards_anderson, ising
from mfmarl.statmech.exact.ising import square_magnetisation, torus_energy
from mfmarl.statmech.sampling import chains, clusters
from mfmarl.statmech.sampling.checkerboard import torus_sweep
from tests.statistical import beyond, statistical

TRIANGLES = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3], [3, 4], [4, 5], [3, 5], [0, 5]])
KERNELS = {"swendsen_wang": clusters.swendsen_wang, "wolff": clusters.wolff}


def systems() -> dict[str, Ising]:
    strengths = random.normal(Key.of(3), torch.arange(8)).double().abs()
    gauge = torch.tensor([1.0, -1, 1, 1, -1, 1], dtype=torch.float64)
    fields = torch.tensor([0.2, -0.3, 0.1, 0.0, 0.4, 0.2], dtype=torch.float64)
    return {
        "ferromagnet on triangles": ising(TRIANGLES, 6, strengths),
        "in fields of both signs": ising(TRIANGLES, 6, strengths, fields),
        "antiferromagnetic ring": ising(graphs.torus(6), 6, -1.0, 0.2),
        "ferromagnet in disguise": ising(TRIANGLES, 6, strengths * gauge[TRIANGLES].prod(-1)),
    }


def all_spins(n: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)


def follows(counts: Tensor, law: Tensor) -> bool:
    expected = law * counts.sum()
    big = expected >= 5
    seen = torch.cat([counts[big], counts[~big].sum().reshape(1)]).double()
    wanted = torch.cat([expected[big], expected[~big].sum().reshape(1)])
    keep = wanted > 1e-9
    statistic = float(((seen - wanted)[keep] ** 2 / wanted[keep]).sum())
    return float(seen[~keep].sum()) == 0 and statistic < chi2.isf(norm.sf(5), int(keep.sum()) - 1)


def index_of(s: Tensor) -> Tensor:
    n = s.shape[-1]
    return ((s > 0) * 2 ** torch.arange(n - 1, -1, -1)).sum(-1)


def exact_kernel(system: Ising, beta: float, name: str) -> Tensor:
    """P(x -> y) by enumeration of every subset of joined pairs: small systems only."""
    n, m = system.num_spins, len(system.pairs)
    states = all_spins(n)
    kernel = torch.zeros(len(states), len(states), dtype=torch.float64)
    join = 1 - torch.exp(-2 * beta * system.couplings.abs())
    for x, s in enumerate(states):
        content = (s[system.pairs].prod(-1) * system.couplings > 0).tolist()
        free = [i for i in range(m) if content[i]]
        for chosen in itertools.product((False, True), repeat=len(free)):
            weight, parent = 1.0, list(range(n))

            def root(i: int, parent: list[int] = parent) -> int:
                while parent[i] != i:
                    i = parent[i]
                return i

            for pair, on in zip(free, chosen, strict=True):
                weight *= float(join[pair]) if on else 1 - float(join[pair])
                if on:
                    i, j = system.pairs[pair].tolist()
                    parent[root(i)] = root(j)
            groups: dict[int, list[int]] = {}
            for i in range(n):
                groups.setdefault(root(i), []).append(i)
            sets = list(groups.values())
            pulls = [float((s[g] * system.fields[g]).sum()) for g in sets]
            masks = [sum(1 << (n - 1 - i) for i in g) for g in sets]
            if name == "wolff":
                for g, pull, mask in zip(sets, pulls, masks, strict=True):
                    accept = min(1.0, math.exp(-2 * beta * pull))
                    kernel[x, x ^ mask] += weight * len(g) / n * accept
                    kernel[x, x] += weight * len(g) / n * (1 - accept)
            else:
                for turned in itertools.product((False, True), repeat=len(sets)):
                    probability, y = weight, x
                    for turn, pull, mask in zip(turned, pulls, masks, strict=True):
                        stay = 1 / (1 + math.exp(-2 * beta * pull))
                        probability *= 1 - stay if turn else stay
                        y ^= mask if turn else 0
                    kernel[x, y] += probability
    return kernel


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("which", ["triangle in fields", "antiferromagnetic square"])
def test_cluster_moves_follow_the_exact_kernel_and_keep_the_gibbs_distribution(name: str, which: str) -> None:
    if which == "triangle in fields":
        pairs = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3]])
        system = ising(
            pairs,
            4,
            torch.tensor([1.0, 0.5, 0.3, 0.8], dtype=torch.float64),
            torch.tensor([0.3, -0.2, 0.0, 0.5], dtype=torch.float64),
        )
    else:
        system = ising(graphs.torus(4), 4, -0.7, 0.2)
    beta, each = 0.6, 6000
    states = all_spins(4)
    kernel = exact_kernel(system, beta, name)
    law = torch.softmax(-beta * system(states), 0)
    torch.testing.assert_close(kernel.sum(-1), torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-12)
    flow = law.unsqueeze(-1) * kernel
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-14)  # detailed balance
    s = states.unsqueeze(1).expand(-1, each, -1)
    out = index_of(KERNELS[name](system)(s, beta, chains.chain_ids(s.shape[:-1]), Key.of(1)))
    for x in range(16):
        assert follows(torch.bincount(out[x], minlength=16), kernel[x])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("which", systems())
def test_cluster_chains_reach_the_gibbs_distribution(name: str, which: str) -> None:
    system, n = systems()[which], 20_000
    sweep = KERNELS[name](system)
    s, _ = chains.run(sweep, system.random_states((n,), Key.of(1)), 0.8, Key.of(2), 30, lambda x: x[:, 0])
    assert follows(torch.bincount(index_of(s), minlength=64), torch.softmax(-0.8 * system(all_spins(6)), 0))


@pytest.mark.parametrize("name", KERNELS)
@statistical(alpha=1e-3, bugs=("uniforms-lean", "steps-share-noise"))
def test_energies_of_the_four_by_four_torus_follow_the_density_of_states(name: str) -> None:
    system, n = ising(graphs.torus(4, 4), 16), 10_000
    levels, which = system(all_spins(16)).round().long().unique(return_inverse=True)
    weight = torch.softmax(-0.44 * system(all_spins(16)), 0)
    law = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, which, weight)
    s = system.random_states((n,), Key.of(1)).to(torch.int8)
    s, _ = chains.run(KERNELS[name](system), s, 0.44, Key.of(2), 40, lambda x: x[:, 0])
    assert s.dtype == torch.int8
    energies = system(s.double()).round().long()
    assert follows(torch.bincount(torch.searchsorted(levels, energies), minlength=len(levels)), law)


@statistical(alpha=beyond(5, 2, samples=16), bugs=("uniforms-lean", "steps-share-noise"))
def test_swendsen_wang_has_the_exact_energy_of_a_torus_at_its_critical_point() -> None:
    side, batch = 16, 400
    system = ising(graphs.torus(side, side), side * side)
    beta = math.log(1 + math.sqrt(2)) / 2
    s = torch.ones(batch, side * side, dtype=torch.int8)
    _, seen = chains.run(
        clusters.swendsen_wang(system), s, beta, Key.of(2), 20, lambda x: system(x.double()), warm_up=30
    )
    mean = seen.mean(0) / side**2
    assert abs(float(mean.mean()) - torus_energy((side, side), 1 / beta)) < 5 * float(mean.std()) / math.sqrt(batch)


@statistical(alpha=beyond(5, 2, samples=16), bugs=("uniforms-lean", "steps-share-noise"))
def test_clusters_turn_a_magnet_over_and_keep_its_size() -> None:
    side, batch = 32, 60
    system = ising(graphs.torus(side, side), side * side)
    s, _ = chains.run(clusters.swendsen_wang(system), torch.ones(batch, side**2), 0.5, Key.of(1), 40, lambda x: x[:, 0])
    m = s.double().mean(-1)
    assert abs(float((m > 0).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(batch)
    assert abs(float(m.abs().mean()) - square_magnetisation(2.0)) < 5 * float(m.abs().std()) / math.sqrt(batch)


def test_at_the_critical_point_clusters_forget_what_single_spins_remember() -> None:
    side, batch, lag = 32, 100, 20
    system = ising(graphs.torus(side, side), side * side)
    beta = math.log(1 + math.sqrt(2)) / 2
    s = torch.ones(batch, side**2, dtype=torch.int8)
    s, _ = chains.run(clusters.swendsen_wang(system), s, beta, Key.of(1), 40, lambda x: x[:, 0])  # both start from here
    memory = {}
    for name, sweep in (("clusters", clusters.swendsen_wang(system)), ("spins", torus_sweep((side, side)))):
        _, seen = chains.run(sweep, s, beta, Key.of(2), lag, lambda x: x.double().mean(-1).abs())
        memory[name] = float(torch.corrcoef(torch.stack([seen[0], seen[-1]]))[0, 1])
    # Of independent chains the correlation has a standard error of .1; tau is about 5 against 600 sweeps.
    assert memory["clusters"] < 0.5 and memory["spins"] > 0.7


def test_potts_clusters_reach_the_gibbs_distribution_in_any_fields() -> None:
    fields = 0.3 * random.normal(Key.of(9), torch.arange(15)).double().reshape(5, 3)
    pairs = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 3], [3, 4]])
    system = Potts(pairs, torch.tensor([1.0, 0.4, 0.7, 1.2, 0.0]).double(), fields)
    states = torch.tensor(list(itertools.product(range(3), repeat=5)))
    k = system.random_states((20_000,), Key.of(1))
    k, _ = chains.run(clusters.potts_swendsen_wang(system), k, 0.9, Key.of(2), 20, lambda x: x[:, 0])
    counts = torch.bincount((k * 3 ** torch.arange(4, -1, -1)).sum(-1), minlength=243)
    assert follows(counts, torch.softmax(-0.9 * system(states), 0))


def test_at_zero_temperature_all_that_agree_move_together() -> None:
    system = ising(graphs.grid(8), 8)
    s = torch.tensor([[1.0, 1, 1, -1, -1, 1, 1, 1]]).expand(500, 8)
    out = clusters.swendsen_wang(system)(s, math.inf, torch.arange(500), Key.of(1))
    for part in (slice(0, 3), slice(3, 5), slice(5, 8)):
        assert bool((out[:, part] == out[:, part][:, :1]).all())
    assert abs(float(out[:, 0].mean())) < 5 / math.sqrt(500)


@pytest.mark.parametrize("name", KERNELS)
def test_a_chain_does_not_know_of_the_others(name: str) -> None:
    system = ising(graphs.torus(5, 4), 20, 1.0, 0.05)
    s = system.random_states((6,), Key.of(1))
    betas = torch.linspace(0.1, 1.2, 6, dtype=torch.float64)
    sweep = KERNELS[name](system)
    together = sweep(s, betas, torch.arange(6), Key.of(2))
    alone = torch.stack([sweep(s[i], float(betas[i]), torch.tensor(i), Key.of(2)) for i in range(6)])
    assert torch.equal(together, alone)


def test_frustrated_couplings_are_refused() -> None:
    for system in (
        ising(TRIANGLES, 6, -1.0),
        ising(graphs.torus(5), 5, -1.0),
        edwards_anderson((6, 6), Key.of(1), "binary"),
        edwards_anderson((6, 6), Key.of(1), "gaussian", (2,)),
    ):
        for make in KERNELS.values():
            with pytest.raises(ConfigError, match="frustrated"):
                make(system)
    with pytest.raises(ConfigError, match="at least 0"):
        clusters.potts_swendsen_wang(potts(graphs.torus(4), 4, 3, -1.0))
