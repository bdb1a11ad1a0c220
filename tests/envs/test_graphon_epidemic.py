"""The graphon epidemic: the threshold R_0 = 1, known spectra, the SIS game's equilibrium, and N agents."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl.envs.graphon_epidemic import GraphonEpidemic
from mfmarl.errors import ConfigError
from mfmarl.games.exploitability import exploitability, gap
from mfmarl.games.flow import flow
from mfmarl.games.game import MeanFieldGame
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from tests.statistical import beyond, statistical

GRAPHONS = ["constant", "uniform_attachment", "ranked_attachment", "communities"]


def out(game: MeanFieldGame, probability: float = 1.0) -> torch.Tensor:
    """Everybody goes out with this probability when well, and always when ill: [T, 1, S, A]."""
    policy = torch.zeros(game.num_states, 2, dtype=torch.float64)
    policy[:, 0] = 1
    policy[::2, 0], policy[::2, 1] = probability, 1 - probability
    return policy.expand(game.horizon or 1, 1, -1, -1).clone()


@pytest.mark.parametrize("graphon", GRAPHONS)
@pytest.mark.parametrize("number", [0.8, 1.25])
def test_a_small_outbreak_dies_below_the_threshold_and_stays_above_it(graphon, number):
    recovery = 0.3
    unit = GraphonEpidemic(types=4, graphon=graphon, infection=1.0, recovery=recovery).reproduction()
    game = GraphonEpidemic(
        types=4, graphon=graphon, infection=number / unit, recovery=recovery, infected=1e-9, horizon=900
    )
    assert game.reproduction() == pytest.approx(number)
    ill = game.measures(flow(game, out(game)).mu)["infected"]
    # Once its shape is the leading eigenvector's, it grows by 1 + rho (R_0 - 1) a step.
    assert float(ill[150] / ill[149]) == pytest.approx(1 + recovery * (number - 1), rel=1e-3)
    assert (float(ill[-1]) > 0.01) == (number > 1)


def test_block_graphons_have_their_operators_eigenvalues_as_blocks_get_finer():
    fine = {g: GraphonEpidemic(types=256, graphon=g, infection=1.0, recovery=1.0).reproduction() for g in GRAPHONS}
    assert fine["constant"] == pytest.approx(1)
    # int_0^1 (1 - max(x, y)) f(y) dy = l f: f = cos(pi x / 2), l = 4 / pi^2.
    assert fine["uniform_attachment"] == pytest.approx(4 / math.pi**2, abs=1e-4)
    # 1 - x y on span(1, x): l = (2/3 + (4/9 + 1/3)^(1/2)) / 2... the root of l^2 - 2 l / 3 - 1/12 = 0.
    assert fine["ranked_attachment"] == pytest.approx((2 / 3 + (4 / 9 + 1 / 3) ** 0.5) / 2, abs=1e-4)
    assert fine["communities"] == pytest.approx(0.55)


def test_everybody_out_settles_at_the_endemic_share_of_the_sis_model():
    game = GraphonEpidemic(graphon="constant", horizon=400)
    ill = game.measures(flow(game, out(game)).mu)["infected"]
    assert float(ill[-1]) == pytest.approx(1 - 0.3 / 0.8, abs=1e-9)


@pytest.mark.parametrize("types", [1, 3])
@pytest.mark.parametrize(
    ("discount", "ill", "going"), [(0.9, 0.50754, 0.75209), (0.95, 0.43535, 0.65593), (0.99, 0.38284, 0.60012)]
)
def test_where_all_are_alike_the_stationary_equilibrium_is_that_of_sis(types, discount, ill, going):
    game = GraphonEpidemic(types=types, graphon="constant", infection=0.81, horizon=None, discount=discount)
    assert game.stationary() == pytest.approx((ill, going), abs=6e-6)
    at = gap(game, out(game, game.stationary()[1]))
    assert float(at.exploitability) == pytest.approx(0, abs=1e-8)
    assert float(game.measures(at.flow.mu)["infected"][0]) == pytest.approx(game.stationary()[0], abs=1e-9)
    known = game.reference()
    assert (at.flow.joint * at.flow.rewards).sum().item() == pytest.approx(known["reward"].value, abs=1e-9)
    assert float(exploitability(game, out(game, 0.9))) > 1e-2


def test_where_staying_at_home_costs_too_much_all_go_out():
    game = GraphonEpidemic(graphon="constant", distance=0.99, horizon=None, discount=0.9)
    assert game.stationary() == pytest.approx((0.625, 1.0))
    assert float(exploitability(game, out(game))) == pytest.approx(0, abs=1e-10)


def test_better_connected_types_are_iller():
    game = GraphonEpidemic()
    ill = [float(game.measures(flow(game, out(game)).mu)[f"infected/{k}"][-1]) for k in range(3)]
    assert ill[0] > ill[1] > ill[2] > 0


@statistical(alpha=beyond(5), bugs=("trembling-flow", "uniforms-narrow"))
def test_types_never_change_and_many_agents_fall_ill_as_the_limit_says():
    game, copies = GraphonEpidemic(num_agents=20_000, horizon=8), 4
    simulation = Simulation(game, copies)
    simulation.reset(Key.of(0))
    kinds = simulation.state.state // 2
    for _ in range(7):
        simulation.step(torch.zeros_like(kinds))
    assert torch.equal(simulation.state.state // 2, kinds)
    known = game.measures(flow(game, out(game)).mu)
    for name, seen in simulation.measure().items():
        # 80,000 draws, a third of them of each type: five standard errors of a share, thrice for the crowd's own noise.
        assert float(seen.mean()) == pytest.approx(float(known[name][7]), abs=15 * (0.25 / 27_000) ** 0.5), name


@pytest.mark.parametrize(
    ("options", "said"), [({"infection": 1.2}, "infection must be float"), ({"types": 0}, "types must be int")]
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        GraphonEpidemic(**options)
    with pytest.raises(ConfigError, match="graphon=constant"):
        GraphonEpidemic().stationary()
