"""Planning by the cross-entropy method: on objectives whose best is known."""

from __future__ import annotations

import torch
from torch import Tensor

from mfmarl import random
from mfmarl.inference.deep import cross_entropy
from mfmarl.inference.deep.cross_entropy import Search
from mfmarl.random import Key
from tests.statistical import beyond, statistical

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 5.0])
IDS = torch.arange(7) * 13
SEARCH = Search(300, 30, 12)


def targets() -> Tensor:
    """[7, 3, 2], some beyond the first dimension's bounds."""
    return torch.stack(
        [
            2.4 * random.uniform(Key.of(0), torch.arange(7), 3) - 1.2,
            4 * random.uniform(Key.of(1), torch.arange(7), 3) + 0.5,
        ],
        -1,
    )


def score(sequence: Tensor) -> Tensor:
    return -(sequence - targets()[: sequence.shape[0]].unsqueeze(1)).square().sum((-1, -2))


def test_it_finds_the_best_in_the_box_or_at_its_edge() -> None:
    plan = cross_entropy.continuous(score, LOW, HIGH, 3, SEARCH, IDS, Key.of(2))
    best = torch.minimum(torch.maximum(targets(), LOW), HIGH)
    assert bool((targets() != best).any()), "some are at the edge"
    assert float((plan.mean - best).abs().max()) < 0.05
    torch.testing.assert_close(plan.value, score(best.unsqueeze(1)).squeeze(1), atol=0.02, rtol=0)
    assert float(plan.deviation.max()) < 0.1


def test_an_unbounded_dimension_is_searched_as_well() -> None:
    wide = torch.full((2,), float("inf"))
    plan = cross_entropy.continuous(score, -wide, wide, 3, Search(400, 40, 25), IDS, Key.of(3))
    assert float((plan.mean[..., 0] - targets()[..., 0]).abs().max()) < 0.1


def test_a_plan_does_not_depend_on_who_else_plans() -> None:
    """Two of seven, wherever they stand, plan as they do among all."""
    some = torch.tensor([5, 2])

    def theirs(sequence: Tensor) -> Tensor:
        return -(sequence - targets()[some].unsqueeze(1)).square().sum((-1, -2))

    few = cross_entropy.continuous(theirs, LOW, HIGH, 3, SEARCH, IDS[some], Key.of(2))
    all_ = cross_entropy.continuous(score, LOW, HIGH, 3, SEARCH, IDS, Key.of(2))
    for a, b in zip(few, all_, strict=True):
        assert torch.equal(a, b[some])
    other = cross_entropy.continuous(score, LOW, HIGH, 3, SEARCH, IDS, Key.of(9))
    assert not torch.equal(other.mean, all_.mean)


def test_one_iteration_refits_to_the_elite_by_maximum_likelihood() -> None:
    """Its mean and deviation are those of the best five of what was drawn, found by hand."""
    drawn: list[Tensor] = []

    def kept(sequence: Tensor) -> Tensor:
        drawn.append(sequence)
        return score(sequence)

    plan = cross_entropy.continuous(kept, LOW, HIGH, 3, Search(40, 5, 1), IDS, Key.of(4))
    for row in range(7):
        order = score(drawn[0])[row].argsort(descending=True)[:5]
        elite = drawn[0][row, order]
        torch.testing.assert_close(plan.mean[row], elite.mean(0))
        torch.testing.assert_close(plan.deviation[row], elite.std(0, correction=0))
    assert bool((drawn[0] >= LOW).all() & (drawn[0] <= HIGH).all())


def test_what_is_not_a_number_is_worst() -> None:
    def broken(sequence: Tensor) -> Tensor:
        return torch.where(sequence[..., 0, 0] > 0, float("nan"), score(sequence))

    plan = cross_entropy.continuous(broken, LOW, HIGH, 3, Search(300, 10, 6), IDS, Key.of(5))
    assert float(plan.mean[:, 0, 0].max()) <= 0
    assert bool(torch.isfinite(plan.value).all())


def test_it_finds_a_sequence_of_discrete_actions() -> None:
    """Of 4^6 sequences the one that pays for every right action, and for the last only where all are right."""
    wanted = torch.tensor([[3, 0, 1, 1, 2, 0], [0, 0, 3, 2, 2, 1]])

    def right(sequence: Tensor) -> Tensor:
        same = (sequence == wanted.unsqueeze(1)).float()
        return same.sum(-1) + 3 * same.prod(-1)

    plan = cross_entropy.discrete(right, 4, 6, Search(200, 20, 8), torch.arange(2), Key.of(6))
    assert torch.equal(plan.probabilities.argmax(-1), wanted)
    assert plan.value.tolist() == [9.0, 9.0]
    assert float(plan.probabilities.min()) >= 0.05 / 4 - 1e-7, "nothing is lost for ever"
    torch.testing.assert_close(plan.probabilities.sum(-1), torch.ones(2, 6))


@statistical(alpha=beyond(5, 25), bugs=("uniforms-lean", "draws-repeat"))
def test_sequences_are_drawn_as_their_probabilities_say() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.0, 0.6, 0.3]]).expand(50, 2, 4)
    drawn = cross_entropy.draw(p, 400, torch.arange(50), Key.of(7))
    seen = torch.nn.functional.one_hot(drawn, 4).double().mean((0, 1))
    error = (p[0] * (1 - p[0])).double().div(50 * 400).sqrt()
    assert bool(((seen - p[0]).abs() <= 5 * error + 1e-12).all())
    # Steps are independent.
    both = (
        torch.nn.functional.one_hot(drawn[..., 0], 4).double().flatten(0, 1).T
        @ torch.nn.functional.one_hot(drawn[..., 1], 4).double().flatten(0, 1)
    ) / (50 * 400)
    assert float((both - seen[0].unsqueeze(1) * seen[1]).abs().max()) < 5 * 0.5 / (50 * 400) ** 0.5
