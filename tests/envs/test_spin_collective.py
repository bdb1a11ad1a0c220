"""A collective of inference units: what it sees is what its model says, and its law is Boltzmann's or Peretto's."""

from __future__ import annotations

import math

import networkx
import pytest
import torch
from torch import Tensor

from mfmarl.envs.ising import Ising
from mfmarl.envs.spin_collective import SpinCollective
from mfmarl.errors import ConfigError
from mfmarl.inference import collective, filtering, senses
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import open_loop
from mfmarl.learning.episode import Episode
from mfmarl.population.graph import Graph
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.statmech.exact import enumeration
from tests.learning.mini import train
from tests.statistical import beyond, statistical

GRAPH = Graph.from_networkx(networkx.gnm_random_graph(7, 11, seed=3))
COLLECTIVES = [
    SpinCollective(7, graph=GRAPH, coupling=0.35, bias=0.2),
    SpinCollective(9, coupling=-0.3, bias=0.1),
    SpinCollective(7, graph="complete", coupling=0.9),
    SpinCollective(60, graph="complete", coupling=0.9, bias=0.1),  # a Box: too many outcomes for one number
]


def in_state(env: SpinCollective, sigma: Tensor) -> Tensor:
    """What is seen of actions -1 and +1 [E, N]."""
    ids = torch.arange(sigma.numel()).view(sigma.shape)
    return env.observe(env.reset(ids, Key.of(0))._replace(spin=((sigma + 1) / 2).to(torch.int8)))


@pytest.mark.parametrize("env", COLLECTIVES)
def test_outcomes_are_the_neighbours_sum_agreement_with_it_and_ones_own_action(env):
    model, n = env.generative_model(), env.num_agents
    senses.check(model, env.spec().observation_space)
    sigma = torch.where(torch.rand(20, n, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0)
    seen = senses.outcomes(model, env.spec().observation_space, in_state(env, sigma))
    if isinstance(seen, tuple):
        seen = torch.stack([x.argmax(-1) for x in seen], -1)
    w, _ = env.couplings()
    total = (sigma.double() @ (w != 0).double().mT).round()
    expected = torch.stack([total + env.widest, sigma * total + env.widest, (sigma + 1) / 2], -1).long()
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("env", COLLECTIVES)
def test_rewards_are_the_log_preferences_of_what_is_seen(env):
    env = SpinCollective(**{f: getattr(env, f) for f in env.__dataclass_fields__} | {"order": "synchronous"})
    model = env.generative_model()
    world = Simulation(env, 5)
    world.reset(Key.of(3))
    for t in range(4):
        action = (torch.arange(5 * env.num_agents).view(5, -1) * 7 + t) % 3 % 2
        after = world.step(action)
        seen = senses.outcomes(model, env.spec().observation_space, after.obs)
        if isinstance(seen, tuple):
            seen = torch.stack([x.argmax(-1) for x in seen], -1)
        paid = sum(model.C[m][seen[..., m]] for m in range(3))
        assert torch.allclose(after.reward.double(), paid, atol=1e-5)


def by_the_engine(env: SpinCollective, gamma: float, depth: int) -> Tensor:
    """The chance of acting +1 [2^N, N] that beliefs and expected free energy give in every joint state."""
    model = env.generative_model()
    obs = in_state(env, enumeration.spins(env.num_agents).states())
    seen = senses.outcomes(model, env.spec().observation_space, obs)
    joint = model.joint()
    believed = filtering.update(joint, tuple(d.expand(*obs.shape[:2], -1) for d in joint.D), seen, "exact").factors
    value = open_loop.plan(joint, believed, depth, gamma, Objective()).value
    return torch.softmax(gamma * value, -1)[..., 1]


@pytest.mark.parametrize(("gamma", "depth"), [(1.0, 1), (1.6, 1), (0.7, 2)])
@pytest.mark.parametrize("order", ["sequential", "synchronous"])
def test_active_inference_in_its_model_obeys_the_law(gamma, depth, order):
    """The engine's choices in all 128 states, and the exact kernel of who acts when: Boltzmann's or Peretto's law.

    Up to the chance of 1e-9 that the model gives to neighbours that turn over; action 1 is the second of u.
    """
    env = SpinCollective(7, graph=GRAPH, coupling=0.35, bias=0.2, order=order)
    up = by_the_engine(env, gamma, depth)
    assert torch.allclose(up, collective.choices(*env.couplings(), gamma), atol=1e-8)
    kernel = collective.random_scan(up) if order == "sequential" else collective.parallel(up)
    law = env.law(1 / gamma)
    assert law is not None
    assert collective.total_variation(collective.stationary(kernel), law) < 1e-8


def test_the_agent_acts_as_a_heat_bath():
    """`active_inference`, float32, beliefs carried through an episode: its energies in what it meets."""
    env = SpinCollective(9, coupling=0.35, bias=0.2, order="sequential", horizon=12)
    training = train(env, "active_inference", {"temperature": "0.8", "depth": 1}, steps=1, copies=20, evaluate=False)
    agent = training.players[0].agent
    episode = Episode(Simulation(env, 20), training.players, Key.of(4))
    for _ in range(20):
        spin = episode.env.state.spin  # type: ignore[attr-defined]
        energy = agent.energy(agent.by_mind(episode.seen[0].obs), agent.by_mind(episode.felt[0]))
        up = agent.by_copy(torch.softmax(-energy / 0.8, -1)[..., 1], 20)
        sigma = 2 * spin.double() - 1
        w, h = env.couplings()
        assert torch.allclose(up.double(), torch.sigmoid(2 / 0.8 * (sigma @ w.mT + h)), atol=1e-5)
        _, _, after, now = episode.play()
        episode.go_on(after, now)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"order": "sequential"}, 75),
        ({"order": "synchronous"}, 15),
        ({"order": "checkerboard", "graph": "complete"}, 75),
    ],
)
@statistical(alpha=beyond(5, 200), bugs=("cold-enumeration", "hot-draws"))
def test_played_by_active_inference_energy_and_order_are_those_of_the_law(options, steps):
    """1,500 collectives after burn-in, one look each: five standard errors."""
    env = SpinCollective(**{"num_agents": 9, "coupling": 0.25, "bias": 0.05, **options})
    training = train(env, "active_inference", {"temperature": "1", "depth": 1}, steps=1, copies=2, evaluate=False)
    episode = Episode(Simulation(env, 1500), training.players, Key.of(8))
    reward = torch.zeros(())
    for _ in range(steps):
        _, _, after, now = episode.play()
        episode.go_on(after, now)
        reward = after.reward
    known = env.reference(1.0)
    for name, value in env.measure(episode.env.state).items():  # type: ignore[attr-defined]
        if name in known:
            error = float(value.std()) / math.sqrt(1500)
            assert float(value.mean()) == pytest.approx(known[name].value, abs=5 * error), name
    if options["order"] == "synchronous":
        each = reward.double().mean(-1)
        assert float(each.mean()) == pytest.approx(known["reward"].value, abs=5 * float(each.std()) / math.sqrt(1500))


