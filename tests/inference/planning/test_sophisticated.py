"""Sophisticated inference against brute-force recursion, known values of a look, and (soft) value iteration."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.counts import begin
from mfmarl.inference.expected_free_energy import of_beliefs
from mfmarl.inference.filtering import predict
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import dynamic_programming, sophisticated
from mfmarl.inference.planning.sophisticated import Backup, Pruning, gathered, plan, possible_outcomes
from tests.inference.planning.brute_force import Truth, beliefs, random_model

UTILITY = Objective("none", normalise=False)


def truth(
    model: GenerativeModel, q: tuple[Tensor, ...], depth: int, gamma: float, objective: Objective, backup: str
) -> Tensor:
    found = Truth(model, gamma, objective, backup)
    rows = [found.plan([x[i].tolist() for x in q], depth) for i in range(len(q[0]))]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("backup", get_args(Backup))
@pytest.mark.parametrize("information", ["per_modality", "joint", "none"])
@pytest.mark.parametrize("habits", [False, True])
def test_it_is_the_recursion_over_all_outcomes(backup: Backup, information: str, habits: bool) -> None:
    model = random_model(3, habits=habits, zeros=habits)
    q = beliefs(4, (4,), model.sizes)
    objective = Objective(information, state_weight=0.7)  # type: ignore[arg-type]
    for depth, gamma in ((1, 1.0), (2, 2.5), (3, 0.6)):
        found = plan(model, q, depth, gamma, objective, backup).value
        assert torch.allclose(found, truth(model, q, depth, gamma, objective, backup), rtol=0, atol=1e-10)


def test_factors_are_taken_to_be_independent_after_each_update() -> None:
    model = random_model(5, sizes=(2, 3), outcomes=(2, 2))
    q = beliefs(6, (3,), model.sizes)
    found = plan(model, q, 3, 1.3, Objective(normalise=False)).value
    expected = truth(model, q, 3, 1.3, Objective(normalise=False), "free_energy")
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_the_joint_model_forgets_nothing() -> None:
    model = random_model(5, sizes=(2, 3), outcomes=(2, 2))
    q = beliefs(6, (3,), model.sizes)
    flat = model.joint()
    joint = (q[0].unsqueeze(-1) * q[1].unsqueeze(-2)).flatten(-2)
    found = plan(flat, (joint,), 3, 1.3).value
    assert torch.allclose(found, truth(flat, (joint,), 3, 1.3, Objective(), "free_energy"), rtol=0, atol=1e-10)
    assert float((found - plan(model, q, 3, 1.3).value).abs().max()) > 1e-4


def test_a_posterior_by_coordinate_ascent_is_the_exact_one_where_there_is_one_factor() -> None:
    model = random_model(7)
    q = beliefs(8, (3,), model.sizes)
    exact = plan(model, q, 3, 1.0).value
    for method in ("sequential", "parallel"):
        found = plan(model, q, 3, 1.0, method=method).value  # type: ignore[arg-type]
        assert torch.allclose(found, exact, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------------ what a look is worth


def cue(reliability: float) -> GenerativeModel:
    """Which of two sides it is; to wait shows nothing, to look shows the side."""
    wrong = 1 - reliability
    # Factor 0: the side; factor 1: whether one has looked. Outcomes: left, right, nothing.
    seen = [[[0.0, reliability], [0.0, wrong]], [[0.0, wrong], [0.0, reliability]], [[1.0, 0.0], [1.0, 0.0]]]
    stay = torch.eye(2, dtype=torch.float64)
    look = torch.zeros(2, 2, 2, dtype=torch.float64)
    look[0, :, 0] = 1
    look[1, :, 1] = 1
    half = torch.full((2,), 0.5, dtype=torch.float64)
    return GenerativeModel(
        A=(torch.tensor(seen, dtype=torch.float64),),
        B=(stay, look),
        C=(torch.zeros(3, dtype=torch.float64),),
        D=(half, torch.tensor([1.0, 0.0], dtype=torch.float64)),
        B_controls=((), (0,)),
        controls=(2,),
    )


def test_one_look_at_a_cue_is_worth_what_it_tells() -> None:
    """ln 2 - H2(0.95) = 0.494632 nat."""
    model = cue(0.95)
    value = plan(model, model.D, 1, objective=Objective(normalise=False)).value
    assert value.tolist() == pytest.approx(
        [0.0, math.log(2) + 0.95 * math.log(0.95) + 0.05 * math.log(0.05)], abs=1e-14
    )
    assert value[1].item() == pytest.approx(0.494632, abs=5e-7)


def test_a_certain_cue_is_worth_one_look_only() -> None:
    model = cue(1.0)
    value = plan(model, model.D, 4, objective=Objective(normalise=False), backup="max").value
    assert value.tolist() == pytest.approx([math.log(2), math.log(2)], abs=1e-12)


def test_looks_add_up_to_what_they_tell_together() -> None:
    """Three looks at a 95 % cue: I(o1, o2, o3; side), the chain rule, less than thrice the first."""
    model = cue(0.95)
    value = plan(model, model.D, 3, objective=Objective(normalise=False), backup="max").value[1].item()
    chance = [math.comb(3, k) * (0.95**k * 0.05 ** (3 - k) + 0.05**k * 0.95 ** (3 - k)) / 2 for k in range(4)]
    # Outcomes with k rights are comb(3, k) alike sequences.
    entropy = -sum(p * math.log(p / math.comb(3, k)) for k, p in enumerate(chance))
    noise = -3 * (0.95 * math.log(0.95) + 0.05 * math.log(0.05))
    assert value == pytest.approx(entropy - noise, abs=1e-12)
    assert value < math.log(2) < 3 * 0.494632


# ------------------------------------------------------------------------------------------------- known states


def known_states(seed: int, states: int = 5, actions: int = 3) -> GenerativeModel:
    g = torch.Generator().manual_seed(seed)
    moves = torch.rand(states, states, actions, dtype=torch.float64, generator=g) ** 3
    return GenerativeModel(
        A=(torch.eye(states, dtype=torch.float64),),
        B=(moves / moves.sum(0),),
        C=(3 * torch.randn(states, dtype=torch.float64, generator=g),),
        D=(torch.full((states,), 1 / states, dtype=torch.float64),),
    )


@pytest.mark.parametrize("backup", ["free_energy", "max"])
def test_with_known_states_it_is_value_iteration(backup: Backup) -> None:
    """Soft value iteration under the free-energy back-up, value iteration under max; written out here, to 1e-12."""
    model, gamma, depth = known_states(1), 1.7, 5
    states = model.num_states
    reward = torch.einsum("nsu,n->su", model.B[0], model.C[0])
    v = torch.zeros(states, dtype=torch.float64)
    for _ in range(depth):
        q = reward + torch.einsum("nsu,n->su", model.B[0], v)
        v = q.amax(-1) if backup == "max" else torch.logsumexp(gamma * q, -1) / gamma
    found = plan(model, (torch.eye(states, dtype=torch.float64),), depth, gamma, UTILITY, backup).value
    assert torch.allclose(found, q, rtol=0, atol=1e-12)


def test_expectation_is_neither() -> None:
    model = known_states(1)
    at = (torch.eye(model.num_states, dtype=torch.float64),)
    values = {b: plan(model, at, 4, 1.0, UTILITY, b).value for b in get_args(Backup)}
    assert bool((values["expectation"] < values["max"] - 0.01).all())
    # A Gibbs policy's mean is what the free energy has without its entropy.
    assert bool((values["expectation"] < values["free_energy"] - 0.01).all())


def test_a_high_precision_is_the_maximum() -> None:
    model = random_model(9)
    q = beliefs(10, (4,), model.sizes)
    best = plan(model, q, 3, 1.0, backup="max").value
    for backup in ("free_energy", "expectation"):
        cold = plan(model, q, 3, 1e7, backup=backup).value  # type: ignore[arg-type]
        assert torch.allclose(cold, best, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------- everyone at once


def test_minds_with_models_of_their_own_plan_as_each_alone() -> None:
    models = random_model(11, lead=(3, 1), habits=True, zeros=True)
    q = beliefs(12, (3, 4), models.sizes)
    together = plan(models, q, 3, 1.4).value
    assert together.shape == (3, 4, 2)
    for i in range(3):
        alone = plan(models.map(lambda x, i=i: x[i, 0]), (q[0][i],), 3, 1.4).value  # type: ignore[misc]
        assert torch.allclose(together[i], alone, rtol=0, atol=1e-13)


def test_axes_may_come_in_any_order() -> None:
    """Tables that differ along the last axis of the batch, a precision of each along the first."""
    models = random_model(13, lead=(4,))
    q = beliefs(14, (3, 1), models.sizes)
    gamma = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    together = plan(models, q, 2, gamma).value
    assert together.shape == (3, 4, 2)
    for i in range(3):
        for j in range(4):
            one = models.map(lambda x, j=j: x[j])  # type: ignore[misc]
            alone = plan(one, (q[0][i, 0],), 2, float(gamma[i])).value
            assert torch.allclose(together[i, j], alone, rtol=0, atol=1e-13)


def test_merging_equal_beliefs_changes_nothing() -> None:
    for model in (cue(0.95), random_model(15, zeros=True), random_model(16, lead=(2, 1), zeros=True)):
        q = beliefs(17, (2, 3), model.sizes)
        q = tuple(torch.cat([x, x[:, :1]], 1) for x in q)  # an agent twice
        merged = plan(model, q, 3, 1.1)
        plain = plan(model, q, 3, 1.1, pruning=Pruning(merge=False))
        assert torch.allclose(merged.value, plain.value, rtol=0, atol=1e-12)


def test_nodes_are_gathered_by_mind_and_belief() -> None:
    rows = torch.tensor(
        [[[0.2, 0.8], [0.5, 0.5], [0.2, 0.8]], [[0.2, 0.8], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64
    )
    kept = torch.tensor([[True, True, True], [True, False, True]])
    (some,), become = gathered((rows,), kept, True)
    assert some.tolist() == [[[0.2, 0.8], [0.5, 0.5]], [[0.2, 0.8], [0.0, 1.0]]]
    assert become.tolist() == [[0, 1, 0], [0, -1, 1]]
    (every,), become = gathered((rows,), kept, False)
    assert every.shape == (2, 3, 2)
    assert become.tolist() == [[0, 1, 2], [0, -1, 1]]


def test_certain_beliefs_over_many_states_are_told_apart() -> None:
    sure = torch.eye(700, dtype=torch.float64).unsqueeze(0)
    (some,), become = gathered((sure,), torch.ones(1, 700, dtype=torch.bool), True)
    assert torch.equal(some, sure)
    assert become.tolist() == [list(range(700))]


def test_beliefs_with_one_fingerprint_are_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(16, lead=(2, 1), zeros=True)
    q = beliefs(17, (2, 3), model.sizes)
    expected = plan(model, q, 3).value
    monkeypatch.setattr(sophisticated, "_mixed", lambda cells: torch.zeros_like(cells[..., 0]))
    assert torch.allclose(plan(model, q, 3).value, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lead", [(), (3, 1)])
def test_what_is_learned_of_tables_counts_at_every_step(lead: tuple[int, ...]) -> None:
    """Against expected free energy itself, at depth 1; two steps ahead of one action it is both steps'."""
    model = random_model(32, controls=1, lead=lead)
    q = beliefs(33, (3, 2), model.sizes)
    counts = begin(model, "AB", scale=2.0, floor=0.1)
    objective = Objective(parameter_information="exact", parameter_weight=0.5)
    after = predict(model, q, torch.zeros(3, 2, dtype=torch.int64))
    one = of_beliefs(model, after, 0, objective, counts, q, torch.zeros(3, 2, dtype=torch.int64))
    found = plan(model, q, 1, objective=objective, counts=counts)
    assert torch.allclose(found.value.squeeze(-1), one.value(objective), rtol=0, atol=1e-12)
    assert found.terms is not None and float(found.terms.parameter_information.min()) > 0
    # What a second step tells of A and B is linear in beliefs of one factor, and so the same whatever is seen before.
    plain = plan(model, q, 2, objective=Objective(), counts=counts).value
    both = plan(model, q, 2, objective=objective, counts=counts).value
    later = predict(model, after, torch.zeros(3, 2, dtype=torch.int64))
    two = of_beliefs(model, later, 0, objective, counts, after, torch.zeros(3, 2, dtype=torch.int64))
    told = 0.5 * (one.parameter_information + two.parameter_information)
    assert torch.allclose((both - plain).squeeze(-1), told, rtol=0, atol=1e-12)


