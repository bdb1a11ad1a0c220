"""Linearly solvable control: linear equations, known paths, and soft value iteration where actions are certain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.inference import linearly_solvable as lmdp
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import dynamic_programming


def problem(seed: int, states: int = 6, lead: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    passive = torch.rand(*lead, states, states, dtype=torch.float64, generator=g) ** 3
    return 2 * torch.rand(*lead, states, dtype=torch.float64, generator=g), passive / passive.sum(-1, keepdim=True)


def test_a_finite_horizon_is_a_product_of_matrices() -> None:
    """z_0 = (e^{-q/T} P)^n e^{-end/T}, written out."""
    cost, passive = problem(1)
    end = torch.linspace(0, 1, 6, dtype=torch.float64)
    for temperature in (0.5, 1.0, 3.0):
        found = lmdp.finite_horizon(cost, passive, 4, temperature, end).value
        assert found.shape == (5, 6)
        matrix = torch.diag((-cost / temperature).exp()) @ passive
        z = torch.linalg.matrix_power(matrix, 4) @ (-end / temperature).exp()
        assert torch.allclose(found[0], -temperature * z.log(), rtol=0, atol=1e-12)
        assert torch.equal(found[-1], end)


def test_the_value_is_what_the_best_transitions_cost_and_no_others_cost_less() -> None:
    cost, passive = problem(2)
    temperature, steps = 0.7, 1
    value = lmdp.finite_horizon(cost, passive, steps, temperature, cost).value
    best = lmdp.controlled(passive, value[1], temperature)
    paid = lmdp.cost_of(cost, passive, best, steps, temperature, cost)
    assert torch.allclose(paid, value[0], rtol=0, atol=1e-12)
    g = torch.Generator().manual_seed(3)
    for _ in range(50):
        other = passive * torch.rand(6, 6, dtype=torch.float64, generator=g)
        other = other / other.sum(-1, keepdim=True)
        assert bool((lmdp.cost_of(cost, passive, other, steps, temperature, cost) >= value[0] - 1e-12).all())


def test_a_first_exit_solves_its_equation() -> None:
    cost, passive = problem(4, lead=(3,))
    cost = cost + 0.05
    ends = torch.tensor([False, False, True, False, False, True])
    value = lmdp.first_exit(cost, passive, ends, 0.8).value
    z = (-value / 0.8).exp()
    pushed = (-cost / 0.8).exp() * (passive @ z.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(z[:, ~ends], pushed[:, ~ends], rtol=1e-12, atol=0)
    assert torch.allclose(value[:, ends], cost[:, ends], rtol=0, atol=1e-14)


def test_a_walk_to_an_end_costs_what_hyperbolic_functions_say() -> None:
    """A symmetric walk on 0..L with cost q per step and free ends: z(x) = cosh(k (x - L/2)) / cosh(k L/2), cosh k = e^q."""
    length, q = 40, 0.3
    passive = torch.zeros(length + 1, length + 1, dtype=torch.float64)
    for x in range(1, length):
        passive[x, x - 1] = passive[x, x + 1] = 0.5
    passive[0, 0] = passive[length, length] = 1
    ends = torch.zeros(length + 1, dtype=torch.bool)
    ends[[0, length]] = True
    cost = torch.where(ends, 0.0, torch.full((length + 1,), q, dtype=torch.float64))
    value = lmdp.first_exit(cost, passive, ends).value
    k = math.acosh(math.exp(q))
    expected = [-math.log(math.cosh(k * (x - length / 2)) / math.cosh(k * length / 2)) for x in range(length + 1)]
    assert value.tolist() == pytest.approx(expected, abs=1e-12)


def test_desirabilities_far_below_the_least_float_are_found() -> None:
    """A corridor of 60 steps at 40 each: e^-2400 at its end."""
    n = 61
    passive = torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)
    passive[0, 0] = 1
    ends = torch.zeros(n, dtype=torch.bool)
    ends[0] = True
    cost = torch.where(ends, 0.0, torch.full((n,), 40.0, dtype=torch.float64))
    assert lmdp.first_exit(cost, passive, ends).value.tolist() == pytest.approx([40.0 * x for x in range(n)], rel=1e-14)
    steep = lmdp.finite_horizon(torch.zeros(2, dtype=torch.float64), torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64), 1,
                                terminal=torch.tensor([0.0, 2000.0], dtype=torch.float64)).value  # fmt: skip
    assert steep[0].tolist() == pytest.approx([math.log(2), 2000.0])


def test_states_that_never_end_cost_without_bound() -> None:
    passive = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1.0]], dtype=torch.float64)
    ends = torch.tensor([True, False, False])
    value = lmdp.first_exit(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), passive, ends).value
    assert value[2] == math.inf and bool(value[:2].isfinite().all())
    with pytest.raises(NumericFault, match="never to end"):
        lmdp.first_exit(torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64), passive, ends)
    with pytest.raises(ConfigError, match="at least one state"):
        lmdp.first_exit(torch.ones(3, dtype=torch.float64), passive, torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("lead", [(), (3,)])
def test_the_average_cost_is_the_principal_eigenvalue(lead: tuple[int, ...]) -> None:
    cost, passive = problem(5, lead=lead)
    found = lmdp.average_cost(cost, passive, 0.6)
    matrix = (-cost / 0.6).exp().unsqueeze(-1) * passive
    top = torch.linalg.eigvals(matrix).abs().amax(-1)
    assert found.average is not None
    assert torch.allclose(found.average, -0.6 * top.log(), rtol=0, atol=1e-10)
    assert float(lmdp.residual(cost, passive, found.value, 0.6, found.average).max()) < 1e-10
    # And what long horizons cost more with each step.
    long = lmdp.finite_horizon(cost, passive, 400, 0.6).value
    step = long[..., 0, :] - long[..., 1, :]
    assert torch.allclose(step, found.average.unsqueeze(-1).expand_as(step), rtol=0, atol=1e-9)


def test_circles_settle_too() -> None:
    passive = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    found = lmdp.average_cost(torch.tensor([100.0, 101, 105], dtype=torch.float64), passive)
    assert float(found.average) == pytest.approx(102, abs=1e-9)  # type: ignore[arg-type]
    apart = torch.eye(2, dtype=torch.float64)
    with pytest.raises(NumericFault, match="reached from every other"):
        lmdp.average_cost(torch.tensor([0.0, 1.0], dtype=torch.float64), apart, iterations=2000)


def test_a_discount_makes_a_contraction() -> None:
    cost, passive = problem(6)
    found = lmdp.discounted(cost, passive, 0.9, 0.8)
    assert float(lmdp.residual(cost, passive, found.value, 0.9, discount=0.8)) < 1e-9
    assert float(lmdp.residual(cost, passive, found.value + 0.1, 0.9, discount=0.8)) > 1e-3


# -------------------------------------------------------------------------------------------- actions and habits


def corridors(seed: int, states: int = 5, actions: int = 3) -> GenerativeModel:
    """Known states, moves that are certain (some of them alike), habits."""
    g = torch.Generator().manual_seed(seed)
    after = torch.randint(states, (states, actions), generator=g)
    moves = torch.nn.functional.one_hot(after, states).double().permute(2, 0, 1)
    habit = torch.rand(actions, dtype=torch.float64, generator=g) + 0.1
    return GenerativeModel(
        A=(torch.eye(states, dtype=torch.float64),),
        B=(moves,),
        C=(torch.randn(states, dtype=torch.float64, generator=g),),
        D=(torch.full((states,), 1 / states, dtype=torch.float64),),
        E=habit / habit.sum(),
    )


@pytest.mark.parametrize("gamma", [0.4, 1.0, 5.0])
def test_with_certain_moves_it_is_soft_value_iteration_with_habits(gamma: float) -> None:
    """Sophisticated inference's free-energy back-up over known states, E the habits, is this linear problem."""
    model, steps = corridors(7), 6
    moves = dynamic_programming.transitions(model)
    assert lmdp.certain(moves)
    passive = lmdp.of_actions(moves, model.E)
    # What is preferred is paid on arrival.
    end = -model.C[0]
    linear = lmdp.finite_horizon(end, passive, steps, 1 / gamma, end).value[0]
    soft = dynamic_programming.tables(model, steps, gamma, Objective("none", normalise=False)).state[0]
    assert torch.allclose(linear - end, -soft, rtol=0, atol=1e-12)


