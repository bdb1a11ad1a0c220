"""The games shared with mfglib 0.3.0: its digits in float64 (live under `make verify`), and where it is wrong.

`GOLDEN` is what this prints, with the peers installed:

    MFMARL_PEERS=... python -m tests.games.test_parity_mfglib
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.building_evacuation import BuildingEvacuation
from mfmarl.envs.conservative_treasure_hunting import ConservativeTreasureHunting
from mfmarl.envs.crowd_motion import CrowdMotion
from mfmarl.envs.equilibrium_price import EquilibriumPrice
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.linear_quadratic_grid import LinearQuadraticGrid
from mfmarl.envs.random_linear import RandomLinear
from mfmarl.envs.rock_paper_scissors import RockPaperScissors
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import NumericFault
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.prior_descent import PriorDescent
from tests.games.peers import ask

# Our game, the maker's words for it there, the rate of mirror descent, the temperature of prior descent.
# left_right, rock_paper_scissors and linear_quadratic pay at the end what mfglib pays at one time more.
GAMES: dict[str, tuple[MeanFieldGame, str, float, float]] = {
    "beach_bar": (BeachBar(places=10, bar=3, horizon=8), "beach_bar(T=7, n=10, bar_loc=3)", 0.3, 1.0),
    "left_right": (LeftRight(), "left_right()", 0.5, 0.5),
    "rock_paper_scissors": (RockPaperScissors(), "rock_paper_scissors()", 0.1, 1.0),
    "susceptible_infected": (SusceptibleInfected(horizon=51), "susceptible_infected(T=50)", 0.1, 1.0),
    "conservative_treasure_hunting": (
        ConservativeTreasureHunting(treasure=(1.0, 0.8, 1.3), drift=(1.0, 0.5, 2.0, 1.0, 0.3)),
        "conservative_treasure_hunting(r=(1.0, 0.8, 1.3), c=(1.0, 0.5, 2.0, 1.0, 0.3))",
        0.3,
        1.0,
    ),
    "equilibrium_price": (
        EquilibriumPrice(elasticity=1.5, costs=(0.1, 0.05, 0.2, 0.1, 0.05)),
        "equilibrium_price(sigma=1.5, c=(0.1, 0.05, 0.2, 0.1, 0.05))",
        0.5,
        0.2,
    ),
    "building_evacuation": (BuildingEvacuation(), "building_evacuation()", 0.1, 2.0),
    "linear_quadratic": (
        # No step of these ends near a half, at which rounding is a knife edge.
        LinearQuadraticGrid(rounding="nearest", step_length=0.13, pull=0.9),
        "linear_quadratic(delta=0.13, k=0.9)",
        1.0,
        0.1,
    ),
    "crowd_motion": (CrowdMotion(bars=(210, 210, 191, 191)), "crowd_motion()", 0.1, 2.0),
    "random_linear": (RandomLinear(), "random_linear()", 0.05, 5.0),
}
# In the others two actions tie at some time, and mfglib compares them to the last bit.
WITHOUT_TIES = (
    "beach_bar",
    "left_right",
    "rock_paper_scissors",
    "susceptible_infected",
    "linear_quadratic",
    "random_linear",
)
ITERATIONS = 12

# After so many iterations; `some` is the exploitability of the script's own policy.
GOLDEN: dict[str, dict[str, float]] = {
    "beach_bar": {
        "some": 10.100835652352236,
        "omd": 0.4088698560199786,
        "prior": 1.7048009449496253,
        "fp": 0.2413135078539641,
    },
    "left_right": {
        "some": 1.4814814814814814,
        "omd": 0.0010386299124552911,
        "prior": 0.0014382187295852722,
        "fp": 0.013313609467455634,
    },
    "rock_paper_scissors": {
        "some": 2.5857988165680474,
        "omd": 0.1670903427370397,
        "prior": 1.5290820576551176,
        "fp": 0.19723865877712032,
    },
    "susceptible_infected": {
        "some": 5.093882974725993,
        "omd": 4.290093565571652,
        "prior": 1.677135036318191,
        "fp": 1.0701547923286086,
    },
    "conservative_treasure_hunting": {
        "some": 1.9741443041353557,
        "omd": 0.9000523321356706,
        "prior": 0.04350517242050511,
    },
    "equilibrium_price": {"some": 1.5699880376025603, "omd": 0.375698816005398, "prior": 0.11483383679914438},
    "building_evacuation": {"some": 1.2925385427651435, "omd": 0.11829481215833937, "prior": 0.057835353539609},
    "linear_quadratic": {
        "some": 1.7979459912244455,
        "omd": 0.0957916083972119,
        "prior": 0.01569037872165957,
        "fp": 0.1475348428774681,
    },
    "crowd_motion": {"some": 1.5613597940137396, "omd": 0.7633275387679603, "prior": 0.5368669684954455},
    "random_linear": {
        "some": 30.22711668915457,
        "omd": 2.5374713365102295,
        "prior": 1.6865226528198605,
        "fp": 3.1700983000458685,
    },
}

_SCRIPT = """
from mfglib.env import Environment
from mfglib.alg import FictitiousPlay, OnlineMirrorDescent, PriorDescent
from mfglib.scoring import exploitability_score as score

