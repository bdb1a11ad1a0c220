"""The T-maze: its rules are its model, and looking is worth what theory says."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mfmarl.envs.t_maze import CENTRE, CUE, LEFT, MIDDLE, RIGHT, TMaze
from mfmarl.errors import ConfigError
from mfmarl.inference import reachable
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.envs.by_model import assert_rules_are_the_model
from tests.games.peers import ask
from tests.statistical import beyond, statistical


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, 4 * 2 * 4),
        ({"reward_probability": 0.8, "absorbing": False, "preference": 2.0, "cue_reliability": 0.7}, 4 * 2 * 4),
        ({"layout": "corridor"}, 5 * 2 * 5),
    ],
)
@statistical(alpha=beyond(5, 200), bugs=("uniforms-lean", "last-number-never"))
def test_the_rules_are_the_model(options, seen):
    assert assert_rules_are_the_model(TMaze(50, **options), steps=8) == seen


def test_one_look_at_a_cue_of_95_percent_tells_494632_millionths_of_a_nat():
    assert TMaze().value_of_cue() == pytest.approx(0.494632, abs=5e-7)  # ln 2 - H_2(.95)
    assert TMaze(cue_reliability=1.0).value_of_cue() == pytest.approx(math.log(2))
    assert TMaze(cue_reliability=0.5).value_of_cue() == pytest.approx(0, abs=1e-15)


def test_the_models_own_information_gain_is_the_value_of_the_cue():
    maze = TMaze(cue_reliability=0.95)
    cue = maze.generative_model().A[2][:, CUE].double()  # [3, 2], both sides as likely
    joint = cue / 2
    kept = joint > 0
    information = (joint[kept] * (joint / joint.sum(0) / joint.sum(1, keepdim=True))[kept].log()).sum()
    assert float(information) == pytest.approx(maze.value_of_cue(), abs=1e-12)


@pytest.mark.parametrize(("cue", "reward"), [(0.95, 1.0), (0.9, 0.8), (0.6, 1.0)])
def test_the_optimum_is_the_best_of_all_policies_of_two_moves(cue, reward):
    maze = TMaze(cue_reliability=cue, reward_probability=reward)
    # By hand: a first move, then for each of three cues a second one; the reward expected of each, side by side.
    model = maze.generative_model()
    arms = (model.C[1].unsqueeze(-1).unsqueeze(-1) * model.A[1]).sum(0)  # [place, side]
    moves = maze._moves

    def earned(first: int, second: tuple[int, ...]) -> float:
        total = 0.0
        for side, seen in itertools.product(range(2), range(3)):
            place = int(moves[CENTRE, first])
            chance = 0.5 * float(model.A[2][seen, place, side])
            total += chance * float(arms[place, side] + arms[int(moves[place, second[seen]]), side])
        return total

    best = max(earned(a, b) for a in range(4) for b in itertools.product(range(4), repeat=3))
    assert maze.reference()["reward"].value == pytest.approx(best / 2, abs=1e-12)
    assert best == pytest.approx(maze.preference * (2 * maze.chance() - 1), abs=1e-12)


def test_with_time_enough_it_pays_to_look_again():
    # Beyond some horizon the simple law "look once" is none, and no number is given for it.
    assert "looked" in TMaze(horizon=3).reference()
    long = TMaze(horizon=20)
    assert "looked" not in long.reference()
    assert long.reference()["reward"].value > long.preference * (2 * long.chance() - 1) * 19 / 20


def test_the_optimum_of_greedy_agents_bounds_warm_ones():
    maze = TMaze()
    cold, warm = maze.reference()["reward"], maze.reference(0.5)["reward"]
    assert (cold.kind, warm.kind) == ("optimum", "bound")
    assert cold.value == warm.value
    assert "won" not in maze.reference(0.5)


@statistical(alpha=beyond(5, 2), bugs=("uniforms-narrow", "uniforms-lean"))
def test_who_follows_the_cue_wins_as_often_as_theory_says():
    maze = TMaze(20_000, reward_probability=0.9)
    simulation = Simulation(maze, 4)
    simulation.reset(Key.of(0))
    seen = simulation.step(torch.full_like(simulation.ids, CUE))
    assert bool((seen.reward == 0).all())
    simulation.step(torch.where(seen.obs % 3 == 1, LEFT, RIGHT))
    won = float(simulation.measure()["won"].mean())
    w = maze.chance()
    assert w == pytest.approx(0.9 * 0.95 + 0.1 * 0.05)
    assert abs(won - w) < 5 * math.sqrt(w * (1 - w) / 80_000)
    assert bool((simulation.measure()["looked"] == 1).all())


def test_arms_hold_who_enters_and_doors_are_where_they_are():
    ids = agent_ids(1, 1)

    def walk(maze: TMaze, *places: int) -> list[int]:
        state, path = maze.reset(ids, Key.of(0)), []
        for t, place in enumerate(places):
            state, _ = maze.step(state, torch.full_like(ids, place), ids, Key.of(t))
            path.append(int(state.place))
        return path

    assert walk(TMaze(1), LEFT, CUE, RIGHT) == [LEFT, LEFT, LEFT]
    assert walk(TMaze(1, absorbing=False), LEFT, CUE, RIGHT) == [LEFT, CUE, RIGHT]
    by_corridor = walk(TMaze(1, layout="corridor"), LEFT, MIDDLE, CUE, RIGHT, MIDDLE)
    assert by_corridor == [CENTRE, MIDDLE, MIDDLE, RIGHT, RIGHT]


_PEER = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
from pymdp.envs.tmaze import BaseTMaze
maze = BaseTMaze(
    reward_probability=given["a"], cue_validity=given["v"], dependent_outcomes=True, cue_mode="separate",
    num_locations=given["places"], connectivity=given["connectivity"], has_middle=given["places"] == 5,
)
answer = {
    "A": [x.tolist() for x in maze.generate_A()[0]], "B": [x.tolist() for x in maze.generate_B()[0]],
    "D": [x.tolist() for x in maze.generate_D()],
}
"""


