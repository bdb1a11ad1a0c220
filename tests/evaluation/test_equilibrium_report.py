"""A solved game's page and pictures: they say what was found, show it where it is, and are safe with hostile names."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl.envs.beach_bar import BeachBar
from mfmarl.envs.crowd_modelling_2d import CrowdModelling2d
from mfmarl.envs.predator_prey import PredatorPrey
from mfmarl.errors import CheckpointError, ConfigError
from mfmarl.evaluation import equilibrium, equilibrium_figures, equilibrium_report, gain_of_one
from mfmarl.evaluation import solved as kept
from mfmarl.evaluation.equilibrium import solve_in_folder
from mfmarl.evaluation.equilibrium_figures import Layout
from mfmarl.evaluation.equilibrium_report import finite_cell, finite_sentence, read_solved, report_solved, sentence
from mfmarl.evaluation.gain_of_one import finite_gain
from mfmarl.evaluation.solve_config import SolveConfig, SolveOptions
from mfmarl.evaluation.solved import Outcome, load_policy
from mfmarl.games import finite
from mfmarl.games.flow import flow, uniform
from mfmarl.games.game import MeanFieldGame
from mfmarl.games.kernels import Outcomes, grid_moves
from mfmarl.learning.run_config import Choice

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equilibrium, "_KNOWN", 0)
    monkeypatch.setattr(gain_of_one, "_SAMPLES", 2e6)
    monkeypatch.setattr(gain_of_one, "_TERMS", 2e6)


def solved(path: Path, game: Choice, solvers: dict[str, Choice], iterations: int = 12) -> Path:
    solve_in_folder(SolveConfig(game, solvers, SolveOptions(iterations=iterations)), path)
    report_solved(path)
    return path


OMD = {"omd": Choice("omd")}


@pytest.fixture(scope="module")
def beach(tmp_path_factory: pytest.TempPathFactory) -> Path:
    game = Choice("beach_bar", {"places": 12, "bar": 6, "horizon": 8})
    return solved(tmp_path_factory.mktemp("runs") / "beach", game, {"omd": Choice("omd"), "fp": Choice("fp")})


def text_of(path: Path) -> str:
    return re.sub(r"<[^>]+>", " ", (path / "report.html").read_text())


def test_the_page_says_first_what_was_found_and_never_the_limit_alone(beach: Path) -> None:
    found, words = read_solved(beach), text_of(beach)
    for outcome in found.outcomes:
        assert equilibrium_report.gain(outcome.exploitability) in words
    top = words[: words.index("The crowd and its policy")]
    assert "of infinitely many agents one gains" in top
    assert "among 100" in top
    assert "reward over 8 decisions" in top


def test_the_page_is_one_file_that_asks_for_nothing(beach: Path) -> None:
    page = (beach / "report.html").read_text()
    assert "<script" not in page and "http-equiv" in page
    assert not re.findall(r"(?:src|href)=['\"](?!data:|#)[^'\"]+", page)
    assert "data:image/gif;base64," in page


def test_every_figure_is_well_formed_and_the_same_bytes_each_time(beach: Path) -> None:
    before = {p.name: p.read_bytes() for p in (beach / "figures").iterdir()}
    assert {"exploitability.svg", "exploitability_seconds.svg", "free_energy.svg"} <= set(before)
    for name, content in before.items():
        if name.endswith(".svg"):
            ET.fromstring(content)
    page = (beach / "report.html").read_bytes()
    report_solved(beach)
    assert {p.name: p.read_bytes() for p in (beach / "figures").iterdir()} == before
    assert (beach / "report.html").read_bytes() == page


def test_curves_carry_the_names_of_their_solvers_and_powers_as_text(beach: Path) -> None:
    svg = (beach / "figures" / "exploitability.svg").read_text()
    texts = re.findall(r">([^<>]+)</text>", svg)
    assert {"omd", "fp"} <= set(texts)
    assert any(t.startswith("at the start") for t in texts)
    assert not any("$" in t or "mathdefault" in t for t in texts)
    assert equilibrium_figures.power(-8) == "10⁻⁸" and equilibrium_figures.power(3) == "10³"


def test_the_film_has_a_frame_for_every_time(beach: Path) -> None:
    saved = load_policy(beach / "policies" / "omd.safetensors")
    frames = equilibrium_figures.film(saved, Layout(["agent"], 12, 3))
    assert len(frames) == 9 == len(saved.mu)
    # The bar below grows with time, and the tallest bar stands where most agents are.
    assert [int((f[-1] != 255).any(-1).sum()) for f in frames] == sorted(
        int((f[-1] != 255).any(-1).sum()) for f in frames
    )
    last = frames[-1][:-8]
    heights = (last == np.array([0, 114, 178])).all(-1).sum(0)
    width = last.shape[1] / 12
    assert int(heights.argmax() // width) == int(saved.mu[-1, 0].argmax())


def test_a_plane_is_read_off_the_coordinates_walls_and_all() -> None:
    game = CrowdModelling2d()
    found = kept.layout(game)
    layout = Layout(["agent"], game.num_states, game.num_actions, found["grid"], found["cells"])
    assert layout.flat
    shares = np.arange(game.num_states, dtype=float)
    raster = layout.raster(shares)
    walls = np.isnan(raster)
    assert walls.sum() == raster.size - game.num_states
    place = game.coordinates()
    assert place is not None
    rows = np.unique(place[:, 0].numpy(), return_inverse=True)[1]
    columns = np.unique(place[:, 1].numpy(), return_inverse=True)[1]
    assert (raster[rows, columns] == shares).all()
    assert kept.layout(BeachBar())["grid"] == []


class Walk(MeanFieldGame):
    """A torus on which action k goes one step along one axis."""

    horizon: int | None = 2
    crowd_moves: ClassVar[bool] = False
    num_states = 30
    num_actions = 4

    def initial(self) -> Tensor:
        return torch.full((30,), 1 / 30, dtype=torch.float64)

    def coordinates(self) -> Tensor:
        place = torch.stack(torch.unravel_index(torch.arange(30), (5, 6)), -1).double()
        return place / torch.tensor([2.0, 2.5]) - 1

    def outcomes(self, t: int, crowd: object) -> Outcomes:
        moves = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
        there = grid_moves((5, 6), moves, torus=True).unsqueeze(-1)
        return Outcomes(there, torch.ones(30, 4, 1, dtype=torch.float64))

    def rewards(self, t: int, crowd: object) -> Tensor:
        return torch.zeros(30, 1, dtype=torch.float64)


@pytest.mark.parametrize(("action", "move"), [(0, (-1, 0)), (1, (1, 0)), (2, (0, -1)), (3, (0, 1))])
def test_arrows_point_where_agents_go_across_the_edge_too(action: int, move: tuple[int, int]) -> None:
    game = Walk()
    policy = torch.nn.functional.one_hot(torch.tensor(action), 4).double().expand(20, 1, 30, 4).contiguous()
    drift = kept.drift_of(game, flow(game, policy))
    assert drift is not None
    assert torch.allclose(drift, torch.tensor(move, dtype=torch.float64).expand_as(drift), atol=1e-12)


def test_nobody_drifts_who_goes_everywhere_alike() -> None:
    game = Walk()
    drift = kept.drift_of(game, flow(game, uniform(game)))
    assert drift is not None
    assert drift.abs().max() < 1e-12


def test_several_groups_on_a_plane_have_their_rows_and_arrows(tmp_path: Path) -> None:
    path = solved(tmp_path / "a", Choice("predator_prey"), OMD, 4)
    svg = (path / "figures" / "crowd_omd.svg").read_text()
    assert all(f">{name}</text>" in svg for name in PredatorPrey.groups)
    assert load_policy(path).drift is not None
    assert "learned best response" in text_of(path)


def test_the_likeliest_courses_of_common_noise_are_shown_with_their_probabilities(tmp_path: Path) -> None:
    path = solved(tmp_path / "a", Choice("beach_bar", {"closing": 0.3, "horizon": 6}), OMD, 6)
    saved = load_policy(path)
    # Half-way the bar closes (.3) or does not (.7), and nothing else is by chance.
    assert saved.chances.tolist() == pytest.approx([0.7, 0.3])
    assert saved.paths.shape == (2, 6)
    one, other = (saved.mu[row] for row in saved.paths)
    assert torch.equal(one[:3], other[:3]) and not torch.equal(one[4:], other[4:])
    assert "probability 0.7" in (path / "figures" / "crowd_omd.svg").read_text()


def test_a_stationary_game_has_bars_and_no_film(tmp_path: Path) -> None:
    path = solved(tmp_path / "a", Choice("beach_bar", {"horizon": "none", "discount": 0.9}), OMD, 6)
    assert not list((path / "figures").glob("*.gif"))
    assert "discounted reward, factor 0.9" in text_of(path)
    assert load_policy(path).mu.shape == (1, 1, 4)


def test_the_gain_of_one_of_n_is_exact_where_it_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    game = BeachBar(num_agents=5)
    found = finite_gain(game, uniform(game))
    assert found["at"] == 5 and "learned" not in found
    assert found["gain"] == finite.gap(game, uniform(game)).exploitability


def test_beyond_counting_fewer_are_counted_and_a_bound_is_learned_at_n() -> None:
    game = BeachBar(num_agents=200)
    found = finite_gain(game, uniform(game))
    assert 2 <= found["at"] < 200
    assert found["gain"] == finite.gap(replace(game, num_agents=found["at"]), uniform(game)).exploitability
    # The learned bound is of the same game, nearly the limit: uniform choice leaves much to gain at any N.
    assert abs(found["learned"] - found["gain"]) < 0.1 + 5 * found["error"]
    outcome = Outcome("omd", exploitability=1.0, finite=found)
    assert f"among {found['at']} agents" in finite_sentence(outcome) and "among 200" in finite_sentence(outcome)
    assert finite_cell(outcome).startswith("≥")


def test_what_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gain_of_one, "_SAMPLES", 1.0)
    game = PredatorPrey()
    found = finite_gain(game, uniform(game))
    assert found["gain"] is None and found["learned"] is None
    outcome = Outcome("omd", exploitability=0.25, finite=found)
    assert "not known here: the game is too large" in finite_sentence(outcome)
    assert finite_cell(outcome) == "not known"


def test_sentences_tell_settled_from_spent_and_planners_from_equilibria() -> None:
    about = {"horizon": 3, "discount": 1.0}
    settled = Outcome("omd", "done", "tolerance", exploitability=1e-9, uniform=2.0, iterations=7, seconds=0.5)
    assert "Settled" in sentence(settled, about)
    assert "5.0e-10 of the 2 at the start" in sentence(settled, about)
    spent = Outcome("omd", "done", "iterations", exploitability=0.5, uniform=2.0)
    assert "25 % of the 2 at the start" in sentence(spent, about) and "All iterations" in sentence(spent, about)
    planner = Outcome("planner", "done", "iterations", exploitability=0.5, uniform=2.0, value=3.0, cooperative=True)
    assert "plans for all" in sentence(planner, about)
    assert kept.best_of([planner, spent]) is spent
    assert "nothing" in sentence(Outcome("omd", told=""), about)


def test_hostile_names_are_text(beach: Path, tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "copy"
    shutil.copytree(beach, path)
    about = json.loads((path / "game.json").read_text())
    about |= {"title": HOSTILE, "state_names": [HOSTILE] * 12, "action_names": [HOSTILE] * 3, "groups": [HOSTILE]}
    (path / "game.json").write_text(json.dumps(about))
    solution = json.loads((path / "solution.json").read_text())
    solution["solvers"]["omd"]["told"] = HOSTILE
    (path / "solution.json").write_text(json.dumps(solution))
    report_solved(path)
    assert "<script" not in (path / "report.html").read_text()
    assert "&lt;script&gt;" in (path / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "content"), [("solution.json", "{"), ("solution.json", '{"solvers": {"omd": 3}}'), ("game.json", "{}")]
)
def test_damage_is_told(beach: Path, tmp_path: Path, file: str, content: str) -> None:
    import shutil

    path = tmp_path / "copy"
    shutil.copytree(beach, path)
    (path / file).write_text(content)
    with pytest.raises((ConfigError, CheckpointError), match=file):
        report_solved(path)


def test_solvers_that_came_to_other_crowds_are_told_apart(tmp_path: Path) -> None:
    # Nobody's answer to a crowd of one iteration is that of two hundred.
    game = Choice("beach_bar", {"places": 10, "bar": 5, "horizon": 6})
    solvers = {"omd": Choice("omd"), "omd:rate=0.0001": Choice("omd", {"rate": 0.0001})}
    path = solved(tmp_path / "a", game, solvers, 200)
    found = read_solved(path)
    apart = found.unlike("omd", "omd:rate=0.0001")
    one, other = (found.policies[name].mu for name in solvers)
    assert apart == pytest.approx(float((one - other).abs().sum(-1).mean() / 2)) and apart > 0.05
    assert f"Other crowds than that of omd: omd:rate=0.0001 by {100 * apart:.2g} %" in text_of(path)
    assert "<details><summary>The crowd of omd:rate=0.0001" in (path / "report.html").read_text()


def test_rows_that_are_not_numbers_leave_gaps_and_no_error() -> None:
    rows: list[dict[str, Any]] = [
        {"iteration": 0, "exploitability": 1.0},
        {"iteration": 1, "exploitability": math.nan},
        {"iteration": 2},
    ]
    at, value = equilibrium_figures.curve(rows, "exploitability")
    assert at.tolist() == [0] and value.tolist() == [1.0]
    figure = equilibrium_figures.exploitability({"omd": rows}, [Outcome("omd", uniform=1.0)], 1e-8)
    assert "No solver got" in figure.axes[0].texts[0].get_text()


def test_a_narrow_peak_among_many_states_is_seen() -> None:
    shares = np.full((1, 4999), 1e-4)
    shares[0, 2501] = 0.5
    seen = equilibrium_figures._fullest(shares)
    assert seen.shape == (1, 200) and seen.max() == 0.5
    assert int(seen.argmax()) == 2501 // 25
    assert (equilibrium_figures._fullest(shares[:, :200]) == shares[:, :200]).all()


def test_a_run_that_was_killed_has_a_page_with_its_curves(beach: Path, tmp_path: Path) -> None:
    import shutil

    path = tmp_path / "copy"
    shutil.copytree(beach, path)
    (path / "solution.json").unlink()
    shutil.rmtree(path / "policies")
    shutil.rmtree(path / "figures")
    report_solved(path)
    assert "ended from outside" in text_of(path)
    assert (path / "figures" / "exploitability.svg").is_file()
    assert not (path / "figures" / "policy_omd.svg").exists()
