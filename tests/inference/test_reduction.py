"""Evidence for simpler models: against urns drawn one ball at a time, all subsets, and whole populations."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.inference import counts as learning
from mfmarl.inference import dirichlet, filtering, reduction
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key
from tests.inference.test_model import columns, tangled
from tests.statistical import beyond, statistical


def urn(prior: Tensor, balls: list[int]) -> float:
    """ln of the probability of drawing these balls, one after the other, from Polya's urn."""
    held, total = prior.tolist(), 0.0
    for ball in balls:
        if held[ball] == 0:
            return -math.inf
        total += math.log(held[ball] / sum(held))
        held[ball] += 1
    return total


def drawn(seed: int, count: int, high: int) -> list[int]:
    return random.integers(Key.of(seed), torch.arange(count), high).tolist()


def counted(prior: Tensor, balls: list[int]) -> Tensor:
    return prior + torch.bincount(torch.tensor(balls), minlength=len(prior)).to(prior)


@pytest.mark.parametrize("seed", range(5))
def test_the_evidence_of_a_reduced_prior_is_that_of_its_own_urn(seed: int) -> None:
    prior, reduced = (
        2 * random.exponential(Key.of(seed).fold(n), torch.arange(6)).double() + 0.01 for n in ("full", "reduced")
    )
    balls = drawn(seed, 60, 5)  # the last outcome is never seen
    posterior = counted(prior, balls)
    assert float(dirichlet.log_evidence(prior, posterior)) == pytest.approx(urn(prior, balls), abs=1e-10)
    difference = urn(reduced, balls) - urn(prior, balls)
    assert float(reduction.log_evidence(prior, posterior, reduced)) == pytest.approx(difference, abs=1e-10)
    reduced[5] = 0.0
    difference = urn(reduced, balls) - urn(prior, balls)
    assert float(reduction.log_evidence(prior, posterior, reduced)) == pytest.approx(difference, abs=1e-10)
    torch.testing.assert_close(reduction.reduced_posterior(prior, posterior, reduced), counted(reduced, balls))
    reduced[balls[0]] = 0.0
    assert float(reduction.log_evidence(prior, posterior, reduced)) == -math.inf


def test_evidence_is_of_columns_wherever_they_lie() -> None:
    a = columns(0, 3, 4, 2) * 5
    b, c = a + columns(1, 3, 4, 2), columns(2, 3, 4, 2)
    whole = reduction.log_evidence(a, b, c, 1)
    assert whole.shape == (3, 2)
    for i, j in itertools.product(range(3), range(2)):
        torch.testing.assert_close(whole[i, j], reduction.log_evidence(a[i, :, j], b[i, :, j], c[i, :, j]))


@pytest.mark.parametrize("remnant", [0.0, 0.125])
def test_pruning_finds_the_best_of_all_simpler_columns(remnant: float) -> None:
    """Among all 2^5 - 1 ways to take outcomes out, for equal prior counts."""
    for seed in range(30):
        prior = torch.full((5,), 0.2 + seed / 10).double()
        balls = drawn(seed, 1 + 2 * seed, 1 + seed % 5)
        posterior = counted(prior, balls)
        best, gain = prior, 0.0
        for kept in itertools.product((False, True), repeat=5):
            if any(kept):
                reduced = torch.where(torch.tensor(kept), prior, remnant * prior)
                found = urn(reduced, balls) - urn(prior, balls)
                best, gain = (reduced, found) if found > gain + 1e-9 else (best, gain)
        mine = reduction.prune(prior, posterior, remnant=remnant, threshold=0.0)
        assert float(mine.log_evidence) == pytest.approx(gain, abs=1e-10)
        assert sorted(mine.prior.tolist()) == pytest.approx(sorted(best.tolist()))
        torch.testing.assert_close(mine.posterior, torch.where(mine.prior > 0, counted(mine.prior, balls), 0.0))


