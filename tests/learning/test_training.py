from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl.envs.ising import Ising
from mfmarl.errors import ConfigError
from mfmarl.learning.memory import Replay
from mfmarl.learning.run_config import Choice
from mfmarl.learning.training import Training
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.simulation import Simulation
from mfmarl.statmech import gibbs
from tests.learning.mini import Arms, Corridor, Lattice, finish, train
from tests.statistical import beyond, statistical

# Small enough that every one of them learns, wraps its memory and begins new episodes within forty steps.
QUICK: dict[str, dict[str, Any]] = {
    "mfq": {"hidden": (8,), "warm_up": 8, "batch_size": 8, "capacity": 40},
    "mfac": {"hidden": (8,), "warm_up": 8, "batch_size": 8, "capacity": 40},
    "mfppo": {"hidden": (8,), "rollout": 6, "epochs": 2, "minibatches": 2},
    "sb3": {"hidden": (8,), "n_steps": 6, "epochs": 2, "warm_up": 8, "batch_size": 8, "exploration_steps": 20},
    "random": {},
}
QUICK |= {"iql": QUICK["mfq"], "iac": QUICK["mfac"], "ippo": QUICK["mfppo"]}


def weights(training: Training) -> dict[str, Tensor]:
    tensors, _ = training.state_dict()
    return tensors


def assert_resumes(rules: PopulationEnv, agent: str | dict[str, Choice], options: dict[str, Any], **run: Any) -> None:
    """Stopped at a report, in the middle of rollouts and episodes, and gone on with elsewhere: the same bits."""

    def begin() -> Training:
        return train(rules, agent, options, steps=44, report_every=5, evaluation_steps=3, **run)

    whole = begin()
    rows, saved = [], None
    for number, row in enumerate(whole.rows()):
        rows.append({k: v for k, v in row.items() if k not in ("wall", "cpu")})
        if number == 3:
            tensors, plain = whole.state_dict()
            saved = {k: v.clone() for k, v in tensors.items()}, dict(plain)
    assert saved is not None
    torch.manual_seed(123)  # noqa: TID251 - nothing may depend on the global generators
    np.random.seed(123)
    again = begin()
    again.load_state_dict(*saved)
    assert finish(again) == rows[4:]
    expected, found = weights(whole), weights(again)
    assert set(expected) == set(found)
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []


@pytest.mark.parametrize("agent", ["mfq", "iql", "mfac", "iac", "mfppo", "ippo", "random"])
@pytest.mark.parametrize("sharing", ["all", "none"])
def test_a_resumed_run_is_the_run_that_never_stopped(agent: str, sharing: str) -> None:
    """With turns, deaths and cut episodes, in the middle of rollouts."""
    assert_resumes(Lattice(risk=0.03, horizon=17), agent, QUICK[agent], sharing=sharing)


@pytest.mark.parametrize("agent", ["mfq", "mfac"])
@pytest.mark.parametrize("sharing", ["all", "none"])
def test_a_resumed_run_with_priorities_is_the_run_that_never_stopped(agent: str, sharing: str) -> None:
    assert_resumes(Lattice(risk=0.03, horizon=17), agent, {**QUICK[agent], "priority": 0.6}, sharing=sharing)


@pytest.mark.parametrize("agent", ["mfq", "mfac", "mfppo"])
@pytest.mark.parametrize("optimiser", ["sgld", "psgld", "sghmc"])
def test_a_resumed_run_with_warm_weights_is_the_run_that_never_stopped(agent: str, optimiser: str) -> None:
    warm = {"optimiser": optimiser, "weight_temperature": "geometric(1e-2, 1e-4)"}
    assert_resumes(Lattice(risk=0.03, horizon=17), agent, {**QUICK[agent], **warm}, sharing="none")


def test_a_resumed_run_with_replicas_is_the_run_that_never_stopped() -> None:
    options = {**QUICK["mfq"], "replicas": 3, "priority": 0.6}
    assert_resumes(Lattice(risk=0.03, horizon=17), "mfq", options, sharing="none")


