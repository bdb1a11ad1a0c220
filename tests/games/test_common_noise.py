"""Common noise and major agents: the tree of pasts against plain recursion, and against populations of N."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.lockdown import Lockdown
from mfmarl.errors import ConfigError, EnvironmentFault
from mfmarl.games.common_noise import grow
from mfmarl.games.exploitability import gap
from mfmarl.games.flow import check_policy, flow, reach, times, uniform
from mfmarl.games.reference import means
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical

CLOSING = BeachBar(horizon=4, places=5, bar=1, closing=0.4)
EPIDEMIC = Lockdown(horizon=5, review=2)


def some_policy(game: BeachBar | Lockdown) -> Tensor:
    """One that depends on everything, the past included."""
    shape = (times(game), game.num_groups, game.num_states, game.num_actions)
    noise = random.normal(Key.of(3), torch.arange(math.prod(shape))).to(torch.float64)
    return torch.softmax(noise.view(shape), -1)


def test_a_tree_grows_only_where_states_can_follow() -> None:
    anything, stays = torch.ones(2, 2, dtype=torch.bool), torch.eye(2, dtype=torch.bool)
    tree = grow(torch.tensor([0.5, 0.5]), [stays, anything, stays])
    assert [len(z) for z in tree.common] == [2, 2, 4, 4]
    assert tree.nodes == 12
    assert tree.parent[2].tolist() == [0, 0, 1, 1]
    assert tree.common[2].tolist() == [0, 1, 0, 1]


def test_too_many_pasts_are_refused() -> None:
    with pytest.raises(ConfigError, match="pasts"):
        _ = Lockdown(horizon=60, review=1).tree


def test_without_chance_of_closing_the_noise_changes_nothing() -> None:
    plain, never = BeachBar(horizon=4), BeachBar(horizon=4, closing=1e-300)
    tree = never.tree
    assert tree is not None
    policy = torch.softmax(random.normal(Key.of(5), torch.arange(4 * 4 * 3)).double().view(4, 1, 4, 3), -1)
    spread = torch.cat([policy[t : t + 1].expand(len(z), 1, 4, 3) for t, z in enumerate(tree.common)])
    one, other = gap(plain, policy), gap(never, spread)
    torch.testing.assert_close(one.exploitability, other.exploitability)
    torch.testing.assert_close(one.value, other.value)


def _people_by_recursion(game: BeachBar | Lockdown, policy: Tensor, best: bool) -> tuple[float, float]:
    """Expected value of the people, and of the government: plain recursion over histories, states and actions."""
    tree = game.tree
    assert tree is not None
    path = flow(game, policy)
    number = {}  # (time, node in level) -> row
    for t, level in enumerate(tree.levels):
        for k in range(len(tree.common[t])):
            number[t, k] = level.start + k

    def after(t: int, k: int) -> list[tuple[int, Tensor]]:
        """Children and their probabilities (by the government's action)."""
        return [(c, path.chances[t + 1][c]) for c in range(len(tree.parent[t + 1])) if int(tree.parent[t + 1][c]) == k]

    @cache
    def people(t: int, k: int, s: int) -> float:
        row = number[t, k]
        dense = path.kernels[t].dense().expand(len(tree.common[t]), game.num_groups, -1, -1, -1)[k, 0, s]
        found = []
        for a in range(game.num_actions):
            total = float(path.rewards[row, 0, s, a])
            if t + 1 < len(tree.levels):
                for child, chance in after(t, k):
                    p = float((chance * policy[row, -1, 0]).sum()) if game.major else float(chance)
                    ahead = sum(float(dense[a, x]) * people(t + 1, child, x) for x in range(game.num_states))
                    total += game.discount * p * ahead
            found.append(total)
        own = policy[row, 0, s]
        return max(found) if best else sum(float(p) * q for p, q in zip(own, found, strict=True))

    @cache
    def government(t: int, k: int) -> float:
        row = number[t, k]
        found = []
        for a in range(game.num_actions):
            total = float(path.rewards[row, 1, 0, a])
            if t + 1 < len(tree.levels):
                total += sum(float(chance[a]) * government(t + 1, child) for child, chance in after(t, k))
            found.append(total)
        own = policy[row, 1, 0]
        return max(found) if best else sum(float(p) * q for p, q in zip(own, found, strict=True))

    value = sum(float(m) * people(0, 0, s) for s, m in enumerate(path.mu[0, 0]))
    return value, government(0, 0) if game.major else 0.0


@pytest.mark.parametrize("game", [CLOSING, EPIDEMIC], ids=["noise", "major"])
def test_values_and_best_responses_are_those_of_plain_recursion(game: BeachBar | Lockdown) -> None:
    policy = some_policy(game)
    found = gap(game, policy)
    held, best = _people_by_recursion(game, policy, False), _people_by_recursion(game, policy, True)
    assert found.value.tolist() == pytest.approx(list(held)[: game.num_groups], abs=1e-12)
    assert found.best.tolist() == pytest.approx(list(best)[: game.num_groups], abs=1e-12)


@pytest.mark.parametrize("game", [CLOSING, EPIDEMIC], ids=["noise", "major"])
def test_probabilities_of_the_pasts_sum_to_one_at_every_time(game: BeachBar | Lockdown) -> None:
    path = flow(game, some_policy(game), check=True)
    assert game.tree is not None
    for level in game.tree.levels:
        assert float(reach(game, path)[level].sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_batch_of_policies_is_each_of_them() -> None:
    one, other = some_policy(EPIDEMIC), uniform(EPIDEMIC)
    both = gap(EPIDEMIC, torch.stack([one, other], 1))
    assert both.exploitability.tolist() == pytest.approx(
        [float(gap(EPIDEMIC, p).exploitability) for p in (one, other)], abs=1e-12
    )


@pytest.mark.parametrize("kind", ["noise", "major"])
@statistical(alpha=beyond(5, 20, samples=60), bugs=("uniforms-lean", "steps-share-noise"))
def test_n_agents_follow_the_past_that_they_see(kind: str) -> None:
    """Given the noise, the crowd of N is within sampling error of its node's; over copies, means are those of `means`."""
    many = 4000
    game: BeachBar | Lockdown = (
        BeachBar(num_agents=many, horizon=4, places=5, bar=1, closing=0.4, floor=1e-3)
        if kind == "noise"
        else Lockdown(num_agents=many, horizon=5, review=2)
    )
    policy = some_policy(game)
    path = flow(game, policy)
    tree = game.tree
    assert tree is not None
    copies = 60
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(7))
    group = game.spec().group
    node = torch.zeros(copies, dtype=torch.int64)  # number of the past within its level
    paid = torch.zeros(copies, dtype=torch.float64)
    measured: dict[str, list[Tensor]] = {}
    for t in range(len(tree.levels)):
        state = simulation.state
        crowd = game.crowd(state).mu[:, 0]
        expected = path.mu[tree.levels[t]][node][:, 0]
        # The sample's own error, and that of the crowd it came from: t + 1 steps of N draws each.
        error = (expected * (1 - expected) * (t + 1) / (many - 1)).sqrt() + 1e-9
        assert float(((crowd - expected).abs() / error).max()) < 6
        rows = policy[tree.levels[t]][node]  # [E, G, S, A]
        chance = rows[torch.arange(copies).unsqueeze(-1), group, state.state]
        level = random.uniform(Key.of(8).fold(t), simulation.ids).unsqueeze(-1)
        action = (level >= chance.cumsum(-1)[..., :-1]).sum(-1)
        paid += simulation.step(action).reward.double().mean(1)
        for name, value in simulation.measure().items():
            measured.setdefault(name, []).append(value.double())
        if t + 1 < len(tree.levels):
            seen = simulation.state.common
            fits = (tree.parent[t + 1] == node.unsqueeze(-1)) & (tree.common[t + 1] == seen.unsqueeze(-1))
            assert bool((fits.sum(-1) == 1).all())
            node = fits.to(torch.uint8).argmax(-1)
    assert game.horizon is not None
    mean, error = paid.mean() / game.horizon, paid.std() / game.horizon / math.sqrt(copies)
    known = means(game, path)
    assert abs(float(mean) - known["reward"]) < 5 * float(error) + 5 / many
    for name, values in measured.items():
        each = torch.stack(values).mean(0)
        assert abs(float(each.mean()) - known[name]) < 5 * float(each.std()) / math.sqrt(copies) + 5 / many


def test_a_closing_bar_is_solved_and_forgotten_only_once_closed() -> None:
    game = BeachBar(horizon=6, places=7, bar=3, closing=0.5)
    found = solve(game, MirrorDescent(rate=0.3), 400, every=100)
    assert float(found.exploitability) < 5e-3
    check_policy(game, found.policy)
    tree = game.tree
    assert tree is not None
    last = flow(game, found.policy).mu[tree.levels[-1], 0]
    still_open, closed = last[int((tree.common[-1] == 0).nonzero())], last[int((tree.common[-1] == 1).nonzero())]
    # Before it may close nobody knows: the crowd is one. Then those who stand before a closed bar spread.
    assert float(still_open[3]) > 1.5 * float(closed[3])


def test_moves_that_the_support_forbids_are_told() -> None:
    class Liar(Lockdown):
        def common_support(self, t: int) -> Tensor:
            return torch.eye(2, dtype=torch.bool)

    game = Liar(horizon=4, review=2)
    with pytest.raises(EnvironmentFault, match="common_support"):
        flow(game, uniform(game), check=True)


def test_common_noise_without_a_horizon_is_refused() -> None:
    with pytest.raises(ConfigError, match="horizon"):
        Lockdown(horizon=None, discount=0.9)
    with pytest.raises(ConfigError, match="horizon"):
        BeachBar(horizon=None, discount=0.9, closing=0.2)
