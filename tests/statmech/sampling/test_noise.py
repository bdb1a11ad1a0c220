"""The chains' own normals: their law, and that nobody else changes them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import special

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.sampling import noise
from tests.statistical import beyond, statistical


@statistical(alpha=beyond(5, 200), bugs=("wide-sampler-noise", "shifted-sampler-noise"))
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
    assert torch.allclose(noise.normal(key, ids, 7, scale=3.0), 3 * some)
    with pytest.raises(ConfigError, match="int64"):
        noise.normal(key, ids.int(), 7)


def test_a_long_draw_in_pieces_is_the_same_as_a_short_one(monkeypatch):
    whole = noise.normal(Key.of(4), torch.arange(100), 9)
    monkeypatch.setattr(noise, "_PIECE", 16)
    assert torch.equal(noise.normal(Key.of(4), torch.arange(100), 9), whole)


def test_neighbouring_keys_and_ids_are_strangers():
    """Correlations between the draws of 40 keys, of ids one golden ratio and one apart included: none beyond 5 sigma."""
    keys = [Key(1000 + i) for i in range(20)] + [Key((1000 + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(1, 21)]
    x = torch.stack([noise.normal(k, torch.arange(500), 40).flatten() for k in keys]).double()
    assert float((x @ x.T / x.shape[1] - torch.eye(40)).abs().max()) < 5 * math.sqrt(2 / x.shape[1])


def test_the_bits_are_those_of_the_head_computed_one_by_one():
    """mix(mix(id G + k) + k' + d G) in Python's whole numbers: low half of a word first, its upper 23 bits."""
    full, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & full
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
        return z ^ (z >> 31)

    key = Key.of(12)
    drawn = noise.normal(key, torch.tensor([5, 123_456_789]), 6)
    for row, number in zip(drawn, (5, 123_456_789), strict=True):
        chain = mix((number * golden + key.value) & full)
        for d in range(3):
            word = mix((chain + key.fold("draw").value + d * golden) & full)
            for place, half in enumerate((word & 0xFFFFFFFF, word >> 32)):
                signed = half - (1 << 32) if half >> 31 else half
                u = ((signed >> 9) + 0.5) * 2.0**-23 + 0.5
                assert float(row[2 * d + place]) == pytest.approx(float(special.ndtri(u)), rel=1e-5, abs=1e-6)
