"""The minority game: who wins, what is remembered, coin-tossers' volatility, and that of agents who learn their seats."""

from __future__ import annotations

import itertools

import pytest
import torch

from mfmarl import random
from mfmarl.envs.minority_game import MinorityGame
from mfmarl.errors import ConfigError
from mfmarl.inference import crowd
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.statmech.replicas.minority import minority
from tests.statistical import beyond, statistical


@pytest.mark.parametrize("n", [1, 4, 5])
def test_the_smaller_side_wins_and_a_tie_pays_nothing(n):
    every = torch.tensor(list(itertools.product((0, 1), repeat=n)))
    ids = agent_ids(len(every), n)
    up = every.sum(1, keepdim=True)
    for payoff in ("sign", "linear"):
        game = MinorityGame(num_agents=n, payoff=payoff)
        state, reward = game.step(game.reset(ids, Key.of(0)), every, ids, Key.of(1))
        surplus = (2 * up - n).float()
        pull = surplus.sign() if payoff == "sign" else surplus / n
        assert torch.equal(reward, -(2 * every - 1) * pull)
        won = game.observe(state) // game.num_histories - 1
        assert torch.equal(won.float(), reward.sign())
        # Uniform play, by enumeration of every choice: what coin-tossers get.
        assert float(reward.double().mean()) == pytest.approx(game.coin_tossers_reward(), abs=1e-7)


def test_the_history_tells_which_sides_won():
    game = MinorityGame(num_agents=3, memory=2)
    simulation = Simulation(game)
    simulation.reset(Key.of(0))
    for action, won in (([1, 1, 0], 0), ([0, 0, 1], 1), ([0, 1, 0], 1)):
        before = int(simulation.state.history[0])
        timestep = simulation.step(torch.tensor([action]))
        assert int(timestep.obs[0, 0]) % 4 == (2 * before + won) % 4


def test_seats_answer_histories_and_stay_for_an_episode():
    game = MinorityGame(num_agents=50, memory=3, strategies=2)
    simulation = Simulation(game, 2)
    simulation.reset(Key.of(0))
    seats = simulation.state.seats.clone()
    assert seats.shape == (2, 50, 2, 8)
    for step in range(5):
        history = simulation.state.history.clone()
        action = random.integers(Key.of(step), simulation.ids, 2)
        simulation.step(action)
        for copy, agent in ((0, 7), (1, 33)):
            expected = seats[copy, agent, int(action[copy, agent]), int(history[copy])]
            assert bool(simulation.state.side[copy, agent]) == bool(expected)
    assert torch.equal(simulation.state.seats, seats)
    # Coins were thrown for every answer.
    answers = Simulation(MinorityGame(num_agents=10_000, strategies=2))
    answers.reset(Key.of(1))
    assert abs(float(answers.state.seats.double().mean()) - 0.5) < 5 * 0.5 / 160_000**0.5


@pytest.mark.parametrize(("n", "payoff"), [(101, "sign"), (100, "linear")])
@statistical(alpha=beyond(5, 6), bugs=("last-number-never", "pairs-share-noise"))
def test_coin_tossers_measure_what_the_reference_says(n, payoff):
    game, copies = MinorityGame(num_agents=n, payoff=payoff), 20_000
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(0))
    reward = simulation.step(random.integers(Key.of(1), simulation.ids, 2)).reward.double().mean(1)
    for name, known in game.reference().items():
        seen = reward if name == "reward" else simulation.measure()[name].double()
        assert abs(float(seen.mean()) - known.value) < 5 * float(seen.std()) / copies**0.5, name


@statistical(alpha=beyond(5, 80), bugs=("uniforms-lean", "last-number-never"))
def test_the_model_says_who_wins_in_crowds_of_every_share():
    copies = 20_000
    theta = crowd.simplex(2, 5)
    for n in (6, 7):
        game = MinorityGame(num_agents=n, memory=1)
        model = game.crowd_model(theta)
        assert model is not None
        ids = agent_ids(copies, n)
        for m in range(5):
            action = (random.uniform(Key.of(m), ids) < float(theta[m, 1])).long()
            for own in (0, 1):
                action[:, 0] = own
                state, _ = game.step(game.reset(ids, Key.of(0)), action, ids, Key.of(1))
                seen = torch.nn.functional.one_hot(game.observe(state)[:, 0] // 2, 3).double().mean(0)
                expected = model.A[0][:, own, m]
                error = (expected * (1 - expected) / copies).sqrt()
                assert bool(((seen - expected).abs() <= 5 * error + 1e-12).all()), (n, m, own)
            # The side that wins next, of a crowd that stays as it is.
            every = (random.uniform(Key.of(m).fold("all"), ids) < float(theta[m, 1])).long()
            after, _ = game.step(game.reset(ids, Key.of(0)), every, ids, Key.of(2))
            won = float(after.history.double().mean())
            chance = float(model.B[1][1, 0, m])
            assert abs(won - chance) <= 5 * (chance * (1 - chance) / copies) ** 0.5 + 1e-12


@pytest.mark.verify
@statistical(alpha=beyond(5, 200), bugs=("bits-lean", "steps-share-noise"))
def test_agents_who_each_learn_their_better_seat_have_the_volatility_of_replica_theory():
    """sigma^2/N at alpha = P/N about 1, random histories: scores of own seats, the best one played (Challet et al. 2000)."""
    n, copies, memory = 129, 8, 7
    game = MinorityGame(num_agents=n, payoff="linear", memory=memory, strategies=2, histories="random", horizon=None)
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(0))
    scores = torch.zeros(copies, n, 2)
    volatility = []
    for step in range(12_000):
        history = simulation.state.history
        answers = simulation.state.seats.gather(-1, history.view(-1, 1, 1, 1).expand(copies, n, 2, 1)).squeeze(-1)
        noise = 1e-6 * random.uniform(Key.of(1).fold(step), simulation.ids, 2)
        simulation.step((scores + noise).argmax(-1))
        surplus = (2 * simulation.state.side.sum(1) - n).float().view(-1, 1, 1)
        scores -= (2.0 * answers - 1) * surplus / n
        if step >= 6_000:
            volatility.append(simulation.measure()["volatility"].double())
    found = torch.stack(volatility).mean(0)
    known = minority(2**memory / n).volatility
    assert known == pytest.approx(
        MinorityGame(num_agents=n, payoff="linear", memory=memory, strategies=2, histories="random")
        .reference()["volatility"]
        .value
    )
    # Seats are drawn anew in every copy: the error is that between copies, and theory's is of order 1/N.
    assert abs(float(found.mean()) - known) < 5 * float(found.std()) / copies**0.5 + 2 / n


def test_games_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="0 .choose a side. or 2 to 64"):
        MinorityGame(strategies=1)
    with pytest.raises(ConfigError, match="do not fit in memory"):
        MinorityGame(num_agents=100_000, memory=16, strategies=2)
    with pytest.raises(ConfigError, match="payoff cannot be"):
        MinorityGame(payoff="sing")
