r"""The planner against optima that are known, and against looking everywhere."""

from __future__ import annotations

import itertools

import pytest
import torch

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.susceptible_infected import SusceptibleInfected
from mfmarl.errors import ConfigError
from mfmarl.games.batch import side_by_side
from mfmarl.games.exploitability import exploitability
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.planner import Planner
from mfmarl.games.welfare import marginal, price_of_anarchy, total
from tests.games.small_games import Epidemic, Meeting, Pigou, Pursuit, Towels, random_policy


@pytest.mark.parametrize("power", [1, 3])
def test_the_planner_splits_pigous_traffic_and_mirror_descent_does_not(power: int) -> None:
    game = Pigou(power=power)
    best = solve(game, Planner(), 200)
    selfish = solve(game, MirrorDescent(rate=10.0), 3000, 1e-9)
    assert float(best.policy[0, 0, 0, 1]) == pytest.approx((1 + power) ** (-1 / power), abs=1e-5)
    # The equilibrium is at the edge, where mirror descent comes as 1 / (rate k).
    assert float(selfish.policy[0, 0, 0, 1]) > 0.999
    known = 1 / (1 - power * (power + 1) ** (-(power + 1) / power))
    assert float(price_of_anarchy(game, selfish.policy, best.policy)) == pytest.approx(known, abs=5e-3)


def test_the_planner_finds_the_best_of_all_policies_where_the_crowd_moves_the_dynamics() -> None:
    game = Epidemic(horizon=2, infected=0.3, final=3.0)
    # Only a susceptible agent's choice matters (the sick gain nothing by keeping away): two numbers, all tried.
    axis = torch.linspace(0, 1, 401, dtype=torch.float64)
    first, second = torch.meshgrid(axis, axis, indexing="ij")
    keeps_away = torch.stack([first, second]).unsqueeze(-1)  # [T, 401, 401, G]
    susceptible = torch.stack([1 - keeps_away, keeps_away], -1)
    sick = torch.zeros_like(susceptible)
    sick[..., 0] = 1
    every = total(game, flow(game, torch.stack([susceptible, sick], -2)))
    found = solve(game, Planner(), 400)
    assert float(-found.exploitability) >= float(every.max()) - 1e-9
    assert float(-found.exploitability) == pytest.approx(float(every.max()), abs=1e-3)
    # And the best is not what the selfish do.
    selfish = solve(game, MirrorDescent(rate=1.0), 2000, 1e-9)
    assert float(total(game, flow(game, selfish.policy))) < float(every.max()) - 0.01


def test_the_planner_is_at_least_as_good_as_every_pure_policy() -> None:
    game = Epidemic(horizon=3, infected=0.3, final=1.0)
    pure = []
    for choice in itertools.product([0, 1], repeat=6):
        one_hot = torch.nn.functional.one_hot(torch.tensor(choice), 2).to(torch.float64)
        pure.append(one_hot.reshape(3, 1, 2, 2))
    found = solve(game, Planner(), 300)
    assert float(-found.exploitability) >= float(total(game, flow(game, torch.stack(pure, 1))).max()) - 1e-6


def test_the_total_never_falls() -> None:
    game = Pursuit()
    solver = Planner(rate=3.0)
    state = solver.begin(game, random_policy(game, (4,)))
    seen = [state.total]
    for k in range(1, 40):
        state = solver.step(game, state, k)
        seen.append(total(game, flow(game, solver.policy(game, state))))
    curve = torch.stack(seen)
    assert bool((curve.diff(dim=0) >= -1e-10).all())
    assert bool((curve[-1] > curve[0] + 0.1).all())


def test_a_planners_optimum_is_stationary_for_tolled_agents() -> None:
    game = Towels(places=5, horizon=4)
    found = solve(game, Planner(), 500)
    assert float(exploitability(marginal(game), found.policy)) < 1e-4
    assert float(exploitability(game, found.policy)) > 1e-2


def test_several_first_policies_find_several_optima() -> None:
    # All at one place is best, whichever: from a start in the middle both are optima.
    game = Meeting()
    first = uniform(game, (2,))
    first[:, 0] = torch.tensor([0.6, 0.4], dtype=torch.float64)
    first[:, 1] = torch.tensor([0.4, 0.6], dtype=torch.float64)
    found = solve(game, Planner(), 100, policy=first)
    torch.testing.assert_close(-found.exploitability, torch.tensor([2.5, 2.5], dtype=torch.float64), rtol=0, atol=1e-6)
    last = flow(game, found.policy).mu[-1, :, 0]
    torch.testing.assert_close(last, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_batch_of_rates_is_one_call_and_each_goes_its_own_way() -> None:
    game = Epidemic(horizon=4, final=1.0)
    rates = torch.tensor([0.05, 0.5], dtype=torch.float64)
    both = solve(game, Planner(rate=rates), 20, batch=(2,))  # type: ignore[arg-type]
    for i, rate in enumerate(rates.tolist()):
        alone = solve(game, Planner(rate=rate), 20)
        torch.testing.assert_close(both.policy[:, i], alone.policy, rtol=1e-12, atol=1e-13)


def test_the_planner_takes_only_legal_actions() -> None:
    game = Pursuit()
    found = solve(game, Planner(), 50)
    assert float(found.policy[:, :, 1, 0].max()) == 0


def test_games_side_by_side_are_each_of_them() -> None:
    for games in (
        [Pursuit(crowding=x) for x in (0.5, 2.0)],
        [SusceptibleInfected(horizon=6, infection=x) for x in (0.4, 0.8)],
    ):
        together = solve(side_by_side(games), Planner(), 10)
        for b, game in enumerate(games):
            torch.testing.assert_close(together.last[:, b], solve(game, Planner(), 10).last, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("game", "told"), [(Epidemic(horizon=None, discount=0.9), "horizon"), (BeachBar(closing=0.3), "common noise")]
)
def test_what_it_cannot_plan_it_refuses(game: MeanFieldGame, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        solve(game, Planner(), 1)
