"""The loop over sweeps: what is kept, what is thinned, and that a chain does not know of the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfmarl.errors import ConfigError
from mfmarl.random import Key
from mfmarl.statmech.energies import graphs, spins
from mfmarl.statmech.sampling import chains, single_spin


def counting(x: Tensor, beta: float | Tensor, ids: Tensor, key: Key) -> Tensor:
    return x + 1


def test_observations_are_those_after_the_warm_up_every_so_often() -> None:
    x = torch.zeros(2, 3)
    last, seen = chains.run(counting, x, 1.0, Key.of(0), 7, warm_up=10, thin=3)
    assert seen[:, 0, 0].tolist() == [13, 16] and float(last[0, 0]) == 17
    assert float(x.max()) == 0  # what is given is left as it is
    _, total = chains.run(counting, x, 1.0, Key.of(0), 2, lambda s: s.sum(-1))
    assert total.tolist() == [[3, 3], [6, 6]]


def test_a_trajectory_goes_on_where_it_is_told_to_as_if_never_stopped() -> None:
    system = spins.ising(graphs.torus(4, 4), 16)
    sweep, start = single_spin.heat_bath(system), system.random_states((3,), Key.of(1))
    whole = chains.trajectory(sweep, start, 0.4, Key.of(2))
    states = [next(whole) for _ in range(6)]
    rest = chains.trajectory(sweep, states[2], 0.4, Key.of(2), start=3)
    assert all(torch.equal(next(rest), state) for state in states[3:])


def test_a_chain_draws_the_same_among_others_and_alone() -> None:
    system = spins.ising(graphs.torus(4, 4), 16)
    sweep, start = single_spin.heat_bath(system), system.random_states((5,), Key.of(1))
    _, many = chains.run(sweep, start, 0.4, Key.of(2), 4)
    _, one = chains.run(sweep, start[3:4], 0.4, Key.of(2), 4, ids=torch.tensor([3]))
    assert torch.equal(many[:, 3:4], one)


def test_runs_that_are_none_are_refused() -> None:
    for options in ({"steps": 0}, {"steps": 3, "thin": 4}, {"steps": 3, "warm_up": -1}):
        with pytest.raises(ConfigError, match="steps >= thin >= 1"):
            chains.run(counting, torch.zeros(1, 1), 1.0, Key.of(0), **options)
    for beta in (-0.1, float("nan"), torch.tensor([1.0, -1.0])):
        with pytest.raises(ConfigError, match="inverse temperature beta must be at least 0"):
            chains.run(counting, torch.zeros(2, 1), beta, Key.of(0), 1)
