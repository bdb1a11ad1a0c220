"""The aliased maze: its rules are its model, and its optimum is the one counted by hand."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.aliased_grid import AliasedGrid
from mfmarl.errors import ConfigError
from mfmarl.inference import reachable
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.envs.by_model import assert_rules_are_the_model
from tests.statistical import beyond, statistical

UP, DOWN, LEFT, RIGHT = range(4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"slip": 0.3, "misread": 0.2, "preference": 2.0},
        {"rows": ("aSb", "#.G", "Sac"), "symbols": "signs", "misread": 0.1},
        {"rows": (".G",), "symbols": "signs", "misread": 0.5},
    ],
)
@statistical(alpha=beyond(5, 200), bugs=("uniforms-lean", "last-number-never"))
def test_the_rules_are_the_model(options):
    env = AliasedGrid(50, **options)
    assert assert_rules_are_the_model(env, steps=20) == env.generative_model().num_states * 4


def test_the_cheese_maze_has_eleven_cells_that_look_like_six_and_a_goal():
    # McCallum's seven observations: six kinds of walls, and the goal apart.
    model = AliasedGrid().generative_model()
    assert model.sizes == (11,)
    assert model.outcomes == (6, 2)
    look = model.A[0].argmax(0).tolist()
    # Row by row: the corners, the two between, the fork; then corridors; then their ends, the goal's as well.
    assert look[1] == look[3]
    assert len(set(look[:5])) == 4
    assert look[5] == look[6] == look[7]
    assert look[8] == look[9] == look[10]
    assert len(set(look)) == 6
    assert model.A[1][1].nonzero().flatten().tolist() == [9]


def test_the_cheese_is_found_in_4_3_steps_by_who_remembers_and_in_3_9_by_who_sees():
    # By hand: the ten starts are 6, 5, 4, 3, 2, 1, 3, 4, 5, 6 steps away, 3.9 on average. Who cannot tell left from right
    # between corner and fork loses 2 steps in one of 10 starts, who wakes in a corridor goes up first: 2 more in another.
    # Then one more step sets it down again.
    steps = 4000
    model = AliasedGrid().generative_model()
    most, seeing = reachable.optimum(model, steps), reachable.with_known_states(model, steps)
    assert most is not None
    assert most / steps == pytest.approx(1 / 5.3, abs=1 / steps)
    assert seeing / steps == pytest.approx(1 / 4.9, abs=1 / steps)


@statistical(alpha=beyond(5, 10), bugs=("numbers-lean", "last-number-never"))
def test_the_goal_is_paid_and_sets_down_anywhere_but_on_itself():
    env = AliasedGrid(4000)
    ids = agent_ids(1, 4000)
    state = env.reset(ids, Key.of(0))
    fork = env.floor.lies.tolist().index([1, 2])
    state = state._replace(cell=torch.full_like(ids, fork))
    state, reward = env.step(state, torch.full_like(ids, DOWN), ids, Key.of(1))
    assert bool((reward == 1).all())
    assert bool((env.observe(state) % 2 == 1).all())
    state, reward = env.step(state, torch.full_like(ids, UP), ids, Key.of(2))
    count = torch.bincount(state.cell[0], minlength=11)
    assert int(count[9]) == 0
    others = torch.cat([count[:9], count[10:]]).double()
    assert bool(((others - 400).abs() < 5 * (4000 * 0.1 * 0.9) ** 0.5).all())
    assert bool((reward == 0).all())


@statistical(alpha=beyond(5), bugs=("numbers-lean", "steps-share-noise"))
def test_who_goes_by_the_walls_alone_earns_the_mean_that_its_chain_has():
    # A memoryless rule on the cheese maze, and its reward by powers of the model's own matrix.
    env = AliasedGrid(2000, horizon=40)
    model = env.generative_model()
    look, rule = model.A[0].argmax(0), torch.zeros(6, dtype=torch.int64)
    for cell, move in ((0, RIGHT), (1, RIGHT), (2, DOWN), (4, LEFT), (5, DOWN), (8, UP)):
        rule[look[cell]] = move
    moves = rule[look]
    chain = model.B[0][:, torch.arange(11), moves]
    mu, wanted = model.D[0], 0.0
    for _ in range(40):
        mu = chain @ mu
        wanted += float(mu[9]) / 40
    simulation = Simulation(env, 5)
    timestep, got = simulation.reset(Key.of(3)), torch.zeros(5, 2000)
    for _ in range(40):
        timestep = simulation.step(rule[timestep.obs // 2])
        got += timestep.reward / 40
    assert 0.001 < wanted < 0.1  # many are caught going to and fro
    error = float(got.std()) / 10_000**0.5
    assert abs(float(got.mean()) - wanted) < 5 * error


def test_marked_starts_are_the_only_ones_and_slips_go_sideways_only():
    env = AliasedGrid(3000, rows=("...", ".S.", "..G"), slip=1.0)
    ids = agent_ids(1, 3000)
    state = env.reset(ids, Key.of(0))
    assert bool((state.cell == 4).all())
    state, _ = env.step(state, torch.full_like(ids, UP), ids, Key.of(1))
    assert sorted(set(state.cell.flatten().tolist())) == [3, 5]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"map": "moon"}, "no map 'moon'"),
        ({"rows": ("...", "..G.")}, "equally long"),
        ({"rows": ("...",)}, "needs a goal"),
        ({"rows": ("GG",)}, "a cell that is none"),
        ({"rows": ("G##",)}, "2 to 1000 cells"),
    ],
)
def test_maps_that_cannot_be_played_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        AliasedGrid(**wrong)
