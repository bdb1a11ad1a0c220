"""Spins as a game: rewards counted by hand, every small lattice summed exactly, the published phase transition."""

from __future__ import annotations

import itertools
import math

import networkx
import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.envs.ising import Ising, State
from mfmarl.errors import ConfigError
from mfmarl.population.environment import agent_ids
from mfmarl.population.graph import Graph
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical

CRITICAL = 1.134593


def _links(game: Ising) -> list[tuple[int, int]]:
    if game.links is None:
        return list(itertools.permutations(range(game.num_agents), 2))
    return [(i, j) for i, j in game.links.links().tolist()]


def _reward(game: Ising, spins: list[int], agent: int) -> float:
    q, others = game.states, [spins[j] for i, j in _links(game) if i == agent]
    strength = game.coupling / 2 / (game.num_agents - 1 if game.graph == "complete" else 1)
    if q == 2:
        own = 2 * spins[agent] - 1
        return game.field * own + strength * own * sum(2 * k - 1 for k in others)
    return game.field * (spins[agent] == q - 1) + strength * sum(k == spins[agent] for k in others)


def _graph() -> Graph:
    return Graph.from_networkx(networkx.star_graph(11))


GAMES = [
    Ising(12, coupling=0.7, field=0.3),
    Ising(12, states=3, field=-0.2),
    Ising(12, graph="complete", coupling=1.5),
    Ising(12, graph="complete", states=4, field=0.1),
    Ising(12, graph="random_regular", degree=3),
    Ising(12, graph="small_world", degree=4, rewiring=0.5, coupling=-1.0),
    Ising(12, dimension=1),
    Ising(27, dimension=3),
    Ising(12, graph=_graph()),
]


@pytest.mark.parametrize("game", GAMES)
def test_rewards_and_measures_agree_with_counting_link_by_link(game):
    copies, n, q = 4, game.num_agents, game.states
    game = Ising(**{**_options(game), "order": "synchronous"})
    ids = agent_ids(copies, n)
    action = random.integers(Key.of(3), ids, q)
    state, reward = game.step(game.reset(ids, Key.of(0)), action, ids, Key.of(1))
    measured = game.measure(state)
    for copy in range(copies):
        spins = action[copy].tolist()
        expected = [_reward(game, spins, i) for i in range(n)]
        assert reward[copy].tolist() == pytest.approx(expected, abs=1e-6)
        own = sum(game.field * ((2 * s - 1) if q == 2 else (s == q - 1)) for s in spins)
        # Every bond is paid to both its ends: H = -(paid for bonds)/2 - (paid for the field).
        energy = -(sum(expected) - own) / 2 - own
        assert measured["energy"][copy].item() == pytest.approx(energy / n, abs=1e-6)
        share = max(spins.count(k) for k in range(q)) / n
        assert measured["magnetisation"][copy].item() == pytest.approx((q * share - 1) / (q - 1), abs=1e-6)


def _options(game: Ising) -> dict[str, object]:
    return {name: getattr(game, name) for name in game.__dataclass_fields__}


