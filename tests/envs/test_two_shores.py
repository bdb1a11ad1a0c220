"""Two shores: all equilibria, what deviations gain, and which of them each solver finds from where."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.two_shores import TwoShores
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import uniform
from mfmarl.games.game import Crowd
from mfmarl.games.solve import solve
from mfmarl.games.solver import solver_class
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.mirror_descent import MirrorDescent


def landed(game: TwoShores, policy: torch.Tensor) -> float:
    mu = gap(game, policy).flow.mu
    return float(mu[-1, 0, 0] / (mu[-1, 0, 0] + mu[-1, 0, -1]))


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [1.0, 0.4, 0.0]),
        ({"left": 0.1, "right": 0.1}, [1.0, 0.5, 0.0]),
        ({"left": 3.0}, [1.0]),
        ({"right": 3.0}, [0.0]),
        ({"width": 1, "horizon": 2, "company": 2.0}, [1.0, 0.45, 0.0]),
    ],
)
def test_every_equilibrium_is_known_and_nobody_gains_by_leaving_it(options, shares):
    game = TwoShores(**options)
    found = game.equilibria()
    assert [landing.left for landing in found] == pytest.approx(shares)
    for landing in found:
        at = gap(game, game.straight(landing.left))
        assert float(at.exploitability) == pytest.approx(0, abs=1e-12)
        assert float(at.value) == pytest.approx(landing.value)


def test_between_equilibria_the_gain_is_that_of_the_better_shore():
    game = TwoShores()
    assert game.horizon is not None
    ashore = game.horizon - game.width
    for share in torch.linspace(0, 1, 21).tolist():
        left, right = game.left + share, game.right + 1 - share
        known = ashore * (max(left, right) - share * left - (1 - share) * right)
        assert float(exploitability(game, game.straight(share))) == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize("make", [lambda: MirrorDescent(rate=0.3), FictitiousPlay], ids=["omd", "fp"])
@pytest.mark.parametrize(("tilt", "shore"), [(-0.05, 0.0), (0.05, 1.0)])
def test_a_crowd_that_begins_on_either_side_of_the_unstable_share_ends_on_that_shore(make, tilt, shore):
    game = TwoShores()
    unstable = game.equilibria()[1]
    assert not unstable.stable
    start = 0.98 * game.straight(unstable.left + tilt) + 0.02 * uniform(game)
    found = solve(game, make(), 600, policy=start)
    assert landed(game, found.policy) == pytest.approx(shore, abs=0.01)
    assert float(found.exploitability) < 0.05


@pytest.mark.parametrize(
    "name", ["evolution", "fixed_point", "omi", "policy_iteration", "policy_mirror", "smoothed_fp"]
)
@pytest.mark.parametrize(("tilt", "shore"), [(-0.05, 0.0), (0.05, 1.0)])
def test_solvers_that_step_from_where_they_are_end_on_the_shore_they_lean_to(name, tilt, shore):
    game = TwoShores()
    start = 0.98 * game.straight(0.4 + tilt) + 0.02 * uniform(game)
    found = solve(game, solver_class(name)(), 300, policy=start)
    assert landed(game, found.policy) == pytest.approx(shore, abs=0.02)


def test_the_proximal_point_finds_the_unstable_equilibrium_that_no_crowd_would_keep():
    # It solves for the nearest point that nobody leaves, and so is drawn where the dynamics flee.
    game = TwoShores()
    for tilt in (-0.05, 0.05):
        start = 0.98 * game.straight(0.4 + tilt) + 0.02 * uniform(game)
        found = solve(game, solver_class("proximal")(), 300, policy=start)
        assert landed(game, found.policy) == pytest.approx(0.4, abs=1e-3)
        assert float(found.exploitability) < 1e-6


def test_a_planner_who_climbs_stays_on_the_worse_shore_where_it_began():
    game = TwoShores()
    start = 0.98 * game.straight(0.3) + 0.02 * uniform(game)
    values = {}
    for name, policy in (("uniform", None), ("leaning", start)):
        values[name] = -float(solve(game, solver_class("planner")(), 300, policy=policy).exploitability)
    best, _, worse = game.equilibria()
    assert values["uniform"] == pytest.approx(best.value, abs=0.05)
    assert values["leaning"] == pytest.approx(worse.value, abs=0.05)


def test_from_uniform_play_solvers_find_the_better_shore():
    for solver in (MirrorDescent(rate=0.3), FictitiousPlay()):
        assert landed(TwoShores(), solve(TwoShores(), solver, 600).policy) == pytest.approx(1, abs=0.01)


def test_between_equal_shores_shared_ties_keep_the_even_split_and_mirror_descent_leaves_it_by_rounding():
    even = TwoShores(left=0.1)
    assert landed(even, solve(even, FictitiousPlay(), 600, tolerance=0).last) == pytest.approx(0.5, abs=1e-9)
    early = solve(even, MirrorDescent(rate=0.3), 10).last
    late = solve(even, MirrorDescent(rate=0.3), 600, tolerance=0).last
    assert landed(even, early) == pytest.approx(0.5, abs=1e-6)
    assert min(landed(even, late), 1 - landed(even, late)) < 0.01


def test_the_published_optimum_is_what_the_better_equilibrium_pays_a_step():
    game = TwoShores()
    known = game.reference()["reward"]
    assert known.kind == "optimum"
    assert known.value == pytest.approx(8 * 1.3 / 10)
    best = max(float(gap(game, game.straight(x)).value) for x in torch.linspace(0, 1, 101).tolist())
    assert best / 10 == pytest.approx(known.value)


def test_the_potential_gives_the_rewards():
    game = TwoShores()
    mu = torch.rand(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (slope,) = torch.autograd.grad(game.potential(0, Crowd(mu)), mu)
    torch.testing.assert_close(slope, game.rewards(0, Crowd(mu.detach())).squeeze(-1))


def test_whoever_is_ashore_stays_whatever_it_tries():
    game = TwoShores()
    there = game.outcomes(0, Crowd(game.start())).successor[..., 0]
    assert there[0].tolist() == [0, 0, 0]
    assert there[-1].tolist() == [4, 4, 4]
    assert there[2].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"horizon": 2}, "above the width of 2"),
        ({"horizon": None, "discount": 0.9}, "above the width"),
        ({"left": -1.0}, "left must be float"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        TwoShores(**options)
