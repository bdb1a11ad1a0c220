"""The package from Python: what the commands do, by call."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

import mfmarl
from mfmarl.errors import ConfigError
from mfmarl.learning.run_folder import read_status

QUICK: dict[str, Any] = {"steps": 20, "copies": 2, "evaluation_copies": 1, "report_every": 10, "num_agents": 16}


def test_a_run_is_the_same_as_the_commands(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    run = mfmarl.train("ising", "mfq", path=tmp_path / "a", on_row=rows.append, bins=3, temperature=1.2, **QUICK)
    assert run.rows == rows
    assert run.last["step"] == 20
    assert run.report.is_file()
    assert read_status(run.path)["state"] == "done"
    config = tomllib.loads((run.path / "config.toml").read_text())
    assert config["environment"]["num_agents"] == 16
    assert config["agents"]["all"]["bins"] == 3


def test_options_reach_whom_they_are_meant_for(tmp_path: Path) -> None:
    run = mfmarl.train("ising", "mfq", path=tmp_path / "a", env_field=0.1, agent_field="actions over everyone", **QUICK)
    config = tomllib.loads((run.path / "config.toml").read_text())
    assert config["environment"]["field"] == 0.1
    assert config["agents"]["all"]["field"] == "actions over everyone"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"field": "nothing"}, "env_field or agent_field"),
        ({"num_agent": 9}, "num_agents"),
        ({"temperature": -1}, "temperature"),
        ({"env_bins": 3}, "env_bins"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        mfmarl.train("ising", "mfq", path=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_a_comparison_returns_its_numbers(tmp_path: Path) -> None:
    found = mfmarl.compare(
        "congestion", ["mfq", "iql"], seeds=[3, 5], jobs=1, path=tmp_path / "c", film=False, values="table", **QUICK
    )
    agents = found.summary["environments"]["congestion"]["agents"]
    assert {name: agent["runs"] for name, agent in agents.items()} == {"mfq": 2, "iql": 2}
    assert found.report.is_file()
    assert (tmp_path / "c" / "congestion" / "iql" / "seed-5" / "config.toml").is_file()


def test_an_environment_is_made_as_training_sees_it() -> None:
    env = mfmarl.make("ising", copies=3, num_agents=16)
    timestep = env.reset(mfmarl.random.Key.of(0))
    assert timestep.obs.shape[:2] == (3, 16)