def test_agents_that_do_not_fit_the_budget_are_planned_in_parts() -> None:
    model = random_model(18)
    q = beliefs(19, (40,), model.sizes)
    whole = plan(model, q, 3).value
    for budget in (300_000, 100_000, 50_000):
        assert torch.allclose(plan(model, q, 3, budget=budget).value, whole, rtol=0, atol=1e-12)


def test_a_tree_that_does_not_fit_is_refused_by_depth_and_size() -> None:
    model = random_model(18)
    q = beliefs(19, (4,), model.sizes)
    with pytest.raises(
        ConfigError, match=r"depth 9 with 2 actions and 6 branches .* MiB at depth \d .* planning.search"
    ):
        plan(model, q, 9, budget=100_000)


def test_only_what_can_be_seen_together_is_written_down() -> None:
    model = cue(0.95)
    outcomes, likelihood = possible_outcomes(model)
    assert outcomes.tolist() == [[0], [1], [2]]
    place = torch.eye(30, dtype=torch.float64)
    n = 30
    five = GenerativeModel(
        A=(place,) * 5,
        B=(torch.eye(n, dtype=torch.float64).unsqueeze(-1),),
        C=(torch.zeros(n, dtype=torch.float64),) * 5,
        D=(torch.full((n,), 1 / n, dtype=torch.float64),),
    )
    outcomes, likelihood = possible_outcomes(five)  # of 24 million
    assert outcomes.shape == (30, 5)
    assert torch.equal(likelihood, place)