def test_the_best_transitions_are_those_of_the_gibbs_policy() -> None:
    model, gamma = corridors(8), 1.6
    moves = dynamic_programming.transitions(model)
    passive = lmdp.of_actions(moves, model.E)
    value = lmdp.finite_horizon(-model.C[0], passive, 4, 1 / gamma, -model.C[0]).value
    best = lmdp.controlled(passive, value[1], 1 / gamma)
    energy = lmdp.energies(torch.zeros(5, 3, dtype=torch.float64), moves, value[1])
    assert model.E is not None
    policy = torch.softmax(model.E.log() - gamma * energy, -1)
    assert torch.allclose((policy.unsqueeze(-2) @ moves).squeeze(-2), best, rtol=0, atol=1e-12)


def test_an_embedded_problem_charges_actions_what_they_cost() -> None:
    """Todorov's embedding: q + T KL[P(.|s, a) || p] is the action's cost, exactly where there is room for it."""
    g = torch.Generator().manual_seed(9)
    for temperature in (0.5, 2.0):
        moves = torch.rand(5, 3, 5, dtype=torch.float64, generator=g) ** 2
        moves[..., 2] = 0  # a place that no action leads to
        moves = moves / moves.sum(-1, keepdim=True)
        paid = torch.randn(5, 3, dtype=torch.float64, generator=g)
        found = lmdp.embed(paid, moves, temperature)
        assert torch.allclose(found.passive.sum(-1), torch.ones(5, dtype=torch.float64))
        ratio = torch.where(moves > 0, (moves / found.passive.unsqueeze(-2)).log(), 0.0)
        charged = found.cost.unsqueeze(-1) + temperature * (moves * ratio).sum(-1)
        assert torch.allclose(charged, paid, rtol=0, atol=1e-9)
        assert float(found.residual.max()) < 1e-9
        assert float(found.passive[:, 2].max()) == 0


