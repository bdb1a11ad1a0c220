"""Minds go from one population to another as they are, meet the same noise there, or are told why they cannot go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mfmarl.evaluation.scaling.fluctuations import play_on, spread
from mfmarl.evaluation.scaling.transfer import DEAREST, FEWEST, MOST, length, minds, play_column, unfit
from mfmarl.learning.build import Built, build
from mfmarl.learning.run import load_training, run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from tests.statistical import beyond, statistical


def config(agent: str, num_agents: int, *, env: str = "ising", seed: int = 0, steps: int = 12, sharing: Any = "group",
           agent_options: dict[str, Any] | None = None, **options: Any) -> RunConfig:  # fmt: skip
    run = RunOptions(seed=seed, steps=steps, copies=2, evaluation_copies=8, sharing=sharing, exploitability="off")
    environment = Choice(env, {"num_agents": num_agents, **options})
    return RunConfig(environment, {"all": Choice(agent, agent_options or {})}, run)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Path]:
    """Short runs of independent learners on the beach, by size and seed."""
    found = {}
    for n in (10, 40):
        for seed in (0, 1):
            path = tmp_path_factory.mktemp("runs") / f"{n}-{seed}"
            # Unlike minds of unlike weights: what is carried over can be told apart.
            wild = {"temperature": "0.02"}
            run_in_folder(
                config("mfq", n, env="beach_bar", seed=seed, places=4, bar=1, horizon=5, agent_options=wild), path
            )
            found[n, seed] = path
    return found


def loaded(path: Path) -> Built:
    return load_training(path)[1]


@statistical(alpha=beyond(5, 200), bugs=("chain-error-tiny", "pairs-share-noise"))
def test_random_play_earns_alike_wherever_it_was_trained() -> None:
    there = {n: minds(build(config("random", n, order="synchronous"))) for n in (9, 100, 900)}
    for n in (9, 400):
        here = build(config("random", n, order="synchronous"))
        found = play_column(there, here, 60)
        rewards = [x for x in found.values() if isinstance(x, torch.Tensor)]
        assert len(rewards) == 3
        assert all(torch.equal(x, rewards[0]) for x in rewards)  # the same noise
        seen = spread(rewards[0])
        assert abs(seen.mean) < 5 * seen.mean_error  # of spins that point anywhere: 0 at every N


def test_what_is_carried_over_is_the_policy(trained: dict[tuple[int, int], Path]) -> None:
    small, large = loaded(trained[10, 0]), loaded(trained[40, 0])
    other = minds(loaded(trained[10, 1]))
    own = {40: minds(large), 10: minds(small), 11: other}
    found = play_column(own, large, 20)
    assert all(isinstance(x, torch.Tensor) and x.shape == (20, 8) for x in found.values())
    assert not torch.equal(found[40], found[10]) and not torch.equal(found[10], found[11])  # type: ignore[arg-type]
    # Weights of 10 in the other's run play as the other does: nothing of who was there before is left.
    again, there = loaded(trained[40, 0]), loaded(trained[40, 0])
    for player, mind in zip(there.players, own[10], strict=True):
        player.agent.load_state_dict(mind.weights)
    assert torch.equal(play_column({10: own[10]}, again, 20)[10], play_column({1: minds(there)}, there, 20)[1])  # type: ignore[arg-type]


def test_every_row_of_a_column_begins_at_the_same_moment(trained: dict[tuple[int, int], Path]) -> None:
    one, two = minds(loaded(trained[10, 0])), minds(loaded(trained[10, 1]))
    forwards = play_column({1: one, 2: two}, loaded(trained[40, 0]), 15)
    backwards = play_column({2: two, 1: one}, loaded(trained[40, 0]), 15)
    assert torch.equal(forwards[1], backwards[1]) and torch.equal(forwards[2], backwards[2])  # type: ignore[arg-type]


def test_the_stream_of_noise_is_not_the_evaluations(trained: dict[tuple[int, int], Path]) -> None:
    here = loaded(trained[40, 0])
    episode = loaded(trained[40, 0]).training.evaluation
    assert episode is not None
    steps = 15
    evaluated = play_on(episode, 20)["reward"][-steps:]
    assert not torch.equal(play_column({1: minds(here)}, here, steps)[1], evaluated)  # type: ignore[arg-type]


def test_minds_that_do_not_fit_are_told_why() -> None:
    def told(one: RunConfig, other: RunConfig) -> str:
        return unfit(minds(build(one)), build(other))

    assert told(config("iql", 9), config("iql", 100)) == ""
    alone = {"sharing": "none"}
    assert "a mind of its own" in told(config("iql", 9, **alone), config("iql", 16, **alone))
    assert told(config("iql", 9), config("iac", 9)) == "the kind of agent is MFQ there and MFAC here"
    assert "observation space" in told(config("iql", 9), config("iql", 9, sight="neighbours"))
    assert "action space" in told(config("iql", 9, sight="nothing"), config("iql", 9, sight="nothing", states=3))
    # The field of one's own size is part of it.
    beach = {"env": "beach_bar", "places": 4, "bar": 1}
    states = {"field": "states over everyone"}
    wrong = told(config("mfq", 10, **beach), config("mfq", 10, agent_options=states, **beach))
    assert wrong == "the field's size is 3 there and 7 here"
    hidden = {"hidden": (8,)}
    assert "there and" in told(config("iql", 9), config("iql", 9, agent_options=hidden))


def test_a_misfit_is_told_in_its_place_and_the_others_play() -> None:
    there = {9: minds(build(config("iql", 9))), 16: minds(build(config("iql", 16, sight="neighbours")))}
    found = play_column(there, build(config("iql", 25)), 8)
    assert isinstance(found[9], torch.Tensor)
    assert isinstance(found[16], str) and "observation space" in found[16]


def test_columns_cost_a_bounded_number_of_steps() -> None:
    assert length(100, 40, 4, 3) == (MOST, 3)
    steps, runs = length(1_000_000, 2, 6, 3)
    assert steps == FEWEST and runs == 1 and 1_000_000 * 2 * 6 * steps * runs <= DEAREST
    assert length(100_000_000, 2, 6, 3) == (0, 0)
    assert length(100, 40, 4, 3, horizon=30)[0] == 60
    assert length(1_000_000, 2, 2, 3, horizon=30) == (30, 1)