def test_what_is_known_is_what_enumeration_and_kernels_say():
    """The complete graph by magnetisations against all states; a partial update between the two laws."""
    for order in ("sequential", "synchronous"):
        small = SpinCollective(12, graph="complete", coupling=0.9, bias=0.1, order=order)
        w, h = small.couplings()
        law = small.law(1.25)
        assert law is not None
        states = enumeration.spins(12).states()
        mean, absolute, square = collective.complete_moments(12, 0.9 / 1.25, 0.1 / 1.25, order == "synchronous")
        found = small.reference(1.25)
        assert found["magnetisation"].value == pytest.approx(absolute, abs=1e-12)
        assert found["magnetisation/signed"].value == pytest.approx(mean, abs=1e-12)
        bonds = float(law @ ((states @ w.mT) * states).sum(-1)) / 12
        assert found["energy"].value == pytest.approx(-bonds / 2 - 0.1 * mean, abs=1e-12)
        assert bonds == pytest.approx(0.9 / 11 * (12 * square - 1), abs=1e-12)
        assert float(h[0]) == 0.1
    between = [SpinCollective(7, graph=GRAPH, order=o, participation=0.3, coupling=0.5) for o in
               ("sequential", "partial", "synchronous")]  # fmt: skip
    energies = [env.reference(1.0)["energy"].value for env in between]
    assert energies[0] < energies[1] < energies[2]
    assert SpinCollective(64, coupling=0.3).reference(1.0)["energy"].value == pytest.approx(
        Ising(64, coupling=0.6).reference(1.0)["energy"].value
    )
    assert SpinCollective(64, order="partial").reference(1.0) == {}


def test_reliability_says_the_coupling():
    assert SpinCollective(9, reliability=0.8).w == pytest.approx(0.5 * math.log(0.8 / 0.2))


def test_crowds_too_wide_for_a_model_are_refused():
    with pytest.raises(ConfigError, match="599 neighbours"):
        SpinCollective(600, graph="complete")
