from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mfmarl.learning.agent import Transition
from mfmarl.learning.memory import Replay, Rollout, advantages, sample_rows
from mfmarl.random import Key
from tests.statistical import beyond, statistical


def transition(reward: Tensor, valid: Tensor | None = None) -> Transition:
    """One whose every column carries the reward's number, so that rows can be followed."""
    column = reward.unsqueeze(-1)
    number = reward.long()
    ended = (number % 2).bool()
    return Transition(column, column * 2, None, number, reward, column + 1, column * 3, None, ended, valid)


def whole(batch: Transition) -> bool:
    """Whether every row's columns still belong together."""
    r = batch.reward
    return bool(
        torch.equal(batch.obs[..., 0], r)
        and torch.equal(batch.field[..., 0], 2 * r)
        and torch.equal(batch.action, r.long())
        and torch.equal(batch.next_obs[..., 0], r + 1)
        and torch.equal(batch.next_field[..., 0], 3 * r)
        and torch.equal(batch.terminated, (r.long() % 2).bool())
    )


def slow_advantages(
    reward: Tensor,
    value: Tensor,
    last: Tensor,
    acting: Tensor,
    ended: Tensor,
    bootstrap: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """One agent at a time: cut its life into decisions, each with what it collected and what came after."""
    out = torch.zeros_like(reward)
    steps, agents = reward.shape
    for i in range(agents):
        decisions = [t for t in range(steps) if acting[t, i]]
        for k, t in enumerate(decisions):
            total, weight, at = 0.0, 1.0, k
            while True:
                begin = decisions[at]
                following = decisions[at + 1] if at + 1 < len(decisions) else steps
                collected, after, stop = 0.0, None, False
                for u in range(begin, following):
                    collected += float(reward[u, i])
                    if ended[u, i]:
                        after, stop = float(bootstrap[u, i]), True
                        break
                if after is None:
                    after = float(value[following, i]) if following < steps else float(last[i])
                    stop = following >= steps
                total += weight * (collected + gamma * after - float(value[begin, i]))
                if stop:
                    break
                weight, at = weight * gamma * lam, at + 1
            out[t, i] = total
    return out


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000), steps=st.integers(1, 12), turns=st.booleans(), gamma=st.sampled_from([0.0, 0.9, 1.0])
)
def test_advantages_are_those_of_a_slow_and_plain_reference(seed: int, steps: int, turns: bool, gamma: float) -> None:
    """With turn-taking, deaths (bootstrap 0), cuts (bootstrap > 0), rewards while waiting and after the end."""
    g = torch.Generator().manual_seed(seed)
    agents = 5
    reward, value, bootstrap = (torch.randn(steps, agents, generator=g, dtype=torch.float64) for _ in range(3))
    last = torch.randn(agents, generator=g, dtype=torch.float64)
    acting = torch.rand(steps, agents, generator=g) < 0.5 if turns else torch.ones(steps, agents, dtype=torch.bool)
    ended = torch.rand(steps, agents, generator=g) < 0.2
    bootstrap = bootstrap * (torch.rand(steps, agents, generator=g) < 0.5)
    fast, returns = advantages(reward, value, last, acting, ended, bootstrap, gamma, 0.8)
    slow = slow_advantages(reward, value, last, acting, ended, bootstrap, gamma, 0.8)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, fast + value)


def test_with_lambda_one_the_return_is_the_discounted_sum() -> None:
    reward = torch.tensor([[1.0], [2.0], [4.0]])
    nothing = torch.zeros(3, 1)
    yes, no = torch.ones(3, 1, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.bool)
    _, returns = advantages(reward, torch.randn(3, 1), torch.tensor([8.0]), yes, no, nothing, 0.5, 1.0)
    torch.testing.assert_close(returns[0], torch.tensor([1 + 0.5 * (2 + 0.5 * (4 + 0.5 * 8.0))]))


def test_nothing_is_bootstrapped_for_the_dead() -> None:
    reward, value = torch.tensor([[1.0]]), torch.zeros(1, 1)
    yes = torch.ones(1, 1, dtype=torch.bool)
    advantage, _ = advantages(reward, value, torch.tensor([100.0]), yes, yes, torch.zeros(1, 1), 0.9, 0.95)
    assert advantage.item() == 1.0


@statistical(alpha=beyond(5, 20), bugs=("even-rows", "numbers-lean"))
def test_rows_are_sampled_without_replacement_and_evenly() -> None:
    counts = torch.zeros(20)
    for trial in range(2000):
        rows = sample_rows(20, 5, Key.of(trial), torch.device("cpu"))
        assert rows is not None
        assert len(rows.unique()) == 5
        assert torch.equal(rows, rows.sort().values)
        counts[rows] += 1
    # 2000 draws of 5 of 20: mean 500, variance 2000 x 1/4 x 3/4.
    assert (counts - 500).abs().max() < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_all_rows_are_kept_where_none_need_be_left_out() -> None:
    assert sample_rows(20, None, Key.of(0), torch.device("cpu")) is None
    assert sample_rows(20, 20, Key.of(0), torch.device("cpu")) is None


