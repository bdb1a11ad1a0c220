"""Potts variables: sums written out, two states are spins, and what is refused."""

from __future__ import annotations

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.energies.potts import Potts, potts
from tests.statistical import beyond, statistical


def test_the_energy_is_the_sum_over_links_and_sites() -> None:
    g = torch.Generator().manual_seed(0)
    pairs = graphs.torus(3, 3)
    system = Potts(pairs, torch.randn(18, generator=g).double(), torch.randn(9, 4, generator=g).double())
    k = system.random_states((5,), Key.of(0))
    for row in range(5):
        total = -sum(float(system.fields[i, int(k[row, i])]) for i in range(9))
        for (i, j), coupling in zip(pairs.tolist(), system.couplings.tolist(), strict=True):
            total -= coupling * float(k[row, i] == k[row, j])
        assert float(system(k)[row]) == pytest.approx(total, abs=1e-12)
    # What a site would cost in each state is the energy with it there, up to one constant.
    costs = system.state_energies(k)
    for i in range(9):
        moved = torch.stack([system(k.index_fill(1, torch.tensor([i]), a)) for a in range(4)], -1)
        away = moved - costs[:, i]
        torch.testing.assert_close(away, away[:, :1].expand(-1, 4))


def test_two_states_are_spins_with_half_the_coupling() -> None:
    pairs = graphs.torus(3, 4)
    two, ising = potts(pairs, 12, 2, 1.4), spins.ising(pairs, 12, 0.7)
    k = two.random_states((20,), Key.of(1))
    torch.testing.assert_close(two(k), ising(2.0 * k - 1) - 0.7 * len(pairs))


@statistical(alpha=beyond(5, 3), bugs=("numbers-lean", "last-number-never"))
def test_states_are_uniform_and_bad_ones_refused() -> None:
    system = potts(graphs.grid(4), 4, 3)
    share = torch.bincount(system.random_states((5000,), Key.of(2)).flatten(), minlength=3) / 20_000
    assert float((share - 1 / 3).abs().max()) <= 5 * (2 / 9 / 20_000) ** 0.5
    with pytest.raises(ConfigError, match=r"int64 in 0\.\.2"):
        system.check_states(torch.full((4,), 3))
    with pytest.raises(ConfigError, match=r"shape \[\.\.\., 4\]"):
        system.check_states(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ConfigError, match="at least 2 states"):
        potts(graphs.grid(4), 4, 1)
