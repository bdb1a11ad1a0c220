"""To run a solver: the curve, the best policy, why it stopped, and what is kept when it is stopped."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.errors import ConfigError, EnvironmentFault, NumericFault
from mfmarl.games import exploitability as measures
from mfmarl.games.catalogue import solvers
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import Crowd, MeanFieldGame
from mfmarl.games.kernels import Dense, Kernel
from mfmarl.games.solve import looks, solve
from mfmarl.games.solver import Solver, solver_class
from mfmarl.games.solvers.fictitious_play import FictitiousPlay
from mfmarl.games.solvers.fixed_point import FixedPoint
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.soft_fixed_point import SoftFixedPoint
from tests.games.mini import Teams, Tiny, some_policy


@dataclass(frozen=True)
class Scripted(Solver):
    """Gives the policies of a list, one an iteration; an exception in it is raised."""

    name: ClassVar[str] = "scripted"
    script: tuple[Any, ...] = ()

    def begin(self, game: MeanFieldGame, policy: Tensor) -> Any:
        return policy

    def step(self, game: MeanFieldGame, state: Any, iteration: int) -> Any:
        entry = self.script[iteration - 1]
        if isinstance(entry, type):
            raise entry
        return entry

    def policy(self, game: MeanFieldGame, state: Any) -> Tensor:
        assert isinstance(state, Tensor)
        return state


def test_the_curve_says_what_each_look_found() -> None:
    game = Tiny(coupling=0.5)
    found = solve(game, SoftFixedPoint(temperature=2.0), 5, tolerance=-1, every=1)
    assert [row["iteration"] for row in found.rows] == [0, 1, 2, 3, 4, 5]
    assert found.iterations == 5
    assert found.stopped == "iterations"
    state = SoftFixedPoint(temperature=2.0).begin(game, uniform(game))
    for row in found.rows:
        gap = measures.gap(game, state.policy)
        assert row["exploitability"] == pytest.approx(float(gap.exploitability), rel=1e-12)
        assert row["value"] == pytest.approx(float(gap.value.sum()), rel=1e-12)
        assert row["regularised"] == pytest.approx(float(measures.regularised(game, state.policy, 2.0)), abs=1e-12)
        free = measures.free_energy(game, gap.flow, 2.0)
        assert free is not None and row["free_energy"] == pytest.approx(float(free), rel=1e-12)
        assert row["seconds"] >= 0
        state = SoftFixedPoint(temperature=2.0).step(game, state, row["iteration"] + 1)


def test_it_stops_at_the_tolerance_and_not_before() -> None:
    found = solve(Tiny(), FictitiousPlay(), 10_000, tolerance=0.02, every=1)
    curve = [row["exploitability"] for row in found.rows]
    assert found.stopped == "tolerance"
    assert curve[-1] <= 0.02 < min(curve[:-1])
    assert float(found.exploitability) == curve[-1]


def test_a_batch_stops_when_its_last_entry_is_there_and_each_keeps_its_own_best() -> None:
    game = Tiny()
    rates = torch.tensor([0.02, 0.2, 2.0], dtype=torch.float64)
    found = solve(game, MirrorDescent(rate=rates), 60, tolerance=1e-12, every=1, batch=(3,))  # type: ignore[arg-type]
    curves = torch.tensor([row["exploitability"] for row in found.rows], dtype=torch.float64)
    torch.testing.assert_close(found.exploitability, curves.min(0).values)
    torch.testing.assert_close(exploitability(game, found.policy), found.exploitability, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(exploitability(game, found.last), curves[-1], rtol=1e-9, atol=1e-12)


def test_the_best_policy_is_kept_where_the_last_is_worse() -> None:
    game = BeachBar()
    found = solve(game, FixedPoint(), 30, every=1)
    curve = [row["exploitability"] for row in found.rows]
    assert float(found.exploitability) == min(curve) < curve[-1]
    assert float(exploitability(game, found.policy)) == pytest.approx(min(curve), rel=1e-12)
    assert float(exploitability(game, found.last)) == pytest.approx(curve[-1], rel=1e-12)


def test_what_does_not_settle_is_told_with_the_remedy() -> None:
    found = solve(BeachBar(), FixedPoint(), 30, every=1)
    assert found.stopped == "iterations"
    assert "fixed_point did not settle" in found.told and "Damp it" in found.told
    assert solve(Tiny(), FictitiousPlay(), 200).told == ""


@pytest.mark.parametrize("where", ["on_row", "step"])
def test_who_interrupts_keeps_the_curve_and_the_best_policy(where: str) -> None:
    game = Tiny()
    better = some_policy(game, 1)
    script = (better, better, KeyboardInterrupt if where == "step" else better)

    def told(row: dict[str, Any]) -> None:
        if where == "on_row" and row["iteration"] == 2:
            raise KeyboardInterrupt

    found = solve(game, Scripted(script), 3, every=1, on_row=told)
    assert found.stopped == "interrupted"
    assert [row["iteration"] for row in found.rows] == [0, 1, 2]
    assert f"after iteration {3 if where == 'step' else 2}" in found.told
    assert float(found.exploitability) == min(row["exploitability"] for row in found.rows)


def test_a_solver_that_leaves_the_numbers_has_diverged_and_keeps_what_it_had() -> None:
    game = Tiny()
    lost = torch.full_like(uniform(game), torch.nan)
    found = solve(game, Scripted((some_policy(game, 1), lost)), 5, every=1)
    assert found.stopped == "diverged"
    assert [row["iteration"] for row in found.rows] == [0, 1]
    assert "the policy of iteration 2 holds NaN" in found.told and "smaller steps" in found.told
    assert bool(torch.isfinite(found.policy).all())


def test_time_is_up_when_it_is_up() -> None:
    found = solve(Tiny(), MirrorDescent(), 10**9, tolerance=0, every=10**8, seconds=0.05)
    assert found.stopped == "time"
    assert found.rows[0]["iteration"] == 0


def test_looks_grow_rare_and_the_last_iteration_is_always_looked_at() -> None:
    assert list(looks(10, 4)) == [0, 4, 8, 10]
    assert list(looks(3, 1)) == [0, 1, 2, 3]
    seldom = list(looks(100_000, 0))
    assert seldom[:5] == [0, 1, 2, 3, 4] and seldom[-1] == 100_000 and len(seldom) < 120
    assert all(later > earlier for earlier, later in pairwise(seldom))


def test_a_first_policy_may_be_given() -> None:
    game = Tiny()
    first = some_policy(game, 3)
    found = solve(game, FictitiousPlay(), 1, policy=first)
    assert found.rows[0]["exploitability"] == pytest.approx(float(exploitability(game, first)))


@pytest.mark.parametrize("options", [{"iterations": 0}, {"every": -1}])
def test_numbers_without_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(options))} must be at least"):
        solve(Tiny(), FictitiousPlay(), **options)


def test_a_first_policy_that_is_none_is_refused() -> None:
    with pytest.raises(NumericFault, match="no probability distribution"):
        solve(Tiny(), FictitiousPlay(), policy=uniform(Tiny()) * torch.nan)
    with pytest.raises(ConfigError, match="A policy for Tiny is"):
        solve(Tiny(), FictitiousPlay(), policy=uniform(Teams()))


def test_rules_that_are_none_are_told_before_anything_is_done() -> None:
    @dataclass(frozen=True)
    class Half(Tiny):
        def outcomes(self, t: int, crowd: Crowd) -> Kernel:
            kernel = super().outcomes(t, crowd)
            assert isinstance(kernel, Dense)
            return Dense(kernel.probability / 2)

    with pytest.raises(EnvironmentFault, match=r"sums to 0\.5"):
        solve(Half(), FictitiousPlay(), 3)


def test_rewards_that_become_infinite_on_the_way_end_it_with_what_was_found() -> None:
    @dataclass(frozen=True)
    class Cliff(Tiny):
        def rewards(self, t: int, crowd: Crowd) -> Tensor:
            full = (crowd.mu.amax(-1) > 0.9).unsqueeze(-1).unsqueeze(-1)
            return super().rewards(t, crowd).masked_fill(full, torch.inf)

        def outcomes(self, t: int, crowd: Crowd) -> Kernel:
            return Dense(torch.eye(2, 3, dtype=torch.float64).expand(3, 2, 3))

    game = Cliff(coupling=0.0)
    everybody = torch.zeros_like(uniform(game))
    everybody[..., 0] = 1
    found = solve(game, Scripted((some_policy(game, 1), everybody)), 4, every=1)
    assert found.stopped == "diverged"
    assert len(found.rows) == 2 and "rewards must be finite" in found.told


def test_no_gradient_is_kept() -> None:
    policy = uniform(Tiny()).requires_grad_()
    found = solve(Tiny(), FictitiousPlay(), 3, policy=policy)
    assert not found.last.requires_grad and not found.exploitability.requires_grad


def test_solvers_are_found_by_name_and_a_wrong_name_gets_the_nearest() -> None:
    known = solvers()
    assert {"omd", "fp", "fixed_point", "soft_fixed_point", "smoothed_fp", "prior_descent"} <= set(known)
    assert {"policy_iteration", "policy_mirror", "evolution"} <= set(known)
    for name, line in known.items():
        assert solver_class(name).name == name
        assert line
    with pytest.raises(ConfigError, match="fixed_point"):
        solver_class("fixed_pont")


def test_gaps_of_solutions_are_those_of_their_own_flow() -> None:
    game = Teams(pull=0.3)
    found = solve(game, FictitiousPlay(), 20, every=1)
    again = measures.of_flow(game, flow(game, found.policy))
    assert float(again.exploitability) == pytest.approx(float(found.exploitability), rel=1e-12)


def test_options_that_python_gives_are_held_against_their_bounds() -> None:
    with pytest.raises(ConfigError, match="MirrorDescent.rate must be float"):
        MirrorDescent(rate=-0.1)
    with pytest.raises(ConfigError, match="BeachBar.places"):
        BeachBar(places=2)
    rates = torch.tensor([0.1, 0.2])
    assert MirrorDescent(rate=rates).rate is rates


def test_a_solver_that_rests_elsewhere_is_not_told_to_settle() -> None:
    game = BeachBar()
    levelled = solve(game, MirrorDescent(rate=0.5, leak=0.5), 200, tolerance=0)
    assert levelled.rows[-1]["exploitability"] > 0.01
    assert not levelled.told
    cycling = solve(game, FixedPoint(), 60, tolerance=0)
    assert "Damp it" in cycling.told and "omd" in cycling.told
