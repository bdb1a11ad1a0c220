"""What is counted, for whom, what is forgotten, and what there is left to be learned."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import counts as learning
from mfmarl.inference import dirichlet, filtering
from mfmarl.inference.counts import Counts, begin, expected, forget
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key
from tests.inference.test_model import columns, tangled
from tests.statistical import beyond, statistical

LEADS = [(), (3, 1), (1, 4), (3, 4), (4,)]


def drawn(seed: int, high: int, *shape: int, low: int = 0) -> Tensor:
    return random.integers(Key.of(seed), torch.arange(math.prod(shape)).reshape(shape), high - low) + low


def beliefs(seed: int, model: GenerativeModel, *batch: int) -> tuple[Tensor, ...]:
    return tuple(columns(seed + f, *batch, size, axis=len(batch)) for f, size in enumerate(model.sizes))


def as_many(lead: tuple[int, ...], where: tuple[int, ...]) -> tuple[int, ...]:
    """The index of the table, of leading axes `lead`, that a belief belongs to."""
    tail = where[len(where) - len(lead) :]
    return tuple(0 if n == 1 else i for n, i in zip(lead, tail, strict=True))


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("soft", [False, True])
def test_outcomes_are_added_to_the_columns_of_the_states_believed_in(lead: tuple[int, ...], soft: bool) -> None:
    model, batch = tangled(), (3, 4)
    start = begin(model, "A", lead=lead)
    q, weight = beliefs(20, model, *batch), columns(5, *batch)
    seen = torch.stack([drawn(30 + m, n, *batch, low=-1) for m, n in enumerate(model.outcomes)], -1)
    told: Any = seen
    if soft:
        told = [columns(40 + m, *batch, n, axis=2) for m, n in enumerate(model.outcomes)]
        told[1][0] = 0.0  # nothing was seen
    found = learning.learn_A(model, start, told, q, rate=0.7, weight=weight)
    assert start.A is not None and found.A is not None and found.B is None
    for m, (before, after) in enumerate(zip(start.A, found.A, strict=True)):
        wanted = before.clone()  # type: ignore[union-attr]
        for where in itertools.product(range(3), range(4)):
            if soft:
                column = told[m][where]
            else:
                o = int(seen[where][m])
                column = torch.eye(model.outcomes[m]).double()[o] if o >= 0 else torch.zeros(model.outcomes[m])
            stat = column.double()
            for f in model.A_factors[m]:
                stat = stat.unsqueeze(-1) * q[f][where]
            wanted[as_many(lead, where)] += 0.7 * weight[where] * stat
        assert after is not None and after.shape == before.shape  # type: ignore[union-attr]
        torch.testing.assert_close(after, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("lead", LEADS)
def test_moves_are_added_to_the_columns_they_began_in_by_the_controls_that_matter(lead: tuple[int, ...]) -> None:
    model, batch = tangled(), (3, 4)
    start = begin(model, "B", lead=lead)
    before, after, weight = beliefs(50, model, *batch), beliefs(60, model, *batch), columns(5, *batch)
    action = drawn(70, 6, *batch, low=-1)
    assert int((action < 0).sum()) > 0
    found = learning.learn_B(model, start, before, action, after, rate=0.3, weight=weight)
    pairs = [
        torch.einsum("abi,abj->abij", after[0], before[0]),
        torch.einsum("abi,abj,abk->abijk", after[1], before[1], before[0]),
    ]
    paired = learning.learn_B(model, start, before, action, after, rate=0.3, weight=weight, pairs=pairs)
    assert start.B is not None and found.B is not None and paired.B is not None
    settings = model.settings().tolist()
    wanted = [b.clone() for b in start.B if b is not None]
    for where in itertools.product(range(3), range(4)):
        u = int(action[where])
        if u < 0:
            continue
        a, b = settings[u]
        place, w = as_many(lead, where), 0.3 * weight[where]
        wanted[0][place][:, :, a] += w * pairs[0][where]
        wanted[1][place][:, :, :, b, a] += w * pairs[1][where]
    for f in range(2):
        for mine in (found.B[f], paired.B[f]):
            assert mine is not None and mine.shape == start.B[f].shape  # type: ignore[union-attr]
            torch.testing.assert_close(mine, wanted[f], rtol=0, atol=1e-13)


@pytest.mark.parametrize("lead", LEADS)
def test_first_states_preferences_and_habits_are_counted_too(lead: tuple[int, ...]) -> None:
    model, batch = tangled(), (3, 4)
    start = begin(model, "CDE", lead=lead)
    q, action = beliefs(20, model, *batch), drawn(3, 6, *batch, low=-1)
    seen = torch.stack([drawn(30 + m, n, *batch, low=-1) for m, n in enumerate(model.outcomes)], -1)
    found = learning.learn_D(model, start, q, rate=0.5)
    found = learning.learn_C(model, found, seen, rate=2.0)
    found = learning.learn_E(found, action)
    assert start.D and start.C and start.E is not None and found.D and found.C and found.E is not None
    wanted = start.map(torch.clone)
    assert wanted.D and wanted.C and wanted.E is not None
    for where in itertools.product(range(3), range(4)):
        place = as_many(lead, where)
        for f in range(2):
            wanted.D[f][place] += 0.5 * q[f][where]  # type: ignore[index]
        for m in range(3):
            if seen[where][m] >= 0:
                wanted.C[m][place][seen[where][m]] += 2.0  # type: ignore[index]
        if action[where] >= 0:
            wanted.E[place][action[where]] += 1.0
    for mine, known in zip([*found.D, *found.C, found.E], [*wanted.D, *wanted.C, wanted.E], strict=True):
        torch.testing.assert_close(mine, known, rtol=0, atol=1e-13)
    posterior = columns(9, *batch, 6, axis=2)
    softly = learning.learn_E(start, posterior)
    assert softly.E is not None
    torch.testing.assert_close(softly.E.sum() - start.E.sum(), posterior.sum())


@pytest.mark.parametrize("lead", [(), (3, 1), (3, 4)])
def test_the_joint_posterior_of_a_move_is_counted_by_bayes_rule(lead: tuple[int, ...]) -> None:
    """p(s', s | o) of one factor by enumeration; its products would blur. Of several, its marginal is what is believed."""
    model, batch = tangled(lead=lead).joint(), (3, 4)
    start = begin(model, "B", zeros="filled")
    q, action = beliefs(1, model, *batch), drawn(70, 6, *batch, low=-1)
    seen = torch.stack([drawn(30 + m, n, *batch) for m, n in enumerate(model.outcomes)], -1)
    after = filtering.update(model, filtering.predict(model, q, action.clamp(min=0)), seen).factors
    found = learning.learn_B(model, start, q, action, after, rate=0.5, joint=True)
    assert start.B is not None and found.B is not None
    wanted = start.B[0].clone()  # type: ignore[union-attr]
    for where in itertools.product(range(3), range(4)):
        if (u := int(action[where])) >= 0:
            place = as_many(lead, where)
            both = model.B[0][place][..., u] * q[0][where]
            for m, a in enumerate(model.A):
                both = both * a[place][seen[where][m]].unsqueeze(-1)
            wanted[place][..., u] += 0.5 * both / both.sum()
    torch.testing.assert_close(found.B[0], wanted, rtol=0, atol=1e-13)

    several, q = tangled(), beliefs(1, tangled(), 3, 4)
    later = beliefs(5, several, 3, 4)
    found = learning.learn_B(several, begin(several, "B"), q, action, later, joint=True)
    gained = [b - b0 for b, b0 in zip(found.B, begin(several, "B").B, strict=True)]  # type: ignore[arg-type, operator]
    for f in range(2):
        told = later[f][action >= 0].sum(0)
        torch.testing.assert_close(gained[f].flatten(1).sum(1), told)


def test_a_crowd_in_pieces_counts_as_a_crowd_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from mfmarl.inference import tally

    model = tangled()
    start = begin(model, "AB", lead=(2, 1))
    q, after = beliefs(1, model, 2, 501), beliefs(4, model, 2, 501)
    seen = torch.stack([drawn(30 + m, n, 2, 501) for m, n in enumerate(model.outcomes)], -1)
    action = drawn(8, 6, 2, 501)

    def all_of_it() -> Counts:
        found = learning.learn_A(model, start, seen, q)
        softly = [torch.nn.functional.one_hot(seen[..., m], n).double() for m, n in enumerate(model.outcomes)]
        found = learning.learn_A(model, found, softly, q)
        found = learning.learn_B(model, found, q, action, after)
        pairs = [
            torch.einsum("abi,abj->abij", after[0], q[0]),
            torch.einsum("abi,abj,abk->abijk", after[1], q[1], q[0]),
        ]
        return learning.learn_B(model, found, q, action, after, pairs=pairs)

    whole = all_of_it()
    monkeypatch.setattr(tally, "_NUMBERS", 64)
    pieces = all_of_it()
    monkeypatch.setattr(tally, "_in_order", lambda out: False)  # as on an accelerator
    products = all_of_it()
    for found in (pieces, products):
        for one, other in zip([*whole.A, *whole.B], [*found.A, *found.B], strict=True):  # type: ignore[misc]
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_crowd_adds_to_large_counts_of_few_digits() -> None:
    """2^25 + 1 is 2^25 in float32: one by one, a thousand agents would teach nothing."""
    model = tangled().to(dtype=torch.float32)
    start = begin(model, "AB", zeros="filled").map(lambda a: torch.full_like(a, 2.0**25))
    q = tuple(torch.nn.functional.one_hot(torch.zeros(1024, dtype=torch.int64), s).float() for s in model.sizes)
    found = learning.learn_A(model, start, torch.zeros(1024, 3, dtype=torch.int64), q)
    found = learning.learn_B(model, found, q, torch.zeros(1024, dtype=torch.int64), q)
    assert found.A is not None and found.B is not None
    for a in (*found.A, *found.B):
        assert a is not None and float(a.flatten()[0]) == 2.0**25 + 1024


def test_one_state_of_the_world_is_counted_to_the_last_digit() -> None:
    """Fully observed and in whole numbers: counts are numbers of events."""
    model = GenerativeModel(
        A=(torch.eye(3).double(),),
        B=(columns(0, 3, 3, 2),),
        C=(torch.zeros(3).double(),),
        D=(torch.full((3,), 1 / 3).double(),),
    )
    start = begin(model, "AB", scale=0.0, floor=1.0, zeros="filled")
    states, action = drawn(5, 3, 1001), drawn(6, 2, 1000)
    q = torch.nn.functional.one_hot(states, 3).double()
    found = learning.learn_A(model, start, states.unsqueeze(-1), (q,))
    found = learning.learn_B(model, found, (q[:-1],), action, (q[1:],))
    events = torch.zeros(3, 3, 2).double()
    for s, u, s2 in zip(states[:-1].tolist(), action.tolist(), states[1:].tolist(), strict=True):
        events[s2, s, u] += 1
    assert found.B is not None and found.A is not None
    assert torch.equal(found.B[0], 1 + events) and torch.equal(found.A[0], 1 + torch.diag(torch.bincount(states)))
    mean = expected(model, found)
    assert torch.equal(mean.B[0], (1 + events) / (3 + events.sum(0)))


def test_what_is_impossible_stays_so_or_fills_up() -> None:
    model = GenerativeModel(
        A=(torch.tensor([[1.0, 0.5], [0.0, 0.5]]).double(),),
        B=(columns(0, 2, 2, 2),),
        C=(torch.zeros(2).double(),),
        D=(torch.tensor([0.5, 0.5]).double(),),
    )
    q, seen = (torch.tensor([[1.0, 0.0]]).double(),), torch.tensor([[1]])
    kept, filled = (learning.learn_A(model, begin(model, "A", zeros=z), seen, q) for z in ("kept", "filled"))  # type: ignore[arg-type]
    assert kept.A and torch.equal(kept.A[0], model.A[0])  # type: ignore[arg-type]
    assert filled.A and torch.equal(filled.A[0][:, 0], torch.tensor([1.0, 1.0]).double())  # type: ignore[index]
    again = forget(kept, 0.5, begin(model, "A", scale=3.0))
    assert again.zeros == "kept" and again.A and again.A[0][1, 0] == 0.0  # type: ignore[index]
    floors = [begin(model, "A", floor=0.25, zeros=z).A[0][1, 0] for z in ("kept", "filled")]  # type: ignore[index, arg-type]
    assert floors == [0.0, 0.25]


def test_a_begun_model_is_what_is_expected_and_an_empty_column_keeps_what_was_said() -> None:
    model = tangled()
    model = replace(model, E=columns(3, 6))
    same = expected(model, begin(model, "ABCDE", scale=7.0))
    for letter in "ABD":
        for one, other in zip(getattr(model, letter), getattr(same, letter), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-15)
    for one, other in zip(model.C, same.C, strict=True):
        torch.testing.assert_close(torch.log_softmax(one, -1), other)
    assert same.E is not None and model.E is not None
    torch.testing.assert_close(same.E, model.E)
    replace(same)  # checks itself
    empty = begin(model, "A")
    assert empty.A is not None
    empty.A[0][:, 0, 1] = 0.0  # type: ignore[index]
    assert torch.equal(expected(model, empty).A[0][:, 0, 1], model.A[0][:, 0, 1])
    assert expected(model, empty).B is model.B


def test_timed_preferences_are_learned_at_their_time() -> None:
    model = tangled()
    model = replace(model, C=tuple(torch.stack([c, 2 * c, c]) for c in model.C), timed=True)
    start = begin(model, "C")
    found = learning.learn_C(model, start, torch.tensor([[3, 1, 2]]), t=1)
    late = learning.learn_C(model, start, torch.tensor([[3, 1, 2]]), t=9)
    assert start.C and found.C and late.C
    for m, o in enumerate((3, 1, 2)):
        for counts, t in ((found, 1), (late, 2)):
            gained = counts.C[m] - start.C[m]  # type: ignore[index, operator]
            assert gained[t, o] == pytest.approx(1) and float(gained.sum()) == pytest.approx(1)
    shift = expected(model, found).preferences(1)[0]
    assert torch.allclose(shift.exp().sum(), torch.tensor(1.0).double())
    assert learning.parameter_cost(model, found, start).shape == ()


# --------------------------------------------------------------------------------------------- forgetting


def test_what_is_seen_at_every_step_settles_at_rate_over_forgetting() -> None:
    """The stationary extra mass eta / omega of the theory: the length of memory in visits."""
    model = tangled()
    start = counts = begin(model, "A", scale=2.0)
    q = tuple(torch.eye(s)[:1].double() for s in model.sizes)
    for _ in range(2000):
        counts = learning.learn_A(model, forget(counts, 0.02, start), torch.tensor([[2, 0, 1]]), q, rate=0.5)
    assert counts.A is not None and start.A is not None
    extra = counts.A[0] - start.A[0]  # type: ignore[operator]
    # a <- a0 + (1 - w)(a - a0) + eta: the sum of a geometric row
    assert float(extra[2, 0, 0]) == pytest.approx(0.5 / 0.02, rel=1e-12)
    assert float(extra.sum()) == pytest.approx(25.0, rel=1e-12)


def test_counts_return_to_where_they_began_or_fade() -> None:
    model = tangled()
    start = begin(model, "ABE", scale=3.0)
    counts = start.map(lambda a: a + 1.0)
    back = forget(counts, 0.25, start)
    faded = forget(counts, 0.25)
    assert back.A and start.A and counts.A and faded.A and back.E is not None and start.E is not None
    torch.testing.assert_close(back.A[0], start.A[0] + 0.75)  # type: ignore[operator]
    torch.testing.assert_close(back.E, start.E + 0.75)
    torch.testing.assert_close(faded.A[0], 0.75 * counts.A[0])  # type: ignore[operator]
    assert forget(counts, 0.0, start) is counts
    torch.testing.assert_close(forget(counts, 1.0, start).A[0], start.A[0])  # type: ignore[index]


# -------------------------------------------------------------------------------------- what is to be learned


def test_the_information_of_a_column_is_the_expected_divergence_of_its_next_belief() -> None:
    """sum_o (a_o / a_0) w_o = E_o KL[Dir(a + e_o) || Dir(a)], the theory note's identity."""
    a = 3 * columns(0, 500, 5, axis=1) * random.exponential(Key.of(3), torch.arange(500)).double().unsqueeze(-1) + 1e-3
    told = torch.zeros(500).double()
    for o in range(5):
        more = a.clone()
        more[:, o] += 1
        told += a[:, o] / a.sum(-1) * dirichlet.divergence(more, a)
        # and each weight is what one outcome gains over its own expectation: the point-wise information
    relative = ((dirichlet.information(a) - told).abs() / told.abs().clamp(min=1)).max()
    assert float(relative) < 1e-12


def test_the_divergence_of_two_outcomes_is_that_of_beta_distributions() -> None:
    """By numerical integration, and through scipy's density."""
    from scipy import integrate, stats

    for (a, b), (c, d) in (((2.0, 3.0), (1.5, 1.0)), ((5.0, 2.5), (2.0, 3.0))):
        p, q = stats.beta(a, b), stats.beta(c, d)
        wanted, _ = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), 0, 1)  # noqa: B023
        found = dirichlet.divergence(torch.tensor([a, b]).double(), torch.tensor([c, d]).double())
        assert float(found) == pytest.approx(wanted, abs=1e-8)
    holds_more = dirichlet.divergence(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert math.isinf(float(holds_more))
    after, before = torch.tensor([2.0, 0.0, 3.0]).double(), torch.tensor([1.5, 0.0, 1.0]).double()
    assert torch.equal(dirichlet.divergence(after, before), dirichlet.divergence(after[[0, 2]], before[[0, 2]]))


def test_information_is_what_bayes_rule_expects_of_the_next_observation() -> None:
    """By enumeration: state, outcome, and the divergence of the counts after them from those before."""
    model = tangled()
    counts = begin(model, "AB", scale=1.5)
    assert counts.A is not None and counts.B is not None
    q = beliefs(4, model, 1)
    wanted = 0.0
    for m in range(3):
        for states in itertools.product(*[range(model.sizes[f]) for f in model.A_factors[m]]):
            chance = math.prod(float(q[f][0, s]) for f, s in zip(model.A_factors[m], states, strict=True))
            a = counts.A[m][(slice(None), *states)]  # type: ignore[index]
            wanted += chance * float(dirichlet.information(a, 0))
    assert float(learning.information_A(model, counts, q)) == pytest.approx(wanted, abs=1e-13)
    every = learning.information_B(model, counts, q)[0]
    for u, (a, b) in enumerate(model.settings().tolist()):
        told = 0.0
        for s, r in itertools.product(range(3), range(2)):
            told += float(q[1][0, s] * q[0][0, r]) * float(dirichlet.information(counts.B[1][:, s, r, b, a], 0))  # type: ignore[index]
        for s in range(2):
            told += float(q[0][0, s]) * float(dirichlet.information(counts.B[0][:, s, a], 0))  # type: ignore[index]
        assert float(every[u]) == pytest.approx(told, abs=1e-13)
        one = learning.information_B(model, counts, q, torch.tensor([u]), q)
        assert float(one) == pytest.approx(told, abs=1e-13)


@pytest.mark.parametrize("lead", [(3, 1), (3, 4), (4,)])
@pytest.mark.parametrize("how", ["exact", "pymdp", "spm"])
def test_everyone_with_counts_of_ones_own_is_told_what_one_would_be_alone(lead: tuple[int, ...], how: Any) -> None:
    model = tangled()
    q, after, action = beliefs(4, model, 3, 4), beliefs(7, model, 3, 4), drawn(8, 6, 3, 4)
    counts = begin(model, "AB", lead=lead)
    counts = counts.map(lambda a: a + random.exponential(Key.of(1), torch.arange(a.numel()).reshape(a.shape)).double())
    A, B = learning.information_A(model, counts, q, how), learning.information_B(model, counts, q, None, None, how)
    moved = learning.information_B(model, counts, q, action, after, how)
    assert A.shape == (3, 4) and B.shape == (3, 4, 6) and moved.shape == (3, 4)
    for where in itertools.product(range(3), range(4)):
        place = as_many(lead, where)
        own = counts.map(lambda a: a[place])  # noqa: B023
        alone, then = tuple(x[where] for x in q), tuple(x[where] for x in after)
        torch.testing.assert_close(A[where], learning.information_A(model, own, alone, how))
        torch.testing.assert_close(B[where], learning.information_B(model, own, alone, None, None, how))
        torch.testing.assert_close(moved[where], learning.information_B(model, own, alone, action[where], then, how))


@statistical(alpha=beyond(5, 200), bugs=("uniforms-lean", "pairs-share-noise"))
def test_the_products_of_pymdp_and_spm_overstate_what_there_is_to_be_learned() -> None:
    """Medians over 2,000 random 5 x 4 models: product / exact 1.33, SPM / exact 1.81 (theory note, sec. 3.5).

    It does not say how its counts were drawn, on which the ratios depend; uniform ones between .1 and 3 have these too.
    """
    n = 2000
    a = random.uniform(Key.of(1), torch.arange(n), 20).double().view(n, 5, 4) * 2.9 + 0.1
    q = (columns(2, n, 4, axis=1),)
    model = GenerativeModel(
        A=(torch.full((5, 4), 0.2).double(),),
        B=(torch.eye(4).double().unsqueeze(-1),),
        C=(torch.zeros(5).double(),),
        D=(torch.full((4,), 0.25).double(),),
    )
    counts = Counts(A=(a,))
    model = expected(model, counts)
    exact, pymdp, spm = (learning.information_A(model, counts, q, how) for how in ("exact", "pymdp", "spm"))  # type: ignore[arg-type]
    for other, known in ((pymdp, 1.33), (spm, 1.81)):
        ratio = (other / exact).numpy()
        resampled = np.random.default_rng(0).choice(ratio, (400, n))
        assert abs(np.median(ratio) - known) < 5 * np.median(resampled, 1).std()
        assert np.median(ratio) > 1 + 5 * np.median(resampled, 1).std()
    assert bool((spm > pymdp).all())


def test_counts_changed_in_place_are_not_mistaken_for_what_they_were() -> None:
    model = tangled()
    counts = begin(model, "A")
    q = beliefs(4, model, 2)
    first = learning.information_A(model, counts, q)
    assert torch.equal(first, learning.information_A(model, counts, q)) and counts.A is not None
    for a in counts.A:
        a.mul_(10)  # type: ignore[union-attr]
    torch.testing.assert_close(
        learning.information_A(model, counts, q), learning.information_A(model, begin(model, "A", scale=10.0), q)
    )


def test_the_cost_of_parameters_adds_up_all_columns_of_all_tables() -> None:
    model = tangled()
    start = begin(model, "ABCDE")
    counts = start.map(lambda a: a + random.exponential(Key.of(1), torch.arange(a.numel()).reshape(a.shape)).double())
    wanted = 0.0
    for letter in "ABCD":
        for a, a0 in zip(getattr(counts, letter), getattr(start, letter), strict=True):
            flat, flat0 = a.reshape(a.shape[0], -1), a0.reshape(a.shape[0], -1)
            wanted += sum(float(dirichlet.divergence(flat[:, i], flat0[:, i])) for i in range(flat.shape[1]))
    assert counts.E is not None and start.E is not None
    wanted += float(dirichlet.divergence(counts.E, start.E))
    assert float(learning.parameter_cost(model, counts, start)) == pytest.approx(wanted, rel=1e-13)
    own = begin(model, "AB", lead=(4, 1))
    assert learning.parameter_cost(model, own, own).shape == (4, 1)
    assert float(learning.parameter_cost(model, start, start)) == 0.0


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learn": "AX"}, "letters of ABCDE"),
        ({"learn": ""}, "letters of ABCDE"),
        ({"scale": -1.0}, "0 or more"),
        ({"scale": 0.0}, "not both 0"),
        ({"floor": math.nan}, "0 or more"),
        ({"modalities": [3]}, "no modality 3"),
        ({"factors": [-1]}, "no factor -1"),
        ({"zeros": "lost"}, "'kept' or 'filled'"),
    ],
)
def test_counts_that_cannot_begin_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        begin(tangled(), **options)


