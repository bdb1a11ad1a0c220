"""Variance and correlation maps of wide tanh networks: against closed forms and a real wide network."""

from __future__ import annotations

import math

import pytest
import torch

from mfmarl import random
from mfmarl.random import Key
from mfmarl.statmech.mean_field import signal_propagation as signal


def test_without_biases_the_edge_of_chaos_is_at_one():
    assert signal.edge_of_chaos(0.0) == pytest.approx(1.0, abs=1e-12)
    assert signal.fixed_variance(0.9, 0.0) == 0.0
    assert signal.gradient_growth(0.9, 0.0) == pytest.approx(0.81)
    # Near the edge q* = (s^2 - 1)/2 + ...: tanh^2(x) = x^2 - 2 x^4/3, <x^4> = 3 q^2.
    scale = 1.001
    assert signal.fixed_variance(scale, 0.0) == pytest.approx((scale**2 - 1) / 2, rel=0.01)


def test_the_edge_moves_up_with_biases_and_separates_order_from_chaos():
    edges = [signal.edge_of_chaos(b) for b in (0.0, 0.1, 0.3)]
    assert edges == sorted(edges) and edges[2] > 1.2
    for bias, edge in zip((0.1, 0.3), edges[1:], strict=True):
        assert signal.gradient_growth(edge, bias) == pytest.approx(1, abs=1e-10)
        assert signal.gradient_growth(edge * 1.1, bias) > 1 > signal.gradient_growth(edge * 0.9, bias)
        assert signal.depth_scale(edge * 1.001, bias) > 100


def test_chi_is_the_slope_of_the_correlation_map_at_one():
    for scale in (0.8, 1.3, 2.5):
        c = torch.tensor([1.0, 1 - 1e-5], dtype=torch.float64)
        one, below = signal.correlation_map(c, scale, 0.2).tolist()
        assert one == pytest.approx(1, abs=1e-9)
        assert (one - below) / 1e-5 == pytest.approx(signal.gradient_growth(scale, 0.2), rel=1e-3)


def test_in_chaos_neighbours_part_and_in_order_strangers_meet():
    for scale, expected in ((0.8, 1.0), (2.5, None)):
        c = torch.tensor([0.5, 0.999], dtype=torch.float64)
        for _ in range(400):
            c = signal.correlation_map(c, scale, 0.2)
        if expected is None:
            assert float(c.max()) < 0.9
            assert float(c[0]) == pytest.approx(float(c[1]), abs=1e-6)
        else:
            assert c.tolist() == pytest.approx([1, 1], abs=1e-6)


def test_a_wide_network_has_these_variances():
    width, depth, scale, bias = 2000, 6, 1.5, 0.3
    key = Key.of(3)
    q = torch.tensor(1.0, dtype=torch.float64)
    x = random.normal(key, torch.arange(width)).double()
    seen = []
    for layer in range(depth):
        weights = random.normal(key.fold("w", layer), torch.arange(width), width).double() * scale / math.sqrt(width)
        h = weights @ torch.tanh(x) + bias * random.normal(key.fold("b", layer), torch.arange(width)).double()
        q = signal.variance_map(q, scale, bias)
        # The sample variance of `width` neurons, and the same error once more from the layer before.
        seen.append(abs(float(h.square().mean() - q)) / (float(q) * math.sqrt(4 / width)))
        x = h
    assert max(seen) < 5
