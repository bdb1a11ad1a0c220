"""A crowd on a ring: its rules by hand, its symmetry, and what theory says of its equilibrium."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from mfmarl.envs.crowd_modelling import CrowdModelling
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability, potential
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical


def _crowd(game: CrowdModelling) -> Crowd:
    return Crowd(game.start())


def test_a_step_and_a_push_go_round_the_ring() -> None:
    game = CrowdModelling(places=5)
    kernel = game.outcomes(0, _crowd(game)).dense().numpy()
    for s in range(5):
        for a, move in enumerate((-1, 0, 1)):
            expected = np.zeros(5)
            for push in (-1, 0, 1):
                expected[(s + move + push) % 5] += 1 / 3
            assert kernel[s, a] == pytest.approx(expected)


def test_many_places_move_by_the_same_law_as_few() -> None:
    few, many = CrowdModelling(places=256), CrowdModelling(places=257)
    assert type(few.outcomes(0, _crowd(few))) is not type(many.outcomes(0, _crowd(many)))
    dense = many.outcomes(0, _crowd(many)).dense()
    for move in (-1, 0, 1):
        row = dense[10, move + 1]
        assert row.nonzero().flatten().tolist() == [10 + move - 1, 10 + move, 10 + move + 1]
        assert row[10 + move].item() == pytest.approx(1 / 3)


def test_a_place_pays_its_nearness_less_the_crowd_and_a_move_costs_when_it_is_made() -> None:
    game = CrowdModelling(places=10)
    paid = game.paid(0, _crowd(game))[0]
    assert paid[0, 1].item() == pytest.approx(1 - 5 / 5 + math.log(10))
    assert paid[5, 1].item() == pytest.approx(1 + math.log(10))
    assert paid[7, 2].item() == pytest.approx(1 - 2 / 5 - 1 / 10 + math.log(10))
    assert paid[7, 0].item() == paid[7, 2].item()


def test_left_and_right_of_the_middle_are_the_same_at_the_equilibrium() -> None:
    game = CrowdModelling(places=11)  # an odd ring has a mirror: s -> 10 - s about place 5
    found = solve(game, MirrorDescent(rate=1.0), 400)
    assert float(found.exploitability) < 1e-3
    mu = flow(game, found.policy).mu[:, 0]
    assert torch.allclose(mu, mu.flip(-1), atol=1e-6)
    assert bool((mu[-1].diff()[:5] > 0).all()), "the nearer to the middle the fuller"


def test_two_solvers_come_to_one_crowd() -> None:
    """The game is strictly monotone: one flow is the equilibrium's (Perrin et al. 2020, section 3)."""
    game = CrowdModelling()
    descent = solve(game, MirrorDescent(rate=1.0), 400, 1e-9)
    play = solve(game, FictitiousPlay(), 400)
    assert float(play.exploitability) < 0.02
    assert torch.allclose(flow(game, descent.policy).mu, flow(game, play.policy).mu, atol=0.01)


def test_the_potential_rises_along_mirror_descent() -> None:
    game = CrowdModelling()
    solver = MirrorDescent(rate=0.2)
    state = solver.begin(game, uniform(game))
    heights = []
    for k in range(1, 30):
        path = flow(game, solver.policy(game, state))
        heights.append(float(potential(game, path)))  # type: ignore[arg-type]
        state = solver.step(game, state, k)
    assert all(b > a for a, b in itertools.pairwise(heights))


def test_an_indifferent_crowd_walks_to_the_middle() -> None:
    """Without aversion each only wants to be near: along the way there is nothing to gain, and the middle is fullest."""
    game = CrowdModelling(aversion=0.0, horizon=8)
    found = solve(game, FictitiousPlay(weight=1.0), 3, 1e-12)
    assert float(found.exploitability) < 1e-12  # one best response, whatever the crowd
    assert int(flow(game, found.policy).mu[-1, 0].argmax()) == 5


@statistical(alpha=beyond(5, 5), bugs=("uniforms-narrow", "uniforms-lean"))
def test_many_agents_are_the_limit() -> None:
    agents = 20_000
    game = CrowdModelling(num_agents=agents, horizon=6)
    simulation = Simulation(game, 1)
    timestep = simulation.reset(Key.of(3))
    path = flow(game, uniform(game))
    for t in range(5):
        noise = torch.rand(1, agents, generator=torch.Generator().manual_seed(t))
        timestep = simulation.step((noise * 3).long())
        expected = float((path.joint[t] * path.rewards[t]).sum())
        spread = float((path.joint[t] * (path.rewards[t] - expected) ** 2).sum()) ** 0.5
        # Counted shares fluctuate too: each adds at most S/N to -log mu.
        assert abs(float(timestep.reward.mean()) - expected) < 5 * (spread / agents**0.5 + 10 / agents)


@pytest.mark.parametrize(
    ("options", "told"), [({"places": 2}, "places must be int"), ({"floor": 0.0}, "floor must be float")]
)
def test_bad_options_are_refused(options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        CrowdModelling(**options)  # type: ignore[arg-type]


def test_in_a_single_step_all_that_is_to_gain_is_the_cost_of_moving() -> None:
    game = CrowdModelling(horizon=1)
    assert float(exploitability(game, uniform(game))) == pytest.approx(2 / 3 / 10)