env = eval("Environment." + given["maker"])
if given["tables"]:
    tables = [torch.tensor(x) for x in given["tables"]]
    env.reward_fn.r1, env.reward_fn.r2, env.transition_fn.p1, env.transition_fn.p2 = tables
shape = (env.T + 1, *env.S, *env.A)
weight = 1.0 + (torch.arange(torch.Size(shape).numel()) * 7 % 11).view(env.T + 1, env.n_states, env.n_actions)
some = (weight / weight.sum(-1, keepdim=True)).reshape(shape)
answer = {"some": [score(env, some)]}
solvers = {"omd": OnlineMirrorDescent(given["rate"]), "prior": PriorDescent(given["temperature"], 4)}
if given["fp"]:
    solvers["fp"] = FictitiousPlay()
for name, solver in solvers.items():
    _, curve, _ = solver.solve(env, max_iter=given["iterations"], atol=None, rtol=None)
    answer[name] = curve
"""


def _theirs(name: str) -> dict[str, list[float]]:
    game, maker, rate, temperature = GAMES[name]
    tables = [x.tolist() for x in game.tables] if isinstance(game, RandomLinear) else None
    given = {"maker": maker, "tables": tables, "rate": rate, "temperature": temperature, "iterations": ITERATIONS}
    found: dict[str, list[float]] = ask(_SCRIPT, given | {"fp": name in WITHOUT_TIES})
    return found


def _options(game: MeanFieldGame) -> dict[str, Any]:
    return {field.name: getattr(game, field.name) for field in dataclasses.fields(game)}


def _some_policy(game: MeanFieldGame) -> Tensor:
    """The policy of the script, where there is one time for every decision."""
    shape = uniform(game).shape
    weight = 1.0 + (torch.arange(shape.numel()) * 7 % 11).view(shape).double()
    return weight / weight.sum(-1, keepdim=True)


def _curve(game: MeanFieldGame, solver: Solver) -> list[float]:
    state = solver.begin(game, uniform(game))
    curve = [float(exploitability(game, solver.policy(game, state)))]
    for k in range(1, ITERATIONS + 1):
        state = solver.step(game, state, k)
        curve.append(float(exploitability(game, solver.policy(game, state))))
    return curve


def _ours(name: str) -> dict[str, list[float]]:
    game, _, rate, temperature = GAMES[name]
    found = {"some": [float(exploitability(game, _some_policy(game)))]}
    found["omd"] = _curve(game, MirrorDescent(rate=rate))
    found["prior"] = _curve(game, PriorDescent(temperature=temperature, inner=4))
    if name in WITHOUT_TIES:
        found["fp"] = _curve(game, FictitiousPlay())
    return found


def _assert_same(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> None:
    assert ours.keys() == theirs.keys()
    for what, curve in theirs.items():
        assert len(curve) == len(ours[what]), what
        for k, (one, other) in enumerate(zip(ours[what], curve, strict=True)):
            assert abs(one - other) < 1e-10, f"{what} after {k} iterations: {one} here, {other} there"


@pytest.mark.parametrize("name", GAMES)
def test_the_digits_are_those_of_mfglib(name: str) -> None:
    ours = _ours(name)
    assert {what: curve[-1] for what, curve in ours.items()} == pytest.approx(GOLDEN[name], abs=1e-10)


@pytest.mark.verify
@pytest.mark.parametrize("name", GAMES)
def test_every_iteration_is_that_of_mfglib_asked_live(name: str) -> None:
    _assert_same(_ours(name), _theirs(name))


def test_the_linear_quadratic_game_compared_is_off_the_knife_edge() -> None:
    game = GAMES["linear_quadratic"][0]
    assert isinstance(game, LinearQuadraticGrid)
    one = exploitability(game, uniform(game))
    for nudge in (1e-9, -1e-9):
        tilted = _Tilted(tilt=nudge, **_options(game))
        assert abs(float(exploitability(tilted, uniform(game)) - one)) < 1e-6


class _Tilted(LinearQuadraticGrid):
    """The mean at the start moved by a little."""

    def __init__(self, tilt: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        object.__setattr__(self, "tilt", tilt)

    def initial(self) -> Tensor:
        mu = super().initial().clone()
        mu[-1] += self.tilt / self.reach / 2  # type: ignore[attr-defined]
        mu[0] -= self.tilt / self.reach / 2  # type: ignore[attr-defined]
        return mu


def test_rounding_to_the_nearest_place_is_a_knife_edge_and_going_to_either_side_is_none() -> None:
    # mfglib's default parameters; the note's 1.598922 is what is left when the mean moves by 1e-5 either way.
    def at(tilt: float, rounding: str) -> float:
        game = _Tilted(tilt=tilt, rounding=rounding)
        return float(exploitability(game, uniform(game)))

    assert at(1e-5, "nearest") == pytest.approx(1.598922, abs=2e-5)
    assert at(-1e-5, "nearest") == pytest.approx(1.598922, abs=2e-5)
    assert at(0.0, "nearest") > 1.7
    smooth = [at(tilt, "between") for tilt in (-1e-5, 0.0, 1e-5)]
    assert max(smooth) - min(smooth) < 1e-4


def test_fictitious_play_runs_on_two_dimensional_actions_where_mfglib_crashes() -> None:
    game = GAMES["equilibrium_price"][0]
    curve = _curve(game, FictitiousPlay())
    assert curve[-1] < 0.2 * curve[0]


@pytest.mark.verify
def test_mfglib_crashes_on_them() -> None:
    script = """
