"""Values along a held crowd: against every deterministic policy, against loops, and what they say at a temperature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl.games import values
from mfmarl.games.flow import Flow, flow
from tests.games.mini import Market, Seasonal, Teams, Tiny, simplex, some_policy, table

GAMES: list[Tiny] = [
    Tiny(states=3, horizon=2, pull=0.4, last=1.0, discount=0.9),
    Seasonal(states=2, horizon=3, pull=0.3, last=0.7),
    Teams(states=2, horizon=3, pull=0.2, toil=0.3),
    Market(states=2, horizon=2, actions=3, banned=True, last=0.4, discount=0.8),
]
every_game = pytest.mark.parametrize("game", GAMES, ids=lambda game: type(game).__name__)


def _worth(game: Tiny, path: Flow, policy: np.ndarray, temperature: float = 0.0) -> np.ndarray:
    """What an agent of this policy earns from each state at the start [G, S], followed forwards by loops."""
    horizon, groups, s, a = policy.shape
    rewards, kernels = path.rewards.numpy(), [kernel.dense().expand(groups, s, a, s).numpy() for kernel in path.kernels]
    found = np.zeros((groups, s))
    for g, first in itertools.product(range(groups), range(s)):
        here = np.eye(s)[first]
        for t in range(horizon):
            ahead = np.zeros(s)
            for x, u in itertools.product(range(s), range(a)):
                chance = here[x] * policy[t, g, x, u]
                if chance > 0:
                    bonus = -temperature * math.log(policy[t, g, x, u])
                    found[g, first] += game.discount**t * chance * (rewards[t, g, x, u] + bonus)
                    ahead += chance * kernels[t][g, x, u]
            here = ahead
        if path.terminal is not None:
            found[g, first] += game.discount**horizon * float(here @ path.terminal[g].numpy())
    return found


@every_game
def test_a_policy_is_worth_what_its_agent_earns(game: Tiny) -> None:
    path = flow(game, some_policy(game, 1))
    for policy in (None, some_policy(game, 2)):
        found = values.of_policy(game, path, policy).v[0].numpy()
        chosen = path.policy if policy is None else policy
        assert found == pytest.approx(_worth(game, path, chosen.numpy()), rel=1e-12)


@every_game
def test_the_best_is_the_best_of_all_deterministic_policies(game: Tiny) -> None:
    path = flow(game, some_policy(game, 3))
    legal = game.legal_mask()
    horizon, groups, s, a = path.policy.shape
    most = np.full((groups, s), -np.inf)
    for choice in itertools.product(range(a), repeat=horizon * s):
        pick = torch.tensor(choice).view(horizon, 1, s).expand(horizon, groups, s)
        policy = torch.nn.functional.one_hot(pick, a).double()
        if legal is not None and bool((policy.bool() & ~legal).any()):
            continue
        most = np.maximum(most, _worth(game, path, policy.numpy()))
    best = values.best(game, path)
    assert best.v[0].numpy() == pytest.approx(most, rel=1e-12)
    # And the greedy policy of its q earns it.
    greedy = values.greedy(game, best.q)
    assert values.of_policy(game, path, greedy).v[0].numpy() == pytest.approx(most, rel=1e-12)


@every_game
@pytest.mark.parametrize("temperature", [0.05, 0.7, 20.0])
def test_the_soft_value_is_earned_by_its_gibbs_policy_and_by_no_other(game: Tiny, temperature: float) -> None:
    path = flow(game, some_policy(game, 4))
    soft = values.soft(game, path, temperature)
    gibbs = values.boltzmann(game, soft.q, temperature)
    assert soft.v[0].numpy() == pytest.approx(_worth(game, path, gibbs.numpy(), temperature), rel=1e-10)
    for seed in range(30):
        other = some_policy(game, seed)
        near = (gibbs + other * 0.02) / 1.02
        for rival in (other, near):
            assert bool((_worth(game, path, rival.numpy(), temperature) < soft.v[0].numpy() + 1e-12).all())


@every_game
def test_the_soft_value_relative_to_a_prior_counts_the_divergence_from_it(game: Tiny) -> None:
    path, prior, temperature = flow(game, some_policy(game, 5)), some_policy(game, 6), 0.5
    soft = values.soft(game, path, temperature, prior)
    chosen = values.boltzmann(game, soft.q, temperature, prior)

    def earned(policy: Tensor) -> Tensor:
        divergence = (torch.special.xlogy(policy, policy) - torch.where(policy > 0, policy * prior.log(), 0.0)).sum(-1)
        paid = path._replace(rewards=path.rewards - temperature * divergence.unsqueeze(-1))
        return values.of_policy(game, paid, policy).v[0]

    torch.testing.assert_close(earned(chosen), soft.v[0], rtol=1e-11, atol=1e-12)
    assert all(bool((earned(some_policy(game, seed)) < soft.v[0]).all()) for seed in range(30))
    # Who pays too much for any divergence keeps to the prior.
    torch.testing.assert_close(values.boltzmann(game, soft.q, 1e9, prior), prior, rtol=1e-6, atol=1e-8)


@every_game
def test_cold_soft_values_are_the_best_and_hot_ones_count_choices(game: Tiny) -> None:
    path = flow(game, some_policy(game, 7))
    torch.testing.assert_close(values.soft(game, path, 1e-6).v, values.best(game, path).v, rtol=0, atol=1e-4)
    legal = game.legal_mask()
    choices = (
        torch.full(path.mu.shape, float(game.num_actions)) if legal is None else legal.sum(-1).expand(path.mu.shape)
    )
    hot = values.soft(game, path, 1e7).v[-1] / 1e7
    torch.testing.assert_close(hot, choices[-1].double().log(), rtol=1e-6, atol=1e-6)


def test_a_batch_of_temperatures_is_each_of_them() -> None:
    game = GAMES[0]
    temperatures = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    path = flow(game, some_policy(game, 8).unsqueeze(1).expand(-1, 3, -1, -1, -1))
    wide = temperatures.view(3, 1, 1)
    whole = values.soft(game, path, wide)
    for i, temperature in enumerate(temperatures):
        alone = values.soft(game, flow(game, some_policy(game, 8)), float(temperature))
        torch.testing.assert_close(whole.q[:, i], alone.q, rtol=1e-13, atol=1e-14)
        one = values.boltzmann(game, alone.q, float(temperature))
        torch.testing.assert_close(values.boltzmann(game, whole.q, wide)[:, i], one, rtol=1e-12, atol=0)


def test_values_beyond_what_an_exponential_holds_are_no_trouble() -> None:
    game = Tiny()
    q = torch.tensor([[[[1e5, -1e5], [-1e5, -1e5], [1e300, 0.0]]]], dtype=torch.float64)
    assert values.boltzmann(game, q, 1e-3).tolist() == [[[[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]]]
    assert values.boltzmann(game, q, 0.0).tolist() == [[[[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]]]


def test_ties_are_shared_within_a_tolerance_that_grows_with_the_values() -> None:
    game = Tiny(actions=3)
    q = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    q[0, 0, 0] = torch.tensor([1.0, 1.0 - 1e-12, 0.5], dtype=torch.float64)
    q[0, 0, 1] = torch.tensor([1e6, 1e6 - 1e-4, 1e6 - 1e-2], dtype=torch.float64)
    q[0, 0, 2] = torch.tensor([0.0, 0.1, 0.05], dtype=torch.float64)
    assert values.greedy(game, q)[0, 0].tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 1, 0]]
    assert values.greedy(game, q, tie=0.0)[0, 0].tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert values.greedy(game, q, tie=0.2)[0, 0, 2].tolist() == pytest.approx([1 / 3] * 3)


def test_a_forbidden_action_is_never_best_whatever_it_pays() -> None:
    game = Tiny(banned=True, horizon=1)
    q = table(0, 1, 1, 3, 2)
    q[0, 0, 0, 1] = 1e9
    for policy in (values.greedy(game, q), values.boltzmann(game, q, 1.0), values.boltzmann(game, q, 0.0)):
        assert policy[0, 0, 0].tolist() == [1.0, 0.0]
    path = flow(game, some_policy(game, 1))
    path = path._replace(rewards=torch.where(game.legal_mask(), path.rewards, 1e9))
    assert float(values.best(game, path).v.max()) < 1e3
    assert float(values.soft(game, path, 1.0).v.max()) < 1e3
    assert float(values.of_policy(game, path).v.max()) < 1e3


def test_the_value_of_a_policy_is_linear_in_the_rewards() -> None:
    game = GAMES[0]
    path = flow(game, some_policy(game, 2))
    more = simplex(3, *path.rewards.shape)
    bare = path._replace(terminal=None)
    sum_of = values.of_policy(game, bare).v + values.of_policy(game, bare._replace(rewards=more)).v
    both = values.of_policy(game, bare._replace(rewards=path.rewards + more)).v
    torch.testing.assert_close(both, sum_of, rtol=1e-13, atol=1e-13)