def test_a_column_is_pruned_only_for_enough_evidence() -> None:
    prior = torch.ones(3, 2).double()
    posterior = prior + torch.tensor([[50.0, 1.0], [0.0, 0.0], [0.0, 0.0]]).double()
    found = reduction.prune(prior, posterior, axis=0)
    assert found.prior.tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    # One ball of the second column: ln 3 nats for holding it certain, less than the threshold
    assert float(found.log_evidence[0]) == pytest.approx(math.log(51 * 52 / 2), abs=1e-10)
    assert float(found.log_evidence[1]) == 0.0
    sharp = reduction.prune(prior, posterior, axis=0, threshold=1.0)
    assert float(sharp.log_evidence[1]) == pytest.approx(math.log(3), abs=1e-10)


def test_all_of_a_model_can_be_pruned_at_once() -> None:
    """Fully observed: a world that is certain but was begun as flat becomes certain again."""
    true = GenerativeModel(
        A=(torch.eye(3).double(),),
        B=(torch.stack([torch.eye(3), torch.eye(3).roll(1, 0)], -1).double(),),
        C=(torch.zeros(3).double(),),
        D=(torch.full((3,), 1 / 3).double(),),
    )
    start = learning.begin(true, "ABD", scale=0.0, floor=0.5, zeros="filled", lead=(4, 1))
    action = random.integers(Key.of(0), torch.arange(400).reshape(4, 100), 2)
    states = [torch.zeros(4, dtype=torch.int64)]
    for t in range(100):
        states.append((states[-1] + action[:, t]) % 3)
    path = torch.nn.functional.one_hot(torch.stack(states, 1), 3).double()
    counts = learning.learn_A(true, start, path.argmax(-1, keepdim=True), (path,))
    counts = learning.learn_B(true, counts, (path[:, :-1],), action, (path[:, 1:],))
    simple, began, gain = reduction.prune_counts(true, counts, start, threshold=1.0)
    assert gain.shape == (4, 1) and bool((gain > 9 * 1.0).all())
    mean = learning.expected(true, simple)
    for tables, known in ((mean.A, true.A), (mean.B, true.B)):
        torch.testing.assert_close(tables[0], known[0].expand_as(tables[0]), rtol=0, atol=1e-14)
    assert simple.D is counts.D and began.A is not None and began.A[0] is not None
    torch.testing.assert_close(began.A[0], 0.5 * true.A[0].expand(4, 1, 3, 3))
    # And the gain is what the urns say of each column
    assert counts.A is not None and start.A is not None and counts.B is not None and start.B is not None
    told = reduction.log_evidence(start.A[0], counts.A[0], began.A[0], 2).sum(-1) + reduction.log_evidence(  # type: ignore[arg-type]
        start.B[0],  # type: ignore[arg-type]
        counts.B[0],  # type: ignore[arg-type]
        began.B[0],  # type: ignore[arg-type, index]
        2,
    ).sum((-1, -2))
    torch.testing.assert_close(gain, told)


def test_a_table_is_tied_along_what_it_does_not_depend_on() -> None:
    """Against urns: one for both states of a parent, or one for each."""
    prior = torch.full((3, 2, 2), 0.5).double()
    same, other = drawn(0, 40, 3), drawn(1, 40, 3)
    certain = [0] * 40
    posterior = prior.clone()
    for (i, j), balls in zip(itertools.product(range(2), range(2)), (same, other, same, certain), strict=True):
        posterior[:, i, j] = counted(prior[:, i, j], balls)
    along = reduction.tie(prior, posterior, 0, 2)
    assert along.log_evidence.shape == (2,) and along.prior.shape == (3, 2, 1)
    first = prior[:, 0, 0]
    wanted = [
        urn(first, same + other) - urn(first, same) - urn(first, other),
        urn(first, same + certain) - urn(first, same) - urn(first, certain),
    ]
    assert along.log_evidence.tolist() == pytest.approx(wanted, abs=1e-10)
    assert wanted[0] > 1 and wanted[1] < -10
    torch.testing.assert_close(along.posterior[:, 0, 0], counted(first, same + other))
    across = reduction.tie(prior, posterior, 0, 1)
    assert across.log_evidence[0] == pytest.approx(urn(first, same + same) - 2 * urn(first, same), abs=1e-10)
    turned = reduction.tie(prior.movedim(0, -1), posterior.movedim(0, -1), -1, 0)
    torch.testing.assert_close(turned.log_evidence, across.log_evidence)
    with pytest.raises(ConfigError, match="cannot be tied"):
        reduction.tie(prior, posterior, 0, -3)


