"""The stag hunt: what hunters are paid, its equilibria exactly at N, and the model of one who believes in a crowd."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mfmarl import random
from mfmarl.envs.stag_hunt import StagHunt
from mfmarl.errors import ConfigError
from mfmarl.inference import crowd
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical


@pytest.mark.parametrize(
    ("n", "options", "threshold"), [(6, {}, 3), (2, {"needed": 0.1}, 2), (9, {"number": 4}, 4), (5, {"needed": 1.0}, 5)]
)
def test_a_stag_takes_enough_hunters_and_a_hare_none(n, options, threshold):
    game = StagHunt(num_agents=n, stag=5.0, hare=2.0, **options)
    assert game.threshold == threshold
    every = torch.tensor(list(itertools.product((0, 1), repeat=n)))
    ids = agent_ids(len(every), n)
    state, reward = game.step(game.reset(ids, Key.of(0)), every, ids, Key.of(1))
    enough = every.sum(1, keepdim=True) >= threshold
    assert torch.equal(reward, torch.where(every == 1, 5.0 * enough, torch.tensor(2.0)))
    # What is seen is what was paid: a hare, nothing, a stag.
    assert torch.equal(torch.tensor([2.0, 0.0, 5.0])[game.observe(state)], reward)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_success_and_the_mixed_equilibrium_are_exact_by_enumeration(n):
    game = StagHunt(num_agents=n)
    p = game.mixed()
    assert p is not None
    chance = sum(
        math.prod(p if z else 1 - p for z in others)
        for others in itertools.product((0, 1), repeat=n - 1)
        if sum(others) + 1 >= game.threshold
    )
    assert float(game.success(p)) == pytest.approx(chance, abs=1e-12)
    assert game.stag * chance == pytest.approx(game.hare, abs=1e-9)
    # Unstable: those who begin on either side of it go on to the pure equilibrium of their side.
    assert game.settled(start=p + 1e-6) == 1
    assert game.settled(start=p - 1e-6) == 0


@pytest.mark.parametrize(("temperature", "trust"), [(0.3, 0.9), (0.6, 0.05), (5.0, 0.5)])
@statistical(alpha=beyond(5, 10), bugs=("uniforms-lean", "pairs-share-noise"))
def test_a_crowd_that_draws_from_the_logit_equilibrium_measures_what_the_reference_says(temperature, trust):
    game, copies = StagHunt(num_agents=11, trust=trust), 20_000
    p = game.settled(temperature)
    gap = game.stag * float(game.success(p)) - game.hare
    assert p == pytest.approx(1 / (1 + math.exp(-gap / temperature)), abs=1e-9)
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(0))
    reward = simulation.step((random.uniform(Key.of(1), simulation.ids) < p).long()).reward.double().mean(1)
    for name, known in game.reference(temperature).items():
        seen = reward if name == "reward" else simulation.measure()[name].double()
        assert abs(float(seen.mean()) - known.value) < 5 * float(seen.std()) / copies**0.5 + 1e-9, name


def test_both_equilibria_are_reached_from_their_own_side():
    low, high = StagHunt(trust=0.05).reference(0.1), StagHunt(trust=0.95).reference(0.1)
    assert low["share"].value < 0.01
    assert high["share"].value > 0.99
    assert StagHunt().reference()["reward"].value == 4.0


@statistical(alpha=beyond(5, 30), bugs=("uniforms-lean", "pairs-share-noise"))
def test_the_model_says_what_hunters_see_of_crowds_of_every_share():
    game, theta = StagHunt(num_agents=20), crowd.simplex(2, 5)
    model = game.crowd_model(theta)
    copies = 20_000
    ids = agent_ids(copies, 20)
    for m in range(5):
        action = (random.uniform(Key.of(m), ids) < float(theta[m, 1])).long()
        for own in (0, 1):
            action[:, 0] = own
            state, _ = game.step(game.reset(ids, Key.of(0)), action, ids, Key.of(1))
            seen = torch.nn.functional.one_hot(game.observe(state)[:, 0], 3).double().mean(0)
            expected = model.A[0][:, own, m]
            error = (expected * (1 - expected) / copies).sqrt()
            assert bool(((seen - expected).abs() <= 5 * error + 1e-12).all())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_agents": 1}, "at least 2 hunters"),
        ({"hare": 4.0}, "less than a stag"),
        ({"number": 101}, "cannot be needed"),
        ({"needed": 1.5}, "shares from 0 to 1"),
    ],
)
def test_hunts_that_cannot_be_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        StagHunt(**options)