def test_pruned_outcomes_leave_the_mean_of_the_others() -> None:
    model = random_model(20, outcomes=(3,), sharp=1.0)
    q = beliefs(21, (5,), model.sizes)
    threshold = 0.25
    ahead = torch.einsum("nsu,bs->bun", model.B[0], q[0])
    both = ahead.unsqueeze(-2) * model.A[0]
    chance = both.sum(-1)
    after = plan(model, (both / chance.unsqueeze(-1),), 1).value
    kept = torch.where(chance > threshold, chance, 0.0)
    assert bool((kept == 0).any()) and bool((kept > 0).any(-1).all())
    worth = (kept * after.logsumexp(-1)).sum(-1) / kept.sum(-1)
    expected = plan(model, q, 1).value + worth
    found = plan(model, q, 2, pruning=Pruning(outcomes=threshold)).value
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_branching_on_states_is_branching_on_outcomes_where_they_tell_the_state() -> None:
    """With a certain A and rare branches left out (SPM follows states likelier than 1/16 of the likeliest)."""
    model = known_states(2, states=4)
    flat = GenerativeModel(
        A=model.A, B=(model.B[0].clamp(min=0.1) / model.B[0].clamp(min=0.1).sum(0),), C=model.C, D=model.D
    )
    q = beliefs(22, (3,), (4,))
    by_states = plan(flat, q, 3, branching="states").value
    assert torch.allclose(by_states, plan(flat, q, 3).value, rtol=0, atol=1e-12)
    blurred = random_model(23)
    q = beliefs(24, (3,), blurred.sizes)
    one, other = plan(blurred, q, 2, branching="states").value, plan(blurred, q, 2).value
    assert float((one - other).abs().max()) > 1e-4


