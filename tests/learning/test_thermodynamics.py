"""Energy, entropy, free energy and heat capacity of a population: those of its agents' Gibbs distributions."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.learning.thermodynamics import thermodynamics
from mfmarl.statmech import gibbs
from tests.learning.mini import Arms, Corridor, Lattice, finish, train

NAMES = ("energy", "entropy", "free_energy", "heat_capacity")


def test_a_table_of_known_values_has_the_two_level_systems_answers() -> None:
    training = train(Arms(8, pay=(0.0, 1.0)), "mfq", {"values": "table", "temperature": "0.5"}, steps=1)
    player = training.players[0]
    with torch.no_grad():
        dict(player.agent.named_parameters())["values.value"][..., 1] = 1.0  # Q = (0, 1): a two-level system with gap 1
    found = thermodynamics(player.agent, training.episode.timestep, training.episode.felt[0])
    p = 1 / (1 + math.exp(-2.0))
    assert float(found["energy"]) == pytest.approx(-p, rel=1e-6)
    assert float(found["entropy"]) == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-6)
    assert float(found["free_energy"]) == pytest.approx(-0.5 * math.log(1 + math.exp(2.0)), rel=1e-6)
    assert float(found["heat_capacity"]) == pytest.approx(4 * p * (1 - p), rel=1e-5)  # Schottky's


@pytest.mark.parametrize("agent", ["mfq", "iql", "mfac", "iac", "mfppo", "ippo", "random"])
def test_every_row_of_every_learner_holds_them(agent: str) -> None:
    rows = finish(train(Arms(6), agent, {}, steps=4, report_every=2))
    for row in rows:
        assert all(math.isfinite(row[f"gibbs/{name}"]) for name in NAMES)
        # F = E - T H, whatever the agent.
        legendre = row["gibbs/energy"] - row["all/temperature"] * row["gibbs/entropy"]
        assert row["gibbs/free_energy"] == pytest.approx(legendre, abs=1e-4)


def test_teams_have_their_own_and_only_those_who_act_count() -> None:
    row = finish(train(Arms(6, groups=("red", "blue")), "mfq", {}, steps=2, report_every=2))[-1]
    assert {f"gibbs/{name}/{team}" for name in NAMES for team in ("red", "blue")} <= set(row)
    training = train(Lattice(risk=0.03), "mfq", {"values": "table"}, steps=3, report_every=3)
    finish(training)
    player, timestep = training.players[0], training.episode.timestep
    felt = training.episode.felt[0]
    found = thermodynamics(player.agent, timestep, felt)
    energy = player.agent.energy(player.agent.by_mind(timestep.obs), player.agent.by_mind(felt))[0]
    acting = timestep.acting.flatten()
    assert 0 < int(acting.sum()) < acting.numel()
    assert float(found["entropy"]) == pytest.approx(float(gibbs.entropy(energy[acting], 1.0).mean()), rel=1e-6)
    silent = timestep._replace(acting=torch.zeros_like(timestep.acting))
    assert thermodynamics(player.agent, silent, felt) == {}


def test_what_may_not_be_done_has_no_share_in_the_entropy() -> None:
    training = train(Corridor(4), "mfq", {"values": "table"}, steps=1)
    player, timestep = training.players[0], training.episode.timestep
    legal = torch.tensor([True, False]).expand(*timestep.acting.shape, 2)
    found = thermodynamics(player.agent, timestep._replace(legal=legal), training.episode.felt[0])
    assert float(found["entropy"]) == 0.0
