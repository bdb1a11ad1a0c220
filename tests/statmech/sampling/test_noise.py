"""The chains' own normals: their law, and that nobody else changes them."""

from __future__ import annotations

import math

import torch

from mfmarl.random import Key
from mfmarl.statmech.sampling import noise


def test_they_are_standard_normals_of_independent_draws():
    x = noise.normal(Key.of(1), torch.arange(20_000), 25).double()
    n = x.numel()
    assert abs(float(x.mean())) < 5 / math.sqrt(n)
    for power, moment in ((2, 1), (4, 3), (6, 15)):
        spread = math.sqrt({2: 2, 4: 96, 6: 10170}[power] / n)
        assert abs(float((x**power).mean()) - moment) < 5 * spread
    assert float(x.abs().max()) < 5.4
    order = x.flatten().sort().values
    steps = torch.arange(1, n + 1) / n
    assert float((torch.special.ndtr(order) - steps).abs().max()) < 1.95 / math.sqrt(n)  # Kolmogorov, p = .001
    between = x.T @ x / len(x) - torch.eye(25)
    assert float(between.abs().max()) < 5 * math.sqrt(2 / len(x))


def test_an_id_draws_the_same_whoever_else_draws():
    ids = torch.tensor([[3, 70_000], [5, 11]])
    some, key = noise.normal(Key.of(2), ids, 7), Key.of(2)
    assert some.shape == (2, 2, 7)
    many = noise.normal(key, torch.arange(70_001), 7)
    assert torch.equal(some, many[ids])
    assert torch.equal(noise.normal(key, torch.tensor(11), 7), some[1, 1])
    assert noise.normal(key, ids[:0], 7, torch.float64).shape == (0, 2, 7)
    assert not torch.equal(noise.normal(Key.of(3), ids, 7), some)
