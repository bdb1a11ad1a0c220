"""Active inference as an agent: beliefs are Bayes', acting is the engine's, and what is learned is true."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mfmarl.agents.active_inference import ActiveInference
from mfmarl.errors import ConfigError, MfmarlError
from mfmarl.inference import files, filtering, senses
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import sophisticated
from mfmarl.inference.unknown import level
from mfmarl.inference.world import World
from mfmarl.learning.training import Training
from mfmarl.random import Key
from tests.agents.test_conformance import fork
from tests.learning.mini import Corridor, train


def mind(training: Training) -> ActiveInference:
    agent = training.players[0].agent
    assert isinstance(agent, ActiveInference)
    return agent


def b_of(agent: ActiveInference, name: str = "count") -> Tensor:
    """The counts of how the first factor moves."""
    tables = agent._kept(name).B
    assert tables is not None and tables[0] is not None
    return tables[0]


def lived(training: Training, steps: int) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """(observations, what was acted upon, actions, whether an episode has just begun) at every time."""
    episode = training.episode
    shown, believed, done, begun = [], [], [], []
    for _ in range(steps):
        shown.append(episode.timestep.obs)
        believed.append(episode.seen[0].obs)
        begun.append(episode.timestep.step == 0)
        _, action, after, now = episode.play()
        done.append(action)
        episode.go_on(after, now)
    return shown, believed, done, begun


def test_beliefs_are_those_of_bayes_rule_through_every_episode() -> None:
    model = fork()
    training = train(World(model, 5, horizon=4), "active_inference", {}, copies=3)
    shown, believed, done, begun = lived(training, 9)
    flat = model.joint()
    # A new episode is a history of its own: an action of -1.
    actions = torch.stack([torch.where(begun[t].unsqueeze(-1), -1, done[t - 1]) for t in range(1, 9)])
    outcomes = senses.outcomes(model, training.episode.env.spec.observation_space, torch.stack(shown))
    truth, _ = filtering.follow(flat, outcomes, actions, "exact")
    assert sum(int(b.all()) for b in begun) == 3
    for mine, theirs in zip(believed, truth, strict=True):
        torch.testing.assert_close(mine.double(), theirs[0], atol=1e-5, rtol=1e-4)


def test_energies_are_minus_what_the_engine_says_of_its_beliefs() -> None:
    training = train(
        World(fork(), 5, horizon=4), "active_inference", {"planning": "sophisticated", "depth": 2, "alpha": 3.0}
    )
    agent = mind(training)
    lived(training, 2)
    obs = agent.by_mind(training.episode.seen[0].obs)
    with torch.no_grad():
        mine = agent.energy(obs, torch.zeros(1, obs.shape[1], 0))
    plan = sophisticated.plan(fork().joint(), (obs.double(),), 2, 16.0, Objective(), "free_energy")
    torch.testing.assert_close(mine.double(), -3.0 * plan.value, atol=1e-4, rtol=1e-4)


def test_first_choices_weigh_what_is_told_against_what_is_paid() -> None:
    """The guide is right nine times of ten: ln 2 - H(.1) nat and surely no prize; a side: ln 2 nat, and half a prize."""
    agent = mind(train(World(fork(), 5, horizon=4), "active_inference", {"planning": "open_loop", "depth": 1}))
    with torch.no_grad():
        energy = agent.energy(torch.tensor([[[0.5, 0.5, 0, 0, 0, 0]]]), torch.zeros(1, 1, 0))[0, 0]
    noise = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    # Two modalities of three outcomes each, among which nothing is preferred.
    nothing = -math.log(1 + math.e) - 2 * math.log(3)
    prize = nothing + 1
    asking = nothing + math.log(2) - noise
    # The guide says which side it is even there where no guide is: the prize itself tells all.
    going = (nothing + prize) / 2 + math.log(2)
    torch.testing.assert_close(-energy.double(), torch.tensor([asking, going, going]).double(), atol=1e-5, rtol=1e-5)


def test_transitions_that_are_learned_come_to_be_true() -> None:
    """Counts of moves, 5 standard errors of a binomial share: of a world that is seen, so beliefs are certain."""
    world = seen_world()
    options = {"learn": "B", "scale": 1e-3, "temperature": "1e3", "depth": 1}
    blind = world.trusted(B=(torch.full_like(world.B[0], 1 / 3),))
    training = train(World(world, 50, horizon=None), "active_inference", options, copies=1, steps=60, report_every=60)
    agent = mind(training)
    agent.given = blind.to(dtype=torch.float32)
    b_of(agent).fill_(1e-3)
    b_of(agent, "start").fill_(1e-3)
    agent._forget_made()
    list(training.rows())
    count = b_of(agent).double()
    visits = count.sum(0)
    assert float(visits.sum()) == pytest.approx(50 * 60, rel=1e-3)
    p = world.B[0]
    error = (p * (1 - p) / visits).sqrt()
    assert bool((((count / visits) - p).abs() <= 5 * error + 1e-2 / visits).all())


def seen_world(slip: float = 0.2) -> GenerativeModel:
    """Three places in a ring, which are seen; one goes left or right, and slips."""
    eye = torch.eye(3).double()
    moves = torch.stack([(1 - slip) * eye.roll(k, 0) + slip * eye for k in (1, -1)], -1)
    return GenerativeModel(
        A=(eye,), B=(moves,), C=(torch.tensor([0.0, 0.0, 1.0]).double(),), D=(torch.full((3,), 1 / 3).double(),)
    )


def test_a_world_of_which_nothing_is_known_is_learned_and_then_played_well() -> None:
    """The best place is left whenever one moves, and entered with .8: half of the time at best, p = .2 p + .8 (1 - p)."""
    options = {"model": "learned", "parameter_information": "exact", "depth": 3, "reward_range": [0.0, 1.0]}
    options |= {"reward_levels": 2, "planning": "sophisticated"}
    world = World(seen_world(), 40, horizon=20)
    rows = list(train(world, "active_inference", options, copies=2, steps=60, report_every=20).rows())
    assert abs(rows[-1]["train/reward"] - 0.5) < 5 * (0.25 / (80 * 20)) ** 0.5


def test_minds_of_their_own_count_what_they_alone_have_seen() -> None:
    options = {"learn": "AB", "scale": 1.0}
    own = mind(train(World(seen_world(), 6, horizon=5), "active_inference", options, sharing="none"))
    assert b_of(own).shape == (6, 1, 3, 3, 2)
    shared = train(World(seen_world(), 6, horizon=5), "active_inference", options, steps=10, report_every=10, copies=1)
    before = float(b_of(mind(shared)).sum())
    list(shared.rows())
    assert float(b_of(mind(shared)).sum()) - before == pytest.approx(60, rel=1e-4)
    alone = train(
        World(seen_world(), 6, horizon=5),
        "active_inference",
        options,
        steps=10,
        report_every=10,
        copies=1,
        sharing="none",
    )
    list(alone.rows())
    gained = b_of(mind(alone)).sum((1, 2, 3, 4)) - 6
    torch.testing.assert_close(gained, torch.full((6,), 10.0))


def test_what_is_forgotten_leaves_a_memory_of_so_many_visits() -> None:
    """Stationary extra counts are rate / forgetting (each step adds `rate` in all and takes that share away)."""
    options = {"learn": "B", "rate": 2.0, "forgetting": 0.1}
    training = train(
        World(seen_world(), 1, horizon=None), "active_inference", options, steps=200, report_every=200, copies=1
    )
    agent = mind(training)
    before = float(b_of(agent, "start").sum())
    list(training.rows())
    assert float(b_of(agent).sum()) - before == pytest.approx(2.0 / 0.1, rel=1e-4)


def test_what_cannot_be_seen_is_told_by_modality_unless_by_the_dead() -> None:
    training = train(World(seen_world(slip=0.0), 4, horizon=9), "active_inference", {})
    agent, episode = mind(training), training.episode
    _, _, after, now = episode.play()
    wrong = after._replace(obs=(after.obs + 1) % 3)
    carried = {k: v.clone() for k, v in episode.carried[0].items()}
    with pytest.raises(ConfigError, match="modality '0'"):
        agent.perceive(carried, wrong, now[0], episode.env.ids, Key.of(0))
    agent.perceive(carried, wrong._replace(alive=torch.zeros_like(wrong.alive)), now[0], episode.env.ids, Key.of(0))


def test_a_model_is_read_from_a_file(tmp_path: Path) -> None:
    files.save(fork(), tmp_path / "fork.safetensors")
    options = {"model": str(tmp_path / "fork.safetensors")}
    given = lived(train(World(fork(), 5, horizon=4), "active_inference", options), 6)
    own = lived(train(World(fork(), 5, horizon=4), "active_inference", {}), 6)
    assert all(torch.equal(a, b) for a, b in zip(given[2], own[2], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "gives no generative model"),
        ({"model": "nowhere.safetensors"}, "nowhere"),
        ({"learn": "AX"}, "letters of ABDE"),
        ({"parameter_information": "exact"}, "needs tables that are learned"),
        ({"model": "learned", "reward_range": [1.0, 0.0]}, "lower and a higher"),
    ],
)
def test_what_it_cannot_do_is_told_in_a_sentence(options: dict[str, object], message: str) -> None:
    with pytest.raises(MfmarlError, match=message) as told:
        train(Corridor(4), "active_inference", options)
    assert "\n" not in str(told.value)


def test_a_model_of_another_world_is_refused(tmp_path: Path) -> None:
    files.save(seen_world(), tmp_path / "ring.safetensors")
    with pytest.raises(ConfigError, match="18 observations .* 3 outcomes"):
        train(World(fork(), 5), "active_inference", {"model": str(tmp_path / "ring.safetensors")})


def test_the_planner_in_the_same_model_is_not_curious() -> None:
    training = train(World(fork(), 5, horizon=4), "belief_planner", {"depth": 2})
    agent = mind(training)
    assert agent.objective.state_information == "none" and agent.config.backup == "max"
    obs = agent.by_mind(training.episode.seen[0].obs)
    with torch.no_grad():
        mine = agent.energy(obs, torch.zeros(1, obs.shape[1], 0))
    plan = sophisticated.plan(fork().joint(), (obs.double(),), 2, 16.0, Objective("none"), "max", discount=0.99)
    torch.testing.assert_close(mine.double(), -plan.value, atol=1e-4, rtol=1e-4)


def test_preferences_out_of_reach_are_told_with_their_modality() -> None:
    """Three places in a row, the best of them behind a wall: nothing that can be seen is preferred to anything else."""
    eye = torch.eye(3).double()
    there, back = torch.tensor([1, 1, 2]), torch.tensor([0, 0, 2])
    moves = torch.stack([eye[there].mT, eye[back].mT], -1)
    walled = GenerativeModel(
        A=(eye,), B=(moves,), C=(torch.tensor([0.0, 0.0, 3.0]).double(),), D=(eye[0],), modalities=("place",)
    )
    with pytest.raises(ConfigError, match="modality 'place' are out of reach.* outcome 2"):
        train(World(walled, 2), "active_inference", {})
    train(World(walled, 2), "active_inference", {"learn": "B"})
    likes_the_middle = walled.trusted(C=(torch.tensor([0.0, 1.0, 3.0]).double(),))
    train(World(likes_the_middle, 2), "active_inference", {})


def hidden_world() -> GenerativeModel:
    """Two states that are seen eight times of ten."""
    blur = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).double()
    moves = torch.tensor([[0.9, 0.3], [0.1, 0.7]]).double().unsqueeze(-1)
    return GenerativeModel(
        A=(blur,), B=(moves,), C=(torch.tensor([0.0, 1.0]).double(),), D=(torch.ones(2).double() / 2,)
    )


def test_an_episode_that_begins_with_an_action_in_force_begins_from_d() -> None:
    """A spin stands from the first: what stands was nobody's move."""
    world = hidden_world()
    training = train(World(world, 3, horizon=9), "active_inference", {})
    agent, episode = mind(training), training.episode
    lived(training, 2)
    again = episode.timestep._replace(step=torch.zeros_like(episode.timestep.step))
    assert bool((again.action >= 0).all())
    view, _ = agent.perceive(episode.carried[0], again, episode.felt[0], episode.env.ids, Key.of(0))
    torch.testing.assert_close(
        view.double(), world.A[0][again.obs], atol=1e-5, rtol=1e-4
    )  # uniform D: the column alone


def test_a_move_between_states_that_are_hidden_is_counted_by_their_posterior() -> None:
    """One step by hand: xi(s', s) = p(o' | s') B(s' | s, u) q(s) / p(o'), not the product of the two beliefs."""
    world = hidden_world()
    training = train(World(world, 1, horizon=9), "active_inference", {"learn": "B"}, copies=1, evaluate=False)
    agent = mind(training)
    before = b_of(agent).double().clone()
    q = training.episode.seen[0].obs[0, 0, :2].double()
    training.step()
    seen = int(training.episode.timestep.obs[0, 0])
    pair = world.A[0][seen].unsqueeze(-1) * world.B[0][..., 0] * q
    torch.testing.assert_close(b_of(agent).double()[..., 0] - before[..., 0], pair / pair.sum(), atol=1e-5, rtol=1e-4)


def test_rewards_are_told_by_the_nearest_level() -> None:
    levels = torch.linspace(-1, 1, 5)
    assert level(torch.tensor([-3.0, -0.8, -0.7, 0.2, 0.3, 1.0]), levels).tolist() == [0, 0, 1, 2, 3, 4]
