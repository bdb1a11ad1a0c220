"""Beliefs in time: the forward algorithm, sums over all histories, and the price of forgetting correlations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mfmarl import random
from mfmarl.errors import ConfigError
from mfmarl.inference import filtering
from mfmarl.inference.model import GenerativeModel
from mfmarl.random import Key


def positive(seed: int, *shape: int) -> Tensor:
    ids = torch.arange(math.prod(shape)).reshape(shape)
    return random.exponential(Key.of(seed), ids).double()


def model(
    sizes: tuple[int, ...], outcomes: tuple[int, ...] = (4, 3), actions: int = 2, seed: int = 0
) -> GenerativeModel:
    a = [positive(seed + m, count, *sizes) for m, count in enumerate(outcomes)]
    b = [positive(seed + 10 + f, size, size, actions) for f, size in enumerate(sizes)]
    d = [positive(seed + 20 + f, size) for f, size in enumerate(sizes)]
    return GenerativeModel(
        A=tuple(x / x.sum(0) for x in a),
        B=tuple(x / x.sum(0) for x in b),
        C=tuple(torch.zeros(count).double() for count in outcomes),
        D=tuple(x / x.sum() for x in d),
        controls=(actions,),
    )


OBSERVED = torch.tensor([[[0, 1], [3, 2]], [[2, 0], [0, 0]], [[1, 1], [2, 2]], [[3, 0], [1, 1]]])  # [T, b, M]
ACTIONS = torch.tensor([[0, 1], [1, 1], [0, 0]])


def test_one_factor_is_filtered_as_sums_over_all_histories_say() -> None:
    world = model((3,))
    believed, cost = filtering.follow(world, OBSERVED, ACTIONS)
    for b in range(2):
        last, total = torch.zeros(3).double(), 0.0
        for history in itertools.product(range(3), repeat=4):
            p = float(world.D[0][history[0]])
            for t, s in enumerate(history):
                for m in range(2):
                    p *= float(world.A[m][OBSERVED[t, b, m], s])
                if t:
                    p *= float(world.B[0][s, history[t - 1], ACTIONS[t - 1, b]])
            last[history[-1]] += p
            total += p
        assert torch.allclose(believed[-1][0][b], last / total, atol=1e-12)
        # Surprises add up to that of everything seen.
        assert float(cost[:, b].sum()) == pytest.approx(-math.log(total), abs=1e-12)


def test_factors_that_share_no_modality_are_filtered_each_for_itself() -> None:
    left, right = model((2,), (4,), seed=1), model((3,), (3,), seed=5)
    both = GenerativeModel(
        A=(left.A[0].unsqueeze(-1).expand(4, 2, 3), right.A[0].unsqueeze(1).expand(3, 2, 3)),
        B=(left.B[0], right.B[0]),
        C=(left.C[0], right.C[0]),
        D=(left.D[0], right.D[0]),
        controls=(2,),
    )
    for method in ("exact", "sequential"):
        believed, cost = filtering.follow(both, OBSERVED, ACTIONS, method)
        alone = [filtering.follow(w, OBSERVED[..., m : m + 1], ACTIONS) for m, w in enumerate((left, right))]
        for f in range(2):
            assert torch.allclose(believed[-1][f], alone[f][0][-1][0], atol=1e-7)
        assert torch.allclose(cost, alone[0][1] + alone[1][1], atol=1e-7)


def test_mean_field_pays_for_what_it_cannot_say() -> None:
    world = model((2, 3))
    step, bound = (filtering.update(world, world.D, OBSERVED[0], m) for m in ("exact", "sequential"))
    assert bool((bound.free_energy >= step.free_energy - 1e-12).all())
    assert float((bound.free_energy - step.free_energy).max()) > 1e-4
    for q in (*step.factors, *bound.factors):
        assert torch.allclose(q.sum(-1), torch.ones(2).double())


def test_an_agent_believes_the_same_however_many_others_there_are() -> None:
    world = model((2, 3))
    many, _ = filtering.follow(world, OBSERVED, ACTIONS, "sequential")
    one, _ = filtering.follow(world, OBSERVED[:, :1], ACTIONS[:, :1], "sequential")
    # Coordinate ascent goes on until the slowest belief has settled: equal to its tolerance.
    assert torch.allclose(many[-1][1][:1], one[-1][1], atol=1e-6)


def test_what_does_not_fit_the_model_is_refused() -> None:
    world = model((2, 3))
    with pytest.raises(ConfigError, match=r"outside 0\.\.1"):
        filtering.predict(world, world.D, torch.tensor([2]))
    with pytest.raises(ConfigError, match="one action less"):
        filtering.follow(world, OBSERVED, ACTIONS[:1])
    with pytest.raises(ConfigError, match="Did you mean 'parallel'"):
        filtering.update(world, world.D, OBSERVED[0], "paralel")  # type: ignore[arg-type]