def test_preferences_in_time_are_those_of_the_step() -> None:
    model = random_model(25)
    late = tuple(torch.stack([torch.zeros_like(c), torch.zeros_like(c), c]) for c in model.C)
    timed = GenerativeModel(A=model.A, B=model.B, C=late, D=model.D, timed=True)
    bare = GenerativeModel(A=model.A, B=model.B, C=tuple(torch.zeros_like(c) for c in model.C), D=model.D)
    q = beliefs(26, (3,), model.sizes)
    assert torch.allclose(plan(timed, q, 2).value, plan(bare, q, 2).value, rtol=0, atol=1e-12)
    assert float((plan(timed, q, 3).value - plan(bare, q, 3).value).abs().max()) > 1e-3
    assert torch.allclose(plan(timed, q, 1, t=2).value, plan(model, q, 1).value, rtol=0, atol=1e-12)


def test_terms_are_those_of_the_first_step() -> None:
    model = random_model(27)
    q = beliefs(28, (3,), model.sizes)
    found = plan(model, q, 2)
    assert found.terms is not None and found.policies is None
    assert torch.allclose(found.terms.value(Objective()), plan(model, q, 1).value, rtol=0, atol=1e-13)


def test_bad_questions_are_refused() -> None:
    model = random_model(29)
    q = beliefs(30, (3,), model.sizes)
    for options, words in (
        ({"depth": 0}, "at least 1 action"),
        ({"depth": 2, "gamma": 0.0}, "gamma"),
        ({"depth": 2, "backup": "free_enrgy"}, "Did you mean 'free_energy'"),
        ({"depth": 2, "branching": "state"}, "Did you mean 'states'"),
    ):
        with pytest.raises(ConfigError, match=words):
            plan(model, q, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"over \[3\] states, not over \[2\]"):
        plan(model, (q[0][:, :2],), 1)
    with pytest.raises(ConfigError, match="sum 1"):
        plan(model, (q[0] * 2,), 1)
    with pytest.raises(ConfigError, match="must broadcast"):
        plan(random_model(31, lead=(2,)), q, 1)
    policies = GenerativeModel(
        A=model.A, B=model.B, C=model.C, D=model.D, E=torch.full((4,), 0.25, dtype=torch.float64)
    )
    with pytest.raises(ConfigError, match="over 4 policies"):
        plan(policies, q, 2)


