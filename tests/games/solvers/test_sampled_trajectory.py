"""Sandbox learning: from one path, the crowd, the rules and the equilibrium."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.left_right import LeftRight
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.games import values
from mfmarl.games.exploitability import regularised
from mfmarl.games.flow import flow, uniform
from mfmarl.games.solve import solve
from mfmarl.games.solvers.sampled_trajectory import SampledTrajectory, State
from tests.games.mini import Teams, Tiny


def learned(game: Tiny, solver: SampledTrajectory, steps: int, seeds: int) -> State:
    state = solver.begin(game, uniform(game, (seeds,)))
    with torch.no_grad():
        for k in range(1, steps + 1):
            state = solver.step(game, state, k)
    return state


@pytest.mark.verify
def test_one_path_tells_the_crowd_of_its_policy_and_the_rules() -> None:
    """Two groups, 1500 episodes, moves that depend on the crowd: mu^ is the flow of the policy it belongs to, and P^ the
    kernel there where states and actions were met with (60 seeds: the means within .02 and .05)."""
    game = Teams(pull=0.3)
    solver = SampledTrajectory(temperature=1.0, explore=0.5, value_decay=0.8, episodes=300)
    state = learned(game, solver, 5, 60)
    path = flow(game, solver.policy(game, state))
    assert float((state.mu - path.mu).mean(1).abs().max()) < 0.02
    assert float((path.mu[1:] - 1 / 3).mean(1).abs().max()) > 0.1
    truth = torch.stack([kernel.dense().expand(60, -1, -1, -1, -1) for kernel in path.kernels])
    assert float((state.moves - truth).mean(1).abs().max()) < 0.05


def test_the_crowd_is_believed_to_do_what_the_policy_does_and_not_what_is_tried_out() -> None:
    """Whoever only explores still believes of the others that they follow the policy: the mean of 30 seeds within .03 of
    its flow, which is .1 and more from where the path itself goes."""
    game = Tiny(coupling=0.0)
    solver = SampledTrajectory(temperature=0.2, explore=1.0, episodes=200)
    state = learned(game, solver, 5, 30)
    path = flow(game, solver.policy(game, state))
    assert float((state.mu - path.mu).mean(1).abs().max()) < 0.03
    assert float((path.mu.mean(1) - flow(game, uniform(game)).mu).abs().max()) > 0.1


def test_it_goes_to_the_regularised_equilibrium() -> None:
    """1000 episodes, T = .1, eight seeds. Measured over 24: beach bar .136, deviation .055 (uniform 1.2213), so at most
    .136 + 5 x .055 / sqrt(8) = .233. Left-right rests at the logit equilibrium, 1 / (1 + exp((r_R - r_L) / T))."""
    beach = solve(BeachBar(), SampledTrajectory(), 20, every=20, batch=(8,)).rows[-1]
    assert sum(beach["exploitability"]) / 8 < 0.233
    sides = LeftRight()
    found = solve(sides, SampledTrajectory(), 20, every=20, batch=(8,))
    left = found.last[0, :, 0, 0, 0].mean()
    assert abs(float(left) - sides.left(0.1)) < 0.005
    assert max(found.rows[-1]["regularised"]) < 0.01


def test_one_path_without_end_finds_the_stationary_equilibrium() -> None:
    """4,000 steps of one path, gamma = .8: the regularised gap falls to a tenth of uniform choice's, in each of 8 seeds, and
    Q to the soft values amid the crowd of its policy (the mean of seeds within .3)."""
    game = Tiny(horizon=None, discount=0.8, pull=0.2)
    solver = SampledTrajectory(length=400)
    state = learned(game, solver, 10, 8)
    policy = solver.policy(game, state)
    gaps = regularised(game, policy, solver.temperature)
    assert float(gaps.max()) < 0.1 * float(regularised(game, uniform(game), solver.temperature))
    exact = values.soft(game, flow(game, policy), solver.temperature).q
    assert float((state.q - exact).mean(1).abs().max()) < 0.3


@pytest.mark.verify
def test_it_comes_down_on_an_epidemic() -> None:
    """50 decisions, 400 episodes. Measured over 6 seeds 2.30, deviation .68 (uniform 5.37): three seeds at most 4.3."""
    found = solve(SusceptibleInfected(), SampledTrajectory(episodes=20), 20, every=20, batch=(3,))
    assert sum(found.rows[-1]["exploitability"]) / 3 < 4.3
