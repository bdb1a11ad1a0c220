"""Search over beliefs: it becomes sophisticated inference, and goes where that cannot."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.inference.model import GenerativeModel
from mfmarl.inference.objective import Objective
from mfmarl.inference.planning import dynamic_programming, sophisticated
from mfmarl.inference.planning.search import plan
from mfmarl.inference.planning.sophisticated import Backup
from mfmarl.random import Key
from tests.inference.planning.brute_force import beliefs, random_model

KEY = Key.of(1)


@pytest.mark.parametrize("backup", get_args(Backup))
def test_a_tree_that_is_whole_is_sophisticated_inference(backup: Backup) -> None:
    model = random_model(1, outcomes=(2,), habits=True)
    q = beliefs(2, (3,), model.sizes)
    true = sophisticated.plan(model, q, 3, 1.3, backup=backup).value
    # 2 x 2 + (2 x 2)^2 = 20 nodes; outcomes that are rare take a while to be drawn.
    found = plan(model, q, 3, 1.3, backup=backup, key=KEY, simulations=700, exploration=2.0).value
    assert torch.allclose(found, true, rtol=0, atol=1e-10)


def test_with_simulations_it_comes_closer() -> None:
    """The mean error over 64 agents who search with noise of their own, from the same belief."""
    model = random_model(3, sharp=1.5)
    q = tuple(x.expand(64, -1) for x in beliefs(4, (1,), model.sizes))
    ids = torch.arange(64)
    true = sophisticated.plan(model, q, 4).value
    errors = []
    for simulations in (1, 30, 300):
        found = plan(model, q, 4, key=KEY, ids=ids, simulations=simulations).value
        errors.append((found - true).abs().mean(-1))
    mean = [float(e.mean()) for e in errors]
    spread = [float(e.std()) / 8 for e in errors]
    assert mean[1] + 5 * spread[1] < mean[0] - 5 * spread[0]
    assert mean[2] + 5 * spread[2] < mean[1] - 5 * spread[1]
    assert mean[2] < 0.7 * mean[0]


def maze(cue: float = 0.95, win: float = 1.0) -> GenerativeModel:
    """The T-maze: places start, left, right, cue; one leaves an arm only where `back`; a reward is +1 or -3."""
    side = 2
    reward = torch.zeros(3, 4, side, dtype=torch.float64)
    reward[0, [0, 3]] = 1
    for s in range(side):
        for arm in (1, 2):
            p = win if arm == s + 1 else 1 - win
            reward[1, arm, s], reward[2, arm, s] = p, 1 - p
    hint = torch.zeros(3, 4, side, dtype=torch.float64)
    hint[0, :3] = 1
    hint[1:, 3] = torch.tensor([[cue, 1 - cue], [1 - cue, cue]], dtype=torch.float64)
    moves = torch.zeros(4, 4, 4, dtype=torch.float64)
    for u in range(4):
        moves[u, :, u] = 1
    moves[:, 1], moves[:, 2] = 0, 0
    moves[1, 1], moves[2, 2] = 1, 1  # whoever is in an arm stays there
    return GenerativeModel(
        A=(torch.eye(4, dtype=torch.float64).unsqueeze(-1).expand(4, 4, side).clone(), reward, hint),
        B=(moves, torch.eye(side, dtype=torch.float64)),
        C=(
            torch.zeros(4, dtype=torch.float64),
            torch.tensor([0.0, 1.0, -3.0], dtype=torch.float64),
            torch.zeros(3, dtype=torch.float64),
        ),
        D=(torch.eye(4, dtype=torch.float64)[0], torch.full((side,), 0.5, dtype=torch.float64)),
        B_controls=((0,), ()),
        controls=(4,),
    )


def test_at_a_depth_of_twelve_it_asks_before_it_chooses() -> None:
    """4^12 x outcomes is out of the question; whoever first reads a certain cue wins eleven times of twelve: 11."""
    model = maze(cue=1.0)
    utility = Objective("none", normalise=False)
    value = plan(model, model.D, 12, 4.0, utility, "max", key=KEY, simulations=150).value
    assert int(value.argmax()) == 3
    assert value[3].item() == pytest.approx(11.0, abs=1e-9)
    # To guess is to win or lose for good: (1 - 3) / 2 a step.
    assert value[1].item() == pytest.approx(-12.0, abs=1e-9)
    with pytest.raises(ConfigError, match="planning.search"):
        sophisticated.plan(random_model(5), beliefs(6, (1,), (3,)), 12, budget=1 << 20)


def test_several_looks_at_a_doubtful_cue_are_worth_their_time() -> None:
    """With 70 % cues the best plan looks until it is sure enough: the exact value, by the count of the cues."""
    model, depth, cue = maze(cue=0.7), 5, 0.7
    utility = Objective("none", normalise=False)
    found = plan(model, model.D, depth, 1.0, utility, "max", key=KEY, simulations=500, exploration=0.0).value
    known: dict[tuple[int, int], float] = {}

    def worth(steps: int, lead: int) -> float:
        """At best, with so many steps ahead and so many more cues for the left than for the right."""
        if steps == 0:
            return 0.0
        if (steps, lead) not in known:
            left = cue**lead / (cue**lead + (1 - cue) ** lead)
            p = max(left, 1 - left)
            arm = steps * (p - 3 * (1 - p))
            seen = left * cue + (1 - left) * (1 - cue)
            look = seen * worth(steps - 1, lead + 1) + (1 - seen) * worth(steps - 1, lead - 1)
            known[steps, lead] = max(arm, look, 0.0)
        return known[steps, lead]

    best = worth(depth, 0)
    assert int(found.argmax()) == 3
    # The leaves are optimistic, so the value comes from above, and what looks best is enough to look at.
    assert best - 1e-9 <= float(found[3]) < best + 0.1


def grid(side: int = 7) -> GenerativeModel:
    """A known place on a grid, five moves, one wanted corner."""
    n = side * side
    steps = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
    moves = torch.zeros(n, n, len(steps), dtype=torch.float64)
    for x in range(side):
        for y in range(side):
            for u, (dx, dy) in enumerate(steps):
                a, b = min(max(x + dx, 0), side - 1), min(max(y + dy, 0), side - 1)
                moves[a * side + b, x * side + y, u] = 1
    wanted = torch.zeros(n, dtype=torch.float64)
    wanted[-1] = 2.0
    first = torch.zeros(n, dtype=torch.float64)
    first[0] = 1
    return GenerativeModel(A=(torch.eye(n, dtype=torch.float64),), B=(moves,), C=(wanted,), D=(first,))


@pytest.mark.parametrize("backup", get_args(Backup))
def test_where_states_are_known_it_is_dynamic_programming_at_any_depth(backup: Backup) -> None:
    model = grid()
    found = plan(model, model.D, 14, 2.0, backup=backup, key=KEY, simulations=5).value
    table = dynamic_programming.plan(model, model.D, 14, 2.0, backup=backup).value
    assert torch.allclose(found, table, rtol=0, atol=1e-9)


def test_without_a_guess_of_what_lies_ahead_it_searches_blindly() -> None:
    model = grid(3)
    table = dynamic_programming.plan(model, model.D, 5, 2.0, backup="max").value
    blind = plan(model, model.D, 5, 2.0, backup="max", key=KEY, simulations=3, leaf="nothing").value
    assert float((blind - table).abs().max()) > 0.5
    seen = plan(model, model.D, 5, 2.0, backup="max", key=KEY, simulations=700, leaf="nothing").value
    # What is best is found; what is not is looked at no more than need be.
    assert seen.amax().item() == pytest.approx(table.amax().item(), abs=1e-9)
    assert bool((seen >= table - 1e-9).all())


def test_an_agent_does_not_know_of_the_others() -> None:
    models = random_model(7, lead=(3, 1), habits=True, zeros=True)
    q = beliefs(8, (3, 5), models.sizes)
    ids = torch.arange(15).view(3, 5) + (1 << 32)
    together = plan(models, q, 4, 1.2, key=KEY, ids=ids, simulations=20).value
    parts = plan(models, q, 4, 1.2, key=KEY, ids=ids, simulations=20, budget=40_000).value
    assert torch.allclose(together, parts, rtol=0, atol=1e-12)
    for i in range(3):
        one = models.map(lambda x, i=i: x[i, 0])  # type: ignore[misc]
        alone = plan(one, (q[0][i, 2:4],), 4, 1.2, key=KEY, ids=ids[i, 2:4], simulations=20).value
        assert torch.allclose(together[i, 2:4], alone, rtol=0, atol=1e-12)


def test_without_ids_equal_beliefs_plan_alike_wherever_they_stand() -> None:
    model = random_model(9)
    q = beliefs(10, (4,), model.sizes)[0]
    one = plan(model, (q,), 4, key=KEY, simulations=10).value
    other = plan(model, (q[[3, 1, 1, 0, 2]],), 4, key=KEY, simulations=10).value
    assert torch.equal(other, one[[3, 1, 1, 0, 2]])
    assert not torch.equal(plan(model, (q,), 4, key=Key.of(2), simulations=10).value, one)


def test_preferences_in_time_and_factors_are_those_of_sophisticated_inference() -> None:
    base = random_model(11, sizes=(2, 2), outcomes=(2,))
    late = torch.stack([torch.zeros(2, dtype=torch.float64), base.C[0], -base.C[0]])
    timed = GenerativeModel(
        A=base.A, B=base.B, C=(late,), D=base.D, timed=True, B_controls=base.B_controls, controls=base.controls
    )
    q = beliefs(12, (2,), base.sizes)
    joint: Tensor = (q[0].unsqueeze(-1) * q[1].unsqueeze(-2)).flatten(-2)
    true = sophisticated.plan(timed.joint(), (joint,), 3, 0.9, t=1).value
    found = plan(timed, q, 3, 0.9, t=1, key=KEY, simulations=700, exploration=2.0).value
    assert torch.allclose(found, true, rtol=0, atol=1e-10)


def test_single_precision_is_enough() -> None:
    model = random_model(13).to(dtype=torch.float32)
    q = tuple(x.float() for x in beliefs(14, (6,), model.sizes))
    found = plan(model, q, 4, key=KEY, simulations=50).value
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    wide = plan(random_model(13), beliefs(14, (6,), (3,)), 1, key=KEY, simulations=1).value
    assert torch.allclose(plan(model, q, 1, key=KEY, simulations=1).value.double(), wide, atol=1e-5)


def test_bad_questions_are_refused() -> None:
    model = random_model(15)
    q = beliefs(16, (2,), model.sizes)
    for options, words in (
        ({"depth": 0}, "at least 1 action"),
        ({"depth": 2, "simulations": 0}, "at least 1 simulation"),
        ({"depth": 2, "exploration": math.nan}, "exploration"),
        ({"depth": 2, "leaf": "none"}, "There is no leaf"),
        ({"depth": 2, "budget": 1000}, "simulate less"),
        ({"depth": 2, "objective": Objective(parameter_information="exact")}, "parameter_information='none'"),
    ):
        with pytest.raises(ConfigError, match=words):
            plan(model, q, key=KEY, **options)  # type: ignore[arg-type]
