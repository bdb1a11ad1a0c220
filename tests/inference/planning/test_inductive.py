"""Goals worked back from: corridors whose distances are known, and what cannot be reached."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.planning.inductive import inductive
from mfmarl.inference.planning.open_loop import plan
from tests.inference.planning.small_models import beliefs, columns, entwined


def corridor(length: int = 7, sure: float = 1.0, lead: int = 0) -> GenerativeModel:
    """Places in a row, a step to the left, none, a step to the right; every place looks the same."""
    B = torch.zeros(length, length, 3, dtype=torch.float64)
    for place in range(length):
        for action, step in enumerate((-1, 0, 1)):
            B[min(max(place + step, 0), length - 1), place, action] += sure
            B[place, place, action] += 1 - sure
    if lead:
        B = B.expand(lead, 1, *B.shape).clone()
    blind = torch.ones(1, length, dtype=torch.float64)
    return GenerativeModel(
        A=(blind,), B=(B,), C=(torch.zeros(1).double(),), D=(torch.full((length,), 1 / length).double(),)
    )


def goal(length: int, place: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(place), length).double()


def test_row_k_holds_the_places_that_k_steps_lead_from() -> None:
    found = inductive(corridor(), [goal(7, 6)], 9)
    for k in range(9):
        assert found.reachable[0][k].tolist() == [float(6 - place <= k) for place in range(7)]


def test_being_a_step_nearer_is_free_and_all_else_costs() -> None:
    epsilon = 1e-3
    found = inductive(corridor(), [goal(7, 6)], 9, epsilon=epsilon)
    for place in range(7):
        (weights,) = found.weights([goal(7, place)])
        nearest = max(6 - place - 1, 0)
        truth = [0.0 if 6 - other <= nearest else math.log(epsilon) for other in range(7)]
        assert torch.allclose(weights, torch.tensor(truth, dtype=torch.float64), atol=1e-14, rtol=0)


def test_a_goal_far_beyond_the_plan_says_where_to_go() -> None:
    model, believed = corridor(), torch.stack([goal(7, place) for place in range(7)])
    without = plan(model, (believed,), 2)
    assert torch.allclose(without.value, without.value[:, :1].expand(-1, 3), atol=1e-12)  # nothing is to be preferred
    led = plan(model, (believed,), 2, inductive=inductive(model, [goal(7, 5)], 8))
    assert led.value.argmax(-1)[:5].tolist() == [2, 2, 2, 2, 2] and int(led.value[6].argmax()) == 0
    # Of nine policies from the far end two stay nearer, three lose one step and four lose both, at ln epsilon each.
    assert led.policies is not None
    assert float(led.policies[0].exp()[2, 2]) == pytest.approx(1 / (2 + 3e-3 + 4e-6), rel=1e-12)


def test_goals_beyond_the_depth_add_nothing() -> None:
    model = corridor()
    found = inductive(model, [goal(7, 6)], 4)  # rows 0..3: three steps at most
    assert float(found.weights([goal(7, 2)])[0].abs().max()) == 0
    assert float(found.weights([goal(7, 3)])[0].abs().max()) > 0


def test_moves_that_are_not_likely_enough_are_not_counted_on() -> None:
    model = corridor(sure=0.3)
    assert inductive(model, [goal(7, 6)], 4, threshold=0.25).reachable[0][3].sum() == 4
    assert inductive(model, [goal(7, 6)], 4, threshold=0.35).reachable[0][3].sum() == 1


def test_everyone_has_a_goal_and_a_world_of_their_own() -> None:
    model = corridor(lead=2)
    B = model.B[0].clone()
    B[1, 0] = B[1, 0].flip(-1)  # the second mind's controls are crossed
    crossed = GenerativeModel(A=model.A, B=(B,), C=model.C, D=model.D)
    goals = torch.stack((goal(7, 6), goal(7, 0))).unsqueeze(1)  # [M, 1, S]
    q = goal(7, 3).expand(2, 4, 7)
    found = plan(crossed, (q,), 1, inductive=inductive(crossed, [goals], 5))
    assert found.value.argmax(-1).tolist() == [[2] * 4, [2] * 4]
    same = plan(model, (q,), 1, inductive=inductive(model, [goals], 5))
    assert same.value.argmax(-1).tolist() == [[2] * 4, [0] * 4]


def test_factors_without_a_goal_are_left_alone() -> None:
    model = entwined(2)
    believed = beliefs(1, (5,), model.sizes)
    found = inductive(model, [None, torch.tensor([0.0, 0.0, 1.0]).double(), None], 3)
    weights = found.weights(believed)
    assert float(weights[0].abs().max()) == 0 and float(weights[2].abs().max()) == 0
    base, led = plan(model, believed, 1), plan(model, believed, 1, inductive=found)
    for u in range(model.num_actions):
        joint = torch.einsum("bi,bj->bij", believed[0], believed[1])
        a, b = model.settings()[u].tolist()
        after = torch.einsum("yji,bij->by", model.B[1][..., b, a], joint)
        assert torch.allclose(led.value[:, u] - base.value[:, u], (after * weights[1]).sum(-1), atol=1e-12, rtol=0)


def test_a_factor_led_by_others_counts_on_whatever_they_may_do() -> None:
    model = entwined(2)
    (reach,) = inductive(model, [None, torch.tensor([1.0, 0, 0]).double(), None], 2, threshold=0.4).reachable[1:2]
    B = model.B[1]  # [next, own, other factor, control 1, control 0]
    for s in range(3):
        assert bool(reach[1, s]) == bool((B[0, s] > 0.4).any())


def test_goals_that_do_not_fit_are_refused() -> None:
    model = corridor()
    with pytest.raises(ConfigError, match="depth of at least 1"):
        inductive(model, [goal(7, 0)], 0)
    with pytest.raises(ConfigError, match="as many goals"):
        inductive(model, [], 2)
    with pytest.raises(ConfigError, match="factor '0' must say of 7 states"):
        inductive(model, [goal(6, 0)], 2)
    with pytest.raises(ConfigError, match="1 at the states"):
        inductive(model, [goal(7, 0) * 0.5], 2)
    with pytest.raises(ConfigError, match="needs a goal"):
        inductive(model, [None], 2)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        inductive(model, [goal(7, 0)], 2, epsilon=1.0)
    half = torch.full((2,), 0.5).double()
    driven = GenerativeModel(
        A=(columns(0, 2, 2, 2),),
        B=(columns(1, 2, 2, 2), columns(2, 2, 2)),
        C=(half,),
        D=(half, half),
        B_factors=((0,), (0,)),
        B_controls=((0,), ()),
    )
    with pytest.raises(ConfigError, match="'1' does not depend on itself"):
        inductive(driven, [None, torch.tensor([0.0, 1.0]).double()], 2)
