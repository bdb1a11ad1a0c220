"""Markov kernels in their three forms: one law for values, crowds and agents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mfmarl.errors import EnvironmentFault
from mfmarl.games import kernels
from mfmarl.games.kernels import Dense, Kernel, Moves, Outcomes, grid_moves
from tests.games.mini import simplex, table

LEADS: list[tuple[int, ...]] = [(), (2,), (3, 2), (3, 1), (1, 2)]  # a kernel's axes before [S, A, ...]; b = 3, G = 2


def _random(seed: int, form: str, lead: tuple[int, ...], s: int, a: int, k: int) -> Kernel:
    whole = np.random.default_rng(seed)
    if form == "dense":
        return Dense(simplex(seed, *lead, s, a, s))
    if form == "moves":
        target, shoved = whole.integers(s, size=(s, a)), whole.integers(s, size=(s, k))
        chance = simplex(seed, s, k) if seed % 2 else simplex(seed, k)
        return Moves(torch.from_numpy(target), torch.from_numpy(shoved), chance)
    named = lead if seed % 2 else ()
    return Outcomes(torch.from_numpy(whole.integers(s, size=(*named, s, a, k))), simplex(seed, *lead, s, a, k))


@pytest.mark.parametrize("small", [0, 1 << 17])
@given(
    seed=st.integers(0, 10_000),
    form=st.sampled_from(["outcomes", "dense", "moves"]),
    lead=st.sampled_from(LEADS),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
)
def test_values_and_crowds_move_by_one_law(
    small: int, seed: int, form: str, lead: tuple[int, ...], sizes: tuple[int, int, int]
) -> None:
    s, a, k = sizes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_SMALL", small)
        kernel = _random(seed, form, lead, s, a, k)
        matrix = kernel.dense()
        value, joint = table(seed, 3, 2, s), simplex(seed, 3, 2, s * a).unflatten(-1, (s, a))
        ahead, after = kernel.expect(value), kernel.carry(joint)
    assert ahead.shape == joint.shape
    assert after.shape == value.shape
    torch.testing.assert_close(ahead, torch.einsum("...sat,...t->...sa", matrix, value), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(after, torch.einsum("...sa,...sat->...t", joint, matrix), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close((after * value).sum(), (joint * ahead).sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.sum(-1), torch.ones(3, 2, dtype=torch.float64), rtol=1e-13, atol=0)
    kernel.check("here")
    assert matrix.sum(-1).numpy() == pytest.approx(1)


@given(seed=st.integers(0, 10_000), form=st.sampled_from(["outcomes", "dense"]), lead=st.sampled_from([(3, 2), (3, 1)]))
def test_one_entry_of_a_batch_is_the_kernel_of_that_entry(seed: int, form: str, lead: tuple[int, ...]) -> None:
    kernel = _random(seed, form, lead, 4, 2, 3)
    value = table(seed, 3, 2, 4)
    for index in range(3):
        torch.testing.assert_close(kernel.among(index).expect(value[index]), kernel.expect(value)[index])


@pytest.mark.parametrize("form", ["outcomes", "dense", "moves"])
@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("k", [3, 12])
def test_agents_are_drawn_by_the_kernel(form: str, lead: tuple[int, ...], k: int) -> None:
    s = k if form == "dense" else 4  # with more than 8 outcomes a draw bisects
    kernel = _random(5 + len(lead), form, lead, s, 2, k)
    copies, agents = 3, 40_000
    group = torch.arange(agents) % 2
    whole = torch.Generator().manual_seed(0)
    state = torch.randint(s, (copies, agents), generator=whole)
    action = torch.randint(2, (copies, agents), generator=whole)
    level = torch.rand(copies, agents, generator=whole, dtype=torch.float64)
    after = kernel.draw(group, state, action, level)
    matrix = kernel.dense().expand(copies, 2, s, 2, s)
    copy = torch.arange(copies).unsqueeze(-1).expand_as(state)
    cell = ((copy * 2 + group) * s + state) * 2 + action
    counted = torch.bincount((cell * s + after).flatten(), minlength=matrix.numel()).view(matrix.shape).double()
    times = counted.sum(-1, keepdim=True)
    error = (times * matrix * (1 - matrix)).clamp(min=0).sqrt()
    assert bool(((counted - times * matrix).abs() <= 5 * error + 1).all())
    assert bool((counted[matrix == 0] == 0).all())


@pytest.mark.parametrize("k", [3, 12])
def test_what_has_no_probability_is_never_drawn(k: int) -> None:
    chance = torch.zeros(k, dtype=torch.float64)
    chance[1], chance[-2] = 0.5, 0.5
    kernel = Outcomes(torch.arange(k).view(1, 1, k), chance.view(1, 1, k))
    level = torch.tensor([[1e-9, 0.25, 0.5 - 1e-9, 0.5, 0.75, 1 - 2**-24, 1 - 1e-12]], dtype=torch.float64)
    where = torch.zeros(1, 7, dtype=torch.int64)
    drawn = kernel.draw(where[0], where, where, level)
    low, high = (1, k - 2)
    assert drawn.tolist() == [[low, low, low, high, high, high, high]]


def _with_row(value: float) -> Tensor:
    p = simplex(0, 3, 2, 4)
    p[1, 0] = torch.tensor([0.5, 0.5, 0.0, value])
    return p


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.1, "sums to 1.1 at state 1, action 0"),
        (-0.1, "has a negative or undefined entry at state 1, action 0"),
        (float("nan"), "has a negative or undefined entry at state 1, action 0"),
    ],
)
@pytest.mark.parametrize("form", ["outcomes", "dense", "moves"])
def test_a_kernel_that_is_none_is_refused_by_place(value: float, told: str, form: str) -> None:
    p = _with_row(value)
    kernel: Kernel
    if form == "outcomes":
        kernel = Outcomes(torch.zeros(3, 2, 4, dtype=torch.int64), p)
    elif form == "dense":
        kernel = Dense(p)
    else:
        # Action 0 leads from each state to itself, action 1 to state 0.
        target = torch.tensor([[0, 0], [1, 0], [2, 0]])
        kernel = Moves(target, torch.zeros(3, 4, dtype=torch.int64), p[:, 0])
    with pytest.raises(EnvironmentFault, match=told):
        kernel.check("Rules at time 3")


def test_moves_on_a_grid_stop_at_edges_and_walls_and_go_round_a_torus() -> None:
    moves = torch.tensor([[0, 0], [0, 1], [0, -1], [1, 0]])
    walls = torch.tensor([False, False, False, False, True, False])
    #  0 1 2
    #  3 # 5
    assert grid_moves((2, 3), moves, walls=walls).tolist()[:4] == [
        [0, 1, 0, 3],
        [1, 2, 0, 1],
        [2, 2, 1, 5],
        [3, 3, 3, 3],
    ]
    assert grid_moves((2, 3), moves, torus=True).tolist()[2] == [2, 0, 1, 5]
    assert grid_moves((5,), torch.tensor([[-2], [3]])).tolist() == [[0, 3], [0, 4], [0, 4], [1, 4], [2, 4]]