def test_what_does_not_exist_cannot_be_counted() -> None:
    model, q = tangled(), beliefs(0, tangled(), 2)
    counts = begin(model, "ABE", lead=(3, 1))
    with pytest.raises(ConfigError, match="'sound' is 2"):
        learning.learn_A(model, counts, torch.tensor([[0, 2, 0], [0, 0, 0]]), q)
    with pytest.raises(ConfigError, match="3 modalities"):
        learning.learn_A(model, counts, torch.zeros(2, 2, dtype=torch.int64), q)
    with pytest.raises(ConfigError, match="'sight' must be"):
        learning.learn_A(model, counts, [torch.ones(2, 3)] * 3, q)
    with pytest.raises(ConfigError, match="action of 6"):
        learning.learn_B(model, counts, q, torch.tensor([6, 0]), q)
    own = tangled(lead=(3, 1))
    with pytest.raises(ConfigError, match="'place' cannot take joint posteriors"):
        learning.learn_B(own, begin(model, "B"), q, torch.tensor([0, 0]), q, joint=True)
    with pytest.raises(ConfigError, match="choice of 6"):
        learning.learn_E(counts, torch.tensor([6, 0]))
    with pytest.raises(ConfigError, match="do not fit"):
        learning.learn_D(model, begin(model, "D", lead=(3,)), q)
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        learning.information_A(model, counts, q, "exakt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="between 0 and 1"):
        forget(counts, 1.5)
    with pytest.raises(ConfigError, match="do not go with"):
        forget(counts, 0.5, begin(model, "A"))
    with pytest.raises(ConfigError, match="do not go with"):
        learning.parameter_cost(model, counts, begin(model, "A"))


def test_some_of_the_tables_can_be_learned_and_the_others_left() -> None:
    model, q = tangled(), beliefs(0, tangled(), 2)
    counts = begin(model, "AB", modalities=[1], factors=[0])
    assert counts.A is not None and counts.B is not None
    assert [a is None for a in counts.A] == [True, False, True] and [b is None for b in counts.B] == [False, True]
    found = learning.learn_A(model, counts, torch.tensor([[0, 0, 0], [0, 1, 0]]), q)
    found = learning.learn_B(model, found, q, torch.tensor([0, 3]), q)
    mean = expected(model, forget(found, 0.1, counts))
    assert mean.A[0] is model.A[0] and mean.B[1] is model.B[1] and not torch.equal(mean.B[0], model.B[0])
    assert learning.information_A(model, counts, q).shape == (2,)
    assert learning.parameter_cost(model, found, counts) > 0
    assert torch.equal(learning.information_B(model, begin(model, "A"), q), torch.zeros(2, 6))
    assert torch.equal(learning.information_A(model, begin(model, "B"), q), torch.zeros(2))
