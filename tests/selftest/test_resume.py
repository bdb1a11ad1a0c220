"""Runs that are killed and go on, a few of them; and that a state which is not kept is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mfmarl.learning import checkpoint, run_folder, training
from mfmarl.registry import entries
from mfmarl.selftest import resume
from mfmarl.selftest.goal import Order
from mfmarl.selftest.resume import CANNOT, PLAYED, Kill, Trial, attempt, differences, environments

pytestmark = pytest.mark.filterwarnings("ignore::mfmarl.learning.run_folder.RunWarning")

# Where each agent can play: the shipped trial finds that out by trying, which takes longer.
_WHERE = {
    "active_inference": "t_maze", "belief_planner": "t_maze", "independent_inference": "spin_collective",
    "mean_field_inference": "spin_collective", "kl_control": "crowd_modelling", "free_energy_equilibrium": "beach_bar",
    "rusher": "magent2/battle_v4",
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return environments(tmp_path_factory.mktemp("places"))


def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_STEPS", 13)
    of = resume.config_of
    monkeypatch.setattr(resume, "config_of", lambda trial, choice: of(trial, choice, 13))


@pytest.mark.parametrize(
    ("agent", "environment"),
    [("mfq", "FaultyAECEnv"), ("mfppo", "FaultyEnv"), pytest.param("sb3", "congestion", marks=pytest.mark.verify)],
)
def test_a_run_that_is_killed_is_the_run_that_was_not(
    agent: str, environment: str, places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small(monkeypatch)
    struck: list[str] = []
    assert attempt(Trial(agent, environment, kills=2, seed=1), places[environment], tmp_path, struck) == (PLAYED, "")
    assert len(struck) == 2  # kills that fall into the run, not behind its end


@pytest.mark.verify
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("agent", sorted(entries("agent")))
def test_every_agent_is_killed_and_goes_on(agent: str, threads: int, places: dict[str, Any], tmp_path: Path) -> None:
    where = _WHERE.get(agent, "FaultyEnv" if threads == 1 else "susceptible_infected")
    if where not in places:
        pytest.skip(f"{where} is not installed")
    how, told = attempt(Trial(agent, where, threads, kills=3, seed=threads), places[where], tmp_path)
    assert (how, told) == (PLAYED, "")


def test_a_memory_that_is_not_taken_up_is_found_out(
    places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small(monkeypatch)
    load = training.load_player_state
    monkeypatch.setattr(
        training, "load_player_state", lambda p, state, device, memory=True: load(p, state, device, False)
    )
    monkeypatch.setattr(resume, "_drawn", lambda *_: Kill("row", 2, 9))
    how, told = attempt(Trial("mfq", "congestion", kills=1), places["congestion"], tmp_path)
    assert how == PLAYED
    assert "SIGKILL at row 2" in told


def test_a_run_that_begins_anew_with_another_seed_is_found_out(
    places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small(monkeypatch)
    monkeypatch.setattr(checkpoint, "list_checkpoints", lambda folder: [])  # never goes on, always from the start
    monkeypatch.setattr(run_folder.RunFolder, "truncate_to", lambda self, offset: 0)
    monkeypatch.setattr(resume, "_drawn", lambda *_: Kill("row", 2, 9))
    how, told = attempt(Trial("random", "congestion", kills=1), places["congestion"], tmp_path)
    assert how == PLAYED
    assert told


def test_an_agent_that_cannot_play_says_why(places: dict[str, Any], tmp_path: Path) -> None:
    how, told = attempt(Trial("rusher", "congestion"), places["congestion"], tmp_path)
    assert how == CANNOT
    assert "magent2/battle_v4" in told


@pytest.mark.parametrize("change", ["bit", "state", "row", "fewer rows"])
def test_a_difference_of_one_bit_is_seen(change: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        odd = name == "b"
        with run_folder.create(tmp_path / name, {"run": {"steps": 2}}) as run:
            run.append({"step": 1, "wall": 0.1 + odd, "reward": 0.5})
            if not (odd and change == "fewer rows"):
                run.append({"step": 2, "reward": 0.5 + 1e-16 * (odd and change == "row") * 2})
            weights = torch.tensor([1.0, float("nan"), 0.0])
            if odd and change == "bit":
                weights[2] = -0.0
            state = {"tick": 2, "wall": float(odd), "agent_steps": 3 + (odd and change == "state")}
            checkpoint.save(run.checkpoints, 2, {"w": weights}, state, nonfinite=("w",))
    told = differences(tmp_path / "a", tmp_path / "b")
    assert len(told) == 1
    assert differences(tmp_path / "a", tmp_path / "a") == []


@pytest.mark.verify
def test_the_goal_is_met_by_a_share_of_its_trials(tmp_path: Path) -> None:
    outcome = resume.bitwise_resume(Order(tmp_path, 0.001))
    assert outcome.met, outcome.failures
    assert outcome.trials >= len(entries("agent"))