@pytest.mark.parametrize("game", GAMES)
def test_a_change_of_mind_is_paid_exactly_what_it_takes_from_the_energy(game):
    # The reward differences of one spin are minus the energy differences: a Boltzmann choice is the heat bath of H.
    n, q = game.num_agents, game.states
    game = Ising(**{**_options(game), "order": "synchronous"})
    ids = agent_ids(q, n)
    action = random.integers(Key.of(9), ids[:1], q).repeat(q, 1)
    for agent in (0, n // 2):
        tries = action.clone()
        tries[:, agent] = torch.arange(q)
        state, reward = game.step(game.reset(ids, Key.of(0)), tries, ids, Key.of(1))
        energy = game.measure(state)["energy"] * n
        assert (reward[:, agent] + energy - reward[0, agent] - energy[0]).tolist() == pytest.approx([0] * q, abs=2e-5)


SMALL = [
    Ising(9, order="sequential"),
    Ising(12, shape=(3, 4)),
    Ising(16),
    Ising(16, coupling=-1.0),
    Ising(9, dimension=1, coupling=1.3, field=0.2),
    Ising(10, graph="complete", coupling=2.0),
    Ising(10, graph="complete", coupling=-1.0, field=0.3),
    Ising(8, graph="random_regular", degree=3, coupling=0.0, field=0.4),
]


@pytest.mark.parametrize("game", SMALL)
@pytest.mark.parametrize("temperature", [0.6, 1.2, 3.0])
def test_references_of_small_populations_agree_with_the_sum_over_all_configurations(game, temperature):
    n = game.num_agents
    every = torch.tensor(list(itertools.product((0, 1), repeat=n)), dtype=torch.int8)
    every_game = Ising(**{**_options(game), "order": "synchronous"})
    ids = torch.zeros(every.shape, dtype=torch.int64)
    state, reward = every_game.step(every_game.reset(ids, Key.of(0)), every.long(), ids, Key.of(0))
    measured = {**every_game.measure(state), "reward": reward.mean(1)}
    p = torch.softmax(-measured["energy"].double() * n / temperature, dim=0)
    known = game.reference(temperature)
    exact = {name: answer for name, answer in known.items() if "infinite lattice" not in answer.source}
    assert {"energy", "reward"} <= set(exact)
    for name, answer in exact.items():
        assert float(p @ measured[name].double()) == pytest.approx(answer.value, abs=2e-6), name


def _heat_bath(game: Ising, tau: float, copies: int, burn: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
    """Time averages [E] of a policy that knows its neighbours' spins and answers them at temperature tau."""
    simulation = Simulation(game, copies, check=False)
    timestep = simulation.reset(Key.of(seed))
    totals: dict[str, Tensor] = {}
    for step in range(burn + steps):
        sign = (2 * timestep.action - 1).to(torch.int8)
        strength = game.coupling / (game.num_agents - 1 if game.links is None else 1)
        gain = strength * game._sum(sign).float() + 2 * game.field
        up = random.uniform(simulation.key.fold("policy", step), simulation.ids) < torch.sigmoid(gain / tau)
        acting = timestep.acting
        timestep = simulation.step(up.long())
        if step >= burn:
            paid = timestep.reward.sum(1) / acting.sum(1).clamp(min=1)
            for name, value in {**simulation.measure(), "reward": paid}.items():
                totals[name] = totals.get(name, 0) + value / steps
    return totals


def _near(samples: Tensor, value: float, slack: float = 0.0) -> bool:
    """Within five standard errors; copies are independent, so their time averages are the blocks."""
    samples = samples.double()
    return abs(float(samples.mean()) - value) < 5 * float(samples.std()) / len(samples) ** 0.5 + slack


@pytest.mark.parametrize(("tau", "published", "error"), [(1.0, 0.911, 5e-4), (1.1346, 0.691, 7e-3), (1.2, 0.460, 6e-3)])
@statistical(alpha=beyond(5, 3), bugs=("uniforms-lean", "steps-share-noise"))
def test_the_checkerboard_heat_bath_has_the_published_magnetisation_and_kaufmans_energy(tau, published, error):
    game = Ising(400, start="ordered")
    seen = _heat_bath(game, tau, copies=64, burn=300, steps=900)
    assert _near(seen["magnetisation"], published, slack=5 * error)
    known = game.reference(tau)
    assert known["magnetisation"].value == pytest.approx(published, abs=5e-4)
    assert _near(seen["energy"], known["energy"].value)
    assert _near(seen["reward"], known["reward"].value)


@pytest.mark.parametrize(
    "game",
    [
        Ising(9, order="checkerboard"),
        Ising(9, order="sequential"),
        Ising(9, graph="complete", order="sequential", coupling=2.0, field=0.1),
        Ising(9, graph="complete", coupling=2.0, field=0.1),
        Ising(10, dimension=1, field=0.2),
    ],
)
@statistical(alpha=beyond(5), bugs=("uniforms-lean", "last-number-never"))
def test_moving_in_turn_has_the_exact_stationary_law(game):
    seen = _heat_bath(game, 1.2, copies=3_000, burn=150, steps=60)
    for name, answer in game.reference(1.2).items():
        assert _near(seen[name], answer.value), name


def test_large_random_regular_graphs_are_bethes():
    game = Ising(20_000, graph="random_regular", start="ordered")
    for tau in (1.0, 1.3):
        seen, known = _heat_bath(game, tau, copies=2, burn=120, steps=80), game.reference(tau)
        # Corrections of order 1/N; a single copy's time average has a standard error of about 1e-3.
        for name in ("magnetisation", "reward"):
            assert float(seen[name].mean()) == pytest.approx(known[name].value, abs=6e-3)


def test_moving_all_at_once_is_another_game_whose_two_sublattices_blink():
    game = Ising(400, order="synchronous")
    simulation = Simulation(game, 2, check=False)
    simulation.reset(Key.of(0))
    parity = game.colours.to(torch.int8)
    start = torch.stack([parity, torch.ones(400, dtype=torch.int8)])
    simulation.state = State(start, simulation.state.turn)
    simulation.timestep = simulation.timestep._replace(action=start.long())
    timestep = simulation.timestep
    for step in range(200):
        gain = game._sum((2 * timestep.action - 1).to(torch.int8)).float()
        up = random.uniform(Key.of(1).fold(step), simulation.ids) < torch.sigmoid(gain / 0.8)
        timestep = simulation.step(up.long())
    blinking, aligned = (simulation.measure()[name] for name in ("staggered", "magnetisation"))
    assert blinking[0] > 0.9 > 0.2 > aligned[0]
    assert aligned[1] > 0.9 > 0.2 > blinking[1]


@pytest.mark.parametrize(("tau", "m"), [(1.0, 0.9575), (1.2, 0.9073), (1.5, 0.7755), (1.8, 0.5254)])
@statistical(alpha=beyond(5, 200), bugs=("uniforms-lean", "pairs-share-noise"))
def test_simultaneous_learners_obey_the_mean_field_law(tau, m):
    known = Ising(order="synchronous").reference(tau)
    assert known["magnetisation"].value == pytest.approx(m, abs=6e-5)
    assert known["reward"].value == pytest.approx(2 * m * m, abs=3e-4)
    # The law fixes itself: independent spins of that mean expect of up exactly what keeps their mean.
    game = Ising(10_000, order="synchronous")
    ids = agent_ids(40, 10_000)
    up = random.uniform(Key.of(4), ids) < (1 + m) / 2
    _, reward = game.step(game.reset(ids, Key.of(0)), up.long(), ids, Key.of(1))
    gain = (reward[up].double().mean() - reward[~up].double().mean()).item()
    assert math.tanh(gain / (2 * tau)) == pytest.approx(m, abs=5e-3)
    assert _near(reward.mean(1), 2 * m * m, slack=1e-3)


@statistical(alpha=beyond(5), bugs=("uniforms-lean", "pairs-share-noise"))
def test_who_does_not_feel_its_neighbours_cannot_make_an_antiferromagnet():
    """Heads or tails by a common mean m >= 0: what earns is leaning neither way; both lattices then are at random."""
    game, tau = Ising(400, coupling=-1.0), 1.0
    known = game.reference_independent(tau)
    ids = agent_ids(4000, 400)
    action = (random.uniform(Key.of(5), ids) < 0.5).long()
    state, reward = game.step(game.reset(ids, Key.of(0)), action, ids, Key.of(1))
    measured = {**game.measure(state), "reward": reward.mean(1)}
    for name in ("reward", "staggered", "magnetisation"):
        # A draw of all spins at once is one sweep of order "synchronous"; checkerboard moves half of a random start.
        assert _near(measured[name], known[name].value), name
    assert known["reward"].value == 0.0
    assert known["staggered"].value == pytest.approx(math.sqrt(2 / (math.pi * 400)), rel=1e-3)
    # A mean of its own for leaning up is no law: tanh pulls it back to 0.
    assert set(game.reference_independent(tau)) == {"reward", "energy", "staggered", "magnetisation"}


def test_critical_temperatures_are_those_of_the_papers():
    assert Ising().critical_temperature() == pytest.approx(CRITICAL, abs=1e-6)
    assert Ising(coupling=2.0).critical_temperature() == pytest.approx(2 * CRITICAL, abs=2e-6)
    assert Ising(order="synchronous").critical_temperature() == 2.0
    assert Ising(states=3).critical_temperature() == pytest.approx(0.994973 / 2, abs=5e-7)
    assert Ising(graph="random_regular").critical_temperature() == pytest.approx(1.442695, abs=5e-7)
    assert Ising(graph="complete").critical_temperature() == 0.5
    assert Ising(order="partial").critical_temperature() is None
    for order in ("checkerboard", "synchronous"):
        game = Ising(250_000, order=order, start="ordered")
        tau = game.critical_temperature()
        assert tau is not None
        assert game.reference(0.98 * tau)["magnetisation"].value > 0.2
        above = game.reference(1.05 * tau).get("magnetisation")
        assert above is None or above.value < 0.01


def test_potts_spins_of_the_complete_graph_reach_the_mean_field_shares():
    game = Ising(3_000, states=3, graph="complete", start="ordered", order="synchronous")
    tau = 0.12
    simulation = Simulation(game, 8, check=False)
    timestep = simulation.reset(Key.of(2))
    for step in range(60):
        counts = torch.stack([(timestep.action == k).sum(1) for k in range(3)], 1).float()
        law = torch.softmax(counts / (2 * 3_000 * tau), -1).cumsum(-1)[:, None, :2]
        draw = random.uniform(Key.of(3).fold(step), simulation.ids).unsqueeze(-1)
        timestep = simulation.step((draw > law).sum(-1))
    known = game.reference(tau)
    assert known["magnetisation"].value > 0.5
    for name, seen in {**simulation.measure(), "reward": timestep.reward.mean(1)}.items():
        if name in known:
            assert float(seen.mean()) == pytest.approx(known[name].value, abs=0.03)


def test_the_ground_state_is_the_reference_of_the_greedy():
    assert Ising().reference()["reward"].value == 2.0
    assert Ising(field=-0.5).reference()["reward"].value == 2.5
    assert Ising(coupling=-1.0).reference()["staggered"].value == 1.0
    assert Ising(states=3, field=-1.0).reference()["reward"].value == 2.0
    assert Ising(9, coupling=-1.0).reference() == {}
    for game in (Ising(start="ordered"), Ising(start="ordered", states=5), Ising(start="ordered", graph="complete")):
        simulation = Simulation(game, 1)
        simulation.reset(Key.of(0))
        for name, answer in game.reference().items():
            if name != "reward":
                assert simulation.measure()[name].item() == pytest.approx(answer.value)


@pytest.mark.parametrize("order", ["checkerboard", "sequential", "synchronous", "partial"])
def test_only_those_who_move_are_paid_and_changed(order):
    simulation = Simulation(Ising(100, order=order, participation=0.3, field=0.01), 5)
    timestep = simulation.reset(Key.of(0))
    moved = torch.zeros(5, 100)
    for step in range(40):
        before, acting = simulation.state.spin.clone(), timestep.acting.clone()
        moved += acting
        timestep = simulation.step(random.integers(Key.of(1).fold(step), simulation.ids, 2))
        assert torch.equal(timestep.reward != 0, acting)
        assert bool((simulation.state.spin == before)[~acting].all())
        assert torch.equal(timestep.action, simulation.state.spin.long())
    each = {"checkerboard": 20, "sequential": 0.4, "synchronous": 40, "partial": 12}[order]
    assert float(moved.mean()) == pytest.approx(each, rel=0.1)


@pytest.mark.parametrize(
    "game", [Ising(16), Ising(15, shape=(3, 5)), Ising(12, graph="small_world"), Ising(5, graph="complete")]
)
def test_neighbours_never_move_together_on_a_checkerboard_and_everyone_has_a_turn(game):
    simulation = Simulation(game)
    timestep = simulation.reset(Key.of(0))
    colours = int(game.colours.max()) + 1
    turns = torch.zeros(game.num_agents, dtype=torch.long)
    for _ in range(colours):
        acting = timestep.acting[0]
        turns += acting
        for i, j in _links(game):
            assert not (acting[i] and acting[j])
        timestep = simulation.step(timestep.action)
    assert turns.tolist() == [1] * game.num_agents


def test_spins_see_themselves_and_their_neighbours_only_when_asked():
    action = torch.zeros(1, 9, dtype=torch.int8)
    action[0, 4] = 1
    own, both = Ising(9), Ising(9, sight="neighbours")
    state = State(action, torch.zeros(1, dtype=torch.long))
    assert own.observe(state)[0, :, 0].tolist() == [-1, -1, -1, -1, 1, -1, -1, -1, -1]
    assert both.observe(state)[0, :, 1].tolist() == [-1, -0.5, -1, -0.5, -1, -0.5, -1, -0.5, -1]
    assert Ising(9, sight="nothing").observe(state).unique().tolist() == [1]
    potts = Ising(9, states=3, sight="neighbours").observe(state)
    assert potts[0, 1].tolist() == [1, 0, 0, 0.75, 0.25, 0]


def test_many_neighbours_do_not_overflow_small_integers():
    hub = Ising(400, graph=Graph.from_networkx(networkx.star_graph(399)), start="ordered", order="synchronous")
    simulation = Simulation(hub)
    timestep = simulation.reset(Key.of(0))
    assert simulation.step(timestep.action).reward[0, 0].item() == 399 / 2
    large = Simulation(Ising(100_000, graph="complete", start="ordered", order="synchronous"))
    assert large.step(large.reset(Key.of(0)).action).reward.unique().tolist() == [0.5]


def test_a_torus_is_laid_out_as_nearly_square_as_it_can_be():
    assert Ising(400).sides == (20, 20)
    assert Ising(100_000).sides == (250, 400)
    assert Ising(1_000, dimension=3).sides == (10, 10, 10)
    assert Ising(7, dimension=1).sides == (7,)
    assert Ising(36, dimension=2, shape=(3, 12)).sides == (3, 12)


def test_the_picture_shows_every_site_in_its_state():
    game = Ising(12, shape=(3, 4))
    spin = torch.tensor([[0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 1]], dtype=torch.int8)
    picture = game.render(State(spin, torch.zeros(1, dtype=torch.long)))
    assert picture.dtype == torch.uint8
    height, width = picture.shape[0] // 3, picture.shape[1] // 4
    assert height == width
    assert max(picture.shape) >= 256
    blocks = picture.view(3, height, 4, width, 3)
    assert bool((blocks == blocks[:, :1, :, :1]).all())
    flat = blocks[:, 0, :, 0].reshape(12, 3)
    assert (flat == flat[0]).all(-1).tolist() == (spin[0] == 0).tolist()
    assert Ising(10, graph="complete").render(State(spin[:, :10], spin[:, 0])).shape[2] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_agents": 0}, "num_agents must be at least 1"),
        ({"num_agents": 2}, "take num_agents=9"),
        ({"num_agents": 401}, "take num_agents=400"),
        ({"num_agents": 10, "shape": (3, 4)}, "give num_agents=12, not 10"),
        ({"num_agents": 4, "shape": (2, 2)}, "at least 3 sites along each axis, not 2x2"),
        ({"graph": "thorus"}, "Did you mean 'torus'"),
        ({"graph": "complete", "shape": (20, 20)}, "A shape is for graph='torus'"),
        ({"graph": "random_regular", "num_agents": 5, "degree": 3}, "No graph of 5 nodes has degree 3"),
        ({"graph": "small_world", "degree": 3}, "even degree"),
        ({"graph": "small_world", "rewiring": 1.5}, "rewiring must be in"),
        ({"graph": Graph.torus_of((3, 3))}, "give num_agents=9"),
        ({"order": "checkers"}, "Did you mean 'checkerboard'"),
        ({"start": "hot"}, "start cannot be 'hot'"),
        ({"sight": "all"}, "sight cannot be 'all'"),
        ({"states": 1}, "states must be from 2 to 127"),
        ({"participation": 0.0}, "participation must be above 0"),
        ({"coupling": math.nan}, "must be finite"),
        ({"dimension": 0}, "dimension must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Ising(**options)


def test_a_networkx_graph_is_taken_as_it_is():
    game = Ising(6, graph=networkx.cycle_graph(6))  # type: ignore[arg-type]
    assert game.links is not None
    assert game.links.degree.tolist() == [2] * 6
    assert Simulation(game).reset(Key.of(0)).obs.shape == (1, 6, 1)
