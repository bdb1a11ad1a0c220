"""Schelling's city: the temperature at which mixing becomes unstable, two blocks as a magnet, and N households."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.schelling import Schelling
from mfmarl.errors import ConfigError
from mfmarl.games import values
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow, uniform
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key


def answered(game: Schelling, policy: Tensor, temperature: float) -> Tensor:
    """Gibbs choices by the values of the policy itself along its own flow."""
    return values.boltzmann(game, values.of_policy(game, flow(game, policy)).q, temperature)


def leaning(game: Schelling, x: float) -> Tensor:
    """Everyone chooses a block of its kind's half a little more: [1, 2, B, B]."""
    half = game.blocks // 2
    side = torch.cat([torch.ones(half), -torch.ones(half)]).double()
    first = (1 + x * side) / game.blocks
    second = (1 - x * side) / game.blocks
    return torch.stack([first, second]).unsqueeze(1).expand(1, 2, game.blocks, game.blocks).clone()


@pytest.mark.parametrize("blocks", [2, 4, 8])
@pytest.mark.parametrize("tolerance", [0.35, 0.5, 0.7])
def test_a_small_push_grows_by_the_critical_temperature_over_the_temperature(blocks, tolerance):
    game = Schelling(blocks=blocks, tolerance=tolerance, horizon=None)
    for factor in (0.7, 1.4):
        temperature = game.critical_temperature() * factor
        mu = flow(game, answered(game, leaning(game, 1e-5), temperature)).mu[0]
        grown = float(mu[0, 0] * blocks - 1) / 1e-5
        assert grown == pytest.approx(1 / factor, rel=1e-3)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3])
def test_two_blocks_are_a_magnet(factor):
    game = Schelling(blocks=2, tolerance=0.5, softness=0.2, horizon=None)
    temperature = game.critical_temperature() * factor
    policy = leaning(game, 0.3)
    for _ in range(400):
        policy = answered(game, policy, temperature)
    measured = game.measures(flow(game, policy).mu[0])
    m = game.magnetisation(temperature)
    assert float(measured["dissimilarity"]) == pytest.approx(m, abs=1e-6)
    assert (m > 0.2) == (factor < 1)
    known = game.reference(temperature)
    assert float(measured["own"]) == pytest.approx(known["own"].value, abs=1e-6)
    path = flow(game, policy)
    assert float((path.joint * path.rewards).sum() / 2) == pytest.approx(known["reward"].value, abs=1e-6)


def test_a_linear_taste_has_the_curie_weiss_law():
    # Very soft contentment is linear in q, of slope w / 4 delta: m = tanh(m T_c / T).
    game = Schelling(blocks=2, tolerance=0.5, softness=50.0, content=100.0, horizon=None)
    temperature = 0.6 * game.critical_temperature()
    m = game.magnetisation(temperature)
    assert m == pytest.approx(math.tanh(m / 0.6), abs=1e-4)
    assert m > 0.8


def test_the_tolerant_city_segregates_although_half_its_kind_is_more_than_enough():
    # Content with 35 % of its own kind, a household gets .82 of all there is where half are: and yet.
    game = Schelling(horizon=None)
    temperature = 0.5 * game.critical_temperature()
    policy = leaning(game, 0.02)
    for _ in range(300):
        policy = answered(game, policy, temperature)
    assert float(game.measures(flow(game, policy).mu[0])["dissimilarity"]) > 0.8
    assert float(game.contentment(torch.tensor(0.5))) > 0.8


def test_mixed_and_wholly_segregated_cities_are_equilibria_without_temperature():
    game = Schelling(lean=0.0)
    assert float(exploitability(game, uniform(game))) == pytest.approx(0, abs=1e-12)
    apart = leaning(game, 1.0).expand(game.horizon, 2, 4, 4).clone()
    begun = Schelling(lean=1.0)
    assert float(exploitability(begun, apart)) == pytest.approx(0, abs=1e-9)
    pays = flow(begun, apart).rewards[0, 0, 0, 0]
    assert float(pays) == pytest.approx(begun.reference()["reward"].value)


def test_households_of_either_kind_begin_with_the_lean_and_an_odd_city_is_as_even_as_can_be():
    assert Schelling(lean=0.5).start().sum(-1).tolist() == pytest.approx([1, 1])
    odd = Schelling(blocks=5, lean=0.8).start()
    assert odd.sum(-1).tolist() == pytest.approx([1, 1])
    assert bool((odd >= 0).all())


def test_many_households_at_a_cold_temperature_stay_apart_and_at_a_warm_one_mix():
    for factor, apart in ((0.6, True), (1.6, False)):
        game = Schelling(num_agents=20_000, blocks=2, tolerance=0.5, softness=0.2, horizon=None, lean=0.3)
        temperature = factor * game.critical_temperature()
        simulation = Simulation(game, 2)
        simulation.reset(Key.of(0))
        for t in range(40):
            crowd = game.crowd(simulation.state)
            drive = game.discount * game.rewards(0, crowd)[..., 0] / temperature  # what a block pays next
            chance = drive.softmax(-1)[:, simulation.spec.group, 0].float()
            simulation.step((random.uniform(Key.of(1).fold("choice", t), simulation.ids) > chance).long())
        seen = simulation.measure()["dissimilarity"]
        expected = game.magnetisation(temperature)
        assert (expected > 0.5) == apart
        # Fluctuations of a magnetisation, with the susceptibility of these temperatures: below 5 in standard units.
        assert float((seen - expected).abs().max()) < 25 / 20_000**0.5


@pytest.mark.parametrize(("options", "said"), [({"blocks": 1}, "blocks must be int"), ({"lean": 2.0}, r"\[-1, 1\]")])
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Schelling(**options)
