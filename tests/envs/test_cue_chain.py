"""The chain of cues: its rules are its model, and reading both cues is worth what one can count."""

from __future__ import annotations

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from mfmarl.envs.cue_chain import CueChain
from mfmarl.errors import ConfigError
from mfmarl.inference import senses
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.envs.by_model import assert_rules_are_the_model
from tests.games.peers import ask

UP, DOWN, LEFT, RIGHT, STAY = range(5)


@pytest.mark.parametrize(
    "options",
    [
        {"rows": 3, "columns": 3, "first_cue": 1, "second_cues": (3, 4), "baits": (7, 8)},
        {
            "rows": 3, "columns": 3, "first_cue": 0, "second_cues": (0, 3, 4), "baits": (2, 5, 6),
            "cue_reliability": 0.7, "absorbing": False, "cheese": 1.0, "shock": -0.5, "start": 4,
        },
        {"rows": 1, "columns": 4, "first_cue": 1, "second_cues": (0,), "baits": (2, 3), "absorbing": False},
    ],
)  # fmt: skip
def test_the_rules_are_the_model(options):
    env = CueChain(40, **options)
    seen = assert_rules_are_the_model(env, steps=10)
    # From a bait that holds its agent the others cannot be reached: all else is seen with every action.
    model = env.generative_model()
    assert seen == model.num_states * 5


def test_many_outcomes_are_shown_as_vectors_and_few_as_numbers():
    few = CueChain(40)
    assert few.spec().observation_space == Discrete(35 * 5 * 3 * 3)
    many = CueChain(5, rows=12, columns=12, baits=(12, 26, 100))
    assert isinstance(many.spec().observation_space, Box)
    simulation = Simulation(many, 3)
    simulation.reset(Key.of(0))
    for move in (RIGHT, DOWN, RIGHT):
        timestep = simulation.step(torch.full_like(simulation.ids, move))
    model, state = many.generative_model(), simulation.state
    seen = senses.outcomes(model, simulation.spec.observation_space, timestep.obs)
    assert timestep.obs.unique().tolist() == [0, 1]
    for shown, truth in zip(seen, (state.cell, state.first, state.second, state.outcome), strict=True):
        assert torch.equal(shown.argmax(-1), truth)
        assert bool((shown.sum(-1) == 1).all())


def test_pymdps_grid_has_its_cues_where_pymdp_has_them():
    # CueChainingEnv of pymdp 1.0.4: rows and columns of its defaults.
    env = CueChain()
    places = {"start": (0, 0), "first_cue": (2, 0)}
    for name, (row, column) in places.items():
        assert getattr(env, name) == row * 7 + column
    assert env.second_cues == tuple(r * 7 + c for r, c in ((0, 2), (1, 3), (3, 3), (4, 2)))
    assert env.baits == tuple(r * 7 + c for r, c in ((1, 5), (3, 5)))


