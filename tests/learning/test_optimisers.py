"""Weights at a temperature, and replicas of them: options of every learner."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mfmarl.agents.mfq import MFQConfig
from mfmarl.errors import ConfigError
from mfmarl.learning.agent import Transition
from mfmarl.learning.optimisers import LearnerConfig, make_optimiser, set_pace
from mfmarl.random import Key
from mfmarl.statmech import gibbs
from tests.learning.mini import Arms, finish, train
from tests.statistical import beyond, statistical

SMALL: dict[str, Any] = {"hidden": (16,), "warm_up": 8, "batch_size": 32}


@pytest.mark.parametrize("optimiser", ["sgld", "sghmc"])
@statistical(alpha=beyond(5, 200), bugs=("wide-thermal-noise", "shifted-thermal-noise"))
def test_weights_at_a_temperature_have_the_variance_of_their_law(optimiser: str) -> None:
    """L = k theta^2/2: variance T/(k (1 - eps k/2)) for SGLD, T/(k (1 - eta k/(2 (1 + mu)))) for SGHMC."""
    k, lr, temperature, chains = 2.0, 0.05, 0.3, 4000
    weights = torch.nn.Parameter(torch.zeros(chains))
    config = LearnerConfig(optimiser=optimiser, weight_temperature=str(temperature))
    descent = make_optimiser(config, [weights], lr, Key.of(1))
    for _ in range(300):
        weights.grad = k * weights.detach()
        set_pace(descent, lr, config, 0.5)
        descent.step()
    slope = lr * k / 2 if optimiser == "sgld" else lr * k / (2 * 1.9)
    exact = temperature / (k * (1 - slope))
    found = float(weights.detach().double().square().mean())
    assert abs(found - exact) <= 5 * exact * (2 / chains) ** 0.5


def test_the_temperature_of_the_weights_follows_its_schedule() -> None:
    config = LearnerConfig(optimiser="sgld", weight_temperature="linear(1, 0)")
    descent = make_optimiser(config, [torch.nn.Parameter(torch.zeros(2))], None, Key.of(0))
    for progress, temperature in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        set_pace(descent, 0.1, config, progress)
        assert descent.param_groups[0]["temperature"] == temperature


@pytest.mark.parametrize("agent", ["mfq", "mfac", "mfppo"])
@pytest.mark.parametrize("optimiser", ["sgld", "psgld", "sghmc"])
def test_every_learner_finds_the_better_arm_with_every_optimiser(agent: str, optimiser: str) -> None:
    options = {
        "hidden": (16,),
        "optimiser": optimiser,
        "weight_temperature": "geometric(1e-4, 1e-7)",
        "temperature": "0.2",
    }
    run = train(Arms(32), agent, options if agent == "mfppo" else {**options, "warm_up": 32}, steps=600)
    row = finish(run)[-1]
    # Gibbs at T = .2 of pays 0 and 1 earns .9933; half of it would be chance.
    assert row["train/reward"] > 0.9


def test_the_mean_of_the_replicas_acts_and_they_disagree_where_nothing_was_learned() -> None:
    run = train(Arms(16, pay=(0.0, 0.3)), "mfq", {**SMALL, "replicas": 5, "learning_rate": 3e-3}, steps=300)
    agent = run.players[0].agent
    rows = finish(run)
    timestep, felt = run.episode.timestep, agent.by_mind(run.episode.felt[0])
    obs = agent.by_mind(timestep.obs)
    with torch.no_grad():
        each, far = agent.replica_energies(obs, felt), agent.replica_energies(obs * 30, felt)
        assert each is not None and far is not None and each.shape[0] == 5
        torch.testing.assert_close(agent.energy(obs, felt), each.mean(0))
        known = float(gibbs.probabilities(each, 1.0).std(0).max())
        # Far from anything seen, networks that agree on what they know go apart.
        strange = float(gibbs.probabilities(far, 1.0).std(0).max())
    assert known < 0.02 < strange
    assert rows[-1]["gibbs/uncertainty"] < rows[0]["gibbs/uncertainty"] / 4


def test_replicas_learn_from_rows_of_their_own_and_keep_minds_apart() -> None:
    """With one mind each: mind i's replicas see only its own transitions."""
    pay = (0.0, 1.0)
    run = train(Arms(4, pay=pay), "mfq", {**SMALL, "replicas": 2, "learning_rate": 1e-2}, steps=400, sharing="none")
    finish(run)
    agent = run.players[0].agent
    obs, felt = agent.by_mind(run.episode.timestep.obs), agent.by_mind(run.episode.felt[0])
    each = agent.replica_energies(obs, felt)
    assert each is not None
    assert each.shape[:2] == (2, 4)
    gap = each[..., 0] - each[..., 1]
    assert bool(((gap - 1.0).abs() < 0.15).all())
    assert not torch.equal(each[0], each[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_temperature": "0.1"}, "adam has no temperature"),
        ({"optimiser": "sgld", "weight_temperature": "entropy(0.5)"}, "cannot aim at an entropy"),
        ({"optimiser": "sgld", "weight_temperature": "-1"}, "not negative"),
    ],
)
def test_temperatures_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MFQConfig(**options)


