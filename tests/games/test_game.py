"""What follows from the rules of a game, for every game of the package: N agents meet the tables of the limit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.errors import ConfigError
from mfmarl.games.catalogue import games
from mfmarl.games.game import Crowd, MeanFieldGame, table
from mfmarl.population.open import open_env
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.registry import lookup

every_game = pytest.mark.parametrize("name", list(games()))


def made(name: str, **options: object) -> MeanFieldGame:
    game = lookup("environment", name).load()(num_agents=12, **options)
    assert isinstance(game, MeanFieldGame)
    return game


def legal_actions(simulation: Simulation, key: Key) -> Tensor:
    assert simulation.timestep is not None
    noise = random.uniform(key, simulation.ids, simulation.spec.num_actions)
    legal = simulation.timestep.legal
    return (noise if legal is None else torch.where(legal, noise, -1.0)).argmax(-1)


@every_game
@pytest.mark.parametrize("sight", ["state", "crowd"])
def test_n_agents_see_what_is_seen_from_their_states_and_are_paid_by_the_tables(name: str, sight: str) -> None:
    game = made(name, sight=sight)
    simulation = Simulation(game, 2)
    timestep = simulation.reset(Key.of(1))
    group = game.spec().group
    copies = torch.arange(2).unsqueeze(-1)
    for t in range(min(3, game.horizon or 3)):
        state = simulation.state
        crowd = game.crowd(state)
        common = crowd.common
        views = game.views(t, crowd.mu, common)
        torch.testing.assert_close(timestep.obs, views[copies, group, state.state], rtol=0, atol=1e-6)
        action = legal_actions(simulation, Key.of(2).fold(t))
        met = game.crowd(state, action)
        paid = game.paid(t, met).expand(2, -1, -1, -1)[copies, group, state.state, action]
        timestep = simulation.step(action)
        last = game.horizon is not None and t + 1 == game.horizon
        if not (last and type(game).terminal is not MeanFieldGame.terminal):
            torch.testing.assert_close(timestep.reward, paid.float(), rtol=1e-5, atol=1e-5)
        shares = torch.zeros_like(crowd.mu)
        for g in range(game.num_groups):
            mine = simulation.state.state[:, group == g]
            shares[:, g] = torch.nn.functional.one_hot(mine, game.num_states).double().mean(1)
        torch.testing.assert_close(game.crowd(simulation.state).mu, shares, rtol=0, atol=1e-12)


@every_game
def test_rules_are_told_of_leading_axes_and_stay_the_same(name: str) -> None:
    """What is paid, and where it leads, of a batch of crowds is that of each."""
    game = made(name)
    shape = (3, 2, game.num_groups, game.num_states)
    mu = torch.softmax(random.normal(Key.of(3), torch.arange(2 * 3 * shape[2] * shape[3])).double().view(shape), -1)
    noise = random.normal(Key.of(4), torch.arange(mu.numel() * game.num_actions)).double()
    policy = torch.softmax(noise.view(*shape, game.num_actions), -1)
    common = None if game.tree is None else torch.tensor([[0, 1], [1, 0], [1, 1]]).view(3, 2, 1, 1)
    together = Crowd(mu, policy, common=common)
    paid = game.paid(0, together).expand(*shape, game.num_actions)
    value = random.normal(Key.of(5), torch.arange(mu.numel())).double().view(shape)
    ahead = game.kernel(0, together).expect(value)
    for i, j in ((0, 0), (2, 1)):
        alone = Crowd(mu[i, j], policy[i, j], common=None if common is None else common[i, j])
        torch.testing.assert_close(paid[i, j], game.paid(0, alone).expand((*shape[2:], game.num_actions)))
        torch.testing.assert_close(ahead[i, j], game.kernel(0, alone).expect(value[i, j]))


def test_a_game_ends_at_its_horizon_and_is_cut_off_before() -> None:
    whole, short, long = (open_env(BeachBar(), max_steps=steps) for steps in (None, 2, 9))
    for env, steps, ends in ((whole, 3, True), (short, 2, False), (long, 3, True)):
        env.reset(Key.of(0))
        for _ in range(steps):
            timestep = env.step(torch.zeros(1, 100, dtype=torch.int64))
        assert bool(timestep.ended.all())
        assert bool(timestep.terminated.all()) == ends
        assert bool(timestep.truncated.all()) != ends


def test_the_last_reward_is_paid_with_the_last_step() -> None:
    game = LeftRight(num_agents=4)
    simulation = Simulation(game, 1)
    simulation.reset(Key.of(0))
    timestep = simulation.step(torch.tensor([[0, 0, 0, 1]]))
    # Three on the left meet 3/4 of everybody, the one on the right twice 1/4.
    assert timestep.reward[0].tolist() == pytest.approx([-0.75, -0.75, -0.75, -0.5])


def test_tables_take_tensors_among_their_numbers() -> None:
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    made_of = table([[1.0, x], [x * x, 0.0]])
    assert made_of.tolist() == [[1, 2], [4, 0]]
    made_of.sum().backward()
    assert x.grad is not None
    assert float(x.grad) == 5.0
    assert table(3.0).shape == ()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_agents": 0}, "num_agents must be int in"),
        ({"horizon": 0}, "horizon must be int in"),
        ({"horizon": None}, "discount below 1"),
        ({"discount": 0.0}, "discount"),
        ({"discount": 1.5}, "discount"),
    ],
)
def test_games_that_are_none_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        dataclasses.replace(BeachBar(), **options)


def test_a_crowd_too_large_to_show_is_refused() -> None:
    with pytest.raises(ConfigError, match="sight=state"):
        BeachBar(places=5000, sight="crowd").spec()