def test_off_policy_learners_tell_how_many_of_their_rows_count() -> None:
    for agent, options in (("mfq", {"priority": 0.8, "correction": 1.0}), ("mfac", {"priority": 0.8}), ("mfppo", {})):
        row = finish(train(Arms(6), agent, {**QUICK[agent], **options}, steps=40, report_every=40))[-1]
        assert 0 < row["all/effective_sample_share"] <= 1 + 1e-6
        if agent == "mfq":
            assert row["all/effective_sample_share"] < 0.999


def test_priorities_are_corrected_in_full_by_the_end_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    plain = Replay.draw

    def watched(memory: Replay, batch: int, key: Any, correction: float = 1.0) -> Any:
        seen.append(correction)
        return plain(memory, batch, key, correction)

    monkeypatch.setattr(Replay, "draw", watched)
    finish(train(Arms(8), "mfq", {**QUICK["mfq"], "priority": 0.6, "correction": 0.4}, steps=40, report_every=40))
    assert seen == sorted(seen) and 0.4 <= seen[0] < 0.45
    assert seen[-1] == pytest.approx(0.4 + 0.6 * 39 / 40)


@pytest.mark.parametrize("agent", ["mfq", "mfac", "mfppo"])
def test_a_resumed_run_is_the_run_that_never_stopped_in_lockstep(agent: str) -> None:
    assert_resumes(Arms(6, horizon=7), agent, {**QUICK[agent], "remember": 5}, sharing="all")


def test_a_resumed_table_is_the_table_that_never_stopped() -> None:
    options = {"values": "table", "learning_rate": 0.1, "temperature": "entropy(0.3)"}
    assert_resumes(Lattice(risk=0.03, horizon=17), "mfq", options, sharing="none")


def test_a_changing_temperature_is_resumed() -> None:
    assert_resumes(Arms(6), "mfq", {**QUICK["mfq"], "temperature": "geometric(1, 0.1)"})
    assert_resumes(Arms(6), "mfac", {**QUICK["mfac"], "temperature": "entropy(0.4)"})


def test_teams_are_played_by_different_agents_each_in_its_slots() -> None:
    rules = Lattice(groups=("red", "blue"), horizon=17, risk=0.03)
    agents = {"red": Choice("mfq", QUICK["mfq"]), "blue": Choice("ippo", QUICK["ippo"])}
    training = train(rules, agents, steps=40, report_every=20)
    assert [(p.name, p.slots) for p in training.players] == [("red", slice(0, 8)), ("blue", slice(8, 16))]
    before = [{k: v.clone() for k, v in p.agent.state_dict().items()} for p in training.players]
    rows = finish(training)
    assert {"train/reward/red", "train/reward/blue", "red/loss", "blue/loss", "eval/reward/red"} <= set(rows[-1])
    for player, old in zip(training.players, before, strict=True):
        assert any(not torch.equal(old[k], v) for k, v in player.agent.state_dict().items())
    assert_resumes(rules, agents, {})


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    a, b, c = (finish(train(Arms(6), "mfq", QUICK["mfq"], steps=20, seed=s)) for s in (0, 0, 1))
    assert a == b
    assert a != c


def test_a_library_that_trains_itself_cannot_share_the_environment() -> None:
    agents = {"red": Choice("sb3"), "blue": Choice("mfq")}
    with pytest.raises(ConfigError, match="cannot share"):
        train(Lattice(groups=("red", "blue")), agents)


def test_who_waits_for_its_turn_is_taught_all_that_it_earned_meanwhile() -> None:
    """Every step pays 1 to everyone, and each colour acts every second step: a decision earns 2, and 1 at a cut."""

    class Wages(Lattice):
        def step(self, state: Any, action: Tensor, ids: Tensor, key: Any) -> Any:
            following, reward = super().step(state, action, ids, key)
            return following, torch.ones_like(reward)

    training = train(
        Wages(horizon=5), "mfq", {**QUICK["mfq"], "capacity": 1000, "warm_up": 900}, steps=50, evaluate=False
    )
    finish(training)
    ring = training.players[0].memory
    size = int(ring.size[0])
    reward, ended = ring.ring["reward"][0, :size], ring.ring["obs"][0, :size, 1]
    # An episode of 5 steps: colour 0 decides at 0, 2, 4 (the last earns 1), colour 1 at 1, 3.
    early, late = reward[ended < 0], reward[ended > 0]
    assert early.mean() == pytest.approx(5 / 3, abs=1e-6)
    assert (late == 2).all()
    assert not ring.ring["terminated"][0, :size].any()
    assert len(reward) == 10 * 2 * (8 * 3 + 8 * 2)


