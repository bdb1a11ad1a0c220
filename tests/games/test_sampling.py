"""Sampled paths have the law of the flow, and are told by the right mind and row."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.games import sampling
from mfmarl.games.flow import flow
from mfmarl.games.sampling import layout_of
from mfmarl.random import Key
from tests.games.mini import Seasonal, Teams, Tiny, simplex, some_policy
from tests.statistical import beyond, statistical


def test_tables_by_mind_and_by_time_are_each_other_s_inverse() -> None:
    layout = layout_of(Teams(), (2, 3), starts=4)
    x = torch.randn(3, layout.flows, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    by_mind = layout.by_mind(x)
    assert by_mind.shape == (layout.minds, 4 * 3 * 3, 5)
    assert torch.equal(layout.by_time(by_mind), x)
    # Entry 4 of the batch, start 1, group 1, time 2, state 0.
    assert torch.equal(by_mind[4 * 2 + 1, (1 * 3 + 2) * 3 + 0], x[2, 4 * 4 + 1, 1, 0])


@pytest.mark.parametrize(
    "game", [Teams(pull=0.4, last=0.7, toil=0.3, discount=0.9), Seasonal(discount=0.9)], ids=["teams", "seasonal"]
)
@statistical(alpha=beyond(5, 200), bugs=("uniforms-lean", "steps-share-noise"))
def test_paths_have_the_law_of_the_flow_and_are_paid_by_its_tables(game: Tiny) -> None:
    """Shares of (time, state, action) of 20,000 paths within 5 standard errors; rewards to the last place."""
    layout, agents = layout_of(game, (2,)), 20_000
    policy = some_policy(game, 1, 2)
    path = flow(game, policy)
    paths = sampling.walk(game, layout, path, policy, agents, 1, 0.0, Key.of(3))
    assert paths.row.shape == (3, layout.minds, agents)
    size = 3 * game.num_states * game.num_actions
    row, action, reward, after, on = paths.transitions()
    for mind in range(layout.minds):
        entry, group = divmod(mind, game.num_groups)
        told = torch.bincount(row[mind] * game.num_actions + action[mind], minlength=size) / agents
        law = path.joint[:, entry, group].flatten()
        error = (law * (1 - law) / agents).sqrt()
        assert bool(((told - law).abs() <= 5 * error + 1e-12).all())
        paid = path.rewards[:, entry, group].flatten()[row[mind] * game.num_actions + action[mind]]
        state = after[mind] % game.num_states
        if path.terminal is not None:
            ending = game.discount * path.terminal[entry, group][state]
            paid = paid + torch.where(on[mind] == 0, ending, 0.0)
        torch.testing.assert_close(reward[mind], paid.float())
        # Where a path goes on, the row after is of the next time; the last step has none.
        time = row[mind] // game.num_states
        assert torch.equal(on[mind] == 0, time == 2)
        assert torch.equal((after[mind] // game.num_states)[time < 2], time[time < 2] + 1)


@statistical(alpha=beyond(5, 6), bugs=("uniforms-lean", "steps-share-noise"))
def test_a_path_without_end_keeps_the_stationary_law() -> None:
    """Of 4,000 agents the last of 30 steps: within 5 standard errors of the stationary distribution, as the first."""
    game = Tiny(horizon=None, discount=0.9, pull=0.3)
    layout, agents = layout_of(game, ()), 4000
    policy = some_policy(game, 1).unsqueeze(1)
    path = flow(game, policy)
    paths = sampling.walk(game, layout, path, policy, agents, 30, 0.0, Key.of(0))
    assert paths.row.shape == (30, 1, agents) and bool((paths.goes_on == 1).all())
    law = path.mu[0, 0, 0]
    for step in (0, 29):
        share = torch.bincount(paths.after[step, 0], minlength=3) / agents
        assert bool(((share - law).abs() <= 5 * (law * (1 - law) / agents).sqrt()).all())


@statistical(alpha=beyond(5, 20), bugs=("uniforms-lean", "last-number-never"))
def test_scattered_agents_are_everywhere_and_still_obey_the_kernel() -> None:
    game = Tiny(states=5)
    layout, agents = layout_of(game, ()), 20_000
    policy = some_policy(game, 0).unsqueeze(1)
    paths = sampling.walk(game, layout, flow(game, policy), policy, agents, 1, 1.0, Key.of(5))
    for t in range(3):
        share = torch.bincount(paths.row[t, 0] - 5 * t, minlength=5) / agents
        assert bool(((share - 0.2).abs() <= 5 * math.sqrt(0.2 * 0.8 / agents)).all())
    kernel = game.alone[0]
    from_two = (paths.row[0, 0] == 2) & (paths.action[0, 0] == 1)
    count = int(from_two.sum())
    share = torch.bincount(paths.after[0, 0][from_two] - 5, minlength=5) / count
    law = kernel[2, 1]
    assert bool(((share - law).abs() <= 5 * (law * (1 - law) / count).sqrt()).all())


def test_nobody_does_what_is_not_legal() -> None:
    game = Teams(banned=True, actions=3)
    layout = layout_of(game, ())
    policy = sampling.exploring(some_policy(game, 0).unsqueeze(1), game.legal_mask(), 0.5)
    torch.testing.assert_close(policy.sum(-1), torch.ones(policy.shape[:-1]).double())
    paths = sampling.walk(game, layout, flow(game, policy), policy, 500, 1, 0.5, Key.of(1))
    at_home = paths.row % game.num_states == 0
    assert bool(at_home.any()) and int(paths.action[at_home].max()) == 0
    assert int(paths.action.max()) == 2


def test_several_starts_of_one_mind_are_rows_of_their_own() -> None:
    """Two starts, each in one state for certain: the first D T S rows are the first start's."""
    game = Tiny()
    layout = layout_of(game, (2,), starts=2)
    start = torch.eye(3, dtype=torch.float64)[:2].unsqueeze(1).repeat(2, 1, 1)
    policy = some_policy(game, 0, 4)
    path = flow(game, policy, start)
    paths = sampling.walk(game, layout, path, policy, 10, 1, 0.0, Key.of(0))
    assert paths.row.shape == (3, 2, 20)
    assert torch.equal(paths.row[0], torch.tensor([0] * 10 + [9 + 1] * 10).expand(2, -1))


def test_an_entry_of_a_batch_does_not_know_of_the_others() -> None:
    game = Teams(pull=0.3)
    policy = some_policy(game, 0, 3)
    whole = sampling.walk(game, layout_of(game, (3,)), flow(game, policy), policy, 50, 1, 0.2, Key.of(2))
    alone = sampling.walk(game, layout_of(game, ()), flow(game, policy[:, :1]), policy[:, :1], 50, 1, 0.2, Key.of(2))
    assert torch.equal(whole.row[:, :2], alone.row) and torch.equal(whole.reward[:, :2], alone.reward)
    # And the others are not copies of it.
    assert not torch.equal(whole.action[:, :2], whole.action[:, 2:4])


def test_a_choice_never_falls_to_probability_zero() -> None:
    chances = torch.tensor([0.0, 0.4, 0.0, 0.6, 0.0], dtype=torch.float64).expand(3, 5)
    level = torch.tensor([2.0**-24, 0.4, 1 - 2.0**-24])
    assert sampling.choice(chances, level).tolist() == [1, 3, 3]
    assert (
        sampling.drawn(simplex(0, 1, 1, 4), torch.zeros(1, dtype=torch.int64), torch.tensor([[1 - 2.0**-24]])).item()
        == 3
    )
