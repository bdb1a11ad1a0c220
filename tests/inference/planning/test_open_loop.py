"""Open-loop plans: every policy by itself written out, by the tree and in closed form, in pieces and restricted."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.inference import filtering
from mfmarl.inference.counts import begin
from mfmarl.inference.expected_free_energy import of_beliefs
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import closed_form, open_loop
from mfmarl.inference.planning.inductive import inductive
from mfmarl.inference.planning.open_loop import plan
from tests.inference.planning.small_models import (
    apart,
    beliefs,
    columns,
    cue,
    entwined,
    grid,
    policy_values,
    t_maze,
)

EXACT = {"atol": 1e-10, "rtol": 0}
OBJECTIVES = (Objective(state_weight=0.7), Objective("joint", normalise=False), Objective("none"))


def logs(found: open_loop.Plan, batch: int = 1) -> Tensor:
    assert found.policies is not None
    return found.policies.flatten(batch)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.state_information)
def test_every_policy_is_worth_what_it_is_when_written_out(objective: Objective) -> None:
    model = entwined(1, sharp=2.0)
    believed = beliefs(1, (2,), model.sizes)
    found = plan(model, believed, 2, 1.5, objective)
    truth = policy_values(model, believed, 2, objective)
    assert found.policies is not None and found.policies.shape == (2, 6, 6)
    assert torch.allclose(logs(found), torch.log_softmax(1.5 * truth, -1), **EXACT)
    first = (1.5 * truth).unflatten(-1, (6, 6)).logsumexp(-1) / 1.5
    assert torch.allclose(found.value, first, **EXACT)


@pytest.mark.parametrize("how", ["tree", "closed_form"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.state_information)
@pytest.mark.parametrize("world", ["apart", "joint", "t_maze"])
def test_the_tree_and_the_closed_form_are_both_what_is_written_out(world: str, objective: Objective, how: str) -> None:
    model = {"apart": apart(1, 2.0), "joint": entwined(2).joint(), "t_maze": t_maze()}[world]
    believed = beliefs(2, (2,), model.sizes)
    found = plan(model, believed, 2, 2.0, objective, how=how)  # type: ignore[arg-type]
    truth = policy_values(model, believed, 2, objective)
    assert torch.allclose(logs(found), torch.log_softmax(2 * truth, -1), **EXACT)


def test_the_closed_form_is_the_tree_far_ahead() -> None:
    for model, depth in ((grid(), 3), (t_maze(), 4), (t_maze().joint(), 3), (apart(3), 3), (grid(3, slip=0.0), 4)):
        believed = beliefs(3, (6,), model.sizes)
        for objective in OBJECTIVES:
            tree = plan(model, believed, depth, 3.0, objective, how="tree")
            closed = plan(model, believed, depth, 3.0, objective, how="closed_form")
            assert torch.allclose(logs(tree), logs(closed), **EXACT)
            assert torch.allclose(tree.value, closed.value, **EXACT)


def test_preferences_that_come_and_go_are_those_of_each_step() -> None:
    base = apart(4)
    timed = replace(base, C=tuple(torch.stack((c, -c, 2 * c, 0 * c)) for c in base.C), timed=True)
    believed = beliefs(4, (1,), base.sizes)
    for t in (0, 2, 9):
        truth = torch.log_softmax(policy_values(timed, believed, 2, Objective(), t), -1)
        for how in ("tree", "closed_form"):
            found = plan(timed, believed, 2, 1.0, t=t, how=how)  # type: ignore[arg-type]
            assert torch.allclose(logs(found), truth, **EXACT)


def test_open_loop_takes_the_same_look_twice_for_two() -> None:
    model = cue()
    start = tuple(d.unsqueeze(0) for d in model.D)
    entropy = -0.95 * math.log(0.95) - 0.05 * math.log(0.05)
    for how in ("tree", "closed_form"):
        found = plan(model, start, 2, math.inf, how=how)  # type: ignore[arg-type]
        wanted = math.log(0.5)  # preferences are flat: ln 1/2 a step
        look = math.log(2) - entropy
        assert found.value[0].tolist() == pytest.approx([2 * wanted + look, 2 * wanted + 2 * look], abs=1e-12)
    assert look == pytest.approx(0.494632, abs=5e-7)


def test_in_a_t_maze_the_cue_is_read_before_an_arm_is_tried() -> None:
    model = t_maze()
    start = tuple(d.unsqueeze(0) for d in model.D)
    found = plan(model, start, 3, 8.0)
    assert int(found.value.argmax()) == 3
    without = plan(model, start, 3, 8.0, Objective("none"))
    assert float(without.value[0, 3]) == pytest.approx(float(without.value[0, 1]), abs=0.05)  # nothing speaks for it
    told = (start[0], torch.tensor([[0.95, 0.05]], dtype=torch.float64))
    assert int(plan(model, told, 3, 8.0).value.argmax()) == 4
    sure = (torch.eye(5, dtype=torch.float64)[4:], torch.tensor([[0.05, 0.95]], dtype=torch.float64))
    assert int(plan(model, sure, 1, 8.0).value.argmax()) == 2


@pytest.mark.parametrize("how", ["tree", "closed_form"])
def test_habits_are_of_actions_at_every_step_or_of_policies(how: open_loop.How) -> None:
    base = apart(5)
    U = base.num_actions
    of_actions, of_policies = columns(20, U), columns(21, U * U)
    believed = beliefs(5, (3,), base.sizes)
    g = policy_values(base, believed, 2, Objective())
    each = (of_actions.log().unsqueeze(-1) + of_actions.log()).flatten()
    for E, prior in ((of_actions, each), (of_policies, of_policies.log())):
        found = plan(replace(base, E=E), believed, 2, 0.8, how=how)
        weights = 0.8 * g + prior
        assert torch.allclose(logs(found), torch.log_softmax(weights, -1), **EXACT)
        assert torch.allclose((0.8 * found.value).softmax(-1), logs(found).exp().unflatten(-1, (U, U)).sum(-1), **EXACT)
    one = plan(replace(base, E=of_actions), believed, 1, 0.8, how=how)
    first = policy_values(base, believed, 1, Objective())
    assert torch.allclose(one.value, first + of_actions.log() / 0.8, **EXACT)


@pytest.mark.parametrize("how", ["tree", "closed_form"])
def test_what_is_not_allowed_has_no_share(how: open_loop.How) -> None:
    model = apart(6)
    U = model.num_actions
    believed = beliefs(6, (4,), model.sizes)
    g = policy_values(model, believed, 2, Objective())
    allowed = columns(22, U * U) > 0.7 / U**2
    legal = columns(23, 4, U) > 0.5 / U**2
    legal[:, 0] = True
    cases = (
        (allowed, None, "first", allowed.expand(4, -1)),
        (None, legal, "first", legal.repeat_interleave(U, -1)),
        (None, legal, "all", (legal.unsqueeze(-1) & legal.unsqueeze(-2)).flatten(1)),
        (allowed, legal, "first", allowed & legal.repeat_interleave(U, -1)),
    )
    for policies, actions, at, open_to in cases:
        for gamma in (1.2, math.inf):
            found = plan(model, believed, 2, gamma, allowed=policies, legal=actions, legal_at=at, how=how)  # type: ignore[arg-type]
            masked = torch.where(open_to, g, -math.inf)
            if gamma == math.inf:
                assert torch.allclose(found.value, masked.unflatten(-1, (U, U)).amax(-1), **EXACT)
                best = (masked >= masked.amax(-1, keepdim=True) - 1e-12).double()
                assert torch.allclose(logs(found).exp(), best / best.sum(-1, keepdim=True), **EXACT)
            else:
                assert torch.allclose(logs(found).exp(), (gamma * masked).softmax(-1), **EXACT)
                assert torch.allclose(
                    found.value, (gamma * masked).unflatten(-1, (U, U)).logsumexp(-1) / gamma, **EXACT
                )


def test_everyone_has_a_precision_of_their_own() -> None:
    model = t_maze()
    believed = beliefs(7, (2, 3), model.sizes)
    gamma = 0.5 + columns(24, 2, 3, axis=1)
    found = plan(model, believed, 2, gamma)
    for i, j in itertools.product(range(2), range(3)):
        one = plan(model, tuple(q[i, j] for q in believed), 2, float(gamma[i, j]))
        assert torch.allclose(found.value[i, j], one.value, **EXACT)
        assert torch.allclose(logs(found, 2)[i, j], logs(one, 0), **EXACT)


@pytest.mark.parametrize("lead", [(3, 1), (3, 4)])
def test_everyone_plans_with_a_model_of_their_own(lead: tuple[int, int]) -> None:
    model = entwined(7, lead)
    believed = beliefs(8, (3, 4), model.sizes)
    goals = inductive(model, [None, torch.tensor([0.0, 0.0, 1.0]).double(), None], 3, threshold=0.5)
    counts = begin(model, "AB", 5.0)
    objective = Objective(parameter_information="exact")
    found = plan(model, believed, 2, 2.0, objective, counts, goals)
    for i, j in ((0, 0), (1, 2), (2, 3)):
        own = (i, j if lead[1] > 1 else 0)
        alone = replace(
            model,
            A=tuple(x[own] for x in model.A),
            B=tuple(x[own] for x in model.B),
            C=tuple(x[own] for x in model.C),
        )
        reach = goals._replace(reachable=tuple(x[own] if x.ndim > 2 else x for x in goals.reachable))
        one = plan(
            alone,
            tuple(q[i, j] for q in believed),
            2,
            2.0,
            objective,
            counts.map(lambda x, own=own: x[own]),  # type: ignore[misc]
            reach,
        )
        assert torch.allclose(found.value[i, j], one.value, **EXACT)
        assert torch.allclose(logs(found, 2)[i, j], logs(one, 0), **EXACT)
        assert found.terms is not None and one.terms is not None
        for x, y in zip(found.terms, one.terms, strict=True):
            assert torch.allclose(x[i, j], y, **EXACT)


@pytest.mark.parametrize("novelty", ["exact", "pymdp", "spm"])
def test_what_is_learned_of_parameters_counts_at_every_step(novelty: str) -> None:
    model = entwined(8)
    counts = begin(model, "AB", 4.0)
    believed = beliefs(9, (3,), model.sizes)
    objective = Objective(parameter_information=novelty, parameter_weight=0.6)  # type: ignore[arg-type]
    found = plan(model, believed, 2, 1.0, objective, counts)
    rows = []
    for policy in itertools.product(range(model.num_actions), repeat=2):
        q, total = believed, torch.zeros(3).double()
        for step, action in enumerate(policy):
            taken = torch.full((3,), action)
            after = filtering.predict(model, q, taken)
            total = total + of_beliefs(model, after, step, objective, counts, q, taken).value(objective)
            q = after
        rows.append(total)
    assert torch.allclose(logs(found), torch.log_softmax(torch.stack(rows, -1), -1), **EXACT)


def test_terms_of_the_first_step_add_up_to_the_value_of_plans_of_one() -> None:
    for model in (t_maze(), entwined(9), entwined(9, (4, 1))):
        believed = beliefs(10, (4, 2), model.sizes)
        for objective in OBJECTIVES:
            found = plan(model, believed, 1, 1.0, objective)
            assert found.terms is not None
            assert torch.allclose(found.terms.value(objective), found.value, **EXACT)


def test_pieces_and_branches_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = ((entwined(10), 3), (t_maze(), 3), (grid(), 3), (entwined(10, (3, 1)), 2))
    grown: list[int] = []
    grow = open_loop._Tree._grow

    def counted(self: open_loop._Tree, q: list[Tensor], level: int, prices: tuple[Tensor, ...] | None) -> Tensor:
        grown.append(level)
        return grow(self, q, level, prices)

    for model, depth in cases:
        believed = beliefs(11, (3, 7), model.sizes)
        whole = plan(model, believed, depth, 2.0, how="tree")
        monkeypatch.setattr(open_loop, "_CACHE", 0)
        monkeypatch.setattr(open_loop._Tree, "_grow", counted)
        grown.clear()
        parts = plan(model, believed, depth, 2.0, how="tree", budget=24 * model.num_actions**depth)
        monkeypatch.undo()
        assert max(grown) > 0 and grown.count(0) >= 7  # branches were grown apart, agents in pieces
        assert torch.allclose(logs(whole, 2), logs(parts, 2), **EXACT)
        assert torch.allclose(whole.value, parts.value, **EXACT)


def test_minds_are_planned_for_a_few_at_a_time() -> None:
    model = entwined(16, (5, 1))
    U = model.num_actions
    model = replace(model, E=columns(26, 5, 1, U, axis=-1))
    believed = beliefs(17, (5, 3), model.sizes)
    gamma = 1 + columns(27, 5, 3)
    legal = columns(28, 5, 3, U) > 0.05
    legal[..., 2] = True
    goals = inductive(model, [None, torch.tensor([0.0, 0.0, 1.0]).double(), None], 3, threshold=0.5)
    counts = begin(model, "AB", 5.0)
    objective = Objective(parameter_information="pymdp")
    plans = [
        plan(model, believed, 2, gamma, objective, counts, goals, budget=budget, legal=legal, legal_at="all")
        for budget in (1 << 28, 24 * U**2)
    ]
    alone = plan(
        replace(model, A=tuple(x[3, 0] for x in model.A), B=tuple(x[3, 0] for x in model.B),
                C=tuple(x[3, 0] for x in model.C), E=None if model.E is None else model.E[3, 0]),
        tuple(q[3] for q in believed), 2, gamma[3], objective, counts.map(lambda x: x[3, 0]),
        goals._replace(reachable=tuple(x[3, 0] if x.ndim > 2 else x for x in goals.reachable)),
        legal=legal[3], legal_at="all",
    )  # fmt: skip
    for found in plans:
        assert torch.allclose(found.value[3], alone.value, **EXACT)
        assert torch.allclose(logs(found, 2)[3].exp(), logs(alone).exp(), **EXACT)
        assert found.terms is not None and alone.terms is not None
        assert torch.allclose(found.terms.parameter_information[3], alone.terms.parameter_information, **EXACT)
    assert torch.allclose(plans[0].value, plans[1].value, **EXACT)


def test_what_was_found_for_counts_of_one_shape_does_not_serve_another() -> None:
    model = entwined(17, (3, 1))
    counts = begin(model, "AB", 5.0)
    believed = beliefs(18, (3, 4), model.sizes)
    action = torch.zeros(3, 4, dtype=torch.int64)
    objective = Objective(parameter_information="exact")
    before = of_beliefs(model, believed, 0, objective, begin(model, "AB", 5.0), believed, action)
    plan(model, believed, 2, 1.0, objective, counts)
    after = of_beliefs(model, believed, 0, objective, counts, believed, action)
    assert after.parameter_information.shape == (3, 4)
    assert torch.equal(after.parameter_information, before.parameter_information)


def test_plans_beyond_the_budget_are_refused_before_they_are_made() -> None:
    model = t_maze()
    start = tuple(d.unsqueeze(0) for d in model.D)
    with pytest.raises(ConfigError, match=r"depth 14 has 5\^14 = 6.1e\+09 policies.*budget of 268435456 bytes"):
        plan(model, start, 14)
    many = tuple(q.expand(1000, -1) for q in start)
    with pytest.raises(ConfigError, match="details=False"):
        plan(model, many, 4, budget=60_000)
    slim = plan(model, many, 4, budget=60_000, details=False)
    assert slim.policies is None and slim.terms is None
    assert torch.allclose(slim.value, plan(model, start, 4).value.expand(1000, -1), **EXACT)


def test_single_precision_is_double_precision_rounded() -> None:
    for model in (t_maze(), grid(), entwined(11)):
        believed = beliefs(12, (20,), model.sizes)
        double = plan(model, believed, 3, 2.0, how="auto")
        for how in ("tree", "auto"):
            single = plan(model.to(dtype=torch.float32), tuple(q.float() for q in believed), 3, 2.0, how=how)  # type: ignore[arg-type]
            assert single.value.dtype == torch.float32
            assert torch.allclose(single.value.double(), double.value, atol=3e-5, rtol=0)


def test_a_closed_form_keeps_one_of_what_leads_alike() -> None:
    model = grid(5, slip=0.0, seen=1.0)
    form = closed_form.of(model, Objective(), 3, wanted=True)
    assert form is not None and form.meetings is not None
    assert form.policies == 125 and form.meetings.shape[0] < 200  # of 125 x 25 predicted outcomes
    assert closed_form.of(model, Objective(), 3) is form
    assert closed_form.of(model, Objective(), 2) is not form


def test_a_closed_form_of_which_little_leads_alike_is_left_to_the_tree() -> None:
    B = columns(40, 12, 12, 3)
    model = GenerativeModel(
        A=(columns(41, 9, 12),), B=(B,), C=(columns(42, 9).log(),), D=(torch.full((12,), 1 / 12).double(),)
    )
    assert closed_form.of(model, Objective(), 4) is None
    made = closed_form.of(model, Objective(), 4, wanted=True)
    assert made is not None and made.meetings is not None and made.meetings.shape == (9 * (3 + 9 + 27 + 81), 81)
    assert closed_form.of(model, Objective("none"), 4) is not None  # what is linear is one product
    assert closed_form.of(grid(5, slip=0.1), Objective(), 3) is not None


def test_what_is_kept_for_a_model_goes_with_it() -> None:
    model = grid(3)
    form = weakref.ref(closed_form.of(model, Objective(), 2, wanted=True))
    assert form() is not None
    del model
    gc.collect()
    assert form() is None


def test_where_there_is_no_closed_form_it_says_why() -> None:
    model = entwined()
    believed = beliefs(0, (2,), model.sizes)
    with pytest.raises(ConfigError, match="factors move by others"):
        plan(model, believed, 2, how="closed_form")
    own = entwined(0, (2, 1)).joint()
    with pytest.raises(ConfigError, match="tables of their own"):
        plan(own, beliefs(0, (2, 3), own.sizes), 2, how="closed_form")
    maze = t_maze()
    start = tuple(d.unsqueeze(0) for d in maze.D)
    with pytest.raises(ConfigError, match="counts or goals"):
        plan(maze, start, 2, counts=begin(maze, "A"), how="closed_form")
    with pytest.raises(ConfigError, match="4096 policies"):
        plan(maze, start, 6, how="closed_form", details=False)


def test_what_does_not_fit_is_said() -> None:
    model = t_maze()
    start = tuple(d.unsqueeze(0) for d in model.D)
    with pytest.raises(ConfigError, match="depth of at least 1"):
        plan(model, start, 0)
    with pytest.raises(ConfigError, match="not 'forest'"):
        plan(model, start, 1, how="forest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="gamma must be positive"):
        plan(model, start, 1, 0.0)
    with pytest.raises(ConfigError, match=r"3 policies: a plan of depth 2 has habits over its 5 actions or its 25"):
        plan(replace(model, E=torch.ones(3).double() / 3), start, 2)
    with pytest.raises(ConfigError, match=r"bool \[25\]"):
        plan(model, start, 2, allowed=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ConfigError, match="No policy is allowed"):
        plan(model, start, 2, allowed=torch.zeros(25, dtype=torch.bool))
    with pytest.raises(ConfigError, match="no legal action"):
        plan(model, start, 2, legal=torch.zeros(1, 5, dtype=torch.bool))
    with pytest.raises(ConfigError, match="'first' step or 'all'"):
        plan(model, start, 2, legal=torch.ones(1, 5, dtype=torch.bool), legal_at="last")  # type: ignore[arg-type]
    with pytest.raises((ConfigError, NumericFault)):
        plan(model, (start[0], start[1] * math.nan), 2)


def test_a_crowd_costs_what_its_agents_cost_one_by_one() -> None:
    model = grid(3)
    believed = beliefs(13, (300,), model.sizes)
    for how in ("tree", "closed_form"):
        whole = plan(model, believed, 2, how=how).value  # type: ignore[arg-type]
        for piece in (slice(0, 1), slice(17, 40), slice(299, 300)):
            part = plan(model, tuple(q[piece] for q in believed), 2, how=how).value  # type: ignore[arg-type]
            assert torch.allclose(whole[piece], part, atol=1e-13, rtol=0)


def test_a_model_with_a_control_that_moves_nothing_plans_as_without() -> None:
    base = grid(3).to(dtype=torch.float64)
    idle = GenerativeModel(A=base.A, B=base.B, C=base.C, D=base.D, B_controls=((0,),), controls=(5, 2))
    still = GenerativeModel(A=base.A, B=(base.B[0][..., 4],), C=base.C, D=base.D, B_controls=((),), controls=(3,))
    believed = beliefs(14, (4,), base.sizes)
    for how in ("tree", "closed_form"):
        found = plan(idle, believed, 2, 1.0, how=how)  # type: ignore[arg-type]
        lone = plan(base, believed, 2, 1.0)
        assert torch.allclose(logs(found).exp().view(4, 5, 2, 5, 2).sum((2, 4)).flatten(1), logs(lone).exp(), **EXACT)
        nothing = plan(still, believed, 2, 1.0, how=how)  # type: ignore[arg-type]
        assert torch.allclose(logs(nothing).exp(), torch.full((4, 9), 1 / 9, dtype=torch.float64), **EXACT)


def test_agents_that_believe_the_same_plan_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grid(3)
    few = beliefs(15, (7,), model.sizes)[0]
    which = torch.arange(500) ** 2 % 7
    planned: list[int] = []
    values = closed_form.ClosedForm.values

    def counted(self: closed_form.ClosedForm, believed: list[Tensor], prices: None = None) -> Tensor:
        planned.append(believed[0].shape[1])
        return values(self, believed, prices)

    monkeypatch.setattr(closed_form.ClosedForm, "values", counted)
    merged = plan(model, (few[which].view(5, 100, 9),), 3, 2.0, how="closed_form")
    assert sum(planned) == len(which.unique()) == 4
    each = plan(model, (few[which].view(5, 100, 9),), 3, 2.0, how="closed_form", merge=False)
    assert sum(planned) == 504
    assert torch.allclose(merged.value, each.value, atol=1e-13, rtol=0)
    assert torch.allclose(logs(merged, 2), logs(each, 2), atol=1e-13, rtol=0)
    assert merged.terms is not None and each.terms is not None
    assert torch.allclose(merged.terms.risk, each.terms.risk, atol=1e-13, rtol=0)
    # Beliefs that differ anywhere are never taken for the same.
    others = few[which].clone()
    others[:, 3] += 1e-9 * torch.arange(500)
    close = few[which].clone()
    close[::2, 0] += 1e-15
    for beliefs_ in (others, close):
        planned.clear()
        plan(model, (beliefs_,), 3, 2.0, how="closed_form")
        assert sum(planned) == 500
