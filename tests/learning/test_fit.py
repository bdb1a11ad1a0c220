"""A checkpoint goes into a run only if that run could have written it; nothing is changed before that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mfmarl.errors import CheckpointError
from mfmarl.learning import fit
from mfmarl.learning.build import Built, build
from mfmarl.learning.checkpoint import Checkpoint
from mfmarl.selftest.golden import RECIPES

KINDS = [
    "replay",
    "replay_by_priority",
    "weights_with_noise",
    "mind_for_each",
    "rollout",
    "continuous_actions",
    "three_teams",
]


def _at(kind: str, steps: int) -> tuple[Built, Checkpoint]:
    built = build(RECIPES[kind].config())
    for _ in range(steps):
        built.training.step()
    tensors, plain = built.training.state_dict()
    return built, Checkpoint(steps, tensors, plain, Path("x"), of=fit.about(built.training))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_takes_its_own_checkpoints_at_any_step(kind: str) -> None:
    for steps in (0, 1, 13):
        _, found = _at(kind, steps)
        fresh = build(RECIPES[kind].config())
        fit.load_into(fresh.training, found)
        again, plain = fresh.training.state_dict()
        assert plain["tick"] == steps
        assert again.keys() == found.tensors.keys()
        assert all(torch.equal(again[n].nan_to_num(), t.nan_to_num()) for n, t in found.tensors.items())


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("player.0.memory.ring.reward", lambda t: t[:, :-1], "rows, expected"),
        ("player.0.memory.size", lambda t: t + 100, "expected 124 as"),
        ("player.0.memory.ring.action", lambda t: t + 50, "expected 0 to"),
        ("train.felt.0", lambda t: t.double(), "is float64, expected float32"),
        ("train.env.key", lambda t: t + 1, "noise of this run's seed"),
        ("player.0.optimiser.values.0.step", lambda t: t - 1e6, "below 0"),
    ],
)
def test_what_cannot_be_of_this_run_is_named_and_nothing_changes(name: str, change: Any, words: str) -> None:
    _, found = _at("replay", 13)
    assert name in found.tensors
    found.tensors[name] = change(found.tensors[name])
    fresh = build(RECIPES["replay"].config())
    before, _ = fresh.training.state_dict()
    with pytest.raises(CheckpointError, match="misfit|does not fit") as caught:
        fit.load_into(fresh.training, found)
    assert name in str(caught.value) and words in str(caught.value) and caught.value.code == "misfit-checkpoint"
    after, _ = fresh.training.state_dict()
    assert all(torch.equal(after[n].nan_to_num(), t.nan_to_num()) for n, t in before.items())


def test_all_differences_are_told_at_once_and_the_list_ends() -> None:
    _, found = _at("replay", 13)
    del found.tensors["train.felt.0"]
    found.tensors.update({f"extra.{i}": torch.ones(1) for i in range(100)})
    found.state["wall"] = -1.0
    with pytest.raises(CheckpointError) as caught:
        fit.check(build(RECIPES["replay"].config()).training, found)
    for words in ("train.felt.0 is missing", "extra.0 is not wanted", "wall is -1.0", "and 62 more"):
        assert words in str(caught.value)


def test_nan_is_refused_unless_it_is_asked_for() -> None:
    _, found = _at("replay", 13)
    name = next(n for n in found.tensors if n.startswith("player.0.agent.") and found.tensors[n].ndim > 1)
    found.tensors[name] = found.tensors[name] * float("nan")
    fresh = build(RECIPES["replay"].config())
    with pytest.raises(CheckpointError, match=f"diverged: {name} holds NaN") as caught:
        fit.load_into(fresh.training, found)
    assert caught.value.code == "nonfinite-checkpoint"
    fit.load_into(fresh.training, found, allow_nonfinite=True)


def test_another_population_is_named_beside_this_one() -> None:
    _, found = _at("rollout", 3)
    with pytest.raises(
        CheckpointError, match="It is of MFPPO in Congestion with 4 agents in 2 copies, this run of MFQ in Ising"
    ):
        fit.check(build(RECIPES["replay"].config()).training, found)
