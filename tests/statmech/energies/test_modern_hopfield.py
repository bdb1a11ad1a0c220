"""Attention is retrieval: the update is torch's own attention, and the energy never rises."""

from __future__ import annotations

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.statmech.energies.energy import gradient
from mfmarl.statmech.energies.modern_hopfield import ModernHopfield


def patterns(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_update_is_scaled_dot_product_attention() -> None:
    keys, queries = patterns(7, 16), patterns(5, 16, 1)
    found = ModernHopfield(keys, 16**-0.5).update(queries)
    attention = torch.nn.functional.scaled_dot_product_attention(queries[None], keys[None], keys[None])[0]
    assert torch.allclose(found, attention)


def test_the_energy_falls_with_every_update_and_a_pattern_is_retrieved_in_one() -> None:
    stored = patterns(10, 64)
    network = ModernHopfield(stored, 2.0)
    x = stored[3] + 0.3 * patterns(1, 64, 2)[0]
    assert torch.allclose(network.update(x), stored[3], atol=1e-6)
    x = patterns(20, 64, 3)
    slow = ModernHopfield(stored, 0.05)
    for _ in range(20):
        new = slow.update(x)
        assert bool((slow(new) <= slow(x) + 1e-12).all())
        x = new


def test_the_update_is_a_step_down_the_slope() -> None:
    network, x = ModernHopfield(patterns(6, 8), 0.7), patterns(4, 8, 5)
    by_torch = torch.func.vmap(torch.func.grad(network))(x)
    assert torch.allclose(gradient(network, x), by_torch)
    assert torch.allclose(network.update(x), x - by_torch)


def test_warm_patterns_melt_into_one() -> None:
    stored = patterns(6, 8)
    network, x = ModernHopfield(stored, 0.01), stored.clone()
    for _ in range(200):
        x = network.update(x)
    assert float((x - x[0]).abs().max()) < 1e-9
    with pytest.raises(ConfigError, match="above 0 and finite"):
        ModernHopfield(stored, 0.0)
