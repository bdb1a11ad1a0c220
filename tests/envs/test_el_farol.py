"""El Farol: its equilibria in the limit, of N exactly, and at a temperature; what N agents who play it are paid."""

from __future__ import annotations

import itertools

import pytest
import torch

from mfmarl import random
from mfmarl.envs.el_farol import ElFarol
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability
from mfmarl.games.reference import quantal_response
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical


def going(game: ElFarol, p: float) -> torch.Tensor:
    return torch.tensor([1 - p, p], dtype=torch.float64).expand(game.horizon, 1, 2, 2).clone()


@pytest.mark.parametrize("capacity", [0.5, 0.6, 0.13])
def test_in_the_limit_the_bar_is_just_full_and_any_other_attendance_can_be_exploited(capacity):
    game = ElFarol(capacity=capacity)
    assert float(exploitability(game, going(game, capacity))) == pytest.approx(0, abs=1e-12)
    # Too few by .1: staying away costs .1 an evening to the share that does.
    assert game.horizon is not None
    known = game.horizon * 0.1 * (1 - capacity + 0.1)
    assert float(exploitability(game, going(game, capacity - 0.1))) == pytest.approx(known)


@pytest.mark.parametrize(("n", "capacity"), [(2, 0.6), (5, 0.5), (7, 0.3)])
def test_going_pays_n_agents_nothing_in_their_equilibrium_by_enumeration(n, capacity):
    game = ElFarol(num_agents=n, capacity=capacity, stake=2.0)
    p = game.attendance()
    assert 0 < p < 1
    others = torch.tensor(list(itertools.product([0, 1], repeat=n - 1)))
    weight = torch.where(others == 1, p, 1 - p).double().prod(-1)
    ids = agent_ids(len(others), n)
    first = torch.ones(len(others), 1, dtype=torch.int64)
    _, reward = game.step(game.reset(ids, Key.of(0)), torch.cat([first, others], 1), ids, Key.of(1))
    assert float(weight @ reward[:, 0].double()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_logit_equilibrium_of_the_limit_is_the_quantal_response_of_the_game(temperature):
    game = ElFarol()
    solved = quantal_response(game, temperature)
    assert solved.policy[..., 1].min() == pytest.approx(game.attendance(temperature, limit=True), abs=1e-6)
    assert solved.policy[..., 1].max() == pytest.approx(game.attendance(temperature, limit=True), abs=1e-6)
    near = ElFarol(num_agents=10**9)
    assert near.attendance(temperature) == pytest.approx(near.attendance(temperature, limit=True), abs=1e-8)


@pytest.mark.parametrize("temperature", [0.0, 0.2])
@statistical(alpha=beyond(5, 6), bugs=("uniforms-lean", "pairs-share-noise"))
def test_a_crowd_at_its_equilibrium_measures_what_the_reference_says(temperature):
    game, copies = ElFarol(num_agents=11), 20_000
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(0))
    action = (random.uniform(Key.of(1), simulation.ids) < game.attendance(temperature)).long()
    reward = simulation.step(action).reward.double().mean(1)
    for name, value in game.reference(temperature).items():
        seen = reward if name == "reward" else simulation.measure()[name].double()
        assert abs(float(seen.mean()) - value.value) < 5 * float(seen.std()) / copies**0.5, name


def test_coin_tossers_in_the_minority_game_have_volatility_one():
    # At infinite temperature p = 1/2: 4 N Var(x) = 1.
    game = ElFarol(num_agents=101, capacity=0.5)
    assert game.reference(1e9)["volatility"].value == pytest.approx(1, abs=1e-6)


def test_one_guest_alone_stays_at_home_and_few_do_not_fill_a_bar_for_all():
    assert ElFarol(num_agents=1).attendance() == 0
    assert ElFarol(num_agents=3, capacity=0.1).attendance() == 0
    assert ElFarol(num_agents=3, capacity=0.1).attendance(1e-4) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "said"), [({"capacity": 1.0}, "capacity must be float"), ({"stake": 0.0}, "stake must be float")]
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        ElFarol(**options)
