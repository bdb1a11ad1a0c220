"""Time averages: of a walk whose mean and error are known, and of learners that share a mind."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.envs.ising import Ising
from mfmarl.errors import ConfigError
from mfmarl.evaluation.averages import average, averages_while_learning, time_averages
from mfmarl.learning.episode import Episode
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.learning.mini import Arms, train
from tests.statistical import beyond, statistical


def test_an_average_is_the_mean_and_its_standard_error() -> None:
    found = average(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.value == 3.0
    assert found.error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert math.isnan(average(torch.tensor([1.0])).error)
    assert str(average(torch.tensor([1.0, 2.0]))) == "1.5000 +- 0.5000"


def test_time_averages_are_those_of_the_steps_after_the_burn_in() -> None:
    training = train(Ising(16), "random", evaluate=False, copies=3)
    episode = Episode(Simulation(Ising(16), 3), training.players, Key.of(5))
    found = time_averages(episode, 6, burn_in=4)
    again = Episode(Simulation(Ising(16), 3), training.players, Key.of(5))
    rewards, magnetisations = [], []
    for step in range(10):
        before, _, after, now = again.play()
        if step >= 4:
            rewards.append(after.reward.double().sum(1) / before.acting.sum(1))
            magnetisations.append(again.env.measure()["magnetisation"].double())
        again.go_on(after, now)
    for name, values in (("reward", rewards), ("magnetisation", magnetisations)):
        assert found[name] == pytest.approx(average(torch.stack(values).mean(0)), abs=1e-12)


def test_the_error_covers_the_truth_of_correlated_spins_as_often_as_it_says() -> None:
    """Random play renews half the lattice per step: <m> = 0 and <energy> = 0, within two errors in 95 of 100 trials."""
    rules = Ising(16)
    training = train(rules, "random", evaluate=False)
    hits = 0
    for trial in range(100):
        episode = Episode(Simulation(rules, 30), training.players, Key.of(trial))
        found = time_averages(episode, 8, burn_in=2)["energy"]
        hits += abs(found.value) < 2.045 * found.error  # t of 29 degrees of freedom
    assert 84 <= hits <= 100  # 95 - 5 sqrt(100 .95 .05)


def test_while_learning_the_averages_are_those_of_the_steps_that_learned() -> None:
    options = {"values": "table", "temperature": "1.5"}
    found = averages_while_learning(train(Ising(16), "mfq", options, evaluate=False, steps=45, copies=3), 12)
    again = train(Ising(16), "mfq", options, evaluate=False, steps=45, copies=3)
    energies, rewards = [], []
    for step in range(45):
        acting = again.episode.timestep.acting
        again.step()
        if step >= 12:
            energies.append(again.episode.env.measure()["energy"].double())
            rewards.append(again.episode.timestep.reward.double().sum(1) / acting.sum(1))
    assert again.tick == 45
    # 33 steps in blocks of 3 and 4: the mean of blocks is the mean of steps up to their uneven lengths.
    blocks = [torch.stack(energies[3 * b + (b * 3) // 10 : 3 * b + 3 + (b * 3 + 3) // 10]).mean(0) for b in range(10)]
    means = torch.stack(blocks)
    assert found["energy"].value == pytest.approx(float(means.mean()), abs=1e-9)
    assert found["energy"].error == pytest.approx(
        max(average(means.mean(1)).error, average(means.mean(0)).error), rel=1e-9
    )
    assert found["reward"].value == pytest.approx(float(torch.stack(rewards).mean()), abs=0.05)


@statistical(alpha=beyond(5, 20, samples=32), bugs=("uniforms-lean", "steps-share-noise"))
def test_further_measures_are_made_of_each_step_and_not_of_the_averages() -> None:
    def squares(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"square": found["magnetisation/signed"] ** 2}

    training = train(Ising(16), "random", evaluate=False, steps=2000, copies=4)
    found = averages_while_learning(training, 0, squares)
    # Sixteen independent spins: <m^2> = 1/16, where the square of the average would be next to nothing.
    assert abs(found["square"].value - 1 / 16) < 5 * found["square"].error
    assert found["square"].error < 0.002


def test_averages_of_nothing_and_across_beginnings_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one step, not 0"):
        time_averages(train(Arms(), "random", evaluate=False).episode, 0)
    with pytest.raises(ConfigError, match="give it horizon=None"):
        averages_while_learning(train(Arms(), "random", evaluate=False), 0)
    with pytest.raises(ConfigError, match="9 steps are left"):
        averages_while_learning(train(Arms(horizon=None), "random", evaluate=False, steps=20), 11)