from mfglib.alg import FictitiousPlay
from mfglib.env import Environment
try:
    FictitiousPlay().solve(Environment.equilibrium_price(), max_iter=2)
    answer = ""
except RuntimeError as error:
    answer = str(error)
"""
    assert "must match" in ask(script)


def test_a_policy_of_nan_is_refused_where_mfglib_takes_it_for_uniform() -> None:
    game = BeachBar(places=10)
    with pytest.raises(NumericFault, match="no probability distribution"):
        exploitability(game, uniform(game) * math.nan)
    # Temperature .05 is where its prior descent overflows.
    assert all(
        math.isfinite(x) for x in _curve(BeachBar(places=10, horizon=11), PriorDescent(temperature=0.05, inner=4))
    )


@pytest.mark.verify
def test_mfglib_takes_nan_for_uniform() -> None:
    script = """
import mfglib.alg  # before its scoring, which cannot be imported first
from mfglib.env import Environment
from mfglib.scoring import exploitability_score as score
env = Environment.beach_bar(n=10)
policy = torch.full((env.T + 1, 10, 3), 1 / 3)
answer = [score(env, policy), score(env, policy * float("nan"))]
"""
    uniforms, of_nan = ask(script)
    assert uniforms == of_nan
    game = BeachBar(places=10)
    assert float(exploitability(game, uniform(game))) == pytest.approx(uniforms, abs=1e-12)


@pytest.mark.parametrize("name", ["building_evacuation", "crowd_motion", "conservative_treasure_hunting"])
def test_ties_are_split_alike_whatever_the_last_bits_of_the_rewards_are(name: str) -> None:
    # There mfglib, which compares to the last bit, changes in the first or second digit from float32 to float64.
    game = GAMES[name][0]
    curve = _curve(game, FictitiousPlay())

    class Noisy(type(game)):  # type: ignore[misc]
        def rewards(self, t: int, crowd: Any) -> Tensor:
            paid = super().rewards(t, crowd)
            wide = paid.expand(*paid.shape[:-1], self.num_actions)
            grain = torch.arange(wide.numel(), dtype=wide.dtype).mul(12.9898).sin().view(wide.shape)
            return wide * (1 + 1e-14 * grain)

    noisy = Noisy(**_options(game))
    assert _curve(noisy, FictitiousPlay()) == pytest.approx(curve, rel=1e-6)


def test_making_a_game_leaves_the_global_noise_and_another_default_type_leaves_the_game_as_it_is() -> None:
    before = torch.random.get_rng_state()
    tables = RandomLinear().tables
    bars = [CrowdMotion(horizon=9).bar(t) for t in range(9)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.set_default_dtype(torch.float64)
    try:
        assert all(torch.equal(x, y) for x, y in zip(RandomLinear().tables, tables, strict=True))
        assert [CrowdMotion(horizon=9).bar(t) for t in range(9)] == bars
    finally:
        torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    for name in GAMES:
        found = _theirs(name)
        print(f'    "{name}": { ({k: v[-1] for k, v in found.items()}) },')
