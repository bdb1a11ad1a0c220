"""The agents use the core of statistical mechanics, and no second copy of it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mfmarl.envs.congestion import Congestion
from mfmarl.envs.ising import Ising
from mfmarl.statmech import gibbs
from mfmarl.statmech.exact import ising as exact
from mfmarl.statmech.mean_field import self_consistent
from tests.learning.mini import Arms, finish, train

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("agent", ["mfq", "iql", "mfac", "iac", "mfppo", "ippo", "random", "sb3"])
def test_every_discrete_agent_acts_by_a_draw_from_its_gibbs_distribution(
    agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []
    plain = gibbs.sample

    def watched(energy: Tensor, temperature: Any, ids: Tensor, key: Any) -> Tensor:
        drawn.append(float(temperature))
        return plain(energy, temperature, ids, key)

    monkeypatch.setattr(gibbs, "sample", watched)
    training = train(Arms(4), agent, {"temperature": "0.7"}, steps=2)
    training.episode.act()
    assert drawn == [pytest.approx(0.7)]


def test_nothing_outside_the_core_draws_anneals_or_normalises_by_itself() -> None:
    """A softmax, a multinomial draw or a temperature law in an agent would be a second core."""
    for folder in ("agents", "envs", "mfmarl/learning"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.name == "sb3.py":  # another library's networks
                continue
            assert not re.search(r"torch\.(softmax|log_softmax|multinomial|logsumexp)|Categorical|F\.softmax", text), (
                path
            )


def test_the_drivers_equilibrium_is_the_self_consistency_solvers() -> None:
    game, temperature = Congestion(100), 0.2
    slopes, at_zero = torch.tensor([1, 0.8, 0.5, 0.25]).double(), torch.tensor([0, 0.2, 0.5, 1.0]).double()
    start = torch.full((4,), 0.25, dtype=torch.float64)
    found = self_consistent.softmax_equilibrium(lambda x: at_zero + slopes * x, temperature, start)
    assert bool(found.converged) and float(found.growth) < 1
    known = np.array([game.reference(temperature)[f"share/{k}"].value for k in range(4)])
    # The reference is of 100 drivers, each of whom counts itself: of order 1/N from the limit.
    assert np.abs(found.shares.numpy() - known).max() < 2 / 100
    many = Congestion(1_000_000).reference(temperature)
    assert np.abs(found.shares.numpy() - np.array([many[f"share/{k}"].value for k in range(4)])).max() < 1e-5


def test_a_crowd_of_spins_that_answers_by_gibbs_has_the_core_s_transition() -> None:
    """p = softmax(m s/T), everyone with everyone: T_c = 1 and m = tanh(m/T), by the solver, by Curie-Weiss, by the game."""

    def energy(p: Tensor) -> Tensor:
        m = p[..., 1:] - p[..., :1]
        return torch.cat([m, -m], -1)

    def update(p: Tensor, temperature: float) -> Tensor:
        return gibbs.probabilities(energy(p), temperature)

    half = torch.tensor([0.5, 0.5]).double()
    assert self_consistent.critical_parameter(update, half, 0.5, 2.0) == pytest.approx(1.0, abs=1e-9)
    for temperature in (0.5, 0.9, 1.5):
        found = self_consistent.softmax_equilibrium(energy, temperature, torch.tensor([0.1, 0.9]).double())
        m = float(found.shares[1] - found.shares[0])
        assert m == pytest.approx(exact.curie_weiss(temperature), abs=1e-6)
        # Its susceptibility is that of the mean field: (1 - m^2)/(T - 1 + m^2).
        push = torch.tensor([1.0, -1.0]).double()
        chi = float((found.susceptibility @ push)[1] - (found.susceptibility @ push)[0])
        assert chi == pytest.approx((1 - m * m) / (temperature - 1 + m * m), rel=1e-4)
    # The environment's own answer, for many spins: paid half of each pair, its temperature is half.
    game = Ising(num_agents=4000, graph="complete")
    known = game.reference(0.25)
    assert known["magnetisation"].value == pytest.approx(exact.curie_weiss(0.5), abs=2e-3)


def test_the_soft_value_of_a_chain_of_choices_is_minus_its_free_energy() -> None:
    """Deterministic moves: log of the sum over all trajectories of exp(return/T) is V/T by backward induction."""
    generator = torch.Generator().manual_seed(0)
    states, actions, horizon, temperature = 5, 4, 6, 0.6
    reward = torch.rand(states, actions, generator=generator, dtype=torch.float64)
    where = torch.randint(states, (states, actions), generator=generator)
    value = torch.zeros(states, dtype=torch.float64)
    for _ in range(horizon):
        value = -gibbs.free_energy(-(reward + value[where]), temperature)
    total = []
    for number in range(actions**horizon):  # 4,096 trajectories
        state, sum_of_rewards = 0, 0.0
        for _ in range(horizon):
            number, action = divmod(number, actions)
            sum_of_rewards += float(reward[state, action])
            state = int(where[state, action])
        total.append(sum_of_rewards)
    enumerated = temperature * float(torch.logsumexp(torch.tensor(total, dtype=torch.float64) / temperature, 0))
    assert float(value[0]) == pytest.approx(enumerated, abs=1e-12)


def test_a_run_tells_its_thermodynamics_its_samples_worth_and_its_uncertainty() -> None:
    options = {"hidden": (8,), "warm_up": 8, "batch_size": 8, "priority": 0.6, "replicas": 3, "optimiser": "sgld"}
    row = finish(train(Arms(6), "mfq", {**options, "weight_temperature": "1e-3"}, steps=40, report_every=20))[-1]
    for name in ("gibbs/entropy", "gibbs/free_energy", "gibbs/heat_capacity", "gibbs/uncertainty"):
        assert math.isfinite(row[name])
    assert 0 < row["all/effective_sample_share"] <= 1
