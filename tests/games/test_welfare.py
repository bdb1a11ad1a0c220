r"""What all get together, its exact gradient, and tolls: against differences, finite tables and Pigou's two roads."""

from __future__ import annotations

import pytest
import torch

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.errors import ConfigError
from mfmarl.games import values
from mfmarl.games.batch import side_by_side
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.solve import solve
from mfmarl.games.solvers.mirror_descent import MirrorDescent
from mfmarl.games.solvers.planner import Planner
from mfmarl.games.welfare import marginal, price_of_anarchy, total
from mfmarl.games.welfare import values as marginal_values
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.games.small_games import Epidemic, Matrix, Pigou, Pursuit, Towels, random_policy

GAMES = [
    Pigou(power=3),
    Matrix(),
    BeachBar(places=5),
    BeachBar(places=5, discount=0.9),
    Epidemic(horizon=4),
    Epidemic(horizon=4, final=2.0, discount=0.9),
    Pursuit(discount=0.9, final=3.0),
    marginal(Pursuit(discount=0.9, final=3.0)),
]


@pytest.mark.parametrize("game", GAMES, ids=repr)
def test_the_total_is_what_an_agent_expects(game: MeanFieldGame) -> None:
    found = gap(game, random_policy(game, (3,)))
    torch.testing.assert_close(total(game, found.flow), found.value.sum(-1), rtol=1e-13, atol=1e-13)