@pytest.mark.parametrize("options", [{"optimiser": "sgld"}, {"replicas": 2}, {"priority": 0.6}])
def test_a_table_has_neither_an_optimiser_nor_replicas_nor_priorities(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"A table has no {next(iter(options))}"):
        train(Arms(4), "mfq", {"values": "table", **options}, steps=1)


@pytest.mark.parametrize("agent", ["mfq", "mfac"])
def test_a_row_counts_as_much_as_its_weight(agent: str) -> None:
    """Weights 2 and 0 are two copies of the first row."""

    def learned(rows: list[int], weight: list[float] | None) -> list[torch.Tensor]:
        run = train(Arms(2), agent, {"hidden": (8,), "priority": 0.6}, steps=1)
        one, g = torch.ones(1, 2, 1), torch.Generator().manual_seed(0)
        field = torch.rand(1, 2, run.players[0].agent.field_size, generator=g)
        batch = Transition(
            one,
            field,
            None,
            torch.tensor([[0, 1]]),
            torch.tensor([[1.0, -3.0]]),
            one,
            field,
            None,
            torch.tensor([[True, True]]),
        )
        taken = batch._replace(**{name: x[:, rows] for name, x in batch._asdict().items() if x is not None})
        weights = torch.tensor([[1.0, 1.0]] if weight is None else [weight])
        run.players[0].agent.learn(taken._replace(weight=weights, place=torch.tensor([[0, 1]])))
        return [p.detach().clone() for p in run.players[0].agent.parameters()]

    for weighed, doubled in zip(learned([0, 1], [2.0, 0.0]), learned([0, 0], None), strict=True):
        torch.testing.assert_close(weighed, doubled)
    plain = learned([0, 1], None)
    assert any(not torch.allclose(a, b) for a, b in zip(plain, learned([0, 0], None), strict=True))


def test_replicas_belong_to_their_mind_and_priorities_to_their_rows() -> None:
    run = train(Arms(3), "mfq", {"hidden": (4,), "replicas": 2, "priority": 0.6}, steps=1, sharing="none")
    agent = run.players[0].agent
    with torch.no_grad():
        for name, p in agent.named_parameters():
            if name.startswith("values."):
                p.zero_()
        dict(agent.named_parameters())["values.out.bias"].copy_(torch.arange(6.0).view(6, 1, 1).expand(6, 1, 2))
    obs, field = torch.ones(3, 4, 1), torch.zeros(3, 4, agent.field_size)
    each = agent.replica_energies(obs, field)
    assert each is not None
    # Network k is replica k % 2 of mind k // 2.
    assert each[:, :, 0, 0].tolist() == [[0.0, -2.0, -4.0], [-1.0, -3.0, -5.0]]
    reward = torch.arange(12.0).view(3, 4)
    batch = Transition(
        obs, field, None, torch.zeros(3, 4, dtype=torch.int64), reward, obs, field, None, torch.ones(3, 4).bool(),
        weight=torch.ones(3, 4), place=torch.arange(4).repeat(3, 1),
    )  # fmt: skip
    found = agent.learn(batch)["priority"]
    # Rows 0 and 1 of a mind are its first replica's, 2 and 3 its second's.
    values = torch.tensor([[0.0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]])
    torch.testing.assert_close(found, (values - reward).abs())
