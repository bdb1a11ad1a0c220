"""The Lasry-Lions chain: Hopf and Cole's equilibrium, its linear recursion, uniqueness, and N agents."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.envs.lasry_lions_chain import LasryLionsChain
from mfmarl.errors import ConfigError
from mfmarl.games import values
from mfmarl.games.exploitability import regularised
from mfmarl.games.flow import along, flow, uniform
from mfmarl.games.game import Crowd
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical


@pytest.mark.parametrize(
    "options", [{}, {"hill": -1.5, "designed": 0.2}, {"crowding": 2.0, "discount": 0.6}, {"places": 31, "hill": 0.3}]
)
def test_the_crowd_of_hopf_and_cole_is_the_regularised_equilibrium(options):
    game = LasryLionsChain(horizon=None, floor=0.0, **options)
    policy = game.policy_at_rest().expand(1, 1, -1, -1)
    path = flow(game, policy)
    torch.testing.assert_close(path.mu[0, 0], game.crowd_at_rest(), rtol=0, atol=1e-10)
    assert float(regularised(game, policy, game.designed)) == pytest.approx(0, abs=1e-8)
    answer = values.boltzmann(game, values.soft(game, path, game.designed).q, game.designed)
    torch.testing.assert_close(answer, policy, rtol=0, atol=1e-9)
    # And at no other temperature.
    assert float(regularised(game, policy, 1.5 * game.designed)) > 1e-4


def test_detailed_balance_holds_in_the_crowd_at_rest():
    game = LasryLionsChain()
    mu, policy = game.crowd_at_rest(), game.policy_at_rest()
    right, left = mu * policy[:, 2], mu * policy[:, 0]
    torch.testing.assert_close(right, left.roll(-1))
    assert float(mu.max() / mu.min()) > 2


def test_without_crowding_soft_values_are_a_linear_recursion():
    # exp(V_t / T) = exp(r / T) P0 exp(V_{t+1} / T), with the entropy's constant T log 3 a step.
    game = LasryLionsChain(crowding=0.0, discount=1.0, horizon=12)
    temperature = 0.4
    soft = values.soft(game, flow(game, uniform(game)), temperature)
    grown = torch.ones(game.places, dtype=torch.float64)
    reward = game.rewards(0, Crowd(torch.ones(1, game.places, dtype=torch.float64)))[0, :, 0]
    for t in range(11, -1, -1):
        ahead = (grown.roll(1) + grown + grown.roll(-1)) / 3
        grown = (reward / temperature).exp() * ahead
        known = temperature * grown.log() + (12 - t) * temperature * math.log(3)
        torch.testing.assert_close(soft.v[t, 0], known, rtol=1e-12, atol=1e-12)


def test_damped_answers_from_anywhere_lead_to_the_one_equilibrium():
    game = LasryLionsChain(horizon=None, floor=0.0, designed=1.5)
    for seed in (0, 1):
        mu = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        mu = (mu / mu.sum()).view(1, 1, 8)
        policy = uniform(game)
        for _ in range(40):
            path = along(game, mu, policy)
            policy = values.boltzmann(game, values.soft(game, path, game.designed).q, game.designed)
            mu = mu + 0.5 * (flow(game, policy).mu - mu)
        torch.testing.assert_close(mu[0, 0], game.crowd_at_rest(), rtol=0, atol=1e-5)


def test_the_potential_gives_the_rewards():
    game = LasryLionsChain()
    mu = torch.rand(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(game.potential(0, Crowd(mu)), mu)
    torch.testing.assert_close(slope, game.rewards(0, Crowd(mu.detach())).squeeze(-1))


@statistical(alpha=beyond(5, 8), bugs=("uniforms-lean", "steps-share-noise"))
def test_many_agents_who_keep_the_policy_spread_as_the_crowd_at_rest():
    game, copies = LasryLionsChain(num_agents=2_000, horizon=None), 20
    simulation, policy = Simulation(game, copies), game.policy_at_rest().float()
    simulation.reset(Key.of(0))
    for t in range(150):
        edges = policy.cumsum(-1)[simulation.state.state]
        level = random.uniform(Key.of(1).fold("choice", t), simulation.ids).unsqueeze(-1)
        simulation.step((level > edges[..., :2]).sum(-1))
    seen = game.crowd(simulation.state).mu.mean((0, 1))
    error = (game.crowd_at_rest() / 40_000).sqrt()
    assert bool(((seen - game.crowd_at_rest()).abs() < 5 * error).all())


@pytest.mark.parametrize(
    ("options", "said"), [({"places": 2}, "places must be int"), ({"designed": 0.0}, "designed must be float")]
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        LasryLionsChain(**options)
