"""Mean-field annealing: Curie-Weiss in closed form, and ground states of dense glasses."""

from __future__ import annotations

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.annealing.mean_field import anneal_averages, rounded, small_averages
from mfmarl.statmech.energies.spins import curie_weiss, sherrington_kirkpatrick
from mfmarl.statmech.exact import enumeration
from mfmarl.statmech.exact import ising as ising_exact


def test_waiting_at_one_temperature_ends_in_the_mean_field_state():
    system = curie_weiss(50)
    for temperature in (0.5, 1.5):
        m = anneal_averages(system, 0.5 * torch.ones(50).double(), torch.full((2000,), 1 / temperature))
        exact = ising_exact.curie_weiss(temperature, coupling=49 / 50)
        assert m.tolist() == pytest.approx([exact] * 50, abs=1e-8)


def test_slow_cooling_finds_ground_states_of_dense_glasses_more_often_than_a_quench():
    glass = sherrington_kirkpatrick(16, Key.of(1), (40,))
    wide = type(glass)(glass.pairs, glass.couplings.unsqueeze(-2), glass.fields)
    low = enumeration.ground_states(glass).energy.unsqueeze(-1)
    start = small_averages(wide, (40, 10), Key.of(2))

    def share(betas: torch.Tensor) -> float:
        s = rounded(anneal_averages(wide, start, betas))
        energy = wide(s)
        assert bool((energy >= low - 1e-9).all())
        return float((energy < low + 1e-9).double().mean())

    assert share(torch.linspace(0.3, 5, 600)) > share(torch.full((600,), 1e9)) + 0.15


def test_a_start_does_not_know_of_others():
    glass = sherrington_kirkpatrick(10, Key.of(3))
    together = small_averages(glass, (6,), Key.of(4))
    alone = small_averages(glass, (1,), Key.of(4), ids=torch.tensor([4]))
    assert torch.equal(alone[0], together[4])
    assert rounded(torch.tensor([-0.1, 0.0, 2.0])).tolist() == [-1, 1, 1]


def test_shares_out_of_reach_are_refused():
    with pytest.raises(ConfigError, match="share"):
        anneal_averages(curie_weiss(3), torch.zeros(3).double(), torch.ones(2), share=0.0)
