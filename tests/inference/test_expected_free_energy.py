"""Expected free energy of beliefs: its definition written out, its identities, and the worth of one look."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from mfmarl.errors import ConfigError
from mfmarl.inference.counts import begin
from mfmarl.inference.expected_free_energy import (
    contract,
    independent_modalities,
    of_beliefs,
    ways_of_showing,
    worth_of_showing,
)
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from tests.inference.planning.small_models import beliefs, columns, cue, entwined, product, t_maze, worth


def test_risk_and_ambiguity_are_what_is_neither_pragmatic_nor_epistemic() -> None:
    for seed in range(50):
        model = entwined(seed, sharp=1 + seed % 4)
        found = of_beliefs(model, beliefs(seed, (40,), model.sizes))
        assert float((found.risk + found.ambiguity + found.pragmatic + found.state_information).abs().max()) < 1e-14
        assert float(found.risk.min()) >= -1e-15 and float(found.state_information.min()) >= -1e-15


def test_one_look_at_a_cue_of_95_percent_is_worth_its_information() -> None:
    model = cue()
    side = torch.full((2,), 0.5, dtype=torch.float64)
    looking = of_beliefs(model, (side, torch.tensor([0.0, 1.0], dtype=torch.float64)))
    waiting = of_beliefs(model, (side, torch.tensor([1.0, 0.0], dtype=torch.float64)))
    entropy = -0.95 * math.log(0.95) - 0.05 * math.log(0.05)
    assert float(looking.state_information) == pytest.approx(math.log(2) - entropy, abs=1e-15)
    assert float(looking.state_information) == pytest.approx(0.494632, abs=5e-7)
    assert float(waiting.state_information) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("information", ["per_modality", "joint", "none"])
def test_terms_add_up_to_the_definition_written_out(information: str) -> None:
    objective = Objective(information, state_weight=0.7, normalise=information != "joint")  # type: ignore[arg-type]
    for seed in range(3):
        model = entwined(seed, sharp=2.0)
        believed = beliefs(seed + 40, (4,), model.sizes)
        found = of_beliefs(model, believed, 0, objective).value(objective)
        truth = [worth(model, product([q[b].tolist() for q in believed]), 0, objective) for b in range(4)]
        assert torch.allclose(found, torch.tensor(truth, dtype=torch.float64), atol=1e-13, rtol=0)


def test_joint_information_is_how_far_beliefs_are_expected_to_move() -> None:
    model = entwined(3, sharp=3.0)
    believed = beliefs(9, (), model.sizes)
    prior = torch.tensor(product([q.tolist() for q in believed]), dtype=torch.float64)
    tables = model.joint().A
    expected = 0.0
    for outcome in itertools.product(*map(range, model.outcomes)):
        together = prior * torch.stack([table[o] for table, o in zip(tables, outcome, strict=True)]).prod(0)
        p, posterior = float(together.sum()), together / together.sum()
        expected += p * float((posterior * (posterior / prior).log()).sum())
    found = of_beliefs(model, believed, objective=Objective("joint"))
    assert float(found.state_information) == pytest.approx(expected, abs=1e-14)
    of_joint = of_beliefs(model.joint(), (prior,), objective=Objective("joint"))
    assert float(of_joint.state_information) == pytest.approx(expected, abs=1e-14)


def test_what_two_modalities_both_tell_is_counted_once_jointly() -> None:
    A = columns(0, 3, 4, sharp=3.0)
    sure = torch.eye(4, dtype=torch.float64)
    still = torch.eye(4, dtype=torch.float64).unsqueeze(-1)
    flat = torch.zeros(4, dtype=torch.float64)
    model = GenerativeModel(A=(sure, A, sure), B=(still,), C=(flat, flat[:3], flat), D=(flat + 0.25,))
    (q,) = beliefs(2, (5,), (4,))
    entropy = -(q * q.log()).sum(-1)
    joint = of_beliefs(model, (q,), objective=Objective("joint")).state_information
    each = of_beliefs(model, (q,)).state_information
    assert torch.allclose(joint, entropy, atol=1e-14, rtol=0)  # the states are seen: nothing else is left to tell
    assert bool((each > 2 * entropy).all())


def test_modalities_of_different_factors_tell_apart() -> None:
    model = t_maze()
    assert independent_modalities(model) == [(0, 1, 2)]
    split = replace(entwined(), A=entwined().A[1:], C=entwined().C[1:], A_factors=((1,), (2, 0)), modalities=())
    assert independent_modalities(split) == [(0,), (1,)]
    believed = beliefs(3, (6,), split.sizes)
    assert torch.allclose(
        of_beliefs(split, believed, objective=Objective("joint")).state_information,
        of_beliefs(split, believed).state_information,
        atol=1e-14,
        rtol=0,
    )


def test_without_epistemic_terms_it_is_expected_reward() -> None:
    model = entwined(4)
    believed = beliefs(1, (7,), model.sizes)
    objective = Objective("none", normalise=False)
    joint = torch.einsum("bi,bj,bk->bijk", *believed)
    reward = torch.einsum("oij,bijk,o->b", model.A[0], joint, model.C[0])
    reward += torch.einsum("oj,bijk,o->b", model.A[1], joint, model.C[1])
    reward += torch.einsum("oki,bijk,o->b", model.A[2], joint, model.C[2])
    assert torch.allclose(of_beliefs(model, believed, 0, objective).value(objective), reward, atol=1e-14, rtol=0)


def test_not_normalising_preferences_shifts_every_belief_alike() -> None:
    model = entwined(5)
    believed = beliefs(2, (9,), model.sizes)
    raw, normalised = Objective(normalise=False), Objective()
    difference = of_beliefs(model, believed, 0, raw).value(raw) - of_beliefs(model, believed).value(normalised)
    shift = float(sum(c.logsumexp(-1) for c in model.C))
    assert torch.allclose(difference, torch.full_like(difference, shift), atol=1e-13, rtol=0)


def test_everyone_is_weighed_by_a_model_of_their_own() -> None:
    for lead, batch in (((3, 1), (3, 5)), ((3, 5), (3, 5)), ((3, 1), (5,)), ((5,), (3, 5))):
        model = entwined(6, lead)
        whole = (*torch.broadcast_shapes(lead, batch),)
        believed = beliefs(4, batch, model.sizes)
        for objective in (Objective(), Objective("joint")):
            found = of_beliefs(model, believed, objective=objective)
            for where in itertools.product(*map(range, whole)):
                own = [i if n > 1 else 0 for i, n in zip(where[-len(lead) :], lead, strict=True)]
                alone = GenerativeModel(
                    A=tuple(x[tuple(own)] for x in model.A),
                    B=tuple(x[tuple(own)] for x in model.B),
                    C=tuple(x[tuple(own)] for x in model.C),
                    D=model.D,
                    A_factors=model.A_factors,
                    B_factors=model.B_factors,
                    B_controls=model.B_controls,
                )
                one = of_beliefs(alone, tuple(q[where[-len(batch) :]] for q in believed), objective=objective)
                for x, y in zip(found, one, strict=True):
                    assert x.shape == whole and abs(float(x[where]) - float(y)) < 1e-13


def test_what_planning_adds_up_is_the_value_of_the_terms() -> None:
    model = entwined(7)
    believed = beliefs(5, (8,), model.sizes)
    for objective in (Objective(state_weight=1.3), Objective("joint", state_weight=0.4), Objective("none")):
        weight = 0.0 if objective.state_information == "none" else objective.state_weight
        found = worth_of_showing(ways_of_showing(model, objective), believed, weight)
        assert torch.allclose(found, of_beliefs(model, believed, 0, objective).value(objective), atol=1e-13, rtol=0)


def test_preferences_of_the_last_time_hold_for_all_later_ones() -> None:
    base = entwined(8)
    timed = replace(base, C=tuple(torch.stack((c, 3 * c)) for c in base.C), timed=True)
    tripled = replace(base, C=tuple(3 * c for c in base.C))
    believed = beliefs(6, (4,), base.sizes)
    for t, same in ((0, base), (1, tripled), (7, tripled)):
        assert torch.equal(of_beliefs(timed, believed, t).pragmatic, of_beliefs(same, believed).pragmatic)


def test_information_on_parameters_is_how_far_their_beliefs_are_expected_to_move() -> None:
    model = entwined(9)
    counts = begin(model, "AB", 3.0)
    assert counts.A is not None and counts.B is not None
    before = beliefs(7, (), model.sizes)
    action = torch.tensor(4)
    setting = model.settings()[4].tolist()
    after = beliefs(8, (), model.sizes)

    def expected(column: Tensor) -> float:
        """E_o KL[Dir(a + e_o) || Dir(a)]"""
        grown = Dirichlet(column + torch.eye(len(column), dtype=torch.float64))
        return float((column / column.sum() * kl_divergence(grown, Dirichlet(column))).sum())

    truth = 0.0
    for table, own in zip(counts.A, model.A_factors, strict=True):
        assert table is not None
        for s in itertools.product(*(range(model.sizes[f]) for f in own)):
            p = math.prod(float(after[f][x]) for f, x in zip(own, s, strict=True))
            index: tuple[slice | int, ...] = (slice(None), *s)
            truth += p * expected(table[index])
    for table, own, controls in zip(counts.B, model.B_factors, model.B_controls, strict=True):
        assert table is not None
        for s in itertools.product(*(range(model.sizes[f]) for f in own)):
            p = math.prod(float(before[f][x]) for f, x in zip(own, s, strict=True))
            index = (slice(None), *s, *(setting[g] for g in controls))
            truth += p * expected(table[index])
    objective = Objective(parameter_information="exact", parameter_weight=0.5)
    found = of_beliefs(model, after, 0, objective, counts, before, action)
    assert float(found.parameter_information) == pytest.approx(truth, abs=1e-12)
    without = of_beliefs(model, after)
    assert float(found.value(objective) - without.value(Objective())) == pytest.approx(truth / 2, abs=1e-12)


@pytest.mark.parametrize("lead", [(), (1,), (4,), (3, 1), (1, 4), (3, 4), (3, 1, 1), (3, 4, 1)])
def test_products_with_tables_of_ones_own_are_those_of_einsum(lead: tuple[int, ...]) -> None:
    batch = (3, 4, 6) if len(lead) == 3 else (3, 4)
    x, table = columns(1, *batch, 5), columns(2, *lead, 5, 7)
    found = contract(x, table)
    truth = (x.unsqueeze(-1) * table.expand(*batch, 5, 7)).sum(-2)
    assert found.shape == truth.shape and torch.allclose(found, truth, atol=1e-14, rtol=0)


def test_what_is_missing_or_does_not_fit_is_said() -> None:
    model = entwined()
    believed = beliefs(0, (3,), model.sizes)
    novelty = Objective(parameter_information="exact")
    with pytest.raises(ConfigError, match="needs the counts of a model that is learned"):
        of_beliefs(model, believed, 0, novelty)
    with pytest.raises(ConfigError, match="`before` and `action`"):
        of_beliefs(model, believed, 0, novelty, begin(model, "B"))
    with pytest.raises(ConfigError, match="learn neither"):
        of_beliefs(model, believed, 0, novelty, begin(model, "D"))
    with pytest.raises(ConfigError, match=r"over \[2, 3, 2\] states, not over \[2, 3\]"):
        of_beliefs(model, believed[:2])


def test_too_many_joint_outcomes_are_refused_by_name() -> None:
    many = torch.full((60, 2), 1 / 60, dtype=torch.float64)
    still = torch.eye(2, dtype=torch.float64).unsqueeze(-1)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    model = GenerativeModel(
        A=(many,) * 5, B=(still,), C=(many[:, 0],) * 5, D=(half,), modalities=("a", "b", "c", "d", "e")
    )
    with pytest.raises(ConfigError, match=r"'a', 'b', 'c', 'd', 'e' need a table of 1555200000 numbers.*per_modality"):
        of_beliefs(model, (half,), objective=Objective("joint"))
