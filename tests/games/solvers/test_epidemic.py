"""The epidemic of 50 days has equilibria without chance, which damped iterations find and averaging ones do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.games.exploitability import exploitability
from mfmarl.games.solve import solve
from mfmarl.games.solver import Solver
from mfmarl.games.solvers.evolution import Evolution
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.fixed_point import FixedPoint
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.policy_iteration import PolicyIteration
from tests.games.peers import ask
from tests.games.solvers.test_mfglib import MFGLIB

GAME = SusceptibleInfected()


def _gap_by_hand(policy: np.ndarray) -> float:
    """Of a policy [50, 2, 2] over (susceptible, infected) and (out, distant), in plain numbers."""
    mu, healthy = [], 0.4
    for row in policy:
        mu.append(1 - healthy)
        healthy = healthy * (1 - row[0, 0] * 0.81 * mu[-1]) + mu[-1] * 0.3
    best, held = np.zeros(2), np.zeros(2)
    for row, ill in zip(policy[::-1], mu[::-1], strict=True):
        p = 0.81 * ill

        def q(v: np.ndarray, p: float = p) -> np.ndarray:
            staying = 0.3 * v[0] + 0.7 * v[1]
            return np.array([[(1 - p) * v[0] + p * v[1], -0.5 + v[0]], [-1 + staying, -1.5 + staying]])

        best, held = q(best).max(1), (row * q(held)).sum(1)
    return float(np.array([0.4, 0.6]) @ (best - held))


def test_policy_iteration_comes_to_an_equilibrium_without_chance() -> None:
    found = solve(GAME, PolicyIteration(), 100, tolerance=0, every=1)
    curve = [row["exploitability"] for row in found.rows]
    assert found.stopped == "tolerance" and found.iterations == 65
    assert next(k for k, gap in enumerate(curve) if gap < 0.1) == 60
    policy = found.policy[:, 0]
    assert set(policy.flatten().tolist()) == {0.0, 1.0}
    assert _gap_by_hand(policy.numpy()) == pytest.approx(0, abs=1e-12)
    # It is none by a hair: a quarter of the days another way, and somebody would leave.
    flipped = policy.clone()
    flipped[::4, 0] = flipped[::4, 0].flip(-1)
    assert _gap_by_hand(flipped.numpy()) == pytest.approx(float(exploitability(GAME, flipped.unsqueeze(1))), rel=1e-12)
    assert _gap_by_hand(flipped.numpy()) > 0.1


@pytest.mark.parametrize("kind", [FixedPoint, PolicyIteration])
def test_damped_by_anything_in_the_middle_it_gets_there_within_200_iterations(kind: type[Solver]) -> None:
    weights = torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64)
    found = solve(GAME, kind(weight=weights), 200, tolerance=1e-9, every=20, batch=(3,))  # type: ignore[call-arg]
    assert float(found.exploitability.max()) < 1e-8
    # Equilibria are many: best responses come to one or another, by their weight.
    pure = found.policy.argmax(-1)
    different = {tuple(pure[:, i, 0, 0].tolist()) for i in range(3)}
    assert (len(different) > 1) == (kind is FixedPoint)


@pytest.mark.verify
def test_best_response_dynamics_get_there_too_and_averages_do_not() -> None:
    assert float(solve(GAME, Evolution("best_response", time=0.4), 200, 1e-8, every=40).exploitability) < 1e-7
    assert float(solve(GAME, FictitiousPlay(), 200, every=50).exploitability) > 0.3
    rates = torch.tensor([0.1, 0.3, 1.0, 3.0], dtype=torch.float64)
    slow = solve(GAME, MirrorDescent(rate=rates), 200, batch=(4,), every=20)  # type: ignore[arg-type]
    assert float(slow.exploitability.min()) > 0.15


@pytest.mark.verify
def test_mfglib_finds_the_same_with_a_constant_weight_that_is_not_its_default() -> None:
    theirs = ask(MFGLIB, [["susceptible_infected", {"T": 49}, "fp", {"alpha": 0.5}, 127]])[0]
    assert theirs[127] == pytest.approx(8.08e-10, abs=5e-12)
    ours = solve(GAME, FixedPoint(weight=0.5), 127, tolerance=-1, every=1)
    assert [row["exploitability"] for row in ours.rows] == pytest.approx(theirs, rel=0, abs=1e-10)