def test_a_full_ring_holds_the_latest_rows_and_keeps_columns_together() -> None:
    ring = Replay(1, 10)
    for start in range(0, 28, 4):
        ring.add(transition(torch.arange(start, start + 4.0).unsqueeze(0)), Key.of(start))
    assert ring.least == 10
    assert sorted(ring.ring["reward"][0].tolist()) == list(range(18, 28))
    batch = ring.draw(500, Key.of(1))
    assert whole(batch)
    assert set(batch.reward[0].tolist()) == set(range(18, 28))


def test_more_rows_than_fit_are_sampled_and_not_cut_off() -> None:
    ring = Replay(1, 10)
    ring.add(transition(torch.arange(1000.0).unsqueeze(0)), Key.of(0))
    kept = ring.ring["reward"][0]
    assert len(kept.unique()) == 10
    assert kept.min() < 500 < kept.max()


@statistical(alpha=1e-3, bugs=("even-rows", "numbers-lean"))
def test_what_is_remembered_of_a_crowd_is_a_random_part() -> None:
    ring = Replay(1, 1000)
    for trial in range(40):
        ring.add(transition(torch.arange(100.0).unsqueeze(0)), Key.of(trial), remember=10)
    assert ring.least == 400
    kept = ring.ring["reward"][0, :400]
    assert abs(kept.mean() - 49.5) < 5 * (100**2 / 12 / 400) ** 0.5
    assert all(len(step.unique()) == 10 for step in kept.view(40, 10))


@statistical(alpha=beyond(5, 20), bugs=("uniforms-narrow", "uniforms-lean"))
def test_draws_are_uniform_over_what_is_held() -> None:
    ring = Replay(2, 16)
    ring.add(transition(torch.arange(10.0).repeat(2, 1)), Key.of(0))
    drawn = ring.draw(50_000, Key.of(1)).reward
    for mind in range(2):
        counts = torch.bincount(drawn[mind].long(), minlength=10)
        assert len(counts) == 10
        assert (counts - 5000).abs().max() < 5 * (50_000 * 0.1 * 0.9) ** 0.5
    assert not torch.equal(drawn[0], drawn[1])


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), capacity=st.integers(3, 12))
def test_masked_rows_of_many_minds_go_each_to_its_own_ring(seed: int, capacity: int) -> None:
    g = torch.Generator().manual_seed(seed)
    minds, width = 3, 4
    ring = Replay(minds, capacity)
    expected: list[list[float]] = [[] for _ in range(minds)]
    for step in range(8):
        reward = torch.arange(minds * width).view(minds, width) + 100.0 * step
        valid = torch.rand(minds, width, generator=g) < 0.6 if step % 3 else None
        ring.add(transition(reward, valid), Key.of(step))
        for mind in range(minds):
            chosen = reward[mind] if valid is None else reward[mind][valid[mind]]
            expected[mind] = (expected[mind] + chosen.tolist())[-capacity:]
        assert ring.least == min(map(len, expected))
        assert ring.size.tolist() == [len(e) for e in expected]
        for mind in range(minds):
            assert sorted(ring.ring["reward"][mind, : len(expected[mind])].tolist()) == sorted(expected[mind])
    if ring.least:
        assert whole(ring.draw(20, Key.of(9)))


def test_rows_that_nobody_acted_in_are_not_remembered() -> None:
    ring = Replay(1, 10)
    ring.add(transition(torch.arange(4.0).unsqueeze(0), torch.zeros(1, 4, dtype=torch.bool)), Key.of(0))
    assert ring.least == 0
    ring.add(transition(torch.arange(4.0).unsqueeze(0), torch.tensor([[False, True, False, True]])), Key.of(0))
    assert ring.ring["reward"][0, :2].tolist() == [1.0, 3.0]


def test_a_ring_goes_on_from_its_state_as_if_never_stopped() -> None:
    rings = [Replay(2, 7), Replay(2, 7)]
    for step in range(3):
        rings[0].add(transition(torch.arange(4.0).repeat(2, 1) + step), Key.of(step))
    state = {k: v.clone() for k, v in rings[0].state_dict().items()}
    rings[1].load_state_dict(state, torch.device("cpu"))
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    for ring in rings:
        ring.add(transition(torch.arange(4.0).repeat(2, 1) + 9, mask), Key.of(9))
    a, b = (ring.draw(50, Key.of(3)) for ring in rings)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if x is not None)


def test_a_rollout_keeps_the_same_rows_in_every_step() -> None:
    rollout = Rollout(3)
    rollout.begin(50, 8, Key.of(0), torch.device("cpu"))
    for step in range(3):
        assert not rollout.full
        rollout.add({"reward": rollout.select(torch.arange(50.0).unsqueeze(0) + 100 * step)})
    assert rollout.full
    stacked = rollout.stacked()["reward"]
    assert stacked.shape == (3, 1, 8)
    assert torch.equal(stacked[1] - stacked[0], torch.full((1, 8), 100.0))
    chosen = rollout.rows
    rollout.clear()
    rollout.begin(50, 8, Key.of(1), torch.device("cpu"))
    assert not torch.equal(chosen, rollout.rows)


