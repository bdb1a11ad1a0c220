"""Rewards as a modality: levels keep means, widening keeps what was counted, and what an action is worth by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.inference import reward_modality
from mfmarl.inference.reward_modality import Rewards
from mfmarl.random import Key


def paid(rows: int, minds: int = 1, scale: float = 1.0) -> Tensor:
    return scale * random.normal(Key.of(1), torch.arange(minds * rows).view(minds, rows))


def taught(
    rows: int = 400, minds: int = 2, contexts: int = 3, actions: int = 2, crowds: int = 4, prior: float = 1.0
) -> tuple[Rewards, dict[str, Tensor]]:
    ids = torch.arange(minds * rows).view(minds, rows)
    data = {
        "context": random.integers(Key.of(2), ids, contexts),
        "action": random.integers(Key.of(3), ids, actions),
        "paid": paid(rows, minds),
        "crowd": torch.softmax(random.normal(Key.of(4), ids, crowds), -1),
    }
    rewards = reward_modality.begin(minds, contexts, actions, 7, crowds, prior)
    for part in range(0, rows, 50):
        some = {name: x[:, part : part + 50] for name, x in data.items()}
        rewards = reward_modality.learned(rewards, **some, weight=torch.ones(minds, 50), forgetting=0.0)
    return rewards, data


def test_between_levels_the_mean_is_exact_however_often_they_had_to_widen():
    """Each column's total and mean are those of the weighted rewards themselves, though levels moved again and again."""
    rewards, data = taught()
    weight = torch.zeros(2, 3, 2, 4)
    total = torch.zeros(2, 3, 2, 4)
    for mind in range(2):
        for x, a, r, q in zip(*(data[name][mind] for name in ("context", "action", "paid", "crowd")), strict=True):
            weight[mind, x, a] += q
            total[mind, x, a] += q * r
    torch.testing.assert_close(rewards.evidence.sum(3), weight, rtol=1e-4, atol=1e-4)
    levels = rewards.levels().view(2, 1, 1, 7, 1)
    torch.testing.assert_close((rewards.evidence * levels).sum(3), total, rtol=1e-4, atol=1e-3)
    assert bool((rewards.span[:, 0] <= data["paid"].amin(1)).all())
    assert bool((rewards.span[:, 1] >= data["paid"].amax(1)).all())


def test_what_does_not_count_is_not_looked_at_and_the_old_is_forgotten():
    rewards, data = taught(prior=0.5)
    huge = torch.full((2, 3), 1e6)
    rows = {name: data[name][:, :3] for name in ("context", "action", "crowd")}
    after = reward_modality.learned(rewards, **rows, paid=huge, weight=torch.zeros(2, 3), forgetting=0.25)
    assert torch.equal(after.span, rewards.span)
    torch.testing.assert_close(after.evidence, 0.75 * rewards.evidence)


def test_a_reward_that_never_changes_has_levels_round_it():
    rewards = reward_modality.begin(1, 1, 1, 5, 1)
    one = torch.zeros(1, 4, dtype=torch.int64)
    rewards = reward_modality.learned(
        rewards, one, one, torch.full((1, 4), 3.0), torch.ones(1, 4, 1), torch.ones(1, 4), 0.0
    )
    worth = reward_modality.worth(rewards, one, torch.ones(1, 4, 1), True, True)
    torch.testing.assert_close(worth.reward, torch.full((1, 4, 1), 3.0), rtol=0, atol=1e-4)