def test_an_embedding_of_certain_moves_is_soft_value_iteration_without_habits() -> None:
    g = torch.Generator().manual_seed(10)
    after = torch.stack([torch.randperm(5, generator=g)[:3] for _ in range(5)])
    moves = torch.nn.functional.one_hot(after, 5).double()
    paid = torch.randn(5, 3, dtype=torch.float64, generator=g)
    temperature = 0.6
    found = lmdp.embed(paid, moves, temperature)
    value = lmdp.finite_horizon(found.cost, found.passive, 5, temperature).value[0]
    v = torch.zeros(5, dtype=torch.float64)
    for _ in range(5):
        v = -temperature * torch.logsumexp(-lmdp.energies(paid, moves, v) / temperature, -1)
    assert torch.allclose(value, v, rtol=0, atol=1e-10)


def test_tilted_moves_are_soft_value_iteration_whatever_actions_cost() -> None:
    """Also where actions lead to the same place, or may not be taken."""
    model = corridors(12)
    moves = dynamic_programming.transitions(model)
    g = torch.Generator().manual_seed(13)
    paid = torch.randn(5, 3, dtype=torch.float64, generator=g)
    paid[1, 2] = math.inf
    found = lmdp.tilt(paid, moves, 0.7)
    value = lmdp.finite_horizon(found.cost, found.passive, 5, 0.7).value[0]
    v = torch.zeros(5, dtype=torch.float64)
    for _ in range(5):
        v = -0.7 * torch.logsumexp(-lmdp.energies(paid, moves, v) / 0.7, -1)
    assert torch.allclose(value, v, rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="embed"):
        lmdp.tilt(paid, (moves + 0.1) / 1.5, 0.7)


def test_more_actions_than_places_are_met_by_least_squares() -> None:
    moves = torch.tensor([[[1.0, 0], [1.0, 0], [0, 1.0]]] * 2, dtype=torch.float64)
    found = lmdp.embed(torch.tensor([[0.0, 2.0, 5.0]] * 2, dtype=torch.float64), moves)
    assert torch.allclose(found.residual, torch.ones(2, dtype=torch.float64))


def test_bad_problems_are_refused() -> None:
    cost, passive = problem(11)
    with pytest.raises(ConfigError, match="temperature"):
        lmdp.finite_horizon(cost, passive, 3, 0.0)
    with pytest.raises(ConfigError, match="distribution over next states"):
        lmdp.average_cost(cost, passive * 2)
    with pytest.raises(ConfigError, match="must be finite"):
        lmdp.discounted(cost + math.inf, passive)
    with pytest.raises(ConfigError, match="discount lies in"):
        lmdp.discounted(cost, passive, discount=1.0)
    with pytest.raises(ConfigError, match=r"\[states, states\]"):
        lmdp.finite_horizon(cost[:3], passive, 2)
    with pytest.raises(ConfigError, match="of 3 steps, not 2"):
        lmdp.finite_horizon(torch.zeros(2, 6, dtype=torch.float64), passive, 3)
    with pytest.raises(ConfigError, match=r"\[states, actions, states\]"):
        lmdp.embed(cost, passive)