def test_what_lies_beyond_the_tree_continues_it_where_states_are_known() -> None:
    """Three actions and a table of four more are seven actions, in a world that is seen; and elsewhere it is added."""
    eye = torch.eye(3).double()
    moves = torch.stack([0.8 * eye.roll(k, 0) + 0.2 * eye for k in (1, -1)], -1)
    model = GenerativeModel(A=(eye,), B=(moves,), C=(torch.tensor([0.0, 0.3, 1.0]).double(),), D=(eye[0],))
    backups: tuple[Backup, ...] = ("free_energy", "max")
    for backup, discount in itertools.product(backups, (1.0, 0.9)):
        far = dynamic_programming.tables(model, 4, 2.0, Objective("none"), backup, discount=discount).state[0]
        found = plan(model, (eye,), 3, 2.0, Objective("none"), backup, beyond=far, discount=discount).value
        whole = plan(model, (eye,), 7, 2.0, Objective("none"), backup, discount=discount).value
        table = dynamic_programming.tables(model, 7, 2.0, Objective("none"), backup, discount=discount).value[0]
        torch.testing.assert_close(whole, table, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(found, whole, atol=1e-12, rtol=1e-12)
    with pytest.raises(ConfigError, match="3 joint states"):
        sophisticated.plan(model, (eye,), 1, beyond=torch.zeros(4).double())