def test_an_actions_worth_is_that_of_all_levels_and_crowds():
    """Expected reward, I(reward; crowd), and the parameter information of the note's section 3.5, by explicit sums."""
    rewards, _ = taught(rows=100)
    alpha = rewards.counts().double()
    q = torch.softmax(random.normal(Key.of(7), torch.arange(8).view(2, 4), 4), -1)
    context = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    found = reward_modality.worth(rewards, context, q, True, True)
    for mind, row, a in itertools.product(range(2), range(4), range(2)):
        column = alpha[mind, context[mind, row], a]  # [R, K]
        a0 = column.sum(0)
        p = column / a0
        belief, levels = q[mind, row].double(), rewards.levels()[mind].double()
        shown = p @ belief
        told = -(shown * shown.log()).sum() + (belief * (p * p.log()).sum(0)).sum()
        w = a0.log() - column.log() + torch.digamma(column + 1) - torch.digamma(a0 + 1)
        new = (belief * (p * w).sum(0)).sum()
        assert float(found.reward[mind, row, a]) == pytest.approx(float(levels @ shown), abs=1e-5)
        assert float(found.of_crowd[mind, row, a]) == pytest.approx(float(told), abs=1e-5)
        assert float(found.of_payoffs[mind, row, a]) == pytest.approx(float(new), abs=1e-5)


def test_one_context_is_computed_as_several_are():
    many, _ = taught(rows=100, minds=1, contexts=2)
    q = torch.softmax(random.normal(Key.of(7), torch.arange(6).view(1, 6), 4), -1)
    both = reward_modality.worth(many, torch.zeros(1, 6, dtype=torch.int64), q, True, True)
    first = many._replace(evidence=many.evidence[:, :1])
    one = reward_modality.worth(first, torch.zeros(1, 6, dtype=torch.int64), q, True, True)
    for x, y in zip(one, both, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("contexts", [1, 2])
def test_what_is_felt_anyhow_is_no_reason_to_act(contexts):
    """I(reward; m | felt): nothing where the crowd is felt exactly, all where nothing is, and in between the chain rule."""
    rewards, _ = taught(rows=100, minds=1, contexts=contexts)
    q = torch.softmax(random.normal(Key.of(7), torch.arange(5).view(1, 5), 4), -1)
    zeros = torch.zeros(1, 5, dtype=torch.int64)
    alone = reward_modality.worth(rewards, zeros, q, True, False).of_crowd

    def beyond(felt: Tensor) -> Tensor:
        return reward_modality.worth(rewards, zeros, q, True, False, felt).of_crowd

    torch.testing.assert_close(beyond(torch.eye(4)), torch.zeros_like(alone), rtol=0, atol=1e-5)
    torch.testing.assert_close(beyond(torch.full((3, 4), 1 / 3)), alone, rtol=0, atol=1e-5)
    felt = torch.softmax(random.normal(Key.of(8), torch.arange(4), 4), 0)
    found = beyond(felt)
    likelihood = rewards.counts() / rewards.counts().sum(3, keepdim=True)
    for row, a in itertools.product(range(5), range(2)):
        joint = torch.einsum("m,jm,rm->mjr", q[0, row], felt, likelihood[0, 0, a]).double()

        def entropy(p: Tensor) -> float:
            return -float((p * p.log()).sum())

        # I(r; m | f) = H(r, f) + H(m, f) - H(m, f, r) - H(f).
        told = entropy(joint.sum(0)) + entropy(joint.sum(2)) - entropy(joint) - entropy(joint.sum((0, 2)))
        assert float(found[0, row, a]) == pytest.approx(told, abs=1e-5)
        assert told <= float(alone[0, row, a]) + 1e-6


def test_what_was_paid_tells_of_the_crowd_by_its_likelihood():
    rewards, data = taught(rows=100)
    context, action, r = (data[name][:, :5] for name in ("context", "action", "paid"))
    found = reward_modality.log_likelihood(rewards, context, action, r)
    p = rewards.counts() / rewards.counts().sum(3, keepdim=True)
    for mind, row in itertools.product(range(2), range(5)):
        low, high = (float(x) for x in rewards.span[mind])
        place = (float(r[mind, row]) - low) / (high - low) * 6
        below = min(math.floor(place), 5)
        column = p[mind, context[mind, row], action[mind, row]].log()
        expected = column[below] + (place - below) * (column[below + 1] - column[below])
        torch.testing.assert_close(found[mind, row], expected, rtol=1e-4, atol=1e-4)
