"""The agent that plays the mean-field equilibrium of expected free energy of a game whose rules it is given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mfmarl.agents.free_energy_equilibrium import FreeEnergyEquilibrium
from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.contraction import Contraction
from mfmarl.envs.crowd_modelling import CrowdModelling
from mfmarl.envs.crowd_modelling_2d import CrowdModelling2d
from mfmarl.envs.ising import Ising
from mfmarl.envs.lockdown import Lockdown
from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import ConfigError
from mfmarl.games import exploitability
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.reference import means
from mfmarl.inference import equilibrium
from mfmarl.learning.build import known_answers
from mfmarl.learning.episode import Episode
from mfmarl.learning.limit import limit_policy
from mfmarl.learning.training import Training
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.learning.mini import finish, train


def begin(game: Any, options: dict[str, Any] | None = None, **run: Any) -> Training:
    settings = {"steps": 60, "report_every": 10, "evaluate": False, "exploitability": "off", **run}
    return train(game, "free_energy_equilibrium", options or {}, **settings)


def agent_of(training: Training) -> FreeEnergyEquilibrium:
    agent = training.players[0].agent
    assert isinstance(agent, FreeEnergyEquilibrium)
    return agent


@pytest.mark.parametrize("habit", [(), (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("method", equilibrium.METHODS)
def test_its_energy_is_the_expected_free_energy_of_the_equilibrium(habit, method):
    """E = -g - T log E and its limit policy the equilibrium's; fictitious play is still on its way."""
    game = BeachBar(num_agents=10)
    training = begin(game, {"temperature": "0.5", "habit": list(habit), "method": method}, steps=120)
    rows = finish(training)
    found = equilibrium.solve(game, 2.0, habit or None)
    near = 0.02 if method == "fictitious_play" else 1e-5
    agent = agent_of(training)
    views = torch.stack([game.views(t, game.start())[0] for t in range(3)]).view(1, 12, -1)
    energy = agent.energy(views, torch.zeros(1, 12, 0)).view(3, 1, 4, 3)
    prior = equilibrium.habits(game, habit or None)
    assert torch.allclose(energy.double(), -(found.values.q + 0.5 * prior.log()), atol=near)
    assert torch.allclose(limit_policy(game, training.players), found.policy, atol=near)
    if method != "fictitious_play":
        assert rows[-1]["all/regularised"] < 1e-9
        assert rows[-1]["all/exploitability"] == pytest.approx(float(found.exploitability), abs=1e-4)
        assert rows[-1]["all/population_free_energy"] == pytest.approx(float(found.free_energy), abs=1e-4)
        assert rows[-1]["all/spectral_radius"] == pytest.approx(float(found.spectral_radius), rel=1e-3)


def test_curves_of_training_show_its_iterations():
    """The free energy falls from row to row, and the gap to the judge's own exploitability is none."""
    game = CrowdModelling(num_agents=10, horizon=5)
    options = {"temperature": "0.7", "weight": 0.05}
    rows = finish(begin(game, options, steps=60, report_every=10, exploitability="auto"))
    energies = [row["all/population_free_energy"] for row in rows]
    assert energies == sorted(energies, reverse=True)
    assert energies[0] > energies[-1] + 0.03
    for row in rows[-2:]:
        assert row["all/exploitability"] == pytest.approx(row["limit/exploitability"], rel=0.1)


def test_solved_beforehand_it_acts_by_the_equilibrium_from_the_first_step():
    game = BeachBar(num_agents=10)
    training = begin(game, {"beforehand": 200})
    found = equilibrium.solve(game, 1.0)
    assert torch.allclose(limit_policy(game, training.players), found.policy, atol=1e-5)


@pytest.mark.parametrize(
    "game",
    [
        BeachBar(num_agents=4, places=9, horizon=70),  # time as a number
        CrowdModelling2d(num_agents=4, size=9, horizon=3),  # places as coordinates
        BeachBar(num_agents=4, places=5, sight="crowd"),
        Contraction(num_agents=4),
    ],
    ids=["long", "wide", "crowd", "stationary"],
)
def test_it_reads_time_and_state_from_what_it_sees(game):
    agent = agent_of(begin(game))
    world = Simulation(game, 6)
    timestep = world.reset(Key.of(1))
    for t in range(game.horizon or 3):
        state = world.state.state
        number = (0 if game.horizon is None else t) * game.num_states + state
        assert torch.equal(agent.sight(timestep.obs), number)
        legal = timestep.legal
        timestep = world.step(torch.zeros_like(state) if legal is None else legal.int().argmax(-1))


@pytest.mark.parametrize("sharing", ["all", "group", "none"])
def test_every_group_plays_its_part_of_one_equilibrium(sharing):
    game = PredatorPrey(num_agents=9, size=2, horizon=3)
    training = begin(game, {"temperature": "2", "beforehand": 150}, sharing=sharing)
    found = equilibrium.solve(game, 0.5)
    assert found.settled
    episode = Episode(Simulation(game, 5), training.players, Key.of(2))
    for t in range(3):
        for player, seen, felt in zip(training.players, episode.seen, episode.felt, strict=True):
            agent, slots = player.agent, player.slots
            p = agent.by_copy(
                torch.softmax(-agent.energy(agent.by_mind(seen.obs[:, slots]), agent.by_mind(felt)) / 2, -1), 5
            )
            here = episode.env.state.state  # type: ignore[attr-defined]
            state, group = here[:, slots], game.spec().group[slots].expand(5, -1)
            assert torch.allclose(p.double(), found.policy[t, group, state], atol=1e-5)
        _, _, after, now = episode.play()
        episode.go_on(after, now)


