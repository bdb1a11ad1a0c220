"""A number that is none stops learning before it has touched anything; and every guard is seen to be needed."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from mfmarl.errors import NumericFault
from mfmarl.learning import health, networks
from mfmarl.learning.agent import Agent, NotFinite
from mfmarl.population import adapter, simulation, single
from mfmarl.population.adapter import Adapter
from mfmarl.selftest.case import Case
from mfmarl.selftest.catalogue import environments as catalogue
from mfmarl.selftest.catalogue.environments import GRADIENTS, _learner, nan_gradient_in
from mfmarl.selftest.every_case import attempt_case


def poison(agent: Agent, value: float) -> None:
    with torch.no_grad():
        for weight in agent.parameters():
            weight.fill_(value)


# ---------------------------------------------------------------------------------------------- stops before


@pytest.mark.parametrize("name", ["mfq", "iql", "mfac", "mfppo"])
def test_nothing_is_drawn_from_energies_that_are_no_numbers(name: str) -> None:
    built = _learner(name)
    built.training.step()
    poison(built.players[0].agent, math.nan)
    with pytest.raises(NumericFault, match=r"energies \[nan, nan\] for agent agent_0 \(slot 0\) of copy 0") as told:
        built.training.step()
    assert told.value.code == "nan-energy"


def test_a_gaussian_whose_weights_are_no_numbers_is_told_as_a_numeric_fault() -> None:
    built = _learner("mfppo", box=True)
    built.training.step()
    poison(built.players[0].agent, math.nan)
    with pytest.raises(NumericFault, match="agent_0 of copy 0 chose .*nan") as told:
        built.training.step()
    assert told.value.code == "nan-action"


def test_a_table_is_not_moved_to_a_target_that_is_no_number() -> None:
    built = _learner("mfq", values="table")
    training = built.training
    agent: Any = built.players[0].agent
    for _ in range(3):
        training.step()
    table = agent.values.value
    before = table.clone()
    training.episode.env.reward_limit = math.inf
    rules_step = type(training.episode.env.env).step  # type: ignore[attr-defined]

    def overpaid(self: Any, *arguments: Any) -> Any:
        state, reward = rules_step(self, *arguments)
        return state, torch.full_like(reward, 3e38)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(training.episode.env.env), "step", overpaid)  # type: ignore[attr-defined]
        with pytest.raises(NumericFault, match="_Lights, all at step 4: The squared error of a table is inf"):
            training.step()
    assert torch.equal(table, before)


def test_the_units_of_returns_are_not_moved_by_what_is_no_number() -> None:
    agent: Any = _learner("mfppo", rollout=4).players[0].agent
    before = [agent.centre.clone(), agent.spread.clone(), agent.worth.out.weight.detach().clone()]
    with pytest.raises(NotFinite, match="spread of the returns"):
        agent._rescale(torch.full((1, 8), 3e38), None)
    assert all(
        torch.equal(a, b) for a, b in zip(before, [agent.centre, agent.spread, agent.worth.out.weight], strict=True)
    )


def test_stable_baselines3_takes_no_step_of_a_gradient_that_is_no_number() -> None:
    agent: Any = _learner("sb3").players[0].agent
    optimiser, before = agent.policy.optimizer, [p.detach().clone() for p in agent.policy.parameters()]
    for weight in agent.policy.parameters():
        weight.grad = torch.ones_like(weight)
    next(agent.policy.parameters()).grad.view(-1)[0] = math.nan  # type: ignore[union-attr]
    with pytest.raises(NotFinite, match="gradient of stable-baselines3 is nan"):
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))


@pytest.mark.parametrize("where", ["weights", "optimiser"])
def test_a_report_refuses_weights_and_moments_that_are_no_numbers(where: str) -> None:
    built = _learner("mfq", warm_up=8, batch_size=8)
    for _ in range(4):
        built.training.step()
    player = built.players[0]
    health.demand_finite(player, 4)
    if where == "weights":
        next(player.agent.parameters()).data.view(-1)[0] = math.inf
    else:
        state = next(iter(player.agent.optimisers()["values"].state.values()))
        state["exp_avg"].view(-1)[0] = math.nan
    with pytest.raises(NumericFault, match=f"all has .*{where}.* not finite at step 4") as told:
        built.training.report()
    assert told.value.code == "nan-weights"


def test_a_loss_that_overflows_is_refused_as_one() -> None:
    weight = torch.nn.Parameter(torch.ones(1, 2))
    optimiser = torch.optim.Adam([weight])
    with pytest.raises(NotFinite, match="The loss of x is inf") as told:
        networks.descend((weight * 3e38).sum() * 10, [weight], optimiser, 1, 1.0, "x")
    assert told.value.code == "nan-loss" and torch.equal(weight, torch.ones(1, 2)) and not optimiser.state


@pytest.mark.parametrize("largest", [0.0, 1.0])
def test_the_mind_whose_gradient_is_lost_is_named(largest: float) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    loss = (weight * torch.tensor([[1.0], [1.0], [math.inf]])).sum(1).clamp(max=1.0).sum()
    with pytest.raises(NotFinite) as told:
        networks.descend(
            (loss * 0 + (weight[2] - weight[2]).sqrt().sum()), [weight], torch.optim.SGD([weight], 1.0), 3, largest
        )
    assert told.value.mind == 2 and torch.equal(weight, torch.ones(3, 2))


def test_alarms_know_what_rewards_can_add_up_to() -> None:
    built = _learner("mfq", warm_up=8, batch_size=8)
    for _ in range(4):
        built.training.step()
    player = built.players[0]
    reach = 1.0 / (1 - 0.9)  # rewards of at most 1 and a discount of 0.9
    ring = {name: health.alarms(player, {f"all/{name}": value}) for name, value in
            (("value", 0.9e3 * reach), ("loss", 0.9e6 * reach**2), ("entropy", 0.1))}  # fmt: skip
    assert not any(ring.values())
    for name, value in (("value", -1.1e3 * reach), ("loss", 1.1e6 * reach**2), ("loss", math.nan), ("entropy", 0.0)):
        assert set(health.alarms(player, {f"all/{name}": value})) == {name}


def test_counts_of_faults_go_on_where_a_run_goes_on(tmp_path: Path) -> None:
    env = catalogue._town(tmp_path, "outside", at=2, copies=2)
    with pytest.warns(UserWarning, match="outside its space"):
        catalogue._play(env, 5)
    other = catalogue._town(tmp_path, "outside", at=2, copies=2)
    other.load_state_dict(env.state_dict())
    assert (other.outside, other.restarts) == (env.outside, env.restarts) == (2, 0)


# ------------------------------------------------------------------------------------- the guards are needed


@pytest.mark.parametrize("index", [0, 2, 7, 9])
def test_without_the_look_at_gradients_case_61_is_missed(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, options = GRADIENTS[index]
    kind = type(_learner(agent).players[0].agent)
    monkeypatch.setattr(networks, "finite_step", lambda *_: None)
    module = __import__(kind.__module__, fromlist=["x"])
    if hasattr(module, "finite_step"):
        monkeypatch.setattr(module, "finite_step", lambda *_: None)
    assert nan_gradient_in(agent, options)


def test_a_look_at_the_loss_alone_misses_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_alone = networks.finite_step
    monkeypatch.setattr(
        networks, "finite_step", lambda loss, norm, name: loss_alone(loss, torch.zeros_like(norm), name)
    )
    assert nan_gradient_in(*GRADIENTS[0])


def _planted_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adapter, "_check", lambda self, rows: None)


def _planted_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    def rewards(self: Any, values: list[Any], names: Any) -> Any:
        return torch.tensor([float(v) for v in values]).nan_to_num().numpy()

    monkeypatch.setattr(single.Single, "_rewards", rewards)


def _planted_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "isolated", nullcontext)
    monkeypatch.chdir(".")  # so that the folder that the environment leaves for is left again


def _planted_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def mask(self: Any, masks: Any, slots: Any, rows: Any) -> None:
        rows.legal[:] = self.layout.possible

    monkeypatch.setattr(single.Single, "_mask", mask)


def _planted_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.Simulation, "_check_legal", lambda *_: None)


def _planted_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: Any, function: Any, *arguments: Any, who: str = "", **options: Any) -> Any:
        return function(*arguments, **options)

    monkeypatch.setattr(single.Single, "_call", call)


@pytest.mark.parametrize(
    ("case", "plant"),
    [
        (catalogue.nan_observation, _planted_check),
        pytest.param(catalogue.reward_of_another_type, _planted_rewards, marks=pytest.mark.verify),
        (catalogue.noisy, _planted_isolation),
        pytest.param(catalogue.bad_mask, _planted_masks, marks=pytest.mark.verify),
        pytest.param(catalogue.no_legal_action, _planted_rules, marks=pytest.mark.verify),
        pytest.param(catalogue.raises, _planted_exit, marks=pytest.mark.verify),
    ],
    ids=lambda x: str(x.number) if isinstance(x, Case) else x.__name__,
)
def test_a_planted_bug_is_seen(case: Case, plant: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch)
    assert attempt_case(case, tmp_path / "case")
