"""Susceptibilities of populations whose answer is known: free spins, a small torus by enumeration, a game of teams."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mfmarl.envs.ising import Ising
from mfmarl.errors import ConfigError, NumericFault
from mfmarl.learning import diagnosis
from mfmarl.learning.diagnosis import Number, diagnose, diagnose_run
from mfmarl.learning.players import Player
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.exact import enumeration
from tests.learning.mini import Arms, Lattice, train
from tests.statistical import beyond, statistical


def agrees(found: Number, exact: float) -> bool:
    return abs(found.value - exact) <= 5 * found.error and found.error < 0.2 * exact


class Knowing:
    """An agent of a run, its energies replaced by those of a function of what is felt."""

    def __init__(self, agent: Any, energy: Any) -> None:
        self._agent, self.energy = agent, energy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


@statistical(alpha=beyond(5, 200), bugs=("covariance-error-tiny", "jackknife-error-tiny"))
def test_free_spins_answer_as_they_fluctuate() -> None:
    """Everyone draws alone: chi = (1 - m^2)/T = dm/dh, m = tanh(h/T), with h from the pay."""
    gap, temperature = 0.6, 0.8
    training = train(Arms(64, pay=(0.0, gap)), "mfq", {"values": "table", "temperature": str(temperature)}, steps=1)
    player = training.players[0]
    dict(player.agent.named_parameters())["values.value"].data[..., 1] = gap
    env = Simulation(Arms(64, pay=(0.0, gap)), 8)
    found = diagnose(env, [player], Key.of(3), steps=600, warm_up=10)["all"]
    m = math.tanh(gap / 2 / temperature)
    assert found.direction == pytest.approx([-1, 1])
    assert agrees(found.order, m)
    assert agrees(found.susceptibility, (1 - m * m) / temperature)
    assert agrees(found.response, (1 - m * m) / temperature)
    assert agrees(found.violation, 1.0)
    assert found.agents == 64 and found.temperature == temperature
    assert found.autocorrelation_time == pytest.approx(1, abs=0.3)


@pytest.mark.verify
def test_a_torus_of_spins_has_its_enumerated_susceptibility_in_both_ways() -> None:
    """4 x 4 spins that know the rules, T = 2 in units of the coupling as the environment pays it."""
    temperature = 2.0
    rules = Ising(num_agents=16, shape=(4, 4))
    training = train(rules, "mfq", {"values": "table", "temperature": str(temperature)}, steps=1)
    player = training.players[0]

    # A spin is paid half of its coupling to its neighbours: heat bath of H = -(1/2) sum of pairs.
    def energy(obs: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        pull = 2 * (2 * field[..., 1] - 1)
        return torch.stack([pull, -pull], -1)

    known = Player("all", Knowing(player.agent, energy), player.slots, None)  # type: ignore[arg-type]
    found = diagnose(Simulation(rules, 16), [known], Key.of(1), steps=3000, warm_up=200)["all"]
    system = spins.ising(graphs.torus(4, 4), 16, 0.5)
    square = enumeration.average(system, 1 / temperature, lambda s: s.mean(-1).square())
    size = enumeration.average(system, 1 / temperature, lambda s: s.mean(-1).abs())
    exact = 16 * float(square) / temperature
    assert agrees(found.susceptibility, exact)
    assert agrees(found.response, exact)
    assert agrees(found.order, float(size))


def test_teams_are_diagnosed_apart() -> None:
    training = train(Arms(40, pay=(0.0, 0.0, 0.0), groups=("red", "blue")), "random", {}, steps=1)
    env = Simulation(Arms(40, pay=(0.0, 0.0, 0.0), groups=("red", "blue")), 4)
    found = diagnose(env, training.players, Key.of(0), steps=200, warm_up=0)
    assert set(found) == {"red", "blue"}
    for one in found.values():
        assert one.agents == 20 and sum(one.direction) == pytest.approx(0, abs=1e-6)
        assert one.gibbs["entropy"] == pytest.approx(math.log(3))
        # Three equal shares: the variance along c is |c|^2/3 N.
        assert agrees(one.susceptibility, sum(c * c for c in one.direction) / 3)


def test_what_cannot_be_diagnosed_is_refused() -> None:
    training = train(Arms(4), "mfq", {"values": "table", "temperature": "0"}, steps=1)
    with pytest.raises(ConfigError, match="temperature 0"):
        diagnose(Simulation(Arms(4), 2), training.players, Key.of(0))
    training = train(Arms(4), "mfq", {"values": "table"}, steps=1)
    with pytest.raises(ConfigError, match="at least 64 steps, not 10"):
        diagnose(Simulation(Arms(4), 2), training.players, Key.of(0), steps=10)
    dict(training.players[0].agent.named_parameters())["values.value"].data[..., 1] = 1e6
    with pytest.raises(NumericFault, match="never change"):
        diagnose(Simulation(Arms(4), 2), training.players, Key.of(0), steps=64)


def test_who_has_not_acted_yet_has_no_share() -> None:
    """In turns: all who have acted did the same, so that their share is whole although half have done nothing yet."""

    class Blank(Lattice):
        def standing(self, state: Any) -> Any:
            return None

    training = train(Blank(), "mfq", {"values": "table"}, steps=1)
    dict(training.players[0].agent.named_parameters())["values.value"].data[..., 1] = 1e6
    still = [torch.zeros(2)]
    shares, counts, _ = diagnosis._watch(
        Simulation(Blank(), 2), training.players, still, Key.of(0), 4, 0, lambda step: None
    )
    assert torch.equal(shares[0][..., 1], torch.ones(4, 2).double())
    assert counts == [(8 + 3 * 16) / 4]


def test_shares_that_stand_still_in_every_copy_are_no_fluctuations() -> None:
    """Spins that freeze as they begin differ from copy to copy, and never again."""
    training = train(Lattice(), "mfq", {"values": "table"}, steps=1)
    dict(training.players[0].agent.named_parameters())["values.value"].data[..., 1] = 1e6
    with pytest.raises(NumericFault, match="never change"):
        diagnose(Simulation(Lattice(), 2), training.players, Key.of(0), steps=64, warm_up=10)


def test_a_run_is_diagnosed_from_its_folder_and_keeps_the_answer(tmp_path: Path) -> None:
    config = RunConfig(
        Choice("ising", {"num_agents": 16}), {"all": Choice("mfq", {"values": "table"})}, RunOptions(steps=20)
    )
    run_in_folder(config, tmp_path / "run")
    done: list[int] = []
    found = diagnose_run(tmp_path / "run", steps=100, copies=2, watched=done.append)
    kept = json.loads((tmp_path / "run" / "diagnosis.json").read_text())
    assert kept["players"]["all"]["susceptibility"]["value"] == found["all"].susceptibility.value
    assert done == list(range(1, 601))  # three times 100 steps, and 100 before
    again = diagnose_run(tmp_path / "run", steps=100, copies=2)
    assert again == found
