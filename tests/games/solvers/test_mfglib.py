"""The same algorithm on the same game gives the same exploitability as mfglib 0.3.0, iteration by iteration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.fixed_point import FixedPoint
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.prior_descent import PriorDescent
from mfmarl.registry import lookup
from tests.games.peers import ask

MFGLIB = """
from mfglib.alg import FictitiousPlay, OnlineMirrorDescent, PriorDescent
from mfglib.env import Environment
answer = []
for game, options, method, settings, iterations in given:
    env = getattr(Environment, game)(**options)
    solver = {"fp": FictitiousPlay, "omd": OnlineMirrorDescent, "pd": PriorDescent}[method](**settings)
    policies, curve, _ = solver.solve(env, max_iter=iterations, atol=None, rtol=None)
    answer.append([float(x) for x in curve])
"""

# A game, with mfglib's words and ours. Its T is the time of the last reward: our horizon less 1.
GAMES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "beach": ("beach_bar", {}, "beach_bar", {}),
    "windy": (
        "beach_bar",
        {"T": 5, "n": 10, "bar_loc": 3, "p_still": 0.3},
        "beach_bar",
        {"horizon": 6, "places": 10, "bar": 3, "calm": 0.3},
    ),
    "sis": ("susceptible_infected", {"T": 20}, "susceptible_infected", {"horizon": 21}),
    "rps": ("rock_paper_scissors", {}, "rock_paper_scissors", {}),
    "left_right": ("left_right", {}, "left_right", {}),
}
METHODS: dict[str, tuple[str, dict[str, Any], Solver]] = {
    "omd": ("omd", {"alpha": 0.1}, MirrorDescent(rate=0.1)),
    "omd_fast": ("omd", {"alpha": 1.0}, MirrorDescent(rate=1.0)),
    "prior": ("pd", {"eta": 2.0, "n_inner": 1}, PriorDescent(temperature=2.0, inner=1)),
    "prior_of_4": ("pd", {"eta": 1.0, "n_inner": 4}, PriorDescent(temperature=1.0, inner=4)),
    "gmfv": ("pd", {"eta": 1.0}, PriorDescent(temperature=1.0)),
    "gmfv_as_fixed_point": ("pd", {"eta": 1.0}, FixedPoint(temperature=1.0)),
    "fp": ("fp", {}, FictitiousPlay()),
    "fp_damped": ("fp", {"alpha": 0.3}, FictitiousPlay(weight=0.3)),
    "fixed_point_damped": ("fp", {"alpha": 0.3}, FixedPoint(weight=0.3)),
    "fixed_point": ("fp", {"alpha": 1.0}, FixedPoint()),
}
ITERATIONS = 30
# Of mfglib 0.3.0 in float64, after 1, 10 and 30 iterations.
GOLDEN: dict[tuple[str, str], tuple[float, float, float]] = {
    ("beach", "omd"): (1.125772890824777, 0.6046173891479152, 0.28035800453865733),
    ("beach", "prior_of_4"): (0.5359934932184641, 0.29244034106188876, 0.10819342865094272),
    ("beach", "fp"): (0.40143711297554163, 0.05801913474363052, 0.02013244185714047),
    ("beach", "fixed_point"): (1.0259032538182544, 3.735235803558815, 3.735235803558815),
    ("windy", "omd_fast"): (0.6201223524222041, 0.13442295006612381, 0.024235340948564943),
    ("windy", "prior"): (1.9613626730796516, 0.21792954666383801, 0.08807748208683241),
    ("windy", "gmfv"): (0.9303005201665222, 1.647394605010196, 1.5113380884768781),
    ("windy", "fp_damped"): (3.402671925355979, 0.10071447103485687, 0.13117669722436176),
    ("rps", "omd"): (0.362094959433198, 0.1607916305805257, 0.29235208150150005),
    ("rps", "fp"): (0.7499999999999999, 0.27548209366391196, 0.04890738813735751),
    ("sis", "fixed_point"): (1.0428406199365572, 1.2257510417116553, 0.5616740990058222),
}


def _game(name: str) -> MeanFieldGame:
    found = lookup("environment", GAMES[name][2]).load()(**GAMES[name][3])
    assert isinstance(found, MeanFieldGame)
    return found


def _ours(game: str, method: str) -> list[float]:
    found = solve(_game(game), METHODS[method][2], ITERATIONS, tolerance=-1, every=1)
    return [row["exploitability"] for row in found.rows]


@pytest.mark.parametrize(("game", "method"), GOLDEN)
def test_exploitability_has_the_digits_that_mfglib_gave(game: str, method: str) -> None:
    curve = _ours(game, method)
    assert (curve[1], curve[10], curve[30]) == pytest.approx(GOLDEN[game, method], rel=0, abs=1e-12)


@pytest.mark.verify
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("game", GAMES)
def test_every_iteration_is_as_exploitable_as_mfglibs(game: str, method: str) -> None:
    theirs_name, theirs_options = GAMES[game][:2]
    cases = [[theirs_name, theirs_options, METHODS[known][0], METHODS[known][1], ITERATIONS] for known in METHODS]
    theirs = ask(MFGLIB, cases)[list(METHODS).index(method)]
    assert _ours(game, method) == pytest.approx(theirs, rel=0, abs=1e-10)


COLD = """
torch.set_default_dtype(torch.float32)
from mfglib.alg import PriorDescent
from mfglib.env import Environment
env = Environment.beach_bar(n=10)
policies, curve, _ = PriorDescent(eta=0.05).solve(env, max_iter=30, atol=None, rtol=None)
answer = {"nan": sum(bool(p.isnan().any()) for p in policies), "last": float(curve[-1]), "uniform": float(curve[0])}
"""


@pytest.mark.parametrize("temperature", [0.05, 1e-3, 1e-6])
def test_cold_prior_descent_keeps_its_numbers_in_single_precision(temperature: float) -> None:
    game = _game("beach").__class__(places=10)  # type: ignore[call-arg]
    for solver in (PriorDescent(temperature=temperature), PriorDescent(temperature=temperature, inner=1)):
        found = solve(game, solver, 30, every=1, dtype=torch.float32)
        assert found.stopped == "iterations"
        assert len(found.rows) == 31
        assert bool(torch.isfinite(found.last).all())
    # As it gets colder, the fixed point of best responses.
    if temperature < 1e-5:
        cold = solve(game, PriorDescent(temperature=temperature), 7, every=1, tolerance=-1)
        greedy = solve(game, FixedPoint(), 7, every=1, tolerance=-1)
        assert [row["exploitability"] for row in cold.rows] == pytest.approx(
            [row["exploitability"] for row in greedy.rows], abs=1e-3
        )


@pytest.mark.verify
def test_there_mfglib_has_lost_its_policy_and_scores_it_as_uniform() -> None:
    told = ask(COLD)
    assert told["nan"] > 20
    assert told["last"] == pytest.approx(told["uniform"])
    # Ours refuses to score such a policy (test_flow.py), and has none: what it finds is what double precision finds.
    game = _game("beach").__class__(places=10)  # type: ignore[call-arg]
    curves = [
        [row["exploitability"] for row in solve(game, PriorDescent(temperature=0.05), 5, every=1, dtype=dtype).rows]
        for dtype in (torch.float32, torch.float64)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)
    assert all(abs(x - told["uniform"]) > 0.1 for x in curves[0][1:])