_PEER = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
from pymdp.envs.cue_chaining import CueChainingEnv
env = CueChainingEnv()
answer = {
    "A": [x.tolist() for x in env._generate_A()[0]], "B": [x.tolist() for x in env._generate_B()[0]],
    "D": [x.tolist() for x in env._generate_D(None, None)],
}
"""


@pytest.mark.verify
def test_the_tables_are_pymdps():
    theirs, ours = ask(_PEER, needs=("pymdp",)), CueChain(absorbing=False).generative_model()
    for name in "AD":
        for own, other in zip(getattr(ours, name), theirs[name], strict=True):
            assert torch.equal(own, torch.tensor(other, dtype=torch.float64))
    cell, place, cheese = (torch.tensor(x, dtype=torch.float64) for x in theirs["B"])
    assert torch.equal(ours.B[0], cell)
    assert torch.equal(ours.B[1], place.squeeze(-1))
    assert torch.equal(ours.B[2], cheese.squeeze(-1))


def _towards(cell: torch.Tensor, goal: torch.Tensor, columns: int = 7) -> torch.Tensor:
    """One move on a shortest way, sideways last, so that no bait but the one wanted is met."""
    dy, dx = goal // columns - cell // columns, goal % columns - cell % columns
    way = torch.where(dx > 0, RIGHT, torch.where(dx < 0, LEFT, STAY))
    return torch.where(dy > 0, DOWN, torch.where(dy < 0, UP, way))


def test_who_reads_both_cues_always_finds_the_cheese_in_the_moves_counted_by_hand():
    env = CueChain(500)
    model, simulation = env.generative_model(), Simulation(env, 2)
    timestep = simulation.reset(Key.of(0))
    goal = torch.full_like(simulation.ids, env.first_cue)
    total = torch.zeros(2, 500)
    for _ in range(env.horizon):
        cell, first, second, _ = senses.outcomes(model, simulation.spec.observation_space, timestep.obs).unbind(-1)
        goal = torch.where(first > 0, torch.tensor(env.second_cues)[(first - 1).clamp(min=0)], goal)
        goal = torch.where(second > 0, torch.tensor(env.baits)[(second - 1).clamp(min=0)], goal)
        timestep = simulation.step(_towards(cell, goal))
        total += timestep.reward
    measured = simulation.measure()
    assert bool((measured["cheese"] == 1).all())
    assert bool((measured["shock"] == 0).all())
    # By hand, from cue to cue to cheese: 2 + 4 moves, then 4 or 6 from the outer places, and 2 or 4 from the inner ones.
    moves = torch.tensor([[2 + 4 + abs(r - x) + abs(c - y) for x, y in ((1, 5), (3, 5))] for r, c in ((0, 2), (1, 3), (3, 3), (4, 2))])  # fmt: skip
    wanted = env.cheese * (env.horizon + 1 - moves)[simulation.state.context, simulation.state.bait]
    assert torch.equal(total, wanted.float())
    assert float(moves.double().mean()) == 10


def test_on_pymdps_grid_the_best_policy_passes_the_first_cue_by():
    # By hand: a walk past all places of the second cue is at them after 2, 4, 6 and 8 moves, and from there it is 4 or 6
    # (outer) or 2 or 4 (inner) moves to the cheese: 9 on average, one less than by way of the first cue.
    env = CueChain()
    moves = [2 + 4, 2 + 6, 4 + 2, 4 + 4, 6 + 2, 6 + 4, 8 + 4, 8 + 6]
    mean = sum(env.cheese * (env.horizon + 1 - m) for m in moves) / 8
    assert sum(moves) / 8 == 9
    assert env.reference()["reward"].value == pytest.approx(mean / env.horizon, abs=1e-12)


def test_without_cues_the_optimum_is_the_better_of_staying_away_and_gambling():
    # Cues that say nothing (reliability 1/2 of two): 2 with a half and -4 with a half is not worth it; 4 and -2 is.
    options = {"rows": 1, "columns": 5, "start": 2, "first_cue": 2, "second_cues": (1, 3), "baits": (0, 4)}
    blind = CueChain(1, **options, cue_reliability=0.5, horizon=6)
    assert blind.reference()["reward"].value == pytest.approx(0, abs=1e-12)
    bold = CueChain(1, **options, cue_reliability=0.5, horizon=6, cheese=4.0, shock=-2.0)
    assert bold.reference()["reward"].value == pytest.approx((4 - 2) / 2 * 5 / 6, abs=1e-12)


def test_a_bait_holds_who_steps_on_it_only_where_it_does():
    ids = agent_ids(1, 1)
    for absorbing, end in ((True, 1), (False, 0)):
        env = CueChain(1, rows=1, columns=3, first_cue=0, second_cues=(0,), baits=(1, 2), absorbing=absorbing)
        state = env.reset(ids, Key.of(0))
        for t, move in enumerate((RIGHT, LEFT)):
            state, reward = env.step(state, torch.full_like(ids, move), ids, Key.of(t))
        assert int(state.cell) == end
        assert (float(reward) != 0) == absorbing


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"first_cue": 35}, "first_cue names the cell 35"),
        ({"baits": (1,)}, "at least two"),
        ({"baits": (1, 1)}, "different"),
        ({"second_cues": ()}, "at least one"),
        ({"start": 12}, "begin elsewhere"),
    ],
)
def test_grids_that_do_not_fit_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        CueChain(**wrong)
