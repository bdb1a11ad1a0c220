"""Fixed points and Boltzmann policy iteration with the digits of OpenSpiel 2.0.2 (live under `make verify`).

Three populations, a clean game; and a crowd on a ring whose costs OpenSpiel fixes by the first visit, emulated
(test_parity_openspiel.py says why).
"""

from __future__ import annotations

import pytest

from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.fixed_point import FixedPoint
from mfmarl.games.solvers.policy_iteration import PolicyIteration
from tests.games.peers import ask
from tests.games.test_parity_openspiel import EPSILON, FirstVisit

SOLVERS: dict[str, Solver] = {
    "fixed_point": FixedPoint(),
    "softmax_1": FixedPoint(temperature=1.0),
    "softmax_5": FixedPoint(temperature=5.0),
    "boltzmann": PolicyIteration(temperature=10.0),  # its rate .1
}
# NashConv after these iterations.
GOLDEN: dict[str, dict[int, float]] = {
    "fixed_point": {1: 1391.913627119166, 2: 1413.0595763090641},
    "softmax_1": {1: 36.54152109304274, 2: 113.11591063437471},
    "softmax_5": {1: 15.699575183295693, 2: 24.0226699679942},
}
RING: dict[str, dict[int, float]] = {
    "softmax_1": {1: 1.528656, 2: 5.079101, 5: 12.71058, 10: 42.10848},
    "boltzmann": {1: 2.231732, 2: 2.329618, 5: 2.315052, 10: 2.315126, 50: 2.315126},
}
PEER = """
from open_spiel.python.mfg import games
from open_spiel.python.mfg.algorithms import boltzmann_policy_iteration, fixed_point, nash_conv
from open_spiel.python.mfg.games import factory

game = factory.create_game_with_setting("python_mfg_predator_prey", "predator_prey_5x5x3")
solver = {
    "fixed_point": lambda: fixed_point.FixedPoint(game),
    "softmax_1": lambda: fixed_point.FixedPoint(game, 1.0),
    "softmax_5": lambda: fixed_point.FixedPoint(game, 5.0),
    "boltzmann": lambda: boltzmann_policy_iteration.BoltzmannPolicyIteration(game, lr=0.1),
}[given]()
answer = []
for _ in range(2):
    solver.iteration()
    answer.append(float(nash_conv.NashConv(game, solver.get_policy()).nash_conv()))
"""


def _curve(game: MeanFieldGame, solver: Solver, iterations: int) -> list[float]:
    return [row["exploitability"] for row in solve(game, solver, iterations, tolerance=-1, every=1).rows]


@pytest.mark.parametrize("name", GOLDEN)
def test_three_populations_have_the_digits_that_openspiel_gave(name: str) -> None:
    found = _curve(PredatorPrey(), SOLVERS[name], max(GOLDEN[name]))
    assert {k: found[k] for k in GOLDEN[name]} == pytest.approx(GOLDEN[name], rel=1e-13)


@pytest.mark.parametrize("name", RING)
def test_a_ring_with_its_costs_has_the_digits_that_openspiel_gave(name: str) -> None:
    found = _curve(FirstVisit(floor=EPSILON), SOLVERS[name], max(RING[name]))
    assert {k: found[k] for k in RING[name]} == pytest.approx(RING[name], rel=4e-7)


@pytest.mark.verify
@pytest.mark.parametrize("name", SOLVERS)
def test_openspiel_agrees_live(name: str) -> None:
    theirs = ask(PEER, name, needs=("open_spiel",))
    assert _curve(PredatorPrey(), SOLVERS[name], 2)[1:] == pytest.approx(theirs, rel=1e-12)
