"""What every solver promises, generated from the files there are: add one, and it is tested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.envs.lockdown import Lockdown
from mfmarl.errors import ConfigError
from mfmarl.games.catalogue import solvers
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solver import Solver, solver_class
from mfmarl.games.solvers.evolution import Evolution
from mfmarl.games.solvers.fixed_point import FixedPoint
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.policy_iteration import PolicyIteration
from mfmarl.games.solvers.policy_mirror import PolicyMirror
from mfmarl.games.solvers.prior_descent import PriorDescent
from mfmarl.games.solvers.sequential_response import SequentialResponse
from mfmarl.games.solvers.smoothed_play import SmoothedPlay
from mfmarl.games.solvers.soft_fixed_point import SoftFixedPoint
from tests.games.mini import Fair, Seasonal, Teams, Tiny, some_policy

# These learn from samples, and have tests of their own.
SAMPLED = ("deep_", "trajectory", "unified_")
SOLVERS: dict[str, Solver] = {name: solver_class(name)() for name in solvers() if not name.startswith(SAMPLED)}
# More than one algorithm goes by some names.
SOLVERS |= {
    "fixed_point-warm": FixedPoint(weight=0.3, temperature=0.5),
    "policy_iteration-warm": PolicyIteration(weight=0.3, temperature=0.5),
    "policy_mirror-warm": PolicyMirror(temperature=0.5),
    "prior_descent-soft": PriorDescent(inner=2, soft=True),
    "smoothed_fp-cooling": SmoothedPlay(cooling=0.5),
    "omd-momentum": MirrorDescent(leak=0.1, momentum=0.5),
    "evolution-smith": Evolution("smith"),
    "evolution-bnn": Evolution("bnn"),
    "evolution-logit": Evolution("logit"),
    "evolution-best_response": Evolution("best_response"),
}
GAMES: dict[str, Tiny] = {
    "tiny": Tiny(pull=0.3, last=0.5),
    "seasonal": Seasonal(discount=0.9),
    "teams": Teams(banned=True, actions=3),
    "market": Fair(toil=0.2),
    "standing": Teams(horizon=None, discount=0.8, pull=0.2),
}
every_solver = pytest.mark.parametrize("name", SOLVERS)
every_game = pytest.mark.parametrize("game", GAMES.values(), ids=GAMES.keys())


def advance(game: MeanFieldGame, solver: Solver, policy: Tensor, steps: int = 4) -> Tensor:
    """The policy after some steps."""
    with torch.no_grad():
        state = solver.begin(game, policy)
        for k in range(1, steps + 1):
            state = solver.step(game, state, k)
        return solver.policy(game, state)


def refusal(game: MeanFieldGame, solver: Solver, policy: Tensor) -> str | None:
    """The sentence in which a solver refuses a game, or None."""
    try:
        solver.begin(game, policy)
    except ConfigError as told:
        return str(told)
    return None


@every_solver
@every_game
def test_a_batch_is_each_of_them_alone_and_all_are_policies(name: str, game: Tiny) -> None:
    solver, first = SOLVERS[name], some_policy(game, 1, 2)
    told = refusal(game, solver, first)
    if told is not None:
        # Its mathematics needs a horizon, or dynamics that do not depend on the crowd; a market is everybody's.
        assert told.startswith(f"{solver.name} ") and told.endswith(".")
        assert game is not GAMES["market"]
        return
    whole = advance(game, solver, first)
    assert whole.shape == first.shape and whole.dtype == first.dtype
    assert bool((whole >= 0).all())
    torch.testing.assert_close(whole.sum(-1), torch.ones(first.shape[:-1]).double(), rtol=0, atol=1e-9)
    legal = game.legal_mask()
    if legal is not None:
        assert float(whole[~legal.expand(whole.shape)].abs().max()) == 0
    for i in range(2):
        torch.testing.assert_close(whole[:, i], advance(game, solver, first[:, i]), rtol=1e-6, atol=1e-8)
    assert float((whole - first).abs().max()) > 1e-6, "four steps went nowhere"


@every_solver
def test_under_common_noise_too_a_batch_is_each_of_them_alone(name: str) -> None:
    game = Lockdown(horizon=5)
    assert game.tree is not None
    first = some_policy(game, 1, 2)
    told = refusal(game, SOLVERS[name], first)
    if told is not None:
        assert "common noise" in told
        return
    whole = advance(game, SOLVERS[name], first, 3)
    assert whole.shape == first.shape and float((whole - first).abs().max()) > 1e-6
    torch.testing.assert_close(whole.sum(-1), torch.ones(first.shape[:-1]).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(whole[:, 1], advance(game, SOLVERS[name], first[:, 1], 3), rtol=1e-6, atol=1e-8)


@every_solver
def test_single_precision_stays_single(name: str) -> None:
    game = GAMES["market"]
    found = advance(game, SOLVERS[name], uniform(game, dtype=torch.float32))
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())


@every_solver
def test_the_same_again_is_the_same(name: str) -> None:
    game = GAMES["market"]
    assert torch.equal(advance(game, SOLVERS[name], uniform(game)), advance(game, SOLVERS[name], uniform(game)))


# Of these the goal is another one, and test_fixed_point.py holds them against it.
WARM = ("fixed_point-warm", "policy_iteration-warm", "prior_descent-soft", "omd-momentum", "evolution-logit")


# These go round a mixed equilibrium, and the less the more they are damped.
PURE = ("fixed_point", "policy_iteration", "sequential")


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in WARM])
def test_an_easy_game_is_solved_to_the_equilibrium_that_the_solver_seeks(name: str) -> None:
    """Monotone, and of one choice: the gap falls to a twentieth."""
    game, solver = Fair(horizon=1, coupling=0.3, actions=3), SOLVERS[name]
    if name in PURE:
        solver = replace(solver, weight=0.05)  # type: ignore[call-arg]
    if isinstance(solver, SequentialResponse):
        solver = replace(solver, weight=None)
    if isinstance(solver, PriorDescent):
        solver = replace(solver, inner=1)
    found = solve(game, solver, 300, every=100)
    goal = "regularised" if "regularised" in found.rows[0] else "exploitability"
    if solver.cooperative:
        assert found.rows[-1]["value"] > found.rows[0]["value"]
    else:
        assert found.rows[-1][goal] < 0.05 * found.rows[0][goal]


OPTIONS: list[tuple[type[Solver], dict[str, Any], dict[str, list[float]]]] = [
    (MirrorDescent, {}, {"rate": [0.1, 1.0], "leak": [0.1, 0.3]}),
    (FixedPoint, {}, {"weight": [0.1, 0.6]}),
    (FixedPoint, {}, {"weight": [0.1, 0.6], "temperature": [0.3, 2.0]}),
    (SoftFixedPoint, {}, {"weight": [0.1, 0.6], "temperature": [0.3, 2.0]}),
    (SmoothedPlay, {}, {"weight": [0.1, 0.6], "temperature": [0.3, 2.0]}),
    (SmoothedPlay, {}, {"temperature": [0.3, 2.0], "cooling": [0.2, 0.7]}),
    (PriorDescent, {"inner": 2}, {"temperature": [0.3, 2.0]}),
    (PriorDescent, {"soft": True}, {"temperature": [0.3, 2.0]}),
    (PolicyIteration, {}, {"weight": [0.1, 0.6], "temperature": [0.3, 2.0]}),
    (PolicyMirror, {}, {"rate": [0.1, 2.0], "temperature": [0.3, 2.0]}),
    (Evolution, {}, {"time": [0.1, 0.5]}),
    (Evolution, {"dynamics": "smith"}, {"time": [0.1, 0.5]}),
    (Evolution, {"dynamics": "logit"}, {"time": [0.1, 0.5], "temperature": [0.3, 2.0]}),
]


@pytest.mark.parametrize(("kind", "fixed", "varied"), OPTIONS)
@pytest.mark.parametrize("game", [GAMES["teams"], GAMES["standing"]], ids=["teams", "standing"])
def test_a_batch_of_options_is_one_call(
    kind: type[Solver], fixed: dict[str, Any], varied: dict[str, list[float]], game: Tiny
) -> None:
    together = kind(**fixed, **{key: torch.tensor(row, dtype=torch.float64) for key, row in varied.items()})
    whole = advance(game, together, uniform(game, (2,)))
    for i in range(2):
        alone = advance(game, kind(**fixed, **{key: row[i] for key, row in varied.items()}), uniform(game))
        torch.testing.assert_close(whole[:, i], alone, rtol=1e-8, atol=1e-10)
    found = solve(game, together, 3, batch=(2,), every=1)
    assert len(found.rows[-1]["exploitability"]) == 2
    torch.testing.assert_close(found.last, advance(game, together, uniform(game, (2,)), 3))


@every_solver
def test_the_bonus_that_a_solver_names_is_the_temperature_of_its_rest(name: str) -> None:
    """Who has none is free to rest elsewhere; who has one stops by the regularised gap."""
    solver = SOLVERS[name]
    found = solve(Fair(horizon=1), solver, 1, every=1)
    assert ("regularised" in found.rows[0]) == (solver.entropy_bonus != 0)
    assert torch.isfinite(exploitability(Fair(horizon=1), found.last))