@pytest.mark.verify
@pytest.mark.parametrize(("layout", "connectivity"), [("open", "fully_connected"), ("corridor", "adjacent")])
def test_the_tables_are_pymdps(layout, connectivity):
    maze = TMaze(layout=layout, absorbing=False, reward_probability=0.9, cue_reliability=0.8)
    given = {"a": 0.9, "v": 0.8, "places": maze.num_places, "connectivity": connectivity}
    theirs, ours = ask(_PEER, given, needs=("pymdp",)), maze.generative_model()
    for name in "AD":
        for own, other in zip(getattr(ours, name), theirs[name], strict=True):
            torch.testing.assert_close(
                own, torch.tensor(other, dtype=torch.float64), rtol=0, atol=1e-7
            )  # JAX's float32
    place, side = (torch.tensor(x, dtype=torch.float64) for x in theirs["B"])
    assert torch.equal(ours.B[0], place)
    assert torch.equal(ours.B[1], side.squeeze(-1))


def test_who_sees_the_side_loses_nothing_by_not_looking():
    maze = TMaze()
    assert reachable.with_known_states(maze.generative_model(), 2) == pytest.approx(2 * maze.preference)


def test_a_picture_shows_the_agent_where_it_is():
    maze = TMaze(1)
    state = maze.reset(agent_ids(1, 1), Key.of(0))
    centre = maze.render(state)
    side = 256 // 5 + 1
    assert centre[2 * side, 2 * side].tolist() == [0, 114, 178]
    moved = state._replace(place=torch.full_like(state.place, CUE))
    assert maze.render(moved)[3 * side, 2 * side].tolist() == [0, 114, 178]


@pytest.mark.parametrize("wrong", [{"cue_reliability": 1.2}, {"reward_probability": -0.1}, {"horizon": 0}])
def test_options_out_of_bounds_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TMaze(**wrong)
