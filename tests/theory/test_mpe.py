"""MPE2 end to end: trained, evaluated and ranked by the same code as everything else, and learners beat random play."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mfmarl.evaluation.elo import win_matrix
from mfmarl.evaluation.tournament import Entrant, tournament
from mfmarl.learning.build import build
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import read_metrics

pytest.importorskip("mpe2")

SPREAD = Choice("mpe2/simple_spread_v3")
ACTOR: dict[str, Any] = {"temperature": "0.02", "gamma": 0.95, "rollout": 25}
VALUES: dict[str, Any] = {"temperature": "geometric(0.5, 0.05)", "gamma": 0.95, "learning_rate": 5e-4}


@pytest.mark.parametrize("agent", [Choice("mfppo", ACTOR), Choice("mfq", {**VALUES, "warm_up": 64})])
def test_a_short_training_on_simple_spread_evaluates(agent: Choice, tmp_path: Path) -> None:
    options = RunOptions(steps=50, copies=2, report_every=25, evaluation_copies=2, evaluation_steps=25)
    first, again = (
        read_metrics(run_in_folder(RunConfig(SPREAD, {"all": agent}, options), tmp_path / name).path)
        for name in ("one", "two")
    )
    assert [row["step"] for row in first] == [25, 50] and first[-1]["agent_steps"] == 50 * 2 * 3
    assert math.isfinite(first[-1]["all/loss"]) and first[-1]["eval/reward"] < 0
    # Nothing of it hangs on the clock or on a generator that somebody else draws from.
    timed = ("wall", "cpu")
    assert [{k: v for k, v in r.items() if k not in timed} for r in first] == [
        {k: v for k, v in r.items() if k not in timed} for r in again
    ]


def test_hunters_and_hunted_are_ranked(tmp_path: Path) -> None:
    tag = Choice("mpe2/simple_tag_v3", {"max_cycles": 25})
    options = RunOptions(steps=30, copies=2, report_every=30, evaluation_copies=0, sharing="group")
    learned = run_in_folder(
        RunConfig(tag, {"all": Choice("mfq", {**VALUES, "warm_up": 16, "batch_size": 16})}, options), tmp_path / "tag"
    )
    entrants = [Entrant("mfq", 0, learned.path), Entrant("random", 0, None, Choice("random"))]
    stage = RunConfig(tag, {"all": Choice("random")}, RunOptions(copies=10, sharing="group"))
    matches = list(tournament(stage, entrants, games=10, horizon=25))
    points, games = win_matrix(("mfq", "random"), matches)
    assert games.tolist() == [[0, 20], [20, 0]] and points.sum() == 20


def rewards(agent: Choice, steps: int, seeds: int) -> np.ndarray:
    """Reward per agent-step of the frozen policy over 8 fresh episodes in 16 copies, for every seed."""
    found = []
    for seed in range(seeds):
        options = RunOptions(seed=seed, steps=steps, copies=16, report_every=steps, evaluation_copies=16)
        built = build(RunConfig(SPREAD, {"all": agent}, options))
        try:
            while built.training.tick < steps:
                built.training.step()
            found.append(built.training.evaluate(200)["eval/reward"])
        finally:
            built.close()
    return np.array(found)


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_learners_spread_better_than_random_play() -> None:
    seeds = 4
    random = rewards(Choice("random"), 1, seeds)
    for agent in (Choice("mfppo", ACTOR), Choice("mfq", VALUES)):
        gain = rewards(agent, 1500, seeds) - random  # the same episodes for the same seed
        error = gain.std(ddof=1) / math.sqrt(seeds)
        assert gain.mean() > 5 * error and gain.mean() > 0.1, (agent.name, gain)
