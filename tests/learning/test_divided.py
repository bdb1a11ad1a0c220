"""Learning in a divided population is learning in the whole one, up to the order of sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl.learning.players import make_players
from mfmarl.learning.run_config import Choice, RunConfig, RunOptions
from mfmarl.learning.training import Training
from mfmarl.population.environment import PopulationEnv
from mfmarl.population.ranks import ALONE, Ranks
from mfmarl.population.simulation import Simulation
from mfmarl.random import Key
from mfmarl.registry import lookup
from tests.learning.mini import Aim, Lattice
from tests.population.threads import together

SMALL: dict[str, dict[str, Any]] = {
    "mfq": {"hidden": (8,), "warm_up": 16, "batch_size": 16, "capacity": 200, "remember": 20},
    "table": {"values": "table", "bins": 3},
    "mfac": {"hidden": (8,), "warm_up": 16, "batch_size": 16, "capacity": 200, "remember": 20},
    "mfppo": {"hidden": (8,), "rollout": 4, "epochs": 2, "minibatches": 2, "remember": 20},
    "iql": {"hidden": (8,), "warm_up": 16, "batch_size": 16, "capacity": 200, "remember": 20},
    "random": {},
}
GAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "checkerboard": ("ising", {"num_agents": 36}),
    "synchronous": ("ising", {"num_agents": 49, "order": "synchronous"}),
    "few at a time": ("ising", {"num_agents": 36, "order": "partial", "participation": 0.1}),
    "beach": ("beach_bar", {"num_agents": 23, "horizon": 7}),
    "town": ("susceptible_infected", {"num_agents": 17, "horizon": 6}),
    "prey": ("predator_prey", {"num_agents": 9}),
}


def rules(game: str) -> PopulationEnv:
    name, options = GAMES[game]
    found: PopulationEnv = lookup("environment", name).load()(**options)
    return found


def begin(
    env: PopulationEnv,
    agent: str,
    ranks: Ranks = ALONE,
    by_agents: bool = True,
    options: dict[str, Any] | None = None,
    **run: Any,
) -> Training:
    config = RunOptions(**{"copies": 2, "steps": 40, "report_every": 10, "evaluation_steps": 3, **run})
    sims = [Simulation(env, copies, ranks=ranks, by_agents=by_agents) for copies in (config.copies, config.copies)]
    choice = Choice("mfq" if agent == "table" else agent, {**SMALL[agent], **(options or {})})
    players = make_players(
        RunConfig(Choice("mini"), {"all": choice}, config), sims[0].spec, Key.of(config.seed), sims[0].device
    )
    return Training(sims[0], players, config, sims[1])


def live(training: Training) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    rows = [{k: v for k, v in row.items() if k not in ("wall", "cpu")} for row in training.rows()]
    return rows, training.state_dict()[0]


def alike(whole: Any, part: Any, within: float = 1e-6) -> None:
    """Rows and everything that a checkpoint holds, of whole numbers exactly."""
    assert len(whole[0]) == len(part[0])
    for row, other in zip(whole[0], part[0], strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=within), name
    theirs = {n: x for n, x in part[1].items() if not n.endswith((".memory.owner", ".memory.ranks"))}
    assert set(theirs) == set(whole[1])
    for name, value in whole[1].items():
        other = theirs[name]
        assert (other.shape, other.dtype) == (value.shape, value.dtype), name
        if value.is_floating_point():
            gap = (other.nan_to_num() - value.nan_to_num()).abs()
            scale = 1 + value.nan_to_num().abs() if ".optimiser." in name else 1.0
            assert float((gap / scale).max() if gap.numel() else 0.0) <= within, name
        else:
            assert torch.equal(other, value), name


def both(env: PopulationEnv, agent: str, counts: tuple[int, ...], **how: Any) -> None:
    by_agents = how.pop("by_agents", True)
    whole = live(begin(env, agent, **how))
    for count in counts:
        found = together(count, lambda ranks: live(begin(env, agent, ranks, by_agents, **how)))
        alike(whole, found[0])


PAIRS = [(g, a) for g in GAMES for a in SMALL if (g, a) not in {("beach", "table"), ("prey", "table")}]


@pytest.mark.parametrize(("game", "agent"), PAIRS)
def test_learning_in_a_divided_population_is_learning_in_the_whole_one(game: str, agent: str) -> None:
    both(rules(game), agent, (3,))