def test_finitely_many_earn_and_stand_as_infinitely_many_do():
    """2,000 agents in 40 copies: reward and shares of the equilibrium, five standard errors and what is of order 1/N."""
    game = BeachBar(num_agents=2000)
    training = begin(game, {"temperature": "0.5", "beforehand": 200})
    found = equilibrium.solve(game, 2.0)
    episode = Episode(Simulation(game, 40), training.players, Key.of(3))
    reward, shares = [], []
    for _ in range(3):
        _, _, after, now = episode.play()
        reward.append(after.reward.double().mean(-1))
        shares.append(episode.env.measure()["share/2"].double())
        episode.go_on(after, now)
    known = means(game, found.flow)
    for seen, name in ((reward, "reward"), (shares, "share/2")):
        each = torch.stack(seen).mean(0)
        error = float(each.std()) / math.sqrt(40)
        assert float(each.mean()) == pytest.approx(known[name], abs=5 * error + 3 / 2000), name


def test_it_follows_a_temperature_that_falls():
    """Annealed to .02, where it would need hundreds of iterations from hot: the gap is that of a cold equilibrium."""
    game = BeachBar(num_agents=10)
    rows = finish(begin(game, {"temperature": "geometric(2, 0.02)", "iterations": 2}, steps=150, report_every=50))
    assert rows[-1]["all/temperature"] == pytest.approx(0.02, rel=0.05)
    assert rows[-1]["all/exploitability"] < 0.1 < rows[0]["all/exploitability"]
    assert rows[-1]["all/spectral_radius"] > 1


def test_it_says_when_undamped_iteration_could_not_settle(caplog):
    for temperature, warned in (("0.3", True), ("5", False)):
        caplog.clear()
        training = begin(BeachBar(num_agents=10), {"temperature": temperature, "beforehand": 100})
        assert ("without damping" in caplog.text) == warned
        assert (agent_of(training).told != "") == warned


def test_a_target_entropy_is_approached():
    options = {"temperature": "entropy(0.9)"}
    rows = finish(begin(BeachBar(num_agents=10, horizon=1), options, steps=200, report_every=50))
    away = [abs(row["gibbs/entropy"] - 0.9) for row in rows]
    assert away == sorted(away, reverse=True)
    assert away[-1] < away[0] - 0.005


def test_what_is_known_of_a_game_without_potential_is_told_without_one():
    rows = finish(begin(SusceptibleInfected(num_agents=10, horizon=4), steps=10))
    assert "all/population_free_energy" not in rows[-1]
    assert rows[-1]["all/regularised"] >= 0


@pytest.mark.parametrize(
    ("game", "options", "says"),
    [
        (Ising(16), {}, "needs the rules of a mean-field game"),
        (Lockdown(num_agents=9), {}, "common noise"),
        (BeachBar(num_agents=9), {"temperature": "0"}, "temperature above 0"),
        (BeachBar(num_agents=9), {"temperature": "linear(1, 0)"}, "temperature above 0"),
        (BeachBar(num_agents=9), {"habit": [1.0]}, "A habit weighs 3 actions"),
        (BeachBar(num_agents=9), {"method": "newton"}, "method"),
    ],
)
def test_what_it_cannot_play_is_refused_in_one_sentence(game, options, says):
    with pytest.raises(ConfigError, match=says) as refusal:
        begin(game, options)
    assert "\n" not in str(refusal.value)


def test_its_gap_is_that_of_the_games_themselves():
    """With a uniform habit the number it reports is the entropy-regularised exploitability."""
    game: MeanFieldGame = BeachBar(num_agents=10)
    training = begin(game, {"temperature": "1", "weight": 0.2}, steps=4, report_every=1)
    before = limit_policy(game, training.players)
    row = next(iter(training.rows()))
    assert row["all/regularised"] == pytest.approx(float(exploitability.regularised(game, before, 1.0)), rel=1e-5)


def test_its_report_is_held_against_its_own_law() -> None:
    """Relative entropy to a habit counts later steps too: another equilibrium than that of agents who draw by exp(Q / T)."""
    training = train(
        BeachBar(num_agents=10), "free_energy_equilibrium", {"temperature": "0.5"}, steps=60, report_every=60
    )
    row = list(training.rows())[-1]
    own = known_answers(training.episode.env, training.players)["limit/exploitability"]
    assert "expected free energy" in own.source
    assert row["limit/exploitability"] == pytest.approx(own.value, abs=1e-4)
    others = known_answers(training.episode.env, train(BeachBar(num_agents=10), "mfq", {"temperature": "0.5"}).players)
    assert others["limit/exploitability"].value != pytest.approx(own.value, abs=1e-3)