def test_what_minds_have_seen_apart_is_pooled_as_if_one_had_seen_it() -> None:
    model = tangled()
    start = learning.begin(model, "ABDE", lead=(5, 1))
    q = tuple(columns(f, 5, 7, s, axis=2) for f, s in enumerate(model.sizes))
    seen = torch.stack(
        [random.integers(Key.of(m), torch.arange(35).view(5, 7), n) for m, n in enumerate(model.outcomes)], -1
    )
    action = random.integers(Key.of(9), torch.arange(35).view(5, 7), 6)

    def learned(counts: learning.Counts) -> learning.Counts:
        counts = learning.learn_A(model, counts, seen, q)
        counts = learning.learn_B(model, counts, q, action, q)
        return learning.learn_E(learning.learn_D(model, counts, q), action)

    together = learned(learning.begin(model, "ABDE", lead=(1, 1)))
    pooled = reduction.pool(learned(start), start, 0)
    assert pooled.E is not None and together.E is not None and pooled.A and together.A and pooled.B and together.B
    for one, other in zip([*pooled.A, *pooled.B, pooled.E], [*together.A, *together.B, together.E], strict=True):
        torch.testing.assert_close(one, other)


# -------------------------------------------------------------------------------------------- whole models


def test_models_are_as_probable_as_their_evidence_and_prior() -> None:
    evidence = torch.tensor([[0.2, 0.1, 0.05], [0.1, 0.4, 0.0]]).double()
    found = reduction.probabilities(evidence.log(), torch.tensor([2.0, 1.0, 1.0]).double())
    wanted = evidence * torch.tensor([2.0, 1.0, 1.0])
    torch.testing.assert_close(found, wanted / wanted.sum(-1, keepdim=True))
    with pytest.raises(NumericFault, match="impossible in each"):
        reduction.probabilities(torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]]))


def test_free_energies_of_exact_filters_say_which_model_it_was() -> None:
    """p(model | o_1 ... o_T) by all histories of hidden states, and by -F added up in time."""
    models = [tangled(seed).joint() for seed in (0, 100, 200)]
    seen = torch.stack([random.integers(Key.of(m), torch.arange(4).view(4, 1), n) for m, n in enumerate((4, 2, 3))], -1)
    action = random.integers(Key.of(9), torch.arange(3).view(3, 1), 6)
    likely = []
    for model in models:
        total = 0.0
        for path in itertools.product(range(6), repeat=4):
            p = float(model.D[0][path[0]])
            for t, s in enumerate(path):
                p *= math.prod(float(a[seen[t, 0, m], s]) for m, a in enumerate(model.A))
                p *= float(model.B[0][s, path[t - 1], action[t - 1, 0]]) if t else 1.0
            total += p
        likely.append(total)
    evidence = torch.stack([-filtering.follow(m, seen, action)[1].sum(0) for m in models], -1)
    wanted = torch.tensor([likely], dtype=torch.float64)
    torch.testing.assert_close(reduction.probabilities(evidence), wanted / wanted.sum(), rtol=0, atol=1e-12)