def test_the_dead_are_taught_their_last_step_and_nothing_after_it() -> None:
    training = train(Corridor(4, horizon=50), "mfq", {**QUICK["mfq"], "capacity": 4000, "warm_up": 4000}, steps=100)
    finish(training)
    ring, size = training.players[0].memory, int(training.players[0].memory.size[0])
    cell, action, reward, ended = (ring.ring[n][0, :size] for n in ("obs", "action", "reward", "terminated"))
    left = (cell == 2) & (action == 1)
    assert left.any()
    assert torch.equal(ended, left)
    assert (reward[left] == 1).all()
    assert (reward[~left] <= 0).all()
    assert training.agent_steps == size


def test_training_knows_who_takes_turns_and_who_moves_in_step() -> None:
    turns, mortal, plain = Lattice(), Lattice(turns=False), Arms(4)
    assert Simulation(turns).turns
    assert not Simulation(turns).lockstep
    assert not Simulation(mortal).lockstep
    assert Simulation(plain).lockstep
    assert not Simulation(plain).turns


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
@statistical(alpha=beyond(5, 10), bugs=("hot-draws", "negated-draws"))
def test_the_temperature_of_exploration_is_the_gibbs_temperature(temperature: float) -> None:
    """The frequencies of what is played in training against exp(Q/T)/Z: 5 sigma."""
    options = {"values": "table", "temperature": str(temperature), "field": "nothing", "learning_rate": 0.0}
    training = train(Arms(2000, pay=(0.0, 1.0, 2.0)), "mfq", options, evaluate=False, steps=10)
    q = torch.tensor([0.0, 0.5, -0.3])
    agent: Any = training.players[0].agent
    agent.values.value[:] = q
    counts = torch.zeros(3)
    for _ in range(10):
        counts += torch.bincount(training.episode.act().flatten(), minlength=3)
        training.step()
    p = gibbs.probabilities(-q, temperature)
    n = counts.sum()
    assert ((counts / n - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()


def test_measures_in_training_are_those_of_what_the_players_did() -> None:
    """Not of the first state of the next episode, which nobody chose: here every episode is one step of all up."""
    rules = Ising(16, order="synchronous", horizon=1)
    training = train(rules, "random", evaluate=False, steps=20, copies=2)
    training.episode.act = lambda: torch.ones(2, 16, dtype=torch.int64)  # type: ignore[method-assign]
    assert {row["train/magnetisation"] for row in training.rows()} == {1.0}


@pytest.mark.parametrize("agent", ["mfq", "mfppo"])
@pytest.mark.parametrize("options", [{}, {"order": "partial", "participation": 0.3}], ids=["checkerboard", "partial"])
def test_of_a_large_crowd_only_those_who_are_asked_choose_and_they_choose_as_before(
    agent: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """40,000 spins, several chunks: the same run, bit by bit, as where everybody's network is asked."""

    def run() -> tuple[list[Tensor], Training]:
        small = {"hidden": (8,)} if agent == "mfq" else {"hidden": (8,), "rollout": 2, "epochs": 1}
        training = train(Ising(40_000, **options), agent, small, evaluate=False, steps=4)
        actions = []
        while training.tick < 4:
            training.step()
            actions.append(training.episode.timestep.action)
        return actions, training

    some, training = run()
    mind, episode = training.players[0].agent, training.episode
    asked = episode.timestep.acting
    assert 0 < int(asked.sum()) < 0.8 * asked.numel()
    assert int(episode.act()[~asked].abs().sum()) == 0  # who is not asked is not thought for
    monkeypatch.setattr(type(mind), "_asked", lambda self, timestep: None)
    assert int(episode.act()[~asked].abs().sum()) > 0
    everyone, other = run()
    assert all(torch.equal(a, b) for a, b in zip(some, everyone, strict=True))
    pairs = zip(mind.parameters(), other.players[0].agent.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
