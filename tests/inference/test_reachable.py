"""The most that can be earned of a model, against trees of all that can be done and seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference import reachable
from mfmarl.inference.model import GenerativeModel


def _random_model(seed: int, factors: tuple[int, ...] = (2, 2), outcomes: tuple[int, ...] = (2, 3)) -> GenerativeModel:
    noise = torch.Generator().manual_seed(seed)

    def columns(*shape: int) -> Tensor:
        table = torch.rand(*shape, generator=noise, dtype=torch.float64) ** 3
        return table / table.sum(0)

    # The second factor moves as the first one is, by nobody's will.
    return GenerativeModel(
        A=tuple(columns(size, *factors) for size in outcomes),
        B=(columns(factors[0], factors[0], 3), columns(factors[1], *factors)),
        C=tuple(torch.randn(size, generator=noise, dtype=torch.float64) for size in outcomes),
        D=tuple(columns(size) for size in factors),
        B_factors=((0,), (0, 1)),
        B_controls=((0,), ()),
    )


def _by_tree(model: GenerativeModel, steps: int) -> float:
    """Every history, one after the other, from the definition."""
    flat = model.joint()
    transition, first = flat.B[0], flat.D[0]
    outcomes = [[a[o] for o in range(a.shape[0])] for a in flat.A]

    def after(expected: Tensor) -> list[tuple[float, float, Tensor]]:
        found = []
        for o, one in enumerate(outcomes[0]):
            for p, other in enumerate(outcomes[1]):
                joint = one * other * expected
                found.append((float(joint.sum()), float(flat.C[0][o] + flat.C[1][p]), joint / joint.sum()))
        return found

    def value(belief: Tensor, left: int) -> float:
        if not left:
            return 0.0
        return max(
            sum(chance * (paid + value(then, left - 1)) for chance, paid, then in after(transition[:, :, u] @ belief))
            for u in range(transition.shape[-1])
        )

    return sum(chance * value(then, steps) for chance, _, then in after(first))


@pytest.mark.parametrize("seed", [0, 6, 9])
def test_the_optimum_is_that_of_the_tree_of_all_histories(seed: int) -> None:
    model = _random_model(seed)
    assert reachable.optimum(model, 2) == pytest.approx(_by_tree(model, 2), abs=1e-12)


def test_who_sees_the_states_earns_more_and_who_can_tell_them_as_much() -> None:
    model = _random_model(6)
    most = reachable.optimum(model, 2)
    assert most is not None
    assert reachable.with_known_states(model, 2) > most + 0.1
    # One more modality that tells the state, and is worth nothing.
    telling = GenerativeModel(
        A=(*model.A, torch.eye(4, dtype=torch.float64).view(4, 2, 2)),
        B=model.B,
        C=(*model.C, torch.zeros(4, dtype=torch.float64)),
        D=model.D,
        B_factors=model.B_factors,
        B_controls=model.B_controls,
    )
    assert reachable.optimum(telling, 6) == pytest.approx(reachable.with_known_states(model, 6), abs=1e-12)


def test_more_beliefs_than_allowed_are_not_guessed_at() -> None:
    assert reachable.optimum(_random_model(1), 8, limit=1000) is None
    known = reachable.most(_random_model(1), 12, "the state")
    assert known.kind == "bound"
    assert "the state" in known.source
    assert reachable.most(_random_model(0), 2, "the state").kind == "optimum"


def test_tables_of_ones_own_and_preferences_that_change_are_refused() -> None:
    model = _random_model(0)
    with pytest.raises(ConfigError, match="leading axes"):
        reachable.optimum(model.map(lambda x: x.unsqueeze(0)), 2)
    timed = GenerativeModel(
        A=model.A, B=model.B, C=tuple(c.expand(2, -1) for c in model.C), D=model.D, timed=True,
        B_factors=model.B_factors, B_controls=model.B_controls,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="changes with time"):
        reachable.with_known_states(timed, 2)