def test_the_total_of_a_stationary_game_is_an_agents_discounted_life() -> None:
    game = Epidemic(horizon=None, discount=0.9)
    found = gap(game, random_policy(game))
    torch.testing.assert_close(total(game, found.flow), found.value.sum(-1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("game", GAMES, ids=repr)
def test_marginal_values_are_the_gradient_of_the_total(game: MeanFieldGame) -> None:
    policy = random_policy(game)
    path = flow(game, policy)
    q = marginal_values(game, path).q
    weight = game.discount ** torch.arange(len(policy), dtype=policy.dtype).reshape(-1, 1, 1)
    # Along a direction that keeps probabilities summing to one: sum gamma^t mu q d = dJ, by central differences.
    direction = random_policy(game, seed=1) - policy
    said = ((weight * path.mu).unsqueeze(-1) * q * direction).sum()
    step = 1e-5
    up, down = (total(game, flow(game, policy + s * step * direction)) for s in (1, -1))
    torch.testing.assert_close(said, (up - down) / (2 * step), rtol=1e-7, atol=1e-8)


def test_marginal_values_are_right_in_states_where_nobody_comes() -> None:
    # Nobody is infected and nobody can be: one infected agent more would infect others at the next step.
    game = Epidemic(horizon=2, infected=0.0)
    all_out = uniform(game) * 0 + torch.tensor([1.0, 0.0], dtype=torch.float64)
    v = marginal_values(game, flow(game, all_out)).v[0, 0]
    # He pays 1 now, 0.7 at the next step, and makes 0.81 susceptible agents sick, who pay 1 at the next step.
    assert float(v[1]) == pytest.approx(-1 - 0.7 - 0.81, abs=1e-12)
    selfish = values.of_policy(game, flow(game, all_out)).v[0, 0]
    assert float(selfish[1]) == pytest.approx(-1.7, abs=1e-12)


@pytest.mark.parametrize("power", [1, 2, 4])
def test_selfish_drivers_on_pigous_roads_lose_what_is_known(power: int) -> None:
    game = Pigou(power=power)
    share = (1 + power) ** (-1 / power)  # at the optimum, on the narrow road
    policies = [torch.tensor([1 - x, x], dtype=torch.float64).reshape(1, 1, 1, 2) for x in (1.0, share)]
    # Roughgarden and Tardos 2002: 1 / (1 - p (p + 1)^(-(p + 1) / p)); 4/3 at p = 1.
    known = 1 / (1 - power * (power + 1) ** (-(power + 1) / power))
    assert float(price_of_anarchy(game, *policies)) == pytest.approx(known, rel=1e-13)
    assert float(exploitability(game, policies[0])) == 0
    assert float(exploitability(game, policies[1])) == pytest.approx((1 - share) * (1 - share**power), rel=1e-12)
    # With tolls it is the other way round.
    assert float(exploitability(marginal(game), policies[1])) == pytest.approx(0, abs=1e-13)
    assert float(exploitability(marginal(game), policies[0])) == pytest.approx(power, rel=1e-12)


def test_an_equilibrium_with_tolls_is_the_planners_optimum() -> None:
    game = Towels(places=5)
    tolled = solve(marginal(game), MirrorDescent(rate=1.0), 2000, 1e-9)
    planned = solve(game, Planner(), 300)
    best = float(-planned.exploitability)
    # J is concave: by how much it misses its maximum is at most the exploitability with tolls.
    assert best - 1e-12 <= float(total(game, flow(game, tolled.policy)) + tolled.exploitability)
    assert float(exploitability(marginal(game), planned.policy)) < 1e-4
    assert float(tolled.exploitability) < 1e-3
    torch.testing.assert_close(flow(game, tolled.policy).mu, flow(game, planned.policy).mu, rtol=0, atol=1e-2)
    # Without them the selfish lose.
    selfish = solve(game, MirrorDescent(rate=1.0), 2000, 1e-9)
    assert float(total(game, flow(game, selfish.policy))) < best - 1e-2


def test_who_fears_the_logarithm_of_a_crowd_needs_no_toll() -> None:
    # d/dmu of mu log mu is log mu + 1: the same one for all, wherever they go.
    game = BeachBar(places=5)
    assert float(exploitability(game, solve(game, Planner(), 500).policy)) < 1e-5


def test_tolls_of_tolls_can_be_differentiated() -> None:
    game = marginal(Pigou(power=2))
    policy = random_policy(game)
    path = flow(game, policy)
    # sum L (r + L r') = -(x0 + 3 x1^3); its derivative is -(1, 9 x1^2).
    q = marginal_values(game, path).q[0, 0, 0]
    x = policy[0, 0, 0, 1]
    torch.testing.assert_close(q, -torch.stack([torch.ones_like(x), 9 * x**2]), rtol=1e-12, atol=0)


def test_a_tolled_game_is_played_by_agents_too() -> None:
    env = Simulation(marginal(Pigou(num_agents=4)), copies=1, device="cpu")
    env.reset(Key(0))
    t = env.step(torch.tensor([[0, 1, 1, 1]]))
    # 3/4 are on the narrow road: each pays 3/4 and as much again for what it does to the others.
    assert t.reward[0].tolist() == [-1.0, -1.5, -1.5, -1.5]


def test_tolls_are_refused_where_the_crowd_moves_the_dynamics() -> None:
    with pytest.raises(ConfigError, match="solver planner"):
        marginal(Epidemic())


def test_common_noise_is_refused() -> None:
    game = BeachBar(closing=0.3)
    with pytest.raises(ConfigError, match="common noise"):
        marginal(game)
    with pytest.raises(ConfigError, match="common noise"):
        price_of_anarchy(game, uniform(game), uniform(game))


def test_tolls_for_games_side_by_side() -> None:
    games = [Pursuit(crowding=x) for x in (0.5, 2.0)]
    together = marginal(side_by_side(games))
    policy = random_policy(games[0], (2,))
    found = exploitability(together, policy)
    for b, game in enumerate(games):
        assert float(found[b]) == pytest.approx(float(exploitability(marginal(game), policy[:, b])), abs=1e-12)


def test_a_price_of_anarchy_of_gains_and_costs_is_refused() -> None:
    game = Matrix(matrix=((1.0, 1.0), (-1.0, -1.0)))
    gain, cost = (torch.tensor(p, dtype=torch.float64).reshape(1, 1, 1, 2) for p in ([1.0, 0.0], [0.0, 1.0]))
    with pytest.raises(ConfigError, match="two costs or two gains"):
        price_of_anarchy(game, cost, gain)