@pytest.mark.parametrize("remember", [None, 0])
def test_a_rollout_keeps_everybody_where_nobody_says_otherwise(remember: int | None) -> None:
    rollout = Rollout(3)
    rollout.begin(50, remember, Key.of(0), torch.device("cpu"))
    assert rollout.rows is None
    assert rollout.select(torch.zeros(1, 50)).shape == (1, 50)


def test_a_half_full_rollout_goes_on_from_its_state() -> None:
    old, new = Rollout(3), Rollout(3)
    old.begin(50, 8, Key.of(0), torch.device("cpu"))
    old.add({"reward": old.select(torch.rand(1, 50)), "legal": None})
    new.load_state_dict({k: v.clone() for k, v in old.state_dict().items()}, torch.device("cpu"))
    assert torch.equal(old.rows, new.rows)
    assert new.chosen
    assert torch.equal(old.stacked()["reward"], new.stacked()["reward"])


# By priority


def drawn_by_priority(alpha: float, correction: float, batch: int = 20_000) -> tuple[Replay, Transition]:
    memory = Replay(2, 8, alpha)
    memory.add(transition(torch.arange(5.0).repeat(2, 1)), Key.of(0))
    priority = torch.tensor([[0.5, 1.0, 2.0, 4.0, 0.25]]).repeat(2, 1)
    priority[1] = priority[1].flip(0)
    memory.reweigh(torch.arange(5).repeat(2, 1), priority)
    return memory, memory.draw(batch, Key.of(1), correction)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@statistical(alpha=beyond(5, 20), bugs=("replay-flat", "weighted-flat"))
def test_transitions_are_drawn_in_proportion_to_a_power_of_their_priority(alpha: float) -> None:
    memory, batch = drawn_by_priority(alpha, 1.0)
    assert batch.place is not None and batch.weight is not None
    for mind in range(2):
        p = memory.priority[mind, :5] ** alpha
        p = p / p.sum()
        share = torch.bincount(batch.place[mind], minlength=5) / 20_000
        assert bool(((share - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt()).all())
        assert torch.equal(batch.reward[mind], memory.ring["reward"][mind, batch.place[mind]])


def test_fully_corrected_a_weighted_mean_is_the_uniform_one() -> None:
    memory, batch = drawn_by_priority(0.7, 1.0)
    assert batch.weight is not None
    for mind in range(2):
        w, x = batch.weight[mind].double(), batch.reward[mind].double()
        mean = (w * x).sum() / w.sum()
        error = ((w * (x - mean)).square().sum().sqrt() / w.sum()).item()
        assert abs(mean.item() - memory.ring["reward"][mind, :5].double().mean().item()) <= 5 * error
    uncorrected = drawn_by_priority(0.7, 0.0)[1].weight
    assert uncorrected is not None and bool((uncorrected == 1).all())


def test_a_new_transition_has_the_largest_priority_so_far_and_repetitions_keep_theirs() -> None:
    memory, _ = drawn_by_priority(1.0, 1.0)
    memory.add(transition(torch.tensor([[7.0, 8.0], [7.0, 8.0]])), Key.of(5))
    assert memory.priority[:, 5:7].tolist() == [[4.0, 4.0], [4.0, 4.0]]
    memory.reweigh(torch.tensor([[5, 5, 0], [6, 6, 6]]), torch.tensor([[1.0, 3.0, 0.0], [0.1, 0.2, 0.15]]))
    assert memory.priority[0, 5] == 3 and memory.priority[1, 6] == pytest.approx(0.2)
    assert 0 < memory.priority[0, 0] < 1e-5  # never quite forgotten


def test_priorities_are_part_of_what_is_saved() -> None:
    memory, _ = drawn_by_priority(0.6, 1.0)
    again = Replay(2, 8, 0.6)
    again.load_state_dict(memory.state_dict(), torch.device("cpu"))
    first, second = memory.draw(50, Key.of(9), 0.5), again.draw(50, Key.of(9), 0.5)
    assert torch.equal(first.place, second.place) and torch.equal(first.weight, second.weight)


def test_what_is_overwritten_in_a_full_ring_is_new_and_the_rest_keeps_its_priority() -> None:
    memory, _ = drawn_by_priority(1.0, 1.0)  # five of eight places, largest priority 4
    before = memory.priority.clone()
    memory.add(transition(torch.arange(10.0, 15.0).repeat(2, 1)), Key.of(6))  # places 5, 6, 7, 0, 1
    assert torch.equal(memory.priority[:, 2:5], before[:, 2:5])
    assert bool((memory.priority[:, [5, 6, 7, 0, 1]] == 4).all())
