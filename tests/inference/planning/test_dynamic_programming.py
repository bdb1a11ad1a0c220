"""Tables of values over known states: against sophisticated inference, value iteration, and their own fixed point."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from mfmarl.errors import ConfigError, NumericFault
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import sophisticated
from mfmarl.inference.planning.dynamic_programming import (
    fully_observed,
    plan,
    stationary,
    step_values,
    tables,
)
from mfmarl.inference.planning.sophisticated import Backup, back_up
from tests.inference.planning.brute_force import beliefs, random_model


def observed(
    seed: int, states: int = 4, actions: int = 3, habits: bool = False, lead: tuple[int, ...] = ()
) -> GenerativeModel:
    """Every outcome tells the state, through a likelihood that is not the identity: two outcomes a state."""
    g = torch.Generator().manual_seed(seed)
    shown = torch.rand(2 * states, states, dtype=torch.float64, generator=g)
    shown = shown * torch.eye(states, dtype=torch.float64).repeat_interleave(2, 0)
    moves = torch.rand(*lead, states, states, actions, dtype=torch.float64, generator=g) ** 3
    habit = torch.rand(*lead, actions, dtype=torch.float64, generator=g)
    return GenerativeModel(
        A=(shown / shown.sum(0),),
        B=(moves / moves.sum(-3, keepdim=True),),
        C=(2 * torch.randn(2 * states, dtype=torch.float64, generator=g),),
        D=(torch.full((states,), 1 / states, dtype=torch.float64),),
        E=habit / habit.sum(-1, keepdim=True) if habits else None,
    )


def sure(states: int) -> tuple[torch.Tensor]:
    return (torch.eye(states, dtype=torch.float64),)


@pytest.mark.parametrize("backup", get_args(Backup))
@pytest.mark.parametrize("information", ["per_modality", "none"])
def test_where_outcomes_tell_the_state_it_is_sophisticated_inference(backup: Backup, information: str) -> None:
    model, objective = observed(1, habits=True), Objective(information)  # type: ignore[arg-type]
    assert fully_observed(model)
    found = plan(model, sure(4), 4, 1.3, objective, backup).value
    tree = sophisticated.plan(model, sure(4), 4, 1.3, objective, backup).value
    assert torch.allclose(found, tree, rtol=0, atol=1e-12)


def test_several_factors_are_planned_jointly() -> None:
    model = random_model(2, sizes=(2, 3), outcomes=(6,))
    certain = torch.eye(6, dtype=torch.float64).unflatten(-1, (2, 3))
    model = GenerativeModel(A=(certain,), B=model.B, C=model.C, D=model.D, B_controls=((0,), (0,)), controls=(2,))
    places = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    at = tuple(torch.eye(n, dtype=torch.float64)[places[:, i]] for i, n in enumerate((2, 3)))
    found = plan(model, at, 3, 2.0).value
    tree = sophisticated.plan(model, at, 3, 2.0).value
    assert torch.allclose(found, tree, rtol=0, atol=1e-12)


def test_minds_with_models_and_precisions_of_their_own_have_tables_of_their_own() -> None:
    models = observed(3, habits=True, lead=(3, 1))
    q = beliefs(4, (3, 5), (4,))
    gamma = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    together = plan(models, q, 3, gamma).value
    for i in range(3):
        alone = models.map(lambda x, i=i: x if x.ndim < 2 or x.shape[0] != 3 else x[i, 0])  # type: ignore[misc]
        assert torch.allclose(together[i], plan(alone, (q[0][i],), 3, float(gamma[i])).value, rtol=0, atol=1e-12)


def test_uncertain_beliefs_are_valued_by_the_mean_of_the_table() -> None:
    """QMDP: under max and expected utility never less than what the belief is worth, and more where a look is needed."""
    model = random_model(5)
    q = beliefs(6, (20,), model.sizes)
    objective = Objective("none")
    bound = plan(model, q, 4, objective=objective, backup="max").value
    true = sophisticated.plan(model, q, 4, objective=objective, backup="max").value
    assert bool((bound >= true - 1e-12).all())
    assert float((bound - true).max()) > 1e-3
    assert torch.allclose(bound, q[0] @ tables(model, 4, objective=objective, backup="max").value[0], atol=1e-12)


def test_a_look_is_valued_by_the_belief() -> None:
    model = random_model(7)
    q = beliefs(8, (5,), model.sizes)
    assert torch.allclose(plan(model, q, 1, look=True).value, sophisticated.plan(model, q, 1).value, atol=1e-12)
    known = observed(7)
    q = beliefs(8, (5,), known.sizes)
    found = plan(known, q, 4, look=True).value
    assert torch.allclose(found, sophisticated.plan(known, q, 4).value, rtol=0, atol=1e-12)
    models = observed(9, lead=(2, 1))
    q = beliefs(10, (2, 3), (4,))
    found = plan(models, q, 3, look=True).value
    assert torch.allclose(found, sophisticated.plan(models, q, 3).value, rtol=0, atol=1e-12)


def test_tables_made_before_are_read() -> None:
    model = observed(11)
    q = beliefs(12, (3,), (4,))
    known = tables(model, 6)
    assert known.value.shape == (6, 4, 3) and known.state.shape == (6, 4)
    assert torch.equal(plan(model, q, 6, known=known).value, plan(model, q, 6).value)
    # What is ahead at the third step is a plan of four.
    assert torch.allclose(known.value[2], tables(model, 4).value[0], rtol=0, atol=1e-12)


def test_preferences_in_time_are_those_of_the_step() -> None:
    model = observed(13)
    late = torch.stack([torch.zeros(8, dtype=torch.float64), model.C[0], 2 * model.C[0]])
    timed = GenerativeModel(A=model.A, B=model.B, C=(late,), D=model.D, timed=True)
    found = plan(timed, sure(4), 4, 1.1, t=1).value
    tree = sophisticated.plan(timed, sure(4), 4, 1.1, t=1).value
    assert torch.allclose(found, tree, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backup", ["free_energy", "max"])
def test_values_without_end_solve_their_equation(backup: Backup) -> None:
    model, gamma, discount = observed(14), 1.5, 0.9
    found = stationary(model, gamma, Objective("none"), backup, discount)
    v = found.state[0]
    g = step_values(model, Objective("none")) + discount * torch.einsum("nsu,n->su", model.B[0], v)
    assert torch.allclose(found.value[0], g, rtol=0, atol=1e-9)
    assert torch.allclose(back_up(g, gamma, backup), v, rtol=0, atol=1e-9)
    # And are where long horizons go.
    long = tables(model, 300, gamma, Objective("none"), backup, discount=discount)
    assert torch.allclose(long.value[0], found.value[0], rtol=0, atol=1e-9)


def test_what_follows_the_last_step_counts() -> None:
    model = observed(15)
    ahead = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    one = tables(model, 1, ahead=ahead).value[0]
    assert torch.allclose(one, step_values(model) + torch.einsum("nsu,n->su", model.B[0], ahead), rtol=0, atol=1e-12)
    assert torch.allclose(
        tables(model, 3, ahead=tables(model, 2).state[0]).value[0], tables(model, 5).value[0], atol=1e-12
    )


def test_a_model_that_hides_its_states_is_told_apart() -> None:
    assert not fully_observed(random_model(16))
    assert fully_observed(observed(16))
    # Two modalities, neither of which tells the state alone.
    bits = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)
    other = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.float64)
    whole = observed(17)
    zero = torch.zeros(2, dtype=torch.float64)
    assert fully_observed(GenerativeModel(A=(bits, other), B=whole.B, C=(zero, zero), D=whole.D))
    assert not fully_observed(GenerativeModel(A=(bits,), B=whole.B, C=(zero,), D=whole.D))


def test_large_tables_are_worked_out_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from mfmarl.inference.planning import dynamic_programming

    for lead in ((), (2, 1)):
        model = observed(18, lead=lead)
        whole = step_values(model)
        monkeypatch.setattr(dynamic_programming, "_CHUNK", 30)
        assert torch.allclose(step_values(model), whole, rtol=0, atol=1e-13)
        monkeypatch.undo()


def test_bad_questions_are_refused() -> None:
    model = observed(19)
    with pytest.raises(ConfigError, match="at least 1 action"):
        tables(model, 0)
    with pytest.raises(ConfigError, match="below 1"):
        stationary(model, discount=1.0)
    with pytest.raises(ConfigError, match="parameter_information='none'"):
        tables(model, 2, objective=Objective(parameter_information="exact"))
    with pytest.raises(NumericFault, match="still move"):
        stationary(model, discount=0.99, iterations=3)
