"""The prisoner's dilemma of a crowd: payoffs by whom one meets, its equilibria, and the model of a player."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.envs.prisoners_dilemma import PrisonersDilemma
from mfmarl.errors import ConfigError
from mfmarl.inference import crowd
from mfmarl.inference.expected_free_energy import of_beliefs
from mfmarl.inference.objective import Objective
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical

MATRIX = {(0, 0): 1.0, (0, 1): 5.0, (1, 0): 0.0, (1, 1): 3.0}  # P, T, S, R


def test_everyone_meets_everyone_and_is_paid_the_mean_of_the_matrix():
    game = PrisonersDilemma(num_agents=6, meetings=0)
    choice = torch.tensor([[1, 0, 1, 1, 0, 0]])
    ids = agent_ids(1, 6)
    _, reward = game.step(game.reset(ids, Key.of(0)), choice, ids, Key.of(1))
    for i in range(6):
        met = [MATRIX[int(choice[0, i]), int(choice[0, j])] for j in range(6) if j != i]
        assert float(reward[0, i]) == pytest.approx(sum(met) / 5)
    state, _ = game.step(game.reset(ids, Key.of(0)), choice, ids, Key.of(1))
    assert float(game.measure(state)["welfare"][0]) == pytest.approx(float(reward.mean()))


@statistical(alpha=beyond(5, 8), bugs=("numbers-lean", "steps-share-noise"))
def test_those_who_are_met_are_a_fair_sample_of_the_others():
    game, copies = PrisonersDilemma(num_agents=5, meetings=3), 20_000
    ids = agent_ids(copies, 5)
    choice = torch.tensor([1, 1, 0, 0, 0]).expand(copies, 5)
    state, reward = game.step(game.reset(ids, Key.of(0)), choice, ids, Key.of(1))
    for i, others in ((0, 1 / 4), (4, 2 / 4)):
        seen = torch.bincount(state.met[:, i].long(), minlength=4).double() / copies
        expected = torch.tensor([math.comb(3, n) * others**n * (1 - others) ** (3 - n) for n in range(4)])
        error = (expected * (1 - expected) / copies).sqrt()
        assert bool(((seen - expected).abs() < 5 * error).all())
    # What one sees determines what one is paid, by the table that the model has.
    paid = game.payoffs().flatten()[game.observe(state)]
    torch.testing.assert_close(paid.float(), reward)


def test_defection_is_better_whatever_the_others_do_and_worse_when_all_do():
    model = PrisonersDilemma().crowd_model(crowd.simplex(2, 9))
    assert model is not None
    for m in range(9):
        q = torch.nn.functional.one_hot(torch.tensor(m), 9).double()
        utility = [
            float(of_beliefs(model, (own, q), objective=Objective("none", normalise=False)).pragmatic)
            for own in torch.eye(2, dtype=torch.float64)
        ]
        share = float(crowd.simplex(2, 9)[m, 1])
        assert utility[0] == pytest.approx(share * 5 + (1 - share) * 1, abs=1e-12)
        assert utility[1] == pytest.approx(share * 3, abs=1e-12)
    known = PrisonersDilemma().reference()
    assert known["reward"].value == 1.0
    assert known["cooperation"].value == 0.0


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("meetings", [0, 4])
@statistical(alpha=beyond(5, 12), bugs=("uniforms-lean", "pairs-share-noise"))
def test_a_crowd_at_its_logit_equilibrium_measures_what_the_reference_says(temperature, meetings):
    game, copies = PrisonersDilemma(num_agents=7, meetings=meetings), 20_000
    p = game.cooperation(temperature)
    lost = p * (5 - 3) + (1 - p) * (1 - 0)
    assert p == pytest.approx(1 / (1 + math.exp(lost / temperature)), abs=1e-12)
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(0))
    reward = simulation.step((random.uniform(Key.of(1), simulation.ids) < p).long()).reward.double().mean(1)
    for name, known in game.reference(temperature).items():
        seen = reward if name == "reward" else simulation.measure()[name].double()
        assert abs(float(seen.mean()) - known.value) < 5 * float(seen.std()) / copies**0.5, name


def test_what_is_no_dilemma_is_refused():
    with pytest.raises(ConfigError, match="temptation > reward > punishment > sucker"):
        PrisonersDilemma(temptation=2.0)
    with pytest.raises(ConfigError, match="at least 2 players"):
        PrisonersDilemma(num_agents=1)