def test_frequencies_of_kinds_come_out_of_a_mixed_population() -> None:
    """300 minds, a third of whose evidence speaks for the second model by 6 nats: counts as if all were known."""
    kind = (torch.arange(300) % 3 == 1).long()
    evidence = torch.where(torch.nn.functional.one_hot(kind, 2) > 0, 6.0, 0.0).double()
    found = reduction.frequencies(evidence)
    assert float(found.concentration.sum()) == pytest.approx(302)
    assert found.mean.tolist() == pytest.approx([201 / 302, 101 / 302], abs=0.005)
    assert float(found.exceedance[0]) > 0.999999
    assert bool((found.of_each.argmax(-1) == kind).all())
    # All of them of one kind: the sum of evidences would say the first, by 600 nats
    assert reduction.probabilities(evidence.sum(0)).tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    # The stationary point of the free energy: alpha = 1 + sum_n g
    each = torch.softmax(evidence + torch.digamma(found.concentration), -1)
    torch.testing.assert_close(found.concentration, 1 + each.sum(0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("alpha", [(3.0, 2.0), (12.5, 11.0), (1.0, 1.0), (40.0, 90.0)])
def test_exceedance_of_two_is_a_tail_of_the_beta_distribution(alpha: tuple[float, float]) -> None:
    from scipy.special import betainc

    found = reduction.exceedance(torch.tensor(alpha))
    assert float(found[0]) == pytest.approx(1 - betainc(*alpha, 0.5), abs=1e-10)


@statistical(alpha=beyond(5, 4), bugs=("uniforms-narrow", "draws-repeat"))
def test_exceedance_of_several_is_how_often_each_is_largest() -> None:
    alpha = (2.0, 3.0, 1.0, 2.5)
    # Whole counts: a gamma variable is a sum of exponentials; here 2 alpha of them, each a chi square
    n = 200_000
    normal = random.normal(Key.of(0), torch.arange(n), 17)
    pieces = torch.split(normal.square(), [4, 6, 2, 5], -1)
    largest = torch.stack([p.sum(-1) for p in pieces], -1).argmax(-1)
    seen = torch.bincount(largest, minlength=4).double() / n
    found = reduction.exceedance(torch.tensor(alpha))
    error = (found * (1 - found) / n).sqrt()
    assert bool(((seen - found).abs() < 5 * error).all()) and float(found.sum()) == pytest.approx(1, abs=1e-12)


def test_the_average_of_models_lies_between_them() -> None:
    models = [replace(tangled(seed), E=columns(seed, 6)) for seed in (0, 100)]
    mean = reduction.average(models, torch.tensor([0.25, 0.75]).double())
    for letter in "ABD":
        for one, other, mixed in zip(*[getattr(m, letter) for m in (*models, mean)], strict=True):
            torch.testing.assert_close(mixed, 0.25 * one + 0.75 * other)
    replace(mean)  # checks that all of them are distributions
    each = reduction.average(models, torch.tensor([[0.25, 0.75], [1.0, 0.0]]).double())
    assert each.A[0].shape == (2, 4, 2, 3)
    torch.testing.assert_close(each.A[0][0], mean.A[0])
    torch.testing.assert_close(each.B[1][1], models[0].B[1])
    torch.testing.assert_close(each.C[0][1], torch.log_softmax(models[0].C[0], -1))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: reduction.prune(torch.ones(2), torch.ones(2), remnant=1.0), "less than 1"),
        (lambda: reduction.average([tangled()], torch.ones(2)), "1 models need as many weights"),
        (lambda: reduction.average([tangled(), tangled().joint()], torch.ones(2)), "same factors"),
        (lambda: reduction.average([tangled(), replace(tangled(), E=columns(0, 6))], torch.ones(2)), "all have habits"),
        (lambda: reduction.frequencies(torch.zeros(3, 2), prior=0.0), "must be positive"),
        (lambda: reduction.pool(learning.begin(tangled(), "A"), learning.begin(tangled(), "B"), 0), "do not go with"),
        (
            lambda: reduction.prune_counts(tangled(), learning.begin(tangled(), "A"), learning.begin(tangled(), "B")),
            "do not go with",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(wrong: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        wrong()
