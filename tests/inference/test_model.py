"""A generative model: what fits together, what does not and is told so, and its form of one factor."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key


def columns(seed: int, *shape: int, axis: int = 0) -> Tensor:
    """Random distributions along an axis."""
    x = random.exponential(Key.of(seed), torch.arange(math.prod(shape)).reshape(shape)).double()
    return x / x.sum(axis, keepdim=True)


def tangled(seed: int = 0, lead: tuple[int, ...] = ()) -> GenerativeModel:
    """Two factors of 2 and 3 states, the second of which moves by the first and by both controls; three modalities."""
    axis = len(lead)
    return GenerativeModel(
        A=(
            columns(seed, *lead, 4, 2, 3, axis=axis),
            columns(seed + 1, *lead, 2, 3, axis=axis),
            columns(seed + 2, *lead, 3, 3, 2, axis=axis),
        ),
        B=(columns(seed + 3, *lead, 2, 2, 2, axis=axis), columns(seed + 4, *lead, 3, 3, 2, 3, 2, axis=axis)),
        C=tuple(columns(seed + 5 + m, n).log() for m, n in enumerate((4, 2, 3))),
        D=(columns(seed + 8, *lead, 2, axis=axis), columns(seed + 9, *lead, 3, axis=axis)),
        A_factors=((0, 1), (1,), (1, 0)),
        B_factors=((0,), (1, 0)),
        B_controls=((0,), (1, 0)),
        modalities=("sight", "sound", "touch"),
        factors=("place", "weather"),
    )


def test_joint_states_show_and_move_as_the_factors_do() -> None:
    model = tangled()
    joint = model.joint()
    assert model.controls == (2, 3) and model.num_actions == 6 and joint.sizes == (6,)
    settings = model.settings().tolist()
    for x, y in itertools.product(range(2), range(3)):
        s = 3 * x + y
        assert torch.equal(joint.A[0][:, s], model.A[0][:, x, y])
        assert torch.equal(joint.A[1][:, s], model.A[1][:, y])
        assert torch.equal(joint.A[2][:, s], model.A[2][:, y, x])
        assert joint.D[0][s] == model.D[0][x] * model.D[1][y]
        for u, (a, b) in enumerate(settings):
            for x2, y2 in itertools.product(range(2), range(3)):
                p = model.B[0][x2, x, a] * model.B[1][y2, y, x, b, a]
                assert joint.B[0][3 * x2 + y2, s, u] == p
    assert joint.joint() is joint


def test_tables_of_agents_own_lead_with_their_axes() -> None:
    model = tangled(lead=(5, 1))
    joint = model.joint()
    assert joint.B[0].shape == (5, 1, 6, 6, 6) and joint.D[0].shape == (5, 1, 6)
    one = GenerativeModel(
        A=tuple(a[3, 0] for a in model.A),
        B=tuple(b[3, 0] for b in model.B),
        C=model.C,
        D=tuple(d[3, 0] for d in model.D),
        A_factors=model.A_factors,
        B_factors=model.B_factors,
        B_controls=model.B_controls,
    ).joint()
    assert torch.equal(one.B[0], joint.B[0][3, 0]) and torch.equal(one.A[2], joint.A[2][3, 0])


@pytest.mark.parametrize("lead", [(), (5, 1)])
def test_the_table_of_each_beliefs_own_action(lead: tuple[int, ...]) -> None:
    model = tangled(lead=lead)
    action = torch.arange(20).reshape(5, 4) % 6
    for f in range(2):
        every = model.of_action(f).expand(5, 4, *model.of_action(f).shape[len(lead) :])
        own = model.of_action(f, action)
        for i, j in itertools.product(range(5), range(4)):
            assert torch.equal(own[i, j], every[i, j, action[i, j]])


def test_what_nobody_moves_needs_no_control() -> None:
    eye = torch.eye(2).double()
    model = GenerativeModel(
        A=(columns(1, 3, 2, 2),),
        B=(columns(2, 2, 2, 4), eye),
        C=(torch.zeros(3).double(),),
        D=(columns(3, 2), columns(4, 2)),
        B_controls=((0,), ()),
    )
    assert model.num_actions == 4
    assert torch.equal(model.of_action(1), eye.expand(4, 2, 2))


def test_a_usual_dependency_is_on_the_factor_itself_and_the_control_of_its_number() -> None:
    model = GenerativeModel(
        A=(columns(1, 3, 2, 2),),
        B=(columns(2, 2, 2, 4), columns(3, 2, 2, 1)),
        C=(torch.zeros(3).double(),),
        D=(columns(4, 2), columns(5, 2)),
    )
    assert model.controls == (4, 1) and model.B_controls == ((0,), (1,)) and model.A_factors == ((0, 1),)


def test_preferences_with_times_keep_their_last() -> None:
    c = torch.arange(6.0).reshape(3, 2).double()
    model = GenerativeModel(A=(columns(1, 2, 2),), B=(columns(2, 2, 2, 2),), C=(c,), D=(columns(3, 2),), timed=True)
    assert model.preferences(1)[0].tolist() == [2, 3] and model.preferences(9)[0].tolist() == [4, 5]


def good() -> dict[str, Any]:
    return {
        "A": (columns(1, 3, 2),),
        "B": (columns(2, 2, 2, 4),),
        "C": (torch.zeros(3).double(),),
        "D": (columns(3, 2),),
        "modalities": ("sight",),
        "factors": ("place",),
    }


WRONG: list[tuple[str, Any, str]] = [
    ("A", (columns(1, 3, 2) * 0.9,), r"A of modality 'sight' .* column \[0\] adds up to 0.9, not 1"),
    ("A", (columns(1, 3, 4),), r"A of modality 'sight' must be .* \[3, 2\], not \[3, 4\]"),
    ("A", (-columns(1, 3, 2),), "A of modality 'sight' holds negative"),
    ("A", (), "at least one modality"),
    ("B", (columns(2, 2, 2, 4).movedim(0, 1),), "B of factor 'place'.*column"),
    ("B", (columns(2, 2, 2),), "B of factor 'place' must be"),
    ("B", (columns(2, 2, 2, 4) * math.nan,), "B of factor 'place' holds numbers that are not finite"),
    ("C", (torch.tensor([0.0, math.nan, 0.0]).double(),), "C of modality 'sight' holds NaN"),
    ("C", (torch.tensor([0.0, -math.inf, 0.0]).double(),), "minus infinity.*-1e3"),
    ("C", (), "1 modalities need as many preferences"),
    ("D", (torch.tensor([0.5, 0.6]).double(),), "D of factor 'place'.*1.1"),
    ("D", (torch.tensor([0.5, 0.5]),), "same floating-point type"),
    ("E", torch.tensor([0.5, -0.5]).double(), "Habits E"),
    ("A_factors", ((1,),), "modality 'sight' depends on the factors"),
    ("B_controls", ((0, 0),), "B of factor 'place' must be"),
    ("modalities", ("sight", "sound"), "1 modalities need"),
    ("states", (("left",),), "Names of states"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_what_does_not_fit_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerativeModel(**{**good(), name: value})


def test_trusted_tables_are_taken_as_they_are_and_the_rest_stays() -> None:
    model = tangled()
    wild = torch.full_like(model.D[0], 7.0)
    other = model.trusted(D=[wild, model.D[1]])
    assert other.D[0] is wild and other.D[1] is model.D[1] and other.A is model.A and other.controls == model.controls
    assert isinstance(other.D, tuple) and model.D[0] is not wild  # the first is as it was
    with pytest.raises(ConfigError, match="no table 'F'"):
        model.trusted(F=model.D)
