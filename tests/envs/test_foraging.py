"""Foraging: who finds food where, what company does, how the patch moves, and that the model tells it as it is."""

from __future__ import annotations

import pytest
import torch

from mfmarl import random
from mfmarl.envs.foraging import Foraging
from mfmarl.errors import ConfigError
from mfmarl.inference import crowd
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key

COPIES = 20_000


def close(seen: torch.Tensor, expected: torch.Tensor, rows: int = COPIES) -> bool:
    error = (expected * (1 - expected) / rows).sqrt()
    return bool(((seen - expected).abs() <= 5 * error + 1e-9).all())


@pytest.mark.parametrize("company", ["none", "congestion", "cooperation"])
@pytest.mark.parametrize("lookout", [True, False])
def test_the_model_is_what_foragers_find(company, lookout):
    """Frequencies of food and glimpses, for every patch and place of mine, among others of given shares."""
    game = Foraging(num_agents=6, sites=3, company=company, lookout=lookout, capacity=0.4, move=0.0)
    theta = crowd.simplex(game.places, 2 * game.places)
    model = game.crowd_model(theta)
    ids, m = agent_ids(COPIES, 6), 1
    others = torch.searchsorted(theta[m].cumsum(0), random.uniform(Key.of(4), ids).double()).clamp(max=game.places - 1)
    first = game.reset(ids, Key.of(0))
    for patch in range(3):
        state = first._replace(patch=torch.full((COPIES,), patch))
        for place in range(game.places):
            action = others.clone()
            action[:, 0] = place
            after, reward = game.step(state, action, ids, Key.of(10 + patch * 5 + place))
            assert torch.equal(reward, after.food.float())
            food, glimpse = float(reward[:, 0].double().mean()), after.signal[:, 0].long()
            fed = model.A[1][1, patch, place]
            assert close(torch.tensor(food), fed[m] if fed.ndim else fed)
            shown = torch.nn.functional.one_hot(glimpse, 4).double().mean(0)
            assert close(shown, model.A[2][:, patch, place])


def test_food_for_a_share_is_divided_among_more_and_what_takes_a_share_is_not_had_by_less():
    ids = agent_ids(COPIES, 4)
    crowded = torch.zeros(COPIES, 4, dtype=torch.int64)
    for company, few, all_of_them in (("congestion", 1.0, 0.5), ("cooperation", 0.5, 1.0)):
        game = Foraging(num_agents=4, sites=2, rich=1.0, poor=0.0, company=company, capacity=0.5, move=0.0)
        state = game.reset(ids, Key.of(0))._replace(patch=torch.zeros(COPIES, dtype=torch.int64))
        _, reward = game.step(state, crowded, ids, Key.of(1))
        assert close(reward.double().mean(), torch.tensor(all_of_them), 4 * COPIES)
        alone = torch.ones_like(crowded)
        alone[:, 0] = 0
        _, reward = game.step(state, alone, ids, Key.of(2))
        assert close(reward[:, 0].double().mean(), torch.tensor(few))


def test_the_patch_moves_with_its_chance_to_any_other_site():
    game = Foraging(num_agents=1, sites=3, move=0.3)
    ids = agent_ids(COPIES, 1)
    state = game.reset(ids, Key.of(0))
    after, _ = game.step(state, torch.zeros(COPIES, 1, dtype=torch.int64), ids, Key.of(1))
    model = game.generative_model()
    for patch in range(3):
        rows = state.patch == patch
        seen = torch.bincount(after.patch[rows], minlength=3).double() / int(rows.sum())
        assert close(seen, model.B[0][:, patch], int(rows.sum()))


def test_an_observation_is_place_food_and_glimpse_as_the_model_numbers_them():
    game = Foraging(num_agents=30)
    simulation = Simulation(game, 4)
    simulation.reset(Key.of(0))
    timestep = simulation.step(random.integers(Key.of(1), simulation.ids, 5))
    state, obs = simulation.state, timestep.obs
    assert torch.equal(obs % 5, state.signal.long())
    assert torch.equal(obs // 5 % 2, state.food.long())
    assert torch.equal(obs // 10, state.place.long())
    # Nothing is shown but at the lookout, and nobody eats there.
    there = state.place == 4
    assert bool(((state.signal < 4) == there).all())
    assert not bool((state.food & there).any())


@pytest.mark.parametrize(
    ("options", "best"),
    [({}, 0.9), ({"company": "cooperation"}, 0.9), ({"company": "congestion", "capacity": 0.25}, 0.3)],
)
def test_a_crowd_that_knows_the_patch_reaches_the_bound_and_none_passes_it(options, best):
    game = Foraging(num_agents=100, **options)
    assert game.reference()["reward"].value == pytest.approx(best)
    simulation = Simulation(game, 200)
    simulation.reset(Key.of(0))
    game_still = simulation.state.patch
    spread = torch.arange(100) // 25  # a quarter at every site
    if options.get("company") == "congestion":
        action = spread.expand(200, 100)
    else:
        action = game_still.unsqueeze(-1).expand(200, 100)
    still = Foraging(num_agents=100, move=0.0, **options)
    _, reward = still.step(simulation.state, action, simulation.ids, Key.of(1))
    assert close(reward.double().mean(), torch.tensor(best), 20_000)


def test_foragers_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="must not feed better"):
        Foraging(rich=0.1, poor=0.5)
    with pytest.raises(ConfigError, match="company cannot be"):
        Foraging(company="congestoin")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 to 32 sites"):
        Foraging(sites=1)
