"""Congestion games: the published equilibria, and the rules counted driver by driver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfmarl.envs.congestion import Congestion, State
from mfmarl.errors import ConfigError
from mfmarl.population.environment import agent_ids
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.statmech import gibbs
from tests.statistical import beyond, statistical


def _costs(game: Congestion, routes: tuple[int, ...]) -> list[float]:
    """What every driver pays, counted by hand."""
    load = [sum(game.incidence[r][link] for r in routes) / len(routes) for link in range(len(game.a))]
    toll = game.power if game.toll else 0.0
    paid = [a + (1 + toll) * b * x**game.power for a, b, x in zip(game.a, game.b, load, strict=True)]
    return [sum(p for p, used in zip(paid, game.incidence[r], strict=True) if used) for r in routes]


def test_pigou_has_its_known_equilibrium_optimum_and_price_of_anarchy():
    pigou = Congestion(network="pigou")
    assert pigou.equilibrium() == pytest.approx([0, 1], abs=1e-12)
    assert pigou.cost(pigou.equilibrium()) == pytest.approx(1)
    assert pigou.optimal_cost == pytest.approx(0.75)
    assert pigou.price_of_anarchy() == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("beta", "share", "cost"),
    [(1, 0.598942, 0.759789), (2, 0.662584, 0.776434), (5, 0.764499, 0.819960), (10, 0.836649, 0.863333), (50, 0.943640, 0.946817)],
)  # fmt: skip
def test_pigous_logit_shares_have_their_known_digits(beta, share, cost):
    pigou = Congestion(network="pigou")
    shares = pigou.equilibrium(1 / beta)
    assert shares[1] == pytest.approx(share, abs=6e-7)
    assert pigou.cost(shares) == pytest.approx(cost, abs=6e-7)


def test_the_four_affine_links_have_their_known_wardrop_split_and_optimum():
    game = Congestion()
    assert game.equilibrium() == pytest.approx([0.529412, 0.411765, 0.058824, 0], abs=6e-7)
    assert game.cost(game.equilibrium()) == pytest.approx(0.529412, abs=6e-7)
    assert game.social_optimum() == pytest.approx([0.382353, 0.352941, 0.264706, 0], abs=6e-7)
    assert game.optimal_cost == pytest.approx(0.483824, abs=6e-7)
    assert game.price_of_anarchy() == pytest.approx(1.094225, abs=6e-7)


@pytest.mark.parametrize(
    ("beta", "shares", "cost"),
    [
        (1, (0.319967, 0.286790, 0.237344, 0.155899), 0.534349),
        (5, (0.434194, 0.348038, 0.192905, 0.024863), 0.495113),
        (20, (0.493236, 0.382445, 0.124300, 0.000020), 0.506676),
    ],
)
def test_the_four_affine_links_have_their_known_logit_split(beta, shares, cost):
    game = Congestion()
    assert game.equilibrium(1 / beta) == pytest.approx(shares, abs=6e-7)
    assert game.cost(game.equilibrium(1 / beta)) == pytest.approx(cost, abs=6e-7)
    crowd = Congestion(num_agents=1_000_000).reference(1 / beta)
    assert [crowd[f"share/{k}"].value for k in range(4)] == pytest.approx(shares, abs=2e-6)
    assert crowd["cost"].value == -crowd["reward"].value == pytest.approx(cost, abs=2e-6)


def test_braess_drivers_are_better_off_without_the_shortcut():
    shortcut, closed = Congestion(network="braess"), Congestion(network="braess", shortcut=False)
    assert shortcut.cost(shortcut.equilibrium()) == pytest.approx(2, abs=1e-8)
    assert closed.cost(closed.equilibrium()) == pytest.approx(1.5)
    assert shortcut.optimal_cost == pytest.approx(1.5)
    assert shortcut.price_of_anarchy() == pytest.approx(4 / 3)
    assert closed.price_of_anarchy() == pytest.approx(1)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(0.01, 2), st.floats(0, 2)), min_size=1, max_size=5), st.floats(0.05, 2))
def test_affine_costs_never_lose_more_than_a_third_to_anarchy(links, temperature):
    a, b = zip(*links, strict=True)
    game = Congestion(intercepts=(0.1, *a), slopes=(1.0, *b))
    assert 1 - 1e-9 <= game.price_of_anarchy() <= 4 / 3 + 1e-9
    assert game.cost(game.equilibrium(temperature)) >= game.optimal_cost - 1e-9


@pytest.mark.parametrize(
    "game",
    [
        Congestion(5),
        Congestion(4, toll=True, power=2.0),
        Congestion(4, network="braess"),
        Congestion(4, network="braess", toll=True),
        Congestion(5, network="braess", shortcut=False),
        Congestion(4, intercepts=(0.3, 0.1), slopes=(0.2, 3.0), power=4.0),
    ],
)
def test_rewards_and_measures_agree_with_counting_driver_by_driver(game):
    n, routes = game.num_agents, len(game.incidence)
    every = list(itertools.product(range(routes), repeat=n))
    action = torch.tensor(every)
    ids = agent_ids(len(every), n)
    state, reward = game.step(game.reset(ids, Key.of(0)), action, ids, Key.of(1))
    measured = game.measure(state)
    for row, choice in enumerate(every):
        paid = _costs(game, choice)
        assert (-reward[row]).tolist() == pytest.approx(paid, abs=1e-6)
        best = max(
            paid[i] - _costs(game, (*choice[:i], other, *choice[i + 1 :]))[i]
            for i in range(n)
            for other in range(routes)
        )
        assert measured["exploitability"][row].item() == pytest.approx(max(best, 0), abs=1e-6)
        free = Congestion(**{**vars_of(game), "toll": False})
        assert measured["cost"][row].item() == pytest.approx(np.mean(_costs(free, choice)), abs=1e-6)


def vars_of(game: Congestion) -> dict[str, object]:
    return {name: getattr(game, name) for name in game.__dataclass_fields__}


@pytest.mark.parametrize(
    "game", [Congestion(4), Congestion(3, power=3.0, toll=True), Congestion(4, network="braess"), Congestion(1)]
)
def test_the_logit_equilibrium_of_a_finite_crowd_answers_the_exact_expectation(game):
    temperature, n, routes = 0.3, game.num_agents, len(game.incidence)
    p = game.equilibrium(temperature, drivers=n)
    expected = np.zeros(routes)
    mean = 0.0
    for others in itertools.product(range(routes), repeat=n - 1):
        weight = np.prod(p[list(others)])
        for own in range(routes):
            expected[own] += weight * _costs(game, (own, *others))[0]
    reply = np.exp(-expected / temperature)
    assert p == pytest.approx(reply / reply.sum(), abs=1e-8)
    mean = float(p @ expected)
    assert game.reference(temperature)["reward"].value == pytest.approx(-mean, abs=1e-8)


@statistical(alpha=beyond(5, 8), bugs=("hot-draws", "negated-draws"))
def test_a_crowd_of_logit_drivers_measures_what_the_reference_says():
    game, copies, rounds = Congestion(), 400, 50
    p = torch.tensor(game.equilibrium(0.2, drivers=100))
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(5))
    samples: dict[str, list[torch.Tensor]] = {}
    for step in range(rounds):
        action = gibbs.sample(-p.log().float().expand(copies, 100, 4), 1.0, simulation.ids, Key.of(6).fold(step))
        timestep = simulation.step(action)
        for name, value in {**simulation.measure(), "reward": timestep.reward.mean(1)}.items():
            samples.setdefault(name, []).append(value)
    for name, known in game.reference(0.2).items():
        seen = torch.cat(samples[name]).double()
        error = seen.std() / len(seen) ** 0.5
        assert abs(seen.mean() - known.value) < 5 * error, name


def test_greedy_drivers_who_move_one_by_one_stop_at_the_equilibrium_and_with_tolls_at_the_optimum():
    for toll, cost in ((False, 0.529412), (True, 0.483824)):
        game = Congestion(num_agents=340, toll=toll)
        route = torch.zeros((1, 340), dtype=torch.long)
        ids = agent_ids(1, 340)
        for turn in range(1_020):
            driver = turn % 340
            tries = route.repeat(4, 1)
            tries[:, driver] = torch.arange(4)
            _, reward = game.step(State(tries.to(torch.uint8)), tries, ids.repeat(4, 1), Key.of(0))
            route[0, driver] = reward[:, driver].argmax()
        measured = {name: value.item() for name, value in game.measure(State(route.to(torch.uint8))).items()}
        assert measured["cost"] == pytest.approx(cost, abs=2e-3)
        assert measured["exploitability"] < 1e-6
        if not toll:
            assert measured["potential"] == pytest.approx(game.reference()["potential"].value, abs=1e-4)


def test_the_reference_names_are_those_measured():
    for game in (Congestion(), Congestion(network="braess"), Congestion(toll=True), Congestion(power=2.5)):
        ids = agent_ids(2, game.num_agents)
        measured = {"reward", *game.measure(game.reset(ids, Key.of(0)))}
        for temperature in (0.0, 1e-3, 0.2, 100.0):
            known = game.reference(temperature)
            assert {"cost", "reward", "share/0"} <= set(known) <= measured
    assert Congestion(toll=True).reference()["cost"].kind == "optimum"
    assert Congestion().reference()["cost"].kind == "equilibrium"


def test_an_unused_road_stays_empty_in_the_picture_and_the_routes_in_their_colours():
    game = Congestion(num_agents=4)
    picture = game.render(State(torch.tensor([[0, 0, 0, 1]], dtype=torch.uint8)))
    assert picture.dtype == torch.uint8
    columns = picture.float().mean(0).mean(-1)
    quarter = picture.shape[1] // 4
    dark = [columns[k * quarter : (k + 1) * quarter].min().item() for k in range(4)]
    assert dark[0] < dark[1] < dark[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_agents": 0}, "at least 1"),
        ({"network": "brass"}, "Did you mean 'braess'"),
        ({"intercepts": (1.0, 2.0)}, "there are 2 and 4"),
        ({"network": "braess", "intercepts": (1.0,), "slopes": (1.0,)}, "5 links, not 1"),
        ({"intercepts": (-1.0,), "slopes": (1.0,)}, "at least 0"),
        ({"intercepts": (float("nan"),), "slopes": (1.0,)}, "finite"),
        ({"intercepts": (0.0, 1.0), "slopes": (0.0, 1.0)}, "free at any load"),
        ({"power": 0.0}, "power must be positive"),
        ({"intercepts": (1.0,) * 256, "slopes": (1.0,) * 256}, "at most 255"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Congestion(**options)
