"""MAgent2's battle end to end: trained, evaluated, ranked; and MF-Q learns to beat the scripted rusher.

No published number can be matched (arXiv 1802.05438 shows bars for 64 against 64); what is held is that a short
training does what it says, and that a longer one wins more than half of its battles beyond doubt.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mfmarl.evaluation.elo import standings, win_matrix
from mfmarl.evaluation.tournament import Entrant, entrants_of, play, tournament
from mfmarl.learning.build import build
from mfmarl.learning.run import run_in_folder
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.run_folder import read_metrics
from mfmarl.random import Key

pytest.importorskip("magent2")

SMALL = Choice("magent2/battle_v4", {"map_size": 16, "max_cycles": 60})
TINY = {"channels": [], "hidden": [16], "capacity": 2000, "temperature": "0.05", "warm_up": 64, "batch_size": 32}


def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "reproduce" / "battle.py"
    spec = importlib.util.spec_from_file_location("reproduce_battle", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_short_trainings_are_evaluated_and_ranked(tmp_path: Path) -> None:
    options = RunOptions(steps=40, copies=2, report_every=20, evaluation_copies=2, evaluation_steps=5)
    entrants = []
    for name in ("mfq", "iql"):
        folder = run_in_folder(RunConfig(SMALL, {"all": Choice(name, TINY)}, options), tmp_path / name)
        rows = read_metrics(folder.path)
        assert [row["step"] for row in rows] == [20, 40] and rows[-1]["agent_steps"] <= 40 * 2 * 12
        assert all(math.isfinite(rows[-1][key]) for key in ("red/loss", "blue/loss", "eval/reward/red"))
        assert rows[-1]["eval/alive/red"] <= 6
        entrants.append(Entrant(name, 0, folder.path))
    entrants.append(Entrant("rusher", 0, None, Choice("rusher")))
    stage = RunConfig(SMALL, {"all": Choice("random")}, RunOptions(copies=10, sharing="group"))
    matches = list(tournament(stage, entrants, games=10, horizon=60))
    assert len(matches) == 3 and all(match.games == 20 for match in matches)
    names = ("mfq", "iql", "rusher")
    points, games = win_matrix(names, matches)
    assert np.array_equal(games, 20 * (1 - np.eye(3)))
    assert np.array_equal(points + points.T, games)
    # Forty steps teach nobody to fight: if it lost one battle in twenty, winning 34 of 40 or fewer is a 4 sigma event.
    assert points[2, :2].sum() > 34
    table = standings(names, matches)
    assert table.rating.argmax() == 2 and table.rating.mean() == pytest.approx(1500)


def test_only_who_learned_enters_and_only_on_its_own_side() -> None:
    def run(**agents: str) -> RunConfig:
        return RunConfig(SMALL, {team: Choice(name) for team, name in agents.items()}, RunOptions(seed=7))

    path = Path("somewhere")
    assert entrants_of(path, run(all="mfq")) == entrants_of(path, run(red="mfq", blue="mfq"))
    assert entrants_of(path, run(all="mfq")) == [Entrant("mfq", 7, path)]
    # The rusher that a run was trained against is not that run.
    assert entrants_of(path, run(red="mfq", blue="rusher")) == [Entrant("mfq (red vs rusher)", 7, path, None, "red")]
    assert [e.side for e in entrants_of(path, run(red="mfq", blue="iql"))] == ["red", "blue"]
    stage = RunConfig(SMALL, {"all": Choice("random")}, RunOptions(copies=3, sharing="group"))
    red, blue = (Entrant(f"rusher {side}", 0, None, Choice("rusher"), side) for side in ("red", "blue"))
    other, either = Entrant("another", 0, None, Choice("random"), "red"), Entrant("random", 0, None, Choice("random"))
    met = {(m.first, m.second): m for m in tournament(stage, [red, blue, other, either], games=3, horizon=60)}
    # Two reds never meet; who plays either side gives one game in two.
    assert {pair: match.games for pair, match in met.items()} == {
        ("rusher red", "rusher blue"): 3, ("rusher red", "random"): 3, ("rusher blue", "another"): 3,
        ("rusher blue", "random"): 3, ("another", "random"): 3,
    }  # fmt: skip
    assert met["rusher red", "random"].wins == met["rusher blue", "another"].wins == 3


def test_the_interval_of_a_win_rate_is_wilsons() -> None:
    from scipy.stats import binomtest

    wilson = script().wilson
    for won, games in ((0, 10), (7, 10), (150, 200), (200, 200)):
        expected = binomtest(won, games).proportion_ci(method="wilson")
        assert wilson(won, games) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_ties_are_half_and_seeds_are_what_is_counted() -> None:
    module = script()
    found = module.score([(3.0, 0.0), (0.0, 2.0), (1.0, 1.0), (4.0, 1.0)])
    assert (found["wins"], found["draws"], found["losses"], found["win_rate"]) == (2, 1, 1, 0.625)
    assert found["survivors"] == [2.0, 1.0]
    from scipy.stats import t

    rates = np.array([0.5, 0.6, 0.9])
    low, high = module.over_seeds(rates)["interval_95"]
    half = t.ppf(0.975, 2) * rates.std(ddof=1) / math.sqrt(3)
    # Student's interval, by a bootstrap of 2000 draws: its width is known to 1.6 %, five times that is allowed; it ends at 1.
    assert (high, rates.mean() - low) == (1.0, pytest.approx(min(half, rates.mean()), rel=0.08))
    assert module.over_seeds(np.array([0.5]))["interval_95"] is None


@pytest.mark.verify
@pytest.mark.timeout(3600)
def test_mean_field_q_learns_to_beat_the_rusher() -> None:
    module = script()
    environment = Choice("magent2/battle_v4", {"map_size": 20, "max_cycles": 200})
    options = RunOptions(seed=0, steps=12_000, copies=8, report_every=12_000, evaluation_copies=0)
    built = build(RunConfig(environment, {"red": module.MFQ, "blue": module.RUSHER}, options))
    stage = build(RunConfig(environment, {"all": Choice("random")}, RunOptions(copies=25, evaluation_copies=0)))
    try:
        with torch.no_grad():
            before = module.score(play(stage.env, built.players, 25, Key.of(1), 200))
        list(built.training.rows())
        after = module.score(play(stage.env, built.players, 200, Key.of(2), 200))
    finally:
        built.close()
        stage.close()
    assert before["win_rate"] < 0.2
    assert after["wilson_95"][0] > 0.5, after
