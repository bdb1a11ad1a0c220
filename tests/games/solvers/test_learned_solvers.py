"""What every solver that learns from samples promises: a step is a function of its state, alone or in a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from mfmarl.envs.lockdown import Lockdown
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.deep_fictitious_play import DeepFictitiousPlay
from mfmarl.games.solvers.deep_mirror_descent import DeepMirrorDescent
from mfmarl.games.solvers.deep_ppo import DeepPPO
from mfmarl.games.solvers.sampled_trajectory import SampledTrajectory
from mfmarl.games.solvers.two_timescales import ControlQLearning, GameQLearning
from tests.games.mini import Market, Seasonal, Teams, Tiny, some_policy

SMALL: dict[str, Any] = {"hidden": (16,), "agents": 20, "length": 10, "updates": 5, "rows": 32, "seed": 3}
SOLVERS: dict[str, Solver] = {
    "deep_omd": DeepMirrorDescent(sweeps=2, **SMALL),
    "deep_fp": DeepFictitiousPlay(sweeps=2, capacity=200, **SMALL),
    "deep_ppo": DeepPPO(rounds=2, **SMALL),
    "trajectory": SampledTrajectory(length=30, episodes=5, seed=3),
    "unified_game": GameQLearning(length=30, episodes=5, seed=3),
    "unified_control": ControlQLearning(length=30, episodes=5, seed=3),
}
GAMES: dict[str, Tiny] = {
    "tiny": Tiny(pull=0.3, last=0.5),
    "seasonal": Seasonal(discount=0.9),
    "teams": Teams(banned=True, actions=3),
    "market": Market(toil=0.2),
    "standing": Teams(horizon=None, discount=0.8, pull=0.2),
}
every_solver = pytest.mark.parametrize("name", SOLVERS)
every_game = pytest.mark.parametrize("game", GAMES.values(), ids=GAMES.keys())


def suited(name: str, game: Tiny) -> Tiny:
    """The game, or, for who learns from a path without end alone, its endless sister."""
    return replace(game, horizon=None, discount=0.8) if name == "unified_control" else game


def advance(game: MeanFieldGame, solver: Solver, state: Any, first: int, last: int) -> Any:
    with torch.no_grad():
        for k in range(first, last + 1):
            state = solver.step(game, state, k)
    return state


@every_solver
@every_game
def test_a_batch_learns_side_by_side_and_its_first_entry_is_a_run_alone(name: str, game: Tiny) -> None:
    game, solver = suited(name, game), SOLVERS[name]
    first = uniform(game, (2, 2))
    state = advance(game, solver, solver.begin(game, first), 1, 2)
    policy = solver.policy(game, state)
    assert policy.shape == first.shape and policy.dtype == first.dtype
    torch.testing.assert_close(policy.sum(-1), torch.ones(first.shape[:-1]).double(), rtol=0, atol=1e-9)
    legal = game.legal_mask()
    if legal is not None:
        assert float(policy[(~legal).expand(policy.shape)].abs().max()) == 0
    alone = solver.policy(game, advance(game, solver, solver.begin(game, uniform(game)), 1, 2))
    torch.testing.assert_close(policy[:, 0, 0], alone, rtol=1e-3, atol=1e-3)
    learned = state[0] if name.startswith("deep_") else state[0].movedim(0, 2)
    assert not torch.equal(learned[0, 0], learned[0, 1]), "two entries are two runs"


@every_solver
def test_a_run_that_is_saved_and_taken_up_again_is_bitwise_the_run_that_never_stopped(name: str) -> None:
    game, solver = suited(name, GAMES["teams"]), SOLVERS[name]
    whole = advance(game, solver, solver.begin(game, uniform(game, (2,))), 1, 4)
    half = advance(game, solver, solver.begin(game, uniform(game, (2,))), 1, 2)
    stored = load(save({field: x.contiguous() for field, x in half._asdict().items()}))
    again = advance(game, replace(solver), type(half)(**stored), 3, 4)
    for field, x in whole._asdict().items():
        assert torch.equal(x, getattr(again, field)), field


@every_solver
def test_a_step_leaves_its_state_as_it_was(name: str) -> None:
    game, solver = suited(name, GAMES["teams"]), SOLVERS[name]
    state = advance(game, solver, solver.begin(game, uniform(game)), 1, 1)
    before = [x.clone() for x in state]
    advance(game, solver, state, 2, 2)
    assert all(torch.equal(x, y) for x, y in zip(before, state, strict=True))


@every_solver
def test_another_seed_is_another_run(name: str) -> None:
    game, solver = suited(name, GAMES["tiny"]), SOLVERS[name]
    states = []
    for seed in (3, 4):
        other: Any = replace(solver, seed=seed)  # type: ignore[call-arg]
        states.append(advance(game, other, other.begin(game, uniform(game)), 1, 2))
    assert not torch.equal(states[0][0], states[1][0])


@every_solver
def test_single_precision_stays_single(name: str) -> None:
    game, solver = suited(name, GAMES["tiny"]), SOLVERS[name]
    found = solver.policy(game, advance(game, solver, solver.begin(game, uniform(game, dtype=torch.float32)), 1, 2))
    assert found.dtype == torch.float32 and bool(torch.isfinite(found).all())


@every_solver
def test_what_cannot_be_learned_is_refused(name: str) -> None:
    solver = SOLVERS[name]
    with pytest.raises(ConfigError, match="uniform"):
        solver.begin(suited(name, Tiny()), some_policy(suited(name, Tiny()), 0))
    noisy = Lockdown()
    with pytest.raises(ConfigError, match="horizon" if name == "unified_control" else "common noise"):
        solver.begin(noisy, uniform(noisy))


@every_solver
def test_a_solve_keeps_the_best_policy_and_its_curve(name: str) -> None:
    game = suited(name, GAMES["market"])
    found = solve(game, SOLVERS[name], 6, every=2, batch=(2,))
    assert [row["iteration"] for row in found.rows] == [0, 2, 4, 6]
    if SOLVERS[name].cooperative:
        values = torch.tensor([row["value"] for row in found.rows], dtype=torch.float64)
        torch.testing.assert_close(-found.exploitability, values.amax(0))
    elif SOLVERS[name].entropy_bonus == 0:
        curve = torch.tensor([row["exploitability"] for row in found.rows], dtype=torch.float64)
        torch.testing.assert_close(found.exploitability, curve.amin(0))
        torch.testing.assert_close(exploitability(game, found.policy), curve.amin(0))


def test_solvers_that_remember_crowds_by_state_alone_refuse_those_who_see_them() -> None:
    watching = Tiny(sight="crowd")
    with pytest.raises(ConfigError, match="deep_omd"):
        SOLVERS["deep_fp"].begin(watching, uniform(watching))
    endless = Tiny(sight="crowd", horizon=None, discount=0.9)
    for name in ("deep_omd", "deep_ppo"):
        with pytest.raises(ConfigError, match="horizon"):
            advance(endless, SOLVERS[name], SOLVERS[name].begin(endless, uniform(endless)), 1, 1)
    with pytest.raises(ConfigError, match="sight=crowd"):
        DeepMirrorDescent(starts=torch.eye(3).unsqueeze(1)).begin(Tiny(), uniform(Tiny()))


def test_a_table_too_large_for_one_path_is_refused() -> None:
    large = Tiny(states=1500, actions=2, horizon=4)
    with pytest.raises(ConfigError, match="deep_omd"):
        SOLVERS["trajectory"].begin(large, uniform(large))


def policies_that_see(game: Tiny, name: str) -> Tensor:
    solver = SOLVERS[name]
    return solver.policy(game, advance(game, solver, solver.begin(game, uniform(game, (2,))), 1, 2))


@pytest.mark.parametrize("name", ["deep_omd", "deep_ppo"])
def test_policies_may_see_the_crowd(name: str) -> None:
    policy = policies_that_see(Teams(pull=0.5, sight="crowd"), name)
    assert policy.shape == (3, 2, 2, 3, 2)
    torch.testing.assert_close(policy.sum(-1), torch.ones(3, 2, 2, 3).double(), rtol=0, atol=1e-9)
