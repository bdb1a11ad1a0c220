"""A drift is told from noise: p-values are uniform where nothing moves, and vanish where something does."""

from __future__ import annotations

import pytest
import torch

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech import gibbs, information
from mfmarl.statmech.drift import drift
from tests.statistical import beyond, statistical


def windows(energies: torch.Tensor, trials: int, draws: int) -> torch.Tensor:
    """Counts [trials, W, A] of draws at T = 1 from the energies [W, A] of each window."""
    count, actions = energies.shape
    ids = torch.arange(trials * count * draws).view(trials, count, draws)
    drawn = gibbs.sample(energies.view(1, count, 1, actions).expand(trials, -1, draws, -1), 1.0, ids, Key.of(4))
    return torch.nn.functional.one_hot(drawn, actions).sum(2)


def test_where_nothing_moves_p_values_are_uniform() -> None:
    trials, draws = 2000, 500
    found = drift(windows(torch.tensor([[0.0, 0.5, 1.0]]).repeat(4, 1), trials, draws))
    for level in (0.05, 0.5):
        share = float((found.p_value < level).double().mean())
        assert abs(share - level) <= 5 * (level * (1 - level) / trials) ** 0.5
    # The divergence's bias: (W - 1)(A - 1)/(2 n).
    bias = 3 * 2 / (2 * 4 * draws)
    assert abs(float(found.divergence.mean()) - bias) <= 5 * float(found.divergence.std()) / trials**0.5


@statistical(alpha=beyond(5, 200), bugs=("uniforms-narrow", "hot-draws"))
def test_a_policy_that_learns_drifts() -> None:
    energies, trials, draws = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 0.4]]), 200, 2000
    found = drift(windows(energies, trials, draws))
    assert bool((found.p_value < 1e-3).all())
    # On average the divergence is the policies' own, and the bias of (W - 1)(A - 1)/(2 n).
    exact = float(information.jensen_shannon(gibbs.probabilities(energies.double(), 1.0))) + 2 / (2 * 2 * draws)
    assert abs(float(found.divergence.mean()) - exact) <= 5 * float(found.divergence.std()) / trials**0.5


def test_states_that_never_occur_do_not_count_and_nonsense_is_refused() -> None:
    counts = torch.tensor([[30.0, 20.0, 0.0], [25.0, 28.0, 0.0]])
    assert float(drift(counts).p_value) == pytest.approx(float(drift(counts[:, :2]).p_value))
    assert float(drift(torch.tensor([[5.0, 0.0], [9.0, 0.0]])).p_value) == 1
    with pytest.raises(ConfigError, match="W at least 2"):
        drift(torch.ones(1, 3))
    with pytest.raises(ConfigError, match="no window may be empty"):
        drift(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
